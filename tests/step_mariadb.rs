//! Holding real MariaDB servers. What a frozen copy of their disks then contains is tested elsewhere.

mod step_servers;
#[path = "step_servers/stop.rs"]
mod stop;

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    time::Duration,
};

use holdstill::{
    proto::{Claim, Severity},
    step::database::{Busy, Engine, Error, Logs, Session, Strategy, Target},
    sys::clock::monotonic,
};
use mysql_async::{Conn, OptsBuilder, prelude::Queryable};
use step_servers::{LIMIT, Place, Running, at, codes, on_socket, on_tcp, password_file, paths, program};

const MARIADBD: &str = "/usr/sbin/mariadbd";
const PACKAGE: &str = "mariadb-server-core";

struct Server {
    running: Running,
    place: Place,
    port: u16,
}

impl Server {
    /// A new server whose root may log in as the system's root, without a password.
    fn start(settings: &[&str]) -> Server {
        let place = Place::of("nobody");
        fs::create_dir(place.path("data")).expect("created");
        std::os::unix::fs::chown(place.path("data"), Some(place.user.uid.as_raw()), None).expect("root may");
        // What mariadb-install-db does, which itself needs a program of the client's package.
        let scripts = ["mysql_system_tables", "mysql_performance_tables", "mysql_system_tables_data"];
        let mut install = "CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket = 'root';\n".to_owned();
        for script in scripts {
            let script = program(&format!("/usr/share/mysql/{script}.sql"), PACKAGE);
            install.push_str(&fs::read_to_string(script).expect("readable"));
        }
        fs::write(place.path("install.sql"), install).expect("written");
        let output = place
            .command(&program(MARIADBD, PACKAGE))
            .args(["--no-defaults", "--bootstrap", "--innodb-log-file-size=8M", "--enforce-storage-engine="])
            .args(place_args(&place))
            .stdin(fs::File::open(place.path("install.sql")).expect("just written"))
            .output()
            .expect("setpriv is part of util-linux");
        assert!(output.status.success(), "bootstrap failed: {}", String::from_utf8_lossy(&output.stderr));
        Server::start_on(place, settings)
    }

    fn start_on(place: Place, settings: &[&str]) -> Server {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("bound").port();
        let socket = place.path("mysqld.sock");
        let mut args = vec!["--no-defaults".to_owned()];
        args.extend(place_args(&place));
        args.extend([format!("--socket={}", socket.display()), format!("--port={port}")]);
        args.extend(
            ["--bind-address=127.0.0.1", "--innodb-log-file-size=8M", "--innodb-buffer-pool-size=16M"]
                .map(str::to_owned),
        );
        args.extend(settings.iter().map(|setting| format!("--{setting}")));
        let mut running = place.start(&program(MARIADBD, PACKAGE), &args);
        running.wait_until(|| std::os::unix::net::UnixStream::connect(&socket).is_ok());
        Server { running, place, port }
    }

    fn socket(&self) -> PathBuf {
        self.place.path("mysqld.sock")
    }

    fn target(&self) -> Target {
        on_socket(Engine::Mysql, self.socket())
    }

    /// An application's own connection.
    async fn client(&self) -> Conn {
        let socket = self.socket().display().to_string();
        Conn::new(OptsBuilder::default().user(Some("root")).socket(Some(socket))).await.expect("root may log in")
    }
}

fn place_args(place: &Place) -> [String; 2] {
    [format!("--datadir={}", place.path("data").display()), format!("--tmpdir={}", place.path("").display())]
}

