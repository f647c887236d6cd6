//! Throw-away database servers whose data directories lie on file systems that really freeze, and ledgers: clients that
//! note, in memory, what a server has acknowledged.

use std::{
    ffi::OsString,
    fs,
    future::Future,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode},
    time::Duration,
};

use mysql_async::prelude::Queryable;
use nix::{sys::signal::Signal, unistd::User};

use super::{
    Fs, Lab, Writer, command, finish, now,
    process::{self, tool},
    until,
    writer::Progress,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Postgresql,
    Mariadb,
}

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Engine::Postgresql => "postgresql",
            Engine::Mariadb => "mariadb",
        }
    }

    /// The directory and the account its server runs in and as; nothing to run here without them.
    fn installed(self) -> Option<(PathBuf, User)> {
        let (dirs, account) = match self {
            Engine::Postgresql => {
                let versions = fs::read_dir("/usr/lib/postgresql").map(|d| d.flatten().map(|v| v.path().join("bin")));
                (versions.map(Iterator::collect).unwrap_or_default(), "postgres")
            }
            Engine::Mariadb => (vec![PathBuf::from("/usr/sbin")], "nobody"),
        };
        let program = match self {
            Engine::Postgresql => "postgres",
            Engine::Mariadb => "mariadbd",
        };
        let bin = dirs.into_iter().filter(|d| d.join(program).is_file()).max()?;
        let account = [account, "nobody"].iter().find_map(|name| User::from_name(name).ok().flatten())?;
        Some((bin, account))
    }
}

/// `root` on this machine is `root` in the server, without a password (unix_socket), as Debian sets it up.
const BOOTSTRAP_MARIADB: &str = r#"
cd /usr/share/mysql || exit 1
{
    echo "create database if not exists mysql;"
    echo "use mysql;"
    echo "SET @auth_root_socket='root';"
    cat mysql_system_tables.sql mysql_performance_tables.sql mysql_system_tables_data.sql mysql_sys_schema.sql
} | "$0" --no-defaults --bootstrap --log-warnings=0 --max-allowed-packet=8M "$@"
"#;

/// Settings under which a server acknowledges what is not on disk yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    Full,
    Relaxed,
}

/// A running server; stopped when dropped.
pub struct Server<'lab> {
    lab: &'lab Lab,
    pub engine: Engine,
    child: Child,
    /// the socket's file
    pub socket: PathBuf,
    pub data: PathBuf,
    log: PathBuf,
}

impl Lab {
    /// Initialises a server's data directory on `fs` and starts the server. Skips the fact where none is installed.
    pub fn server(&self, engine: Engine, fs: &Fs, durability: Durability) -> Server<'_> {
        let Some((bin, account)) = engine.installed() else { self.skip(&format!("no {} server", engine.name())) };
        let data = fs.mount.join("data");
        fs::create_dir(&data).expect("a new file system is empty");
        chown(&data, Some(account.uid.as_raw()), Some(account.gid.as_raw())).expect("root may");
        match engine {
            Engine::Postgresql => tool(
                run_as(&account, &bin.join("initdb"))
                    .args(["-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8", "-D"])
                    .arg(&data),
            ),
            // what mariadb-install-db does; that one also wants tools of the client packages
            Engine::Mariadb => tool(
                command("sh")
                    .args(["-c", BOOTSTRAP_MARIADB])
                    .arg(bin.join("mariadbd"))
                    .arg(format!("--user={}", account.name))
                    .arg(format!("--datadir={}", data.display())),
            ),
        };
        self.serve(engine, &data, durability)
    }

    /// Starts a server on a data directory that exists: a copy, a recovered one.
    pub fn serve(&self, engine: Engine, data: &Path, durability: Durability) -> Server<'_> {
        let (bin, account) = engine.installed().expect("it was installed when the data was made");
        let dir = self.memory_dir(engine.name());
        chown(&dir, Some(account.uid.as_raw()), Some(account.gid.as_raw())).expect("root may");
        let log = dir.join("log");
        let (mut command, socket) = match engine {
            Engine::Postgresql => {
                let _ = fs::remove_file(data.join("postmaster.pid"));
                let mut command = run_as(&account, &bin.join("postgres"));
                command.arg("-D").arg(data).arg("-k").arg(&dir).args(["-c", "listen_addresses="]);
                if durability == Durability::Relaxed {
                    for setting in ["synchronous_commit=off", "wal_writer_delay=10s", "wal_writer_flush_after=64MB"] {
                        command.args(["-c", setting]);
                    }
                }
                (command, dir.join(".s.PGSQL.5432"))
            }
            Engine::Mariadb => {
                let socket = dir.join("mysqld.sock");
                let mut command = command(bin.join("mariadbd").to_str().expect("ASCII"));
                command
                    .args(["--no-defaults", "--skip-networking", "--log-bin=binlog", "--server-id=1"])
                    .args(["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M"])
                    .arg(format!("--user={}", account.name))
                    .arg(format!("--datadir={}", data.display()))
                    .arg(format!("--socket={}", socket.display()))
                    .arg(format!("--pid-file={}", dir.join("pid").display()));
                if durability == Durability::Relaxed {
                    command.args(["--innodb-flush-log-at-trx-commit=0", "--innodb-flush-log-at-timeout=60"]);
                }
                (command, socket)
            }
        };
        let file = fs::File::create(&log).expect("memory");
        command.stdout(file.try_clone().expect("a descriptor")).stderr(file);
        let child = command.spawn().expect("it is installed");
        let server = Server { lab: self, engine, child, socket, data: data.to_owned(), log };
        let answers = until(Duration::from_secs(30), || server.try_query("SELECT 1").is_ok());
        assert!(answers, "{} did not come up:\n{}", engine.name(), server.log());
        server
    }
}

