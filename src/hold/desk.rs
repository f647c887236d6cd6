//! Who waits for what during one hold: callers of Freeze and Hold, callers of Thaw, a shutdown. While a phase's work
//! runs, the desk hears asks and the warden's events, answers what it can, and says when the hold must end.

use std::{collections::BTreeMap, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    Ask, Refusal,
    admit::{self, Caps, Current, FreezeAdmission, ThawAdmission},
    end::End,
    report::{Publisher, now, span},
    work::Work,
};
use crate::{
    proto::{self, Phase},
    sys::clock,
    warden::Event,
};

/// Somebody who asked for this hold.
pub struct Caller {
    pub name: String,
    pub ticket: u64,
    pub reply: oneshot::Sender<Result<proto::Report, Refusal>>,
}

type FreezeReply = oneshot::Sender<Result<proto::Report, Refusal>>;
type ThawReply = oneshot::Sender<Result<proto::ThawResponse, Refusal>>;

pub struct Desk {
    id: String,
    spec: proto::HoldSpec,
    caps: Caps,
    /// callers that are still there; `None` once answered (a lease, or an answer on its way)
    callers: BTreeMap<u64, Option<FreezeReply>>,
    /// some caller has its answer for good: from then on nobody has to stay connected
    delivered: bool,
    thaws: Vec<ThawReply>,
    snapshot_ref: Option<String>,
    /// earlier holds that something was learnt about meanwhile: to be kept on the disk when it can be written
    amended: Vec<proto::Report>,
    shutdowns: Vec<oneshot::Sender<()>>,
    held_since: Option<Instant>,
    deadline: Option<Instant>,
    released_after: Option<Duration>,
}

impl Desk {
    pub fn new(id: String, spec: proto::HoldSpec, caller: Caller, caps: Caps) -> Desk {
        Desk {
            id,
            spec,
            caps,
            callers: BTreeMap::from([(caller.ticket, Some(caller.reply))]),
            delivered: false,
            thaws: Vec::new(),
            snapshot_ref: None,
            amended: Vec::new(),
            shutdowns: Vec::new(),
            held_since: None,
            deadline: None,
            released_after: None,
        }
    }

    pub fn snapshot_ref(&self) -> Option<&str> {
        self.snapshot_ref.as_deref()
    }

    /// Earlier holds whose reports have changed meanwhile.
    pub fn take_amended(&mut self) -> Vec<proto::Report> {
        std::mem::take(&mut self.amended)
    }

    /// How long all was held; `None` if it never was.
    pub fn held_for(&self) -> Option<Duration> {
        self.released_after.or_else(|| self.held_since.map(|since| since.elapsed()))
    }

