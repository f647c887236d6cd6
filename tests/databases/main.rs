//! Real database servers of many versions, held by a real daemon. The laboratory is `tests/lab`; the servers are the
//! machine's own and those that `tests/servers/build.sh` unpacks. Needs root; freezes nothing but loop devices it made.
//!
//! `UPDATE=1 cargo test --test databases` rewrites the table in docs/databases.md with what was measured.

#[path = "../lab/mod.rs"]
#[macro_use]
#[expect(dead_code, reason = "the other tests use the rest of it")]
mod lab;

mod coordinates;
mod differences;
mod editions;
mod equipment;
mod hazards;
mod logs_later;
mod mount_root;
mod table;

use std::process::ExitCode;

fn main() -> ExitCode {
    let of_the_harness = std::env::args().nth(1).is_none_or(|word| !word.starts_with("--lab-") && word != "--list");
    if of_the_harness {
        table::begin();
    }
    // the table is what the facts before it measured
    let ended = lab::main(&[
        equipment::FACTS,
        editions::FACTS,
        mount_root::FACTS,
        differences::FACTS,
        hazards::FACTS,
        logs_later::FACTS,
        table::FACTS,
    ]);
    if of_the_harness && table::update_wanted() {
        table::update();
    }
    ended
}
