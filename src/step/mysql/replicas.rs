//! What the server replicates from: how far it has executed, and what about it makes a copy older or vaguer than it looks.

use std::collections::BTreeMap;

use super::{
    flavour::Server,
    link::{Link, Trouble, if_allowed},
    settings::Settings,
};
use crate::{
    proto::{self, Severity},
    step::database::{Deadline, coordinate},
};

/// One source it replicates from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Channel {
    name: String,
    /// in the source's binary log: executed, not merely received
    file: String,
    position: String,
    applies: bool,
    /// seconds
    delay: u64,
    by_gtid: bool,
}

/// `None`: the account may not ask.
///
/// # Errors
/// The connection failed.
pub(super) async fn read(
    link: &mut Link,
    server: &Server,
    deadline: Deadline,
) -> Result<Option<Vec<Channel>>, Trouble> {
    let rows = if_allowed(link.named(deadline, server.replica_status()).await)?;
    Ok(rows.map(|rows| rows.iter().map(channel).collect()))
}

/// The columns were renamed in 8.0.22; MariaDB kept them.
fn channel(row: &BTreeMap<String, String>) -> Channel {
    let of = |names: &[&str]| names.iter().find_map(|name| row.get(*name)).cloned().unwrap_or_default();
    Channel {
        name: of(&["channel_name", "connection_name"]),
        file: of(&["relay_source_log_file", "relay_master_log_file"]),
        position: of(&["exec_source_log_pos", "exec_master_log_pos"]),
        applies: of(&["replica_sql_running", "slave_sql_running"]) == "Yes",
        delay: of(&["sql_delay"]).parse().unwrap_or(0),
        by_gtid: of(&["auto_position"]) == "1" || !matches!(of(&["using_gtid"]).as_str(), "" | "No"),
    }
}

impl Channel {
    pub fn executed(&self) -> proto::Coordinate {
        let name = if self.name.is_empty() { "default" } else { &self.name };
        coordinate(&format!("replica.{name}.executed"), format!("{}:{}", self.file, self.position))
    }

    fn shown(&self) -> String {
        if self.name.is_empty() { "replication".to_owned() } else { format!("replication channel {}", self.name) }
    }
}

/// (severity, code, message, hint)
pub(super) fn remarks(channels: &[Channel], settings: &Settings) -> Vec<(Severity, &'static str, String, String)> {
    let number = |names: [&str; 2]| names.iter().find_map(|name| settings.get(name).parse::<u64>().ok()).unwrap_or(0);
    let workers = number(["replica_parallel_workers", "slave_parallel_workers"]);
    let ordered = ["replica_preserve_commit_order", "slave_preserve_commit_order"].iter().any(|n| settings.is_on(n));
    let mut remarks = Vec::new();
    for channel in channels {
        let shown = channel.shown();
        if channel.delay > 0 {
            let message = format!("{shown} is delayed by {} s on purpose: the copy is as old as that", channel.delay);
            remarks.push((Severity::Note, "REPLICA_DELAYED", message, String::new()));
        }
        if !channel.applies {
            let message = format!("{shown} does not apply changes: the copy is as old as its last one");
            remarks.push((Severity::Warning, "REPLICA_STOPPED", message, "START REPLICA SQL_THREAD".to_owned()));
        }
        if workers > 1 && !channel.by_gtid && !ordered {
            let message = format!(
                "{shown} applies with {workers} workers out of order and without GTIDs: its executed position has gaps"
            );
            let hint = "use it with GTIDs, or SET GLOBAL replica_preserve_commit_order = ON";
            remarks.push((Severity::Warning, "REPLICA_GAPS", message, hint.to_owned()));
        }
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[(&str, &str)]) -> BTreeMap<String, String> {
        values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn codes(channels: &[Channel], settings: &[(&str, &str)]) -> Vec<&'static str> {
        remarks(channels, &Settings::of(settings)).into_iter().map(|(_, code, _, _)| code).collect()
    }

    #[test]
    fn what_was_executed_counts_under_either_generations_names() {
        let new = channel(&row(&[
            ("channel_name", "east"),
            ("source_log_file", "b.9"),
            ("read_source_log_pos", "999"),
            ("relay_source_log_file", "b.7"),
            ("exec_source_log_pos", "157"),
            ("replica_sql_running", "Yes"),
            ("auto_position", "1"),
        ]));
        assert_eq!(new.executed(), coordinate("replica.east.executed", "b.7:157"));
        assert!(codes(&[new], &[("replica_parallel_workers", "4")]).is_empty());
        let old = channel(&row(&[
            ("connection_name", ""),
            ("relay_master_log_file", "b.7"),
            ("exec_master_log_pos", "4"),
            ("slave_sql_running", "Yes"),
            ("using_gtid", "Slave_Pos"),
        ]));
        assert_eq!(old.executed(), coordinate("replica.default.executed", "b.7:4"));
        assert!(old.applies && old.by_gtid);
    }

    #[test]
    fn what_makes_a_replicas_copy_old_or_vague_is_said() {
        let late = channel(&row(&[("sql_delay", "3600"), ("replica_sql_running", "No"), ("auto_position", "0")]));
        let settings = [("replica_parallel_workers", "4"), ("replica_preserve_commit_order", "OFF")];
        assert_eq!(
            codes(std::slice::from_ref(&late), &settings),
            ["REPLICA_DELAYED", "REPLICA_STOPPED", "REPLICA_GAPS"]
        );
        assert_eq!(codes(&[late], &[("replica_parallel_workers", "1")]), ["REPLICA_DELAYED", "REPLICA_STOPPED"]);
    }
}
