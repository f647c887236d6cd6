//! What the warden does in order: freeze level by level from the innermost, thaw from the outermost, end. Each job is
//! looked at again after every wake-up; none ever waits.

use std::{
    os::fd::{AsFd, AsRawFd},
    path::Path,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use nix::sys::socket::{Shutdown, shutdown};

use super::{
    entry::State,
    hold::Hold,
    marker::Phase,
    protocol::{Fault, NotFrozen, Task, TaskAsk, Word},
    rcu,
};
use crate::sys::{
    family::{self, Doing},
    memory,
};

/// How long a guardian may take to obey before it is killed, and a level to thaw before the next is told to.
const OBEY: Duration = Duration::from_millis(500);
/// How long a thaw may take before its answer says what is stuck, beyond one [`OBEY`] per level.
const THAW: Duration = Duration::from_millis(1500);
/// How long children may take to end by themselves, and then to die.
const LEAVE: Duration = Duration::from_millis(300);
const DIE: Duration = Duration::from_secs(1);
/// How often FITHAW is left to another process: a thawer can be killed, too.
const TRIES: u8 = 3;

#[derive(Default)]
pub(super) struct Jobs {
    /// in the order of freezing
    levels: Vec<Vec<usize>>,
    freeze: Option<Freezing>,
    thaw: Option<Thawing>,
    end: Option<Ending>,
    /// this hold has been let go for good: no more freezing
    let_go: bool,
}

struct Freezing {
    seq: u32,
    level: usize,
    until: Duration,
}

struct Thawing {
    /// whom to answer
    seqs: Vec<u32>,
    /// how many levels are still to be told, the outermost (last) first
    left: usize,
    level_until: Duration,
    until: Duration,
}

struct Ending {
    seq: u32,
    since: Duration,
    said: bool,
}

impl Jobs {
    pub(super) fn ending(&self) -> bool {
        self.end.is_some()
    }

    pub(super) fn thawing(&self) -> bool {
        self.thaw.is_some()
    }

    /// Its `end` has been answered; what remains is stuck in the kernel.
    pub(super) fn over(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end.said)
    }
}

impl Hold {
    /// Starts freezing, the innermost level first.
    pub(super) fn start_freeze(
        &mut self,
        seq: u32,
        levels: &[Vec<usize>],
        expedite: bool,
        limit: Duration,
        now: Duration,
    ) {
        let known = |index: &usize| *index < self.guards.len();
        self.stop_pacers(|_| true);
        self.jobs.levels = levels.iter().map(|level| level.iter().copied().filter(known).collect()).collect();
        for (number, level) in self.jobs.levels.iter().enumerate() {
            for &index in level {
                self.entry(index).level().store(u32::try_from(number).unwrap_or(u32::MAX), SeqCst);
            }
        }
        if self.jobs.let_go {
            let index = levels.iter().flatten().next().copied().unwrap_or_default();
            let fault = Fault::because("the hold was let go meanwhile");
            return self.say(seq, Word::Frozen { took: vec![], failed: Some(NotFrozen::Fault { index, fault }) });
        }
        if expedite && !rcu::forbidden(Path::new("/")) {
            rcu::raise(Path::new("/"), &self.house.marker);
        }
        self.jobs.freeze = Some(Freezing { seq, level: 0, until: now + limit });
        self.freeze_level(0);
    }

    fn freeze_level(&mut self, level: usize) {
        let Some(members) = self.jobs.levels.get(level).cloned() else { return };
        for index in members {
            let guard = &mut self.guards[index];
            if guard.froze.is_some() {
                continue;
            }
            if !guard.target.freeze {
                guard.froze = Some(Ok(Duration::ZERO));
            } else if !guard.send(TaskAsk { seq: 0, task: Task::Freeze }, &[]) {
                guard.froze = Some(Err(Fault::because("its guardian does not answer")));
            }
        }
    }

