//! After the thaw: was it the same session of the same server all the time? Then the backup ends, if there is one.

use super::{
    super::database::{Deadline, Error, Proof, remark, unproven},
    Session,
    backup::{self, Ended},
    identity::Identity,
    position::{self, value},
    strategy::Held,
};
use crate::proto::{self, Claim, Severity};

impl Session {
    pub(in crate::step) async fn prove_and_release(self, deadline: Deadline) -> Proof {
        let mut database = self.describe();
        let proven = self.end(deadline).await;
        let (name, in_backup) = (self.target.name.clone(), self.held == Held::BackupMode);
        self.login.leave(deadline).await;
        match proven {
            Ok(Ended { label, tablespaces, coordinates }) => {
                database.end = coordinates;
                (database.backup_label, database.tablespace_map) = (label, tablespaces);
                Proof { database, problem: None }
            }
            Err(why) if in_backup => without_label(&name, database, &why),
            Err(why) => unproven(&name, database, &why),
        }
    }

    /// Still the same session of the same server? Then the backup ends, if there is one, and the end is read.
    async fn end(&self, deadline: Deadline) -> Result<Ended, String> {
        let explain = |failed| self.error("prove", failed).why;
        let same = |now: &Identity| self.identity.changed(now).map_or(Ok(()), |why| Err(why.to_owned()));
        let mut now = Identity::read(&self.login, &self.identity, deadline).await.map_err(explain)?;
        // A promoted standby answers other questions; that it was promoted is all that matters.
        same(&now)?;
        if self.start.is_empty() {
            return Err("its barrier was never reached".to_owned());
        }
        let mut ended = match &self.backup {
            Some(started) => {
                let most = deadline.left().saturating_sub(backup::READ_ROOM);
                started.stop(&self.login, self.major, deadline.at_most(most), explain).await?
            }
            None => Ended::default(),
        };
        let position = position::read(&self.login, self.identity.in_recovery, deadline).await.map_err(explain)?;
        now.timeline = value(&position, "timeline").map(str::to_owned);
        same(&now)?;
        ended.coordinates.extend(position);
        Ok(ended)
    }

    /// Nothing is locked, and a backup that was started ends with its session: a connection that is gone has nothing left
    /// to confirm.
    pub(in crate::step) async fn release(self, deadline: Deadline) -> Result<(), Error> {
        self.login.leave(deadline).await;
        Ok(())
    }
}

/// The data was copied and its log was not: without the label they do not fit together, so there is nothing to restore.
fn without_label(name: &str, mut database: proto::Database, why: &str) -> Proof {
    database.set_claim(Claim::Uncovered);
    let message = format!("held in backup mode, but the backup did not end, so there is no label for its copy: {why}");
    let hint =
        "throw the copy of this database away and take another: with a log copied after the thaw it would be corrupt";
    Proof { database, problem: Some(remark(name, Severity::Warning, "DATABASE_NOT_PROVEN", message, hint)) }
}
