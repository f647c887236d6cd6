//! What it costs to say what a snapshot will not contain: on a machine of 200 mounts, 2,000 processes and 20,000 open files,
//! all of them real, in a private mount and pid namespace. `cargo bench --bench coverage`, as root; about a minute.
//!
//! - the essential part, without sizes: who writes where, and which paths lead to the disk in question
//! - a whole `check` by the daemon, with such a disk and without one
//! - beside them what people do by hand: `readlink` and `stat` of every /proc/PID/fd/N, as lsof does, and `fuser -m`
//!
//! `HOLDSTILL_BENCH_QUICK=1`: a tenth of the processes, three rounds instead of fifteen. Nothing fails because it was slow.

#[path = "../../tests/lab/mod.rs"]
#[macro_use]
#[expect(dead_code, reason = "the kernel tests use the rest of it")]
mod lab;

mod crowd;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use crowd::Crowd;
use holdstill::{
    guest::{
        self, Guest,
        risk::{self, Care, Found, Wanted},
    },
    proto::{CheckRequest, DiskSelector, HoldSpec, SnapshotScope, disk_selector::By},
};
use lab::{Fs, Lab, Type, now};
use nix::time::{ClockId, clock_gettime};

facts! { measured within 600 }

/// The issue's: so long may the essential part take.
const GOAL: Duration = Duration::from_millis(150);
const MOUNTS: usize = 200;
const PROCESSES: usize = 2_000;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [role, ..] if role.starts_with("--lab-") => lab::main(&[FACTS]),
        _ if words.iter().any(|word| word == "--bench") => {
            lab::harness::main(FACTS, &[], &["--nocapture".to_owned()], 1)
        }
        _ => {
            println!("coverage: not run; it measures only under `cargo bench --bench coverage`");
            ExitCode::SUCCESS
        }
    }
}

