//! Looking for files that were written to lately and closed, below one root: a dump, a copy, an unpacked archive. The
//! kernel lists no dirty files, so directories are read: for a quarter of a second at most, the likeliest first. Runs in
//! a pacer.

use std::{
    collections::VecDeque,
    ffi::{CStr, OsStr},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    dir::{Dir, Type},
    fcntl::AtFlags,
    sys::stat::fstatat,
    time::{ClockId, clock_gettime},
};

use crate::sys::{clock, writeback};

/// How long searching may take, not counting what is done with what is found: some hundred thousand names in memory.
const SEARCH: Duration = Duration::from_millis(250);

/// The kernel writes back by itself what is older than 30 s (dirty_expire_centisecs), but it can lag behind.
const LATELY: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Go,
    Stop,
}

/// Hands `found` every regular file below `root` whose inode changed lately, as far as there is time.
pub(super) fn recently_written(root: BorrowedFd<'_>, found: impl FnMut(OwnedFd) -> Next) {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).map_or(Duration::ZERO, Duration::from);
    let since = now.saturating_sub(LATELY).as_secs();
    Walk { root, since: since.try_into().unwrap_or(i64::MAX), searched: Duration::ZERO, found }.run();
}

struct Walk<'a, F> {
    root: BorrowedFd<'a>,
    /// the time of change counts: copying tools set the time of modification back
    since: i64,
    searched: Duration,
    found: F,
}

impl<F: FnMut(OwnedFd) -> Next> Walk<'_, F> {
    /// Breadth first, because there is less of it near the root; but a directory in which names came or went lately is
    /// looked at before the others.
    fn run(mut self) {
        let mut queue = VecDeque::from([PathBuf::new()]);
        while let Some(directory) = queue.pop_front() {
            if self.look_into(&directory, &mut queue) == Next::Stop {
                return;
            }
        }
    }

    fn look_into(&mut self, path: &Path, queue: &mut VecDeque<PathBuf>) -> Next {
        let mut begun = clock::monotonic();
        let opened = writeback::directory_below(self.root, path);
        let Ok((directory, mut listed)) = opened.and_then(|fd| Ok((fd.try_clone()?, Dir::from_fd(fd)?))) else {
            // gone, or a mount point
            return Next::Go;
        };
        for entry in listed.iter().flatten() {
            let name = entry.file_name();
            let may_be = matches!(entry.file_type(), Some(Type::File | Type::Directory) | None);
            if !may_be || [c".", c".."].contains(&name) {
                continue;
            }
            if self.searched + (clock::monotonic() - begun) > SEARCH {
                return Next::Stop;
            }
            let Some(seen) = self.see(&directory, name) else { continue };
            let name = Path::new(OsStr::from_bytes(name.to_bytes()));
            match seen {
                Seen::File => {
                    let Ok(handle) = writeback::handle_below(directory.as_fd(), name) else { continue };
                    self.searched += clock::monotonic() - begun;
                    if (self.found)(handle) == Next::Stop {
                        return Next::Stop;
                    }
                    begun = clock::monotonic();
                }
                Seen::Directory { changed: true } => queue.push_front(path.join(name)),
                Seen::Directory { changed: false } => queue.push_back(path.join(name)),
            }
        }
        self.searched += clock::monotonic() - begun;
        Next::Go
    }

    fn see(&self, directory: &OwnedFd, name: &CStr) -> Option<Seen> {
        let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG if stat.st_ctime >= self.since && stat.st_size > 0 => Some(Seen::File),
            libc::S_IFDIR => Some(Seen::Directory { changed: stat.st_mtime >= self.since }),
            _nothing_to_write => None,
        }
    }
}

enum Seen {
    /// a regular file, changed lately
    File,
    Directory {
        changed: bool,
    },
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::{
            fs::{MetadataExt, symlink},
            net::UnixListener,
        },
    };

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    /// The inodes found below a directory, of those changed at `since` or later; the search ends after `most`.
    fn found(directory: &Path, since: i64, most: usize) -> Vec<u64> {
        let root = File::open(directory).unwrap();
        let mut inodes = Vec::new();
        let found = |handle: OwnedFd| {
            inodes.push(nix::sys::stat::fstat(&handle).unwrap().st_ino);
            if inodes.len() < most { Next::Go } else { Next::Stop }
        };
        Walk { root: root.as_fd(), since, searched: Duration::ZERO, found }.run();
        inodes
    }

    #[test]
    fn files_changed_lately_are_found_at_any_depth_and_what_is_no_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/b/c")).unwrap();
        for name in ["a/b/c/deep", "near"] {
            fs::write(at(name), "written").unwrap();
        }
        fs::write(at("empty"), "").unwrap();
        symlink("near", at("link")).unwrap();
        symlink("a", at("a/b/round")).unwrap();
        mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let inode = |name: &str| fs::metadata(at(name)).unwrap().ino();
        let mut all = found(dir.path(), 0, 10);
        all.sort_unstable();
        let mut files = vec![inode("a/b/c/deep"), inode("near")];
        files.sort_unstable();
        assert_eq!(all, files);
        assert!(found(dir.path(), i64::MAX, 10).is_empty(), "nothing changes in the far future");
        assert_eq!(found(dir.path(), 0, 1).len(), 1);
    }
}
