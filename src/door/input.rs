//! What a caller may send, checked before the driver sees any of it: bad input is a clear sentence and changes nothing.
//!
//! Each message begins with the field it is about, `spec.max_hold: …`.

use std::{fs, io, time::Duration};

use crate::{
    hold::{Refusal, RefusalKind},
    proto::{CaptureMode, Consistency, DiskSelector, FreezeBy, HoldSpec, disk_selector::By},
};

const LIST_MAX: usize = 4096;
const ENTRY_MAX: usize = 4096;
const LABEL_MAX: usize = 256;
const ID_MAX: usize = 64;
/// the most a google.protobuf.Duration may say, in seconds (duration.proto)
const SECONDS_MAX: i64 = 315_576_000_000;

/// A hold's id and spec, fit for the driver. An empty id is replaced by a random one.
pub(super) fn hold(id: String, spec: Option<HoldSpec>) -> Result<(String, HoldSpec), Refusal> {
    let id = if id.is_empty() { random_id()? } else { named(id)? };
    Ok((id, self::spec(spec)?))
}

/// An id that must be given.
pub(super) fn named(id: String) -> Result<String, Refusal> {
    let valid = id.len() <= ID_MAX
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if valid {
        return Ok(id);
    }
    let what = if id.is_empty() { "no id given".to_owned() } else { format!("`{}` is not an id", excerpt(&id)) };
    Err(malformed("MALFORMED_ID", "id", what)
        .hint("an id is 1 to 64 of A-Z a-z 0-9 . _ - and begins with a letter or digit"))
}

/// An id that may be empty.
pub(super) fn named_or_empty(id: String) -> Result<String, Refusal> {
    if id.is_empty() { Ok(id) } else { named(id) }
}

/// What a snapshot is called, for the history.
pub(super) fn snapshot_ref(text: String) -> Result<String, Refusal> {
    at_most("snapshot_ref", &text, ENTRY_MAX)?;
    Ok(text)
}

pub(super) fn spec(spec: Option<HoldSpec>) -> Result<HoldSpec, Refusal> {
    let spec = spec.unwrap_or_default();
    for (field, value) in [
        ("spec.max_hold", &spec.max_hold),
        ("spec.prepare_timeout", &spec.prepare_timeout),
        ("spec.quiesce_timeout", &spec.quiesce_timeout),
    ] {
        if let Some(value) = value {
            duration(field, value)?;
        }
    }
    if Consistency::try_from(spec.require).is_err() {
        return Err(malformed("UNKNOWN_VALUE", "spec.require", format!("{} is not a level", spec.require))
            .hint("application, filesystem or crash"));
    }
    if CaptureMode::try_from(spec.capture_mode).is_err() {
        return Err(malformed("UNKNOWN_VALUE", "spec.capture_mode", format!("{} is not a mode", spec.capture_mode))
            .hint("while-held or logs-after-thaw"));
    }
    if FreezeBy::try_from(spec.freeze_by).is_err() {
        let what = format!("{} is nobody this version knows", spec.freeze_by);
        return Err(malformed("UNKNOWN_VALUE", "spec.freeze_by", what).hint("the agent, or the caller"));
    }
    list("spec.include_mounts", &spec.include_mounts)?;
    list("spec.exclude_mounts", &spec.exclude_mounts)?;
    at_most("spec.label", &spec.label, LABEL_MAX)?;
    if let Some(scope) = &spec.scope {
        selectors("spec.scope.disks", &scope.disks)?;
    }
    Ok(spec)
}

/// A duration that is neither negative nor written in a way duration.proto forbids.
pub(super) fn duration(field: &str, value: &prost_types::Duration) -> Result<Duration, Refusal> {
    let prost_types::Duration { seconds, nanos } = *value;
    if seconds < 0 || nanos < 0 {
        return Err(malformed("MALFORMED_DURATION", field, "it is negative".to_owned()));
    }
    match (u64::try_from(seconds), u32::try_from(nanos)) {
        (Ok(s), Ok(n)) if seconds <= SECONDS_MAX && n < 1_000_000_000 => Ok(Duration::new(s, n)),
        _ => Err(malformed("MALFORMED_DURATION", field, format!("{seconds} s and {nanos} ns is not normalised"))
            .hint("nanos lie below 1000000000, seconds at or below 315576000000")),
    }
}

fn list(field: &str, entries: &[String]) -> Result<(), Refusal> {
    not_too_many(field, entries.len())?;
    entries.iter().enumerate().try_for_each(|(n, entry)| entry_is_usable(&format!("{field}[{n}]"), entry))
}

fn selectors(field: &str, disks: &[DiskSelector]) -> Result<(), Refusal> {
    if disks.is_empty() {
        return Err(malformed("MALFORMED_SCOPE", field, "a scope without a disk".to_owned())
            .hint("leave the scope out if you cannot say which disks the snapshot contains"));
    }
    not_too_many(field, disks.len())?;
    disks.iter().enumerate().try_for_each(|(n, disk)| {
        let field = format!("{field}[{n}]");
        match &disk.by {
            Some(By::Device(v) | By::Serial(v) | By::Wwn(v) | By::PciAddress(v) | By::Nguid(v)) => {
                entry_is_usable(&field, v)
            }
            None => Err(malformed("MALFORMED_SCOPE", &field, "nothing is set".to_owned())
                .hint("set device, serial, wwn, pci_address or nguid")),
        }
    })
}

fn not_too_many(field: &str, count: usize) -> Result<(), Refusal> {
    if count <= LIST_MAX {
        return Ok(());
    }
    Err(malformed("TOO_MANY", field, format!("{count} entries, at most {LIST_MAX} are accepted")))
}

