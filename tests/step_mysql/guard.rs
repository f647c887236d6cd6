//! What is in the way of a lock, before it is tried and when it was tried in vain; what is still open.

use super::*;

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
