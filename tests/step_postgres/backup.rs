//! Backup mode: data held, log copied after the thaw, and the label that joins them.

use std::{fs, path::PathBuf};

use holdstill::{
    proto::{Claim, Database},
    step::database::{Logs, Place as Needed, Session, Strategy, Target},
};

use crate::{
    server::{Server, copy, hold, lsn, until},
    step_servers::{LIMIT, at, codes, on_tcp, password_file},
};

async fn refused(target: &Target) -> (String, String) {
    match Session::connect(target, Logs::AfterThaw, LIMIT).await {
        Ok(_) => panic!("it may be put into backup mode"),
        Err(error) => (error.to_string(), error.hint),
    }
}

async fn backups_running(server: &Server) -> bool {
    let label = server.place.path("data/backup_label");
    assert!(!label.exists(), "a backup of this kind never writes one");
    // a second start in the session of another is fine, a checkpoint's record of a running one is not visible in SQL:
    // the session is what there is
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'holdstill'";
    server.client().await.query_one(sessions, &[]).await.expect("counted").get::<_, i64>(0) > 0
}

#[tokio::test]
async fn a_log_copied_after_the_thaw_and_the_label_make_a_whole_of_the_data_copied_before() {
    let server = Server::start(&["max_wal_size=1GB"]);
    let tablespace = server.place.path("tablespace");
    fs::create_dir(&tablespace).expect("created");
    std::os::unix::fs::chown(&tablespace, Some(server.place.user.uid.as_raw()), None).expect("root may");
    let application = server.client().await;
    for sql in [
        &format!("CREATE TABLESPACE far LOCATION '{}'", tablespace.display()),
        "CREATE TABLE t (i int) TABLESPACE far; INSERT INTO t SELECT generate_series(1, 1000)",
    ] {
        application.batch_execute(sql).await.expect("made");
    }

    let mut session = Session::connect(&server.target(), Logs::AfterThaw, LIMIT).await.expect("it connects");
    assert_eq!(codes(&session.remarks()), ["LOG_KEPT_BRIEFLY"]);
    assert!(session.in_backup_mode());
    let later = |place: &Needed| place.after_thaw;
    let wal: Vec<Needed> = session.places().into_iter().filter(later).collect();
    assert_eq!(wal.len(), 1);
    assert_eq!((wal[0].purpose, &wal[0].path), ("wal", &server.place.path("data/pg_wal")));
    session.name("nightly-1");
    hold(&mut session, "nightly-1").await;
    let before = session.describe();
    assert_eq!((before.strategy.as_str(), before.claim()), ("backup-mode", Claim::Bounded));
    let (start, marker) = (lsn(at(&before.start, "backup_start_lsn")), lsn(at(&before.start, "marker_lsn")));
    assert!(start < marker);
    assert_eq!((before.backup_label.as_str(), before.tablespace_map.as_str()), ("", ""));

    // The data, in the middle of writing, without its log.
    application.batch_execute("INSERT INTO t SELECT generate_series(1001, 1500)").await.expect("goes on");
    let copied = server.place.path("copy");
    copy(&server.place.path("data"), &copied);
    application.batch_execute("UPDATE t SET i = -i; CHECKPOINT").await.expect("goes on");

    let proof = session.prove_and_release(LIMIT).await;
    assert_eq!(proof.problem, None);
    let Database { backup_label, tablespace_map, end, .. } = &proof.database;
    assert_eq!(proof.database.claim(), Claim::Bounded);
    assert!(backup_label.contains("LABEL: holdstill nightly-1\n"), "{backup_label}");
    assert!(backup_label.starts_with(&format!("START WAL LOCATION: {}", at(&before.start, "backup_start_lsn"))));
    assert!(tablespace_map.contains(&format!(" {}\n", tablespace.display())), "{tablespace_map}");
    assert!(lsn(at(end, "backup_stop_lsn")) > marker);
    assert!(backup_label.contains(&format!("(file {})", at(end, "backup_first_wal_file"))));

    let server = server.restored(&copied, &proof.database, &[]);
    let sums = "SELECT count(*), sum(i)::bigint FROM t";
    let row = server.client().await.query_one(sums, &[]).await.expect("restored");
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1500, -1500 * 1501 / 2), "whatever its log had");
    let log = fs::read_to_string(server.place.path("log")).expect("readable");
    assert!(log.contains("consistent recovery state reached"), "{log}");
}

#[tokio::test]
async fn a_session_lost_while_held_in_backup_mode_leaves_a_copy_that_must_not_be_restored() {
    let server = Server::start(&[]);
    let mut session = Session::connect(&server.target(), Logs::AfterThaw, LIMIT).await.expect("it connects");
    session.name("h1");
    hold(&mut session, "h1").await;
    let client = server.client().await;
    let ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holdstill'";
    client.query_one(ended, &[]).await.expect("a superuser may");
    until(async || session.closed()).await;
    let proof = session.prove_and_release(LIMIT).await;
    assert_eq!(proof.database.claim(), Claim::Uncovered);
    assert_eq!(proof.database.backup_label, "");
    let problem = proof.problem.expect("it is said");
    assert_eq!(problem.code, "DATABASE_NOT_PROVEN");
    assert!(problem.message.contains("no label") && problem.hint.contains("throw"), "{problem:?}");
}

