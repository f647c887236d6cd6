//! The one task that acts. It admits, works through the phases, and lets go; nobody else changes a phase.
//!
//! ```text
//!   idle ──admit──▶ Work::prepare ──▶ Work::quiesce ──▶ held ──▶ Work::release ──▶ idle
//!                        │                 │              │            ▲
//!                        └─────────────────┴──── End ─────┴────────────┘
//! ```
//!
//! While any phase runs, asks and the warden's events go on being heard; either may produce an [`End`], which drops
//! the phase's future. Whatever it had started is on the undo stack, so dropping it is safe.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use super::{
    Ask, Handle, Refusal, RefusalKind,
    admit::{self, Caps, FreezeAdmission, ThawAdmission},
    budget::Budget,
    desk::{Caller, Desk},
    end::End,
    history,
    report::{Publisher, now, span},
    reporters::Reporters,
    restored::{self, Noticed},
    survey::{Look, Surroundings},
    work::Work,
};
use crate::{
    config::Settings,
    failpoint, proto,
    proto::{Phase, ReleaseReason, Severity, Verdict},
    sys::clock,
    warden::{Event, client::Warden},
};

/// How long a warden that could not be replaced is left alone before the next try.
const WARDEN_RETRY: Duration = Duration::from_secs(5);
/// After so much idleness memory is given back, once.
const SETTLED: Duration = Duration::from_secs(1);
/// The driver's own deadline lies this far behind the warden's: it acts only if the warden did not.
const DEADLINE_SLACK: Duration = Duration::from_millis(500);

pub struct Driver {
    settings: Arc<Settings>,
    surroundings: Arc<Surroundings>,
    caps: Caps,
    /// shared with `check`
    budget: Arc<Mutex<Budget>>,
    /// the refusal for a spent budget has been logged since the last hold
    said_spent: bool,
    publisher: Publisher,
    reporters: Reporters,
    restored: Noticed,
    asks: mpsc::UnboundedReceiver<Ask>,
    warden: Option<Warden>,
    events: mpsc::UnboundedReceiver<Event>,
    /// `--config` of this daemon: what a warden needs to become a rescue
    config_file: Option<PathBuf>,
    serving: watch::Sender<bool>,
}

/// What is left of a hold when it is over and a shutdown was asked for meanwhile.
enum Next {
    Idle,
    Stop(Vec<oneshot::Sender<()>>),
}

impl Driver {
    /// The driver and the handle to ask it through. `serving` turns false while there is no warden.
    pub fn new(
        settings: Arc<Settings>,
        surroundings: Surroundings,
        (publisher, published): (Publisher, super::report::Published),
        (warden, events): (Warden, mpsc::UnboundedReceiver<Event>),
        config_file: Option<PathBuf>,
    ) -> (Driver, Handle, watch::Receiver<bool>) {
        let (asks, inbox) = mpsc::unbounded_channel();
        let (serving, is_serving) = watch::channel(true);
        let surroundings = Arc::new(surroundings);
        let mut budget = Budget::new(settings.hold.hourly, settings.hold.interval);
        budget.seed(publisher.history().newest_first(), SystemTime::now(), clock::boottime(), settings.hold.max);
        let budget = Arc::new(Mutex::new(budget));
        let last_hold = publisher.history().last_good().map(|report| report.id.clone()).unwrap_or_default();
        let restored = restored::start(Arc::clone(&settings), &surroundings, published.clone(), last_hold);
        let planner = {
            let restored = restored.clone();
            let (settings, surroundings) = (Arc::clone(&settings), Arc::clone(&surroundings));
            let (published, budget) = (published.clone(), Arc::clone(&budget));
            let planner = move |spec| -> super::PlanFuture {
                let (settings, surroundings) = (Arc::clone(&settings), Arc::clone(&surroundings));
                let spent = lock(&budget).refusal(clock::boottime());
                let look = match published.standing().phase {
                    Phase::Unspecified | Phase::Idle | Phase::Preparing | Phase::Prepared => Look::Everything,
                    Phase::Quiescing | Phase::Held | Phase::Releasing => Look::WhileHeld,
                };
                let restored = restored.clone();
                Box::pin(async move {
                    let mut answer = super::survey::check(&settings, &surroundings, spec, look, spent).await?;
                    if let Some(plan) = answer.plan.as_mut() {
                        plan.problems.extend(restored.problem());
                    }
                    Ok(answer)
                })
            };
            Arc::new(planner)
        };
        let reporters = Reporters::start(Arc::clone(&settings), published.clone(), &publisher.history());
        let caps = Caps { max: settings.hold.max, quiesce: settings.hold.quiesce, prepare: settings.hold.prepare };
        let driver = Driver {
            settings,
            surroundings,
            caps,
            budget,
            said_spent: false,
            publisher,
            reporters,
            restored: restored.clone(),
            asks: inbox,
            warden: Some(warden),
            events,
            config_file,
            serving,
        };
        (driver, Handle { asks, published, restored, planner }, is_serving)
    }

