//! Taking what a strategy locks, and letting it go again.
//!
//! On MySQL a FLUSH TABLES WITH READ LOCK that failed still holds: after 1205 or KILL QUERY the session keeps the global
//! and the commit lock until UNLOCK TABLES (seen on 9.7). So whatever goes wrong, everything is unlocked at once on the
//! same session; if that is not answered, its socket is cut and a second session ends it.

use std::time::Duration;

use super::{
    Session,
    link::{Trouble, code},
    strategy::Kind,
};
use crate::{step::database::Deadline, sys::sockets};

/// How long letting go may take before the connection is cut instead.
pub(super) const END_WAIT: Duration = Duration::from_secs(1);

const NOT_IN_A_STAGE: u16 = 4146;

/// What this session has locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    Nothing,
    /// some of it may have been taken
    Taking(Kind),
    Held(Kind),
}

impl Kind {
    /// Longest wait for what is in the way, in whole seconds as the server counts. Under the global lock everybody waits
    /// meanwhile, in a backup stage writers of non-transactional tables, otherwise hardly anyone.
    fn longest_wait(self) -> u64 {
        match self {
            Kind::GlobalLock => 1,
            Kind::TableLocks | Kind::InstanceLock => 2,
            Kind::BackupStages => 3,
            Kind::FreezeOnly => 1,
        }
    }

    /// The statements that let go of it.
    fn release(self, instance: bool) -> &'static [&'static str] {
        match self {
            Kind::BackupStages => &["BACKUP STAGE END"],
            Kind::InstanceLock => &["UNLOCK INSTANCE"],
            Kind::GlobalLock | Kind::TableLocks if instance => &["UNLOCK TABLES", "UNLOCK INSTANCE"],
            Kind::GlobalLock | Kind::TableLocks => &["UNLOCK TABLES"],
            Kind::FreezeOnly => &[],
        }
    }
}

/// Shows in SHOW PROCESSLIST who is holding. Nothing but what an id may contain goes into SQL.
fn comment(hold_id: &str) -> String {
    let id: String = hold_id.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).collect();
    format!(" /* holdstill {id} */")
}

impl Session {
    /// Takes what `kind` locks. What it took until an error is the caller's to let go.
    pub(super) async fn take(&mut self, kind: Kind, hold_id: &str, deadline: Deadline) -> Result<(), Trouble> {
        let statements = self.statements(kind);
        self.lock = Lock::Taking(kind);
        if !statements.is_empty() {
            // Whole seconds; some room for the answer itself, so that the server gives up before we do.
            let wait = (deadline.left().as_millis() / 2000).clamp(1, u128::from(kind.longest_wait()));
            self.link.run(deadline, &format!("SET SESSION lock_wait_timeout = {wait}")).await?;
        }
        let comment = comment(hold_id);
        for statement in statements {
            self.link.run(deadline, &format!("{statement}{comment}")).await?;
        }
        self.lock = Lock::Held(kind);
        Ok(())
    }

    fn statements(&self, kind: Kind) -> Vec<String> {
        let instance = self.server.has_instance_lock().then_some("LOCK INSTANCE FOR BACKUP");
        let then = |last: String| instance.into_iter().map(str::to_owned).chain([last]).collect();
        match kind {
            Kind::BackupStages => {
                ["START", "BLOCK_DDL", "BLOCK_COMMIT"].map(|stage| format!("BACKUP STAGE {stage}")).into()
            }
            Kind::InstanceLock => instance.into_iter().map(str::to_owned).collect(),
            Kind::GlobalLock => then("FLUSH LOCAL TABLES WITH READ LOCK".to_owned()),
            Kind::TableLocks => {
                let tables: Vec<String> =
                    self.tables.non_transactional.iter().map(super::tables::Table::quoted).collect();
                then(format!("FLUSH LOCAL TABLES {} WITH READ LOCK", tables.join(", ")))
            }
            Kind::FreezeOnly => Vec::new(),
        }
    }

    /// Lets go of everything, or cuts the connection and has it ended, which lets go too.
    pub(super) async fn let_go(&mut self, deadline: Deadline) {
        let (Lock::Taking(kind) | Lock::Held(kind)) = self.lock else { return };
        for statement in kind.release(self.server.has_instance_lock()) {
            match self.link.run(deadline, statement).await {
                Ok(()) => {}
                Err(failed) if code(&failed) == Some(NOT_IN_A_STAGE) => {}
                Err(_) => {
                    self.end_it().await;
                    return;
                }
            }
        }
        self.lock = Lock::Nothing;
    }

    /// Cuts the connection, and has the server end the session: busy with a statement it would not look at its socket.
    pub(super) async fn end_it(&mut self) {
        sockets::cut(&self.link.socket);
        if let Some(second) = self.second.as_mut() {
            let kill = format!("KILL {}", self.link.id);
            let _ = second.run(Deadline::after(END_WAIT), &kill).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_id_cannot_leave_its_comment() {
        assert_eq!(comment("nightly.1"), " /* holdstill nightly.1 */");
        assert_eq!(comment("*/ DROP"), " /* holdstill DROP */");
    }

    #[test]
    fn what_is_locked_inside_is_let_go_before_what_is_around_it() {
        assert_eq!(Kind::GlobalLock.release(true), ["UNLOCK TABLES", "UNLOCK INSTANCE"]);
        assert_eq!(Kind::TableLocks.release(false), ["UNLOCK TABLES"]);
        assert!(Kind::FreezeOnly.release(true).is_empty());
    }
}
