//! How long writers wait for a snapshot: holdstill beside the QEMU guest agent, on the same loop-mounted file systems,
//! in the same run, taking turns. `cargo bench --bench stall`, as root; about 20 minutes.
//!
//! The measure is the longest time any single 4 KiB write took, of those under way between the request to freeze and
//! the answer to the thaw that follows it at once.
//!
//! - `HOLDSTILL_BENCH_QUICK=1`: one pair instead of seven, of a part of what there is
//! - `HOLDSTILL_BENCH_ONLY=holdstill|qemu-ga`: only that one
//! - `HOLDSTILL_BENCH_ON=ext4|xfs|btrfs`: only on one file system of that type
//! - `HOLDSTILL_BENCH_DIR=DIR`: where the file systems' images lie; /dev/shm unless said, so that the machine's own
//!   disk is not what is measured
//! - `HOLDSTILL_BIN=PATH`: another holdstill than the one just built

mod agent;
mod guest;
mod writer;

use std::{env, fmt, process::ExitCode, thread, time::Duration};

use agent::{Agent, Which};
use guest::{Guest, Kind};
use holdstill::sys::clock;
use nix::unistd::Uid;
use writer::{Style, Writer};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What lies in memory, unwritten, when the freeze is asked for, all file systems together.
const DIRT: [Dirt; 5] = [
    Dirt { mib: 0, file: Left::Closed },
    Dirt { mib: 256, file: Left::Open },
    Dirt { mib: 256, file: Left::Closed },
    Dirt { mib: 1024, file: Left::Open },
    Dirt { mib: 1024, file: Left::Closed },
];
/// The first so many of them say most.
const QUICK_DIRT: usize = 3;
/// How long writers run undisturbed before each request, for comparison.
const CALM: Duration = Duration::from_millis(150);

#[derive(Clone, Copy)]
struct Dirt {
    mib: u64,
    file: Left,
}

/// How whoever wrote it left the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    /// as a database does
    Open,
    /// as a copy or a dump does
    Closed,
}

impl fmt::Display for Dirt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match (self.mib, self.file) {
            (0, _) => "0".to_owned(),
            (mib, Left::Open) => format!("{mib} MiB open"),
            (mib, Left::Closed) => format!("{mib} MiB closed"),
        })
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [flag, style, file] = &arguments[..]
        && flag == writer::FLAG
    {
        return done(writer::run(style, file.as_ref()));
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("stall: not run; it measures only under `cargo bench --bench stall`");
        return ExitCode::SUCCESS;
    }
    if !Uid::effective().is_root() {
        eprintln!("error: this makes and freezes loop-mounted file systems, which takes root");
        return ExitCode::from(6);
    }
    done(bench())
}

fn done(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    let quick = env::var_os("HOLDSTILL_BENCH_QUICK").is_some();
    let (pairs, dirts) = if quick { (1, &DIRT[..QUICK_DIRT]) } else { (7, &DIRT[..]) };
    let agents = match env::var("HOLDSTILL_BENCH_ONLY").ok().as_deref() {
        None => vec![Which::Holdstill, Which::QemuGa],
        Some("holdstill") => vec![Which::Holdstill],
        Some("qemu-ga") => vec![Which::QemuGa],
        Some(other) => return Err(format!("HOLDSTILL_BENCH_ONLY={other}: holdstill or qemu-ga").into()),
    };
    let on = env::var("HOLDSTILL_BENCH_ON").ok();
    guest::leave_the_mount_namespace()?;
    let mut rows = Vec::new();
    for (kind, count) in [(Kind::Ext4, 1), (Kind::Xfs, 1), (Kind::Btrfs, 1), (Kind::Ext4, 8)] {
        if on.as_ref().is_some_and(|on| count > 1 || *on != kind.to_string()) {
            continue;
        }
        let guest = Guest::make(kind, count)?;
        let mut running = agents.iter().map(|which| which.start(&guest)).collect::<Result<Vec<Agent>>>()?;
        for style in [Style::Buffered, Style::Dsync] {
            let writers = guest.targets().map(|at| Writer::start(style, at)).collect::<Result<Vec<Writer>>>()?;
            for dirt in dirts.iter().copied() {
                eprintln!("{count} × {kind}, {style} writers, {dirt} dirty …");
                let mut row = Row { kind, count, style, dirt, rounds: Vec::new() };
                for pair in 0..pairs {
                    // who goes first alternates, so that neither always finds the other's leavings
                    if pair % 2 == 1 {
                        running.reverse();
                    }
                    for agent in &mut running {
                        row.rounds.push(round(&guest, agent, &writers, dirt)?);
                    }
                    if pair % 2 == 1 {
                        running.reverse();
                    }
                }
                rows.push(row);
            }
        }
    }
    print(&rows, pairs);
    Ok(())
}