async fn run(client: &mut Conn, sql: &str) {
    client.query_drop(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn number(client: &mut Conn, sql: &str) -> u64 {
    client.query_first(sql).await.expect("answered").expect("one row")
}

async fn refused(target: &Target, limit: Duration) -> Error {
    match Session::connect(target, Logs::WhileHeld, limit).await {
        Ok(_) => panic!("it let us in"),
        Err(error) => error,
    }
}

async fn connect(target: &Target) -> Session {
    Session::connect(target, Logs::WhileHeld, LIMIT).await.expect("it lets us in")
}

async fn hold(session: &mut Session, id: &str) {
    session.soften(LIMIT).await.expect("softened");
    session.hold(id, LIMIT).await.expect("nothing is in the way");
    session.barrier(id, LIMIT).await.expect("flushed");
}

/// Does a commit go through within `limit`? It is left running if not.
async fn commits(mut client: Conn, limit: Duration) -> Result<Conn, tokio::task::JoinHandle<Conn>> {
    let mut writer = tokio::spawn(async move {
        run(&mut client, "INSERT INTO app.t VALUES (1)").await;
        client
    });
    match tokio::time::timeout(limit, &mut writer).await {
        Ok(client) => Ok(client.expect("it wrote")),
        Err(_) => Err(writer),
    }
}

async fn with_table(server: &Server) -> Conn {
    let mut client = server.client().await;
    run(&mut client, "CREATE DATABASE app").await;
    run(&mut client, "CREATE TABLE app.t (i int) ENGINE=InnoDB").await;
    client
}

const A_MOMENT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_whole_hold_stops_commits_claims_exact_and_proves_it() {
    let server = Server::start(&["log-bin=binlog", "server-id=7"]);
    let mut application = with_table(&server).await;
    let mut open = server.client().await;
    run(&mut open, "BEGIN").await;
    run(&mut open, "INSERT INTO app.t VALUES (0)").await;

    let mut session = connect(&server.target()).await;
    assert_eq!(session.server_pid(), Some(server.running.pid()));
    assert_eq!(paths(&session), [server.place.path("data")]);
    assert_eq!(codes(&session.remarks()), ["RELAXED_DURABILITY"], "sync_binlog is 0 by default");
    hold(&mut session, "h1").await;
    assert!(!session.closed());
    let before = session.describe();
    assert_eq!((before.engine.as_str(), before.claim()), ("mariadb", Claim::Exact));
    assert_eq!(before.open_transactions, 1);
    assert!(before.version.contains("MariaDB"));
    assert_eq!(at(&before.start, "server_id"), "7");
    assert!(at(&before.start, "gtid_binlog_pos").starts_with("0-7-"));
    for key in ["binlog_file", "binlog_position", "innodb_lsn_flushed", "innodb_lsn_last_checkpoint"] {
        assert!(!at(&before.start, key).is_empty());
    }

    assert_eq!(number(&mut application, "SELECT COUNT(*) FROM app.t").await, 0, "readers do not wait");
    let writer = commits(application, A_MOMENT).await.expect_err("commits wait");
    let proof = session.prove_and_release(LIMIT).await;
    writer.await.expect("and then go through");
    assert_eq!(proof.problem, None);
    assert_eq!(proof.database.claim(), Claim::Exact);
    for key in ["gtid_binlog_pos", "binlog_file", "binlog_position"] {
        assert_eq!(at(&proof.database.start, key), at(&proof.database.end, key));
    }
}

#[tokio::test]
async fn without_a_binary_log_the_stage_alone_is_the_proof_and_that_is_said() {
    let server = Server::start(&[]);
    let application = with_table(&server).await;
    let mut session = connect(&server.target()).await;
    assert_eq!(codes(&session.remarks()), ["NO_BINARY_LOG"]);
    hold(&mut session, "h1").await;
    let writer = commits(application, A_MOMENT).await.expect_err("commits wait");
    let proof = session.prove_and_release(LIMIT).await;
    writer.await.expect("and then go through");
    assert_eq!((proof.database.claim(), proof.problem), (Claim::Exact, None));
}

#[tokio::test]
async fn commits_acknowledged_without_waiting_for_the_disk_survive_a_crash_after_the_barrier() {
    const RELAXED: [&str; 2] = ["innodb-flush-log-at-trx-commit=0", "innodb-flush-log-at-timeout=2700"];
    let mut server = Server::start(&RELAXED);
    let mut application = with_table(&server).await;
    let mut session = connect(&server.target()).await;
    assert_eq!(codes(&session.remarks()), ["NO_BINARY_LOG", "RELAXED_DURABILITY"]);
    session.soften(LIMIT).await.expect("softened");
    let lsn = "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'INNODB_LSN_";
    let (mut rows, mut written) = (0, 0);
    // The server flushes of its own accord, too (a page cleaner, a checkpoint): then there are more commits to be had.
    let acknowledged_only = loop {
        for _ in 0..200 {
            run(&mut application, &format!("INSERT INTO app.t VALUES ({rows})")).await;
            rows += 1;
        }
        written = written.max(number(&mut application, &format!("{lsn}CURRENT'")).await);
        if number(&mut application, &format!("{lsn}FLUSHED'")).await < written || rows == 4000 {
            break number(&mut application, &format!("{lsn}FLUSHED'")).await < written;
        }
    };
    assert!(acknowledged_only, "the test needs acknowledged commits that are not on disk");
    session.hold("h1", LIMIT).await.expect("held");
    session.barrier("h1", LIMIT).await.expect("flushed");
    let flushed: u64 = at(&session.describe().start, "innodb_lsn_flushed").parse().expect("a number");
    assert!(flushed >= written, "everything acknowledged before is flushed");
    let setting = number(&mut application, "SELECT @@GLOBAL.innodb_flush_log_at_trx_commit").await;
    assert_eq!(setting, 0, "the server's setting is what it was");
    let about = session.describe();
    assert_eq!(about.claim(), Claim::Exact);

    server.running.kill();
    let server = Server::start_on(server.place, &RELAXED);
    assert_eq!(number(&mut server.client().await, "SELECT COUNT(*) FROM app.t").await, rows);
}

#[tokio::test]
async fn a_user_who_may_not_flush_a_relaxed_log_gets_no_claim() {
    let server =
        Server::start(&["innodb-flush-log-at-trx-commit=0", "innodb-flush-log-at-timeout=2700", "log-bin=binlog"]);
    let mut application = with_table(&server).await;
    run(&mut application, "CREATE USER keeper@localhost IDENTIFIED BY 'right'").await;
    run(&mut application, "GRANT RELOAD, PROCESS ON *.* TO keeper@localhost").await;
    let password = password_file(&server.place, "right");
    let target = Target { user: Some("keeper".to_owned()), password_file: Some(password), ..server.target() };
    let mut session = connect(&target).await;
    session.soften(LIMIT).await.expect("softened");
    session.hold("h1", LIMIT).await.expect("held");
    for i in 0..3 {
        // What this leaves unflushed is written by the engine itself: rows that are never committed.
        run(&mut application, "BEGIN").await;
        run(&mut application, &format!("INSERT INTO app.t VALUES ({i})")).await;
        run(&mut application, "ROLLBACK").await;
    }
    session.barrier("h1", LIMIT).await.expect("it is no error");
    assert_eq!(session.describe().claim(), Claim::Recoverable);
    let proof = session.prove_and_release(LIMIT).await;
    assert_eq!(proof.database.claim(), Claim::Recoverable);
    let problem = proof.problem.expect("it is said");
    assert_eq!(problem.code, "NOT_FLUSHED");
    assert!(problem.hint.contains("GRANT SUPER"), "{}", problem.hint);
    assert_eq!(at(&proof.database.start, "gtid_binlog_pos"), at(&proof.database.end, "gtid_binlog_pos"));
}

#[tokio::test]
async fn the_lock_dies_with_the_session_however_it_ends() {
    let server = Server::start(&[]);
    let mut application = with_table(&server).await;
    let cut_by_the_warden = |session: Session| {
        holdstill::sys::sockets::cut(&session.socket().expect("duplicated"));
        assert!(session.closed());
        std::mem::forget(session); // the daemon is not there to drop it
    };
    type End = fn(Session);
    for (way, end) in [("dropped", drop as End), ("cut by the warden", cut_by_the_warden as End)] {
        let mut session = connect(&server.target()).await;
        hold(&mut session, "h1").await;
        let writer = commits(application, A_MOMENT).await.expect_err("commits wait");
        let started = monotonic();
        end(session);
        application = writer.await.expect("they go through");
        assert!(monotonic() - started < Duration::from_secs(2), "{way}");
    }
}

#[tokio::test]
async fn a_call_dropped_while_the_server_is_busy_lets_go_too() {
    let server = Server::start(&[]);
    let mut application = with_table(&server).await;
    run(&mut application, "CREATE TABLE app.m (i int) ENGINE=MyISAM").await;
    let mut busy = server.client().await;
    run(&mut busy, "LOCK TABLES app.m WRITE").await; // BLOCK_DDL waits for it
    let mut session = connect(&server.target()).await;
    let hold = tokio::time::timeout(A_MOMENT, session.hold("h1", LIMIT)).await;
    assert!(hold.is_err(), "it waits");
    assert!(session.hold("h1", LIMIT).await.is_err(), "a session out of step is not used again");
    drop(session);
    run(&mut busy, "UNLOCK TABLES").await;
    commits(application, Duration::from_secs(5)).await.expect("nobody waits");
    let mut next = connect(&server.target()).await;
    let started = monotonic();
    while next.hold("h2", LIMIT).await.is_err() {
        assert!(monotonic() - started < LIMIT, "the dropped session still holds its stage");
    }
    next.release(LIMIT).await.expect("released");
}

#[tokio::test]
async fn what_is_in_the_way_makes_an_error_if_that_is_wanted_and_nothing_stays_locked() {
    let server = Server::start(&[]);
    let mut application = with_table(&server).await;
    run(&mut application, "CREATE TABLE app.m (i int) ENGINE=MyISAM").await;
    let mut busy = server.client().await;
    run(&mut busy, "LOCK TABLES app.m WRITE").await;
    let refuse = Target { busy: Busy::Refuse, ..server.target() };
    let mut session = connect(&refuse).await;
    let error =
        session.hold("h1", Duration::from_secs(3)).await.expect_err("BLOCK_DDL waits for non-transactional writes");
    assert!(error.to_string().starts_with("hold database orders: Lock wait timeout"), "{error}");
    assert!(error.hint.contains("SHOW PROCESSLIST"));
    let application = commits(application, Duration::from_secs(5)).await.expect("nobody waits");
    run(&mut busy, "UNLOCK TABLES").await;

    hold(&mut session, "h1").await;
    let mut second = connect(&refuse).await;
    second.hold("h2", Duration::from_secs(3)).await.expect_err("one backup at a time");
    second.release(LIMIT).await.expect("it held nothing");
    let writer = commits(application, A_MOMENT).await.expect_err("the first still holds");
    session.release(LIMIT).await.expect("released");
    writer.await.expect("commits go through");
}

#[tokio::test]
async fn what_is_in_the_way_leaves_the_freeze_and_that_is_said() {
    let server = Server::start(&["log-bin=binlog", "sync-binlog=1"]);
    let mut application = with_table(&server).await;
    let mut first = connect(&server.target()).await;
    hold(&mut first, "h1").await;
    let mut second = connect(&server.target()).await;
    second.hold("h2", LIMIT).await.expect("with less");
    second.barrier("h2", LIMIT).await.expect("flushed");
    let held = second.describe();
    assert_eq!((held.strategy.as_str(), held.claim()), ("freeze-only", Claim::Bounded));
    assert!(held.strategy_reason.contains("Lock wait timeout"), "{}", held.strategy_reason);
    let remarks = second.remarks();
    assert_eq!(codes(&remarks), ["HELD_WITH_LESS"]);
    assert_eq!(
        (second.prove_and_release(LIMIT).await.problem, first.prove_and_release(LIMIT).await.problem),
        (None, None)
    );

    // Tables without transactions, and a statement on one that is not going to end soon.
    run(&mut application, "CREATE TABLE app.m (i int) ENGINE=MyISAM").await;
    let mut busy = server.client().await;
    let id = number(&mut busy, "SELECT CONNECTION_ID()").await;
    let running = tokio::spawn(async move {
        let _ = busy.query_drop("INSERT INTO app.m SELECT SLEEP(30) FROM app.t WHERE i = 'nobody sees this'").await;
        let _ = busy.query_drop("INSERT INTO app.m SELECT SLEEP(30)").await;
    });
    let begun = monotonic();
    let seconds = format!("SELECT IFNULL(MAX(TIME), 0) FROM information_schema.PROCESSLIST WHERE ID = {id}");
    while number(&mut application, &seconds).await < 2 {
        assert!(monotonic() - begun < LIMIT, "it does not run");
        tokio::time::sleep(Duration::from_millis(50)).await; // between two looks
    }
    let mut session = connect(&Target { guard: A_MOMENT, ..server.target() }).await;
    hold(&mut session, "h3").await;
    let held = session.describe();
    assert_eq!((held.strategy.as_str(), held.claim()), ("freeze-only", Claim::Recoverable));
    assert_eq!(held.non_transactional_tables, ["app.m (MyISAM)"]);
    let application = commits(application, Duration::from_secs(5)).await.expect("nobody waits");
    let proof = session.prove_and_release(LIMIT).await;
    let problem = proof.problem.expect("it is said");
    assert_eq!((proof.database.claim(), problem.code.as_str()), (Claim::Recoverable, "TABLES_NOT_LOCKED"));
    drop(application);
    run(&mut server.client().await, &format!("KILL {id}")).await;
    running.await.expect("it ended");
}

#[tokio::test]
async fn a_running_create_select_is_seen_before_the_stage_is_entered() {
    let server = Server::start(&["log-bin=binlog", "sync-binlog=1"]);
    let mut application = with_table(&server).await;
    let mut busy = server.client().await;
    let id = number(&mut busy, "SELECT CONNECTION_ID()").await;
    let running = tokio::spawn(async move {
        let _ = busy.query_drop("CREATE TABLE app.copy AS SELECT SLEEP(30) AS s").await;
    });
    let state = format!("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE ID = {id} AND COMMAND = 'Query'");
    let begun = monotonic();
    while number(&mut application, &state).await == 0 {
        assert!(monotonic() - begun < LIMIT, "it does not run");
        tokio::time::sleep(Duration::from_millis(20)).await; // between two looks
    }
    let target = Target { guard: A_MOMENT, busy: Busy::Refuse, ..server.target() };
    let mut session = connect(&target).await;
    let error = session.soften(LIMIT).await.expect_err("it is in the way");
    assert!(error.to_string().contains("CREATE TABLE app.copy AS SELECT SLEEP(?)"), "{error}");
    run(&mut application, &format!("KILL {id}")).await;
    running.await.expect("it ended");
    hold(&mut session, "h1").await;
    assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Exact);
}

#[tokio::test]
async fn mariadb_is_locked_in_other_ways_if_that_is_asked_for() {
    let server = Server::start(&["log-bin=binlog", "sync-binlog=1"]);
    let mut application = with_table(&server).await;
    for sql in [
        "CREATE TABLE app.m (i int) ENGINE=MyISAM",
        "CREATE TABLE app.plain (i int) ENGINE=Aria TRANSACTIONAL=0",
        "CREATE TABLE app.safe (i int) ENGINE=Aria TRANSACTIONAL=1",
        "CREATE TABLE app.now (i int) ENGINE=MEMORY",
    ] {
        run(&mut application, sql).await;
    }
    for (strategy, name, claim) in [
        (Strategy::Auto, "backup-stages", Claim::Exact),
        (Strategy::GlobalLock, "global-lock", Claim::Exact),
        (Strategy::TableLocks, "table-locks", Claim::Bounded),
        (Strategy::FreezeOnly, "freeze-only", Claim::Recoverable),
    ] {
        let mut session = connect(&Target { strategy, ..server.target() }).await;
        hold(&mut session, "h1").await;
        let held = session.describe();
        assert_eq!((held.strategy.as_str(), held.claim()), (name, claim));
        assert_eq!(held.non_transactional_tables, ["app.m (MyISAM)", "app.plain (Aria)"]);
        assert_eq!(held.lost_tables, ["app.now (MEMORY)"]);
        let writer = commits(application, A_MOMENT).await;
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!(proof.database.claim(), claim, "{name}: {:?}", proof.problem);
        assert_eq!(proof.problem.is_some(), claim == Claim::Recoverable);
        application = match writer {
            Ok(client) => client,
            Err(waiting) => waiting.await.expect("and then goes through"),
        };
    }
}

/// Debian's package galera-4, or wherever it is; nothing of it runs unless a server is told to load it.
fn galera() -> PathBuf {
    std::env::var_os("HOLDSTILL_GALERA").map_or_else(|| "/usr/lib/galera/libgalera_smm.so".into(), PathBuf::from)
}

#[tokio::test]
async fn a_galera_node_is_not_locked_unless_that_is_asked_for() {
    let galera = galera();
    if !galera.exists() {
        let why = format!("needs {}: apt-get install --no-install-recommends galera-4", galera.display());
        let skips = std::env::var_os("HOLDSTILL_SKIPS").unwrap_or_else(|| panic!("{why}"));
        let mut skips = fs::OpenOptions::new().append(true).create(true).open(skips).expect("writable");
        return writeln!(skips, "a_galera_node: {why}").expect("written");
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("bound").port();
    let provider = format!("wsrep-provider={}", galera.display());
    let options = format!("wsrep-provider-options=gmcast.listen_addr=tcp://127.0.0.1:{port}");
    let node = [
        "wsrep-on=ON",
        &provider,
        &options,
        "wsrep-cluster-address=gcomm://",
        "wsrep-node-address=127.0.0.1",
        "binlog-format=ROW",
        "innodb-autoinc-lock-mode=2",
        "innodb-flush-log-at-trx-commit=0",
        "innodb-flush-log-at-timeout=2700",
    ];
    let server = Server::start(&node);
    let mut application = server.client().await;
    let begun = monotonic();
    while application.query_drop("CREATE DATABASE app").await.is_err() {
        assert!(monotonic() - begun < LIMIT, "the node does not get ready");
        tokio::time::sleep(Duration::from_millis(50)).await; // between two tries
    }
    run(&mut application, "CREATE TABLE app.t (i int) ENGINE=InnoDB").await;
    let mut session = connect(&server.target()).await;
    assert!(codes(&session.remarks()).contains(&"CLUSTER_NODE"));
    hold(&mut session, "h1").await;
    let held = session.describe();
    assert_eq!((held.strategy.as_str(), held.claim()), ("freeze-only", Claim::Bounded));
    assert!(held.strategy_reason.contains("Galera"), "{}", held.strategy_reason);
    let position = at(&held.start, "wsrep_position");
    assert!(position.len() >= 38 && !position.ends_with(':'), "{position}");
    let application = commits(application, A_MOMENT).await.expect("the cluster does not wait");
    assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Bounded);

    let mut session = connect(&Target { strategy: Strategy::GlobalLock, ..server.target() }).await;
    hold(&mut session, "h2").await;
    let writer = commits(application, A_MOMENT).await.expect_err("it was asked for");
    let proof = session.prove_and_release(LIMIT).await;
    assert_eq!(proof.database.claim(), Claim::Exact, "{:?}", proof.problem);
    let mut application = writer.await.expect("and then goes through");
    run(&mut application, "SET GLOBAL wsrep_cluster_address = ''").await;
    let error = refused(&server.target(), LIMIT).await;
    assert!(error.to_string().contains("not synced with the Galera cluster"), "{error}");
    assert!(error.hint.contains("Synced"), "{}", error.hint);
}

#[tokio::test]
async fn a_session_that_was_killed_is_not_called_proven() {
    let server = Server::start(&["log-bin=binlog"]);
    let application = with_table(&server).await;
    let mut session = connect(&server.target()).await;
    hold(&mut session, "h1").await;
    let mut dba = server.client().await;
    let ours =
        "SELECT ID FROM information_schema.PROCESSLIST WHERE COMMAND = 'Sleep' AND ID <> CONNECTION_ID() AND ID IN
                (SELECT ID FROM information_schema.PROCESSLIST WHERE DB IS NULL) ORDER BY ID DESC LIMIT 1";
    let id = number(&mut dba, ours).await;
    run(&mut dba, &format!("KILL {id}")).await;
    let started = monotonic();
    while !session.closed() {
        assert!(monotonic() - started < LIMIT, "the kill was not noticed");
        tokio::time::sleep(Duration::from_millis(10)).await; // between two looks
    }
    commits(application, Duration::from_secs(5)).await.expect("the lock died with it");
    let proof = session.prove_and_release(LIMIT).await;
    assert_eq!(proof.database.claim(), Claim::Recoverable);
    assert_eq!(proof.problem.expect("it is said").code, "DATABASE_NOT_PROVEN");
}

#[tokio::test]
async fn a_stopped_server_does_not_keep_the_hold() {
    let server = Server::start(&[]);
    let mut session = connect(&server.target()).await;
    hold(&mut session, "h1").await;
    let pid = stop::stop(server.running.pid());
    let started = monotonic();
    let proof = session.prove_and_release(Duration::from_millis(500)).await;
    let took = monotonic() - started;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).expect("ours");
    assert_eq!(proof.database.claim(), Claim::Recoverable);
    assert!(took < Duration::from_secs(2), "{took:?}");
    let application = with_table(&server).await;
    commits(application, Duration::from_secs(5)).await.expect("the cut connection let go");
}

