//! Which server it is: MariaDB, MySQL or Percona's MySQL, and what its version can do. A program called `mysqld` may be
//! any of them; only what it says after the login counts.

/// (major, minor, patch)
type Version = (u32, u32, u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavour {
    MariaDb,
    MySql,
    Percona,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub flavour: Flavour,
    version: Version,
    /// as the server tells it
    pub full: String,
}

/// The oldest versions whose behaviour is known here. Older ones lack statements this file relies on.
const OLDEST_MARIADB: Version = (10, 1, 0);
const OLDEST_MYSQL: Version = (5, 7, 0);

impl Server {
    /// From `VERSION()` and `@@version_comment`; `None` if it has no version one could read.
    pub fn told(version: &str, comment: &str) -> Option<Server> {
        let lower = version.to_ascii_lowercase();
        let flavour = if lower.contains("mariadb") {
            Flavour::MariaDb
        } else if comment.to_ascii_lowercase().contains("percona") {
            Flavour::Percona
        } else {
            Flavour::MySql
        };
        // Old clients were told 5.5.5 first, or they would not talk to a version 10; some proxies still do.
        let numbers = version.strip_prefix("5.5.5-").filter(|_| flavour == Flavour::MariaDb).unwrap_or(version);
        let mut numbers = numbers.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        let version_numbers = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(Server { flavour, version: version_numbers, full: version.to_owned() })
    }

    /// "mariadb" or "mysql", as `Database.engine` tells it.
    pub fn engine(&self) -> &'static str {
        match self.flavour {
            Flavour::MariaDb => "mariadb",
            Flavour::MySql | Flavour::Percona => "mysql",
        }
    }

    pub fn name(&self) -> &'static str {
        match self.flavour {
            Flavour::MariaDb => "MariaDB",
            Flavour::MySql => "MySQL",
            Flavour::Percona => "Percona Server",
        }
    }

    pub fn is_mariadb(&self) -> bool {
        self.flavour == Flavour::MariaDb
    }

    fn mysql_since(&self, version: Version) -> bool {
        !self.is_mariadb() && self.version >= version
    }

    fn mariadb_since(&self, version: Version) -> bool {
        self.is_mariadb() && self.version >= version
    }

    /// The version from which on this engine can be held, if this one is older.
    pub fn too_old(&self) -> Option<&'static str> {
        let (oldest, named) = if self.is_mariadb() { (OLDEST_MARIADB, "10.1") } else { (OLDEST_MYSQL, "5.7") };
        (self.version < oldest).then_some(named)
    }

    /// BACKUP STAGE.
    pub fn has_stages(&self) -> bool {
        self.mariadb_since((10, 4, 0))
    }

    /// LOCK INSTANCE FOR BACKUP, `performance_schema.log_status` and dynamic privileges came together.
    pub fn has_instance_lock(&self) -> bool {
        self.mysql_since((8, 0, 11))
    }

    /// What KILL on other people's sessions needs.
    pub fn privilege_to_kill(&self) -> &'static str {
        if self.has_instance_lock() {
            "CONNECTION_ADMIN"
        } else if self.mariadb_since((10, 5, 2)) {
            "CONNECTION ADMIN"
        } else {
            "SUPER"
        }
    }

    /// `PS_CURRENT_THREAD_ID()`: names our own thread without any grant.
    pub fn knows_its_thread(&self) -> bool {
        self.mysql_since((8, 0, 16))
    }

    /// Where its binary log stands.
    pub fn binary_log_status(&self) -> &'static str {
        if self.mysql_since((8, 2, 0)) { "SHOW BINARY LOG STATUS" } else { "SHOW MASTER STATUS" }
    }

    /// What it replicates from, all channels.
    pub fn replica_status(&self) -> &'static str {
        if self.is_mariadb() {
            "SHOW ALL SLAVES STATUS"
        } else if self.mysql_since((8, 0, 22)) {
            "SHOW REPLICA STATUS"
        } else {
            "SHOW SLAVE STATUS"
        }
    }

    /// `statement`, which the server itself ends after so many milliseconds.
    pub fn limited(&self, milliseconds: u64, select: &str) -> String {
        if self.is_mariadb() {
            let seconds = format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000);
            format!("SET STATEMENT max_statement_time = {seconds} FOR SELECT {select}")
        } else {
            format!("SELECT /*+ MAX_EXECUTION_TIME({milliseconds}) */ {select}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(version: &str, comment: &str) -> Server {
        Server::told(version, comment).expect("a version")
    }

    #[test]
    fn what_calls_itself_mysqld_is_told_by_its_version() {
        let mariadb = told("10.11.14-MariaDB-0+deb12u2", "Debian 12");
        assert_eq!((mariadb.flavour, mariadb.version), (Flavour::MariaDb, (10, 11, 14)));
        assert_eq!(told("5.5.5-10.4.1-MariaDB", "").version, (10, 4, 1));
        assert_eq!(told("8.4.3", "MySQL Community Server - GPL").flavour, Flavour::MySql);
        assert_eq!(told("8.0.36-28", "Percona Server (GPL), Release 28").flavour, Flavour::Percona);
        assert_eq!(told("5.7.44-log", "").version, (5, 7, 44));
        assert_eq!(Server::told("next", ""), None);
    }

    #[test]
    fn each_version_is_asked_for_what_it_has() {
        let (new, eight, old) = (told("9.7.4-2", ""), told("8.0.36", ""), told("5.7.44", ""));
        assert!(new.has_instance_lock() && eight.has_instance_lock() && !old.has_instance_lock());
        assert_eq!(new.binary_log_status(), "SHOW BINARY LOG STATUS");
        assert_eq!(told("8.4.0", "").binary_log_status(), "SHOW BINARY LOG STATUS");
        assert_eq!(eight.binary_log_status(), "SHOW MASTER STATUS");
        assert_eq!((eight.replica_status(), old.replica_status()), ("SHOW REPLICA STATUS", "SHOW SLAVE STATUS"));
        let maria = told("11.8.6-MariaDB-log", "");
        assert!(maria.has_stages() && !maria.has_instance_lock() && !told("10.3.39-MariaDB", "").has_stages());
        assert_eq!(maria.binary_log_status(), "SHOW MASTER STATUS");
        assert!(!new.has_stages(), "9.7 is not a MariaDB newer than 10.4");
    }

    #[test]
    fn what_is_too_old_is_told_the_version_it_needs() {
        assert_eq!(told("5.6.51", "").too_old(), Some("5.7"));
        assert_eq!(told("5.5.68-MariaDB", "").too_old(), Some("10.1"));
        assert_eq!(told("5.7.44", "").too_old(), None);
        assert_eq!(told("10.3.39-MariaDB", "").too_old(), None);
    }
}
