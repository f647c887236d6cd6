//! Holding real MySQL servers, 5.7 to 9.x. What a frozen copy of their disks then contains is tested elsewhere.

#[path = "step_servers/mysql.rs"]
mod mysql;
mod step_servers;
#[path = "step_servers/stop.rs"]
mod stop;

use std::time::Duration;

use holdstill::{
    proto::{self, Claim, Severity},
    step::database::{Busy, Engine, Error, Logs, Session, Strategy, Target},
    sys::{clock::monotonic, sockets},
};
use mysql::{Release, Server, directory, number, run, text, with};
use mysql_async::Conn;
use step_servers::{LIMIT, at, codes, on_tcp, password_file, paths};
use tokio::task::JoinHandle;

const A_MOMENT: Duration = Duration::from_millis(300);
/// Longer than any lock is waited for.
const SOON: Duration = Duration::from_secs(5);

async fn connect(target: &Target) -> Session {
    Session::connect(target, Logs::WhileHeld, LIMIT).await.unwrap_or_else(|error| panic!("{error}; {}", error.hint))
}

async fn refused(target: &Target) -> Error {
    match Session::connect(target, Logs::WhileHeld, LIMIT).await {
        Ok(_) => panic!("it let us in"),
        Err(error) => error,
    }
}

async fn hold(session: &mut Session) {
    session.soften(LIMIT).await.expect("softened");
    session.hold("h1", LIMIT).await.expect("held");
    session.barrier("h1", LIMIT).await.expect("flushed");
}

fn asking(server: &Server, strategy: Strategy) -> Target {
    Target { strategy, ..server.target() }
}

/// Does a statement go through within `limit`? It is left running if not.
async fn goes_through(mut client: Conn, sql: &'static str, limit: Duration) -> Result<Conn, JoinHandle<Conn>> {
    let mut running = tokio::spawn(async move {
        run(&mut client, sql).await;
        client
    });
    match tokio::time::timeout(limit, &mut running).await {
        Ok(client) => Ok(client.expect("it ran")),
        Err(_) => Err(running),
    }
}

const COMMIT: &str = "INSERT INTO app.t VALUES (1)";

async fn commits(client: Conn) -> Conn {
    goes_through(client, COMMIT, SOON).await.expect("nobody waits")
}

fn remark<'a>(session: &Session, code: &str, all: &'a mut Vec<proto::Problem>) -> &'a proto::Problem {
    *all = session.remarks();
    all.iter().find(|remark| remark.code == code).unwrap_or_else(|| panic!("no {code} in {all:?}"))
}

/// Statements that run until they are ended, in a session of their own.
async fn busy(server: &Server, sql: &'static str) -> (u64, JoinHandle<()>) {
    let mut client = server.client().await;
    let id = number(&mut client, "SELECT CONNECTION_ID()").await;
    let running = tokio::spawn(async move {
        let _ = mysql_async::prelude::Queryable::query_drop(&mut client, sql).await;
    });
    let mut dba = server.client().await;
    let begun = monotonic();
    let state = format!("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE ID = {id} AND COMMAND = 'Query'");
    while number(&mut dba, &state).await == 0 {
        assert!(monotonic() - begun < LIMIT, "it does not run");
        tokio::time::sleep(Duration::from_millis(20)).await; // between two looks
    }
    (id, running)
}

/// Until it has run for so long that nobody expects it to end soon.
async fn long(server: &Server, id: u64) {
    let mut dba = server.client().await;
    let seconds = format!("SELECT IFNULL(MAX(TIME), 0) FROM information_schema.PROCESSLIST WHERE ID = {id}");
    let begun = monotonic();
    while number(&mut dba, &seconds).await < 2 {
        assert!(monotonic() - begun < LIMIT, "it ended");
        tokio::time::sleep(Duration::from_millis(50)).await; // between two looks
    }
}

async fn end(server: &Server, id: u64, running: JoinHandle<()>) {
    run(&mut server.client().await, &format!("KILL {id}")).await;
    running.await.expect("it ended");
}

const LONG_SELECT: &str = "SELECT COUNT(*), SLEEP(30) FROM app.report WHERE i <> 4711";

#[tokio::test]
async fn with_only_innodb_nobody_waits_but_ddl_and_the_copy_lies_between_two_positions() {
    with(Release::Sid, &[], async |server| {
        let application = server.with_table().await;
        let mut session = connect(&server.target()).await;
        assert_eq!(codes(&session.remarks()), [""; 0]);
        let planned = session.describe();
        assert_eq!((planned.engine.as_str(), planned.claim()), ("mysql", Claim::Bounded));
        assert_eq!(planned.strategy, "instance-lock");
        assert!(planned.strategy_reason.contains("transactional"), "{}", planned.strategy_reason);
        hold(&mut session).await;
        let held = session.describe();
        for key in ["server_uuid", "gtid_executed", "binlog_file", "innodb_lsn_current", "innodb_lsn_last_checkpoint"] {
            assert!(!at(&held.start, key).is_empty(), "{key}");
        }
        assert_eq!(at(&held.settings, "innodb_flush_log_at_trx_commit"), "1");
        let application = commits(application).await;
        let ddl =
            goes_through(server.client().await, "CREATE TABLE app.u (i int)", A_MOMENT).await.expect_err("DDL waits");
        let proof = session.prove_and_release(LIMIT).await;
        ddl.await.expect("and then goes through");
        assert_eq!((proof.database.claim(), &proof.problem), (Claim::Bounded, &None));
        assert_ne!(at(&proof.database.start, "binlog_position"), at(&proof.database.end, "binlog_position"));
        commits(application).await;
    })
    .await;
}