    /// Acts until a shutdown was asked for, and nothing is held.
    pub async fn run(mut self) {
        let mut shed = Some(Instant::now() + SETTLED);
        loop {
            let retry = Instant::now() + WARDEN_RETRY;
            let next = tokio::select! {
                ask = self.asks.recv() => match ask {
                    Some(ask) => {
                        let next = self.idle(ask).await;
                        shed = Some(Instant::now() + SETTLED);
                        next
                    }
                    None => return,
                },
                () = sleep_until(shed.unwrap_or(retry)), if shed.is_some() => {
                    crate::sys::memory::shed();
                    shed = None;
                    Next::Idle
                }
                event = self.events.recv(), if self.warden.is_some() => {
                    if matches!(event, None | Some(Event::WardenLost)) {
                        self.replace_warden().await;
                    }
                    Next::Idle
                }
                () = sleep_until(retry), if self.warden.is_none() => {
                    self.replace_warden().await;
                    Next::Idle
                }
            };
            if let Next::Stop(waiting) = next {
                for answer in waiting {
                    let _ = answer.send(());
                }
                return;
            }
        }
    }

    /// By exec, never by forking this threaded process.
    async fn replace_warden(&mut self) {
        self.warden = None;
        self.serving.send_replace(false);
        match Warden::spawn(&self.settings.paths.run, self.config_file.clone()).await {
            Ok((warden, events)) => {
                tracing::warn!(pid = warden.pid(), "the warden was lost and has been replaced");
                (self.warden, self.events) = (Some(warden), events);
                self.serving.send_replace(true);
            }
            Err(error) => tracing::error!(%error, "the warden was lost and could not be replaced; no hold begins"),
        }
    }

    async fn idle(&mut self, ask: Ask) -> Next {
        match ask {
            Ask::Freeze { id, spec, caller, ticket, reply } => {
                let admission = admit::freeze(None, &*self.publisher.history(), &id, &spec, &self.caps);
                let admission = self.within_budget(admission, &id, &caller);
                match (admission, self.warden.clone()) {
                    (FreezeAdmission::Begin, Some(warden)) => {
                        return self.hold(warden, id, spec, Caller { name: caller, ticket, reply }).await;
                    }
                    (FreezeAdmission::Begin, None) => {
                        let refusal = Refusal::new(
                            RefusalKind::Unavailable,
                            "NO_WARDEN",
                            "hold: the warden that would let go is gone, and its replacement has not started yet",
                        )
                        .hint("try again in a few seconds; `journalctl -u holdstill` says why")
                        .about(id);
                        let _ = reply.send(Err(refusal));
                    }
                    (FreezeAdmission::Refuse(refusal), _) => {
                        let _ = reply.send(Err(refusal));
                    }
                    (FreezeAdmission::Join, _) => unreachable!("nothing is in progress"),
                }
            }
            Ask::Thaw { id, snapshot_ref, reply } => {
                let answer = self.thaw_again(&id, &snapshot_ref);
                let _ = reply.send(answer);
            }
            Ask::Extend { id, max_hold, reply } => {
                let _ = reply.send(admit::extend(None, &id, max_hold, &self.caps));
            }
            Ask::Gone { .. } | Ask::Delivered { .. } => {}
            Ask::Shutdown { reply } => return Next::Stop(vec![reply]),
        }
        Next::Idle
    }

