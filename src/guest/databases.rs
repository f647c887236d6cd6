//! Databases running here: the sockets they listen on and the processes they are. Called while preparing; what is found and
//! cannot be held lowers the level, so engines this version cannot hold are found too.
//!
//! Only /proc is read. A socket counts if the kernel lists it as listening, so a stale file is nothing; no data directory
//! or log is ever touched. (One exception: the socket of a server in another mount namespace is looked for in this one.) Commands are told by name alone (`comm`): a renamed binary is not found.
//! `/proc/PID/cmdline` of a Java process may block while that process faults in memory: give the caller's thread a limit.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt, fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use super::{
    superblocks,
    tasks::{Process, Processes},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Engine {
    Postgresql,
    /// `mysqld`: MySQL, Percona, or a MariaDB before 10.5; its greeting tells
    Mysql,
    Mariadb,
    Redis,
    Valkey,
    Mongodb,
    Etcd,
    Clickhouse,
    Cassandra,
    Elasticsearch,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgresql => "postgresql",
            Self::Mysql => "mysql",
            Self::Mariadb => "mariadb",
            Self::Redis => "redis",
            Self::Valkey => "valkey",
            Self::Mongodb => "mongodb",
            Self::Etcd => "etcd",
            Self::Clickhouse => "clickhouse",
            Self::Cassandra => "cassandra",
            Self::Elasticsearch => "elasticsearch",
        })
    }
}

/// A Unix socket a PostgreSQL or MySQL-like server listens on, in this mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    pub engine: Engine,
    pub path: PathBuf,
    /// the server, if a process of its name holds the socket
    pub pid: Option<i32>,
}

/// A running server of an engine people keep data in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningEngine {
    pub engine: Engine,
    pub pid: i32,
    /// its working directory, where the engine makes that its data directory; as seen in its own mount namespace
    pub datadir: Option<PathBuf>,
    /// client sockets it listens on, as it bound them
    pub sockets: Vec<PathBuf>,
    /// it runs in another mount namespace, as containers and sandboxed services do: its paths need not be ours
    pub elsewhere: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    pub sockets: Vec<Socket>,
    pub engines: Vec<RunningEngine>,
}

/// Reads `proc` below `root`. Processes that end meanwhile, or may not be looked at, are left out.
pub fn read(root: &Path, processes: &Processes) -> Found {
    let own_namespace = fs::read_link(root.join("proc/self/ns/mnt")).ok();
    let mut networks: HashMap<PathBuf, Vec<Listener>> = HashMap::new();
    let mut listeners = Vec::new();
    let mut engines = Vec::new();
    for (engine, pid) in servers(root, processes) {
        let dir = root.join("proc").join(pid.to_string());
        let network = fs::read_link(dir.join("ns/net")).unwrap_or_default();
        let listening = networks.entry(network).or_insert_with(|| read_listening(&dir));
        let inodes = socket_inodes(&dir);
        let held = listening.iter().filter(|l| inodes.contains(&l.inode) && is_client_socket(engine, &l.path));
        let datadir = keeps_data_in_cwd(engine).then(|| fs::read_link(dir.join("cwd")).ok()).flatten();
        // A socket bound by a relative name is where the server was, and is.
        let base = datadir.clone().unwrap_or_default();
        let sockets: Vec<PathBuf> = held.map(|listener| base.join(&listener.path)).collect();
        let namespace = fs::read_link(dir.join("ns/mnt")).ok();
        let elsewhere = own_namespace.is_some() && namespace.is_some() && namespace != own_namespace;
        let reachable = |path: &&PathBuf| !elsewhere || is_socket(&superblocks::under(root, path));
        listeners.extend(sockets.iter().filter(reachable).map(|path| (engine, path.clone(), Some(pid))));
        engines.push(RunningEngine { engine, pid, datadir, sockets, elsewhere });
    }
    // Those of servers that hide their descriptors from us, or go by another name.
    let claimed: HashSet<PathBuf> = engines.iter().flat_map(|engine| engine.sockets.clone()).collect();
    let others = read_listening(&root.join("proc/self")).into_iter().filter(|l| !claimed.contains(&l.path));
    listeners.extend(others.filter_map(|l| Some((engine_of_default_path(&l.path)?, l.path, None))));
    let var_run = fs::read_link(root.join("var/run"))
        .is_ok_and(|target| target == Path::new("/run") || target == Path::new("../run"));
    Found { sockets: sockets(listeners, var_run), engines }
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
}

