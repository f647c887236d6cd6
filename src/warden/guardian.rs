//! The guardian: one process per file system. It opens it, writes its receipt, freezes it, and it alone thaws it: on
//! command, at the deadline, or when its warden is gone. When its daemon is gone too, one guardian becomes the rescue.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::Path,
    sync::atomic::Ordering::SeqCst,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{getppid, syncfs, write},
};

use super::{
    Reason, Target,
    entry::{Entry, State},
    marker::{Marker, Phase},
    papers::{NoPapers, Papers},
    protocol::{self, Account, Fault, Heard, Refused, Task, TaskAsk},
    pulse::{Listener, TICK},
    run, target,
};
use crate::sys::{clock, family, freeze, table};

/// How long the sentinel may take to block after FIFREEZE returned.
const SENTINEL_LIMIT: Duration = Duration::from_secs(1);

/// What the warden hands to a new guardian.
pub(super) struct Post<'a> {
    pub index: usize,
    pub target: &'a Target,
    pub marker: &'a Marker,
    /// to the warden
    pub socket: OwnedFd,
    /// rung once for the sentinel (a pipe)
    pub bell: OwnedFd,
    pub warden: i32,
    pub daemon: Option<OwnedFd>,
    pub run: &'a Path,
    pub config: Option<&'a Path>,
}

impl Post<'_> {
    /// The only descriptors a guardian keeps.
    pub(super) fn keep(&self) -> Vec<RawFd> {
        let own = [self.socket.as_raw_fd(), self.bell.as_raw_fd()];
        own.into_iter().chain(self.daemon.as_ref().map(AsRawFd::as_raw_fd)).collect()
    }
}

struct Guardian<'a> {
    post: Post<'a>,
    entry: Entry<'a>,
    generation: u64,
    root: OwnedFd,
    papers: Option<Papers>,
}

/// A guardian's whole life; returns its exit status.
pub(super) fn main(post: Post<'_>) -> i32 {
    family::name(c"holdstill-guard");
    family::lock_memory();
    let generation = post.marker.generation().load(SeqCst);
    let entry = post.marker.entry(post.index);
    match prepare(&post) {
        Ok((root, papers, no_receipt)) => {
            let mut fds: Vec<BorrowedFd<'_>> = vec![root.as_fd()];
            if let Some(papers) = &papers {
                fds.extend([papers.state.as_fd(), papers.json.as_fd()]);
            }
            let sent = protocol::send(&post.socket, &Account::Opened(Ok(no_receipt)), &[], &fds);
            let mut guardian = Guardian { post, entry, generation, root, papers };
            if sent.is_ok() { guardian.watch() } else { guardian.orphaned() }
        }
        Err(refused) => {
            let _ = protocol::send(&post.socket, &Account::Opened(Err(refused)), &[], &[]);
            0
        }
    }
}

fn prepare(post: &Post<'_>) -> Result<(OwnedFd, Option<Papers>, Option<String>), Refused> {
    let root = target::open(post.target)?;
    post.marker.entry(post.index).set_source(&root.mount.fs_type, root.mount.source.as_os_str().as_encoded_bytes());
    let (papers, no_receipt) = match post.target.receipt.as_ref().map(|receipt| Papers::prepare(&root.fd, receipt)) {
        None => (None, None),
        Some(Ok(papers)) => (Some(papers), None),
        Some(Err(NoPapers::Full(why))) => (None, Some(why)),
        Some(Err(NoPapers::InTheWay(why))) => return Err(Refused::Receipt { why }),
    };
    Ok((root.fd, papers, no_receipt))
}

enum Next {
    Go,
    Exit,
}

