//! The laboratory keeps its own promises: it can tell a frozen file system from a thawed one, it lets go, and nothing in
//! it can freeze the machine.

use std::{process::Stdio, time::Duration};

use crate::lab::{
    Lab, Type, command,
    database::{Durability, Engine},
    finish, now, until,
};

facts! {
    the_root_of_a_world_cannot_be_frozen,
    no_disk_of_the_machine_is_mounted_in_a_world,
    a_writer_is_seen_to_block_and_to_go_on,
    ext4_xfs_and_btrfs_freeze_and_thaw within 60,
    the_reaper_thaws_what_a_fact_left_frozen,
    a_copy_taken_while_frozen_needs_no_recovery,
    a_private_root_freezes_and_thaws within 60,
    what_postgresql_acknowledged_durably_is_in_a_copy within 90,
    what_mariadb_acknowledged_durably_is_in_a_copy within 90,
}

fn the_root_of_a_world_cannot_be_frozen(_: &Lab) {
    let mut freeze = command("fsfreeze").args(["-f", "/"]).stderr(Stdio::null()).spawn().expect("util-linux");
    let status = finish(&mut freeze, Duration::from_secs(5)).expect("the kernel refuses at once");
    assert!(!status.success(), "an overlay was frozen");
}

fn no_disk_of_the_machine_is_mounted_in_a_world(_: &Lab) {
    crate::lab::world::guard().expect("nothing but memory is mounted yet");
    let devices: Vec<String> = std::fs::read_dir("/dev")
        .expect("/dev is ours")
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("vd") || name.starts_with("sd") || name.starts_with("nvme"))
        .collect();
    assert!(devices.is_empty(), "{devices:?} can be opened");
}

fn a_writer_is_seen_to_block_and_to_go_on(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let writer = lab.writer(&fs);
    assert!(!writer.is_blocked(), "nothing is frozen");
    fs.freeze_by_others();
    writer.assert_blocked();
    let thawed = now();
    assert!(fs.thaw_by_others(), "it was frozen");
    assert!(writer.resumed_after(thawed, Duration::from_secs(2)) < Duration::from_millis(500));
    writer.assert_writable_within(Duration::from_secs(2));
    assert!(writer.longest() >= Duration::from_millis(150), "the frozen time was not felt: {:?}", writer.longest());
}

fn ext4_xfs_and_btrfs_freeze_and_thaw(lab: &Lab) {
    for kind in [Type::Ext4, Type::Xfs, Type::Btrfs] {
        let fs = lab.fs(kind);
        fs.freeze_by_others();
        assert!(!fs.writable_within(Duration::from_millis(300)), "{} is frozen but writable", kind.name());
        assert!(fs.thaw_by_others(), "{} was frozen", kind.name());
        assert!(fs.writable_within(Duration::from_secs(5)), "{} is thawed but not writable", kind.name());
    }
}

fn the_reaper_thaws_what_a_fact_left_frozen(lab: &Lab) {
    let (a, b) = (lab.fs(Type::Ext4), lab.fs(Type::Btrfs));
    let (writer_a, writer_b) = (lab.writer(&a), lab.writer(&b));
    a.freeze_by_others();
    b.freeze_by_others();
    writer_a.assert_blocked();
    assert_eq!(lab.reaper_thaws(), 2);
    writer_a.assert_writable_within(Duration::from_secs(2));
    writer_b.assert_writable_within(Duration::from_secs(2));
    assert_eq!(lab.reaper_thaws(), 0, "a second thaw finds nothing");
}

fn a_copy_taken_while_frozen_needs_no_recovery(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let writer = lab.writer(&fs);
    assert!(until(Duration::from_secs(20), || crate::lab::disk::needs_recovery(&fs.copy())), "a live ext4 says so");
    fs.freeze_by_others();
    let copy = fs.copy();
    assert!(fs.thaw_by_others());
    assert!(!crate::lab::disk::needs_recovery(&copy), "a frozen ext4 is clean");
    writer.assert_writable_within(Duration::from_secs(2));
}

fn what_postgresql_acknowledged_durably_is_in_a_copy(lab: &Lab) {
    a_copy_has_the_ledger(lab, Engine::Postgresql);
}

fn what_mariadb_acknowledged_durably_is_in_a_copy(lab: &Lab) {
    a_copy_has_the_ledger(lab, Engine::Mariadb);
}

/// Durable commits survive a bare freeze; what only a hold can save is for the database tests to show.
fn a_copy_has_the_ledger(lab: &Lab, engine: Engine) {
    let fs = lab.fs_at(Type::Ext4, "/mnt/db".as_ref(), 512);
    let server = lab.server(engine, &fs, Durability::Full);
    let ledger = server.ledger();
    assert!(until(Duration::from_secs(20), || ledger.progress().count > 50));
    fs.freeze_by_others();
    ledger.assert_blocked();
    let acknowledged = ledger.progress().count;
    let copy = fs.copy();
    assert!(fs.thaw_by_others());
    ledger.assert_writable_within(Duration::from_secs(5));
    let copied = lab.mount_copy(Type::Ext4, &copy);
    let recovered = lab.serve(engine, &copied.mount.join("data"), Durability::Full);
    let rows = recovered.ledger_rows();
    assert!(rows >= acknowledged, "{acknowledged} were acknowledged, {rows} are in the copy");
}

fn a_private_root_freezes_and_thaws(lab: &Lab) {
    let root = lab.private_root();
    let writer = lab.writer(&root.root);
    root.root.freeze_by_others();
    writer.assert_blocked();
    assert_eq!(root.tool("echo", &["programs run"]).trim(), "programs run");
    assert!(root.root.thaw_by_others(), "it was frozen");
    writer.assert_writable_within(Duration::from_secs(2));
    drop(writer);
}
