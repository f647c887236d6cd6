//! Stopping a server as a debugger would.

use std::{fs, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Stops every thread of it; they may go on for a moment after the signal.
pub fn stop(pid: i32) -> Pid {
    let pid = Pid::from_raw(pid);
    kill(pid, Signal::SIGSTOP).expect("ours");
    let stopped = |stat: &str| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'));
    let running = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("ours").flatten();
        tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok()).any(|stat| !stopped(&stat))
    };
    while running() {
        std::thread::sleep(Duration::from_millis(5)); // between two looks
    }
    pid
}
