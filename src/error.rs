//! The one map from what went wrong to a gRPC status (the doors) and to an exit code (the command line).
//!
//! ```text
//!   hold::Refusal ──status()──▶ tonic::Status ──wire──▶ Failure::from(Status) ──exit──▶ Exit ──code()──▶ process
//! ```
//!
//! Nothing here has a catch-all arm: a new kind of refusal or a new gRPC code does not compile until it has its place.

use std::collections::HashMap;

use serde_json::json;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    config, daemon,
    hold::{Refusal, RefusalKind},
    rescue,
};

/// `ErrorInfo.domain` of every status of ours.
pub const DOMAIN: &str = "holdstill";
/// Longest message and longest hint in a status, in bytes; together with the rest they stay within the contract's 4 KiB.
pub const TEXT_LIMIT: usize = 1024;

/// When to ask again, where nothing better is known: a daemon that starts or stops needs about that long.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(1);

/// The reasons of the contract that more than one place needs by name.
pub mod reason {
    /// A malformed flag, id or request.
    pub const MALFORMED: &str = "MALFORMED";
    /// The configuration cannot be used.
    pub const BAD_CONFIGURATION: &str = "BAD_CONFIGURATION";
    /// Nobody answers on the socket.
    pub const DAEMON_UNREACHABLE: &str = "DAEMON_UNREACHABLE";
    /// This caller may not do this.
    pub const NOT_PERMITTED: &str = "NOT_PERMITTED";
    /// A file or kernel call of the command line itself failed.
    pub const LOCAL: &str = "LOCAL";
    /// The status carried no reason: it is not one of ours.
    pub const UNKNOWN: &str = "UNKNOWN";
}

/// How a verb ends. `run` has codes of its own, see [`RUN_BROKEN`] and the constants after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// done, or ready
    Done,
    /// something had started and failed; everything is let go
    Failed,
    /// malformed input: flag, id, duration above the cap, unknown configuration key
    Malformed,
    /// released, but the hold was broken
    Broken,
    /// refused before anything was touched
    Refused,
    /// the daemon is not reachable
    Unreachable,
    /// not permitted, not root
    NotPermitted,
}

impl Exit {
    /// The process's exit status.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Malformed => 2,
            Exit::Broken => 3,
            Exit::Refused => 4,
            Exit::Unreachable => 5,
            Exit::NotPermitted => 6,
        }
    }
}

/// `run`: the hold was broken while the command ran.
pub const RUN_BROKEN: u8 = 124;
/// `run`: something kept holdstill from holding (bad flags included).
pub const RUN_NOT_HELD: u8 = 125;
/// `run`: the command is not executable.
pub const RUN_NOT_EXECUTABLE: u8 = 126;
/// `run`: the command was not found.
pub const RUN_NOT_FOUND: u8 = 127;
/// `run`: added to the number of the signal that ended the command, as shells do.
pub const RUN_SIGNALED: u8 = 128;

/// The gRPC code a refusal travels as.
pub const fn grpc_code(kind: RefusalKind) -> Code {
    match kind {
        RefusalKind::InvalidArgument => Code::InvalidArgument,
        RefusalKind::OutOfRange => Code::OutOfRange,
        RefusalKind::AlreadyExists => Code::AlreadyExists,
        RefusalKind::FailedPrecondition => Code::FailedPrecondition,
        RefusalKind::Aborted => Code::Aborted,
        RefusalKind::DeadlineExceeded => Code::DeadlineExceeded,
        RefusalKind::NotFound => Code::NotFound,
        RefusalKind::ResourceExhausted => Code::ResourceExhausted,
        RefusalKind::PermissionDenied => Code::PermissionDenied,
        RefusalKind::Unavailable => Code::Unavailable,
        RefusalKind::Cancelled => Code::Cancelled,
    }
}

/// What a gRPC code means to somebody at a shell, and its name in `--json`.
const fn meaning(code: Code) -> (Exit, &'static str) {
    match code {
        Code::Ok => (Exit::Done, "ok"),
        Code::InvalidArgument => (Exit::Malformed, "invalid_argument"),
        Code::OutOfRange => (Exit::Malformed, "out_of_range"),
        Code::Aborted => (Exit::Failed, "aborted"),
        Code::DeadlineExceeded => (Exit::Failed, "deadline_exceeded"),
        Code::Cancelled => (Exit::Failed, "cancelled"),
        Code::AlreadyExists => (Exit::Refused, "already_exists"),
        Code::FailedPrecondition => (Exit::Refused, "failed_precondition"),
        Code::NotFound => (Exit::Refused, "not_found"),
        Code::ResourceExhausted => (Exit::Refused, "resource_exhausted"),
        Code::Unavailable => (Exit::Unreachable, "unavailable"),
        Code::PermissionDenied => (Exit::NotPermitted, "permission_denied"),
        Code::Unauthenticated => (Exit::NotPermitted, "unauthenticated"),
        // an rpc the daemon does not have: an older one; nothing was touched
        Code::Unimplemented => (Exit::Refused, "unimplemented"),
        Code::Unknown => (Exit::Failed, "unknown"),
        Code::Internal => (Exit::Failed, "internal"),
        Code::DataLoss => (Exit::Failed, "data_loss"),
    }
}

