//! Which file counts for whom.

use std::{fs, os::unix::fs::PermissionsExt};

use super::*;

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().expect("a temporary directory"))
    }

    fn with(self, name: &str, mode: u32, text: &str) -> Home {
        let path = self.0.path().join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode set");
        self
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn resolve(&self, target: Target) -> Result<Resolved, Refused> {
        let services = ["service", "none", "system-service"].map(|name| self.at(name));
        Files { option_file: self.at("my.cnf"), passwords: self.at("pgpass"), services }.resolve(target)
    }

    fn password(&self, target: Target) -> Option<String> {
        self.resolve(target).expect("usable").target.password.map(|secret| secret.reveal().to_owned())
    }
}

fn mysql(socket: &str) -> Target {
    Target::discovered(Engine::Mysql, socket.into())
}

fn postgres(socket: &str) -> Target {
    Target::discovered(Engine::Postgresql, socket.into())
}

fn configured(target: Target) -> Target {
    Target { configured: true, ..target }
}

const MYSQL: &str = "/run/mysqld/mysqld.sock";
const POSTGRES: &str = "/var/run/postgresql/.s.PGSQL.5432";

#[test]
fn without_any_file_nobody_has_a_password() {
    let home = Home::new();
    assert_eq!((home.password(mysql(MYSQL)), home.password(postgres(POSTGRES))), (None, None));
}

#[test]
fn what_is_configured_for_an_instance_goes_first() {
    let home = Home::new().with("password", 0o600, "explicit\n").with("my.cnf", 0o600, "[client]\npassword=own\n");
    let file = Home::new().with("cnf", 0o600, "[client]\nuser=keeper\npassword=file\n");
    let target = configured(mysql(MYSQL));
    let explicit = Target { password_file: Some(home.at("password")), ..target.clone() };
    assert_eq!(home.password(explicit).as_deref(), Some("explicit"));
    let by_file = Target { defaults_file: Some(file.at("cnf")), ..target.clone() };
    let resolved = home.resolve(by_file.clone()).expect("usable");
    assert_eq!(resolved.target.user.as_deref(), Some("keeper"));
    assert_eq!(home.password(by_file.clone()).as_deref(), Some("file"));
    assert_eq!(home.password(target).as_deref(), Some("own"));
    let another = Target { user: Some("other".to_owned()), ..by_file };
    assert_eq!(home.password(another), None, "that is keeper's password");
}

#[test]
fn a_file_others_can_read_is_an_error_if_configured_and_ignored_and_said_if_not() {
    let home = Home::new()
        .with("my.cnf", 0o640, "[client]\npassword=hunter2\n")
        .with("pgpass", 0o604, "*:*:*:*:hunter2\n")
        .with("service", 0o644, "[orders]\nuser=keeper\npassword=hunter2\n[open]\nuser=keeper\n");
    for target in [mysql(MYSQL), postgres(POSTGRES)] {
        let resolved = home.resolve(target).expect("only ignored");
        assert!(resolved.target.password.is_none());
        let [said] = &resolved.remarks[..] else { panic!("{:?}", resolved.remarks) };
        assert!(said.message.contains("open to others") && said.hint.contains("chmod 600"), "{said:?}");
        assert!(!format!("{resolved:?}").contains("hunter2"));
    }
    let file = Target { defaults_file: Some(home.at("my.cnf")), ..configured(mysql(MYSQL)) };
    let (why, cure) = home.resolve(file).expect_err("configured");
    assert!(why.contains("defaults_file") && why.contains("open to others") && cure.contains("chmod 600"), "{why}");
    let service = |name: &str| Target { service: Some(name.to_owned()), ..configured(postgres(POSTGRES)) };
    assert!(home.resolve(service("orders")).expect_err("it has a password").0.contains("open to others"));
    assert_eq!(home.resolve(service("open")).expect("no secret").target.user.as_deref(), Some("keeper"));
}

