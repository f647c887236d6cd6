//! qemu-ga freezes, and we hold the database around that: its real package, our adapter, real servers.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};

use crate::lab::{
    Daemon, Fs, Lab, Type, Writer,
    daemon::step,
    database::{Durability, Engine, Server},
    now,
    qemu_ga::QemuGa,
    until,
};

facts! {
    mariadb_is_held_around_the_freeze_of_qemu_ga_and_what_it_acknowledged_is_in_the_copy within 90,
    postgresql_is_held_around_the_freeze_of_qemu_ga_and_what_it_acknowledged_is_in_the_copy within 90,
    qemu_ga_killed_while_frozen_leaves_no_lock_after_our_deadline within 90,
    a_daemon_killed_while_qemu_ga_has_frozen_leaves_no_lock_and_is_said_at_the_thaw within 90,
}

/// Sessions a server has besides the one that asks and the ledger's.
const SESSIONS: &str = "SELECT COUNT(*) FROM information_schema.processlist WHERE command <> 'Daemon'";

struct Driven<'lab> {
    daemon: Daemon<'lab>,
    qemu_ga: QemuGa,
    ledger: Writer,
    server: Server<'lab>,
    disk: Fs<'lab>,
}

fn driven<'lab>(lab: &'lab Lab, engine: Engine, max: &str) -> Driven<'lab> {
    let disk = lab.fs_at(Type::Ext4, "/mnt/db".as_ref(), 512);
    let server = lab.server(engine, &disk, Durability::Relaxed);
    let daemon = lab.daemon(&[&disk]).database(server.entry("orders")).set("hold.max", max).start();
    let adapter = lab.adapter(&daemon, "qemu-ga");
    let qemu_ga = QemuGa::start(lab, Some(&adapter.path("/etc/qemu/holdstill-fsfreeze-hook")));
    let ledger = server.ledger();
    assert!(until(Duration::from_secs(20), || ledger.progress().count > 50));
    Driven { daemon, qemu_ga, ledger, server, disk }
}

impl Driven<'_> {
    fn last(&self) -> Value {
        self.daemon.cli(&["history"]).json["reports"][0].clone()
    }
}

fn held_around_its_freeze(lab: &Lab, engine: Engine, claims: &[&str]) {
    let mut it = driven(lab, engine, "20s");
    let before = it.ledger.progress().count;
    assert_eq!(it.qemu_ga.ask("guest-fsfreeze-freeze"), json!({"return": 1}));
    let report = it.daemon.cli(&["status"]).json["current"].clone();
    assert_eq!((&report["phase"], &report["freeze_by"]), (&"held".into(), &"caller".into()), "{report:#}");
    assert_eq!(report["consistency"], "crash", "more is claimed than we can prove: {report:#}");
    let orders = step(&report, "db:orders");
    let claim = orders["database"]["claim"].as_str().unwrap_or_default();
    assert!(orders["outcome"] == "done" && claims.contains(&claim), "{orders:#}");
    let paths = orders["database"]["paths"].as_array().expect("a list");
    assert!(!paths.is_empty() && paths.iter().all(|path| path["held"] == false), "held by whom? {orders:#}");
    assert_eq!(it.qemu_ga.ask("guest-fsfreeze-status"), json!({"return": "frozen"}));
    it.ledger.assert_blocked();
    let copy = it.disk.copy();
    let thawed = now();
    assert_eq!(it.qemu_ga.ask("guest-fsfreeze-thaw"), json!({"return": 1}));
    it.ledger.resumed_after(thawed, Duration::from_secs(3));
    let report = it.last();
    assert_eq!((&report["verdict"], &report["reason"]), (&"unbroken".into(), &"asked".into()), "{report:#}");
    let claim = step(&report, "db:orders")["database"]["claim"].clone();
    assert!(claims.iter().any(|wanted| claim == *wanted), "proven after the thaw: {report:#}");

    let copied = lab.mount_copy(Type::Ext4, &copy);
    assert!(!copied.mount.join(".holdstill").exists(), "a receipt of a freeze that was not ours");
    let rows = rows_in(lab, engine, &copied.mount);
    assert!(rows >= before, "{before} were acknowledged before the freeze was asked for, {rows} are in the copy");
}

fn rows_in(lab: &Lab, engine: Engine, copy: &Path) -> u64 {
    let recovered = lab.serve(engine, &copy.join("data"), Durability::Full);
    recovered.ledger_rows()
}

fn mariadb_is_held_around_the_freeze_of_qemu_ga_and_what_it_acknowledged_is_in_the_copy(lab: &Lab) {
    held_around_its_freeze(lab, Engine::Mariadb, &["exact", "bounded"]);
}

fn postgresql_is_held_around_the_freeze_of_qemu_ga_and_what_it_acknowledged_is_in_the_copy(lab: &Lab) {
    held_around_its_freeze(lab, Engine::Postgresql, &["bounded"]);
}

fn qemu_ga_killed_while_frozen_leaves_no_lock_after_our_deadline(lab: &Lab) {
    let mut it = driven(lab, Engine::Mariadb, "2s");
    let idle = it.server.number(SESSIONS);
    assert_eq!(it.qemu_ga.ask("guest-fsfreeze-freeze"), json!({"return": 1}));
    assert_eq!(it.server.number(SESSIONS), idle + 1, "ours holds");
    it.qemu_ga.kill();
    it.daemon.wait_for_phase("idle", Duration::from_secs(10));
    // the disk is frozen still, and nobody is left who would thaw it; but the lock has gone
    assert!(until(Duration::from_secs(5), || it.server.number(SESSIONS) == idle), "our session is still there");
    let report = it.last();
    assert_eq!((&report["verdict"], &report["reason"]), (&"broken".into(), &"deadline".into()), "{report:#}");
    it.ledger.assert_blocked();
    let thawed = now();
    assert!(it.disk.thaw_by_others(), "we thawed what qemu-ga had frozen");
    it.ledger.resumed_after(thawed, Duration::from_secs(3));
}

fn a_daemon_killed_while_qemu_ga_has_frozen_leaves_no_lock_and_is_said_at_the_thaw(lab: &Lab) {
    let mut it = driven(lab, Engine::Mariadb, "20s");
    let idle = it.server.number(SESSIONS);
    assert_eq!(it.qemu_ga.ask("guest-fsfreeze-freeze"), json!({"return": 1}));
    it.daemon.kill();
    assert!(until(Duration::from_secs(3), || it.server.number(SESSIONS) == idle), "our session is still there");
    it.ledger.assert_blocked();
    let thawed = now();
    let said = it.qemu_ga.ask("guest-fsfreeze-thaw");
    assert!(said["error"]["desc"].as_str().is_some_and(|desc| desc.contains("status 1")), "{said}");
    it.ledger.resumed_after(thawed, Duration::from_secs(3));
}
