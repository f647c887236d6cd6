//! One entry per superblock, however often it is mounted, and where it can be opened safely. Called by [`super::read`].
//!
//! Own mount namespace first, then what only others show. A type is judged by name before any syscall, and what lies below
//! a mount that could hang is never touched.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::libc;

use super::{
    Dev, Kind, MountPoint, Superblock,
    mounts::{self, MountLine, Table, has_option, kind_of},
    tasks::Processes,
};

/// One entry per superblock, own namespace first, then those seen only in `foreign` ones (a process of each, and its mounts).
///
/// `is_dir` is asked only about visible mounts of local disk file systems in the own namespace with nothing remote above:
/// whether a bind mount is of a file or of a directory is the one thing mountinfo does not say.
pub fn superblocks(
    own: &[MountLine],
    foreign: &[(i32, Vec<MountLine>)],
    is_dir: &dyn Fn(&Path) -> bool,
) -> Vec<Superblock> {
    let mut all = Collected::default();
    all.add(own, None, is_dir);
    for (pid, lines) in foreign {
        all.add(lines, Some(*pid), is_dir);
    }
    all.found
}

/// Superblocks found so far, and where each is in the list.
#[derive(Default)]
struct Collected {
    found: Vec<Superblock>,
    at: HashMap<Dev, usize>,
}

impl Collected {
    /// Whether another namespace's view of it would add anything.
    fn wants(&self, dev: Dev) -> bool {
        self.at.get(&dev).is_none_or(|&at| wants_another_view(&self.found[at]))
    }

    fn add(&mut self, lines: &[MountLine], namespace: Option<i32>, is_dir: &dyn Fn(&Path) -> bool) {
        for superblock in gather(lines, namespace, is_dir, &|dev| self.wants(dev)) {
            match self.at.get(&superblock.dev) {
                None => {
                    self.at.insert(superblock.dev, self.found.len());
                    self.found.push(superblock);
                }
                Some(&at) if superblock.open_at.is_some() => self.found[at] = superblock,
                Some(_) => {}
            }
        }
    }
}

/// Known, worth opening, and not to be opened where it was seen.
fn wants_another_view(superblock: &Superblock) -> bool {
    superblock.open_at.is_none() && matches!(superblock.kind, Kind::Freezable | Kind::FlushOnly)
}

fn gather(
    lines: &[MountLine],
    namespace: Option<i32>,
    is_dir: &dyn Fn(&Path) -> bool,
    wanted: &dyn Fn(Dev) -> bool,
) -> Vec<Superblock> {
    let mut order = Vec::new();
    let mut groups: HashMap<Dev, Vec<&MountLine>> = HashMap::new();
    for line in lines.iter().filter(|line| wanted(line.dev)) {
        let group = groups.entry(line.dev).or_default();
        if group.is_empty() {
            order.push(line.dev);
        }
        group.push(line);
    }
    let table = Table::new(lines);
    order.iter().map(|dev| superblock(*dev, &groups[dev], &table, namespace, is_dir)).collect()
}

fn superblock(
    dev: Dev,
    lines: &[&MountLine],
    table: &Table,
    namespace: Option<i32>,
    is_dir: &dyn Fn(&Path) -> bool,
) -> Superblock {
    let kind = kind_of(&lines[0].fs_type);
    let visible: Vec<&MountLine> = lines.iter().copied().filter(|line| table.is_visible(line)).collect();
    let (clear, blocked): (Vec<&MountLine>, Vec<&MountLine>) =
        visible.iter().partition(|line| table.untouchable_above(line).is_none());
    let below = blocked
        .first()
        .filter(|_| clear.is_empty())
        .and_then(|line| table.untouchable_above(line))
        .map(|above| format!("{} is {}", above.mount_point.display(), above.fs_type));
    let ordered = in_order_of_preference(clear);
    let chosen = match kind {
        Kind::Freezable | Kind::FlushOnly if namespace.is_none() => {
            ordered.into_iter().find(|line| is_dir(&line.mount_point))
        }
        Kind::Freezable | Kind::FlushOnly | Kind::Memory | Kind::Stacked | Kind::Image => ordered.first().copied(),
        Kind::Remote | Kind::Pseudo | Kind::Unknown => None,
    };
    let spokesman = chosen.unwrap_or(lines[0]);
    // A mount point something else is mounted over is not a name for this file system any more, unless it has no other.
    let named: &[&MountLine] = if visible.is_empty() { lines } else { &visible };
    Superblock {
        dev,
        fs_type: spokesman.fs_type.clone(),
        source: spokesman.source.clone(),
        options: spokesman.super_options.clone(),
        kind,
        read_only: has_option(&spokesman.super_options, "ro"),
        open_at: chosen.map(|line| MountPoint {
            path: line.mount_point.clone(),
            mount_id: line.id,
            fs_root: line.fs_root.clone(),
        }),
        mounts: named.iter().map(|line| line.mount_point.clone()).collect(),
        namespace,
        below,
    }
}

