//! Real database servers of many versions, held by a real daemon. The laboratory is `tests/lab`; the servers are the
//! machine's own and those that `tests/servers/build.sh` unpacks. Needs root; freezes nothing but loop devices it made.
//!
//! `UPDATE=1 cargo test --test databases` rewrites the table in docs/databases.md with what was measured.

#[path = "../lab/mod.rs"]
#[macro_use]
#[expect(dead_code, reason = "the other tests use the rest of it")]
mod lab;

mod caller_freezes;
mod coordinates;
mod differences;
mod discovery;
mod editions;
mod equipment;
mod hazards;
mod held;
mod logs_after_thaw;
mod logs_later;
mod mount_root;
mod restored;
mod table;

use std::process::ExitCode;

/// They wait for servers and for timeouts most of the time.
const SIDE_BY_SIDE: usize = 2;

const FACTS: &[&[lab::Fact]] = &[
    equipment::FACTS,
    editions::FACTS,
    mount_root::FACTS,
    differences::FACTS,
    logs_later::FACTS,
    logs_after_thaw::FACTS,
    held::FACTS,
    restored::FACTS,
    caller_freezes::FACTS,
    discovery::FACTS,
    hazards::FACTS,
];

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|word| word.starts_with("--lab-") || word == "--list") {
        return lab::main(&[FACTS.concat().leak(), table::FACTS]);
    }
    let measured = lab::main_side_by_side(FACTS, SIDE_BY_SIDE);
    // the table is what the facts before it measured
    let compared = lab::main(&[table::FACTS]);
    if table::update_wanted() {
        table::update();
    }
    table::forget();
    if measured == ExitCode::SUCCESS { compared } else { measured }
}
