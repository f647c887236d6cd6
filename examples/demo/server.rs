//! Throw-away database servers: their data on the demo's data disk, everything else on tmpfs. What is not installed on
//! this machine is not used; nothing of an installed server's own is touched.

use std::{
    fs, io,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::User};

use crate::{
    Failure,
    command::{Background, succeed},
    ledger::now,
    stream::{Durability, Engine, Stream},
};

/// Longest a server may take to be made, to start, to recover, or to stop.
const LIMIT: Duration = Duration::from_secs(45);

/// A server that can be run here: its programs, and the user it runs as.
#[derive(Debug, Clone)]
pub struct Installed {
    pub engine: Engine,
    make: PathBuf,
    serve: PathBuf,
    user: User,
}

/// Comes with the server alone, where mariadb-install-db needs more packages.
const SYSTEM_TABLES: &str = "/usr/share/mysql/mysql_system_tables.sql";

/// What mariadb-install-db does, with the server's own files; root is let in by its socket, as Debian sets it up.
const MAKE_MARIADB: &str = r#"
cd /usr/share/mysql || exit 1
{
    echo "create database if not exists mysql;"
    echo "use mysql;"
    echo "SET @auth_root_socket='root';"
    cat mysql_system_tables.sql mysql_performance_tables.sql mysql_system_tables_data.sql mysql_sys_schema.sql
} | "$0" --no-defaults --bootstrap --log-warnings=0 --max-allowed-packet=8M "$@"
"#;

impl Installed {
    /// PostgreSQL below /usr/lib/postgresql (the newest), if there is also a user `postgres`: it does not run as root.
    pub fn postgres() -> Option<Installed> {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let newest = versions.filter_map(|v| v.parse::<u32>().ok()).max()?;
        let bin = PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin"));
        let user = User::from_name("postgres").ok()??;
        Installed::of(Engine::Postgres, bin.join("initdb"), bin.join("postgres"), user)
    }

    /// MariaDB on the usual path; as user `mysql`, or as root where the server came without one.
    pub fn mariadb() -> Option<Installed> {
        let on_path =
            |name: &str| ["/usr/sbin", "/usr/bin"].map(|d| Path::new(d).join(name)).into_iter().find(|p| p.exists());
        let named = |name| User::from_name(name).ok().flatten();
        let user = named("mysql").or_else(|| named("root"))?;
        let serve = on_path("mariadbd")?;
        Installed::of(Engine::Mariadb, PathBuf::from(SYSTEM_TABLES), serve, user)
    }

    fn of(engine: Engine, make: PathBuf, serve: PathBuf, user: User) -> Option<Installed> {
        (make.exists() && serve.exists()).then_some(Installed { engine, make, serve, user })
    }

    /// Makes an empty cluster in `data`.
    ///
    /// # Errors
    /// The database's own tool failed.
    pub fn make(&self, data: &Path) -> Result<(), Failure> {
        self.own(data)?;
        let mut make = Command::new(&self.make);
        match self.engine {
            Engine::Postgres => {
                make.args(["--no-sync", "--auth=trust", "--username=postgres", "--locale=C", "--encoding=UTF8"]);
                make.arg("--data-checksums").arg("-D").arg(data);
                make.uid(self.user.uid.as_raw()).gid(self.user.gid.as_raw());
            }
            Engine::Mariadb => {
                make = Command::new("/bin/sh");
                make.args(["-c", MAKE_MARIADB]).arg(&self.serve);
                make.arg(format!("--user={}", self.user.name)).arg(format!("--datadir={}", data.display()));
            }
            Engine::Sqlite => unreachable!("SQLite has no server"),
        }
        succeed(make.current_dir("/"), LIMIT).map(drop)
    }

