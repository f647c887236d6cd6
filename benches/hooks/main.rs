//! What hooks cost: holds without hooks and with fifty that do nothing, of the same daemon over the same file system, in
//! the same run, taking turns. `cargo bench --bench hooks`, as root; about a minute.
//!
//! - the time from the first step that makes anybody wait to everything held
//! - the longest time that a write to the file system took: hooks must add nothing to it
//! - beside them what the scripts cost by themselves, started one after another by a plain loop
//!
//! `HOLDSTILL_BENCH_QUICK=1`: three rounds instead of fifteen. Nothing here fails because it was slow.

#[path = "../../tests/lab/mod.rs"]
#[macro_use]
#[expect(dead_code, reason = "the kernel tests use the rest of it")]
mod lab;

mod table;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use holdstill::proto::{Report, StepKind, Verdict};
use lab::{
    Fs, Lab, Type,
    grpc::{Grpc, for_seconds},
    now,
};
use table::{Row, print};

facts! { measured within 600 }

/// So many hooks run in each hold that has some.
const HOOKS: usize = 50;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [role, ..] if role.starts_with("--lab-") => lab::main(&[FACTS]),
        _ if words.iter().any(|word| word == "--bench") => {
            lab::harness::main(FACTS, &[], &["--nocapture".to_owned()], 1)
        }
        _ => {
            println!("hooks: not run; it measures only under `cargo bench --bench hooks`");
            ExitCode::SUCCESS
        }
    }
}

/// What lies in `hooks.d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    /// `#!/bin/sh` and `:`
    Scripts,
    /// links to /bin/true
    Programs,
}

fn measured(lab: &Lab) {
    let rounds = if std::env::var_os("HOLDSTILL_BENCH_QUICK").is_some() { 3 } else { 15 };
    let disk = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&disk]).set("hold.hourly", "10m").start();
    let (grpc, hooks) = (daemon.grpc(), daemon.setup().hooks_dir());
    let mut kinds = [Kind::None, Kind::Scripts, Kind::Programs].map(|kind| Turn::new(lab, kind));
    // each once before it counts: programs come from the disk, caches fill
    for turn in &mut kinds {
        turn.hold(lab, &disk, &grpc, &hooks);
    }
    kinds.iter_mut().for_each(|turn| turn.row = Row::default());
    for round in 0..rounds {
        for at in 0..kinds.len() {
            kinds[(at + round) % kinds.len()].hold(lab, &disk, &grpc, &hooks);
        }
    }
    print(&kinds.map(|turn| (turn.kind, turn.row)), rounds);
}

/// One kind of hooks, and what was measured with it.
struct Turn {
    kind: Kind,
    dir: PathBuf,
    row: Row,
}

impl Turn {
    fn new(lab: &Lab, kind: Kind) -> Turn {
        let dir = lab.memory_dir("hooks");
        for number in 0..if kind == Kind::None { 0 } else { HOOKS } {
            let path = dir.join(format!("{number:02}-nothing"));
            if kind == Kind::Programs {
                symlink("/bin/true", path).expect("memory");
            } else {
                fs::write(&path, "#!/bin/sh\n:\n").expect("memory");
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("memory");
            }
        }
        Turn { kind, dir, row: Row::default() }
    }

    fn hold(&mut self, lab: &Lab, disk: &Fs<'_>, grpc: &Grpc, hooks: &Path) {
        fs::rename(&self.dir, hooks).expect("the same tmpfs, and nothing there");
        let writer = lab.writer(disk);
        let held = grpc.freeze("", for_seconds(30)).expect("it holds");
        let report = grpc.thaw(&held.id).expect("it answers").report.expect("it is the answer");
        assert_eq!(report.verdict(), Verdict::Unbroken, "{report:#?}");
        let ran = report.steps.iter().filter(|step| step.kind() == StepKind::Hook);
        assert_eq!(ran.count(), if self.kind == Kind::None { 0 } else { HOOKS });
        self.row.prepare.push(time(report.prepare_took));
        self.row.quiesce.push(time(report.quiesce_took));
        self.row.in_hooks.push(in_hooks(&report));
        self.row.write.push(writer.longest());
        drop(writer);
        fs::rename(hooks, &self.dir).expect("the same tmpfs");
        self.row.alone.push(alone(&self.dir));
    }
}

fn time(time: Option<prost_types::Duration>) -> Duration {
    time.and_then(|time| time.try_into().ok()).unwrap_or_default()
}

/// What the runs of `freeze` took, from the start of each to its end.
fn in_hooks(report: &Report) -> Duration {
    report.steps.iter().filter(|step| step.kind() == StepKind::Hook).map(|step| time(step.took)).sum()
}

/// The same programs, started and waited for, and nothing else.
fn alone(dir: &Path) -> Duration {
    let mut programs: Vec<PathBuf> = fs::read_dir(dir).expect("memory").flatten().map(|entry| entry.path()).collect();
    programs.sort();
    let begun = now();
    for program in programs {
        let mut command = Command::new(program);
        command.arg("freeze").env_clear().stdin(Stdio::null()).stdout(Stdio::null());
        assert!(command.status().expect("it starts").success());
    }
    now() - begun
}