/// Its own root first, then roots of subvolumes, then the shallowest; writable before read-only mounts of the same.
fn in_order_of_preference(mut lines: Vec<&MountLine>) -> Vec<&MountLine> {
    lines.sort_by_cached_key(|line| {
        let class = if line.fs_root == Path::new("/") {
            0
        } else if mounts::option(&line.super_options, "subvol")
            .is_some_and(|subvolume| line.fs_root == Path::new(subvolume))
        {
            1
        } else {
            2
        };
        (class, line.fs_root.components().count(), line.is_read_only())
    });
    lines
}

/// Every superblock mounted on this machine: those of `own` first, then those only other namespaces show. One process of
/// each is looked at, the lowest pid. Namespaces without a process (kept by a bind mount or a descriptor), and processes
/// whose namespace may not be looked at, are not seen.
pub fn read(root: &Path, own: &[MountLine], processes: &Processes) -> Vec<Superblock> {
    let is_dir = |path: &Path| is_directory(&under(root, path));
    let mut all = Collected::default();
    all.add(own, None, &is_dir);
    let mut namespaces: HashSet<PathBuf> = fs::read_link(root.join("proc/self/ns/mnt")).into_iter().collect();
    for pid in processes.with_files() {
        let dir = root.join("proc").join(pid.to_string());
        let Ok(namespace) = fs::read_link(dir.join("ns/mnt")) else { continue };
        if namespaces.contains(&namespace) {
            continue;
        }
        let Ok(text) = fs::read(dir.join("mountinfo")) else { continue };
        // A process that is just ending has an empty table; another one may show this namespace.
        if text.is_empty() {
            continue;
        }
        namespaces.insert(namespace);
        // Most hold nothing new: do not decode a thousand lines to learn that.
        let mut devs =
            text.split(|&b| b == b'\n').filter_map(|line| mounts::device(line.split(|&b| b == b' ').nth(2)?));
        if devs.any(|dev| all.wants(dev)) {
            all.add(&mounts::parse_bytes(&text), Some(pid), &is_dir);
        }
    }
    all.found
}

/// Whether `path` is a directory, asked with a descriptor that reads nothing and triggers no automount.
fn is_directory(path: &Path) -> bool {
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
        .and_then(|file| file.metadata())
        .is_ok_and(|m| m.mode() & libc::S_IFMT == libc::S_IFDIR)
}

