//! The holds this machine remembers: the last 128, on tmpfs (so that a restarted daemon knows which ids were used and
//! how they ended) and, for people, in `[paths] state` across reboots.

use std::{
    collections::VecDeque,
    fs, io,
    path::{Path, PathBuf},
};

use prost::Message;

use super::admit::{self, Past};
use crate::proto::{self, Phase, ReleaseReason, Severity, Verdict};

/// How many holds are remembered.
pub const KEPT: usize = 128;

/// Oldest first.
#[derive(Debug, Default)]
pub struct History {
    reports: VecDeque<proto::Report>,
    /// where this boot's reports lie (tmpfs); `None`: only in memory
    run: Option<PathBuf>,
}

impl History {
    /// Reads what `run` (tmpfs, this boot) and `state` (earlier boots) remember. A hold that this boot's daemon left
    /// unfinished ended with the daemon: `broken: daemon lost`.
    ///
    /// # Errors
    /// `run` cannot be made or read. A damaged single report is left out: a crash may have cut it short.
    pub fn load(run: &Path, state: &Path) -> io::Result<History> {
        let run = run.join("history");
        fs::create_dir_all(&run)?;
        let mut reports = read_all(&run)?;
        for report in &mut reports {
            if report.released_time.is_none() {
                end_with_the_daemon(report);
                fs::write(run.join(file_name(&report.id)), report.encode_to_vec())?;
            }
        }
        for older in read_all(&state.join("history")).unwrap_or_default() {
            if older.released_time.is_some() && !reports.iter().any(|r| r.id == older.id) {
                reports.push(older);
            }
        }
        reports.sort_by_key(|r| r.admitted_time.map(|t| (t.seconds, t.nanos)));
        let mut history = History { reports: reports.into(), run: Some(run) };
        history.trim();
        Ok(history)
    }

    /// Remembers a running hold, so that a restarted daemon knows it. Writes to tmpfs only.
    ///
    /// # Errors
    /// The tmpfs is full or gone.
    pub fn note(&self, report: &proto::Report) -> io::Result<()> {
        self.run.as_deref().map_or(Ok(()), |run| write_whole(run, report))
    }

    /// Remembers a finished or refused hold; a retried id replaces its earlier refusal.
    pub fn push(&mut self, report: proto::Report) {
        if let Err(error) = self.note(&report) {
            tracing::warn!(%error, hold = %report.id, "could not remember this hold across a daemon restart");
        }
        self.reports.retain(|r| r.id != report.id);
        self.reports.push_back(report);
        self.trim();
    }

    /// Something was learnt about a hold that is over: it stays where it is in the order.
    pub fn amend(&mut self, report: &proto::Report) {
        if let Some(at) = self.reports.iter().position(|r| r.id == report.id) {
            self.reports[at] = report.clone();
            if let Err(error) = self.note(report) {
                tracing::warn!(%error, hold = %report.id, "could not remember what was learnt about this hold");
            }
        }
    }

    pub fn newest_first(&self) -> impl Iterator<Item = &proto::Report> {
        self.reports.iter().rev()
    }

    /// The newest hold that really held, for `previous_id`; rehearsals do not count.
    pub fn last_good(&self) -> Option<&proto::Report> {
        self.newest_first().find(|r| admit::was_held(r) && !r.rehearsal)
    }

    fn trim(&mut self) {
        while self.reports.len() > KEPT {
            if let Some(old) = self.reports.pop_front() {
                // an id older than 128 holds is forgotten, as the contract says
                if let Some(run) = &self.run {
                    let _ = fs::remove_file(run.join(file_name(&old.id)));
                }
            }
        }
    }
}

impl Past for History {
    fn find(&self, id: &str) -> Option<&proto::Report> {
        self.newest_first().find(|r| r.id == id)
    }

    fn last_ended(&self) -> Option<&proto::Report> {
        self.newest_first().find(|r| admit::was_held(r) || r.reason() != ReleaseReason::Unspecified)
    }
}

/// What is remembered, the newest first, for whoever asks without a daemon; what cannot be read is left out.
pub fn remembered(run: &Path, state: &Path) -> Vec<proto::Report> {
    let mut reports = read_all(&run.join("history")).unwrap_or_default();
    for older in read_all(&state.join("history")).unwrap_or_default() {
        if !reports.iter().any(|known| known.id == older.id) {
            reports.push(older);
        }
    }
    reports.sort_by_key(|report| std::cmp::Reverse(report.admitted_time.map(|time| (time.seconds, time.nanos))));
    reports
}

