//! The session's own settings, so that it outlives the hold; and those of the server that decide what a copy is worth.

use std::{collections::BTreeMap, path::Path};

use tokio_postgres::error::SqlState;

use super::{
    super::database::{Deadline, Failed, Logs, coordinate},
    connect::{Login, Refused, text},
    transactions::counted,
};
use crate::proto::{Coordinate, Severity};

/// In every version that is held. Nothing of `ALTER ROLE … SET` or `ALTER DATABASE … SET` shall reach us.
const SESSION: &str = "SET search_path = pg_catalog;
     SET synchronous_commit = local; -- a marker must not wait for a standby that is away
     SET default_transaction_read_only = off;
     SET idle_in_transaction_session_timeout = 0; SET statement_timeout = 0; SET lock_timeout = '2s';
     SET max_parallel_workers_per_gather = 0; SET client_min_messages = error;";

/// Listed in the report if the server knows them; in this order.
const LISTED: [&str; 21] = [
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "synchronous_standby_names",
    "wal_level",
    "wal_sync_method",
    "wal_log_hints",
    "wal_keep_size",
    "wal_keep_segments",
    "data_checksums",
    "archive_mode",
    "checkpoint_timeout",
    "max_wal_size",
    "max_prepared_transactions",
    "recovery_min_apply_delay",
    "logging_collector",
    "log_destination",
    "log_directory",
    "log_statement",
    "log_min_duration_statement",
    "log_connections",
];

