//! The warden and its family on real file systems: who may die or stop, and when the writers go on.
//! Needs root and loop devices. Its own main, because a daemon executes /proc/self/exe as its warden.

mod cases;
mod daemon;
mod lab;

use std::{collections::BTreeMap, panic::catch_unwind, path::Path, process::ExitCode};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("warden") => holdstill::warden::run::main(std::env::args_os().skip(2)),
        Some("rescue") => rescue(&arguments[2]),
        Some("daemon") => {
            daemon::main(&arguments[1]);
            ExitCode::SUCCESS
        }
        Some("reaper") => {
            lab::reaper(&arguments[1..]);
            ExitCode::SUCCESS
        }
        Some("probe") => {
            lab::probe(&arguments[1]);
            ExitCode::SUCCESS
        }
        Some(_) | None => test(&arguments),
    }
}

fn rescue(run: &str) -> ExitCode {
    match holdstill::rescue::run(Path::new(run), &BTreeMap::new()) {
        Ok(rescued) => {
            println!("{rescued}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Like libtest: a name filters, `--list` lists; other flags are accepted and ignored.
fn test(arguments: &[String]) -> ExitCode {
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let chosen = cases::ALL.iter().filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str())));
    let chosen: Vec<_> = chosen.collect();
    if arguments.iter().any(|argument| argument == "--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
        println!("test result: ok. 0 passed; 0 failed; {} ignored (needs root and loop devices)", chosen.len());
        return ExitCode::SUCCESS;
    }
    unshare(CloneFlags::CLONE_NEWNS).expect("root may");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("root may");
    let mut failed = 0;
    for (name, case) in &chosen {
        let passed = catch_unwind(case).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {} passed; {failed} failed; 0 ignored", chosen.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
