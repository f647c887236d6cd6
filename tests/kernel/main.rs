//! The kernel tests: real file systems that really freeze, real databases, real kills. One module per promise or door;
//! the laboratory they run in is `tests/lab`. Needs root; freezes nothing but loop devices it made.

#[path = "../lab/mod.rs"]
#[macro_use]
#[expect(dead_code, reason = "the tests with virtual machines use the rest of it")]
mod lab;

mod adapters;
mod bad_input;
mod claims;
mod coexistence;
mod conventions;
mod coverage;
mod faults;
mod filesystems;
mod grpc_rules;
mod guest_agent;
mod hooks;
mod idle;
mod images;
mod lab_itself;
mod lets_go;
mod own_only;
mod pictures;
mod private_root;
mod ready;
mod receipts;
mod reports;
mod restored;
mod self_protection;
mod snapshots;
mod truth;
mod write_back;

use std::process::ExitCode;

fn main() -> ExitCode {
    let together: &[&[lab::Fact]] = &[
        lab_itself::FACTS,
        bad_input::FACTS,
        claims::FACTS,
        coexistence::FACTS,
        conventions::FACTS,
        coverage::FACTS,
        adapters::FACTS,
        filesystems::FACTS,
        own_only::FACTS,
        hooks::order::FACTS,
        hooks::ends::FACTS,
        hooks::place::FACTS,
        hooks::verdict::FACTS,
        hooks::nasty::FACTS,
        hooks::meddling::FACTS,
        hooks::refused::FACTS,
        hooks::schedules::FACTS,
        grpc_rules::FACTS,
        guest_agent::FACTS,
        ready::containers::FACTS,
        ready::documented::FACTS,
        ready::etcd::FACTS,
        ready::mail::FACTS,
        ready::redis::FACTS,
        ready::sqlite::FACTS,
        receipts::FACTS,
        pictures::FACTS,
        images::FACTS,
        images::FACTS,
        pictures::FACTS,
        reports::FACTS,
        restored::FACTS,
        snapshots::FACTS,
        private_root::FACTS,
        faults::FACTS,
    ];
    // what they look at is how long something takes
    let alone: &[&[lab::Fact]] =
        &[lets_go::FACTS, self_protection::FACTS, write_back::FACTS, idle::FACTS, truth::FACTS];
    lab::main_of_two_kinds(together, alone)
}
