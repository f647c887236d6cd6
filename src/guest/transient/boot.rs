//! Which disks the machine boots from, and what a snapshot of the server therefore contains where nobody says more.

use std::{collections::BTreeSet, path::Path};

use crate::guest::{
    Dev, Superblock,
    disks::BlockGraph,
    platform::{Platform, known::Contains},
};

/// Where firmware and kernel come from, best first.
const BOOT: [&str; 4] = ["/boot/efi", "/efi", "/boot", "/"];

/// What a snapshot of the server contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    pub contains: Contains,
    /// one clause for people
    pub what: &'static str,
}

/// The disks the machine boots from; empty if the root is on none. A root volume that grew onto a second disk does not
/// make that one a boot disk.
pub fn boot_disks(superblocks: &[Superblock], graph: &BlockGraph) -> BTreeSet<Dev> {
    let mut disks = BOOT.into_iter().map(|mount| disks_of(Path::new(mount), superblocks, graph));
    disks.find(|disks| !disks.is_empty()).unwrap_or_default()
}

/// The disks below a mount point of our own namespace.
pub(super) fn disks_of(mount: &Path, superblocks: &[Superblock], graph: &BlockGraph) -> BTreeSet<Dev> {
    let own = superblocks.iter().find(|s| s.namespace.is_none() && s.mounts.iter().any(|m| m == mount));
    let leaves = own.map(|s| graph.leaves(s.dev)).unwrap_or_default();
    leaves.into_iter().filter_map(|leaf| Some(graph.disk(leaf)?.dev)).collect()
}

/// By the platform's rules; `None`: nothing is known.
pub fn contents(platform: Platform, boot: &BTreeSet<Dev>, graph: &BlockGraph) -> Option<Contents> {
    let serial = || boot.iter().find_map(|dev| graph.devices.get(dev)?.identity.serial.as_deref()).unwrap_or_default();
    let rules = platform.known().snapshot.iter();
    let mut fitting = rules.filter(|rule| rule.boot_serial.as_ref().is_none_or(|glob| glob.fits(serial())));
    let rule = fitting.next()?;
    Some(Contents { contains: rule.contains, what: &rule.what })
}
