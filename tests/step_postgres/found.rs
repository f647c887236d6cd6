//! What is noticed about a server before anything is done to it.

use std::fs;

use holdstill::{
    proto::{Claim, Severity},
    step::{
        database::{Logs, Session, Strategy, Target},
        postgres::system_identifier_of,
    },
};

use crate::{
    server::{Server, hold, refused, until},
    step_servers::{LIMIT, at, codes, on_tcp, password_file},
};

#[tokio::test]
async fn a_session_is_of_the_server_whose_files_say_so() {
    let server = Server::start(&[]);
    let session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
    let data = server.place.path("data");
    let in_files = system_identifier_of(&data).expect("readable");
    assert_eq!(session.system_identifier(), Some(in_files));
    let other = Server::start(&[]);
    assert_ne!(system_identifier_of(&other.place.path("data")).expect("readable"), in_files);
}

#[tokio::test]
async fn settings_that_decide_what_a_copy_is_worth_are_listed() {
    let server = Server::start(&[]);
    let session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
    let settings = session.describe().settings;
    for (name, value) in [
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"), // the server's, not that of our session
        ("wal_level", "replica"),
        ("archive_mode", "off"),
        ("max_wal_size", "64MB"),
    ] {
        assert_eq!(at(&settings, name), value, "{name}");
    }
    assert!(["on", "off"].contains(&at(&settings, "data_checksums")));
    assert!(settings.len() <= 64);
}

#[tokio::test]
async fn a_role_whose_commits_do_not_wait_for_the_disk_is_noticed() {
    let server = Server::start(&[]);
    let relaxed = "CREATE ROLE hasty; ALTER ROLE hasty SET synchronous_commit = off";
    server.client().await.batch_execute(relaxed).await.expect("made");
    let session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
    assert_eq!(codes(&session.remarks()), ["RELAXED_DURABILITY"]);
    assert!(session.remarks()[0].message.contains("some role or database"));
}

#[tokio::test]
async fn unlogged_tables_of_every_database_are_named_as_lost() {
    let server = Server::start(&[]);
    let application = server.client().await;
    for sql in ["CREATE UNLOGGED TABLE cache (i int)", "CREATE DATABASE other", "CREATE DATABASE closed"] {
        application.batch_execute(sql).await.expect("made");
    }
    let inside = server.client_in("other").await;
    inside.batch_execute("CREATE SCHEMA web; CREATE UNLOGGED TABLE web.sessions (i int)").await.expect("made");
    let session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
    let lost = session.describe().lost_tables;
    assert_eq!(lost, ["postgres.public.cache (unlogged)", "other.web.sessions (unlogged)"]);
    let remarks = session.remarks();
    assert_eq!(codes(&remarks), ["UNLOGGED_TABLES", "UNLOGGED_UNKNOWN"]);
    assert!(remarks[0].message.starts_with("2 unlogged tables"), "{}", remarks[0].message);
    assert!(remarks[1].message.ends_with(": closed"), "{}", remarks[1].message);
}

#[tokio::test]
async fn prepared_transactions_are_counted_and_said() {
    let server = Server::start(&["max_prepared_transactions=4"]);
    let application = server.client().await;
    let sql = "CREATE TABLE t (i int); BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'undecided'";
    application.batch_execute(sql).await.expect("prepared");
    let mut session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
    hold(&mut session, "h1").await;
    let about = session.describe();
    assert_eq!((about.prepared_transactions, about.open_transactions), (1, 0), "it has no session any more");
    let remarks = session.remarks();
    assert_eq!(codes(&remarks), ["PREPARED_TRANSACTIONS"]);
    assert!(remarks[0].message.starts_with("1 prepared transaction waiting"), "{}", remarks[0].message);
    assert!(remarks[0].hint.contains("pg_prepared_xacts"));
    assert_eq!(session.prove_and_release(LIMIT).await.problem, None);
}

#[tokio::test]
async fn a_log_that_is_not_being_archived_is_noticed() {
    let server = Server::start(&["archive_mode=on", "archive_command=false"]);
    server.client().await.batch_execute("CREATE TABLE t (i int); SELECT pg_switch_wal()").await.expect("written");
    let waiting = || {
        let list = fs::read_dir(server.place.path("data/pg_wal/archive_status")).expect("there it is");
        list.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|end| end == "ready"))
    };
    until(async || waiting().is_some()).await;
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(300);
    let ready = fs::File::open(waiting().expect("just seen")).expect("readable");
    ready.set_modified(long_ago).expect("root may");
    let session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
    let remarks = session.remarks();
    assert_eq!(codes(&remarks), ["ARCHIVE_FAILS"]);
    assert_eq!(remarks[0].severity(), Severity::Note, "the copy is no worse for it");
    assert!(remarks[0].message.contains("1 segment "), "{}", remarks[0].message);
}

#[tokio::test]
async fn a_strategy_that_does_not_fit_is_refused_and_freeze_only_promises_nothing() {
    let server = Server::start(&[]);
    let locks = Target { strategy: Strategy::GlobalLock, ..server.target() };
    let error = refused(&locks, LIMIT).await;
    assert!(error.to_string().contains("MySQL") && error.hint.contains("remove `strategy`"), "{error}: {}", error.hint);
    let bare = Target { strategy: Strategy::FreezeOnly, ..server.target() };
    let mut session = Session::connect(&bare, Logs::WhileHeld, LIMIT).await.expect("it connects");
    hold(&mut session, "h1").await;
    let about = session.describe();
    assert_eq!((about.strategy.as_str(), about.claim()), ("freeze-only", Claim::Recoverable));
    assert!(about.start.iter().all(|coordinate| coordinate.key != "marker_lsn"));
    assert_eq!(session.prove_and_release(LIMIT).await.problem, None);
}

#[tokio::test]
async fn a_role_that_does_not_see_others_says_that_it_cannot_count_them() {
    let server = Server::start(&[]);
    server.keeper().await;
    let application = server.client().await;
    application.batch_execute("GRANT pg_read_all_settings TO keeper").await.expect("granted");
    let target = Target {
        user: Some("keeper".to_owned()),
        password_file: Some(password_file(&server.place, "right\n")),
        ..on_tcp(holdstill::step::database::Engine::Postgresql, server.port)
    };
    let session = Session::connect(&target, Logs::WhileHeld, LIMIT).await.expect("it knows the data directory");
    assert_eq!(codes(&session.remarks()), ["TRANSACTIONS_HIDDEN"]);
    assert_eq!(session.remarks()[0].hint, "GRANT pg_monitor TO \"keeper\"");
}
