//! Receipts: what the disks themselves can testify, live and as copies.

use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::{
    Daemon, Lab, Type,
    disk::{Fs, needs_recovery},
    now,
    process::{command, signal, tool},
    until,
};

facts! {
    a_receipt_lies_on_every_held_file_system_and_says_released_after_the_thaw,
    a_copy_taken_while_held_says_frozen_and_needs_no_recovery within 60,
    a_copy_of_a_live_disk_does_not_say_frozen within 60,
    a_foreign_thaw_changes_the_disks_own_testimony,
    the_deadline_changes_the_disks_own_testimony,
    a_killed_daemon_still_gets_its_disks_testimony_changed,
    a_failed_freeze_is_recorded_as_aborted,
    a_full_disk_is_held_without_a_receipt_and_that_is_said,
    a_disk_that_is_full_by_the_next_hold_still_testifies within 90,
    a_disk_remounted_read_only_is_left_out_and_keeps_its_old_testimony within 60,
    a_disk_remounted_read_only_in_the_middle_is_never_called_held within 60,
    receipts_can_be_switched_off,
    verify_knows_a_copy_of_the_whole_hold_from_a_part_of_it within 60,
}

/// What `holdstill receipt` says about the file system at `at`, as it says it.
fn receipt(lab: &Lab, at: &Path) -> Value {
    let answer = lab.holdstill(&["--json", "receipt", at.to_str().expect("ASCII")]);
    answer.exits(0);
    answer.json
}

