//! How much is below a directory, and where: an estimate with limits. Called by `hold::contents`, in a thread of its own that
//! gives way to everybody else.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where a count ends without having seen everything.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub entries: u64,
    pub time: Duration,
}

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Count {
    /// files and directories
    pub files: u64,
    /// on disk
    pub bytes: u64,
    pub complete: bool,
    /// directories at the top, largest first
    pub largest: Vec<Directory>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    pub path: PathBuf,
    pub bytes: u64,
    pub files: u64,
}

/// As many as the contract has room for.
const LARGEST: usize = 8;
/// Each level of depth costs a descriptor.
const DEEPEST: usize = 64;
/// Files of several names, of which one counts; those beyond count each time.
const MOST_LINKED: usize = 50_000;

/// Counts what is below `top`, on that file system alone. `None`: `stop` said so, and nothing of it is of use.
///
/// # Errors
/// `top` cannot be read.
pub fn count(
    top: &Path,
    limits: Limits,
    now: &dyn Fn() -> Duration,
    stop: &dyn Fn() -> bool,
) -> std::io::Result<Option<Count>> {
    let dev = fs::symlink_metadata(top)?.dev();
    let until = now() + limits.time;
    let mut counter = Counter {
        dev,
        limits,
        until,
        now,
        stop,
        linked: HashSet::new(),
        count: Count { complete: true, ..Count::default() },
        ended: None,
    };
    for entry in fs::read_dir(top)? {
        let Ok(entry) = entry else {
            counter.count.complete = false;
            continue;
        };
        let before = (counter.count.bytes, counter.count.files);
        if counter.see(&entry, 1) {
            let directory = Directory {
                path: entry.path(),
                bytes: counter.count.bytes - before.0,
                files: counter.count.files - before.1,
            };
            counter.count.largest.push(directory);
            counter.count.largest.sort_by_key(|directory| std::cmp::Reverse(directory.bytes));
            counter.count.largest.truncate(LARGEST);
        }
        if counter.ended.is_some() {
            break;
        }
    }
    match counter.ended {
        Some(Ended::Stopped) => Ok(None),
        Some(Ended::Limit) => Ok(Some(Count { complete: false, ..counter.count })),
        None => Ok(Some(counter.count)),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Limit,
    Stopped,
}

struct Counter<'a> {
    dev: u64,
    limits: Limits,
    until: Duration,
    now: &'a dyn Fn() -> Duration,
    stop: &'a dyn Fn() -> bool,
    linked: HashSet<u64>,
    count: Count,
    ended: Option<Ended>,
}

impl Counter<'_> {
    /// Adds one entry and all below it; whether it is a directory of this file system.
    fn see(&mut self, entry: &fs::DirEntry, depth: usize) -> bool {
        if (self.stop)() {
            self.ended = Some(Ended::Stopped);
        } else if self.count.files >= self.limits.entries || (self.now)() > self.until {
            self.ended = Some(Ended::Limit);
        }
        if self.ended.is_some() {
            return false;
        }
        // does not follow links
        let Ok(metadata) = entry.metadata() else {
            // removed meanwhile, mostly
            return false;
        };
        if metadata.dev() != self.dev {
            // mounted there, or a subvolume of btrfs, which nobody can tell from here
            self.count.complete &= !metadata.is_dir() || !self.is_subvolume(&metadata);
            return false;
        }
        self.count.files += 1;
        let again = metadata.nlink() > 1
            && !metadata.is_dir()
            && self.linked.len() < MOST_LINKED
            && !self.linked.insert(metadata.ino());
        if !again {
            self.count.bytes += metadata.blocks() * 512;
        }
        if metadata.is_dir() {
            self.below(&entry.path(), depth);
        }
        metadata.is_dir()
    }

    /// Roots of subvolumes have this inode number (btrfs(5)); so may what is mounted there, and then less is claimed.
    fn is_subvolume(&self, metadata: &fs::Metadata) -> bool {
        metadata.ino() == 256
    }

    fn below(&mut self, directory: &Path, depth: usize) {
        let entries = (depth < DEEPEST).then(|| fs::read_dir(directory).ok()).flatten();
        let Some(entries) = entries else {
            self.count.complete = false;
            return;
        };
        for entry in entries.flatten() {
            self.see(&entry, depth + 1);
            if self.ended.is_some() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn tree() -> tempfile::TempDir {
        let top = tempfile::tempdir().unwrap();
        for (dir, files) in [("small", 2), ("large/deep", 8)] {
            fs::create_dir_all(top.path().join(dir)).unwrap();
            for n in 0..files {
                fs::write(top.path().join(dir).join(n.to_string()), [1; 20_000]).unwrap();
            }
        }
        fs::hard_link(top.path().join("small/0"), top.path().join("small/again")).unwrap();
        top
    }

    fn counted(top: &Path, entries: u64) -> Count {
        let limits = Limits { entries, time: Duration::from_secs(60) };
        count(top, limits, &|| Duration::ZERO, &|| false).unwrap().expect("nobody stopped it")
    }

    #[test]
    fn files_and_bytes_are_counted_once_and_the_largest_directories_told() {
        let top = tree();
        let found = counted(top.path(), 1000);
        assert_eq!((found.files, found.complete), (14, true), "{found:?}");
        let names: Vec<_> = found.largest.iter().map(|d| d.path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["large", "small"]);
        assert_eq!(found.largest[0].files, 10, "with the directories themselves");
        assert!(found.bytes >= 200_000 && found.bytes < 400_000, "{found:?}");
    }

    #[test]
    fn at_its_limits_it_says_that_it_has_not_seen_everything() {
        let top = tree();
        let few = counted(top.path(), 3);
        assert_eq!((few.files, few.complete), (3, false));
        let clock = Cell::new(Duration::ZERO);
        let later = || {
            clock.set(clock.get() + Duration::from_secs(1));
            clock.get()
        };
        let limits = Limits { entries: 1000, time: Duration::from_secs(5) };
        assert!(!count(top.path(), limits, &later, &|| false).unwrap().unwrap().complete);
    }

    #[test]
    fn what_is_stopped_counts_for_nothing() {
        let limits = Limits { entries: 1000, time: Duration::from_secs(5) };
        assert_eq!(count(tree().path(), limits, &|| Duration::ZERO, &|| true).unwrap(), None);
    }
}
