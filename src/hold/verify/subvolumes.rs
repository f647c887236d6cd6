//! Where in a file system its receipt lies: at its root, or, on btrfs, at the root of the subvolume that was mounted.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::source::Opened;
use crate::hold::receipt::{self, Found, State, Unreadable};

/// The inode number of a subvolume's root (BTRFS_FIRST_FREE_OBJECTID).
const SUBVOLUME: u64 = 256;
/// Subvolumes are looked for this deep (`@/.snapshots/1/snapshot` is a snapshot, and not what was held) …
const DEPTH: usize = 2;
/// … and in so many directories.
const MOST: usize = 512;

/// The receipt of an opened file system.
pub(super) fn find(opened: &Opened) -> Result<Option<Found>, Unreadable> {
    let at_root = receipt::read(&opened.root)?;
    let btrfs = opened.raw.as_ref().is_some_and(|raw| raw.fs_type == "btrfs");
    if at_root.is_some() || !btrfs {
        return Ok(at_root);
    }
    let found = subvolumes(&opened.root).into_iter().filter_map(|root| receipt::read(&root).ok().flatten());
    // a snapshot of a subvolume has an older receipt than the subvolume, or the same: then the worst of them counts
    Ok(found.max_by_key(|found| (found.sector.prepared, found.sector.state != State::Frozen)))
}

fn subvolumes(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut level) = (Vec::new(), vec![root.to_owned()]);
    let mut looked = 0;
    for _ in 0..DEPTH {
        let mut next = Vec::new();
        for entry in level.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten()) {
            looked += 1;
            if looked > MOST {
                return found;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.metadata().is_ok_and(|meta| meta.ino() == SUBVOLUME) {
                    found.push(entry.path());
                }
                next.push(entry.path());
            }
        }
        level = next;
    }
    found
}
