//! Looking at processes, ending them, waiting for them; always with a limit.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::now;

/// A command that inherits nothing of value: no stdin.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).env("LC_ALL", "C");
    command
}

/// Looks every few milliseconds until `so`, at most `limit`; answers whether it became so.
pub fn until(limit: Duration, mut so: impl FnMut() -> bool) -> bool {
    let end = now() + limit;
    loop {
        if so() {
            return true;
        }
        if now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for a child; beyond `limit` it is killed and answered as `None`. A child blocked in the kernel is left behind.
pub fn finish(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let mut status = None;
    until(limit, || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    });
    if status.is_none() {
        let _ = child.kill();
        until(Duration::from_secs(1), || matches!(child.try_wait(), Ok(Some(_))));
    }
    status
}

/// Runs a tool to its end; answers its stdout.
///
/// # Panics
/// It fails or takes longer than 60 s.
pub fn tool(command: &mut Command) -> String {
    let said = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = said.unwrap_or_else(|e| panic!("failed to start {command:?}: {e}"));
    let mut pipes = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let out = thread::spawn(move || std::io::read_to_string(&mut pipes.0).unwrap_or_default());
    let err = thread::spawn(move || std::io::read_to_string(&mut pipes.1).unwrap_or_default());
    let status = finish(&mut child, Duration::from_secs(60));
    assert!(
        status.is_some_and(|s| s.success()),
        "{command:?} ended with {status:?}: {}{}",
        out.join().expect("it only reads"),
        if status.is_some() { err.join().expect("it only reads") } else { "not within 60 s".to_owned() }
    );
    out.join().expect("it only reads")
}

/// One process, as /proc shows it.
#[derive(Debug, Clone)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub name: String,
    /// R, S, D, T, Z …
    pub state: char,
    pub command: String,
    exe: PathBuf,
}

fn read(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = (stat.get(stat.find('(')? + 1..stat.rfind(')')?)?, stat.get(stat.rfind(')')? + 2..)?);
    let mut rest = rest.split(' ');
    Some(Process {
        pid,
        name: name.to_owned(),
        state: rest.next()?.chars().next()?,
        parent: rest.next()?.parse().ok()?,
        command: String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).ok()?).replace('\0', " "),
        exe: fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default(),
    })
}

pub fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    let pid = |e: fs::DirEntry| e.file_name().to_str().and_then(|n| n.parse().ok());
    entries.flatten().filter_map(pid).filter_map(read).collect()
}

/// Living processes that execute a holdstill binary: daemon, warden, guardians, sentinels, clients.
pub fn ours() -> Vec<Process> {
    all().into_iter().filter(|p| p.state != 'Z' && p.exe.file_name().is_some_and(|n| n == "holdstill")).collect()
}

pub fn alive(pid: i32) -> bool {
    read(pid).is_some_and(|p| p.state != 'Z')
}

/// Sends a signal; a process that is gone already is no failure.
pub fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// Context switches a process asked for itself: how often it woke up.
pub fn wakeups(pid: i32) -> u64 {
    let count = |status: String| {
        let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:").map(str::to_owned))?;
        line.trim().parse::<u64>().ok()
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    tasks.flatten().filter_map(|t| fs::read_to_string(t.path().join("status")).ok().and_then(count)).sum()
}

/// The memory that is this process's share, in KiB (Pss of smaps_rollup).
pub fn pss_kib(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process lives");
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).expect("smaps_rollup has Pss");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
