//! `hooks list`: what will run, in which order, and how it went the last time.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use serde_json::{Value as Json, json};

use super::super::{Answer, words};
use crate::{
    config::Paths,
    error::Exit,
    hold::history,
    json::to_json,
    proto::{self, StepOutcome},
    step::hook::{self, Hook, Phase},
};

/// What earlier holds say of hooks, the newest first.
pub struct LastRuns {
    reports: Vec<proto::Report>,
    /// there may be more that this caller is not allowed to read
    hidden: bool,
}

impl LastRuns {
    /// Reads what the daemon remembers.
    pub fn read(paths: &Paths) -> LastRuns {
        let denied = |path: &Path| fs::read_dir(path).is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied);
        let hidden = [&paths.run, &paths.state].into_iter().any(|dir| denied(&dir.join("history")));
        LastRuns { reports: history::remembered(&paths.run, &paths.state), hidden }
    }

    /// The last hold that ran this hook, and its step there.
    fn of(&self, hook: &Hook) -> Option<(&proto::Report, &proto::Step)> {
        let name = format!("hook:{}", hook.name);
        self.reports.iter().find_map(|report| {
            let ran = |step: &&proto::Step| step.name == name && (step.took.is_some() || step.undo_took.is_some());
            Some((report, report.steps.iter().find(ran)?))
        })
    }
}

pub fn list(dir: &Path, listing: &hook::Listing, last: &LastRuns) -> Answer {
    let rows = listing.hooks.iter().map(|hook| {
        let phases = hook.phases().map(Phase::as_str).collect::<Vec<_>>().join(", ");
        let (when, result, took) = match last.of(hook) {
            Some((report, step)) => (
                when(report).map_or_else(|| "-".to_owned(), |time| time.to_string()),
                result(step).to_owned(),
                words::duration(whole(step).as_ref()),
            ),
            None => (if last.hidden { "?" } else { "never" }.to_owned(), "-".to_owned(), "-".to_owned()),
        };
        let runs_as = hook.user.as_ref().map_or("root", |user| &user.name).to_owned();
        let required = if hook.required { "yes" } else { "no" }.to_owned();
        vec![hook.name.clone(), owner(hook), runs_as, phases, limit(hook), required, when, result, took]
    });
    let header = ["HOOK", "OWNER", "RUNS AS", "PHASES", "LIMIT", "REQUIRED", "LAST RUN", "RESULT", "TOOK"];
    let mut table = words::table(&header, rows);
    if !listing.ignored.is_empty() {
        table.push_str(&format!("ignored: {}\n", listing.ignored.join(", ")));
    }
    if last.hidden {
        table.push_str("last runs: only root may read them\n");
    }
    for (name, what) in &listing.notes {
        table.push_str(&format!("{name}: {what}\n"));
    }
    let hooks: Vec<Json> = listing.hooks.iter().enumerate().map(|(at, hook)| hook_json(at + 1, hook, last)).collect();
    let notes: Vec<Json> = listing.notes.iter().map(|(name, what)| json!({"name": name, "note": what})).collect();
    let n = listing.hooks.len();
    Answer {
        document: json!({"dir": dir, "hooks": hooks, "ignored": listing.ignored, "notes": notes}),
        table,
        sentence: format!("{n} {} in {}", words::plural(n, "hook", "hooks"), dir.display()),
        exit: Exit::Done,
    }
}

fn hook_json(order: usize, hook: &Hook, last: &LastRuns) -> Json {
    let last = last.of(hook).map(|(report, step)| {
        json!({"hold_id": report.id, "time": when(report).map(|time| time.to_string()), "step": to_json(step)})
    });
    json!({
        "name": hook.name, "path": hook.path, "order": order, "owner": owner(hook),
        "user": hook.user.as_ref().map_or("root", |user| &user.name),
        "phases": hook.phases().map(Phase::as_str).collect::<Vec<_>>(),
        "limit": limit(hook), "required": hook.required,
        "holds": hook.holds.iter().map(ToString::to_string).collect::<Vec<_>>(), "prepare": hook.calls.prepare.is_some(), "last_run": last,
    })
}

fn limit(hook: &Hook) -> String {
    humantime::format_duration(hook.limit).to_string()
}

fn owner(hook: &Hook) -> String {
    let Ok(about) = fs::metadata(&hook.path) else { return "-".to_owned() };
    let user = nix::unistd::User::from_uid(about.uid().into()).ok().flatten();
    user.map_or_else(|| about.uid().to_string(), |user| user.name)
}

/// Without the fraction: nobody looks for it here.
fn when(report: &proto::Report) -> Option<prost_types::Timestamp> {
    report.held_time.or(report.admitted_time).map(|time| prost_types::Timestamp { nanos: 0, ..time })
}

fn result(step: &proto::Step) -> &'static str {
    match step.outcome() {
        StepOutcome::Failed => "FAILED",
        StepOutcome::UndoFailed => "thaw FAILED",
        StepOutcome::Done
        | StepOutcome::Undone
        | StepOutcome::Unspecified
        | StepOutcome::Planned
        | StepOutcome::Skipped => "ok",
    }
}

/// All its phases together.
fn whole(step: &proto::Step) -> Option<prost_types::Duration> {
    let time = |took: Option<prost_types::Duration>| took.and_then(|took| std::time::Duration::try_from(took).ok());
    let all = [time(step.took), time(step.undo_took)].into_iter().flatten().sum::<std::time::Duration>();
    all.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_is_listed_with_its_last_run_and_one_without_as_never() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["10-a", "20-b"] {
            fs::write(dir.path().join(name), "#!/bin/sh\n").expect("written");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(dir.path().join(name), mode).expect("mode set");
        }
        let listing = hook::list(dir.path(), std::time::Duration::from_secs(5), &[]).expect("usable");
        let report = |id: &str, at, outcome: StepOutcome| proto::Report {
            id: id.into(),
            admitted_time: Some(prost_types::Timestamp { seconds: at, nanos: 5 }),
            steps: vec![proto::Step {
                name: "hook:20-b".into(),
                outcome: outcome.into(),
                took: Some(prost_types::Duration { seconds: 0, nanos: 2_000_000 }),
                undo_took: Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 }),
                ..Default::default()
            }],
            ..Default::default()
        };
        let last = vec![report("new", 1_000_000, StepOutcome::UndoFailed), report("old", 1, StepOutcome::Undone)];
        let last = LastRuns { reports: last, hidden: false };
        let answer = list(dir.path(), &listing, &last);
        let lines: Vec<&str> = answer.table.lines().collect();
        assert!(lines[1].starts_with("10-a") && lines[1].contains("never"), "{}", answer.table);
        assert!(lines[2].contains("1970-01-12T13:46:40Z  thaw FAILED  3.0 ms"), "{}", answer.table);
        assert_eq!(answer.document["hooks"][1]["last_run"]["hold_id"], "new");
        assert_eq!(
            (&answer.document["hooks"][1]["order"], &answer.document["hooks"][0]["last_run"]),
            (&json!(2), &Json::Null)
        );
        let table = list(dir.path(), &listing, &LastRuns { reports: Vec::new(), hidden: true }).table;
        assert!(table.contains("only root may read them") && !table.contains("never"), "{table}");
    }
}
