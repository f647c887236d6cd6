//! Receipts lie in `.holdstill/` at the root of a file system, and that root may be a server's data directory: volumes of
//! containers are like that. Whoever put a directory there must know what servers make of it.

use std::{fs, time::Duration};

use crate::lab::{
    Fs, Lab, Type, command,
    database::{Edition, Engine, Server, ServerOptions},
    process::tool,
};

facts! {
    mysql_and_mariadb_initialise_and_start_on_a_mount_root_that_was_held within 120,
    initdb_refuses_a_mount_root_that_was_held_and_postgresql_starts_on_it within 120,
    mariadb_lists_the_receipts_as_a_database_unless_told_not_to within 60,
    no_receipt_is_written_into_a_data_directory_of_those_who_mind within 120,
}

/// A file system without `lost+found`, as XFS and btrfs are made.
fn bare(lab: &Lab) -> Fs<'_> {
    let disk = lab.fs_at(Type::Ext4, "/mnt/db".as_ref(), 640);
    fs::remove_dir(disk.mount.join("lost+found")).expect("mkfs made it");
    disk
}

/// Holds the file system once, as one would that has nothing on it yet.
fn held_once(lab: &Lab, disk: &Fs) {
    let daemon = lab.daemon(&[disk]).start();
    daemon.freeze(&["--for", "20s", "--require", "filesystem"]);
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    assert!(disk.mount.join(".holdstill/receipt.json").exists(), "no receipt: this is not the case meant");
}

/// Held again while it runs, stopped, and started again.
fn goes_on(lab: &Lab, disk: &Fs, server: Server) {
    let edition = server.edition;
    let ledger = server.ledger();
    held_once(lab, disk);
    ledger.assert_writable_within(Duration::from_secs(3));
    drop(ledger);
    let rows = server.ledger_rows();
    drop(server);
    let again = lab.serve_of(&edition, &disk.mount, ServerOptions::existing());
    // one may have been under way when its client was killed
    assert!(
        (rows..=rows + 1).contains(&again.ledger_rows()),
        "{}: {rows}, then {}",
        edition.title(),
        again.ledger_rows()
    );
    assert!(disk.mount.join(".holdstill/receipt.json").exists(), "{} removed the receipt", edition.title());
}

fn mysql_and_mariadb_initialise_and_start_on_a_mount_root_that_was_held(lab: &Lab) {
    for (engine, version) in
        [(Engine::Mysql, "5.7"), (Engine::Mysql, "8.4"), (Engine::Mariadb, "10.5"), (Engine::Mariadb, "11.8")]
    {
        let disk = bare(lab);
        held_once(lab, &disk);
        let server = lab.server_in(&Edition::find(engine, version), &disk.mount, ServerOptions::on(&disk));
        goes_on(lab, &disk, server);
    }
}

/// initdb says "dot-prefixed/invisible file, perhaps due to it being a mount point", and names the better way: a directory
/// below. It does the same where there is `lost+found`.
fn initdb_refuses_a_mount_root_that_was_held_and_postgresql_starts_on_it(lab: &Lab) {
    for version in ["12", "18"] {
        let edition = Edition::find(Engine::Postgresql, version);
        let disk = bare(lab);
        held_once(lab, &disk);
        let refused = lab.try_initialise(&edition, &disk.mount, &mut ServerOptions::on(&disk));
        let why = refused.expect_err("the docs say that it refuses");
        assert!(why.contains("dot-prefixed/invisible file"), "{why}");
        let below = disk.mount.join("data");
        assert_eq!(lab.try_initialise(&edition, &below, &mut ServerOptions::on(&disk)), Ok(()), "{}", edition.title());
        fs::remove_dir_all(below).expect("just made");
        fs::remove_dir_all(disk.mount.join(".holdstill")).expect("just made");
        let server = lab.server_in(&edition, &disk.mount, ServerOptions::on(&disk));
        goes_on(lab, &disk, server);
    }
}

/// As `lost+found` is. Every statement that names it fails, so `mariadb-dump --all-databases` does.
fn mariadb_lists_the_receipts_as_a_database_unless_told_not_to(lab: &Lab) {
    const LISTED: &str = "#mysql50#.holdstill";
    let edition = Edition::find(Engine::Mariadb, "11.8");
    let disk = bare(lab);
    let server = lab.server_in(&edition, &disk.mount, ServerOptions::on(&disk));
    held_once(lab, &disk);
    assert!(server.query("SHOW DATABASES").contains(&LISTED.to_owned()), "the docs say that it is listed");
    let named = server.try_query(&format!("SHOW TABLES FROM `{LISTED}`"));
    assert!(named.as_ref().is_err_and(|e| e.contains("1102")), "{named:?}");
    drop(server);
    let told = ServerOptions::existing().setting("ignore-db-dirs=.holdstill");
    let server = lab.serve_of(&edition, &disk.mount, told);
    assert!(!server.query("SHOW DATABASES").contains(&LISTED.to_owned()), "it was told to ignore it");
}

/// `pg_basebackup` ends at a directory it may not read, whoever made it.
fn no_receipt_is_written_into_a_data_directory_of_those_who_mind(lab: &Lab) {
    for engine in [Engine::Postgresql, Engine::Mariadb] {
        let disk = lab.fs_at(Type::Ext4, format!("/mnt/{}", engine.name()).as_ref(), 640);
        fs::remove_dir(disk.mount.join("lost+found")).expect("mkfs made it");
        let server = lab.server_in(&Edition::of_host(engine), &disk.mount, ServerOptions::on(&disk));
        let daemon = lab.daemon(&[&disk]).database(server.entry("orders")).start();
        let report = daemon.freeze(&["--for", "20s", "--require", "application"]);
        assert!(report["problems"].to_string().contains("RECEIPT_LEFT_OUT"), "{report:#}");
        assert_eq!(daemon.thaw()["verdict"], "unbroken");
        assert!(!disk.mount.join(".holdstill").exists());
        drop(daemon);
        // nor if it does not let us in
        let mut stranger = server.entry("orders");
        stranger.insert("user".to_owned(), "stranger".into());
        stranger.insert("required".to_owned(), false.into());
        let daemon = lab.daemon(&[&disk]).database(stranger).start();
        let report = daemon.freeze(&["--for", "20s", "--require", "filesystem"]);
        assert_eq!(report["consistency"], "filesystem", "{report:#}");
        assert_eq!(daemon.thaw()["verdict"], "unbroken");
        assert!(!disk.mount.join(".holdstill").exists());
        if engine == Engine::Postgresql {
            let programs = Edition::of_host(engine).programs().expect("it runs");
            let copy = lab.memory_dir("basebackup").join("copy");
            let socket = server.socket().parent().expect("a file");
            let mut backup = command(programs.beside("pg_basebackup").to_str().expect("ASCII"));
            tool(backup.args(["-U", "postgres", "-X", "none", "-c", "fast", "-h"]).arg(socket).arg("-D").arg(&copy));
        }
    }
}
