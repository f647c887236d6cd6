//! Noticing that this machine was started from a copy. Once, when the daemon starts; nothing waits for it but a hold
//! that is asked for in the same moment, and that only while it is preparing.
//!
//! ```text
//!   read the receipts ─▶ judge ─▶ say so ─▶ `frozen` becomes `restored` ─▶ note it ─▶ holds may begin ─▶ restored.d
//! ```
//!
//! What a copy says of a hold is true of that copy alone. Left as it is, `frozen` would testify to every later copy as
//! well, although what has been written since is in no hold: so it is rewritten, and what it said is kept in a note.
//! Nothing is thawed: a machine that starts is not held, whatever its disks say.

mod judge;
mod known_by;
mod notes;
mod read;
mod scripts;

use std::{
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tokio::sync::watch;

use self::{
    judge::{Finding, Identity, Paper, Seen},
    notes::Testimony,
    read::Place,
};
use super::{
    aside::{READ_LIMIT, TOUCH_LIMIT, in_a_thread},
    plan::problem,
    receipt::State,
    report::{Published, now},
    reporters::nobody_waits,
    survey::Surroundings,
    verify,
};
use crate::{
    config::Settings,
    proto::{self, RestoredKind, Severity},
    step::restored as step,
    sys,
};

/// How many disks are asked at the same time: each takes a thread, and holds need threads too.
const AT_ONCE: usize = 4;
/// A hold waits at most this long for us, and after it no receipt is touched any more.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
/// Notes are small, but the disk they go to may be slow.
const NOTE_LIMIT: Duration = Duration::from_secs(5);

/// What was noticed, for whoever asks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Noticed {
    told: Arc<Mutex<Option<proto::Restored>>>,
    settled: watch::Receiver<bool>,
    /// receipts may still be rewritten: no hold has written its own since
    open: Arc<AtomicBool>,
}

impl Default for Noticed {
    /// Nothing, and nothing to wait for.
    fn default() -> Self {
        Noticed { told: Arc::default(), settled: watch::channel(true).1, open: Arc::default() }
    }
}

impl Noticed {
    /// For GetStatus; `None`: nothing, or not yet.
    pub fn told(&self) -> Option<proto::Restored> {
        self.lock().clone()
    }

    /// What `check` says of it.
    pub fn problem(&self) -> Option<proto::Problem> {
        let told = self.told()?;
        // no reservation: what can be held is not less for it
        Some(problem(
            Severity::Note,
            "RESTORED",
            "",
            &sentence(&told),
            "`holdstill status` says what differs, and what to think of",
        ))
    }

    /// Before a hold writes receipts of its own: waits until those of earlier boots are dealt with, and no longer than that
    /// may take.
    pub async fn settled(&self) {
        let mut settled = self.settled.clone();
        let _ = tokio::time::timeout(SETTLE_LIMIT, settled.wait_for(|settled| *settled)).await;
        self.open.store(false, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Option<proto::Restored>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner) // it is replaced as a whole
    }
}

/// Looks in the background; answers at once. `last_hold`: the newest hold this machine's history knows.
pub fn start(settings: Arc<Settings>, surroundings: &Surroundings, published: Published, last_hold: String) -> Noticed {
    let (settle, settled) = watch::channel(false);
    let noticed = Noticed { told: Arc::default(), settled, open: Arc::new(AtomicBool::new(true)) };
    let work = Work { settings, root: surroundings.root.clone(), noticed: noticed.clone() };
    tokio::spawn(async move {
        let found = work.notice(last_hold).await;
        settle.send_replace(true);
        if let Some(found) = found {
            work.act(found, published).await;
        }
    });
    noticed
}

/// One sentence: what this machine is, and of which hold.
pub fn sentence(told: &proto::Restored) -> String {
    let hold = match told.hold_id.as_str() {
        "" => "a copy".to_owned(),
        id => format!("a copy that was cut around the hold {id}"),
    };
    match told.kind() {
        RestoredKind::Clone => format!("this machine is a clone: it was started from {hold} of another machine"),
        RestoredKind::Reverted => format!("this machine was set back to {hold}"),
        RestoredKind::Crashed => format!("this machine died while it was held by {}; it is not held now", told.hold_id),
        RestoredKind::Attached => format!("disks of this machine are copies, cut during the hold {}", told.hold_id),
        RestoredKind::Unspecified => format!("this machine was started from {hold}"),
    }
}

