//! The mount table: what /proc/PID/mountinfo says, one entry per superblock, and where each can be opened safely.
//! Called by [`super::read`] when a hold is planned, and by `preflight` to find which file system a descriptor is on.
//!
//! Nothing here asks the kernel about a path: visibility, coverage and what lies below a network mount are worked out from
//! mount ids and parents alone, because the wrong question to a dead NFS server never returns.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    fs, io,
    os::unix::{
        ffi::OsStringExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Component, Path, PathBuf},
};

use nix::libc;

use super::{Dev, Kind, MountPoint, Superblock};

/// One line of mountinfo (proc_pid_mountinfo(5)), decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountLine {
    pub id: u64,
    /// the mount it is mounted on; for the topmost one an id that is not listed, or its own
    pub parent: u64,
    /// of the superblock, which is not what `stat` says on a btrfs subvolume
    pub dev: Dev,
    pub fs_root: PathBuf,
    pub mount_point: PathBuf,
    /// of this mount, comma separated
    pub options: String,
    pub fs_type: String,
    pub source: String,
    /// of the superblock, comma separated
    pub super_options: String,
}

impl MountLine {
    fn is_read_only(&self) -> bool {
        has_option(&self.options, "ro")
    }
}

fn has_option(options: &str, name: &str) -> bool {
    options.split(',').any(|option| option == name)
}

/// The value of `name=value` in comma-separated options.
pub(super) fn option<'a>(options: &'a str, name: &str) -> Option<&'a str> {
    options.split(',').find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
}

/// Decodes the text of mountinfo. Lines that are not of its form are left out: the kernel writes none.
pub fn parse(text: &str) -> Vec<MountLine> {
    parse_bytes(text.as_bytes())
}

/// As [`parse`], for paths that are not UTF-8.
pub fn parse_bytes(text: &[u8]) -> Vec<MountLine> {
    text.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountLine> {
    // Split at every single space: an empty source leaves two in a row.
    let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let dash = 6 + fields.get(6..)?.iter().position(|f| *f == b"-")?;
    let after = fields.get(dash + 1..)?;
    let (fs_type, source, super_options) = match after {
        [] => return None,
        [fs_type] => (fs_type, &b""[..], Vec::new()),
        [fs_type, source] => (fs_type, *source, Vec::new()),
        [fs_type, source, options @ ..] => (fs_type, *source, options.join(&b' ')),
    };
    Some(MountLine {
        id: number(fields[0])?,
        parent: number(fields[1])?,
        dev: device(fields[2])?,
        fs_root: path(fields[3]),
        mount_point: path(fields[4]),
        options: text(fields[5]),
        fs_type: text(fs_type),
        source: text(source),
        super_options: text(&super_options),
    })
}

fn number<T: std::str::FromStr>(field: &[u8]) -> Option<T> {
    str::from_utf8(field).ok()?.parse().ok()
}

fn device(field: &[u8]) -> Option<Dev> {
    Dev::parse(str::from_utf8(field).ok()?)
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(decode(field)))
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&decode(field)).into_owned()
}

