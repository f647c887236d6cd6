//! The two tables that are printed.

use std::time::Duration;

use crate::{CLIENTS, millis};

#[derive(Default)]
pub struct Row {
    pub engine: &'static str,
    pub version: String,
    pub nobody: Vec<Duration>,
    pub qemu_ga: Vec<Duration>,
    pub holdstill: Vec<Duration>,
    /// from the first lock to frozen, less the file systems' freeze
    pub with_writers: Vec<Duration>,
    pub alone: Vec<Duration>,
}

pub fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

pub fn print(rows: &[Row], rounds: usize) {
    println!("\nlongest transaction of {CLIENTS} clients around a freeze and thaw; medians of {rounds}\n");
    println!("{:<22} {:>12} {:>16} {:>12} {:>8}", "", "no snapshot", "qemu-ga + hook", "holdstill", "ratio");
    for row in rows {
        let [nobody, theirs, ours] = [&row.nobody, &row.qemu_ga, &row.holdstill].map(|times| millis(median(times)));
        println!(
            "{:<22} {:>9.1} ms {:>13.1} ms {:>9.1} ms {:>8}",
            format!("{} {}", row.engine, row.version),
            nobody,
            theirs,
            ours,
            format!("1/{:.1}", theirs / ours)
        );
    }
    println!(
        "\nfrom the first lock to everything frozen, less the file systems' own freeze; medians, goal alone: 50 ms\n"
    );
    println!("{:<22} {:>12} {:>16}", "", "alone", "4 writers");
    for row in rows {
        let [alone, with] = [&row.alone, &row.with_writers].map(|times| millis(median(times)));
        let missed = if alone > 50.0 { "  missed" } else { "" };
        println!("{:<22} {:>9.1} ms {:>13.1} ms{missed}", format!("{} {}", row.engine, row.version), alone, with);
    }
}
