//! `status`, `freeze`, `freeze-list` and `thaw` as a hold.
//!
//! ```text
//!   thawed ──freeze──▶ unclaimed ──status──▶ claimed ──thaw──▶ thawed
//!                          │                    │
//!             nothing for `unclaimed`      deadline, or something broke
//!                          └─────▶ let go ◀─────┘      the next thaw says so, once
//! ```
//!
//! A host that gave up waiting for the answer (libvirt's agent timeout, a killed virsh) sends no thaw. So a hold
//! nobody came back for is let go early. Which hold is owed an answer lies on tmpfs: a restarted daemon still owes it.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval, timeout},
};

use super::reply::{Answer, Error};
use crate::{
    door::input,
    guest::mounts,
    hold::{Handle, Lease, Refusal},
    proto::{self, HoldSpec, Phase, ReleaseReason, StepKind, StepOutcome, Verdict},
};

/// What a report calls whoever asks here.
pub const CALLER: &str = "guest-agent channel";
/// The hold this channel has not yet been given the last word on, in `[paths] run`.
const OWED: &str = "guest-agent.hold";
/// Reading the mount table, at most.
const READ: Duration = Duration::from_secs(5);
/// Letting go of an earlier hold, at most: undoing its hooks takes longest.
const LET_GO: Duration = Duration::from_secs(30);
/// Own wake-ups an unclaimed hold gets: each counts once however late it comes, so that a VM paused while its
/// snapshot is cut loses none of its time.
const TICKS: u32 = 40;

/// This channel's hold, if it has one. There is one for all connections.
pub struct Freezer {
    handle: Handle,
    unclaimed: Duration,
    root: PathBuf,
    owed_file: PathBuf,
    owed: Option<Owed>,
    /// told that the host came back for its hold
    claim: Option<oneshot::Sender<()>>,
}

/// A hold whose thaw has not been answered yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owed {
    id: String,
    filesystems: usize,
}

