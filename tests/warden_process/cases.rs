//! The facts.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::Ordering::SeqCst,
    time::Duration,
};

use holdstill::{
    sys::clock::monotonic,
    warden::{
        Reason,
        entry::State,
        marker::{Deadline, Marker, Phase},
    },
};
use nix::sys::signal::Signal::{SIGKILL, SIGSTOP};

use crate::{
    daemon::{Daemon, prepare},
    lab::{Fs, Lab, Probe, Reaper, call, family, foreign, member, signal, wait_until},
};

type Case = (&'static str, fn());

macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name)),*] };
}

pub const ALL: &[Case] = cases![
    a_hold_freezes_thaws_and_leaves_a_receipt_on_every_type,
    a_killed_daemon_lets_go_at_once,
    a_killed_warden_lets_go_at_once_and_is_replaced,
    daemon_and_warden_killed_together_let_go_at_once,
    a_killed_guardian_lets_its_file_system_go_at_once,
    a_killed_sentinel_changes_nothing_for_the_writers,
    a_killed_sentinel_before_the_freeze_is_reported,
    a_stopped_daemon_is_lost_after_two_seconds,
    a_stopped_warden_is_lost_after_two_seconds,
    daemon_and_warden_stopped_together_are_lost_after_two_seconds,
    a_stopped_guardian_is_taken_over_from,
    a_stopped_sentinel_fails_the_freeze,
    the_deadline_lets_go_whoever_asks,
    guardians_keep_the_deadline_without_a_warden,
    an_extended_deadline_holds_longer,
    a_foreign_thaw_is_seen_and_not_repeated,
    a_foreign_freeze_is_refused_while_preparing,
    a_foreign_freeze_after_preparing_is_refused_and_left_alone,
    a_file_system_on_a_file_of_another_freezes_first_and_thaws_last,
    a_file_system_that_is_not_the_planned_one_is_refused,
    a_link_in_place_of_the_receipt_directory_is_refused,
    a_full_disk_is_held_without_a_receipt,
    everything_killed_at_once_is_rescued_by_hand,
    a_file_system_that_is_mounted_nowhere_is_rescued,
    a_rescue_leaves_a_daemon_that_responds_alone,
    database_sockets_die_with_the_daemon,
    a_warden_without_a_hold_follows_its_daemon,
    a_freeze_and_thaw_is_fast,
    started_hooks_are_undone_newest_first_whoever_is_killed,
    a_guardian_killed_inside_fifreeze_leaves_nothing_frozen,
    a_freeze_the_kernel_cannot_finish_is_named_and_let_go_when_it_lands,
    a_freeze_stuck_in_the_kernel_forbids_the_next_hold_until_it_lands,
    a_file_system_mounted_only_in_another_namespace_is_held_there,
    whatever_is_killed_or_stopped_at_whatever_instant_is_let_go,
    an_idle_warden_sleeps_and_is_small,
];

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);
/// A death is noticed and everything thawed within 100 ms; the rest is this machine's scheduling.
const AT_ONCE: Duration = Duration::from_millis(250);

fn state(mount: &Path) -> String {
    let bytes = fs::read(mount.join(".holdstill/state")).unwrap();
    String::from_utf8_lossy(&bytes).split('\n').next().unwrap().to_owned()
}

fn assert_nothing_left(lab: &Lab) {
    wait_until("everybody is gone", 5 * S, || family(lab).is_empty());
    let marker = Marker::map(&lab.run()).unwrap().unwrap();
    assert_eq!(marker.rcu_raised().load(SeqCst), 0, "the tunable is restored");
    for mount in &lab.mounts {
        assert!(Probe::start(mount).through(S).is_some(), "{} is writable", mount.display());
    }
}

fn a_hold_freezes_thaws_and_leaves_a_receipt_on_every_type() {
    let mut lab = Lab::new("cycle");
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs] {
        lab.add(fs);
    }
    let lab = lab.watched();
    let mut daemon = Daemon::start(&lab.run());
    for how in ["receipt", "bare", "receipt"] {
        assert_eq!(daemon.ask("begin h-1"), "begun");
        assert_eq!(daemon.ask(&prepare(how, &lab.mounts)), "prepared ok ok ok");
        assert_eq!(daemon.ask("flush"), "Ok(true)");
        assert_eq!(daemon.ask("arm 10000"), "armed");
        assert!(daemon.ask("freeze 0,1,2").starts_with("frozen"));
        let mut probes: Vec<_> = lab.mounts.iter().map(|mount| Probe::start(mount)).collect();
        probes.iter_mut().for_each(Probe::assert_blocked);
        if how == "receipt" {
            lab.mounts.iter().for_each(|mount| assert_eq!(state(mount), "frozen"));
        }
        let thawed = daemon.ask("thaw");
        assert!(thawed.ends_with("[Ours, Ours, Ours]"), "{thawed}");
        assert!(probes.iter_mut().all(|probe| probe.through(AT_ONCE).is_some()));
        for mount in lab.mounts.iter().filter(|_| how == "receipt") {
            wait_until("the sentinel flips the state", AT_ONCE, || state(mount) == "released");
        }
        assert_eq!(daemon.ask("testify 0,1,2"), "testified");
        assert_eq!(daemon.ask("end"), "ended");
        assert_eq!(family(&lab).len(), 1, "only the warden lives on: {:?}", family(&lab));
        let json = fs::read_to_string(lab.mounts[0].join(".holdstill/receipt.json")).unwrap();
        assert_eq!(json.trim(), r#"{"is":"verdict"}"#);
    }
    drop(daemon);
    assert_nothing_left(&lab);
}

