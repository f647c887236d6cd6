//! The mount table: what /proc/PID/mountinfo says, what each type allows, and which mount a path leads to.
//! Called by `superblocks`, `disks` and `tasks`.
//!
//! Nothing here asks the kernel about a path: visibility, coverage and what lies below a network mount are worked out from
//! mount ids and parents alone, because the wrong question to a dead NFS server never returns.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Component, Path, PathBuf},
};

use super::{Dev, Kind};

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
    pub(super) fn is_read_only(&self) -> bool {
        has_option(&self.options, "ro")
    }
}

/// Whether a flag is among comma-separated options.
pub(super) fn has_option(options: &str, name: &str) -> bool {
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

/// The third field.
pub(super) fn device(field: &[u8]) -> Option<Dev> {
    Dev::parse(str::from_utf8(field).ok()?)
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(decode(field)))
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&decode(field)).into_owned()
}

/// A word of fstab(5), which escapes as mountinfo does.
pub(super) fn unescape(word: &str) -> String {
    text(word.as_bytes())
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

/// The mount table of this process.
///
/// # Errors
/// `proc/self/mountinfo` cannot be read.
pub fn read(root: &Path) -> io::Result<Vec<MountLine>> {
    Ok(parse_bytes(&fs::read(root.join("proc/self/mountinfo"))?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STACKED: &str = "\
21 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard
22 21 8:0 / /a rw - xfs /dev/sda rw
23 22 8:16 / /a/b rw - xfs /dev/sdb rw
24 22 8:32 / /a rw - ext4 /dev/sdc rw
25 21 8:48 / /d/e rw - ext4 /dev/sdd rw
26 21 8:64 / /d rw - ext4 /dev/sde rw
";

    fn on(mounts: &[MountLine], path: &str) -> u64 {
        covering(mounts, Path::new(path)).unwrap().id
    }

    #[test]
    fn escapes_optional_fields_and_empty_sources_are_decoded() {
        let text = "40 22 0:50 / /mnt/with\\040space\\011tab\\134back rw,nosuid - tmpfs  rw,size=4k\n\
                    41 22 0:51 /x\\012y /m rw shared:1 master:3 propagate_from:2 unbindable - cifs //srv/a\\040b\\043c rw\n\
                    42 22 0:52 / /none rw - tmpfs none\n";
        let lines = parse(text);
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].mount_point, Path::new("/mnt/with space\ttab\\back"));
        assert_eq!((lines[0].source.as_str(), lines[0].super_options.as_str()), ("", "rw,size=4k"));
        assert_eq!(lines[1].fs_root, Path::new("/x\ny"));
        assert_eq!((lines[1].fs_type.as_str(), lines[1].source.as_str()), ("cifs", "//srv/a b#c"));
        assert_eq!((lines[2].source.as_str(), lines[2].super_options.as_str()), ("none", ""));
    }

    #[test]
    fn paths_that_are_not_utf8_survive() {
        let lines = parse_bytes(b"40 22 8:1 / /mnt/\xff\xfe rw - ext4 /dev/sda1 rw\n");
        assert_eq!(std::os::unix::ffi::OsStrExt::as_bytes(lines[0].mount_point.as_os_str()), b"/mnt/\xff\xfe");
    }

    #[test]
    fn lines_of_another_form_are_left_out() {
        let text =
            "\nnonsense\n1 2 x:y / / rw - ext4 a rw\n1 2 8:1 / / rw\n1 2 8:1 / / rw -\n5 6 8:1 / /ok rw - ext4 a rw";
        assert_eq!(parse(text).iter().map(|l| l.id).collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn a_path_lies_on_whatever_is_on_top_at_each_component() {
        let mounts = parse(STACKED);
        assert_eq!(on(&mounts, "/"), 21);
        assert_eq!(on(&mounts, "/usr/lib"), 21);
        assert_eq!(on(&mounts, "/a"), 24, "mounted over");
        assert_eq!(on(&mounts, "/a/b/c"), 24, "what was below /a went out of sight with it");
        assert_eq!(on(&mounts, "/d/e"), 26, "a mount over its parent directory hides it");
        assert_eq!(on(&mounts, "/ab"), 21, "a name is not a prefix");
        assert_eq!(covering(&mounts, Path::new("relative")), None);
        assert_eq!(covering(&mounts, Path::new("/a/../d")), None);
        assert_eq!(by_mount_id(&mounts, 23).unwrap().mount_point, Path::new("/a/b"));
    }

    #[test]
    fn only_mounts_their_path_leads_to_are_visible() {
        let mounts = parse(STACKED);
        let table = Table::new(&mounts);
        let visible: Vec<u64> = mounts.iter().filter(|line| table.is_visible(line)).map(|line| line.id).collect();
        assert_eq!(visible, [21, 24, 26]);
    }

    #[test]
    fn a_root_over_the_first_root_wins() {
        let mounts = parse("1 1 0:1 / / rw - rootfs rootfs rw\n2 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
        assert_eq!(on(&mounts, "/etc"), 2);
    }

    #[test]
    fn a_process_whose_root_is_no_mount_point_sees_its_mounts_all_the_same() {
        let mounts = parse("50 27 0:5 / /proc rw - proc proc rw\n51 27 8:1 / /data rw - ext4 /dev/sda1 rw\n");
        assert_eq!(on(&mounts, "/data/x"), 51);
        assert_eq!(covering(&mounts, Path::new("/etc")), None);
    }

    #[test]
    fn what_is_below_something_remote_or_unknown_is_told_but_the_root_is_exempt() {
        let mounts = parse(
            "1 0 0:9 / / rw - nfs4 srv:/ rw\n\
             2 1 0:10 / /net rw - autofs auto rw\n\
             3 2 8:1 / /net/disk rw - ext4 /dev/sda1 rw\n\
             4 1 8:2 / /local rw - ext4 /dev/sda2 rw\n\
             5 1 0:11 / /odd rw - gizmofs x rw\n\
             6 5 8:3 / /odd/disk rw - ext4 /dev/sda3 rw\n",
        );
        let table = Table::new(&mounts);
        let above = |id| table.untouchable_above(table.by_mount_id(id).unwrap()).map(|line| line.id);
        assert_eq!([above(3), above(4), above(6)], [Some(2), None, Some(5)]);
    }

    #[test]
    fn cifs_and_every_fuse_are_remote_though_some_could_be_frozen() {
        for fs_type in ["cifs", "fuseblk", "fuse.sshfs", "fuse", "9p", "virtiofs", "autofs", "ceph"] {
            assert_eq!(kind_of(fs_type), Kind::Remote, "{fs_type}");
        }
        assert_eq!(kind_of("fusectl"), Kind::Pseudo);
        assert_eq!(kind_of("zfs"), Kind::FlushOnly);
        assert_eq!(kind_of("gizmofs"), Kind::Unknown);
    }

    #[test]
    fn mounts_in_a_circle_end() {
        let mounts = parse("1 2 8:1 / / rw - ext4 a rw\n2 1 8:2 / / rw - ext4 b rw\n3 1 8:3 / /x rw - ext4 c rw\n");
        let table = Table::new(&mounts);
        assert!(mounts.iter().all(|line| table.untouchable_above(line).is_none()));
        assert!(!table.is_visible(&mounts[2]));
    }

    proptest! {
        #[test]
        fn no_text_makes_parsing_or_resolution_panic(text in "([0-9]{1,2} [0-9]{1,2} [0-9]:[0-9] /?[a-c\\\\0-9/]{0,6} \
            /[a-c/\\\\0-9]{0,8} [a-z,]{0,4}( x:1)? ?-? (ext4|nfs|tmpfs|btrfs|) ?[a-z ]{0,9}\n){0,12}") {
            let mounts = parse(&text);
            let table = Table::new(&mounts);
            for line in &mounts {
                table.is_visible(line);
                table.untouchable_above(line);
            }
        }

        #[test]
        fn arbitrary_bytes_do_not_panic_either(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            parse_bytes(&text);
        }

        #[test]
        fn a_mount_on_a_directory_that_nothing_hides_is_visible(names in proptest::collection::vec("[a-z]{1,3}", 1..6)) {
            // Each below the one before: a chain hides nothing of itself.
            let mut text = String::from("1 0 8:0 / / rw - ext4 a rw\n");
            let mut path = String::new();
            for (at, name) in names.iter().enumerate() {
                path = format!("{path}/{name}");
                text += &format!("{} {} 8:{} / {path} rw - ext4 a rw\n", at + 2, at + 1, at + 1);
            }
            let mounts = parse(&text);
            let table = Table::new(&mounts);
            prop_assert!(mounts.iter().all(|line| table.is_visible(line)));
        }
    }
}
