//! Which server, and which session of it: what must be the same after the thaw as before the freeze, and what ties a
//! session to the files of a data directory.

use std::{
    io::{self, Read},
    path::Path,
};

use super::{
    super::database::Deadline,
    connect::{Login, Refused, text},
};
use crate::sys::view::View;

/// What must be the same after the thaw as before the freeze.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Identity {
    pub backend: String,
    pub postmaster_started: String,
    pub in_recovery: bool,
    /// read at the barrier; `None` before
    pub timeline: Option<String>,
}

impl Identity {
    /// Who answers now. The timeline is taken over: it is read with the positions.
    pub(super) async fn read(login: &Login, before: &Identity, deadline: Deadline) -> Result<Identity, Refused> {
        let row = login
            .row(
                deadline,
                "SELECT pg_backend_pid()::text AS backend, pg_postmaster_start_time()::text AS started,
                        pg_is_in_recovery()::text AS recovery",
            )
            .await?;
        Ok(Identity {
            backend: text(&row, "backend").to_owned(),
            postmaster_started: text(&row, "started").to_owned(),
            in_recovery: text(&row, "recovery") == "true",
            timeline: before.timeline.clone(),
        })
    }

    /// Why this is not the same session of the same server any more.
    pub(super) fn changed(&self, now: &Identity) -> Option<&'static str> {
        if self.postmaster_started != now.postmaster_started {
            Some("the server was restarted")
        } else if self.backend != now.backend {
            Some("another session answered, so something stands between us and the server")
        } else if self.in_recovery != now.in_recovery {
            Some("the server changed between standby and primary")
        } else if self.timeline != now.timeline {
            Some("the server went over to another timeline")
        } else {
            None
        }
    }
}

/// The number initdb gave the cluster; its standbys and copies have the same.
pub(super) async fn system_identifier(login: &Login, deadline: Deadline) -> Result<Option<u64>, Refused> {
    let sql = "SELECT system_identifier::text AS id FROM pg_control_system()";
    Ok(unsigned(text(&login.row(deadline, sql).await?, "id")))
}

/// The system identifier is unsigned, but SQL has no such type: half of them print with a minus.
fn unsigned(identifier: &str) -> Option<u64> {
    identifier.parse::<i64>().ok().map(i64::cast_unsigned)
}

/// The system identifier in `global/pg_control` below a data directory, as this machine sees that directory (through
/// `/proc/PID/root` if the server has another view): equal to [`super::super::database::Session::system_identifier`] if
/// the server we talk to is the one whose files these are. May block like any read.
///
/// # Errors
/// Not there, not readable, too short.
pub fn system_identifier_of(data_directory: &Path) -> io::Result<u64> {
    let mut head = [0; 8];
    // whoever runs the server decides what that is: a FIFO would keep us, a link lead us elsewhere
    View::below(data_directory)?.read(Path::new("global/pg_control"))?.read_exact(&mut head)?;
    // src/include/catalog/pg_control.h: `uint64 system_identifier` comes first, in the machine's own byte order
    Ok(u64::from_ne_bytes(head))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn identity() -> Identity {
        Identity {
            backend: "17".to_owned(),
            postmaster_started: "2026-01-01".to_owned(),
            in_recovery: false,
            timeline: Some("1".to_owned()),
        }
    }

    #[test]
    fn the_same_session_of_the_same_server_has_not_changed() {
        assert_eq!(identity().changed(&identity()), None);
    }

    #[test]
    fn anything_else_has() {
        let why = |change: fn(&mut Identity)| {
            let mut now = identity();
            change(&mut now);
            identity().changed(&now).expect("it changed")
        };
        assert!(why(|now| now.backend = "18".to_owned()).contains("another session"));
        assert!(why(|now| now.postmaster_started = "2026-01-02".to_owned()).contains("restarted"));
        assert!(why(|now| now.in_recovery = true).contains("standby"));
        assert!(why(|now| now.timeline = Some("2".to_owned())).contains("timeline"));
    }

    #[test]
    fn half_of_all_system_identifiers_are_negative_in_sql() {
        assert_eq!(unsigned("7301234567890123456"), Some(7_301_234_567_890_123_456));
        assert_eq!(unsigned("-1"), Some(18_446_744_073_709_551_615));
        assert_eq!(unsigned(""), None);
    }

    #[test]
    fn a_control_file_begins_with_the_system_identifier() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let of = || system_identifier_of(directory.path());
        assert_eq!(of().expect_err("nothing there").kind(), io::ErrorKind::NotFound);
        fs::create_dir(directory.path().join("global")).expect("created");
        let file = directory.path().join("global/pg_control");
        fs::write(&file, [1, 2, 3]).expect("written");
        assert_eq!(of().expect_err("cut short").kind(), io::ErrorKind::UnexpectedEof);
        fs::write(&file, [7_301_234_567_890_123_456_u64.to_ne_bytes(), [9; 8]].concat()).expect("written");
        assert_eq!(of().expect("whole"), 7_301_234_567_890_123_456);
    }
}
