//! Which instance is meant: what it is, where it answers, how it is to be held.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Door, Secret};

/// An instance to hold: found on a default socket, or configured.
#[derive(Debug, Clone)]
pub struct Target {
    /// the `orders` of `db:orders`; discovered ones are named after engine and socket, e.g. "postgresql:5432"
    pub name: String,
    pub engine: Engine,
    pub at: Address,
    /// whether `at` was told or is only where this engine usually is
    pub place: Given,
    /// whose root directory a socket's path begins at; `None`: ours
    pub seen_by: Option<i32>,
    pub user: Option<String>,
    /// read while connecting; must be owned by root or us and closed to others
    pub password_file: Option<PathBuf>,
    /// what to log in with; filled in from `password_file` and the like by [`super::Session::connect`]
    pub password: Option<Secret>,
    /// configured, so that failing to reach it is an error, not a lower level
    pub configured: bool,
    pub required: bool,
    /// how long to wait, while preparing, for open write transactions to end
    pub drain: Duration,
    pub strategy: Strategy,
    /// how long to wait, while preparing, for what a lock would get stuck behind
    pub guard: Duration,
    pub busy: Busy,
    /// long SELECTs in the way are ended
    pub kill_queries: bool,
    /// an option file with user, password, socket and port (MySQL and MariaDB)
    pub defaults_file: Option<PathBuf>,
    /// an entry of `pg_service.conf` (PostgreSQL)
    pub service: Option<String>,
}

/// What the configuration wants of an engine that could be held in several ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// what holds least for the best claim
    #[default]
    Auto,
    FreezeOnly,
    TableLocks,
    GlobalLock,
}

/// What to do when what is in the way of a lock does not go away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Busy {
    /// hold with less, and claim less
    #[default]
    Degrade,
    Refuse,
}

/// As the configuration's default.
const GUARD: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Postgresql,
    /// MariaDB and MySQL speak the same protocol; which one it is shows after connecting
    Mysql,
}

/// Who says where an instance answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// the configuration, or the kernel
    Told,
    /// nobody: an option file or a service may, else it is the engine's default
    Guessed,
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

impl Target {
    /// An instance found on a socket: named after engine and socket, so that the name is the same next time and no
    /// other socket has it. In /run (where distributions put them) `postgresql:5432` and `mysql:mysqld`, elsewhere with
    /// the directory: `postgresql:5432@/tmp`.
    pub fn discovered(engine: Engine, socket: PathBuf) -> Target {
        Target::found(socket_name(engine, &socket), engine, Address::Socket(socket))
    }

    /// An instance found on a TCP port of this machine: `postgresql:5433@tcp`.
    pub fn discovered_over_tcp(engine: Engine, host: String, port: u16) -> Target {
        let name = match engine {
            Engine::Postgresql => "postgresql",
            Engine::Mysql => "mysql",
        };
        Target::found(format!("{name}:{port}@tcp"), engine, Address::Tcp { host, port })
    }

    fn found(name: String, engine: Engine, at: Address) -> Target {
        Target {
            name: as_a_name(&name),
            engine,
            at,
            place: Given::Told,
            seen_by: None,
            user: None,
            password_file: None,
            password: None,
            configured: false,
            required: false,
            drain: Duration::ZERO,
            strategy: Strategy::Auto,
            guard: GUARD,
            busy: Busy::Degrade,
            kill_queries: false,
            defaults_file: None,
            service: None,
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

/// What a name may be made of and how long it may be: as in `[[database]]`, so that settings can be given for what is found.
pub const NAME_LIMIT: usize = 128;

pub fn may_be_in_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-:@/".contains(c)
}

/// Paths may hold anything; what a name may not hold becomes `_`, and its middle is left out if it is too long.
fn as_a_name(text: &str) -> String {
    let plain: String = text.chars().map(|c| if may_be_in_a_name(c) { c } else { '_' }).collect();
    if plain.len() <= NAME_LIMIT {
        return plain;
    }
    let half = NAME_LIMIT / 2 - 2;
    format!("{}...{}", &plain[..half], &plain[plain.len() - half..])
}

/// /var/run is /run under its old name.
pub(super) fn without_var(path: &Path) -> PathBuf {
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
    let file = |target: &Target| Door::find(target).and_then(|door| door.id());
    if let (Ok(one), Ok(other)) = (file(a), file(b)) {
        return one == other;
    }
    match (&a.at, &b.at) {
        // as far as names tell, in one view
        (Address::Socket(one), Address::Socket(other)) => {
            let place = |path: &Path| {
                let file = socket_file(a.engine, path).unwrap_or_else(|_| path.to_owned());
                fs::canonicalize(&file).unwrap_or_else(|_| without_var(&file))
            };
            a.seen_by == b.seen_by && place(one) == place(other)
        }
        (Address::Tcp { .. }, Address::Tcp { .. }) => a.at == b.at,
        (Address::Socket(_), Address::Tcp { .. }) | (Address::Tcp { .. }, Address::Socket(_)) => false,
    }
}

/// Whether there is a socket where the target says. Looks at the file system.
pub fn is_there(target: &Target) -> bool {
    Door::find(target).is_ok()
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

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

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
    fn every_discovered_name_can_be_configured() {
        let odd = named(Engine::Mysql, "/srv/zweite Instanz/m\u{fc}.sock");
        assert_eq!(odd, "mysql:m_@/srv/zweite_Instanz");
        let long = named(Engine::Mysql, &format!("/{}/x.sock", "d".repeat(300)));
        assert!(long.len() <= NAME_LIMIT && long.chars().all(may_be_in_a_name), "{long}");
        assert_eq!(Target::discovered_over_tcp(Engine::Mysql, "127.0.0.1".into(), 3307).name, "mysql:3307@tcp");
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
}
