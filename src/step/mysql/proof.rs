//! After the thaw, on the session that held: did it hold to the end?
//!
//! ```text
//!   end coordinates (writers still wait) ─▶ is the lock still there? ─▶ let go ─▶ start = end?
//! ```
//!
//! A session keeps its locks until it releases them or ends, so a session that answers and has not released still
//! holds. That alone is not taken for proof. Backup stages: END succeeds only for a session that is in a stage (else
//! error 4146). MySQL: `performance_schema.metadata_locks` shows what our thread holds. Where that shows nothing (MariaDB;
//! MySQL 5.7 does not record locks unless told to; no grant) we try what only the holder of the lock is refused: the
//! holder of the global lock may not lock a table for writing (1223), the holder of table locks may not read any other
//! table (1100). Where that may not be tried either, equal positions of the binary log must show that nothing was
//! committed. Where there is none, nothing is claimed, and that is said before the freeze.
//!
//! Independently, under a lock that stops commits the binary log's positions must be the same before and after. InnoDB's
//! LSN is no such witness: it moves with uncommitted writes and background work, `Com_commit` and `Handler_commit` with
//! attempts and with reads.

use super::{
    LOCK_WAIT_TIMEOUT, Session,
    coordinates::{moved, told, witness},
    link::{Trouble, code},
    locks::{END_WAIT, Lock},
    strategy::Kind,
    tables::Table,
};
use crate::{
    proto::{self, Claim, Severity},
    step::database::{Deadline, Proof, remark, unproven},
};

/// Refused to the session that has the global read lock.
const CONFLICTING_READ_LOCK: u16 = 1223;
/// Refused to a session that has locked other tables.
const NOT_LOCKED: u16 = 1100;

/// One lock our thread holds: (object type, schema, name, lock type).
type Seen = [String; 4];

/// What looking for the lock showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    Held,
    Gone,
    /// the server does not record it, or not for us
    Unseen,
}

impl Session {
    /// Looks whether what `kind` locks is locked.
    pub(super) async fn sight(&mut self, kind: Kind, deadline: Deadline) -> Result<Sight, Trouble> {
        if kind == Kind::FreezeOnly {
            // Nothing is locked; that it answers is all there is to see.
            self.link.run(deadline, "SELECT CONNECTION_ID()").await?;
            return Ok(Sight::Held);
        }
        let recorded = self.recorded(kind, deadline).await?;
        if recorded == Sight::Unseen { self.tried(kind, deadline).await } else { Ok(recorded) }
    }

    /// As the server records it.
    async fn recorded(&mut self, kind: Kind, deadline: Deadline) -> Result<Sight, Trouble> {
        let Some(thread) = &self.thread else { return Ok(Sight::Unseen) };
        let locks = format!(
            "SELECT OBJECT_TYPE, IFNULL(OBJECT_SCHEMA, ''), IFNULL(OBJECT_NAME, ''), LOCK_TYPE \
             FROM performance_schema.metadata_locks WHERE OWNER_THREAD_ID = {thread} AND LOCK_STATUS = 'GRANTED'"
        );
        let seen = match self.link.table(deadline, &locks).await {
            // Not for us, or performance_schema is switched off.
            Err(failed) if code(&failed).is_some() => return Ok(Sight::Unseen),
            answer => answer?,
        };
        Ok(seen_of(&seen, kind, self.server.has_instance_lock(), &self.tables.non_transactional))
    }

    /// As what is refused to the one who has it shows. If it were not refused, it would do nothing lasting.
    async fn tried(&mut self, kind: Kind, deadline: Deadline) -> Result<Sight, Trouble> {
        let (statement, undo, refused) = match kind {
            Kind::GlobalLock if self.server.has_stages() => {
                ("BACKUP STAGE START", Some("BACKUP STAGE END"), CONFLICTING_READ_LOCK)
            }
            Kind::GlobalLock => ("LOCK TABLES mysql.time_zone WRITE", Some("UNLOCK TABLES"), CONFLICTING_READ_LOCK),
            Kind::TableLocks => ("SELECT 1 FROM mysql.time_zone LIMIT 0", None, NOT_LOCKED),
            Kind::BackupStages | Kind::InstanceLock | Kind::FreezeOnly => return Ok(Sight::Unseen),
        };
        match self.link.run(deadline, statement).await {
            Ok(()) => {
                if let Some(undo) = undo {
                    self.link.run(deadline, undo).await?;
                }
                Ok(Sight::Gone)
            }
            Err(failed) => match code(&failed) {
                Some(said) if said == refused => Ok(Sight::Held),
                Some(LOCK_WAIT_TIMEOUT) => Ok(Sight::Gone),
                Some(_) => Ok(Sight::Unseen),
                None => Err(failed),
            },
        }
    }

