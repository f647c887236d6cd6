//! How each engine is initialised and started.

use std::{
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    edition::{Edition, Engine, Programs},
    enter,
    options::{Binlog, Durability, Listens, Root, ServerOptions},
    session::Address,
};
use crate::lab::{Lab, finish};

/// The directories of a server, as it sees them.
#[derive(Debug, Clone)]
pub struct Dirs {
    pub data: PathBuf,
    /// its sockets
    pub run: PathBuf,
    /// WAL; redo and binary log
    pub log: Option<PathBuf>,
    pub spaces: Option<PathBuf>,
}

/// Tries to make a new data directory; it exists and belongs to the server's account.
///
/// # Errors
/// What the engine's program said.
pub fn initialise(
    lab: &Lab,
    edition: &Edition,
    programs: &Programs,
    dirs: &Dirs,
    options: &ServerOptions,
) -> Result<(), String> {
    let memory = lab.memory_dir("initialise");
    let program = match edition.engine {
        Engine::Postgresql => programs.beside("initdb"),
        Engine::Mysql | Engine::Mariadb => programs.server.clone(),
    };
    let mut command = enter::command(programs, &program, options);
    match edition.engine {
        Engine::Postgresql => {
            command.args(["-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C", "-D"]);
            command.arg(&dirs.data);
            if let Some(log) = &dirs.log {
                command.arg("-X").arg(log.join("wal"));
            }
        }
        Engine::Mysql => {
            command.arg("--no-defaults").arg("--initialize-insecure").args(of_mysql(edition.engine, dirs, options));
            // nothing of it has to survive a crash
            command.args(["--innodb-flush-log-at-trx-commit=0", "--loose-skip-innodb-doublewrite", "--skip-log-bin"]);
        }
        // what mariadb-install-db does; that one also wants tools of the client packages
        Engine::Mariadb => {
            command.args(["--no-defaults", "--bootstrap", "--log-warnings=0", "--max-allowed-packet=8M"]);
            command.args(of_mysql(edition.engine, dirs, options));
            let file = memory.join("bootstrap.sql");
            fs::write(&file, bootstrap(programs, options.listens)).expect("memory");
            command.stdin(File::open(&file).expect("just written"));
        }
    }
    let said = memory.join("said");
    let file = File::create(&said).expect("memory");
    command.stdout(file.try_clone().expect("a descriptor")).stderr(file);
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let status = finish(&mut child, Duration::from_secs(60));
    if status.is_some_and(|s| s.success()) {
        return Ok(());
    }
    Err(format!("{} ended with {status:?}:\n{}", program.display(), fs::read_to_string(said).unwrap_or_default()))
}

/// `root` on this machine is `root` in the server, without a password (unix_socket), as Debian sets it up; on a port
/// without anything.
fn bootstrap(programs: &Programs, listens: Listens) -> String {
    let mut sql = "create database if not exists mysql;\nuse mysql;\n".to_owned();
    match listens {
        Listens::Socket => sql.push_str("SET @auth_root_socket='root';\n"),
        Listens::Port => {}
    }
    for script in ["system_tables", "performance_tables", "system_tables_data", "sys_schema"] {
        // the newer names first; the oldest has no sys schema
        let files = ["mariadb/mariadb", "mysql/mariadb", "mysql/mysql"]
            .map(|name| programs.seen(&format!("/usr/share/{name}_{script}.sql")));
        sql.extend(files.iter().find_map(|file| fs::read_to_string(file).ok()));
    }
    sql
}

