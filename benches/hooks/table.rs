//! The table that is printed.

use std::time::Duration;

use crate::{HOOKS, Kind};

/// The goal: a hook that does nothing may take this of the time in which somebody may wait.
const GOAL: Duration = Duration::from_millis(5);

#[derive(Default)]
pub struct Row {
    /// nobody waits: hooks are looked at
    pub prepare: Vec<Duration>,
    pub quiesce: Vec<Duration>,
    /// of that, in the hooks themselves
    pub in_hooks: Vec<Duration>,
    /// the longest write to the file system
    pub write: Vec<Duration>,
    /// the same programs in a plain loop
    pub alone: Vec<Duration>,
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub fn print(rows: &[(Kind, Row)], rounds: usize) {
    let bare = rows.iter().find(|(kind, _)| *kind == Kind::None).map(|(_, row)| median(&row.quiesce));
    let bare = bare.unwrap_or_default();
    println!(
        "\n{HOOKS} hooks that do nothing; medians of {rounds} holds, in ms; goal: each adds at most 5 ms to quiesce\n"
    );
    println!(
        "{:<24} {:>8} {:>8} {:>9} {:>9} {:>11} {:>14}",
        "", "prepare", "quiesce", "in hooks", "per hook", "plain loop", "longest write"
    );
    for (kind, row) in rows {
        let name = match kind {
            Kind::None => "no hooks".to_owned(),
            Kind::Scripts => format!("{HOOKS} scripts for sh"),
            Kind::Programs => format!("{HOOKS} links to /bin/true"),
        };
        let quiesce = median(&row.quiesce);
        let each = quiesce.saturating_sub(bare) / u32::try_from(HOOKS).expect("not many");
        let cells = [&row.prepare, &row.quiesce, &row.in_hooks, &row.alone, &row.write];
        let [prepare, quiesce, in_hooks, alone, write] = cells.map(|times| millis(median(times)));
        let per_hook = if *kind == Kind::None { String::new() } else { format!("{:.2}", millis(each)) };
        let missed = if each > GOAL { "  missed" } else { "" };
        println!(
            "{name:<24} {prepare:>8.1} {quiesce:>8.1} {in_hooks:>9.1} {per_hook:>9} {alone:>11.1} {write:>14.1}{missed}"
        );
    }
}