#[tokio::test]
async fn every_version_is_held_in_every_way_it_has() {
    for release in Release::ALL {
        let settings = ["log-bin=binlog", "gtid-mode=ON", "enforce-gtid-consistency=ON"];
        with(release, &settings, async |server| {
            let mut application = server.with_table().await;
            let usual = if release.instance_lock() { "instance-lock" } else { "freeze-only" };
            for (strategy, name, claim) in [
                (Strategy::Auto, usual, Claim::Bounded),
                (Strategy::FreezeOnly, "freeze-only", Claim::Bounded),
                (Strategy::GlobalLock, "global-lock", Claim::Exact),
            ] {
                let mut session = connect(&asking(&server, strategy)).await;
                assert!(codes(&session.remarks()).iter().all(|code| *code == "RELAXED_DURABILITY"), "{release:?}");
                hold(&mut session).await;
                let held = session.describe();
                assert_eq!((held.strategy.as_str(), held.claim()), (name, claim), "{release:?}");
                let writer = goes_through(application, COMMIT, A_MOMENT).await;
                let proof = session.prove_and_release(LIMIT).await;
                let positions = ["gtid_executed", "binlog_file", "binlog_position"];
                let moved = positions.iter().any(|key| at(&proof.database.start, key) != at(&proof.database.end, key));
                assert_eq!(moved, claim != Claim::Exact, "{release:?} {name}");
                application = match writer {
                    Ok(client) => client,
                    Err(waiting) => waiting.await.expect("and then goes through"),
                };
                assert_eq!((proof.database.claim(), proof.problem), (claim, None), "{release:?} {name}");
            }
            // 5.7 does not record locks unless it is told to: there the binary log is the only witness.
            run(&mut application, "CREATE TABLE app.m (i int) ENGINE=MyISAM").await;
            let mut session = connect(&server.target()).await;
            hold(&mut session).await;
            let held = session.describe();
            let (name, claim) =
                if release.instance_lock() { ("table-locks", Claim::Bounded) } else { ("global-lock", Claim::Exact) };
            assert_eq!((held.strategy.as_str(), held.claim()), (name, claim), "{release:?}");
            assert_eq!(held.non_transactional_tables, ["app.m (MyISAM)"]);
            let proof = session.prove_and_release(LIMIT).await;
            assert_eq!((proof.database.claim(), proof.problem), (claim, None), "{release:?}");
        })
        .await;
    }
}

#[tokio::test]
async fn commits_acknowledged_without_waiting_for_the_disk_survive_a_crash_after_the_barrier() {
    const RELAXED: [&str; 3] =
        ["innodb-flush-log-at-trx-commit=0", "innodb-flush-log-at-timeout=2700", "innodb-adaptive-flushing=OFF"];
    for release in Release::ALL {
        for strategy in [Strategy::Auto, Strategy::GlobalLock] {
            with(release, &RELAXED, async |server| {
                let mut server = server;
                let mut application = server.with_table().await;
                let mut session = connect(&asking(&server, strategy)).await;
                assert!(codes(&session.remarks()).contains(&"RELAXED_DURABILITY"));
                session.soften(LIMIT).await.expect("softened");
                session.hold("h1", LIMIT).await.expect("held");
                if strategy == Strategy::Auto {
                    for i in 0..200 {
                        run(&mut application, &format!("INSERT INTO app.t VALUES ({i})")).await;
                    }
                }
                session.barrier("h1", LIMIT).await.expect("flushed");
                let claim = if strategy == Strategy::Auto { Claim::Bounded } else { Claim::Exact };
                assert_eq!(session.describe().claim(), claim, "{release:?}");
                assert_eq!(number(&mut application, "SELECT @@GLOBAL.innodb_flush_log_at_trx_commit").await, 0);
                let acknowledged = number(&mut application, "SELECT COUNT(*) FROM app.t").await;
                server.running.kill();
                let server = server.restart(&RELAXED);
                let found = number(&mut server.client().await, "SELECT COUNT(*) FROM app.t").await;
                assert_eq!(found, acknowledged, "{release:?}");
            })
            .await;
        }
    }
}

#[tokio::test]
async fn without_a_flush_a_crash_loses_what_was_acknowledged() {
    const RELAXED: [&str; 2] = ["innodb-flush-log-at-trx-commit=0", "innodb-flush-log-at-timeout=2700"];
    with(Release::Sid, &RELAXED, async |server| {
        let mut server = server;
        let mut application = server.with_table().await;
        run(&mut application, "FLUSH LOCAL ENGINE LOGS").await;
        for i in 0..200 {
            run(&mut application, &format!("INSERT INTO app.t VALUES ({i})")).await;
        }
        server.running.kill();
        let server = server.restart(&RELAXED);
        let found = number(&mut server.client().await, "SELECT COUNT(*) FROM app.t").await;
        assert!(found < 200, "the other test shows nothing");
    })
    .await;
}

#[tokio::test]
async fn a_few_tables_without_transactions_are_locked_and_all_others_go_on() {
    with(Release::Sid, &[], async |server| {
        let mut application = server.with_table().await;
        for sql in [
            "CREATE TABLE app.m (i int) ENGINE=MyISAM",
            "CREATE TABLE app.`odd``name` (i int not null) ENGINE=CSV",
            "CREATE TABLE app.now (i int) ENGINE=MEMORY",
        ] {
            run(&mut application, sql).await;
        }
        let mut session = connect(&server.target()).await;
        hold(&mut session).await;
        let held = session.describe();
        assert_eq!((held.strategy.as_str(), held.claim()), ("table-locks", Claim::Bounded));
        assert_eq!(held.non_transactional_tables, ["app.m (MyISAM)", "app.odd`name (CSV)"]);
        assert_eq!(held.lost_tables, ["app.now (MEMORY)"]);
        let application = commits(application).await;
        let insert = "INSERT INTO app.m VALUES (1)";
        let writer = goes_through(server.client().await, insert, A_MOMENT).await.expect_err("this one waits");
        let proof = session.prove_and_release(LIMIT).await;
        writer.await.expect("and then goes through");
        assert_eq!((proof.database.claim(), proof.problem), (Claim::Bounded, None));
        commits(application).await;
    })
    .await;
}