impl From<Refusal> for Status {
    /// The refusal as callers see it: `ErrorInfo` with domain, reason, hold id and hint, all bounded.
    fn from(refusal: Refusal) -> Status {
        let mut metadata = HashMap::new();
        if !refusal.hold_id.is_empty() {
            metadata.insert("hold_id".to_owned(), bounded(&refusal.hold_id, 64));
        }
        if !refusal.hint.is_empty() {
            metadata.insert("hint".to_owned(), bounded(&refusal.hint, TEXT_LIMIT));
        }
        let message = bounded(&refusal.message, TEXT_LIMIT);
        let mut details = ErrorDetails::with_error_info(refusal.reason, DOMAIN, metadata);
        match refusal.kind {
            RefusalKind::InvalidArgument | RefusalKind::OutOfRange => {
                let (field, what) = message.split_once(": ").unwrap_or(("", &message));
                details.add_bad_request_violation(bounded(field, 256), what);
            }
            RefusalKind::AlreadyExists | RefusalKind::FailedPrecondition => {
                let subject = bounded(&refusal.hold_id, 64);
                details.add_precondition_failure_violation(refusal.reason, subject, message.as_str());
            }
            RefusalKind::ResourceExhausted | RefusalKind::Unavailable => {
                details.set_retry_info(Some(refusal.retry_after.unwrap_or(RETRY_AFTER)));
            }
            RefusalKind::Aborted
            | RefusalKind::DeadlineExceeded
            | RefusalKind::NotFound
            | RefusalKind::PermissionDenied
            | RefusalKind::Cancelled => {}
        }
        Status::with_error_details(grpc_code(refusal.kind), message, details)
    }
}

