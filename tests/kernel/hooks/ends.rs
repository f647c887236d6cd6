//! Hooks are undone whoever is lost: the caller, the daemon, the warden, everybody.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::story::{Story, story};
use crate::lab::{Lab, daemon::step, process::signal};

facts! {
    a_caller_gone_while_preparing_has_its_hooks_undone,
    a_caller_gone_while_quiescing_has_its_hooks_undone,
    a_thaw_while_quiescing_undoes_what_was_started,
    at_the_deadline_hooks_are_undone,
    a_lost_warden_has_its_hooks_undone,
    a_daemon_told_to_stop_undoes_its_hooks_first,
    the_survivors_of_a_killed_daemon_undo_its_hooks_once,
    rescue_undoes_the_hooks_of_who_was_killed_once,
    the_next_daemon_undoes_the_hooks_of_who_was_killed_once,
    an_undo_under_way_when_the_daemon_is_killed_is_not_begun_again,
    hooks_of_a_lost_hold_know_whose_they_are,
}

/// Where a hold is when something happens to it. Each is the moment after a line is told.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Preparing,
    Quiescing,
    Held,
}

const MOMENTS: [Moment; 3] = [Moment::Preparing, Moment::Quiescing, Moment::Held];

impl Moment {
    /// A story that has come so far.
    fn of(self, lab: &Lab) -> Story<'_> {
        let it = story(lab);
        it.hook("a").prepares().hook("b").hook("c");
        match self {
            Moment::Preparing => it.hook("d").prepares().limit("20s").hangs_in("prepare"),
            Moment::Quiescing => it.hook("d").prepares().limit("20s").hangs_in("freeze"),
            Moment::Held => it.hook("d").prepares(),
        };
        it
    }

    fn last(self) -> &'static str {
        match self {
            Moment::Preparing => "d prepare",
            Moment::Quiescing | Moment::Held => "d freeze",
        }
    }

    /// All of it, when it ended for `reason`.
    fn story(self, reason: &str) -> String {
        let (before, undone): (_, &[&str]) = match self {
            Moment::Preparing => ("a prepare, d prepare", &["d", "a"]),
            Moment::Quiescing | Moment::Held => {
                ("a prepare, d prepare, a freeze, b freeze, c freeze, d freeze", &["c", "b", "d", "a"])
            }
        };
        let undone = undone.iter().map(|name| format!(", {name} thaw {reason}"));
        std::iter::once(before.to_owned()).chain(undone).collect()
    }
}