fn held(name: &str, count: usize) -> (Lab, Daemon, Vec<Probe>) {
    let lab = Lab::ext4(name, count);
    let mut daemon = Daemon::start(&lab.run());
    daemon.hold(&lab.mounts, 20 * S);
    let mut probes: Vec<_> = lab.mounts.iter().map(|mount| Probe::start(mount)).collect();
    probes.iter_mut().for_each(Probe::assert_blocked);
    (lab, daemon, probes)
}

fn assert_through(mut probes: Vec<Probe>, limit: Duration) {
    let start = monotonic();
    for probe in &mut probes {
        let left = (start + limit).saturating_sub(monotonic()).max(MS);
        assert!(probe.through(left).is_some(), "writers wait longer than {limit:?}");
    }
    println!("     writers went on after {:?}", monotonic() - start);
}

fn a_killed_daemon_lets_go_at_once() {
    let (lab, daemon, probes) = held("kill-daemon", 3);
    signal(daemon.pid(), SIGKILL);
    assert_through(probes, AT_ONCE);
    assert_nothing_left(&lab);
    lab.mounts.iter().for_each(|mount| assert_eq!(state(mount), "released"));
    let left = Marker::open(&lab.run()).unwrap().expect("a restarted daemon must know");
    assert_eq!((left.hold_id.as_str(), left.phase, left.reason), ("h-1", Phase::LetGo, Some(Reason::DaemonLost)));
    assert!(left.held.is_empty() && left.foreign.is_empty());
}

fn a_killed_warden_lets_go_at_once_and_is_replaced() {
    let (lab, mut daemon, probes) = held("kill-warden", 3);
    signal(member(&lab, "holdstill-warde"), SIGKILL);
    assert_through(probes, AT_ONCE);
    daemon.event("WardenLost", S);
    assert!(daemon.ask("thaw").ends_with("[Ours, Ours, Ours]"));
    assert_eq!(daemon.ask("testify 0,1,2"), "testified");
    assert_eq!(daemon.ask("end"), "ended");
    wait_until("the guardians end", 2 * S, || family(&lab).is_empty());
    assert_eq!(Marker::open(&lab.run()).unwrap(), None);
    assert_eq!(daemon.ask("begin h-2"), "Lost(Lost)");
    assert_eq!(daemon.ask("replace"), "replaced");
    daemon.hold(&lab.mounts, 10 * S);
    assert!(daemon.ask("thaw").ends_with("[Ours, Ours, Ours]"));
    assert_eq!(daemon.ask("end"), "ended");
    drop(daemon);
    assert_nothing_left(&lab);
}

fn daemon_and_warden_killed_together_let_go_at_once() {
    let (lab, daemon, probes) = held("kill-both", 3);
    let warden = member(&lab, "holdstill-warde");
    signal(daemon.pid(), SIGKILL);
    signal(warden, SIGKILL);
    assert_through(probes, AT_ONCE);
    assert_nothing_left(&lab);
    lab.mounts.iter().for_each(|mount| assert_eq!(state(mount), "released"));
    assert_eq!(Marker::open(&lab.run()).unwrap().unwrap().phase, Phase::LetGo);
}

