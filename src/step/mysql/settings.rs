//! The server's settings that decide how it is held and what that is worth, read once per session.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    flavour::Server,
    link::{Link, Trouble, if_allowed},
};
use crate::{
    proto::{self, Severity},
    step::database::{Deadline, coordinate},
};

/// A missing one does not exist in this version.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    values: BTreeMap<String, String>,
    /// names of active audit plugins
    pub audit: Vec<String>,
}

const VARIABLES: &str = "SHOW GLOBAL VARIABLES WHERE Variable_name IN (
    'datadir', 'innodb_data_home_dir', 'innodb_data_file_path', 'innodb_log_group_home_dir', 'innodb_undo_directory',
    'innodb_doublewrite_dir', 'log_bin', 'log_bin_basename', 'relay_log_basename', 'aria_log_dir_path',
    'keyring_file_data', 'file_key_management_filename', 'server_id', 'server_uuid', 'server_uid', 'gtid_domain_id',
    'gtid_mode', 'gtid_strict_mode', 'innodb_flush_log_at_trx_commit', 'innodb_flush_log_at_timeout', 'sync_binlog',
    'innodb_doublewrite', 'innodb_force_recovery', 'binlog_format', 'read_only', 'super_read_only', 'sql_require_primary_key',
    'general_log', 'general_log_file', 'slow_query_log', 'slow_query_log_file', 'long_query_time', 'log_output',
    'server_audit_logging', 'audit_log_file', 'max_connections', 'port', 'extra_port', 'admin_address', 'admin_port',
    'wsrep_on', 'wsrep_provider', 'wsrep_desync', 'group_replication_group_name',
    'replica_parallel_workers', 'slave_parallel_workers', 'replica_preserve_commit_order', 'slave_preserve_commit_order')";

/// What of these is told with a hold, in this order.
const TOLD: [&str; 15] = [
    "innodb_flush_log_at_trx_commit",
    "sync_binlog",
    "log_bin",
    "gtid_mode",
    "gtid_strict_mode",
    "binlog_format",
    "innodb_doublewrite",
    "innodb_redo_log_enabled",
    "innodb_force_recovery",
    "read_only",
    "super_read_only",
    "general_log",
    "slow_query_log",
    "log_output",
    "wsrep_on",
];

impl Settings {
    /// # Errors
    /// The connection failed.
    pub async fn read(link: &mut Link, server: &Server, deadline: Deadline) -> Result<Settings, Trouble> {
        let mut values = link.pairs(deadline, VARIABLES).await?;
        if !server.is_mariadb() {
            // Since 8.0.21 the redo log can be switched off, for loading data.
            values.extend(link.pairs(deadline, "SHOW GLOBAL STATUS LIKE 'Innodb\\_redo\\_log\\_enabled'").await?);
        }
        const AUDIT: &str = "SELECT PLUGIN_NAME FROM information_schema.PLUGINS \
                             WHERE PLUGIN_TYPE = 'AUDIT' AND PLUGIN_STATUS = 'ACTIVE'";
        let audit = if_allowed(link.table::<1>(deadline, AUDIT).await)?.unwrap_or_default();
        Ok(Settings { values, audit: audit.into_iter().map(|[name]| name).collect() })
    }

    #[cfg(test)]
    pub fn of(values: &[(&str, &str)]) -> Settings {
        let values = values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Settings { values, audit: Vec::new() }
    }

