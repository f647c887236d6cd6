//! Databases running here: the processes they are, and what they listen on. Called while preparing; what is found and
//! cannot be held lowers the level, so engines this version cannot hold are found too.
//!
//! Only /proc is read. A socket counts if the kernel lists it as listening, so a stale file is nothing; no data directory
//! or log is touched, nor any socket. Where a path leads depends on who asks: a server in a container or a sandbox has a
//! root of its own, and its sockets must be looked for there (`sys::view`).
//! `/proc/PID/cmdline` of a Java process may block while that process faults in memory: give the caller's thread a limit.

mod container;
mod listening;
mod servers;
mod usual;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use self::{
    listening::{Listening, socket_inodes},
    usual::{engine_of_default_path, is_client_socket, keeps_data_in_cwd},
};
use super::tasks::{Process, Processes};

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

impl Engine {
    pub const ALL: [Engine; 10] = [
        Self::Postgresql,
        Self::Mysql,
        Self::Mariadb,
        Self::Redis,
        Self::Valkey,
        Self::Mongodb,
        Self::Etcd,
        Self::Clickhouse,
        Self::Cassandra,
        Self::Elasticsearch,
    ];

    pub fn named(name: &str) -> Option<Engine> {
        Self::ALL.into_iter().find(|engine| engine.to_string() == name)
    }
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

/// A unix socket where a PostgreSQL or MySQL-like server usually listens, and none that we know does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    pub engine: Engine,
    pub path: PathBuf,
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
    /// TCP addresses it listens on, lowest port first; in its own network namespace
    pub ports: Vec<SocketAddr>,
    /// it has another root than we do, as containers and sandboxed services have: its paths need not be ours
    pub elsewhere: bool,
    /// its network is not ours: its ports are not either
    pub apart: bool,
    /// the container it runs in, unless we run there, too; as its control group calls it
    pub container: Option<String>,
    /// its descriptors may be looked at; else nothing is known of what it listens on
    pub open_to_us: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// of servers that hide their descriptors from us, or go by another name
    pub sockets: Vec<Socket>,
    pub engines: Vec<RunningEngine>,
}

/// Reads `proc` below `root`. Processes that end meanwhile, or may not be looked at, are left out.
pub fn read(root: &Path, processes: &Processes) -> Found {
    let own = root.join("proc/self");
    let mut networks: HashMap<PathBuf, Listening> = HashMap::new();
    let container = |dir: &Path| fs::read_to_string(dir.join("cgroup")).ok().and_then(|text| container::name(&text));
    let ours = container(&own);
    let (mut engines, mut claimed) = (Vec::new(), HashSet::new());
    for (engine, pid) in servers::servers(root, processes) {
        let dir = root.join("proc").join(pid.to_string());
        let network = fs::read_link(dir.join("ns/net")).unwrap_or_default();
        let listening = networks.entry(network).or_insert_with(|| Listening::read(&dir));
        let inodes = socket_inodes(&dir);
        let holds = |inode: &u64| inodes.as_ref().is_some_and(|inodes| inodes.contains(inode));
        let held = listening.unix.iter().filter(|l| holds(&l.inode) && is_client_socket(engine, &l.path));
        let datadir = keeps_data_in_cwd(engine).then(|| fs::read_link(dir.join("cwd")).ok()).flatten();
        // A socket bound by a relative name is where the server was, and is.
        let base = datadir.clone().unwrap_or_default();
        let sockets = held.map(|listener| base.join(&listener.path)).collect();
        let mut ports: Vec<SocketAddr> = listening.tcp.iter().filter(|p| holds(&p.inode)).map(|p| p.at).collect();
        ports.sort_by_key(|at| (at.port(), at.is_ipv6()));
        claimed.extend(inodes.iter().flatten().copied());
        engines.push(RunningEngine {
            engine,
            pid,
            datadir,
            sockets,
            ports,
            elsewhere: differs(&own, &dir, "ns/mnt") || differs(&own, &dir, "root"),
            apart: differs(&own, &dir, "ns/net"),
            container: container(&dir).filter(|theirs| ours.as_ref() != Some(theirs)),
            open_to_us: inodes.is_some(),
        });
    }
    let unknown = Listening::read(&own).unix.into_iter().filter(|l| !claimed.contains(&l.inode));
    let unknown: Vec<(Engine, PathBuf)> =
        unknown.filter_map(|l| Some((engine_of_default_path(&l.path)?, l.path))).collect();
    let var_run = fs::read_link(root.join("var/run"))
        .is_ok_and(|target| target == Path::new("/run") || target == Path::new("../run"));
    Found { sockets: sockets(unknown, var_run), engines }
}