impl Freezer {
    /// `run` is where a hold still owed an answer is remembered; `root` where mounts are read.
    pub fn new(handle: Handle, unclaimed: Duration, run: &Path, root: &Path) -> Freezer {
        let owed_file = run.join(OWED);
        let owed = fs::read(&owed_file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Freezer { handle, unclaimed, root: root.to_owned(), owed_file, owed, claim: None }
    }

    /// Does this channel hold the guest right now?
    pub fn frozen(&self) -> bool {
        let standing = self.handle.published().standing();
        let current = standing.current.as_ref().map(|report| report.id.as_str());
        standing.phase == Phase::Held && current.is_some_and(|id| self.owed.as_ref().is_some_and(|owed| owed.id == id))
    }

    /// Do writers wait, whoever asked for it?
    pub fn anyone_waits(&self) -> bool {
        match self.handle.published().standing().phase {
            Phase::Quiescing | Phase::Held | Phase::Releasing => true,
            Phase::Unspecified | Phase::Idle | Phase::Preparing | Phase::Prepared => false,
        }
    }

    /// This channel's hold alone: another caller's may end at any moment, and a host that is told "frozen" skips its
    /// own freeze.
    pub fn status(&mut self) -> Answer {
        if let Some(claim) = self.claim.take() {
            // the waiting task may have given up just now
            let _ = claim.send(());
        }
        Ok(json!(if self.frozen() { "frozen" } else { "thawed" }))
    }

    /// Holds everything, or what is mounted at these places.
    ///
    /// # Errors
    /// Everything but held; then nothing is.
    pub async fn freeze(&mut self, mountpoints: Option<Vec<String>>) -> Answer {
        let include_mounts = match mountpoints {
            None => Vec::new(),
            Some(asked) => self.mounted(&asked).await?,
        };
        self.settled().await;
        let spec = HoldSpec { include_mounts, ..HoldSpec::default() };
        let (id, spec) = input::hold(String::new(), Some(spec)).map_err(|refusal| refused(&refusal))?;
        let id = format!("qga-{id}");
        let earlier = self.owed.clone();
        // owed from here on: if this daemon is lost on the way, a host that goes on without an answer must not hear that
        // all is well
        self.owe(Owed { id: id.clone(), filesystems: 0 });
        let (report, lease) = match self.handle.freeze(id, spec, CALLER.to_owned()).await {
            Ok(held) => held,
            Err(refusal) => {
                match earlier {
                    Some(earlier) => self.owe(earlier),
                    None => self.settle(),
                }
                return Err(refused(&refusal));
            }
        };
        let filesystems = frozen_filesystems(&report);
        self.owe(Owed { id: report.id, filesystems });
        self.claim = Some(wait_for_claim(lease, self.unclaimed));
        Ok(json!(filesystems))
    }

    /// A hold of this channel that ended by itself may still be being let go: that is no reason to refuse the next.
    async fn settled(&self) {
        let Some(owed) = &self.owed else { return };
        let mut changes = self.handle.published().changes();
        let over = changes.wait_for(|standing| standing.current.as_ref().is_none_or(|report| report.id != owed.id));
        let _ = timeout(LET_GO, over).await;
    }

    /// Of these mount points, those that exist; names nobody knows are ignored as the stock agent does.
    async fn mounted(&self, asked: &[String]) -> Result<Vec<String>, Error> {
        let root = self.root.clone();
        let reading = tokio::task::spawn_blocking(move || mounts::read(&root));
        let table = timeout(READ, reading).await.map_err(|_| Error::generic("reading the mounts took too long"))?;
        let table = table.map_err(io::Error::other).and_then(|read| read);
        let table = table.map_err(|error| Error::generic(format!("failed to read the mounts: {error}")))?;
        let known: BTreeSet<&Path> = table.iter().map(|line| line.mount_point.as_path()).collect();
        let found = known_among(asked, |path| known.contains(path));
        if found.is_empty() {
            let asked = asked.iter().take(8).map(|name| format!("{name:.64}")).collect::<Vec<_>>().join(", ");
            let asked =
                if asked.is_empty() { "no mount point was named".to_owned() } else { format!("not mounted: {asked}") };
            return Err(Error::generic(format!("nothing to freeze: {asked}")));
        }
        Ok(found)
    }

    /// Lets go, and answers for what became of the hold; 0 if there is none.
    ///
    /// # Errors
    /// The hold was broken, or let go before this: said once.
    pub async fn thaw(&mut self) -> Answer {
        let Some(owed) = self.owed.clone() else { return Ok(json!(0)) };
        if let Some(claim) = self.claim.take() {
            let _ = claim.send(());
        }
        let answer = self.handle.thaw(owed.id.clone(), String::new()).await;
        self.settle();
        let answer = answer.map_err(|refusal| refused(&refusal))?;
        let report = answer.report.unwrap_or_default();
        match (report.verdict(), answer.already_released) {
            (Verdict::Unbroken, false) => Ok(json!(owed.filesystems)),
            (Verdict::Unbroken, true) => Err(Error::generic(format!(
                "hold {} was let go by somebody else before this thaw: a snapshot cut since then is not consistent",
                owed.id
            ))),
            (Verdict::Broken | Verdict::NeverHeld | Verdict::Unspecified, _) => {
                Err(Error::generic(broken(&report, self.unclaimed)))
            }
        }
    }

    fn owe(&mut self, owed: Owed) {
        let written = serde_json::to_vec(&owed).map_err(io::Error::other);
        if let Err(error) = written.and_then(|bytes| fs::write(&self.owed_file, bytes)) {
            tracing::warn!(%error, file = %self.owed_file.display(), "a restarted daemon will not know that this hold is owed an answer");
        }
        self.owed = Some(owed);
    }

    fn settle(&mut self) {
        self.owed = None;
        if let Err(error) = fs::remove_file(&self.owed_file)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, file = %self.owed_file.display(), "a restarted daemon will answer for this hold again");
        }
    }
}

