//! What resets or panics a machine that looks stuck. Called by `preflight`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::tasks::Processes;

/// The kernel's detector of tasks that sleep too long, as a frozen file system's writers do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HungTask {
    pub panics: bool,
    /// `None`: it never fires
    pub timeout: Option<Duration>,
}

/// A watchdog device somebody feeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watchdog {
    /// "watchdog0"
    pub name: String,
    pub timeout: Option<Duration>,
    /// who has it open, where that may be seen: pid and name
    pub fed_by: Option<(i32, String)>,
}

pub(super) fn hung_task(root: &Path) -> HungTask {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(root.join("proc/sys/kernel").join(name)).ok()?.trim().parse().ok()
    };
    HungTask {
        panics: number("hung_task_panic").is_some_and(|panics| panics != 0),
        timeout: number("hung_task_timeout_secs").filter(|seconds| *seconds != 0).map(Duration::from_secs),
    }
}

/// Active watchdogs: from /sys where the kernel shows them, and by who has one open.
pub(super) fn watchdogs(root: &Path, processes: &Processes) -> Vec<Watchdog> {
    let class = root.join("sys/class/watchdog");
    let mut names: Vec<String> = fs::read_dir(&class)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    let attribute = |name: &str, file: &str| {
        fs::read_to_string(class.join(name).join(file)).ok().map(|text| text.trim().to_string())
    };
    let active: Vec<String> =
        names.into_iter().filter(|name| attribute(name, "state").is_none_or(|state| state == "active")).collect();
    if active.is_empty() {
        return Vec::new();
    }
    let feeders = feeders(root, processes);
    active
        .into_iter()
        .map(|name| Watchdog {
            timeout: attribute(&name, "timeout").and_then(|s| s.parse().ok()).map(Duration::from_secs),
            fed_by: feeders
                .iter()
                .find(|(device, _, _)| *device == name || (device == "watchdog" && name == "watchdog0"))
                .map(|(_, pid, comm)| (*pid, comm.clone())),
            name,
        })
        .filter(|watchdog| watchdog.fed_by.is_some() || attribute(&watchdog.name, "state").is_some())
        .collect()
}

/// Who has which `/dev/watchdog*` open: among PID 1 and the programs made to feed one.
fn feeders(root: &Path, processes: &Processes) -> Vec<(String, i32, String)> {
    let mut feeders = Vec::new();
    for (pid, process) in processes.iter() {
        let known = ["watchdog", "wd_keepalive", "sbd", "watchdog-mux", "wdmd", "corosync", "patroni"];
        if pid != 1 && !known.contains(&process.comm.as_str()) {
            continue;
        }
        let fds = fs::read_dir(root.join("proc").join(pid.to_string()).join("fd"));
        for entry in fds.into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let name = target.strip_prefix("/dev").ok().and_then(|name| name.to_str());
            if let Some(name) = name.filter(|name| name.starts_with("watchdog")) {
                feeders.push((name.to_string(), pid, process.comm.clone()));
            }
        }
    }
    feeders
}

/// systemd's setting, from system.conf and its drop-ins by systemd's own precedence.
pub(super) fn runtime_watchdog(root: &Path) -> Option<Duration> {
    // A systemd that is not running resets nothing.
    root.join("run/systemd/system").exists().then_some(())?;
    let directories = ["etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd"];
    let main = directories.iter().find_map(|dir| fs::read_to_string(root.join(dir).join("system.conf")).ok());
    let mut drop_ins: Vec<(String, PathBuf)> = Vec::new();
    for dir in directories {
        for entry in fs::read_dir(root.join(dir).join("system.conf.d")).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            // The first directory masks the same name in later ones.
            if name.ends_with(".conf") && !drop_ins.iter().any(|(known, _)| *known == name) {
                drop_ins.push((name, entry.path()));
            }
        }
    }
    drop_ins.sort();
    let texts = main.into_iter().chain(drop_ins.iter().filter_map(|(_, path)| fs::read_to_string(path).ok()));
    let texts: Vec<String> = texts.collect();
    time_span(texts.iter().filter_map(|text| watchdog_setting(text)).next_back()?)
}

fn watchdog_setting(text: &str) -> Option<&str> {
    text.lines()
        .filter_map(|line| Some(line.trim().strip_prefix("RuntimeWatchdogSec")?.trim_start().strip_prefix('=')?.trim()))
        .next_back()
}

/// systemd.time(7), as far as a watchdog needs it; bare numbers are seconds. `None`: off, or the driver's default.
fn time_span(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok().filter(|span| !span.is_zero());
    }
    humantime::parse_duration(text).ok().filter(|span| !span.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemds_time_spans_are_read_as_systemd_does() {
        assert_eq!(time_span("30"), Some(Duration::from_secs(30)));
        assert_eq!(time_span("1min 30s"), Some(Duration::from_secs(90)));
        assert_eq!([time_span("off"), time_span("default"), time_span("0"), time_span("infinity")], [None; 4]);
        assert_eq!(watchdog_setting("#RuntimeWatchdogSec=5\nRuntimeWatchdogSec = 7\n"), Some("7"));
        assert_eq!(watchdog_setting("RuntimeWatchdogSecond=5"), None);
    }
}
