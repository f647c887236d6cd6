//! Promise: a caller that has lost its mind, whichever it is, cannot keep writers waiting. They get their time between two
//! holds, and beyond the budget of an hour holds are refused, which costs nobody anything.

use std::{fs, path::Path, time::Duration};

use serde_json::Value;

use crate::lab::{Daemon, Lab, Type, grpc::for_seconds, until};

facts! {
    a_spent_budget_refuses_every_caller_and_touches_nothing,
    a_spent_budget_is_spent_after_a_restart_too,
    a_rehearsal_costs_what_it_costs_and_a_refused_hold_nothing,
    writers_get_the_interval_between_two_holds,
    a_thaw_while_paced_ends_it,
    a_caller_killed_while_paced_ends_it,
    the_limit_for_preparing_ends_a_pause_too,
}

/// Two lines per hold, in seconds since boot: when its first step began, and when the file systems had thawed.
const NOTE: &str = "[ $1 = prepare ] || cut -d' ' -f1 /proc/uptime >>";

/// Spends a budget of 300 ms.
fn spend(daemon: &Daemon) {
    daemon.freeze(&["--id", "dear", "--for", "20s"]);
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(daemon.thaw()["verdict"], "unbroken", "the hold that spends the last of it is not cut short");
}

fn a_spent_budget_refuses_every_caller_and_touches_nothing(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).set("hold.hourly", "300ms").start();
    spend(&daemon);
    let touched = fs::metadata(fs.mount.join(".holdstill/state")).and_then(|m| m.modified()).expect("a receipt");
    let ran = lab.memory_dir("hook").join("ran");
    daemon.setup().hook("10-tell", &format!("echo $1 >>{}", ran.display()));
    let writer = lab.writer(&fs);

    for _ in 0..3 {
        let answer = daemon.cli(&["freeze", "--id", "next"]);
        answer.exits(4).says("`hourly` allows 300ms").says("possible again in").says("raise `hourly` in [hold]");
        assert_eq!((answer.reason(), &answer.json["error"]["hold_id"]), ("HOLD_BUDGET_SPENT", &Value::from("next")));
    }
    let refused = daemon.grpc().freeze("other", for_seconds(5)).expect_err("every caller");
    assert_eq!((refused.code, refused.reason.as_str()), (tonic::Code::ResourceExhausted, "HOLD_BUDGET_SPENT"));
    daemon.cli(&["rehearse"]).exits(4);
    daemon.cli(&["run", "--", "true"]).exits(125);
    let check = daemon.cli(&["check"]);
    check.exits(4).says("HOLD_BUDGET_SPENT");

    assert!(!ran.exists(), "a hook ran");
    let state = fs::metadata(fs.mount.join(".holdstill/state")).and_then(|m| m.modified()).expect("a receipt");
    assert_eq!(state, touched, "the receipt was written");
    assert!(writer.longest() < Duration::from_millis(300), "a refusal made a writer wait {:?}", writer.longest());
    let warnings = daemon.log().lines().filter(|l| l.contains("WARN") && l.contains("every hold is refused")).count();
    assert_eq!(warnings, 1, "it is logged, and once:\n{}", daemon.log());
    let history = daemon.cli(&["history"]).json;
    let ids: Vec<_> = history["reports"].as_array().expect("a list").iter().map(|r| r["id"].clone()).collect();
    assert_eq!(ids, ["dear"], "refused asks push nothing out of the history");
}

fn a_spent_budget_is_spent_after_a_restart_too(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).set("hold.hourly", "300ms").start();
    spend(&daemon);
    let daemon = daemon.again();
    assert_eq!(daemon.cli(&["freeze"]).exits(4).reason(), "HOLD_BUDGET_SPENT");
    drop(daemon);
    // and the time of a hold whose daemon was killed counts
    let daemon = lab.daemon(&[&fs]).set("hold.hourly", "300ms").start();
    daemon.freeze(&["--id", "lost", "--for", "20s"]);
    std::thread::sleep(Duration::from_millis(400));
    daemon.kill();
    let daemon = daemon.again();
    assert_eq!(daemon.cli(&["freeze"]).exits(4).reason(), "HOLD_BUDGET_SPENT");
}

