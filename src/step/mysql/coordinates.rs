//! Where the logs stand, and whether anything was committed between two such readings.

use serde_json::Value;

use super::{
    flavour::Server,
    flush::Lsn,
    link::{Link, Trouble, if_allowed},
    replicas,
    settings::Settings,
};
use crate::{
    proto,
    step::database::{Deadline, coordinate},
};

/// What can be asked of this server by this account, found out while preparing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct May {
    pub read_log_status: bool,
    pub read_replicas: bool,
    pub read_galera: bool,
}

/// Longest value that is told.
const LONGEST: usize = 4096;
/// Most that are told.
const MOST: usize = 256;

/// What it is, which does not change.
pub(super) fn identity(settings: &Settings) -> Vec<proto::Coordinate> {
    let names = ["server_uuid", "server_uid", "server_id", "gtid_domain_id"];
    let known = names.into_iter().filter(|name| !settings.get(name).is_empty());
    known.map(|name| coordinate(name, settings.get(name))).collect()
}

/// Where it stands, in committed work.
///
/// # Errors
/// The connection failed, or what must be readable is not.
pub(super) async fn read(
    link: &mut Link,
    server: &Server,
    settings: &Settings,
    may: May,
    deadline: Deadline,
) -> Result<Vec<proto::Coordinate>, Trouble> {
    let mut found = if server.is_mariadb() {
        mariadb(link, deadline).await?
    } else if may.read_log_status {
        log_status(link, deadline).await?
    } else {
        let [executed] = link.row(deadline, "SELECT @@GLOBAL.gtid_executed").await?;
        vec![coordinate("gtid_executed", one_line(&executed))]
    };
    if !server.is_mariadb() {
        let [purged] = link.row(deadline, "SELECT @@GLOBAL.gtid_purged").await?;
        found.push(coordinate("gtid_purged", one_line(&purged)));
    }
    if settings.is_on("log_bin") && !found.iter().any(|found| found.key == "binlog_file") {
        // Nice to have where there are GTIDs, which say the same.
        if let Some([file, position]) = if_allowed(link.row(deadline, server.binary_log_status()).await)? {
            found.extend([coordinate("binlog_file", file), coordinate("binlog_position", position)]);
        }
    }
    if may.read_galera {
        let status = link.pairs(deadline, "SHOW GLOBAL STATUS LIKE 'wsrep\\_l%'").await?;
        let of = |name: &str| status.get(name).map_or("", String::as_str);
        let position = format!("{}:{}", of("wsrep_local_state_uuid"), of("wsrep_last_committed"));
        found.push(coordinate("wsrep_position", position));
    }
    if may.read_replicas {
        let channels = replicas::read(link, server, deadline).await?.unwrap_or_default();
        found.extend(channels.iter().map(replicas::Channel::executed));
    }
    Ok(found)
}

/// Where InnoDB's log stands, if the log status has not told: it moves with uncommitted work too.
///
/// # Errors
/// The connection failed.
pub(super) async fn physical(
    link: &mut Link,
    server: &Server,
    may: May,
    deadline: Deadline,
) -> Result<Vec<proto::Coordinate>, Trouble> {
    if may.read_log_status {
        return Ok(Vec::new());
    }
    let lsn = Lsn::read(link, server, deadline).await?;
    let named = [
        ("innodb_lsn_current", lsn.current),
        ("innodb_lsn_flushed", lsn.flushed),
        ("innodb_lsn_last_checkpoint", lsn.checkpoint),
    ];
    Ok(named.into_iter().filter_map(|(name, value)| Some(coordinate(name, value?.to_string()))).collect())
}

async fn mariadb(link: &mut Link, deadline: Deadline) -> Result<Vec<proto::Coordinate>, Trouble> {
    const GTIDS: [&str; 3] = ["gtid_binlog_pos", "gtid_current_pos", "gtid_slave_pos"];
    let values: [String; 3] = link
        .row(deadline, "SELECT @@GLOBAL.gtid_binlog_pos, @@GLOBAL.gtid_current_pos, @@GLOBAL.gtid_slave_pos")
        .await?;
    Ok(GTIDS.into_iter().zip(values).map(|(key, value)| coordinate(key, value)).collect())
}

/// All of one instant, which no other statement gives.
pub(super) const LOG_STATUS: &str =
    "SELECT CAST(LOCAL AS CHAR), CAST(STORAGE_ENGINES AS CHAR) FROM performance_schema.log_status";

async fn log_status(link: &mut Link, deadline: Deadline) -> Result<Vec<proto::Coordinate>, Trouble> {
    let [local, engines] = link.row(deadline, LOG_STATUS).await?;
    Ok(of_log_status(&local, &engines))
}