#[tokio::test]
async fn many_tables_without_transactions_are_locked_all_at_once() {
    with(Release::Sid, &[], async |server| {
        let mut application = server.with_table().await;
        for i in 0..17 {
            run(&mut application, &format!("CREATE TABLE app.m{i} (i int) ENGINE=MyISAM")).await;
        }
        let mut session = connect(&server.target()).await;
        hold(&mut session).await;
        assert_eq!(session.describe().strategy, "global-lock");
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!((proof.database.claim(), proof.problem), (Claim::Exact, None));
        let mut session = connect(&asking(&server, Strategy::FreezeOnly)).await;
        assert_eq!(session.describe().claim(), Claim::Recoverable);
        hold(&mut session).await;
        let proof = session.prove_and_release(LIMIT).await;
        let problem = proof.problem.expect("it is said");
        assert_eq!((proof.database.claim(), problem.code.as_str()), (Claim::Recoverable, "TABLES_NOT_LOCKED"));
        assert!(
            problem.message.contains("app.m0 (MyISAM)") && problem.message.contains("12 more"),
            "{}",
            problem.message
        );
    })
    .await;
}

#[tokio::test]
async fn an_account_that_sees_no_table_has_not_seen_that_there_is_none() {
    with(Release::Sid, &[], async |server| {
        let mut application = server.with_table().await;
        run(&mut application, "CREATE TABLE app.m (i int) ENGINE=MyISAM").await;
        run(&mut application, "CREATE USER keeper@localhost IDENTIFIED BY 'right'").await;
        run(&mut application, "GRANT BACKUP_ADMIN, RELOAD, PROCESS, REPLICATION CLIENT ON *.* TO keeper@localhost")
            .await;
        let small = Target {
            user: Some("keeper".to_owned()),
            password_file: Some(password_file(&server.place, "right\n")),
            ..server.target()
        };
        let mut session = connect(&small).await;
        let mut all = Vec::new();
        let unknown = remark(&session, "TABLES_UNKNOWN", &mut all);
        assert_eq!(unknown.hint, "GRANT REFERENCES ON *.* TO 'keeper'@'localhost'");
        let hints: Vec<String> =
            session.remarks().into_iter().filter(|r| r.code == "LESS_EVIDENCE").map(|r| r.hint).collect();
        assert_eq!(hints.len(), 2, "{hints:?}");
        hold(&mut session).await;
        assert_eq!(session.describe().strategy, "global-lock");
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!((proof.database.claim(), proof.problem), (Claim::Exact, None), "by the binary log alone");
        // Pasting the hints is all it takes.
        for hint in hints.iter().chain([&unknown.hint]) {
            run(&mut application, hint).await;
        }
        run(&mut application, "GRANT SELECT, LOCK TABLES, XA_RECOVER_ADMIN ON *.* TO keeper@localhost").await;
        let mut session = connect(&small).await;
        hold(&mut session).await;
        assert_eq!((session.describe().strategy.as_str(), codes(&session.remarks())), ("table-locks", Vec::new()));
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Bounded);
    })
    .await;
}

#[tokio::test]
async fn tables_whose_files_were_seen_count_even_if_the_server_tells_of_none() {
    with(Release::Sid, &[], async |server| {
        drop(server.with_table().await);
        let mut session = connect(&server.target()).await;
        assert_eq!(session.describe().strategy, "instance-lock");
        session.doubt_tables();
        hold(&mut session).await;
        let held = session.describe();
        assert_eq!((held.strategy.as_str(), held.claim()), ("global-lock", Claim::Exact));
        let mut all = Vec::new();
        assert!(remark(&session, "TABLES_UNKNOWN", &mut all).message.contains("files of such tables"));
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Exact);
    })
    .await;
}

#[tokio::test]
async fn the_least_account_is_enough_for_every_way_to_hold() {
    for release in Release::ALL {
        let settings = ["log-bin=binlog", "sync-binlog=1", "gtid-mode=ON", "enforce-gtid-consistency=ON"];
        with(release, &settings, async |server| {
            let mut dba = server.with_table().await;
            run(&mut dba, "CREATE USER keeper@localhost IDENTIFIED BY 'right'").await;
            let old =
                ["RELOAD, PROCESS, REPLICATION CLIENT, REFERENCES ON *.*", "SELECT ON performance_schema.threads"];
            let new = [
                "BACKUP_ADMIN, XA_RECOVER_ADMIN ON *.*",
                "SELECT ON performance_schema.log_status",
                "SELECT ON performance_schema.metadata_locks",
            ];
            let grants = old.iter().chain(if release.instance_lock() { &new[..] } else { &new[2..] });
            for grant in grants {
                run(&mut dba, &format!("GRANT {grant} TO keeper@localhost")).await;
            }
            let keeper = |strategy| Target {
                user: Some("keeper".to_owned()),
                password_file: Some(password_file(&server.place, "right\n")),
                strategy,
                ..server.target()
            };
            for (strategy, claim) in [
                (Strategy::Auto, Claim::Bounded),
                (Strategy::GlobalLock, Claim::Exact),
                (Strategy::FreezeOnly, Claim::Bounded),
            ] {
                let mut session = connect(&keeper(strategy)).await;
                hold(&mut session).await;
                assert_eq!(codes(&session.remarks()), [""; 0], "{release:?} {strategy:?}");
                let proof = session.prove_and_release(LIMIT).await;
                assert_eq!((proof.database.claim(), proof.problem), (claim, None), "{release:?} {strategy:?}");
            }
            // Locking tables one by one takes the right to do so, and to read them.
            run(&mut dba, "CREATE TABLE app.m (i int) ENGINE=MyISAM").await;
            run(&mut dba, "GRANT LOCK TABLES, SELECT ON app.* TO keeper@localhost").await;
            let mut session = connect(&keeper(Strategy::TableLocks)).await;
            hold(&mut session).await;
            assert_eq!(session.describe().strategy, "table-locks", "{release:?}");
            let proof = session.prove_and_release(LIMIT).await;
            let (claim, said) = (proof.database.claim(), proof.problem.map(|problem| problem.hint));
            if release.instance_lock() {
                assert_eq!((claim, said), (Claim::Bounded, None), "{release:?}");
            } else {
                // 5.7 does not record locks; what it takes to show them otherwise is said.
                assert_eq!(claim, Claim::Recoverable);
                for grant in said.expect("it is said").split("; ") {
                    run(&mut dba, grant).await;
                }
                let mut session = connect(&keeper(Strategy::TableLocks)).await;
                hold(&mut session).await;
                let proof = session.prove_and_release(LIMIT).await;
                assert_eq!((proof.database.claim(), proof.problem), (Claim::Bounded, None));
            }
        })
        .await;
    }
}