fn a_killed_guardian_lets_its_file_system_go_at_once() {
    let (lab, mut daemon, mut probes) = held("kill-guardian", 2);
    let guardian = Marker::map(&lab.run()).unwrap().unwrap().entry(1).owner().unwrap();
    signal(guardian.pid, SIGKILL);
    assert_through(vec![probes.pop().unwrap()], AT_ONCE);
    daemon.event("GuardianLost { index: 1 }", S);
    probes[0].assert_blocked();
    assert!(daemon.ask("thaw").ends_with("[Ours, Ours]"));
    assert_through(probes, AT_ONCE);
    assert_eq!(daemon.ask("testify 0,1"), "testified");
    let json = fs::read_to_string(lab.mounts[1].join(".holdstill/receipt.json")).unwrap();
    assert_eq!(json.trim(), r#"{"is":"verdict"}"#, "the daemon writes for the dead guardian");
    assert_eq!(daemon.ask("end"), "ended");
    drop(daemon);
    assert_nothing_left(&lab);
}

fn sentinel(lab: &Lab) -> i32 {
    Marker::map(&lab.run()).unwrap().unwrap().entry(0).sentinel().unwrap().pid
}

fn a_killed_sentinel_changes_nothing_for_the_writers() {
    let (lab, mut daemon, mut probes) = held("kill-sentinel", 1);
    signal(sentinel(&lab), SIGKILL);
    probes[0].assert_blocked();
    assert!(daemon.ask("thaw").ends_with("[Ours]"));
    assert_through(probes, AT_ONCE);
    assert_eq!(daemon.ask("testify 0"), "testified");
    assert_eq!((state(&lab.mounts[0]).as_str(), daemon.ask("end").as_str()), ("released", "ended"));
    drop(daemon);
    assert_nothing_left(&lab);
}

fn a_killed_sentinel_before_the_freeze_is_reported() {
    let lab = Lab::ext4("early-sentinel", 1);
    let mut daemon = Daemon::start(&lab.run());
    daemon.prepare(&lab.mounts);
    signal(sentinel(&lab), SIGKILL);
    daemon.event("GuardianLost { index: 0 }", S);
    assert!(!daemon.ask("freeze 0").starts_with("frozen"));
    assert!(daemon.ask("thaw").ends_with("[NeverFrozen]"));
    assert_eq!(daemon.ask("end"), "ended");
    drop(daemon);
    assert_nothing_left(&lab);
}

/// Eight ticks of 250 ms, and what they may be late.
const LOST: Duration = Duration::from_millis(3500);

fn a_stopped_daemon_is_lost_after_two_seconds() {
    let (lab, mut daemon, probes) = held("stop-daemon", 2);
    signal(daemon.pid(), SIGSTOP);
    assert_through(probes, LOST);
    wait_until("the rescue ends the daemon", 2 * S, || daemon.child.try_wait().unwrap().is_some());
    assert_nothing_left(&lab);
}

fn a_stopped_warden_is_lost_after_two_seconds() {
    let (lab, mut daemon, probes) = held("stop-warden", 2);
    signal(member(&lab, "holdstill-warde"), SIGSTOP);
    assert_through(probes, LOST);
    daemon.event("WardenLost", S);
    assert!(daemon.ask("thaw").ends_with("[Ours, Ours]"));
    assert_eq!(daemon.ask("end"), "ended");
    assert_nothing_left(&lab);
}

fn daemon_and_warden_stopped_together_are_lost_after_two_seconds() {
    let (lab, mut daemon, probes) = held("stop-both", 2);
    signal(member(&lab, "holdstill-warde"), SIGSTOP);
    signal(daemon.pid(), SIGSTOP);
    assert_through(probes, LOST);
    wait_until("the rescue ends the daemon", 8 * S, || daemon.child.try_wait().unwrap().is_some());
    assert_nothing_left(&lab);
}

fn a_stopped_guardian_is_taken_over_from() {
    let (lab, mut daemon, probes) = held("stop-guardian", 2);
    let guardian = Marker::map(&lab.run()).unwrap().unwrap().entry(0).owner().unwrap();
    signal(guardian.pid, SIGSTOP);
    assert!(daemon.ask("thaw").ends_with("[Ours, Ours]"));
    assert_through(probes, MS * 50);
    assert_eq!(daemon.ask("end"), "ended");
    drop(daemon);
    assert_nothing_left(&lab);
}

fn a_stopped_sentinel_fails_the_freeze() {
    let lab = Lab::ext4("stop-sentinel", 1);
    let mut daemon = Daemon::start(&lab.run());
    daemon.prepare(&lab.mounts);
    signal(sentinel(&lab), SIGSTOP);
    let answer = daemon.ask("freeze 0");
    assert!(answer.contains("cannot be proven"), "{answer}");
    assert!(daemon.ask("thaw").ends_with("[Ours]"));
    assert_eq!(daemon.ask("end"), "ended");
    drop(daemon);
    assert_nothing_left(&lab);
}

fn the_deadline_lets_go_whoever_asks() {
    let (lab, mut daemon, probes) = held("deadline", 2);
    assert_eq!(daemon.ask("arm 300"), "armed");
    assert_through(probes, 300 * MS + AT_ONCE);
    daemon.event("Deadline", S);
    assert!(daemon.ask("thaw").ends_with("[Ours, Ours]"));
    assert_eq!(daemon.ask("end"), "ended");
    drop(daemon);
    assert_nothing_left(&lab);
}

fn guardians_keep_the_deadline_without_a_warden() {
    let (lab, daemon, probes) = held("deadline-stopped", 2);
    // as the daemon's `arm` would, but nobody is there to be told
    signal(daemon.pid(), SIGSTOP);
    signal(member(&lab, "holdstill-warde"), SIGSTOP);
    Marker::map(&lab.run()).unwrap().unwrap().arm(Deadline::after(300 * MS));
    assert_through(probes, 300 * MS + 250 * MS + AT_ONCE);
    drop(daemon);
    assert_nothing_left(&lab);
}

fn an_extended_deadline_holds_longer() {
    let (lab, mut daemon, mut probes) = held("extend", 1);
    assert_eq!(daemon.ask("arm 200"), "armed");
    assert_eq!(daemon.ask("arm 5000"), "armed");
    assert_eq!(probes[0].through(500 * MS), None);
    assert!(daemon.ask("thaw").ends_with("[Ours]"));
    assert_eq!(daemon.ask("end"), "ended");
    drop(daemon);
    assert_nothing_left(&lab);
}

fn a_foreign_thaw_is_seen_and_not_repeated() {
    let mut lab = Lab::new("foreign-thaw");
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs] {
        lab.add(fs);
    }
    let lab = lab.watched();
    for how in ["receipt", "bare"] {
        let mut daemon = Daemon::start(&lab.run());
        assert_eq!(daemon.ask("begin h-1"), "begun");
        assert_eq!(daemon.ask(&prepare(how, &lab.mounts)), "prepared ok ok ok");
        assert!(daemon.ask("freeze 0,1,2").starts_with("frozen"));
        for (index, mount) in lab.mounts.iter().enumerate() {
            foreign("-u", mount);
            daemon.event(&format!("ForeignThaw {{ index: {index} }}"), S);
            foreign("-f", mount);
        }
        assert!(daemon.ask("thaw").ends_with("[Foreign, Foreign, Foreign]"));
        let mut probes: Vec<_> = lab.mounts.iter().map(|mount| Probe::start(mount)).collect();
        probes.iter_mut().for_each(Probe::assert_blocked);
        lab.mounts.iter().for_each(|mount| foreign("-u", mount));
        assert_through(probes, AT_ONCE);
        assert_eq!(daemon.ask("end"), "ended");
        drop(daemon);
        assert_nothing_left(&lab);
    }
}

