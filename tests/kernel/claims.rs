//! Promise: never claims what it has not proven.

use std::time::Duration;

use crate::lab::{Lab, Type, daemon::step, now, process::command};

facts! {
    while_held_not_one_write_gets_through_and_the_verdict_is_unbroken,
    a_foreign_thaw_breaks_the_hold_and_names_the_file_system,
    with_nothing_to_hold_a_freeze_is_refused,
    application_without_database_or_hook_is_unreachable,
    a_required_hook_that_succeeds_makes_it_application,
    an_optional_hook_that_fails_does_not_pass_as_application,
    an_engine_that_nobody_holds_lowers_the_level_unless_a_hook_says_that_it_does,
    a_hook_killed_by_a_signal_is_a_failure,
    a_rehearsal_leaves_no_receipt,
    check_touches_nothing,
    check_while_held_answers_and_says_what_it_did_not_ask,
}

fn while_held_not_one_write_gets_through_and_the_verdict_is_unbroken(lab: &Lab) {
    let disks = [lab.fs(Type::Ext4), lab.fs(Type::Xfs), lab.fs(Type::Btrfs)];
    let daemon = lab.daemon(&disks.iter().collect::<Vec<_>>()).start();
    let writers: Vec<_> = disks.iter().map(|fs| lab.writer(fs)).collect();
    let report = daemon.freeze(&["--id", "still", "--for", "10s", "--label", "nightly"]);
    let counts = || writers.iter().map(|w| w.progress().count).collect::<Vec<_>>();
    let at_first = counts();
    assert_eq!((&report["consistency"], &report["label"]), (&"filesystem".into(), &"nightly".into()), "{report:#}");
    for fs in &disks {
        let step = step(&report, &fs.step());
        assert_eq!((&step["outcome"], &step["kind"]), (&"done".into(), &"filesystem".into()), "{report:#}");
        assert_eq!(step["filesystem"]["type"], fs.kind.name());
    }
    for writer in &writers {
        writer.assert_blocked();
    }
    // a write that had passed the gate may have been counted after the answer: one, not more
    assert!(counts().iter().zip(&at_first).all(|(now, first)| now - first <= 1), "{at_first:?} → {:?}", counts());
    let answer = daemon.cli(&["thaw", "still", "--snapshot-ref", "snap-7"]);
    answer.exits(0);
    let report = answer.report();
    assert_eq!((&report["verdict"], &report["snapshot_ref"]), (&"unbroken".into(), &"snap-7".into()), "{report:#}");
    lab.assert_tunable_restored();
}

fn a_foreign_thaw_breaks_the_hold_and_names_the_file_system(lab: &Lab) {
    let (kept, thawed) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    let daemon = lab.daemon(&[&kept, &thawed]).start();
    let writer = lab.writer(&thawed);
    daemon.freeze(&["--for", "10s"]);
    writer.assert_blocked();
    let at = now();
    assert!(thawed.thaw_by_others(), "it was frozen");
    writer.resumed_after(at, Duration::from_secs(2));
    let answer = daemon.cli(&["thaw"]);
    answer.exits(3);
    let report = answer.report();
    assert_eq!(report["verdict"], "broken");
    let breaches = report["breaches"].as_array().expect("why it is broken");
    let names = |fs: &crate::lab::Fs| breaches.iter().any(|b| b.to_string().contains(fs.at()));
    assert!(names(&thawed) && !names(&kept), "{breaches:?}");
    assert!(kept.writable_within(Duration::from_secs(2)) && thawed.writable_within(Duration::from_secs(2)));
}

fn with_nothing_to_hold_a_freeze_is_refused(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    let answer = daemon.cli(&["freeze", "--exclude", fs.at()]);
    answer.exits(4);
    assert_eq!(answer.reason(), "NOTHING_TO_HOLD", "{answer:?}");
    assert_eq!(daemon.phase(), "idle");
}

fn application_without_database_or_hook_is_unreachable(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    let writer = lab.writer(&fs);
    let answer = daemon.cli(&["freeze", "--require", "application"]);
    answer.exits(4);
    assert_eq!(answer.reason(), "LEVEL_UNREACHABLE", "{answer:?}");
    assert!(writer.longest() < Duration::from_millis(500), "somebody waited for a refusal");
    daemon.cli(&["check", "--require", "application"]).exits(4);
    daemon.cli(&["check", "--require", "filesystem"]).exits(0);
}