#[tokio::test]
async fn a_password_from_a_file_lets_a_small_user_in_over_tcp() {
    let server = Server::start(&["log-bin=binlog"]);
    let mut application = with_table(&server).await;
    run(&mut application, "CREATE USER keeper@localhost IDENTIFIED BY 'right'").await;
    let target = Target {
        user: Some("keeper".to_owned()),
        password_file: Some(password_file(&server.place, "right\n")),
        ..on_tcp(Engine::Mysql, server.port)
    };
    let error = refused(&target, LIMIT).await;
    assert!(error.to_string().contains("Access denied"), "{error}");
    assert!(error.hint.contains("GRANT RELOAD"), "{}", error.hint);

    run(&mut application, "GRANT RELOAD ON *.* TO keeper@localhost").await;
    let mut session = connect(&Target { drain: Duration::from_secs(1), ..target.clone() }).await;
    assert_eq!(session.server_pid(), None);
    hold(&mut session, "h1").await;
    let remarks = session.remarks();
    assert_eq!(
        codes(&remarks),
        ["TABLESPACES_UNKNOWN", "RELAXED_DURABILITY", "TABLES_UNKNOWN", "NOT_DRAINED", "GUARD_BLIND"]
    );
    assert!(remarks[0].hint.contains("GRANT PROCESS") && remarks[0].severity() == Severity::Warning);
    assert!(!at(&session.describe().start, "gtid_binlog_pos").is_empty());
    let proof = session.prove_and_release(LIMIT).await;
    assert_eq!((proof.database.claim(), proof.problem), (Claim::Exact, None));

    password_file(&server.place, "wrong\n");
    let error = refused(&target, LIMIT).await;
    assert!(error.to_string().starts_with("connect to database orders: Access denied"), "{error}");
    assert!(error.hint.contains("password_file"), "{}", error.hint);
    let error = refused(&Target { password_file: None, ..target }, LIMIT).await;
    assert!(error.hint.contains("`password_file` of database orders"), "{}", error.hint);
}

