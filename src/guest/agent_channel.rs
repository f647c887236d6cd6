//! The QEMU guest-agent channel: whether this machine has one, who owns it, and what a stock qemu-ga would do on it. Called
//! by the door that takes the channel, and by `check`, which says who can ask this agent to hold.
//!
//! Files of /proc, /sys and /etc alone. The port itself is never opened: only one process may have it open, and the host
//! sees every open and close.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{stock_agent, tasks};

/// The port's name on every host of the QEMU family.
pub const PORT: &str = "org.qemu.guest_agent.0";

/// What distributions call the stock agent's process.
const STOCK: &str = "qemu-ga";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// nobody that can be seen: a process may hide its descriptors from us, and then opening the port fails (EBUSY)
    Nobody,
    Us,
    Other {
        pid: i32,
        /// as /proc/PID/comm says
        name: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentChannel {
    /// the port to open: /dev/virtio-ports/org.qemu.guest_agent.0, or /dev/vportNpM where no udev made that link;
    /// `None`: this machine has no such port
    pub device: Option<PathBuf>,
    pub owner: Owner,
    /// the stock agent's program, if it is installed
    pub stock: Option<PathBuf>,
    /// what the stock agent is configured to run around a freeze: its fsfreeze-hook, or, if that is the one QEMU ships, the
    /// scripts it would run
    pub hooks: Vec<PathBuf>,
}

/// Reads the guest below `root`. Waits for nobody, but looks at every process' descriptors if qemu-ga and this process do
/// not own the port: a few thousand small reads of /proc on a busy machine. Not for while something is held.
pub fn read(root: &Path) -> AgentChannel {
    read_as(root, std::process::id().cast_signed())
}

fn read_as(root: &Path, us: i32) -> AgentChannel {
    let node = node(root);
    let link = format!("/dev/virtio-ports/{PORT}");
    let device = node.as_ref().map(|node| match fs::symlink_metadata(root.join(&link[1..])) {
        Ok(_) => link.into(),
        Err(_) => Path::new("/dev").join(node),
    });
    AgentChannel {
        device,
        owner: node.map_or(Owner::Nobody, |node| owner(root, &node, us)),
        stock: stock_agent::program(root),
        hooks: stock_agent::hooks(root),
    }
}

/// The kernel's name of the port, "vport1p1".
fn node(root: &Path) -> Option<String> {
    let entries = fs::read_dir(root.join("sys/class/virtio-ports")).into_iter().flatten().flatten();
    let mut named: Vec<String> = entries
        .filter(|entry| fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == PORT))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    // a machine with two of that name is misconfigured; the first one is the one udev's link leads to, mostly
    named.sort();
    named.into_iter().next()
}

/// The likely ones are asked first: the stock agent, and us.
fn owner(root: &Path, node: &str, us: i32) -> Owner {
    let mut candidates: Vec<(bool, i32, String)> = tasks::pids(root)
        .into_iter()
        .map(|pid| {
            let comm = fs::read(root.join("proc").join(pid.to_string()).join("comm")).unwrap_or_default();
            let name = String::from_utf8_lossy(&comm).trim().to_owned();
            (pid != us && name != STOCK, pid, name)
        })
        .collect();
    candidates.sort();
    match candidates.into_iter().find(|(_, pid, _)| has_open(root, *pid, node)) {
        None => Owner::Nobody,
        Some((_, pid, _)) if pid == us => Owner::Us,
        Some((_, pid, name)) => Owner::Other { pid, name },
    }
}

/// The links are read, never followed: what they lead to may be a dead network file system.
fn has_open(root: &Path, pid: i32, node: &str) -> bool {
    let descriptors = fs::read_dir(root.join("proc").join(pid.to_string()).join("fd"));
    // in another mount namespace /dev may be mounted elsewhere: the name is enough, nothing else has such a name
    let is_port = |link: PathBuf| link.file_name().is_some_and(|name| name == node);
    descriptors.into_iter().flatten().flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(is_port))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::guest::fixture::fixture;

    const US: i32 = 900;

    #[test]
    fn the_stock_agent_is_found_with_the_port_it_owns() {
        let root = fixture("agent-channel");
        let program = root.path().join("usr/sbin/qemu-ga");
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(
            read_as(root.path(), US),
            AgentChannel {
                device: Some("/dev/virtio-ports/org.qemu.guest_agent.0".into()),
                owner: Owner::Other { pid: 612, name: "qemu-ga".into() },
                stock: Some("/usr/sbin/qemu-ga".into()),
                hooks: Vec::new(),
            }
        );
    }

    #[test]
    fn without_udev_the_port_goes_by_the_kernels_name() {
        let root = fixture("agent-channel");
        fs::remove_dir_all(root.path().join("dev/virtio-ports")).unwrap();
        assert_eq!(read_as(root.path(), US).device, Some("/dev/vport1p2".into()));
    }

    #[test]
    fn a_port_of_another_name_is_none_and_a_machine_without_any_is_no_error() {
        let root = fixture("agent-channel");
        fs::remove_dir_all(root.path().join("sys/class/virtio-ports/vport1p2")).unwrap();
        let channel = read_as(root.path(), US);
        assert_eq!((channel.device, channel.owner), (None, Owner::Nobody));
        let empty = tempfile::tempdir().unwrap();
        let nothing = AgentChannel { device: None, owner: Owner::Nobody, stock: None, hooks: Vec::new() };
        assert_eq!(read_as(empty.path(), US), nothing);
    }

    #[test]
    fn the_owner_is_us_nobody_or_another_program_by_its_name() {
        let root = fixture("agent-channel");
        let owner = || read_as(root.path(), US).owner;
        fs::remove_dir_all(root.path().join("proc/612/fd")).unwrap();
        assert_eq!(owner(), Owner::Other { pid: 701, name: "their agent".into() }, "in a container of its own");
        fs::remove_dir_all(root.path().join("proc/701/fd")).unwrap();
        assert_eq!(owner(), Owner::Nobody, "800 has another port open, and a deleted one");
        let port = root.path().join("proc/900/fd/12");
        fs::create_dir_all(port.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/dev/vport1p2", port).unwrap();
        assert_eq!(owner(), Owner::Us);
    }

    #[test]
    fn this_machine_can_be_read() {
        let channel = read(Path::new("/"));
        assert!(channel.device.is_some() || channel.owner == Owner::Nobody);
    }
}
