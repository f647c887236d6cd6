//! One held session per database instance, whatever the engine.
//!
//! The driver calls, in this order: [`Session::connect`] and [`Session::soften`] while preparing (nobody waits),
//! [`Session::hold`] then [`Session::barrier`] while quiescing, [`Session::closed`] right after the last FIFREEZE,
//! **no SQL while frozen**, and after the thaw [`Session::prove_and_release`].

//!
//! What the engines share lives here: addresses, the password file, limits, and the shape of what is reported.

use std::{
    fs,
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::Instant;

use super::{mysql, postgres};
use crate::{proto, sys::sockets};

/// An instance to hold: found on a default socket, or configured.
#[derive(Debug, Clone)]
pub struct Target {
    /// the `orders` of `db:orders`; discovered ones are named after engine and socket, e.g. "postgresql:5432"
    pub name: String,
    pub engine: Engine,
    pub at: Address,
    pub user: Option<String>,
    /// read while connecting; must be owned by root or us and closed to others
    pub password_file: Option<PathBuf>,
    /// configured, so that failing to reach it is an error, not a lower level
    pub configured: bool,
    pub required: bool,
    /// how long to wait, while preparing, for open write transactions to end
    pub drain: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Postgresql,
    /// MariaDB and MySQL speak the same protocol; which one it is shows after connecting
    Mysql,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// a unix socket file
    Socket(PathBuf),
    Tcp {
        host: String,
        port: u16,
    },
}

/// Why a database step failed, with the instance, what was tried, and the cure.
#[derive(Debug, thiserror::Error)]
#[error("{what} database {name}: {why}")]
pub struct Error {
    pub name: String,
    /// "connect to", "checkpoint", "hold" …: completes "failed to …", is followed by "database NAME"
    pub what: &'static str,
    pub why: String,
    /// the setting or grant that fixes it; may be empty
    pub hint: String,
}

impl Target {
    /// An instance found on a socket: named after engine and socket, so that the name is the same next time and no
    /// other socket has it. In /run (where distributions put them) `postgresql:5432` and `mysql:mysqld`, elsewhere with
    /// the directory: `postgresql:5432@/tmp`.
    pub fn discovered(engine: Engine, socket: PathBuf) -> Target {
        Target {
            name: socket_name(engine, &socket),
            engine,
            at: Address::Socket(socket),
            user: None,
            password_file: None,
            configured: false,
            required: false,
            drain: Duration::ZERO,
        }
    }
}

fn socket_name(engine: Engine, socket: &Path) -> String {
    let socket = without_var(socket);
    let file = socket.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let directory = socket.parent().unwrap_or(Path::new(""));
    let (engine, short, home) = match engine {
        Engine::Postgresql => ("postgresql", file.strip_prefix(PG_SOCKET).unwrap_or(&file), "/run/postgresql"),
        Engine::Mysql => ("mysql", file.strip_suffix(".sock").unwrap_or(&file), "/run/mysqld"),
    };
    if directory == Path::new(home) {
        format!("{engine}:{short}")
    } else {
        format!("{engine}:{short}@{}", directory.display())
    }
}

/// /var/run is /run under its old name.
fn without_var(path: &Path) -> PathBuf {
    match path.strip_prefix("/var/run") {
        Ok(rest) => Path::new("/run").join(rest),
        Err(_) => path.to_owned(),
    }
}

/// PostgreSQL's socket files are called this, followed by the port.
const PG_SOCKET: &str = ".s.PGSQL.";

/// Do both lead to the same server? For joining what is configured with what is discovered; looks at the file system
/// for links. (One server listening on two sockets shows only after connecting: by [`Session::server_pid`].)
pub fn same_instance(a: &Target, b: &Target) -> bool {
    if a.engine != b.engine {
        return false;
    }
    match (&a.at, &b.at) {
        (Address::Socket(one), Address::Socket(other)) => {
            let place = |path: &Path| {
                let file = socket_file(a.engine, path).unwrap_or_else(|_| path.to_owned());
                fs::canonicalize(&file).unwrap_or_else(|_| without_var(&file))
            };
            place(one) == place(other)
        }
        (Address::Tcp { .. }, Address::Tcp { .. }) => a.at == b.at,
        (Address::Socket(_), Address::Tcp { .. }) | (Address::Tcp { .. }, Address::Socket(_)) => false,
    }
}

/// The socket file that `path` means: itself, or the one socket of this engine in it if it is a directory.
///
/// # Errors
/// Nothing is there; it is neither; none or several lie in it.
pub(super) fn socket_file(engine: Engine, path: &Path) -> io::Result<PathBuf> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_socket() {
        return Ok(path.to_owned());
    }
    if !kind.is_dir() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a socket"));
    }
    let mut sockets = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let fits = match engine {
            Engine::Postgresql => name.strip_prefix(PG_SOCKET).is_some_and(|port| port.parse::<u16>().is_ok()),
            Engine::Mysql => name.ends_with(".sock"),
        };
        if fits && fs::metadata(entry.path())?.file_type().is_socket() {
            sockets.push(entry.path());
        }
    }
    match &sockets[..] {
        [one] => Ok(one.clone()),
        [] => Err(io::Error::new(io::ErrorKind::NotFound, "no socket of this engine is in the directory")),
        [_, _, ..] => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "several sockets are in the directory: name one of them as `socket`",
        )),
    }
}