#[tokio::test]
async fn draining_waits_for_open_writes_and_for_no_longer_than_it_may() {
    let server = Server::start(&[]);
    let mut application = with_table(&server).await;
    run(&mut application, "BEGIN").await;
    run(&mut application, "INSERT INTO app.t VALUES (1)").await;
    let mut session = connect(&Target { drain: Duration::from_secs(8), ..server.target() }).await;
    let started = monotonic();
    let soften = async {
        session.soften(LIMIT).await.expect("softened");
        monotonic() - started
    };
    let commit = async {
        tokio::time::sleep(Duration::from_millis(700)).await; // how long the transaction stays open
        run(&mut application, "COMMIT").await;
    };
    let (took, ()) = tokio::join!(soften, commit);
    assert!(took >= Duration::from_millis(700) && took < Duration::from_secs(5), "{took:?}");
    assert_eq!(codes(&session.remarks()), ["NO_BINARY_LOG"]);

    run(&mut application, "BEGIN").await;
    run(&mut application, "INSERT INTO app.t VALUES (2)").await;
    let mut session = connect(&Target { drain: A_MOMENT, ..server.target() }).await;
    session.soften(LIMIT).await.expect("an open transaction is no error");
    assert_eq!(codes(&session.remarks()), ["NO_BINARY_LOG", "NOT_DRAINED"]);
    run(&mut application, "COMMIT").await; // it was not ended by us
}

