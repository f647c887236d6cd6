//! Waiting until what has been submitted is written, without asking the file for errors. sync_file_range(2)'s waiting flags
//! and fsync(2) would: an error of writing back is told to those who have the file open, and to the first who opens it
//! later (Documentation/core-api/errseq.rst). If a pacer were that first one, a database's checkpointer would take the
//! fsync after it for a success.
//!
//! So the page cache is asked what is still being written; where the kernel cannot be (before 6.5), the device is asked how
//! many writes it has before it, which is only as exact as others let it be.

use std::{fs, fs::File, os::fd::OwnedFd, path::PathBuf, thread, time::Duration};

use crate::{
    guest::Dev,
    sys::{clock, writeback},
};

/// How often to look: not more than a fraction of what it takes anyway.
const OFTEN: Duration = Duration::from_micros(100);
const RARELY: Duration = Duration::from_millis(1);

/// A device that others keep busy may never again have as little before it as when we looked.
const BUSY: Duration = Duration::from_millis(100);

/// Some bytes of a file (to its end, if `length` is 0).
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub file: &'a File,
    pub from: u64,
    pub length: u64,
}

/// Whom to ask.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Watch {
    Pages,
    /// its `inflight` in /sys
    Device(PathBuf),
}

impl Watch {
    /// For files of the file system with this root.
    pub(super) fn of(root: &OwnedFd, dev: Dev) -> Watch {
        if writeback::in_progress(root, 0, 0).is_ok() { Watch::Pages } else { Watch::device(dev) }
    }

    fn device(dev: Dev) -> Watch {
        Watch::Device(format!("/sys/dev/block/{dev}/inflight").into())
    }

    /// To be asked while nothing of ours is under way, and given to [`Watch::wait`] when something is.
    pub(super) fn before(&self) -> u64 {
        match self {
            Watch::Pages => 0,
            Watch::Device(inflight) => writes(&fs::read_to_string(inflight).unwrap_or_default()),
        }
    }

    /// Waits until `parts` are written, as far as can be told, or `until` has come.
    pub(super) fn wait<'a>(&self, parts: impl IntoIterator<Item = Part<'a>>, before: u64, until: Duration) {
        match self {
            Watch::Pages => {
                for part in parts {
                    // whatever makes asking fail makes waiting senseless
                    let busy =
                        || writeback::in_progress(part.file, part.from, part.length).is_ok_and(|pages| pages > 0);
                    while_busy(busy, until);
                }
            }
            Watch::Device(_) => while_busy(|| self.before() > before, until.min(clock::monotonic() + BUSY)),
        }
    }
}

fn while_busy(busy: impl Fn() -> bool, until: Duration) {
    let begun = clock::monotonic();
    while busy() {
        let now = clock::monotonic();
        if now >= until {
            return;
        }
        thread::sleep(((now - begun) / 4).clamp(OFTEN, RARELY));
    }
}

/// The second of the two numbers in /sys/dev/block/DEV/inflight (Documentation/ABI/stable/sysfs-block).
fn writes(inflight: &str) -> u64 {
    inflight.split_ascii_whitespace().nth(1).and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_devices_writes_are_the_second_number() {
        assert_eq!(writes("       3       17\n"), 17);
        assert_eq!(writes(""), 0);
        let none = Watch::device(Dev { major: 0, minor: 77 });
        assert_eq!((none.before(), &none), (0, &Watch::Device("/sys/dev/block/0:77/inflight".into())));
    }

    #[test]
    fn nobody_waits_for_a_clean_file_or_beyond_the_limit() {
        let file = tempfile::tempfile().unwrap();
        let begun = clock::monotonic();
        for watch in [Watch::Pages, Watch::device(Dev { major: 0, minor: 77 })] {
            watch.wait([Part { file: &file, from: 0, length: 0 }], 0, begun + Duration::from_secs(20));
        }
        assert!(clock::monotonic() - begun < Duration::from_secs(10));
        while_busy(|| true, begun);
    }
}
