//! What has not been written back yet: how much, and which files it may be in. The kernel tells nobody which files have
//! dirty pages; those that a process has open for writing are the likeliest. Called by the driver while preparing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    path::Path,
};

use super::{
    Dev,
    mounts::{self, MountLine},
    tasks::{self, Processes},
};

/// Bytes of the page cache that are dirty, of all file systems together; 0 if the kernel does not say.
pub fn bytes(root: &Path) -> u64 {
    parse(&fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default()).unwrap_or(0)
}

/// `Dirty:` of /proc/meminfo (proc_meminfo(5)).
fn parse(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("Dirty:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// A file that process `pid` has open as `fd`, on the mount of that id: what proves later that it still is that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFile {
    pub pid: i32,
    pub fd: i32,
    pub mount_id: u64,
}

/// Files on `wanted` superblocks that processes have open for writing through the page cache, of each superblock at most
/// `most`. Reads /proc only: no file system is touched. The same file may be listed more than once.
pub fn open_files(
    root: &Path,
    processes: &Processes,
    wanted: &BTreeSet<Dev>,
    most: usize,
) -> BTreeMap<Dev, Vec<OpenFile>> {
    let mut found: BTreeMap<Dev, Vec<OpenFile>> = BTreeMap::new();
    let mut seen = HashSet::new();
    let mut known = Mounts::default();
    for pid in processes.with_files() {
        let process = root.join("proc").join(pid.to_string());
        for entry in fs::read_dir(process.join("fdinfo")).into_iter().flatten().flatten() {
            let Some(file) = tasks::read_descriptor(&entry.path()).filter(|f| f.writable && !f.direct) else {
                continue;
            };
            let Some(fd) = entry.file_name().to_str().and_then(|fd| fd.parse().ok()) else { continue };
            let Some(mount) = known.get(file.mount_id, &process) else { continue };
            // on btrfs every subvolume counts its inodes anew, below one mount
            let told_apart = file.inode.filter(|_| mount.fs_type != "btrfs");
            if !wanted.contains(&mount.dev) || told_apart.is_some_and(|inode| !seen.insert((mount.dev, inode))) {
                continue;
            }
            let files = found.entry(mount.dev).or_default();
            if files.len() < most {
                files.push(OpenFile { pid, fd, mount_id: file.mount_id });
            }
        }
    }
    found
}

/// Mounts by id, read from whoever shows an id first: ids are the kernel's, not a namespace's. Pipes and sockets are on
/// mounts that nobody shows.
#[derive(Default)]
struct Mounts(HashMap<u64, Option<MountLine>>);

impl Mounts {
    fn get(&mut self, id: u64, process: &Path) -> Option<&MountLine> {
        if !self.0.contains_key(&id) {
            let lines = mounts::parse_bytes(&fs::read(process.join("mountinfo")).unwrap_or_default());
            self.0.extend(lines.into_iter().map(|line| (line.id, Some(line))));
        }
        self.0.entry(id).or_default().as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dirty_pages_are_counted_in_bytes() {
        assert_eq!(parse("MemTotal:  2048 kB\nDirty:              1204 kB\nWriteback:  0 kB\n"), Some(1204 * 1024));
        assert_eq!(parse("MemTotal: 1 kB\n"), None);
        assert_eq!(bytes(Path::new("/nowhere")), 0);
    }

    /// A guest of two processes, the second in a mount namespace of its own.
    fn guest() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join("proc").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let stat = |name: &str| format!("9 ({name}) S 1 9 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 77 0\n");
        write("7/stat", &stat("postgres"));
        write("7/mountinfo", "31 1 8:1 / /srv rw - ext4 /dev/sda1 rw\n32 1 8:2 / / rw - ext4 /dev/sda2 rw\n");
        write("7/fdinfo/3", "pos:\t0\nflags:\t0100002\nmnt_id:\t31\nino:\t12\n");
        write("7/fdinfo/4", "pos:\t0\nflags:\t0100002\nmnt_id:\t31\nino:\t12\n");
        write("7/fdinfo/5", "pos:\t0\nflags:\t0100000\nmnt_id:\t31\nino:\t13\n");
        write("7/fdinfo/6", "pos:\t0\nflags:\t0100002\nmnt_id:\t32\nino:\t14\n");
        write("7/fdinfo/7", "pos:\t0\nflags:\t04002\nmnt_id:\t9\nino:\t15\n");
        let direct = libc::O_DIRECT | libc::O_RDWR;
        write("7/fdinfo/8", &format!("pos:\t0\nflags:\t0{direct:o}\nmnt_id:\t31\nino:\t16\n"));
        write("8/stat", &stat("container"));
        write("8/mountinfo", "71 1 8:1 / /data rw - ext4 /dev/sda1 rw\n72 1 0:40 /a /b rw - btrfs /dev/sdb rw\n");
        write("8/fdinfo/3", "pos:\t0\nflags:\t0100001\nmnt_id:\t71\nino:\t17\n");
        write("8/fdinfo/4", "pos:\t0\nflags:\t0100001\nmnt_id:\t72\nino:\t257\n");
        write("8/fdinfo/5", "pos:\t0\nflags:\t0100001\nmnt_id:\t72\nino:\t257\n");
        root
    }

    fn found(most: usize) -> BTreeMap<Dev, Vec<(i32, i32)>> {
        let root = guest();
        let wanted = ["8:1", "0:40"].map(|dev| Dev::parse(dev).unwrap()).into();
        let mut found = open_files(root.path(), &Processes::read(root.path()), &wanted, most);
        found.values_mut().for_each(|files| files.sort_by_key(|file| (file.pid, file.fd)));
        let pairs = |files: Vec<OpenFile>| files.iter().map(|file| (file.pid, file.fd)).collect();
        found.into_iter().map(|(dev, files)| (dev, pairs(files))).collect()
    }

    #[test]
    fn cached_files_open_for_writing_are_found_once_in_every_namespace_and_others_are_not() {
        let found = found(10);
        let ext4 = &found[&Dev { major: 8, minor: 1 }];
        assert!(matches!(ext4[..], [(7, 3 | 4), (8, 3)]), "{ext4:?}");
        assert_eq!(found[&Dev { major: 0, minor: 40 }], [(8, 4), (8, 5)], "two subvolumes may both have an inode 257");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn no_more_files_of_one_superblock_are_listed_than_were_asked_for() {
        assert!(found(1).values().all(|files| files.len() == 1));
    }
}
