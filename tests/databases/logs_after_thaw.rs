//! Data held and copied, log copied after the thaw: what a caller does whose volumes cannot be copied at one instant.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::Path,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::{
    Daemon, Fs, Lab, Type, Writer, command,
    daemon::step,
    database::{Durability, Engine, Server},
    now,
    process::tool,
};

facts! {
    a_log_copied_after_the_thaw_makes_a_whole_with_its_label within 120,
    the_log_volume_need_not_be_held within 90,
    a_log_beside_its_data_cannot_be_copied_after_the_thaw within 90,
    a_daemon_killed_in_backup_mode_leaves_no_backup_running within 90,
    a_server_lost_in_backup_mode_is_never_an_application within 90,
}

const MODE: [&str; 2] = ["--capture", "logs-after-thaw"];

/// A PostgreSQL with its log on a file system of its own, and somebody who writes.
struct Split<'lab> {
    daemon: Daemon<'lab>,
    ledger: Writer,
    server: Server<'lab>,
    data: Fs<'lab>,
    log: Fs<'lab>,
}

fn split(lab: &Lab, log_is_held: bool) -> Split<'_> {
    let data = lab.fs_at(Type::Ext4, "/mnt/db".as_ref(), 512);
    let log = lab.fs_at(Type::Ext4, "/mnt/log".as_ref(), 512);
    drop(lab.server(Engine::Postgresql, &data, Durability::Full)); // initialised, and stopped again
    let (inside, outside) = (data.mount.join("data/pg_wal"), log.mount.join("pg_wal"));
    tool(command("cp").arg("-a").arg(&inside).arg(&outside));
    fs::remove_dir_all(&inside).expect("it was copied");
    symlink(&outside, &inside).expect("as initdb --waldir does");
    let server = lab.serve(Engine::Postgresql, &data.mount.join("data"), Durability::Full);
    let held = if log_is_held { vec![&data, &log] } else { vec![&data] };
    let daemon = lab.daemon(&held).database(server.entry("orders")).set("hold.max", "60s").start();
    let ledger = server.ledger();
    Split { daemon, ledger, server, data, log }
}

/// The two volumes, joined as a restore would, with what the report says goes into the data directory; how many rows
/// there are.
fn restored(lab: &Lab, data: &Path, log: &Path, database: &Value) -> u64 {
    let (data, log) = (lab.mount_copy(Type::Ext4, data), lab.mount_copy(Type::Ext4, log));
    let directory = data.mount.join("data");
    let owner = fs::metadata(&directory).map(|about| std::os::unix::fs::MetadataExt::uid(&about)).expect("it is there");
    fs::remove_file(directory.join("pg_wal")).expect("a link to the original's");
    symlink(log.mount.join("pg_wal"), directory.join("pg_wal")).expect("to the copy's");
    let label = directory.join("backup_label");
    assert!(!label.exists(), "nobody wrote one into the original");
    fs::write(&label, database["backup_label"].as_str().expect("text")).expect("it fits");
    chown(&label, Some(owner), None).expect("root may");
    fs::set_permissions(&label, fs::Permissions::from_mode(0o600)).expect("ours");
    let server = lab.serve(Engine::Postgresql, &directory, Durability::Full);
    let told = server.log();
    assert!(told.contains("consistent recovery state reached"), "{told}");
    server.ledger_rows()
}

