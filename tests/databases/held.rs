//! Real PostgreSQL and MariaDB servers whose data directories freeze under them.

use std::{path::Path, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::{
    Daemon, Fs, Lab, Type, Writer,
    daemon::step,
    database::{Durability, Engine, Server},
    now, until,
};

facts! {
    postgresql_is_held_as_an_application_and_its_writers_go_on within 90,
    mariadb_is_held_as_an_application_and_its_writers_go_on within 90,
    what_a_careless_postgresql_acknowledged_before_the_hold_is_in_the_copy within 120,
    what_a_careless_mariadb_acknowledged_before_the_hold_is_in_the_copy within 120,
    mariadb_stands_still_from_its_start_to_its_end_coordinates within 90,
    a_database_on_its_default_socket_is_found within 90,
    two_databases_and_three_file_systems_are_one_hold within 120,
    a_killed_daemon_leaves_no_lock_in_mariadb within 90,
    a_stopped_daemon_leaves_no_lock_in_mariadb within 90,
    a_killed_daemon_leaves_no_session_in_postgresql within 90,
    a_postgresql_server_killed_while_held_is_no_unbroken_application within 90,
    a_mariadb_server_killed_while_held_is_no_unbroken_application within 90,
    a_session_ended_by_the_server_is_noticed within 90,
    data_on_a_file_system_that_is_not_held_is_uncovered within 90,
    peer_authentication_needs_no_password within 90,
    a_failed_hold_leaves_the_databases_running within 90,
}

/// A database on an ext4 of its own, with a ledger being written and a daemon that knows the server as "orders".
struct Held<'lab> {
    daemon: Daemon<'lab>,
    ledger: Writer,
    server: Server<'lab>,
    disk: Fs<'lab>,
}

fn database(lab: &Lab, engine: Engine, durability: Durability) -> Held<'_> {
    let disk = lab.fs_at(Type::Ext4, "/mnt/db".as_ref(), 512);
    let server = lab.server(engine, &disk, durability);
    let daemon = lab.daemon(&[&disk]).database(server.entry("orders")).set("hold.max", "60s").start();
    let ledger = server.ledger();
    Held { daemon, ledger, server, disk }
}

/// The ledger's rows in a copy of the disk, recovered by a second server.
fn rows_in(lab: &Lab, engine: Engine, copy: &Path) -> u64 {
    let copied = lab.mount_copy(Type::Ext4, copy);
    let recovered = lab.serve(engine, &copied.mount.join("data"), Durability::Full);
    let rows = recovered.ledger_rows();
    drop(recovered);
    rows
}

fn coordinates(database: &Value, which: &str) -> Vec<(String, String)> {
    let list = database[which].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    list.iter().map(|c| (text(&c["key"]), text(&c["value"]))).collect()
}

fn held_as_an_application(lab: &Lab, engine: Engine, claims: &[&str]) {
    let it = database(lab, engine, Durability::Full);
    let report = it.daemon.freeze(&["--id", "nightly", "--for", "20s", "--require", "application"]);
    assert_eq!(report["consistency"], "application", "{report:#}");
    let orders = step(&report, "db:orders");
    assert_eq!((&orders["outcome"], &orders["kind"]), (&"done".into(), &"database".into()));
    assert_eq!(orders["database"]["engine"], engine.name());
    assert!(orders["database"]["version"].as_str().is_some_and(|v| !v.is_empty()), "{orders:#}");
    let claim = orders["database"]["claim"].as_str().unwrap_or_default();
    assert!(claims.contains(&claim), "{claim} is not one of {claims:?}");
    assert!(!coordinates(&orders["database"], "start").is_empty(), "where do logs continue? {orders:#}");
    it.ledger.assert_blocked();
    let thawed = now();
    let report = it.daemon.thaw();
    assert_eq!((&report["verdict"], &report["consistency"]), (&"unbroken".into(), &"application".into()), "{report:#}");
    assert!(!coordinates(&step(&report, "db:orders")["database"], "end").is_empty(), "{report:#}");
    it.ledger.resumed_after(thawed, Duration::from_secs(3));
    it.ledger.assert_writable_within(Duration::from_secs(3));
    assert_eq!(it.server.ledger_rows() > 0, it.ledger.progress().count > 0);
}

fn postgresql_is_held_as_an_application_and_its_writers_go_on(lab: &Lab) {
    held_as_an_application(lab, Engine::Postgresql, &["bounded"]);
}

fn mariadb_is_held_as_an_application_and_its_writers_go_on(lab: &Lab) {
    held_as_an_application(lab, Engine::Mariadb, &["exact", "bounded"]);
}

/// The case a bare freeze loses: commits acknowledged from memory only.
fn careless(lab: &Lab, engine: Engine) {
    let it = database(lab, engine, Durability::Relaxed);
    assert!(until(Duration::from_secs(20), || it.ledger.progress().count > 300));
    let before = it.ledger.progress().count;
    it.daemon.freeze(&["--for", "30s", "--require", "application"]);
    let copy = it.disk.copy();
    let report = it.daemon.thaw();
    assert_eq!((&report["verdict"], &report["consistency"]), (&"unbroken".into(), &"application".into()), "{report:#}");
    it.ledger.assert_writable_within(Duration::from_secs(5));
    let rows = rows_in(lab, engine, &copy);
    assert!(rows >= before, "{before} were acknowledged before the hold was asked for, {rows} are in the copy");
}

