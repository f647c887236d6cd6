//! Hooks that do not end as they should, or leave something behind. Whatever one does, the guest moves in time, every undo
//! runs once, and whoever asked is told. Those that interfere with the hold are in [`super::meddling`].

use std::{fs, path::Path, thread, time::Duration};

use nix::sys::signal::Signal;

use super::story::{Story, story};
use crate::lab::{
    Lab,
    daemon::step,
    process::{alive, signal},
    until,
};

facts! {
    one_that_leaves_a_process_with_its_output_does_not_hang_the_hold,
    one_that_leaves_a_process_in_a_session_of_its_own_does_not_hang_the_hold,
    one_that_prints_ten_megabytes_leaves_the_end_of_them,
    one_that_prints_no_text_does_not_spoil_the_report,
    one_that_ignores_term_is_killed_with_its_children,
    one_that_left_its_process_group_is_killed_all_the_same,
    one_that_closes_its_output_is_waited_for,
    one_that_leaves_a_writer_on_the_held_disk_hurts_nothing,
}

/// A process number that a hook wrote down.
fn noted(it: &Story<'_>, name: &str) -> i32 {
    let path = it.notes.join(name);
    let read = || fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
    assert!(until(Duration::from_secs(5), || read().is_some()), "{} was never written", path.display());
    read().expect("it was there a moment ago")
}

fn gone(pid: i32) -> bool {
    until(Duration::from_secs(3), || !alive(pid))
}

pub fn unbroken(it: &Story<'_>) -> serde_json::Value {
    let report = it.daemon().thaw();
    assert_eq!(report["verdict"], "unbroken", "{report:#}");
    it.assert_moving();
    report
}

fn one_that_leaves_a_process_with_its_output_does_not_hang_the_hold(lab: &Lab) {
    let it = story(lab);
    it.hook("a").does("freeze", "sleep 60 & echo $! >$d/left").hook("b");
    let answer = it.freeze();
    answer.exits(0);
    assert!(answer.took < Duration::from_millis(2500), "{answer:?}");
    assert!(gone(noted(&it, "left")), "it holds our pipe");
    unbroken(&it);
    it.expect("a freeze, b freeze, b thaw asked, a thaw asked");
}

fn one_that_leaves_a_process_in_a_session_of_its_own_does_not_hang_the_hold(lab: &Lab) {
    let it = story(lab);
    it.hook("a").does("freeze", "setsid sh -c 'echo $$ >'$d/left'; exec sleep 60' &").hook("b");
    let answer = it.freeze();
    answer.exits(0);
    assert!(answer.took < Duration::from_millis(2500), "{answer:?}");
    unbroken(&it);
    it.expect("a freeze, b freeze, b thaw asked, a thaw asked");
    signal(noted(&it, "left"), Signal::SIGKILL);
}

fn one_that_prints_ten_megabytes_leaves_the_end_of_them(lab: &Lab) {
    let it = story(lab);
    it.hook("a").does("freeze", "head -c 10485760 /dev/zero | tr '\\0' x; echo; echo the end >&2");
    let report = it.freeze().report();
    let said = step(&report, "hook:10-a")["hook"]["output_tail"].as_str().unwrap_or_default();
    assert!(said.len() <= 4096 && said.ends_with("x\nthe end\n"), "{} bytes: {said}", said.len());
    unbroken(&it);
    it.expect("a freeze, a thaw asked");
}

fn one_that_prints_no_text_does_not_spoil_the_report(lab: &Lab) {
    let it = story(lab);
    it.hook("a").does("freeze", r"printf '\377\376\033[31m\000\r\n\342\202'; exit 1");
    let answer = it.freeze();
    answer.exits(1).says("10-a");
    assert_eq!(answer.reason(), "STEP_FAILED", "{answer:?}");
    assert!(step(&it.report(), "hook:10-a")["hook"]["output_tail"].as_str().is_some_and(|said| said.contains("[31m")));
    it.expect("a freeze, a thaw step_failed");
}

fn one_that_ignores_term_is_killed_with_its_children(lab: &Lab) {
    let it = story(lab);
    let stubborn = "trap '' TERM; sh -c \"trap '' TERM; while :; do sleep 0.1; done\" & echo $! >$d/child; wait; wait";
    it.hook("a").hook("b").limit("300ms").does("freeze", stubborn);
    let answer = it.freeze();
    answer.exits(1).says("11-b").says("300ms");
    // 2 s between TERM and KILL
    assert!(answer.took < Duration::from_millis(4500), "{answer:?}");
    assert!(gone(noted(&it, "child")) && gone(noted(&it, "runs.b")), "somebody lives on");
    it.expect("a freeze, b freeze, b thaw step_failed, a thaw step_failed");
    it.assert_moving();
}

fn one_that_left_its_process_group_is_killed_all_the_same(lab: &Lab) {
    let it = story(lab);
    if !Path::new("/usr/bin/perl").exists() {
        lab.skip("no perl, with which a script can leave its process group");
    }
    // into the group of a child that went ahead: signals to its own group reach nobody
    let leaves = "exec perl -e '$SIG{TERM} = \"IGNORE\"; my $ahead = fork; \
        if (!$ahead) { setpgrp(0, 0); close STDOUT; close STDERR; sleep 60; exit } \
        open(my $note, \">\", \"$ARGV[0]\"); print $note $ahead; close $note; \
        until (setpgrp(0, $ahead)) { select(undef, undef, undef, 0.01) } sleep 60' $d/ahead";
    it.hook("a").hook("b").limit("500ms").does("freeze", leaves);
    let answer = it.freeze();
    answer.exits(1).says("11-b").says("500ms");
    assert!(answer.took < Duration::from_millis(4500), "{answer:?}");
    signal(noted(&it, "ahead"), Signal::SIGKILL);
    assert!(gone(noted(&it, "runs.b")), "it lives on");
    it.expect("a freeze, b freeze, b thaw step_failed, a thaw step_failed");
    it.assert_moving();
}

fn one_that_closes_its_output_is_waited_for(lab: &Lab) {
    let it = story(lab);
    it.hook("a").does("freeze", "exec >&- 2>&- <&-; sleep 0.4; echo 'a ends' >>$d/told").hook("b");
    it.freeze().exits(0);
    unbroken(&it);
    it.expect("a freeze, a ends, b freeze, b thaw asked, a thaw asked");
}

fn one_that_leaves_a_writer_on_the_held_disk_hurts_nothing(lab: &Lab) {
    let it = story(lab);
    let file = it.disks[0].mount.join("written");
    let writes = format!("while :; do echo more >>{}; sleep 0.01; done", file.display());
    it.hook("a").does("freeze", &format!("({writes}) >/dev/null 2>&1 & echo $! >$d/writer"));
    it.freeze().exits(0);
    let size = || fs::metadata(&file).map_or(0, |about| about.len());
    thread::sleep(Duration::from_millis(100)); // one write may have been under way
    let held = size();
    assert!(!until(Duration::from_millis(300), || size() > held), "it writes to a disk that is held");
    unbroken(&it);
    assert!(until(Duration::from_secs(2), || size() > held), "it still waits");
    it.expect("a freeze, a thaw asked");
    signal(noted(&it, "writer"), Signal::SIGKILL);
    assert!(gone(noted(&it, "writer")));
}
