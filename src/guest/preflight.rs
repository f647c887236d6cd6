//! What is known to make a freeze hang, or a freeze hurt: facts read from the guest, and what they mean for one hold.
//! Called by `plan` while preparing. [`read`] gathers, [`findings`] judges and touches nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Dev, Guest,
    mounts::{self, MountLine},
    tasks::BlockedTask,
    watchdogs::{self, HungTask, Watchdog},
};

/// journald's and logind's `WatchdogSec=` in the units systemd ships.
const SYSTEMD_SERVICE_WATCHDOG: Duration = Duration::from_secs(180);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Note,
    Warning,
    Refusal,
}

/// One reservation about a hold, in the words of the contract's `Problem`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    /// UPPER_SNAKE
    pub code: &'static str,
    pub subject: String,
    pub message: String,
    pub hint: String,
}

/// A file system a hold would freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub dev: Dev,
    pub fs_type: String,
    /// a mount point, for people
    pub name: PathBuf,
    /// UUID, as /sys/fs names it
    pub uuid: Option<String>,
    /// kernel names of the block devices below it
    pub devices: Vec<String>,
}

/// Everything read for [`findings`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// tasks that were blocked in both of two samples; see [`tasks::blocked_throughout`]
    pub blocked: Vec<BlockedTask>,
    pub btrfs: Vec<BtrfsOperation>,
    pub scrubs: Vec<Scrub>,
    pub hung_task: HungTask,
    pub watchdogs: Vec<Watchdog>,
    /// systemd's `RuntimeWatchdogSec=`; `None`: off or not configured
    pub runtime_watchdog: Option<Duration>,
    pub journald: bool,
    /// cluster members by name and pid
    pub cluster: Vec<(String, i32)>,
    /// block devices served by a process in this guest
    pub user_served: Vec<String>,
}

/// `/sys/fs/btrfs/FSID/exclusive_operation`: "balance", "device replace" …; "none" is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BtrfsOperation {
    pub fsid: String,
    pub operation: String,
}

/// A running scrub that writes: it holds the file system for writing from start to end.
///
/// sysfs does not show scrubs. [`read`] sees those of the `btrfs` program, which keeps a process for each; one started
/// through another program's ioctl is not seen. Whoever may issue BTRFS_IOC_SCRUB_PROGRESS can add to the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scrub {
    pub pid: Option<i32>,
    /// what it was told to scrub: a path or a device
    pub what: PathBuf,
    /// the superblock, if `what` could be followed to one
    pub on: Option<Dev>,
}

/// Gathers all but [`Facts::blocked`], which takes two samples. Reads /proc, /sys and systemd's configuration below `root`;
/// the command line of a `btrfs` process may block while it faults in memory: run it in a thread with a limit.
pub fn read(root: &Path, guest: &Guest) -> Facts {
    let processes = &guest.processes;
    let mut cluster: Vec<(String, i32)> = processes
        .iter()
        .filter(|(_, process)| is_cluster_member(&process.comm))
        .map(|(pid, process)| (process.comm.clone(), pid))
        .collect();
    cluster.sort();
    let btrfs_programs =
        processes.iter().filter(|(_, process)| process.comm == "btrfs" && process.state != b'Z').map(|(pid, _)| pid);
    let own = mounts::read(root).unwrap_or_default();
    let mut scrubs: Vec<Scrub> = btrfs_programs.filter_map(|pid| scrub(root, pid, guest, &own)).collect();
    scrubs.sort_by_key(|scrub| scrub.pid);
    Facts {
        blocked: Vec::new(),
        btrfs: btrfs_operations(root),
        scrubs,
        hung_task: watchdogs::hung_task(root),
        watchdogs: watchdogs::watchdogs(root, processes),
        runtime_watchdog: watchdogs::runtime_watchdog(root),
        journald: processes.iter().any(|(_, process)| process.comm == "systemd-journal"),
        cluster,
        user_served: guest
            .disks
            .devices
            .values()
            .filter(|device| is_user_served(&device.name) && device.size_bytes > 0)
            .map(|device| device.name.clone())
            .collect(),
    }
}

