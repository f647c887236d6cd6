//! A process that writes to a file system all the time and tells, through memory, how that goes.
//!
//! Whether writers wait is always measured by a process of its own: one that blocks on a frozen file system cannot be
//! asked, and cannot be killed.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, ExitCode},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{Fs, Lab, command, finish, now, process::signal, until};

/// What a writer publishes, in this order, as native 64-bit words; times are CLOCK_MONOTONIC in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// writes done (or transactions acknowledged)
    pub count: u64,
    /// when the last of them was done
    pub last: u64,
    /// the longest one took this long
    pub longest: u64,
    /// when the last one that took more than [`LONG`] was done
    pub resumed: u64,
}

/// A write this long waited for a thaw.
const LONG: Duration = Duration::from_millis(30);

/// How long without progress means blocked. The writer pauses 1 ms between writes.
const STILL: Duration = Duration::from_millis(150);

impl Progress {
    pub fn publish(self, file: &File) {
        let words = [self.count, self.last, self.longest, self.resumed];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        file.write_all_at(&bytes, 0).expect("tmpfs has room for 32 bytes");
    }

    pub fn read(path: &Path) -> Progress {
        let bytes = fs::read(path).unwrap_or_default();
        let mut words = bytes.chunks_exact(8).map(|c| u64::from_ne_bytes(c.try_into().expect("eight bytes")));
        let mut next = || words.next().unwrap_or_default();
        Progress { count: next(), last: next(), longest: next(), resumed: next() }
    }

    /// One more was done; it took from `begun` until now.
    #[must_use]
    pub fn one_more(self, begun: Duration) -> Progress {
        let ended = now();
        let took = ended.saturating_sub(begun);
        let (took_ns, ended_ns) = (nanos(took), nanos(ended));
        Progress {
            count: self.count + 1,
            last: ended_ns,
            longest: self.longest.max(took_ns),
            resumed: if took > LONG { ended_ns } else { self.resumed },
        }
    }
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).expect("the machine has not been up for 584 years")
}

/// The writer process: small buffered writes to `file`, until killed.
pub fn write_forever(file: &Path, progress: &Path) -> ExitCode {
    let target = File::create(file).expect("the file system is writable at first");
    let published = File::create(progress).expect("tmpfs");
    let mut so_far = Progress::default();
    loop {
        let begun = now();
        target.write_all_at(&so_far.count.to_ne_bytes(), (so_far.count % 512) * 8).expect("write");
        so_far = so_far.one_more(begun);
        so_far.publish(&published);
        thread::sleep(Duration::from_millis(1));
    }
}

/// A running writer (or ledger, see [`super::database`]).
pub struct Writer {
    child: Child,
    progress: PathBuf,
    name: String,
}

impl Lab {
    /// Starts writing to `fs`; returns when the first writes are done.
    pub fn writer(&self, fs: &Fs) -> Writer {
        self.writer_at(&fs.mount)
    }

    /// Starts writing to a file in `dir`.
    pub fn writer_at(&self, dir: &Path) -> Writer {
        let file = dir.join(format!(".lab-writer-{}", self.next()));
        self.background(&dir.display().to_string(), |progress| {
            vec!["--lab-writer".into(), file.into(), progress.into()]
        })
    }

    /// Starts this binary in a writing role.
    pub fn background(&self, name: &str, args: impl FnOnce(PathBuf) -> Vec<std::ffi::OsString>) -> Writer {
        let progress = self.memory_dir("progress").join("words");
        let exe = std::env::current_exe().expect("/proc is mounted");
        let child = command(exe.to_str().expect("cargo's paths are UTF-8")).args(args(progress.clone())).spawn();
        let writer = Writer { child: child.expect("this binary runs"), progress, name: name.to_owned() };
        assert!(until(Duration::from_secs(20), || writer.progress().count > 3), "writing to {name} never began");
        writer
    }
}

impl Writer {
    /// Where it publishes.
    pub fn published_at(&self) -> &Path {
        &self.progress
    }

    pub fn progress(&self) -> Progress {
        Progress::read(&self.progress)
    }

    /// Writes nothing more until [`Writer::go_on`].
    pub fn pause(&self) {
        signal(self.child.id().cast_signed(), Signal::SIGSTOP);
    }

    pub fn go_on(&self) {
        signal(self.child.id().cast_signed(), Signal::SIGCONT);
    }

    /// Nothing was written for a while.
    pub fn is_blocked(&self) -> bool {
        let before = self.progress().count;
        thread::sleep(STILL);
        self.progress().count == before
    }

    /// Blocked now: one write may have been under way when asked.
    pub fn assert_blocked(&self) {
        assert!(self.is_blocked() || self.is_blocked(), "writers to {} go on, though it should be frozen", self.name);
    }

    /// Writes go on, at the latest after `limit`.
    pub fn assert_writable_within(&self, limit: Duration) {
        let before = self.progress().count;
        let goes_on = until(limit, || self.progress().count > before);
        assert!(goes_on, "writers to {} still wait after {limit:?}", self.name);
    }

    /// How long after `since` (of [`now`]) the write that waited was done.
    ///
    /// # Panics
    /// None was done within `limit`.
    pub fn resumed_after(&self, since: Duration, limit: Duration) -> Duration {
        let resumed = || Duration::from_nanos(self.progress().resumed);
        let in_time = until(limit, || resumed() >= since);
        assert!(in_time, "writers to {} still wait {limit:?} later", self.name);
        resumed().saturating_sub(since)
    }

    /// The longest any write has taken so far.
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.progress().longest)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = finish(&mut self.child, Duration::from_secs(5));
    }
}
