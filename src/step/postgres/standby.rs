//! How far a standby is behind the one it follows.

use super::{
    super::database::Deadline,
    connect::{Login, Refused, text},
    settings::{Remark, Settings},
};
use crate::proto::Severity;

/// How far a standby is behind, and whether it is meant to be.
pub(super) async fn remarks(login: &Login, settings: &Settings, deadline: Deadline) -> Result<Vec<Remark>, Refused> {
    let row = login
        .row(
            deadline,
            "SELECT pg_is_wal_replay_paused()::text AS paused, pg_last_xact_replay_timestamp()::text AS replayed,
                    (pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()
                     AND clock_timestamp() - pg_last_xact_replay_timestamp() > interval '1min')::text AS behind",
        )
        .await?;
    let mut remarks = vec![(
        Severity::Note,
        "STANDBY",
        "it is a standby: the copy holds what was replayed before the barrier, not what only the primary has"
            .to_owned(),
        String::new(),
    )];
    let (delay, replayed) = (settings.get("recovery_min_apply_delay"), text(&row, "replayed"));
    if text(&row, "paused") == "true" {
        let message = format!("its replay is paused: the copy ends with what was committed at {replayed}");
        remarks.push((Severity::Warning, "REPLAY_PAUSED", message, "SELECT pg_wal_replay_resume()".to_owned()));
    } else if !matches!(delay, "" | "0") {
        let message = format!("it replays {delay} late on purpose (recovery_min_apply_delay): so old is the copy");
        remarks.push((Severity::Note, "REPLAY_DELAYED", message, String::new()));
    } else if text(&row, "behind") == "true" {
        let message = format!("it has received more than it has replayed: the last replayed commit is of {replayed}");
        remarks.push((Severity::Note, "REPLAY_BEHIND", message, String::new()));
    }
    Ok(remarks)
}