/// Brings a hold to each moment, and lets something happen there.
fn at_each_moment(lab: &Lab, reason: &str, happens: impl Fn(&mut Story<'_>)) {
    for moment in MOMENTS {
        let mut it = moment.of(lab);
        let client = it.freeze_until(moment.last());
        if matches!(moment, Moment::Held) {
            client.finish().exits(0);
            happens(&mut it);
        } else {
            happens(&mut it);
            // with everybody killed nobody answers
            assert_ne!(client.finish_within(Duration::from_secs(10)).code, Some(0), "{moment:?}");
        }
        it.expect(&moment.story(reason));
        it.assert_moving();
        it.next_daemon();
        it.expect(&moment.story(reason));
        it.clear();
        it.hook("e");
        it.daemon().freeze(&["--id", "next"]);
        assert_eq!(it.daemon().thaw()["verdict"], "unbroken", "{moment:?}: the next hold");
        it.expect("e freeze, e thaw asked");
    }
}

fn a_caller_gone_while_preparing_has_its_hooks_undone(lab: &Lab) {
    let it = Moment::Preparing.of(lab);
    it.freeze_until("d prepare").kill();
    it.expect(&Moment::Preparing.story("caller_gone"));
}

fn a_caller_gone_while_quiescing_has_its_hooks_undone(lab: &Lab) {
    let it = Moment::Quiescing.of(lab);
    it.freeze_until("d freeze").kill();
    it.expect(&Moment::Quiescing.story("caller_gone"));
    it.assert_moving();
}

fn a_thaw_while_quiescing_undoes_what_was_started(lab: &Lab) {
    let it = Moment::Quiescing.of(lab);
    let client = it.freeze_until("d freeze");
    let thaw = it.daemon().cli(&["thaw"]);
    assert_eq!(thaw.report()["verdict"], "never_held", "{thaw:?}");
    it.expect(&Moment::Quiescing.story("asked"));
    let freeze = client.finish();
    freeze.exits(1);
    assert_eq!(freeze.reason(), "THAWED_MEANWHILE");
    it.assert_moving();
}

fn at_the_deadline_hooks_are_undone(lab: &Lab) {
    let it = Moment::Held.of(lab);
    it.daemon().freeze(&["--for", "1s"]);
    it.expect(&Moment::Held.story("deadline"));
    assert_eq!(it.daemon().thaw()["verdict"], "broken");
}

fn a_lost_warden_has_its_hooks_undone(lab: &Lab) {
    at_each_moment(lab, "warden_lost", |it| signal(it.daemon().warden(), Signal::SIGKILL));
}

fn a_daemon_told_to_stop_undoes_its_hooks_first(lab: &Lab) {
    at_each_moment(lab, "shutdown", |it| {
        signal(it.daemon().pid(), Signal::SIGTERM);
        assert_eq!(it.daemon().wait_end(Duration::from_secs(6)), Some(0));
        assert!(it.told().ends_with("a thaw shutdown"), "it ended before its hooks were undone: {}", it.told());
    });
}

fn the_survivors_of_a_killed_daemon_undo_its_hooks_once(lab: &Lab) {
    at_each_moment(lab, "daemon_lost", |it| it.daemon().kill());
}

fn rescue_undoes_the_hooks_of_who_was_killed_once(lab: &Lab) {
    at_each_moment(lab, "daemon_lost", |it| {
        it.lose_everybody();
        it.rescue().exits(0).says("hooks");
        let told = it.told();
        it.rescue().exits(0);
        it.expect(&told);
    });
}

fn the_next_daemon_undoes_the_hooks_of_who_was_killed_once(lab: &Lab) {
    at_each_moment(lab, "daemon_lost", |it| {
        it.lose_everybody();
        it.next_daemon();
    });
}

fn an_undo_under_way_when_the_daemon_is_killed_is_not_begun_again(lab: &Lab) {
    let mut it = story(lab);
    it.hook("a").hook("b").does("thaw", "sleep 0.7; echo nobody; echo reads; echo 'b ends' >>$d/told").hook("c");
    it.freeze().exits(0);
    let client = it.daemon().start_cli(&["thaw"]);
    it.wait_for("b thaw asked");
    it.daemon().kill();
    client.finish();
    let story = "a freeze, b freeze, c freeze, c thaw asked, b thaw asked, b ends, a thaw daemon_lost";
    it.expect(story);
    it.next_daemon();
    it.expect(story);
}

fn hooks_of_a_lost_hold_know_whose_they_are(lab: &Lab) {
    let mut it = story(lab);
    it.hook("a").does("thaw", "env | grep ^HOLDSTILL_ >$d/environment");
    it.freeze().exits(0);
    it.lose_everybody();
    it.rescue().exits(0);
    let seen = std::fs::read_to_string(it.notes.join("environment")).expect("its thaw ran");
    for expected in ["ID=told", "PHASE=thaw", "REASON=daemon_lost"] {
        assert!(seen.lines().any(|line| line == format!("HOLDSTILL_{expected}")), "no {expected}:\n{seen}");
    }
    it.next_daemon();
    let report = it.report();
    assert_eq!((&report["verdict"], &report["reason"]), (&"broken".into(), &"daemon_lost".into()), "{report:#}");
    assert_eq!(step(&report, "hook:10-a")["kind"], "hook", "{report:#}");
}
