//! Promise: a machine that was started from a copy says so, once, and what its disks say is put right.
//!
//! The daemon sees another machine because the world's boot id and instance id are replaced, as they are for a copy; the
//! copies are real ones, cut while held and mounted where the original was.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use crate::lab::{Daemon, Fs, Lab, Type, command, daemon::Setup, process::tool, until};

facts! {
    a_clone_says_so_once_rewrites_its_receipts_and_runs_restored_d_once within 90,
    a_clone_of_a_clone_is_noticed_anew within 90,
    a_machine_that_died_while_held_says_so_and_runs_nothing within 60,
    a_disk_that_was_set_back_is_told_by_the_one_that_stood_with_it within 60,
    a_clone_of_a_machine_without_receipts_is_noticed_too within 60,
    a_foreign_disk_makes_no_clone_but_does_not_go_on_testifying within 60,
    a_copy_that_is_only_looked_at_is_left_alone within 60,
    a_hold_asked_for_at_once_gets_a_receipt_of_its_own within 60,
    no_script_begins_while_something_is_held within 60,
    what_a_killed_daemon_left_undone_is_said_and_not_run_twice within 60,
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The machine as the daemon sees it.
struct Machine {
    boot_id: PathBuf,
}

impl Machine {
    fn new(lab: &Lab, instance: &str) -> Machine {
        let machine = Machine { boot_id: lab.memory_dir("machine").join("boot_id") };
        fs::write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n").expect("the world's own");
        machine.boots(instance);
        tool(command("mount").arg("--bind").arg(&machine.boot_id).arg(BOOT_ID));
        machine
    }

    /// A new boot: of the same machine, or of another one.
    fn boots(&self, instance: &str) {
        let new = fs::read_to_string("/proc/sys/kernel/random/uuid").expect("procfs");
        fs::write(&self.boot_id, new).expect("memory");
        fs::create_dir_all("/run/cloud-init").expect("the world's own");
        fs::write("/run/cloud-init/.instance-id", instance).expect("the world's own");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(BOOT_ID, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// What is on tmpfs is in no copy and survives no boot.
fn forget(setup: &Setup) {
    let _ = fs::remove_dir_all(setup.run_dir());
}

fn holds(daemon: &Daemon, id: &str) {
    daemon.freeze(&["--id", id, "--for", "20s"]);
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
}

/// Holds, copies meanwhile, ends the daemon; answers the copy and how to start a daemon again.
fn copied<'lab>(daemon: Daemon<'lab>, fs: &Fs, id: &str) -> (PathBuf, Setup<'lab>) {
    daemon.freeze(&["--id", id, "--for", "20s"]);
    let copy = fs.copy();
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    let setup = daemon.setup().clone();
    drop(daemon);
    forget(&setup);
    (copy, setup)
}

/// The copy takes the original's place.
fn instead<'lab>(lab: &'lab Lab, fs: Fs<'lab>, copy: &Path) -> Fs<'lab> {
    let (kind, at) = (fs.kind, fs.mount.clone());
    drop(fs);
    lab.mount_copy_at(kind, copy, &at)
}

fn told(daemon: &Daemon) -> Value {
    let mut status = Value::Null;
    until(Duration::from_secs(10), || {
        status = daemon.cli(&["status"]).json;
        !status["restored"].is_null()
    });
    status["restored"].clone()
}

/// Waits until everything has been looked at; nothing was noticed then.
fn says_nothing(daemon: &Daemon) {
    holds(daemon, &format!("after-{}", daemon.pid()));
    assert_eq!(daemon.cli(&["status"]).json["restored"], Value::Null, "{}", daemon.log());
}

fn state(lab: &Lab, fs: &Fs) -> String {
    let said = lab.holdstill(&["--json", "receipt", fs.at()]);
    said.json["state"].as_str().unwrap_or_default().to_owned()
}

/// What `verify` says of this file system of the machine itself.
fn grade(daemon: &Daemon, lab: &Lab, fs: &Fs) -> String {
    let config = daemon.setup().config_path();
    let said = lab.holdstill(&["--json", "verify", "--config", config.to_str().expect("ASCII")]);
    let all = said.json["filesystems"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|found| found["root"] == fs.at() || found["name"] == fs.at());
    found
        .and_then(|found| found["grade"].as_str())
        .unwrap_or_else(|| panic!("{} is not in {said:?}", fs.at()))
        .to_owned()
}

fn counts(setup: &Setup, dir: &Path) {
    let script = format!(
        "echo run >> {0}/runs; env | grep ^HOLDSTILL_ | grep -v -e DEADLINE -e TIMEOUT | sort > {0}/env; \
         cp \"$HOLDSTILL_RESTORED_FILE\" {0}/json; echo made a new key",
        dir.display()
    );
    setup.restored("10-count", &script);
}

fn runs(dir: &Path) -> usize {
    fs::read_to_string(dir.join("runs")).unwrap_or_default().lines().count()
}

fn a_clone_says_so_once_rewrites_its_receipts_and_runs_restored_d_once(lab: &Lab) {
    for kind in [Type::Ext4, Type::Xfs, Type::Btrfs] {
        let machine = Machine::new(lab, "i-original");
        let disk = lab.fs(kind);
        let dir = lab.memory_dir("counted");
        let (copy, setup) = copied(lab.daemon(&[&disk]).start(), &disk, "nightly");
        counts(&setup, &dir);
        let disk = instead(lab, disk, &copy);
        assert_eq!(state(lab, &disk), "frozen");

        machine.boots("i-clone");
        let daemon = setup.start();
        let restored = told(&daemon);
        assert_eq!((&restored["kind"], &restored["hold_id"]), (&"clone".into(), &"nightly".into()), "{restored:#}");
        let differences = restored["differences"].to_string();
        assert!(differences.contains("instance_id: i-original, now i-clone"), "{differences}");
        assert!(restored["receipts"][0].as_str().is_some_and(|r| r.contains("frozen (hold nightly)")), "{restored:#}");
        assert_eq!(daemon.phase(), "idle", "it believes that it is held");
        assert!(disk.writable_within(Duration::from_secs(2)));
        daemon.cli(&["thaw"]).exits(0);

        // what its disk says is put right, and what it said is not lost
        assert!(until(Duration::from_secs(5), || state(lab, &disk) == "restored"), "{}", state(lab, &disk));
        assert!(until(Duration::from_secs(5), || grade(&daemon, lab, &disk) == "consistent-with-hold"));
        if kind != Type::Btrfs {
            // a plain copy of the clone, cut now: what it says is not taken for what the clone said when it started
            nix::unistd::sync();
            let plain = lab.mount_copy(kind, &disk.copy());
            assert_eq!(grade(&daemon, lab, &plain), "restored");
            lab.holdstill(&["verify", plain.at()]).exits(3);
        }
        let checked = daemon.cli(&["check"]);
        checked.exits(0).says("this machine is a clone");

        let ended = || told(&daemon)["steps"][0]["outcome"] == "done";
        assert!(until(Duration::from_secs(10), ended), "{}", daemon.log());
        assert_eq!(runs(&dir), 1);
        let env = fs::read_to_string(dir.join("env")).expect("it ran");
        for line in [
            "HOLDSTILL_RESTORED=clone",
            "HOLDSTILL_ID=nightly",
            "HOLDSTILL_MACHINE_ID=0123456789abcdef0123456789abcdef",
        ] {
            assert!(env.contains(line), "{env}");
        }
        let json = fs::read_to_string(dir.join("json")).expect("it ran");
        assert!(serde_json::from_str::<Value>(&json).expect("JSON")["restored"]["kind"] == "clone", "{json}");

        let again = daemon.again();
        assert_eq!(told(&again)["steps"][0]["outcome"], "done", "what was noticed in this boot is still known");
        let warned = again.log().matches("this machine is a clone").count();
        assert_eq!((runs(&dir), warned), (1, 1), "said or run twice:\n{}", again.log());

        let setup = again.setup().clone();
        drop(again);
        forget(&setup);
        machine.boots("i-clone");
        let daemon = setup.start();
        assert_eq!(grade(&daemon, lab, &disk), "restored", "not in another boot");
        says_nothing(&daemon);
        assert_eq!(runs(&dir), 1);
        drop((daemon, disk));
    }
}

fn a_clone_of_a_clone_is_noticed_anew(lab: &Lab) {
    let machine = Machine::new(lab, "i-1");
    let disk = lab.fs(Type::Ext4);
    let dir = lab.memory_dir("counted");
    let (copy, setup) = copied(lab.daemon(&[&disk]).start(), &disk, "first");
    counts(&setup, &dir);
    let disk = instead(lab, disk, &copy);
    for (number, instance) in ["i-2", "i-3"].into_iter().enumerate() {
        machine.boots(instance);
        let daemon = setup.clone().start();
        assert_eq!(told(&daemon)["kind"], "clone", "{}", daemon.log());
        assert!(until(Duration::from_secs(10), || told(&daemon)["steps"][0]["outcome"] == "done"));
        assert_eq!(runs(&dir), number + 1);
        drop(daemon);
        forget(&setup);
    }
    drop(disk);
}

fn a_machine_that_died_while_held_says_so_and_runs_nothing(lab: &Lab) {
    let machine = Machine::new(lab, "i-1");
    let disk = lab.fs(Type::Ext4);
    let dir = lab.memory_dir("counted");
    let (copy, setup) = copied(lab.daemon(&[&disk]).start(), &disk, "fatal");
    counts(&setup, &dir);
    let disk = instead(lab, disk, &copy);
    machine.boots("i-1");
    let daemon = setup.start();
    let restored = told(&daemon);
    assert_eq!((&restored["kind"], &restored["hold_id"]), (&"crashed".into(), &"fatal".into()), "{restored:#}");
    assert!(until(Duration::from_secs(5), || state(lab, &disk) == "restored"));
    holds(&daemon, "next");
    assert_eq!(runs(&dir), 0);
    drop((daemon, disk));
}

fn a_disk_that_was_set_back_is_told_by_the_one_that_stood_with_it(lab: &Lab) {
    let machine = Machine::new(lab, "i-1");
    let (back, stays) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    let dir = lab.memory_dir("counted");
    let daemon = lab.daemon(&[&back, &stays]).start();
    daemon.freeze(&["--id", "monday", "--for", "20s"]);
    let copy = back.copy();
    daemon.thaw();
    // receipts have seconds
    std::thread::sleep(Duration::from_millis(1100));
    holds(&daemon, "tuesday");
    let setup = daemon.setup().clone();
    drop(daemon);
    forget(&setup);
    counts(&setup, &dir);
    let back = instead(lab, back, &copy);
    machine.boots("i-1");
    let daemon = setup.start();
    let restored = told(&daemon);
    assert_eq!((&restored["kind"], &restored["hold_id"]), (&"reverted".into(), &"monday".into()), "{restored:#}");
    assert!(restored["differences"].to_string().contains("tuesday"), "{restored:#}");
    assert!(until(Duration::from_secs(10), || runs(&dir) == 1), "{}", daemon.log());
    assert!(fs::read_to_string(dir.join("env")).expect("it ran").contains("HOLDSTILL_RESTORED=reverted"));
    assert_eq!((state(lab, &back), state(lab, &stays)), ("restored".into(), "released".into()));
    drop((daemon, back, stays));
}

fn a_clone_of_a_machine_without_receipts_is_noticed_too(lab: &Lab) {
    let machine = Machine::new(lab, "i-1");
    let disk = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&disk]).set("receipt.enabled", false).start();
    holds(&daemon, "quiet");
    let setup = daemon.setup().clone();
    drop(daemon);
    forget(&setup);
    machine.boots("i-2");
    let daemon = setup.start();
    let restored = told(&daemon);
    assert_eq!((&restored["kind"], &restored["hold_id"]), (&"clone".into(), &"quiet".into()), "{restored:#}");
    drop((daemon, disk));
}

fn a_foreign_disk_makes_no_clone_but_does_not_go_on_testifying(lab: &Lab) {
    let machine = Machine::new(lab, "i-1");
    let disk = lab.fs(Type::Ext4);
    let dir = lab.memory_dir("counted");
    let (copy, _) = copied(lab.daemon(&[&disk]).start(), &disk, "theirs");
    // a machine of its own, where that copy is attached
    fs::write("/etc/machine-id", "fedcba9876543210fedcba9876543210\n").expect("the world's own");
    machine.boots("i-backup");
    let attached = lab.mount_copy(Type::Ext4, &copy);
    let setup = lab.daemon(&[&disk]);
    counts(&setup, &dir);
    let daemon = setup.start();
    let restored = told(&daemon);
    assert_eq!((&restored["kind"], &restored["hold_id"]), (&"attached".into(), &"theirs".into()), "{restored:#}");
    assert!(until(Duration::from_secs(5), || state(lab, &attached) == "restored"));
    assert_eq!(grade(&daemon, lab, &attached), "consistent-with-hold");
    holds(&daemon, "ours");
    assert_eq!(runs(&dir), 0);
    drop((daemon, attached, disk));
}

fn a_copy_that_is_only_looked_at_is_left_alone(lab: &Lab) {
    let machine = Machine::new(lab, "i-1");
    let disk = lab.fs(Type::Ext4);
    let (copy, setup) = copied(lab.daemon(&[&disk]).start(), &disk, "looked-at");
    machine.boots("i-1");
    let looked_at = lab.mount_copy(Type::Ext4, &copy);
    tool(command("mount").args(["-o", "remount,ro"]).arg(&looked_at.mount));
    let daemon = setup.start();
    says_nothing(&daemon);
    assert_eq!(state(lab, &looked_at), "frozen");
    drop((daemon, looked_at, disk));
}

fn a_hold_asked_for_at_once_gets_a_receipt_of_its_own(lab: &Lab) {
    let machine = Machine::new(lab, "i-1");
    let disk = lab.fs(Type::Ext4);
    let (copy, setup) = copied(lab.daemon(&[&disk]).start(), &disk, "before");
    let disk = instead(lab, disk, &copy);
    machine.boots("i-2");
    let daemon = setup.start();
    daemon.freeze(&["--id", "after", "--for", "20s"]);
    let said = lab.holdstill(&["--json", "receipt", disk.at()]);
    assert_eq!((&said.json["state"], &said.json["hold_id"]), (&"frozen".into(), &"after".into()));
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    assert_eq!(told(&daemon)["hold_id"], "before");
    drop((daemon, disk));
}

/// A clone with two scripts: one that takes `seconds`, and one after it. Each notes in memory that it has begun.
fn with_two_scripts<'lab>(lab: &'lab Lab, machine: &Machine, seconds: u32) -> (Daemon<'lab>, Fs<'lab>, PathBuf) {
    let disk = lab.fs(Type::Ext4);
    let dir = lab.memory_dir("counted");
    let (copy, setup) = copied(lab.daemon(&[&disk]).start(), &disk, "nightly");
    setup.restored("10-slow", &format!("echo slow >>{}/runs; sleep {seconds}", dir.display()));
    setup.restored("20-later", &format!("echo later >>{}/runs", dir.display()));
    let disk = instead(lab, disk, &copy);
    machine.boots("i-clone");
    let daemon = setup.start();
    assert!(until(Duration::from_secs(10), || runs(&dir) == 1), "{}", daemon.log());
    (daemon, disk, dir)
}