/// Longest password file that is read.
const LONGEST_PASSWORD: u64 = 4096;

/// Reads the one line of a password file. May block like any read: call it where that is allowed.
///
/// # Errors
/// (why, cure): not readable, not a file, somebody else's, open to others, not one line.
pub(super) fn read_password(path: &Path) -> Result<String, (String, String)> {
    let refused = |why: String, hint: String| Err((format!("its password_file {} {why}", path.display()), hint));
    // Without O_NONBLOCK a FIFO would keep us.
    let open = fs::OpenOptions::new().read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(path);
    let (file, about) = match open.and_then(|file| file.metadata().map(|about| (file, about))) {
        Ok(both) => both,
        Err(error) => return refused(format!("cannot be read: {error}"), String::new()),
    };
    if !about.is_file() {
        return refused("is not a regular file".to_owned(), String::new());
    }
    if about.uid() != 0 && about.uid() != nix::unistd::geteuid().as_raw() {
        return refused(format!("belongs to uid {}", about.uid()), format!("chown root {}", path.display()));
    }
    if about.mode() & 0o077 != 0 {
        let why = format!("is open to others (mode {:04o})", about.mode() & 0o7777);
        return refused(why, format!("chmod 600 {}", path.display()));
    }
    let mut text = String::new();
    match file.take(LONGEST_PASSWORD).read_to_string(&mut text) {
        Ok(_) => {}
        Err(error) => return refused(format!("cannot be read: {error}"), String::new()),
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.contains(['\n', '\0']) {
        return refused("must hold the password on one line and nothing else".to_owned(), String::new());
    }
    Ok(line.to_owned())
}

/// The end of a call's time. Every await of a session goes through one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    limit: Duration,
}

/// Why an awaited answer did not come.
#[derive(Debug)]
pub(super) enum Failed<E> {
    /// the limit, as it was given to the whole call
    TimedOut(Duration),
    Refused(E),
}

impl Deadline {
    pub(super) fn after(limit: Duration) -> Deadline {
        Deadline { at: Instant::now() + limit, limit }
    }

    /// The earlier of this one and `limit` from now.
    pub(super) fn at_most(self, limit: Duration) -> Deadline {
        let sooner = Deadline::after(limit);
        if sooner.at < self.at { sooner } else { self }
    }

    pub(super) fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    pub(super) async fn run<T, E>(self, answer: impl Future<Output = Result<T, E>>) -> Result<T, Failed<E>> {
        match tokio::time::timeout_at(self.at, answer).await {
            Ok(answer) => answer.map_err(Failed::Refused),
            Err(_) => Err(Failed::TimedOut(self.limit)),
        }
    }
}

/// Looks at files (a socket's owner, a password) on a thread that may block.
pub(super) async fn look<T: Send + 'static>(
    deadline: Deadline,
    what: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failed<io::Error>> {
    deadline
        .run(async { tokio::task::spawn_blocking(what).await.unwrap_or_else(|error| Err(io::Error::other(error))) })
        .await
}

pub(super) fn coordinate(key: &str, value: impl Into<String>) -> proto::Coordinate {
    proto::Coordinate { key: key.to_owned(), value: value.into() }
}

/// Something to tell about `db:name`.
pub(super) fn remark(
    name: &str,
    severity: proto::Severity,
    code: &str,
    message: impl Into<String>,
    hint: impl Into<String>,
) -> proto::Problem {
    proto::Problem {
        severity: severity.into(),
        code: code.to_owned(),
        subject: format!("db:{name}"),
        message: message.into(),
        hint: hint.into(),
    }
}

