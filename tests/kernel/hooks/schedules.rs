//! Whatever fails, hangs or dies, and whoever is lost at whatever instant: undone is started, reversed, once, with writers
//! going on already. `HOLDSTILL_SEED=N` plays other schedules than the usual ones.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use super::story::{Story, story};
use crate::lab::{Lab, now, process::ours, process::signal, until};

facts! {
    for_any_schedule_undone_is_started_reversed_once within 240,
}

const SCHEDULES: usize = 48;
/// The last ones are left out on a machine that is too slow for all.
const ENOUGH: Duration = Duration::from_secs(45);
const SEED: u64 = 5;
const PHASES: [&str; 3] = ["prepare", "freeze", "thaw"];

/// How a hook does in one phase.
#[derive(Debug, Clone, Copy)]
enum Way {
    Ends,
    Fails,
    Dies,
    Hangs,
}

#[derive(Debug, Clone)]
struct Hook {
    prepares: bool,
    required: bool,
    ways: [Way; PHASES.len()],
}

#[derive(Debug, Clone, Copy)]
enum End {
    Asked,
    Deadline,
    CallerGone,
    DaemonTold,
    DaemonKilled,
    WardenKilled,
    AllKilled,
}

#[derive(Debug, Clone)]
struct Schedule {
    hooks: Vec<Hook>,
    end: End,
    /// this long after the hold was asked for
    after: Duration,
}

fn schedules() -> impl Strategy<Value = Schedule> {
    let way = || prop_oneof![9 => Just(Way::Ends), 1 => Just(Way::Fails), 1 => Just(Way::Dies), 1 => Just(Way::Hangs)];
    let hook = (any::<bool>(), any::<bool>(), [way(), way(), way()]);
    let hook = hook.prop_map(|(prepares, required, ways)| Hook { prepares, required, ways });
    let end = prop_oneof![
        1 => Just(End::Asked),
        1 => Just(End::Deadline),
        1 => Just(End::CallerGone),
        1 => Just(End::DaemonTold),
        2 => Just(End::DaemonKilled),
        1 => Just(End::WardenKilled),
        2 => Just(End::AllKilled),
    ];
    (prop::collection::vec(hook, 0..5), end, 0..600u64).prop_map(|(hooks, end, after)| {
        // few hooks are soon over
        let after = Duration::from_millis(after * (1 + hooks.len() as u64) / 5);
        Schedule { hooks, end, after }
    })
}

fn for_any_schedule_undone_is_started_reversed_once(lab: &Lab) {
    let seed = std::env::var("HOLDSTILL_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(SEED);
    eprintln!("HOLDSTILL_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let begun = now();
    let mut wrong = Vec::new();
    let mut it = None;
    for round in 0..SCHEDULES {
        if now() - begun > ENOUGH {
            eprintln!("{round} schedules in {ENOUGH:?}");
            break;
        }
        let schedule = schedules().new_tree(&mut runner).expect("nothing is filtered").current();
        let mut story = it.take().unwrap_or_else(|| story(lab));
        let begun = now();
        let played = catch_unwind(AssertUnwindSafe(|| schedule.play(&mut story, round)));
        let took = (now() - begun).as_secs_f64();
        eprintln!("round {round} ({took:.1} s): {schedule:?}\n  {}", story.told());
        if played.is_ok() {
            it = Some(story);
        } else {
            wrong.push(format!("round {round}: {schedule:?}: {}", story.told()));
            story.give_up();
        }
        if wrong.len() >= 5 {
            break;
        }
    }
    assert!(wrong.is_empty(), "HOLDSTILL_SEED={seed}: {wrong:#?}");
}

impl Schedule {
    fn write(&self, it: &Story<'_>) {
        it.clear();
        for (hook, name) in self.hooks.iter().zip(["a", "b", "c", "d"]) {
            it.hook(name);
            if hook.prepares {
                it.prepares();
            }
            if !hook.required {
                it.optional();
            }
            if hook.ways.iter().any(|way| matches!(way, Way::Hangs)) {
                it.limit("400ms");
            }
            for (way, phase) in hook.ways.iter().zip(PHASES) {
                match way {
                    Way::Ends => it.does(phase, "sleep 0.02"),
                    Way::Fails => it.fails_in(phase),
                    Way::Dies => it.dies_in(phase),
                    Way::Hangs => it.hangs_in(phase),
                };
            }
        }
    }

    fn play(&self, it: &mut Story<'_>, round: usize) {
        self.write(it);
        it.daemon().wait_for_phase("idle", Duration::from_secs(5)); // it has just been started, perhaps
        let id = format!("round-{round}");
        let limit = if matches!(self.end, End::Deadline) { "300ms" } else { "20s" };
        let client = it.daemon().start_cli(&["freeze", "--id", &id, "--for", limit]);
        let gone = if matches!(self.end, End::Deadline) { Duration::ZERO } else { self.after };
        thread::sleep(gone);
        let mut client = Some(client);
        match self.end {
            End::Deadline => {}
            End::Asked => drop(it.daemon().cli(&["thaw"])),
            End::CallerGone => client.take().expect("not before").kill(),
            End::DaemonTold => {
                signal(it.daemon().pid(), Signal::SIGTERM);
                assert_eq!(it.daemon().wait_end(Duration::from_secs(10)), Some(0));
            }
            End::DaemonKilled => it.daemon().kill(),
            End::WardenKilled => signal(it.daemon().warden(), Signal::SIGKILL),
            End::AllKilled => it.lose_everybody(),
        }
        let held = client.is_some_and(|client| client.finish_within(Duration::from_secs(15)).code == Some(0));
        match self.end {
            End::DaemonTold => it.next_daemon(),
            End::DaemonKilled => {
                // the survivors have it to themselves
                assert!(until(Duration::from_secs(10), || ours().is_empty()), "they do not end: {:?}", ours());
                it.next_daemon();
            }
            End::AllKilled => it.next_daemon(),
            // what ended before it was admitted, or after it was answered, is held by now
            End::Asked | End::CallerGone | End::WardenKilled => drop(it.daemon().cli(&["thaw"])),
            End::Deadline if held => {
                assert!(until(Duration::from_secs(3), || it.daemon().phase() == "idle"), "it does not end");
            }
            End::Deadline => {}
        }
        it.assert_moving();
        it.daemon().wait_for_phase("idle", Duration::from_secs(10));
        if let Err(what) = examine(&it.told()) {
            panic!("{what}");
        }
    }
}

/// Undone is started, reversed, once; and never did a thaw come too early.
fn examine(told: &str) -> Result<(), String> {
    let mut started: Vec<&str> = Vec::new();
    let mut undone: Vec<&str> = Vec::new();
    let mut reasons: Vec<&str> = Vec::new();
    for line in told.split(", ").filter(|line| !line.is_empty()) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            [name, "thaw", reason] => {
                undone.push(name);
                reasons.push(reason);
            }
            [name, "prepare" | "freeze"] if undone.is_empty() => {
                if !started.contains(&name) {
                    started.push(name);
                }
            }
            _ => return Err(format!("too early, or too late: {line}")),
        }
    }
    // one that was ended before it could tell that it began, and so was the last
    if undone.len() > started.len() && !started.contains(&undone[0]) {
        started.push(undone[0]);
    }
    started.reverse();
    if undone != started {
        return Err(format!("undone {undone:?} instead of {started:?}"));
    }
    // who takes over has a reason of its own
    reasons.dedup();
    match reasons[..] {
        [] | [_] | [_, "daemon_lost"] => Ok(()),
        _ => Err(format!("reasons {reasons:?}")),
    }
}
