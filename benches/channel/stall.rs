//! How long a writer that fsyncs waits for a freeze and the thaw that follows at once, while other data lie unwritten on
//! the same file system.

use std::{
    fs::File, io::Write as _, os::unix::fs::FileExt as _, path::Path, process::ExitCode, thread, time::Duration,
};

use serde_json::json;

use crate::{
    Plan,
    lab::{now, until},
    machine::Inside,
    table::{Table, median},
    turns::{AGENTS, Turns},
};

/// What this program calls itself with in the guest.
pub const WRITER: &str = "--writer";
const DIRTY_MIB: u32 = 256;
/// Unthrottled, the second disk is a page cache.
const DISK_MB_PER_SECOND: u64 = 100;

/// Who has the unwritten file open.
#[derive(Clone, Copy)]
enum Dirt {
    /// the process that wrote it, as a database does
    Open,
    Closed,
}

pub fn measure(turns: &Turns, plan: Plan, table: &mut Table) {
    let machine = turns.machine();
    let none = ["bps", "bps_rd", "iops", "iops_rd", "iops_wr"].map(|of| (of.to_owned(), json!(0)));
    let mut limits: serde_json::Map<_, _> = none.into_iter().collect();
    limits.insert("device".into(), json!("data"));
    limits.insert("bps_wr".into(), json!(DISK_MB_PER_SECOND * 1_000_000));
    machine.qmp("block_set_io_throttle", limits.into());
    // the kernel would begin to write by itself, and stop whoever dirties that much of so little memory
    machine.sh(
        "cd /proc/sys/vm; echo 90 >dirty_ratio; echo 85 >dirty_background_ratio; echo 0 >dirty_writeback_centisecs",
    );
    machine.sh(&format!("dd if=/dev/zero of=/mnt/data/dirt bs=1M count={DIRTY_MIB} 2>&1; sync"));
    machine.start("writer", &format!("exec /run/bench {WRITER} /mnt/data/written /run/writes"));
    assert!(machine.becomes("[ -s /run/writes ]", Duration::from_secs(20)), "{}", machine.output("writer"));

    for (dirt, name) in [(Dirt::Open, "file kept open"), (Dirt::Closed, "file closed")] {
        let mut waited = [const { Vec::new() }; 2];
        for _ in 0..plan.stalls {
            for (column, agent) in AGENTS.iter().enumerate() {
                let mut turn = turns.of(*agent);
                let dirty = make_dirty(machine, dirt);
                let calm_from = writes(machine);
                thread::sleep(Duration::from_secs(1));
                let from = writes(machine);
                let froze = turn.freeze();
                turn.thaw();
                let to = writes(machine);
                let longest = longest(machine, from, to);
                eprintln!(
                    "{:<9}  waited {longest:>9.1?}  answered after {froze:>9.1?}  undisturbed {:>8.1?}  dirty {dirty} MiB",
                    agent.name(),
                    self::longest(machine, calm_from, from),
                );
                waited[column].push(longest);
                machine.sh("[ ! -e /run/keeper ] || kill $(cat /run/keeper); rm -f /run/keeper; sync");
            }
        }
        table.times(
            &format!("longest wait of an fsyncing writer, {DIRTY_MIB} MiB dirty, {name} (median of {})", plan.stalls),
            waited.map(median),
        );
    }
    table.note(format!("the disk with the dirty file is throttled to {DISK_MB_PER_SECOND} MB/s of writing"));
    machine.sh("kill $(pidof bench)");
}

/// Answers how much is dirty afterwards, in MiB.
fn make_dirty(guest: &Inside, dirt: Dirt) -> u64 {
    // overwritten, not written anew: nobody's fsync takes it along
    let write = format!("dd if=/dev/zero bs=1M count={DIRTY_MIB} conv=notrunc 2>/dev/null");
    match dirt {
        Dirt::Open => {
            let keep = format!("exec 3<>/mnt/data/dirt; {write} >&3; echo $$ >/run/keeper; exec sleep 600");
            guest.start("keeper", &keep);
            assert!(guest.becomes("[ -s /run/keeper ]", Duration::from_secs(30)), "{}", guest.output("keeper"));
        }
        Dirt::Closed => drop(guest.sh(&format!("{write} of=/mnt/data/dirt"))),
    }
    let said = guest.sh("sed -n 's/^Dirty: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo");
    said.trim().parse::<u64>().expect("a number") / 1024
}

/// How many the writer has done.
fn writes(guest: &Inside) -> usize {
    guest.sh("wc -l </run/writes").trim().parse().expect("a number")
}

/// The longest of those that were under way between two counts.
fn longest(guest: &Inside, from: usize, to: usize) -> Duration {
    let last = to + 1;
    assert!(until(Duration::from_secs(60), || writes(guest) >= last), "the writer does not go on");
    let took = guest.sh(&format!("sed -n '{},{last}p' /run/writes | sort -n | tail -1", from + 1));
    Duration::from_micros(took.trim().parse().expect("a number"))
}

/// In the guest: writes and fsyncs for ever, and notes how many microseconds each took.
pub fn write(file: &Path, log: &Path) -> ExitCode {
    const BLOCK: usize = 4096;
    const BLOCKS: u64 = 256;
    let open = |path: &Path| File::create(path).expect("both file systems have room");
    let (file, mut log) = (open(file), open(log));
    file.write_all_at(&vec![0x5a; BLOCK * BLOCKS as usize], 0).expect("room for a MiB");
    file.sync_all().expect("a disk that works");
    for at in (0..BLOCKS).cycle() {
        let begun = now();
        file.write_all_at(&[0xa5; BLOCK], at * BLOCK as u64).expect("it is there already");
        file.sync_data().expect("a disk that works");
        writeln!(log, "{}", (now() - begun).as_micros()).expect("memory");
        thread::sleep(Duration::from_millis(2));
    }
    ExitCode::SUCCESS
}