/// Copies a finished report to `state`, for people after a reboot. Called when nothing is frozen.
///
/// # Errors
/// `state` cannot be written.
pub fn keep(state: &Path, report: &proto::Report) -> io::Result<()> {
    let dir = state.join("history");
    fs::create_dir_all(&dir)?;
    write_whole(&dir, report)?;
    let mut kept: Vec<_> = fs::read_dir(&dir)?
        .filter_map(Result::ok)
        .filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path())))
        .collect();
    kept.sort();
    let surplus = kept.len().saturating_sub(KEPT);
    for (_, path) in kept.into_iter().take(surplus) {
        fs::remove_file(path)?;
    }
    Ok(())
}

fn end_with_the_daemon(report: &mut proto::Report) {
    let was_held = admit::was_held(report);
    report.set_phase(Phase::Idle);
    report.set_reason(ReleaseReason::DaemonLost);
    report.set_verdict(if was_held { Verdict::Broken } else { Verdict::NeverHeld });
    report.released_time = Some(super::report::now());
    report.remaining = None;
    report.breaches.push(proto::Problem {
        severity: Severity::Refusal.into(),
        code: "DAEMON_LOST".into(),
        subject: report.id.clone(),
        message: "the daemon ended during this hold; everything was let go without it".into(),
        hint: "take a new snapshot".into(),
    });
}

fn file_name(id: &str) -> String {
    format!("{id}.pb")
}

fn write_whole(dir: &Path, report: &proto::Report) -> io::Result<()> {
    let new = dir.join(format!(".{}", file_name(&report.id)));
    fs::write(&new, report.encode_to_vec())?;
    fs::rename(new, dir.join(file_name(&report.id)))
}

fn read_all(dir: &Path) -> io::Result<Vec<proto::Report>> {
    let mut reports = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "pb")
            && let Ok(report) = proto::Report::decode(fs::read(&path)?.as_slice())
        {
            reports.push(report);
        }
    }
    Ok(reports)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(id: &str, at: i64) -> proto::Report {
        let stamp = Some(prost_types::Timestamp { seconds: at, nanos: 0 });
        proto::Report { id: id.into(), admitted_time: stamp, held_time: stamp, ..Default::default() }
    }

    #[test]
    fn a_hold_left_running_by_a_lost_daemon_is_broken_after_its_restart() {
        let (run, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let history = History::load(run.path(), state.path()).unwrap();
        history.note(&held("a", 1)).unwrap();
        drop(history);
        let again = History::load(run.path(), state.path()).unwrap();
        let report = again.find("a").expect("remembered");
        assert_eq!((report.verdict(), report.reason()), (Verdict::Broken, ReleaseReason::DaemonLost));
        assert_eq!(again.last_ended().map(|r| r.id.as_str()), Some("a"));
        assert_eq!(report.breaches.len(), 1);
    }

    #[test]
    fn the_last_128_are_remembered_across_a_restart() {
        let (run, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut history = History::load(run.path(), state.path()).unwrap();
        for n in 0..200 {
            let report =
                proto::Report { released_time: Some(super::super::report::now()), ..held(&format!("h{n}"), n) };
            history.push(report);
        }
        let again = History::load(run.path(), state.path()).unwrap();
        let ids: Vec<_> = again.newest_first().map(|r| r.id.clone()).collect();
        assert_eq!(ids.len(), KEPT);
        assert_eq!((ids[0].as_str(), ids[KEPT - 1].as_str()), ("h199", "h72"));
    }

    #[test]
    fn what_is_learnt_about_an_older_hold_does_not_make_it_the_last_one() {
        let (run, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut history = History::load(run.path(), state.path()).unwrap();
        for (n, id) in [(1, "older"), (2, "last")] {
            history.push(proto::Report { released_time: Some(super::super::report::now()), ..held(id, n) });
        }
        let older = history.find("older").unwrap().clone();
        history.amend(&proto::Report { snapshot_ref: "snap-1".into(), ..older });
        assert_eq!(history.last_ended().map(|r| r.id.as_str()), Some("last"));
        let again = History::load(run.path(), state.path()).unwrap();
        assert_eq!(again.find("older").map(|r| r.snapshot_ref.as_str()), Some("snap-1"));
    }

    #[test]
    fn holds_of_earlier_boots_are_read_back_from_the_state_directory() {
        let (run, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let report = proto::Report { released_time: Some(super::super::report::now()), ..held("old", 5) };
        keep(state.path(), &report).unwrap();
        let history = History::load(run.path(), state.path()).unwrap();
        assert_eq!(history.find("old"), Some(&report));
    }
}
