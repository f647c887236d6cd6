//! One hold at a time: its phases, who may ask for what, and the handle everyone asks through.
//!
//! ```text
//!          admit          prepared            held               asked / deadline / failure
//!   idle ────────▶ preparing ────▶ quiescing ────▶ held ─────────────▶ releasing ────▶ idle
//! ```
//!
//! [`driver`] is the one task that changes the phase; [`report`] publishes it; everyone else asks and watches.

pub mod admit;
mod aside;
pub mod budget;
pub mod callers;
pub mod contents;
pub mod desk;
pub mod driver;
pub mod end;
pub mod history;
pub mod plan;
pub mod receipt;
pub mod record;
pub mod report;
pub mod reporters;
pub mod restored;
pub mod survey;
pub mod undo;
pub mod verify;
pub mod work;

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot};

use crate::proto;

/// Why an ask was refused or a hold failed. `reason` is the `ErrorInfo.reason` of the contract.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub kind: RefusalKind,
    /// UPPER_SNAKE, one of the contract's reasons
    pub reason: &'static str,
    /// one sentence: what, where, why
    pub message: String,
    /// what to do next; empty if there is nothing to say
    pub hint: String,
    /// the hold this is about; empty if none
    pub hold_id: String,
    /// when it makes sense to ask again, if that is known
    pub retry_after: Option<Duration>,
}

/// The gRPC code a refusal travels as; `error` maps it to a status and an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    InvalidArgument,
    OutOfRange,
    AlreadyExists,
    FailedPrecondition,
    Aborted,
    DeadlineExceeded,
    NotFound,
    ResourceExhausted,
    PermissionDenied,
    Unavailable,
    Cancelled,
}

/// What one caller wants of the one task that acts.
#[derive(Debug)]
pub enum Ask {
    Freeze {
        id: String,
        spec: proto::HoldSpec,
        caller: String,
        ticket: u64,
        reply: oneshot::Sender<Result<proto::Report, Refusal>>,
    },
    Thaw {
        id: String,
        snapshot_ref: String,
        reply: oneshot::Sender<Result<proto::ThawResponse, Refusal>>,
    },
    Extend {
        id: String,
        max_hold: Duration,
        reply: oneshot::Sender<Result<Duration, Refusal>>,
    },
    /// this caller is gone before its answer was delivered (or its lease ended)
    Gone {
        ticket: u64,
    },
    /// this caller has its answer; its connection means nothing from now on
    Delivered {
        ticket: u64,
    },
    /// the daemon is being stopped: let go, answer `reply` when nothing is held
    Shutdown {
        reply: oneshot::Sender<()>,
    },
}

/// How the doors ask. Cheap to clone; holds no state of any hold.
#[derive(Clone)]
pub struct Handle {
    pub(crate) asks: mpsc::UnboundedSender<Ask>,
    pub(crate) published: report::Published,
    pub(crate) restored: restored::Noticed,
    pub(crate) planner: Arc<dyn Fn(proto::HoldSpec) -> PlanFuture + Send + Sync>,
}

type PlanFuture = std::pin::Pin<Box<dyn Future<Output = Result<proto::CheckResponse, Refusal>> + Send>>;

/// A caller's claim on a hold it asked for. Dropped before [`Lease::delivered`], the caller is gone, and if no other
/// caller joined, the hold is let go.
#[derive(Debug)]
pub struct Lease {
    ticket: u64,
    asks: Option<mpsc::UnboundedSender<Ask>>,
}

impl Lease {
    /// The answer reached the transport: from now on a disconnect means nothing.
    pub fn delivered(mut self) {
        if let Some(asks) = self.asks.take() {
            let _ = asks.send(Ask::Delivered { ticket: self.ticket });
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(asks) = self.asks.take() {
            let _ = asks.send(Ask::Gone { ticket: self.ticket });
        }
    }
}

impl Handle {
    /// Holds the guest, or joins the same hold. Dropping the future before it ends means the caller is gone.
    ///
    /// # Errors
    /// Everything but "held at or above the required level" is a [`Refusal`].
    pub async fn freeze(
        &self,
        id: String,
        spec: proto::HoldSpec,
        caller: String,
    ) -> Result<(proto::Report, Lease), Refusal> {
        static TICKETS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let ticket = TICKETS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let lease = Lease { ticket, asks: Some(self.asks.clone()) };
        self.asks.send(Ask::Freeze { id, spec, caller, ticket, reply }).map_err(|_| Refusal::stopping())?;
        let report = answer.await.map_err(|_| Refusal::stopping())??;
        Ok((report, lease))
    }

    /// Ends the hold `id` (empty: the one in progress, else the last that ended). Idempotent.
    ///
    /// # Errors
    /// `NOT_FOUND` for an id nobody knows.
    pub async fn thaw(&self, id: String, snapshot_ref: String) -> Result<proto::ThawResponse, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Thaw { id, snapshot_ref, reply }).map_err(|_| Refusal::stopping())?;
        answer.await.map_err(|_| Refusal::stopping())?
    }

    /// Sets the total time since HELD; answers what remains.
    ///
    /// # Errors
    /// `OUT_OF_RANGE` above the cap, `NOT_FOUND` if this is not the hold in progress.
    pub async fn extend(&self, id: String, max_hold: Duration) -> Result<Duration, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Extend { id, max_hold, reply }).map_err(|_| Refusal::stopping())?;
        answer.await.map_err(|_| Refusal::stopping())?
    }

    /// What a freeze with this spec would do. Touches nothing.
    ///
    /// # Errors
    /// Only a malformed spec; everything a freeze would refuse for is in the answer.
    pub async fn check(&self, spec: proto::HoldSpec) -> Result<proto::CheckResponse, Refusal> {
        (self.planner)(spec).await
    }

    /// What was noticed when the daemon started, if this machine was started from a copy; in at most `most` bytes.
    pub fn restored(&self, most: usize) -> Option<proto::Restored> {
        self.restored.told().map(|told| restored::fitted(told, most))
    }

    /// Where things stand: phase, the running hold, reports, events. Never blocks.
    pub fn published(&self) -> &report::Published {
        &self.published
    }
}

impl Refusal {
    pub fn new(kind: RefusalKind, reason: &'static str, message: impl Into<String>) -> Self {
        let (message, hint, hold_id) = (message.into(), String::new(), String::new());
        Refusal { kind, reason, message, hint, hold_id, retry_after: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    #[must_use]
    pub fn about(mut self, hold_id: impl Into<String>) -> Self {
        self.hold_id = hold_id.into();
        self
    }

    #[must_use]
    pub fn after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    pub(crate) fn stopping() -> Self {
        Refusal::new(RefusalKind::Unavailable, "STOPPING", "the daemon is stopping")
            .hint("try again when it runs: `systemctl status holdstill`")
    }
}