    /// Whoever asks: a hold begins only while writers have not waited too long within the hour. Not remembered like a hold
    /// that was refused while preparing: a caller that has lost its mind would push every real hold out of the history.
    fn within_budget(&mut self, admission: FreezeAdmission, id: &str, caller: &str) -> FreezeAdmission {
        if admission != FreezeAdmission::Begin {
            return admission;
        }
        let Some(refusal) = lock(&self.budget).refusal(clock::boottime()) else {
            self.said_spent = false;
            return admission;
        };
        // once: it may ask a thousand times
        if !std::mem::replace(&mut self.said_spent, true) {
            tracing::warn!(hold = %id, %caller, "{}; until then every hold is refused", refusal.message);
        }
        FreezeAdmission::Refuse(refusal.about(id))
    }

    fn thaw_again(&self, id: &str, snapshot_ref: &str) -> Result<proto::ThawResponse, Refusal> {
        let admission = admit::thaw(None, &*self.publisher.history(), id);
        match admission {
            ThawAdmission::Again(before) => {
                let report = self.publisher.note_snapshot((*before).clone(), snapshot_ref);
                if report != *before {
                    self.keep(report.clone());
                }
                Ok(proto::ThawResponse { report: Some(report), already_released: true })
            }
            ThawAdmission::Never => {
                let mut report = proto::Report::default();
                report.set_phase(Phase::Idle);
                report.set_verdict(Verdict::NeverHeld);
                Ok(proto::ThawResponse { report: Some(report), already_released: true })
            }
            ThawAdmission::Refuse(refusal) => Err(refusal),
            ThawAdmission::Release => unreachable!("nothing is in progress"),
        }
    }

    async fn hold(&mut self, warden: Warden, id: String, spec: proto::HoldSpec, caller: Caller) -> Next {
        let admitted = Instant::now();
        tracing::info!(hold = %id, caller = %caller.name, "hold admitted");
        self.publisher.begin(self.first_report(&id, &spec, &caller.name));
        if let Some(report) = self.publisher.current()
            && let Err(error) = self.publisher.history().note(&report)
        {
            tracing::warn!(%error, "could not note the hold on tmpfs");
        }
        self.reporters.note(&id);
        failpoint::reached("admitted").await;
        let mut desk = Desk::new(id.clone(), spec.clone(), caller, self.caps.clone());
        let not_before = Instant::now() + lock(&self.budget).pause(clock::boottime());
        let mut work = Work::new(
            Arc::clone(&self.settings),
            Arc::clone(&self.surroundings),
            &self.publisher,
            warden,
            id.clone(),
            spec,
            not_before,
        );
        let settled = self.restored.settled();
        let mut end =
            attempt(settled, &mut desk, &mut work, &mut self.asks, &mut self.events, &self.publisher, admitted).await;
        let refusal = end.refusal.as_ref().map(|refusal| refusal.message.as_str());
        tracing::info!(hold = %id, reason = end.reason.as_str_name(), refusal, "hold ends");

        self.publisher.phase(Phase::Releasing);
        failpoint::reached("releasing").await;
        let begun = Instant::now();
        let releasing = work.release(&mut end);
        let lost = desk.attend(releasing, &mut self.asks, &mut self.events, &self.publisher).await;
        self.publisher.edit(|report| report.release_took = span(begun.elapsed()));
        failpoint::reached("settled").await;
        if let Some(wait) = work.waited() {
            lock(&self.budget).spend(wait);
        }

        let report = conclude(&self.publisher, &desk, &end);
        tracing::info!(
            hold = %id,
            verdict = report.verdict().as_str_name(),
            consistency = report.consistency().as_str_name(),
            "hold over"
        );
        self.publisher.finish(report.clone());
        self.keep(report.clone());
        for amended in desk.take_amended() {
            self.keep(amended);
        }
        let stopping = desk.answer_all(&report, &end);
        if stopping.is_empty() {
            self.reporters.tell(report);
        }
        if lost {
            self.replace_warden().await;
        }
        if stopping.is_empty() { Next::Idle } else { Next::Stop(stopping) }
    }

