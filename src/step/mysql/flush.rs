//! Brings to the disk what was acknowledged before it was there, and proves it.
//!
//! A freeze writes out everything the server has written; what is still in InnoDB's own buffer is not written yet. With
//! `innodb_flush_log_at_trx_commit` 1 and 2 every commit is written before it is acknowledged; with 0 it is not, and then
//! the proof is that InnoDB's flushed position has reached what was current before.
//!
//! MySQL's FLUSH ENGINE LOGS does that under any setting (seen on 5.7, 8.0, 8.4 and 9.7: a server killed afterwards has
//! all). Its status variables `Innodb_redo_log_current_lsn` and `…_flushed_to_disk_lsn` prove nothing: they are renewed by
//! a background thread now and then (seen on 8.4: both old after 50 commits and a flush). The monitor's text is of now.
//! MariaDB 10.11 ignores it under 0: a killed server had lost 84 of 200 acknowledged commits. So there the flush runs with
//! that setting at 1 for its duration, in one compound statement that puts it back by itself, whatever becomes of us.

use std::collections::BTreeMap;

use super::{
    flavour::Server,
    link::{Link, Trouble, code, if_allowed},
};
use crate::step::database::Deadline;

pub(super) const FLUSH: &str = "FLUSH LOCAL ENGINE LOGS";

/// The flush as it is under strict settings; one statement, so that the server itself puts the setting back.
const FLUSH_STRICTLY: &str = "BEGIN NOT ATOMIC
    DECLARE was INT DEFAULT @@GLOBAL.innodb_flush_log_at_trx_commit;
    DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN SET GLOBAL innodb_flush_log_at_trx_commit = was; RESIGNAL; END;
    SET GLOBAL innodb_flush_log_at_trx_commit = 1;
    FLUSH LOCAL ENGINE LOGS;
    SET GLOBAL innodb_flush_log_at_trx_commit = was;
END";

const ACCESS_DENIED: u16 = 1227;

/// Where InnoDB's log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Lsn {
    pub current: Option<u64>,
    pub flushed: Option<u64>,
    pub checkpoint: Option<u64>,
}

impl Lsn {
    /// # Errors
    /// The connection failed.
    pub async fn read(link: &mut Link, server: &Server, deadline: Deadline) -> Result<Lsn, Trouble> {
        if server.is_mariadb() {
            return Ok(Lsn::of_status(&link.pairs(deadline, "SHOW GLOBAL STATUS LIKE 'Innodb\\_lsn\\_%'").await?));
        }
        let text = if_allowed(link.row::<3>(deadline, "SHOW ENGINE INNODB STATUS").await)?;
        Ok(text.map_or_else(Lsn::default, |[_, _, text]| Lsn::of_monitor(&text)))
    }

    fn of_status(status: &BTreeMap<String, String>) -> Lsn {
        let number = |name: &str| status.get(name)?.parse().ok();
        Lsn {
            current: number("innodb_lsn_current"),
            flushed: number("innodb_lsn_flushed"),
            checkpoint: number("innodb_lsn_last_checkpoint"),
        }
    }

    fn of_monitor(text: &str) -> Lsn {
        let number =
            |label: &str| text.lines().find_map(|line| line.trim_start().strip_prefix(label)?.trim().parse().ok());
        Lsn {
            current: number("Log sequence number"),
            flushed: number("Log flushed up to"),
            checkpoint: number("Last checkpoint at"),
        }
    }
}

/// Writes out what was acknowledged before. `false`: it is not proven to be written.
///
/// # Errors
/// The connection failed.
pub(super) async fn flush(link: &mut Link, server: &Server, deadline: Deadline) -> Result<bool, Trouble> {
    // Read again, it can be changed at any time. 1 and 3 write and sync before acknowledging, 2 writes; without InnoDB
    // there is no such variable.
    let setting = link.pairs(deadline, "SHOW GLOBAL VARIABLES LIKE 'innodb_flush_log_at_trx_commit'").await?;
    let setting = setting.into_values().next().unwrap_or_default();
    let relaxed = matches!(setting.as_str(), "0" | "2");
    let written_anyway = setting != "0";
    let due = if relaxed { Lsn::read(link, server, deadline).await?.current } else { None };
    let strictly = relaxed && server.is_mariadb();
    match link.run(deadline, if strictly { FLUSH_STRICTLY } else { FLUSH }).await {
        Ok(()) => {}
        Err(failed) if strictly && code(&failed) == Some(ACCESS_DENIED) => {
            if_allowed(link.run(deadline, FLUSH).await)?;
        }
        Err(failed) => {
            if_allowed(Err::<(), _>(failed))?;
        }
    }
    if written_anyway {
        return Ok(true);
    }
    let done = Lsn::read(link, server, deadline).await?.flushed;
    Ok(due.is_some() && done >= due)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_from_the_monitors_text_or_mariadbs_status() {
        let old = "---\nLOG\n---\nLog sequence number 30\nLog flushed up to   20\nPages flushed up to 15\nLast checkpoint at  10\n";
        let new = "LOG\n---\nLog sequence number          30\nLog buffer assigned up to    30\nLog written up to            25\n\
                   Log flushed up to            20\nAdded dirty pages up to      30\nLast checkpoint at           10\n";
        let told = Lsn { current: Some(30), flushed: Some(20), checkpoint: Some(10) };
        assert_eq!((Lsn::of_monitor(old), Lsn::of_monitor(new)), (told, told));
        assert_eq!(Lsn::of_monitor("nothing of the kind"), Lsn::default());
        let status = [("innodb_lsn_current", "30"), ("innodb_lsn_flushed", "20"), ("innodb_lsn_last_checkpoint", "10")];
        let status = status.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(Lsn::of_status(&status.into()), told);
    }
}
