//! How long transactions wait for a snapshot: holdstill, qemu-ga with a hook that flushes and locks as people write them,
//! and no snapshot at all, on the same server, in the same run, taking turns. `cargo bench --bench databases`, as root;
//! about five minutes. Uses the PostgreSQL and MariaDB of the machine, and the MySQL that `tests/servers/build.sh` unpacks, if
//! it has; on a loop-mounted ext4 in the lab's directory.
//!
//! - the longest transaction that any of four clients saw around one freeze and thaw (pgbench; a writer of our own that
//!   speaks the MySQL protocol)
//! - the time from the first lock to everything frozen, less the file systems' own freeze, with no client and with four
//!
//! `HOLDSTILL_BENCH_QUICK=1`: one round instead of seven. Nothing here fails because it was slow.

#[path = "../../tests/lab/mod.rs"]
#[macro_use]
#[expect(dead_code, reason = "the kernel tests use the rest of it")]
mod lab;

mod hook;
mod load;
mod table;

use std::{process::ExitCode, thread, time::Duration};

use holdstill::proto::{Report, StepKind, Verdict};
use lab::{
    Lab, Type,
    database::{Edition, Engine, ServerOptions},
    grpc::{Grpc, for_seconds},
    qemu_ga::QemuGa,
};
use load::{CLIENTS, Load};
use table::{Row, median, print};

facts! { measured within 900 }

/// The load runs so long before the freeze is asked for.
const WARM: Duration = Duration::from_millis(800);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [load::WRITER, socket] => load::write(socket.as_ref()),
        [hook::LOCKER, socket, dir] => hook::hold_lock(socket.as_ref(), dir.as_ref()),
        [role, ..] if role.starts_with("--lab-") => lab::main(&[FACTS]),
        _ if words.iter().any(|word| word == "--bench") => {
            lab::harness::main(FACTS, &[], &["--nocapture".to_owned()], 1)
        }
        _ => {
            println!("databases: not run; it measures only under `cargo bench --bench databases`");
            ExitCode::SUCCESS
        }
    }
}

/// Who takes the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Nobody,
    QemuGa,
    Holdstill,
}

fn measured(lab: &Lab) {
    let rounds = if std::env::var_os("HOLDSTILL_BENCH_QUICK").is_some() { 1 } else { 7 };
    let host = [Engine::Postgresql, Engine::Mariadb].map(Edition::of_host);
    let unpacked = Some(Edition::find(Engine::Mysql, "9.x")).filter(|edition| edition.programs().is_ok());
    let rows: Vec<Row> = host.into_iter().chain(unpacked).map(|edition| row(lab, &edition, rounds)).collect();
    print(&rows, rounds);
}

fn row(lab: &Lab, edition: &Edition, rounds: usize) -> Row {
    let engine = edition.engine;
    let disk = lab.fs_at(Type::Ext4, format!("/mnt/{}", engine.name()).as_ref(), 1024);
    let server = lab.server_of(edition, ServerOptions::on(&disk));
    load::prepare(&server);
    let daemon = lab.daemon(&[&disk]).database(server.entry("bench")).start();
    // both are asked over a connection that stands: a program started between freeze and thaw would be waited for
    let holdstill = daemon.grpc();
    let script = hook::install(lab, &server);
    let mut qemu_ga = QemuGa::start(lab, Some(&script));
    // each once before it counts: programs come from the disk, caches fill
    snapshot(Who::QemuGa, &holdstill, &mut qemu_ga);
    snapshot(Who::Holdstill, &holdstill, &mut qemu_ga);
    let mut row = Row { engine: engine.name(), version: short(&server.version()), ..Row::default() };
    let mut order = [Who::Nobody, Who::QemuGa, Who::Holdstill];
    for round in 0..rounds {
        for who in order {
            let load = Load::start(&server, lab);
            thread::sleep(WARM);
            let report = snapshot(who, &holdstill, &mut qemu_ga);
            let longest = load.longest();
            eprintln!("{}, round {round}, {who:?}: longest transaction {:.1} ms", engine.name(), millis(longest));
            match who {
                Who::Nobody => row.nobody.push(longest),
                Who::QemuGa => row.qemu_ga.push(longest),
                Who::Holdstill => row.holdstill.push(longest),
            }
            row.with_writers.extend(report.as_ref().map(beyond_the_freeze));
        }
        order.rotate_left(1);
    }
    for _ in 0..rounds.max(3) {
        row.alone.extend(snapshot(Who::Holdstill, &holdstill, &mut qemu_ga).as_ref().map(beyond_the_freeze));
    }
    eprintln!("{}: from lock to frozen {:.1} ms with nobody else", engine.name(), millis(median(&row.alone)));
    row
}

/// A freeze, and a thaw as soon as it is answered. Ours says how that went.
fn snapshot(who: Who, holdstill: &Grpc, qemu_ga: &mut QemuGa) -> Option<Report> {
    match who {
        Who::Nobody => None,
        Who::QemuGa => {
            for command in ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"] {
                let answer = qemu_ga.ask(command);
                assert_eq!(answer["return"], 1, "{command}: {answer}");
            }
            None
        }
        Who::Holdstill => {
            let held = holdstill.freeze("", for_seconds(30)).expect("it holds");
            let report = holdstill.thaw(&held.id).expect("it answers").report.expect("it is the answer");
            assert_eq!(report.verdict(), Verdict::Unbroken, "{report:#?}");
            Some(report)
        }
    }
}

/// What lies between the first lock and everything frozen, less the file systems' own freeze.
fn beyond_the_freeze(report: &Report) -> Duration {
    let time =
        |time: Option<prost_types::Duration>| time.and_then(|time| time.try_into().ok()).unwrap_or(Duration::ZERO);
    let freezes = report.steps.iter().filter(|step| step.kind() == StepKind::Filesystem).map(|step| time(step.took));
    time(report.quiesce_took).saturating_sub(freezes.max().unwrap_or_default())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// "15.18 (Debian 15.18-0+deb12u1)" → "15.18"
fn short(version: &str) -> String {
    version.split([' ', '-']).next().unwrap_or_default().to_owned()
}
