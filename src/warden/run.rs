//! The warden's own life: `holdstill warden`, executed by the daemon, its only direct child. One thread, one loop; while
//! no hold lives it sleeps until somebody speaks.
//!
//! Its standard input is the socket to the daemon. It opens no file but the marker and the tunable, logs nothing, and
//! never touches a file system it guards: that is what children are for.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    rc::Rc,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{dup2_stderr, dup2_stdin, dup2_stdout, getppid, setsid},
};

use super::{
    Reason,
    hold::{Hold, House, Source},
    marker::{Deadline, Marker, Phase},
    protocol::{self, Answer, Ask, EventWord, Fault, Heard, Order, Word},
    pulse::{Listener, TICK},
    rcu,
};
use crate::{
    guest::Dev,
    sys::{
        clock,
        family::{self, Child, Doing},
        memory,
    },
};

/// After the deadline a daemon has this long to release its databases before their sockets are shut.
const SOCKETS_GRACE: Duration = Duration::from_secs(2);
/// Idle for so long, in ms, it gives back what memory it can, once.
const SETTLED: u16 = 700;
/// More than this between the two clocks was a suspend.
const JUMP: Duration = Duration::from_secs(1);

/// `holdstill warden --run DIR [--config FILE]`: everything after the verb.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match start(arguments) {
        Ok(warden) => {
            memory::shed();
            ExitCode::from(u8::try_from(warden.live()).unwrap_or(1))
        }
        Err(error) => {
            // for somebody who tried by hand; the daemon just sees that this warden did not answer
            eprintln!("holdstill: failed to be a warden: {error}\nhint: the daemon starts it; `holdstill serve`");
            ExitCode::from(2)
        }
    }
}

struct Warden {
    house: Rc<House>,
    link: Option<OwnedFd>,
    /// readable once the daemon is dead
    daemon: OwnedFd,
    outbox: VecDeque<(Answer, Vec<OwnedFd>)>,
    hold: Option<Hold>,
    /// looks at the daemon's beats while a hold lives, and gives ours their rhythm
    listener: Listener,
    /// killed, but still inside the kernel
    lingering: Vec<(Dev, Child)>,
    said_deadline: bool,
    said_jump: bool,
    lost: bool,
    /// memory was given back since the last hold
    slim: bool,
}

fn start(mut arguments: impl Iterator<Item = OsString>) -> io::Result<Warden> {
    let (mut run, mut config) = (None, None);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--run") => run = arguments.next().map(PathBuf::from),
            Some("--config") => config = arguments.next().map(PathBuf::from),
            Some(_) | None => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    let run = run.ok_or(io::ErrorKind::InvalidInput)?;
    family::block_signals();
    family::name(c"holdstill-warden");
    family::no_core();
    let link = io::stdin().as_fd().try_clone_to_owned()?;
    family::close_all_but(&[link.as_raw_fd()]);
    family::many_files();
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    // only allowed when it is not a group leader already, which a fresh child never is
    let _ = setsid();
    std::env::set_current_dir("/")?;
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let marker = Marker::map(&run)?.ok_or(io::ErrorKind::NotFound)?;
    let identity = marker.daemon().filter(|daemon| daemon.pid == getppid().as_raw());
    let identity = identity.ok_or(io::ErrorKind::NotConnected)?;
    let daemon = identity.pidfd().ok_or(io::ErrorKind::NotConnected)?;
    let house = Rc::new(House { marker: Arc::new(marker), daemon: identity, run, config });
    let outbox = VecDeque::from([(Answer { seq: 0, word: Word::Ready }, vec![])]);
    let listener = Listener::new(clock::monotonic(), 0);
    Ok(Warden {
        house,
        link: Some(link),
        daemon,
        outbox,
        hold: None,
        listener,
        lingering: vec![],
        said_deadline: false,
        said_jump: false,
        lost: false,
        slim: false,
    })
}

#[derive(Clone, Copy)]
enum Voice {
    Link,
    Daemon,
    Lingering,
    Hold(Source),
}

