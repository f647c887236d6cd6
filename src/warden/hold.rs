//! What the warden knows of the hold in progress: each file system's guardian, sentinel and descriptors, and what
//! happens when one of them speaks or dies. What must happen in order (freezing, thawing, ending) is in [`super::jobs`].

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    rc::Rc,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use nix::{fcntl::OFlag, unistd::pipe2};

use super::{
    Target,
    entry::{Entry, State},
    guardian,
    jobs::Jobs,
    marker::Marker,
    pacer,
    protocol::{self, Account, Answer, EventWord, Fault, Heard, Refused, Task, TaskAsk, Word},
    sentinel,
};
use crate::sys::{
    clock,
    family::{self, Child, Identity},
    packet,
};

/// What a pacer may take longer than it was given: the last portion on a slow disk.
const OVERTIME: Duration = Duration::from_millis(500);

/// What does not change while the warden lives.
pub(super) struct House {
    pub marker: Arc<Marker>,
    pub daemon: Identity,
    pub run: PathBuf,
    pub config: Option<PathBuf>,
}

/// One file system.
pub(super) struct Guard {
    pub target: Target,
    pub guardian: Option<Guardian>,
    pub sentinel: Option<Child>,
    pub thawer: Option<Child>,
    pub pacer: Option<Pacer>,
    /// the root's descriptor and, with a receipt, those of `state` and `receipt.json`; empty until opened
    pub fds: Vec<OwnedFd>,
    /// the sentinel's end of the bell, until it is forked
    bell: Option<OwnedFd>,
    /// what the daemon waits for an answer to
    open: Option<u32>,
    tell: Option<u32>,
    /// how its FIFREEZE ended, once it did
    pub froze: Option<Result<Duration, Fault>>,
    /// when it was told to thaw, or first seen to need it
    pub asked: Option<Duration>,
    pub thaw_tries: u8,
    /// told to exit, its descriptors closed
    pub dismissed: bool,
}

pub(super) struct Guardian {
    pub child: Child,
    /// `None` once it is closed
    pub socket: Option<OwnedFd>,
}

/// A process that writes back; it holds nothing.
pub(super) struct Pacer {
    pub child: Child,
    /// whom to tell when it is gone
    pub seq: u32,
    pub since: Duration,
    /// when it is killed
    pub until: Duration,
}

/// Who of a hold has something to say.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    Guardian(usize),
    GuardianDied(usize),
    SentinelDied(usize),
    ThawerDied(usize),
    PacerDied(usize),
}

pub(super) struct Hold {
    pub house: Rc<House>,
    pub guards: Vec<Guard>,
    pub jobs: Jobs,
    /// duplicates of database sessions' sockets
    pub sockets: Vec<OwnedFd>,
    /// what is to be sent to the daemon, with descriptors
    pub says: Vec<(Answer, Vec<OwnedFd>)>,
    /// BOOTTIME minus MONOTONIC when it began
    pub parted: Duration,
}

impl Hold {
    pub(super) fn new(house: Rc<House>) -> Hold {
        let parted = clock::boottime().saturating_sub(clock::monotonic());
        Hold { house, guards: vec![], jobs: Jobs::default(), sockets: vec![], says: vec![], parted }
    }

