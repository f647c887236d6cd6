//! The first thing a newcomer runs: `cargo run --release --example demo`, as root.
//!
//! It shows, on disks of its own, what a copy of a running machine's disk is worth with and without a hold, and checks
//! every sentence it prints. One program, three roles:
//!
//! ```text
//!   demo            the outside: builds holdstill, makes the disks, can let go of them, takes everything away again
//!   └─ @stage       the machine (own PID and mount namespace): databases, the daemon, the two copies, the telling
//!      └─ @writer   one per stream: commits transactions and notes which were acknowledged
//! ```
//!
//! The outside stays alive whatever happens inside: it holds a descriptor on every file system that gets frozen, ends
//! the whole stage at a limit or on Ctrl-C, thaws, and checks that nothing is left. Nothing is frozen but loop devices
//! the demo made, and nothing of it is ever written to a disk of this machine.

mod agent;
mod claims;
mod command;
mod disk;
mod ledger;
mod outside;
mod server;
mod stage;
mod stream;

use std::{env, process::ExitCode};

/// Any failure on the way: one sentence for people. What is claimed and not so is no error, see [`claims`].
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["@stage", work, holdstill] => stage::main(work.as_ref(), holdstill.as_ref()),
        ["@writer", engine, durability, at, ledger] => stream::write(engine, durability, at.as_ref(), ledger.as_ref()),
        [] => outside::main(),
        _ => {
            eprintln!("usage: cargo run --release --example demo (it takes no arguments)");
            ExitCode::from(2)
        }
    }
}
