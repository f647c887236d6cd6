//! Where files of a process really lie: on which file system, as that process sees them, links and mounts below a directory
//! included. Called by the survey for the data of databases.
//!
//! Paths are opened through `sys::view`, so that a container's links lead where its server goes and no further; what would
//! have to wait for a network or a daemon is not opened at all. Nothing is walked: mounts below a directory are in the
//! mount table, links are looked for one level deep. May block on a broken disk: call from a thread with a limit.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    Dev, Kind,
    mounts::{self, MountLine, Table, kind_of},
};
use crate::sys::view::{FileId, Spot, View};

/// A directory with more entries is not looked through for links.
const MOST_ENTRIES: usize = 50_000;

/// One process's view.
pub struct Whereabouts {
    view: View,
    lines: Vec<MountLine>,
    own: Vec<MountLine>,
}

/// A file that was found.
#[derive(Debug)]
pub struct Located {
    spot: Spot,
    /// what the process calls it when links are resolved; `None`: the mount table has to do
    pub name: Option<PathBuf>,
    pub dev: Dev,
}

/// A link, and where it leads.
pub type Link = (PathBuf, Result<Located, Lost>);

/// Why it is not known where a path leads; completes "PATH …".
pub type Lost = String;

impl Located {
    /// What lies in it, if it is a directory.
    ///
    /// # Errors
    /// It is none, or cannot be read.
    pub fn entries(&self) -> io::Result<fs::ReadDir> {
        fs::read_dir(self.spot.path())
    }
}

impl Whereabouts {
    /// As process `pid` sees it; `None`: as we do.
    ///
    /// # Errors
    /// The process is gone, or may not be looked at.
    pub fn of(root: &Path, pid: Option<i32>) -> io::Result<Whereabouts> {
        let proc = root.join("proc");
        let (below, process) = match pid {
            Some(pid) => (proc.join(pid.to_string()).join("root"), proc.join(pid.to_string())),
            None => (root.to_owned(), proc.join("self")),
        };
        let lines = mounts::parse_bytes(&fs::read(process.join("mountinfo"))?);
        let own = mounts::read(root).unwrap_or_default();
        Ok(Whereabouts { view: View::below(&below)?, lines, own })
    }

    /// Follows `path` to the file system it lies on.
    ///
    /// # Errors
    /// Why that cannot be told.
    pub fn find(&self, path: &Path) -> Result<Located, Lost> {
        let table = Table::new(&self.lines);
        if let Some(line) = table.covering(path) {
            let remote = |line: &MountLine| matches!(kind_of(&line.fs_type), Kind::Remote | Kind::Unknown);
            let above = Some(line).filter(|line| remote(line)).or_else(|| table.untouchable_above(line));
            if let Some(above) = above {
                return Err(format!("lies on {}, which is {}", above.mount_point.display(), above.fs_type));
            }
        }
        self.locate(self.view.open(path).map_err(|error| format!("cannot be followed: {error}"))?)
    }

    fn locate(&self, spot: Spot) -> Result<Located, Lost> {
        let id = spot.mount_id().map_err(|error| format!("is on no known mount: {error}"))?;
        // of a process whose root is no mount point, the mount its root lies on is not in its own table
        let line = mounts::by_mount_id(&self.lines, id).or_else(|| mounts::by_mount_id(&self.own, id));
        let dev = match (line, spot.id()) {
            (Some(line), _) => line.dev,
            (None, Ok(file)) => Dev { major: major(file.dev), minor: minor(file.dev) },
            (None, Err(error)) => return Err(format!("is on no known mount: {error}")),
        };
        Ok(Located { name: self.view.name_of(&spot), dev, spot })
    }

    /// What is mounted below a directory: where, and which file system. Those with nothing to lose are left out.
    pub fn mounted_below(&self, directory: &Located) -> Vec<(PathBuf, Dev)> {
        let Some(name) = &directory.name else { return Vec::new() };
        let table = Table::new(&self.lines);
        self.lines
            .iter()
            .filter(|line| line.mount_point != *name && line.mount_point.starts_with(name))
            .filter(|line| line.dev != directory.dev && kind_of(&line.fs_type) != Kind::Pseudo)
            .filter(|line| table.is_visible(line))
            .map(|line| (line.mount_point.clone(), line.dev))
            .collect()
    }

