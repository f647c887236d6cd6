//! What goes wrong with a server, and what is said then.

use std::{fs, path::PathBuf, time::Duration};

use holdstill::{
    proto::Claim,
    step::database::{Engine, Logs, Session, Target},
    sys::clock::monotonic,
};

use crate::{
    server::{Server, free_port, hold, pretend, refused, until},
    step_servers::{LIMIT, Place, codes, on_socket, on_tcp, password_file, paths},
};

#[tokio::test]
async fn a_server_that_crashed_while_held_is_not_called_proven() {
    let server = Server::start(&["restart_after_crash=on"]);
    let mut session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
    hold(&mut session, "h1").await;
    let backend = server.our_backend().await;
    nix::sys::signal::kill(backend, nix::sys::signal::Signal::SIGKILL).expect("ours");
    until(async || session.closed()).await;
    let proof = session.prove_and_release(LIMIT).await;
    assert_eq!(proof.database.claim(), Claim::Recoverable);
    let problem = proof.problem.expect("it is said");
    assert_eq!(problem.code, "DATABASE_NOT_PROVEN");
    assert_eq!(problem.subject, "db:orders");
}

#[tokio::test]
async fn a_password_from_a_file_lets_a_small_role_in_over_tcp() {
    let server = Server::start(&[]);
    let tablespace = server.place.path("tablespace");
    fs::create_dir(&tablespace).expect("created");
    std::os::unix::fs::chown(&tablespace, Some(server.place.user.uid.as_raw()), None).expect("root may");
    let application = server.client().await;
    server.keeper().await;
    application
        .batch_execute(&format!("CREATE TABLESPACE far LOCATION '{}'", tablespace.display()))
        .await
        .expect("created");
    let target = Target {
        user: Some("keeper".to_owned()),
        password_file: Some(password_file(&server.place, "right\n")),
        ..on_tcp(Engine::Postgresql, server.port)
    };
    let error = refused(&target, LIMIT).await;
    assert_eq!(error.hint, "GRANT pg_monitor TO \"keeper\"", "{error}");

    application.batch_execute("GRANT pg_monitor TO keeper").await.expect("granted");
    let mut session = Session::connect(&target, Logs::WhileHeld, LIMIT).await.expect("scram works");
    assert_eq!(session.server_pid(), None);
    assert!(paths(&session).contains(&tablespace));
    session.soften(LIMIT).await.expect("not being permitted is no error");
    let remarks = session.remarks();
    assert_eq!(codes(&remarks), ["CHECKPOINT_NOT_PERMITTED"]);
    let cure = match server.major().await {
        15.. => "GRANT pg_checkpoint TO \"keeper\"",
        ..15 => "before version 15 only a superuser may: set `user` to one",
    };
    assert_eq!(remarks[0].hint, cure);
    session.hold("h1", LIMIT).await.expect("held");
    session.barrier("h1", LIMIT).await.expect("the marker needs no grant");
    assert_eq!(session.prove_and_release(LIMIT).await.problem, None);

    password_file(&server.place, "wrong\n");
    let error = refused(&target, LIMIT).await;
    assert!(error.to_string().starts_with("connect to database orders: password authentication failed"), "{error}");
    assert!(error.hint.contains("password_file"), "{}", error.hint);
    let error = refused(&Target { password_file: None, ..target }, LIMIT).await;
    assert!(error.hint.contains("set `password_file` of database orders"), "{error}: {}", error.hint);
}

#[tokio::test]
async fn cutting_a_duplicate_of_its_socket_ends_the_session() {
    let server = Server::start(&[]);
    let mut session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
    hold(&mut session, "h1").await;
    holdstill::sys::sockets::cut(&session.socket().expect("duplicated"));
    assert!(session.closed());
    let started = monotonic();
    assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Recoverable);
    assert!(monotonic() - started < Duration::from_secs(2));
}

#[tokio::test]
async fn a_server_that_accepts_and_never_answers_is_an_error_in_time() {
    let place = Place::of("postgres");
    let target = on_socket(Engine::Postgresql, pretend(&place, b""));
    let started = monotonic();
    let error = refused(&target, Duration::from_millis(300)).await;
    assert_eq!(error.to_string(), "connect to database orders: it did not answer within 300ms");
    assert!(monotonic() - started < Duration::from_secs(2));
}

#[tokio::test]
async fn an_old_server_is_refused_by_its_version() {
    let place = Place::of("postgres");
    // AuthenticationOk, ParameterStatus server_version, BackendKeyData, ReadyForQuery.
    const ELEVEN: &[u8] =
        b"R\0\0\0\x08\0\0\0\0S\0\0\0\x19server_version\x0011.22\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I";
    let error = refused(&on_socket(Engine::Postgresql, pretend(&place, ELEVEN)), LIMIT).await;
    assert_eq!(error.to_string(), "connect to database orders: it is PostgreSQL 11.22; held are versions 12 and newer");
    assert!(error.hint.contains("upgrade"));
}

