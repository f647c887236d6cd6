//! Standbys: nothing of their own to write, and a primary they may become.

use std::fs;

use holdstill::{
    proto::Claim,
    step::database::{Logs, Session},
};

use crate::{
    server::{Server, hold},
    step_servers::{LIMIT, Place, at, codes},
};

#[tokio::test]
async fn a_standby_is_bounded_without_a_marker_and_promotion_breaks_the_proof() {
    let place = Place::of("postgres");
    let server = Server::start_in(place, "sockets", &[]);
    drop(server.running);
    let place = server.place;
    let _ = fs::remove_file(place.path("data/postmaster.pid"));
    fs::write(place.path("data/standby.signal"), "").expect("written");
    let server = Server::start_on(place, "sockets", &["hot_standby=on"]);
    let mut session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
    assert_eq!(codes(&session.remarks()), ["STANDBY"]);
    hold(&mut session, "h1").await;
    let about = session.describe();
    assert_eq!((about.claim(), at(&about.start, "in_recovery")), (Claim::Bounded, "true"));
    assert!(!at(&about.start, "replay_lsn").is_empty());
    assert!(about.start.iter().all(|coordinate| coordinate.key != "marker_lsn"));

    server.client().await.batch_execute("SELECT pg_promote()").await.expect("promoted");
    let proof = session.prove_and_release(LIMIT).await;
    assert_eq!(proof.database.claim(), Claim::Recoverable);
    assert!(proof.problem.expect("it is said").message.contains("between standby and primary"));
}
