//! Standbys: nothing of their own to write, and a primary they may become.

use std::fs;

use holdstill::{
    proto::{Claim, Severity},
    step::database::{Logs, Session},
};

use crate::{
    server::{Server, copy, hold, lsn, until},
    step_servers::{LIMIT, Place, at, codes},
};

/// A cluster that waits for a primary that never comes.
fn waiting(settings: &[&str]) -> Server {
    let Server { running, place, .. } = Server::start(&[]);
    drop(running);
    let _ = fs::remove_file(place.path("data/postmaster.pid"));
    fs::write(place.path("data/standby.signal"), "").expect("written");
    Server::start_on(place, "sockets", settings)
}

/// A primary, and a standby that follows it.
async fn pair() -> (Server, Server) {
    let Server { running, place, .. } = Server::start(&[]);
    drop(running);
    let _ = fs::remove_file(place.path("data/postmaster.pid"));
    let other = Place::of("postgres");
    copy(&place.path("data"), &other.path("data"));
    let primary = Server::start_on(place, "sockets", &[]);
    fs::write(other.path("data/standby.signal"), "").expect("written");
    let sockets = primary.place.path("sockets");
    let from = format!("primary_conninfo=host={} port={} user=postgres", sockets.display(), primary.port);
    let standby = Server::start_on(other, "sockets", &[&from]);
    (primary, standby)
}

/// What the primary has written so far, once the standby has replayed it.
async fn replayed(primary: &Server, standby: &Server) -> u64 {
    let position = async |server: &Server, sql| {
        lsn(&server.client().await.query_one(sql, &[]).await.expect("told").get::<_, String>(0))
    };
    let written = position(primary, "SELECT pg_current_wal_insert_lsn()::text").await;
    until(async || position(standby, "SELECT pg_last_wal_replay_lsn()::text").await >= written).await;
    written
}

#[tokio::test]
async fn a_standby_is_bounded_without_a_marker_and_promotion_breaks_the_proof() {
    let server = waiting(&[]);
    let mut session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
    assert_eq!(codes(&session.remarks()), ["STANDBY"]);
    hold(&mut session, "h1").await;
    let about = session.describe();
    assert_eq!((about.claim(), at(&about.start, "in_recovery")), (Claim::Bounded, "true"));
    assert_eq!(about.strategy, "freeze-only");
    assert!(about.strategy_reason.contains("standby"), "{}", about.strategy_reason);
    assert!(!at(&about.start, "replay_lsn").is_empty());
    assert!(about.start.iter().all(|coordinate| coordinate.key != "marker_lsn"));

    server.client().await.batch_execute("SELECT pg_promote()").await.expect("promoted");
    let proof = session.prove_and_release(LIMIT).await;
    assert_eq!(proof.database.claim(), Claim::Recoverable);
    assert!(proof.problem.expect("it is said").message.contains("between standby and primary"));
}

#[tokio::test]
async fn what_a_standby_has_replayed_before_the_barrier_survives_its_crash() {
    let (primary, mut standby) = pair().await;
    primary.client().await.batch_execute("CREATE TABLE t AS SELECT 1 AS i").await.expect("made");
    let written = replayed(&primary, &standby).await;
    let mut session = Session::connect(&standby.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
    hold(&mut session, "h1").await;
    assert!(lsn(at(&session.describe().start, "replay_lsn")) >= written, "the claim's own bound");

    // as the power would end it; and its primary is gone, too
    drop(primary);
    let pid = nix::unistd::Pid::from_raw(standby.running.pid());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("our own child");
    standby.running.kill();
    drop(session);
    let place = standby.place;
    let _ = fs::remove_file(place.path("data/postmaster.pid"));
    let standby = Server::start_on(place, "sockets", &[]);
    let count = standby.client().await.query_one("SELECT count(*) FROM t", &[]).await.expect("it is there");
    assert_eq!(count.get::<_, i64>(0), 1);
}

#[tokio::test]
async fn a_standby_in_backup_mode_gives_out_a_label_of_its_own() {
    let (primary, standby) = pair().await;
    primary.client().await.batch_execute("CREATE TABLE t AS SELECT 1 AS i").await.expect("made");
    replayed(&primary, &standby).await;
    let mut session = Session::connect(&standby.target(), Logs::AfterThaw, LIMIT).await.expect("it connects");
    session.name("h1");
    hold(&mut session, "h1").await;
    let about = session.describe();
    assert_eq!((about.strategy.as_str(), about.claim()), ("backup-mode", Claim::Bounded));
    assert!(about.start.iter().all(|coordinate| coordinate.key != "marker_lsn"));
    let copied = standby.place.path("copy");
    copy(&standby.place.path("data"), &copied);
    primary.client().await.batch_execute("INSERT INTO t VALUES (2)").await.expect("goes on");
    let proof = session.prove_and_release(LIMIT).await;
    assert_eq!(proof.problem, None);
    assert!(proof.database.backup_label.contains("BACKUP FROM: standby\n"), "{}", proof.database.backup_label);

    drop(primary);
    let restored = standby.restored(&copied, &proof.database, &[]);
    let application = restored.client().await;
    application.batch_execute("SELECT pg_promote()").await.expect("it is whole");
    let rows = application.query_one("SELECT count(*) FROM t", &[]).await.expect("there").get::<_, i64>(0);
    assert!((1..=2).contains(&rows), "{rows}");
}

#[tokio::test]
async fn a_standby_promoted_in_backup_mode_has_no_label() {
    let server = waiting(&[]);
    let mut session = Session::connect(&server.target(), Logs::AfterThaw, LIMIT).await.expect("it connects");
    session.name("h1");
    hold(&mut session, "h1").await;
    server.client().await.batch_execute("SELECT pg_promote()").await.expect("promoted");
    let proof = session.prove_and_release(LIMIT).await;
    assert_eq!((proof.database.claim(), proof.database.backup_label.as_str()), (Claim::Uncovered, ""));
}

#[tokio::test]
async fn a_standby_that_is_paused_or_late_on_purpose_says_so() {
    let server = waiting(&["recovery_min_apply_delay=1h"]);
    let remarks = async || {
        let session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
        session.remarks()
    };
    let late = remarks().await;
    assert_eq!(codes(&late), ["STANDBY", "REPLAY_DELAYED"]);
    assert!(late[1].message.contains("1h late"), "{}", late[1].message);
    server.client().await.batch_execute("SELECT pg_wal_replay_pause()").await.expect("a superuser may");
    let paused = remarks().await;
    assert_eq!(codes(&paused), ["STANDBY", "REPLAY_PAUSED"]);
    assert_eq!((paused[1].severity(), paused[1].hint.as_str()), (Severity::Warning, "SELECT pg_wal_replay_resume()"));
}
