//! Every way to hold, on every version: who waits, what is claimed, what survives a crash.

use super::*;

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
