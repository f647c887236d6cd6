//! Who we are to a database, decided before its engine connects: the engines only use what is in the target then.
//!
//! In this order, the first that says something counts: `user` and `password_file`; `service` or `defaults_file`; what
//! people have for their own use, /root/.my.cnf and /root/.pgpass; nothing, for the server asks the kernel who we are.
//! `/etc/mysql/debian.cnf` is read only where it is configured.
//!
//! A password goes only to a server somebody named: one that is configured, one where the system's own always is, or the
//! one the file itself writes out. Anybody can run something called `mysqld`.

mod guarded;
mod option_file;
mod pgpass;
mod service;

use std::{
    fs,
    path::{Path, PathBuf},
};

use self::{
    guarded::{Guarded, Unusable, read_password},
    option_file::Options,
    pgpass::{Named, Wanted},
};
use super::{Address, Deadline, Door, Engine, Error, Failed, Given, Secret, Target, look, remark, target::without_var};
use crate::{
    proto::{Problem, Severity},
    sys::view::Spot,
};

/// A target that says all that is known, and what there is to remark about where it was read.
#[derive(Debug)]
pub(super) struct Resolved {
    pub target: Target,
    /// the file the password is from, if it is from one nobody configured for this instance
    pub from: Option<PathBuf>,
    pub remarks: Vec<Problem>,
}

/// Reads what is configured and what people keep.
///
/// # Errors
/// A file that is configured and cannot be used; with its cure.
pub(super) async fn resolve(target: &Target, deadline: Deadline) -> Result<Resolved, Error> {
    let wanted = target.clone();
    let error = |why, hint| Error { name: target.name.clone(), what: "read the settings of", why, hint };
    match look(deadline, move || Ok(Files::of_root().resolve(wanted))).await {
        Ok(resolved) => resolved.map_err(|(why, hint)| error(why, hint)),
        Err(Failed::TimedOut(limit)) => {
            Err(error(format!("its files were not read within {limit:?}"), "see the kernel log".to_owned()))
        }
        Err(Failed::Refused(io)) => Err(error(io.to_string(), String::new())),
    }
}

/// Where people keep what clients should know.
struct Files {
    option_file: PathBuf,
    passwords: PathBuf,
    /// the first that has a service counts; Debian's own place and upstream's are not the same
    services: [PathBuf; 3],
}

/// (why, cure)
type Refused = (String, String);

impl Files {
    fn of_root() -> Files {
        let [user, debian, upstream] =
            ["/root/.pg_service.conf", "/etc/postgresql-common/pg_service.conf", "/etc/pg_service.conf"];
        Files {
            option_file: "/root/.my.cnf".into(),
            passwords: "/root/.pgpass".into(),
            services: [user.into(), debian.into(), upstream.into()],
        }
    }

    fn resolve(&self, target: Target) -> Result<Resolved, Refused> {
        let mut resolved = Resolved { target, from: None, remarks: Vec::new() };
        if resolved.target.password.is_some() {
            return Ok(resolved);
        }
        if let Some(path) = resolved.target.password_file.clone() {
            let password = read_password(&path).map_err(|unusable| refused("password_file", &path, unusable))?;
            resolved.target.password = Some(Secret::new(password));
        }
        match resolved.target.engine {
            Engine::Postgresql => {
                self.service(&mut resolved)?;
                self.password_list(&mut resolved);
            }
            Engine::Mysql => match resolved.target.defaults_file.clone() {
                Some(path) => configured_options(&mut resolved, &path)?,
                None => self.own_options(&mut resolved),
            },
        }
        Ok(resolved)
    }

    fn service(&self, resolved: &mut Resolved) -> Result<(), Refused> {
        let Some(name) = resolved.target.service.clone() else { return Ok(()) };
        for path in &self.services {
            let file = match Guarded::read(path) {
                Ok(file) => file,
                Err(unusable) if unusable.missing => continue,
                Err(unusable) => return Err(refused("service file", path, unusable)),
            };
            let Some(found) = service::find(file.text(), &name) else { continue };
            resolved.connect_to(found.host, found.port, 5432);
            if resolved.log_in_as(found.user, found.password) {
                file.secret().map_err(|unusable| refused("service file", path, unusable))?;
            }
            return Ok(());
        }
        let looked: Vec<String> = self.services.iter().map(|path| path.display().to_string()).collect();
        let hint = format!("correct `service`, or add [{name}] to one of them");
        Err((format!("no service `{name}` is in {}", looked.join(", ")), hint))
    }

    /// `.pgpass`.
    fn password_list(&self, resolved: &mut Resolved) {
        if resolved.target.password.is_some() {
            return;
        }
        let Some(file) = resolved.optional(&self.passwords) else { return };
        let target = &resolved.target;
        let (directory, port) = match &target.at {
            Address::Socket(path) => {
                let port = path.extension().and_then(|port| port.to_str()?.parse().ok()).unwrap_or(5432);
                (without_var(path).parent().map(|dir| dir.display().to_string()).unwrap_or_default(), port)
            }
            Address::Tcp { host, port } => (host.clone(), *port),
        };
        let usual = directory == "/run/postgresql";
        let named = match () {
            () if target.configured => Named::ByUs,
            () if !is_ours(target) => return,
            () if usual => Named::ByUs,
            () => Named::ByTheEntryAlone,
        };
        let host = if usual { "localhost" } else { &directory };
        let user = target.user.as_deref().unwrap_or("postgres");
        if let Some(password) = pgpass::password(file.text(), Wanted { host, port, user, named }) {
            resolved.target.password = Some(Secret::new(password));
            resolved.from = Some(self.passwords.clone());
        }
    }

