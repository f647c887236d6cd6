//! Before anybody waits: bringing it close to the point at which it is held, and saying what lowers the claim.

use super::{
    Choice, END_WAIT, Kind, Session, arrive, connect,
    flush::FLUSH,
    grants,
    link::{Trouble, if_allowed},
    strategy,
};
use crate::{
    proto::{self, Severity},
    step::database::{Deadline, Error, remark},
};

impl Session {
    /// # Errors
    /// The server refused or did not answer, or something is in the way and `busy` says to refuse then.
    pub(in crate::step) async fn soften(&mut self, deadline: Deadline) -> Result<(), Error> {
        // The same flush will be due inside the lock; now it costs nobody anything.
        let flushed = if_allowed(self.link.run(deadline, FLUSH).await);
        flushed.map_err(|failed| self.error("flush", failed))?;
        if !self.target.drain.is_zero() {
            self.drain(deadline).await.map_err(|failed| self.error("drain", failed))?;
        }
        // Between the check and now somebody may have made one without transactions.
        self.find_tables(deadline).await.map_err(|failed| self.error("list the tables of", failed))?;
        if self.choice.kind.needs_a_second_session(&self.server) && self.second.is_none() {
            self.open_second(deadline).await;
        }
        self.guard(deadline).await
    }

    async fn open_second(&mut self, deadline: Deadline) {
        let login = self.target.user.clone().unwrap_or_else(|| "root".to_owned());
        match connect::open(&self.target, &login, deadline.at_most(END_WAIT)).await {
            Ok(mut link) => {
                // It waits as long as the other one.
                let _ = arrive::settle(&mut link, &self.server, deadline.at_most(END_WAIT)).await;
                self.second = Some(link);
            }
            Err(error) => {
                let message =
                    format!("there is no second connection to end the lock with, if it gets stuck: {}", error.why);
                self.say(Severity::Warning, "NO_SECOND_SESSION", message, error.hint);
            }
        }
    }

    /// Prepared transactions: they stay in the copy, with their locks.
    pub(super) async fn count_prepared(&mut self, deadline: Deadline) -> Result<(), Trouble> {
        let rows = if_allowed(self.link.rows(deadline, "XA RECOVER").await)?;
        self.prepared = rows.map(|rows| rows.len().try_into().unwrap_or(u32::MAX));
        if self.prepared.is_none() {
            let hint = self.grant("XA_RECOVER_ADMIN");
            self.say(Severity::Note, "PREPARED_UNKNOWN", "prepared (XA) transactions are not counted", hint);
        }
        Ok(())
    }

    /// Holds with less than was chosen, and says so.
    pub(super) fn degrade(&mut self, less: Kind, because: &str) {
        let was = self.choice.kind.name();
        let why = format!("{} instead of {was}: {because}", less.name());
        let claim = strategy::claim(less, self.worth());
        let message = format!("held by {why}; claimed is {}", claim_text(claim));
        self.say(
            Severity::Warning,
            "HELD_WITH_LESS",
            message,
            "end what is in the way, raise `guard`, or set `busy = \"refuse\"`",
        );
        self.choice = Choice { kind: less, why };
    }

    /// After the barrier: what the copy lacks that it would have had.
    pub(super) fn say_what_lowers(&mut self) {
        let worth = self.worth();
        let name = self.target.name.clone();
        if !worth.flushed {
            let message = "innodb_flush_log_at_trx_commit is 0 and the log could not be flushed: commits acknowledged lately \
                           may be missing";
            let hint = if self.server.is_mariadb() {
                format!("{}, or SET GLOBAL innodb_flush_log_at_trx_commit = 2", self.grant("SUPER"))
            } else {
                format!("{}; {}", self.grant("RELOAD"), self.grant("PROCESS"))
            };
            self.lowered = Some(remark(&name, Severity::Warning, "NOT_FLUSHED", message, hint));
        } else if !worth.provable {
            let message = "the server does not show that the lock is held, and has no binary log whose position would";
            let account = grants::account(&self.user);
            let hint =
                format!("GRANT LOCK TABLES ON mysql.* TO {account}; GRANT SELECT ON mysql.time_zone TO {account}");
            self.lowered = Some(remark(&name, Severity::Warning, "LOCK_NOT_SHOWN", message, hint));
        } else if !worth.tables.none() && !self.choice.kind.quiets_tables() {
            let named: Vec<String> = self.tables.non_transactional.iter().take(SOME).map(ToString::to_string).collect();
            let more = self.tables.non_transactional.len().saturating_sub(SOME);
            let message = match (named.is_empty(), more) {
                (true, _) => "there may be tables without transactions, and nothing keeps them whole".to_owned(),
                (false, 0) => format!("not locked, and maybe damaged in the copy: {}", named.join(", ")),
                (false, more) => {
                    format!("not locked, and maybe damaged in the copy: {} and {more} more", named.join(", "))
                }
            };
            let hint = "ALTER TABLE … ENGINE = InnoDB, or let them be locked (`strategy`)";
            self.lowered = Some(remark(&name, Severity::Warning, "TABLES_NOT_LOCKED", message, hint));
        }
        if let Some(lowered) = self.lowered.clone().filter(|lowered| !self.remarks.contains(lowered)) {
            self.remarks.push(lowered);
        }
    }
}

/// So many tables are named in a sentence.
const SOME: usize = 5;

fn claim_text(claim: proto::Claim) -> &'static str {
    match claim {
        proto::Claim::Exact => "exact",
        proto::Claim::Bounded => "bounded",
        proto::Claim::Recoverable => "recoverable",
        proto::Claim::Uncovered => "uncovered",
        proto::Claim::Unspecified => "nothing",
    }
}
