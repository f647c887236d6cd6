//! Reading the guest. Every reader takes a `root`, every parser takes text; nothing here touches a target file system.

pub mod agent_channel;
pub mod attachment;
pub mod cloud_init;
pub mod count;
pub mod databases;
pub mod dirty;
pub mod disks;
pub mod filesystems;
#[cfg(test)]
pub(crate) mod fixture;
pub mod fstab;
pub mod mounts;
pub mod network;
pub mod order;
pub mod osinfo;
pub mod partitions;
pub mod platform;
pub mod preflight;
pub mod risk;
pub mod signature;
pub mod space;
mod stock_agent;
pub mod superblock;
pub mod superblocks;
pub mod sysfs;
pub mod tasks;
pub mod transient;
pub mod watchdogs;
pub mod whereabouts;

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use tasks::Processes;

/// A device number as mountinfo prints it: the superblock's, not `st_dev` (they differ on btrfs subvolumes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dev {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Dev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl Dev {
    /// "8:1"
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// What a file system's type lets a hold do with it, decided before any syscall that could hang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// has a freeze operation: ext2/3/4, xfs, btrfs, f2fs, jfs, nilfs2, reiserfs, gfs2, bcachefs
    Freezable,
    /// local, on a disk, but cannot be frozen: vfat, exfat, ntfs3 …: synced, said
    FlushOnly,
    /// lives in memory: tmpfs, ramfs, devtmpfs, and file systems on zram or brd
    Memory,
    /// NFS, CIFS, 9p, ceph, any FUSE, autofs …: never touched, not even with statfs
    Remote,
    /// overlay, and others whose writes land on another local file system
    Stacked,
    /// squashfs, erofs, iso9660: never written
    Image,
    /// proc, sysfs, cgroup …: nothing to lose
    Pseudo,
    /// a type this version does not know
    Unknown,
}

/// One superblock, however often and wherever it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    pub dev: Dev,
    pub fs_type: String,
    /// what it was mounted from, e.g. "/dev/vda1"
    pub source: String,
    /// superblock options (after " - type source "), comma separated
    pub options: String,
    pub kind: Kind,
    /// the superblock itself is read-only (not merely one mount of it)
    pub read_only: bool,
    /// where to open it: visible (not over-mounted), a directory, its own root if mounted anywhere; `None`: nowhere openable
    pub open_at: Option<MountPoint>,
    /// every visible mount point (or, if none is, every one), in mountinfo order, for people and for globs
    pub mounts: Vec<PathBuf>,
    /// Some: mounted only in this process's mount namespace (paths are as seen there)
    pub namespace: Option<i32>,
    /// the mount that must not be touched and that lies above it, if any ("/net is autofs")
    pub below: Option<String>,
}

/// One place a superblock can be opened, with what proves after the open that it is the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    pub path: PathBuf,
    pub mount_id: u64,
    /// the root of this mount inside the file system: "/" or a subdirectory or subvolume
    pub fs_root: PathBuf,
}

/// Everything a plan needs to know about the guest, read once.
#[derive(Debug, Clone, Default)]
pub struct Guest {
    pub superblocks: Vec<Superblock>,
    pub disks: disks::BlockGraph,
    /// superblocks' dependencies: (inner, outer): inner's device or data lies on outer; inner must freeze first
    pub lies_on: Vec<(Dev, Dev)>,
    pub processes: Processes,
    /// who writes where: read when first asked for
    writers: Arc<OnceLock<risk::Writers>>,
}

impl Guest {
    /// Who has files open for writing, read once. Takes milliseconds: call from a thread.
    pub fn writers(&self, root: &Path) -> &risk::Writers {
        self.writers.get_or_init(|| risk::Writers::read(root, &self.processes))
    }
}

