//! Holds asked for by the host, over vsock: a cut between freeze and thaw, a cut inside `run`, and what becomes of a hold
//! when the caller, the wire, or the machine goes away.

use std::{fs, time::Duration};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    lab::{
        Lab,
        daemon::{Answer, Running},
        now,
        process::signal,
        until,
    },
    machine::{
        Agent, Boot, Holdstill, Machine, Place,
        agent::Setup,
        inside::quoted,
        oracle,
        vsock::{Device, PORT},
    },
};

facts! {
    a_host_holds_cuts_and_thaws_over_vsock within 120,
    run_on_the_host_cuts_inside_the_hold within 120,
    a_client_killed_lets_go_at_once within 150,
    a_client_stopped_lets_go_within_seconds within 180,
    a_freeze_already_answered_outlives_its_client within 90,
    a_host_that_vanished_without_closing_is_noticed within 90,
    a_paused_machine_keeps_its_hold within 90,
    a_dead_machine_ends_the_command within 90,
    only_the_host_may_ask within 90,
    a_port_that_is_taken_is_an_error_and_no_device_is_a_note within 90,
}

/// Below the five seconds of silence after which a caller counts as gone: whoever lets go within this was told.
const AT_ONCE: Duration = Duration::from_secs(4);
/// Those five seconds, and what an emulated guest takes to let go.
const AFTER_SILENCE: Duration = Duration::from_secs(10);

/// A guest whose daemon listens on vsock, with a writer on both disks.
struct Guest<'lab> {
    lab: &'lab Lab,
    // before the device: it is the first to go
    machine: Machine,
    device: Device,
}

fn setup() -> Setup {
    Setup {
        settings: vec![
            ("listen.vsock", "7411"),
            ("listen.guest_agent", "\"off\""),
            // longer than the silence of a caller that is stopped while a hook dawdles
            ("hooks.timeout", "\"25s\""),
            ("hold.quiesce", "\"25s\""),
        ],
        ..Setup::default()
    }
}

