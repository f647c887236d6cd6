//! Holding real PostgreSQL servers. What a frozen copy of their disks then contains is tested elsewhere.

mod step_servers;

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    time::Duration,
};

use holdstill::{
    proto::{Claim, Severity},
    step::database::{Engine, Logs, Session, Target},
    sys::clock::monotonic,
};
use step_servers::{LIMIT, Place, Running, at, codes, on_socket, on_tcp, password_file, paths, program};
use tokio_postgres::{Client, NoTls};

struct Server {
    running: Running,
    place: Place,
    port: u16,
}

impl Server {
    /// A new cluster that lets in its own system user, whose superuser is `postgres`.
    fn start(settings: &[&str]) -> Server {
        Server::start_in(Place::of("postgres"), "sockets", settings)
    }

    fn start_in(place: Place, sockets: &str, settings: &[&str]) -> Server {
        let initdb = program("/usr/lib/postgresql/*/bin/initdb", "postgresql");
        let data = place.path("data").display().to_string();
        let options = ["-U", "postgres", "-A", "peer", "-N", "--no-locale", "-E", "UTF8"];
        let output = place.command(&initdb).args(["-D", &data]).args(options).output();
        let output = output.expect("setpriv is part of util-linux");
        assert!(output.status.success(), "initdb failed: {}", String::from_utf8_lossy(&output.stderr));
        fs::write(place.path("data/pg_hba.conf"), "local all all peer\nhost all all 127.0.0.1/32 scram-sha-256\n")
            .expect("written");
        Server::start_on(place, sockets, settings)
    }

    /// A server on the data directory that is there.
    fn start_on(place: Place, sockets: &str, settings: &[&str]) -> Server {
        let port = free_port();
        let sockets = place.path(sockets);
        fs::create_dir_all(&sockets).expect("created");
        std::os::unix::fs::chown(&sockets, Some(place.user.uid.as_raw()), None).expect("root may");
        let mut args = vec!["-D".to_owned(), place.path("data").display().to_string()];
        let socket_directory = format!("unix_socket_directories={}", sockets.display());
        let own = [&socket_directory, "listen_addresses=127.0.0.1", "shared_buffers=1MB", "max_wal_size=64MB"];
        for setting in own.into_iter().chain(settings.iter().copied()).chain([format!("port={port}").as_str()]) {
            args.extend(["-c".to_owned(), setting.to_owned()]);
        }
        let mut running = place.start(&program("/usr/lib/postgresql/*/bin/postgres", "postgresql"), &args);
        let pid_file = place.path("data/postmaster.pid");
        running.wait_until(|| {
            let text = fs::read_to_string(&pid_file).unwrap_or_default();
            text.lines().nth(7).is_some_and(|status| matches!(status.trim(), "ready" | "standby"))
        });
        Server { running, place, port }
    }

    fn socket(&self) -> PathBuf {
        self.place.path("sockets").join(format!(".s.PGSQL.{}", self.port))
    }

    fn target(&self) -> Target {
        on_socket(Engine::Postgresql, self.socket())
    }

    /// An application's own connection, as superuser.
    async fn client(&self) -> Client {
        client_at(&self.socket(), &self.place).await
    }

    /// The process that serves the one session of ours.
    async fn our_backend(&self) -> nix::unistd::Pid {
        let client = self.client().await;
        let backends = "SELECT pid FROM pg_stat_activity WHERE application_name = 'holdstill'";
        nix::unistd::Pid::from_raw(client.query_one(backends, &[]).await.expect("there it is").get(0))
    }
}

async fn client_at(socket: &Path, place: &Place) -> Client {
    let (uid, gid) = (place.user.uid.as_raw(), place.user.gid.as_raw());
    let stream = holdstill::sys::credentials::connect_unix_as(socket, uid, gid, LIMIT).expect("it listens");
    stream.set_nonblocking(true).expect("set");
    let stream = tokio::net::UnixStream::from_std(stream).expect("within a runtime");
    let mut config = tokio_postgres::Config::new();
    let connected = config.user("postgres").dbname("postgres").connect_raw(stream, NoTls).await;
    let (client, connection) = connected.expect("peer lets its own user in");
    tokio::spawn(connection);
    client
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    listener.local_addr().expect("bound").port()
}

async fn refused(target: &Target, limit: Duration) -> holdstill::step::database::Error {
    match Session::connect(target, Logs::WhileHeld, limit).await {
        Ok(_) => panic!("it let us in"),
        Err(error) => error,
    }
}

async fn hold(session: &mut Session, id: &str) {
    session.soften(LIMIT).await.expect("a superuser may checkpoint");
    session.hold(id, LIMIT).await.expect("nothing is in the way");
    session.barrier(id, LIMIT).await.expect("the marker commits");
}

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
    assert_eq!(at(&before.start, "prepared_transactions"), "0");

    application.batch_execute("COMMIT").await.expect("nothing is locked");
    let proof = session.prove_and_release(LIMIT).await;
    assert_eq!(proof.problem, None);
    assert_eq!(proof.database.claim(), Claim::Bounded);
    assert_eq!(proof.database.start, before.start);
    assert!(lsn(at(&proof.database.end, "flush_lsn")) >= lsn(at(&before.start, "marker_lsn")));
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'holdstill'";
    until(async || application.query_one(sessions, &[]).await.expect("counted").get::<_, i64>(0) == 0).await;
}

fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("an LSN has two halves");
    u64::from_str_radix(high, 16).expect("hex") << 32 | u64::from_str_radix(low, 16).expect("hex")
}

/// Asks again until it is so.
async fn until(mut so: impl AsyncFnMut() -> bool) {
    let end = monotonic() + LIMIT;
    while !so().await {
        assert!(monotonic() < end, "it never became so");
        tokio::time::sleep(Duration::from_millis(20)).await; // between two looks
    }
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

#[tokio::test]
async fn fsync_off_is_recoverable_and_a_warning() {
    let server = Server::start(&["fsync=off", "logging_collector=on", "log_statement=all"]);
    let session = Session::connect(&server.target(), Logs::WhileHeld, LIMIT).await.expect("it connects");
    assert_eq!(session.describe().claim(), Claim::Recoverable);
    let remarks = session.remarks();
    assert_eq!(codes(&remarks), ["FSYNC_OFF", "LOG_ON_DISK"]);
    assert!(remarks.iter().all(|remark| remark.severity() == Severity::Warning && !remark.hint.is_empty()));
    session.release(LIMIT).await.expect("nothing was held");
}

#[tokio::test]
async fn a_password_from_a_file_lets_a_small_role_in_over_tcp() {
    let server = Server::start(&[]);
    let tablespace = server.place.path("tablespace");
    fs::create_dir(&tablespace).expect("created");
    std::os::unix::fs::chown(&tablespace, Some(server.place.user.uid.as_raw()), None).expect("root may");
    let application = server.client().await;
    application.batch_execute("CREATE ROLE keeper LOGIN PASSWORD 'right'").await.expect("created");
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
    assert_eq!(remarks[0].hint, "GRANT pg_checkpoint TO \"keeper\"");
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

/// A listener in `place`, and what its clients are told.
fn pretend(place: &Place, answer: &'static [u8]) -> PathBuf {
    let socket = place.path(".s.PGSQL.5432");
    let listener = UnixListener::bind(&socket).expect("it binds");
    std::os::unix::fs::chown(&socket, Some(place.user.uid.as_raw()), None).expect("root may");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepted");
            stream.write_all(answer).expect("written");
            std::thread::spawn(move || stream.read_to_end(&mut Vec::new())); // and never another word
        }
    });
    socket
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