#[tokio::test]
async fn every_place_of_its_data_is_named_and_a_statement_log_is_a_warning() {
    let place = ["redo", "logs", "tables"];
    let server = Server::start(&[]);
    for name in place {
        fs::create_dir(server.place.path(name)).expect("created");
        std::os::unix::fs::chown(server.place.path(name), Some(server.place.user.uid.as_raw()), None)
            .expect("root may");
    }
    let Server { running, place, .. } = server;
    drop(running);
    let redo = format!("innodb-log-group-home-dir={}", place.path("redo").display());
    fs::rename(place.path("data/ib_logfile0"), place.path("redo/ib_logfile0")).expect("moved");
    let log = format!("log-bin={}", place.path("logs/binlog").display());
    let server = Server::start_on(place, &[&redo, &log, "general-log=1"]);
    let mut application = with_table(&server).await;
    let tables = server.place.path("tables").display().to_string();
    run(&mut application, &format!("CREATE TABLE app.far (i int) ENGINE=InnoDB DATA DIRECTORY '{tables}'")).await;
    let session = connect(&server.target()).await;
    let within = |name: &str| server.place.path(name);
    assert_eq!(paths(&session), [within("data"), within("redo"), within("logs"), within("tables/app")]);
    assert_eq!(codes(&session.remarks()), ["RELAXED_DURABILITY"]);
    let logs = session.log_places();
    assert!(logs.iter().all(|log| log.path.starts_with(within("data")) && log.remark.severity() == Severity::Warning));
    assert_eq!(logs.len(), 1, "the general log waits while its disk is frozen");
}