struct Work {
    settings: Arc<Settings>,
    root: std::path::PathBuf,
    noticed: Noticed,
}

/// What is still to be done when it has been said.
struct Found {
    told: proto::Restored,
    seen: Seen,
    said: Vec<Testimony>,
    /// it will not be said again: only then may scripts run
    noted: bool,
}

impl Work {
    async fn notice(&self, last_hold: String) -> Option<Found> {
        if let Some(told) = notes::of_this_boot(&self.settings.paths.run) {
            *self.noticed.lock() = Some(told); // an earlier daemon of this boot has said it
            return None;
        }
        let (places, seen) = self.look(last_hold).await?;
        let Some(finding) = judge::judge(&seen) else {
            if let Some(machine) = notes::learnt(seen.last.as_ref(), &seen.now) {
                self.keep_machine(machine).await;
            }
            return None;
        };
        let mut told = tell(&finding, &seen);
        *self.noticed.lock() = Some(told.clone());
        let said = self.rewrite(&finding, &places, &seen).await;
        for stays in said.iter().filter(|said| said.stays_frozen) {
            let message = format!(
                "{}: its receipt still says frozen, and so will that of a copy cut from now on: {}",
                stays.mount, stays.why
            );
            told.problems.push(problem(
                Severity::Warning,
                "RECEIPT_STALE",
                &stays.mount,
                &message,
                "the next hold replaces it",
            ));
        }
        // a daemon that is killed before it is done does not run them again, but the next one knows that they are not done
        let mut unfinished = told.clone();
        unfinished.problems.extend(runs_scripts(told.kind()).then(not_finished));
        let noted = self.note(&seen, &unfinished, &said).await;
        *self.noticed.lock() = Some(told.clone());
        Some(Found { told, seen, said, noted })
    }

    /// What there is to judge by. `None`: it could not be read, or not in time.
    async fn look(&self, last_hold: String) -> Option<(Vec<Place>, Seen)> {
        let (root, state) = (self.root.clone(), self.settings.paths.state.clone());
        let read = in_a_thread(READ_LIMIT, move || {
            let (now, places) = read::machine(&root)?;
            let seen = Seen {
                booted: read::booted(&root),
                last: notes::last(&state),
                known: notes::known(&state, &now),
                last_hold,
                now,
                papers: Vec::new(),
            };
            std::io::Result::Ok((places, seen))
        });
        let (places, mut seen) = match read.await {
            Some(Ok(read)) => read,
            Some(Err(error)) => {
                tracing::warn!("failed to find out whether this machine was started from a copy: {error}");
                return None;
            }
            None => {
                tracing::warn!(
                    "failed to find out whether this machine was started from a copy: /proc did not answer in time"
                );
                return None;
            }
        };
        let one = |place: Place| async move {
            let asked = place.clone();
            let paper = in_a_thread(TOUCH_LIMIT, move || read::paper(&asked)).await;
            if paper.is_none() {
                tracing::warn!(mount = %place.root.display(), "the receipt there could not be read in time");
            }
            Some((place, paper??))
        };
        let found: Vec<(Place, Paper)> = stream::iter(places)
            .map(|place| async move { one(place).await })
            .buffered(AT_ONCE)
            .filter_map(|found| async { found })
            .collect()
            .await;
        let (places, papers) = found.into_iter().unzip();
        seen.papers = papers;
        Some((places, seen))
    }

    /// Lets stale receipts say `restored`; answers what each receipt of the finding said before.
    async fn rewrite(&self, finding: &Finding, places: &[Place], seen: &Seen) -> Vec<Testimony> {
        let mut all: Vec<usize> = finding.papers.iter().chain(&finding.stale).copied().collect();
        all.sort_unstable();
        all.dedup();
        let one = |at: usize| {
            let (place, paper, boot_id) = (places[at].clone(), seen.papers[at].clone(), seen.now.boot_id.clone());
            let open = Arc::clone(&self.noticed.open);
            let stale = finding.stale.contains(&at);
            async move {
                let fallback = testimony_of(&paper, String::new(), "its disk did not answer in time".into(), stale);
                let work = move || settle(&place, &paper, stale, &boot_id, &open);
                in_a_thread(TOUCH_LIMIT, work).await.unwrap_or(fallback)
            }
        };
        stream::iter(all).map(one).buffered(AT_ONCE).collect().await
    }