    fn advance_freeze(&mut self, now: Duration) {
        while let Some(Freezing { level, until, .. }) = self.jobs.freeze {
            let members = self.jobs.levels.get(level).cloned().unwrap_or_default();
            let waiting: Vec<usize> = members.iter().copied().filter(|&i| self.guards[i].froze.is_none()).collect();
            if !waiting.is_empty() {
                if now < until && !self.jobs.let_go {
                    return;
                }
                for &index in &waiting {
                    self.entry(index).abort().store(1, SeqCst);
                }
                return self.finish_freeze(Some(NotFrozen::TooSlow { indices: waiting }));
            }
            let failed = members.iter().copied().find_map(|index| match &self.guards[index].froze {
                Some(Err(_)) if self.entry(index).state() == State::Foreign => Some(NotFrozen::Foreign { index }),
                Some(Err(fault)) => Some(NotFrozen::Fault { index, fault: fault.clone() }),
                Some(Ok(_)) | None => None,
            });
            if failed.is_some() || level + 1 >= self.jobs.levels.len() {
                let failed = failed.or_else(|| self.unproven());
                return self.finish_freeze(failed);
            }
            if self.jobs.let_go {
                let index = self.jobs.levels[level + 1].first().copied().unwrap_or_default();
                let fault = Fault::because("the hold was let go meanwhile");
                return self.finish_freeze(Some(NotFrozen::Fault { index, fault }));
            }
            self.jobs.freeze = self.jobs.freeze.take().map(|freezing| Freezing { level: level + 1, ..freezing });
            self.freeze_level(level + 1);
        }
    }

    /// Success is what is proven at the end: every one is still ours, and no sentinel has come back.
    fn unproven(&self) -> Option<NotFrozen> {
        let all = self.jobs.levels.iter().flatten().copied().filter(|&index| self.guards[index].target.freeze);
        let mut lost = all.filter(|&index| {
            let entry = self.entry(index);
            entry.state() != State::Ours || entry.returned().load(SeqCst) != 0
        });
        let fault = Fault::because("it did not stay frozen");
        lost.next().map(|index| NotFrozen::Fault { index, fault })
    }

    fn finish_freeze(&mut self, failed: Option<NotFrozen>) {
        let _ = rcu::restore(Path::new("/"), &self.house.marker);
        let Some(Freezing { seq, .. }) = self.jobs.freeze.take() else { return };
        let took = self.guards.iter().enumerate().filter_map(|(index, guard)| match guard.froze {
            Some(Ok(took)) => Some((index, took)),
            Some(Err(_)) | None => None,
        });
        let took = took.collect();
        self.say(seq, Word::Frozen { took, failed });
    }

    /// Lets everything go: the outermost level is told now, whoever asks. `seq`: whom to answer when it is done.
    pub(super) fn start_thaw(&mut self, seq: Option<u32>, now: Duration) {
        self.jobs.let_go = true;
        self.stop_pacers(|_| true);
        self.advance_freeze(now);
        // what froze although its freeze was given up on, or never ordered in a level, is not forgotten
        let unordered: Vec<usize> = (0..self.guards.len())
            .filter(|index| !self.jobs.levels.iter().any(|level| level.contains(index)))
            .collect();
        if !unordered.is_empty() {
            self.jobs.levels.push(unordered);
        }
        let levels = self.jobs.levels.len();
        let extra = OBEY * u32::try_from(levels).unwrap_or(u32::MAX);
        let thaw = self.jobs.thaw.get_or_insert(Thawing {
            seqs: vec![],
            left: levels,
            level_until: now,
            until: now + extra + THAW,
        });
        thaw.seqs.extend(seq);
        self.advance_thaw(now);
    }

    fn settled(&self, level: usize) -> bool {
        self.jobs.levels[level].iter().all(|&index| !self.entry(index).state().holds())
    }

    fn advance_thaw(&mut self, now: Duration) {
        while let Some(Thawing { left, level_until, until, .. }) = self.jobs.thaw {
            let told = left < self.jobs.levels.len();
            if told && !self.settled(left) && now < level_until {
                return;
            }
            let Some(next) = left.checked_sub(1) else {
                let all = (0..self.jobs.levels.len()).all(|level| self.settled(level));
                if all || now >= until {
                    self.finish_thaw();
                }
                return;
            };
            for index in self.jobs.levels[next].clone() {
                self.entry(index).abort().store(1, SeqCst);
                if self.entry(index).state().holds() {
                    self.ask_to_thaw(index, now);
                }
            }
            if let Some(thaw) = &mut self.jobs.thaw {
                (thaw.left, thaw.level_until) = (next, now + OBEY);
            }
        }
    }

    fn finish_thaw(&mut self) {
        let Some(thaw) = self.jobs.thaw.take() else { return };
        for seq in thaw.seqs {
            let how = (0..self.guards.len()).map(|index| self.entry(index).ended().into()).collect();
            self.say(seq, Word::Thawed { how });
        }
    }