fn a_required_hook_that_succeeds_makes_it_application(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).set("hold.require", "application").start();
    daemon.setup().hook("10-app", "echo \"$1 said\"");
    let report = daemon.freeze(&[]);
    assert_eq!((&report["consistency"], &report["required"]), (&"application".into(), &"application".into()));
    let report = daemon.thaw();
    assert_eq!(report["verdict"], "unbroken");
    let hook = step(&report, "hook:10-app");
    assert!(hook["hook"]["output_tail"].as_str().is_some_and(|t| t.contains("said")), "{hook:#}");
}

fn an_optional_hook_that_fails_does_not_pass_as_application(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    daemon.setup().hook("10-app", "[ $1 = thaw ]");
    std::fs::write(daemon.setup().hooks_dir().join("10-app.toml"), "required = false\n").expect("memory");
    let report = daemon.freeze(&[]);
    assert_eq!(report["consistency"], "filesystem", "{report:#}");
    assert_eq!(step(&report, "hook:10-app")["outcome"], "failed");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    let answer = daemon.cli(&["freeze", "--require", "application"]);
    assert!(matches!(answer.code, Some(1 | 4)), "it was required, and is not so: {answer:?}");
    assert_eq!(daemon.phase(), "idle");
}

fn an_engine_that_nobody_holds_lowers_the_level_unless_a_hook_says_that_it_does(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    // servers are told by their names
    let server = lab.memory_dir("server").join("etcd");
    std::fs::copy("/bin/sleep", &server).expect("memory");
    let mut running = command(server.to_str().expect("ASCII")).arg("100").spawn().expect("it starts");
    let daemon = lab.daemon(&[&fs]).set("databases.discover", true).start();
    daemon.setup().hook("10-etcd", "");
    let report = daemon.freeze(&[]);
    assert_eq!(report["consistency"], "filesystem", "{report:#}");
    assert!(report["problems"].to_string().contains("--holds etcd"), "{report:#}");
    daemon.thaw();
    std::fs::write(daemon.setup().hooks_dir().join("10-etcd.toml"), "holds = [\"etcd\"]\n").expect("memory");
    let report = daemon.freeze(&[]);
    assert_eq!(report["consistency"], "application", "{report:#}");
    assert!(report["problems"].to_string().contains("held by the hook 10-etcd"), "{report:#}");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    running.kill().and_then(|()| running.wait()).expect("it was ours");
}

fn a_hook_killed_by_a_signal_is_a_failure(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    daemon.setup().hook("10-app", "[ $1 = freeze ] && kill -KILL $$; exit 0");
    let answer = daemon.cli(&["freeze", "--id", "doomed"]);
    answer.exits(1).says("10-app");
    assert_eq!(answer.reason(), "STEP_FAILED", "{answer:?}");
    let history = daemon.cli(&["history", "doomed"]);
    let report = history.report();
    assert_eq!(step(&report, "hook:10-app")["hook"]["signal"], 9, "{report:#}");
    assert_eq!(report["verdict"], "never_held");
}

fn a_rehearsal_leaves_no_receipt(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    let writer = lab.writer(&fs);
    daemon.cli(&["rehearse"]).exits(0);
    assert!(!fs.mount.join(".holdstill/receipt.json").exists(), "a rehearsal left a receipt");
    assert_eq!(daemon.phase(), "idle");
    writer.assert_writable_within(Duration::from_secs(2));
}

fn check_while_held_answers_and_says_what_it_did_not_ask(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    daemon.freeze(&["--for", "10s"]);
    let answer = daemon.cli(&["check"]);
    answer.exits(0);
    let problems = answer.json["plan"]["problems"].as_array().cloned().unwrap_or_default();
    assert!(problems.iter().any(|p| p["code"] == "HOLD_IN_PROGRESS"), "{problems:#?}");
    assert_eq!(daemon.phase(), "held");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
}

fn check_touches_nothing(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    let writer = lab.writer(&fs);
    let answer = daemon.cli(&["check"]);
    answer.exits(0);
    assert_eq!((&answer.json["would_refuse"], &answer.json["reachable"]), (&false.into(), &"filesystem".into()));
    assert!(!fs.mount.join(".holdstill").exists(), "check wrote to the file system");
    assert!(writer.longest() < Duration::from_millis(500), "check made a writer wait");
    assert_eq!(daemon.cli(&["history"]).exits(0).json["reports"].as_array().map(Vec::len), Some(0));
}