impl<'lab> Guest<'lab> {
    fn boot(lab: &'lab Lab) -> Guest<'lab> {
        let place = Place::new(lab, "guest");
        let device = Device::start(lab, &place);
        let mut boot = device.plugged_into(Boot::small());
        boot.qemu.extend(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", place.file("cut.sock").display())]);
        let machine = Machine::boot(&place, &boot);
        (&Holdstill as &dyn Agent).begin(&machine, &setup());
        let one = "i=$((i+1)); echo $i >/srv/written; echo $i >/mnt/data/written; sync; printf . >>/run/written";
        machine.sh(": >/run/written");
        machine.start("writer", &format!("i=0; while :; do {one}; usleep 50000; done"));
        let guest = Guest { lab, machine, device };
        let up = until(Duration::from_secs(30), || guest.ask(&["status"]).code == Some(0));
        assert!(up, "{:?}\n{}", guest.ask(&["status"]), guest.machine.output("agent"));
        guest.writer_goes_on();
        guest
    }

    fn start(&self, arguments: &[&str]) -> Running {
        Running::start(self.lab, self.device.client().arg("--json").args(arguments))
    }

    fn ask(&self, arguments: &[&str]) -> Answer {
        self.start(arguments).finish()
    }

    /// How long it took until the guest said so.
    fn is(&self, phase: &str, limit: Duration) -> Duration {
        let begun = now();
        let mut last = Value::Null;
        let reached = until(limit, || {
            last = self.ask(&["status"]).json["phase"].take();
            last == phase
        });
        assert!(reached, "the guest is {last}, not {phase}, after {limit:?}:\n{}", self.machine.output("agent"));
        now() - begun
    }

    fn report(&self, id: &str) -> Value {
        self.ask(&["history", id]).report()
    }

    fn ended(&self, id: &str, verdict: &str, reason: &str) {
        let report = self.report(id);
        assert_eq!((&report["verdict"], &report["reason"]), (&json!(verdict), &json!(reason)), "{report:#}");
    }

    fn writer_goes_on(&self) {
        let count = || self.machine.sh("wc -c </run/written").trim().parse::<u64>().expect("a number");
        let before = count();
        assert!(until(Duration::from_secs(10), || count() > before + 1), "the writer does not go on");
    }

    /// A hook that takes its time in one phase: the one named in a file.
    fn has_a_slow_hook(&self) {
        let wait = "n=0; while [ \"$(cat /run/slow)\" = \"$1\" ] && [ $n -lt 200 ]; do usleep 100000; n=$((n+1)); done";
        self.machine.write("/etc/holdstill/hooks.d/10-slow", &format!("#!/bin/sh\n{wait}\n"));
        self.machine.write("/etc/holdstill/hooks.d/10-slow.toml", "prepare = true\n");
        self.machine.sh("chmod 755 /etc/holdstill/hooks.d/10-slow; : >/run/slow");
    }

    /// A hold of its own for each client, caught in a phase.
    fn caught(&self, caught: Caught) -> (Running, String) {
        let id = format!("{}-{}", caught.verb, caught.phase);
        let slow = match caught.phase {
            "preparing" => "prepare",
            "quiescing" => "freeze",
            _ => "",
        };
        self.machine.write("/run/slow", slow);
        let command: &[&str] = if caught.verb == "run" { &["--", "sleep", "40"] } else { &[] };
        let client = self.start(&[&[caught.verb, "--id", &id], command].concat());
        self.is(caught.phase, Duration::from_secs(15));
        (client, id)
    }
}

/// Where a client is when something happens to it.
#[derive(Clone, Copy)]
struct Caught {
    verb: &'static str,
    phase: &'static str,
}

impl Caught {
    /// Every place where the guest still has a caller.
    const EVERYWHERE: [Caught; 5] = [
        Caught { verb: "run", phase: "preparing" },
        Caught { verb: "run", phase: "quiescing" },
        Caught { verb: "run", phase: "held" },
        Caught { verb: "freeze", phase: "preparing" },
        Caught { verb: "freeze", phase: "quiescing" },
    ];

    fn verdict(self) -> &'static str {
        if self.phase == "held" { "broken" } else { "never_held" }
    }
}

fn a_host_holds_cuts_and_thaws_over_vsock(lab: &Lab) {
    let guest = Guest::boot(lab);
    let held = guest.ask(&["freeze", "--id", "one"]);
    held.exits(0);
    let copies = guest.machine.cut("held");
    let thawed = guest.ask(&["thaw", "one"]);
    thawed.exits(0);
    let report = thawed.report();
    assert_eq!((&report["verdict"], &report["caller"]), (&json!("unbroken"), &json!("vsock cid 2")), "{report:#}");
    guest.writer_goes_on();

    let live = guest.machine.cut("live");
    let recovery = |cut: [std::path::PathBuf; 2]| cut.map(|disk| oracle::needs_recovery(&guest.machine.place, &disk));
    assert_eq!(recovery(copies), [false, false], "a held ext4 is clean");
    assert_eq!(recovery(live), [true, true], "a live ext4 is not");
}

fn run_on_the_host_cuts_inside_the_hold(lab: &Lab) {
    let guest = Guest::boot(lab);
    let place = &guest.machine.place;
    let line = |command: &str, arguments: &Value| json!({"execute": command, "arguments": arguments}).to_string();
    let (negotiate, cut) = (line("qmp_capabilities", &json!({})), line("transaction", &guest.machine.to_cut("run")));
    let script = format!(
        "cd {}; mkfifo cut; socat - UNIX-CONNECT:cut.sock <cut >said &\n\
         exec 3>cut; printf '%s\\n' {} {} >&3\n\
         until [ $(grep -c '\"return\"' said) = 2 ]; do sleep 0.02; done; cat said; exit 7\n",
        place.memory.display(),
        quoted(&negotiate),
        quoted(&cut)
    );
    fs::write(place.file("cut.sh"), script).expect("memory");
    let script = place.file("cut.sh");
    let script = script.to_str().expect("the lab's names are ASCII");

    let ran = guest.ask(&["run", "--id", "two", "--", "sh", script]);
    ran.exits(7);
    guest.ended("two", "unbroken", "asked");
    guest.writer_goes_on();
    for disk in ["root", "data"] {
        let cut = place.disk.join(format!("{disk}.qcow2"));
        assert!(!oracle::needs_recovery(place, &cut), "{disk} was cut inside the hold");
    }
}

fn a_client_killed_lets_go_at_once(lab: &Lab) {
    let guest = Guest::boot(lab);
    guest.has_a_slow_hook();
    for caught in Caught::EVERYWHERE {
        let (client, id) = guest.caught(caught);
        client.kill();
        let took = guest.is("idle", AT_ONCE);
        eprintln!("{id} killed: idle after {took:.1?}");
        guest.ended(&id, caught.verdict(), "caller_gone");
        guest.writer_goes_on();
    }
}

fn a_client_stopped_lets_go_within_seconds(lab: &Lab) {
    let guest = Guest::boot(lab);
    guest.has_a_slow_hook();
    for caught in Caught::EVERYWHERE {
        let (client, id) = guest.caught(caught);
        signal(client.pid(), Signal::SIGSTOP);
        let took = guest.is("idle", AFTER_SILENCE);
        eprintln!("{id} stopped: idle after {took:.1?}");
        guest.ended(&id, caught.verdict(), "caller_gone");
        guest.writer_goes_on();

        signal(client.pid(), Signal::SIGCONT);
        client.finish_within(Duration::from_secs(15)).exits(match (caught.verb, caught.phase) {
            ("run", "held") => 124,
            ("run", _) => 125,
            _ => 5,
        });
    }
}

fn a_freeze_already_answered_outlives_its_client(lab: &Lab) {
    let guest = Guest::boot(lab);
    guest.ask(&["freeze", "--id", "stays", "--for", "3s"]).exits(0);
    assert!(guest.machine.is_frozen(), "its client has ended, as it should");
    guest.is("idle", Duration::from_secs(10));
    guest.ended("stays", "broken", "deadline");
    guest.writer_goes_on();
}

fn a_host_that_vanished_without_closing_is_noticed(lab: &Lab) {
    let guest = Guest::boot(lab);
    let client = guest.start(&["run", "--id", "vanished", "--", "sleep", "40"]);
    guest.is("held", Duration::from_secs(15));
    guest.device.is_stopped_for(Duration::from_secs(9));
    client.finish_within(Duration::from_secs(15)).exits(124);
    guest.is("idle", AT_ONCE);
    guest.ended("vanished", "broken", "caller_gone");
    guest.writer_goes_on();
}

fn a_paused_machine_keeps_its_hold(lab: &Lab) {
    let guest = Guest::boot(lab);
    let mut client = guest.start(&["run", "--id", "paused", "--", "sleep", "14"]);
    guest.is("held", Duration::from_secs(10));
    // the device loses the wire if anything is sent to a paused machine: nothing is asked
    guest.machine.qmp("stop", Value::Null);
    std::thread::sleep(Duration::from_secs(8));
    guest.machine.qmp("cont", Value::Null);
    assert!(!client.has_ended(), "nobody gave up");
    client.finish_within(Duration::from_secs(30)).exits(0);
    guest.ended("paused", "unbroken", "asked");
    guest.writer_goes_on();
}

fn a_dead_machine_ends_the_command(lab: &Lab) {
    let guest = Guest::boot(lab);
    let marker = guest.machine.place.file("still-running");
    let command = format!("trap 'rm {0}; exit' TERM; : >{0}; while :; do sleep 0.1; done", marker.display());
    let client = guest.start(&["run", "--", "sh", "-c", &command]);
    guest.is("held", Duration::from_secs(10));
    assert!(until(Duration::from_secs(5), || marker.exists()), "the command runs inside the hold");
    guest.machine.kill();
    client.finish_within(Duration::from_secs(3)).exits(124);
    assert!(!marker.exists(), "the command was asked to end");
}

fn only_the_host_may_ask(lab: &Lab) {
    let guest = Guest::boot(lab);
    if guest.machine.run("insmod /lib/vsock_loopback.ko").0 != 0 {
        lab.skip("the guest's kernel has no vsock_loopback");
    }
    for _ in 0..3 {
        let (_, said) = guest.machine.run(&format!("socat -u VSOCK-CONNECT:1:{PORT} -"));
        assert_eq!(said.trim(), "", "not a byte for a program in the guest");
    }
    let log = guest.machine.output("agent");
    assert_eq!(log.matches("turned away").count(), 1, "it is said, and said once: {log}");
    guest.ask(&["rehearse"]).exits(0);
}

fn a_port_that_is_taken_is_an_error_and_no_device_is_a_note(lab: &Lab) {
    let place = Place::new(lab, "guest");
    let machine = Machine::boot(&place, &Boot::small());
    (&Holdstill as &dyn Agent).begin(&machine, &setup());
    let up = machine.becomes("holdstill status", Duration::from_secs(30));
    let log = machine.output("agent");
    assert!(up && log.contains("the host cannot reach it until this machine has a vsock device"), "{log}");

    let other = "[listen]\nguest_agent = \"off\"\nunix = \"/run/other/socket\"\nvsock = 7411\n\
                 [paths]\nrun = \"/run/other\"\nstate = \"/run/other/state\"\n";
    machine.write("/run/other.toml", other);
    let (status, said) = machine.run("holdstill serve --config /run/other.toml");
    assert!(status != 0 && said.contains("vsock port 7411"), "{status}: {said}");
    assert_eq!(machine.run("holdstill status").0, 0, "the first goes on");
}
