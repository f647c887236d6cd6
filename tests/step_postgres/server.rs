//! A PostgreSQL server of a test's own: the newest installed, or the one in
//! `HOLDSTILL_TEST_ROOT` (another distribution, unpacked), so that the same tests run against every version there is.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use holdstill::{
    proto::Database,
    step::database::{Engine, Logs, Session, Target},
    sys::clock::monotonic,
};
use tokio_postgres::{Client, NoTls};

use crate::step_servers::{self, LIMIT, Place, on_socket, program as newest};

/// Copies a file or directory of a stopped or live server, owners and all.
pub fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(done.expect("coreutils").success(), "{} could not be copied", from.display());
}

fn other_root() -> Option<String> {
    std::env::var("HOLDSTILL_TEST_ROOT").ok()
}

fn installed(program: &str) -> PathBuf {
    newest(&format!("/usr/lib/postgresql/*/bin/{program}"), "postgresql")
}

/// A program of the server in another root, run as its user.
fn inside(root: &str, place: &Place, program: &str) -> Command {
    let program = newest(&format!("{root}/usr/lib/postgresql/*/bin/{program}"), "postgresql, unpacked there");
    let inside = Path::new("/").join(program.strip_prefix(root).expect("it lies below"));
    let mut command = Command::new("unshare");
    command.args(["--mount", "--", "sh", "-ec", INTO_ROOT, root]);
    command.arg(format!("{}:{}", place.user.uid, place.user.gid)).arg(inside).stdin(Stdio::null());
    command
}

/// Paths on tmpfs and the names of users are the same inside.
const INTO_ROOT: &str = r#"
    mount --make-rprivate /; mount --rbind /dev "$0/dev"; mount -t proc proc "$0/proc"
    touch "$0/etc/passwd"; mount --bind /etc/passwd "$0/etc/passwd"
    user=$1; shift
    exec chroot --userspec="$user" --groups= "$0" "$@""#;

/// A cluster of its own, with its server.
pub struct Server {
    pub running: Running,
    pub place: Place,
    pub port: u16,
}

/// A server, ended so that it leaves no shared memory behind: killed ones do, and there is an end to it.
pub struct Running {
    server: step_servers::Running,
    alive: bool,
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.server.pid()
    }

    pub fn kill(&mut self) {
        self.alive = false;
        self.server.kill();
    }

    fn has_ended(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with('Z') || rest.is_empty())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.alive {
            return;
        }
        // PostgreSQL's immediate shutdown: no checkpoint, as if it had crashed
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), nix::sys::signal::Signal::SIGQUIT);
        let until = monotonic() + Duration::from_secs(8);
        while !self.has_ended() && monotonic() < until {
            std::thread::sleep(Duration::from_millis(5)); // between two looks
        }
    }
}

/// Databases called `closed` let nobody in.
const HBA: &str = "local closed all reject\nlocal all,replication all peer\nhost all all 127.0.0.1/32 scram-sha-256\n";

impl Server {
    /// A new cluster that lets in its own system user, whose superuser is `postgres`.
    pub fn start(settings: &[&str]) -> Server {
        Server::start_in(Place::of("postgres"), "sockets", settings)
    }

    pub fn start_in(place: Place, sockets: &str, settings: &[&str]) -> Server {
        let data = place.path("data").display().to_string();
        let options = ["-U", "postgres", "-A", "peer", "-N", "--no-locale", "-E", "UTF8"];
        let mut initdb = match other_root() {
            None => place.command(&installed("initdb")),
            Some(root) => inside(&root, &place, "initdb"),
        };
        let output = initdb.args(["-D", &data]).args(options).output();
        let output = output.expect("setpriv is part of util-linux");
        assert!(output.status.success(), "initdb failed: {}", String::from_utf8_lossy(&output.stderr));
        fs::write(place.path("data/pg_hba.conf"), HBA).expect("written");
        Server::start_on(place, sockets, settings)
    }

    /// A server on the data directory that is there.
    pub fn start_on(place: Place, sockets: &str, settings: &[&str]) -> Server {
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
        let mut started = match other_root() {
            None => place.start(&installed("postgres"), &args),
            Some(root) => place.run(inside(&root, &place, "postgres").args(&args)),
        };
        let pid_file = place.path("data/postmaster.pid");
        started.wait_until(|| {
            let text = fs::read_to_string(&pid_file).unwrap_or_default();
            text.lines().nth(7).is_some_and(|status| matches!(status.trim(), "ready" | "standby"))
        });
        Server { running: Running { server: started, alive: true }, place, port }
    }

