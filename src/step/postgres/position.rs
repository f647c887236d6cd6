//! Where the log stands: the coordinates of a hold.

use super::{
    super::database::{Deadline, coordinate},
    connect::{Login, Refused, text},
};
use crate::proto::Coordinate;

/// Of a server that writes its own log.
const PRIMARY: [&str; 6] = ["timeline", "insert_lsn", "flush_lsn", "wal_file", "checkpoint_lsn", "redo_lsn"];
const OF_PRIMARY: &str = "SELECT c.timeline_id::text AS timeline, pg_current_wal_insert_lsn()::text AS insert_lsn,
        pg_current_wal_flush_lsn()::text AS flush_lsn, pg_walfile_name(pg_current_wal_flush_lsn()) AS wal_file,
        c.checkpoint_lsn::text AS checkpoint_lsn, c.redo_lsn::text AS redo_lsn
 FROM pg_control_checkpoint() c";

/// Of a server that replays another's. On the timeline a copy of it must reach, not that of its last checkpoint.
const STANDBY: [&str; 7] =
    ["timeline", "receive_lsn", "replay_lsn", "replay_time", "min_recovery_end_lsn", "checkpoint_lsn", "redo_lsn"];
const OF_STANDBY: &str = "SELECT r.min_recovery_end_timeline::text AS timeline,
        pg_last_wal_receive_lsn()::text AS receive_lsn, pg_last_wal_replay_lsn()::text AS replay_lsn,
        pg_last_xact_replay_timestamp()::text AS replay_time, r.min_recovery_end_lsn::text AS min_recovery_end_lsn,
        c.checkpoint_lsn::text AS checkpoint_lsn, c.redo_lsn::text AS redo_lsn
 FROM pg_control_checkpoint() c, pg_control_recovery() r";

/// Where the log stands, and from where recovery would begin. What is NULL is left out.
pub(super) async fn read(login: &Login, in_recovery: bool, deadline: Deadline) -> Result<Vec<Coordinate>, Refused> {
    let (keys, sql): (&[&str], _) = if in_recovery { (&STANDBY, OF_STANDBY) } else { (&PRIMARY, OF_PRIMARY) };
    let row = login.row(deadline, sql).await?;
    Ok(keys.iter().map(|key| coordinate(key, text(&row, key))).filter(|known| !known.value.is_empty()).collect())
}

/// One synchronous commit: it flushes the log up to itself, and with it everything acknowledged before. Answers its
/// position.
pub(super) async fn mark(login: &Login, hold_id: &str, deadline: Deadline) -> Result<Coordinate, Refused> {
    const MARKER: &str = "SELECT pg_logical_emit_message(true, 'holdstill', $1)::text AS lsn";
    let row = login.row_about(deadline, MARKER, hold_id).await?;
    Ok(coordinate("marker_lsn", text(&row, "lsn")))
}

/// Has the log on disk reached the marker? Its commit waited for that; a server on which it has not cannot be believed.
pub(super) fn reached_marker(coordinates: &[Coordinate]) -> bool {
    let lsn = |key| value(coordinates, key).and_then(lsn);
    match lsn("marker_lsn") {
        Some(marker) => lsn("flush_lsn") >= Some(marker),
        None => true,
    }
}

pub(super) fn value<'a>(coordinates: &'a [Coordinate], key: &str) -> Option<&'a str> {
    coordinates.iter().find(|coordinate| coordinate.key == key).map(|coordinate| coordinate.value.as_str())
}

/// A log position as a number: "16/B374D848" is 0x16B374D848.
pub(super) fn lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let [high, low] = [high, low].map(|half| u32::from_str_radix(half, 16).ok());
    Some(u64::from(high?) << 32 | u64::from(low?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_positions_compare_as_numbers_not_as_text() {
        assert_eq!(lsn("16/B374D848"), Some(0x16_B374_D848));
        assert!(lsn("A/0") < lsn("10/0"));
        assert_eq!(lsn("16"), None);
    }

    #[test]
    fn a_marker_that_is_not_on_disk_is_noticed() {
        let at = |flush: &str| [coordinate("marker_lsn", "A/0"), coordinate("flush_lsn", flush)];
        assert!(reached_marker(&at("10/0")) && reached_marker(&at("A/0")));
        assert!(!reached_marker(&at("9/FF")) && !reached_marker(&at("")));
        assert!(reached_marker(&[coordinate("replay_lsn", "1/0")]), "a standby has none");
    }
}
