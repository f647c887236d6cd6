//! The sentinel: one process per frozen file system, blocked in it. Its return *is* the thaw, whoever thawed.
//!
//! With a receipt it blocks overwriting `state` with `released`, so that the disk's own testimony changes the moment the
//! disk does. Without one it blocks removing a name that does not exist: the kernel takes the file system's write
//! permission before it looks the name up, so this blocks while frozen, needs no space and no inode, works on a mount
//! that is read-only, and changes nothing.

use std::{
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::atomic::Ordering::SeqCst,
};

use nix::unistd::{UnlinkatFlags, read, unlinkat};

use super::entry::{Entry, State};
use crate::sys::{family, table, writeback};

/// Where a sentinel blocks.
#[derive(Debug)]
pub(super) enum Post {
    /// writing this sector at the start of `state`
    State(File, Vec<u8>),
    /// removing a missing name below this directory
    Name(OwnedFd),
}

/// Waits for the bell (a pipe: its end means that there is no guardian any more), blocks, says who thawed. Its exit tells
/// the warden to look at the marker.
pub(super) fn main(entry: Entry<'_>, bell: &OwnedFd, post: &Post) -> i32 {
    family::name(c"holdstill-sentry");
    family::lock_memory();
    if read(bell, &mut [0]) != Ok(1) {
        return 1;
    }
    entry.entered().store(1, SeqCst);
    table::wake(entry.entered());
    match post {
        Post::State(state, released) => {
            let _ = state.write_all_at(released, 0);
        }
        Post::Name(root) => {
            let name = format!(".holdstill-sentinel-{}", std::process::id());
            let _ = unlinkat(root.as_fd(), name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
    if entry.current() {
        entry.returned().store(1, SeqCst);
        entry.turn(State::Ours, State::Foreign);
    }
    if let Post::State(state, _) = post {
        // in memory it would wait for half a minute, in which every copy would still say `frozen`
        let _ = writeback::begin(state, 0, 0);
    }
    0
}