    /// Does `work`, hearing everybody meanwhile; at `until` it is late.
    pub async fn during<T>(
        &mut self,
        work: impl Future<Output = Result<T, End>>,
        until: Instant,
        late: impl FnOnce() -> End,
        asks: &mut mpsc::UnboundedReceiver<Ask>,
        events: &mut mpsc::UnboundedReceiver<Event>,
        publisher: &Publisher,
    ) -> Result<T, End> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                event = events.recv() => {
                    if let Some(end) = on_event(event) {
                        return Err(end);
                    }
                }
                ask = asks.recv() => {
                    if let Some(end) = self.hear(ask, publisher) {
                        return Err(end);
                    }
                }
                done = &mut work => return done,
                () = sleep_until(until) => return Err(late()),
            }
        }
    }

    /// All is held: say so, and answer whoever waits.
    pub fn held(&mut self, publisher: &Publisher, max_hold: Duration) {
        let since = Instant::now();
        self.held_since = Some(since);
        self.deadline = Some(since + max_hold);
        publisher.edit(|r| {
            r.held_time = Some(now());
            r.remaining = span(max_hold);
        });
        publisher.deadline(Some(clock::monotonic() + max_hold));
        publisher.phase(Phase::Held);
        if let Some(report) = publisher.current() {
            for reply in self.callers.values_mut().filter_map(Option::take) {
                // a caller that is gone says so through its lease
                let _ = reply.send(Ok(report.clone()));
            }
            if let Err(error) = publisher.history().note(&report) {
                tracing::warn!(%error, "could not note on tmpfs that all is held");
            }
        }
        publisher.tell_held();
        tracing::info!(hold = %self.id, "held");
    }

    /// Held: until somebody asks, leaves, or something breaks.
    pub async fn until_end(
        &mut self,
        asks: &mut mpsc::UnboundedReceiver<Ask>,
        events: &mut mpsc::UnboundedReceiver<Event>,
        publisher: &Publisher,
        work: &mut Work<'_>,
        slack: Duration,
    ) -> End {
        loop {
            let deadline = self.deadline.unwrap_or_else(Instant::now);
            let heard = tokio::select! {
                biased;
                event = events.recv() => on_event(event),
                ask = asks.recv() => match ask {
                    Some(Ask::Extend { id, max_hold, reply }) => self.extend(&id, max_hold, reply, publisher, work).await,
                    ask => self.hear(ask, publisher),
                },
                () = sleep_until(deadline + slack) => Some(End::deadline()),
            };
            if let Some(end) = heard {
                self.released_after = self.held_for();
                return end;
            }
        }
    }

    async fn extend(
        &mut self,
        id: &str,
        max_hold: Duration,
        reply: oneshot::Sender<Result<Duration, Refusal>>,
        publisher: &Publisher,
        work: &mut Work<'_>,
    ) -> Option<End> {
        let current = self.current(publisher);
        let left = match admit::extend(Some(&current), id, max_hold, &self.caps) {
            Ok(left) => left,
            Err(refusal) => {
                let _ = reply.send(Err(refusal));
                return None;
            }
        };
        if work.arm(left).await.is_err() {
            return Some(End::warden_lost());
        }
        self.deadline = Some(Instant::now() + left);
        publisher.deadline(Some(clock::monotonic() + left));
        let _ = reply.send(Ok(left));
        None
    }

    /// Does the releasing `work` to its end, whatever is asked meanwhile. Says whether the warden was lost on the way.
    pub async fn attend(
        &mut self,
        work: impl Future<Output = ()>,
        asks: &mut mpsc::UnboundedReceiver<Ask>,
        events: &mut mpsc::UnboundedReceiver<Event>,
        publisher: &Publisher,
    ) -> bool {
        tokio::pin!(work);
        let mut lost = false;
        loop {
            tokio::select! {
                biased;
                () = &mut work => break,
                event = events.recv(), if !lost => lost = matches!(event, None | Some(Event::WardenLost)),
                // already letting go: whatever this would have ended is ending
                ask = asks.recv() => drop(self.hear(ask, publisher)),
            }
        }
        while let Ok(event) = events.try_recv() {
            lost |= event == Event::WardenLost;
        }
        lost || events.is_closed()
    }

    fn current<'a>(&'a self, publisher: &Publisher) -> Current<'a> {
        Current {
            id: &self.id,
            spec: &self.spec,
            phase: publisher.current().map_or(Phase::Idle, |r| r.phase()),
            held_for: self.held_since.map_or(Duration::ZERO, |since| since.elapsed()),
        }
    }

    /// One ask; `Some` if it ends the hold.
    fn hear(&mut self, ask: Option<Ask>, publisher: &Publisher) -> Option<End> {
        let Some(ask) = ask else { return Some(End::shutdown()) };
        match ask {
            Ask::Freeze { id, spec, caller: _, ticket, reply } => {
                let admission =
                    admit::freeze(Some(&self.current(publisher)), &*publisher.history(), &id, &spec, &self.caps);
                match admission {
                    FreezeAdmission::Join => self.join(ticket, reply, publisher),
                    FreezeAdmission::Refuse(refusal) => {
                        let _ = reply.send(Err(refusal));
                    }
                    FreezeAdmission::Begin => unreachable!("one is in progress"),
                }
                None
            }
            Ask::Thaw { id, snapshot_ref, reply } => {
                let admission = admit::thaw(Some(&self.current(publisher)), &*publisher.history(), &id);
                match admission {
                    ThawAdmission::Release => {
                        self.thaws.push(reply);
                        if !snapshot_ref.is_empty() {
                            self.snapshot_ref = Some(snapshot_ref);
                        }
                        return Some(End::asked());
                    }
                    ThawAdmission::Again(before) => {
                        let report = publisher.note_snapshot((*before).clone(), &snapshot_ref);
                        if report != *before {
                            self.amended.push(report.clone());
                        }
                        let _ = reply.send(Ok(proto::ThawResponse { report: Some(report), already_released: true }));
                    }
                    ThawAdmission::Refuse(refusal) => {
                        let _ = reply.send(Err(refusal));
                    }
                    ThawAdmission::Never => unreachable!("one is in progress"),
                }
                None
            }
            Ask::Extend { id, max_hold, reply } => {
                let refused = admit::extend(Some(&self.current(publisher)), &id, max_hold, &self.caps);
                let _ = reply.send(refused);
                None
            }
            Ask::Delivered { ticket } => {
                self.delivered |= self.callers.remove(&ticket).is_some();
                None
            }
            Ask::Gone { ticket } => {
                let was_ours = self.callers.remove(&ticket).is_some();
                (was_ours && self.callers.is_empty() && !self.delivered).then(End::caller_gone)
            }
            Ask::Shutdown { reply } => {
                self.shutdowns.push(reply);
                Some(End::shutdown())
            }
        }
    }

    fn join(&mut self, ticket: u64, reply: FreezeReply, publisher: &Publisher) {
        match (self.held_since, publisher.current()) {
            (Some(_), Some(report)) => {
                let _ = reply.send(Ok(report));
                self.callers.insert(ticket, None);
            }
            _ => {
                self.callers.insert(ticket, Some(reply));
            }
        }
    }

    /// The hold is over: answer everybody. Returns who waits for the daemon to stop.
    pub fn answer_all(self, report: &proto::Report, end: &End) -> Vec<oneshot::Sender<()>> {
        for reply in self.callers.into_values().flatten() {
            let _ = reply.send(Err(end.as_refusal().about(&report.id)));
        }
        for reply in self.thaws {
            let answer = proto::ThawResponse { report: Some(report.clone()), already_released: false };
            let _ = reply.send(Ok(answer));
        }
        self.shutdowns
    }
}

fn on_event(event: Option<Event>) -> Option<End> {
    match event {
        Some(Event::ForeignThaw { index }) => Some(End::foreign_thaw(index)),
        Some(Event::GuardianLost { index }) => Some(End::guardian_lost(index)),
        Some(Event::Deadline) => Some(End::deadline()),
        Some(Event::TimeJumped) => Some(End::time_jumped()),
        Some(Event::WardenLost) | None => Some(End::warden_lost()),
    }
}
