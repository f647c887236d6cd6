//! Beside the stock guest agent: what happens when both freeze. The facts behind docs/guest-agent.md.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use serde_json::json;

use crate::lab::{Daemon, Lab, Type, daemon::BINARY, qemu_ga::QemuGa};

facts! {
    a_hold_from_within_qemu_gas_hook_cannot_work_and_is_called_broken,
    what_qemu_ga_has_frozen_is_refused_and_left_to_it,
}

/// A hook that holds and lets go, as one would write it. It notes how that ended.
fn hook(lab: &Lab, daemon: &Daemon) -> (PathBuf, PathBuf) {
    let dir = lab.memory_dir("hook");
    let (hook, ended) = (dir.join("hook"), dir.join("ended"));
    let script = format!(
        "#!/bin/sh\n{BINARY} --socket {} \"$1\" >/dev/null 2>&1\nstatus=$?\necho \"$1 $status\" >>{}\nexit $status\n",
        daemon.socket().display(),
        ended.display()
    );
    fs::write(&hook, script).expect("memory");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("memory");
    (hook, ended)
}

fn a_hold_from_within_qemu_gas_hook_cannot_work_and_is_called_broken(lab: &Lab) {
    let disks = [lab.fs(Type::Ext4), lab.fs(Type::Xfs)];
    let daemon = lab.daemon(&[&disks[0], &disks[1]]).set("hold.max", "20s").start();
    let (hook, ended) = hook(lab, &daemon);
    let mut qemu_ga = QemuGa::start(lab, Some(&hook));
    // everything is frozen already, which qemu-ga passes over and counts as nothing: a host that sees 0 sends no thaw
    assert_eq!(qemu_ga.ask("guest-fsfreeze-freeze"), json!({"return": 0}));
    assert_eq!(qemu_ga.ask("guest-fsfreeze-status"), json!({"return": "thawed"}), "while all is held");
    assert_eq!(daemon.phase(), "held");
    // and its thaw thaws whatever is frozen, before its hook could tell us
    let thawed = qemu_ga.ask("guest-fsfreeze-thaw");
    assert!(thawed["error"]["desc"].as_str().is_some_and(|desc| desc.contains("status 3")), "{thawed}");
    assert_eq!(fs::read_to_string(ended).expect("it ran"), "freeze 0\nthaw 3\n");
    let report = daemon.thaw();
    assert_eq!(report["verdict"], "broken");
    assert!(report["breaches"].to_string().contains("FOREIGN_THAW"), "{report:#}");
}

fn what_qemu_ga_has_frozen_is_refused_and_left_to_it(lab: &Lab) {
    let disk = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&disk]).start();
    let mut qemu_ga = QemuGa::start(lab, None);
    assert_eq!(qemu_ga.ask("guest-fsfreeze-freeze"), json!({"return": 1}));
    assert_eq!(daemon.cli(&["freeze"]).exits(4).reason(), "FOREIGN_FREEZE");
    assert_eq!(qemu_ga.ask("guest-fsfreeze-thaw"), json!({"return": 1}), "it was left frozen, for its owner to thaw");
    daemon.freeze(&[]);
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
}
