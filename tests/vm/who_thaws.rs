//! Who thaws, when whoever should does not: the agent killed, stopped, restarted; the host gone; time out of joint.

use std::{thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    lab::{Lab, guest_agent::request, now},
    machine::{Boot, agent::Setup},
    table::{Outcome, Trial, case, compare, compare_in, ends, lets_go_or_not, usual},
};

facts! {
    an_agent_that_is_killed_lets_go within 90,
    an_agent_that_is_asked_to_end_lets_go_and_ends within 90,
    a_freeze_whose_host_has_gone_quiet_is_let_go within 90,
    a_freeze_that_came_too_late_for_its_host_is_let_go within 90,
    a_restarted_agent_lets_go_of_what_was_left within 90,
    a_marker_from_before_a_reboot_freezes_nobody within 120,
    an_agent_whose_state_is_on_the_frozen_disk_starts_and_lets_go within 90,
    an_agent_that_is_stopped_lets_go within 90,
    what_hosts_do_in_the_wrong_order_is_answered_as_they_expect within 120,
    a_deadline_during_the_snapshot_is_told within 90,
    a_clock_that_jumps_moves_no_deadline within 90,
    a_guest_restored_from_a_memory_snapshot_lets_go_by_itself within 120,
}

/// Longer than any of these agents' limits.
const SOON: Duration = Duration::from_secs(5);

fn an_agent_that_is_killed_lets_go(lab: &Lab) {
    fn run(trial: &Trial) -> Outcome {
        trial.freeze();
        trial.agent.kill(trial.guest, "KILL");
        lets_go_or_not(trial.guest, SOON)
    }
    compare(lab, &case("T01", "killed while frozen", run, "lets go", "stays frozen"));
}

fn an_agent_that_is_asked_to_end_lets_go_and_ends(lab: &Lab) {
    fn run(trial: &Trial) -> Outcome {
        trial.freeze();
        trial.agent.kill(trial.guest, "TERM");
        let end = lets_go_or_not(trial.guest, SOON);
        let gone = trial.guest.becomes("! kill -0 $(cat /run/agent.pid) 2>/dev/null", Duration::from_secs(5));
        if gone && trial.marks() == "freeze thaw" { end } else { end.with("goes on running") }
    }
    compare(lab, &case("T02", "SIGTERM while frozen", run, "lets go", "stays frozen"));
}

fn a_freeze_whose_host_has_gone_quiet_is_let_go(lab: &Lab) {
    fn run(trial: &Trial) -> Outcome {
        trial.freeze();
        trial.hang_up();
        lets_go_or_not(trial.guest, SOON)
    }
    compare(lab, &case("T03", "the host vanishes after the freeze", run, "lets go", "stays frozen"));
}

fn a_freeze_that_came_too_late_for_its_host_is_let_go(lab: &Lab) {
    fn run(trial: &Trial) -> Outcome {
        trial.host(|host| {
            host.send(request("guest-fsfreeze-freeze", Value::Null).as_bytes());
            assert!(host.answer_within(Duration::from_secs(1)).is_none(), "the hook takes three seconds");
        });
        trial.hang_up();
        let landed = now();
        while !trial.guest.is_frozen() {
            assert!(now() - landed < Duration::from_secs(15), "the freeze never landed");
        }
        lets_go_or_not(trial.guest, SOON)
    }
    let slow = Setup { hook: Some("[ $1 = thaw ] || sleep 3"), ..usual() };
    let case = case("T04", "the freeze lands after its host gave up", run, "lets go", "stays frozen");
    compare_in(lab, &Boot::small(), &slow, &[case]);
}

/// Kills all of it and starts it again; without a thaw of its own, a host tries.
fn restarted(trial: &Trial) -> Outcome {
    trial.freeze();
    trial.agent.kill_all(trial.guest);
    assert!(trial.guest.is_frozen(), "nobody is left who could have thawed");
    trial.start_again();
    if let Some(took) = trial.guest.thaws_within(SOON) {
        return ends("lets go").took(took);
    }
    trial.connect();
    let synced = trial.host(|host| host.syncs_within(Duration::from_secs(5)));
    if synced && trial.thaw() == json!(2) { ends("stays frozen until a host thaws") } else { ends("stays frozen") }
}

fn a_restarted_agent_lets_go_of_what_was_left(lab: &Lab) {
    let what = "all of it killed while frozen, started again";
    compare(lab, &case("T05", what, restarted, "lets go", "stays frozen until a host thaws"));
}

fn an_agent_whose_state_is_on_the_frozen_disk_starts_and_lets_go(lab: &Lab) {
    let setup = Setup { state_dir: Some("/var/lib/qga"), ..usual() };
    let what = "the same, its state on the frozen disk";
    let case = case("T06", what, restarted, "lets go", "stays frozen until a host thaws");
    compare_in(lab, &Boot::small(), &setup, &[case]);
}