    pub(super) fn entry(&self, index: usize) -> Entry<'_> {
        self.house.marker.entry(index)
    }

    pub(super) fn say(&mut self, seq: u32, word: Word) {
        self.says.push((Answer { seq, word }, vec![]));
    }

    pub(super) fn event(&mut self, event: EventWord) {
        self.say(0, Word::Event(event));
    }

    /// Forks a guardian, which opens the target and answers for itself. `busy`: a child of an earlier hold that is still
    /// inside the kernel on this file system; another would only join it.
    pub(super) fn open(&mut self, seq: u32, index: usize, target: Target, busy: Option<i32>) {
        self.entry(index).plan(&target);
        self.house.marker.uses(index + 1);
        let mut guard = Guard {
            target,
            guardian: None,
            sentinel: None,
            thawer: None,
            pacer: None,
            fds: vec![],
            bell: None,
            open: Some(seq),
            tell: None,
            froze: None,
            asked: None,
            thaw_tries: 0,
            dismissed: false,
        };
        let refused = match busy {
            Some(pid) => Some(Refused::Busy { pid }),
            None => self.fork_guardian(index, &mut guard).err().map(|error| Refused::Guard(error.into())),
        };
        if let Some(refused) = refused {
            guard.open = None;
            self.say(seq, Word::Opened { index, result: Err(refused) });
        }
        self.guards.push(guard);
    }

    fn fork_guardian(&self, index: usize, guard: &mut Guard) -> std::io::Result<()> {
        let (socket, theirs) = packet::pair()?;
        let (bell, ring) = pipe2(OFlag::O_CLOEXEC)?;
        let post = guardian::Post {
            index,
            target: &guard.target,
            marker: &self.house.marker,
            socket: theirs,
            bell: ring,
            warden: std::process::id().cast_signed(),
            daemon: self.house.daemon.pidfd(),
            run: &self.house.run,
            config: self.house.config.as_deref(),
        };
        let keep = post.keep();
        let child = family::spawn(&keep, move || guardian::main(post))?;
        self.entry(index).set_owner(child.identity);
        guard.guardian = Some(Guardian { child, socket: Some(socket) });
        guard.bell = Some(bell);
        Ok(())
    }

    fn fork_sentinel(&mut self, index: usize) -> std::io::Result<()> {
        let marker = Arc::clone(&self.house.marker);
        let guard = &mut self.guards[index];
        let Some(bell) = guard.bell.take() else { return Ok(()) };
        if !guard.target.freeze {
            return Ok(());
        }
        let state = guard.fds.get(1);
        let keep = [bell.as_raw_fd(), state.unwrap_or(&guard.fds[0]).as_raw_fd()];
        let child = family::spawn(&keep, || {
            let post = match (state, &guard.target.receipt) {
                (Some(state), Some(receipt)) => {
                    state.try_clone().map(|fd| sentinel::Post::State(File::from(fd), receipt.released.clone()))
                }
                (_, _) => guard.fds[0].try_clone().map(sentinel::Post::Name),
            };
            post.map_or(1, |post| sentinel::main(marker.entry(index), &bell, &post))
        })?;
        marker.entry(index).set_sentinel(child.identity);
        guard.sentinel = Some(child);
        Ok(())
    }

    /// Forks a pacer, whose end is the answer.
    pub(super) fn pace(&mut self, seq: u32, index: usize, files: &[u8], limit: Duration, little: u64, now: Duration) {
        let warden = std::process::id().cast_signed();
        let forked = match self.guards.get(index).map(|guard| (guard.fds.first(), &guard.pacer, guard.target.dev)) {
            Some((Some(root), None, dev)) => {
                let post = pacer::Post { root, dev, warden, files: protocol::unpack(files), limit, little };
                family::spawn(&post.keep(), || pacer::main(&post)).map_err(Fault::from)
            }
            Some((None, ..) | (_, Some(_), _)) | None => Err(Fault::because("it is not free to be written back")),
        };
        match forked {
            Ok(child) => {
                self.guards[index].pacer = Some(Pacer { child, seq, since: now, until: now + limit + OVERTIME })
            }
            Err(fault) => self.say(seq, Word::Did { index, took: Duration::ZERO, fault: Some(fault) }),
        }
    }

    /// Nothing is to be written back any more, or somebody writes back for too long.
    pub(super) fn stop_pacers(&self, due: impl Fn(&Pacer) -> bool) {
        self.guards
            .iter()
            .filter_map(|guard| guard.pacer.as_ref())
            .filter(|pacer| due(pacer))
            .for_each(|p| p.child.kill());
    }

    /// Passes a task on; one that cannot be passed on is answered at once.
    pub(super) fn tell(&mut self, seq: u32, index: usize, task: Task, tail: &[u8]) {
        let sent = self.guards.get_mut(index).is_some_and(|guard| {
            guard.tell = Some(seq);
            guard.send(TaskAsk { seq, task }, tail)
        });
        if !sent {
            if let Some(guard) = self.guards.get_mut(index) {
                guard.tell = None;
            }
            let fault = Some(Fault::because("its guardian does not answer"));
            self.say(seq, Word::Did { index, took: Duration::ZERO, fault });
        }
    }

    /// A guardian's socket has something.
    pub(super) fn hear(&mut self, index: usize) {
        loop {
            let Some(guardian) = self.guards[index].guardian.as_mut() else { return };
            let Some(socket) = &guardian.socket else { return };
            match protocol::receive::<Account>(socket) {
                Heard::Message { head, fds, .. } => self.account(index, head, fds),
                Heard::Nothing => return,
                Heard::End => {
                    // it listens to nobody any more; its pidfd says when it is gone
                    guardian.socket = None;
                    guardian.child.kill();
                    return;
                }
            }
        }
    }

    fn account(&mut self, index: usize, account: Account, fds: Vec<OwnedFd>) {
        match account {
            Account::Opened(result) => self.opened(index, result, fds),
            Account::Did { seq, took, fault } => {
                self.guards[index].tell = None;
                self.say(seq, Word::Did { index, took, fault });
            }
            Account::Froze { took, fault } => {
                self.guards[index].froze = Some(fault.map_or(Ok(took), Err));
            }
            Account::Thawed => {}
        }
    }

    fn opened(&mut self, index: usize, result: Result<Option<String>, Refused>, fds: Vec<OwnedFd>) {
        let Some(seq) = self.guards[index].open.take() else { return };
        let mut result = result;
        if result.is_ok() {
            self.guards[index].fds = fds;
            if let (Some(receipt), 3) = (&self.guards[index].target.receipt, self.guards[index].fds.len()) {
                self.entry(index).set_released(&receipt.released);
            }
            if let Err(error) = self.fork_sentinel(index) {
                result = Err(Refused::Guard(error.into()));
            }
        }
        let copies = self.guards[index].fds.iter().filter_map(|fd| fd.try_clone().ok()).collect();
        self.says.push((Answer { seq, word: Word::Opened { index, result } }, copies));
    }

    /// One of the children has spoken or is dead: reap it, and draw the conclusion.
    pub(super) fn notice(&mut self, source: Source, now: Duration) {
        let (Source::Guardian(index)
        | Source::GuardianDied(index)
        | Source::SentinelDied(index)
        | Source::ThawerDied(index)
        | Source::PacerDied(index)) = source;
        if index >= self.guards.len() {
            // of the hold before this one, which began a moment ago
            return;
        }
        match source {
            Source::Guardian(index) => self.hear(index),
            Source::GuardianDied(index) => {
                // what it said before it died counts
                self.hear(index);
                let guard = &mut self.guards[index];
                if guard.guardian.as_ref().is_some_and(|guardian| guardian.child.reap().is_some()) {
                    guard.guardian = None;
                    self.guardian_lost(index, now);
                }
            }
            Source::SentinelDied(index) => {
                if self.guards[index].sentinel.as_ref().is_some_and(|sentinel| sentinel.reap().is_some()) {
                    self.guards[index].sentinel = None;
                    self.sentinel_ended(index, now);
                }
            }
            Source::ThawerDied(index) => {
                let guard = &mut self.guards[index];
                if guard.thawer.as_ref().is_some_and(|thawer| thawer.reap().is_some()) {
                    guard.thawer = None;
                }
            }
            Source::PacerDied(index) => {
                if self.guards[index].pacer.as_ref().is_some_and(|pacer| pacer.child.reap().is_some())
                    && let Some(pacer) = self.guards[index].pacer.take()
                {
                    // how it ended does not matter: what it left, `syncfs` writes
                    let took = now.saturating_sub(pacer.since);
                    self.say(pacer.seq, Word::Did { index, took, fault: None });
                }
            }
        }
    }

    fn guardian_lost(&mut self, index: usize, now: Duration) {
        let gone = || Fault::because("its guardian died");
        let guard = &mut self.guards[index];
        guard.asked = guard.asked.or(Some(now));
        if guard.froze.is_none() {
            guard.froze = Some(Err(gone()));
        }
        let (open, tell, was_opened) = (guard.open.take(), guard.tell.take(), !guard.fds.is_empty());
        if let Some(seq) = open {
            self.say(seq, Word::Opened { index, result: Err(Refused::Guard(gone())) });
        }
        if let Some(seq) = tell {
            self.say(seq, Word::Did { index, took: Duration::ZERO, fault: Some(gone()) });
        }
        if was_opened && !self.jobs.ending() {
            self.event(EventWord::GuardianLost { index });
        }
    }

    /// It came back because the file system was thawed, or it was killed; then nothing proves the freeze any more.
    fn sentinel_ended(&mut self, index: usize, now: Duration) {
        let (state, returned) = (self.entry(index).state(), self.entry(index).returned().load(SeqCst) != 0);
        if self.jobs.ending() {
            return;
        }
        match state {
            State::Foreign if returned => self.event(EventWord::ForeignThaw { index }),
            State::Planned | State::Freezing | State::Ours if !returned => {
                self.event(EventWord::GuardianLost { index });
                self.entry(index).abort().store(1, SeqCst);
                self.ask_to_thaw(index, now);
            }
            State::Planned | State::Freezing | State::Ours | State::Foreign | State::Thawing | State::Thawed => {}
        }
    }

    /// Tells its guardian to thaw; from now on its time to obey runs.
    pub(super) fn ask_to_thaw(&mut self, index: usize, now: Duration) {
        let guard = &mut self.guards[index];
        if guard.asked.is_none() {
            guard.asked = Some(now);
            guard.send(TaskAsk { seq: 0, task: Task::Thaw }, &[]);
        }
    }

    /// Everybody whose voice or death matters.
    pub(super) fn sources(&self) -> impl Iterator<Item = (BorrowedFd<'_>, Source)> {
        self.guards.iter().enumerate().flat_map(|(index, guard)| {
            let guardian = guard.guardian.as_ref();
            let socket = guardian.and_then(|guardian| guardian.socket.as_ref());
            [
                socket.map(|fd| (fd.as_fd(), Source::Guardian(index))),
                guardian.map(|guardian| (guardian.child.pidfd.as_fd(), Source::GuardianDied(index))),
                guard.sentinel.as_ref().map(|child| (child.pidfd.as_fd(), Source::SentinelDied(index))),
                guard.thawer.as_ref().map(|child| (child.pidfd.as_fd(), Source::ThawerDied(index))),
                guard.pacer.as_ref().map(|pacer| (pacer.child.pidfd.as_fd(), Source::PacerDied(index))),
            ]
            .into_iter()
            .flatten()
        })
    }
}

impl Guard {
    /// Never waits: a guardian whose queue is full is stuck.
    pub(super) fn send(&mut self, ask: TaskAsk, tail: &[u8]) -> bool {
        let socket = self.guardian.as_ref().and_then(|guardian| guardian.socket.as_ref());
        socket.is_some_and(|socket| protocol::send(socket, &ask, &[tail], &[]).is_ok())
    }

    pub(super) fn children(&self) -> impl Iterator<Item = &Child> {
        let guardian = self.guardian.as_ref().map(|guardian| &guardian.child);
        let pacer = self.pacer.as_ref().map(|pacer| &pacer.child);
        guardian.into_iter().chain(&self.sentinel).chain(&self.thawer).chain(pacer)
    }

    /// Those still alive, given up on.
    pub(super) fn into_children(self) -> impl Iterator<Item = Child> {
        let guardian = self.guardian.map(|guardian| guardian.child);
        let pacer = self.pacer.map(|pacer| pacer.child);
        guardian.into_iter().chain(self.sentinel).chain(self.thawer).chain(pacer)
    }
}
