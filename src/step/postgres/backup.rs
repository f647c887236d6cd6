//! Backup mode: for a log that is copied later than the data.
//!
//! ```text
//!   start (nobody waits) ──▶ marker ──▶ data disks freeze, are copied, thaw ──▶ stop: the label ──▶ log copied
//! ```
//!
//! Between start and stop the server logs whole pages, so that replaying from the start repairs whatever the data was
//! copied in the middle of. The copy learns where to start from the label, which only the stop gives out; without it the
//! server would start from another checkpoint and may call a corrupt result clean (measured). Both calls must be of one
//! session: if that ends, the server ends the backup and there is no label.

use std::time::Duration;

use tokio_postgres::Row;

use super::{
    super::database::{Deadline, coordinate},
    connect::{Login, Refused, text},
    position,
};
use crate::proto::Coordinate;

/// A backup that was started by this session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Started {
    /// where replay will have to begin
    lsn: String,
    /// what it is called in its label
    name: String,
}

/// What restoring the copy takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ended {
    /// `backup_label`, byte for byte
    pub label: String,
    /// `tablespace_map`, byte for byte; empty without tablespaces
    pub tablespaces: String,
    pub coordinates: Vec<Coordinate>,
}

/// The functions' names until 14, and since.
fn functions(major: u32) -> [&'static str; 2] {
    if major >= 15 {
        ["pg_backup_start(text,boolean)", "pg_backup_stop(boolean)"]
    } else {
        ["pg_start_backup(text,boolean,boolean)", "pg_stop_backup(boolean,boolean)"]
    }
}

/// Why this server cannot be put into backup mode, with the cure; looked at before anything is done.
pub(super) async fn why_not(
    login: &Login,
    major: u32,
    in_recovery: bool,
    deadline: Deadline,
) -> Result<Option<(String, String)>, Refused> {
    let functions = functions(major);
    let [start, stop] = functions;
    let sql = format!(
        "SELECT current_setting('wal_level') AS level, current_setting('fsync') AS fsync,
                (has_function_privilege('{start}', 'EXECUTE') AND has_function_privilege('{stop}', 'EXECUTE'))::text
                AS permitted"
    );
    let row = login.row(deadline, &sql).await?;
    Ok(if text(&row, "level") == "minimal" && !in_recovery {
        Some((
            "its log is to be copied after the thaw, which needs backup mode, and wal_level is minimal".to_owned(),
            "ALTER SYSTEM SET wal_level = 'replica', and restart the server; or copy everything while held".to_owned(),
        ))
    } else if text(&row, "fsync") != "on" {
        Some((
            "its log is to be copied after the thaw, and fsync is off, so nothing says how much of it is on disk then"
                .to_owned(),
            "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf()".to_owned(),
        ))
    } else if text(&row, "permitted") == "true" {
        None
    } else {
        Some((
            format!(
                "its log is to be copied after the thaw, and its role {} may not start and stop a backup",
                login.user
            ),
            format!("GRANT EXECUTE ON FUNCTION {} TO \"{}\"", functions.join(", "), login.user),
        ))
    })
}

/// Starts one. It makes a checkpoint of its own, as fast as the disk allows: nobody waits for it, but it takes its time.
pub(super) async fn start(login: &Login, major: u32, hold_id: &str, deadline: Deadline) -> Result<Started, Refused> {
    let sql = if major >= 15 {
        "SELECT pg_backup_start($1, true)::text AS lsn"
    } else {
        "SELECT pg_start_backup($1, true, false)::text AS lsn"
    };
    let name = format!("holdstill {hold_id}");
    let row = login.row_about(deadline, sql, &name).await?;
    Ok(Started { lsn: text(&row, "lsn").to_owned(), name })
}

impl Started {
    pub(super) fn coordinate(&self) -> Coordinate {
        coordinate("backup_start_lsn", &self.lsn)
    }