fn entry_is_usable(field: &str, entry: &str) -> Result<(), Refusal> {
    if entry.is_empty() {
        return Err(malformed("EMPTY_ENTRY", field, "it is empty".to_owned()));
    }
    if entry.contains('\0') {
        return Err(malformed("MALFORMED_ENTRY", field, "it contains a zero byte".to_owned()));
    }
    at_most(field, entry, ENTRY_MAX)
}

fn at_most(field: &str, text: &str, limit: usize) -> Result<(), Refusal> {
    if text.len() <= limit {
        return Ok(());
    }
    Err(malformed("TOO_LONG", field, format!("{} bytes, at most {limit} are accepted", text.len())))
}

fn malformed(reason: &'static str, field: &str, what: String) -> Refusal {
    Refusal::new(RefusalKind::InvalidArgument, reason, format!("{field}: {what}"))
}

/// Enough of a bad value to recognise it by, on one line.
fn excerpt(text: &str) -> String {
    let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    if text.chars().nth(40).is_some() { shown + "…" } else { shown }
}

/// A random id for a caller that named none. Nobody else can know it, so such a freeze cannot be retried.
fn random_id() -> Result<String, Refusal> {
    uuid().map_err(|e| {
        Refusal::new(RefusalKind::Unavailable, "NO_RANDOM_ID", format!("no random id can be made: {e}"))
            .hint("name an id yourself")
    })
}

/// A fresh random UUID, see random(4).
///
/// # Errors
/// /proc is not mounted.
pub(super) fn uuid() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::SnapshotScope;

    fn with(change: impl FnOnce(&mut HoldSpec)) -> Result<HoldSpec, Refusal> {
        let mut spec = HoldSpec::default();
        change(&mut spec);
        super::spec(Some(spec))
    }

    fn refused(change: impl FnOnce(&mut HoldSpec)) -> String {
        let refusal = with(change).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::InvalidArgument);
        refusal.message
    }

    #[test]
    fn an_id_is_a_letter_or_digit_and_up_to_63_of_a_few_more() {
        for good in ["a", "7", "nightly-2026.07_1", &"x".repeat(64)] {
            assert_eq!(named(good.to_owned()).as_deref(), Ok(good));
        }
        for bad in ["", "-a", ".a", "_a", "a b", "a/b", "ä", "a\n", &"x".repeat(65)] {
            assert_eq!(named(bad.to_owned()).unwrap_err().reason, "MALFORMED_ID", "{bad:?}");
        }
        assert_eq!(named("a\n".repeat(99)).unwrap_err().message.lines().count(), 1);
    }

    #[test]
    fn an_empty_id_becomes_a_fresh_valid_one() {
        let (one, _) = hold(String::new(), None).unwrap();
        let (other, _) = hold(String::new(), None).unwrap();
        assert_ne!(one, other);
        assert_eq!(named(one.clone()), Ok(one));
    }

    #[test]
    fn durations_are_neither_negative_nor_unnormalised() {
        let of = |seconds, nanos| duration("spec.max_hold", &prost_types::Duration { seconds, nanos });
        assert_eq!(of(1, 500_000_000), Ok(Duration::from_millis(1500)));
        assert_eq!(of(0, 0), Ok(Duration::ZERO));
        for (seconds, nanos) in [(-1, 0), (0, -1), (1, -5), (0, 1_000_000_000), (i64::MAX, 0), (i64::MIN, i32::MIN)] {
            assert_eq!(of(seconds, nanos).unwrap_err().reason, "MALFORMED_DURATION", "{seconds} {nanos}");
        }
        let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
        assert_eq!(refused(|s| s.quiesce_timeout = negative), "spec.quiesce_timeout: it is negative");
        assert_eq!(refused(|s| s.prepare_timeout = negative), "spec.prepare_timeout: it is negative");
    }

    #[test]
    fn lists_are_bounded_in_number_and_length() {
        assert!(with(|s| s.include_mounts = vec!["m".repeat(4096); 4096]).is_ok());
        assert_eq!(
            refused(|s| s.include_mounts = vec!["/m".into(); 4097]),
            "spec.include_mounts: 4097 entries, at most 4096 are accepted"
        );
        assert_eq!(
            refused(|s| s.exclude_mounts = vec!["/a".into(), "m".repeat(4097)]),
            "spec.exclude_mounts[1]: 4097 bytes, at most 4096 are accepted"
        );
        assert_eq!(refused(|s| s.include_mounts = vec![String::new()]), "spec.include_mounts[0]: it is empty");
        assert_eq!(refused(|s| s.label = "l".repeat(257)), "spec.label: 257 bytes, at most 256 are accepted");
        assert!(with(|s| s.label = "l".repeat(256)).is_ok());
    }

    #[test]
    fn a_scope_says_which_disks_or_is_left_out() {
        let scope = |disks| move |s: &mut HoldSpec| s.scope = Some(SnapshotScope { disks });
        let vda = DiskSelector { by: Some(By::Device("vda".into())) };
        assert!(with(scope(vec![vda.clone()])).is_ok());
        assert_eq!(refused(scope(vec![vda, DiskSelector { by: None }])), "spec.scope.disks[1]: nothing is set");
        assert_eq!(
            refused(scope(vec![DiskSelector { by: Some(By::Wwn(String::new())) }])),
            "spec.scope.disks[0]: it is empty"
        );
        assert_eq!(refused(scope(vec![])), "spec.scope.disks: a scope without a disk");
    }

    #[test]
    fn a_value_from_a_newer_contract_is_refused_not_guessed() {
        assert_eq!(refused(|s| s.require = 99), "spec.require: 99 is not a level");
        assert_eq!(refused(|s| s.capture_mode = 99), "spec.capture_mode: 99 is not a mode");
        assert_eq!(refused(|s| s.freeze_by = 99), "spec.freeze_by: 99 is nobody this version knows");
    }
}
