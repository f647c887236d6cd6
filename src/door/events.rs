//! The two streams of the contract, polled straight from what the driver publishes: no task, no queue of their own.
//!
//! Dropping [`Holding`] is how a caller goes: it keeps the freeze while it runs, and the lease after.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::SystemTime,
};

use tokio_stream::{
    Stream,
    wrappers::{BroadcastStream, WatchStream, errors::BroadcastStreamRecvError},
};
use tonic::Status;

use super::grpc::fitted;
use crate::{
    hold::{
        Handle, Lease, Refusal,
        report::{Published, Standing},
    },
    proto::{Event, HoldResponse, HoldSpec, Report, Verdict, WatchResponse, event::What},
};

/// Reports in events leave room for the fields around them.
const REPORT_MAX: usize = super::entrance::MESSAGE_MAX - 16 * 1024;

/// What changes, and whether anybody is left to change it.
struct Changes {
    events: BroadcastStream<Event>,
    standing: WatchStream<std::sync::Arc<Standing>>,
    published: Published,
    /// the newest sequence number passed on
    seen: u64,
}

enum Change {
    Event(Event),
    /// so many were missed
    Lagged(Event),
    /// the driver is gone; nothing more will come
    Over,
}

impl Changes {
    /// From now on. Subscribes first, so that nothing falls between the standing read later and the first event.
    fn of(published: &Published) -> Self {
        Changes {
            events: BroadcastStream::new(published.events()),
            standing: WatchStream::from_changes(published.changes()),
            published: published.clone(),
            seen: 0,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Change> {
        if let Poll::Ready(change) = self.poll_events(cx) {
            return Poll::Ready(change);
        }
        // `published` keeps a sender of events alive, so only the other channel can tell that the driver is gone.
        while let Poll::Ready(changed) = Pin::new(&mut self.standing).poll_next(cx) {
            if changed.is_none() {
                // what it said last may have come since we looked
                return Poll::Ready(match self.poll_events(cx) {
                    Poll::Ready(change) => change,
                    Poll::Pending => Change::Over,
                });
            }
        }
        Poll::Pending
    }

    fn poll_events(&mut self, cx: &mut Context<'_>) -> Poll<Change> {
        Pin::new(&mut self.events).poll_next(cx).map(|next| match next {
            Some(Ok(event)) => {
                self.seen = event.sequence;
                Change::Event(shortened(event))
            }
            Some(Err(BroadcastStreamRecvError::Lagged(missed))) => {
                self.seen += missed;
                Change::Lagged(said(self.seen, "", What::Lagged(missed)))
            }
            None => Change::Over,
        })
    }
}

/// `Watch`: where things stand, then every change.
pub(super) struct Watching {
    first: Option<Event>,
    /// changes up to this one are known to the caller
    known: u64,
    changes: Changes,
    over: bool,
}

impl Watching {
    /// An `after` this daemon has not reached is one of an earlier daemon's, and is ignored.
    pub(super) fn new(published: &Published, after: u64) -> Self {
        let mut changes = Changes::of(published);
        let standing = published.standing();
        changes.seen = standing.sequence;
        let report =
            standing.current.clone().unwrap_or_else(|| Report { phase: standing.phase.into(), ..Default::default() });
        let first = said(standing.sequence, &report.id.clone(), What::Snapshot(report));
        let known = if after <= standing.sequence { standing.sequence } else { 0 };
        Watching { first: Some(shortened(first)), known, changes, over: false }
    }
}

impl Stream for Watching {
    type Item = Result<WatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(WatchResponse { event: Some(first) })));
        }
        loop {
            match std::task::ready!(self.changes.poll_next(cx)) {
                Change::Event(event) if event.sequence <= self.known => {}
                Change::Event(event) | Change::Lagged(event) => {
                    return Poll::Ready(Some(Ok(WatchResponse { event: Some(event) })));
                }
                Change::Over => {
                    self.over = true;
                    return Poll::Ready(Some(Err(Status::from(Refusal::stopping()))));
                }
            }
        }
    }
}

type Freezing = Pin<Box<dyn Future<Output = Result<(Report, Lease), Refusal>> + Send>>;

/// `Hold`: a hold that lasts as long as its caller listens.
///
/// ```text
///   Asked ──held──▶ Leased ──released──▶ Over
///     └──refused──────────────────────────▲
/// ```
pub(super) struct Holding {
    id: String,
    state: State,
    /// where the hold stood when this caller joined it
    first: Option<Event>,
    /// read before it was due: `held` waits for the driver's answer, `released` for `held`
    early: Option<Event>,
    changes: Changes,
}

enum State {
    Asked(Freezing),
    /// dropped before the hold has ended, the caller is gone
    Leased(Lease),
    Over,
}

