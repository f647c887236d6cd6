//! Holding real PostgreSQL servers. What a frozen copy of their disks then contains is tested elsewhere.

mod backup;
mod found;
mod hazards;
mod server;
mod standby;
#[path = "../step_servers/mod.rs"]
mod step_servers;

use std::{fs, time::Duration};

use holdstill::{
    proto::{Claim, Severity},
    step::database::{Engine, Logs, Session, Target},
    sys::clock::monotonic,
};
use server::{Server, hold, lsn, until};
use step_servers::{LIMIT, at, codes, on_socket, paths};

#[tokio::test]
async fn a_whole_hold_claims_bounded_and_proves_it() {
    let server = Server::start(&[]);
    let application = server.client().await;
    application.batch_execute("CREATE TABLE t (i int); BEGIN; INSERT INTO t VALUES (1)").await.expect("written");
    let mut session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("peer needs no password");
    assert_eq!(session.server_pid(), Some(server.running.pid()));
    assert_eq!(paths(&session), [server.place.path("data"), server.place.path("data/pg_wal")]);
    assert_eq!(codes(&session.remarks()), Vec::<&str>::new());
    hold(&mut session, "h1").await;
    assert!(!session.closed());

    let before = session.describe();
    assert_eq!((before.engine.as_str(), before.claim()), ("postgresql", Claim::Bounded));
    assert_eq!(before.open_transactions, 1, "the application's, not our own");
    for key in ["system_identifier", "timeline", "marker_lsn", "insert_lsn", "flush_lsn", "wal_file", "redo_lsn"] {
        assert!(!at(&before.start, key).is_empty());
    }
    assert_eq!(at(&before.start, "in_recovery"), "false");
    assert_eq!(before.prepared_transactions, 0);
    assert!(before.oldest_open_transaction.is_some());
    assert_eq!(before.strategy, "marker");

    application.batch_execute("COMMIT").await.expect("nothing is locked");
    let proof = session.prove_and_release(LIMIT).await;
    assert_eq!(proof.problem, None);
    assert_eq!(proof.database.claim(), Claim::Bounded);
    assert_eq!(proof.database.start, before.start);
    assert!(lsn(at(&proof.database.end, "flush_lsn")) >= lsn(at(&before.start, "marker_lsn")));
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'holdstill'";
    until(async || application.query_one(sessions, &[]).await.expect("counted").get::<_, i64>(0) == 0).await;
}

#[tokio::test]
async fn commits_acknowledged_without_waiting_for_the_disk_survive_a_crash_after_the_barrier() {
    const RELAXED: [&str; 3] = ["synchronous_commit=off", "wal_writer_delay=10s", "wal_writer_flush_after=64MB"];
    let mut server = Server::start(&RELAXED);
    let application = server.client().await;
    application.batch_execute("CREATE TABLE t (i int)").await.expect("created");
    let mut session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
    assert_eq!(codes(&session.remarks()), ["RELAXED_DURABILITY"]);
    session.soften(LIMIT).await.expect("it checkpoints");
    let position = "SELECT pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text";
    for i in 0..200 {
        application.execute("INSERT INTO t VALUES ($1)", &[&i]).await.expect("acknowledged");
    }
    let row = application.query_one(position, &[]).await.expect("read");
    let (inserted, flushed) = (lsn(row.get(0)), lsn(row.get(1)));
    assert!(flushed < inserted, "the test needs acknowledged commits that are not on disk");
    session.hold("h1", LIMIT).await.expect("held");
    session.barrier("h1", LIMIT).await.expect("flushed");
    let row = application.query_one(position, &[]).await.expect("read");
    assert!(lsn(row.get(1)) >= inserted, "everything acknowledged before is flushed");
    assert!(lsn(at(&session.describe().start, "flush_lsn")) >= inserted);

    // All processes at once, as the power would: nothing that was not flushed to the log is in it.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server.running.pid()), nix::sys::signal::Signal::SIGKILL)
        .expect("our own child");
    server.running.kill();
    let place = server.place;
    let _ = fs::remove_file(place.path("data/postmaster.pid"));
    let server = Server::start_on(place, "sockets", &RELAXED);
    let count = server.client().await.query_one("SELECT count(*) FROM t", &[]).await.expect("recovered");
    assert_eq!(count.get::<_, i64>(0), 200);
}

