//! Promise: who is to be told how a hold ended is told, and can keep nobody from anything.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::Value;

use crate::lab::{Daemon, Fs, Lab, Type, until};

facts! {
    a_reporter_reads_the_whole_report_after_everything_is_let_go,
    a_hold_that_was_refused_while_preparing_and_one_that_failed_are_reported,
    a_slow_reporter_delays_neither_the_answer_nor_the_next_hold,
    a_reporter_that_fails_hangs_does_not_read_or_never_stops_talking_harms_nobody,
    an_unusable_reporter_is_said_by_check_and_the_others_run,
    a_hold_whose_daemon_was_killed_is_reported_by_the_next_one_once,
    a_hold_that_ended_with_its_daemon_is_reported_by_the_next_one,
    nothing_is_left_of_reporters_when_they_are_done,
}

struct Told<'lab> {
    daemon: Daemon<'lab>,
    disk: Fs<'lab>,
    /// in memory
    dir: PathBuf,
}

fn told(lab: &Lab) -> Told<'_> {
    told_within(lab, "1s")
}

fn told_within<'lab>(lab: &'lab Lab, limit: &str) -> Told<'lab> {
    let disk = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&disk]).set("hooks.report_timeout", limit).start();
    Told { daemon, disk, dir: lab.memory_dir("told") }
}

impl Told<'_> {
    fn reporter(&self, name: &str, script: &str) {
        self.daemon.setup().reporter(name, &format!("cd {}\n{script}", self.dir.display()));
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }

    fn waits_for(&self, name: &str, wanted: &str) {
        let there = until(Duration::from_secs(10), || self.read(name).trim() == wanted);
        assert!(there, "{name} is {:?} instead of {wanted:?}\n{}", self.read(name), self.daemon.log());
    }

    fn hold(&self, id: &str) -> Value {
        self.daemon.freeze(&["--id", id, "--for", "10s"]);
        self.daemon.thaw()
    }
}

fn a_reporter_reads_the_whole_report_after_everything_is_let_go(lab: &Lab) {
    let it = told(lab);
    let probe = it.disk.mount.join("reported");
    let script = format!(
        "cat > report; env | grep ^HOLDSTILL_ | grep -v -e DEADLINE -e TIMEOUT | sort > env; echo x > {} && pwd > where; echo done > end",
        probe.display()
    );
    it.reporter("10-a", &script);
    it.daemon.freeze(&["--id", "told", "--label", "nightly copy", "--for", "10s"]);
    assert!(!until(Duration::from_millis(300), || it.dir.join("report").exists()), "it ran while held");
    it.daemon.thaw();
    it.waits_for("end", "done");
    let read: Value = serde_json::from_str(&it.read("report")).expect("one JSON document");
    assert_eq!(read, it.daemon.cli(&["history", "told"]).json, "it is what `history ID --json` prints");
    assert_eq!(read["report"]["verdict"], "unbroken");
    assert_eq!(
        it.read("env"),
        "HOLDSTILL_CONSISTENCY=filesystem\nHOLDSTILL_ID=told\nHOLDSTILL_LABEL=nightly copy\nHOLDSTILL_VERDICT=unbroken\n"
    );
    assert!(probe.exists(), "the disk was not writable");
}

fn a_hold_that_was_refused_while_preparing_and_one_that_failed_are_reported(lab: &Lab) {
    let it = told(lab);
    it.reporter("10-a", "echo $HOLDSTILL_ID $HOLDSTILL_VERDICT >> log");
    it.daemon.setup().hook("10-hook", "exit 1");
    it.daemon.cli(&["freeze", "--id", "failed"]).exits(1);
    it.waits_for("log", "failed never_held");
    fs::write(it.daemon.setup().hooks_dir().join("10-hook"), "no program").expect("memory");
    it.daemon.cli(&["freeze", "--id", "refused"]).exits(4);
    it.waits_for("log", "failed never_held\nrefused never_held");
}

fn a_slow_reporter_delays_neither_the_answer_nor_the_next_hold(lab: &Lab) {
    let it = told_within(lab, "10s");
    it.reporter("10-a", "echo $HOLDSTILL_ID >> log; sleep 3; echo end >> log");
    it.daemon.freeze(&["--id", "first", "--for", "10s"]);
    let answer = it.daemon.cli(&["thaw"]);
    assert!(answer.took < Duration::from_millis(2500), "the answer took {:?}", answer.took);
    it.waits_for("log", "first");
    assert_eq!(it.hold("second")["verdict"], "unbroken");
    assert_eq!(it.read("log").trim(), "first", "the next hold waited for a reporter");
    // one run of it at a time
    it.waits_for("log", "first\nend\nsecond");
}