fn what_a_careless_postgresql_acknowledged_before_the_hold_is_in_the_copy(lab: &Lab) {
    careless(lab, Engine::Postgresql);
}

fn what_a_careless_mariadb_acknowledged_before_the_hold_is_in_the_copy(lab: &Lab) {
    careless(lab, Engine::Mariadb);
}

fn mariadb_stands_still_from_its_start_to_its_end_coordinates(lab: &Lab) {
    let it = database(lab, Engine::Mariadb, Durability::Full);
    it.daemon.freeze(&["--for", "20s"]);
    let acknowledged = it.ledger.progress().count;
    let copy = it.disk.copy();
    let report = it.daemon.thaw();
    let orders = &step(&report, "db:orders")["database"];
    let gtid = |which: &str| coordinates(orders, which).into_iter().find(|(key, _)| key == "gtid_binlog_pos");
    assert!(gtid("start").is_some(), "the binary log is on and has a position: {orders:#}");
    if orders["claim"] == "exact" {
        assert_eq!(gtid("start"), gtid("end"), "exact, and yet it moved: {orders:#}");
        assert_eq!(rows_in(lab, Engine::Mariadb, &copy), acknowledged, "exact, and yet the copy differs");
    }
}

fn a_database_on_its_default_socket_is_found(lab: &Lab) {
    let disk = lab.fs_at(Type::Ext4, "/mnt/db".as_ref(), 512);
    let server = lab.server(Engine::Postgresql, &disk, Durability::Full);
    std::fs::create_dir_all("/run/postgresql").expect("memory");
    // where Debian's packages put it
    let link = std::os::unix::fs::symlink(server.socket(), "/run/postgresql/.s.PGSQL.5432");
    link.expect("nothing else is in this world");
    let daemon = lab.daemon(&[&disk]).set("databases.discover", true).start();
    let report = daemon.freeze(&["--for", "20s"]);
    let found = report["steps"].as_array().expect("steps").iter().find(|s| s["kind"] == "database");
    let found = found.unwrap_or_else(|| panic!("no database was found: {report:#}"));
    assert_eq!(found["database"]["engine"], "postgresql");
    daemon.thaw();
}

fn two_databases_and_three_file_systems_are_one_hold(lab: &Lab) {
    let disks = [
        lab.fs_at(Type::Ext4, "/mnt/pg".as_ref(), 512),
        lab.fs_at(Type::Xfs, "/mnt/maria".as_ref(), 640),
        lab.fs(Type::Btrfs),
    ];
    let postgresql = lab.server(Engine::Postgresql, &disks[0], Durability::Full);
    let mariadb = lab.server(Engine::Mariadb, &disks[1], Durability::Full);
    let daemon = lab
        .daemon(&disks.iter().collect::<Vec<_>>())
        .database(postgresql.entry("pg"))
        .database(mariadb.entry("maria"))
        .start();
    let writers = [postgresql.ledger(), mariadb.ledger(), lab.writer(&disks[2])];
    for round in 0..3 {
        let id = format!("round-{round}");
        let report = daemon.freeze(&["--id", &id, "--for", "20s", "--require", "application"]);
        assert_eq!(report["consistency"], "application", "{report:#}");
        for writer in &writers {
            writer.assert_blocked();
        }
        assert_eq!(daemon.thaw()["verdict"], "unbroken");
        for writer in &writers {
            writer.assert_writable_within(Duration::from_secs(3));
        }
    }
    drop(writers);
}

fn lost_while_held(lab: &Lab, engine: Engine, lose: Signal, limit: Duration) {
    let it = database(lab, engine, Durability::Full);
    it.daemon.freeze(&["--for", "40s"]);
    it.ledger.assert_blocked();
    let lost = now();
    if lose == Signal::SIGKILL {
        it.daemon.kill();
    } else {
        it.daemon.stop();
    }
    it.ledger.resumed_after(lost, limit);
    it.ledger.assert_writable_within(Duration::from_secs(2));
    // what a lock left behind would stop: a commit, a schema change, another backup
    let changed = it.server.try_query("CREATE TABLE lab.afterwards (n BIGINT PRIMARY KEY)");
    assert!(changed.is_ok(), "{changed:?}");
    let Held { disk, server, ledger, daemon } = it;
    let daemon = if lose == Signal::SIGKILL { daemon.again() } else { daemon.go_on() };
    if lose != Signal::SIGKILL {
        assert_eq!(daemon.thaw()["verdict"], "broken");
    }
    let report = daemon.freeze(&["--id", "afterwards", "--for", "20s", "--require", "application"]);
    assert_eq!(report["consistency"], "application", "{report:#}");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    ledger.assert_writable_within(Duration::from_secs(3));
    drop(daemon);
    drop(ledger);
    drop(server);
    drop(disk);
}