/// Reads processes, mounts, block devices and their dependencies below `root` ("/" on a real machine).
///
/// # Errors
/// If `proc/self/mountinfo` cannot be read. A missing /sys is not an error: it yields fewer dependencies.
pub fn read(root: &Path) -> io::Result<Guest> {
    let own = mounts::read(root)?;
    let processes = Processes::read(root);
    let mut superblocks = superblocks::read(root, &own, &processes);
    let mut disks = disks::read(root);
    disks.connect(&superblocks, &own);
    for superblock in &mut superblocks {
        if matches!(superblock.kind, Kind::Freezable | Kind::FlushOnly) && disks.is_in_memory(superblock.dev) {
            superblock.kind = Kind::Memory;
        }
    }
    let lies_on = disks.lies_on(&superblocks);
    Ok(Guest { superblocks, disks, lies_on, processes, writers: Arc::default() })
}

/// A file of /proc or /sys, of which there are many and each has at most a page: no more system calls than it takes.
fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut bytes = vec![0; 4096];
    let length = file.read(&mut bytes)?;
    bytes.truncate(length);
    if length == 4096 {
        file.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::{fixture::fixture, *};

    #[test]
    fn this_machine_has_one_root_and_nothing_said_about_it_is_made_up() {
        let guest = read(Path::new("/")).unwrap();
        let roots: Vec<&Superblock> = guest
            .superblocks
            .iter()
            .filter(|s| s.namespace.is_none() && s.mounts.iter().any(|mount| mount == Path::new("/")))
            .collect();
        assert_eq!(roots.len(), 1, "{roots:#?}");
        let mut devs: Vec<Dev> = guest.superblocks.iter().map(|s| s.dev).collect();
        devs.sort();
        devs.dedup();
        assert_eq!(devs.len(), guest.superblocks.len(), "one entry per superblock");
        for superblock in &guest.superblocks {
            let touchable = !matches!(superblock.kind, Kind::Remote | Kind::Pseudo | Kind::Unknown);
            assert!(touchable || superblock.open_at.is_none(), "{superblock:?}");
        }
        for (inner, outer) in &guest.lies_on {
            assert!(devs.contains(inner) && devs.contains(outer));
        }
    }

    #[test]
    fn a_missing_mount_table_is_an_error_and_missing_sysfs_is_not() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(read(empty.path()).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::create_dir_all(empty.path().join("proc/self")).unwrap();
        std::fs::write(empty.path().join("proc/self/mountinfo"), "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n").unwrap();
        let guest = read(empty.path()).unwrap();
        assert_eq!(guest.superblocks.len(), 1);
        assert!(guest.disks.devices.is_empty() && guest.lies_on.is_empty());
    }

    #[test]
    fn superblocks_of_other_namespaces_are_found_through_a_process_that_still_shows_them() {
        let guest = read(fixture("namespaces").path()).unwrap();
        let view = |dev: &str| {
            let dev = Dev::parse(dev).unwrap();
            let found = guest.superblocks.iter().find(|s| s.dev == dev).unwrap();
            (found.namespace, found.open_at.as_ref().map(|mount| mount.path.clone()))
        };
        assert_eq!(view("254:0"), (None, Some("/".into())), "a file bind-mounted into a container adds nothing");
        assert_eq!(view("254:16"), (Some(71), Some("/data".into())), "70 is just ending");
        assert_eq!(view("0:61"), (Some(71), None), "remote there, too");
        assert_eq!(guest.superblocks.len(), 4);
        let (overlay, root) = (Dev { major: 0, minor: 60 }, Dev { major: 254, minor: 0 });
        assert_eq!(guest.lies_on, [(overlay, root)], "its layers are on the host's disk");
    }

    #[test]
    fn file_systems_on_compressed_memory_are_memory() {
        let guest = read(fixture("nvme").path()).unwrap();
        let kinds: Vec<Kind> = guest.superblocks.iter().map(|s| s.kind).collect();
        assert_eq!(kinds, [Kind::Freezable, Kind::Freezable, Kind::Memory, Kind::Memory]);
    }
}