/// The longest beginning of `text` within `limit` bytes, with an ellipsis if something is left out.
fn bounded(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let mut end = limit.saturating_sub("…".len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

/// What went wrong, as the command line tells it: one sentence, what to do next, and the exit it leads to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub exit: Exit,
    /// the gRPC code's name, e.g. "failed_precondition"
    pub code: &'static str,
    /// UPPER_SNAKE, one of the contract's reasons or of [`reason`]
    pub reason: String,
    pub message: String,
    /// empty if there is nothing to say
    pub hint: String,
    /// empty if it is about no hold
    pub hold_id: String,
}

impl Failure {
    /// A failure that did not come from the daemon.
    pub fn local(kind: RefusalKind, reason: &str, message: impl Into<String>) -> Failure {
        let (exit, code) = meaning(grpc_code(kind));
        Failure {
            exit,
            code,
            reason: reason.to_owned(),
            message: message.into(),
            hint: String::new(),
            hold_id: String::new(),
        }
    }

    /// A file, process or kernel call of the command line itself failed before anything was held.
    pub fn io(what: impl std::fmt::Display, source: &std::io::Error) -> Failure {
        let message = format!("failed to {what}: {source}");
        match source.kind() {
            std::io::ErrorKind::PermissionDenied => {
                Failure::local(RefusalKind::PermissionDenied, reason::NOT_PERMITTED, message)
            }
            _ => Failure::local(RefusalKind::FailedPrecondition, reason::LOCAL, message),
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = hint.into();
        self
    }

    #[must_use]
    pub fn exiting(mut self, exit: Exit) -> Failure {
        self.exit = exit;
        self
    }

    /// The `--json` document of an error.
    pub fn to_json(&self) -> serde_json::Value {
        json!({"error": {
            "code": self.code,
            "reason": self.reason,
            "message": self.message,
            "hint": self.hint,
            "hold_id": self.hold_id,
        }})
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure {
            hint: refusal.hint,
            hold_id: refusal.hold_id,
            ..Failure::local(refusal.kind, refusal.reason, refusal.message)
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        // only a status made on this side has a source: the connection broke before there was an answer
        if std::error::Error::source(&status).is_some() {
            let message = format!("the daemon went away before it answered: {}", status.message());
            return Failure::local(RefusalKind::Unavailable, reason::DAEMON_UNREACHABLE, message)
                .hint("whatever it held is let go; `holdstill status` says where things stand");
        }
        let (exit, code) = meaning(status.code());
        let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN);
        let (reason, mut metadata) = match info {
            Some(info) => (info.reason, info.metadata),
            None => (reason::UNKNOWN.to_owned(), HashMap::new()),
        };
        let message = match status.message() {
            "" => format!("the daemon answered {code} and no more"),
            text => text.to_owned(),
        };
        Failure {
            exit,
            code,
            reason,
            message,
            hint: metadata.remove("hint").unwrap_or_default(),
            hold_id: metadata.remove("hold_id").unwrap_or_default(),
        }
    }
}

impl From<rescue::Error> for Failure {
    fn from(error: rescue::Error) -> Failure {
        let message = format!("failed to {error}");
        match error {
            rescue::Error::Marker { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Failure::local(RefusalKind::PermissionDenied, reason::NOT_PERMITTED, message)
                    .hint("only root can thaw file systems")
            }
            rescue::Error::Marker { .. } => Failure::local(RefusalKind::FailedPrecondition, reason::LOCAL, message),
            rescue::Error::Locked => Failure::local(RefusalKind::FailedPrecondition, reason::LOCAL, message)
                .hint("it lets go of everything by itself; look again in a moment"),
            rescue::Error::DaemonResponds { .. } => {
                Failure::local(RefusalKind::FailedPrecondition, "HOLD_IN_PROGRESS", message)
                    .hint("ask it: `holdstill thaw`")
            }
        }
    }
}

impl From<daemon::Error> for Failure {
    fn from(error: daemon::Error) -> Failure {
        let (exit, kind, hint) = match &error {
            daemon::Error::NotRoot => (
                Exit::NotPermitted,
                RefusalKind::PermissionDenied,
                "start it as root; `holdstill status` needs no root",
            ),
            daemon::Error::NotTmpfs(_) => (
                Exit::Malformed,
                RefusalKind::InvalidArgument,
                "set `run` in [paths] to a directory on tmpfs, e.g. below /run or /dev/shm",
            ),
            daemon::Error::Busy(_) => {
                (Exit::Refused, RefusalKind::FailedPrecondition, "stop it first, or set another `run` in [paths]")
            }
            daemon::Error::Rescue(_) => {
                (Exit::Refused, RefusalKind::FailedPrecondition, "see `holdstill rescue --help`")
            }
            daemon::Error::Directory { .. } => (Exit::Refused, RefusalKind::FailedPrecondition, ""),
            daemon::Error::Door(error) => (Exit::Refused, RefusalKind::FailedPrecondition, error.hint()),
            daemon::Error::History(_)
            | daemon::Error::Runtime(_)
            | daemon::Error::Warden(_)
            | daemon::Error::Serve(_)
            | daemon::Error::DriverLost => (Exit::Failed, RefusalKind::Aborted, ""),
        };
        Failure::local(kind, reason::LOCAL, format!("failed to {error}")).hint(hint).exiting(exit)
    }
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Failure {
        let hint = error.hint();
        Failure::local(RefusalKind::InvalidArgument, reason::BAD_CONFIGURATION, error.to_string()).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [(RefusalKind, u8); 11] = [
        (RefusalKind::InvalidArgument, 2),
        (RefusalKind::OutOfRange, 2),
        (RefusalKind::AlreadyExists, 4),
        (RefusalKind::FailedPrecondition, 4),
        (RefusalKind::Aborted, 1),
        (RefusalKind::DeadlineExceeded, 1),
        (RefusalKind::NotFound, 4),
        (RefusalKind::ResourceExhausted, 4),
        (RefusalKind::PermissionDenied, 6),
        (RefusalKind::Unavailable, 5),
        (RefusalKind::Cancelled, 1),
    ];

    #[test]
    fn every_refusal_reaches_the_shell_as_the_contract_says() {
        for (kind, exit) in KINDS {
            let refusal = Refusal::new(kind, "SOME_REASON", "why").hint("what next").about("a1");
            let failure = Failure::from(Status::from(refusal.clone()));
            assert_eq!(failure.exit.code(), exit, "{kind:?}");
            assert_eq!(failure, Failure::from(refusal), "the wire loses nothing");
        }
    }

    #[test]
    fn details_stay_within_4_kib_however_long_the_story() {
        let refusal = Refusal::new(RefusalKind::Aborted, "STEP_FAILED", "ä".repeat(9000))
            .hint("ö".repeat(9000))
            .about("x".repeat(900));
        let status = Status::from(refusal);
        assert!(status.details().len() <= 4096, "{}", status.details().len());
        assert!(status.message().len() <= TEXT_LIMIT);
        assert!(status.message().ends_with('…'));
    }

    #[test]
    fn a_status_that_is_not_ours_has_no_reason_of_ours() {
        let details = ErrorDetails::with_error_info("STEP_FAILED", "example.com", HashMap::new());
        let failure = Failure::from(Status::with_error_details(Code::Internal, "", details));
        assert_eq!((failure.reason.as_str(), failure.exit), (reason::UNKNOWN, Exit::Failed));
        assert_eq!(failure.message, "the daemon answered internal and no more");
    }

    #[test]
    fn the_json_of_an_error_has_exactly_five_members() {
        let failure = Failure::from(Refusal::new(RefusalKind::NotFound, "UNKNOWN_HOLD", "thaw b: unknown").about("b"));
        assert_eq!(
            failure.to_json().to_string(),
            r#"{"error":{"code":"not_found","reason":"UNKNOWN_HOLD","message":"thaw b: unknown","hint":"","hold_id":"b"}}"#
        );
    }
}
