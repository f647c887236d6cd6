//! How a server is held, and why so: decided from what is wanted and what it is, before anything is done.

use super::super::database::{Logs, Strategy};
use crate::proto::Claim;

/// How a server is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// everything freezes together, after one synchronous commit
    Marker,
    /// the log is copied later than the data
    BackupMode,
    /// everything freezes together; a standby writes nothing of its own
    Standby,
    /// everything freezes together, and nothing else was wanted
    FreezeOnly,
}

/// # Errors
/// (why, cure): what is configured does not fit this engine, or what the caller asked for.
pub(super) fn choose(
    name: &str,
    wanted: Strategy,
    logs: Logs,
    in_recovery: bool,
) -> Result<Held, (&'static str, String)> {
    let auto = || format!("remove `strategy` of database {name}: auto does what PostgreSQL needs");
    match (wanted, logs) {
        (Strategy::TableLocks | Strategy::GlobalLock, Logs::WhileHeld | Logs::AfterThaw) => {
            Err(("`strategy` asks for locks of MySQL and MariaDB; no file system copy of PostgreSQL needs any", auto()))
        }
        (Strategy::FreezeOnly, Logs::AfterThaw) => Err((
            "its log is to be copied after the thaw, which needs backup mode, and `strategy` is freeze-only",
            auto(),
        )),
        (Strategy::Auto, Logs::AfterThaw) => Ok(Held::BackupMode),
        (Strategy::Auto | Strategy::FreezeOnly, Logs::WhileHeld) if in_recovery => Ok(Held::Standby),
        (Strategy::Auto, Logs::WhileHeld) => Ok(Held::Marker),
        (Strategy::FreezeOnly, Logs::WhileHeld) => Ok(Held::FreezeOnly),
    }
}

impl Held {
    /// As `Database.strategy` has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Held::Marker => "marker",
            Held::BackupMode => "backup-mode",
            Held::Standby | Held::FreezeOnly => "freeze-only",
        }
    }

    pub(super) fn reason(self) -> &'static str {
        match self {
            Held::Marker => {
                "all its files freeze together, and one synchronous commit before that flushes whatever was acknowledged"
            }
            Held::BackupMode => {
                "its log is copied after the thaw: from the start to the end of a backup the log holds what repairs the data"
            }
            Held::Standby => {
                "it is a standby: what it has replayed was flushed before, and nothing can be written to mark the instant"
            }
            Held::FreezeOnly => {
                "configured so: without the marker, commits acknowledged before they were flushed may be missing"
            }
        }
    }

    /// What it is worth at best. On a standby `bounded` is about what was replayed before the barrier: whatever the
    /// primary acknowledged and had not been replayed here is not promised. With `freeze-only` any session may have set
    /// `synchronous_commit = off` for itself, which nobody can see.
    pub(super) fn claim(self, fsync: bool) -> Claim {
        match self {
            Held::Marker | Held::BackupMode | Held::Standby if fsync => Claim::Bounded,
            Held::Marker | Held::BackupMode | Held::Standby | Held::FreezeOnly => Claim::Recoverable,
        }
    }

    /// Is a synchronous commit written at the barrier?
    pub(super) fn marks(self, in_recovery: bool) -> bool {
        match self {
            Held::Marker => true,
            Held::BackupMode => !in_recovery,
            Held::Standby | Held::FreezeOnly => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_copied_later_needs_backup_mode_and_a_standby_has_no_marker() {
        let auto = |logs, in_recovery| choose("orders", Strategy::Auto, logs, in_recovery);
        assert_eq!(auto(Logs::WhileHeld, false), Ok(Held::Marker));
        assert_eq!(auto(Logs::WhileHeld, true), Ok(Held::Standby));
        for in_recovery in [false, true] {
            assert_eq!(auto(Logs::AfterThaw, in_recovery), Ok(Held::BackupMode));
            assert_eq!(Held::BackupMode.marks(in_recovery), !in_recovery);
        }
    }

    #[test]
    fn what_another_engine_needs_is_refused_with_the_cure() {
        for wanted in [Strategy::TableLocks, Strategy::GlobalLock] {
            let (why, cure) = choose("orders", wanted, Logs::WhileHeld, false).expect_err("not for this engine");
            assert!(why.contains("MySQL") && cure.contains("remove `strategy` of database orders"), "{why}: {cure}");
        }
        let (why, _) = choose("orders", Strategy::FreezeOnly, Logs::AfterThaw, false).expect_err("contradiction");
        assert!(why.contains("backup mode"), "{why}");
    }

    #[test]
    fn nothing_is_promised_without_a_flush() {
        assert_eq!(choose("orders", Strategy::FreezeOnly, Logs::WhileHeld, false), Ok(Held::FreezeOnly));
        assert_eq!(Held::FreezeOnly.claim(true), Claim::Recoverable);
        assert_eq!((Held::Marker.claim(true), Held::Marker.claim(false)), (Claim::Bounded, Claim::Recoverable));
    }
}
