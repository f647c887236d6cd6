//! The facts.

use std::{ffi::OsStr, fs, io::Read, net::TcpListener, path::Path, process::Command, time::Duration};

use holdstill::{
    sys::clock::monotonic,
    warden::{
        Reason,
        marker::{Deadline, Marker, Phase},
    },
};
use nix::sys::signal::Signal::{SIGKILL, SIGSTOP};

use crate::{
    daemon::{Daemon, prepare},
    lab::{Fs, Lab, Probe, call, family, foreign, member, signal, wait_until},
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
];

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);
/// A death is noticed and everything thawed within 100 ms; the rest is this machine's scheduling.
const AT_ONCE: Duration = Duration::from_millis(250);

fn state(mount: &Path) -> String {
    let bytes = fs::read(mount.join(".holdstill/state")).unwrap();
    String::from_utf8_lossy(&bytes).split('\n').next().unwrap().to_owned()
}

fn expedited() -> String {
    fs::read_to_string("/sys/kernel/rcu_expedited").unwrap()
}

fn assert_nothing_left(lab: &Lab) {
    wait_until("everybody is gone", 5 * S, || family(lab).is_empty());
    assert_eq!(expedited().trim(), "0");
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
    daemon.prepare(&lab.mounts);
    assert_eq!(daemon.ask("end"), "ended");
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