/// One freeze and thaw, and what it cost.
struct Round {
    which: Which,
    /// the longest wait of any writer between request and release
    waited: Duration,
    /// the longest wait just before
    calm: Duration,
    dirty_mib: u64,
}

fn round(guest: &Guest, agent: &mut Agent, writers: &[Writer], dirt: Dirt) -> Result<Round> {
    guest.clean()?;
    let before = guest::dirty_mib()?;
    let files = guest.dirty(dirt.mib)?;
    let open = (dirt.file == Left::Open).then_some(files);
    let calm_from = clock::monotonic();
    thread::sleep(CALM);
    let dirty_mib = guest::dirty_mib()?.saturating_sub(before);
    let calm_to = clock::monotonic();

    guest.only_ours()?;
    let reapers = guest.reapers()?;
    let request = clock::monotonic();
    let held = agent.freeze_and_thaw(guest);
    let release = clock::monotonic();
    let waited = held.and_then(|()| longest(writers, request, release));
    drop((reapers, open));
    let round = Round { which: agent.which(), waited: waited?, calm: longest(writers, calm_from, calm_to)?, dirty_mib };
    eprintln!(
        "  {:<9}  waited {:>9}  answered after {:>9}  calm {:>9}  dirty {:>4} MiB",
        round.which.to_string(),
        millis(round.waited),
        millis(release - request),
        millis(round.calm),
        round.dirty_mib,
    );
    writers.iter().try_for_each(Writer::forget)?;
    Ok(round)
}

fn longest(writers: &[Writer], from: Duration, to: Duration) -> Result<Duration> {
    let waits = writers.iter().map(|writer| writer.longest(from, to)).collect::<Result<Vec<Duration>>>()?;
    Ok(waits.into_iter().max().unwrap_or_default())
}

/// One line of the table.
struct Row {
    kind: Kind,
    count: usize,
    style: Style,
    dirt: Dirt,
    rounds: Vec<Round>,
}

impl Row {
    fn median<T: Ord + Copy>(&self, which: Option<Which>, of: impl Fn(&Round) -> T) -> Option<T> {
        let rounds = self.rounds.iter().filter(|round| which.is_none_or(|which| round.which == which));
        let mut values: Vec<T> = rounds.map(of).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied()
    }

    /// How many times shorter than the guest agent's the wait has to be; none is promised for the rest.
    fn goal(&self) -> Option<f64> {
        match (self.style, self.count, self.dirt.mib, self.kind) {
            (Style::Dsync, _, 0, _) => Some(1.0),
            (Style::Dsync, ..) => Some(10.0),
            (Style::Buffered, 1, 0, _) => Some(10.0),
            (Style::Buffered, 1, _, Kind::Ext4 | Kind::Xfs) => Some(100.0),
            (Style::Buffered, 1, _, Kind::Btrfs) => Some(40.0),
            (Style::Buffered, _, 0, _) => Some(30.0),
            (Style::Buffered, ..) => None,
        }
    }
}

fn print(rows: &[Row], pairs: usize) {
    println!("\nlongest wait of any writer from request to release; medians of {pairs}\n");
    println!(
        "{:<10} {:<9} {:>15} {:>12} {:>12} {:>9} {:>7} {:>12}",
        "on", "writers", "dirty", "qemu-ga", "holdstill", "ratio", "goal", "undisturbed"
    );
    for row in rows {
        let of = |which| row.median(Some(which), |round| round.waited);
        let (theirs, ours) = (of(Which::QemuGa), of(Which::Holdstill));
        let ratio = theirs.zip(ours).map(|(theirs, ours)| theirs.as_secs_f64() / ours.as_secs_f64());
        let verdict = match (ratio, row.goal()) {
            (Some(ratio), Some(goal)) if ratio < goal => "  missed",
            _ => "",
        };
        println!(
            "{:<10} {:<9} {:>15} {:>12} {:>12} {:>9} {:>7} {:>12}{verdict}",
            format!("{} × {}", row.count, row.kind),
            row.style.to_string(),
            row.dirt.to_string(),
            theirs.map_or("not run".to_owned(), millis),
            ours.map_or("not run".to_owned(), millis),
            ratio.map_or("-".to_owned(), |ratio| format!("1/{ratio:.1}")),
            row.goal().map_or("-".to_owned(), |goal| format!("1/{goal:.0}")),
            row.median(None, |round| round.calm).map_or("-".to_owned(), millis),
        );
    }
}

fn millis(wait: Duration) -> String {
    format!("{:.2} ms", wait.as_secs_f64() * 1e3)
}