#[tokio::test]
async fn what_may_not_be_locked_alone_is_locked_with_all_others_and_the_cure_is_said() {
    with(Release::Sid, &[], async |server| {
        let mut application = server.with_table().await;
        run(&mut application, "CREATE TABLE app.m (i int) ENGINE=MyISAM").await;
        run(&mut application, "CREATE USER keeper@localhost IDENTIFIED BY 'right'").await;
        run(&mut application, "GRANT BACKUP_ADMIN, RELOAD, PROCESS, REFERENCES ON *.* TO keeper@localhost").await;
        let small = Target {
            user: Some("keeper".to_owned()),
            password_file: Some(password_file(&server.place, "right\n")),
            ..server.target()
        };
        let mut session = connect(&small).await;
        let mut all = Vec::new();
        let grant = remark(&session, "TABLES_NOT_LOCKABLE", &mut all).hint.clone();
        hold(&mut session).await;
        assert_eq!(session.describe().strategy, "global-lock");
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Exact);
        let asked = Target { strategy: Strategy::TableLocks, ..small };
        assert_eq!(refused(&asked).await.hint, grant);
        run(&mut application, &grant).await;
        let mut session = connect(&asked).await;
        hold(&mut session).await;
        assert_eq!(session.describe().strategy, "table-locks");
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Bounded);
    })
    .await;
}

#[tokio::test]
async fn a_lock_that_the_server_does_not_record_is_shown_by_what_its_holder_is_refused() {
    with(Release::Bionic, &[], async |server| {
        let mut application = server.with_table().await;
        run(&mut application, "CREATE TABLE app.m (i int) ENGINE=MyISAM").await;
        for (strategy, claim) in [(Strategy::Auto, Claim::Exact), (Strategy::TableLocks, Claim::Bounded)] {
            let mut session = connect(&asking(&server, strategy)).await;
            hold(&mut session).await;
            let proof = session.prove_and_release(LIMIT).await;
            assert_eq!((proof.database.claim(), proof.problem), (claim, None), "{strategy:?}");
        }
        run(&mut application, "CREATE USER keeper@localhost IDENTIFIED BY 'right'").await;
        run(&mut application, "GRANT RELOAD, PROCESS, REFERENCES ON *.* TO keeper@localhost").await;
        let small = Target {
            user: Some("keeper".to_owned()),
            password_file: Some(password_file(&server.place, "right\n")),
            ..server.target()
        };
        let mut session = connect(&small).await;
        hold(&mut session).await;
        assert_eq!(session.describe().claim(), Claim::Recoverable, "it is known before the freeze");
        let proof = session.prove_and_release(LIMIT).await;
        let problem = proof.problem.expect("it is said");
        assert_eq!((proof.database.claim(), problem.code.as_str()), (Claim::Recoverable, "LOCK_NOT_SHOWN"));
        run(&mut application, "ALTER TABLE app.m ENGINE=InnoDB").await;
        let asked = Target { strategy: Strategy::GlobalLock, ..small.clone() };
        let mut session = connect(&asked).await;
        hold(&mut session).await;
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!(proof.database.claim(), Claim::Bounded, "what was flushed needs no lock");
        run(&mut application, "ALTER TABLE app.m ENGINE=MyISAM").await;
        for grant in problem.hint.split("; ") {
            run(&mut application, grant).await;
        }
        let mut session = connect(&small).await;
        hold(&mut session).await;
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!((proof.database.claim(), proof.problem), (Claim::Exact, None));
    })
    .await;
}

#[tokio::test]
async fn a_long_select_in_front_of_the_global_lock_is_waited_for_and_then_it_is_held_with_less() {
    with(Release::Sid, &[], async |server| {
        let application = commits(server.with_table().await).await;
        let (id, running) = busy(&server, LONG_SELECT).await;
        long(&server, id).await;
        let target = Target { guard: Duration::from_millis(700), ..asking(&server, Strategy::GlobalLock) };
        let mut session = connect(&target).await;
        let begun = monotonic();
        session.soften(LIMIT).await.expect("softened");
        assert!(monotonic() - begun >= Duration::from_millis(700), "it waits for as long as it may");
        session.hold("h1", LIMIT).await.expect("held with less");
        session.barrier("h1", LIMIT).await.expect("flushed");
        let held = session.describe();
        assert_eq!((held.strategy.as_str(), held.claim()), ("instance-lock", Claim::Bounded));
        let mut all = Vec::new();
        let less = remark(&session, "HELD_WITH_LESS", &mut all);
        assert_eq!(less.severity(), Severity::Warning);
        assert!(less.message.contains("user root") && less.message.contains("bounded"), "{}", less.message);
        assert!(!less.message.contains("4711"), "what it compares with is nobody's business: {}", less.message);
        let application = commits(application).await;
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Bounded);

        let refuse = Target { busy: Busy::Refuse, ..target.clone() };
        let mut session = connect(&refuse).await;
        let error = session.soften(LIMIT).await.expect_err("it is told to refuse");
        assert!(error.to_string().contains("in the way of its lock is a statement of user root"), "{error}");
        assert!(error.hint.contains(&format!("KILL QUERY {id}")), "{}", error.hint);
        session.release(LIMIT).await.expect("it held nothing");

        let mut session = connect(&Target { kill_queries: true, ..target }).await;
        hold(&mut session).await;
        assert_eq!(session.describe().strategy, "global-lock");
        assert!(codes(&session.remarks()).contains(&"QUERY_ENDED"));
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Exact);
        running.await.expect("it was ended");
        commits(application).await;
    })
    .await;
}

