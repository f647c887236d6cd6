//! Which processes are database servers. They are told by name (`comm`): a renamed binary is not found.

use std::{fs, path::Path};

use super::{Engine, Process, Processes};

/// Servers by pid, lowest first; not their workers, which are children of the same name.
pub(super) fn servers(root: &Path, processes: &Processes) -> Vec<(Engine, i32)> {
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
