//! Several copies as one: of one hold, all that was held, and what the caller's record says of each.

use serde_json::Value;

use super::{super::plan::problem, super::receipt::Found, Presented, plain};
use crate::proto::{self, Severity, StepOutcome, Verdict, step::Detail};

/// The hold they are all of; empty if there is none, or several.
pub(super) fn one_hold(filesystems: &[Presented], problems: &mut Vec<proto::Problem>) -> String {
    let mut ids: Vec<&str> = filesystems.iter().filter_map(Presented::hold_id).collect();
    ids.sort_unstable();
    ids.dedup();
    match ids.as_slice() {
        [one] => plain::text(one),
        [] => String::new(),
        several => {
            let several: Vec<String> = several.iter().take(8).map(|id| plain::text(id)).collect();
            let message = format!("the copies are of different holds: {}", several.join(", "));
            problems.push(problem(Severity::Refusal, "NOT_ONE_HOLD", "", &message, "present copies of one snapshot"));
            String::new()
        }
    }
}

/// Says which held file systems were not presented: those of the receipt and, of the same hold, of the caller's record.
pub(super) fn missing(
    filesystems: &[Presented],
    record: Option<&proto::Report>,
    problems: &mut Vec<proto::Problem>,
) -> bool {
    let presented: Vec<&str> =
        filesystems.iter().filter_map(|f| f.found.as_ref()).map(|f| f.sector.fs_uuid.as_str()).collect();
    let Some(first) = filesystems.iter().find(|f| f.found.is_some()) else { return false };
    let mut held: Vec<(String, String)> = Vec::new();
    for step in first.told["report"]["steps"].as_array().into_iter().flatten() {
        let fs = &step["filesystem"];
        if fs.is_object() && !matches!(step["outcome"].as_str(), Some("skipped") | None) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            held.push((text(&fs["uuid"]), text(&fs["mount"])));
        }
    }
    let same = record.filter(|record| first.hold_id() == Some(record.id.as_str()));
    for step in same.iter().flat_map(|record| &record.steps).filter(|step| step.outcome() != StepOutcome::Skipped) {
        if let Some(Detail::Filesystem(fs)) = &step.detail {
            held.push((plain::text(&fs.uuid), plain::text(&fs.mount)));
        }
    }
    if first.told["report"]["truncated"] == true && held.is_empty() {
        let message = "which other file systems were held is not in this receipt: there was no room for it";
        let hint = "give the caller's record of the hold with --record";
        problems.push(problem(Severity::Warning, "RECEIPT_SHORTENED", &first.name, message, hint));
    }
    held.retain(|(uuid, _)| !uuid.is_empty() && !presented.contains(&uuid.as_str()));
    held.sort_unstable();
    held.dedup_by(|a, b| a.0 == b.0);
    for (uuid, mount) in &held {
        let message = format!("{mount} (UUID {uuid}) was held together with these and is not presented");
        problems.push(problem(Severity::Warning, "FILESYSTEM_MISSING", mount, &message, "present its copy, too"));
    }
    !held.is_empty()
}

/// Does the caller's record prove this one?
pub(super) fn against(record: &proto::Report, found: &Found) -> Result<(), String> {
    if record.id != found.sector.hold_id {
        let (theirs, ours) = (plain::text(&record.id), plain::text(&found.sector.hold_id));
        return Err(format!("it is of the hold {theirs}, the receipt of {ours}"));
    }
    if record.verdict() != Verdict::Unbroken {
        return Err("its verdict is not unbroken".into());
    }
    let named = record.steps.iter().filter(|s| s.outcome() != StepOutcome::Skipped).any(|s| match &s.detail {
        Some(Detail::Filesystem(fs)) => !fs.uuid.is_empty() && fs.uuid == found.sector.fs_uuid,
        Some(Detail::Database(_) | Detail::Hook(_)) | None => false,
    });
    if named { Ok(()) } else { Err("it does not name this file system's UUID".into()) }
}
