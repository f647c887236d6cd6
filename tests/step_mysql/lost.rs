//! Sessions and servers that end, stop or are told to.

use super::*;

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
