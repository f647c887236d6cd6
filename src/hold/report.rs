//! What is known about holds, published: one watch channel for where things stand, one broadcast for what changes.
//!
//! Only the driver holds the [`Publisher`]; doors hold [`Published`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::{
    sync::{broadcast, watch},
    time::Instant,
};

use super::{admit::Past, history::History};
use crate::{
    proto::{self, Phase, event::What},
    sys::clock,
};

/// Events a slow reader of Watch may lag behind before it is told `lagged`.
const EVENTS_KEPT: usize = 256;

/// Where things stand right now.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    pub phase: Phase,
    pub current: Option<proto::Report>,
    pub last: Option<proto::Report>,
    /// sequence number of the newest event that is part of this
    pub sequence: u64,
    /// CLOCK_MONOTONIC at which the hold in progress is let go
    pub deadline: Option<std::time::Duration>,
}

/// Readers' side. Cheap to clone.
#[derive(Clone)]
pub struct Published {
    pub(crate) standing: watch::Receiver<Arc<Standing>>,
    pub(crate) events: broadcast::Sender<proto::Event>,
    pub(crate) history: Arc<Mutex<History>>,
}

impl Published {
    /// The latest standing, with what remains of the hold as of now; never waits.
    pub fn standing(&self) -> Standing {
        let mut standing = Standing::clone(&self.standing.borrow());
        if let (Some(deadline), Some(current)) = (standing.deadline, standing.current.as_mut()) {
            current.remaining = prost_types::Duration::try_from(deadline.saturating_sub(clock::monotonic())).ok();
        }
        standing
    }

    /// Wakes whoever waits for anything to change.
    pub fn changes(&self) -> watch::Receiver<Arc<Standing>> {
        self.standing.clone()
    }

    /// Changes from now on. A reader slower than 256 events gets `Lagged`.
    pub fn events(&self) -> broadcast::Receiver<proto::Event> {
        self.events.subscribe()
    }

    /// The report of one hold: running, finished or refused.
    pub fn report(&self, id: &str) -> Option<proto::Report> {
        self.standing().current.filter(|r| r.id == id).or_else(|| lock(&self.history).find(id).cloned())
    }

    /// Finished and refused holds, newest first.
    pub fn reports(&self) -> Vec<proto::Report> {
        lock(&self.history).newest_first().cloned().collect()
    }
}

/// The driver's side.
pub struct Publisher {
    standing: watch::Sender<Arc<Standing>>,
    events: broadcast::Sender<proto::Event>,
    history: Arc<Mutex<History>>,
    /// when the hold in progress was admitted
    admitted: Mutex<Instant>,
}

impl Publisher {
    pub fn new(history: History) -> (Publisher, Published) {
        let last = history.last_ended().cloned();
        let standing = Standing { phase: Phase::Idle, last, ..Standing::default() };
        let (standing, reader) = watch::channel(Arc::new(standing));
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        let history = Arc::new(Mutex::new(history));
        let published = Published { standing: reader, events: events.clone(), history: Arc::clone(&history) };
        (Publisher { standing, events, history, admitted: Mutex::new(Instant::now()) }, published)
    }