fn a_marker_from_before_a_reboot_freezes_nobody(lab: &Lab) {
    fn run(trial: &Trial) -> Outcome {
        trial.freeze();
        trial.guest.reset(trial.boot);
        assert!(!trial.guest.is_frozen());
        trial.start_again();
        ends(format!("says {}", trial.status().as_str().unwrap_or("something else")))
    }
    let boot = Boot { reboots: true, ..Boot::small() };
    let setup = Setup { state_dir: Some("/var/lib/qga"), ..usual() };
    let case = case("T05", "rebooted while frozen, state on a disk", run, "says thawed", "says frozen");
    compare_in(lab, &boot, &setup, &[case]);
}

fn an_agent_that_is_stopped_lets_go(lab: &Lab) {
    fn run(trial: &Trial) -> Outcome {
        trial.freeze();
        trial.status();
        trial.agent.kill(trial.guest, "STOP");
        lets_go_or_not(trial.guest, SOON)
    }
    compare(lab, &case("T07", "SIGSTOP while frozen", run, "lets go", "stays frozen"));
}

fn what_hosts_do_in_the_wrong_order_is_answered_as_they_expect(lab: &Lab) {
    fn thaws_twice(trial: &Trial) -> Outcome {
        trial.freeze();
        let answers = [trial.thaw(), trial.thaw(), trial.thaw()];
        assert_eq!(answers, [json!(2), json!(0), json!(0)]);
        ends(trial.marks())
    }
    fn freezes_twice(trial: &Trial) -> Outcome {
        trial.freeze();
        let second = trial.ask("guest-fsfreeze-freeze", Value::Null);
        assert_eq!(second["class"], "CommandNotFound", "{second}");
        assert!(second["desc"].as_str().is_some_and(|said| said.contains("has been disabled")), "{second}");
        assert_eq!(trial.thaw(), json!(2));
        ends("disabled")
    }
    fn thaws_before_the_freeze_is_answered(trial: &Trial) -> Outcome {
        let both =
            [request("guest-fsfreeze-freeze", Value::Null), request("guest-fsfreeze-thaw", Value::Null)].concat();
        let answers = trial.host(|host| {
            host.send(both.as_bytes());
            [host.answer(), host.answer()].map(|answer| answer["return"].clone())
        });
        assert!(!trial.guest.is_frozen());
        ends(format!("{}, then {}", answers[0], answers[1]))
    }
    let cases = [
        case("T08", "thaw three times: hooks run", thaws_twice, "freeze thaw", "freeze thaw thaw thaw"),
        case("T09", "freeze while frozen", freezes_twice, "disabled", "disabled"),
        case("T10", "freeze and thaw in one write", thaws_before_the_freeze_is_answered, "2, then 2", "2, then 2"),
    ];
    compare_in(lab, &Boot::small(), &usual(), &cases);
}

fn a_deadline_during_the_snapshot_is_told(lab: &Lab) {
    fn run(trial: &Trial) -> Outcome {
        trial.freeze();
        trial.status();
        thread::sleep(Duration::from_secs(4));
        let answer = trial.thaw();
        match answer["desc"].as_str() {
            Some(why) if why.contains("broken") => ends("the thaw says broken").with(why),
            Some(other) => ends(other),
            None => ends("still frozen, and its thaw says so many").with(answer.to_string()),
        }
    }
    let mut setup = usual();
    setup.settings = vec![("hold.max", "\"3s\"")];
    let case = case(
        "T11",
        "the deadline passes during the snapshot",
        run,
        "the thaw says broken",
        "still frozen, and its thaw says so many",
    );
    compare_in(lab, &Boot::small(), &setup, &[case]);
}

fn a_clock_that_jumps_moves_no_deadline(lab: &Lab) {
    fn run(trial: &Trial) -> Outcome {
        trial.freeze();
        trial.status();
        for jump in ["+ 86400", "- 172800"] {
            trial.guest.sh(&format!("date -s @$(($(date +%s) {jump}))"));
            assert!(trial.guest.is_frozen(), "let go by the clock's jump {jump}");
        }
        lets_go_or_not(trial.guest, Duration::from_secs(8))
    }
    compare(lab, &case("T12", "the clock jumps while frozen", run, "lets go", "stays frozen"));
}

fn a_guest_restored_from_a_memory_snapshot_lets_go_by_itself(lab: &Lab) {
    fn run(trial: &Trial) -> Outcome {
        trial.freeze();
        trial.status();
        trial.guest.save("held");
        assert_eq!(trial.thaw(), json!(2));
        trial.hang_up();
        trial.guest.load("held");
        let end = lets_go_or_not(trial.guest, Duration::from_secs(8));
        match trial.thaw()["desc"].as_str() {
            Some(why) if why.contains("broken") => end,
            _ => end.with("its thaw does not say broken"),
        }
    }
    compare(lab, &case("T13", "restored from a memory snapshot taken while frozen", run, "lets go", "stays frozen"));
}