#[tokio::test]
async fn sessions_connecting_at_once_each_find_their_own_socket() {
    let server = Server::start(&[]);
    let target = server.target();
    let mut joined = Vec::new();
    let mut set = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let target = target.clone();
        set.spawn(async move { Session::connect(&target, Logs::WhileHeld, LIMIT).await.expect("it connects") });
    }
    while let Some(session) = set.join_next().await {
        joined.push(session.expect("no panic"));
    }
    holdstill::sys::sockets::cut(&joined[2].socket().expect("duplicated"));
    let closed: Vec<bool> = joined.iter().map(Session::closed).collect();
    assert_eq!(closed, [false, false, true, false, false, false]);
    for (at, mut session) in joined.into_iter().enumerate() {
        assert_eq!(session.soften(LIMIT).await.is_ok(), at != 2);
    }
}

/// A listener in `place`: greets its clients with `greeting`, answers each of their packets with the next of `answers`.
fn pretend(place: &Place, greeting: Vec<u8>, answers: Vec<Vec<u8>>) -> PathBuf {
    let socket = place.path("mysqld.sock");
    let listener = UnixListener::bind(&socket).expect("it binds");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepted");
            let _ = stream.write_all(&greeting);
            for answer in &answers {
                if stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
                    let _ = stream.write_all(answer);
                }
            }
            std::thread::spawn(move || stream.read_to_end(&mut Vec::new())); // and never another word
        }
    });
    socket
}