#[tokio::test]
async fn fsync_off_is_recoverable_and_a_warning() {
    let server = Server::start(&["fsync=off", "logging_collector=on", "log_statement=all"]);
    let session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
    assert_eq!(session.describe().claim(), Claim::Recoverable);
    let remarks = session.remarks();
    assert_eq!(codes(&remarks), ["FSYNC_OFF"]);
    assert!(remarks.iter().all(|remark| remark.severity() == Severity::Warning && !remark.hint.is_empty()));
    let logs = session.log_places();
    assert_eq!(logs.len(), 1);
    assert_eq!(logs[0].path, server.place.path("data/log"));
    assert_eq!((logs[0].remark.code.as_str(), logs[0].remark.severity()), ("LOG_ON_DISK", Severity::Warning));
    session.release(LIMIT).await.expect("nothing was held");
}

#[tokio::test]
async fn draining_waits_for_open_writes_and_for_no_longer_than_it_may() {
    let server = Server::start(&[]);
    let application = server.client().await;
    application.batch_execute("CREATE TABLE t (i int); BEGIN; INSERT INTO t VALUES (1)").await.expect("open");
    let patient = Target { drain: Duration::from_secs(8), ..server.target() };
    let mut session = Session::connect(&patient, Logs::WhileHeld, LIMIT).await.expect("it connects");
    let (softened, took) = {
        let started = monotonic();
        let soften = async {
            let softened = session.soften(LIMIT).await;
            (softened, monotonic() - started)
        };
        let commit = async {
            tokio::time::sleep(Duration::from_millis(700)).await; // how long the transaction stays open
            application.batch_execute("COMMIT").await.expect("committed");
        };
        tokio::join!(soften, commit).0
    };
    softened.expect("softened");
    assert!(took >= Duration::from_millis(700) && took < Duration::from_secs(5), "{took:?}");
    assert_eq!(codes(&session.remarks()), Vec::<&str>::new());

    application.batch_execute("BEGIN; INSERT INTO t VALUES (2)").await.expect("open");
    let hasty = Target { drain: Duration::from_millis(300), ..server.target() };
    let mut session = Session::connect(&hasty, Logs::WhileHeld, LIMIT).await.expect("it connects");
    session.soften(LIMIT).await.expect("an open transaction is no error");
    assert_eq!(codes(&session.remarks()), ["NOT_DRAINED"]);
    application.batch_execute("COMMIT").await.expect("and was not ended by us");
}

#[tokio::test]
async fn the_sockets_path_may_be_longer_than_an_address_or_a_directory() {
    // The server itself cannot bind such a path: it lies behind a long link.
    let server = Server::start(&[]);
    let deep = server.place.path(&"d".repeat(120));
    std::os::unix::fs::symlink(server.place.path("sockets"), &deep).expect("linked");
    let name = format!(".s.PGSQL.{}", server.port);
    for path in [deep.join(name), server.place.path("sockets")] {
        let session =
            Session::connect(&on_socket(Engine::Postgresql, path), Logs::WhileHeld, LIMIT).await.expect("it connects");
        session.release(LIMIT).await.expect("released");
    }
}

#[tokio::test]
async fn long_statements_and_locks_of_others_delay_nothing() {
    let server = Server::start(&[]);
    let (changing, reading) = (server.client().await, server.client().await);
    changing.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)").await.expect("made");
    changing.batch_execute("BEGIN; ALTER TABLE t ADD COLUMN j int").await.expect("and stays open");
    let long = tokio::spawn(async move { reading.batch_execute("SELECT pg_sleep(30)").await });
    let mut session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
    session.soften(LIMIT).await.expect("softened");
    let started = monotonic();
    session.hold("h1", LIMIT).await.expect("nothing is in the way");
    session.barrier("h1", LIMIT).await.expect("nor here");
    assert!(monotonic() - started < Duration::from_secs(1), "{:?}", monotonic() - started);
    assert_eq!(session.describe().open_transactions, 1, "the change of the table; a SELECT writes nothing");
    assert_eq!(session.prove_and_release(LIMIT).await.problem, None);
    long.abort();
}