/// The file systems in `set`, described for [`findings`].
pub fn targets(guest: &Guest, set: &[Dev]) -> Vec<Target> {
    guest
        .superblocks
        .iter()
        .filter(|superblock| set.contains(&superblock.dev))
        .map(|superblock| Target {
            dev: superblock.dev,
            fs_type: superblock.fs_type.clone(),
            name: superblock
                .open_at
                .as_ref()
                .map(|mount| mount.path.clone())
                .or_else(|| superblock.mounts.first().cloned())
                .unwrap_or_default(),
            uuid: guest.disks.uuid(superblock.dev).map(str::to_string),
            devices: guest
                .disks
                .blocks_below(superblock.dev)
                .iter()
                .filter_map(|dev| Some(guest.disks.devices.get(dev)?.name.clone()))
                .collect(),
        })
        .collect()
}

// --- judging -------------------------------------------------------------------------------------------------------

/// What the facts mean for a hold of `targets` that may last `deadline`, gravest first.
pub fn findings(facts: &Facts, deadline: Duration, targets: &[Target]) -> Vec<Finding> {
    let mut findings = Vec::new();
    blocked_findings(facts, targets, &mut findings);
    btrfs_findings(facts, targets, &mut findings);
    detector_findings(facts, deadline, &mut findings);
    findings.extend(facts.cluster.iter().map(|(name, pid)| {
        Finding {
            severity: Severity::Warning,
            code: "CLUSTER_FENCING",
            subject: name.clone(),
            message: format!(
                "{name} (pid {pid}) may fence or fail over this guest when it stops answering during a hold"
            ),
            hint:
                "put the node into maintenance for the hold, or keep the hold shorter than the cluster's token timeout"
                    .into(),
        }
    }));
    for target in targets {
        findings.extend(target.devices.iter().filter(|name| facts.user_served.contains(name)).map(|name| Finding {
            severity: Severity::Warning,
            code: "USER_SERVED_DEVICE",
            subject: target.name.display().to_string(),
            message: format!(
                "{name} may be served by a process of this guest, which must not need a frozen file system"
            ),
            hint: "exclude the file system if its server runs here".into(),
        }));
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

fn blocked_findings(facts: &Facts, targets: &[Target], findings: &mut Vec<Finding>) {
    for target in targets {
        let tasks: Vec<&BlockedTask> = facts.blocked.iter().filter(|task| task.on.contains(&target.dev)).collect();
        let Some(first) = tasks.first() else { continue };
        let others = match tasks.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        let place = if first.wchan.is_empty() { String::new() } else { format!(" in {}", first.wchan) };
        let name = target.name.display();
        findings.push(Finding {
            severity: Severity::Refusal,
            code: "TASK_BLOCKED",
            subject: name.to_string(),
            message: format!(
                "{} (pid {}, thread {}){others} is blocked{place} using {name}: a freeze would wait for it, uncancellable",
                first.comm, first.pid, first.tid
            ),
            hint: "find out what it waits for: a failing disk, a dead server, a file system somebody froze".into(),
        });
    }
}

fn btrfs_findings(facts: &Facts, targets: &[Target], findings: &mut Vec<Finding>) {
    let btrfs = || targets.iter().filter(|target| target.fs_type == "btrfs");
    for running in &facts.btrfs {
        for target in btrfs().filter(|target| target.uuid.as_ref() == Some(&running.fsid)) {
            let paused = running.operation == "balance paused";
            let (severity, hint) = if paused {
                (Severity::Note, "nothing to do: a paused balance writes nothing".to_string())
            } else {
                let name = target.name.display();
                (
                    Severity::Refusal,
                    match running.operation.as_str() {
                        "balance" => format!("btrfs balance pause {name}"),
                        "device replace" => format!("btrfs replace cancel {name}, or wait for it to end"),
                        _ => "wait for it to end".into(),
                    },
                )
            };
            findings.push(Finding {
                severity,
                code: "BTRFS_BUSY",
                subject: target.name.display().to_string(),
                message: match paused {
                    true => format!("a {} is recorded on {}", running.operation, target.name.display()),
                    false => format!(
                        "a btrfs {} is running on {}: a freeze would wait for its end, uncancellable, with every writer",
                        running.operation,
                        target.name.display()
                    ),
                },
                hint,
            });
        }
    }
    for scrub in &facts.scrubs {
        // One that cannot be followed to a file system may be on any of them.
        for target in btrfs().filter(|target| scrub.on.is_none_or(|dev| dev == target.dev)) {
            let by = scrub.pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
            findings.push(Finding {
                severity: Severity::Refusal,
                code: "BTRFS_SCRUB",
                subject: target.name.display().to_string(),
                message: format!(
                    "a btrfs scrub of {}{by} is running: a freeze would wait for its end, uncancellable, with every writer",
                    scrub.what.display()
                ),
                hint: format!("btrfs scrub cancel {}", scrub.what.display()),
            });
        }
    }
}

fn detector_findings(facts: &Facts, deadline: Duration, findings: &mut Vec<Finding>) {
    let seconds = |limit: Duration| humantime::format_duration(limit);
    if let Some(timeout) = facts.hung_task.timeout.filter(|timeout| *timeout <= deadline) {
        let (severity, effect) = match facts.hung_task.panics {
            true => (Severity::Refusal, "the kernel panics (kernel.hung_task_panic=1)"),
            false => (Severity::Note, "the kernel log fills with stack traces"),
        };
        findings.push(Finding {
            severity,
            code: "HUNG_TASK",
            subject: "kernel.hung_task_timeout_secs".into(),
            message: format!("a writer blocked for {} looks hung: {effect}", seconds(timeout)),
            hint: format!("hold for less than {}, or raise kernel.hung_task_timeout_secs", seconds(timeout)),
        });
    }
    let fed_by_init = facts.watchdogs.iter().filter(|w| w.fed_by.as_ref().is_some_and(|(pid, _)| *pid == 1));
    let runtime_watchdog = fed_by_init.filter_map(|watchdog| watchdog.timeout).chain(facts.runtime_watchdog).min();
    if let Some(limit) = runtime_watchdog.filter(|limit| *limit <= deadline) {
        findings.push(Finding {
            severity: Severity::Warning,
            code: "RUNTIME_WATCHDOG",
            subject: "systemd".into(),
            message: format!(
                "PID 1 must feed a watchdog every {}; if it waits for a held file system, the machine is reset",
                seconds(limit)
            ),
            hint: format!("hold for less than {}, or raise RuntimeWatchdogSec= in system.conf", seconds(limit)),
        });
    }
    for watchdog in &facts.watchdogs {
        let Some((pid, name)) = watchdog.fed_by.as_ref().filter(|(pid, _)| *pid != 1) else { continue };
        let Some(timeout) = watchdog.timeout.filter(|timeout| *timeout <= deadline) else { continue };
        findings.push(Finding {
            severity: Severity::Warning,
            code: "WATCHDOG_DEVICE",
            subject: watchdog.name.clone(),
            message: format!(
                "{name} (pid {pid}) must feed {} every {}; if it writes to a held file system, the machine is reset",
                watchdog.name,
                seconds(timeout)
            ),
            hint: format!("hold for less than {}, or see that {name} logs nothing to disk", seconds(timeout)),
        });
    }
    if facts.journald && SYSTEMD_SERVICE_WATCHDOG <= deadline {
        findings.push(Finding {
            severity: Severity::Warning,
            code: "SERVICE_WATCHDOG",
            subject: "systemd-journald".into(),
            message: "systemd kills journald when it has been blocked for its WatchdogSec= (3min as shipped)".into(),
            hint: "hold for less than 3 minutes".into(),
        });
    }
}

// --- btrfs ---------------------------------------------------------------------------------------------------------

fn btrfs_operations(root: &Path) -> Vec<BtrfsOperation> {
    let entries = fs::read_dir(root.join("sys/fs/btrfs")).into_iter().flatten().flatten();
    let mut operations: Vec<BtrfsOperation> = entries
        .filter_map(|entry| {
            let operation = fs::read_to_string(entry.path().join("exclusive_operation")).ok()?.trim().to_string();
            (operation != "none" && !operation.is_empty()).then_some(())?;
            Some(BtrfsOperation { fsid: entry.file_name().into_string().ok()?, operation })
        })
        .collect();
    operations.sort_by(|a, b| a.fsid.cmp(&b.fsid));
    operations
}

fn scrub(root: &Path, pid: i32, guest: &Guest, own: &[MountLine]) -> Option<Scrub> {
    let command = fs::read(root.join("proc").join(pid.to_string()).join("cmdline")).ok()?;
    let what = PathBuf::from(scrubbed(&String::from_utf8_lossy(&command))?);
    let device = what.to_str().and_then(|source| guest.disks.by_source(source));
    let on = match device {
        Some(device) => guest
            .superblocks
            .iter()
            .find(|superblock| guest.disks.members(superblock.dev).contains(&device.dev))
            .map(|superblock| superblock.dev),
        None => mounts::covering(own, &what).filter(|line| line.fs_type == "btrfs").map(|line| line.dev),
    };
    Some(Scrub { pid: Some(pid), what, on })
}

/// What a `btrfs scrub start` or `resume` was told to scrub; not a read-only one (`-r`), which holds nothing.
fn scrubbed(command: &str) -> Option<&str> {
    let mut arguments = command.split('\0').filter(|argument| !argument.is_empty()).skip(1);
    arguments.find(|argument| *argument == "scrub")?;
    arguments.find(|argument| matches!(*argument, "start" | "resume"))?;
    let rest: Vec<&str> = arguments.collect();
    let read_only = |option: &&str| option.starts_with('-') && !option.starts_with("--") && option.contains('r');
    (!rest.iter().any(|argument| read_only(argument) || *argument == "--readonly")).then_some(())?;
    rest.last().copied().filter(|last| !last.starts_with('-'))
}

// --- processes and devices -----------------------------------------------------------------------------------------

fn is_cluster_member(comm: &str) -> bool {
    matches!(comm, "corosync" | "pacemakerd" | "sbd" | "keepalived" | "patroni")
}

/// nbd, ublk: a process answers for them, often one of this very guest.
fn is_user_served(name: &str) -> bool {
    ["nbd", "ublkb"]
        .iter()
        .any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{
        self,
        fixture::fixture,
        tasks::{Processes, blocked_tasks},
    };

    const MINUTE: Duration = Duration::from_secs(60);

    fn dev(text: &str) -> Dev {
        Dev::parse(text).unwrap()
    }

    fn target(name: &str, dev_text: &str, fs_type: &str, uuid: &str) -> Target {
        Target {
            dev: dev(dev_text),
            fs_type: fs_type.into(),
            name: name.into(),
            uuid: Some(uuid.into()),
            devices: vec!["vdb".into()],
        }
    }

    fn data() -> Target {
        target("/data", "0:40", "btrfs", "0f8b8c1e-6f0c-4a57-9c55-3d1f4b6e7a21")
    }

    fn codes(findings: &[Finding]) -> Vec<(Severity, &str, &str)> {
        findings.iter().map(|f| (f.severity, f.code, f.subject.as_str())).collect()
    }

    fn facts() -> Facts {
        let root = fixture("preflight");
        read(root.path(), &guest::read(root.path()).unwrap())
    }

    #[test]
    fn facts_are_read_from_proc_sys_and_systemd() {
        let facts = facts();
        assert_eq!(facts.hung_task, HungTask { panics: true, timeout: Some(2 * MINUTE) });
        assert_eq!(facts.btrfs.len(), 1);
        assert_eq!(facts.btrfs[0].operation, "balance");
        assert_eq!(
            facts.runtime_watchdog,
            Some(Duration::from_secs(90)),
            "the last drop-in wins; masked ones don't count"
        );
        assert!(facts.journald);
        assert_eq!(facts.cluster, [("corosync".into(), 210)]);
        let fed: Vec<_> = facts.watchdogs.iter().map(|w| (w.name.as_str(), w.fed_by.as_ref().map(|f| f.0))).collect();
        assert_eq!(fed, [("watchdog0", Some(1)), ("watchdog1", Some(220))], "watchdog2 is not running");
    }

    #[test]
    fn only_scrubs_that_write_count_and_are_followed_to_their_file_system() {
        assert_eq!(facts().scrubs, [Scrub { pid: Some(300), what: "/data".into(), on: Some(dev("0:40")) }]);
        assert_eq!(scrubbed("btrfs\0scrub\0resume\0/dev/vdb\0"), Some("/dev/vdb"));
        assert_eq!(scrubbed("btrfs\0scrub\0status\0/data\0"), None);
        assert_eq!(scrubbed("btrfs\0scrub\0start\0--readonly\0/data\0"), None);
        assert_eq!(scrubbed("btrfs\0-q\0scrub\0start\0-B\0/data\0"), Some("/data"));
    }

    #[test]
    fn a_balance_or_scrub_refuses_the_hold_of_that_file_system_and_of_no_other() {
        let found = findings(&facts(), Duration::from_secs(10), &[data()]);
        assert_eq!(
            codes(&found),
            [
                (Severity::Refusal, "BTRFS_BUSY", "/data"),
                (Severity::Refusal, "BTRFS_SCRUB", "/data"),
                (Severity::Warning, "CLUSTER_FENCING", "corosync"),
            ]
        );
        let others = [
            target("/other", "0:41", "btrfs", "77777777-6f0c-4a57-9c55-3d1f4b6e7a21"),
            target("/", "254:0", "ext4", "0f8b8c1e-6f0c-4a57-9c55-3d1f4b6e7a21"),
        ];
        let found = findings(&facts(), Duration::from_secs(10), &others);
        assert!(found.iter().all(|f| f.severity < Severity::Refusal), "{found:#?}");
    }

    #[test]
    fn a_paused_balance_is_a_note_and_a_scrub_of_who_knows_what_may_be_of_any_btrfs() {
        let facts = Facts {
            btrfs: vec![BtrfsOperation { fsid: data().uuid.unwrap(), operation: "balance paused".into() }],
            scrubs: vec![Scrub { pid: None, what: "/somewhere".into(), on: None }],
            ..Facts::default()
        };
        let found = findings(&facts, MINUTE, &[data()]);
        assert_eq!(
            codes(&found),
            [(Severity::Refusal, "BTRFS_SCRUB", "/data"), (Severity::Note, "BTRFS_BUSY", "/data")]
        );
    }

    #[test]
    fn tasks_blocked_on_a_target_are_one_refusal_that_counts_them() {
        let facts = Facts {
            blocked: blocked_tasks(fixture("preflight").path(), &Processes::read(fixture("preflight").path())),
            ..Facts::default()
        };
        let found = findings(&facts, MINUTE, &[data()]);
        assert_eq!(codes(&found), [(Severity::Refusal, "TASK_BLOCKED", "/data")]);
        assert!(found[0].message.contains("(and 1 more)"), "{}", found[0].message);
        assert_eq!(findings(&facts, MINUTE, &[target("/x", "8:9", "ext4", "")]), []);
    }

    #[test]
    fn a_panic_or_reset_that_could_come_before_the_deadline_is_said() {
        let quiet = |mut facts: Facts| {
            facts.cluster.clear();
            facts
        };
        let at = |deadline| findings(&quiet(facts()), deadline, &[]);
        let codes = |deadline| at(deadline).iter().map(|f| f.code).collect::<Vec<_>>();
        assert_eq!(codes(Duration::from_secs(29)), [] as [&str; 0]);
        assert_eq!(codes(Duration::from_secs(30)), ["RUNTIME_WATCHDOG"]);
        assert_eq!(codes(MINUTE), ["RUNTIME_WATCHDOG", "WATCHDOG_DEVICE"]);
        assert_eq!(codes(2 * MINUTE), ["HUNG_TASK", "RUNTIME_WATCHDOG", "WATCHDOG_DEVICE"]);
        assert_eq!(codes(3 * MINUTE), ["HUNG_TASK", "RUNTIME_WATCHDOG", "WATCHDOG_DEVICE", "SERVICE_WATCHDOG"]);
        assert_eq!(at(3 * MINUTE)[0].severity, Severity::Refusal);
        let mut patient = facts();
        patient.hung_task.panics = false;
        assert_eq!(findings(&quiet(patient), 2 * MINUTE, &[]).last().unwrap().severity, Severity::Note);
    }

    #[test]
    fn a_device_served_from_user_space_is_worth_a_warning() {
        let facts = Facts { user_served: vec!["vdb".into()], ..Facts::default() };
        assert_eq!(codes(&findings(&facts, MINUTE, &[data()])), [(Severity::Warning, "USER_SERVED_DEVICE", "/data")]);
        assert!(is_user_served("nbd0") && is_user_served("ublkb3") && !is_user_served("nbdx"));
    }

    #[test]
    fn targets_name_the_devices_below_them() {
        let guest = guest::read(fixture("lvm-on-two-disks").path()).unwrap();
        let found = targets(&guest, &[dev("252:0")]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, Path::new("/var/lib/postgresql"));
        assert_eq!(found[0].devices, ["sda", "sdb", "dm-0"]);
    }
}
