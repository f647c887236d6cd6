//! Is it a member of a cluster, and in a state in which it may be held at all?
//!
//! A node that stops commits fills its receive queue and then makes all others wait (Galera's flow control), or throttles
//! them (Group Replication). A node that is being rebuilt, or is feeding another one, has no state worth a copy.

use super::{
    link::{Link, Trouble, if_allowed},
    settings::Settings,
};
use crate::step::database::Deadline;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cluster {
    None,
    Galera,
    /// MySQL Group Replication, InnoDB Cluster
    Group,
}

/// What is to be known about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Membership {
    pub cluster: Cluster,
    /// (why it cannot be held now, what to do)
    pub not_now: Option<(String, &'static str)>,
    /// its state could not be read
    pub unseen: bool,
}

const SYNCED: &str = "4";
const DONOR_OR_DESYNCED: &str = "2";

/// # Errors
/// The connection failed.
pub(super) async fn look(link: &mut Link, settings: &Settings, deadline: Deadline) -> Result<Membership, Trouble> {
    if settings.is_on("wsrep_on") && !matches!(settings.get("wsrep_provider"), "" | "none") {
        let status = link.pairs(deadline, "SHOW GLOBAL STATUS LIKE 'wsrep%'").await?;
        let of = |name: &str| status.get(name).map_or("", String::as_str);
        return Ok(galera(of("wsrep_local_state"), of("wsrep_local_state_comment"), settings.is_on("wsrep_desync")));
    }
    if settings.get("group_replication_group_name").is_empty() {
        return Ok(Membership { cluster: Cluster::None, not_now: None, unseen: false });
    }
    const STATE: &str = "SELECT MEMBER_STATE FROM performance_schema.replication_group_members \
                         WHERE MEMBER_ID = @@GLOBAL.server_uuid";
    let state = if_allowed(link.row::<1>(deadline, STATE).await)?;
    Ok(group(state.as_ref().map(|[state]| state.as_str())))
}

fn galera(state: &str, comment: &str, desynced: bool) -> Membership {
    let fine = state == SYNCED || (state == DONOR_OR_DESYNCED && desynced);
    let not_now = (!fine).then(|| {
        let why = format!("its node is not synced with the Galera cluster (wsrep_local_state {state}, {comment})");
        (why, "wait until wsrep_local_state_comment is Synced, or hold another node")
    });
    Membership { cluster: Cluster::Galera, not_now, unseen: false }
}

fn group(state: Option<&str>) -> Membership {
    let (cluster, not_now) = match state {
        // Configured, and it has left or never joined.
        Some("" | "OFFLINE" | "ERROR") => (Cluster::None, None),
        Some("ONLINE") | None => (Cluster::Group, None),
        Some(other) => {
            let why = format!("it is {other} in its replication group");
            (Cluster::Group, Some((why, "wait until it is ONLINE, or hold another member")))
        }
    };
    Membership { cluster, not_now, unseen: state.is_none() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_not_in_sync_is_not_held() {
        assert_eq!(galera("4", "Synced", false).not_now, None);
        assert_eq!(galera("2", "Donor/Desynced", true).not_now, None, "somebody took it out of flow control for this");
        let (why, hint) = galera("2", "Donor/Desynced", false).not_now.expect("a state transfer runs");
        assert!(why.contains("Donor/Desynced") && hint.contains("Synced"));
        assert!(galera("1", "Joining", true).not_now.is_some());
        assert!(galera("", "", false).not_now.is_some(), "nothing read is not in sync");
    }

    #[test]
    fn a_member_is_one_that_is_online_and_one_we_cannot_see() {
        assert_eq!(group(Some("ONLINE")), Membership { cluster: Cluster::Group, not_now: None, unseen: false });
        assert_eq!(group(None), Membership { cluster: Cluster::Group, not_now: None, unseen: true });
        assert_eq!(group(Some("OFFLINE")).cluster, Cluster::None);
        assert!(group(Some("RECOVERING")).not_now.expect("being rebuilt").0.contains("RECOVERING"));
    }
}
