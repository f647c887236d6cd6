//! The guest-agent channel of a real virtual machine: holdstill beside the stock qemu-ga, in the same guest, in the same
//! run, taking turns on its port. `cargo bench --bench channel`, as root; about five minutes. Needs what
//! `tests/vm/image/build.sh small` makes, and measures the holdstill that is in there.
//!
//! - how long a freeze takes to be answered when there is nothing to write back
//! - how long an fsyncing writer waits for a freeze and a thaw while 256 MiB lie unwritten
//! - what ten thousand small questions leave in memory
//!
//! `HOLDSTILL_BENCH_QUICK=1`: few rounds, one minute. Nothing here fails because it was slow; the guest is emulated and
//! its host may be busy, so only the ratios mean something.

#[path = "../../tests/lab/mod.rs"]
#[macro_use]
#[expect(dead_code, reason = "the kernel tests use the rest of it")]
mod lab;
#[path = "../../tests/vm/machine/mod.rs"]
#[expect(dead_code, reason = "the VM tests use the rest of it")]
mod machine;

mod answer;
mod memory;
mod stall;
mod table;
mod turns;

use std::process::ExitCode;

use table::Table;
use turns::Turns;

facts! { measured within 1800 }

/// How much of everything.
#[derive(Clone, Copy)]
struct Plan {
    /// agents take turns so often …
    turns: usize,
    /// … and freeze so often each time, after the first
    freezes: usize,
    /// of each kind of dirt
    stalls: usize,
    questions: usize,
}

const FULL: Plan = Plan { turns: 3, freezes: 5, stalls: 3, questions: 10_000 };
const QUICK: Plan = Plan { turns: 1, freezes: 3, stalls: 1, questions: 300 };

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // in the guest
        [stall::WRITER, file, log] => stall::write(file.as_ref(), log.as_ref()),
        [role, ..] if role.starts_with("--lab-") => lab::main(&[FACTS]),
        _ if words.iter().any(|word| word == "--bench") => {
            lab::harness::main(FACTS, &[], &["--nocapture".to_owned()], 1)
        }
        _ => {
            println!("channel: not run; it measures only under `cargo bench --bench channel`");
            ExitCode::SUCCESS
        }
    }
}

fn measured(lab: &lab::Lab) {
    let plan = if std::env::var_os("HOLDSTILL_BENCH_QUICK").is_some() { QUICK } else { FULL };
    let turns = Turns::boot(lab);
    let mut table = Table::default();
    answer::measure(&turns, plan, &mut table);
    stall::measure(&turns, plan, &mut table);
    memory::measure(&turns, plan, &mut table);
    println!("\n{table}");
}
