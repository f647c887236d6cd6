//! Which hooks run, in which order, and with which reason they are undone: one story for each thing that can go wrong
//! while everybody is well. What happens when callers, daemons and wardens are lost is in [`super::ends`].

use std::{fs, time::Duration};

use super::story::{has_problem, story, story_over};
use crate::lab::{
    Lab, Type,
    daemon::step,
    database::{Durability, Engine},
    process::alive,
    until,
};

facts! {
    hooks_run_up_before_and_down_after,
    hooks_run_in_byte_order_of_their_names,
    one_that_prepared_is_undone_after_those_that_did_not,
    a_failed_hook_is_undone_too_then_what_came_before_it,
    one_that_fails_while_preparing_is_undone_and_nobody_waited,
    a_hook_beyond_its_limit_is_ended_with_its_children_and_undone,
    a_hook_killed_by_a_signal_is_undone,
    a_hook_that_is_gone_when_its_turn_comes_fails_the_hold,
    hooks_are_undone_when_a_database_cannot_be_held within 60,
    hooks_are_undone_when_a_file_system_cannot_be_frozen,
    hooks_are_undone_when_no_file_system_froze,
    too_long_a_preparation_is_refused_and_undone,
    too_long_a_quiesce_is_undone,
    a_failed_undo_does_not_stop_the_others_and_is_reported,
    an_undo_beyond_its_limit_does_not_stop_the_others,
    an_undo_killed_by_a_signal_does_not_stop_the_others,
    an_optional_hook_that_fails_lowers_the_level_and_says_why,
    an_optional_hook_that_fails_is_not_enough_for_who_wants_the_application,
    what_each_phase_prints_is_in_the_report,
    the_next_hold_starts_a_new_story,
    hooks_see_which_hold_they_serve,
}

fn hooks_run_up_before_and_down_after(lab: &Lab) {
    let it = story(lab);
    it.hook("a").hook("b").hook("c");
    it.freeze().exits(0);
    it.expect("a freeze, b freeze, c freeze");
    assert_eq!(it.daemon().thaw()["verdict"], "unbroken");
    it.expect("a freeze, b freeze, c freeze, c thaw asked, b thaw asked, a thaw asked");
}

fn hooks_run_in_byte_order_of_their_names(lab: &Lab) {
    let it = story(lab);
    let log = it.notes.join("told");
    for name in ["9-nine", "10-ten", "b", "B", "10-ten.sh"] {
        it.daemon().setup().hook(name, &format!("echo ${{0##*/}} $1 >> {}", log.display()));
    }
    it.freeze().exits(0);
    it.expect("10-ten freeze, 10-ten.sh freeze, 9-nine freeze, B freeze, b freeze");
    it.daemon().thaw();
    assert!(it.told().ends_with("b thaw, B thaw, 9-nine thaw, 10-ten.sh thaw, 10-ten thaw"), "{}", it.told());
}

fn one_that_prepared_is_undone_after_those_that_did_not(lab: &Lab) {
    let it = story(lab);
    it.hook("a").hook("b").prepares().hook("c");
    it.freeze().exits(0);
    it.expect("b prepare, a freeze, b freeze, c freeze");
    assert_eq!(it.daemon().thaw()["verdict"], "unbroken");
    it.expect("b prepare, a freeze, b freeze, c freeze, c thaw asked, a thaw asked, b thaw asked");
}

fn a_failed_hook_is_undone_too_then_what_came_before_it(lab: &Lab) {
    let it = story(lab);
    it.hook("a").hook("b").fails_in("freeze").hook("c");
    let answer = it.freeze();
    answer.exits(1).says("11-b");
    assert_eq!(answer.reason(), "STEP_FAILED");
    it.expect("a freeze, b freeze, b thaw step_failed, a thaw step_failed");
    let report = it.report();
    let failed = step(&report, "hook:11-b");
    assert_eq!((&failed["hook"]["exit_code"], &report["verdict"]), (&3.into(), &"never_held".into()), "{report:#}");
    assert!(failed.to_string().contains("out of order"), "what the hook said is lost: {failed:#}");
    it.assert_moving();
}

fn one_that_fails_while_preparing_is_undone_and_nobody_waited(lab: &Lab) {
    let it = story(lab);
    let writer = lab.writer(&it.disks[0]);
    it.hook("a").prepares().hook("b").prepares().fails_in("prepare").hook("c");
    it.freeze().exits(1).says("11-b");
    it.expect("a prepare, b prepare, b thaw step_failed, a thaw step_failed");
    assert!(writer.longest() < Duration::from_millis(700), "somebody waited {:?}", writer.longest());
}

fn a_hook_beyond_its_limit_is_ended_with_its_children_and_undone(lab: &Lab) {
    let it = story(lab);
    let child = it.notes.join("child");
    it.hook("a").hook("b").limit("300ms").does("freeze", &format!("sleep 60 & echo $! >{}; wait", child.display()));
    let answer = it.freeze();
    answer.exits(1).says("11-b").says("300ms");
    assert!(answer.took < Duration::from_secs(3), "the limit of 300 ms took {:?}", answer.took);
    it.expect("a freeze, b freeze, b thaw step_failed, a thaw step_failed");
    let child: i32 = fs::read_to_string(child).expect("it was started").trim().parse().expect("a pid");
    assert!(until(Duration::from_secs(3), || !alive(child)), "the hook's child lives on");
    it.assert_moving();
}