/// What the MySQL-like servers are told when initialising and when started.
fn of_mysql(engine: Engine, dirs: &Dirs, options: &ServerOptions) -> Vec<OsString> {
    let mut args: Vec<OsString> =
        ["--innodb-buffer-pool-size=32M", "--loose-innodb-log-file-size=16M", "--loose-innodb-redo-log-capacity=32M"]
            .map(OsString::from)
            .into();
    let mut named = |option: &str, dir: &Path| args.push(format!("--{option}={}", dir.display()).into());
    named("datadir", &dirs.data);
    if engine == Engine::Mysql {
        // the directory compiled in does not exist
        named("secure-file-priv", Path::new("NULL"));
    }
    if let Some(log) = &dirs.log {
        named("innodb-log-group-home-dir", log);
    }
    if let Some(spaces) = &dirs.spaces {
        named("loose-innodb-directories", spaces);
    }
    args.extend(options.settings.iter().map(|setting| format!("--{setting}").into()));
    args
}

/// How a server is started, and where it will answer, as it sees that.
pub fn arguments(edition: &Edition, dirs: &Dirs, options: &ServerOptions) -> (Vec<OsString>, Address) {
    match edition.engine {
        Engine::Postgresql => postgresql(dirs, options),
        Engine::Mysql | Engine::Mariadb => mysql(edition.engine, dirs, options),
    }
}

fn postgresql(dirs: &Dirs, options: &ServerOptions) -> (Vec<OsString>, Address) {
    let mut args: Vec<OsString> = vec!["-D".into(), dirs.data.clone().into()];
    let mut set = |setting: &str| args.extend(["-c".into(), setting.into()]);
    let address = match options.listens {
        Listens::Socket => {
            set("listen_addresses=");
            set(&format!("unix_socket_directories={}", dirs.run.display()));
            Address::Socket(dirs.run.join(".s.PGSQL.5432"))
        }
        Listens::Port => {
            let port = free_port();
            set("listen_addresses=127.0.0.1");
            set("unix_socket_directories=");
            set(&format!("port={port}"));
            Address::Port(port)
        }
    };
    if options.durability == Durability::Relaxed {
        for setting in ["synchronous_commit=off", "wal_writer_delay=10s", "wal_writer_flush_after=64MB"] {
            set(setting);
        }
    }
    options.settings.iter().for_each(|setting| set(setting));
    (args, address)
}

fn mysql(engine: Engine, dirs: &Dirs, options: &ServerOptions) -> (Vec<OsString>, Address) {
    let socket = dirs.run.join("mysqld.sock");
    let mut args: Vec<OsString> = ["--no-defaults", "--server-id=1", "--loose-mysqlx=OFF"].map(OsString::from).into();
    args.extend(of_mysql(engine, dirs, options));
    args.push(format!("--socket={}", socket.display()).into());
    args.push(format!("--pid-file={}", dirs.run.join("pid").display()).into());
    let address = match options.listens {
        Listens::Socket => {
            args.push("--skip-networking".into());
            Address::Socket(socket)
        }
        Listens::Port => {
            let port = free_port();
            args.push("--bind-address=127.0.0.1".into());
            args.push(format!("--port={port}").into());
            Address::Port(port)
        }
    };
    // its index would keep an absolute path: a copy's server would read the original's binary log
    let binlog = dirs.log.as_ref().map_or_else(|| PathBuf::from("binlog"), |log| log.join("binlog"));
    let binlog = || OsString::from(format!("--log-bin={}", binlog.display()));
    match options.binlog {
        Binlog::Off => args.push("--skip-log-bin".into()),
        Binlog::Positions => args.push(binlog()),
        Binlog::Gtids => {
            args.push(binlog());
            if engine == Engine::Mysql {
                args.extend(["--gtid-mode=ON", "--enforce-gtid-consistency=ON"].map(OsString::from));
            }
        }
    }
    if options.durability == Durability::Relaxed {
        args.extend(["--innodb-flush-log-at-trx-commit=0", "--innodb-flush-log-at-timeout=60"].map(OsString::from));
    }
    if options.root == Root::AuthSocket && engine == Engine::Mysql {
        args.push("--plugin-load-add=auth_socket.so".into());
    }
    (args, address)
}

/// One that nobody listens on just now.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("there is a loopback");
    listener.local_addr().expect("it is bound").port()
}