    /// Whether it was noted where the next boot finds it.
    async fn note(&self, seen: &Seen, told: &proto::Restored, said: &[Testimony]) -> bool {
        let (run, state) = (self.settings.paths.run.clone(), self.settings.paths.state.clone());
        let (now, told, said) = (seen.now.clone(), told.clone(), said.to_vec());
        let work = move || {
            notes::keep_for_this_boot(&run, &told, &said)?;
            notes::keep_noticed(&state, &now, &told, &said)?;
            notes::keep_machine(&state, &now)
        };
        match in_a_thread(NOTE_LIMIT, work).await {
            Some(Ok(())) => true,
            Some(Err(error)) => {
                tracing::warn!(
                    "failed to note that this machine was started from a copy: {error}; it will be said again"
                );
                false
            }
            None => {
                tracing::warn!(
                    "failed to note in time that this machine was started from a copy; it may be said again"
                );
                false
            }
        }
    }

    async fn keep_machine(&self, machine: Identity) {
        let state = self.settings.paths.state.clone();
        let kept = in_a_thread(NOTE_LIMIT, move || notes::keep_machine(&state, &machine)).await;
        if !matches!(kept, Some(Ok(()))) {
            tracing::info!("could not note which machine this is: a clone without receipts would not notice");
        }
    }

    /// restored.d, and what is to be thought of. Nothing is held then.
    async fn act(&self, mut found: Found, published: Published) {
        let mut standing = published.changes();
        if standing.wait_for(|standing| nobody_waits(standing)).await.is_err() {
            return;
        }
        match runs_scripts(found.told.kind()) {
            true if found.noted => {
                let dir = step::directory(&self.settings.hooks.dir);
                scripts::run(dir, &self.settings.paths.run, &mut found.told, &found.seen, &mut standing).await;
            }
            true => {
                let message = "restored.d was not run: that it ran could not be noted, so it would run at every boot";
                found.told.problems.push(problem(
                    Severity::Warning,
                    "RESTORED_NOT_NOTED",
                    "",
                    message,
                    "see the daemon's log",
                ));
            }
            false => {}
        }
        if found.told.kind() == RestoredKind::Clone
            && standing.wait_for(|standing| nobody_waits(standing)).await.is_ok()
        {
            let (root, since) = (self.root.clone(), found.seen.booted);
            let same_id = found.seen.papers.iter().any(|paper| paper.was.machine_id == found.seen.now.machine_id)
                || found.seen.last.as_ref().is_some_and(|last| last.machine_id == found.seen.now.machine_id);
            let was = same_id.then(|| found.seen.now.machine_id.clone());
            let known = in_a_thread(READ_LIMIT, move || known_by::problems(&root, since, was)).await;
            found.told.problems.extend(known.unwrap_or_default());
        }
        for problem in &found.told.problems {
            tracing::warn!(subject = %problem.subject, "{}", problem.message);
        }
        *self.noticed.lock() = Some(found.told.clone());
        if standing.wait_for(|standing| nobody_waits(standing)).await.is_ok() {
            if found.noted {
                self.note(&found.seen, &found.told, &found.said).await;
            }
            sys::memory::shed();
        }
    }
}

/// A machine that only died, or looks at a copy, stays who it is.
fn runs_scripts(kind: RestoredKind) -> bool {
    match kind {
        RestoredKind::Clone | RestoredKind::Reverted => true,
        RestoredKind::Crashed | RestoredKind::Attached | RestoredKind::Unspecified => false,
    }
}

/// Stands in the note until restored.d is done.
fn not_finished() -> proto::Problem {
    let message =
        "restored.d had not finished when this was noted; should the daemon have ended, no script is run twice";
    let hint = "the daemon's log says which scripts ran; run the others by hand";
    problem(Severity::Warning, "RESTORED_UNFINISHED", "", message, hint)
}

/// The grade as it is now, and then the rewriting.
fn settle(place: &Place, paper: &Paper, stale: bool, boot_id: &str, open: &AtomicBool) -> Testimony {
    let verified = verify::verify(std::slice::from_ref(&place.root), None, verify::Host::Elsewhere);
    let first = verified.as_ref().ok().and_then(|verified| verified.filesystems.first());
    let (grade, why) = first.map(|f| (f.grade.to_string(), f.why.clone())).unwrap_or_default();
    if !stale {
        return testimony_of(paper, grade, why, false);
    }
    let rewritten = match () {
        () if place.read_only => Err("it is mounted for reading only".to_owned()),
        () if !open.load(Ordering::Acquire) => Err("a hold has begun meanwhile".to_owned()),
        () => read::rewrite(place, paper, boot_id).map_err(|error| error.to_string()),
    };
    match rewritten {
        Ok(()) => testimony_of(paper, grade, why, false),
        Err(why) => testimony_of(paper, grade, why, true),
    }
}

