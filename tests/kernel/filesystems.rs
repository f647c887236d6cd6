//! Which file systems a hold holds, in which order, and what is said of the others.

use std::{fs, path::Path, time::Duration};

use serde_json::Value;

use crate::lab::{
    Fs, Lab, Type, command,
    daemon::step,
    finish,
    process::{signal, tool},
    until,
};

facts! {
    ext4_xfs_and_btrfs_are_each_held_and_let_go,
    eight_file_systems_are_held_at_once,
    two_mount_points_of_one_file_system_are_one_step,
    btrfs_subvolumes_are_one_step,
    a_file_system_on_a_file_system_is_held_and_let_go,
    a_read_only_file_system_is_skipped_with_a_reason,
    a_file_system_hidden_by_another_mount_is_still_held,
    memory_is_named_as_not_in_the_snapshot_with_what_lies_there,
    a_configured_transient_mount_is_named,
    a_file_system_mounted_only_in_another_namespace_is_held,
    globs_choose_and_exclusions_win,
}

/// The file systems that are held, in their order.
fn held(report: &Value) -> Vec<&str> {
    let all = report["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let held = |step: &&Value| step["kind"] == "filesystem" && step["outcome"] == "done";
    all.iter().filter(held).filter_map(|s| s["name"].as_str()).collect()
}

fn ext4_xfs_and_btrfs_are_each_held_and_let_go(lab: &Lab) {
    for kind in [Type::Ext4, Type::Xfs, Type::Btrfs] {
        let fs = lab.fs(kind);
        let daemon = lab.daemon(&[&fs]).start();
        let writer = lab.writer(&fs);
        let report = daemon.freeze(&["--for", "10s"]);
        assert_eq!(step(&report, &fs.step())["filesystem"]["type"], kind.name());
        writer.assert_blocked();
        assert_eq!(daemon.thaw()["verdict"], "unbroken", "{}", kind.name());
        writer.assert_writable_within(Duration::from_secs(2));
    }
}

fn eight_file_systems_are_held_at_once(lab: &Lab) {
    let disks: Vec<Fs> = (0..8).map(|_| lab.fs(Type::Ext4)).collect();
    let daemon = lab.daemon(&disks.iter().collect::<Vec<_>>()).start();
    let writers: Vec<_> = disks.iter().map(|fs| lab.writer(fs)).collect();
    let report = daemon.freeze(&["--for", "20s"]);
    assert_eq!(held(&report).len(), 8, "{report:#}");
    for writer in &writers {
        writer.assert_blocked();
    }
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    for writer in &writers {
        writer.assert_writable_within(Duration::from_secs(2));
    }
    lab.assert_tunable_restored();
}

/// A mount made by a fact, gone before its file system is.
struct Extra(String);

impl Extra {
    fn bind(from: &Path, to: &str) -> Extra {
        fs::create_dir_all(to).expect("the world's root is writable");
        tool(command("mount").arg("--bind").arg(from).arg(to));
        Extra(to.to_owned())
    }
}

impl Drop for Extra {
    fn drop(&mut self) {
        let umount = command("umount").arg("-l").arg(&self.0).spawn();
        let _ = finish(&mut umount.expect("util-linux"), Duration::from_secs(5));
    }
}

fn two_mount_points_of_one_file_system_are_one_step(lab: &Lab) {
    let disk = lab.fs(Type::Ext4);
    fs::create_dir(disk.mount.join("sub")).expect("it is writable");
    let second = Extra::bind(&disk.mount.join("sub"), "/mnt/second");
    let daemon = lab.daemon_at(&[&disk.mount, Path::new(&second.0)]).start();
    let writer = lab.writer_at(Path::new(&second.0));
    let report = daemon.freeze(&["--for", "10s"]);
    assert_eq!(held(&report), [disk.step()], "{report:#}");
    writer.assert_blocked();
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    writer.assert_writable_within(Duration::from_secs(2));
    drop(writer);
}

fn btrfs_subvolumes_are_one_step(lab: &Lab) {
    let disk = lab.fs(Type::Btrfs);
    tool(command("btrfs").args(["subvolume", "create"]).arg(disk.mount.join("home")));
    fs::create_dir_all("/mnt/home").expect("the world's root is writable");
    tool(command("mount").args(["-o", "subvol=home"]).arg(&disk.disk.device).arg("/mnt/home"));
    let home = Extra("/mnt/home".to_owned());
    let daemon = lab.daemon_at(&[&disk.mount, Path::new(&home.0)]).start();
    let (outer, inner) = (lab.writer(&disk), lab.writer_at(Path::new(&home.0)));
    let report = daemon.freeze(&["--for", "10s"]);
    assert_eq!(held(&report).len(), 1, "{report:#}");
    outer.assert_blocked();
    inner.assert_blocked();
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    inner.assert_writable_within(Duration::from_secs(2));
    drop((outer, inner));
}

fn a_file_system_on_a_file_system_is_held_and_let_go(lab: &Lab) {
    let outer = lab.fs_at(Type::Ext4, Path::new("/mnt/outer"), 256);
    let inner = lab.fs_on(Type::Ext4, Path::new("/mnt/inner"), &outer.mount.join("inner.img"), 64);
    let daemon = lab.daemon(&[&outer, &inner]).start();
    let writers = [lab.writer(&outer), lab.writer(&inner)];
    for round in ["first", "second"] {
        let report = daemon.freeze(&["--id", round, "--for", "10s"]);
        // frozen in the wrong order, or thawed in it, they would wait for each other for ever
        assert_eq!(held(&report).len(), 2, "{report:#}");
        for writer in &writers {
            writer.assert_blocked();
        }
        assert_eq!(daemon.thaw()["verdict"], "unbroken");
        for writer in &writers {
            writer.assert_writable_within(Duration::from_secs(3));
        }
    }
    // the deadline alone gets them free too, whoever's guardian is first
    daemon.freeze(&["--for", "1s"]);
    for writer in &writers {
        writer.assert_writable_within(Duration::from_secs(4));
    }
    drop(writers);
    drop(daemon);
    drop(inner);
}

fn a_read_only_file_system_is_skipped_with_a_reason(lab: &Lab) {
    let (written, read) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    tool(command("mount").args(["-o", "remount,ro"]).arg(&read.mount));
    let daemon = lab.daemon(&[&written, &read]).start();
    let report = daemon.freeze(&["--for", "10s"]);
    let skipped = step(&report, &read.step());
    assert_eq!(skipped["outcome"], "skipped", "{report:#}");
    assert!(skipped["reason"].as_str().is_some_and(|r| r.contains("read")), "no reason: {skipped:#}");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
}

fn a_file_system_hidden_by_another_mount_is_still_held(lab: &Lab) {
    let hidden = lab.fs(Type::Ext4);
    fs::create_dir(hidden.mount.join("deep")).expect("it is writable");
    // a writer that was there before the other mount came
    let writer = lab.writer_at(&hidden.mount.join("deep"));
    let elsewhere = Extra::bind(&hidden.mount.join("deep"), "/mnt/elsewhere");
    lab.tmpfs_at(&hidden.mount);
    let over = Extra(hidden.at().to_owned());
    let daemon = lab.daemon_at(&[&hidden.mount, Path::new(&elsewhere.0)]).start();
    let report = daemon.freeze(&["--for", "10s"]);
    writer.assert_blocked();
    assert_eq!(daemon.thaw()["verdict"], "unbroken", "{report:#}");
    writer.assert_writable_within(Duration::from_secs(2));
    drop((writer, over));
}

/// The coverage entry that names `mount`.
fn coverage<'a>(report: &'a Value, mount: &str) -> &'a Value {
    let entries = report["coverage"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names = |e: &&Value| e["mounts"].as_array().is_some_and(|m| m.iter().any(|m| m == mount));
    entries.iter().find(names).unwrap_or_else(|| panic!("{mount} is not in the coverage: {report:#}"))
}