impl Holding {
    pub(super) fn new(handle: Handle, id: String, spec: HoldSpec, caller: String) -> Self {
        let mut changes = Changes::of(handle.published());
        let standing = handle.published().standing();
        changes.seen = standing.sequence;
        let joined = standing.current.clone().filter(|report| report.id == id);
        let first = joined.map(|report| shortened(said(standing.sequence, &id, What::Snapshot(report))));
        let asked = id.clone();
        let state = State::Asked(Box::pin(async move { handle.freeze(asked, spec, caller).await }));
        Holding { id, state, first, early: None, changes }
    }

    /// Progress until the driver answers. What it published before its answer comes before `held`.
    fn poll_asked(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<HoldResponse, Status>>> {
        if let Some(first) = self.first.take() {
            return told(first);
        }
        while self.early.is_none() {
            match self.changes.poll_next(cx) {
                Poll::Ready(Change::Event(event)) if event.hold_id == self.id => match &event.what {
                    Some(What::Held(_)) => self.early = Some(event),
                    // the end of an attempt that held nothing is what the driver answers, or an older one's
                    Some(What::Released(report)) if report.verdict() == Verdict::NeverHeld => {}
                    Some(What::Released(_)) => self.early = Some(event),
                    Some(What::Snapshot(_) | What::Phase(_) | What::Step(_) | What::Problem(_) | What::Lagged(_))
                    | None => return told(event),
                },
                Poll::Ready(Change::Event(_)) => {}
                Poll::Ready(Change::Lagged(event)) => return told(event),
                Poll::Ready(Change::Over) | Poll::Pending => break,
            }
        }
        let State::Asked(freezing) = &mut self.state else { return Poll::Ready(None) };
        match std::task::ready!(freezing.as_mut().poll(cx)) {
            Ok((report, lease)) => {
                self.state = State::Leased(lease);
                let held = said(self.changes.seen, &self.id, What::Held(report));
                let held = match self.early.take() {
                    Some(Event { sequence, time, what: Some(What::Held(_)), .. }) => Event { sequence, time, ..held },
                    released => {
                        self.early = released;
                        held
                    }
                };
                told(shortened(held))
            }
            Err(refusal) => {
                self.state = State::Over;
                Poll::Ready(Some(Err(Status::from(refusal))))
            }
        }
    }

    /// What happens to the hold until it has ended.
    fn poll_leased(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<HoldResponse, Status>>> {
        if let Some(released) = self.early.take() {
            return self.end(released);
        }
        loop {
            match std::task::ready!(self.changes.poll_next(cx)) {
                Change::Event(event) if event.hold_id == self.id => match &event.what {
                    Some(What::Held(_)) => {}
                    Some(What::Released(report)) if report.verdict() == Verdict::NeverHeld => {}
                    Some(What::Released(_)) => return self.end(event),
                    Some(What::Snapshot(_) | What::Phase(_) | What::Step(_) | What::Problem(_) | What::Lagged(_))
                    | None => return told(event),
                },
                Change::Event(_) => {}
                Change::Lagged(event) => {
                    // the end itself may have been among what was missed
                    let ended = self.changes.published.report(&self.id);
                    let ended = ended.filter(|report| report.verdict() != Verdict::Unspecified);
                    self.early = ended.map(|report| shortened(said(event.sequence, &self.id, What::Released(report))));
                    return told(event);
                }
                Change::Over => {
                    self.state = State::Over;
                    return Poll::Ready(Some(Err(Status::from(Refusal::stopping()))));
                }
            }
        }
    }

    /// The last message.
    fn end(&mut self, released: Event) -> Poll<Option<Result<HoldResponse, Status>>> {
        if let State::Leased(lease) = std::mem::replace(&mut self.state, State::Over) {
            lease.delivered();
        }
        told(released)
    }
}

impl Stream for Holding {
    type Item = Result<HoldResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.state {
            State::Asked(_) => self.poll_asked(cx),
            State::Leased(_) => self.poll_leased(cx),
            State::Over => Poll::Ready(None),
        }
    }
}

fn told(event: Event) -> Poll<Option<Result<HoldResponse, Status>>> {
    Poll::Ready(Some(Ok(HoldResponse { event: Some(event) })))
}

/// An event of our own.
fn said(sequence: u64, hold_id: &str, what: What) -> Event {
    Event { sequence, time: Some(SystemTime::now().into()), hold_id: hold_id.to_owned(), what: Some(what) }
}

/// The event, small enough for a message.
fn shortened(mut event: Event) -> Event {
    event.what = event.what.map(|what| match what {
        What::Snapshot(report) => What::Snapshot(fitted(report, REPORT_MAX)),
        What::Held(report) => What::Held(fitted(report, REPORT_MAX)),
        What::Released(report) => What::Released(fitted(report, REPORT_MAX)),
        same @ (What::Phase(_) | What::Step(_) | What::Problem(_) | What::Lagged(_)) => same,
    });
    event
}
