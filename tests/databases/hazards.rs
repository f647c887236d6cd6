//! What databases do to those who hold them, and what may come of it: a sentence and less claimed, or a refusal before
//! anybody waits; never a hang, never a lock that stays, never a claim without proof.

use std::{os::unix::net::UnixListener, path::Path, thread, time::Duration};

use serde_json::Value;

use crate::lab::{
    Daemon, Fs, Lab, Type, Writer,
    daemon::{Answer, step},
    database::{Edition, Engine, Server, ServerOptions, options::Binlog, session::Session},
    now, until,
};

facts! {
    a_long_select_in_front_of_mysqls_global_lock_stops_nobody_and_lowers_the_claim within 120,
    a_long_select_in_front_of_mysqls_global_lock_refuses_where_that_is_wanted within 120,
    a_long_select_in_front_of_mysqls_global_lock_is_ended_only_where_that_is_wanted within 120,
    a_long_select_does_not_delay_mariadb within 120,
    a_table_that_is_being_created_in_mysql_stops_nobody within 120,
    a_table_that_is_being_created_in_mariadb_stops_nobody within 120,
    all_connections_taken_refuses_a_configured_mysql within 120,
    all_connections_taken_refuses_a_configured_postgresql within 120,
    a_general_log_on_the_held_disk_is_said_and_delays_no_thaw_of_mysql within 120,
    a_general_log_on_the_held_disk_is_said_and_delays_no_thaw_of_mariadb within 120,
    a_log_collector_on_the_held_disk_is_said within 120,
    a_wrong_password_names_the_instance_the_setting_and_the_cure within 120,
    a_server_that_accepts_and_never_answers_refuses_in_time within 120,
    timeouts_set_against_us_end_no_session_of_mysql within 120,
    timeouts_set_against_us_end_no_session_of_mariadb within 120,
    timeouts_set_against_us_end_no_session_of_postgresql within 120,
    a_killed_daemon_leaves_no_lock_in_mysql within 120,
    a_stopped_daemon_leaves_no_lock_in_mysql within 120,
    a_mysql_server_killed_while_held_is_no_unbroken_application within 120,
}

const MYSQL: &str = "9.x";
const MARIADB: &str = "11.8";
const POSTGRESQL: &str = "17";

fn edition(engine: Engine) -> Edition {
    Edition::find(
        engine,
        match engine {
            Engine::Postgresql => POSTGRESQL,
            Engine::Mysql => MYSQL,
            Engine::Mariadb => MARIADB,
        },
    )
}

/// A server on a file system of its own; what a fact makes of it is a daemon that knows it as "orders".
struct Scene<'lab> {
    lab: &'lab Lab,
    server: Server<'lab>,
    disk: Fs<'lab>,
}

fn scene<'lab>(lab: &'lab Lab, engine: Engine, settings: &[&str]) -> Scene<'lab> {
    let disk = lab.fs_at(Type::Ext4, "/mnt/db".as_ref(), 640);
    let mut options = ServerOptions { binlog: Binlog::Gtids, ..ServerOptions::on(&disk) };
    options.settings.extend(settings.iter().map(|&setting| setting.to_owned()));
    let server = lab.server_of(&edition(engine), options);
    Scene { lab, server, disk }
}

