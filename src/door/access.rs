//! Who may ask for what: a connection has a [`Role`] from the moment it is accepted, a method needs one.

use tonic::transport::server::Connected;

use crate::{
    config::{Access, Principal, Role},
    hold::{Refusal, RefusalKind},
    sys::peer::{self, Credentials},
};

/// The other end of a connection, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// for people and reports: `uid 0 (root), pid 1234`
    pub caller: String,
    /// none: may do nothing
    pub role: Option<Role>,
}

impl Peer {
    /// Names the process at the other end and looks up its role.
    pub fn of_process(found: &Credentials, access: &Access) -> Self {
        let uid = found.uid;
        let name = peer::name_of(uid).map(|name| format!(" ({name})")).unwrap_or_default();
        Peer { caller: format!("uid {uid}{name}, pid {}", found.pid), role: role_of(found, access) }
    }

    /// The host, over vsock. It can stop this machine and read its disks: whether it may hold it is no question.
    pub fn host() -> Self {
        Peer { caller: "vsock cid 2".to_owned(), role: Some(Role::Operate) }
    }
}

impl Connected for Peer {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.clone()
    }
}

/// `operate` implies `look`.
fn role_of(found: &Credentials, access: &Access) -> Option<Role> {
    let is = |principal: &Principal| match principal {
        Principal::User { uid, .. } => *uid == found.uid,
        Principal::Group { gid, .. } => *gid == found.gid || found.groups.contains(gid),
    };
    if access.operate.iter().any(is) { Some(Role::Operate) } else { access.look.iter().any(is).then_some(Role::Look) }
}

/// The role a method needs, by its path on the wire. Health, reflection, and what does not exist need `look`: the
/// answer to the last is UNIMPLEMENTED, not a secret. A new method needs `operate` until it is listed here.
fn needed(path: &str) -> Role {
    match path.strip_prefix("/holdstill.v1.HoldstillService/") {
        None | Some("Check" | "GetStatus" | "GetReport" | "ListReports" | "Watch") => Role::Look,
        Some(_) => Role::Operate,
    }
}

/// Whether `peer` may call the method at `path`.
///
/// # Errors
/// PERMISSION_DENIED, naming who asks and what would allow it.
pub(super) fn permit(peer: Option<&Peer>, path: &str) -> Result<(), Refusal> {
    let needed = needed(path);
    let Some(peer) = peer else {
        return Err(denied("nobody knows who is asking".to_owned()));
    };
    if peer.role >= Some(needed) {
        return Ok(());
    }
    let (key, what) = match needed {
        Role::Look => ("look", "look at holds"),
        Role::Operate => ("operate", "operate holds"),
    };
    let method = path.rsplit('/').next().unwrap_or(path);
    Err(denied(format!("{} may not {what} ({method})", peer.caller)).hint(format!(
        "name that user, or `group:NAME` of one of its groups, in `{key}` of [access] in \
         /etc/holdstill/holdstill.toml, and restart holdstill"
    )))
}

fn denied(message: String) -> Refusal {
    Refusal::new(RefusalKind::PermissionDenied, "PERMISSION_DENIED", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(uid: u32, gid: u32, groups: &[u32]) -> Credentials {
        Credentials { uid, gid, pid: 7, groups: groups.to_vec() }
    }

    fn access() -> Access {
        Access {
            operate: vec![
                Principal::User { name: "root".into(), uid: 0 },
                Principal::Group { name: "backup".into(), gid: 34 },
            ],
            look: vec![Principal::Group { name: "holdstill".into(), gid: 900 }],
        }
    }

    #[test]
    fn a_role_comes_from_the_user_its_group_or_a_supplementary_group() {
        assert_eq!(role_of(&process(0, 0, &[]), &access()), Some(Role::Operate));
        assert_eq!(role_of(&process(1000, 34, &[]), &access()), Some(Role::Operate));
        assert_eq!(role_of(&process(1000, 1000, &[4, 34]), &access()), Some(Role::Operate));
        assert_eq!(role_of(&process(1000, 1000, &[900]), &access()), Some(Role::Look));
        assert_eq!(role_of(&process(1000, 1000, &[]), &access()), None);
    }

    #[test]
    fn the_stronger_role_wins_and_root_is_nobody_unless_named() {
        assert_eq!(role_of(&process(0, 900, &[900]), &access()), Some(Role::Operate));
        assert_eq!(role_of(&process(0, 0, &[]), &Access::default()), None);
    }

    #[test]
    fn every_method_of_the_contract_needs_the_role_the_contract_says() {
        let set = <prost_types::FileDescriptorSet as prost::Message>::decode(crate::proto::DESCRIPTOR_SET).unwrap();
        let service = set.file.iter().flat_map(|f| &f.service).find(|s| s.name() == "HoldstillService").unwrap();
        let look: Vec<&str> = service
            .method
            .iter()
            .map(|m| m.name())
            .filter(|m| needed(&format!("/holdstill.v1.HoldstillService/{m}")) == Role::Look)
            .collect();
        assert_eq!(look, ["Check", "GetStatus", "GetReport", "ListReports", "Watch"]);
        assert_eq!(service.method.len(), 9);
    }

    #[test]
    fn a_denial_names_who_asks_what_for_and_the_key_that_would_allow_it() {
        let peer = Peer { caller: "uid 1000 (alice), pid 7".into(), role: Some(Role::Look) };
        assert_eq!(permit(Some(&peer), "/holdstill.v1.HoldstillService/GetStatus"), Ok(()));
        assert_eq!(permit(Some(&peer), "/grpc.health.v1.Health/Check"), Ok(()));
        let refusal = permit(Some(&peer), "/holdstill.v1.HoldstillService/Freeze").unwrap_err();
        assert_eq!(refusal.message, "uid 1000 (alice), pid 7 may not operate holds (Freeze)");
        assert!(refusal.hint.contains("`operate` of [access]"), "{}", refusal.hint);

        let nobody = Peer { role: None, ..peer };
        let refusal = permit(Some(&nobody), "/holdstill.v1.HoldstillService/GetStatus").unwrap_err();
        assert!(refusal.hint.contains("`look` of [access]"), "{}", refusal.hint);
        assert!(permit(Some(&nobody), "/grpc.health.v1.Health/Check").is_err());
        assert!(permit(None, "/grpc.health.v1.Health/Check").is_err());
    }
}