fn testimony_of(paper: &Paper, grade: String, why: String, stays_frozen: bool) -> Testimony {
    Testimony {
        mount: paper.mount.clone(),
        fs_uuid: paper.sector.fs_uuid.clone(),
        hold_id: paper.sector.hold_id.clone(),
        state: paper.sector.state.to_string(),
        grade,
        why,
        stays_frozen,
    }
}

/// The finding as it is published, and said: once, with everything.
fn tell(finding: &Finding, seen: &Seen) -> proto::Restored {
    /// The contract's.
    const DIFFERENCES: usize = 64;
    let receipts = finding.papers.iter().map(|&at| {
        let Paper { mount, sector, .. } = &seen.papers[at];
        format!("{mount}: {} (hold {})", sector.state, sector.hold_id)
    });
    let told = proto::Restored {
        kind: finding.kind.into(),
        hold_id: finding.hold_id.clone(),
        noticed_time: Some(now()),
        hold_time: (finding.held != 0).then_some(prost_types::Timestamp { seconds: finding.held, nanos: 0 }),
        differences: finding.differences.iter().take(DIFFERENCES).cloned().collect(),
        receipts: receipts.collect(),
        steps: Vec::new(),
        problems: Vec::new(),
    };
    let held = told.hold_time.map(|time| time.to_string());
    tracing::warn!(
        kind = told.kind().as_str_name(),
        hold = %told.hold_id,
        held = held.as_deref().unwrap_or("unknown"),
        differences = ?told.differences,
        receipts = ?told.receipts,
        "{}",
        sentence(&told)
    );
    told
}

/// What of an answer this takes: the rest is the reports'.
pub(super) fn fitted(mut told: proto::Restored, most: usize) -> proto::Restored {
    use prost::Message;
    while told.encoded_len() > most {
        let cut = told.steps.pop().is_some() || told.problems.pop().is_some() || told.receipts.pop().is_some();
        if !cut && told.differences.pop().is_none() {
            break;
        }
    }
    told
}

/// What `check` says of restored.d: nobody finds out on a clone that a script cannot run.
pub async fn problems(settings: &Settings) -> Vec<proto::Problem> {
    let dir = step::directory(&settings.hooks.dir);
    let Some(listing) = list(&dir).await else { return Vec::new() };
    let said = |unusable: &step::Unusable| {
        let message = format!("{} will not run on a restored machine: {}", unusable.path.display(), unusable.why);
        problem(Severity::Warning, "RESTORED_UNUSABLE", "", &message, &unusable.hint)
    };
    listing.unusable.iter().map(said).collect()
}

async fn list(dir: &Path) -> Option<step::Listing> {
    let dir = dir.to_owned();
    in_a_thread(READ_LIMIT, move || step::list(&dir)).await
}

/// For `verify`: what the receipt at `mount` said before it was rewritten, if that was on this machine in this boot. A copy of
/// it that is mounted elsewhere says the same, and is not it.
pub fn said_before(
    run: &Path,
    mount: &str,
    sector: &super::receipt::Sector,
    boot_id: &str,
) -> Option<(String, String)> {
    (sector.state == State::Restored && sector.boot_id == boot_id).then(|| notes::testimony(run, mount, sector))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_cut_to_what_it_may_take() {
        let step = proto::Step { reason: "x".repeat(1000), ..Default::default() };
        let told = proto::Restored { hold_id: "h".into(), steps: vec![step; 200], ..Default::default() };
        let cut = fitted(told, 10_000);
        assert!(prost::Message::encoded_len(&cut) <= 10_000 && cut.hold_id == "h" && !cut.steps.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_hold_does_not_wait_for_ever_and_afterwards_no_receipt_is_touched() {
        let (_settle, settled) = watch::channel(false);
        let noticed = Noticed { told: Arc::default(), settled, open: Arc::new(AtomicBool::new(true)) };
        let begun = tokio::time::Instant::now();
        noticed.settled().await;
        assert_eq!(begun.elapsed(), SETTLE_LIMIT);
        assert!(!noticed.open.load(Ordering::Acquire));
    }
}
