//! What receipts cost: holds that write them and rehearsals that do not, by one daemon over the same file system, in the same
//! run, taking turns. `cargo bench --bench receipts`, as root; about two minutes.
//!
//! - the time from the first step that makes anybody wait to everything held: `frozen` is written there, into memory
//! - the FIFREEZE itself, which carries it to disk
//! - the longest time that a write to the file system took
//!
//! `HOLDSTILL_BENCH_QUICK=1`: five rounds instead of twenty-five. Nothing here fails because it was slow.

#[path = "../../tests/lab/mod.rs"]
#[macro_use]
#[expect(dead_code, reason = "the kernel tests use the rest of it")]
mod lab;

use std::{process::ExitCode, time::Duration};

use holdstill::proto::{HoldSpec, Report, StepKind, Verdict};
use lab::{
    Fs, Lab, Type,
    grpc::{Grpc, for_seconds},
};

facts! { measured within 600 }

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [role, ..] if role.starts_with("--lab-") => lab::main(&[FACTS]),
        _ if words.iter().any(|word| word == "--bench") => {
            lab::harness::main(FACTS, &[], &["--nocapture".to_owned()], 1)
        }
        _ => {
            println!("receipts: not run; it measures only under `cargo bench --bench receipts`");
            ExitCode::SUCCESS
        }
    }
}

#[derive(Debug, Default)]
struct Row {
    prepare: Vec<Duration>,
    quiesce: Vec<Duration>,
    freeze: Vec<Duration>,
    write: Vec<Duration>,
}

fn measured(lab: &Lab) {
    let rounds = if std::env::var_os("HOLDSTILL_BENCH_QUICK").is_some() { 5 } else { 25 };
    println!(
        "\nholds with and without a receipt; medians of {rounds}, in ms; goal: nothing that can be told from noise\n"
    );
    println!("{:<24} {:>8} {:>8} {:>8} {:>14}", "", "prepare", "quiesce", "FIFREEZE", "longest write");
    for kind in [Type::Ext4, Type::Xfs, Type::Btrfs] {
        let disk = lab.fs(kind);
        let daemon = lab.daemon(&[&disk]).set("hold.hourly", "10m").start();
        let grpc = daemon.grpc();
        let mut rows = [(false, Row::default()), (true, Row::default())];
        // the first of each is not counted: the files are made, and caches fill
        for round in 0..=rounds {
            for at in 0..2 {
                let (receipt, row) = &mut rows[(at + round) % 2];
                hold(lab, &disk, &grpc, *receipt, row);
                if round == 0 {
                    *row = Row::default();
                }
            }
        }
        for (receipt, row) in &rows {
            let name = format!("{}, {}", kind.name(), if *receipt { "with receipts" } else { "without" });
            let [prepare, quiesce, freeze, write] =
                [&row.prepare, &row.quiesce, &row.freeze, &row.write].map(|times| median(times));
            println!("{name:<24} {prepare:>8.1} {quiesce:>8.1} {freeze:>8.1} {write:>14.1}");
        }
        let ratio = median(&rows[1].1.quiesce) / median(&rows[0].1.quiesce);
        println!("{:<24} {:>8} {ratio:>7.2}x", "", "");
    }
}

fn hold(lab: &Lab, disk: &Fs<'_>, grpc: &Grpc, receipt: bool, row: &mut Row) {
    let writer = lab.writer(disk);
    let spec = HoldSpec { rehearsal: !receipt, ..for_seconds(30) };
    let held = grpc.freeze("", spec).expect("it holds");
    let report = grpc.thaw(&held.id).expect("it answers").report.expect("it is the answer");
    assert_eq!(report.verdict(), Verdict::Unbroken, "{report:#?}");
    row.prepare.push(time(report.prepare_took));
    row.quiesce.push(time(report.quiesce_took));
    row.freeze.push(freeze(&report));
    row.write.push(writer.longest());
}

fn freeze(report: &Report) -> Duration {
    let frozen = report.steps.iter().filter(|step| step.kind() == StepKind::Filesystem);
    frozen.map(|step| time(step.took)).max().unwrap_or_default()
}

fn time(time: Option<prost_types::Duration>) -> Duration {
    time.and_then(|time| time.try_into().ok()).unwrap_or_default()
}

/// In milliseconds.
fn median(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default().as_secs_f64() * 1e3
}
