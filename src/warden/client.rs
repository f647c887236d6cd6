//! The daemon's side: start the warden, beat to it, tell it what to do, take over when it is dead.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    Event, FreezeError, Lost, PrepareError, Prepared, Target, Thawed, entry,
    link::{Answers, Link, Packet},
    marker::{Deadline, Marker, Phase},
    protocol::{self, Answer, Ask, NotFrozen, Order, Plan, Refused, Task, Word},
    takeover::{self, Held},
};
use crate::{
    guest::dirty::OpenFile,
    sys::{
        family::{self, Child, Identity},
        packet,
    },
};

/// How long a warden may take to start, and to answer what it can answer at once.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a target that is merely slow may take to be opened and written.
const SLOW: Duration = Duration::from_secs(15);

/// How long after its limit a pacer that hangs may be waited for; its warden has killed it by then.
const PACERS_DIE: Duration = Duration::from_secs(1);

/// A running warden. Cheap to clone; one task owns the socket.
#[derive(Clone)]
pub struct Warden {
    inner: Arc<Inner>,
}

struct Inner {
    pid: i32,
    marker: Arc<Marker>,
    orders: mpsc::UnboundedSender<Packet>,
    beating: watch::Sender<bool>,
    /// one question at a time
    turn: tokio::sync::Mutex<Turn>,
    targets: Mutex<Vec<Kept>>,
}

struct Turn {
    answers: Answers,
    seq: u32,
}

/// What is remembered of a target from preparing to the end.
struct Kept {
    mount: PathBuf,
    /// `None` if it could not be prepared
    held: Option<Arc<Held>>,
}

/// How long each file system's flush took; `Err` names why it could not be flushed.
pub type Flushed = Result<Duration, io::Error>;

impl Warden {
    /// Executes `/proc/self/exe warden` as a direct child and waits until it answers. `config` is what `rescue` must
    /// be given should the warden have to become one.
    ///
    /// # Errors
    /// It could not be started or did not answer within 5 s.
    pub async fn spawn(run: &Path, config: Option<PathBuf>) -> io::Result<(Warden, mpsc::UnboundedReceiver<Event>)> {
        let marker = Arc::new(Marker::create(run)?);
        let own = Identity::of(std::process::id().cast_signed()).ok_or(io::ErrorKind::NotFound)?;
        marker.set_daemon(own);
        let (socket, theirs) = packet::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(super::VERB).arg("--run").arg(run);
        if let Some(config) = config {
            command.arg("--config").arg(config);
        }
        let started = command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        drop(command);
        let pid = started.id().cast_signed();
        let identity = Identity::of(pid).ok_or(io::ErrorKind::NotFound)?;
        let warden = Child { identity, pidfd: family::pidfd(pid)? };
        let died = packet::awaitable(warden.pidfd.try_clone()?)?;
        marker.set_warden(identity);

        let (orders, orders_in) = mpsc::unbounded_channel();
        let (answers_out, mut answers) = mpsc::unbounded_channel();
        let (events_out, events) = mpsc::unbounded_channel();
        let (beating, beating_in) = watch::channel(false);
        let link = Link {
            socket: packet::awaitable(socket)?,
            warden,
            died,
            marker: Arc::clone(&marker),
            orders: orders_in,
            answers: answers_out,
            events: events_out,
            beating: beating_in,
        };
        tokio::spawn(link.run());
        match timeout(ANSWER, answers.recv()).await {
            Ok(Some((Answer { word: Word::Ready, .. }, _))) => {}
            Ok(Some(_) | None) => return Err(io::Error::other("the warden ended before it answered")),
            Err(_) => {
                identity.kill();
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the warden did not answer"));
            }
        }
        let turn = tokio::sync::Mutex::new(Turn { answers, seq: 0 });
        let targets = Mutex::default();
        Ok((Warden { inner: Arc::new(Inner { pid, marker, orders, beating, turn, targets }) }, events))
    }

    pub fn pid(&self) -> i32 {
        self.inner.pid
    }

    /// The table shared with every process of ours; the driver records started hooks there.
    pub fn marker(&self) -> &Arc<Marker> {
        &self.inner.marker
    }