#[tokio::test]
async fn a_global_lock_that_failed_is_let_go_at_once() {
    for release in [Release::Bionic, Release::Noble, Release::Sid] {
        with(release, &[], async |server| {
            let application = commits(server.with_table().await).await;
            let mut session = connect(&asking(&server, Strategy::GlobalLock)).await;
            session.soften(LIMIT).await.expect("softened");
            // Too young to be seen as long, too long to be waited for.
            let (id, running) = busy(&server, LONG_SELECT).await;
            session.hold("h1", LIMIT).await.expect("held with less");
            let held = session.describe();
            assert_ne!(held.strategy, "global-lock", "{release:?}");
            assert!(held.strategy_reason.contains("Lock wait timeout"), "{}", held.strategy_reason);
            assert!(held.strategy_reason.contains("behind a statement of user root"), "{}", held.strategy_reason);
            let application = commits(application).await;
            session.release(LIMIT).await.expect("released");

            let refuse = Target { busy: Busy::Refuse, guard: Duration::ZERO, ..asking(&server, Strategy::GlobalLock) };
            end(&server, id, running).await;
            let mut session = connect(&refuse).await;
            session.soften(LIMIT).await.expect("softened");
            let (id, running) = busy(&server, LONG_SELECT).await;
            let error = session.hold("h1", LIMIT).await.expect_err("it is told to refuse");
            assert!(error.to_string().contains("Lock wait timeout exceeded"), "{error}");
            commits(application).await;
            session.release(LIMIT).await.expect("it held nothing");
            end(&server, id, running).await;
        })
        .await;
    }
}

#[tokio::test]
async fn a_long_statement_on_a_table_that_should_be_locked_leaves_it_open_and_that_is_said() {
    with(Release::Sid, &[], async |server| {
        let mut application = server.with_table().await;
        run(&mut application, "CREATE TABLE app.m (i int) ENGINE=MyISAM").await;
        run(&mut application, "INSERT INTO app.m VALUES (1)").await;
        let (id, running) = busy(&server, "SELECT i, SLEEP(30) FROM app.m").await;
        // Too young for the guard: the lock is tried, waits, and is let go.
        let mut session = connect(&server.target()).await;
        hold(&mut session).await;
        let held = session.describe();
        assert_eq!((held.strategy.as_str(), held.claim()), ("instance-lock", Claim::Recoverable));
        assert!(codes(&session.remarks()).contains(&"READERS_WAIT"));
        let application = commits(application).await;
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!(proof.problem.expect("it is said").code, "TABLES_NOT_LOCKED");
        // Now it is seen.
        let refuse = Target { guard: Duration::ZERO, busy: Busy::Refuse, ..server.target() };
        let mut session = connect(&refuse).await;
        let error = session.soften(LIMIT).await.expect_err("it is in the way");
        assert!(error.to_string().contains("SELECT i, SLEEP(?) FROM app.m"), "{error}");
        end(&server, id, running).await;
        hold(&mut session).await;
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Bounded);
        commits(application).await;
    })
    .await;
}

#[tokio::test]
async fn a_server_that_records_nothing_or_takes_no_writes_is_held_all_the_same() {
    for release in [Release::Bionic, Release::Noble, Release::Sid] {
        for setting in ["performance-schema=OFF", "super-read-only=ON"] {
            with(release, &["log-bin=binlog"], async |server| {
                drop(server.with_table().await);
                let server = server.restart(&["log-bin=binlog", setting]);
                for (strategy, claim) in [(Strategy::Auto, Claim::Bounded), (Strategy::GlobalLock, Claim::Exact)] {
                    let mut session = connect(&asking(&server, strategy)).await;
                    hold(&mut session).await;
                    let proof = session.prove_and_release(LIMIT).await;
                    let (got, why) = (proof.database.claim(), proof.problem);
                    assert_eq!((got, why), (claim, None), "{release:?} {setting} {strategy:?}");
                }
            })
            .await;
        }
    }
}

#[tokio::test]
async fn ddl_in_front_of_the_instance_lock_leaves_the_freeze() {
    with(Release::Sid, &[], async |server| {
        let application = commits(server.with_table().await).await;
        let ctas = "CREATE TABLE app.copy AS SELECT i, SLEEP(30) AS s FROM app.report";
        let (id, running) = busy(&server, ctas).await;
        let mut session = connect(&Target { guard: A_MOMENT, ..server.target() }).await;
        hold(&mut session).await;
        let held = session.describe();
        assert_eq!((held.strategy.as_str(), held.claim()), ("freeze-only", Claim::Bounded));
        let mut all = Vec::new();
        assert!(remark(&session, "HELD_WITH_LESS", &mut all).message.contains("CREATE TABLE app.copy AS SELECT"));
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!((proof.database.claim(), proof.problem), (Claim::Bounded, None));
        end(&server, id, running).await;
        commits(application).await;
    })
    .await;
}

/// A session between two statements is not idle yet; the server counts whole seconds.
const IDLE: Duration = Duration::from_millis(2100);