    /// Empty: it is empty, or there is none.
    pub fn get(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    pub fn is_on(&self, name: &str) -> bool {
        matches!(self.get(name), "ON" | "1")
    }

    pub fn told(&self) -> Vec<proto::Coordinate> {
        TOLD.iter().filter_map(|name| Some(coordinate(name, self.values.get(*name)?))).collect()
    }

    /// InnoDB writes its redo log: always, unless it was switched off.
    pub fn writes_redo(&self) -> bool {
        self.get("innodb_redo_log_enabled") != "OFF"
    }

    /// Commits are acknowledged before they are on disk.
    pub fn is_relaxed(&self) -> bool {
        !matches!(self.get("innodb_flush_log_at_trx_commit"), "1" | "3" | "")
            || (self.is_on("log_bin") && self.get("sync_binlog") != "1")
    }

    /// The log of every statement, if its disk being frozen would make all of them wait.
    /// A log that takes every statement: what to say if it lies on a frozen disk, with where it does. In the data directory if
    /// it is a table, or a file of a relative name.
    pub fn statement_log(&self) -> Option<(PathBuf, &'static str, &'static str)> {
        if self.get("log_output") == "NONE" {
            return None;
        }
        let every_slow = self.is_on("slow_query_log") && self.get("long_query_time").parse() == Ok(0.0);
        let (file, message, hint) = if self.is_on("general_log") {
            let message = "general_log is on: while the disk of that log is frozen every statement waits, reads too";
            ("general_log_file", message, "SET GLOBAL general_log = OFF; or keep the log off the held disks")
        } else if every_slow {
            let message = "the slow query log takes every statement: while its disk is frozen they all wait, reads too";
            ("slow_query_log_file", message, "SET GLOBAL long_query_time = 1; or keep the log off the held disks")
        } else {
            return None;
        };
        let file = if self.log_tables() { "" } else { self.get(file) };
        Some((PathBuf::from(self.get("datadir")).join(file), message, hint))
    }

    /// Logs that are tables of their own: no lock keeps the server from writing to them.
    fn log_tables(&self) -> bool {
        let to_tables = self.get("log_output").split(',').any(|output| output.eq_ignore_ascii_case("TABLE"));
        to_tables && (self.is_on("general_log") || self.is_on("slow_query_log"))
    }

    /// Plugins of this type also rewrite queries, count attempts or clean caches: what writes a log says so in its name.
    fn audit_log(&self) -> Option<String> {
        let logs = |name: &&str| {
            let name = name.to_ascii_lowercase();
            let idle = name == "server_audit" && !self.is_on("server_audit_logging");
            name.contains("audit") && !idle && !matches!(name.as_str(), "query_response_time_audit" | "null_audit")
        };
        let names: Vec<&str> = self.audit.iter().map(String::as_str).filter(logs).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// What the operator should know of these: (severity, code, message, hint).
    pub fn remarks(&self, server: &Server) -> Vec<(Severity, &'static str, String, String)> {
        let mut remarks = Vec::new();
        let mut say = |severity, code, message: &str, hint: &str| {
            remarks.push((severity, code, message.to_owned(), hint.to_owned()));
        };
        if self.log_tables() && !server.has_stages() {
            let message =
                "statements are logged into tables, which no lock keeps quiet: those logs may be damaged in the copy";
            say(Severity::Note, "LOG_TABLES", message, "SET GLOBAL log_output = 'FILE'");
        }
        if let Some(names) = self.audit_log() {
            let message = format!(
                "the audit plugin {names} is active: if its log lies on a frozen disk, statements wait, reads too"
            );
            say(Severity::Warning, "AUDIT_LOG", &message, "keep the audit log off the held disks");
        }
        if !self.is_on("log_bin") {
            let message = "there is no binary log: the copy cannot be rolled forward, and no position shows what was committed \
                           before it";
            say(Severity::Note, "NO_BINARY_LOG", message, "");
        }
        if self.is_relaxed() {
            let message = "commits are acknowledged before they are on disk; the barrier writes them out";
            say(Severity::Note, "RELAXED_DURABILITY", message, "");
        }
        if !self.writes_redo() {
            let message = "InnoDB's redo log is switched off: a server does not start from a copy taken now";
            say(Severity::Warning, "REDO_LOG_DISABLED", message, "ALTER INSTANCE ENABLE INNODB REDO_LOG");
        }
        if !matches!(self.get("innodb_force_recovery"), "" | "0") {
            let message = "innodb_force_recovery is set: the server runs on damaged data, and so would the copy";
            say(Severity::Warning, "FORCED_RECOVERY", message, "restore the server first");
        }
        remarks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(values: &[(&str, &str)], version: &str) -> Vec<&'static str> {
        let server = Server::told(version, "").expect("a version");
        let mut strict = vec![
            ("log_bin", "ON"),
            ("sync_binlog", "1"),
            ("innodb_flush_log_at_trx_commit", "1"),
            ("log_output", "FILE"),
        ];
        strict.extend(values);
        Settings::of(&strict).remarks(&server).into_iter().map(|(_, code, _, _)| code).collect()
    }

    #[test]
    fn strict_settings_need_no_remark() {
        assert_eq!(codes(&[], "9.7.4"), [""; 0]);
        assert_eq!(codes(&[("innodb_redo_log_enabled", "ON"), ("innodb_force_recovery", "0")], "9.7.4"), [""; 0]);
    }

    #[test]
    fn a_log_of_every_statement_is_known_by_where_it_goes() {
        let log = |values: &[(&str, &str)]| {
            let of_server =
                [("datadir", "/srv/db/"), ("general_log_file", "own.log"), ("slow_query_log_file", "/logs/slow")];
            let settings = Settings::of(&[&of_server, values].concat());
            settings.statement_log().map(|(path, ..)| path.display().to_string())
        };
        assert_eq!(log(&[("general_log", "ON")]).as_deref(), Some("/srv/db/own.log"));
        assert_eq!(log(&[("general_log", "ON"), ("log_output", "NONE")]), None);
        assert_eq!(log(&[("general_log", "ON"), ("log_output", "FILE,TABLE")]).as_deref(), Some("/srv/db/"));
        let all_slow = [("slow_query_log", "ON"), ("long_query_time", "0.000000")];
        assert_eq!(log(&all_slow).as_deref(), Some("/logs/slow"));
        assert_eq!(log(&[("slow_query_log", "ON"), ("long_query_time", "10.000000")]), None);
        assert_eq!(codes(&[("general_log", "ON"), ("log_output", "FILE,TABLE")], "9.7.4"), ["LOG_TABLES"]);
    }

    #[test]
    fn relaxed_and_missing_logs_are_said() {
        assert_eq!(codes(&[("sync_binlog", "0")], "9.7.4"), ["RELAXED_DURABILITY"]);
        assert_eq!(codes(&[("innodb_flush_log_at_trx_commit", "2")], "9.7.4"), ["RELAXED_DURABILITY"]);
        assert_eq!(codes(&[("log_bin", "OFF"), ("sync_binlog", "0")], "9.7.4"), ["NO_BINARY_LOG"]);
        assert_eq!(codes(&[("innodb_redo_log_enabled", "OFF")], "9.7.4"), ["REDO_LOG_DISABLED"]);
    }

    #[test]
    fn an_audit_plugin_that_logs_nothing_is_no_matter() {
        let mut settings = Settings::of(&[("server_audit_logging", "OFF")]);
        settings.audit = ["SERVER_AUDIT", "mysqlx_cache_cleaner", "CONNECTION_CONTROL"].map(str::to_owned).to_vec();
        assert_eq!(settings.audit_log(), None);
        settings.audit.push("audit_log".to_owned());
        assert_eq!(settings.audit_log().as_deref(), Some("audit_log"));
    }
}