fn a_hook_killed_by_a_signal_is_undone(lab: &Lab) {
    let it = story(lab);
    it.hook("a").hook("b").dies_in("freeze").hook("c");
    it.freeze().exits(1).says("11-b").says("signal 9");
    it.expect("a freeze, b freeze, b thaw step_failed, a thaw step_failed");
    assert_eq!(step(&it.report(), "hook:11-b")["hook"]["signal"], 9);
    it.assert_moving();
}

fn a_hook_that_is_gone_when_its_turn_comes_fails_the_hold(lab: &Lab) {
    let it = story(lab);
    it.hook("a").removes("b").hook("b").hook("c");
    it.freeze().exits(1).says("11-b");
    it.expect("a freeze, a thaw step_failed");
    it.assert_moving();
}

fn hooks_are_undone_when_a_database_cannot_be_held(lab: &Lab) {
    let disk = lab.fs_at(Type::Ext4, "/mnt/db".as_ref(), 512);
    let server = lab.server(Engine::Mariadb, &disk, Durability::Full);
    let entry = server.entry("orders");
    let it = story_over(lab, vec![disk], |setup| setup.database(entry));
    it.hook("a").hook("b").does("freeze", &format!("kill -KILL {}", server.pid()));
    it.freeze().exits(1).says("orders");
    it.expect("a freeze, b freeze, b thaw step_failed, a thaw step_failed");
    it.assert_moving();
    drop(server); // its files lie on the disk of the story
}

fn hooks_are_undone_when_a_file_system_cannot_be_frozen(lab: &Lab) {
    let it = story_over(lab, vec![lab.fs(Type::Ext4), lab.fs(Type::Ext4)], |setup| setup.set("hold.quiesce", "1500ms"));
    let foreign = it.disks[1].at().to_owned();
    it.hook("a").hook("b").does("freeze", &format!("fsfreeze -f {foreign}"));
    let writer = lab.writer(&it.disks[0]);
    it.freeze().exits(1).says(&foreign);
    assert!(writer.longest() < Duration::from_secs(3), "whoever writes elsewhere waited {:?}", writer.longest());
    it.expect("a freeze, b freeze, b thaw step_failed, a thaw step_failed");
    assert!(it.disks[1].thaw_by_others(), "the foreign freeze was stolen");
    it.assert_moving();
}

fn hooks_are_undone_when_no_file_system_froze(lab: &Lab) {
    let it = story_over(lab, vec![lab.fs(Type::Ext4)], |setup| setup.set("hold.quiesce", "1500ms"));
    let foreign = it.disks[0].at().to_owned();
    // whoever froze it thaws it again, or nothing could be written to it
    it.hook("a").hook("b").does("freeze", &format!("fsfreeze -f {foreign}"));
    it.does_first("thaw", &format!("fsfreeze -u {foreign} || echo 'the foreign freeze was stolen' >>$d/told"));
    it.freeze().exits(1).says(&foreign);
    it.expect("a freeze, b freeze, b thaw step_failed, a thaw step_failed");
    it.assert_moving();
}

fn too_long_a_preparation_is_refused_and_undone(lab: &Lab) {
    let it = story_over(lab, vec![lab.fs(Type::Ext4)], |setup| setup.set("hold.prepare", "800ms"));
    // it has time: what ends is the preparation as a whole
    it.hook("a").prepares().hook("b").prepares().hangs_in("prepare").hook("c");
    let answer = it.freeze();
    assert!(matches!(answer.code, Some(1 | 4)), "{answer:?}");
    assert!(answer.took < Duration::from_secs(3), "{answer:?}");
    let told = it.told();
    assert!(
        ["refused", "step_failed"]
            .iter()
            .any(|why| told == format!("a prepare, b prepare, b thaw {why}, a thaw {why}")),
        "{told}"
    );
    it.assert_moving();
}

fn too_long_a_quiesce_is_undone(lab: &Lab) {
    let it = story_over(lab, vec![lab.fs(Type::Ext4)], |setup| setup.set("hold.quiesce", "800ms"));
    it.hook("a").does("freeze", "sleep 0.5").hook("b").hangs_in("freeze").hook("c");
    let answer = it.freeze();
    answer.exits(1);
    assert!(answer.took < Duration::from_secs(3), "{answer:?}");
    it.expect("a freeze, b freeze, b thaw step_failed, a thaw step_failed");
    it.assert_moving();
}