#[tokio::test]
async fn an_idle_session_that_keeps_tables_locked_is_seen_before_the_global_lock_is_tried() {
    with(Release::Sid, &[], async |server| {
        let application = server.with_table().await;
        let mut idle = server.client().await;
        run(&mut idle, "LOCK TABLES app.t WRITE").await;
        tokio::time::sleep(IDLE).await;
        let target = Target { guard: Duration::ZERO, busy: Busy::Refuse, ..asking(&server, Strategy::GlobalLock) };
        let mut session = connect(&target).await;
        let error = session.soften(LIMIT).await.expect_err("it is in the way");
        assert!(error.to_string().contains("LOCK TABLES, kept by an idle session of user root"), "{error}");
        session.release(LIMIT).await.expect("it held nothing");
        run(&mut idle, "UNLOCK TABLES").await;

        run(&mut idle, "CREATE TABLE app.m (i int) ENGINE=MyISAM").await;
        run(&mut idle, "BEGIN").await;
        run(&mut idle, "INSERT INTO app.m VALUES (1)").await;
        tokio::time::sleep(IDLE).await;
        let target = Target { strategy: Strategy::TableLocks, ..target };
        let mut session = connect(&target).await;
        let error = session.soften(LIMIT).await.expect_err("an open transaction keeps the table");
        assert!(error.to_string().contains("a lock on a table, kept by an idle session"), "{error}");
        run(&mut idle, "COMMIT").await;
        hold(&mut session).await;
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Bounded);
        commits(application).await;
    })
    .await;
}

#[tokio::test]
async fn a_call_dropped_in_the_middle_of_the_global_lock_lets_go_too() {
    with(Release::Sid, &[], async |server| {
        let application = commits(server.with_table().await).await;
        let mut session = connect(&asking(&server, Strategy::GlobalLock)).await;
        session.soften(LIMIT).await.expect("softened");
        let (id, running) = busy(&server, LONG_SELECT).await;
        assert!(tokio::time::timeout(A_MOMENT, session.hold("h1", LIMIT)).await.is_err(), "it waits");
        let begun = monotonic();
        session.release(LIMIT).await.expect_err("it cannot confirm");
        let application = commits(application).await;
        assert!(monotonic() - begun < Duration::from_secs(1), "the second session ended it");
        end(&server, id, running).await;
        commits(application).await;
    })
    .await;
}