/// Something to tell about the server: severity, code, message, hint.
pub(super) type Remark = (Severity, &'static str, String, String);

/// What the server is set to, and how its helpers are doing.
#[derive(Debug, Default)]
pub(super) struct Settings {
    values: BTreeMap<String, String>,
    /// set to `off` for some role or database
    relaxed_for_some: bool,
    /// segments that wait to be archived for longer than a minute: how many, and the first of them
    not_archived: Option<(usize, String)>,
}

impl Settings {
    /// Makes the session outlive the hold.
    pub(super) async fn of_session(login: &Login, major: u32, deadline: Deadline) -> Result<(), Refused> {
        let mut settings = String::from(SESSION);
        if major >= 14 {
            settings.push_str("SET idle_session_timeout = 0;");
        }
        if major >= 17 {
            settings.push_str("SET transaction_timeout = 0;");
        }
        login.run(deadline, &settings).await
    }

    pub(super) async fn read(login: &Login, deadline: Deadline) -> Result<Settings, Refused> {
        let names = LISTED.map(|name| format!("'{name}'")).join(", ");
        // our own session's synchronous_commit says nothing about others'
        let sql = format!(
            "SELECT name, CASE name WHEN 'synchronous_commit' THEN reset_val ELSE current_setting(name) END AS value
             FROM pg_settings WHERE name IN ({names})"
        );
        let rows = login.rows(deadline, &sql).await?;
        let values = rows.iter().map(|row| (text(row, "name").to_owned(), text(row, "value").to_owned())).collect();
        let relaxed = "SELECT EXISTS (SELECT FROM pg_db_role_setting, unnest(setconfig) AS s (one)
                                      WHERE one = 'synchronous_commit=off')::text AS relaxed";
        let relaxed_for_some = text(&login.row(deadline, relaxed).await?, "relaxed") == "true";
        Ok(Settings { values, relaxed_for_some, not_archived: not_archived(login, deadline).await? })
    }

    pub(super) fn is(&self, name: &str, value: &str) -> bool {
        self.values.get(name).is_some_and(|is| is == value)
    }

    pub(super) fn get(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// For the report.
    pub(super) fn listed(&self) -> Vec<Coordinate> {
        LISTED.iter().filter_map(|name| Some(coordinate(name, self.values.get(*name)?))).collect()
    }

    pub(super) fn fsync(&self) -> bool {
        self.is("fsync", "on")
    }

    /// What the operator should know.
    pub(super) fn remarks(&self, logs: Logs) -> Vec<Remark> {
        let mut remarks = Vec::new();
        let mut say = |severity, code, message: &str, hint: &str| {
            remarks.push((severity, code, message.to_owned(), hint.to_owned()));
        };
        if !self.fsync() {
            say(
                Severity::Warning,
                "FSYNC_OFF",
                "fsync is off: the server asks for nothing to reach the disk, so nothing can be promised",
                "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf()",
            );
        }
        let relaxed = "commits acknowledged before the barrier are in the copy, later ones may not be";
        if self.is("synchronous_commit", "off") {
            say(Severity::Note, "RELAXED_DURABILITY", &format!("synchronous_commit is off: {relaxed}"), "");
        } else if self.relaxed_for_some {
            let message = format!("synchronous_commit is off for some role or database: {relaxed}");
            say(Severity::Note, "RELAXED_DURABILITY", &message, "");
        }
        if let Some((count, first)) = &self.not_archived {
            let message = format!(
                "its log is not being archived: {} waiting for longer than a minute, from {first} on",
                counted(*count, "segment")
            );
            say(
                Severity::Note,
                "ARCHIVE_FAILS",
                &message,
                "see archive_command and the server's log; a restore to a later point needs them",
            );
        }
        if logs == Logs::AfterThaw && matches!(self.kept(), "" | "0") {
            let message = format!(
                "the log this copy needs is kept until the server's next checkpoint ends (checkpoint_timeout = {}): copy the \
                 log volume before that",
                self.get("checkpoint_timeout")
            );
            let keep = if self.values.contains_key("wal_keep_size") {
                "wal_keep_size = '1GB'"
            } else {
                "wal_keep_segments = 64"
            };
            let hint = format!("ALTER SYSTEM SET {keep}; SELECT pg_reload_conf()");
            say(Severity::Note, "LOG_KEPT_BRIEFLY", &message, &hint);
        }
        remarks
    }

    /// What it means if the file or directory its messages go to is frozen. A collector reads them from a pipe, so that
    /// sessions wait once that is full; without one each writes for itself, and waits at once.
    pub(super) fn log_remark(&self, path: &Path) -> Option<Remark> {
        let (path, talkative) = (path.display(), self.is_talkative());
        let message = if self.is("logging_collector", "on") {
            format!("its log collector writes to {path}: while that is frozen, sessions that log a lot wait")
        } else if talkative {
            format!("it logs to {path}: while that is frozen, every session that logs anything waits")
        } else {
            return None;
        };
        let severity = if talkative { Severity::Warning } else { Severity::Note };
        let hint = "keep the log off the held disks, or log to syslog; or log less (log_statement, \
                    log_min_duration_statement, log_connections)";
        Some((severity, "LOG_ON_DISK", message, hint.to_owned()))
    }

    /// What is kept of the log behind the last checkpoint.
    fn kept(&self) -> &str {
        let size = self.get("wal_keep_size");
        if size.is_empty() { self.get("wal_keep_segments") } else { size }
    }

    /// Do ordinary statements or logins write to the log?
    fn is_talkative(&self) -> bool {
        !self.is("log_statement", "none")
            || !self.is("log_min_duration_statement", "-1")
            || !matches!(self.get("log_connections"), "" | "off")
    }
}

/// Asks for what is waiting, not for what has failed: a command that hangs fails never. (And before 15, pg_stat_archiver
/// asks a process that may be missing: measured, it then never answers.) `None` also if the role may not know.
async fn not_archived(login: &Login, deadline: Deadline) -> Result<Option<(usize, String)>, Refused> {
    let sql = "SELECT count(*)::text AS count, min(name) AS first FROM pg_ls_archive_statusdir()
               WHERE name LIKE '%.ready' AND modification < now() - interval '1min'";
    match login.row(deadline, sql).await {
        Ok(row) => {
            let (count, first) = (text(&row, "count").parse().unwrap_or(0), text(&row, "first"));
            Ok(Some((count, first.trim_end_matches(".ready").to_owned())).filter(|(count, _)| *count > 0))
        }
        Err(Failed::Refused(error)) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(None),
        Err(failed) => Err(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(values: &[(&str, &str)]) -> Settings {
        let careful = [("fsync", "on"), ("log_statement", "none"), ("log_min_duration_statement", "-1")];
        let values = careful.iter().chain(values).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings { values: values.collect(), ..Settings::default() }
    }

    fn codes(remarks: &[Remark]) -> Vec<&'static str> {
        remarks.iter().map(|(_, code, ..)| *code).collect()
    }

    #[test]
    fn a_careful_server_gets_no_remark() {
        assert_eq!(codes(&settings(&[("synchronous_commit", "on")]).remarks(Logs::WhileHeld)), Vec::<&str>::new());
    }

    #[test]
    fn a_relaxation_for_one_role_is_a_relaxation() {
        let some = Settings { relaxed_for_some: true, ..settings(&[("synchronous_commit", "on")]) };
        assert_eq!(codes(&some.remarks(Logs::WhileHeld)), ["RELAXED_DURABILITY"]);
    }

    #[test]
    fn a_log_is_a_warning_only_if_much_is_written_there() {
        let log = Path::new("/var/log/postgresql");
        let severity = |values: &[(&str, &str)]| settings(values).log_remark(log).map(|(severity, ..)| severity);
        let collector = ("logging_collector", "on");
        assert_eq!(severity(&[collector, ("log_connections", "off")]), Some(Severity::Note));
        assert_eq!(severity(&[("log_connections", "")]), None, "18 has a list there");
        for loud in [("log_statement", "all"), ("log_min_duration_statement", "0"), ("log_connections", "on")] {
            assert_eq!(severity(&[collector, loud]), Some(Severity::Warning), "{loud:?}");
            assert_eq!(severity(&[loud]), Some(Severity::Warning), "{loud:?}");
        }
    }

    #[test]
    fn how_long_the_log_is_kept_matters_only_if_it_is_copied_later() {
        let brief = settings(&[("wal_keep_size", "0"), ("checkpoint_timeout", "5min")]);
        assert_eq!(codes(&brief.remarks(Logs::WhileHeld)), Vec::<&str>::new());
        let remarks = brief.remarks(Logs::AfterThaw);
        assert_eq!(codes(&remarks), ["LOG_KEPT_BRIEFLY"]);
        assert!(remarks[0].2.contains("5min") && remarks[0].3.contains("wal_keep_size = '1GB'"), "{remarks:?}");
        let twelve = settings(&[("wal_keep_segments", "0")]);
        assert!(twelve.remarks(Logs::AfterThaw)[0].3.contains("wal_keep_segments"), "12 knows no wal_keep_size");
        assert_eq!(codes(&settings(&[("wal_keep_size", "2GB")]).remarks(Logs::AfterThaw)), Vec::<&str>::new());
    }
}
