//! What it means for a hold that an optional hook fails, or the undo of any.

use super::story::{has_problem, story};
use crate::lab::{Lab, daemon::step};

facts! {
    a_failed_undo_does_not_stop_the_others_and_is_reported,
    an_undo_beyond_its_limit_does_not_stop_the_others,
    an_undo_killed_by_a_signal_does_not_stop_the_others,
    an_optional_hook_that_fails_lowers_the_level_and_says_why,
    an_optional_hook_that_fails_is_not_enough_for_who_wants_the_application,
    what_each_phase_prints_is_in_the_report,
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
