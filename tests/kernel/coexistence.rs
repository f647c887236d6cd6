//! Beside the stock guest agent: what happens when both freeze. The facts behind docs/guest-agent.md.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use serde_json::{Value, json};

use crate::lab::{Daemon, Lab, Type, command, daemon::BINARY, finish, process::signal, until};

facts! {
    a_hold_from_within_qemu_gas_hook_cannot_work_and_is_called_broken,
    what_qemu_ga_has_frozen_is_refused_and_left_to_it,
}

/// The real qemu-ga, asked where the hypervisor's end of its channel would be. In a world of the lab nothing but loop devices
/// can be frozen, so it may be asked to freeze all there is.
struct QemuGa {
    child: Child,
    stream: BufReader<UnixStream>,
}

impl QemuGa {
    fn start(lab: &Lab, hook: Option<&Path>) -> QemuGa {
        if Command::new("qemu-ga").arg("--version").output().is_err() {
            lab.skip("qemu-ga is not installed (qemu-guest-agent)");
        }
        crate::lab::world::guard().expect("everything mounted is the lab's");
        let run = lab.memory_dir("qemu-ga");
        let socket = run.join("socket");
        let mut command = command("qemu-ga");
        command.args(["--method", "unix-listen", "--path"]).arg(&socket).arg("--statedir").arg(&run);
        command.args(hook.map(|hook| format!("-F{}", hook.display())));
        let child = command.spawn().expect("it is a program");
        let mut stream = None;
        until(Duration::from_secs(10), || {
            stream = UnixStream::connect(&socket).ok();
            stream.is_some()
        });
        let stream = stream.expect("qemu-ga did not come up");
        stream.set_read_timeout(Some(Duration::from_secs(25))).expect("a socket");
        QemuGa { child, stream: BufReader::new(stream) }
    }

    fn ask(&mut self, command: &str) -> Value {
        writeln!(self.stream.get_mut(), "{}", json!({"execute": command})).expect("it listens");
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("it answers");
        serde_json::from_str(&line).expect("one JSON object a line")
    }
}

impl Drop for QemuGa {
    fn drop(&mut self) {
        signal(self.child.id().cast_signed(), nix::sys::signal::Signal::SIGKILL);
        finish(&mut self.child, Duration::from_secs(5));
    }
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
