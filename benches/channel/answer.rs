//! From the request to freeze to its answer, when there is nothing to write back.

use std::{thread, time::Duration};

use crate::{
    Plan,
    table::{Table, median},
    turns::{AGENTS, Turns},
};

/// Between two freezes: hosts ask once an hour, and an agent gives back what it needed when it has been idle for a while.
const REST: Duration = Duration::from_millis(1500);

pub fn measure(turns: &Turns, plan: Plan, table: &mut Table) {
    let mut first = [const { Vec::new() }; 2];
    let mut froze = [const { Vec::new() }; 2];
    let mut thawed = [const { Vec::new() }; 2];
    for _ in 0..plan.turns {
        for (column, agent) in AGENTS.iter().enumerate() {
            let mut turn = turns.of(*agent);
            for number in 0..=plan.freezes {
                turn.guest.sh("sync");
                thread::sleep(REST);
                let froze_in = turn.freeze();
                let thawed_in = turn.thaw();
                eprintln!("{:<9}  froze in {froze_in:>9.1?}  thawed in {thawed_in:>9.1?}", agent.name());
                if number == 0 {
                    first[column].push(froze_in);
                } else {
                    froze[column].push(froze_in);
                    thawed[column].push(thawed_in);
                }
            }
        }
    }
    let count = plan.turns * plan.freezes;
    table.times(&format!("freeze of a clean guest, until answered (median of {count})"), froze.map(median));
    table.times("    the first after the agent's start", first.map(median));
    table.times("thaw, until answered", thawed.map(median));
}