/// Without a claim the lease is dropped when its time is over, and with it the hold.
fn wait_for_claim(lease: Lease, limit: Duration) -> oneshot::Sender<()> {
    let (claim, mut claimed) = oneshot::channel();
    tokio::spawn(async move {
        let mut ticks = interval(limit / TICKS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // the first comes at once
        for _ in 0..=TICKS {
            tokio::select! {
                biased;
                answer = &mut claimed => {
                    if answer.is_ok() {
                        lease.delivered();
                    }
                    return;
                }
                _ = ticks.tick() => {}
            }
        }
        tracing::warn!(limit = ?limit, "the host asked for neither status nor thaw since its freeze: letting go");
    });
    claim
}

/// Of the names asked for, those that are mount points, as globs that mean just them.
fn known_among(asked: &[String], is_mounted: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut found: Vec<String> = asked
        .iter()
        .map(|name| if name.len() > 1 { name.trim_end_matches('/') } else { name.as_str() })
        .filter(|name| name.starts_with('/') && is_mounted(Path::new(name)))
        .map(glob::Pattern::escape)
        .collect();
    found.sort();
    found.dedup();
    found
}

fn frozen_filesystems(report: &proto::Report) -> usize {
    let frozen = |step: &&proto::Step| step.kind() == StepKind::Filesystem && step.outcome() == StepOutcome::Done;
    report.steps.iter().filter(frozen).count()
}

fn refused(refusal: &Refusal) -> Error {
    let hint = if refusal.hint.is_empty() { String::new() } else { format!(" (hint: {})", refusal.hint) };
    Error::generic(format!("{}: {}{hint}", refusal.reason, refusal.message))
}

/// Why what was captured is worth less than it seemed, for whoever reads the host's log.
fn broken(report: &proto::Report, unclaimed: Duration) -> String {
    let why = match report.reason() {
        ReleaseReason::CallerGone => format!(
            "the host asked for neither status nor thaw within {} of the freeze",
            humantime::format_duration(unclaimed)
        ),
        ReleaseReason::DaemonLost if report.verdict() == Verdict::NeverHeld => {
            "the daemon ended before all was held".to_owned()
        }
        ReleaseReason::Unspecified
        | ReleaseReason::Asked
        | ReleaseReason::Deadline
        | ReleaseReason::StepFailed
        | ReleaseReason::Shutdown
        | ReleaseReason::DaemonLost
        | ReleaseReason::WardenLost
        | ReleaseReason::TimeJumped => {
            let breaches: Vec<&str> = report.breaches.iter().map(|breach| breach.message.as_str()).collect();
            if breaches.is_empty() { "it was not proven to be held".to_owned() } else { breaches.join("; ") }
        }
    };
    format!("hold {} was broken: {why}; everything is thawed, take a new snapshot", report.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_nobody_knows_are_ignored_and_the_rest_mean_just_themselves() {
        let asked = ["/srv/", "/nowhere", "/", "srv", "/odd[1]", "/srv"].map(str::to_owned);
        let mounted = |path: &Path| ["/", "/srv", "/odd[1]"].iter().any(|known| path == Path::new(known));
        assert_eq!(known_among(&asked, mounted), ["/", "/odd[[]1[]]", "/srv"]);
        assert!(known_among(&[], mounted).is_empty());
    }

    #[test]
    fn a_broken_hold_is_explained_to_the_host() {
        let mut report = proto::Report { id: "qga-1".into(), ..Default::default() };
        report.set_reason(ReleaseReason::Deadline);
        report.breaches.push(proto::Problem { message: "nobody asked in time".into(), ..Default::default() });
        assert_eq!(
            broken(&report, Duration::from_secs(20)),
            "hold qga-1 was broken: nobody asked in time; everything is thawed, take a new snapshot"
        );
        report.set_reason(ReleaseReason::DaemonLost);
        report.set_verdict(Verdict::NeverHeld);
        assert!(broken(&report, Duration::from_secs(20)).contains("the daemon ended before all was held;"));
        report.set_reason(ReleaseReason::CallerGone);
        assert!(broken(&report, Duration::from_secs(20)).contains("neither status nor thaw within 20s"));
    }
}
