//! The least an account needs to hold a database, as SQL to paste. `holdstill check --sql` prints it.
//!
//! What each grant is for was measured: PostgreSQL 15, 17 and 18, MariaDB 10.11 and 11.8, MySQL 9.7; for others it is what
//! their manuals say.

use std::fmt::Write;

/// Whose SQL it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavour {
    Postgresql,
    Mysql,
    Mariadb,
}

impl Flavour {
    pub const ALL: [Flavour; 3] = [Flavour::Postgresql, Flavour::Mysql, Flavour::Mariadb];

    /// As reports name engines.
    pub fn named(engine: &str) -> Option<Flavour> {
        Flavour::ALL.into_iter().find(|flavour| flavour.name() == engine)
    }

    pub fn name(self) -> &'static str {
        match self {
            Flavour::Postgresql => "postgresql",
            Flavour::Mysql => "mysql",
            Flavour::Mariadb => "mariadb",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Flavour::Postgresql => "PostgreSQL",
            Flavour::Mysql => "MySQL",
            Flavour::Mariadb => "MariaDB",
        }
    }
}

/// What a version's grants are called. Unknown: the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

const NEWEST: Version = Version(u32::MAX, 0);

/// "10.11.14-MariaDB-0+deb12u2", "15.14 (Debian …)", "9.7.4"
fn version(text: &str) -> Version {
    let text = text.strip_prefix("5.5.5-").unwrap_or(text); // MariaDB says so to old clients
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), minor) => Version(major, minor.unwrap_or(0)),
        (None, _) => NEWEST,
    }
}

/// SQL for a server of this version, comments included; `said`: what it called its version, if it is known.
pub fn sql(flavour: Flavour, said: Option<&str>) -> String {
    let version = said.map_or(NEWEST, version);
    let known = said.map_or_else(|| "any version".to_owned(), |said| said.to_owned());
    let mut out = format!("-- {} ({known})\n", flavour.title());
    out.push_str(&match flavour {
        Flavour::Postgresql => postgresql(version),
        Flavour::Mysql => mysql(version),
        Flavour::Mariadb => mariadb(version),
    });
    out
}

fn postgresql(version: Version) -> String {
    let mut out = String::from(
        "-- Without settings the daemon logs in as the server's own system user (role postgres, `peer`): nothing is needed then.\n\
         -- For a role of its own: in pg_ident.conf `holdstill postgres holdstill`, first in pg_hba.conf\n\
         -- `local postgres holdstill peer map=holdstill`, then `user = \"holdstill\"` for it in holdstill.toml.\n\
         CREATE ROLE holdstill LOGIN;\n\
         -- where its files are, who is in the way\n\
         GRANT pg_monitor TO holdstill;\n",
    );
    let (checkpoint, functions) = if version >= Version(15, 0) {
        (
            "-- less to recover in the copy\nGRANT pg_checkpoint TO holdstill;\n",
            "pg_backup_start(text, boolean), pg_backup_stop(boolean)",
        )
    } else {
        (
            "-- before 15 only a superuser may CHECKPOINT: without it the copy has more to recover\n",
            "pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean)",
        )
    };
    let _ = write!(
        out,
        "{checkpoint}-- only for copies whose WAL is taken after the thaw (--capture logs-after-thaw)\n\
         GRANT EXECUTE ON FUNCTION {functions} TO holdstill;\n"
    );
    if version >= Version(16, 0) {
        out.push_str("-- a connection although max_connections is reached, if reserved_connections is set\n");
        out.push_str("GRANT pg_use_reserved_connections TO holdstill;\n");
    }
    if version == NEWEST {
        out.push_str(
            "-- 12 to 14 have no pg_checkpoint, and call the functions pg_start_backup(text, boolean, boolean) and\n\
             -- pg_stop_backup(boolean, boolean); before 16 there is no pg_use_reserved_connections.\n",
        );
    }
    out
}

fn mysql(version: Version) -> String {
    let mut out = String::from(
        "-- The daemon runs as root: the kernel tells the server so, and no password is needed. Set `user = \"holdstill\"`\n\
         -- for it in holdstill.toml. If the plugin is missing: INSTALL PLUGIN auth_socket SONAME 'auth_socket.so';\n\
         CREATE USER holdstill@localhost IDENTIFIED WITH auth_socket AS 'root';\n",
    );
    if version < Version(8, 0) {
        out.push_str(
            "-- FLUSH, who is in the way, where the logs stand\n\
             GRANT RELOAD, PROCESS, REPLICATION CLIENT ON *.* TO holdstill@localhost;\n\
             -- it records no locks unless told to: to show one, and without a binary log\n\
             GRANT LOCK TABLES ON mysql.* TO holdstill@localhost;\n\
             GRANT SELECT ON mysql.time_zone TO holdstill@localhost;\n",
        );
    } else {
        out.push_str(
            "-- LOCK INSTANCE FOR BACKUP, FLUSH, who is in the way, where the logs stand\n\
             GRANT BACKUP_ADMIN, FLUSH_TABLES, RELOAD, PROCESS, REPLICATION CLIENT ON *.* TO holdstill@localhost;\n\
             GRANT SELECT ON performance_schema.log_status TO holdstill@localhost;\n",
        );
    }
    out.push_str(
        "-- the proof that the lock was held throughout\n\
         GRANT SELECT ON performance_schema.metadata_locks TO holdstill@localhost;\n\
         GRANT SELECT ON performance_schema.threads TO holdstill@localhost;\n\
         -- whether it is a member of a group, which a lock would stop\n\
         GRANT SELECT ON performance_schema.replication_group_members TO holdstill@localhost;\n\
         -- to see that a table is not transactional; without it the list of tables is empty\n\
         GRANT REFERENCES ON *.* TO holdstill@localhost;\n\
         -- only where tables are not transactional: to lock just those (it also lets the account read every table)\n\
         -- GRANT LOCK TABLES, SELECT ON *.* TO holdstill@localhost;\n",
    );
    if version >= Version(8, 0) {
        out.push_str(
            "-- prepared XA transactions, told in the report\n\
             GRANT XA_RECOVER_ADMIN ON *.* TO holdstill@localhost;\n\
             -- only for `kill_queries = true`\n\
             -- GRANT CONNECTION_ADMIN ON *.* TO holdstill@localhost;\n",
        );
    } else {
        out.push_str("-- only for `kill_queries = true`\n-- GRANT SUPER ON *.* TO holdstill@localhost;\n");
    }
    if version == NEWEST {
        out.push_str("-- 5.7 has neither BACKUP_ADMIN nor FLUSH_TABLES nor log_status, XA_RECOVER_ADMIN, CONNECTION_ADMIN: leave them out.\n");
    }
    out
}