    /// Ends it. Never waits for the archive: that may take for ever, and the log volume has the same.
    ///
    /// # Errors
    /// Why the copy is worth nothing.
    pub(super) async fn stop(
        &self,
        login: &Login,
        major: u32,
        deadline: Deadline,
        explain: impl Fn(Refused) -> String,
    ) -> Result<Ended, String> {
        // Converted to the database's own encoding, which is to say not at all: paths are bytes.
        let call = if major >= 15 { "pg_backup_stop(false)" } else { "pg_stop_backup(false, false)" };
        let sql = format!(
            "SELECT lsn::text AS lsn, convert_to(labelfile, getdatabaseencoding()) AS label,
                    convert_to(spcmapfile, getdatabaseencoding()) AS tablespaces
             FROM {call}"
        );
        let row = login.row(deadline, &sql).await.map_err(&explain)?;
        let (label, tablespaces) = (content(&row, "label")?, content(&row, "tablespaces")?);
        let first = self.read(&label)?;
        let stop = text(&row, "lsn").to_owned();
        if position::lsn(&stop) < position::lsn(&self.lsn) {
            return Err(format!("the backup ended at {stop}, before its start at {}", self.lsn));
        }
        let kept = "SELECT (count(*) > 0)::text AS kept FROM pg_ls_waldir() WHERE name = $1";
        let row = login.row_about(deadline, kept, &first).await.map_err(&explain)?;
        if text(&row, "kept") != "true" {
            return Err(format!(
                "the server has already removed {first}, the first segment of its log that the copy needs"
            ));
        }
        let coordinates = vec![coordinate("backup_stop_lsn", stop), coordinate("backup_first_wal_file", first)];
        Ok(Ended { label, tablespaces, coordinates })
    }

    /// Checks that a label is the one of this backup, and answers the first segment its restore needs.
    fn read(&self, label: &str) -> Result<String, String> {
        let value = |key: &str| label.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        let place = value("START WAL LOCATION").and_then(|place| place.strip_suffix(')')?.split_once(" (file "));
        let Some((lsn, segment)) = place else {
            return Err("the label it gave has no start".to_owned());
        };
        if lsn != self.lsn || value("LABEL") != Some(&self.name) {
            return Err(format!("the label it gave is of another backup, which began at {lsn}"));
        }
        Ok(segment.to_owned())
    }
}

fn content(row: &Row, column: &str) -> Result<String, String> {
    let bytes = row.try_get::<_, Option<Vec<u8>>>(column).map_err(|error| error.to_string())?.unwrap_or_default();
    String::from_utf8(bytes)
        .map_err(|_| "a path of its tablespaces is not UTF-8, which a report cannot hold".to_owned())
}

/// Of the time for stopping, what is kept to read the end.
pub(super) const READ_ROOM: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
                         CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
                         START TIME: 2026-11-21 08:00:00 UTC\nLABEL: holdstill nightly-1\nSTART TIMELINE: 1\n";

    fn started(lsn: &str, name: &str) -> Started {
        Started { lsn: lsn.to_owned(), name: name.to_owned() }
    }

    #[test]
    fn a_label_says_where_the_log_must_begin() {
        let segment = started("0/2000028", "holdstill nightly-1").read(LABEL);
        assert_eq!(segment.as_deref(), Ok("000000010000000000000002"));
    }

    #[test]
    fn a_label_of_another_backup_is_none() {
        assert!(started("0/3000028", "holdstill nightly-1").read(LABEL).is_err());
        assert!(started("0/2000028", "holdstill nightly-2").read(LABEL).is_err());
        assert!(started("0/2000028", "holdstill nightly-1").read("").is_err());
    }

    #[test]
    fn the_functions_were_renamed_in_15() {
        assert_eq!(functions(14), ["pg_start_backup(text,boolean,boolean)", "pg_stop_backup(boolean,boolean)"]);
        assert_eq!(functions(15), ["pg_backup_start(text,boolean)", "pg_backup_stop(boolean)"]);
    }
}