#[tokio::test]
async fn a_server_that_stops_answering_does_not_keep_the_hold() {
    let server = Server::start(&[]);
    let mut session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
    hold(&mut session, "h1").await;
    let backend = server.our_backend().await;
    nix::sys::signal::kill(backend, nix::sys::signal::Signal::SIGSTOP).expect("ours");
    let started = monotonic();
    let proof = session.prove_and_release(Duration::from_millis(500)).await;
    let took = monotonic() - started;
    nix::sys::signal::kill(backend, nix::sys::signal::Signal::SIGCONT).expect("ours");
    assert_eq!(proof.database.claim(), Claim::Recoverable);
    assert!(proof.problem.expect("it is said").message.contains("did not answer within 500ms"));
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn nobody_listening_says_where_and_what_to_check() {
    let error = refused(&on_socket(Engine::Postgresql, PathBuf::from("/no/such/.s.PGSQL.5432")), LIMIT).await;
    assert!(error.to_string().contains("/no/such/.s.PGSQL.5432: No such file"), "{error}");
    assert!(error.hint.contains("`socket`"));
    let error = refused(&on_tcp(Engine::Postgresql, free_port()), LIMIT).await;
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn limits_set_for_our_role_or_database_do_not_end_the_session() {
    let server = Server::start(&[]);
    let application = server.client().await;
    let mut against = vec![
        "ALTER ROLE postgres SET statement_timeout = '1ms'",
        "ALTER DATABASE postgres SET statement_timeout = '1ms'",
        "ALTER ROLE postgres SET idle_in_transaction_session_timeout = '50ms'",
        "ALTER DATABASE postgres SET default_transaction_read_only = on",
        "ALTER ROLE postgres SET search_path = hostile",
        "ALTER ROLE postgres SET synchronous_commit = off",
    ];
    let major = server.major().await;
    if major >= 14 {
        against.push("ALTER ROLE postgres SET idle_session_timeout = '50ms'");
    }
    if major >= 17 {
        against.push("ALTER DATABASE postgres SET transaction_timeout = '50ms'");
    }
    for sql in against {
        application.batch_execute(sql).await.expect("set");
    }
    for logs in [Logs::WhileHeld, Logs::AfterThaw] {
        let mut session = Session::connect(&server.target(), logs, LIMIT).await.expect("it connects");
        session.name("h1");
        hold(&mut session, "h1").await;
        tokio::time::sleep(Duration::from_millis(300)).await; // how long it is held: several times any of the limits
        assert!(!session.closed());
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!(proof.problem, None);
        assert_eq!(proof.database.claim(), Claim::Bounded);
    }
}

#[tokio::test]
async fn a_full_server_names_what_would_let_us_in() {
    let server = Server::start(&["max_connections=6", "superuser_reserved_connections=2"]);
    server.keeper().await;
    let target = Target {
        user: Some("keeper".to_owned()),
        password_file: Some(password_file(&server.place, "right\n")),
        ..on_tcp(Engine::Postgresql, server.port)
    };
    let mut taken = Vec::new();
    let full = loop {
        match server.client_as("keeper", "right").await {
            Ok(client) => taken.push(client),
            Err(error) => break error,
        }
    };
    assert_eq!(full.code(), Some(&tokio_postgres::error::SqlState::TOO_MANY_CONNECTIONS));
    let error = refused(&target, LIMIT).await;
    assert!(error.to_string().contains("(53300)"), "{error}");
    for word in ["max_connections", "superuser_reserved_connections", "pg_use_reserved_connections TO \"keeper\""] {
        assert!(error.hint.contains(word), "{}", error.hint);
    }
    let mut session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("a slot is kept for it");
    hold(&mut session, "h1").await;
    assert_eq!(session.prove_and_release(LIMIT).await.problem, None);
}

#[tokio::test]
async fn a_server_restarted_between_barrier_and_proof_is_not_called_proven() {
    let server = Server::start(&[]);
    let mut session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
    hold(&mut session, "h1").await;
    let Server { mut running, place, .. } = server;
    let pid = nix::unistd::Pid::from_raw(running.pid());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("our own child");
    until(async || session.closed()).await;
    running.kill();
    let _ = fs::remove_file(place.path("data/postmaster.pid"));
    let _restarted = Server::start_on(place, "sockets", &[]);
    let proof = session.prove_and_release(LIMIT).await;
    assert_eq!(proof.database.claim(), Claim::Recoverable);
    assert_eq!(proof.problem.expect("it is said").code, "DATABASE_NOT_PROVEN");
}

#[tokio::test]
async fn a_backup_that_stops_answering_is_given_up_in_time_and_has_no_label() {
    let server = Server::start(&[]);
    let mut session = Session::connect(&server.target(), Logs::AfterThaw, LIMIT).await.expect("it connects");
    session.name("h1");
    hold(&mut session, "h1").await;
    let backend = server.our_backend().await;
    nix::sys::signal::kill(backend, nix::sys::signal::Signal::SIGSTOP).expect("ours");
    let started = monotonic();
    let proof = session.prove_and_release(Duration::from_millis(700)).await;
    let took = monotonic() - started;
    nix::sys::signal::kill(backend, nix::sys::signal::Signal::SIGCONT).expect("ours");
    assert_eq!((proof.database.claim(), proof.database.backup_label.as_str()), (Claim::Uncovered, ""));
    assert!(took < Duration::from_secs(3), "{took:?}");
}
