//! What engines usually do: where they listen, and where they keep their data.

use std::path::Path;

use super::Engine;

pub(super) fn engine_of_default_path(path: &Path) -> Option<Engine> {
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
pub(super) fn is_client_socket(engine: Engine, path: &Path) -> bool {
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

pub(super) fn keeps_data_in_cwd(engine: Engine) -> bool {
    match engine {
        Engine::Postgresql | Engine::Mysql | Engine::Mariadb | Engine::Redis | Engine::Valkey => true,
        Engine::Mongodb | Engine::Etcd | Engine::Clickhouse | Engine::Cassandra | Engine::Elasticsearch => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_paths_are_exact() {
        let engine = |path| engine_of_default_path(Path::new(path));
        assert_eq!(engine("/tmp/.s.PGSQL.5432"), Some(Engine::Postgresql));
        assert_eq!(engine("/tmp/.s.PGSQL.5432.lock"), None);
        assert_eq!(engine("/run/mysqld/mysqlx.sock"), None);
        assert_eq!(engine("/var/lib/mysql/mysql.sock"), Some(Engine::Mysql));
        assert_eq!(engine("/tmp/other.sock"), None);
    }
}
