//! Why a hold ends: the reason, what whoever still waits for it is told, and what breaks its verdict.

use std::time::Duration;

use super::{Refusal, RefusalKind, plan::problem};
use crate::{
    proto::{self, ReleaseReason, Severity, Verdict},
    warden::Lost,
};

/// Why a hold ends.
#[derive(Debug, Clone)]
pub struct End {
    pub reason: ReleaseReason,
    pub refusal: Option<Refusal>,
    pub breaches: Vec<proto::Problem>,
    /// the target this is about, if one
    pub(super) index: Option<usize>,
}

impl End {
    fn because(reason: ReleaseReason) -> End {
        End { reason, refusal: None, breaches: Vec::new(), index: None }
    }

    pub fn asked() -> End {
        End::because(ReleaseReason::Asked)
    }
    pub fn caller_gone() -> End {
        End::because(ReleaseReason::CallerGone).breach("CALLER_GONE", "the caller was gone, so nobody asked to let go")
    }
    pub fn shutdown() -> End {
        End::because(ReleaseReason::Shutdown).breach("SHUTDOWN", "the daemon was told to stop")
    }
    pub fn deadline() -> End {
        End::because(ReleaseReason::Deadline)
            .breach("DEADLINE", "nobody asked to let go before the deadline; what was captured after it is not held")
    }
    pub fn time_jumped() -> End {
        End::because(ReleaseReason::TimeJumped).breach("TIME_JUMPED", "the guest was suspended while held")
    }
    pub fn warden_lost() -> End {
        End::because(ReleaseReason::WardenLost).breach("WARDEN_LOST", "the warden was killed or stopped answering")
    }
    /// The warden is gone because it let go of everything by itself: it was we who had stood still.
    pub fn blame_ourselves(&mut self) {
        if self.reason == ReleaseReason::WardenLost {
            let refusal = self.refusal.take();
            let message = "the daemon stood still for seconds, and everything was let go without it";
            *self = End { refusal, ..End::because(ReleaseReason::DaemonLost).breach("DAEMON_LOST", message) };
        }
    }
    pub fn guardian_lost(index: usize) -> End {
        End { index: Some(index), ..End::because(ReleaseReason::StepFailed) }
            .breach("GUARDIAN_LOST", "a process that held a file system was killed or stopped answering")
    }
    pub fn foreign_thaw(index: usize) -> End {
        // the breach is added when letting go, with the file system's name
        End { index: Some(index), ..End::because(ReleaseReason::StepFailed) }
    }
    pub fn prepare_timeout(limit: Duration) -> End {
        let refusal = Refusal::new(
            RefusalKind::DeadlineExceeded,
            "PREPARE_TIMEOUT",
            format!("prepare within {}; nothing was made to wait", humantime::format_duration(limit)),
        )
        .hint("`holdstill status` named the step it was at; raise `prepare` in [hold] or --prepare");
        End { refusal: Some(refusal), ..End::because(ReleaseReason::Unspecified) }
    }
    pub fn quiesce_timeout(limit: Duration) -> End {
        End::failed(
            format!("hold everything within {}; all is let go", humantime::format_duration(limit)),
            "raise `quiesce` in [hold] or --quiesce, or make the slow step faster",
        )
    }
    /// Refused before anyone waited.
    pub fn refused(refusal: Refusal) -> End {
        End { refusal: Some(refusal), ..End::because(ReleaseReason::Unspecified) }
    }
    /// A step failed; whatever was started is undone.
    pub(super) fn failed(message: impl Into<String>, hint: impl Into<String>) -> End {
        let refusal = Refusal::new(RefusalKind::Aborted, "STEP_FAILED", message).hint(hint);
        End { refusal: Some(refusal), ..End::because(ReleaseReason::StepFailed) }
    }