impl Warden {
    fn live(mut self) -> i32 {
        loop {
            self.deliver();
            let voices = self.listen();
            if voices.is_empty() && self.hold.is_none() && !self.slim {
                // what ended the last hold is not needed until the next one
                memory::shed();
                self.slim = true;
            }
            let now = clock::monotonic();
            for voice in voices {
                match voice {
                    Voice::Link => self.read_link(now),
                    Voice::Daemon => self.daemon_lost(now),
                    Voice::Lingering => self.lingering.retain(|(_, child)| child.reap().is_none()),
                    Voice::Hold(source) => {
                        if let Some(hold) = &mut self.hold {
                            hold.notice(source, now);
                        }
                    }
                }
            }
            self.tick(now);
            self.advance(now);
            if self.lost {
                match &self.hold {
                    None => return 0,
                    // guardians are not told to exit: until all is undone any of them may have to go on with it
                    Some(hold) if !hold.jobs.thawing() => {
                        let House { marker, run, config, .. } = &*self.house;
                        let claimed = marker.claim_rescue(std::process::id().cast_signed());
                        return if claimed { leave(marker, run, config.as_deref()) } else { 0 };
                    }
                    Some(_) => {}
                }
            }
        }
    }

    /// Sleeps until somebody speaks or something is due.
    fn listen(&self) -> Vec<Voice> {
        let link_flags =
            if self.outbox.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT };
        let link = self.link.iter().map(|link| (link.as_fd(), Voice::Link));
        let daemon = (!self.lost).then(|| (self.daemon.as_fd(), Voice::Daemon));
        let lingering = self.lingering.iter().map(|(_, child)| (child.pidfd.as_fd(), Voice::Lingering));
        let hold = self.hold.iter().flat_map(Hold::sources).map(|(fd, source)| (fd, Voice::Hold(source)));
        let all: Vec<(BorrowedFd<'_>, Voice)> = link.chain(daemon).chain(lingering).chain(hold).collect();
        let flags = |voice| if matches!(voice, Voice::Link) { link_flags } else { PollFlags::POLLIN };
        let mut fds: Vec<PollFd<'_>> = all.iter().map(|&(fd, voice)| PollFd::new(fd, flags(voice))).collect();
        if poll(&mut fds, self.patience()).is_err() {
            return vec![];
        }
        let spoke = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        fds.iter().zip(&all).filter(|(fd, _)| spoke(fd)).map(|(_, &(_, voice))| voice).collect()
    }

    fn patience(&self) -> PollTimeout {
        let Some(hold) = &self.hold else { return if self.slim { PollTimeout::NONE } else { SETTLED.into() } };
        let now = clock::monotonic();
        let next = hold.due(now).map_or(self.listener.next(), |due| due.min(self.listener.next()));
        let deadline = self.house.marker.deadline().filter(|_| !self.said_deadline).map_or(TICK, Deadline::left);
        let left = next.saturating_sub(now).min(deadline);
        // rounded up: a poll that ends early would spin
        PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
    }

    fn read_link(&mut self, now: Duration) {
        loop {
            let Some(link) = &self.link else { return };
            match protocol::receive::<Ask>(link) {
                Heard::Message { head, tail, fds } => self.obey(head, &tail, fds, now),
                Heard::Nothing => return,
                Heard::End => return self.daemon_lost(now),
            }
        }
    }

    fn obey(&mut self, Ask { seq, order }: Ask, tail: &[u8], fds: Vec<OwnedFd>, now: Duration) {
        if let Order::Begin { hold_id } = order {
            return self.begin(seq, &hold_id, now);
        }
        let busy = match &order {
            Order::Open { target, .. } => {
                self.lingering.iter().find(|(dev, _)| *dev == target.dev()).map(|(_, child)| child.identity.pid)
            }
            _other => None,
        };
        let Some(hold) = self.hold.as_mut().filter(|hold| !hold.jobs.over()) else {
            return self.outbox.push_back((Answer { seq, word: Word::NoHold }, vec![]));
        };
        match order {
            Order::Begin { .. } => {}
            Order::Open { index, target } => match target.target(tail) {
                Some(target) if index == hold.guards.len() => hold.open(seq, index, target, busy),
                Some(_) | None => hold.say(seq, Word::NoHold),
            },
            Order::Tell { index, task } => hold.tell(seq, index, task, tail),
            Order::Pace { index, limit, little } => hold.pace(seq, index, tail, limit, little, now),
            Order::Arm { monotonic, boottime } => {
                self.house.marker.arm(Deadline { monotonic, boottime });
                hold.say(seq, Word::Done);
            }
            Order::GuardSocket => {
                hold.sockets.extend(fds);
                hold.say(seq, Word::Done);
            }
            Order::Freeze { levels, expedite, limit } => hold.start_freeze(seq, &levels, expedite, limit, now),
            Order::Thaw => hold.start_thaw(Some(seq), now),
            Order::End => hold.start_end(seq, now),
        }
    }

