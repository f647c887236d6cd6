//! Following a path by hand: which disk it ends on, without asking anything that may never answer.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::OsString,
    fs, io,
    path::{Component, Path, PathBuf},
};

use super::{
    super::{
        Dev, Kind,
        mounts::{Table, kind_of},
    },
    inside,
};

/// As the kernel has it (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// with all links followed
    pub path: PathBuf,
    pub dev: Dev,
}

/// Follows paths of our own mount namespace, and remembers what was a link.
pub struct Walk<'a> {
    root: &'a Path,
    table: &'a Table<'a>,
    links: RefCell<HashMap<PathBuf, Entry>>,
}

#[derive(Debug, Clone)]
enum Entry {
    Missing,
    There,
    Link(PathBuf),
}

impl<'a> Walk<'a> {
    pub fn new(root: &'a Path, table: &'a Table<'a>) -> Walk<'a> {
        Walk { root, table, links: RefCell::default() }
    }

    /// `None`: nothing is there, or it is out of reach: on the network, below FUSE or an automounter, in /proc. The kernel is
    /// asked about one component at a time, never about one that lies on such a mount.
    pub fn to(&self, path: &Path) -> Option<Place> {
        let mut left: Vec<OsString> = Vec::new();
        push(&mut left, path);
        let (mut at, mut links) = (PathBuf::from("/"), 0);
        while let Some(name) = left.pop() {
            if name == ".." {
                at.pop();
                continue;
            }
            at.push(&name);
            self.reachable(&at)?;
            match self.entry(&at) {
                Entry::There => {}
                Entry::Missing => return None,
                Entry::Link(target) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return None;
                    }
                    at.pop();
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    }
                    push(&mut left, &target);
                }
            }
        }
        let dev = self.reachable(&at)?;
        Some(Place { path: at, dev })
    }

    /// The file system a path without links lies on, unless it has to be left alone.
    fn reachable(&self, path: &Path) -> Option<Dev> {
        let line = self.table.covering(path)?;
        match kind_of(&line.fs_type) {
            Kind::Remote | Kind::Unknown if line.mount_point != Path::new("/") => None,
            Kind::Pseudo => None,
            Kind::Remote
            | Kind::Unknown
            | Kind::Freezable
            | Kind::FlushOnly
            | Kind::Memory
            | Kind::Stacked
            | Kind::Image => Some(line.dev),
        }
    }

    fn entry(&self, path: &Path) -> Entry {
        if let Some(known) = self.links.borrow().get(path) {
            return known.clone();
        }
        let entry = match fs::read_link(inside(self.root, path)) {
            Ok(target) => Entry::Link(target),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Entry::There,
            Err(_) => Entry::Missing,
        };
        self.links.borrow_mut().insert(path.to_owned(), entry.clone());
        entry
    }
}

/// Adds the names of a path, the first one last.
fn push(left: &mut Vec<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => left.push(name.to_owned()),
            Component::ParentDir => left.push("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}
