//! Where a server's files are, as it names them itself.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use tokio_postgres::{Row, error::SqlState};

use super::{
    super::database::{Deadline, Failed, Place, look},
    connect::{Login, Refused, text},
};

/// Every directory of a server.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// what must be in the copy
    pub needed: Vec<Place>,
    /// where its log messages go, if that is on a disk
    pub log: Option<PathBuf>,
}

/// Why they could not be found.
pub(super) enum Hidden {
    /// the role may not know
    NotPermitted,
    Failed(Refused),
}

impl From<Refused> for Hidden {
    fn from(failed: Refused) -> Hidden {
        match failed {
            Failed::Refused(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Hidden::NotPermitted,
            failed => Hidden::Failed(failed),
        }
    }
}

/// Asks the server. `pid`: its process, if known, which tells where its standard error goes.
pub(super) async fn find(login: &Login, pid: Option<i32>, deadline: Deadline) -> Result<Places, Hidden> {
    // Paths are bytes: converted from the database's to the client's encoding they might name nothing.
    let row = login
        .row(
            deadline,
            "SELECT convert_to(current_setting('data_directory'), getdatabaseencoding()) AS data,
                    current_setting('logging_collector') AS collector,
                    current_setting('log_destination') AS destination,
                    convert_to(current_setting('log_directory'), getdatabaseencoding()) AS log",
        )
        .await?;
    let data = path(&row, "data");
    let tablespaces = login
        .rows(
            deadline,
            "SELECT convert_to(pg_tablespace_location(oid), getdatabaseencoding()) AS place FROM pg_tablespace
             WHERE pg_tablespace_location(oid) LIKE '/%' ORDER BY 1",
        )
        .await?;
    let mut needed = vec![Place::new("data", &data), Place::new("wal", data.join("pg_wal"))];
    needed.extend(tablespaces.iter().map(|row| Place::new("tablespace", path(row, "place"))));
    let log = if text(&row, "collector") == "on" {
        Some(data.join(path(&row, "log")))
    } else if text(&row, "destination").contains("stderr") {
        standard_error(pid, deadline).await
    } else {
        None
    };
    Ok(Places { needed, log })
}

fn path(row: &Row, column: &str) -> PathBuf {
    PathBuf::from(OsString::from_vec(row.try_get::<_, Option<Vec<u8>>>(column).ok().flatten().unwrap_or_default()))
}

/// The file a server's standard error goes to (Debian starts it so), if it is one.
async fn standard_error(pid: Option<i32>, deadline: Deadline) -> Option<PathBuf> {
    let link = PathBuf::from(format!("/proc/{}/fd/2", pid?));
    let target = look(deadline, move || std::fs::read_link(link)).await.ok()?;
    is_file(&target).then_some(target)
}

/// Not "pipe:[4711]" or "socket:[4711]", and no device.
fn is_file(target: &Path) -> bool {
    target.is_absolute() && !target.as_os_str().as_bytes().starts_with(b"/dev/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_error_is_a_file_only_if_it_is_one() {
        assert!(is_file(Path::new("/var/log/postgresql/postgresql-15-main.log")));
        for other in ["/dev/null", "/dev/pts/3", "pipe:[4711]", "socket:[12]"] {
            assert!(!is_file(Path::new(other)), "{other}");
        }
    }
}