/// A server reached over TCP at an address that is not ours may be on another machine, where nothing is held.
pub(super) fn elsewhere(name: &str, socket: &OwnedFd) -> Option<proto::Problem> {
    let (own, theirs) = sockets::addresses(socket)?;
    (own != theirs).then(|| {
        remark(
            name,
            proto::Severity::Warning,
            "DATABASE_ELSEWHERE",
            format!("the server answers at {theirs}, which is not this machine's own end of the connection ({own})"),
            "if it runs in a container here, give its unix socket; if it runs elsewhere, hold it there",
        )
    })
}

/// A session that is held from before the freeze to after the thaw. Dropping it cuts the connection, and with it ends
/// every lock, whatever it was doing.
pub struct Session {
    engine: Held,
}

enum Held {
    Postgres(Box<postgres::Session>),
    Mysql(Box<mysql::Session>),
}

/// The same question to whichever engine it is.
macro_rules! ask {
    ($held:expr, $session:ident => $answer:expr) => {
        match $held {
            Held::Postgres($session) => $answer,
            Held::Mysql($session) => $answer,
        }
    };
}

impl Session {
    /// Connects, authenticates, neutralises timeouts, reads identity and durability settings.
    ///
    /// # Errors
    /// Not reachable, not permitted, not this engine, an engine or version we cannot hold; each with its cure.
    pub async fn connect(target: &Target, limit: Duration) -> Result<Session, Error> {
        let deadline = Deadline::after(limit);
        let engine = match target.engine {
            Engine::Postgresql => Held::Postgres(Box::new(postgres::Session::connect(target, deadline).await?)),
            Engine::Mysql => Held::Mysql(Box::new(mysql::Session::connect(target, deadline).await?)),
        };
        Ok(Session { engine })
    }

    /// A duplicate of the connection's socket, for the warden to shut down when we are gone.
    ///
    /// # Errors
    /// dup(2) failed.
    pub fn socket(&self) -> io::Result<OwnedFd> {
        self.own_socket().try_clone()
    }

    fn own_socket(&self) -> &OwnedFd {
        ask!(&self.engine, session => session.socket())
    }

    /// Slow work nobody waits for: CHECKPOINT, waiting for open write transactions (`drain`). A checkpoint that is not
    /// permitted or not finished in time, and transactions that stay open, are remarks, not errors.
    ///
    /// # Errors
    /// The server refused, or did not answer within `limit`.
    pub async fn soften(&mut self, limit: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(limit);
        ask!(&mut self.engine, session => session.soften(deadline).await)
    }

    /// Takes the lock the engine needs, if any. On error everything it took is released again.
    ///
    /// # Errors
    /// The server refused or `limit` passed.
    pub async fn hold(&mut self, hold_id: &str, limit: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(limit);
        ask!(&mut self.engine, session => session.hold(hold_id, deadline).await)
    }

    /// Everything acknowledged before this returns is on its way to disk; records start coordinates.
    ///
    /// # Errors
    /// The server refused or `limit` passed.
    pub async fn barrier(&mut self, hold_id: &str, limit: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(limit);
        ask!(&mut self.engine, session => session.barrier(hold_id, deadline).await)
    }

    /// Has the server closed the connection? Looks at the socket only; sends nothing.
    pub fn closed(&self) -> bool {
        sockets::closed(self.own_socket())
    }

    /// After the thaw: proves on this session that it still holds, reads end coordinates, releases, disconnects.
    /// What could not be proven drops the claim to `recoverable` and says why; it never fails the release.
    pub async fn prove_and_release(self, limit: Duration) -> Proof {
        let deadline = Deadline::after(limit);
        ask!(self.engine, session => session.prove_and_release(deadline).await)
    }

    /// Releases without proof (the hold failed before or while freezing).
    ///
    /// # Errors
    /// The server did not confirm within `limit`; the connection is cut all the same.
    pub async fn release(self, limit: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(limit);
        ask!(self.engine, session => session.release(deadline).await)
    }

    /// What is known so far, in the contract's shape: engine, version, expected claim, start coordinates.
    pub fn describe(&self) -> proto::Database {
        ask!(&self.engine, session => session.describe())
    }

    /// The server's process, if the socket told (SO_PEERCRED): its view resolves the paths below.
    pub fn server_pid(&self) -> Option<i32> {
        sockets::server_pid(self.own_socket())
    }

    /// Every directory that must be in the snapshot: data, WAL or redo, tablespaces …, as the server sees them. A path
    /// may be a symbolic link (`pg_wal` often is): resolve it in the server's view.
    pub fn data_paths(&self) -> Vec<PathBuf> {
        ask!(&self.engine, session => session.data_paths().to_vec())
    }

    /// Things the operator should know (statement logging on a frozen disk, relaxed durability …).
    pub fn remarks(&self) -> Vec<proto::Problem> {
        ask!(&self.engine, session => session.remarks().to_vec())
    }
}

