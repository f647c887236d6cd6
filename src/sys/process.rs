//! Running a foreign program with an end: own process group, closed descriptors, drained and bounded output.

use std::{collections::BTreeMap, ffi::OsStr, io, path::Path, time::Duration};

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Exited(i32),
    Signaled(i32),
    /// the limit passed and the whole process group was killed
    TimedOut,
}

#[derive(Debug, Clone)]
pub struct Outcome {
    pub status: Status,
    pub took: Duration,
    /// the last `OUTPUT_TAIL` bytes of stdout and stderr together
    pub output: Vec<u8>,
}

/// How much output is kept.
pub const OUTPUT_TAIL: usize = 4096;

/// Runs `path` with `args` and exactly `environment`, stdin empty, in its own process group, and waits. Blocks the
/// calling thread for at most `limit` plus the 2 s a group gets between TERM and KILL, plus 1 s of draining.
///
/// # Errors
/// It could not be started (execve(2)).
pub fn run(
    _path: &Path,
    _args: &[&OsStr],
    _environment: &BTreeMap<String, String>,
    _limit: Duration,
) -> io::Result<Outcome> {
    todo!()
}