    /// Somebody else thawed this one while others were still being frozen: that is why, and whoever asked is told.
    pub(super) fn thawed_before_held(&mut self, name: &str, hint: &str) {
        if self.reason == ReleaseReason::StepFailed && self.refusal.is_none() {
            let message = format!("hold {name}: somebody else thawed it before all was held");
            self.refusal = End::failed(message, hint).refusal;
        }
    }

    /// Of a hold that was held: unbroken only if somebody asked to let go and nothing speaks against it.
    pub fn verdict(&self) -> Verdict {
        let asked = match self.reason {
            ReleaseReason::Asked => true,
            ReleaseReason::Unspecified
            | ReleaseReason::CallerGone
            | ReleaseReason::Deadline
            | ReleaseReason::StepFailed
            | ReleaseReason::Shutdown
            | ReleaseReason::DaemonLost
            | ReleaseReason::WardenLost
            | ReleaseReason::TimeJumped => false,
        };
        if asked && self.breaches.is_empty() { Verdict::Unbroken } else { Verdict::Broken }
    }

    /// Nobody had been made to wait.
    pub fn is_refusal(&self) -> bool {
        self.reason == ReleaseReason::Unspecified
    }

    fn breach(mut self, code: &str, message: &str) -> End {
        self.breaches.push(problem(Severity::Refusal, code, "", message, "take a new snapshot"));
        self
    }
}

impl From<Lost> for End {
    fn from(_: Lost) -> End {
        End::warden_lost()
    }
}

impl End {
    /// What whoever still waits for a Freeze is told.
    pub fn as_refusal(&self) -> Refusal {
        if let Some(refusal) = &self.refusal {
            return refusal.clone();
        }
        let (kind, reason, message) = match self.reason {
            ReleaseReason::Asked => {
                (RefusalKind::Aborted, "THAWED_MEANWHILE", "hold: a thaw was asked for before all was held")
            }
            ReleaseReason::CallerGone => {
                (RefusalKind::Cancelled, "CALLER_GONE", "hold: every caller was gone before all was held")
            }
            ReleaseReason::Shutdown => {
                (RefusalKind::Aborted, "SHUTDOWN", "hold: the daemon was told to stop before all was held")
            }
            ReleaseReason::TimeJumped => {
                (RefusalKind::Aborted, "TIME_JUMPED", "hold: the guest was suspended before all was held")
            }
            ReleaseReason::WardenLost => {
                (RefusalKind::Aborted, "WARDEN_LOST", "hold: the warden was lost before all was held")
            }
            ReleaseReason::DaemonLost => {
                (RefusalKind::Aborted, "DAEMON_LOST", "hold: the daemon was lost before all was held")
            }
            ReleaseReason::Deadline => {
                (RefusalKind::Aborted, "STEP_FAILED", "hold: the deadline passed before all was held")
            }
            ReleaseReason::StepFailed | ReleaseReason::Unspecified => {
                (RefusalKind::Aborted, "STEP_FAILED", "hold: a step failed before all was held")
            }
        };
        Refusal::new(kind, reason, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asked_is_told_which_file_system_somebody_else_thawed_before_all_was_held() {
        let mut end = End::foreign_thaw(0);
        end.thawed_before_held("fs:/srv", "look");
        let told = end.as_refusal();
        assert_eq!(told.message, "hold fs:/srv: somebody else thawed it before all was held");
        assert_eq!((told.reason, told.hint.as_str()), ("STEP_FAILED", "look"));

        let mut asked = End::asked();
        asked.thawed_before_held("fs:/srv", "look");
        assert_eq!(asked.as_refusal().reason, "THAWED_MEANWHILE", "it would have been thawed anyway");
    }

    #[test]
    fn a_daemon_that_stood_still_does_not_blame_its_warden() {
        let mut end = End::warden_lost();
        end.blame_ourselves();
        assert_eq!((end.reason, end.breaches[0].code.as_str()), (ReleaseReason::DaemonLost, "DAEMON_LOST"));
        let mut asked = End::asked();
        asked.blame_ourselves();
        assert_eq!(asked.verdict(), Verdict::Unbroken, "that is another question");
    }
}
