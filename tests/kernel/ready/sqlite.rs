//! `20-sqlite-checkpoint`, with a writer that answers before its transactions are on the disk.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use super::{add, output, said};
use crate::lab::{Lab, Type, until};

facts! {
    what_sqlite_committed_is_in_the_copy_and_its_log_is_short,
    a_checkpoint_that_a_reader_prevents_costs_the_level_and_no_transaction,
}

fn what_sqlite_committed_is_in_the_copy_and_its_log_is_short(lab: &Lab) {
    let disk = lab.fs(Type::Ext4);
    let db = disk.mount.join("the app.db"); // a blank is no separator
    let daemon = lab.daemon(&[&disk]).start();
    let settings = "prepare = true\nrequired = false\n";
    add(&daemon, "20-sqlite-checkpoint", settings, &[("/srv/app/app.db", db.to_str().expect("ASCII"))]);
    let file = db.to_str().expect("ASCII");
    said(&["sqlite3", file, "PRAGMA journal_mode=WAL; CREATE TABLE t (n INTEGER PRIMARY KEY, x)"]);
    let committed = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (db, committed, stop) = (db.clone(), Arc::clone(&committed), Arc::clone(&stop));
        thread::spawn(move || {
            let app = rusqlite::Connection::open(db).expect("opens");
            app.busy_timeout(Duration::from_secs(5)).expect("a setting");
            app.execute_batch("PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0").expect("settings");
            while !stop.load(Ordering::Relaxed) {
                app.execute("INSERT INTO t (x) VALUES (randomblob(500))", []).expect("inserts");
                committed.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
        })
    };
    let number = || committed.load(Ordering::Relaxed);
    assert!(until(Duration::from_secs(10), || number() > 200), "nobody writes");
    let before = number();
    let report = daemon.freeze(&["--for", "20s"]);
    assert!(output(&report, "20-sqlite-checkpoint").contains("TRUNCATE 0|"), "{report:#}");
    let copy = disk.copy();
    daemon.thaw();
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("it wrote without an error");
    let copied = lab.mount_copy(Type::Ext4, &copy);
    let log = fs::metadata(copied.mount.join("the app.db-wal")).map_or(0, |m| m.len());
    let file = copied.mount.join("the app.db");
    let rows = said(&["sqlite3", file.to_str().expect("ASCII"), "PRAGMA integrity_check; SELECT max(n) FROM t"]);
    let (whole, rows) = rows.split_once('\n').expect("two answers");
    assert_eq!(whole, "ok");
    let rows: u64 = rows.parse().expect("a number");
    assert!(rows >= before, "the copy has {rows} rows, {before} were committed before the hold");
    assert!(log < before * 500, "the log was not written back: {log} bytes");
}

fn a_checkpoint_that_a_reader_prevents_costs_the_level_and_no_transaction(lab: &Lab) {
    let disk = lab.fs(Type::Ext4);
    let db = disk.mount.join("app.db");
    let file = db.to_str().expect("ASCII").to_owned();
    let daemon = lab.daemon(&[&disk]).start();
    add(&daemon, "20-sqlite-checkpoint", "required = false\n", &[("/srv/app/app.db", &file)]);
    said(&["sqlite3", &file, "PRAGMA journal_mode=WAL; CREATE TABLE t (n); INSERT INTO t VALUES (1)"]);
    let reader = rusqlite::Connection::open(&db).expect("opens");
    let read = "BEGIN; SELECT count(*) FROM t";
    reader.execute_batch(read).expect("reads, and goes on seeing what it saw");
    said(&["sqlite3", &file, "INSERT INTO t VALUES (2)"]);
    let report = daemon.freeze(&["--for", "20s"]);
    assert_eq!(report["consistency"], "filesystem", "{report:#}");
    let copy = disk.copy();
    daemon.thaw();
    drop(reader);
    let copied = lab.mount_copy(Type::Ext4, &copy);
    let file = copied.mount.join("app.db");
    assert_eq!(said(&["sqlite3", file.to_str().expect("ASCII"), "SELECT count(*) FROM t"]), "2");
}