/// Undoes the kernel's `\ooo` (space, tab, newline, backslash, and `#` in sources).
fn decode(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) = (first, tail) {
            out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

/// What a type lets a hold do with it; the whole decision is by name, so that nothing unknown is ever touched.
///
/// cifs has a freeze hook and FIFREEZE on it would succeed and block writers: it is remote all the same.
pub fn kind_of(fs_type: &str) -> Kind {
    match fs_type {
        "ext2" | "ext3" | "ext4" | "xfs" | "btrfs" | "f2fs" | "jfs" | "nilfs2" | "reiserfs" | "gfs2" | "bcachefs" => {
            Kind::Freezable
        }
        "vfat" | "msdos" | "umsdos" | "exfat" | "ntfs3" | "ntfs" | "hfs" | "hfsplus" | "udf" | "ufs" | "minix"
        | "sysv" | "affs" | "adfs" | "bfs" | "hpfs" | "omfs" | "qnx4" | "qnx6" | "jffs2" | "ubifs" | "ocfs2"
        | "reiser4" | "zonefs" | "zfs" => Kind::FlushOnly,
        "tmpfs" | "ramfs" | "devtmpfs" | "rootfs" => Kind::Memory,
        "nfs" | "nfs4" | "cifs" | "smb3" | "smbfs" | "9p" | "virtiofs" | "ceph" | "afs" | "coda" | "ncpfs"
        | "orangefs" | "pvfs2" | "lustre" | "lustre_lite" | "gpfs" | "mmfs" | "panfs" | "beegfs" | "beegfs_nodev"
        | "wekafs" | "quobyte" | "autofs" | "fuse" | "fuseblk" | "vboxsf" | "vmhgfs" | "prl_fs" | "davfs"
        | "davfs2" | "sshfs" | "glusterfs" | "hostfs" => Kind::Remote,
        fuse if fuse.starts_with("fuse.") || fuse.starts_with("fuseblk.") => Kind::Remote,
        "overlay" | "overlayfs" | "aufs" | "unionfs" | "ecryptfs" | "shiftfs" => Kind::Stacked,
        "squashfs" | "erofs" | "iso9660" | "cramfs" | "romfs" | "efs" | "vxfs" | "befs" => Kind::Image,
        "proc" | "sysfs" | "cgroup" | "cgroup2" | "cpuset" | "devpts" | "mqueue" | "debugfs" | "tracefs"
        | "securityfs" | "pstore" | "bpf" | "configfs" | "fusectl" | "binfmt_misc" | "nsfs" | "rpc_pipefs" | "nfsd"
        | "efivarfs" | "hugetlbfs" | "selinuxfs" | "smackfs" | "apparmorfs" | "resctrl" | "xenfs" | "functionfs"
        | "gadgetfs" | "usbfs" | "usbdevfs" | "ocfs2_dlmfs" | "sockfs" | "pipefs" | "pidfs" | "bdev"
        | "anon_inodefs" | "binder" | "openpromfs" | "spufs" | "s390_hypfs" | "oprofilefs" | "guest_memfd" => {
            Kind::Pseudo
        }
        _ => Kind::Unknown,
    }
}

/// Mounts indexed for path resolution, so that a thousand of them cost a thousand steps and not a million.
pub struct Table<'a> {
    lines: &'a [MountLine],
    by_id: HashMap<u64, usize>,
    /// what is mounted at a path of a mount; `None`: at a path of the process's root
    children: HashMap<(Option<u64>, &'a Path), usize>,
}

impl<'a> Table<'a> {
    pub fn new(lines: &'a [MountLine]) -> Self {
        let by_id: HashMap<u64, usize> = lines.iter().enumerate().map(|(at, line)| (line.id, at)).collect();
        let children = lines
            .iter()
            .enumerate()
            .map(|(at, line)| {
                let listed = line.parent != line.id && by_id.contains_key(&line.parent);
                ((listed.then_some(line.parent), line.mount_point.as_path()), at)
            })
            .collect();
        Self { lines, by_id, children }
    }

    /// The mount a canonical path lies on, resolved as the kernel does: component by component, into whatever is on top.
    pub fn covering(&self, path: &Path) -> Option<&'a MountLine> {
        if !path.is_absolute() {
            return None;
        }
        let mut at = None;
        let mut prefix = PathBuf::new();
        for component in path.components() {
            match component {
                Component::RootDir => prefix.push("/"),
                Component::Normal(name) => prefix.push(name),
                Component::Prefix(_) | Component::CurDir | Component::ParentDir => return None,
            }
            at = self.descend(at, &prefix);
        }
        at.map(|at| &self.lines[at])
    }

    fn descend(&self, mut at: Option<usize>, path: &Path) -> Option<usize> {
        // Bounded: ids that form a circle at one path would keep us here for ever.
        for _ in 0..self.lines.len() {
            match self.children.get(&(at.map(|at| self.lines[at].id), path)) {
                Some(&next) => at = Some(next),
                None => break,
            }
        }
        at
    }

    pub fn by_mount_id(&self, id: u64) -> Option<&'a MountLine> {
        self.by_id.get(&id).map(|&at| &self.lines[at])
    }

    /// Whether its path leads to it, not to something mounted over it or over a directory above.
    pub fn is_visible(&self, line: &MountLine) -> bool {
        self.covering(&line.mount_point).is_some_and(|top| top.id == line.id)
    }

    /// The nearest mount above `line` whose server, daemon or unknown driver a path walk would have to wait for. The root
    /// itself is exempt: this process already runs from it.
    pub fn untouchable_above(&self, line: &MountLine) -> Option<&'a MountLine> {
        let mut id = line.parent;
        for _ in 0..self.lines.len() {
            let above = self.by_mount_id(id)?;
            if matches!(kind_of(&above.fs_type), Kind::Remote | Kind::Unknown) && above.mount_point != Path::new("/") {
                return Some(above);
            }
            if above.parent == id {
                return None;
            }
            id = above.parent;
        }
        None
    }
}