    /// A hold begins: beats start, the warden locks its memory, the marker names the hold.
    ///
    /// # Errors
    /// The warden is lost, or a file system of an earlier hold is still stuck in the kernel (its mount point is the message).
    pub async fn begin(&self, hold_id: &str) -> Result<(), BeginError> {
        let mut turn = self.inner.turn.lock().await;
        let _ = self.inner.beating.send(true);
        let seq = self.ask(&mut turn, Order::Begin { hold_id: hold_id.to_owned() }, vec![], vec![]);
        let word = turn.answer(seq, ANSWER).await;
        if let Ok((Word::Begun, _)) = word {
            return Ok(());
        }
        let _ = self.inner.beating.send(false);
        match word {
            Ok((Word::StillStuck { mount }, _)) => Err(BeginError::StillStuck { mount: mount.into() }),
            Ok(_) | Err(Lost) => Err(Lost.into()),
        }
    }

    /// Forks guardian and sentinel for each target; each opens, identifies, and writes its receipt as `prepared`. Every
    /// `limit` those that have not answered are looked at: one that waits for a thaw ends it. Once per hold.
    ///
    /// # Errors
    /// Only a lost warden; each target's own failure is in its place in the list.
    pub async fn prepare(
        &self,
        targets: Vec<Target>,
        limit: Duration,
    ) -> Result<Vec<Result<Prepared, PrepareError>>, Lost> {
        let mut turn = self.inner.turn.lock().await;
        let seq = turn.next();
        for (index, target) in targets.iter().enumerate() {
            let tail = target.receipt.as_ref().map(|receipt| protocol::parts(receipt).concat()).unwrap_or_default();
            self.send(seq, Order::Open { index, target: Plan::of(target) }, tail, vec![]);
        }
        let begun = Instant::now();
        let mut until = begun + limit;
        let mut results: Vec<Option<Result<Prepared, PrepareError>>> = targets.iter().map(|_| None).collect();
        let mut kept: Vec<Kept> = targets.iter().map(|t| Kept { mount: t.mount.clone(), held: None }).collect();
        let mut receipts: Vec<_> = targets.into_iter().map(|target| (target.dev, target.receipt)).collect();
        while results.iter().any(Option::is_none) {
            let Some((word, fds)) = turn.answer_until(seq, until).await? else {
                let silent = results.iter().enumerate().filter(|(_, result)| result.is_none());
                if gives_up(begun.elapsed(), silent.map(|(index, _)| index).any(|index| self.waits_for_thaw(index))) {
                    break;
                }
                until += limit;
                continue;
            };
            let Word::Opened { index, result } = word else { return Err(Lost) };
            let mount = kept.get(index).ok_or(Lost)?.mount.clone();
            results[index] = Some(match result {
                Ok(no_receipt) => {
                    kept[index].held = Some(Arc::new(Held { fds, receipt: receipts[index].1.take() }));
                    Ok(Prepared { no_receipt })
                }
                Err(refused) => Err(prepare_error(mount, receipts[index].0, refused, limit)),
            });
        }
        let late = |index: usize, kept: &Kept| {
            let guardian = self.inner.marker.entry(index).owner();
            let waited = Duration::from_secs(begun.elapsed().as_secs());
            stuck(kept.mount.clone(), guardian.map(|guardian| guardian.pid), waited)
        };
        let results = results.into_iter().enumerate();
        let results = results.map(|(index, result)| result.unwrap_or_else(|| Err(late(index, &kept[index])))).collect();
        *self.targets() = kept;
        Ok(results)
    }

    /// Writes dirty files of all targets back in small portions, in parallel: `files` those that are open, by target,
    /// then, while more than `little` bytes of the guest are dirty, those that were written to lately. Ends after about
    /// `limit`, whatever is left; dropped before, it goes on until then, or until the hold is let go.
    ///
    /// # Errors
    /// The warden is lost.
    pub async fn pace(
        &self,
        mut files: BTreeMap<usize, Vec<OpenFile>>,
        little: u64,
        limit: Duration,
    ) -> Result<(), Lost> {
        let prepared = (0..self.targets().len()).filter(|&index| self.held(index).is_some());
        let tasks = prepared.map(|index| (index, protocol::pack(&files.remove(&index).unwrap_or_default()))).collect();
        self.tell_each(|index| Order::Pace { index, limit, little }, tasks, limit + PACERS_DIE).await?;
        Ok(())
    }