    /// Stops it, copies its log as the last thing, writes what its backup gave out, byte for byte, and starts the copy of
    /// the data in its place.
    pub fn restored(self, copied: &Path, database: &Database, settings: &[&str]) -> Server {
        drop(self.running);
        let place = self.place;
        fs::remove_dir_all(copied.join("pg_wal")).expect("it was not to be copied");
        copy(&place.path("data/pg_wal"), &copied.join("pg_wal"));
        let files = [("backup_label", &database.backup_label), ("tablespace_map", &database.tablespace_map)];
        for (name, content) in files.into_iter().filter(|(_, content)| !content.is_empty()) {
            let path = copied.join(name);
            fs::write(&path, content).expect("written");
            std::os::unix::fs::chown(&path, Some(place.user.uid.as_raw()), None).expect("root may");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode set");
        }
        fs::remove_dir_all(place.path("data")).expect("it is gone");
        fs::rename(copied, place.path("data")).expect("the copy takes its place");
        let _ = fs::remove_file(place.path("data/postmaster.pid"));
        Server::start_on(place, "sockets", settings)
    }

    pub fn socket(&self) -> PathBuf {
        self.place.path("sockets").join(format!(".s.PGSQL.{}", self.port))
    }

    pub fn target(&self) -> Target {
        on_socket(Engine::Postgresql, self.socket())
    }

    /// An application's own connection, as superuser.
    pub async fn client(&self) -> Client {
        client_at(&self.socket(), &self.place, "postgres").await
    }

    pub async fn client_in(&self, database: &str) -> Client {
        client_at(&self.socket(), &self.place, database).await
    }

    /// A connection of another role's, over TCP.
    pub async fn client_as(&self, role: &str, password: &str) -> Result<Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user(role).password(password).dbname("postgres");
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub async fn major(&self) -> u32 {
        let version = self.client().await.query_one("SHOW server_version_num", &[]).await.expect("told");
        version.get::<_, String>(0).parse::<u32>().expect("a number") / 10_000
    }

    /// A role called keeper, whose password is `right`.
    pub async fn keeper(&self) {
        let role = "SET password_encryption = 'scram-sha-256'; CREATE ROLE keeper LOGIN PASSWORD 'right'";
        self.client().await.batch_execute(role).await.expect("created");
    }

    /// The process that serves the one session of ours.
    pub async fn our_backend(&self) -> nix::unistd::Pid {
        let client = self.client().await;
        let backends = "SELECT pid FROM pg_stat_activity WHERE application_name = 'holdstill'";
        nix::unistd::Pid::from_raw(client.query_one(backends, &[]).await.expect("there it is").get(0))
    }
}

pub async fn client_at(socket: &Path, place: &Place, database: &str) -> Client {
    let (uid, gid) = (place.user.uid.as_raw(), place.user.gid.as_raw());
    let stream = holdstill::sys::credentials::connect_unix_as(socket, uid, gid, LIMIT).expect("it listens");
    stream.set_nonblocking(true).expect("set");
    let stream = tokio::net::UnixStream::from_std(stream).expect("within a runtime");
    let mut config = tokio_postgres::Config::new();
    let connected = config.user("postgres").dbname(database).connect_raw(stream, NoTls).await;
    let (client, connection) = connected.expect("peer lets its own user in");
    tokio::spawn(connection);
    client
}

pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    listener.local_addr().expect("bound").port()
}

pub async fn refused(target: &Target, limit: Duration) -> holdstill::step::database::Error {
    match Session::connect(target, Logs::WhileHeld, limit).await {
        Ok(_) => panic!("it let us in"),
        Err(error) => error,
    }
}

pub async fn hold(session: &mut Session, id: &str) {
    session.soften(LIMIT).await.expect("a superuser may checkpoint");
    session.hold(id, LIMIT).await.expect("nothing is in the way");
    session.barrier(id, LIMIT).await.expect("the marker commits");
}

pub fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("an LSN has two halves");
    u64::from_str_radix(high, 16).expect("hex") << 32 | u64::from_str_radix(low, 16).expect("hex")
}

/// Asks again until it is so.
pub async fn until(mut so: impl AsyncFnMut() -> bool) {
    let end = monotonic() + LIMIT;
    while !so().await {
        assert!(monotonic() < end, "it never became so");
        tokio::time::sleep(Duration::from_millis(20)).await; // between two looks
    }
}

/// A listener in `place`, and what its clients are told.
pub fn pretend(place: &Place, answer: &'static [u8]) -> PathBuf {
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