fn packet(sequence: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_le_bytes();
    [&length[..3], &[sequence], payload].concat()
}

/// What a server of that version says first (protocol 10), to whoever logs in, and when asked for its version.
fn of_version(version: &str) -> (Vec<u8>, Vec<Vec<u8>>) {
    let greeting = [
        &[10][..],
        version.as_bytes(),
        b"\0\x01\0\0\0abcdefgh\0\xff\xf7\x08\x02\0\x0f\x80\x15\0\0\0\0\0\0\0\0\0\0ijklmnopqrst\0mysql_native_password\0",
    ];
    let ok = packet(2, b"\0\0\0\x02\0\0\0");
    let column = b"\x03def\0\0\0\x01v\0\x0c\x2d\0\xff\0\0\0\xfd\0\0\x1f\0\0";
    let text = [&[u8::try_from(version.len()).expect("short")], version.as_bytes()].concat();
    let end = b"\xfe\0\0\x02\0";
    let row = [packet(1, &[1]), packet(2, column), packet(3, end), packet(4, &text), packet(5, end)].concat();
    (packet(0, &greeting.concat()), vec![ok, row])
}

#[tokio::test]
async fn servers_we_cannot_hold_are_refused_by_their_version() {
    let place = Place::of("nobody");
    let cases = [
        ("5.6.51", "it is MySQL 5.6.51; held are versions 5.7 and newer", "hook"),
        ("5.5.68-MariaDB", "it is MariaDB 5.5.68-MariaDB; held are versions 10.1 and newer", "upgrade"),
    ];
    for (version, why, hint) in cases {
        let (greeting, answers) = of_version(version);
        let socket = pretend(&place, greeting, answers);
        let error = refused(&on_socket(Engine::Mysql, socket.clone()), LIMIT).await;
        assert!(error.to_string().starts_with(&format!("connect to database orders: {why}")), "{error}");
        assert!(error.hint.contains(hint), "{}", error.hint);
        fs::remove_file(socket).expect("removed");
    }
}

