//! What the command's own root is to be made of, worked out from mountinfo alone: an overlay over everything that is held,
//! and everything else as it is.
//!
//! ```text
//!   /            ext4, held        overlay            the command writes into memory
//!   ├─ /proc     proc              bound, with all below
//!   ├─ /run      tmpfs             bound, with all below
//!   ├─ /srv      xfs, not held     bound alone, because of what is below:
//!   │  └─ /srv/db  ext4, held      overlay
//!   └─ /etc/x    ext4, held, a file   bound read-only: an overlay covers directories only
//! ```

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use crate::guest::Dev;

/// One line of proc_pid_mountinfo(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub id: u64,
    pub parent: u64,
    pub dev: Dev,
    pub at: PathBuf,
    /// of this mount: "rw", "nosuid" …
    pub options: Vec<String>,
    pub fs_type: String,
    /// of the superblock: "upperdir=…" …
    pub super_options: String,
}

/// How a mount appears in the new root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// writes go to memory
    Overlay,
    /// as it is, without what is mounted below it
    Bind,
    /// as it is, with everything below it
    BindAll,
}

/// One mount of the new root; they are made in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub at: PathBuf,
    pub how: How,
    /// "nosuid", "nodev" and "noexec", where the covered mount has them
    pub options: Vec<String>,
}

/// Parses mountinfo; lines it cannot make sense of are left out.
pub fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    mountinfo.split(|b| *b == b'\n').filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let (major, minor) = std::str::from_utf8(fields.get(2)?).ok()?.split_once(':')?;
    Some(Mount {
        id: text(fields.first()?).parse().ok()?,
        parent: text(fields.get(1)?).parse().ok()?,
        dev: Dev { major: major.parse().ok()?, minor: minor.parse().ok()? },
        at: PathBuf::from(unescape(fields.get(4)?)),
        options: text(fields.get(5)?).split(',').map(str::to_owned).collect(),
        fs_type: text(fields.get(dash + 1)?),
        super_options: text(fields.get(dash + 3)?),
    })
}

/// Space, tab, newline and backslash come as `\040` and so on.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

/// The pieces, parents before what lies in them. `stage` is where they are put together, and left out.
pub fn plan(mounts: &[Mount], held: &BTreeSet<Dev>, stage: &Path) -> Vec<Piece> {
    let tree = Tree { mounts, held, stage };
    let mut pieces = Vec::new();
    if let Some(root) = tree.top(Path::new("/")) {
        tree.place(root, &mut pieces);
    }
    pieces
}

struct Tree<'a> {
    mounts: &'a [Mount],
    held: &'a BTreeSet<Dev>,
    stage: &'a Path,
}

impl<'a> Tree<'a> {
    /// What is seen at this path: the last mount made there that the earlier ones there lead to.
    fn top(&self, at: &Path) -> Option<&'a Mount> {
        self.mounts.iter().rev().find(|m| m.at == at)
    }

    /// Mounts one sees directly below this one.
    fn children(&self, of: &'a Mount) -> impl Iterator<Item = &'a Mount> {
        self.mounts
            .iter()
            .filter(move |m| m.parent == of.id && m.id != of.id && m.at != of.at && !m.at.starts_with(self.stage))
            .filter_map(|m| self.top(&m.at))
            // an automount point would be triggered by being looked at, and may then hang
            .filter(|m| m.fs_type != "autofs")
    }

    fn place(&self, mount: &'a Mount, pieces: &mut Vec<Piece>) {
        let is_root = mount.at == Path::new("/");
        let how = match () {
            () if self.covered(mount) => How::Overlay,
            () if is_root || self.covered_below(mount) => How::Bind,
            () => How::BindAll,
        };
        let keeps = |option: &&String| ["nosuid", "nodev", "noexec"].contains(&option.as_str());
        let options = mount.options.iter().filter(keeps).cloned().collect();
        pieces.push(Piece { at: mount.at.clone(), how, options });
        if how != How::BindAll {
            let mut children: Vec<_> = self.children(mount).collect();
            children.sort_by_key(|m| m.id);
            children.dedup_by_key(|m| m.id);
            children.into_iter().for_each(|child| self.place(child, pieces));
        }
    }

    /// Would a write here wait for the release?
    fn covered(&self, mount: &Mount) -> bool {
        if mount.options.iter().any(|o| o == "ro") {
            return false;
        }
        self.held.contains(&mount.dev) || (mount.fs_type == "overlay" && self.upper_is_held(mount))
    }

    /// An overlay writes to its upper directory. That of the root is often nowhere to be seen: then it is covered too.
    fn upper_is_held(&self, mount: &Mount) -> bool {
        let upper = mount.super_options.split(',').find_map(|o| o.strip_prefix("upperdir="));
        let Some(upper) = upper.map(|u| PathBuf::from(unescape(u.as_bytes()))) else { return false };
        let holder = upper.ancestors().find_map(|dir| self.top(dir).filter(|m| m.id != mount.id));
        mount.at == Path::new("/") || holder.is_some_and(|m| self.held.contains(&m.dev))
    }

    fn covered_below(&self, mount: &'a Mount) -> bool {
        self.children(mount).any(|child| self.covered(child) || self.covered_below(child))
    }
}