fn memory_is_named_as_not_in_the_snapshot_with_what_lies_there(lab: &Lab) {
    let disk = lab.fs(Type::Ext4);
    lab.tmpfs_at(Path::new("/mnt/scratch"));
    fs::write("/mnt/scratch/orders", vec![1_u8; 5 << 20]).expect("64 MiB of memory");
    let daemon = lab.daemon(&[&disk]).start();
    let report = daemon.freeze(&["--for", "10s"]);
    let scratch = coverage(&report, "/mnt/scratch");
    assert_eq!((&scratch["durability"], &scratch["in_snapshot"]), (&"transient".into(), &"no".into()), "{scratch:#}");
    let used = scratch["used_bytes"].as_u64().expect("a number");
    assert!((5 << 20..6 << 20).contains(&used), "{used} bytes");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    drop(Extra("/mnt/scratch".to_owned()));
}

fn a_configured_transient_mount_is_named(lab: &Lab) {
    let (disk, ephemeral) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    let mounts = vec![ephemeral.at().to_owned()];
    let setup = lab.daemon(&[&disk]).set("transient.mounts", mounts);
    let daemon = setup.clone().start();
    let report = daemon.freeze(&["--for", "10s"]);
    assert_eq!(coverage(&report, ephemeral.at())["durability"], "transient", "{report:#}");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    drop(daemon);
    let daemon = setup.set("transient.policy", "refuse").start();
    fs::write(ephemeral.mount.join("data"), "somebody's work").expect("it is writable");
    let answer = daemon.cli(&["freeze"]);
    answer.exits(4);
    assert_eq!(answer.reason(), "TRANSIENT_DATA", "{answer:?}");
}

