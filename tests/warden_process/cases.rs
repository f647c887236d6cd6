//! The facts.

use std::{fs, path::Path, time::Duration};

use nix::sys::signal::Signal::{SIGKILL, SIGSTOP};

use crate::{
    daemon::{Daemon, prepare},
    lab::{Fs, Lab, Probe, family, foreign, member, signal, wait_until},
};

type Case = (&'static str, fn());

macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name)),*] };
}

pub const ALL: &[Case] = cases![a_hold_freezes_thaws_and_leaves_a_receipt_on_every_type,];

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