/// Where in the upper layers a path of the command's view is: the overlay that covers it, and the path within.
pub fn within<'a>(overlays: &'a [PathBuf], path: &'a Path) -> Option<(usize, &'a Path)> {
    let longest =
        overlays.iter().enumerate().filter(|(_, at)| path.starts_with(at)).max_by_key(|(_, at)| at.as_os_str().len());
    longest.and_then(|(i, at)| Some((i, path.strip_prefix(at).ok()?)))
}

/// "254:1" as it comes on the gate's command line.
pub fn parse_dev(text: &str) -> Option<Dev> {
    let (major, minor) = text.split_once(':')?;
    Some(Dev { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

/// A path as one word of overlay's mount options.
pub fn escape(path: &Path) -> OsString {
    let mut out = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if b"\\,:".contains(byte) {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    OsStr::from_bytes(&out).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
21 1 254:1 / / rw,relatime - ext4 /dev/root rw
22 21 0:5 / /proc rw - proc proc rw
23 22 0:30 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw
24 21 0:21 / /run rw,nosuid - tmpfs tmpfs rw
25 21 254:2 / /srv rw - xfs /dev/vdb rw
26 25 254:3 / /srv/my\\040db rw,nosuid,nodev - ext4 /dev/vdc rw
27 21 254:3 /etc/x /etc/x rw - ext4 /dev/vdc rw
28 21 254:3 / /frozen-but-ro ro - ext4 /dev/vdc rw
29 21 0:40 / /net rw - autofs auto.net rw
30 24 0:50 / /run/stage rw - tmpfs tmpfs rw
";

    fn devs(list: &[(u32, u32)]) -> BTreeSet<Dev> {
        list.iter().map(|(major, minor)| Dev { major: *major, minor: *minor }).collect()
    }

    fn planned(text: &str, held: &[(u32, u32)]) -> Vec<(String, How)> {
        let pieces = plan(&parse(text.as_bytes()), &devs(held), Path::new("/run/stage"));
        pieces.into_iter().map(|p| (p.at.display().to_string(), p.how)).collect()
    }

    fn wanted(list: &[(&str, How)]) -> Vec<(String, How)> {
        list.iter().map(|(at, how)| ((*at).to_owned(), *how)).collect()
    }

    #[test]
    fn everything_held_is_covered_and_everything_else_is_as_it_is() {
        use How::{Bind, BindAll, Overlay};
        assert_eq!(
            planned(MOUNTS, &[(254, 1), (254, 3)]),
            wanted(&[
                ("/", Overlay),
                ("/proc", BindAll),
                ("/run", BindAll),
                ("/srv", Bind),
                ("/srv/my db", Overlay),
                ("/etc/x", Overlay),
                ("/frozen-but-ro", BindAll),
            ])
        );
    }

    #[test]
    fn a_root_that_is_not_held_is_bound_and_only_the_held_one_is_covered() {
        let pieces = planned(MOUNTS, &[(254, 2)]);
        assert_eq!(pieces[0], ("/".to_owned(), How::Bind));
        assert!(pieces.contains(&("/srv".to_owned(), How::Overlay)));
        assert!(pieces.contains(&("/srv/my db".to_owned(), How::BindAll)));
    }

    #[test]
    fn automount_points_and_the_stage_are_left_out() {
        let pieces = planned(MOUNTS, &[(254, 1)]);
        assert!(pieces.iter().all(|(at, _)| at != "/net" && !at.starts_with("/run/stage")), "{pieces:?}");
    }

    #[test]
    fn of_two_mounts_at_one_place_the_one_seen_counts() {
        let text = "1 0 254:1 / / rw - ext4 a rw\n2 1 254:2 / /m rw - ext4 b rw\n3 2 0:9 / /m rw - tmpfs c rw\n";
        assert_eq!(planned(text, &[(254, 2)]), wanted(&[("/", How::Bind), ("/m", How::BindAll)]));
        assert_eq!(planned(text, &[(0, 9)]), wanted(&[("/", How::Bind), ("/m", How::Overlay)]));
    }

    #[test]
    fn an_overlay_root_is_covered_and_a_containers_only_if_its_upper_is_held() {
        let text = "1 0 0:7 / / rw - overlay o rw,lowerdir=/l,upperdir=/gone/up,workdir=/w\n\
                    2 1 254:2 / /var rw - ext4 b rw\n\
                    3 2 0:8 / /var/c rw - overlay o rw,lowerdir=/l,upperdir=/var/up,workdir=/w\n";
        assert_eq!(planned(text, &[(254, 9)]), wanted(&[("/", How::Overlay), ("/var", How::BindAll)]));
        assert_eq!(
            planned(text, &[(254, 2)]),
            wanted(&[("/", How::Overlay), ("/var", How::Overlay), ("/var/c", How::Overlay)])
        );
    }

    #[test]
    fn restrictions_of_the_covered_mount_stay() {
        let pieces = plan(&parse(MOUNTS.as_bytes()), &devs(&[(254, 3)]), Path::new("/run/stage"));
        let db = pieces.iter().find(|p| p.at == Path::new("/srv/my db")).expect("planned");
        assert_eq!(db.options, ["nosuid", "nodev"]);
    }

    #[test]
    fn a_path_is_found_in_the_overlay_nearest_to_it() {
        let overlays = ["/", "/srv/db"].map(PathBuf::from);
        assert_eq!(within(&overlays, Path::new("/srv/db/x")), Some((1, Path::new("x"))));
        assert_eq!(within(&overlays, Path::new("/srv/dbx")), Some((0, Path::new("srv/dbx"))));
        assert_eq!(within(&overlays[1..], Path::new("/home/x")), None);
    }
}
