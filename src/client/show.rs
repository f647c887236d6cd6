//! Reports as people read them: aligned tables, what the snapshot will not contain, and one sentence that says what was
//! achieved. Pure text; may change between versions (`--json` may not).

use std::fmt::Write;

use super::{
    coverage, databases,
    words::{claim, duration, level, outcome, phase, plural, reason, table, verdict},
};
use crate::{
    hold::restored::sentence,
    proto::{self, step::Detail},
};

/// What is particular to a step, in a few words.
fn detail(step: &proto::Step) -> String {
    let own = match &step.detail {
        Some(Detail::Filesystem(fs)) => format!("{} on {}", fs.r#type, fs.source),
        Some(Detail::Database(db)) => format!("{} {}, {}", db.engine, db.version, claim(db.claim())),
        Some(Detail::Hook(run)) => match (run.exit_code, run.signal) {
            (Some(code), _) => format!("exit {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => String::new(),
        },
        None => String::new(),
    };
    match (own.is_empty(), step.reason.is_empty()) {
        (_, true) => own,
        (true, false) => step.reason.clone(),
        (false, false) => format!("{own}: {}", step.reason),
    }
}

/// What the hold is about, one row each. What is left out because it holds nothing on a disk shares one line.
fn steps(report: &proto::Report) -> String {
    let (rows, nothing): (Vec<_>, Vec<_>) = report.steps.iter().partition(|step| !holds_nothing(step));
    let mut out = table(&["STEP", "STATE", "TOOK", ""], rows.into_iter().map(row));
    if !nothing.is_empty() {
        let count = nothing.len();
        let _ = writeln!(out, "and {count} {} left out: --json lists them", plural(count, "other", "others"));
    }
    out
}

fn row(step: &proto::Step) -> Vec<String> {
    vec![step.name.clone(), outcome(step.outcome()).to_owned(), duration(step.took.as_ref()), detail(step)]
}

/// A skipped file system that is not from a block device: in memory, of the kernel's own, on the network.
pub fn holds_nothing(step: &proto::Step) -> bool {
    match &step.detail {
        Some(Detail::Filesystem(fs)) => {
            step.outcome() == proto::StepOutcome::Skipped && fs.major == 0 && fs.r#type != "btrfs"
        }
        Some(Detail::Database(_) | Detail::Hook(_)) | None => false,
    }
}

/// Problems worth a line, each with its hint beneath.
fn problems(problems: &[proto::Problem]) -> String {
    let mut out = String::new();
    for problem in problems {
        let severity = match problem.severity() {
            proto::Severity::Refusal => "refused",
            proto::Severity::Warning => "warning",
            proto::Severity::Note | proto::Severity::Unspecified => "note",
        };
        let _ = writeln!(out, "{severity}: {}", problem.message);
        if !problem.hint.is_empty() {
            let _ = writeln!(out, "  hint: {}", problem.hint);
        }
    }
    out
}

/// A report's body.
pub fn steps_and_gaps(report: &proto::Report) -> String {
    let body = steps(report) + &databases::about(report) + &problems(&report.problems);
    body + &coverage::gaps(report) + &databases::logs_later(report)
}

/// The body of a check.
pub fn plan(plan: &proto::Report) -> String {
    steps_and_gaps(plan)
}

/// "2 file systems and 1 database", of the steps in these states.
fn count(report: &proto::Report, states: &[proto::StepOutcome]) -> String {
    let of = |kind: proto::StepKind| {
        report.steps.iter().filter(|s| s.kind() == kind && states.contains(&s.outcome())).count()
    };
    let parts = [
        (of(proto::StepKind::Filesystem), "file system", "file systems"),
        (of(proto::StepKind::Database), "database", "databases"),
        (of(proto::StepKind::Hook), "hook", "hooks"),
    ];
    let parts: Vec<_> = parts
        .into_iter()
        .filter(|(n, ..)| *n > 0)
        .map(|(n, one, many)| format!("{n} {}", plural(n, one, many)))
        .collect();
    match parts.split_last() {
        None => "nothing".to_owned(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// The sentence of `check`.
pub fn readiness(response: &proto::CheckResponse, strict: bool) -> String {
    let plan = response.plan.clone().unwrap_or_default();
    if response.would_refuse {
        let why = plan.problems.iter().find(|p| p.severity() == proto::Severity::Refusal);
        return format!("not ready: {}", why.map_or("a freeze would be refused", |p| p.message.as_str()));
    }
    let reservations = plan.problems.iter().filter(|p| p.severity() == proto::Severity::Warning).count();
    let with = match reservations {
        0 => "ready".to_owned(),
        n if strict => format!("not ready under --strict, for {n} {}", plural(n, "reservation", "reservations")),
        n => format!("ready, with {n} {}", plural(n, "reservation", "reservations")),
    };
    let what = count(&plan, &[proto::StepOutcome::Planned]);
    format!("{with}: {what} can be held, {}", level(response.reachable()))
}

/// The sentence of `freeze`; `program` is how the daemon that holds is asked again.
pub fn held(report: &proto::Report, program: &str) -> String {
    let next = match report.freeze_by() {
        proto::FreezeBy::Unspecified | proto::FreezeBy::Agent => "take the snapshot",
        proto::FreezeBy::Caller => "freeze what you freeze, take the snapshot, thaw that",
    };
    format!(
        "held: {}, {}, {} (hold {id}): {next}, then `{program} thaw {id}`",
        count(report, &[proto::StepOutcome::Done]),
        level(report.consistency()),
        match &report.remaining {
            Some(remaining) => format!("for at most {}", duration(Some(remaining))),
            None => "until its deadline".to_owned(),
        },
        id = report.id,
    )
}

/// The sentence of `thaw`.
pub fn released(report: &proto::Report, already: bool) -> String {
    let before = if already { "released before this call; " } else { "" };
    format!("{before}{}", ended(report))
}

/// What was to be let go and said that it failed: the snapshot is no worse for it, but somebody has to look.
fn not_undone(report: &proto::Report) -> String {
    let failed = report.steps.iter().filter(|step| step.outcome() == proto::StepOutcome::UndoFailed);
    let names: Vec<&str> = failed.map(|step| step.name.as_str()).collect();
    if names.is_empty() { String::new() } else { format!("; but letting go of {} failed", names.join(", ")) }
}

/// How a hold ended.
pub fn ended(report: &proto::Report) -> String {
    let took = duration(report.held_took.as_ref());
    match report.verdict() {
        proto::Verdict::Unbroken => {
            format!(
                "unbroken: {} held for {took} (hold {}); a snapshot cut in that time is {}",
                count(report, &[proto::StepOutcome::Done, proto::StepOutcome::Undone]),
                report.id,
                level(report.consistency()),
            ) + &not_undone(report)
        }
        proto::Verdict::Broken => {
            let why = match report.breaches.first() {
                Some(breach) => breach.message.as_str(),
                None => reason(report.reason()),
            };
            format!("BROKEN: {why} (hold {}); throw away a snapshot cut in this hold", report.id) + &not_undone(report)
        }
        proto::Verdict::NeverHeld => match report.id.as_str() {
            "" => "nothing to let go: nothing was ever held".to_owned(),
            id => {
                let why = report.problems.iter().max_by_key(|p| p.severity());
                let why = why.map_or_else(|| reason(report.reason()).to_owned(), |p| p.message.clone());
                format!("never held: {why} (hold {id})")
            }
        },
        proto::Verdict::Unspecified => format!("hold {} is {}", report.id, phase(report.phase())),
    }
}

/// The second sentence of `rehearse`.
pub fn rehearsed(report: &proto::Report) -> String {
    format!(
        "rehearsed: {} to prepare while nobody waited, {} until all was held; nothing was kept",
        duration(report.prepare_took.as_ref()),
        duration(report.quiesce_took.as_ref())
    )
}

/// The body of `status`.
pub fn status(response: &proto::GetStatusResponse) -> String {
    let of = |name: &str, report: &Option<proto::Report>| report.as_ref().map(|r| vec![name.to_owned(), ended(r)]);
    let rows = [
        Some(vec!["phase".to_owned(), phase(response.phase()).to_owned()]),
        of("hold", &response.current),
        of("last", &response.last),
        Some(vec!["daemon".to_owned(), format!("{} (instance {})", response.version, response.instance)]),
    ];
    let table = table(&["", ""], rows.into_iter().flatten()).trim_start_matches('\n').to_owned();
    table + &response.restored.as_ref().map(restored).unwrap_or_default()
}

/// What was noticed when this machine was started from a copy.
fn restored(told: &proto::Restored) -> String {
    let mut out = format!("\n{}\n", sentence(told));
    for (what, lines) in [("differs", &told.differences), ("receipt", &told.receipts)] {
        for line in lines {
            let _ = writeln!(out, "  {what}: {line}");
        }
    }
    out + &table(&["STEP", "STATE", "TOOK", ""], told.steps.iter().map(row)) + &problems(&told.problems)
}

/// The sentence of `status`.
pub fn standing(response: &proto::GetStatusResponse) -> String {
    match &response.current {
        Some(report) if response.phase() == proto::Phase::Held => {
            format!("held for another {} by hold {}", duration(report.remaining.as_ref()), report.id)
        }
        Some(report) => format!("hold {} is {}", report.id, phase(response.phase())),
        None => "idle: holds are accepted".to_owned(),
    }
}

/// The table of `history`.
pub fn history(reports: &[proto::Report]) -> String {
    let rows = reports.iter().map(|r| {
        let when =
            r.admitted_time.map_or_else(|| "-".to_owned(), |t| prost_types::Timestamp { nanos: 0, ..t }.to_string());
        let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        vec![
            r.id.clone(),
            when,
            verdict(r.verdict()).to_owned(),
            level(r.consistency()).to_owned(),
            duration(r.held_took.as_ref()),
            or_dash(&r.snapshot_ref),
            r.label.clone(),
        ]
    });
    table(&["ID", "ASKED", "VERDICT", "LEVEL", "HELD", "SNAPSHOT", "LABEL"], rows)
}

/// One line of `watch`.
pub fn event(response: &proto::WatchResponse, program: &str) -> String {
    use proto::event::What;
    let Some(event) = &response.event else { return String::new() };
    let time = event.time.map_or_else(String::new, |t| t.to_string());
    let what = match &event.what {
        Some(What::Snapshot(report)) if report.id.is_empty() => "idle".to_owned(),
        Some(What::Snapshot(report) | What::Released(report)) => ended(report),
        Some(What::Phase(p)) => phase(proto::Phase::try_from(*p).unwrap_or_default()).to_owned(),
        Some(What::Step(step)) => {
            format!("{} {} {} {}", step.name, outcome(step.outcome()), duration(step.took.as_ref()), detail(step))
        }
        Some(What::Problem(problem)) => problems(std::slice::from_ref(problem)).trim_end().replace('\n', ";"),
        Some(What::Held(report)) => held(report, program),
        Some(What::Lagged(n)) => format!("missed {n} {}", plural(usize::try_from(*n).unwrap_or(2), "event", "events")),
        None => String::new(),
    };
    format!("{time} {} {what}", event.hold_id).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether anything may be frozen once this event has happened, if `before` it was.
pub fn holds_after(event: &proto::Event, before: bool) -> bool {
    use proto::event::What;
    let frozen = |phase: proto::Phase| match phase {
        proto::Phase::Quiescing | proto::Phase::Held | proto::Phase::Releasing => true,
        proto::Phase::Unspecified | proto::Phase::Idle | proto::Phase::Preparing | proto::Phase::Prepared => false,
    };
    match &event.what {
        Some(What::Phase(phase)) => frozen(proto::Phase::try_from(*phase).unwrap_or_default()),
        Some(What::Snapshot(report)) => frozen(report.phase()),
        Some(What::Held(_)) => true,
        Some(What::Released(_)) => false,
        Some(What::Step(_) | What::Problem(_) | What::Lagged(_)) | None => before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, kind: proto::StepKind, outcome: proto::StepOutcome) -> proto::Step {
        proto::Step { name: name.into(), kind: kind.into(), outcome: outcome.into(), ..Default::default() }
    }

    fn report() -> proto::Report {
        proto::Report {
            id: "3f2a".into(),
            consistency: proto::Consistency::Application.into(),
            remaining: Some(prost_types::Duration { seconds: 59, nanos: 998_000_000 }),
            steps: vec![
                step("fs:/var", proto::StepKind::Filesystem, proto::StepOutcome::Done),
                step("fs:/", proto::StepKind::Filesystem, proto::StepOutcome::Done),
                step("fs:/boot", proto::StepKind::Filesystem, proto::StepOutcome::Skipped),
                step("db:orders", proto::StepKind::Database, proto::StepOutcome::Done),
            ],
            ..Default::default()
        }
    }

    #[test]
    fn the_final_sentence_says_what_was_achieved_and_what_to_do() {
        assert_eq!(
            held(&report(), "holdstill"),
            "held: 2 file systems and 1 database, application-consistent, for at most 60 s (hold 3f2a): \
             take the snapshot, then `holdstill thaw 3f2a`"
        );
    }

    #[test]
    fn where_the_caller_freezes_it_is_told_to_do_so_before_the_snapshot() {
        let report = proto::Report {
            freeze_by: proto::FreezeBy::Caller.into(),
            consistency: proto::Consistency::Crash.into(),
            steps: vec![step("db:orders", proto::StepKind::Database, proto::StepOutcome::Done)],
            ..report()
        };
        assert_eq!(
            held(&report, "holdstill"),
            "held: 1 database, crash-consistent, for at most 60 s (hold 3f2a): \
             freeze what you freeze, take the snapshot, thaw that, then `holdstill thaw 3f2a`"
        );
    }

    #[test]
    fn a_broken_hold_says_why_and_what_to_throw_away() {
        let broken = proto::Report {
            verdict: proto::Verdict::Broken.into(),
            reason: proto::ReleaseReason::Deadline.into(),
            ..report()
        };
        assert_eq!(ended(&broken), "BROKEN: the deadline passed (hold 3f2a); throw away a snapshot cut in this hold");
    }

    #[test]
    fn nothing_ever_held_says_so() {
        let nothing = proto::Report { verdict: proto::Verdict::NeverHeld.into(), ..Default::default() };
        assert_eq!(released(&nothing, false), "nothing to let go: nothing was ever held");
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_blanks() {
        let rows = vec![vec!["a".to_owned(), "long".to_owned()], vec!["bbb".to_owned(), String::new()]];
        assert_eq!(table(&["X", "Y"], rows), "X    Y\na    long\nbbb\n");
    }

    #[test]
    fn a_check_with_reservations_is_ready_unless_strict() {
        let warning = proto::Problem { severity: proto::Severity::Warning.into(), ..Default::default() };
        let plan = proto::Report {
            steps: vec![step("fs:/", proto::StepKind::Filesystem, proto::StepOutcome::Planned)],
            problems: vec![warning],
            ..Default::default()
        };
        let response = proto::CheckResponse {
            plan: Some(plan),
            would_refuse: false,
            reachable: proto::Consistency::Filesystem.into(),
        };
        assert_eq!(
            readiness(&response, false),
            "ready, with 1 reservation: 1 file system can be held, file-system-consistent"
        );
        assert!(readiness(&response, true).starts_with("not ready under --strict"));
    }

    #[test]
    fn durations_have_the_digits_people_want() {
        let d = |seconds, nanos| duration(Some(&prost_types::Duration { seconds, nanos }));
        assert_eq!(
            (d(0, 1_234_000), d(3, 440_000_000), d(59, 999_000_000)),
            ("1.2 ms".into(), "3.4 s".into(), "60 s".into())
        );
        assert_eq!(duration(None), "-");
    }

    #[test]
    fn a_thaw_that_failed_is_in_the_sentence() {
        let step = |name: &str, outcome: proto::StepOutcome| proto::Step {
            name: name.into(),
            outcome: outcome.into(),
            ..Default::default()
        };
        let mut report = proto::Report { id: "n".into(), ..Default::default() };
        report.set_verdict(proto::Verdict::Unbroken);
        report.steps =
            vec![step("hook:10-a", proto::StepOutcome::Undone), step("hook:20-b", proto::StepOutcome::UndoFailed)];
        assert!(ended(&report).ends_with("; but letting go of hook:20-b failed"), "{}", ended(&report));
        report.steps.pop();
        assert!(!ended(&report).contains("failed"));
    }
}