fn measured(lab: &Lab) {
    let quick = std::env::var_os("HOLDSTILL_BENCH_QUICK").is_some();
    let (processes, rounds) = if quick { (PROCESSES / 10, 3) } else { (PROCESSES, 15) };
    let (disk, ephemeral) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    fs::create_dir(ephemeral.mount.join("app")).expect("writable");
    fs::create_dir_all("/srv").expect("memory");
    symlink(ephemeral.mount.join("app"), "/srv/app").expect("memory");
    let places = mounts(lab);
    let crowd = Crowd::gather(lab, processes, &ephemeral.mount, &places);
    let guest = guest::read(Path::new("/")).expect("it is readable");
    let shown = format!(
        "{} mounts, {} processes, {} open files",
        fs::read_to_string("/proc/self/mountinfo").map_or(0, |text| text.lines().count()),
        guest.processes.iter().count(),
        open_files(&guest)
    );
    let mut table = Table::new(rounds);
    for _ in 0..rounds {
        let guest =
            table.time("the guest as every hold reads it", || guest::read(Path::new("/")).expect("it is readable"));
        let begun = (now(), used());
        let writers = table.time("who writes where", || writers(&guest));
        assert_eq!(writers, processes, "every one of the crowd has a file open there");
        let found = table.time("which paths lead there", || paths(&guest, &ephemeral));
        assert!(found > 0, "the link is there");
        table.add("both: the essential coverage", now() - begun.0, used() - begun.1);
        table.time("by hand: readlink and stat of every /proc/PID/fd", by_hand);
        table.time("by hand: fuser -m", || fuser(&ephemeral.mount));
    }
    let daemon = lab.daemon(&[&disk]).set("transient.mounts", vec![ephemeral.at().to_owned()]).start();
    // said to be captured, both are, and nothing will be missed
    let scope = SnapshotScope { disks: [&disk, &ephemeral].map(selector).into() };
    let complete = HoldSpec { scope: Some(scope), ..Default::default() };
    checked(&mut table, "a check where nothing will be missed", &daemon, &complete, rounds);
    checked(&mut table, "a check that says what is at risk", &daemon, &HoldSpec::default(), rounds);
    drop(daemon);
    println!(
        "\n{shown}; {rounds} rounds, in ms; processor: the median of what this process used, all threads together\n"
    );
    table.print();
    drop(crowd);
    for place in places.iter().rev() {
        let _ = nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Half of them file systems of their own, half bind mounts of those.
fn mounts(lab: &Lab) -> Vec<PathBuf> {
    let already = fs::read_to_string("/proc/self/mountinfo").map_or(0, |text| text.lines().count());
    let wanted = MOUNTS.saturating_sub(already);
    let mut places: Vec<PathBuf> = Vec::new();
    for number in 0..wanted {
        let place = PathBuf::from(format!("/mnt/crowd/{number}"));
        match number % 2 {
            0 => lab.tmpfs_at(&place),
            _ => {
                fs::create_dir_all(&place).expect("memory");
                let none = None::<&str>;
                let bind = nix::mount::MsFlags::MS_BIND;
                nix::mount::mount(places.last(), &place, none, bind, none).expect("mounted");
            }
        }
        places.push(place);
    }
    places
}

fn writers(guest: &Guest) -> usize {
    let by_dev = guest.writers(Path::new("/")).by_dev(Path::new("/"), &|dev| guest.disks.layers(dev).first().copied());
    by_dev.values().map(|writers| writers.iter().map(|w| w.pid).collect::<BTreeSet<_>>().len()).max().unwrap_or(0)
}

fn paths(guest: &Guest, ephemeral: &Fs) -> usize {
    let superblock = guest.superblocks.iter().find(|s| s.mounts.contains(&ephemeral.mount)).expect("it is mounted");
    let mount = superblock.open_at.as_ref().expect("it is visible");
    let wanted = Wanted {
        dev: superblock.dev,
        care: Care::Everything,
        home: Some(mount.path.clone()),
        mount_id: mount.mount_id,
    };
    let found = Found::default();
    risk::look(Path::new("/"), &[wanted], &[], &found);
    found.take().0.values().map(Vec::len).sum()
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let is_process =
        |path: &PathBuf| path.file_name().is_some_and(|n| n.to_str().is_some_and(|n| n.parse::<u32>().is_ok()));
    fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path()).filter(is_process)
}

fn open_files(guest: &Guest) -> usize {
    let count = |(pid, _)| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    guest.processes.iter().map(count).sum()
}

/// What lsof does, less its output: and each of these touches the file, and waits for a disk that is dead.
fn by_hand() -> usize {
    let files = processes().flat_map(|process| fs::read_dir(process.join("fd")).into_iter().flatten().flatten());
    files.filter(|file| fs::read_link(file.path()).is_ok() && fs::metadata(file.path()).is_ok()).count()
}

/// Nothing where it is not installed.
fn fuser(mount: &Path) {
    let mut command = Command::new("fuser");
    let _ = command.arg("-m").arg(mount).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

fn selector(disk: &Fs) -> DiskSelector {
    DiskSelector { by: Some(By::Device(disk.disk.device.display().to_string())) }
}

/// What this process has used of the processors: on a machine that others use, too, the better measure.
fn used() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("every Linux has it").into()
}

fn checked(table: &mut Table, name: &'static str, daemon: &lab::Daemon, spec: &HoldSpec, rounds: usize) {
    let grpc = daemon.grpc();
    for _ in 0..rounds {
        let request = CheckRequest { spec: Some(spec.clone()) };
        let answer = table.time(name, || grpc.wait(grpc.client().check(request)));
        assert!(answer.is_ok(), "{answer:?}");
    }
}

/// In the order of the first use; each time as it passed, and as it was used.
struct Table {
    rounds: usize,
    rows: Vec<(&'static str, Vec<Duration>, Vec<Duration>)>,
}

impl Table {
    fn new(rounds: usize) -> Table {
        Table { rounds, rows: Vec::new() }
    }

    fn time<T>(&mut self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let begun = (now(), used());
        let done = work();
        self.add(name, now() - begun.0, used() - begun.1);
        done
    }

    fn add(&mut self, name: &'static str, took: Duration, used: Duration) {
        match self.rows.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, times, processor)) => {
                times.push(took);
                processor.push(used);
            }
            None => self.rows.push((name, vec![took], vec![used])),
        }
    }

    fn print(&mut self) {
        println!("{:<52} {:>8} {:>8} {:>10}", "", "median", "worst", "processor");
        for (name, times, processor) in &mut self.rows {
            times.sort_unstable();
            processor.sort_unstable();
            let median = |times: &[Duration]| times[times.len().min(self.rounds) / 2];
            let worst = times.last().copied().unwrap_or_default();
            let millis = |time: Duration| time.as_secs_f64() * 1e3;
            let goal = match name.starts_with("both") {
                true if median(times) > GOAL => "  missed: the goal is 150",
                true => "  the goal is 150",
                false => "",
            };
            // of a daemon or another program it is not known here
            let processor = match name.starts_with("a check") || name.contains("fuser") {
                true => String::new(),
                false => format!("{:.1}", millis(median(processor))),
            };
            println!("{name:<52} {:>8.1} {:>8.1} {processor:>10}{goal}", millis(median(times)), millis(worst));
        }
    }
}