    /// One round of `syncfs` on all targets, in parallel, each answer with its duration; those beyond `limit` are `TimedOut`.
    ///
    /// # Errors
    /// The warden is lost.
    pub async fn flush(&self, limit: Duration) -> Result<Vec<Flushed>, Lost> {
        let count = self.targets().len();
        let tasks = (0..count).filter(|&index| self.held(index).is_some()).map(|index| (index, vec![])).collect();
        let mut done = self.tell(Task::Sync, tasks, limit).await?;
        let unprepared = || io::Error::new(io::ErrorKind::NotConnected, "it was not prepared");
        Ok((0..count)
            .map(|index| match done.iter().position(|(i, _)| *i == index) {
                Some(position) => done.swap_remove(position).1.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into())),
                None => Err(unprepared()),
            })
            .collect())
    }

    /// Duplicates a database session's socket into the warden, which shuts it down at deadline + 2 s or when the daemon is lost.
    ///
    /// # Errors
    /// The warden is lost.
    pub async fn guard_socket(&self, _name: &str, socket: OwnedFd) -> Result<(), Lost> {
        let mut turn = self.inner.turn.lock().await;
        let seq = self.ask(&mut turn, Order::GuardSocket, vec![], vec![socket]);
        turn.done(seq).await
    }

    /// Sets the deadline: everything is thawed `from_now` after this call, whoever lives. Called before the first step
    /// that makes anyone wait, again when all is held, and by `extend`.
    ///
    /// # Errors
    /// The warden is lost.
    pub async fn arm(&self, from_now: Duration) -> Result<(), Lost> {
        let Deadline { monotonic, boottime } = Deadline::after(from_now);
        let mut turn = self.inner.turn.lock().await;
        let seq = self.ask(&mut turn, Order::Arm { monotonic, boottime }, vec![], vec![]);
        turn.done(seq).await
    }

    /// The last `syncfs`, receipts overwritten to `frozen` with `receipts` (new `receipt.json` per index), then FIFREEZE,
    /// level by level (`levels[0]` first: the innermost), all of one level in parallel, RCU expedited meanwhile if
    /// `expedite_rcu` and nothing speaks against it. Returns how long each FIFREEZE took.
    ///
    /// # Errors
    /// See [`FreezeError`]; whatever froze is still frozen and must be thawed with [`Warden::thaw`].
    pub async fn freeze(
        &self,
        levels: Vec<Vec<usize>>,
        receipts: Vec<(usize, Vec<u8>)>,
        expedite_rcu: bool,
        flush_limit: Duration,
        freeze_limit: Duration,
    ) -> Result<Vec<(usize, Duration)>, FreezeError> {
        let mut receipts: BTreeMap<usize, Vec<u8>> = receipts.into_iter().collect();
        let prepared = (0..self.targets().len()).filter(|&index| self.held(index).is_some());
        let tasks = prepared.map(|index| (index, receipts.remove(&index).unwrap_or_default())).collect();
        for (index, sealed) in self.tell(Task::Seal, tasks, flush_limit).await? {
            let mount = self.mount(index);
            match sealed {
                Some(Ok(_)) => {}
                Some(Err(source)) => return Err(FreezeError::Flush { index, mount, source }),
                None if self.waits_for_thaw(index) => return Err(FreezeError::ForeignFreeze { index, mount }),
                None => return Err(FreezeError::FlushTooSlow { index, mount, limit: flush_limit }),
            }
        }
        let mut turn = self.inner.turn.lock().await;
        let order = Order::Freeze { levels, expedite: expedite_rcu, limit: freeze_limit };
        let seq = self.ask(&mut turn, order, vec![], vec![]);
        let (word, _) = turn.answer(seq, freeze_limit + ANSWER).await?;
        drop(turn);
        let Word::Frozen { took, failed } = word else { return Err(Lost.into()) };
        match failed {
            None => Ok(took),
            Some(NotFrozen::Fault { index, fault }) => {
                Err(FreezeError::Freeze { index, mount: self.mount(index), source: fault.into() })
            }
            Some(NotFrozen::Foreign { index }) => Err(FreezeError::ForeignFreeze { index, mount: self.mount(index) }),
            Some(NotFrozen::TooSlow { indices }) => {
                let mounts = indices.iter().map(|&index| self.mount(index)).collect();
                Err(FreezeError::TooSlow { indices, mounts, limit: freeze_limit })
            }
        }
    }

    /// Are all of these still frozen by us, and has nobody begun to let go? Asked right before a thaw that was asked for:
    /// guardians let go by themselves when the warden is lost, and that may not have been heard yet.
    pub fn still_held(&self, mut indices: impl Iterator<Item = usize>) -> bool {
        let marker = &self.inner.marker;
        marker.reason().is_none()
            && indices.all(|index| {
                let entry = marker.entry(index);
                entry.state() == entry::State::Ours && entry.returned().load(Ordering::Acquire) == 0
            })
    }

    /// Thaws everything of ours, outermost first; never fails, never waits for one that is stuck; works without a warden.
    pub async fn thaw(&self) -> Vec<Thawed> {
        let marker = &self.inner.marker;
        let count = self.targets().len();
        let by_warden = async {
            let mut turn = self.inner.turn.lock().await;
            let seq = self.ask(&mut turn, Order::Thaw, vec![], vec![]);
            // the warden's own limit depends on the number of levels, at most one per file system
            let limit = ANSWER + Duration::from_millis(500) * u32::try_from(count).unwrap_or(u32::MAX);
            turn.answer(seq, limit).await
        };
        if let Ok((Word::Thawed { how }, _)) = by_warden.await {
            return how.into_iter().map(Thawed::from).collect();
        }
        self.until_let_go(takeover::GUARDIANS).await;
        let held: Vec<_> = (0..count).map(|index| self.held(index)).collect();
        takeover::thaw_all(marker, &held);
        self.until_let_go(takeover::LIMIT).await;
        (0..count).map(|index| marker.entry(index).ended()).collect()
    }

    /// After the thaw (or instead of a freeze): final `receipt.json` and state (`released` or `aborted`) per index; each
    /// within `limit`. Without a warden this is done by the daemon itself.
    pub async fn testify(&self, receipts: Vec<(usize, Vec<u8>)>, aborted: bool, limit: Duration) {
        let words: Vec<_> =
            receipts.into_iter().filter_map(|(index, json)| Some((index, self.held(index)?, json))).collect();
        let tasks = words.iter().map(|(index, _, json)| (*index, json.clone())).collect();
        let told = self.tell(Task::Testify { aborted }, tasks, limit).await.unwrap_or_default();
        // a guardian that is late may still be writing; those that cannot answer any more are written for
        let answered = |index| told.iter().any(|(i, answer)| *i == index && !matches!(answer, Some(Err(_))));
        let words: Vec<_> = words.into_iter().filter(|(index, ..)| !answered(*index)).collect();
        if !words.is_empty() {
            let marker = Arc::clone(&self.inner.marker);
            let testify = move || takeover::testify(&marker, words, aborted, limit);
            let _ = tokio::task::spawn_blocking(testify).await;
        }
    }

    /// The hold is over: guardians and sentinels end, memory is unlocked, beats stop, the marker says idle.
    pub async fn end(&self) {
        let mut turn = self.inner.turn.lock().await;
        let seq = self.ask(&mut turn, Order::End, vec![], vec![]);
        let ended = turn.answer(seq, ANSWER).await.is_ok();
        if !ended && !self.inner.marker.holds() {
            self.inner.marker.set_phase(Phase::Idle);
        }
        let _ = self.inner.beating.send(false);
        let kept = std::mem::take(&mut *self.targets());
        if !self.inner.marker.holds() {
            // the last close of a file can block while somebody else has it frozen: not on this thread
            std::thread::spawn(move || drop(kept));
        } else {
            *self.targets() = kept;
        }
    }

    async fn until_let_go(&self, limit: Duration) {
        let until = Instant::now() + limit;
        while self.inner.marker.holds() && Instant::now() < until {
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// The same task for some guardians, each with its bytes; `None` for those that did not answer within `limit`.
    async fn tell(
        &self,
        task: Task,
        tasks: Vec<(usize, Vec<u8>)>,
        limit: Duration,
    ) -> Result<Vec<(usize, Option<Flushed>)>, Lost> {
        self.tell_each(|index| Order::Tell { index, task }, tasks, limit).await
    }

    /// The same order about some targets, each with its bytes; `None` for those not done within `limit`.
    async fn tell_each(
        &self,
        order: impl Fn(usize) -> Order,
        tasks: Vec<(usize, Vec<u8>)>,
        limit: Duration,
    ) -> Result<Vec<(usize, Option<Flushed>)>, Lost> {
        let mut turn = self.inner.turn.lock().await;
        let seq = turn.next();
        let mut done: Vec<(usize, Option<Flushed>)> = Vec::with_capacity(tasks.len());
        for (index, tail) in tasks {
            done.push((index, None));
            self.send(seq, order(index), tail, vec![]);
        }
        let until = Instant::now() + limit;
        while done.iter().any(|(_, answer)| answer.is_none()) {
            let Some((word, _)) = turn.answer_until(seq, until).await? else { break };
            let Word::Did { index, took, fault } = word else { return Err(Lost) };
            if let Some((_, answer)) = done.iter_mut().find(|(i, _)| *i == index) {
                *answer = Some(fault.map_or(Ok(took), |fault| Err(fault.into())));
            }
        }
        Ok(done)
    }

    fn ask(&self, turn: &mut Turn, order: Order, tail: Vec<u8>, fds: Vec<OwnedFd>) -> u32 {
        let seq = turn.next();
        self.send(seq, order, tail, fds);
        seq
    }

    fn send(&self, seq: u32, order: Order, tail: Vec<u8>, fds: Vec<OwnedFd>) {
        // a warden that is lost shows when its answer is awaited
        let _ = self.inner.orders.send(Packet { ask: Ask { seq, order }, tail, fds });
    }

    fn targets(&self) -> std::sync::MutexGuard<'_, Vec<Kept>> {
        self.inner.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self, index: usize) -> Option<Arc<Held>> {
        self.targets().get(index)?.held.clone()
    }

    fn mount(&self, index: usize) -> PathBuf {
        self.targets().get(index).map(|kept| kept.mount.clone()).unwrap_or_default()
    }

    fn waits_for_thaw(&self, index: usize) -> bool {
        self.inner.marker.entry(index).owner().is_some_and(|guardian| waits_for_thaw(guardian.pid))
    }
}

