//! What small questions leave behind in an agent's memory.

use std::{thread, time::Duration};

use serde_json::Value;

use crate::{
    Plan,
    lab::guest_agent::request,
    table::Table,
    turns::{AGENTS, Turn, Turns},
};

/// Asked before the first look: buffers have their size then.
const BEFORE: usize = 100;
/// So many questions are on their way at a time.
const PIPELINED: usize = 10;

pub fn measure(turns: &Turns, plan: Plan, table: &mut Table) {
    let mut resident = [const { String::new() }; 2];
    let mut own_share = [const { String::new() }; 2];
    for (column, agent) in AGENTS.iter().enumerate() {
        let mut turn = turns.of(*agent);
        ask(&mut turn, BEFORE);
        let before = look(&turn);
        ask(&mut turn, plan.questions);
        let after = look(&turn);
        eprintln!("{:<9}  Rss and Pss, KiB: {before:?}, after {} rounds {after:?}", agent.name(), plan.questions);
        resident[column] = format!("{} → {} KiB", before[0], after[0]);
        own_share[column] = format!("{} → {} KiB", before[1], after[1]);
    }
    table.row(&format!("resident memory, before and after {} × ping and info", plan.questions), resident, "");
    table.row("its share of it (Pss)", own_share, "");
}

fn ask(turn: &mut Turn<'_>, rounds: usize) {
    let round = request("guest-ping", Value::Null) + &request("guest-info", Value::Null);
    let mut left = rounds;
    while left > 0 {
        let now = left.min(PIPELINED);
        turn.host.send(round.repeat(now).as_bytes());
        for _ in 0..now {
            assert!(turn.host.answer()["return"].is_object(), "guest-ping");
            assert!(turn.host.answer()["return"]["version"].is_string(), "guest-info");
        }
        left -= now;
    }
}

/// Rss and Pss of the agent's main process, in KiB; not the VmRSS of `status`, which the kernel counts only roughly.
fn look(turn: &Turn<'_>) -> [u64; 2] {
    thread::sleep(Duration::from_secs(1));
    let of = |name: &str| {
        let file = "/proc/$(cat /run/agent.pid)/smaps_rollup";
        let said = turn.guest.sh(&format!("awk '/^{name}:/ {{ print $2 }}' {file}"));
        said.trim().parse().expect("a number")
    };
    [of("Rss"), of("Pss")]
}