    /// Nothing is frozen any more, but the state directory may still be slow: never waited for.
    fn keep(&self, report: proto::Report) {
        let state = self.settings.paths.state.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = history::keep(&state, &report) {
                tracing::warn!(%error, hold = %report.id, dir = %state.display(), "could not keep the report");
            }
        });
    }

    fn first_report(&self, id: &str, spec: &proto::HoldSpec, caller: &str) -> proto::Report {
        let mut report = proto::Report {
            id: id.into(),
            label: spec.label.clone(),
            admitted_time: Some(now()),
            rehearsal: spec.rehearsal,
            caller: caller.into(),
            machine: Some(self.surroundings.machine(&[])),
            previous_id: self.publisher.history().last_good().map(|r| r.id.clone()).unwrap_or_default(),
            ..Default::default()
        };
        report.set_phase(Phase::Preparing);
        report.set_required(super::survey::required(&self.settings, spec).level);
        report.set_freeze_by(super::survey::freeze_by(spec));
        report
    }
}

/// Preparing, quiescing, held: until something ends it.
async fn attempt(
    settled: impl Future<Output = ()>,
    desk: &mut Desk,
    work: &mut Work<'_>,
    asks: &mut mpsc::UnboundedReceiver<Ask>,
    events: &mut mpsc::UnboundedReceiver<Event>,
    publisher: &Publisher,
    admitted: Instant,
) -> End {
    let limit = work.prepare_limit();
    let late = || End::prepare_timeout(limit);
    let prepare = async {
        settled.await; // receipts of earlier boots are dealt with before there are new ones
        work.prepare(admitted + limit).await
    };
    let prepared = desk.during(prepare, admitted + limit, late, asks, events, publisher).await;
    publisher.edit(|r| r.prepare_took = span(admitted.elapsed()));
    if let Err(end) = prepared {
        return end;
    }
    failpoint::reached("prepared").await;

    publisher.phase(Phase::Quiescing);
    let quiescing = Instant::now();
    let limit = work.quiesce_limit();
    let late = || End::quiesce_timeout(limit);
    let quiesced = desk.during(work.quiesce(quiescing + limit), quiescing + limit, late, asks, events, publisher).await;
    publisher.edit(|r| r.quiesce_took = span(quiescing.elapsed()));
    if let Err(end) = quiesced {
        return end;
    }

    desk.held(publisher, work.max_hold());
    failpoint::reached("held").await;
    desk.until_end(asks, events, publisher, work, DEADLINE_SLACK).await
}

fn lock(budget: &Mutex<Budget>) -> MutexGuard<'_, Budget> {
    // whoever panicked only read: the driver alone writes
    budget.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The verdict, from what was proven and why it ended.
fn conclude(publisher: &Publisher, desk: &Desk, end: &End) -> proto::Report {
    let mut report = publisher.current().unwrap_or_default();
    report.set_phase(Phase::Idle);
    report.released_time = Some(now());
    report.remaining = None;
    if let Some(reference) = desk.snapshot_ref() {
        report.snapshot_ref = reference.into();
    }
    report.held_took = desk.held_for().and_then(span);
    if let Some(refusal) = &end.refusal {
        let problem = proto::Problem {
            severity: Severity::Refusal.into(),
            code: refusal.reason.into(),
            subject: String::new(),
            message: refusal.message.clone(),
            hint: refusal.hint.clone(),
        };
        if !report.problems.contains(&problem) {
            report.problems.push(problem);
        }
    }
    if !admit::was_held(&report) {
        report.set_verdict(Verdict::NeverHeld);
        report.set_consistency(proto::Consistency::None);
        // a refusal before anything waited is no release
        report.set_reason(if end.is_refusal() { ReleaseReason::Unspecified } else { end.reason });
        return report;
    }
    report.set_reason(end.reason);
    report.breaches.extend(end.breaches.iter().cloned());
    report.set_verdict(end.verdict());
    report
}