impl<'lab> Scene<'lab> {
    /// A daemon with these additions to the database's entry.
    fn daemon(&self, more: &[(&str, toml::Value)]) -> Daemon<'lab> {
        let mut entry = self.server.entry("orders");
        entry.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.lab.daemon(&[&self.disk]).database(entry).set("hold.max", "40s").start()
    }

    /// Runs SQL in a session of its own, without waiting for it; returns when the server is at it.
    fn meanwhile(&self, sql: &'static str) {
        let (engine, address) = (self.server.engine(), self.server.address.clone());
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                match Session::open(engine, &address).await {
                    Ok(mut session) => eprintln!("{sql}: {:?}", session.rows(sql).await.map(|rows| rows.len())),
                    Err(e) => eprintln!("{sql}: {e}"),
                }
            });
        });
        let runs = "SELECT count(*) FROM information_schema.processlist WHERE info LIKE '%SLEEP(%' AND info NOT LIKE \
                    '%processlist%' AND time >= 0";
        assert!(until(Duration::from_secs(10), || self.server.number(runs) > 0), "{sql} does not run");
        // a statement is long after two seconds
        thread::sleep(Duration::from_millis(2500));
    }

    /// A table that a long statement uses, and a writer beside it.
    fn with_a_table(&self) -> Writer {
        let ledger = self.server.ledger();
        self.server.query("CREATE TABLE lab.report (n BIGINT PRIMARY KEY)");
        self.server.query("INSERT INTO lab.report VALUES (1)");
        ledger
    }

    fn lets_others_read_and_write(&self, ledger: &Writer) {
        ledger.assert_writable_within(Duration::from_secs(3));
        let read = self.server.try_query("SELECT n FROM lab.report");
        assert!(read.is_ok(), "a table somebody reads is stuck behind a flush: {read:?}");
        let changed = self.server.try_query("CREATE TABLE lab.afterwards (n BIGINT PRIMARY KEY)");
        assert!(changed.is_ok(), "{changed:?}");
    }
}

const LONG_SELECT: &str = "SELECT n, SLEEP(30) FROM lab.report";

fn orders(report: &Value) -> &Value {
    &step(report, "db:orders")["database"]
}

fn says(report: &Value, word: &str) {
    let problems = report["problems"].to_string().to_lowercase();
    assert!(problems.contains(&word.to_lowercase()), "nothing is said of {word:?}: {:#}", report["problems"]);
}

fn a_long_select_in_front_of_mysqls_global_lock_stops_nobody_and_lowers_the_claim(lab: &Lab) {
    let it = scene(lab, Engine::Mysql, &[]);
    let ledger = it.with_a_table();
    let daemon = it.daemon(&[("strategy", "global-lock".into()), ("guard", "1s".into())]);
    it.meanwhile(LONG_SELECT);
    let report = daemon.freeze(&["--for", "20s"]);
    assert_ne!(orders(&report)["claim"], "exact", "{report:#}");
    assert_ne!(orders(&report)["strategy"], "global-lock", "it would wait behind the SELECT: {report:#}");
    says(&report, "select");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    it.lets_others_read_and_write(&ledger);
}

fn a_long_select_in_front_of_mysqls_global_lock_refuses_where_that_is_wanted(lab: &Lab) {
    let it = scene(lab, Engine::Mysql, &[]);
    let ledger = it.with_a_table();
    let busy = [("strategy", "global-lock".into()), ("guard", "1s".into()), ("busy", "refuse".into())];
    let daemon = it.daemon(&busy);
    it.meanwhile(LONG_SELECT);
    let longest = ledger.longest();
    let answer = daemon.cli(&["freeze", "--for", "20s"]);
    assert!(matches!(answer.code, Some(1 | 4)), "{answer:?}");
    answer.says("orders").says("select");
    assert!(answer.took < Duration::from_secs(20), "{answer:?}");
    assert_eq!(daemon.phase(), "idle");
    it.lets_others_read_and_write(&ledger);
    let waited = ledger.longest();
    assert!(waited < longest + Duration::from_secs(1), "writers waited {waited:?} for a hold that was refused");
}

fn a_long_select_in_front_of_mysqls_global_lock_is_ended_only_where_that_is_wanted(lab: &Lab) {
    let it = scene(lab, Engine::Mysql, &[]);
    let ledger = it.with_a_table();
    let kill = [("strategy", "global-lock".into()), ("guard", "1s".into()), ("kill_queries", true.into())];
    let daemon = it.daemon(&kill);
    it.meanwhile(LONG_SELECT);
    let report = daemon.freeze(&["--for", "20s"]);
    assert_eq!(orders(&report)["strategy"], "global-lock", "{report:#}");
    ledger.assert_blocked();
    let report = daemon.thaw();
    assert_eq!((&report["verdict"], &orders(&report)["claim"]), (&"unbroken".into(), &"exact".into()), "{report:#}");
    it.lets_others_read_and_write(&ledger);
}