fn a_file_system_mounted_only_in_another_namespace_is_held(lab: &Lab) {
    let (here, there) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    let progress = lab.writer(&there);
    // a process that keeps the mount while it disappears from ours, as a container's would
    let mut keeper =
        command("unshare").args(["--mount", "--propagation", "private", "sleep", "60"]).spawn().expect("sh");
    let keeper_pid = keeper.id().cast_signed();
    let own_namespace = fs::read_link("/proc/self/ns/mnt").expect("/proc");
    let apart = || fs::read_link(format!("/proc/{keeper_pid}/ns/mnt")).is_ok_and(|ns| ns != own_namespace);
    assert!(until(Duration::from_secs(5), apart), "unshare does not unshare");
    tool(command("umount").arg("-l").arg(&there.mount));
    let daemon = lab.daemon(&[&here, &there]).start();
    let report = daemon.freeze(&["--for", "10s"]);
    progress.assert_blocked();
    assert!(held(&report).len() >= 2, "{report:#}");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    progress.assert_writable_within(Duration::from_secs(2));
    drop((daemon, progress));
    signal(keeper_pid, nix::sys::signal::Signal::SIGKILL);
    keeper.wait().expect("it was killed");
    there.forget_mount();
}

fn globs_choose_and_exclusions_win(lab: &Lab) {
    let a = lab.fs_at(Type::Ext4, Path::new("/mnt/data-a"), 64);
    let b = lab.fs_at(Type::Ext4, Path::new("/mnt/data-b"), 64);
    let other = lab.fs_at(Type::Ext4, Path::new("/mnt/other"), 64);
    let exclude = vec!["/mnt/*-b".to_owned()];
    let daemon = lab.daemon_at(&[Path::new("/mnt/data-*")]).set("filesystems.exclude", exclude).start();
    let writers = [&a, &b, &other].map(|fs| lab.writer(fs));
    daemon.freeze(&["--for", "10s"]);
    writers[0].assert_blocked();
    assert!(!writers[1].is_blocked() && !writers[2].is_blocked());
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    drop(writers);
}
