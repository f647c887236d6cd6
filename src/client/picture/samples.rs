//! A hold as tests draw it: twenty seconds of preparing, five milliseconds of freezing.

use crate::proto::{self, StepKind, StepOutcome, step::Detail};

#[expect(clippy::unnecessary_wraps, reason = "fields of the contract are optional")]
pub fn millis(millis: u32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration {
        seconds: i64::from(millis / 1000),
        nanos: i32::try_from(millis % 1000).expect("below 1000") * 1_000_000,
    })
}

fn step(name: &str, kind: StepKind, outcome: StepOutcome, times: [u32; 4]) -> proto::Step {
    let [began, took, undo_began, undo_took] = times.map(millis);
    proto::Step {
        name: name.into(),
        kind: kind.into(),
        outcome: outcome.into(),
        began,
        took,
        undo_began,
        undo_took,
        ..Default::default()
    }
}

fn disk(disk: &str, mount: &str, told: proto::InSnapshot, size: u64, used: u64) -> proto::Coverage {
    let mut entry = proto::Coverage {
        disk: disk.into(),
        mounts: vec![mount.into()],
        size_bytes: size,
        used_bytes: used,
        r#type: "ext4".into(),
        ..Default::default()
    };
    entry.set_in_snapshot(told);
    entry.set_durability(proto::Durability::Durable);
    entry
}

pub fn hold() -> proto::Report {
    let file_system = |name: &str, mount: &str, times| proto::Step {
        detail: Some(Detail::Filesystem(proto::Filesystem {
            mount: mount.into(),
            r#type: "ext4".into(),
            source: "/dev/vda1".into(),
            major: 254,
            ..Default::default()
        })),
        ..step(name, StepKind::Filesystem, StepOutcome::Undone, times)
    };
    let mut report = proto::Report {
        id: "nightly".into(),
        label: "before the upgrade".into(),
        admitted_time: Some(prost_types::Timestamp { seconds: 1_795_000_000, nanos: 0 }),
        prepare_took: millis(20_000),
        quiesce_took: millis(5),
        held_took: millis(2000),
        release_took: millis(12),
        steps: vec![
            step("hook:10-orders", StepKind::Hook, StepOutcome::Undone, [20_000, 2, 22_009, 3]),
            step("db:orders", StepKind::Database, StepOutcome::Undone, [20_002, 1, 22_006, 2]),
            file_system("fs:/srv", "/srv", [20_003, 2, 22_005, 1]),
            file_system("fs:/", "/", [20_004, 1, 22_005, 1]),
        ],
        ..Default::default()
    };
    report.set_verdict(proto::Verdict::Unbroken);
    report.set_consistency(proto::Consistency::Application);
    let mut skipped = step("fs:/boot/efi", StepKind::Filesystem, StepOutcome::Skipped, [0; 4]);
    (skipped.began, skipped.took, skipped.undo_began, skipped.undo_took) = (None, None, None, None);
    skipped.reason = "flushed, not frozen: vfat has no freeze operation".into();
    report.steps.push(skipped);
    let mut lost = disk("vdb", "/mnt", proto::InSnapshot::No, 30_000_000_000, 1_200_000_000);
    lost.set_durability(proto::Durability::Transient);
    lost.at_risk = vec!["db:orders".into(), "docker".into()];
    let mut memory = disk("tmpfs:/run", "/run", proto::InSnapshot::No, 800_000_000, 4096);
    memory.r#type = "tmpfs".into();
    report.coverage = vec![
        disk("vda1", "/", proto::InSnapshot::Yes, 40_000_000_000, 8_000_000_000),
        disk("vdc", "/srv", proto::InSnapshot::Yes, 100_000_000_000, 61_000_000_000),
        lost,
        memory,
    ];
    report
}

/// Texts that somebody would like to see carried out.
pub const HOSTILE: &[&str] = &[
    "<script>alert(1)</script>",
    "\"/><image href=\"https://example.com/x\"/>",
    "' onload='alert(1)",
    "]]>&#x1b;&nbsp;&",
    "\u{1b}]0;owned\u{7}\u{1b}[2J",
    "\0\u{b}\u{fffe}\u{202e}\u{9b}31m",
    "<!-- -- >",
    "${jndi:ldap://example.com}",
];

/// Every text of a report is `text`.
pub fn all(text: &str) -> proto::Report {
    let mut report = hold();
    (report.id, report.label, report.caller) = (text.into(), text.into(), text.into());
    report.snapshot_ref = text.into();
    for step in &mut report.steps {
        (step.name, step.reason) = (text.into(), text.into());
    }
    for entry in &mut report.coverage {
        (entry.disk, entry.r#type) = (text.into(), text.into());
        entry.mounts = vec![text.into(); 5];
        entry.at_risk = vec![text.into(); 20];
    }
    report.breaches = vec![proto::Problem { message: text.into(), ..Default::default() }];
    report
}
