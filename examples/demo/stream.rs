//! The writers' streams: one table in one database under one durability, written by a process of its own and read back
//! from a copy.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use mysql_async::prelude::Queryable;
use rusqlite::Connection;
use tokio::runtime::Runtime;

use crate::{Failure, ledger::Ledger};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
    Mariadb,
}

/// What "committed" means to whoever set the database up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// acknowledged means on the disk
    Full,
    /// acknowledged means the database will write it down before long
    Relaxed,
}

#[derive(Debug, Clone)]
pub struct Stream {
    pub engine: Engine,
    pub durability: Durability,
    /// where it is spoken to: the directory of a SQLite database, of a server's socket
    pub at: PathBuf,
    pub ledger: PathBuf,
}

/// A pause between two transactions, so that the demo's disks and the machine are not filled.
const PACE: Duration = Duration::from_millis(2);

impl Engine {
    fn word(self) -> &'static str {
        match self {
            Engine::Sqlite => "sqlite",
            Engine::Postgres => "postgresql",
            Engine::Mariadb => "mariadb",
        }
    }
}

impl Durability {
    pub fn word(self) -> &'static str {
        match self {
            Durability::Full => "durable",
            Durability::Relaxed => "relaxed",
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setting = match (self.engine, self.durability) {
            (Engine::Sqlite, Durability::Full) => "synchronous=FULL",
            (Engine::Sqlite, Durability::Relaxed) => "synchronous=NORMAL",
            (Engine::Postgres, Durability::Full) => "synchronous_commit=on",
            (Engine::Postgres, Durability::Relaxed) => "synchronous_commit=off",
            (Engine::Mariadb, Durability::Full) => "flush_log_at_trx_commit=1",
            (Engine::Mariadb, Durability::Relaxed) => "flush_log_at_trx_commit=0",
        };
        let name = match self.engine {
            Engine::Sqlite => "SQLite",
            Engine::Postgres => "PostgreSQL",
            Engine::Mariadb => "MariaDB",
        };
        write!(f, "{name} {} ({setting})", self.durability.word())
    }
}

impl Stream {
    /// "sqlite-durable": its name in paths.
    pub fn name(&self) -> String {
        format!("{}-{}", self.engine.word(), self.durability.word())
    }

    /// The command of its writer.
    pub fn writer(&self, demo: &Path) -> Command {
        let mut command = Command::new(demo);
        command.args(["@writer", self.engine.word(), self.durability.word()]).arg(&self.at).arg(&self.ledger);
        command
    }

    /// Makes the table.
    ///
    /// # Errors
    /// The database's.
    pub fn create(&self) -> Result<(), Failure> {
        const TABLE: &str = "CREATE TABLE orders (id BIGINT PRIMARY KEY, note VARCHAR(200) NOT NULL)";
        match self.engine {
            Engine::Sqlite => {
                let db = sqlite(&self.at)?;
                db.execute_batch(&format!("PRAGMA page_size=1024; PRAGMA journal_mode=WAL; {TABLE};"))?;
            }
            Engine::Postgres => runtime()?.block_on(async {
                // Checkpointed: what a copy must replay is then what the story wrote.
                Ok::<_, Failure>(postgres(&self.at).await?.batch_execute(&format!("{TABLE}; CHECKPOINT")).await?)
            })?,
            Engine::Mariadb => runtime()?.block_on(async {
                let mut db = mariadb(&self.at, "").await?;
                db.query_drop("CREATE DATABASE demo").await?;
                db.query_drop("USE demo").await?;
                db.query_drop(format!("{TABLE} ENGINE=InnoDB")).await?;
                Ok::<_, Failure>(db.disconnect().await?)
            })?,
        }
        Ok(())
    }

    /// Does the server answer? Always, for SQLite: there is none.
    pub fn answers(&self) -> bool {
        let asked = match self.engine {
            Engine::Sqlite => Ok(()),
            Engine::Postgres => runtime().and_then(|r| r.block_on(async { postgres(&self.at).await.map(drop) })),
            Engine::Mariadb => runtime().and_then(|r| {
                r.block_on(async { mariadb(&self.at, "").await?.disconnect().await.map_err(Failure::from) })
            }),
        };
        asked.is_ok()
    }

    /// Every transaction the database at `self.at` has, each looked at: a row must hold exactly what was written.
    ///
    /// # Errors
    /// The database's, or a row that was never written so.
    pub fn read(&self) -> Result<BTreeSet<u64>, Failure> {
        const ALL: &str = "SELECT id, note FROM orders";
        let rows: Vec<(i64, String)> = match self.engine {
            Engine::Sqlite => {
                let db = sqlite(&self.at)?;
                let mut all = db.prepare(ALL)?;
                all.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?.collect::<Result<_, _>>()?
            }
            Engine::Postgres => runtime()?.block_on(async {
                let rows = postgres(&self.at).await?.query(ALL, &[]).await?;
                Ok::<_, Failure>(rows.iter().map(|r| (r.get(0), r.get(1))).collect())
            })?,
            Engine::Mariadb => runtime()?.block_on(async {
                let mut db = mariadb(&self.at, "demo").await?;
                let rows = db.query(ALL).await?;
                db.disconnect().await?;
                Ok::<_, Failure>(rows)
            })?,
        };
        let whole = |(id, row): (i64, String)| {
            let id = u64::try_from(id)?;
            if row == note(id) { Ok(id) } else { Err(format!("{self}: row {id} is not what was written").into()) }
        };
        rows.into_iter().map(whole).collect()
    }
}