    /// `.my.cnf`.
    fn own_options(&self, resolved: &mut Resolved) {
        if resolved.target.password.is_some() {
            return;
        }
        let Some(file) = resolved.optional(&self.option_file) else { return };
        let options = option_file::parse(file.text());
        if !is_meant(&options, &resolved.target) {
            return;
        }
        resolved.note_includes(&options, &self.option_file);
        resolved.connect_to(options.socket.or(options.host), options.port, 3306);
        if resolved.log_in_as(options.user, options.password) {
            resolved.from = Some(self.option_file.clone());
        }
    }
}

/// `defaults_file`: somebody wants it, so that what is wrong with it is an error.
fn configured_options(resolved: &mut Resolved, path: &Path) -> Result<(), Refused> {
    let file = Guarded::read(path).map_err(|unusable| refused("defaults_file", path, unusable))?;
    let options = option_file::parse(file.text());
    resolved.note_includes(&options, path);
    resolved.connect_to(options.socket.or(options.host), options.port, 3306);
    if resolved.log_in_as(options.user, options.password) {
        file.secret().map_err(|unusable| refused("defaults_file", path, unusable))?;
    }
    Ok(())
}

impl Resolved {
    /// Takes over where to connect, unless that was told.
    fn connect_to(&mut self, place: Option<String>, port: Option<u16>, usual: u16) {
        if self.target.place == Given::Told {
            return;
        }
        let local = |host: &String| self.target.engine == Engine::Mysql && host == "localhost";
        let at = match place {
            Some(path) if path.starts_with('/') => {
                let path = PathBuf::from(path);
                match (self.target.engine, port) {
                    (Engine::Postgresql, port) => {
                        Address::Socket(path.join(format!(".s.PGSQL.{}", port.unwrap_or(usual))))
                    }
                    (Engine::Mysql, _) => Address::Socket(path),
                }
            }
            Some(host) if !local(&host) => Address::Tcp { host, port: port.unwrap_or(usual) },
            Some(_) | None => return,
        };
        self.target.at = at;
        self.target.place = Given::Told;
    }

    /// Takes over user and password, each unless it was told; somebody else's password is none of ours. Whether the
    /// password was taken.
    fn log_in_as(&mut self, user: Option<String>, password: Option<String>) -> bool {
        let another = matches!((&self.target.user, &user), (Some(told), Some(user)) if told != user);
        if another {
            return false;
        }
        self.target.user = self.target.user.take().or(user);
        let password = password.filter(|password| !password.is_empty() && self.target.password.is_none());
        let taken = password.is_some();
        self.target.password = self.target.password.take().or(password.map(Secret::new));
        taken
    }

    /// A file of passwords that need not be there; one that cannot be used is said.
    fn optional(&mut self, path: &Path) -> Option<Guarded> {
        let read = Guarded::read(path).and_then(|file| file.secret().map(|()| file));
        match read {
            Ok(file) => Some(file),
            Err(unusable) if unusable.missing => None,
            Err(Unusable { why, cure, .. }) => {
                self.note("PASSWORDS_IGNORED", format!("{} {why}: ignored", path.display()), cure);
                None
            }
        }
    }

    fn note_includes(&mut self, options: &Options, path: &Path) {
        if options.includes {
            let message = format!("{} includes other files, which are not read", path.display());
            self.note("INCLUDE_IGNORED", message, "write user, password and socket into the file itself".to_owned());
        }
    }

    fn note(&mut self, code: &str, message: String, hint: String) {
        self.remarks.push(remark(&self.target.name, Severity::Note, code, message, hint));
    }
}

fn refused(what: &str, path: &Path, unusable: Unusable) -> Refused {
    (format!("its {what} {} {}", path.display(), unusable.why), unusable.cure)
}

/// Whether a client started here without further arguments would take these options to this server.
fn is_meant(options: &Options, target: &Target) -> bool {
    let loopback = |host: &str| matches!(host, "localhost" | "127.0.0.1" | "::1");
    match (&target.at, options.socket.as_deref(), options.host.as_deref()) {
        (_, None, None) if target.place == Given::Guessed => true,
        (_, Some(_), _) | (_, _, Some(_)) if target.place == Given::Guessed => true,
        (Address::Socket(path), Some(socket), _) => is_ours(target) && same_file(path, Path::new(socket)),
        (Address::Socket(path), None, Some("localhost") | None) => {
            target.configured
                || (is_ours(target) && USUAL_SOCKETS.iter().any(|usual| without_var(path) == Path::new(usual)))
        }
        (Address::Socket(_), None, Some(_)) => false,
        (Address::Tcp { host, port }, _, Some(named)) => {
            (host == named || (loopback(host) && loopback(named))) && *port == options.port.unwrap_or(3306)
        }
        (Address::Tcp { .. }, _, None) => target.configured && options.socket.is_none(),
    }
}

/// Where distributions put it; not /tmp, where anybody may.
const USUAL_SOCKETS: [&str; 3] = ["/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/run/mysql/mysql.sock"];

fn same_file(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| without_var(path));
    place(one) == place(other)
}

/// Whether the target's socket is what its path means to us, too: so it is for a service in a sandbox, not in a container.
fn is_ours(target: &Target) -> bool {
    match (&target.at, target.seen_by) {
        (Address::Tcp { .. }, _) | (Address::Socket(_), None) => true,
        (Address::Socket(path), Some(_)) => {
            let here = Spot::open(path).and_then(|spot| spot.id());
            let there = Door::find(target).and_then(|door| door.id());
            matches!((here, there), (Ok(here), Ok(there)) if here == there)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
}
