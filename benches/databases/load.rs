//! Four clients that commit one small transaction after another for a while, and the longest that any of them took.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use mysql_async::prelude::Queryable;

use crate::lab::{
    Lab, command,
    database::{Engine, Server},
    finish, now,
    process::tool,
};

/// What the bench calls itself with to become the writer.
pub const WRITER: &str = "--writer";
pub const CLIENTS: usize = 4;
/// So long in all: what is asked for after [`crate::WARM`] has ended by then, on any machine that is worth measuring.
const LASTS: Duration = Duration::from_secs(3);

/// Accounts to move money between, as pgbench has them.
const ACCOUNTS: u64 = 10_000;

/// The tables the load works on.
pub fn prepare(server: &Server<'_>) {
    match server.engine() {
        Engine::Postgresql => drop(tool(pgbench(server).args(["-i", "-s", "5", "-q"]))),
        Engine::Mariadb | Engine::Mysql => {
            server.query("CREATE DATABASE bench");
            server.query("CREATE TABLE bench.accounts (id INT PRIMARY KEY, balance BIGINT NOT NULL) ENGINE=InnoDB");
            server.query("CREATE TABLE bench.history (id INT, moved INT, at TIMESTAMP) ENGINE=InnoDB");
            let all: Vec<String> = (1..=ACCOUNTS).map(|id| format!("({id}, 0)")).collect();
            server.query(&format!("INSERT INTO bench.accounts VALUES {}", all.join(", ")));
        }
    }
}

fn pgbench(server: &Server<'_>) -> Command {
    let newest = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|v| v.path()).max();
    let program = newest.unwrap_or_default().join("bin/pgbench");
    let mut command = command(program.to_str().expect("ASCII"));
    command.args(["-U", "postgres", "-h"]).arg(server.socket().parent().expect("a file")).arg("postgres");
    command
}

/// A load that is running.
pub struct Load {
    child: Child,
    /// pgbench: each transaction a line; the writer: the longest one
    told: PathBuf,
    engine: Engine,
}

impl Load {
    pub fn start(server: &Server<'_>, lab: &Lab) -> Load {
        let dir = lab.memory_dir("load");
        let (mut command, told) = match server.engine() {
            Engine::Postgresql => {
                let mut command = pgbench(server);
                let clients = CLIENTS.to_string();
                let seconds = LASTS.as_secs().to_string();
                command.args(["-n", "-c", &clients, "-T", &seconds, "-l"]).arg("--log-prefix").arg(dir.join("log"));
                (command, dir)
            }
            Engine::Mariadb | Engine::Mysql => {
                let exe = std::env::current_exe().expect("/proc is mounted");
                let mut command = command(exe.to_str().expect("cargo's paths are UTF-8"));
                command.arg(WRITER).arg(server.socket());
                let told = dir.join("longest");
                command.stdout(fs::File::create(&told).expect("memory"));
                (command, told)
            }
        };
        if server.engine() == Engine::Postgresql {
            command.stdout(Stdio::null());
        }
        let child = command.stderr(Stdio::null()).spawn().expect("it is installed");
        Load { child, told, engine: server.engine() }
    }

    /// Waits for its end.
    pub fn longest(mut self) -> Duration {
        let status = finish(&mut self.child, LASTS + Duration::from_secs(30)).expect("the load ends");
        assert!(status.success(), "the load ended with {status}");
        match self.engine {
            Engine::Postgresql => {
                let logs = fs::read_dir(&self.told).expect("memory").flatten();
                let lines: String = logs.filter_map(|log| fs::read_to_string(log.path()).ok()).collect();
                // client, transaction, microseconds, …
                let took = lines.lines().filter_map(|line| line.split(' ').nth(2)?.parse().ok());
                Duration::from_micros(took.max().expect("there were transactions"))
            }
            Engine::Mariadb | Engine::Mysql => {
                let said = fs::read_to_string(&self.told).expect("memory");
                Duration::from_nanos(said.trim().parse().expect("nanoseconds"))
            }
        }
    }
}

/// The writer's side.
pub fn write(socket: &Path) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let until = now() + LASTS;
    let client = |number: usize| {
        let options = mysql_async::OptsBuilder::default().socket(socket.to_str()).user(Some("root"));
        async move {
            let mut session = mysql_async::Conn::new(options).await?;
            let mut longest = Duration::ZERO;
            // every client walks the accounts in a stride of its own
            let mut id = number as u64;
            while now() < until {
                id = (id * 31 + 7 + number as u64) % ACCOUNTS;
                let begun = now();
                session.query_drop("BEGIN").await?;
                session
                    .query_drop(format!("UPDATE bench.accounts SET balance = balance + 1 WHERE id = {}", id + 1))
                    .await?;
                session.query_drop(format!("INSERT INTO bench.history VALUES ({id}, 1, NOW())")).await?;
                session.query_drop("COMMIT").await?;
                longest = longest.max(now() - begun);
            }
            Ok::<_, mysql_async::Error>(longest)
        }
    };
    let longest = runtime.block_on(futures_util::future::try_join_all((0..CLIENTS).map(client)));
    match longest {
        Ok(longest) => {
            println!("{}", longest.into_iter().max().unwrap_or_default().as_nanos());
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
