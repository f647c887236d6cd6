//! The two agents a guest can have on its channel, and what a test may do to either of them.

use std::{fmt::Write as _, time::Duration};

use super::Inside;
use crate::lab::guest_agent::Host;

/// How an agent is set up before it starts.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// keys of holdstill.toml, `section.key` and a TOML value; the stock agent has nothing of the kind
    pub settings: Vec<(&'static str, &'static str)>,
    /// a shell script called with `freeze` and `thaw`
    pub hook: Option<&'static str>,
    /// where the stock agent keeps its marker; on tmpfs unless said
    pub state_dir: Option<&'static str>,
}

impl Setup {
    fn state_dir(&self) -> &'static str {
        self.state_dir.unwrap_or("/run/qga")
    }
}

/// An agent as a test sees it: the same questions have answers for both.
pub trait Agent: Sync {
    fn name(&self) -> &'static str;
    /// Writes its configuration and hook.
    fn install(&self, guest: &Inside, setup: &Setup);
    /// Starts it in the background, its pid in /run/agent.pid. Writes nothing to a disk: it may be frozen.
    fn start(&self, guest: &Inside, setup: &Setup);
    /// A shell command that prints the pids of all its processes.
    fn processes(&self) -> &'static str;
}

pub struct Holdstill;
pub struct QemuGa;

impl Agent for Holdstill {
    fn name(&self) -> &'static str {
        "holdstill"
    }

    fn install(&self, guest: &Inside, setup: &Setup) {
        let mut text = String::new();
        let mut settings = vec![("hold.interval", "\"0s\""), ("listen.relay", "false")];
        settings.retain(|(key, _)| setup.settings.iter().all(|(other, _)| other != key));
        settings.extend(&setup.settings);
        settings.sort_unstable();
        let mut section = "";
        for (key, value) in settings {
            let (of, key) = key.split_once('.').expect("section.key");
            if of != section {
                let _ = writeln!(text, "[{of}]");
                section = of;
            }
            let _ = writeln!(text, "{key} = {value}");
        }
        guest.write("/etc/holdstill/holdstill.toml", &text);
        if let Some(script) = setup.hook {
            install_hook(guest, "/etc/holdstill/hooks.d/10-lab", script);
        }
    }

    fn start(&self, guest: &Inside, _: &Setup) {
        start(guest, "/usr/bin/holdstill serve");
    }

    fn processes(&self) -> &'static str {
        "for p in /proc/[0-9]*; do [ \"$(readlink $p/exe)\" = /usr/bin/holdstill ] && echo ${p#/proc/}; done; :"
    }
}

impl Agent for QemuGa {
    fn name(&self) -> &'static str {
        "qemu-ga"
    }

    fn install(&self, guest: &Inside, setup: &Setup) {
        guest.sh(&format!("mkdir -p {}", setup.state_dir()));
        if let Some(script) = setup.hook {
            install_hook(guest, "/etc/qemu/fsfreeze-hook", script);
        }
    }

    fn start(&self, guest: &Inside, setup: &Setup) {
        let hook = if setup.hook.is_some() { "-F/etc/qemu/fsfreeze-hook" } else { "" };
        start(
            guest,
            &format!(
                "qemu-ga -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t {} -f /run/qga.pid \
                 -l /run/qga.log {hook}",
                setup.state_dir()
            ),
        );
    }

    fn processes(&self) -> &'static str {
        "pidof qemu-ga"
    }
}

fn install_hook(guest: &Inside, path: &str, script: &str) {
    guest.write(path, &format!("#!/bin/sh\n{script}\n"));
    guest.sh(&format!("chmod 755 {path}"));
}

/// In a session of its own, as a service manager would.
fn start(guest: &Inside, command: &str) {
    guest.start("agent", &format!("echo $$ >/run/agent.pid; exec {command}"));
}

impl dyn Agent + '_ {
    /// Its main process.
    pub fn kill(&self, guest: &Inside, signal: &str) {
        guest.sh(&format!("kill -{signal} $(cat /run/agent.pid)"));
    }

    /// Every process of it at once: stopped first, so that none sees another die.
    pub fn kill_all(&self, guest: &Inside) {
        guest.sh(&format!("p=$({}); kill -STOP $p; kill -KILL $p", self.processes()));
    }

    /// Installs and starts it.
    pub fn begin(&self, guest: &Inside, setup: &Setup) {
        self.install(guest, setup);
        self.start(guest, setup);
    }

    /// Until it answers on its channel.
    pub fn answers(&self, host: &mut Host) {
        assert!(host.syncs_within(Duration::from_secs(30)), "{} does not answer on its channel", self.name());
    }
}