#[tokio::test]
async fn the_lock_dies_with_the_session_however_it_ends() {
    with(Release::Sid, &[], async |server| {
        let mut application = server.with_table().await;
        let cut_by_the_warden = |session: Session| {
            sockets::cut(&session.socket().expect("duplicated"));
            assert!(session.closed());
            std::mem::forget(session); // the daemon is not there to drop it
        };
        type End = fn(Session);
        for (way, end) in [("dropped", drop as End), ("cut by the warden", cut_by_the_warden as End)] {
            let mut session = connect(&asking(&server, Strategy::GlobalLock)).await;
            hold(&mut session).await;
            let writer = goes_through(application, COMMIT, A_MOMENT).await.expect_err("commits wait");
            let started = monotonic();
            end(session);
            application = writer.await.expect("they go through");
            assert!(monotonic() - started < Duration::from_secs(2), "{way}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_session_that_was_killed_is_not_called_proven() {
    with(Release::Sid, &[], async |server| {
        let application = server.with_table().await;
        let mut session = connect(&server.target()).await;
        hold(&mut session).await;
        let mut dba = server.client().await;
        let ours = "SELECT t.PROCESSLIST_ID FROM performance_schema.metadata_locks l JOIN performance_schema.threads t \
                    ON t.THREAD_ID = l.OWNER_THREAD_ID WHERE l.OBJECT_TYPE = 'BACKUP LOCK' AND l.LOCK_TYPE = 'SHARED'";
        let id = number(&mut dba, ours).await;
        run(&mut dba, &format!("KILL {id}")).await;
        let started = monotonic();
        while !session.closed() {
            assert!(monotonic() - started < LIMIT, "the kill was not noticed");
            tokio::time::sleep(Duration::from_millis(10)).await; // between two looks
        }
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!(proof.database.claim(), Claim::Recoverable);
        assert_eq!(proof.problem.expect("it is said").code, "DATABASE_NOT_PROVEN");
        commits(application).await;
    })
    .await;
}

#[tokio::test]
async fn a_server_that_was_killed_while_held_is_not_called_proven() {
    with(Release::Sid, &[], async |server| {
        let mut server = server;
        let mut session = connect(&asking(&server, Strategy::GlobalLock)).await;
        hold(&mut session).await;
        server.running.kill();
        assert!(session.closed(), "it shows on the socket alone");
        let started = monotonic();
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!(proof.database.claim(), Claim::Recoverable);
        assert!(monotonic() - started < Duration::from_secs(3));
    })
    .await;
}

#[tokio::test]
async fn a_stopped_server_does_not_keep_the_hold() {
    with(Release::Sid, &[], async |server| {
        let application = server.with_table().await;
        let mut session = connect(&asking(&server, Strategy::GlobalLock)).await;
        hold(&mut session).await;
        let pid = stop::stop(server.running.pid());
        let started = monotonic();
        let proof = session.prove_and_release(LIMIT).await;
        let took = monotonic() - started;
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).expect("ours");
        assert_eq!(proof.database.claim(), Claim::Recoverable);
        assert!(took < Duration::from_secs(5), "{took:?}");
        commits(application).await;
    })
    .await;
}

#[tokio::test]
async fn timeouts_set_against_us_do_not_end_the_hold() {
    let settings =
        ["wait-timeout=1", "interactive-timeout=1", "max-execution-time=1", "lock-wait-timeout=1", "autocommit=OFF"];
    with(Release::Sid, &settings, async |server| {
        let mut session = connect(&asking(&server, Strategy::GlobalLock)).await;
        hold(&mut session).await;
        tokio::time::sleep(Duration::from_millis(2500)).await; // longer than the server waits for others
        assert!(!session.closed());
        let ours = "SELECT COUNT(*) FROM performance_schema.threads WHERE PROCESSLIST_USER = 'root'";
        let mut dba = server.client().await;
        run(&mut dba, "SET SESSION max_execution_time = 0").await;
        assert_eq!(number(&mut dba, ours).await, 3, "ours, the second one, and this");
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!((proof.database.claim(), proof.problem), (Claim::Exact, None));
    })
    .await;
}

#[tokio::test]
async fn when_all_connections_are_taken_the_cure_is_named() {
    with(Release::Sid, &["max-connections=3"], async |server| {
        let mut clients = vec![server.with_table().await, server.client().await];
        let mut session = connect(&asking(&server, Strategy::GlobalLock)).await;
        clients.push(server.client().await); // the one more that is kept for administrators
        session.soften(LIMIT).await.expect("the second connection is nice to have");
        let mut all = Vec::new();
        assert!(remark(&session, "NO_SECOND_SESSION", &mut all).hint.contains("max_connections"));
        let error = refused(&server.target()).await;
        assert!(error.to_string().contains("Too many connections (1040)"), "{error}");
        assert!(error.hint.contains("admin_port"), "{}", error.hint);
        session.hold("h1", LIMIT).await.expect("what is connected is held");
        session.barrier("h1", LIMIT).await.expect("flushed");
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Exact);
    })
    .await;
}

#[tokio::test]
async fn accounts_of_every_kind_are_let_in_and_the_others_are_told_how() {
    with(Release::Sid, &["plugin-load-add=auth_socket.so"], async |server| {
        let mut dba = server.with_table().await;
        run(&mut dba, "CREATE USER keeper@localhost IDENTIFIED WITH auth_socket AS 'root'").await;
        let keeper = Target { user: Some("keeper".to_owned()), ..server.target() };
        let error = refused(&keeper).await;
        assert_eq!(error.hint, "GRANT BACKUP_ADMIN ON *.* TO 'keeper'@'localhost'");
        run(&mut dba, &error.hint).await;
        let error = refused(&keeper).await;
        assert_eq!(error.hint, "GRANT RELOAD ON *.* TO 'keeper'@'localhost'");
        run(&mut dba, &error.hint).await;
        connect(&keeper).await.release(LIMIT).await.expect("released");

        run(&mut dba, "CREATE USER word@localhost IDENTIFIED WITH caching_sha2_password BY 'right'").await;
        run(&mut dba, "GRANT BACKUP_ADMIN, RELOAD ON *.* TO word@localhost").await;
        let right = Some(password_file(&server.place, "right\n"));
        for target in [server.target(), on_tcp(Engine::Mysql, server.port)] {
            let target = Target { user: Some("word".to_owned()), password_file: right.clone(), ..target };
            connect(&target).await.release(LIMIT).await.expect("released");
        }
        password_file(&server.place, "wrong\n");
        let word = Target { user: Some("word".to_owned()), password_file: right, ..server.target() };
        let error = refused(&word).await;
        assert!(error.to_string().contains("Access denied for user 'word'@'localhost'"), "{error}");
        assert!(error.hint.contains("`password_file`") && !error.hint.contains("wrong"), "{}", error.hint);
        run(&mut dba, "ALTER USER word@localhost ACCOUNT LOCK").await;
        password_file(&server.place, "right\n");
        assert_eq!(refused(&word).await.hint, "ALTER USER 'word'@'localhost' ACCOUNT UNLOCK");
        run(&mut dba, "ALTER USER word@localhost ACCOUNT UNLOCK PASSWORD EXPIRE").await;
        let error = refused(&word).await;
        assert!(error.hint.contains("PASSWORD EXPIRE NEVER"), "{error}: {}", error.hint);
        run(&mut dba, "CREATE USER sha@localhost IDENTIFIED WITH sha256_password BY 'right'").await;
        let sha = Target { user: Some("sha".to_owned()), ..word };
        let error = refused(&sha).await;
        assert!(error.to_string().contains("sha256_password"), "{error}");
        assert!(error.hint.contains("caching_sha2_password"), "{}", error.hint);
    })
    .await;
}

#[tokio::test]
async fn logs_that_would_stop_every_statement_are_said() {
    with(Release::Sid, &["general-log=ON", "log-output=TABLE", "disable-log-bin"], async |server| {
        let mut session = connect(&server.target()).await;
        assert_eq!(codes(&session.remarks()), ["LOG_TABLES", "NO_BINARY_LOG"]);
        assert_eq!(session.log_places().len(), 1, "whether its disk is frozen decides whether that is said");
        hold(&mut session).await;
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!((proof.database.claim(), proof.problem), (Claim::Bounded, None));
        let mut session = connect(&asking(&server, Strategy::GlobalLock)).await;
        hold(&mut session).await;
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!((proof.database.claim(), proof.problem), (Claim::Exact, None), "the server shows its locks");
    })
    .await;
}

#[tokio::test]
async fn without_a_redo_log_nothing_is_claimed() {
    with(Release::Sid, &[], async |server| {
        let mut dba = server.with_table().await;
        run(&mut dba, "ALTER INSTANCE DISABLE INNODB REDO_LOG").await;
        let session = connect(&server.target()).await;
        assert_eq!(session.describe().claim(), Claim::Recoverable);
        let mut all = Vec::new();
        let hint = remark(&session, "REDO_LOG_DISABLED", &mut all).hint.clone();
        run(&mut dba, &hint).await;
        let mut session = connect(&server.target()).await;
        hold(&mut session).await;
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Bounded);
    })
    .await;
}

#[tokio::test]
async fn every_place_of_its_data_is_named() {
    with(Release::Sid, &[], async |server| {
        let names = ["logs", "undo", "dw", "tables"];
        let made = names.map(|name| directory(&server.place, name).display().to_string());
        let [logs, undo, dw, tables] = &made;
        let known = format!("innodb-directories={tables};{undo}");
        let (log, double) = (format!("log-bin={logs}/binlog"), format!("innodb-doublewrite-dir={dw}"));
        let server = server.restart(&[&log, &double, &known]);
        let mut dba = server.with_table().await;
        for sql in [
            format!("CREATE TABLE app.far (i int) DATA DIRECTORY '{tables}'"),
            format!("CREATE TABLESPACE shared ADD DATAFILE '{tables}/shared.ibd'"),
            format!("CREATE UNDO TABLESPACE more ADD DATAFILE '{undo}/more.ibu'"),
        ] {
            run(&mut dba, &sql).await;
        }
        let session = connect(&server.target()).await;
        let within = |name: &str| server.place.path(name);
        let expected =
            [within("data"), within("dw"), within("logs"), within("tables"), within("tables/app"), within("undo")];
        assert_eq!(paths(&session), expected);
        let purposes: Vec<&str> = session.places().into_iter().map(|place| place.purpose).collect();
        assert_eq!(purposes, ["data", "doublewrite", "binlog", "tablespace", "tablespace", "undo"]);
    })
    .await;
}

#[tokio::test]
async fn open_transactions_are_waited_for_counted_and_never_ended() {
    with(Release::Sid, &[], async |server| {
        let mut application = server.with_table().await;
        run(&mut application, "BEGIN").await;
        run(&mut application, "INSERT INTO app.t VALUES (1)").await;
        let mut prepared = server.client().await;
        for sql in ["XA START 'x'", "INSERT INTO app.t VALUES (2)", "XA END 'x'", "XA PREPARE 'x'"] {
            run(&mut prepared, sql).await;
        }
        tokio::time::sleep(Duration::from_millis(1100)).await; // ages are whole seconds
        let mut session = connect(&Target { drain: A_MOMENT, ..server.target() }).await;
        hold(&mut session).await;
        let held = session.describe();
        assert_eq!((held.open_transactions, held.prepared_transactions), (2, 1));
        assert!(held.oldest_open_transaction.expect("some are open").seconds >= 1);
        let mut all = Vec::new();
        let message = &remark(&session, "NOT_DRAINED", &mut all).message;
        assert!(message.starts_with("2 write transactions are still open") && message.contains("absent"), "{message}");
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Bounded);
        let mut session = connect(&Target { busy: Busy::Refuse, ..asking(&server, Strategy::GlobalLock) }).await;
        hold(&mut session).await;
        assert_eq!(session.describe().strategy, "global-lock", "idle transactions are in nobody's way");
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Exact);
        run(&mut prepared, "XA ROLLBACK 'x'").await;
        let mut session = connect(&Target { drain: Duration::from_secs(8), ..server.target() }).await;
        let commit = async {
            tokio::time::sleep(Duration::from_millis(600)).await; // how long it stays open
            run(&mut application, "COMMIT").await; // it was not ended by us
            monotonic()
        };
        let soften = async {
            session.soften(LIMIT).await.expect("softened");
            monotonic()
        };
        let (softened, committed) = tokio::join!(soften, commit);
        assert!(softened > committed, "it waited");
        assert_eq!(codes(&session.remarks()), [""; 0]);
    })
    .await;
}

