//! Hooks that interfere with the hold they serve: they freeze by themselves, ask the daemon, kill it, remove themselves. The
//! guest moves in time, every undo runs once, and whoever asked is told.

use std::{fs, path::PathBuf, time::Duration};

use super::{
    nasty::unbroken,
    story::{Story, has_problem, story},
};
use crate::lab::{
    Lab, Type,
    daemon::{BINARY, step},
};

facts! {
    one_that_freezes_another_file_system_and_leaves_it_is_not_corrected,
    one_that_freezes_a_held_file_system_while_preparing_is_found_out,
    one_that_asks_for_the_thaw_from_freeze_gets_it,
    one_that_asks_for_the_thaw_from_prepare_gets_it,
    one_that_asks_for_the_thaw_from_thaw_keeps_nobody_waiting,
    one_that_asks_how_it_stands_is_answered_in_every_phase,
    one_that_asks_for_a_hold_of_its_own_is_refused,
    one_that_kills_its_parent_while_freezing_is_undone_once,
    one_that_kills_its_parent_while_thawing_does_not_stop_the_others,
    one_that_removes_itself_is_missed_by_name,
    one_that_opens_its_directory_to_others_is_refused_from_then_on,
}

fn ask(it: &Story<'_>, verb: &str) -> String {
    format!("{BINARY} --socket {} {verb}", it.daemon().socket().display())
}

fn one_that_freezes_another_file_system_and_leaves_it_is_not_corrected(lab: &Lab) {
    let other = lab.fs(Type::Ext4); // outlives the story, whose daemon reads what is mounted
    let it = story(lab);
    it.hook("a").does("freeze", &format!("fsfreeze -f {}", other.at())).hook("b");
    it.freeze().exits(0);
    unbroken(&it);
    it.expect("a freeze, b freeze, b thaw asked, a thaw asked");
    assert!(other.thaw_by_others(), "somebody else's freeze was stolen");
}

fn one_that_freezes_a_held_file_system_while_preparing_is_found_out(lab: &Lab) {
    let it = story(lab);
    let foreign = it.disks[0].at().to_owned();
    it.hook("a").prepares().hook("b").prepares().does("prepare", &format!("fsfreeze -f {foreign}"));
    it.does_first("thaw", &format!("fsfreeze -u {foreign} || echo 'the foreign freeze was stolen' >>$d/told"));
    let answer = it.freeze();
    answer.says(&foreign);
    assert!(matches!(answer.code, Some(1 | 4)), "{answer:?}");
    assert!(answer.took < Duration::from_secs(10), "{answer:?}");
    let told = it.told();
    assert!(!told.contains("stolen") && !told.contains("FROZEN"), "{told}");
    let undone: Vec<&str> = told.split(", ").filter(|line| line.contains("thaw")).map(|line| &line[..1]).collect();
    assert_eq!(undone, ["b", "a"], "{told}");
    it.assert_moving();
}

fn one_that_asks_for_the_thaw_from_freeze_gets_it(lab: &Lab) {
    let it = story(lab);
    it.hook("a").hook("b").does("freeze", &ask(&it, "thaw")).hook("c");
    let answer = it.freeze();
    answer.exits(1).says("thaw");
    assert_eq!(answer.reason(), "THAWED_MEANWHILE");
    // it waits for the thaw, which waits for it to end: it is ended
    assert!(answer.took < Duration::from_secs(2), "{answer:?}");
    it.expect("a freeze, b freeze, b thaw asked, a thaw asked");
    it.assert_moving();
}

fn one_that_asks_for_the_thaw_from_prepare_gets_it(lab: &Lab) {
    let it = story(lab);
    it.hook("a").prepares().hook("b").prepares().does("prepare", &format!("({}) & sleep 60", ask(&it, "thaw")));
    let answer = it.freeze();
    answer.exits(1);
    assert_eq!(answer.reason(), "THAWED_MEANWHILE");
    assert!(answer.took < Duration::from_secs(2), "{answer:?}");
    it.expect("a prepare, b prepare, b thaw asked, a thaw asked");
}

fn one_that_asks_for_the_thaw_from_thaw_keeps_nobody_waiting(lab: &Lab) {
    let it = story(lab);
    let writer = lab.writer(&it.disks[0]);
    // the thaw is over when this hook is: it runs into its limit
    it.hook("a").hook("b").limit("500ms").does("thaw", &ask(&it, "thaw")).hook("c");
    it.freeze().exits(0);
    let report = it.daemon().thaw();
    assert_eq!(report["verdict"], "unbroken", "{report:#}");
    it.expect("a freeze, b freeze, c freeze, c thaw asked, b thaw asked, a thaw asked");
    assert!(writer.longest() < Duration::from_secs(1), "writers waited {:?} for a hook", writer.longest());
}

