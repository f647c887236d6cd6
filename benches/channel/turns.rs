//! One guest in which the agents take turns: its port can be open in one of them at a time.

use std::{thread, time::Duration};

use serde_json::json;

use crate::{
    lab::{Lab, guest_agent::Host, now},
    machine::{Agent, Boot, Holdstill, Inside, Machine, Place, QemuGa, agent::Setup},
};

/// Both, in the order of the table's columns.
pub const AGENTS: [&dyn Agent; 2] = [&QemuGa, &Holdstill];

pub struct Turns {
    machine: Machine,
}

/// One agent on the port, until dropped.
pub struct Turn<'a> {
    pub guest: &'a Inside,
    pub host: Host,
    agent: &'a dyn Agent,
}

impl Turns {
    /// A guest with room for unwritten data, and with this program in it.
    pub fn boot(lab: &Lab) -> Turns {
        let place = Place::new(lab, "bench");
        let own = std::env::current_exe().expect("Linux");
        let drive = format!("if=none,id=own,file={},format=raw,readonly=on", own.display());
        let mut boot = Boot { megabytes: 1024, ..Boot::small() };
        boot.qemu.extend(["-drive".to_owned(), drive, "-device".to_owned(), "virtio-blk-pci,drive=own".to_owned()]);
        let machine = Machine::boot(&place, &boot);
        // what is executed from there is padded to whole sectors, which an ELF file does not mind
        machine.sh("cat /dev/vdc >/run/bench; chmod 755 /run/bench");
        for agent in AGENTS {
            agent.install(&machine, &Setup::default());
        }
        Turns { machine }
    }

    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Starts an agent and waits until it answers.
    pub fn of<'a>(&'a self, agent: &'a dyn Agent) -> Turn<'a> {
        agent.start(&self.machine, &Setup::default());
        let mut host = self.machine.host();
        agent.answers(&mut host);
        // what it does once after its start is not what is measured
        thread::sleep(Duration::from_millis(1200));
        Turn { guest: &self.machine, host, agent }
    }
}

impl Turn<'_> {
    /// Freezes both file systems; how long it took to be answered.
    pub fn freeze(&mut self) -> Duration {
        let begun = now();
        assert_eq!(self.host.freeze(), json!(2), "{} says\n{}", self.agent.name(), self.guest.output("agent"));
        now() - begun
    }

    pub fn thaw(&mut self) -> Duration {
        let begun = now();
        assert_eq!(self.host.thaw(), json!(2), "{} says\n{}", self.agent.name(), self.guest.output("agent"));
        now() - begun
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.guest.sh(
                "kill $(cat /run/agent.pid); while kill -0 $(cat /run/agent.pid) 2>/dev/null; do usleep 20000; done",
            );
        }
    }
}
