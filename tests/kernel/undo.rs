//! Promise: whatever was started is undone, newest first, all of it.

use std::{fs, path::PathBuf, time::Duration};

use crate::lab::{Daemon, Fs, Lab, Type, daemon::step, until};

facts! {
    hooks_run_up_before_and_down_after,
    a_failed_hook_is_undone_too_then_what_came_before_it,
    a_failed_undo_does_not_stop_the_others_and_is_reported,
    hooks_of_a_failed_freeze_are_undone,
    a_hook_beyond_its_limit_is_ended_with_its_children_and_undone,
    a_hook_that_leaves_a_process_holding_its_output_does_not_hang_the_hold,
    hooks_of_a_killed_daemon_are_undone_once,
    hooks_see_which_hold_they_serve,
}

/// A daemon over one file system, whose hooks note each phase in memory.
struct Noted<'lab> {
    daemon: Daemon<'lab>,
    log: PathBuf,
    _disk: Fs<'lab>,
}

fn noted(lab: &Lab) -> Noted<'_> {
    let disk = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&disk]).set("hooks.timeout", "2s").start();
    Noted { daemon, log: lab.memory_dir("hooks").join("log"), _disk: disk }
}

impl Noted<'_> {
    /// A hook that notes `name phase` and then does `then`.
    fn hook(&self, name: &str, then: &str) -> &Self {
        self.daemon.setup().hook(name, &format!("echo \"${{0##*-}} $1\" >> {}\n{then}", self.log.display()));
        self
    }

    fn story(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default().trim().replace('\n', ", ")
    }

    fn expect(&self, story: &str) {
        assert!(until(Duration::from_secs(5), || self.story() == story), "{:?} instead of {story:?}", self.story());
    }
}

fn hooks_run_up_before_and_down_after(lab: &Lab) {
    let it = noted(lab);
    it.hook("10-a", "").hook("20-b", "").hook("9-c", "");
    it.daemon.freeze(&["--for", "5s"]);
    it.expect("a freeze, b freeze, c freeze");
    assert_eq!(it.daemon.thaw()["verdict"], "unbroken");
    it.expect("a freeze, b freeze, c freeze, c thaw, b thaw, a thaw");
}

fn a_failed_hook_is_undone_too_then_what_came_before_it(lab: &Lab) {
    let it = noted(lab);
    it.hook("10-a", "").hook("20-b", "echo 'no license' >&2; [ $1 = thaw ]").hook("30-c", "");
    let answer = it.daemon.cli(&["freeze", "--id", "f"]);
    answer.exits(1).says("20-b");
    assert_eq!(answer.reason(), "STEP_FAILED");
    it.expect("a freeze, b freeze, b thaw, a thaw");
    let report = it.daemon.cli(&["history", "f"]).report();
    let failed = step(&report, "hook:20-b");
    assert_eq!((&failed["hook"]["exit_code"], &report["verdict"]), (&1.into(), &"never_held".into()), "{report:#}");
    assert!(failed.to_string().contains("no license"), "what the hook said is lost: {failed:#}");
}

fn a_failed_undo_does_not_stop_the_others_and_is_reported(lab: &Lab) {
    let it = noted(lab);
    it.hook("10-a", "").hook("20-b", "[ $1 = freeze ]").hook("30-c", "");
    it.daemon.freeze(&["--for", "5s"]);
    let report = it.daemon.thaw();
    it.expect("a freeze, b freeze, c freeze, c thaw, b thaw, a thaw");
    assert_eq!(step(&report, "hook:20-b")["outcome"], "undo_failed", "{report:#}");
    assert_eq!(step(&report, "hook:10-a")["outcome"], "undone", "{report:#}");
}

fn hooks_of_a_failed_freeze_are_undone(lab: &Lab) {
    let it = noted(lab);
    // the hook itself makes the freeze fail: when the file system's turn comes, somebody else has frozen it
    let freeze = format!("[ $1 = freeze ] && fsfreeze -f {}", it._disk.at());
    it.hook("10-a", "").hook("20-b", &format!("{freeze}\nexit 0"));
    let answer = it.daemon.cli(&["freeze", "--for", "5s"]);
    assert!(matches!(answer.code, Some(1 | 4)), "{answer:?}");
    it.expect("a freeze, b freeze, b thaw, a thaw");
    assert!(it._disk.thaw_by_others(), "the foreign freeze was stolen");
}

fn a_hook_beyond_its_limit_is_ended_with_its_children_and_undone(lab: &Lab) {
    let it = noted(lab);
    let alone = lab.memory_dir("child").join("pid");
    it.hook("10-a", &format!("[ $1 = freeze ] || exit 0\nsleep 60 & echo $! > {}; wait", alone.display()));
    let answer = it.daemon.cli(&["freeze", "--for", "5s"]);
    answer.exits(1).says("10-a");
    assert!(answer.took < Duration::from_secs(8), "the limit of 2 s took {:?}", answer.took);
    it.expect("a freeze, a thaw");
    let child: i32 = fs::read_to_string(alone).expect("it was started").trim().parse().expect("a pid");
    assert!(until(Duration::from_secs(3), || !crate::lab::process::alive(child)), "the hook's child lives on");
}

fn a_hook_that_leaves_a_process_holding_its_output_does_not_hang_the_hold(lab: &Lab) {
    let it = noted(lab);
    it.hook("10-a", "[ $1 = freeze ] && { setsid sleep 20 & }; exit 0");
    let report = it.daemon.freeze(&["--for", "10s"]);
    assert_eq!(report["consistency"], "application", "{report:#}");
    assert_eq!(it.daemon.thaw()["verdict"], "unbroken");
}

fn hooks_of_a_killed_daemon_are_undone_once(lab: &Lab) {
    let it = noted(lab);
    it.hook("10-a", "").hook("20-b", "");
    it.daemon.freeze(&["--for", "20s"]);
    it.daemon.kill();
    assert!(it._disk.writable_within(Duration::from_secs(2)));
    // under systemd ExecStopPost does this; what the survivors have done already is not done again
    let config = it.daemon.setup().config_path();
    lab.holdstill(&["rescue", "--config", config.to_str().expect("ASCII")]).exits(0);
    it.expect("a freeze, b freeze, b thaw, a thaw");
    let Noted { _disk, log, daemon } = it;
    let daemon = daemon.again();
    let it = Noted { daemon, log, _disk };
    it.expect("a freeze, b freeze, b thaw, a thaw");
}

fn hooks_see_which_hold_they_serve(lab: &Lab) {
    let it = noted(lab);
    let environment = lab.memory_dir("hooks").join("environment");
    it.hook("10-a", &format!("env | grep ^HOLDSTILL_ >> {}", environment.display()));
    it.daemon.freeze(&["--id", "who-asks", "--for", "5s"]);
    it.daemon.thaw();
    let seen = fs::read_to_string(environment).expect("the hook ran");
    assert!(seen.lines().any(|l| l.ends_with("=who-asks")), "no variable names the hold:\n{seen}");
}