fn a_killed_daemon_leaves_no_lock_in_mariadb(lab: &Lab) {
    lost_while_held(lab, Engine::Mariadb, Signal::SIGKILL, Duration::from_secs(2));
}

fn a_stopped_daemon_leaves_no_lock_in_mariadb(lab: &Lab) {
    // the file system is let go after about 2 s; the session's socket is shut down then too
    lost_while_held(lab, Engine::Mariadb, Signal::SIGSTOP, Duration::from_secs(10));
}

fn a_killed_daemon_leaves_no_session_in_postgresql(lab: &Lab) {
    lost_while_held(lab, Engine::Postgresql, Signal::SIGKILL, Duration::from_secs(2));
}

fn server_killed_while_held(lab: &Lab, engine: Engine) {
    let it = database(lab, engine, Durability::Full);
    it.daemon.freeze(&["--for", "20s", "--require", "application"]);
    it.server.kill();
    let answer = it.daemon.cli(&["thaw"]);
    assert!(matches!(answer.code, Some(0 | 3)), "{answer:?}");
    let report = answer.report();
    let proven = report["verdict"] == "unbroken" && report["consistency"] == "application";
    assert!(!proven, "the database was dead when its proof was due: {report:#}");
    assert!(report.to_string().contains("orders"), "which one? {report:#}");
    assert!(it.disk.writable_within(Duration::from_secs(3)));
}

fn a_postgresql_server_killed_while_held_is_no_unbroken_application(lab: &Lab) {
    server_killed_while_held(lab, Engine::Postgresql);
}

fn a_mariadb_server_killed_while_held_is_no_unbroken_application(lab: &Lab) {
    server_killed_while_held(lab, Engine::Mariadb);
}

fn a_session_ended_by_the_server_is_noticed(lab: &Lab) {
    let it = database(lab, Engine::Mariadb, Durability::Full);
    let sessions = "SELECT id FROM information_schema.processlist WHERE user = 'root' AND command <> 'Daemon'";
    let before = it.server.query(sessions);
    it.daemon.freeze(&["--for", "20s", "--require", "application"]);
    let new: Vec<String> = it.server.query(sessions).into_iter().filter(|id| !before.contains(id)).collect();
    // the last new one is the session that asked
    for id in &new {
        let _ = it.server.try_query(&format!("KILL {id}"));
    }
    let report = it.daemon.thaw();
    let proven = report["verdict"] == "unbroken" && report["consistency"] == "application";
    assert!(!proven, "the session that held the lock was killed: {report:#}");
    it.ledger.assert_writable_within(Duration::from_secs(3));
}

fn data_on_a_file_system_that_is_not_held_is_uncovered(lab: &Lab) {
    let (disk, other) = (lab.fs_at(Type::Ext4, "/mnt/db".as_ref(), 512), lab.fs(Type::Ext4));
    let server = lab.server(Engine::Postgresql, &disk, Durability::Full);
    let daemon = lab.daemon(&[&other]).database(server.entry("orders")).start();
    let refused = daemon.cli(&["freeze", "--require", "application"]);
    assert!(matches!(refused.code, Some(1 | 4)), "its data is not in the snapshot: {refused:?}");
    let answer = daemon.cli(&["freeze", "--require", "filesystem", "--for", "10s"]);
    if answer.code == Some(0) {
        let report = answer.report();
        assert_ne!(report["consistency"], "application", "{report:#}");
        assert_eq!(step(&report, "db:orders")["database"]["claim"], "uncovered", "{report:#}");
        daemon.thaw();
    }
    assert_eq!(daemon.phase(), "idle");
}

fn peer_authentication_needs_no_password(lab: &Lab) {
    let disk = lab.fs_at(Type::Ext4, "/mnt/db".as_ref(), 512);
    let server = lab.server(Engine::Postgresql, &disk, Durability::Full);
    std::fs::write(server.data.join("pg_hba.conf"), "local all postgres peer\n").expect("it is ours");
    server.query("SELECT pg_reload_conf()");
    let closed = until(Duration::from_secs(5), || server.try_query("SELECT 1").is_err());
    assert!(closed, "root still gets in as postgres");
    let daemon = lab.daemon(&[&disk]).database(server.entry("orders")).start();
    let report = daemon.freeze(&["--for", "20s", "--require", "application"]);
    assert_eq!(report["consistency"], "application", "{report:#}");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
}

fn a_failed_hold_leaves_the_databases_running(lab: &Lab) {
    let it = database(lab, Engine::Mariadb, Durability::Full);
    it.daemon.setup().hook("90-late", "[ $1 = thaw ]");
    for _ in 0..3 {
        it.daemon.cli(&["freeze", "--for", "10s"]).exits(1);
        it.ledger.assert_writable_within(Duration::from_secs(3));
    }
    let changed = it.server.try_query("CREATE TABLE lab.afterwards (n BIGINT PRIMARY KEY)");
    assert!(changed.is_ok(), "{changed:?}");
}