fn of_log_status(local: &str, engines: &str) -> Vec<proto::Coordinate> {
    let [local, engines]: [Value; 2] = [local, engines].map(|json| serde_json::from_str(json).unwrap_or_default());
    let text = |value: &Value| match value {
        Value::String(text) => Some(one_line(text)),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    let told = [
        ("gtid_executed", &local["gtid_executed"]),
        ("binlog_file", &local["binary_log_file"]),
        ("binlog_position", &local["binary_log_position"]),
        ("innodb_lsn_current", &engines["InnoDB"]["LSN"]),
        ("innodb_lsn_last_checkpoint", &engines["InnoDB"]["LSN_checkpoint"]),
    ];
    told.into_iter().filter_map(|(key, value)| Some(coordinate(key, text(value)?))).collect()
}

/// A set of several servers' GTIDs is printed on several lines.
fn one_line(gtids: &str) -> String {
    gtids.replace(['\n', '\r'], "")
}

/// As they are told: compared in full before.
pub(super) fn told(coordinates: &[proto::Coordinate]) -> Vec<proto::Coordinate> {
    let cut = |value: &str| {
        let end = (0..=LONGEST.min(value.len())).rev().find(|end| value.is_char_boundary(*end)).unwrap_or(0);
        value[..end].to_owned()
    };
    coordinates.iter().take(MOST).map(|c| coordinate(&c.key, cut(&c.value))).collect()
}

/// What commits move and nothing else does.
fn is_logical(key: &str) -> bool {
    let gtid = key.starts_with("gtid_") && !matches!(key, "gtid_domain_id" | "gtid_purged");
    gtid || key.starts_with("binlog_")
}

/// Is there anything in it that a commit would have moved? Without a binary log there may not be.
pub(super) fn witness(coordinates: &[proto::Coordinate]) -> bool {
    coordinates.iter().any(|c| is_logical(&c.key) && !c.value.is_empty())
}

/// The first coordinate of committed data that differs. LSNs may: they move with uncommitted work.
pub(super) fn moved(start: &[proto::Coordinate], end: &[proto::Coordinate]) -> Option<String> {
    let logical = |c: &&proto::Coordinate| is_logical(&c.key);
    let before: Vec<_> = start.iter().filter(logical).collect();
    let after: Vec<_> = end.iter().filter(logical).collect();
    if before.len() != after.len() {
        return Some("the set of coordinates".to_owned());
    }
    before.into_iter().zip(after).find(|(before, after)| before != after).map(|(before, _)| before.key.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_move_the_binary_log_and_background_work_does_not() {
        let at =
            |gtid: &str, lsn: &str| vec![coordinate("gtid_binlog_pos", gtid), coordinate("innodb_lsn_current", lsn)];
        assert_eq!(moved(&at("0-1-5", "100"), &at("0-1-5", "900")), None);
        assert_eq!(moved(&at("0-1-5", "100"), &at("0-1-6", "100")), Some("gtid_binlog_pos".to_owned()));
        assert!(moved(&at("0-1-5", "100"), &[]).is_some(), "nothing read is not nothing moved");
        let purged = |value| vec![coordinate("gtid_purged", value), coordinate("replica.default.executed", value)];
        assert_eq!(moved(&purged("a:1"), &purged("a:1-9")), None, "purging logs commits nothing");
        assert!(witness(&at("0-1-5", "100")) && !witness(&at("", "100")) && !witness(&purged("a:1")));
    }

    #[test]
    fn a_log_status_is_read_whole() {
        let local =
            r#"{"gtid_executed": "a:1-5,\nb:1-2", "binary_log_file": "binlog.000003", "binary_log_position": 2805}"#;
        let read = of_log_status(local, r#"{"InnoDB": {"LSN": 19859826, "LSN_checkpoint": 19859000}}"#);
        let expected = [
            ("gtid_executed", "a:1-5,b:1-2"),
            ("binlog_file", "binlog.000003"),
            ("binlog_position", "2805"),
            ("innodb_lsn_current", "19859826"),
            ("innodb_lsn_last_checkpoint", "19859000"),
        ];
        assert_eq!(read, expected.map(|(key, value)| coordinate(key, value)));
        assert_eq!(of_log_status("{}", "[]"), []);
        assert_eq!(of_log_status("not JSON", ""), []);
    }

    #[test]
    fn a_long_set_of_gtids_is_compared_in_full_and_told_in_part() {
        let long = |end: &str| vec![coordinate("gtid_executed", "é".repeat(3000) + end)];
        assert!(moved(&long("a"), &long("b")).is_some());
        assert_eq!(told(&long("a"))[0].value.len(), 4096);
        assert_eq!(told(&long("a")), told(&long("b")));
    }
}