impl Turn {
    fn next(&mut self) -> u32 {
        self.seq += 1;
        self.seq
    }

    /// The next answer to question `seq`; `None` when `until` has passed. Answers to questions given up on are dropped.
    async fn answer_until(&mut self, seq: u32, until: Instant) -> Result<Option<(Word, Vec<OwnedFd>)>, Lost> {
        loop {
            match timeout_at(until, self.answers.recv()).await {
                Ok(Some((answer, fds))) if answer.seq == seq => return Ok(Some((answer.word, fds))),
                Ok(Some(_)) => {}
                Ok(None) => return Err(Lost),
                Err(_) => return Ok(None),
            }
        }
    }

    async fn answer(&mut self, seq: u32, limit: Duration) -> Result<(Word, Vec<OwnedFd>), Lost> {
        self.answer_until(seq, Instant::now() + limit).await?.ok_or(Lost)
    }

    async fn done(&mut self, seq: u32) -> Result<(), Lost> {
        match self.answer(seq, ANSWER).await? {
            (Word::Done, _) => Ok(()),
            _other => Err(Lost),
        }
    }
}

/// Whether targets that are silent for so long will not answer: at once if one of them waits for somebody's thaw. One on a
/// slow disk, or in a guest that hardly gets a processor, is waited for, because nobody else waits while preparing.
fn gives_up(silent_for: Duration, one_waits_for_thaw: bool) -> bool {
    one_waits_for_thaw || silent_for >= SLOW
}