fn a_reporter_that_fails_hangs_does_not_read_or_never_stops_talking_harms_nobody(lab: &Lab) {
    let it = told(lab);
    it.reporter("10-fails", "echo no relay >&2; exit 7");
    it.reporter("20-hangs", "trap '' TERM; sleep 60 & echo $! > child; wait; wait; wait");
    it.reporter("30-does-not-read", "exec 0<&-; sleep 0.2; echo $HOLDSTILL_ID >> deaf");
    it.reporter("40-talks", "head -c 10485760 /dev/zero; echo $HOLDSTILL_ID >> talked");
    it.reporter("50-well", "cat | wc -l >/dev/null; echo $HOLDSTILL_ID >> well");
    assert_eq!(it.hold("a")["verdict"], "unbroken");
    it.waits_for("well", "a");
    assert_eq!(it.hold("b")["verdict"], "unbroken");
    for name in ["deaf", "talked", "well"] {
        it.waits_for(name, "a\nb");
    }
    let log = it.daemon.log();
    for said in ["20-hangs", "10-fails", "exited with status 7", "no relay", "did not end within 1s"] {
        assert!(log.contains(said), "the log does not say {said:?}:\n{log}");
    }
    let child = it.read("child").trim().parse().expect("a pid");
    assert!(until(Duration::from_secs(6), || !crate::lab::process::alive(child)), "a child of a reporter lives on");
}

fn an_unusable_reporter_is_said_by_check_and_the_others_run(lab: &Lab) {
    let it = told(lab);
    it.reporter("20-good", "echo $HOLDSTILL_ID > good");
    let bad = it.daemon.setup().reports_dir().join("10-bad");
    fs::write(&bad, "#!/bin/sh\n").expect("memory");
    let check = it.daemon.cli(&["check"]);
    check.exits(0).says("10-bad gets no reports: it is not executable").says("chmod +x");
    it.daemon.cli(&["check", "--strict"]).exits(4);
    let open = bad.with_file_name("15-open");
    fs::write(&open, "#!/bin/sh\n\n").expect("memory");
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("memory");
    it.daemon.cli(&["check"]).exits(0).says("15-open gets no reports: it can be written by others");
    assert_eq!(it.hold("held")["verdict"], "unbroken");
    it.waits_for("good", "held");
    assert!(it.daemon.log().contains("15-open: it can be written"), "{}", it.daemon.log());
    assert!(it.daemon.log().contains("10-bad: it is not executable"), "{}", it.daemon.log());
}

fn a_hold_whose_daemon_was_killed_is_reported_by_the_next_one_once(lab: &Lab) {
    let Told { daemon, disk, dir } = {
        let it = told(lab);
        it.reporter("10-a", "cat > report; echo $HOLDSTILL_ID $HOLDSTILL_VERDICT >> log");
        it.daemon.freeze(&["--id", "lost", "--for", "20s"]);
        it.daemon.kill();
        assert!(it.disk.writable_within(Duration::from_secs(2)));
        it
    };
    let it = Told { daemon: daemon.again(), disk, dir };
    it.waits_for("log", "lost broken");
    let report: Value = serde_json::from_str(&it.read("report")).expect("one JSON document");
    assert_eq!(report["report"]["reason"], "daemon_lost");
    it.daemon.kill();
    let Told { daemon, disk, dir } = it;
    let it = Told { daemon: daemon.again(), disk, dir };
    it.hold("next");
    it.waits_for("log", "lost broken\nnext unbroken");
}

fn a_hold_that_ended_with_its_daemon_is_reported_by_the_next_one(lab: &Lab) {
    let Told { daemon, disk, dir } = {
        let it = told(lab);
        it.reporter("10-a", "echo $HOLDSTILL_ID $HOLDSTILL_VERDICT >> log");
        it.daemon.freeze(&["--id", "stopped", "--for", "20s"]);
        crate::lab::process::signal(it.daemon.pid(), nix::sys::signal::Signal::SIGTERM);
        assert_eq!(it.daemon.wait_end(Duration::from_secs(5)), Some(0));
        it
    };
    let it = Told { daemon: daemon.again(), disk, dir };
    it.waits_for("log", "stopped broken");
}

fn nothing_is_left_of_reporters_when_they_are_done(lab: &Lab) {
    let it = told(lab);
    it.reporter("10-a", "exit 0");
    it.reporter("20-b", "echo done > end");
    it.hold("a");
    it.waits_for("end", "done");
    let threads = || fs::read_dir(format!("/proc/{}/task", it.daemon.pid())).map_or(0, Iterator::count);
    assert!(until(Duration::from_secs(10), || threads() == 1), "{} threads are left", threads());
}