/// Opens the SQLite database in `dir` and asks it to check itself, replaying its write-ahead log on the way. Returns
/// how many frames the log had.
///
/// # Errors
/// SQLite's, or what its integrity check complains about.
pub fn sqlite_recover(dir: &Path) -> Result<u64, Failure> {
    let db = sqlite(dir)?;
    let verdict: String = db.query_row("PRAGMA integrity_check", [], |r| r.get(0))?;
    if verdict != "ok" {
        return Err(format!("check {}: {verdict}", dir.display()).into());
    }
    let frames: i64 = db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |r| r.get(1))?;
    Ok(u64::try_from(frames)?)
}

fn note(id: u64) -> String {
    format!("order {id}: {:-<64}", "three boxes, two of them fragile ")
}

fn sqlite(dir: &Path) -> Result<Connection, Failure> {
    Ok(Connection::open(dir.join("orders.db"))?)
}

fn runtime() -> Result<Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn postgres(socket_dir: &Path) -> Result<tokio_postgres::Client, Failure> {
    let mut config = tokio_postgres::Config::new();
    config.host_path(socket_dir).user("postgres").dbname("postgres").connect_timeout(Duration::from_secs(5));
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn mariadb(socket_dir: &Path, database: &str) -> Result<mysql_async::Conn, Failure> {
    let socket = socket_dir.join("mariadb.sock");
    let options = mysql_async::OptsBuilder::default()
        .socket(Some(socket.to_string_lossy()))
        .user(Some("root"))
        .db_name(Some(database).filter(|d| !d.is_empty()));
    Ok(mysql_async::Conn::new(options).await?)
}

/// The role `@writer`: commits transactions one by one until it is killed, and notes each after its commit returned.
pub fn write(engine: &str, durability: &str, at: &Path, ledger: &Path) -> ExitCode {
    let ended = Ledger::open(ledger).map_err(Failure::from).and_then(|ledger| match engine {
        "sqlite" => write_sqlite(durability == Durability::Relaxed.word(), at, ledger),
        "postgresql" => runtime()?.block_on(write_postgres(at, ledger)),
        "mariadb" => runtime()?.block_on(write_mariadb(at, ledger)),
        other => Err(format!("write to `{other}`: no such engine").into()),
    });
    match ended {
        Ok(never) => match never {},
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn write_sqlite(relaxed: bool, at: &Path, mut ledger: Ledger) -> Result<std::convert::Infallible, Failure> {
    let db = sqlite(at)?;
    // Relaxed: nothing reaches the disk before a checkpoint, and there is none during the story.
    db.execute_batch(if relaxed {
        "PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0;"
    } else {
        "PRAGMA synchronous=FULL;"
    })?;
    let mut insert = db.prepare("INSERT INTO orders (id, note) VALUES (?1, ?2)")?;
    for id in 1.. {
        insert.execute((id, note(u64::try_from(id)?)))?;
        ledger.acknowledged(u64::try_from(id)?)?;
        thread::sleep(PACE);
    }
    unreachable!("an i64 of transactions")
}

async fn write_postgres(at: &Path, mut ledger: Ledger) -> Result<std::convert::Infallible, Failure> {
    let db = postgres(at).await?;
    let insert = db.prepare("INSERT INTO orders (id, note) VALUES ($1, $2)").await?;
    for id in 1_i64.. {
        db.execute(&insert, &[&id, &note(u64::try_from(id)?)]).await?;
        ledger.acknowledged(u64::try_from(id)?)?;
        thread::sleep(PACE);
    }
    unreachable!("an i64 of transactions")
}

async fn write_mariadb(at: &Path, mut ledger: Ledger) -> Result<std::convert::Infallible, Failure> {
    let mut db = mariadb(at, "demo").await?;
    for id in 1_i64.. {
        db.exec_drop("INSERT INTO orders (id, note) VALUES (?, ?)", (id, note(u64::try_from(id)?))).await?;
        ledger.acknowledged(u64::try_from(id)?)?;
        thread::sleep(PACE);
    }
    unreachable!("an i64 of transactions")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sqlite_stream(dir: &Path) -> Stream {
        Stream { engine: Engine::Sqlite, durability: Durability::Full, at: dir.to_owned(), ledger: dir.join("ledger") }
    }

    #[test]
    fn what_was_written_is_read_back_and_its_log_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        let stream = sqlite_stream(dir.path());
        stream.create().expect("a table");
        let writer = sqlite(dir.path()).expect("open");
        for id in 1..=3 {
            let row = (id, note(u64::try_from(id).expect("small")));
            writer.execute("INSERT INTO orders VALUES (?1, ?2)", row).expect("committed");
        }
        assert!(sqlite_recover(dir.path()).expect("whole") > 0);
        assert_eq!(stream.read().expect("rows"), BTreeSet::from([1, 2, 3]));
    }

    #[test]
    fn a_row_nobody_wrote_is_an_error_not_a_transaction() {
        let dir = tempfile::tempdir().expect("a directory");
        let stream = sqlite_stream(dir.path());
        stream.create().expect("a table");
        sqlite(dir.path()).expect("open").execute("INSERT INTO orders VALUES (1, 'half')", []).expect("committed");
        assert!(stream.read().expect_err("a torn row").to_string().contains("row 1"));
    }
}
