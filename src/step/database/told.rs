//! The shape in which the engines' files report what they found.

use std::os::fd::OwnedFd;

use super::Proof;
use crate::{proto, sys::sockets};

pub(in crate::step) fn coordinate(key: &str, value: impl Into<String>) -> proto::Coordinate {
    proto::Coordinate { key: key.to_owned(), value: value.into() }
}

/// Something to tell about `db:name`.
pub(in crate::step) fn remark(
    name: &str,
    severity: proto::Severity,
    code: &str,
    message: impl Into<String>,
    hint: impl Into<String>,
) -> proto::Problem {
    proto::Problem {
        severity: severity.into(),
        code: code.to_owned(),
        subject: format!("db:{name}"),
        message: message.into(),
        hint: hint.into(),
    }
}

/// A server reached over TCP at an address that is not ours may be on another machine, where nothing is held.
pub(in crate::step) fn elsewhere(name: &str, socket: &OwnedFd) -> Option<proto::Problem> {
    let (own, theirs) = sockets::addresses(socket)?;
    (own != theirs).then(|| {
        remark(
            name,
            proto::Severity::Warning,
            "DATABASE_ELSEWHERE",
            format!("the server answers at {theirs}, which is not this machine's own end of the connection ({own})"),
            "if it runs in a container here, give its unix socket; if it runs elsewhere, hold it there",
        )
    })
}

/// The proof that failed: the claim drops to `recoverable`, and `why` is said.
pub(in crate::step) fn unproven(name: &str, mut database: proto::Database, why: &str) -> Proof {
    database.claim = proto::Claim::Recoverable.into();
    let message = format!("held when the file systems froze, but not proven after the thaw: {why}");
    let hint = "the copy is crash-consistent for this database; take another";
    Proof { database, problem: Some(remark(name, proto::Severity::Warning, "DATABASE_NOT_PROVEN", message, hint)) }
}