/// The process listening on a TCP port of ours, whatever it is called. Looks at every process's descriptors.
pub fn listens_on(root: &Path, processes: &Processes, port: u16) -> Option<i32> {
    let tcp = Listening::read(&root.join("proc/self")).tcp;
    let inodes: HashSet<u64> = tcp.into_iter().filter(|p| p.at.port() == port).map(|p| p.inode).collect();
    let holds = |pid: &i32| {
        let open = socket_inodes(&root.join("proc").join(pid.to_string())).unwrap_or_default();
        !open.is_disjoint(&inodes)
    };
    // the one that listens, not the children that inherited it: the lowest, but systemd, which listens for others
    (!inodes.is_empty()).then(|| processes.with_files().filter(|pid| *pid != 1).find(holds)).flatten()
}

/// Both links can be read, and they differ.
fn differs(own: &Path, other: &Path, link: &str) -> bool {
    match (fs::read_link(own.join(link)), fs::read_link(other.join(link))) {
        (Ok(own), Ok(other)) => own != other,
        (Err(_), Ok(_) | Err(_)) | (Ok(_), Err(_)) => false,
    }
}

/// One entry per path.
fn sockets(listeners: Vec<(Engine, PathBuf)>, var_run_is_run: bool) -> Vec<Socket> {
    let mut seen = BTreeSet::new();
    let mut sockets: Vec<Socket> = Vec::new();
    for (engine, path) in listeners {
        let path = match path.strip_prefix("/var/run") {
            Ok(rest) if var_run_is_run => Path::new("/run").join(rest),
            _ => path,
        };
        if path.is_absolute() && seen.insert(path.clone()) {
            sockets.push(Socket { engine, path });
        }
    }
    sockets.sort_by(|a, b| (a.engine, &a.path).cmp(&(b.engine, &b.path)));
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::fixture::fixture;

    fn found(root: &Path) -> Found {
        read(root, &Processes::read(root))
    }

    fn paths(engine: &RunningEngine) -> Vec<&str> {
        engine.sockets.iter().filter_map(|path| path.to_str()).collect()
    }

    #[test]
    fn sockets_are_found_by_who_holds_them_or_where_they_are() {
        let found = found(fixture("databases").path());
        assert_eq!(paths(&found.engines[0]), ["/var/run/postgresql/.s.PGSQL.5432"]);
        assert_eq!(paths(&found.engines[1]), ["/run/mysqld/mysqld.sock"], "and not the X protocol's");
        assert_eq!(paths(&found.engines[2]), ["/srv/second instance/my.sock"]);
        assert_eq!(found.sockets, [Socket { engine: Engine::Postgresql, path: "/tmp/.s.PGSQL.5433".into() }]);
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
                (Engine::Mysql, 910, true),
                (Engine::Postgresql, 920, true),
            ]
        );
        assert_eq!(found.engines[0].datadir.as_deref(), Some(Path::new("/var/lib/postgresql/17/main")));
        assert_eq!(found.engines[4].datadir, None);
        assert_eq!(paths(&found.engines[5]), ["/var/run/postgresql/.s.PGSQL.5439"], "as it sees it");
    }

    #[test]
    fn a_container_has_a_name_a_network_and_ports_of_its_own() {
        let found = found(fixture("databases").path());
        let (postgres, mysql, chrooted) = (&found.engines[5], &found.engines[6], &found.engines[7]);
        assert_eq!((postgres.container.as_deref(), postgres.apart), (Some("4f2e9c31d0aa"), true));
        let at: Vec<String> = mysql.ports.iter().map(ToString::to_string).collect();
        assert_eq!(at, ["0.0.0.0:3306", "[::]:33060"], "lowest first");
        assert!(mysql.sockets.is_empty() && mysql.apart && mysql.open_to_us);
        assert!(chrooted.elsewhere && !chrooted.apart && !chrooted.open_to_us, "another root is enough");
    }

    #[test]
    fn a_machine_without_proc_has_no_databases() {
        assert_eq!(found(tempfile::tempdir().unwrap().path()), Found::default());
    }

    #[test]
    fn a_port_leads_to_the_process_that_listens_on_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let root = Path::new("/");
        let processes = Processes::read(root);
        let pid = listens_on(root, &processes, listener.local_addr().unwrap().port());
        assert_eq!(pid, Some(std::process::id().cast_signed()));
    }
}
