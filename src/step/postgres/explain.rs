//! What the server, the driver or the kernel said, with what would cure it.

use std::io;

use tokio_postgres::error::SqlState;

use super::super::database::{Address, Error, Failed, Target};

/// What was tried: completes "failed to …", is followed by "database NAME".
pub(super) const CONNECT: &str = "connect to";
pub(super) const HOLD: &str = "hold";
pub(super) const CHECKPOINT: &str = "checkpoint";
pub(super) const FLUSH: &str = "flush";
pub(super) const DRAIN: &str = "drain";
pub(super) const BACKUP: &str = "start a backup of";
pub(super) const LOOK: &str = "read the position of";

const HANGS: &str = "look at the server: it accepts connections but does not serve them";

pub(super) fn explain_io(target: &Target, what: &'static str, failed: Failed<io::Error>) -> Error {
    let hint = match &failed {
        Failed::TimedOut(_) => HANGS,
        Failed::Refused(_) => "does the server run, and is `socket` (or `host` and `port`) what it listens on?",
    };
    let why = match failed {
        Failed::TimedOut(limit) => format!("it did not answer within {limit:?}"),
        Failed::Refused(error) => format!("{}: {error}", place(&target.at)),
    };
    Error { name: target.name.clone(), what, why, hint: hint.to_owned() }
}

fn place(at: &Address) -> String {
    match at {
        Address::Socket(path) => path.display().to_string(),
        Address::Tcp { host, port } => format!("{host} port {port}"),
    }
}

pub(super) fn explain(target: &Target, user: &str, what: &'static str, failed: Failed<tokio_postgres::Error>) -> Error {
    let name = &target.name;
    let error = match failed {
        Failed::TimedOut(limit) => {
            let why = format!("it did not answer within {limit:?}");
            return Error { name: name.clone(), what, why, hint: HANGS.to_owned() };
        }
        Failed::Refused(error) => error,
    };
    let Some(said) = error.as_db_error() else {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let hint = match (&target.password_file, what) {
            (None, CONNECT) => format!("if it asks for a password, set `password_file` of database {name}"),
            (Some(_), _) | (None, _) => String::new(),
        };
        return Error { name: name.clone(), what, why: format!("{error}{cause}"), hint };
    };
    let code = said.code();
    let hint = cure(target, user, code).unwrap_or_else(|| said.hint().unwrap_or_default().to_owned());
    Error { name: name.clone(), what, why: format!("{} ({})", said.message(), code.code()), hint }
}

/// The setting or grant that fixes it, if we know better than the server's own hint.
fn cure(target: &Target, user: &str, code: &SqlState) -> Option<String> {
    let name = &target.name;
    Some(if *code == SqlState::INVALID_PASSWORD {
        match &target.password_file {
            Some(path) => format!("put the password of role {user} into {} (`password_file`)", path.display()),
            None => format!("set `password_file` of database {name}, or allow `peer` for role {user} in pg_hba.conf"),
        }
    } else if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
        format!("set `user` of database {name} to a role that may log in, or allow `{user}` in pg_hba.conf")
    } else if *code == SqlState::TOO_MANY_CONNECTIONS {
        format!(
            "all connections are taken: raise max_connections, or let database {name} log in as a superuser, for whom \
             superuser_reserved_connections are kept free (16 and newer: GRANT pg_use_reserved_connections TO \"{user}\", \
             with reserved_connections above 0)"
        )
    } else if *code == SqlState::CANNOT_CONNECT_NOW {
        "try again when it has started".to_owned()
    } else if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        format!("GRANT pg_monitor TO \"{user}\"")
    } else if *code == SqlState::PROTOCOL_VIOLATION {
        format!("if a pooler answers there, give database {name} the server's own `socket`")
    } else {
        return None;
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{super::super::database::Engine, *};

    #[test]
    fn a_full_server_is_cured_by_what_it_keeps_for_superusers() {
        let target = Target::discovered(Engine::Postgresql, PathBuf::from("/run/postgresql/.s.PGSQL.5432"));
        let cure = |code| cure(&target, "keeper", &code);
        let full = cure(SqlState::TOO_MANY_CONNECTIONS).expect("known");
        for word in ["max_connections", "superuser_reserved_connections", "pg_use_reserved_connections TO \"keeper\""] {
            assert!(full.contains(word), "{full}");
        }
        assert_eq!(cure(SqlState::DISK_FULL), None, "the server's own hint is all there is");
    }
}