fn a_failed_undo_does_not_stop_the_others_and_is_reported(lab: &Lab) {
    let it = story(lab);
    it.hook("a").hook("b").fails_in("thaw").hook("c");
    it.freeze().exits(0);
    let report = it.daemon().thaw();
    it.expect("a freeze, b freeze, c freeze, c thaw asked, b thaw asked, a thaw asked");
    let failed = step(&report, "hook:11-b");
    assert_eq!((&failed["outcome"], &failed["hook"]["exit_code"]), (&"undo_failed".into(), &3.into()), "{report:#}");
    assert_eq!(failed["hook"]["output_tail"], "out of order\n", "what it says is in the report: {report:#}");
    assert_eq!(step(&report, "hook:10-a")["outcome"], "undone", "{report:#}");
    assert!(has_problem(&report, "UNDO_FAILED"), "{report:#}");
}

fn an_undo_beyond_its_limit_does_not_stop_the_others(lab: &Lab) {
    let it = story(lab);
    it.hook("a").hook("b").limit("300ms").hangs_in("thaw").hook("c");
    it.freeze().exits(0);
    let report = it.daemon().thaw();
    it.expect("a freeze, b freeze, c freeze, c thaw asked, b thaw asked, a thaw asked");
    assert_eq!(step(&report, "hook:11-b")["outcome"], "undo_failed", "{report:#}");
    assert!(has_problem(&report, "UNDO_FAILED"), "{report:#}");
}

fn an_undo_killed_by_a_signal_does_not_stop_the_others(lab: &Lab) {
    let it = story(lab);
    it.hook("a").hook("b").fails_in("freeze").dies_in("thaw").hook("c");
    it.freeze().exits(1).says("11-b");
    it.expect("a freeze, b freeze, b thaw step_failed, a thaw step_failed");
    let report = it.report();
    assert_eq!(step(&report, "hook:11-b")["outcome"], "undo_failed", "{report:#}");
    assert!(has_problem(&report, "UNDO_FAILED"), "{report:#}");
}

fn an_optional_hook_that_fails_lowers_the_level_and_says_why(lab: &Lab) {
    for way in ["fails", "dies", "hangs", "vanishes"] {
        let it = story(lab);
        it.hook("a");
        if way == "vanishes" {
            it.removes("b");
        }
        it.hook("b").optional();
        match way {
            "fails" => it.fails_in("freeze"),
            "dies" => it.dies_in("freeze"),
            "hangs" => it.limit("200ms").hangs_in("freeze"),
            _ => &it,
        };
        it.hook("c");
        let answer = it.freeze();
        answer.exits(0);
        let report = answer.report();
        assert_eq!(report["consistency"], "filesystem", "{way}: {report:#}");
        assert!(has_problem(&report, "HOOK_FAILED"), "{way}: {report:#}");
        assert_eq!(it.daemon().thaw()["verdict"], "unbroken", "{way}");
        it.expect(if way == "vanishes" {
            "a freeze, c freeze, c thaw asked, a thaw asked"
        } else {
            "a freeze, b freeze, c freeze, c thaw asked, b thaw asked, a thaw asked"
        });
    }
}

fn an_optional_hook_that_fails_is_not_enough_for_who_wants_the_application(lab: &Lab) {
    let it = story(lab);
    it.hook("a").hook("b").optional().fails_in("freeze");
    it.daemon().cli(&["freeze", "--require", "application"]).exits(1).says("application");
    it.expect("a freeze, b freeze, b thaw step_failed, a thaw step_failed");
    it.assert_moving();
}

fn what_each_phase_prints_is_in_the_report(lab: &Lab) {
    let it = story(lab);
    it.hook("a").prepares();
    for phase in ["prepare", "freeze", "thaw"] {
        it.does(phase, &format!("echo in {phase}"));
    }
    it.freeze().exits(0);
    let report = it.daemon().thaw();
    assert_eq!(step(&report, "hook:10-a")["hook"]["output_tail"], "in prepare\nin freeze\nin thaw\n", "{report:#}");
}

fn the_next_hold_starts_a_new_story(lab: &Lab) {
    let it = story(lab);
    it.hook("a").hook("b").fails_in("freeze");
    it.freeze().exits(1);
    it.clear();
    it.hook("a").hook("c");
    it.freeze().exits(0);
    it.daemon().thaw();
    it.expect("a freeze, c freeze, c thaw asked, a thaw asked");
}

fn hooks_see_which_hold_they_serve(lab: &Lab) {
    let it = story(lab);
    let environment = it.notes.join("environment");
    it.hook("a").does("freeze", &format!("env | grep ^HOLDSTILL_ >{}", environment.display()));
    it.daemon().freeze(&["--id", "who-asks", "--label", "nightly", "--for", "5s"]);
    it.daemon().thaw();
    let seen = fs::read_to_string(environment).expect("the hook ran");
    for expected in ["ID=who-asks", "PHASE=freeze", "LABEL=nightly", "MAX_HOLD_SECONDS=5"] {
        assert!(seen.lines().any(|line| line == format!("HOLDSTILL_{expected}")), "no {expected}:\n{seen}");
    }
    assert!(seen.contains(&format!("HOLDSTILL_MOUNTS={}", it.disks[0].at())), "{seen}");
}