fn run_as(account: &User, program: &Path) -> Command {
    let mut command = command("setpriv");
    command.args([
        format!("--reuid={}", account.uid),
        format!("--regid={}", account.gid),
        "--init-groups".to_owned(),
        "--".to_owned(),
    ]);
    command.arg(program).current_dir("/");
    command
}

impl Server<'_> {
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The process whose death takes the whole server along.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// A `[[database]]` entry for it.
    pub fn entry(&self, name: &str) -> toml::Table {
        let user = if self.engine == Engine::Postgresql { "postgres" } else { "root" };
        toml::Table::from_iter([
            ("name".to_owned(), name.into()),
            ("engine".to_owned(), self.engine.name().into()),
            ("socket".to_owned(), self.socket.display().to_string().into()),
            ("user".to_owned(), user.into()),
        ])
    }

    /// The first column of every row, as text.
    ///
    /// # Panics
    /// The server says no, or does not answer within 10 s.
    pub fn query(&self, sql: &str) -> Vec<String> {
        self.try_query(sql).unwrap_or_else(|e| panic!("{sql}: {e}\n{}", self.log()))
    }

    pub fn try_query(&self, sql: &str) -> Result<Vec<String>, String> {
        let connection = Connection::open(self.engine, &self.socket);
        limited(async { connection.await?.rows(sql).await })
    }

    pub fn number(&self, sql: &str) -> u64 {
        self.query(sql).first().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{sql} is no number"))
    }

    /// Starts committing rows one by one; the progress counts those the server has acknowledged.
    pub fn ledger(&self) -> Writer {
        self.query("CREATE SCHEMA lab"); // a schema in one, a database in the other
        self.query(&format!("CREATE TABLE {LEDGER} (n BIGINT PRIMARY KEY)"));
        let (engine, socket) = (self.engine.name(), self.socket.clone());
        self.lab.background(engine, |progress| {
            vec![OsString::from("--lab-ledger"), engine.into(), socket.into(), progress.into()]
        })
    }

    /// How many of the ledger's rows this server has.
    pub fn ledger_rows(&self) -> u64 {
        self.number(&format!("SELECT count(*) FROM {LEDGER}"))
    }

    /// Stops it at once, as a crash would.
    pub fn kill(&self) {
        process::signal(self.pid(), Signal::SIGKILL);
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- {} log ----\n{}----", self.engine.name(), self.log());
        }
        process::signal(self.pid(), Signal::SIGCONT);
        // PostgreSQL: fast shutdown; MariaDB: SIGTERM is its shutdown
        let end = if self.engine == Engine::Postgresql { Signal::SIGINT } else { Signal::SIGTERM };
        process::signal(self.pid(), end);
        if finish(&mut self.child, Duration::from_secs(15)).is_none() {
            self.lab.trouble(format!("{} had to be killed", self.engine.name()));
        }
        // backends of a killed postmaster end by themselves, soon
        let data = self.data.display().to_string();
        let busy = || process::all().iter().any(|p| p.state != 'Z' && p.command.contains(&data));
        until(Duration::from_secs(10), || !busy());
    }
}

const LEDGER: &str = "lab.ledger";

/// The ledger process: one committed row after another, until killed or refused.
pub fn ledger_forever(engine: &str, socket: &Path, progress: &Path) -> ExitCode {
    let engine = if engine == Engine::Postgresql.name() { Engine::Postgresql } else { Engine::Mariadb };
    let published = fs::File::create(progress).expect("memory");
    let mut so_far = Progress::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ended: Result<(), String> = runtime.block_on(async {
        let mut connection = Connection::open(engine, socket).await?;
        loop {
            let begun = now();
            connection.rows(&format!("INSERT INTO {LEDGER} VALUES ({})", so_far.count)).await?;
            so_far = so_far.one_more(begun);
            so_far.publish(&published);
        }
    });
    eprintln!("the ledger ended: {ended:?}");
    ExitCode::FAILURE
}

/// One session with either engine.
enum Connection {
    Postgresql(tokio_postgres::Client),
    Mariadb(mysql_async::Conn),
}

impl Connection {
    async fn open(engine: Engine, socket: &Path) -> Result<Connection, String> {
        match engine {
            Engine::Postgresql => {
                let mut config = tokio_postgres::Config::new();
                config.host_path(socket.parent().expect("a file")).user("postgres").dbname("postgres");
                let (client, connection) = config.connect(tokio_postgres::NoTls).await.map_err(|e| e.to_string())?;
                tokio::spawn(connection);
                Ok(Connection::Postgresql(client))
            }
            Engine::Mariadb => {
                let options = mysql_async::OptsBuilder::default().socket(socket.to_str()).user(Some("root"));
                mysql_async::Conn::new(options).await.map(Connection::Mariadb).map_err(|e| e.to_string())
            }
        }
    }

    async fn rows(&mut self, sql: &str) -> Result<Vec<String>, String> {
        match self {
            Connection::Postgresql(client) => {
                let messages = client.simple_query(sql).await.map_err(|e| format!("{e}: {:?}", e.as_db_error()))?;
                let first = |message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                    _ => None,
                };
                Ok(messages.into_iter().filter_map(first).collect())
            }
            Connection::Mariadb(session) => {
                let rows: Vec<mysql_async::Row> = session.query(sql).await.map_err(|e| e.to_string())?;
                Ok(rows.iter().filter_map(|row| row.get::<String, _>(0)).collect())
            }
        }
    }
}

fn limited<T>(asked: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let in_time = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), asked).await });
    runtime.shutdown_background();
    in_time.map_err(|_| "no answer within 10 s".to_owned())?
}