    /// Serves `data` for `stream`, and waits until it answers.
    ///
    /// # Errors
    /// It ended or did not answer in time; the sentence carries what it logged last.
    pub fn serve(&self, stream: &Stream, data: &Path, log: &Path) -> Result<Background, Failure> {
        self.own(&stream.at)?;
        let mut serve = Command::new(&self.serve);
        match self.engine {
            Engine::Postgres => {
                serve.uid(self.user.uid.as_raw()).gid(self.user.gid.as_raw());
                serve.arg("-D").arg(data).arg("-k").arg(&stream.at);
                let settings = [
                    "listen_addresses=",
                    "lc_messages=C",
                    "log_line_prefix=",
                    "shared_buffers=16MB",
                    "max_connections=20",
                    "autovacuum=off",
                ];
                let relaxed = ["synchronous_commit=off", "wal_writer_delay=10s", "wal_writer_flush_after=64MB"];
                let relaxed = relaxed.iter().filter(|_| stream.durability == Durability::Relaxed);
                for setting in settings.iter().chain(relaxed) {
                    serve.args(["-c", setting]);
                }
            }
            Engine::Mariadb => {
                let flush = match stream.durability {
                    Durability::Full => "--innodb-flush-log-at-trx-commit=1",
                    Durability::Relaxed => "--innodb-flush-log-at-trx-commit=0",
                };
                serve.args(["--no-defaults", "--skip-networking", flush, "--innodb-flush-log-at-timeout=2700"]);
                serve.args(["--innodb-log-file-size=16M", "--innodb-buffer-pool-size=32M"]);
                serve.arg(format!("--user={}", self.user.name)).arg(format!("--datadir={}", data.display()));
                for (option, file) in [("socket", "mariadb.sock"), ("pid-file", "mariadb.pid")] {
                    serve.arg(format!("--{option}={}", stream.at.join(file).display()));
                }
            }
            Engine::Sqlite => unreachable!("SQLite has no server"),
        }
        let mut process = Background::start(serve.current_dir("/"), log)?;
        let until = now() + LIMIT;
        while !stream.answers() {
            if let Some(status) = process.ended() {
                return Err(format!("start {stream}: {status}: {}", last_line(log)).into());
            }
            if now() > until {
                return Err(format!("reach {stream} within {LIMIT:?}: {}", last_line(log)).into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(process)
    }

    /// Stops a server the way it may be stopped when nobody needs its data any more.
    ///
    /// # Errors
    /// It did not end.
    pub fn stop(&self, process: Background) -> Result<(), Failure> {
        let signal = match self.engine {
            Engine::Postgres => Signal::SIGINT, // "fast"; its children end with it
            Engine::Mariadb | Engine::Sqlite => Signal::SIGTERM,
        };
        process.end(signal, LIMIT).map(drop)
    }

    /// Clears what the machine the copy was taken from had running: in the copy's own machine nothing runs.
    ///
    /// # Errors
    /// As unlink(2).
    pub fn forget_running(&self, data: &Path) -> io::Result<()> {
        match fs::remove_file(data.join("postmaster.pid")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// What recovery a server's start needed, in its own words.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn recovery(&self, log: &Path) -> io::Result<Recovery> {
        let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
        Ok(match self.engine {
            Engine::Postgres => postgres_recovery(&text),
            Engine::Mariadb => mariadb_recovery(&text),
            Engine::Sqlite => unreachable!("SQLite has no server"),
        })
    }

    fn own(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        chown(dir, Some(self.user.uid.as_raw()), Some(self.user.gid.as_raw()))
    }
}

/// How much log a server replayed when it opened a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// it found itself properly shut down, or nothing to replay
    Nothing,
    Replayed {
        bytes: u64,
    },
    /// it says it recovered, and not how much
    Untold,
}

/// "redo starts at 0/15001A8", "redo done at 0/1533E38 system usage …": the difference of the two positions.
fn postgres_recovery(log: &str) -> Recovery {
    let position = |after: &str| {
        let at = log.split_once(after)?.1.split_whitespace().next()?;
        let (high, low) = at.split_once('/')?;
        let hex = |digits| u64::from_str_radix(digits, 16).ok();
        Some((hex(high)? << 32) + hex(low)?)
    };
    match (position("redo starts at "), position("redo done at ")) {
        (Some(from), Some(to)) => Recovery::Replayed { bytes: to.saturating_sub(from) },
        (Some(_), None) => Recovery::Untold,
        (None, _) => Recovery::Nothing,
    }
}

/// "Starting crash recovery from checkpoint LSN=46846,46846", "End of log at LSN=130112".
fn mariadb_recovery(log: &str) -> Recovery {
    let position = |after: &str| {
        let digits = log.split_once(after)?.1;
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
    };
    match (position("crash recovery from checkpoint LSN="), position("End of log at LSN=")) {
        (Some(from), Some(to)) => Recovery::Replayed { bytes: to.saturating_sub(from) },
        (Some(_), None) => Recovery::Untold,
        (None, _) => Recovery::Nothing,
    }
}

fn last_line(log: &Path) -> String {
    let text = fs::read(log).map(|t| String::from_utf8_lossy(&t).into_owned()).unwrap_or_default();
    text.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("it logged nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgresql_tells_how_much_it_replayed() {
        let log = "\
LOG:  database system was not properly shut down; automatic recovery in progress
LOG:  redo starts at 0/14A2DD8
LOG:  invalid record length at 1/14A3E90: wanted 24, got 0
LOG:  redo done at 1/14A3E58 system usage: CPU: user: 0.00 s, system: 0.00 s, elapsed: 0.00 s
";
        assert_eq!(postgres_recovery(log), Recovery::Replayed { bytes: (1 << 32) + 0x1080 });
        assert_eq!(postgres_recovery("LOG:  database system was shut down at 2026-11-21"), Recovery::Nothing);
    }

    #[test]
    fn mariadb_tells_how_much_it_replayed() {
        let log = "\
2026-11-21  2:40:01 0 [Note] InnoDB: Starting crash recovery from checkpoint LSN=46846,46846
2026-11-21  2:40:01 0 [Note] InnoDB: End of log at LSN=130112
";
        assert_eq!(mariadb_recovery(log), Recovery::Replayed { bytes: 130_112 - 46_846 });
        assert_eq!(mariadb_recovery("[Note] InnoDB: log sequence number 46846"), Recovery::Nothing);
    }
}