    /// Takes over from owners that died or do not obey.
    fn take_over(&mut self, now: Duration) {
        for index in 0..self.guards.len() {
            let state = self.entry(index).state();
            let Some(asked) = self.guards[index].asked.filter(|_| state.holds()) else { continue };
            let overdue = now >= asked + OBEY;
            let guard = &mut self.guards[index];
            let owner = guard.thawer.as_ref().or(guard.guardian.as_ref().map(|guardian| &guardian.child));
            match owner {
                // inside the kernel it can only be waited for; a stopped one would never come back from there
                Some(child) if overdue && (state == State::Ours || child.identity.doing() == Doing::Stopped) => {
                    child.kill();
                }
                Some(_) => {}
                None if guard.thaw_tries < TRIES && !guard.fds.is_empty() => {
                    (guard.thaw_tries, guard.asked) = (guard.thaw_tries + 1, Some(now));
                    self.fork_thawer(index);
                }
                None => {}
            }
        }
    }

    fn fork_thawer(&mut self, index: usize) {
        let marker = Arc::clone(&self.house.marker);
        let guard = &mut self.guards[index];
        let root = &guard.fds[0];
        let forked = family::spawn(&[root.as_raw_fd()], || {
            family::name(c"holdstill-thaw");
            family::lock_memory();
            i32::from(marker.entry(index).take_over(root.as_fd()).is_err())
        });
        if let Ok(child) = forked {
            marker.entry(index).set_owner(child.identity);
            guard.thawer = Some(child);
        }
    }

    /// Ends all children as their file systems are let go, and answers when they are gone.
    pub(super) fn start_end(&mut self, seq: u32, now: Duration) {
        if self.house.marker.holds() && !self.jobs.thawing() {
            self.start_thaw(None, now);
        }
        self.jobs.let_go = true;
        self.stop_pacers(|_| true);
        self.jobs.end = Some(Ending { seq, since: now, said: false });
        self.advance_end(now);
    }

    fn advance_end(&mut self, now: Duration) {
        let Some(Ending { seq, since, said }) = self.jobs.end else { return };
        for index in 0..self.guards.len() {
            if !self.entry(index).state().holds() {
                self.dismiss(index);
                if now >= since + LEAVE {
                    self.guards[index].children().for_each(family::Child::kill);
                }
            }
        }
        if !said && (self.childless() || now >= since + DIE) {
            family::unlock_memory();
            memory::shed();
            self.sockets.clear();
            self.rest();
            self.say(seq, Word::Ended);
            self.jobs.end = Some(Ending { seq, since, said: true });
        }
    }

    /// The daemon ended this hold, and nothing is stuck (any more).
    pub(super) fn rest(&self) {
        if !self.house.marker.holds() {
            self.house.marker.set_phase(Phase::Idle);
        }
    }

    fn dismiss(&mut self, index: usize) {
        let entered = self.entry(index).entered().load(SeqCst) != 0;
        let guard = &mut self.guards[index];
        if std::mem::replace(&mut guard.dismissed, true) {
            return;
        }
        // before the guardian closes its own: the last close of a file can block
        guard.fds.clear();
        guard.send(TaskAsk { seq: 0, task: Task::Exit }, &[]);
        if let Some(sentinel) = guard.sentinel.as_ref().filter(|_| !entered) {
            sentinel.kill();
        }
    }

    pub(super) fn childless(&self) -> bool {
        self.guards.iter().all(|guard| guard.children().next().is_none())
    }

    /// The locks behind these sessions die with them.
    pub(super) fn shut_sockets(&self) {
        for socket in &self.sockets {
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
    }

    /// Whatever is due.
    pub(super) fn advance(&mut self, now: Duration) {
        self.stop_pacers(|pacer| now >= pacer.until);
        self.advance_freeze(now);
        self.take_over(now);
        self.advance_thaw(now);
        self.advance_end(now);
    }

    /// When to look again even if nobody says anything; `None`: at the next tick.
    pub(super) fn due(&self, now: Duration) -> Option<Duration> {
        let freeze = self.jobs.freeze.as_ref().map(|freezing| freezing.until);
        let thaw = self.jobs.thaw.as_ref().map(|thaw| if thaw.left == 0 { thaw.until } else { thaw.level_until });
        let end = self.jobs.end.as_ref().filter(|end| !end.said).map(|end| end.since);
        let (leave, die) = (end.map(|since| since + LEAVE), end.map(|since| since + DIE));
        let pacers = self.guards.iter().filter_map(|guard| Some(guard.pacer.as_ref()?.until));
        [freeze, thaw, leave, die].into_iter().flatten().chain(pacers).filter(|&due| due > now).min()
    }
}