/// How a session's hold ended.
#[derive(Debug, Clone)]
pub struct Proof {
    /// with claim, start and end coordinates
    pub database: proto::Database,
    /// why the claim is lower than expected, if it is
    pub problem: Option<proto::Problem>,
}

/// The proof that failed: the claim drops to `recoverable`, and `why` is said.
pub(super) fn unproven(name: &str, mut database: proto::Database, why: &str) -> Proof {
    database.claim = proto::Claim::Recoverable.into();
    let message = format!("held when the file systems froze, but not proven after the thaw: {why}");
    let hint = "the copy is crash-consistent for this database; take another";
    Proof { database, problem: Some(remark(name, proto::Severity::Warning, "DATABASE_NOT_PROVEN", message, hint)) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    };

    use super::*;

    fn named(engine: Engine, socket: &str) -> String {
        Target::discovered(engine, socket.into()).name
    }

    #[test]
    fn a_discovered_instance_is_named_after_its_socket() {
        assert_eq!(named(Engine::Postgresql, "/run/postgresql/.s.PGSQL.5432"), "postgresql:5432");
        assert_eq!(named(Engine::Postgresql, "/var/run/postgresql/.s.PGSQL.5433"), "postgresql:5433");
        assert_eq!(named(Engine::Postgresql, "/tmp/.s.PGSQL.5432"), "postgresql:5432@/tmp");
        assert_eq!(named(Engine::Mysql, "/run/mysqld/mysqld.sock"), "mysql:mysqld");
        assert_eq!(named(Engine::Mysql, "/var/lib/mysql/mysql.sock"), "mysql:mysql@/var/lib/mysql");
    }

    #[test]
    fn a_socket_is_the_same_instance_by_directory_link_or_name() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join(".s.PGSQL.5432");
        let _listener = UnixListener::bind(&socket).expect("it binds");
        fs::write(directory.path().join(".s.PGSQL.5432.lock"), "1").expect("written");
        let link = directory.path().join("link");
        symlink(&socket, &link).expect("linked");
        let target = |path: &Path| Target::discovered(Engine::Postgresql, path.to_owned());
        assert!(same_instance(&target(&socket), &target(directory.path())));
        assert!(same_instance(&target(&socket), &target(&link)));
        assert!(same_instance(&target(Path::new("/var/run/x/s")), &target(Path::new("/run/x/s"))));
        assert!(!same_instance(&target(&socket), &target(Path::new("/run/x/s"))));
        assert!(!same_instance(&target(&socket), &Target::discovered(Engine::Mysql, socket.clone())));
    }

    #[test]
    fn a_directory_with_several_sockets_is_not_guessed_about() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let none = socket_file(Engine::Postgresql, directory.path()).expect_err("none is there");
        assert_eq!(none.kind(), io::ErrorKind::NotFound);
        let _two = [5432, 5433].map(|port| UnixListener::bind(directory.path().join(format!("{PG_SOCKET}{port}"))));
        assert!(socket_file(Engine::Postgresql, directory.path()).expect_err("two").to_string().contains("several"));
    }

    #[test]
    fn a_password_file_is_one_line_and_nobody_elses() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("password");
        let read = |content: &str, mode: u32| {
            fs::write(&path, content).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode set");
            read_password(&path)
        };
        assert_eq!(read("secret with space \n", 0o600).expect("fine"), "secret with space ");
        assert_eq!(read("secret", 0o400).expect("fine"), "secret");
        let refused = |content: &str, mode: u32| read(content, mode).expect_err("refused");
        assert!(refused("secret\n", 0o640).0.contains("open to others"));
        assert!(refused("secret\n", 0o604).1.contains("chmod 600"));
        assert!(refused("one\ntwo\n", 0o600).0.contains("one line"));
        assert!(refused("", 0o600).0.contains("one line"));
        assert!(read_password(directory.path()).expect_err("a directory").0.contains("not a regular file"));
        assert!(!refused("one\ntwo\n", 0o600).0.contains("two"), "no part of it is ever shown");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sooner_limit_does_not_extend_a_deadline() {
        let deadline = Deadline::after(Duration::from_secs(1));
        assert_eq!(deadline.at_most(Duration::from_secs(9)).left(), Duration::from_secs(1));
        assert_eq!(deadline.at_most(Duration::from_millis(9)).left(), Duration::from_millis(9));
        let late = deadline.run(std::future::pending::<Result<(), ()>>()).await;
        assert!(matches!(late, Err(Failed::TimedOut(limit)) if limit == Duration::from_secs(1)));
    }
}