fn a_long_select_does_not_delay_mariadb(lab: &Lab) {
    let it = scene(lab, Engine::Mariadb, &[]);
    let ledger = it.with_a_table();
    let daemon = it.daemon(&[]);
    it.meanwhile(LONG_SELECT);
    let report = daemon.freeze(&["--for", "20s", "--require", "application"]);
    assert_eq!(orders(&report)["claim"], "exact", "{report:#}");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    it.lets_others_read_and_write(&ledger);
}

/// The hold may claim less or be refused; nobody else notices.
fn a_table_that_is_being_created_stops_nobody(lab: &Lab, engine: Engine) {
    let it = scene(lab, engine, &[]);
    let ledger = it.with_a_table();
    let daemon = it.daemon(&[("guard", "1s".into())]);
    it.meanwhile("CREATE TABLE lab.made AS SELECT n, SLEEP(20) AS s FROM lab.report");
    let begun = now();
    let answer = daemon.cli(&["freeze", "--for", "20s"]);
    assert!(now() - begun < Duration::from_secs(15), "{answer:?}");
    match answer.code {
        Some(0) => {
            says(&answer.report(), "orders");
            let report = daemon.thaw();
            assert_eq!(report["verdict"], "unbroken");
            assert_ne!(orders(&report)["claim"], "exact", "{report:#}");
        }
        Some(1 | 4) => drop(answer.says("orders")),
        other => panic!("{other:?}: {answer:?}"),
    }
    ledger.assert_writable_within(Duration::from_secs(3));
}

fn a_table_that_is_being_created_in_mysql_stops_nobody(lab: &Lab) {
    a_table_that_is_being_created_stops_nobody(lab, Engine::Mysql);
}

fn a_table_that_is_being_created_in_mariadb_stops_nobody(lab: &Lab) {
    a_table_that_is_being_created_stops_nobody(lab, Engine::Mariadb);
}