fn mariadb(version: Version) -> String {
    let mut out = String::from(
        "-- The daemon runs as root, and root@localhost gets in by unix_socket (the default since 10.4): nothing is needed then.\n\
         -- For an account of its own, with the password in a `password_file` and `user = \"holdstill\"` in holdstill.toml:\n\
         CREATE USER holdstill@localhost IDENTIFIED BY 'change me';\n",
    );
    let monitor = if version >= Version(10, 5) { "BINLOG MONITOR, SLAVE MONITOR" } else { "REPLICATION CLIENT" };
    let _ = write!(
        out,
        "-- BACKUP STAGE and FLUSH, who is in the way, where the logs stand\n\
         GRANT RELOAD, PROCESS, {monitor} ON *.* TO holdstill@localhost;\n\
         -- to see that a table is not transactional; without it the list of tables is empty\n\
         GRANT REFERENCES ON *.* TO holdstill@localhost;\n\
         -- only under innodb_flush_log_at_trx_commit = 0: it is 1 for a moment, or commits stay in memory\n\
         -- GRANT SUPER ON *.* TO holdstill@localhost;\n\
         -- only for `strategy = \"table-locks\"`\n\
         -- GRANT LOCK TABLES, SELECT ON *.* TO holdstill@localhost;\n"
    );
    let killer = if version >= Version(10, 5) { "CONNECTION ADMIN" } else { "SUPER" };
    let _ = writeln!(out, "-- only for `kill_queries = true`\n-- GRANT {killer} ON *.* TO holdstill@localhost;");
    if version == NEWEST {
        out.push_str("-- before 10.5: REPLICATION CLIENT for BINLOG MONITOR and SLAVE MONITOR.\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without comments, that is.
    fn statements(flavour: Flavour, version: Option<&str>) -> Vec<String> {
        sql(flavour, version).lines().filter(|line| !line.starts_with("--")).map(str::to_owned).collect()
    }

    #[test]
    fn versions_are_read_as_servers_write_them() {
        assert_eq!(version("15.14 (Debian 15.14-0+deb12u1)"), Version(15, 14));
        assert_eq!(version("5.5.5-10.4.1-MariaDB"), Version(10, 4));
        assert_eq!(version("18"), Version(18, 0));
        assert_eq!(version("devel"), NEWEST);
    }

    #[test]
    fn every_version_is_granted_what_it_has_and_nothing_it_has_not() {
        let has = |flavour, version, words: &str| statements(flavour, Some(version)).iter().any(|s| s.contains(words));
        assert!(
            has(Flavour::Postgresql, "15.14", "pg_checkpoint") && !has(Flavour::Postgresql, "14.1", "pg_checkpoint")
        );
        assert!(has(Flavour::Postgresql, "13.9", "pg_start_backup(text, boolean, boolean)"));
        assert!(has(Flavour::Postgresql, "16.0", "reserved") && !has(Flavour::Postgresql, "15.9", "reserved"));
        assert!(has(Flavour::Mysql, "9.7.4", "BACKUP_ADMIN") && !has(Flavour::Mysql, "5.7.44-log", "BACKUP_ADMIN"));
        assert!(has(Flavour::Mariadb, "10.11.14-MariaDB", "BINLOG MONITOR, SLAVE MONITOR"));
        assert!(has(Flavour::Mariadb, "10.4.1-MariaDB", "REPLICATION CLIENT"));
    }

    #[test]
    fn what_reads_tables_or_changes_globals_is_never_granted_unasked() {
        for flavour in Flavour::ALL {
            for version in [None, Some("5.7.1"), Some("10.3.0"), Some("11.8.6"), Some("18.1")] {
                for statement in statements(flavour, version) {
                    let reads_all = statement.contains("SELECT ON *.*");
                    assert!(!reads_all && !statement.contains("SUPER") && statement.ends_with(';'), "{statement}");
                }
            }
        }
    }

    #[test]
    fn without_a_version_what_older_ones_lack_is_said() {
        for flavour in Flavour::ALL {
            let any = sql(flavour, None);
            assert!(
                any.contains("(any version)") && any.lines().last().is_some_and(|line| line.starts_with("-- ")),
                "{any}"
            );
        }
    }
}