    fn begin(&mut self, seq: u32, hold_id: &str, now: Duration) {
        let marker = &self.house.marker;
        let stuck = marker.entries().find(|entry| entry.state().holds());
        let word = if let Some(entry) = stuck {
            Word::StillStuck { mount: entry.mount().as_path().into() }
        } else {
            for guard in self.hold.take().into_iter().flat_map(|hold| hold.guards) {
                let dev = guard.target.dev;
                self.lingering.extend(guard.into_children().map(|child| (dev, child)));
            }
            self.lingering.retain(|(_, child)| child.reap().is_none());
            let _ = rcu::restore(Path::new("/"), marker);
            if let Err(error) = marker.begin(hold_id) {
                Word::NotBegun(Fault::from(error))
            } else {
                family::lock_memory();
                self.listener = Listener::new(now, marker.daemon_pulse().load(SeqCst));
                (self.said_deadline, self.said_jump) = (false, false);
                self.slim = false;
                self.hold = Some(Hold::new(Rc::clone(&self.house)));
                Word::Begun
            }
        };
        self.outbox.push_back((Answer { seq, word }, vec![]));
    }

    /// Beats, and looks whether the daemon does; the deadline; the clocks.
    fn tick(&mut self, now: Duration) {
        let Some(hold) = &mut self.hold else { return };
        let marker = Arc::clone(&self.house.marker);
        if now >= self.listener.next() {
            marker.warden_pulse().fetch_add(1, SeqCst);
        }
        let silent = self.listener.lost(now, marker.daemon_pulse().load(SeqCst));
        if hold.jobs.over() {
            return;
        }
        if let Some(deadline) = marker.deadline() {
            if deadline.left().is_zero() && !std::mem::replace(&mut self.said_deadline, true) {
                marker.let_go_because(Reason::Deadline);
                hold.event(EventWord::Deadline);
                hold.start_thaw(None, now);
            }
            if deadline.over_for(SOCKETS_GRACE) {
                hold.shut_sockets();
            }
        }
        let parted = clock::boottime().saturating_sub(clock::monotonic());
        if parted.saturating_sub(hold.parted) > JUMP && !std::mem::replace(&mut self.said_jump, true) {
            marker.let_go_because(Reason::TimeJumped);
            hold.event(EventWord::TimeJumped);
            hold.start_thaw(None, now);
        }
        if silent {
            self.daemon_lost(now);
        }
    }

    fn daemon_lost(&mut self, now: Duration) {
        self.link = None;
        if std::mem::replace(&mut self.lost, true) {
            return;
        }
        if let Some(hold) = self.hold.as_mut().filter(|hold| !hold.jobs.over()) {
            self.house.marker.daemon_lost().store(1, SeqCst);
            self.house.marker.let_go_because(Reason::DaemonLost);
            hold.start_thaw(None, now);
            hold.shut_sockets();
        }
    }

    fn advance(&mut self, now: Duration) {
        let Some(hold) = &mut self.hold else { return };
        hold.advance(now);
        self.outbox.extend(hold.says.drain(..));
        if hold.jobs.over() && hold.childless() && !self.lost {
            hold.rest();
            self.hold = None;
        }
    }

    /// Sends what it can without waiting.
    fn deliver(&mut self) {
        while let (Some(link), Some((answer, fds))) = (&self.link, self.outbox.front()) {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match protocol::send(link, answer, &[], &fds) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // a broken link shows as its end on the next read
                Ok(()) | Err(_) => drop(self.outbox.pop_front()),
            }
        }
    }
}

/// The last thing a warden or guardian does after a hold whose daemon is lost: become `holdstill rescue` if there is
/// anything left that only rescue can do. Returns the exit status if not.
pub(super) fn leave(marker: &Marker, run: &Path, config: Option<&Path>) -> i32 {
    marker.end_stopped();
    let unsettled = |entry: super::entry::Entry<'_>| {
        entry.frozen_once().load(SeqCst) != 0 && entry.returned().load(SeqCst) == 0 && entry.released().is_some()
    };
    let own = std::process::id().cast_signed();
    let lives = |identity: family::Identity| identity.pid != own && identity.doing() != Doing::Dead;
    let needed = marker.holds()
        || !marker.hooks_not_undone().is_empty()
        || marker.rcu_raised().load(SeqCst) != 0
        || marker.daemon().into_iter().chain(marker.warden()).any(lives)
        || marker.entries().any(unsettled);
    if !needed {
        marker.set_phase(Phase::LetGo);
        return 0;
    }
    family::unblock_signals();
    let mut rescue = Command::new("/proc/self/exe");
    rescue.arg("rescue").arg("--run").arg(run);
    if let Some(config) = config {
        rescue.arg("--config").arg(config);
    }
    // only returns if it failed
    let _ = rescue.exec();
    70
}