fn no_script_begins_while_something_is_held(lab: &Lab) {
    let machine = Machine::new(lab, "i-original");
    let (daemon, disk, dir) = with_two_scripts(lab, &machine, 2);
    daemon.freeze(&["--id", "meanwhile", "--for", "20s"]);
    assert!(!until(Duration::from_secs(4), || runs(&dir) > 1), "20-later began while all was held");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    assert!(until(Duration::from_secs(5), || runs(&dir) == 2), "{}", daemon.log());
    drop((daemon, disk));
}

fn what_a_killed_daemon_left_undone_is_said_and_not_run_twice(lab: &Lab) {
    let machine = Machine::new(lab, "i-original");
    let (daemon, disk, dir) = with_two_scripts(lab, &machine, 3);
    daemon.kill();
    let daemon = daemon.again();
    let restored = told(&daemon);
    assert!(restored["problems"].to_string().contains("RESTORED_UNFINISHED"), "{restored:#}");
    says_nothing_more(&daemon, &dir);
    drop((daemon, disk));
}

/// Waits until everything has been looked at again; nothing was run.
fn says_nothing_more(daemon: &Daemon, dir: &Path) {
    holds(daemon, "after");
    assert!(!until(Duration::from_secs(4), || runs(dir) > 1), "{}", daemon.log());
}