#[tokio::test]
async fn a_backup_without_its_barrier_is_no_proof() {
    let server = Server::start(&[]);
    let mut session = Session::connect(&server.target(), Logs::AfterThaw, LIMIT).await.expect("it connects");
    session.name("h1");
    session.soften(LIMIT).await.expect("started");
    // the hold failed before its barrier
    let proof = session.prove_and_release(LIMIT).await;
    assert_eq!(proof.database.claim(), Claim::Uncovered);
    assert!(proof.problem.expect("it is said").message.contains("its barrier was never reached"));
}

#[tokio::test]
async fn a_backup_that_was_not_wanted_after_all_ends_with_its_session() {
    let server = Server::start(&[]);
    let mut session = Session::connect(&server.target(), Logs::AfterThaw, LIMIT).await.expect("it connects");
    session.name("h1");
    session.soften(LIMIT).await.expect("started");
    assert!(backups_running(&server).await);
    session.release(LIMIT).await.expect("nothing to confirm");
    until(async || !backups_running(&server).await).await;
    let log = fs::read_to_string(server.place.path("log")).expect("readable");
    assert!(log.contains("aborting backup due to backend exiting"), "{log}");
}

#[tokio::test]
async fn what_the_log_has_lost_by_then_is_noticed() {
    let server = Server::start(&["min_wal_size=32MB", "max_wal_size=32MB"]);
    let mut session = Session::connect(&server.target(), Logs::AfterThaw, LIMIT).await.expect("it connects");
    session.name("h1");
    hold(&mut session, "h1").await;
    let client = server.client().await;
    client.batch_execute("CREATE TABLE t (i int)").await.expect("made");
    for _ in 0..4 {
        let more = "INSERT INTO t SELECT generate_series(1, 100000)";
        client.batch_execute(more).await.expect("written");
        client.batch_execute("SELECT pg_switch_wal(); CHECKPOINT").await.expect("a superuser may");
    }
    let proof = session.prove_and_release(LIMIT).await;
    assert_eq!(proof.database.claim(), Claim::Uncovered);
    let problem = proof.problem.expect("it is said");
    assert!(problem.message.contains("has already removed 0000"), "{problem:?}");
}

#[tokio::test]
async fn a_server_that_cannot_be_put_into_backup_mode_says_what_would_help() {
    let server = Server::start(&["wal_level=minimal", "max_wal_senders=0"]);
    let (why, cure) = refused(&server.target()).await;
    assert!(why.contains("wal_level is minimal"), "{why}");
    assert!(cure.contains("ALTER SYSTEM SET wal_level = 'replica'"), "{cure}");
    let frozen = Target { strategy: Strategy::FreezeOnly, ..server.target() };
    assert!(refused(&frozen).await.0.contains("`strategy` is freeze-only"));
    let mut session =
        Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("all together needs none");
    assert!(session.places().iter().all(|place| !place.after_thaw));
    hold(&mut session, "h1").await;
    assert!(!at(&session.describe().start, "marker_lsn").is_empty(), "even so little of a log has it");
    assert_eq!(session.prove_and_release(LIMIT).await.problem, None);

    let careless = Server::start(&["fsync=off"]);
    let (why, cure) = refused(&careless.target()).await;
    assert!(why.contains("fsync is off") && cure.contains("SET fsync = on"), "{why}: {cure}");
}

#[tokio::test]
async fn a_small_role_is_told_the_exact_grant_and_needs_no_more() {
    let server = Server::start(&[]);
    let application = server.client().await;
    server.keeper().await;
    application.batch_execute("GRANT pg_monitor TO keeper").await.expect("granted");
    let password_file: Option<PathBuf> = Some(password_file(&server.place, "right\n"));
    let target = Target {
        user: Some("keeper".to_owned()),
        password_file,
        ..on_tcp(holdstill::step::database::Engine::Postgresql, server.port)
    };
    let (why, grant) = refused(&target).await;
    assert!(why.contains("its role keeper may not start and stop a backup"), "{why}");
    application.batch_execute(&grant).await.unwrap_or_else(|error| panic!("{grant}: {error}"));
    let mut session = Session::connect(&target, Logs::AfterThaw, LIMIT).await.expect("it may now");
    session.name("h1");
    hold(&mut session, "h1").await;
    let proof = session.prove_and_release(LIMIT).await;
    assert_eq!(proof.problem, None);
    assert!(!proof.database.backup_label.is_empty());
}

#[tokio::test]
async fn pages_are_logged_whole_during_a_backup_whatever_the_configuration() {
    let server = Server::start(&["full_page_writes=off"]);
    let mut session = Session::connect(&server.target(), Logs::AfterThaw, LIMIT).await.expect("it connects");
    session.name("h1");
    session.soften(LIMIT).await.expect("the server does it by itself");
    let client = server.client().await;
    client.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1); CHECKPOINT").await.expect("written");
    let position = "SELECT pg_current_wal_insert_lsn()::text";
    let before = client.query_one(position, &[]).await.expect("read").get::<_, String>(0);
    client.batch_execute("UPDATE t SET i = 2").await.expect("written");
    let after = client.query_one(position, &[]).await.expect("read").get::<_, String>(0);
    assert!(lsn(&after) - lsn(&before) > 200, "the page was not logged");
}