fn prepare_error(mount: PathBuf, expected: crate::guest::Dev, refused: Refused, limit: Duration) -> PrepareError {
    match refused {
        Refused::Open(fault) => PrepareError::Open { mount, source: fault.into() },
        Refused::Vanished { found } => PrepareError::Vanished { mount, expected, found },
        Refused::Receipt { why } => PrepareError::Receipt { mount, why },
        Refused::Guard(fault) => PrepareError::Guard { mount, source: fault.into() },
        Refused::Busy { pid } => stuck(mount, Some(pid), limit),
    }
}

fn stuck(mount: PathBuf, pid: Option<i32>, limit: Duration) -> PrepareError {
    if pid.is_some_and(waits_for_thaw) {
        PrepareError::ForeignFreeze { mount }
    } else {
        PrepareError::Stuck { mount, limit }
    }
}

/// Is this process blocked because the file system it writes to is frozen? The kernel's words for it:
/// `percpu_rwsem_wait` in sb_start_write (fs/super.c).
fn waits_for_thaw(pid: i32) -> bool {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    read("wchan").contains("percpu_rwsem_wait") || read("stack").contains("percpu_rwsem_wait")
}

#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error("hold again: an earlier freeze of {} has not left the kernel yet", mount.display())]
    StillStuck { mount: PathBuf },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_target_is_waited_for_and_one_that_somebody_froze_is_not() {
        let first_look = Duration::from_secs(2);
        assert!(!gives_up(first_look, false), "a busy guest was refused with FOREIGN_FREEZE");
        assert!(gives_up(first_look, true));
        assert!(gives_up(SLOW, false));
    }
}
