//! Whom a hook runs as.

use std::{ffi::CString, path::PathBuf};

use nix::unistd::{self, getgrouplist};

use crate::sys::process;

/// Somebody of this machine, as `user = "…"` names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub home: PathBuf,
    pub ids: process::User,
}

impl User {
    /// Looks `name` up, with its groups (getpwnam(3), getgrouplist(3)). May ask a directory service: call it on a thread
    /// that may block.
    ///
    /// # Errors
    /// Why it cannot be used, as half a sentence.
    pub fn named(name: &str) -> Result<User, String> {
        let found =
            unistd::User::from_name(name).map_err(|error| format!("the user {name} cannot be looked up: {error}"))?;
        let user = found.ok_or_else(|| format!("there is no user {name} on this machine"))?;
        let groups = CString::new(name)
            .map_err(|_| nix::errno::Errno::EINVAL)
            .and_then(|name| getgrouplist(&name, user.gid))
            .map_err(|error| format!("the groups of the user {name} cannot be looked up: {error}"))?;
        let ids = process::User {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            groups: groups.into_iter().map(unistd::Gid::as_raw).collect(),
        };
        Ok(User { name: user.name, home: user.dir, ids })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_comes_with_a_home_and_groups() {
        let root = User::named("root").expect("every machine has it");
        assert_eq!((root.ids.uid, root.home), (0, PathBuf::from("/root")));
        assert!(root.ids.groups.contains(&0));
        assert_eq!(User::named("no-such-user").unwrap_err(), "there is no user no-such-user on this machine");
    }
}