/// One entry per path; a server known by its process comes before a guess from the path.
fn sockets(listeners: Vec<(Engine, PathBuf, Option<i32>)>, var_run_is_run: bool) -> Vec<Socket> {
    let mut seen = BTreeSet::new();
    let mut sockets: Vec<Socket> = Vec::new();
    for (engine, path, pid) in listeners {
        let path = match path.strip_prefix("/var/run") {
            Ok(rest) if var_run_is_run => Path::new("/run").join(rest),
            _ => path,
        };
        if path.is_absolute() && seen.insert(path.clone()) {
            sockets.push(Socket { engine, path, pid });
        }
    }
    sockets.retain(|socket| matches!(socket.engine, Engine::Postgresql | Engine::Mysql | Engine::Mariadb));
    sockets.sort_by(|a, b| (a.engine, &a.path).cmp(&(b.engine, &b.path)));
    sockets
}

/// A socket in state LISTEN.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listener {
    inode: u64,
    path: PathBuf,
}

/// Decodes /proc/net/unix (unix(7)): `Num RefCount Protocol Flags Type St Inode Path`; the flag is __SO_ACCEPTCON.
fn listening(text: &str) -> Vec<Listener> {
    const ACCEPTS: u32 = 0x10000;
    let line = |line: &str| {
        let mut rest = line.trim_start();
        let mut fields = [""; 7];
        for field in &mut fields {
            let (first, after) = rest.split_once(' ')?;
            (*field, rest) = (first, after.trim_start());
        }
        let accepts = u32::from_str_radix(fields[3], 16).ok()? & ACCEPTS != 0;
        let named = !rest.is_empty() && !rest.starts_with('@');
        (accepts && named).then_some(())?;
        Some(Listener { inode: fields[6].parse().ok()?, path: rest.into() })
    };
    text.lines().skip(1).filter_map(line).collect()
}

fn read_listening(dir: &Path) -> Vec<Listener> {
    listening(&fs::read_to_string(dir.join("net/unix")).unwrap_or_default())
}

fn engine_of_default_path(path: &Path) -> Option<Engine> {
    let (dir, name) = (path.parent()?.to_str()?, path.file_name()?.to_str()?);
    match dir {
        "/run/postgresql" | "/var/run/postgresql" | "/tmp" if is_postgres_socket(name) => Some(Engine::Postgresql),
        "/run/mysqld" | "/var/run/mysqld" if name.ends_with(".sock") => Some(Engine::Mysql),
        "/var/lib/mysql" | "/tmp" if name == "mysql.sock" => Some(Engine::Mysql),
        _ => None,
    }
    .filter(|engine| is_client_socket(*engine, path))
}