/// `path` of the guest below `root`.
pub(super) fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn all_directories(_: &Path) -> bool {
        true
    }

    fn read(text: &str) -> Vec<Superblock> {
        superblocks(&mounts::parse(text), &[], &all_directories)
    }

    fn of<'a>(superblocks: &'a [Superblock], dev: &str) -> &'a Superblock {
        superblocks.iter().find(|s| s.dev == Dev::parse(dev).unwrap()).unwrap()
    }

    fn path(superblock: &Superblock) -> Option<&str> {
        superblock.open_at.as_ref().and_then(|mount| mount.path.to_str())
    }

    const DOCKER: &str = "\
24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
25 24 0:21 / /proc rw,nosuid - proc proc rw
26 24 8:15 / /boot/efi rw,relatime - vfat /dev/sda15 rw,fmask=0077
27 24 0:24 / /run rw,nosuid - tmpfs tmpfs rw,size=1g
28 27 0:4 net:[4026532280] /run/docker/netns/9a8b rw - nsfs nsfs rw
310 24 0:46 / /var/lib/docker/overlay2/aa/merged rw - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/B:/var/lib/docker/overlay2/l/C,upperdir=/var/lib/docker/overlay2/aa/diff,workdir=/var/lib/docker/overlay2/aa/work
320 24 8:1 /var/lib/kubelet/pods/1/volumes/etc /var/lib/kubelet/pods/1/mnt ro,relatime - ext4 /dev/sda1 rw,errors=remount-ro
330 24 7:0 / /snap/core/1 ro,nodev - squashfs /dev/loop0 ro
340 24 8:17 / /backup ro,relatime - ext4 /dev/sdb1 ro
";

    #[test]
    fn a_docker_host_has_one_entry_per_superblock() {
        let found = read(DOCKER);
        assert_eq!(found.len(), 8);
        let root = of(&found, "8:1");
        assert_eq!(
            (path(root), root.mounts.len(), root.read_only),
            (Some("/"), 2, false),
            "a read-only bind mount is no matter"
        );
        assert!(of(&found, "8:17").read_only);
        let kinds = ["8:15", "0:24", "0:4", "0:46", "7:0"].map(|dev| of(&found, dev).kind);
        assert_eq!(kinds, [Kind::FlushOnly, Kind::Memory, Kind::Pseudo, Kind::Stacked, Kind::Image]);
    }

    #[test]
    fn subvolumes_are_one_file_system_opened_at_a_subvolume_not_at_a_directory_in_one() {
        let found = read(
            "1 0 0:30 /@ / rw - btrfs /dev/vda2 rw,subvolid=256,subvol=/@\n\
             2 1 0:30 /@/srv /srv rw - btrfs /dev/vda2 rw,subvolid=256,subvol=/@\n\
             3 1 0:30 /@home /home rw - btrfs /dev/vda2 rw,subvolid=257,subvol=/@home\n",
        );
        assert_eq!(found.len(), 1);
        assert_eq!(path(&found[0]), Some("/"));
        let found = read(
            "1 0 8:1 / / rw - ext4 /dev/vda1 rw\n\
             2 1 0:30 /@/srv /srv rw - btrfs /dev/vda2 rw,subvolid=256,subvol=/@\n\
             3 1 0:30 /@home /home rw - btrfs /dev/vda2 rw,subvolid=257,subvol=/@home\n\
             4 1 0:30 / /top rw - btrfs /dev/vda2 rw,subvolid=5,subvol=/\n",
        );
        assert_eq!(path(of(&found, "0:30")), Some("/top"), "its own root is better still");
    }

    #[test]
    fn a_bind_mounted_file_is_never_the_place_to_open() {
        let text = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
             2 1 8:2 /log /dev/log rw - ext4 /dev/sda2 rw\n\
             3 1 8:2 /a/deep/directory /mnt rw - ext4 /dev/sda2 rw\n";
        let found = superblocks(&mounts::parse(text), &[], &|path| path != Path::new("/dev/log"));
        assert_eq!(path(of(&found, "8:2")), Some("/mnt"));
        let found = superblocks(&mounts::parse(text), &[], &|path| path == Path::new("/"));
        assert_eq!(path(of(&found, "8:2")), None);
    }

    #[test]
    fn an_over_mounted_path_is_not_where_the_hidden_one_is_opened() {
        let found = read(
            "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
             2 1 8:2 / /mnt rw - ext4 /dev/sda2 rw\n\
             3 2 8:3 / /mnt rw - ext4 /dev/sda3 rw\n\
             4 1 8:2 /sub /elsewhere rw - ext4 /dev/sda2 rw\n\
             5 1 8:4 / /data rw - ext4 /dev/sda4 rw\n\
             6 5 8:1 /var /data rw - ext4 /dev/sda1 rw\n",
        );
        assert_eq!(path(of(&found, "8:2")), Some("/elsewhere"));
        assert_eq!(of(&found, "8:2").mounts, [Path::new("/elsewhere")], "/mnt is somebody else's name now");
        assert_eq!(path(of(&found, "8:3")), Some("/mnt"));
        assert_eq!((path(of(&found, "8:4")), &of(&found, "8:4").mounts[..]), (None, &[PathBuf::from("/data")][..]));
    }

    #[test]
    fn nothing_below_or_on_a_remote_mount_is_asked_or_opened() {
        let text = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
             2 1 0:40 / /net rw - autofs auto.net rw,indirect\n\
             3 2 0:41 / /net/srv rw - nfs4 srv:/x rw\n\
             4 3 8:2 / /net/srv/disk rw - ext4 /dev/sdb rw\n\
             5 1 8:3 / /home rw - ext4 /dev/sdc rw\n\
             6 3 8:3 / /net/srv/home rw - ext4 /dev/sdc rw\n";
        let asked = RefCell::new(Vec::new());
        let found = superblocks(&mounts::parse(text), &[], &|path| {
            asked.borrow_mut().push(path.to_path_buf());
            true
        });
        assert_eq!(asked.into_inner(), [Path::new("/"), Path::new("/home")]);
        assert_eq!(of(&found, "8:2").below.as_deref(), Some("/net/srv is nfs4"));
        assert_eq!((path(of(&found, "8:2")), path(of(&found, "0:41"))), (None, None));
        assert_eq!((path(of(&found, "8:3")), &of(&found, "8:3").below), (Some("/home"), &None));
    }

    #[test]
    fn a_superblock_hidden_here_is_opened_where_another_namespace_shows_it() {
        let own =
            mounts::parse("1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /m rw - ext4 b rw\n3 2 8:3 / /m rw - ext4 c rw\n");
        let other =
            mounts::parse("9 0 8:1 / / rw - ext4 a rw\n10 9 8:2 / /m rw - ext4 b rw\n11 9 8:9 / /own rw - xfs d rw\n");
        let found = superblocks(&own, &[(77, other)], &all_directories);
        let view = |dev| (path(of(&found, dev)), of(&found, dev).namespace);
        assert_eq!(view("8:1"), (Some("/"), None));
        assert_eq!(view("8:2"), (Some("/m"), Some(77)));
        assert_eq!(view("8:9"), (Some("/own"), Some(77)));
    }

    #[test]
    fn a_thousand_mounts_in_two_hundred_namespaces_take_no_time_to_speak_of() {
        let mut own = String::from("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n");
        for n in 2..1002 {
            own += &format!(
                "{n} 1 0:{n} / /var/lib/docker/overlay2/{n}/merged rw - overlay overlay rw,upperdir=/var/lib/docker/{n}\n"
            );
        }
        let own = mounts::parse(&own);
        let foreign: Vec<(i32, Vec<MountLine>)> = (1..=200).map(|pid| (pid, own.clone())).collect();
        let before = crate::sys::clock::monotonic();
        assert_eq!(superblocks(&own, &foreign, &all_directories).len(), 1001);
        let took = crate::sys::clock::monotonic() - before;
        assert!(took < std::time::Duration::from_secs(10), "{took:?}: something is quadratic");
    }
}