fn a_rehearsal_costs_what_it_costs_and_a_refused_hold_nothing(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).set("hold.hourly", "150ms").start();
    for _ in 0..3 {
        daemon.cli(&["freeze", "--mount", "/mnt/nowhere"]).exits(4);
        daemon.cli(&["freeze", "--require", "application"]).exits(4);
    }
    // writers wait for the hook, too
    daemon.setup().hook("10-slow", "[ $1 = thaw ] || sleep 0.3");
    daemon.cli(&["rehearse"]).exits(0);
    assert_eq!(daemon.cli(&["freeze"]).exits(4).reason(), "HOLD_BUDGET_SPENT");
}

/// A daemon with an interval, and one hold behind it.
fn just_held<'lab>(lab: &'lab Lab, fs: &crate::lab::Fs, interval: &str, notes: &Path) -> Daemon<'lab> {
    let daemon = lab.daemon(&[fs]).set("hold.interval", interval).start();
    daemon.setup().hook("10-when", &format!("{NOTE}{}", notes.display()));
    daemon.freeze(&["--id", "first", "--for", "20s"]);
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    daemon
}

fn writers_get_the_interval_between_two_holds(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let notes = lab.memory_dir("notes").join("times");
    let daemon = just_held(lab, &fs, "2s", &notes);
    let report = daemon.freeze(&["--id", "second", "--for", "20s"]);
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    let times: Vec<f64> = fs::read_to_string(&notes)
        .expect("the hook ran")
        .lines()
        .map(|line| line.parse().expect("seconds since boot"))
        .collect();
    let [_, thawed, began, _] = times[..] else { panic!("{times:?}") };
    // the hook's clock has hundredths, and its thaw runs just after the file systems'
    assert!(began - thawed >= 1.9, "writers had {} s", began - thawed);
    let problems = report["problems"].as_array().expect("a list");
    let paced = problems.iter().find(|p| p["code"] == "PACED").unwrap_or_else(|| panic!("{report:#}"));
    assert_eq!(paced["severity"], "note", "{paced}");
    assert!(paced["message"].as_str().is_some_and(|m| m.contains("writers go on for 2s")), "{paced}");
}

/// Asks for a second hold and returns while it is paced.
fn paced(daemon: &Daemon, args: &[&str]) -> crate::lab::daemon::Running {
    let freezing = daemon.start_cli(&[&["freeze", "--id", "second"], args].concat());
    let is_paced = || daemon.cli(&["status"]).json["current"]["problems"].to_string().contains("PACED");
    assert!(until(Duration::from_secs(10), is_paced), "it is not paced");
    assert_eq!(daemon.phase(), "preparing");
    freezing
}

fn a_thaw_while_paced_ends_it(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let notes = lab.memory_dir("notes").join("times");
    let daemon = just_held(lab, &fs, "25s", &notes);
    let writer = lab.writer(&fs);
    let freezing = paced(&daemon, &[]);
    assert_eq!(daemon.thaw()["verdict"], "never_held");
    let answer = freezing.finish_within(Duration::from_secs(3));
    assert_eq!(answer.exits(1).reason(), "THAWED_MEANWHILE");
    assert_eq!(daemon.phase(), "idle");
    assert!(writer.longest() < Duration::from_millis(500), "somebody waited");
}

fn a_caller_killed_while_paced_ends_it(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let notes = lab.memory_dir("notes").join("times");
    let daemon = just_held(lab, &fs, "25s", &notes);
    paced(&daemon, &[]).kill();
    daemon.wait_for_phase("idle", Duration::from_secs(3));
}

fn the_limit_for_preparing_ends_a_pause_too(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let notes = lab.memory_dir("notes").join("times");
    let daemon = just_held(lab, &fs, "25s", &notes);
    let answer = paced(&daemon, &["--prepare", "2s"]).finish_within(Duration::from_secs(6));
    assert_eq!(answer.exits(1).reason(), "PREPARE_TIMEOUT");
}