/// Refused with the cure; nothing was touched.
fn refused<'a>(daemon: &Daemon<'_>, answer: &'a Answer) -> &'a Answer {
    answer.exits(4).says("orders");
    assert_eq!(answer.reason(), "DATABASE_UNREACHABLE", "{answer:?}");
    assert!(answer.json["error"]["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "no cure: {answer:?}");
    assert_eq!(daemon.phase(), "idle");
    answer
}

fn all_connections_taken_refuses_a_configured(lab: &Lab, engine: Engine, settings: &[&str]) {
    let it = scene(lab, engine, settings);
    let ledger = it.server.ledger();
    let daemon = it.daemon(&[("user", "plain".into())]);
    let plain = match engine {
        Engine::Postgresql => "CREATE ROLE plain LOGIN; GRANT pg_monitor TO plain",
        Engine::Mysql | Engine::Mariadb => "CREATE USER plain@localhost",
    };
    it.server.query(plain);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _taken: Vec<Session> = runtime.block_on(async {
        let mut taken = Vec::new();
        while let Ok(session) = Session::open(engine, &it.server.address).await {
            taken.push(session);
        }
        taken
    });
    refused(&daemon, &daemon.cli(&["freeze"])).says("connections");
    ledger.assert_writable_within(Duration::from_secs(3));
}

fn all_connections_taken_refuses_a_configured_mysql(lab: &Lab) {
    all_connections_taken_refuses_a_configured(lab, Engine::Mysql, &["max_connections=10"]);
}

fn all_connections_taken_refuses_a_configured_postgresql(lab: &Lab) {
    all_connections_taken_refuses_a_configured(lab, Engine::Postgresql, &["max_connections=10"]);
}

/// With the log on the frozen disk every statement waits, ours too: the thaw asks nobody.
fn a_general_log_is_said_and_delays_no_thaw(lab: &Lab, engine: Engine) {
    let it = scene(lab, engine, &["general_log=ON"]);
    let ledger = it.server.ledger();
    let daemon = it.daemon(&[]);
    let report = daemon.freeze(&["--for", "20s"]);
    says(&report, "general_log");
    let asked = now();
    let report = daemon.thaw();
    assert_eq!(report["verdict"], "unbroken", "{report:#}");
    ledger.resumed_after(asked, Duration::from_secs(3));
}

fn a_general_log_on_the_held_disk_is_said_and_delays_no_thaw_of_mysql(lab: &Lab) {
    a_general_log_is_said_and_delays_no_thaw(lab, Engine::Mysql);
}

fn a_general_log_on_the_held_disk_is_said_and_delays_no_thaw_of_mariadb(lab: &Lab) {
    a_general_log_is_said_and_delays_no_thaw(lab, Engine::Mariadb);
}

fn a_log_collector_on_the_held_disk_is_said(lab: &Lab) {
    let it = scene(lab, Engine::Postgresql, &["logging_collector=on", "log_statement=all"]);
    let ledger = it.server.ledger();
    let daemon = it.daemon(&[]);
    let report = daemon.freeze(&["--for", "20s", "--require", "application"]);
    says(&report, "log collector");
    let asked = now();
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    ledger.resumed_after(asked, Duration::from_secs(3));
}

fn a_wrong_password_names_the_instance_the_setting_and_the_cure(lab: &Lab) {
    for engine in [Engine::Postgresql, Engine::Mysql] {
        let disk = lab.fs_at(Type::Ext4, format!("/mnt/{}", engine.name()).as_ref(), 640);
        let server = lab.server_of(&edition(engine), ServerOptions::on(&disk));
        server.query(match engine {
            Engine::Postgresql => "CREATE ROLE keeper LOGIN PASSWORD 'right'",
            Engine::Mysql | Engine::Mariadb => "CREATE USER keeper@localhost IDENTIFIED BY 'right'",
        });
        if engine == Engine::Postgresql {
            std::fs::write(server.data.join("pg_hba.conf"), "local all keeper scram-sha-256\nlocal all all trust\n")
                .expect("it is ours");
            server.query("SELECT pg_reload_conf()");
        }
        let file = lab.memory_dir("password").join("orders");
        std::fs::write(&file, "wrong\n").expect("memory");
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("memory");
        let mut entry = server.entry("orders");
        entry.insert("user".to_owned(), "keeper".into());
        entry.insert("password_file".to_owned(), file.display().to_string().into());
        let daemon = lab.daemon(&[&disk]).database(entry).start();
        let refused_so = || {
            let answer = daemon.cli(&["freeze"]);
            (answer.code == Some(4)).then_some(answer)
        };
        let mut answer = None;
        until(Duration::from_secs(5), || {
            answer = refused_so();
            answer.is_some()
        });
        let answer = answer.expect("the password is wrong");
        refused(&daemon, &answer).says("keeper").says(&file.display().to_string());
        assert!(!format!("{answer:?}{}", daemon.log()).contains("wrong\\n"), "a password is nobody's business");
    }
}

fn a_server_that_accepts_and_never_answers_refuses_in_time(lab: &Lab) {
    for engine in ["postgresql", "mysql"] {
        let disk = lab.fs(Type::Ext4);
        let dir = lab.memory_dir("silent");
        let name = if engine == "mysql" { "silent.sock" } else { ".s.PGSQL.5432" };
        let listener = UnixListener::bind(dir.join(name)).expect("memory");
        thread::spawn(move || {
            let mut accepted = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                accepted.push(stream);
            }
        });
        let entry = toml::Table::from_iter([
            ("name".to_owned(), "orders".into()),
            ("engine".to_owned(), engine.into()),
            ("socket".to_owned(), text(&dir.join(name)).into()),
        ]);
        let writer = lab.writer(&disk);
        let daemon = lab.daemon(&[&disk]).database(entry).start();
        let answer = daemon.cli(&["freeze"]);
        refused(&daemon, &answer).says("did not answer");
        assert!(answer.took < Duration::from_secs(12), "{answer:?}");
        assert!(writer.longest() < Duration::from_secs(2), "a writer waited {:?}", writer.longest());
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Three seconds are longer than any of the timeouts.
fn held_past_the_timeouts(it: &Scene<'_>) {
    let daemon = it.daemon(&[]);
    daemon.freeze(&["--for", "30s", "--require", "application"]);
    thread::sleep(Duration::from_secs(3));
    let report = daemon.thaw();
    assert_eq!((&report["verdict"], &report["consistency"]), (&"unbroken".into(), &"application".into()), "{report:#}");
}

fn timeouts_set_against_us_end_no_session_of_mysql(lab: &Lab) {
    let short = ["wait_timeout=1", "interactive_timeout=1", "max_execution_time=1", "lock_wait_timeout=1"];
    held_past_the_timeouts(&scene(lab, Engine::Mysql, &short));
}

fn timeouts_set_against_us_end_no_session_of_mariadb(lab: &Lab) {
    let short = ["wait_timeout=1", "interactive_timeout=1", "idle_transaction_timeout=1", "lock_wait_timeout=1"];
    held_past_the_timeouts(&scene(lab, Engine::Mariadb, &short));
}

fn timeouts_set_against_us_end_no_session_of_postgresql(lab: &Lab) {
    let it = scene(lab, Engine::Postgresql, &[]);
    for (setting, value) in [
        ("statement_timeout", "200ms"),
        ("idle_session_timeout", "500ms"),
        ("idle_in_transaction_session_timeout", "500ms"),
        ("transaction_timeout", "500ms"),
        ("lock_timeout", "100ms"),
    ] {
        it.server.query(&format!("ALTER ROLE postgres SET {setting} = '{value}'"));
    }
    held_past_the_timeouts(&it);
}

fn lost_while_held(lab: &Lab, lose: impl FnOnce(&Daemon<'_>), limit: Duration) {
    let it = scene(lab, Engine::Mysql, &[]);
    let ledger = it.with_a_table();
    let daemon = it.daemon(&[("strategy", "global-lock".into())]);
    let report = daemon.freeze(&["--for", "30s"]);
    assert_eq!(orders(&report)["strategy"], "global-lock", "{report:#}");
    ledger.assert_blocked();
    let lost = now();
    lose(&daemon);
    ledger.resumed_after(lost, limit);
    it.lets_others_read_and_write(&ledger);
}

fn a_killed_daemon_leaves_no_lock_in_mysql(lab: &Lab) {
    lost_while_held(lab, |daemon| daemon.kill(), Duration::from_secs(2));
}

fn a_stopped_daemon_leaves_no_lock_in_mysql(lab: &Lab) {
    lost_while_held(lab, |daemon| daemon.stop(), Duration::from_secs(10));
}

fn a_mysql_server_killed_while_held_is_no_unbroken_application(lab: &Lab) {
    let it = scene(lab, Engine::Mysql, &[]);
    let daemon = it.daemon(&[]);
    daemon.freeze(&["--for", "20s", "--require", "application"]);
    it.server.kill();
    let answer = daemon.cli(&["thaw"]);
    assert!(matches!(answer.code, Some(0 | 3)), "{answer:?}");
    let report = answer.report();
    let proven = report["verdict"] == "unbroken" && report["consistency"] == "application";
    assert!(!proven, "the database was dead when its proof was due: {report:#}");
    assert!(report.to_string().contains("orders"), "which one? {report:#}");
    assert!(it.disk.writable_within(Duration::from_secs(3)));
}
