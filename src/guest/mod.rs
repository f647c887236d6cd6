//! Reading the guest. Every reader takes a `root`, every parser takes text; nothing here touches a target file system.

pub mod databases;
pub mod disks;
pub mod mounts;
pub mod order;
pub mod platform;
pub mod preflight;
pub mod superblock;
pub mod transient;

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

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
}

/// Reads mounts, block devices and their dependencies below `root` ("/" on a real machine).
///
/// # Errors
/// If `proc/self/mountinfo` cannot be read. A missing /sys is not an error: it yields fewer dependencies.
pub fn read(root: &Path) -> io::Result<Guest> {
    let own = mounts::read(root)?;
    let is_dir = |path: &Path| mounts::is_directory(&mounts::under(root, path));
    let seen_here = mounts::superblocks(&own, &[], &is_dir);
    let foreign = mounts::read_foreign(root, &seen_here);
    let mut superblocks = mounts::with_foreign(seen_here, &foreign);
    let mut disks = disks::read(root);
    disks.connect(&superblocks, &own);
    for superblock in &mut superblocks {
        if matches!(superblock.kind, Kind::Freezable | Kind::FlushOnly) && disks.is_in_memory(superblock.dev) {
            superblock.kind = Kind::Memory;
        }
    }
    let lies_on = disks.lies_on(&superblocks);
    Ok(Guest { superblocks, disks, lies_on })
}