fn a_foreign_freeze_is_refused_while_preparing() {
    let lab = Lab::ext4("foreign-early", 2);
    let mut daemon = Daemon::start(&lab.run());
    foreign("-f", &lab.mounts[0]);
    for _again in 0..2 {
        assert_eq!(daemon.ask("begin h-1"), "begun");
        let answer = daemon.ask(&prepare("receipt", &lab.mounts));
        assert!(answer.starts_with("prepared [ForeignFreeze") && answer.ends_with("] ok"), "{answer}");
        assert!(daemon.ask("thaw").ends_with("[NeverFrozen, NeverFrozen]"));
        assert_eq!(daemon.ask("end"), "ended");
    }
    Probe::start(&lab.mounts[0]).assert_blocked();
    foreign("-u", &lab.mounts[0]);
    wait_until("what was stuck has left the kernel", S, || {
        assert_eq!(daemon.ask("begin h-1"), "begun");
        let prepared = daemon.ask(&prepare("receipt", &lab.mounts)) == "prepared ok ok";
        assert_eq!(daemon.ask("end"), "ended");
        prepared
    });
    drop(daemon);
    assert_nothing_left(&lab);
}

fn a_foreign_freeze_after_preparing_is_refused_and_left_alone() {
    let lab = Lab::ext4("foreign-late", 2);
    for how in ["receipt", "bare"] {
        let mut daemon = Daemon::start(&lab.run());
        assert_eq!(daemon.ask("begin h-1"), "begun");
        assert_eq!(daemon.ask(&prepare(how, &lab.mounts)), "prepared ok ok");
        foreign("-f", &lab.mounts[1]);
        let answer = daemon.ask("freeze 0,1");
        assert!(answer.starts_with("ForeignFreeze { index: 1"), "{answer}");
        let thawed = daemon.ask("thaw");
        assert!(thawed.ends_with("NeverFrozen]"), "{thawed}");
        assert!(Probe::start(&lab.mounts[0]).through(AT_ONCE).is_some());
        let mut probe = Probe::start(&lab.mounts[1]);
        probe.assert_blocked();
        assert_eq!(daemon.ask("end"), "ended");
        probe.assert_blocked();
        foreign("-u", &lab.mounts[1]);
        drop(daemon);
        assert_nothing_left(&lab);
    }
}