impl Guardian<'_> {
    fn watch(&mut self) -> i32 {
        let Ok(warden) = family::pidfd(self.post.warden) else { return self.orphaned() };
        let mut listener = Listener::new(clock::monotonic(), self.warden_pulse());
        loop {
            wait(&[self.post.socket.as_fd(), warden.as_fd()], self.patience());
            match protocol::receive::<TaskAsk>(&self.post.socket) {
                Heard::Message { head, tail, .. } => match self.perform(head, &tail) {
                    Ok(Next::Go) => {}
                    Ok(Next::Exit) => return 0,
                    Err(_gone) => return self.orphaned(),
                },
                Heard::Nothing => {}
                Heard::End => return self.orphaned(),
            }
            let lost = listener.lost(clock::monotonic(), self.warden_pulse());
            if lost || getppid().as_raw() != self.post.warden {
                return self.orphaned();
            }
            self.let_go_in_time();
        }
    }

    fn warden_pulse(&self) -> u64 {
        self.post.marker.warden_pulse().load(SeqCst)
    }

    /// Until when it may sleep: the next tick, or the deadline of what it holds.
    fn patience(&self) -> Duration {
        match self.post.marker.deadline() {
            Some(deadline) if self.entry.state() == State::Ours => deadline.left().min(TICK),
            Some(_) | None => TICK,
        }
    }

    fn let_go_in_time(&self) {
        let due = self.post.marker.deadline().is_some_and(|deadline| deadline.left().is_zero());
        if due || self.entry.abort().load(SeqCst) != 0 {
            self.thaw();
        }
    }

    fn perform(&mut self, ask: TaskAsk, json: &[u8]) -> io::Result<Next> {
        let TaskAsk { seq, task } = ask;
        let started = clock::monotonic();
        let account = match task {
            Task::Sync => self.did(seq, started, syncfs(&self.root).map_err(io::Error::from)),
            Task::Seal => {
                let sealed = syncfs(&self.root).map_err(io::Error::from).and_then(|()| self.say(json, Say::Frozen));
                self.did(seq, started, sealed)
            }
            Task::Testify { aborted } => {
                let said = self.say(json, if aborted { Say::Aborted } else { Say::Released });
                // whoever is told that the hold has ended may cut the next copy, and that must not say `frozen`
                let said = said.and_then(|()| self.papers.as_ref().map_or(Ok(()), Papers::reach_the_disk));
                self.did(seq, started, said)
            }
            Task::Freeze => {
                let fault = self.freeze().err();
                Account::Froze { took: clock::monotonic() - started, fault: fault.map(Fault::from) }
            }
            Task::Thaw => {
                self.thaw();
                Account::Thawed
            }
            Task::Exit => return Ok(Next::Exit),
        };
        protocol::send(&self.post.socket, &account, &[], &[])?;
        Ok(Next::Go)
    }

    fn did(&self, seq: u32, started: Duration, result: io::Result<()>) -> Account {
        Account::Did { seq, took: clock::monotonic() - started, fault: result.err().map(Fault::from) }
    }

    fn say(&self, json: &[u8], what: Say) -> io::Result<()> {
        let (Some(papers), Some(receipt)) = (&self.papers, &self.post.target.receipt) else { return Ok(()) };
        papers.say(
            json,
            match what {
                Say::Frozen => &receipt.frozen,
                Say::Released => &receipt.released,
                Say::Aborted => &receipt.aborted,
            },
        )
    }

    /// Success is proven here: FIFREEZE returned 0, and the sentinel is blocked.
    fn freeze(&self) -> io::Result<()> {
        if !self.entry.turn(State::Planned, State::Freezing) {
            return Err(io::Error::other("it is not free to be frozen"));
        }
        if self.entry.abort().load(SeqCst) != 0 {
            self.entry.turn(State::Freezing, State::Planned);
            return Err(io::Error::from_raw_os_error(libc::ECANCELED));
        }
        if let Err(error) = freeze::fifreeze(self.root.as_fd()) {
            let foreign = error.raw_os_error() == Some(libc::EBUSY);
            self.entry.turn(State::Freezing, if foreign { State::Foreign } else { State::Planned });
            return Err(error);
        }
        self.entry.frozen_once().store(1, SeqCst);
        self.entry.turn(State::Freezing, State::Ours);
        if self.entry.abort().load(SeqCst) != 0 {
            self.thaw();
            return Err(io::Error::from_raw_os_error(libc::ECANCELED));
        }
        let _ = write(&self.post.bell, &[1]);
        table::wait_while(self.entry.entered(), 0, SENTINEL_LIMIT);
        if self.entry.entered().load(SeqCst) == 0 {
            return Err(io::Error::other("its sentinel does not answer, so the freeze cannot be proven"));
        }
        if self.entry.returned().load(SeqCst) != 0 {
            return Err(io::Error::other("somebody else thawed it at once"));
        }
        Ok(())
    }

    fn thaw(&self) {
        // on an error it is still ours; the warden, or rescue, tries once more from another process
        let _ = self.entry.let_go(self.root.as_fd());
    }

    /// The warden is lost: let go at once. If the daemon is lost as well, see to it that the rest is undone too.
    fn orphaned(&mut self) -> i32 {
        self.thaw();
        let marker = self.post.marker;
        let over = || {
            let ended = matches!(marker.phase(), Phase::Idle | Phase::LetGo);
            ended || marker.generation().load(SeqCst) != self.generation
        };
        let mut listener = Listener::new(clock::monotonic(), marker.daemon_pulse().load(SeqCst));
        loop {
            if over() {
                return 0;
            }
            let Some(daemon) = &self.post.daemon else { break };
            if wait(&[daemon.as_fd()], TICK) || listener.lost(clock::monotonic(), marker.daemon_pulse().load(SeqCst)) {
                break;
            }
            self.thaw();
        }
        marker.daemon_lost().store(1, SeqCst);
        marker.let_go_because(Reason::DaemonLost);
        let until = clock::monotonic() + Duration::from_secs(2);
        while marker.holds() && clock::monotonic() < until {
            wait(&[], Duration::from_millis(2));
        }
        // whoever claims it may be killed, too: then the next one does
        while !over() {
            if marker.claim_rescue(std::process::id().cast_signed()) {
                return run::leave(marker, self.post.run, self.post.config);
            }
            wait(&[], Duration::from_millis(20));
        }
        0
    }
}

#[derive(Clone, Copy)]
enum Say {
    Frozen,
    Released,
    Aborted,
}

/// Sleeps until one of `fds` has something to say (`true`) or `limit` has passed.
fn wait(fds: &[BorrowedFd<'_>], limit: Duration) -> bool {
    let mut fds: Vec<_> = fds.iter().map(|&fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    // rounded up: a poll that ends early would spin
    let limit = PollTimeout::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
    poll(&mut fds, limit).is_ok_and(|ready| ready > 0)
}