#[test]
fn a_password_goes_to_nobody_it_was_not_written_down_for() {
    let home = Home::new().with("my.cnf", 0o600, "[client]\npassword=secret\n").with(
        "pgpass",
        0o600,
        "*:*:*:postgres:secret\n127.0.0.1:5999:*:postgres:meant\n",
    );
    let found = |target: Target| home.password(target);
    assert_eq!(found(mysql("/var/run/mysqld/mysqld.sock")).as_deref(), Some("secret"));
    assert_eq!(found(postgres(POSTGRES)).as_deref(), Some("secret"));
    assert_eq!(found(mysql("/tmp/mysql.sock")), None, "anybody's");
    assert_eq!(found(postgres("/tmp/.s.PGSQL.5432")), None, "anybody's");
    let there = std::process::id().cast_signed();
    assert_eq!(found(Target { seen_by: Some(there), ..mysql("/none/mysqld.sock") }), None, "a container's");
    let tcp = |engine, port| Target::discovered_over_tcp(engine, "127.0.0.1".to_owned(), port);
    assert_eq!(found(tcp(Engine::Mysql, 3306)), None);
    assert_eq!(found(tcp(Engine::Postgresql, 5432)), None);
    assert_eq!(found(tcp(Engine::Postgresql, 5999)).as_deref(), Some("meant"));
    assert_eq!(found(configured(mysql("/tmp/mysql.sock"))).as_deref(), Some("secret"), "somebody wants it");
    assert_eq!(found(configured(postgres("/tmp/.s.PGSQL.5432"))).as_deref(), Some("secret"));
}

#[test]
fn an_option_file_that_names_a_place_is_for_that_place() {
    let home = Home::new().with("my.cnf", 0o600, "[client]\npassword=secret\nsocket=/srv/a.sock\n!include /x\n");
    assert_eq!(home.password(mysql(MYSQL)), None);
    let resolved = home.resolve(mysql("/srv/a.sock")).expect("usable");
    assert!(resolved.target.password.is_some());
    assert!(resolved.remarks[0].message.contains("not read"), "{:?}", resolved.remarks);
    assert_eq!(resolved.from, Some(home.at("my.cnf")));
    let nowhere = Target { place: Given::Guessed, ..configured(mysql(MYSQL)) };
    assert_eq!(home.resolve(nowhere).expect("usable").target.at, Address::Socket("/srv/a.sock".into()));
    let tcp = Home::new().with("my.cnf", 0o600, "[client]\npassword=secret\nhost=127.0.0.1\nport=3307\n");
    assert_eq!(tcp.password(mysql(MYSQL)), None);
    assert!(tcp.password(Target::discovered_over_tcp(Engine::Mysql, "127.0.0.1".to_owned(), 3307)).is_some());
}

#[test]
fn a_service_says_where_and_as_whom_and_one_that_is_nowhere_is_an_error() {
    let home = Home::new()
        .with("system-service", 0o644, "[orders]\nhost=/srv/pg\nport=5433\nuser=keeper\n[tcp]\nhost=127.0.0.1\n")
        .with("pgpass", 0o600, "/srv/pg:5433:*:keeper:secret\n");
    let target = |service: &str| Target {
        service: Some(service.to_owned()),
        place: Given::Guessed,
        ..configured(postgres(POSTGRES))
    };
    let orders = home.resolve(target("orders")).expect("usable").target;
    assert_eq!(orders.at, Address::Socket("/srv/pg/.s.PGSQL.5433".into()));
    assert_eq!((orders.user.as_deref(), orders.password.is_some()), (Some("keeper"), true));
    let tcp = home.resolve(target("tcp")).expect("usable").target;
    assert_eq!(tcp.at, Address::Tcp { host: "127.0.0.1".to_owned(), port: 5432 });
    let (why, cure) = home.resolve(target("billing")).expect_err("nowhere");
    assert!(why.contains("no service `billing`") && cure.contains("[billing]"), "{why}");
    let placed = Target { place: Given::Told, ..target("orders") };
    assert_eq!(home.resolve(placed).expect("usable").target.at, Address::Socket(POSTGRES.into()));
}