fn a_file_system_on_a_file_of_another_freezes_first_and_thaws_last() {
    let mut lab = Lab::new("nested");
    let outer = lab.mount_image_of(Fs::Ext4, &lab.dir.join("outer"), 160);
    lab.mount_image_of(Fs::Ext4, &outer.join("inner"), 48);
    let lab = lab.watched();
    let mut daemon = Daemon::start(&lab.run());
    for kill in [false, true] {
        daemon.prepare(&lab.mounts);
        assert!(daemon.ask("freeze 1 0").starts_with("frozen"));
        let probes: Vec<_> = lab.mounts.iter().map(|mount| Probe::start(mount)).collect();
        if kill {
            signal(daemon.pid(), SIGKILL);
        } else {
            assert!(daemon.ask("thaw").ends_with("[Ours, Ours]"));
            assert_eq!(daemon.ask("end"), "ended");
        }
        assert_through(probes, AT_ONCE);
    }
    assert_nothing_left(&lab);
}

fn a_file_system_that_is_not_the_planned_one_is_refused() {
    let lab = Lab::ext4("vanished", 1);
    let mut daemon = Daemon::start(&lab.run());
    assert_eq!(daemon.ask("begin h-1"), "begun");
    let answer = daemon.ask(&prepare("vanished", &lab.mounts));
    assert!(answer.contains("Vanished"), "{answer}");
    assert_eq!(daemon.ask("end"), "ended");
}

fn a_link_in_place_of_the_receipt_directory_is_refused() {
    let lab = Lab::ext4("link", 1);
    std::os::unix::fs::symlink("/tmp", lab.mounts[0].join(".holdstill")).unwrap();
    let mut daemon = Daemon::start(&lab.run());
    assert_eq!(daemon.ask("begin h-1"), "begun");
    let answer = daemon.ask(&prepare("receipt", &lab.mounts));
    assert!(answer.contains("Receipt") && answer.contains("not a directory"), "{answer}");
    assert_eq!(daemon.ask("end"), "ended");
}

fn a_full_disk_is_held_without_a_receipt() {
    let lab = Lab::ext4("full", 1);
    let mut filler = fs::File::create(lab.mounts[0].join("filler")).unwrap();
    while std::io::Write::write(&mut filler, &[1; 4096]).is_ok() {}
    drop(filler);
    let mut daemon = Daemon::start(&lab.run());
    assert_eq!(daemon.ask("begin h-1"), "begun");
    let answer = daemon.ask(&prepare("receipt", &lab.mounts));
    assert!(answer.starts_with("prepared [no receipt: .holdstill"), "{answer}");
    assert!(daemon.ask("freeze 0").starts_with("frozen"));
    assert!(daemon.ask("thaw").ends_with("[Ours]"));
    assert_eq!(daemon.ask("end"), "ended");
    fs::remove_file(lab.mounts[0].join("filler")).unwrap();
    drop(daemon);
    assert_nothing_left(&lab);
}

fn kill_everything(lab: &Lab, daemon: &Daemon) {
    // stopped first, so that nobody can act on a death
    let all = family(lab);
    all.iter().for_each(|(pid, _)| signal(*pid, SIGSTOP));
    signal(daemon.pid(), SIGKILL);
    all.iter().for_each(|(pid, _)| signal(*pid, SIGKILL));
}