#[tokio::test]
async fn a_server_that_accepts_and_never_answers_is_an_error_in_time() {
    let place = Place::of("nobody");
    let target = on_socket(Engine::Mysql, pretend(&place, Vec::new(), Vec::new()));
    let started = monotonic();
    let error = refused(&target, A_MOMENT).await;
    assert_eq!(error.to_string(), "connect to database orders: it did not answer within 300ms");
    assert!(monotonic() - started < Duration::from_secs(2));
}

#[tokio::test]
async fn nobody_listening_says_where_and_what_to_check() {
    let error = refused(&on_socket(Engine::Mysql, PathBuf::from("/no/such/mysqld.sock")), LIMIT).await;
    assert!(error.to_string().contains("/no/such/mysqld.sock: No such file"), "{error}");
    assert!(error.hint.contains("`socket`"));
}

#[tokio::test]
async fn the_sockets_path_may_be_longer_than_an_address() {
    let server = Server::start(&[]);
    let deep = server.place.path(&"d".repeat(120));
    fs::create_dir(&deep).expect("created");
    fs::hard_link(server.socket(), deep.join("mysqld.sock")).expect("linked");
    let long: &Path = &deep.join("mysqld.sock");
    connect(&on_socket(Engine::Mysql, long.to_owned())).await.release(LIMIT).await.expect("released");
}