fn is_postgres_socket(name: &str) -> bool {
    name.strip_prefix(".s.PGSQL.").is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Not the X protocol's (`mysqlx.sock`), nor anything else a server listens on.
fn is_client_socket(engine: Engine, path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match engine {
        Engine::Postgresql => is_postgres_socket(name),
        Engine::Mysql | Engine::Mariadb => !name.starts_with("mysqlx"),
        Engine::Redis
        | Engine::Valkey
        | Engine::Mongodb
        | Engine::Etcd
        | Engine::Clickhouse
        | Engine::Cassandra
        | Engine::Elasticsearch => true,
    }
}

fn keeps_data_in_cwd(engine: Engine) -> bool {
    match engine {
        Engine::Postgresql | Engine::Mysql | Engine::Mariadb | Engine::Redis | Engine::Valkey => true,
        Engine::Mongodb | Engine::Etcd | Engine::Clickhouse | Engine::Cassandra | Engine::Elasticsearch => false,
    }
}

/// Servers by pid, lowest first; not their workers, which are children of the same name.
fn servers(root: &Path, processes: &Processes) -> Vec<(Engine, i32)> {
    let mut servers: Vec<(Engine, i32)> = processes
        .iter()
        .filter(|(_, process)| process.state != b'Z')
        .filter(|(_, process)| processes.get(process.parent).is_none_or(|parent| parent.comm != process.comm))
        .filter_map(|(pid, process)| Some((engine_of(root, pid, process)?, pid)))
        .collect();
    servers.sort_unstable_by_key(|(_, pid)| *pid);
    servers
}

/// Names are as the kernel keeps them, cut at 15 bytes.
fn engine_of(root: &Path, pid: i32, process: &Process) -> Option<Engine> {
    match process.comm.as_str() {
        "postgres" | "postmaster" => Some(Engine::Postgresql),
        "mysqld" => Some(Engine::Mysql),
        "mariadbd" => Some(Engine::Mariadb),
        "redis-server" => Some(Engine::Redis),
        "valkey-server" => Some(Engine::Valkey),
        "mongod" => Some(Engine::Mongodb),
        "etcd" => Some(Engine::Etcd),
        "clickhouse-serv" => Some(Engine::Clickhouse),
        "java" if process.state != b'D' => {
            let command = fs::read(root.join("proc").join(pid.to_string()).join("cmdline")).ok()?;
            engine_of_java(&String::from_utf8_lossy(&command))
        }
        _ => None,
    }
}

fn engine_of_java(command: &str) -> Option<Engine> {
    let has = |name| command.split('\0').any(|argument| argument.contains(name));
    match () {
        () if has("org.apache.cassandra") => Some(Engine::Cassandra),
        () if has("org.elasticsearch") || has("org.opensearch") => Some(Engine::Elasticsearch),
        () => None,
    }
}

fn socket_inodes(dir: &Path) -> HashSet<u64> {
    let entries = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use proptest::prelude::*;

    use super::*;

    fn found(root: &Path) -> Found {
        read(root, &Processes::read(root))
    }
    use crate::guest::fixture::fixture;

    fn socket(engine: Engine, path: &str, pid: Option<i32>) -> Socket {
        Socket { engine, path: path.into(), pid }
    }

    #[test]
    fn listening_sockets_are_found_by_who_holds_them_or_where_they_are() {
        let found = found(fixture("databases").path());
        assert_eq!(
            found.sockets,
            [
                socket(Engine::Postgresql, "/run/postgresql/.s.PGSQL.5432", Some(500)),
                socket(Engine::Postgresql, "/tmp/.s.PGSQL.5433", None),
                socket(Engine::Mysql, "/srv/second instance/my.sock", Some(610)),
            ]
        );
    }

    #[test]
    fn a_sandboxed_servers_socket_counts_if_this_namespace_shows_it() {
        let root = fixture("databases");
        std::fs::create_dir_all(root.path().join("run/mysqld")).unwrap();
        let _listener = UnixListener::bind(root.path().join("run/mysqld/mysqld.sock")).unwrap();
        let found = found(root.path());
        assert!(found.sockets.contains(&socket(Engine::Mariadb, "/run/mysqld/mysqld.sock", Some(600))), "{found:#?}");
    }

    #[test]
    fn servers_are_counted_not_their_workers_and_engines_we_cannot_hold_are_named() {
        let found = found(fixture("databases").path());
        let engines: Vec<(Engine, i32, bool)> = found.engines.iter().map(|e| (e.engine, e.pid, e.elsewhere)).collect();
        assert_eq!(
            engines,
            [
                (Engine::Postgresql, 500, false),
                (Engine::Mariadb, 600, true),
                (Engine::Mysql, 610, false),
                (Engine::Redis, 700, false),
                (Engine::Cassandra, 800, false),
                (Engine::Postgresql, 900, true),
            ]
        );
        assert_eq!(found.engines[0].datadir.as_deref(), Some(Path::new("/var/lib/postgresql/17/main")));
        assert_eq!(found.engines[4].datadir, None);
        assert_eq!(found.engines[5].sockets, [Path::new("/var/run/postgresql/.s.PGSQL.5439")], "as it sees it");
    }

    #[test]
    fn a_machine_without_proc_has_no_databases() {
        assert_eq!(found(tempfile::tempdir().unwrap().path()), Found::default());
    }

    proptest! {
        #[test]
        fn no_text_makes_listing_panic(text in "(0000: |00010000 |1 |/tmp|@| |\n|é){0,40}") {
            listening(&text);
        }
    }

    #[test]
    fn default_paths_are_exact() {
        let engine = |path| engine_of_default_path(Path::new(path));
        assert_eq!(engine("/tmp/.s.PGSQL.5432"), Some(Engine::Postgresql));
        assert_eq!(engine("/tmp/.s.PGSQL.5432.lock"), None);
        assert_eq!(engine("/run/mysqld/mysqlx.sock"), None);
        assert_eq!(engine("/var/lib/mysql/mysql.sock"), Some(Engine::Mysql));
        assert_eq!(engine("/tmp/other.sock"), None);
    }

    #[test]
    fn this_machines_sockets_can_be_listed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".s.PGSQL.1");
        let _listener = UnixListener::bind(&path).unwrap();
        let listed = read_listening(Path::new("/proc/self"));
        assert!(listed.iter().any(|listener| listener.path == path), "{listed:?}");
    }
}