    pub(in crate::step) async fn prove_and_release(mut self, deadline: Deadline) -> Proof {
        let name = self.target.name.clone();
        let mut database = self.describe();
        let Lock::Held(kind) = self.lock else {
            self.close(deadline).await;
            return unproven(&name, database, "its barrier was never reached");
        };
        if self.start.is_empty() {
            self.let_go(deadline.at_most(END_WAIT)).await;
            self.close(deadline).await;
            return unproven(&name, database, "its barrier was never reached");
        }
        // Read while still locked, else the next commit would blur it; but writers are waiting.
        let end = self.position(deadline.at_most(END_WAIT)).await;
        let sight = match kind {
            Kind::BackupStages => Ok(Sight::Held), // END will tell
            Kind::InstanceLock | Kind::TableLocks | Kind::GlobalLock | Kind::FreezeOnly => {
                self.sight(kind, deadline.at_most(END_WAIT)).await
            }
        };
        let ended = match kind {
            Kind::BackupStages => self.link.run(deadline.at_most(END_WAIT), "BACKUP STAGE END").await,
            Kind::InstanceLock | Kind::TableLocks | Kind::GlobalLock | Kind::FreezeOnly => Ok(()),
        };
        if ended.is_ok() && kind == Kind::BackupStages {
            self.lock = Lock::Nothing;
        }
        self.let_go(deadline.at_most(END_WAIT)).await;
        let start = std::mem::take(&mut self.start);
        let why = match (&end, sight, ended) {
            (_, Err(failed), _) | (_, _, Err(failed)) => Some(self.error("prove", failed).why),
            (_, Ok(Sight::Gone), _) => Some("the lock it held is gone".to_owned()),
            (Err(_), _, _) => Some("its position could not be read".to_owned()),
            (Ok(_), Ok(Sight::Held), Ok(())) => None,
            (Ok(_), Ok(Sight::Unseen), Ok(())) => {
                self.seen.then(|| "its lock could be seen at the freeze, and cannot be seen now".to_owned())
            }
        };
        let end = end.unwrap_or_default();
        database.end = told(&end);
        let lowered = self.lowered.clone();
        self.close(deadline).await;
        if let Some(why) = why {
            return unproven(&name, database, &why);
        }
        let key = moved(&start, &end).filter(|_| kind.stops_commits());
        let Some(key) = key else { return Proof { database, problem: lowered } };
        if database.claim() == Claim::Exact {
            database.set_claim(Claim::Bounded);
        }
        let message = format!("the lock held, and yet {key} is not what it was: start and end only bracket the copy");
        let hint = "see who may write past the lock";
        Proof { database, problem: Some(remark(&name, Severity::Warning, "DATABASE_MOVED", message, hint)) }
    }

    /// Can it be shown after the thaw that it was held, other than by this session still being there?
    pub(super) fn can_be_shown(&self, kind: Kind, start: &[proto::Coordinate]) -> bool {
        match kind {
            Kind::GlobalLock => self.seen || witness(start),
            Kind::TableLocks => self.seen,
            // END shows it; or nothing that is claimed rests on it
            Kind::BackupStages | Kind::InstanceLock | Kind::FreezeOnly => true,
        }
    }
}

/// Are the locks of this kind among those our thread holds? A server that does not record locks shows none at all, not
/// even the one for reading this table.
fn seen_of(seen: &[Seen], kind: Kind, instance: bool, tables: &[Table]) -> Sight {
    if seen.is_empty() {
        return Sight::Unseen;
    }
    let has = |object: &str, lock: &str| seen.iter().any(|[o, _, _, l]| o == object && l == lock);
    let table = |table: &Table| seen.iter().any(|[o, schema, name, _]| o == "TABLE" && table.is(schema, name));
    let around = !instance || has("BACKUP LOCK", "SHARED");
    let held = match kind {
        Kind::InstanceLock => around,
        Kind::TableLocks => around && tables.iter().all(table),
        Kind::GlobalLock => around && has("GLOBAL", "SHARED") && has("COMMIT", "SHARED"),
        Kind::BackupStages | Kind::FreezeOnly => return Sight::Unseen,
    };
    if held { Sight::Held } else { Sight::Gone }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(object: &str, schema: &str, name: &str, kind: &str) -> Seen {
        [object, schema, name, kind].map(str::to_owned)
    }

    #[test]
    fn a_lock_is_seen_whole_or_it_is_gone() {
        let reading = lock("TABLE", "performance_schema", "metadata_locks", "SHARED_READ");
        let backup = lock("BACKUP LOCK", "", "", "SHARED");
        let global = lock("GLOBAL", "", "", "SHARED");
        let commit = lock("COMMIT", "", "", "SHARED");
        let all = [reading.clone(), backup.clone(), global.clone(), commit];
        assert_eq!(seen_of(&all, Kind::GlobalLock, true, &[]), Sight::Held);
        assert_eq!(seen_of(&all[..3], Kind::GlobalLock, true, &[]), Sight::Gone, "half a lock is none");
        assert_eq!(seen_of(&all[2..], Kind::GlobalLock, true, &[]), Sight::Gone);
        assert_eq!(seen_of(&all[2..], Kind::GlobalLock, false, &[]), Sight::Held, "5.7 has no instance lock");
        assert_eq!(seen_of(&all[..2], Kind::InstanceLock, true, &[]), Sight::Held);
        assert_eq!(seen_of(&[reading], Kind::InstanceLock, true, &[]), Sight::Gone);
        assert_eq!(seen_of(&[], Kind::GlobalLock, true, &[]), Sight::Unseen, "nothing recorded is not nothing held");
    }
}
