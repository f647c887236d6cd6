//! Telling `report.d` how a hold ended. Nothing waits for it: not the answer, not the next hold, not a stop.
//!
//! ```text
//!   admitted ─▶ note on tmpfs ─▶ … ─▶ over, everybody answered ─▶ queue ─▶ nothing is held ─▶ note removed ─▶ all run
//! ```
//!
//! A note whose hold is over when a daemon starts belongs to a report that nobody was told: its daemon was killed or told
//! to stop. It is removed before the reporters start, so that one that restarts the daemon does not go round for ever.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use super::{
    admit::Past,
    aside::{READ_LIMIT, in_a_thread},
    history::History,
    plan::problem,
    report::{Published, Standing},
};
use crate::{
    config::Settings,
    json, proto,
    proto::{Phase, Severity},
    step::reporter::{self, Listing, Reporter},
    sys,
};

/// Reports that wait while earlier ones are told. Beyond it one is left to the next start of the daemon.
const WAITING: usize = 64;
/// How many reporters run at the same time: each takes a thread, and holds need threads too.
const AT_ONCE: usize = 4;

/// The driver's side.
pub struct Reporters {
    queue: mpsc::Sender<proto::Report>,
    notes: PathBuf,
}

impl Reporters {
    /// Tells first what an earlier daemon did not come to tell.
    pub fn start(settings: Arc<Settings>, published: Published, history: &History) -> Reporters {
        let (queue, inbox) = mpsc::channel(WAITING);
        let notes = settings.paths.run.join("unreported");
        let reporters = Reporters { queue, notes: notes.clone() };
        for report in untold(&notes, history) {
            reporters.tell(report);
        }
        tokio::spawn(work(settings, published, notes, inbox));
        reporters
    }

    /// A hold begins, and somebody wants to know how it ends. Writes to tmpfs only.
    pub fn note(&self, id: &str) {
        let noted = fs::create_dir_all(&self.notes).and_then(|()| fs::write(self.notes.join(id), ""));
        if let Err(error) = noted {
            tracing::warn!(%error, hold = %id, "could not note that this hold is to be reported");
        }
    }

    /// The hold is over and everybody is answered.
    pub fn tell(&self, report: proto::Report) {
        if let Err(error) = self.queue.try_send(report) {
            let report = error.into_inner();
            tracing::warn!(hold = %report.id, "{WAITING} reports wait for report.d; this one is told when the daemon starts again");
        }
    }
}

/// Oldest first; forgets notes of holds that nobody remembers.
fn untold(notes: &Path, history: &History) -> Vec<proto::Report> {
    let entries = fs::read_dir(notes).into_iter().flatten().filter_map(Result::ok);
    let names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    for forgotten in names.iter().filter(|name| history.find(name).is_none()) {
        let _ = fs::remove_file(notes.join(forgotten));
    }
    let mut reports: Vec<_> = history.newest_first().filter(|r| names.contains(&r.id)).cloned().collect();
    reports.reverse();
    reports
}

async fn work(settings: Arc<Settings>, published: Published, notes: PathBuf, mut inbox: mpsc::Receiver<proto::Report>) {
    let mut standing = published.changes();
    while let Some(report) = inbox.recv().await {
        // a reporter that writes to a disk would only wait for the next hold's end
        if standing.wait_for(|standing| nobody_waits(standing)).await.is_err() {
            return;
        }
        if let Err(error) = fs::remove_file(notes.join(&report.id))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, hold = %report.id, "could not note that this hold is reported");
        }
        let ran = tell(&settings, report).await;
        if ran && nobody_waits(&standing.borrow()) {
            sys::memory::shed();
        }
    }
}

pub(super) fn nobody_waits(standing: &Standing) -> bool {
    match standing.phase {
        Phase::Unspecified | Phase::Idle | Phase::Preparing | Phase::Prepared => true,
        Phase::Quiescing | Phase::Held | Phase::Releasing => false,
    }
}

