//! The pacer: a process per file system that writes dirty files back in small portions before the first `syncfs`, while
//! preparing. A `syncfs` submits everything at once, and whoever then syncs a few bytes waits behind all of it (on ext4
//! measured 70 ms behind 512 MiB on a fast disk, the whole 2.5 s behind 256 MiB at 100 MB/s); between two portions he waits
//! for one.
//!
//! It holds nothing and proves nothing: whatever it leaves out, `syncfs` still writes. So it may fail, hang or be killed
//! without the hold noticing anything but the time; that is why it is no guardian.

use std::{
    collections::BTreeSet,
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::Path,
    time::Duration,
};

use nix::sys::stat::fstat;

use super::{
    portion::Portion,
    underway::{Part, Watch},
    walk,
};
use crate::{
    failpoint,
    guest::{
        Dev,
        dirty::{self, OpenFile},
    },
    sys::{clock, family, files, writeback},
};

/// So many small files at most are being written at the same time: each is an open descriptor.
const SMALL_AT_ONCE: usize = 128;

/// Submitting took less: there was hardly anything to write, nothing to wait for, and nothing to learn about the disk.
const NOTHING: Duration = Duration::from_micros(5);

/// What the warden hands to a new pacer.
pub(super) struct Post<'a> {
    /// of the file system
    pub root: &'a OwnedFd,
    pub dev: Dev,
    pub warden: i32,
    pub files: Vec<OpenFile>,
    pub limit: Duration,
    /// less than this is left to `syncfs`, bytes of the whole guest
    pub little: u64,
}

impl Post<'_> {
    /// The only descriptor a pacer keeps.
    pub(super) fn keep(&self) -> [RawFd; 1] {
        [self.root.as_raw_fd()]
    }
}

/// A pacer's whole life; returns its exit status.
pub(super) fn main(post: &Post<'_>) -> i32 {
    family::name(c"holdstill-pace");
    if family::end_with(post.warden).is_err() {
        return 1;
    }
    failpoint::pause("pacing");
    let mut pacer = Pacer::new(Watch::of(post.root, post.dev), post.limit);
    for file in &post.files {
        // closed meanwhile, or on another mount by now: not ours to write
        let handle = writeback::handle_of(file.pid, file.fd).ok();
        let handle = handle.filter(|handle| files::mount_id(handle.as_fd()).is_ok_and(|id| id == file.mount_id));
        if pacer.over() {
            break;
        }
        if let Some(handle) = handle {
            pacer.take(&handle);
        }
    }
    pacer.settle();
    // what is still dirty may be in files that nobody has open any more
    if !pacer.over() && dirty::bytes(Path::new("/")) >= post.little {
        walk::recently_written(post.root.as_fd(), |handle| {
            pacer.take(&handle);
            if pacer.over() { walk::Next::Stop } else { walk::Next::Go }
        });
        pacer.settle();
    }
    0
}

struct Pacer {
    watch: Watch,
    /// what it said when nothing of ours was under way
    before: u64,
    until: Duration,
    portion: Portion,
    done: BTreeSet<(u64, u64)>,
    /// files smaller than a portion, begun and not waited for; all of them together are one
    small: Vec<File>,
    small_bytes: u64,
    small_took: Duration,
}

impl Pacer {
    fn new(watch: Watch, limit: Duration) -> Pacer {
        Pacer {
            before: watch.before(),
            watch,
            until: clock::monotonic() + limit,
            portion: Portion::default(),
            done: BTreeSet::new(),
            small: Vec::new(),
            small_bytes: 0,
            small_took: Duration::ZERO,
        }
    }

    fn over(&self) -> bool {
        clock::monotonic() >= self.until
    }

    /// Writes one file back, unless that has been done, or it is not a regular file. Errors are for `syncfs` to meet.
    fn take(&mut self, handle: &OwnedFd) {
        let Ok(stat) = fstat(handle) else { return };
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG || bytes == 0 || !self.done.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        let Ok(file) = writeback::reopen(handle) else { return };
        if bytes <= self.portion.bytes() {
            self.begin_small(file, bytes);
        } else {
            self.settle();
            self.write_back(&file, bytes);
        }
    }

    fn write_back(&mut self, file: &File, bytes: u64) {
        let mut from = 0;
        while from < bytes && !self.over() {
            let length = self.portion.bytes();
            let begun = clock::monotonic();
            if writeback::begin(file, from, length).is_err() {
                return;
            }
            if clock::monotonic() - begun > NOTHING {
                self.watch.wait([Part { file, from, length }], self.before, self.until);
                self.portion.took(clock::monotonic() - begun);
                self.before = self.watch.before();
            }
            from += length;
        }
    }

    fn begin_small(&mut self, file: File, bytes: u64) {
        let begun = clock::monotonic();
        if writeback::begin(&file, 0, 0).is_ok() {
            self.small.push(file);
            self.small_bytes += bytes;
        }
        self.small_took += clock::monotonic() - begun;
        if self.small_bytes >= self.portion.bytes() || self.small.len() >= SMALL_AT_ONCE {
            self.settle();
        }
    }

    /// Waits for the small files under way.
    fn settle(&mut self) {
        if self.small.is_empty() {
            return;
        }
        let begun = clock::monotonic();
        let parts = self.small.iter().map(|file| Part { file, from: 0, length: 0 });
        self.watch.wait(parts, self.before, self.until);
        self.portion.took(self.small_took + (clock::monotonic() - begun));
        self.before = self.watch.before();
        self.small.clear();
        (self.small_bytes, self.small_took) = (0, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn a_file_is_written_once_whoever_leads_to_it_and_nothing_else_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("small"), vec![1; 4096]).unwrap();
        std::fs::hard_link(at("small"), at("again")).unwrap();
        std::fs::write(at("large"), vec![1; 3 << 20]).unwrap();
        std::fs::write(at("empty"), []).unwrap();
        symlink("small", at("link")).unwrap();
        mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        let root = OwnedFd::from(File::open(dir.path()).unwrap());
        let watch = Watch::of(&root, Dev { major: 0, minor: 0 });
        let mut pacer = Pacer::new(watch, Duration::from_secs(10));
        for name in ["small", "again", "empty", "fifo", "link"] {
            pacer.take(&writeback::handle_below(root.as_fd(), Path::new(name)).unwrap());
        }
        assert!(writeback::handle_below(root.as_fd(), Path::new("../x")).is_err());
        assert_eq!((pacer.done.len(), pacer.small.len(), pacer.small_bytes), (1, 1, 4096));
        pacer.take(&writeback::handle_below(root.as_fd(), Path::new("large")).unwrap());
        assert_eq!((pacer.done.len(), pacer.small.len()), (2, 0), "the small ones are waited for first");
    }
}