/// The values of every member called `name`, however deep.
fn all<'a>(value: &'a Value, name: &str) -> Vec<&'a str> {
    match value {
        Value::Object(members) => {
            let own = members.iter().filter(|(key, _)| *key == name).filter_map(|(_, v)| v.as_str());
            own.chain(members.values().flat_map(|v| all(v, name))).collect()
        }
        Value::Array(items) => items.iter().flat_map(|v| all(v, name)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

/// docs/receipt.schema.json is for programs that read receipts.
fn is_as_published(record: &Value) {
    let schema = include_str!("../../docs/receipt.schema.json").parse().expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let errors: Vec<String> = validator.iter_errors(record).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert_eq!(errors, Vec::<String>::new(), "{record:#}");
    assert!(record["report"]["machine"]["boot_id"].as_str().is_some_and(|id| !id.is_empty()), "whose is it?");
    assert!(record["report"]["coverage"].to_string().contains("size_bytes"), "which disks?");
}

fn state(lab: &Lab, at: &Path) -> String {
    all(&receipt(lab, at), "state").first().copied().unwrap_or("no state").to_owned()
}

fn comes_to_say(lab: &Lab, at: &Path, wanted: &str) {
    let mut last = String::new();
    let says = until(Duration::from_secs(5), || {
        last = state(lab, at);
        last == wanted
    });
    assert!(says, "the receipt says {last}, not {wanted}");
}

fn a_receipt_lies_on_every_held_file_system_and_says_released_after_the_thaw(lab: &Lab) {
    let disks = [lab.fs(Type::Ext4), lab.fs(Type::Xfs), lab.fs(Type::Btrfs)];
    let daemon = lab.daemon(&disks.iter().collect::<Vec<_>>()).start();
    daemon.freeze(&["--id", "kept", "--for", "10s"]);
    daemon.thaw();
    for fs in &disks {
        let dir = fs.mount.join(".holdstill");
        let mode = dir.metadata().expect("it lies there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o700, "everybody can read {}", dir.display());
        let said = receipt(lab, &fs.mount);
        assert!(all(&said, "hold_id").contains(&"kept"), "{said:#}");
        comes_to_say(lab, &fs.mount, "released");
        let said = receipt(lab, &fs.mount);
        assert!(said.to_string().contains("unbroken"), "the verdict is missing");
        is_as_published(&said["receipt"]);
    }
}

fn a_copy_taken_while_held_says_frozen_and_needs_no_recovery(lab: &Lab) {
    for kind in [Type::Ext4, Type::Xfs] {
        let fs = lab.fs(kind);
        let daemon = lab.daemon(&[&fs]).start();
        let writer = lab.writer(&fs);
        daemon.freeze(&["--id", "copied", "--for", "20s"]);
        let copy = fs.copy();
        assert_eq!(daemon.thaw()["verdict"], "unbroken");
        writer.assert_writable_within(Duration::from_secs(2));
        if kind == Type::Ext4 {
            assert!(!needs_recovery(&copy), "the copy's journal would be replayed");
        }
        let copied = lab.mount_copy(kind, &copy);
        assert_eq!(state(lab, &copied.mount), "frozen", "{}", kind.name());
        assert!(all(&receipt(lab, &copied.mount), "hold_id").contains(&"copied"));
        comes_to_say(lab, &fs.mount, "released");
        drop(writer);
    }
}

fn a_copy_of_a_live_disk_does_not_say_frozen(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    let writer = lab.writer(&fs);
    daemon.freeze(&["--for", "10s"]);
    daemon.thaw();
    comes_to_say(lab, &fs.mount, "released");
    writer.assert_writable_within(Duration::from_secs(2));
    nix::unistd::sync();
    let copied = lab.mount_copy(Type::Ext4, &fs.copy());
    assert_ne!(state(lab, &copied.mount), "frozen");
    drop(writer);
}

fn a_foreign_thaw_changes_the_disks_own_testimony(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    daemon.freeze(&["--for", "20s"]);
    assert!(fs.thaw_by_others(), "it was frozen");
    comes_to_say(lab, &fs.mount, "released");
    assert_eq!(daemon.thaw()["verdict"], "broken");
}

fn the_deadline_changes_the_disks_own_testimony(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    daemon.freeze(&["--for", "1s"]);
    assert_eq!(state(lab, &fs.mount), "frozen", "reading it needs no write");
    comes_to_say(lab, &fs.mount, "released");
    daemon.thaw();
}

fn a_killed_daemon_still_gets_its_disks_testimony_changed(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    let writer = lab.writer(&fs);
    daemon.freeze(&["--for", "20s"]);
    writer.assert_blocked();
    let warden = daemon.warden();
    let killed = now();
    daemon.kill();
    signal(warden, Signal::SIGKILL);
    writer.resumed_after(killed, Duration::from_secs(2));
    comes_to_say(lab, &fs.mount, "released");
}

fn a_failed_freeze_is_recorded_as_aborted(lab: &Lab) {
    let (kept, failing) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    let daemon = lab.daemon(&[&kept, &failing]).start();
    // by the time the file systems' turn comes, somebody else has frozen one
    daemon.setup().hook("10-late", &format!("[ $1 = freeze ] && fsfreeze -f {}; exit 0", failing.at()));
    let answer = daemon.cli(&["freeze", "--for", "10s"]);
    assert!(matches!(answer.code, Some(1 | 4)), "{answer:?}");
    comes_to_say(lab, &kept.mount, "aborted");
    assert!(kept.writable_within(Duration::from_secs(2)));
    assert!(failing.thaw_by_others(), "the foreign freeze was stolen");
}

fn said_of(daemon: &Daemon, words: &str) -> bool {
    let report = daemon.thaw();
    report.to_string().to_lowercase().contains(words)
}

fn a_full_disk_is_held_without_a_receipt_and_that_is_said(lab: &Lab) {
    let fs = lab.fs_at(Type::Ext4, Path::new("/mnt/full"), 16);
    let filler = std::fs::File::create(fs.mount.join("filler")).expect("it is writable");
    let block = vec![7_u8; 4096];
    while std::io::Write::write_all(&mut &filler, &block).is_ok() {}
    for n in 0.. {
        // directories need inodes and blocks too
        if std::fs::create_dir(fs.mount.join(format!("d{n}"))).is_err() {
            break;
        }
    }
    let daemon = lab.daemon(&[&fs]).start();
    let answer = daemon.cli(&["freeze", "--for", "10s"]);
    answer.exits(0);
    assert!(!fs.writable_within(Duration::from_millis(300)), "it should be frozen");
    assert!(said_of(&daemon, "receipt"), "nothing says that this copy will not be provable");
}

/// Takes every block and many inodes.
fn fill(fs: &Fs<'_>) {
    let filler = std::fs::File::create(fs.mount.join("filler")).expect("it is writable");
    let mut at = 0;
    for size in [64 << 20, 1 << 20, 4096] {
        while nix::fcntl::fallocate(&filler, nix::fcntl::FallocateFlags::empty(), at, size).is_ok() {
            at += size;
        }
    }
    // a file of its own where no more fits into that one: btrfs keeps small ones in its metadata
    for n in 0..100_000 {
        if std::fs::write(fs.mount.join(format!("small-{n}")), [7; 1500]).is_err() {
            break;
        }
    }
}

fn a_disk_that_is_full_by_the_next_hold_still_testifies(lab: &Lab) {
    for kind in [Type::Ext4, Type::Xfs, Type::Btrfs] {
        let fs = lab.fs(kind);
        let daemon = lab.daemon(&[&fs]).start();
        daemon.freeze(&["--id", "roomy", "--for", "10s"]);
        daemon.thaw();
        comes_to_say(lab, &fs.mount, "released");
        fill(&fs);
        let name = kind.name();
        assert!(std::fs::write(fs.mount.join("one-more"), vec![7; 65536]).is_err(), "{name} is not full");
        daemon.freeze(&["--id", "full", "--for", "20s"]);
        let copy = fs.copy();
        let report = daemon.thaw();
        assert_eq!(report["verdict"], "unbroken", "{name}: {report:#}");
        let without = report["problems"].to_string().contains("NO_RECEIPT");
        assert!(!without, "{name}: {report:#}");
        comes_to_say(lab, &fs.mount, "released");
        let copied = lab.mount_copy(kind, &copy);
        assert_eq!(state(lab, &copied.mount), "frozen", "{name}");
        let said = receipt(lab, &copied.mount);
        assert!(all(&said, "hold_id").contains(&"full"), "{name}: {said:#}");
    }
}

fn a_disk_remounted_read_only_is_left_out_and_keeps_its_old_testimony(lab: &Lab) {
    let (kept, closed) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    let daemon = lab.daemon(&[&kept, &closed]).start();
    daemon.freeze(&["--id", "before", "--for", "10s"]);
    daemon.thaw();
    comes_to_say(lab, &closed.mount, "released");
    tool(command("mount").args(["-o", "remount,ro", closed.at()]));
    daemon.freeze(&["--id", "after", "--for", "10s"]);
    let report = daemon.thaw();
    assert_eq!(report["verdict"], "unbroken", "{report:#}");
    let step = report["steps"].as_array().expect("a list").iter().find(|s| s["name"] == closed.step()).expect("listed");
    assert_eq!((&step["outcome"], &step["reason"]), (&"skipped".into(), &"read-only".into()), "{step:#}");
    assert!(all(&receipt(lab, &closed.mount), "hold_id").contains(&"before"));
    assert!(all(&receipt(lab, &kept.mount), "hold_id").contains(&"after"));
}

fn a_disk_remounted_read_only_in_the_middle_is_never_called_held(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    daemon.setup().hook("10-remount", &format!("[ $1 != freeze ] || mount -o remount,ro {}", fs.at()));
    let answer = daemon.cli(&["--json", "freeze", "--id", "closed", "--for", "10s"]);
    let verdict = daemon.thaw()["verdict"].clone();
    // no write can be seen to wait on it, so nothing proves that it was frozen
    assert!(answer.code != Some(0) || verdict == "broken", "held without a proof: {answer:?}, {verdict}");
    tool(command("mount").args(["-o", "remount,rw", fs.at()]));
    assert!(fs.writable_within(Duration::from_secs(2)), "left frozen");
}

fn receipts_can_be_switched_off(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).set("receipt.enabled", false).start();
    let writer = lab.writer(&fs);
    daemon.freeze(&["--for", "20s"]);
    writer.assert_blocked();
    assert_eq!(daemon.thaw()["verdict"], "unbroken", "a hold without a receipt has another sentinel");
    assert!(!fs.mount.join(".holdstill").exists());
    daemon.freeze(&["--for", "20s"]);
    assert!(fs.thaw_by_others(), "it was frozen");
    writer.assert_writable_within(Duration::from_secs(2));
    assert_eq!(daemon.thaw()["verdict"], "broken", "without a receipt a foreign thaw went unnoticed");
}

fn verify_knows_a_copy_of_the_whole_hold_from_a_part_of_it(lab: &Lab) {
    let disks = [lab.fs(Type::Ext4), lab.fs(Type::Ext4)];
    let daemon = lab.daemon(&disks.iter().collect::<Vec<_>>()).start();
    daemon.freeze(&["--id", "pair", "--for", "20s"]);
    let copies = [disks[0].copy(), disks[1].copy()];
    let record = lab.memory_dir("record").join("thaw.json");
    std::fs::write(&record, daemon.cli(&["thaw"]).exits(0).out.as_str()).expect("memory");
    let mounted = [lab.mount_copy(Type::Ext4, &copies[0]), lab.mount_copy(Type::Ext4, &copies[1])];
    let whole = lab.holdstill(&["--json", "verify", mounted[0].at(), mounted[1].at()]);
    whole.exits(0);
    assert_eq!(whole.json["hold_id"], "pair", "{whole:?}");
    let record = record.to_str().expect("ASCII");
    let proven = lab.holdstill(&["--json", "verify", "--record", record, mounted[0].at(), mounted[1].at()]);
    proven.exits(0);
    assert_eq!(proven.json["grade"], "proven", "{proven:?}");
    let part = lab.holdstill(&["--json", "verify", mounted[0].at()]);
    part.exits(3).says(disks[1].at());
    comes_to_say(lab, &disks[0].mount, "released");
    let live = lab.holdstill(&["--json", "verify", disks[0].at(), disks[1].at()]);
    live.exits(3);
}