fn a_log_copied_after_the_thaw_makes_a_whole_with_its_label(lab: &Lab) {
    let it = split(lab, true);
    let args = [&MODE[..], &["--id", "nightly", "--for", "30s", "--require", "application"]].concat();
    let report = it.daemon.freeze(&args);
    assert_eq!(report["consistency"], "application", "{report:#}");
    let orders = step(&report, "db:orders");
    assert_eq!(
        (&orders["database"]["strategy"], &orders["database"]["claim"]),
        (&"backup-mode".into(), &"bounded".into())
    );
    assert_eq!(orders["database"]["backup_label"], "", "there is none before the backup ends");
    let paths = orders["database"]["paths"].as_array().expect("a list").len();
    assert_eq!(paths, 2, "where its files are is not forgotten: {orders:#}");
    let acknowledged = it.ledger.progress().count;
    let data = it.data.copy();
    let thawed = now();
    let report = it.daemon.thaw();
    assert_eq!((&report["verdict"], &report["consistency"]), (&"unbroken".into(), &"application".into()), "{report:#}");
    it.ledger.resumed_after(thawed, Duration::from_secs(3));
    let orders = &step(&report, "db:orders")["database"];
    let label = orders["backup_label"].as_str().expect("text");
    assert!(label.contains("LABEL: holdstill nightly\n"), "{orders:#}");
    it.log.freeze_by_others();
    let log = it.log.copy();
    it.log.thaw_by_others();
    let attempted = it.ledger.progress().count + 1;

    // what the log volume's copy says by itself, when the machine that asked is gone
    let copied = lab.mount_copy(Type::Ext4, &log);
    let receipt = lab.holdstill(&["--json", "receipt", copied.at()]);
    receipt.exits(0);
    assert_eq!(receipt.json["state"], "released");
    let steps = receipt.json["receipt"]["report"].clone();
    assert_eq!(step(&steps, "db:orders")["database"]["backup_label"], label);
    drop(copied);

    let rows = restored(lab, &data, &log, orders);
    assert!(
        (acknowledged..=attempted).contains(&rows),
        "{acknowledged} before the thaw, {rows} restored, {attempted} at most"
    );
}

fn the_log_volume_need_not_be_held(lab: &Lab) {
    let it = split(lab, false);
    let together = it.daemon.cli(&["freeze", "--require", "application"]);
    assert!(matches!(together.code, Some(1 | 4)), "its log would be missing: {together:?}");
    let args = [&MODE[..], &["--for", "30s", "--require", "application"]].concat();
    let report = it.daemon.freeze(&args);
    assert_eq!(report["consistency"], "application", "{report:#}");
    assert!(it.log.writable_within(Duration::from_secs(2)), "nobody asked for it");
    assert_eq!(it.daemon.thaw()["verdict"], "unbroken");
    let report = it.daemon.cli(&["history", "--json"]);
    assert!(report.json.to_string().contains("START WAL LOCATION"), "{:#}", report.json);
    it.ledger.assert_writable_within(Duration::from_secs(3));
}

fn a_log_beside_its_data_cannot_be_copied_after_the_thaw(lab: &Lab) {
    let disk = lab.fs_at(Type::Ext4, "/mnt/db".as_ref(), 512);
    let server = lab.server(Engine::Postgresql, &disk, Durability::Full);
    let daemon = lab.daemon(&[&disk]).database(server.entry("orders")).start();
    let refused = daemon.cli(&[&["freeze", "--require", "application"], &MODE[..]].concat());
    assert!(matches!(refused.code, Some(1 | 4)), "{refused:?}");
    refused.says("lies where the data does");
    assert_eq!(daemon.phase(), "idle");
}

/// Sessions of holdstill that the server still has.
fn sessions(server: &Server) -> u64 {
    server.number("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'holdstill'")
}

fn a_daemon_killed_in_backup_mode_leaves_no_backup_running(lab: &Lab) {
    let it = split(lab, true);
    it.daemon.freeze(&[&MODE[..], &["--for", "40s"]].concat());
    it.ledger.assert_blocked();
    let lost = now();
    it.daemon.kill();
    it.ledger.resumed_after(lost, Duration::from_secs(2));
    let gone = crate::lab::until(Duration::from_secs(5), || sessions(&it.server) == 0);
    assert!(gone, "the session that started the backup lives on");
    assert!(it.server.log().contains("aborting backup"), "{}", it.server.log());
    let daemon = it.daemon.again();
    let report =
        daemon.freeze(&[&MODE[..], &["--id", "afterwards", "--for", "20s", "--require", "application"]].concat());
    assert_eq!(report["consistency"], "application", "{report:#}");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
}

fn a_server_lost_in_backup_mode_is_never_an_application(lab: &Lab) {
    let it = split(lab, true);
    it.daemon.freeze(&[&MODE[..], &["--for", "20s"]].concat());
    tool(command("kill").args([&format!("-{}", Signal::SIGKILL as i32), &it.server.pid().to_string()]));
    let answer = it.daemon.cli(&["thaw"]);
    let report = answer.report();
    assert_ne!(report["consistency"], "application", "{report:#}");
    let orders = &step(&report, "db:orders")["database"];
    assert_eq!((&orders["claim"], &orders["backup_label"]), (&"uncovered".into(), &"".into()), "{report:#}");
    assert!(report.to_string().contains("there is no label"), "{report:#}");
}