    /// Links directly in a directory, each with where it leads; those that lead nowhere are left out.
    ///
    /// # Errors
    /// The directory cannot be read, or is too full to be looked through.
    pub fn links_in(&self, directory: &Located) -> Result<Vec<Link>, Lost> {
        let unreadable = |error: io::Error| format!("cannot be looked through: {error}");
        let name = directory.name.clone().unwrap_or_default();
        let mut links = Vec::new();
        for (count, entry) in directory.entries().map_err(unreadable)?.enumerate() {
            if count == MOST_ENTRIES {
                return Err(format!("has more than {MOST_ENTRIES} entries: not looked through for links"));
            }
            let entry = entry.map_err(unreadable)?;
            if !entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                continue;
            }
            let path = name.join(entry.file_name());
            match self.view.open(&path) {
                Ok(spot) => links.push((path, self.locate(spot))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => links.push((path, Err(format!("cannot be followed: {error}")))),
            }
        }
        Ok(links)
    }

    /// Which file a path is.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn file_at(&self, path: &Path) -> io::Result<FileId> {
        self.view.open(path)?.id()
    }
}

fn major(dev: u64) -> u32 {
    u32::try_from(nix::sys::stat::major(dev)).unwrap_or(u32::MAX)
}

fn minor(dev: u64) -> u32 {
    u32::try_from(nix::sys::stat::minor(dev)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn here() -> Whereabouts {
        Whereabouts::of(Path::new("/"), None).expect("our own view")
    }

    #[test]
    fn a_directory_and_a_link_to_it_lie_on_the_same_file_system_under_one_name() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        fs::create_dir(&real).unwrap();
        symlink(&real, dir.path().join("link")).unwrap();
        let [one, other] = [&real, &dir.path().join("link")].map(|path| here().find(path).unwrap());
        assert_eq!((one.dev, &one.name), (other.dev, &other.name));
        assert_eq!(one.name, Some(real));
    }

    #[test]
    fn what_cannot_be_followed_says_so() {
        let lost = here().find(Path::new("/no/such/path")).unwrap_err();
        assert!(lost.starts_with("cannot be followed: "), "{lost}");
    }

    #[test]
    fn nothing_on_a_network_file_system_is_opened() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["proc/self", "net/db"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        let table = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:41 / /net rw - nfs4 srv:/x rw\n";
        fs::write(root.path().join("proc/self/mountinfo"), table).unwrap();
        let view = Whereabouts::of(root.path(), None).unwrap();
        assert_eq!(view.find(Path::new("/net/db")).unwrap_err(), "lies on /net, which is nfs4");
    }

    #[test]
    fn mounts_below_a_directory_are_in_the_table_and_links_in_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let inside = |path: &str| root.path().join(path);
        for dir in ["proc/self", "srv/db/one", "srv/db/two", "srv/other", "srv/dbx"] {
            fs::create_dir_all(inside(dir)).unwrap();
        }
        symlink("/srv/other", inside("srv/db/linked")).unwrap();
        symlink("/srv/nowhere", inside("srv/db/dangling")).unwrap();
        let table = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:2 / /srv/db/one rw - ext4 /dev/sdb rw\n\
                     3 1 0:9 / /srv/db/two rw - proc proc rw\n4 1 8:3 / /srv/dbx rw - ext4 /dev/sdc rw\n";
        fs::write(inside("proc/self/mountinfo"), table).unwrap();
        let view = Whereabouts::of(root.path(), None).unwrap();
        let data = view.find(Path::new("/srv/db")).unwrap();
        let one = Dev { major: 8, minor: 2 };
        assert_eq!(view.mounted_below(&data), [(PathBuf::from("/srv/db/one"), one)]);
        let links: Vec<_> = view.links_in(&data).unwrap();
        let [(path, Ok(target))] = &links[..] else { panic!("{links:?}") };
        assert_eq!(
            (path.as_path(), target.name.as_deref()),
            (Path::new("/srv/db/linked"), Some(Path::new("/srv/other")))
        );
    }
}
