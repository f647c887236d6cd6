//! What the parts of databases lie on, and what that means: covered or not, at risk, a log that freezes.

use super::{
    super::{Surroundings, Survey, TOUCH_LIMIT, at_risk::DatabasePart, in_a_thread},
    coverage::{self, Ground, Judged, Part},
    identity,
};
use crate::{
    guest::{Dev, Kind, Superblock},
    hold::plan::problem,
    proto::{self, Severity},
    step::database::{self, Session},
};

impl Survey {
    /// Everything the server needs, each with the file system it lies on.
    pub(super) async fn judge_parts(
        &self,
        session: &Session,
        pid: Option<i32>,
        surroundings: &Surroundings,
    ) -> Vec<Judged> {
        let (places, root) = (session.places(), surroundings.root.clone());
        let lost = |why: String| {
            let part = |place: &database::Place| Part {
                purpose: place.purpose,
                path: place.path.clone(),
                after_thaw: place.after_thaw,
                at: Err(why.clone()),
            };
            session.places().iter().map(part).collect()
        };
        let parts: Vec<Part> = if pid.is_none() && session.is_over_tcp() {
            // its paths would be looked up in our own view, where they may mean another server's files
            lost("cannot be found: the server's process is not known on this machine".to_owned())
        } else {
            in_a_thread(TOUCH_LIMIT, move || coverage::parts(&root, pid, &places)).await.unwrap_or_else(|| {
                lost(format!("was not found within {TOUCH_LIMIT:?}: something there does not answer"))
            })
        };
        parts.into_iter().map(|part| Judged { ground: self.ground(&part), part }).collect()
    }

    fn ground(&self, part: &Part) -> Ground {
        match &part.at {
            Err(_) => Ground { step: String::new(), held: false, reason: String::new() },
            Ok(dev) => self.ground_at(*dev),
        }
    }

    fn ground_at(&self, dev: Dev) -> Ground {
        let superblock = self.guest.superblocks.iter().find(|s| s.dev == dev);
        if superblock.is_some_and(|s| s.kind == Kind::Stacked) {
            return self.ground_below(dev);
        }
        let step = self.plan.steps.iter().find(|step| is_of(step, dev));
        Ground {
            step: step.map(|step| step.name.clone()).unwrap_or_default(),
            held: self.frozen().contains(&dev),
            reason: step.map(|step| step.reason.clone()).unwrap_or_default(),
        }
    }

    /// A container's overlay has no data of its own: its layers have. The upper one comes first, it takes the writes.
    fn ground_below(&self, overlay: Dev) -> Ground {
        let image = |dev: &Dev| self.guest.superblocks.iter().any(|s| s.dev == *dev && s.kind == Kind::Image);
        let layers: Vec<Dev> = self.guest.disks.layers(overlay).iter().copied().filter(|dev| !image(dev)).collect();
        let grounds: Vec<Ground> = layers
            .into_iter()
            .filter(|dev| *dev != overlay)
            .map(|dev| match self.guest.superblocks.iter().any(|s| s.dev == dev && s.kind == Kind::Stacked) {
                true => Ground { step: String::new(), held: false, reason: "is on an overlay over an overlay".into() },
                false => self.ground_at(dev),
            })
            .collect();
        let missing = grounds.iter().find(|ground| !ground.held).cloned();
        missing.or_else(|| grounds.into_iter().next()).unwrap_or_else(|| Ground {
            step: String::new(),
            held: false,
            reason: "is in a container's overlay whose layers cannot be found here".to_owned(),
        })
    }

    /// A receipt in a data directory, which is where it lies if that is the root of a file system, is in the way of others:
    /// `pg_basebackup` stops at a directory it may not read, MariaDB takes it for a database and `mariadb-dump` stops at that.
    /// So there is none, whether the server can be held or not, unless there already was.
    pub(super) async fn leave_out_receipts(&mut self, servers: Vec<i32>, surroundings: &Surroundings) {
        if !self.writes_receipts || servers.is_empty() {
            return;
        }
        let frozen = self.frozen();
        let held: Vec<Superblock> =
            self.guest.superblocks.iter().filter(|superblock| frozen.contains(&superblock.dev)).cloned().collect();
        let root = surroundings.root.clone();
        let found = in_a_thread(TOUCH_LIMIT, move || identity::roots_without_receipt(&root, &servers, &held)).await;
        for dev in found.unwrap_or_default() {
            self.without_receipt.insert(dev);
            let subject = self.ground_at(dev).step;
            let message = "its root is the data directory of a server, where a receipt would be in the way of pg_basebackup \
                           and mariadb-dump: none is written there, and that copy cannot testify";
            let hint = "move the data into a directory below, as the server's manual advises";
            self.problems.push(problem(Severity::Note, "RECEIPT_LEFT_OUT", &subject, message, hint));
        }
    }

    /// A server whose log lies on a frozen disk may stop answering while it is frozen.
    pub(super) async fn say_if_logs_freeze(
        &mut self,
        session: &Session,
        pid: Option<i32>,
        surroundings: &Surroundings,
    ) {
        let logs = session.log_places();
        if logs.is_empty() || (pid.is_none() && session.is_over_tcp()) {
            return;
        }
        let root = surroundings.root.clone();
        let places: Vec<database::Place> = logs
            .iter()
            .map(|log| database::Place { purpose: "log", path: log.path.clone(), after_thaw: false })
            .collect();
        let parts = in_a_thread(TOUCH_LIMIT, move || coverage::parts(&root, pid, &places)).await.unwrap_or_default();
        for log in logs {
            // where it is not known, better said once too often
            let part = parts.iter().find(|part| part.path == log.path);
            if part.is_none_or(|part| part.at.is_err() || self.ground(part).held) {
                self.problems.push(log.remark);
            }
        }
    }

    /// Remembers where a database has its parts, for what is told of disks that a snapshot lacks.
    pub(super) fn note_parts(&mut self, name: &str, judged: &[Judged]) {
        for part in judged {
            let Ok(dev) = part.part.at else { continue };
            let mut devs = vec![dev];
            devs.extend(self.guest.disks.layers(dev));
            self.parts.push(DatabasePart {
                database: name.to_owned(),
                purpose: part.part.purpose,
                path: part.part.path.clone(),
                after_thaw: part.part.after_thaw,
                devs,
            });
        }
    }
}

/// Whether a step is of this file system.
fn is_of(step: &proto::Step, dev: Dev) -> bool {
    match &step.detail {
        Some(proto::step::Detail::Filesystem(fs)) => fs.major == dev.major && fs.minor == dev.minor,
        Some(proto::step::Detail::Database(_) | proto::step::Detail::Hook(_)) | None => false,
    }
}