fn one_that_asks_how_it_stands_is_answered_in_every_phase(lab: &Lab) {
    let it = story(lab);
    it.hook("a").prepares();
    for phase in ["prepare", "freeze", "thaw"] {
        it.does(phase, &format!("{} >$d/seen.{phase} || echo \"$? in {phase}\" >>$d/told", ask(&it, "--json status")));
    }
    it.freeze().exits(0);
    unbroken(&it);
    it.expect("a prepare, a freeze, a thaw asked");
    for (phase, seen) in [("prepare", "preparing"), ("freeze", "quiescing"), ("thaw", "releasing")] {
        let said = fs::read_to_string(it.notes.join(format!("seen.{phase}"))).expect("it was asked");
        assert!(said.contains(seen), "in {phase}: {said}");
    }
}

fn one_that_asks_for_a_hold_of_its_own_is_refused(lab: &Lab) {
    let it = story(lab);
    it.hook("a").does("freeze", &format!("{}; echo \"a got $?\" >>$d/told", ask(&it, "freeze --id own")));
    it.freeze().exits(0);
    unbroken(&it);
    it.expect("a freeze, a got 4, a thaw asked");
}

fn one_that_kills_its_parent_while_freezing_is_undone_once(lab: &Lab) {
    let mut it = story(lab);
    it.hook("a").hook("b").does("freeze", "kill -KILL $PPID; exit 0").hook("c");
    let client = it.daemon().start_cli(&["freeze", "--id", "told"]);
    assert_eq!(it.daemon().wait_end(Duration::from_secs(5)), None, "it was not killed");
    let answer = client.finish();
    answer.exits(5);
    assert!(!answer.err.trim().is_empty(), "{answer:?}");
    it.expect("a freeze, b freeze, b thaw daemon_lost, a thaw daemon_lost");
    it.assert_moving();
    it.next_daemon();
    it.expect("a freeze, b freeze, b thaw daemon_lost, a thaw daemon_lost");
    assert_eq!(it.report()["reason"], "daemon_lost");
}

/// Whoever undoes: the daemon, and then whoever comes after it. If it were begun again each time, nobody would ever get
/// past it, and the next daemon would not start.
fn one_that_kills_its_parent_while_thawing_does_not_stop_the_others(lab: &Lab) {
    let mut it = story(lab);
    it.hook("a").hook("b").does("thaw", "kill -KILL $PPID; exit 0").hook("c");
    it.freeze().exits(0);
    let client = it.daemon().start_cli(&["thaw"]);
    assert_eq!(it.daemon().wait_end(Duration::from_secs(5)), None, "it was not killed");
    client.finish().exits(5);
    it.assert_moving();
    it.expect("a freeze, b freeze, c freeze, c thaw asked, b thaw asked, a thaw daemon_lost");
    it.next_daemon();
    it.expect("a freeze, b freeze, c freeze, c thaw asked, b thaw asked, a thaw daemon_lost");
}

fn one_that_removes_itself_is_missed_by_name(lab: &Lab) {
    let it = story(lab);
    it.hook("a").hook("b").does("freeze", "rm \"$0\"").hook("c");
    it.freeze().exits(0);
    let report = unbroken(&it);
    it.expect("a freeze, b freeze, c freeze, c thaw asked, a thaw asked");
    assert_eq!(step(&report, "hook:11-b")["outcome"], "undo_failed", "{report:#}");
    assert!(has_problem(&report, "UNDO_FAILED"), "{report:#}");
}

fn one_that_opens_its_directory_to_others_is_refused_from_then_on(lab: &Lab) {
    let it = story(lab);
    let dir: PathBuf = it.daemon().setup().hooks_dir();
    it.hook("a").does("freeze", &format!("chmod g+w {}", dir.display())).hook("b");
    it.freeze().exits(0);
    unbroken(&it);
    it.expect("a freeze, b freeze, b thaw asked, a thaw asked");
    let answer = it.daemon().cli(&["freeze", "--id", "next"]);
    answer.exits(4).says(dir.to_str().expect("ASCII")).says("chmod go-w");
    assert_eq!(answer.reason(), "HOOK_UNUSABLE");
    it.expect("a freeze, b freeze, b thaw asked, a thaw asked");
}
