//! The daemon in the warden's place, once a pidfd has proven the warden dead: give the guardians their moment, then
//! thaw and testify through the daemon's own descriptors.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::{Arc, atomic::Ordering::SeqCst, mpsc},
    time::Duration,
};

use super::{
    Receipt,
    entry::{Entry, State},
    marker::Marker,
};
use crate::sys::{
    family::{self, Doing},
    writeback,
};

/// How long guardians may take to notice that their warden is gone and to thaw.
pub(super) const GUARDIANS: Duration = Duration::from_secs(1);
/// How long one FITHAW of ours may take before it counts as stuck.
pub(super) const LIMIT: Duration = Duration::from_secs(2);
const DIE: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(20);

/// What the daemon keeps of one file system from preparing to the end of the hold.
#[derive(Debug)]
pub(super) struct Held {
    /// root, and with a receipt `state` and `receipt.json`
    pub fds: Vec<OwnedFd>,
    pub receipt: Option<Receipt>,
}

/// Thaws one in place of its owner, if that is dead or will never do it; an owner inside FIFREEZE or FITHAW is waited
/// for, because killing it would only orphan the freeze. Blocks: call it in a thread or child that nobody waits for.
///
/// # Errors
/// FITHAW failed, or an owner that does not obey cannot be killed; it is still frozen.
pub(crate) fn thaw(entry: Entry<'_>, root: &OwnedFd) -> io::Result<()> {
    entry.abort().store(1, SeqCst);
    while let Some(owner) = entry.owner() {
        match (entry.state(), owner.doing()) {
            (State::Planned | State::Foreign | State::Thawed, _) => return Ok(()),
            // it lets go itself when the kernel lets it
            (State::Freezing | State::Thawing, Doing::Living | Doing::Blocked) => std::thread::sleep(LOOK),
            (_, Doing::Dead) => break,
            (State::Ours, Doing::Living | Doing::Blocked) | (_, Doing::Stopped) => {
                let pidfd = owner.pidfd();
                owner.kill();
                if pidfd.is_some_and(|pidfd| !family::died_within(&pidfd, DIE)) {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        }
    }
    entry.take_over(root.as_fd())
}

/// [`thaw`], for all that is still held, each in a thread of its own that nobody waits for: the marker tells.
pub(super) fn thaw_all(marker: &Arc<Marker>, held: &[Option<Arc<Held>>]) {
    for (index, held) in held.iter().enumerate() {
        let Some(held) = held.as_ref().filter(|_| marker.entry(index).state().holds()) else { continue };
        let (marker, held) = (Arc::clone(marker), Arc::clone(held));
        std::thread::spawn(move || held.fds.first().map(|root| thaw(marker.entry(index), root)));
    }
}

/// Gives receipts their last word, each in a thread of its own; waits at most `limit` for all of them. What is, or may
/// be, frozen is left out: a write there would block for good.
pub(super) fn testify(marker: &Marker, words: Vec<(usize, Arc<Held>, Vec<u8>)>, aborted: bool, limit: Duration) {
    let (done, all_done) = mpsc::channel::<()>();
    for (index, held, json) in words {
        if matches!(marker.entry(index).state(), State::Planned | State::Thawed) {
            let done = done.clone();
            std::thread::spawn(move || {
                let _done = done;
                if let ([_, state, file], Some(receipt)) = (held.fds.as_slice(), &held.receipt) {
                    let _ = write(file, &json);
                    let _ = write(state, if aborted { &receipt.aborted } else { &receipt.released });
                }
            });
        }
    }
    drop(done);
    // ends when the last sender is gone: every thread is
    let _ = all_done.recv_timeout(limit);
}

fn write(fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let file = std::fs::File::from(fd.try_clone()?);
    file.write_all_at(bytes, 0)?;
    // the next copy may be cut as soon as this is answered
    writeback::through(&file)
}