fn rescue(lab: &Lab) -> String {
    let output = Command::new("/proc/self/exe").arg("rescue").arg("--run").arg(lab.run()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn everything_killed_at_once_is_rescued_by_hand() {
    let (lab, mut daemon, mut probes) = held("rescue", 3);
    kill_everything(&lab, &daemon);
    daemon.child.wait().unwrap();
    probes.iter_mut().for_each(Probe::assert_blocked);
    let text = rescue(&lab);
    assert_through(probes, MS * 50);
    assert_eq!(text.lines().filter(|line| line.ends_with(" thawed")).count(), 3, "{text}");
    assert!(!text.contains("failed"), "{text}");
    lab.mounts.iter().for_each(|mount| assert_eq!(state(mount), "released"));
    assert_eq!(rescue(&lab).trim(), "nothing was held");
    assert_nothing_left(&lab);
}

fn a_file_system_that_is_mounted_nowhere_is_rescued() {
    let mut lab = Lab::new("unmounted");
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs] {
        lab.add(fs);
    }
    let lab = lab.watched();
    let mut daemon = Daemon::start(&lab.run());
    daemon.hold(&lab.mounts, 20 * S);
    kill_everything(&lab, &daemon);
    daemon.child.wait().unwrap();
    for mount in &lab.mounts {
        let device = source(mount);
        call(["umount", "-l"].iter().map(OsStr::new).chain([mount.as_os_str()]));
        println!("     {} from {device} unmounted", mount.display());
    }
    let text = rescue(&lab);
    assert_eq!(text.lines().filter(|line| line.ends_with(" thawed")).count(), 3, "{text}");
}

fn source(mount: &Path) -> String {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = text.lines().find(|line| line.split(' ').nth(4) == mount.to_str()).unwrap();
    line.split(" - ").nth(1).unwrap().split(' ').nth(1).unwrap().to_owned()
}

fn a_rescue_leaves_a_daemon_that_responds_alone() {
    let (lab, mut daemon, mut probes) = held("polite", 1);
    let text = rescue(&lab);
    assert!(text.contains("lives and responds"), "{text}");
    probes[0].assert_blocked();
    assert!(daemon.ask("thaw").ends_with("[Ours]"));
    assert_eq!(daemon.ask("end"), "ended");
    assert_eq!(rescue(&lab).trim(), "nothing was held");
}

fn database_sockets_die_with_the_daemon() {
    let lab = Lab::ext4("sockets", 1);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut daemon = Daemon::start(&lab.run());
    daemon.prepare(&lab.mounts);
    assert_eq!(daemon.ask(&format!("guard {}", server.local_addr().unwrap())), "guarded");
    let (mut session, _) = server.accept().unwrap();
    session.set_read_timeout(Some(LOST)).unwrap();
    signal(daemon.pid(), SIGSTOP);
    assert_eq!(session.read(&mut [0]).unwrap(), 0, "the connection ended although the daemon has it open");
    drop(daemon);
    assert_nothing_left(&lab);
}

fn a_warden_without_a_hold_follows_its_daemon() {
    let lab = Lab::new("idle");
    let daemon = Daemon::start(&lab.run());
    assert_eq!(family(&lab).len(), 1);
    drop(daemon);
    wait_until("the warden ends", S, || family(&lab).is_empty());
}

fn a_freeze_and_thaw_is_fast() {
    for count in [1, 8] {
        let lab = Lab::ext4("fast", count);
        let mut daemon = Daemon::start(&lab.run());
        let mut overheads: Vec<u64> = (0..9)
            .map(|_| {
                daemon.prepare(&lab.mounts);
                let answer = daemon.ask(&format!("cycle {count}"));
                assert_eq!(daemon.ask("end"), "ended");
                let numbers: Vec<u64> = answer.split(' ').skip(1).map(|number| number.parse().unwrap()).collect();
                println!(
                    "     {count} ext4: freeze {} us, thaw {} us, longest FIFREEZE {} us",
                    numbers[0], numbers[1], numbers[2]
                );
                numbers[0] - numbers[2] + numbers[1]
            })
            .collect();
        overheads.sort_unstable();
        // generous: this machine is busy; what matters is that nothing waits for a timer
        assert!(overheads[4] < 20_000, "median overhead {} us", overheads[4]);
    }
}

/// A hook that notes what it was called with, on tmpfs.
fn hook(lab: &Lab, daemon: &mut Daemon, name: &str) {
    let path = lab.dir.join(name);
    let log = lab.dir.join("log");
    let text =
        format!("#!/bin/sh\necho {name} $1 $HOLDSTILL_PHASE $HOLDSTILL_ID $HOLDSTILL_REASON >> {}\n", log.display());
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(daemon.ask(&format!("hook {name} {}", path.display())), "Ok(())");
}

fn started_hooks_are_undone_newest_first_whoever_is_killed() {
    for (name, warden_too, stop) in
        [("hooks-daemon", false, false), ("hooks-both", true, false), ("hooks-stop", true, true)]
    {
        let (lab, mut daemon, probes) = held(name, 2);
        hook(&lab, &mut daemon, "10-a");
        hook(&lab, &mut daemon, "20-b");
        let warden = member(&lab, "holdstill-warde");
        let fault = if stop { SIGSTOP } else { SIGKILL };
        signal(daemon.pid(), fault);
        if warden_too {
            signal(warden, fault);
        }
        assert_through(probes, if stop { LOST } else { AT_ONCE });
        wait_until("the marker says that all is undone", 8 * S, || {
            Marker::open(&lab.run()).unwrap().is_some_and(|left| left.phase == Phase::LetGo)
        });
        let log = fs::read_to_string(lab.dir.join("log")).unwrap();
        assert_eq!(log, "20-b thaw thaw h-1 daemon_lost\n10-a thaw thaw h-1 daemon_lost\n");
        drop(daemon);
        assert_nothing_left(&lab);
    }
}

fn a_guardian_killed_inside_fifreeze_leaves_nothing_frozen() {
    let mut lab = Lab::new("inside");
    lab.mount_image_of(Fs::Ext4, &lab.dir.join("large"), 512);
    let lab = lab.watched();
    let mut daemon = Daemon::start(&lab.run());
    let mut inside = 0;
    for _attempt in 0..12 {
        daemon.prepare(&lab.mounts);
        let marker = Marker::map(&lab.run()).unwrap().unwrap();
        let guardian = marker.entry(0).owner().unwrap();
        daemon.tell("freeze 0");
        let until = monotonic() + 5 * S;
        // no sleep: FIFREEZE may last less than a millisecond
        while marker.entry(0).state() == State::Planned && monotonic() < until {}
        inside += usize::from(marker.entry(0).state() == State::Freezing);
        signal(guardian.pid, SIGKILL);
        daemon.answer();
        assert!(Probe::start(&lab.mounts[0]).through(AT_ONCE).is_some(), "let go at once");
        daemon.ask("thaw");
        assert_eq!(daemon.ask("end"), "ended");
    }
    assert!(inside > 0, "the guardian was never inside FIFREEZE");
    drop(daemon);
    assert_nothing_left(&lab);
}

fn a_freeze_the_kernel_cannot_finish_is_named_and_let_go_when_it_lands() {
    let mut lab = Lab::new("slow");
    let outer = lab.mount_image_of(Fs::Ext4, &lab.dir.join("outer"), 160);
    lab.mount_image_of(Fs::Ext4, &outer.join("inner"), 48);
    let lab = lab.watched();
    let mut daemon = Daemon::start(&lab.run());
    daemon.prepare(&lab.mounts);
    // the wrong order: the inner file system's FIFREEZE must write to the frozen outer one
    let answer = daemon.ask("freeze 0 1");
    assert!(answer.starts_with("TooSlow { indices: [1]"), "{answer}");
    let thawed = daemon.ask("thaw");
    assert!(thawed.ends_with("[Ours, Ours]"), "{thawed}");
    lab.mounts.iter().for_each(|mount| assert!(Probe::start(mount).through(AT_ONCE).is_some()));
    assert_eq!(daemon.ask("end"), "ended");
    daemon.prepare(&lab.mounts);
    assert_eq!(daemon.ask("end"), "ended");
    drop(daemon);
    assert_nothing_left(&lab);
}

fn a_freeze_stuck_in_the_kernel_forbids_the_next_hold_until_it_lands() {
    let mut lab = Lab::new("stuck");
    let outer = lab.mount_image_of(Fs::Ext4, &lab.dir.join("outer"), 160);
    let inner = vec![lab.mount_image_of(Fs::Ext4, &outer.join("inner"), 48)];
    let lab = lab.watched();
    let mut daemon = Daemon::start(&lab.run());
    for kill in [false, true] {
        assert_eq!(daemon.ask("begin h-1"), "begun");
        assert_eq!(daemon.ask(&prepare("bare", &inner)), "prepared ok");
        assert_eq!(daemon.ask("flush"), "Ok(true)");
        foreign("-f", &outer);
        let answer = daemon.ask("freeze 0");
        assert!(answer.starts_with("TooSlow { indices: [0]"), "{answer}");
        assert!(daemon.ask("thaw").ends_with("[StillStuck]"));
        assert_eq!(daemon.ask("end"), "ended");
        assert!(daemon.ask("begin h-2").starts_with("StillStuck"));
        if kill {
            signal(Marker::map(&lab.run()).unwrap().unwrap().entry(0).owner().unwrap().pid, SIGKILL);
        }
        foreign("-u", &outer);
        assert!(Probe::start(&inner[0]).through(AT_ONCE).is_some(), "let go the moment it landed");
        wait_until("a new hold is accepted", S, || daemon.ask("begin h-3") == "begun");
        assert_eq!(daemon.ask("end"), "ended");
    }
    drop(daemon);
    assert_nothing_left(&lab);
}

fn a_file_system_mounted_only_in_another_namespace_is_held_there() {
    let lab = Lab::new("namespace");
    let image = lab.dir.join("image");
    fs::File::create(&image).unwrap().set_len(48 << 20).unwrap();
    call(["mkfs.ext4", "-q", "-F"].iter().map(OsStr::new).chain([image.as_os_str()]));
    let inside = lab.dir.join("inside");
    fs::create_dir(&inside).unwrap();
    let script = format!("mount -o loop {} {} && echo ready && exec sleep 60", image.display(), inside.display());
    let mut other = Command::new("unshare");
    let mut other = other.args(["-m", "sh", "-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(other.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid = other.id().cast_signed();
    let mut reaper = Reaper::watch(&[PathBuf::from(format!("/proc/{pid}/root{}", inside.display()))]);
    let mut daemon = Daemon::start(&lab.run());
    assert_eq!(daemon.ask("begin h-1"), "begun");
    assert_eq!(daemon.ask(&format!("prepare-in {pid} {}", inside.display())), "prepared ok");
    assert!(daemon.ask("freeze 0").starts_with("frozen"));
    let mut probe = Probe::start(&PathBuf::from(format!("/proc/{pid}/root{}", inside.display())));
    probe.assert_blocked();
    assert!(daemon.ask("thaw").ends_with("[Ours]"));
    assert!(probe.through(AT_ONCE).is_some());
    assert_eq!(daemon.ask("end"), "ended");
    other.kill().unwrap();
    other.wait().unwrap();
    reaper.stop();
}

/// How many instants, and from which seed: `WARDEN_INSTANTS`, `WARDEN_SEED`.
fn whatever_is_killed_or_stopped_at_whatever_instant_is_let_go() {
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let mut seed = number("WARDEN_SEED", u64::from(std::process::id()) << 16 | 1);
    let instants = number("WARDEN_INSTANTS", 24);
    println!("     WARDEN_SEED={seed} WARDEN_INSTANTS={instants}");
    let mut random = move |below: u64| {
        // xorshift64
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let lab = Lab::ext4("instants", 2);
    let (mut longest, mut held) = (Duration::ZERO, 0);
    for instant in 0..instants {
        let mut daemon = Daemon::start(&lab.run());
        let (victims, fault) = (random(5), if random(3) == 0 { SIGSTOP } else { SIGKILL });
        let wait = Duration::from_micros(random(40_000));
        hook(&lab, &mut daemon, "10-a");
        [
            "begin h-1",
            &prepare("receipt", &lab.mounts),
            "arm 3000",
            "freeze 0,1",
            "pause 10",
            "thaw",
            "testify 0,1",
            "end",
        ]
        .iter()
        .for_each(|command| daemon.tell(command));
        std::thread::sleep(wait);
        let marker = Marker::map(&lab.run()).unwrap().unwrap();
        let pids: Vec<i32> = match victims {
            0 => vec![daemon.pid()],
            1 => marker.warden().iter().map(|warden| warden.pid).collect(),
            2 => marker.warden().iter().map(|warden| warden.pid).chain([daemon.pid()]).collect(),
            3 => marker.entry(0).owner().iter().map(|owner| owner.pid).collect(),
            _ => marker.entry(1).sentinel().iter().map(|owner| owner.pid).collect(),
        };
        let (state, phase) = (marker.entry(0).state(), marker.phase());
        for pid in pids {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), fault);
        }
        held += usize::from(state.holds());
        let start = monotonic();
        for mount in &lab.mounts {
            let through = Probe::start(mount).through(6 * S);
            assert!(through.is_some(), "instant {instant}: {victims} {fault} after {wait:?} at {state:?} {phase:?}");
        }
        longest = longest.max(monotonic() - start);
        // what a service manager does
        drop(daemon);
        rescue(&lab);
        let until = monotonic() + 6 * S;
        while !family(&lab).is_empty() && monotonic() < until {
            std::thread::sleep(MS);
        }
        let alive = family(&lab);
        assert!(
            alive.is_empty(),
            "instant {instant}: {victims} {fault} after {wait:?} at {state:?} {phase:?}: {alive:?}"
        );
        let left = Marker::map(&lab.run()).unwrap().unwrap();
        assert!(!left.holds() && left.hooks_not_undone().is_empty(), "instant {instant}");
        assert!(matches!(left.phase(), Phase::Idle | Phase::LetGo), "instant {instant}: {:?}", left.phase());
    }
    println!("     {held} of {instants} while frozen; the longest a writer waited: {longest:?}");
    assert_nothing_left(&lab);
}

fn an_idle_warden_sleeps_and_is_small() {
    let lab = Lab::ext4("small", 2);
    let mut daemon = Daemon::start(&lab.run());
    daemon.hold(&lab.mounts, 10 * S);
    daemon.ask("thaw");
    assert_eq!(daemon.ask("end"), "ended");
    let warden = member(&lab, "holdstill-warde");
    let read = |name: &str| fs::read_to_string(format!("/proc/{warden}/{name}")).unwrap();
    let field = |text: &str, name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let woken = || field(&read("status"), "voluntary_ctxt_switches:");
    // on a busy machine the last of the hold's children is reaped a moment later
    let settled = (0..20).any(|_| {
        let before = woken();
        std::thread::sleep(S);
        woken() == before
    });
    assert!(settled, "it goes on waking up although there is no hold");
    let pss = field(&read("smaps_rollup"), "Pss:");
    println!("     the idle warden's PSS: {pss} KiB, locked {} KiB", field(&read("status"), "VmLck:"));
    assert_eq!(field(&read("status"), "VmLck:"), 0);
}