#[tokio::test]
async fn a_replicas_executed_position_is_told_and_that_it_stands_still() {
    const TABLES: [&str; 2] = ["loose-master-info-repository=TABLE", "loose-relay-log-info-repository=TABLE"];
    for release in Release::ALL {
        with(release, &TABLES, async |server| {
            let mut dba = server.with_table().await;
            let old = "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_LOG_FILE='b.000007', MASTER_LOG_POS=157, \
                       MASTER_DELAY=60 FOR CHANNEL 'east'";
            let new = "CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_LOG_FILE='b.000007', \
                       SOURCE_LOG_POS=157, SOURCE_DELAY=60 FOR CHANNEL 'east'";
            if release == Release::Bionic {
                let version = text(&mut dba, "SELECT VERSION()").await;
                assert!(version.starts_with("5.7"), "{version}");
            }
            run(&mut dba, if release == Release::Bionic { old } else { new }).await;
            let mut session = connect(&server.target()).await;
            let said = session.remarks();
            let said = codes(&said);
            assert!(said.contains(&"REPLICA_DELAYED") && said.contains(&"REPLICA_STOPPED"), "{release:?} {said:?}");
            hold(&mut session).await;
            let proof = session.prove_and_release(LIMIT).await;
            assert_eq!(at(&proof.database.start, "replica.east.executed"), "b.000007:157", "{release:?}");
            assert_eq!(proof.database.claim(), Claim::Bounded);
        })
        .await;
    }
}

#[tokio::test]
async fn a_member_of_a_replication_group_is_not_locked() {
    let group = "11111111-2222-3333-4444-555555555555";
    let name = format!("loose-group-replication-group-name={group}");
    let settings = [
        "gtid-mode=ON",
        "enforce-gtid-consistency=ON",
        "plugin-load-add=group_replication.so",
        name.as_str(),
        "loose-group-replication-start-on-boot=OFF",
        "loose-group-replication-bootstrap-group=ON",
    ];
    with(Release::Sid, &settings, async |server| {
        let session = connect(&server.target()).await;
        assert_eq!(session.describe().strategy, "instance-lock", "it has not joined");
        let mut dba = server.with_table().await;
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("bound").port();
        run(&mut dba, &format!("SET GLOBAL group_replication_local_address = '127.0.0.1:{port}'")).await;
        run(&mut dba, "START GROUP_REPLICATION").await;
        let mut session = connect(&server.target()).await;
        assert_eq!(codes(&session.remarks()), ["CLUSTER_NODE"]);
        hold(&mut session).await;
        let held = session.describe();
        assert_eq!((held.strategy.as_str(), held.claim()), ("freeze-only", Claim::Bounded));
        assert!(held.strategy_reason.contains("replication group"), "{}", held.strategy_reason);
        run(&mut dba, "CREATE TABLE app.member (i int PRIMARY KEY)").await; // nobody waits, not even DDL
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Bounded);
        let asked = connect(&asking(&server, Strategy::GlobalLock)).await;
        assert_eq!(asked.describe().claim(), Claim::Exact, "only if somebody asks for just that");
    })
    .await;
}
