//! What a hook finds when it runs: the same in every phase, and when nobody but rescue is left to run it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
};

use super::story::{Story, story, story_over};
use crate::lab::{Lab, Type, daemon::step};

facts! {
    hooks_see_which_hold_they_serve,
    hooks_run_in_a_defined_place,
    hooks_find_the_report_so_far,
    hooks_know_when_they_will_be_ended,
    hooks_of_a_lost_hold_know_whose_they_are,
}

/// hooks/README.md: all of them, always.
const NAMES: [&str; 15] = [
    "HOLDSTILL_DEADLINE",
    "HOLDSTILL_ID",
    "HOLDSTILL_LABEL",
    "HOLDSTILL_MAX_HOLD_SECONDS",
    "HOLDSTILL_MOUNTS",
    "HOLDSTILL_PHASE",
    "HOLDSTILL_REPORT",
    "HOLDSTILL_REQUIRE",
    "HOLDSTILL_TIMEOUT_SECONDS",
    "HOME",
    "LANG",
    "LOGNAME",
    "PATH",
    "PWD", // the shell's own
    "USER",
];

/// A hook that writes down its environment in every phase.
fn told(lab: &Lab) -> Story<'_> {
    let it = story_over(lab, vec![lab.fs(Type::Ext4)], |setup| setup.set("hold.quiesce", "5s"));
    it.hook("a").prepares();
    for phase in ["prepare", "freeze", "thaw"] {
        it.does(phase, "env >$d/env.$1; cp \"$HOLDSTILL_REPORT\" $d/report.$1 2>/dev/null; date +%s >$d/now.$1");
    }
    it
}

fn environment(it: &Story<'_>, phase: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(it.notes.join(format!("env.{phase}"))).expect("it ran");
    let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    // the shell adds what it was called as
    text.lines().filter_map(pair).filter(|(name, _)| !["_", "OLDPWD", "SHLVL"].contains(&name.as_str())).collect()
}

/// In `thaw` the reason comes on top.
fn has_all_names(of: &BTreeMap<String, String>, phase: &str) {
    let reason = (phase == "thaw").then_some("HOLDSTILL_REASON");
    let expected: BTreeSet<&str> = NAMES.into_iter().chain(reason).collect();
    assert_eq!(of.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected, "in {phase}");
}

fn hooks_see_which_hold_they_serve(lab: &Lab) {
    let it = told(lab);
    it.daemon().freeze(&["--id", "who-asks", "--label", "nightly", "--for", "5s", "--require", "application"]);
    it.daemon().thaw();
    for phase in ["prepare", "freeze", "thaw"] {
        let seen = environment(&it, phase);
        has_all_names(&seen, phase);
        for (name, value) in [
            ("ID", "who-asks"),
            ("PHASE", phase),
            ("LABEL", "nightly"),
            ("REQUIRE", "application"),
            ("MOUNTS", it.disks[0].at()),
            ("MAX_HOLD_SECONDS", "5"),
        ] {
            assert_eq!(seen[&format!("HOLDSTILL_{name}")], value, "in {phase}");
        }
    }
}

fn hooks_run_in_a_defined_place(lab: &Lab) {
    let it = story(lab);
    it.hook("a").does(
        "freeze",
        "{ pwd; umask; cat /proc/self/oom_score_adj; cat | wc -c; cut -d' ' -f5 /proc/$$/stat; echo $$; \
           readlink /proc/$$/fd/* || :; } >$d/place",
    );
    it.freeze().exits(0);
    let seen = fs::read_to_string(it.notes.join("place")).expect("it ran");
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[..4], ["/", "0022", "0", "0"], "{seen}");
    assert_eq!(lines[4], lines[5], "it leads no group of its own: {seen}");
    // what the shell itself opens is the script, and where it writes
    let own = [it.path_of("a"), it.notes.join("place")].map(|path| path.display().to_string());
    let foreign = |fd: &&&str| **fd != "/dev/null" && !fd.starts_with("pipe:") && !own.contains(&(**fd).to_string());
    assert_eq!(lines[6..].iter().filter(foreign).collect::<Vec<_>>(), Vec::<&&str>::new(), "inherited from us");
}

fn hooks_find_the_report_so_far(lab: &Lab) {
    let it = told(lab);
    it.daemon().freeze(&["--id", "told", "--for", "5s"]);
    it.daemon().thaw();
    for (phase, outcome) in [("prepare", "planned"), ("freeze", "done"), ("thaw", "done")] {
        let text = fs::read_to_string(it.notes.join(format!("report.{phase}"))).expect("there was one");
        let report: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(report["id"], "told", "in {phase}");
        assert_eq!(step(&report, "hook:10-a")["outcome"], outcome, "in {phase}: {report:#}");
    }
    let about = fs::metadata(&environment(&it, "freeze")["HOLDSTILL_REPORT"]).expect("it stays");
    assert_eq!(about.mode() & 0o077, 0, "others can read it");
}

fn hooks_know_when_they_will_be_ended(lab: &Lab) {
    let it = told(lab);
    it.limit("7s");
    it.freeze().exits(0);
    let seen = environment(&it, "prepare");
    assert_eq!(seen["HOLDSTILL_TIMEOUT_SECONDS"], "7");
    let now: u64 = fs::read_to_string(it.notes.join("now.prepare")).expect("it ran").trim().parse().expect("seconds");
    let ends: u64 = seen["HOLDSTILL_DEADLINE"].parse().expect("seconds");
    assert!((5..=7).contains(&(ends - now)), "{} s of 7 are left", ends - now);
    // of the 5 s for everything that quiesces, no hook can have seven
    assert!(["4", "5"].contains(&environment(&it, "freeze")["HOLDSTILL_TIMEOUT_SECONDS"].as_str()));
}

fn hooks_of_a_lost_hold_know_whose_they_are(lab: &Lab) {
    let mut it = told(lab);
    it.freeze().exits(0);
    it.lose_everybody();
    it.rescue().exits(0);
    let seen = environment(&it, "thaw");
    has_all_names(&seen, "thaw");
    for (name, value) in [("ID", "told"), ("PHASE", "thaw"), ("REASON", "daemon_lost"), ("TIMEOUT_SECONDS", "3")] {
        assert_eq!(seen[&format!("HOLDSTILL_{name}")], value);
    }
    it.next_daemon();
    let report = it.report();
    assert_eq!((&report["verdict"], &report["reason"]), (&"broken".into(), &"daemon_lost".into()), "{report:#}");
    assert_eq!(step(&report, "hook:10-a")["kind"], "hook", "{report:#}");
}