/// Runs them all; whether there were any.
async fn tell(settings: &Settings, report: proto::Report) -> bool {
    let id = report.id.clone();
    let dir = reporter::directory(&settings.hooks.dir);
    let Some(Listing { reporters, unusable }) = list(dir).await else {
        tracing::warn!(hold = %id, "report.d could not be read in time; nobody was told");
        return false;
    };
    for unusable in unusable {
        tracing::warn!(hold = %id, "failed to {unusable}");
    }
    if reporters.is_empty() {
        return false;
    }
    let document = json::to_json(&proto::GetReportResponse { report: Some(report) });
    let environment = environment(&document["report"]);
    let input = Arc::<[u8]>::from(format!("{document}\n").into_bytes());
    drop(document);
    let one = |reporter: Reporter| {
        let (input, environment, limit) = (Arc::clone(&input), environment.clone(), settings.hooks.report_timeout);
        let (id, name) = (id.clone(), reporter.name.clone());
        async move {
            let ran = tokio::task::spawn_blocking(move || reporter::run(&reporter, &input, &environment, limit)).await;
            match ran {
                Ok(Ok(took)) => tracing::info!(hold = %id, reporter = %name, ?took, "reported"),
                Ok(Err(error)) => {
                    tracing::warn!(hold = %id, reporter = %name, said = error.said(), "failed to {error}");
                }
                Err(_) => tracing::error!(hold = %id, reporter = %name, "the thread that ran a reporter panicked"),
            }
        }
    };
    stream::iter(reporters).for_each_concurrent(AT_ONCE, one).await;
    true
}

async fn list(dir: PathBuf) -> Option<Listing> {
    in_a_thread(READ_LIMIT, move || reporter::list(&dir)).await
}

/// What a reporter can decide by without reading: the values are those of the document.
fn environment(report: &serde_json::Value) -> BTreeMap<String, String> {
    let value = |member: &str| report[member].as_str().unwrap_or_default().to_owned();
    BTreeMap::from([
        ("HOLDSTILL_ID".to_owned(), value("id")),
        ("HOLDSTILL_VERDICT".to_owned(), value("verdict")),
        ("HOLDSTILL_CONSISTENCY".to_owned(), value("consistency")),
        ("HOLDSTILL_LABEL".to_owned(), value("label")),
    ])
}

/// What `check` says of them: reservations, for no hold is refused for a reporter.
pub async fn problems(settings: &Settings) -> Vec<proto::Problem> {
    let dir = reporter::directory(&settings.hooks.dir);
    let found = |message: &str, hint: &str| problem(Severity::Warning, "REPORTER_UNUSABLE", "", message, hint);
    match list(dir.clone()).await {
        None => vec![found(&format!("{} did not answer in time: reports are told to nobody", dir.display()), "")],
        Some(listing) => {
            let said =
                |u: &reporter::Unusable| found(&format!("{} gets no reports: {}", u.path.display(), u.why), &u.hint);
            listing.unusable.iter().map(said).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hold::report::now;

    #[test]
    fn what_a_stopped_daemon_did_not_tell_is_told_by_the_next_oldest_first() {
        let (run, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut history = History::load(run.path(), state.path()).unwrap();
        for (seconds, id) in [(1, "told"), (2, "first"), (3, "second")] {
            let admitted_time = Some(prost_types::Timestamp { seconds, nanos: 0 });
            history.push(proto::Report {
                id: id.into(),
                admitted_time,
                released_time: Some(now()),
                ..Default::default()
            });
        }
        let notes = run.path().join("unreported");
        fs::create_dir(&notes).unwrap();
        for id in ["second", "first", "forgotten"] {
            fs::write(notes.join(id), "").unwrap();
        }
        let ids: Vec<_> = untold(&notes, &history).into_iter().map(|r| r.id).collect();
        assert_eq!(ids, ["first", "second"]);
        assert!(!notes.join("forgotten").exists());
    }

    #[test]
    fn the_environment_has_the_words_of_the_document() {
        let report = proto::Report {
            id: "3f2a".into(),
            verdict: proto::Verdict::NeverHeld.into(),
            consistency: proto::Consistency::None.into(),
            ..Default::default()
        };
        let environment = environment(&json::to_json(&report));
        assert_eq!(environment["HOLDSTILL_VERDICT"], "never_held");
        assert_eq!(environment["HOLDSTILL_CONSISTENCY"], "none");
        assert_eq!(environment["HOLDSTILL_LABEL"], "");
    }
}
