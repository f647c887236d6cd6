//! Words and numbers as people read them, and tables of them. Pure text.

use comfy_table::{Table, presets};

use crate::proto;

/// Columns aligned by two spaces, one row per line, without trailing blanks.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    if table.is_empty() {
        return String::new();
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().fold(String::new(), |out, line| out + line.trim_end() + "\n")
}

pub fn plural<'a>(n: usize, one: &'a str, many: &'a str) -> &'a str {
    if n == 1 { one } else { many }
}

/// "1.2 GB": powers of ten, as disks are sold.
pub fn bytes(n: u64) -> String {
    let units = [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    match units.into_iter().find(|(size, _)| n >= *size) {
        #[expect(clippy::cast_precision_loss, reason = "one digit after the point is shown")]
        Some((size, unit)) => format!("{:.1} {unit}", n as f64 / size as f64),
        None => format!("{n} bytes"),
    }
}

/// "1.2 ms", "3.4 s", "60 s"; "-" if absent.
pub fn duration(d: Option<&prost_types::Duration>) -> String {
    let Some(time) = d.and_then(|d| std::time::Duration::try_from(*d).ok()) else { return "-".to_owned() };
    match time.as_secs_f64() {
        s if s >= 10.0 => format!("{s:.0} s"),
        s if s >= 1.0 => format!("{s:.1} s"),
        s => format!("{:.1} ms", s * 1000.0),
    }
}

pub fn outcome(outcome: proto::StepOutcome) -> &'static str {
    match outcome {
        proto::StepOutcome::Unspecified => "-",
        proto::StepOutcome::Planned => "planned",
        proto::StepOutcome::Done => "done",
        proto::StepOutcome::Skipped => "skipped",
        proto::StepOutcome::Failed => "FAILED",
        proto::StepOutcome::Undone => "undone",
        proto::StepOutcome::UndoFailed => "UNDO FAILED",
    }
}

pub fn level(level: proto::Consistency) -> &'static str {
    match level {
        proto::Consistency::Unspecified | proto::Consistency::None => "not consistent",
        proto::Consistency::Crash => "crash-consistent",
        proto::Consistency::Filesystem => "file-system-consistent",
        proto::Consistency::Application => "application-consistent",
    }
}

pub fn reason(reason: proto::ReleaseReason) -> &'static str {
    match reason {
        proto::ReleaseReason::Unspecified => "not released",
        proto::ReleaseReason::Asked => "asked",
        proto::ReleaseReason::CallerGone => "the caller went away",
        proto::ReleaseReason::Deadline => "the deadline passed",
        proto::ReleaseReason::StepFailed => "a step failed",
        proto::ReleaseReason::Shutdown => "the daemon was stopped",
        proto::ReleaseReason::DaemonLost => "the daemon was lost",
        proto::ReleaseReason::WardenLost => "the warden was lost",
        proto::ReleaseReason::TimeJumped => "time jumped",
    }
}

pub fn verdict(verdict: proto::Verdict) -> &'static str {
    match verdict {
        proto::Verdict::Unspecified => "-",
        proto::Verdict::Unbroken => "unbroken",
        proto::Verdict::Broken => "BROKEN",
        proto::Verdict::NeverHeld => "never held",
    }
}

pub fn phase(phase: proto::Phase) -> &'static str {
    match phase {
        proto::Phase::Unspecified => "unknown",
        proto::Phase::Idle => "idle",
        proto::Phase::Preparing => "preparing",
        proto::Phase::Prepared => "prepared",
        proto::Phase::Quiescing => "quiescing",
        proto::Phase::Held => "held",
        proto::Phase::Releasing => "releasing",
    }
}

pub fn claim(claim: proto::Claim) -> &'static str {
    match claim {
        proto::Claim::Unspecified => "claim not known yet",
        proto::Claim::Exact => "exact",
        proto::Claim::Bounded => "bounded",
        proto::Claim::Recoverable => "recoverable only",
        proto::Claim::Uncovered => "NOT in the snapshot",
    }
}