/// The mount a canonical path lies on. Many questions about one table are cheaper through [`Table`].
pub fn covering<'a>(mounts: &'a [MountLine], path: &Path) -> Option<&'a MountLine> {
    Table::new(mounts).covering(path)
}

/// The mount with this id, as `/proc/PID/fdinfo` and `statx` name it.
pub fn by_mount_id(mounts: &[MountLine], id: u64) -> Option<&MountLine> {
    mounts.iter().find(|line| line.id == id)
}

/// One entry per superblock, own namespace first, then those seen only in `foreign` ones (a process of each, and its mounts).
///
/// `is_dir` is asked only about visible mounts of local disk file systems in the own namespace with nothing remote above:
/// whether a bind mount is of a file or of a directory is the one thing mountinfo does not say.
pub fn superblocks(
    own: &[MountLine],
    foreign: &[(i32, Vec<MountLine>)],
    is_dir: &dyn Fn(&Path) -> bool,
) -> Vec<Superblock> {
    with_foreign(gather(own, None, is_dir), foreign)
}

/// Adds what only other namespaces show: superblocks not in `found`, and better views of those it could not open.
pub(super) fn with_foreign(mut found: Vec<Superblock>, foreign: &[(i32, Vec<MountLine>)]) -> Vec<Superblock> {
    let mut at: HashMap<Dev, usize> = found.iter().enumerate().map(|(at, s)| (s.dev, at)).collect();
    for (pid, lines) in foreign {
        for superblock in gather(lines, Some(*pid), &|_| false) {
            match at.get(&superblock.dev) {
                None => {
                    at.insert(superblock.dev, found.len());
                    found.push(superblock);
                }
                Some(&known) if wants_another_view(&found[known]) && superblock.open_at.is_some() => {
                    found[known] = superblock;
                }
                Some(_) => {}
            }
        }
    }
    found
}

/// Known, worth opening, and not to be opened where it was seen.
fn wants_another_view(superblock: &Superblock) -> bool {
    superblock.open_at.is_none() && matches!(superblock.kind, Kind::Freezable | Kind::FlushOnly)
}

fn gather(lines: &[MountLine], namespace: Option<i32>, is_dir: &dyn Fn(&Path) -> bool) -> Vec<Superblock> {
    let table = Table::new(lines);
    let mut order = Vec::new();
    let mut groups: HashMap<Dev, Vec<&MountLine>> = HashMap::new();
    for line in lines {
        groups
            .entry(line.dev)
            .or_insert_with(|| {
                order.push(line.dev);
                Vec::new()
            })
            .push(line);
    }
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
        } else if option(&line.super_options, "subvol").is_some_and(|subvolume| line.fs_root == Path::new(subvolume)) {
            1
        } else {
            2
        };
        (class, line.fs_root.components().count(), line.is_read_only())
    });
    lines
}

/// The mount table of this process.
///
/// # Errors
/// `proc/self/mountinfo` cannot be read.
pub fn read(root: &Path) -> io::Result<Vec<MountLine>> {
    Ok(parse_bytes(&fs::read(root.join("proc/self/mountinfo"))?))
}

/// The mount tables of other namespaces, one process of each (the lowest pid), if they hold a superblock that `own` does
/// not or cannot open. Namespaces without a process (kept by a bind mount or a descriptor) and processes whose namespace
/// may not be looked at are not seen.
pub fn read_foreign(root: &Path, own: &[Superblock]) -> Vec<(i32, Vec<MountLine>)> {
    let proc = root.join("proc");
    let mut namespaces: HashSet<PathBuf> = fs::read_link(proc.join("self/ns/mnt")).into_iter().collect();
    let mut known: HashSet<Dev> = own.iter().filter(|s| !wants_another_view(s)).map(|s| s.dev).collect();
    let mut found = Vec::new();
    for pid in pids(root) {
        let dir = proc.join(pid.to_string());
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
        let news = text.split(|&b| b == b'\n').filter_map(|line| device(line.split(|&b| b == b' ').nth(2)?));
        if news.filter(|dev| !known.contains(dev)).count() > 0 {
            let lines = parse_bytes(&text);
            known
                .extend(gather(&lines, Some(pid), &|_| false).iter().filter(|s| !wants_another_view(s)).map(|s| s.dev));
            found.push((pid, lines));
        }
    }
    found
}

/// Every process below `proc`, lowest first.
pub(super) fn pids(root: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(root.join("proc")) else { return Vec::new() };
    let mut pids: Vec<i32> = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// Whether `path` is a directory, asked with a descriptor that reads nothing and triggers no automount.
pub(super) fn is_directory(path: &Path) -> bool {
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