    pub fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }

    /// A new hold's report takes the stage.
    pub fn begin(&self, report: proto::Report) {
        *lock(&self.admitted) = Instant::now();
        self.change(|s| {
            s.phase = Phase::Preparing;
            s.current = Some(report);
        });
        self.tell(What::Phase(Phase::Preparing.into()));
    }

    pub fn phase(&self, phase: Phase) {
        self.edit(|r| r.set_phase(phase));
        self.change(|s| s.phase = phase);
        self.tell(What::Phase(phase.into()));
    }

    pub fn deadline(&self, at: Option<std::time::Duration>) {
        self.change(|s| s.deadline = at);
    }

    /// Changes the running report without an event of its own.
    pub fn edit(&self, change: impl FnOnce(&mut proto::Report)) {
        self.change(|s| {
            if let Some(report) = s.current.as_mut() {
                change(report);
            }
        });
    }

    /// Changes one step of the running report and tells it; a step not there yet is added.
    pub fn step(&self, name: &str, change: impl FnOnce(&mut proto::Step)) {
        let mut told = None;
        self.edit(|report| {
            let index = report.steps.iter().position(|s| s.name == name).unwrap_or_else(|| {
                report.steps.push(proto::Step { name: name.into(), ..Default::default() });
                report.steps.len() - 1
            });
            change(&mut report.steps[index]);
            told = Some(report.steps[index].clone());
        });
        if let Some(step) = told {
            self.tell(What::Step(step));
        }
    }

    /// These steps begin now; how they go is told when they have ended. A step of several phases began with the first.
    pub fn steps_begin<'a>(&self, names: impl IntoIterator<Item = &'a String>) {
        let now = span(lock(&self.admitted).elapsed());
        self.edit_steps(names, |step| step.began = step.began.or(now));
    }

    /// Undoing these steps begins now.
    pub fn undos_begin<'a>(&self, names: impl IntoIterator<Item = &'a String>) {
        let now = span(lock(&self.admitted).elapsed());
        self.edit_steps(names, |step| step.undo_began = now);
    }

    fn edit_steps<'a>(&self, names: impl IntoIterator<Item = &'a String>, change: impl Fn(&mut proto::Step)) {
        self.edit(|report| {
            for name in names {
                if let Some(step) = report.steps.iter_mut().find(|step| step.name == *name) {
                    change(step);
                }
            }
        });
    }

    pub fn problem(&self, problem: proto::Problem) {
        self.edit(|r| {
            if !r.problems.contains(&problem) {
                r.problems.push(problem.clone());
            }
        });
        self.tell(What::Problem(problem));
    }

    /// The running report as it is now.
    pub fn current(&self) -> Option<proto::Report> {
        self.standing.borrow().current.clone()
    }

    pub fn tell_held(&self) {
        if let Some(report) = self.current() {
            self.tell(What::Held(report));
        }
    }

    /// The hold is over (or was refused): its report leaves the stage for the history.
    pub fn finish(&self, report: proto::Report) {
        self.history().push(report.clone());
        let last = self.history().last_ended().cloned();
        self.tell(What::Released(report));
        self.change(|s| {
            s.phase = Phase::Idle;
            s.current = None;
            s.deadline = None;
            s.last = last;
        });
        self.tell(What::Phase(Phase::Idle.into()));
    }

    /// A snapshot's name that came after its hold was over. The first one stays.
    pub fn note_snapshot(&self, mut report: proto::Report, reference: &str) -> proto::Report {
        if report.snapshot_ref.is_empty() && !reference.is_empty() {
            report.snapshot_ref = reference.into();
            self.history().amend(&report);
            self.change(|s| {
                if let Some(last) = s.last.as_mut().filter(|last| last.id == report.id) {
                    last.clone_from(&report);
                }
            });
        }
        report
    }

    fn change(&self, change: impl FnOnce(&mut Standing)) {
        self.standing.send_modify(|s| change(Arc::make_mut(s)));
    }

    fn tell(&self, what: What) {
        let mut event = proto::Event { time: Some(now()), what: Some(what), ..Default::default() };
        self.change(|s| {
            s.sequence += 1;
            event.sequence = s.sequence;
            event.hold_id = s.current.as_ref().map(|r| r.id.clone()).unwrap_or_default();
        });
        // nobody watching is fine
        let _ = self.events.send(event);
    }
}

/// Wall-clock time, for people; nothing is decided by it.
pub fn now() -> prost_types::Timestamp {
    std::time::SystemTime::now().into()
}

/// A duration in the contract's shape; ours never exceed its range.
pub fn span(duration: std::time::Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // a reader that panicked cannot have left it half-changed: only the driver writes
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
