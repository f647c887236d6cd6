//! What the snapshot will not contain: named, judged by the policy, counted, and never waited for.

use std::{
    fs,
    os::{fd::AsRawFd, unix::fs::symlink},
    path::Path,
    time::Duration,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, makedev, mknod},
};
use serde_json::Value;

use crate::lab::{Fs, Lab, Type, command, daemon::Daemon, now, process::tool, until};

facts! {
    a_labelled_disk_is_transient_and_what_leads_there_is_named,
    whoever_writes_there_is_named_from_another_mount_namespace_too,
    units_and_dockers_root_are_found_by_their_own_files,
    an_empty_disk_is_not_refused_and_one_file_is,
    a_loss_accepted_in_writing_is_a_note_and_holds,
    a_mount_of_its_own_policy_goes_by_that,
    disks_the_caller_leaves_out_are_not_frozen_and_what_of_ours_lies_there_is_said,
    a_disk_the_caller_captures_is_frozen_however_transient,
    a_dead_fuse_mount_in_the_way_is_not_waited_for,
    what_lies_there_is_counted_and_in_a_later_check,
    a_count_gives_way_to_a_hold_and_is_made_afterwards,
    nothing_is_looked_for_while_held,
}

/// The coverage of a mount point in a check.
fn coverage(daemon: &Daemon, mount: &Path) -> Value {
    let answer = daemon.cli(&["check"]);
    of(&answer.json["plan"], mount)
}

fn of(report: &Value, mount: &Path) -> Value {
    let entries = report["coverage"].as_array().cloned().unwrap_or_default();
    let is =
        |entry: &Value| entry["mounts"].as_array().is_some_and(|m| m.iter().any(|m| *m == *mount.to_str().unwrap()));
    entries.into_iter().find(is).unwrap_or_else(|| panic!("{} is not in the coverage: {report:#}", mount.display()))
}

/// "state: /srv/app is a link to /mnt/ext4-2/app"
fn risks(entry: &Value) -> Vec<String> {
    let risks = entry["risks"].as_array().cloned().unwrap_or_default();
    let text = |risk: &Value, key: &str| risk[key].as_str().unwrap_or_default().to_owned();
    risks.iter().map(|risk| format!("{}: {}", text(risk, "level"), text(risk, "message"))).collect()
}

fn has(entry: &Value, wanted: &str) {
    assert!(risks(entry).iter().any(|risk| risk == wanted), "not {wanted:?} but {:#?}", risks(entry));
}

fn problems(report: &Value, code: &str) -> Vec<Value> {
    let all = report["problems"].as_array().cloned().unwrap_or_default();
    all.into_iter().filter(|problem| problem["code"] == code).collect()
}

fn mounts(of: &[&Fs]) -> Vec<String> {
    of.iter().map(|fs| fs.at().to_owned()).collect()
}

fn exception(fs: &Fs, policy: &str, because: Option<&str>) -> toml::Value {
    let mut row = toml::Table::new();
    row.insert("path".into(), fs.at().into());
    row.insert("policy".into(), policy.into());
    because.into_iter().for_each(|because| drop(row.insert("because".into(), because.into())));
    toml::Value::Array(vec![row.into()])
}

/// Takes a link or a bind mount away again: the lab unmounts what it is of.
struct Bind(&'static str);

impl Drop for Bind {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

fn bind(from: &Path, at: &'static str) -> Bind {
    fs::create_dir_all(from).expect("writable");
    fs::create_dir_all(at).expect("writable");
    mount(Some(from), at, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("mounted");
    Bind(at)
}

fn a_labelled_disk_is_transient_and_what_leads_there_is_named(lab: &Lab) {
    let (disk, ephemeral) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    tool(command("e2label").arg(&ephemeral.disk.device).arg("ephemeral0"));
    // udev's part
    let device = ephemeral.disk.device.file_name().expect("a device").to_owned();
    fs::create_dir_all("/dev/disk/by-label").expect("memory");
    symlink(Path::new("../..").join(device), "/dev/disk/by-label/ephemeral0").expect("memory");
    fs::create_dir(ephemeral.mount.join("app")).expect("writable");
    fs::create_dir_all("/srv").expect("writable");
    symlink(ephemeral.mount.join("app"), "/srv/app").expect("writable");
    let served = bind(&ephemeral.mount.join("served"), "/srv/served");
    let daemon = lab.daemon(&[&disk]).start();
    let answer = daemon.cli(&["check"]);
    answer.exits(0);
    let entry = of(&answer.json["plan"], &ephemeral.mount);
    assert_eq!(entry["durability"], "transient", "{entry:#}");
    let at = ephemeral.at();
    has(&entry, &format!("state: /srv/app is a link to {at}/app"));
    has(&entry, &format!("state: /srv/served is a bind mount of {at}/served"));
    has(&entry, &format!("not_empty: app, served at the top of {at}"));
    assert_eq!(entry["at_risk"], serde_json::json!(["/srv/served", "/srv/app"]), "{entry:#}");
    let said = problems(&answer.json["plan"], "TRANSIENT_DATA");
    assert_eq!(said.len(), 1, "one sentence for one disk: {said:#?}");
    let message = said[0]["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("/srv/served, /srv/app, ") && message.ends_with("will not be in the snapshot"),
        "{message}"
    );
    drop(served);
}

fn whoever_writes_there_is_named_from_another_mount_namespace_too(lab: &Lab) {
    let (disk, ephemeral) = (lab.fs(Type::Ext4), lab.fs(Type::Xfs));
    let daemon = lab.daemon(&[&disk]).set("transient.mounts", mounts(&[&ephemeral])).start();
    let write = |program: &[&str], file: &str| {
        let script = format!("exec 3>{}; exec sleep 60", ephemeral.mount.join(file).display());
        command(program[0]).args(&program[1..]).args(["sh", "-c", &script]).spawn().expect("it starts")
    };
    let mut writers = [write(&["env"], "a"), write(&["unshare", "--mount"], "b")];
    let there =
        until(Duration::from_secs(5), || ephemeral.mount.join("a").exists() && ephemeral.mount.join("b").exists());
    assert!(there, "nobody writes");
    // exec is a moment later
    let named = until(Duration::from_secs(5), || {
        let entry = coverage(&daemon, &ephemeral.mount);
        risks(&entry).iter().any(|r| {
            r.starts_with("written: 2 processes sleep (pid ") && r.ends_with(") have 2 files open for writing")
        })
    });
    assert!(named, "{:#?}", risks(&coverage(&daemon, &ephemeral.mount)));
    writers.iter_mut().for_each(|writer| {
        writer.kill().expect("it was ours");
        writer.wait().expect("it was ours");
    });
}

fn units_and_dockers_root_are_found_by_their_own_files(lab: &Lab) {
    let (disk, ephemeral) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    let at = ephemeral.at();
    for directory in ["docker", "backup"] {
        fs::create_dir(ephemeral.mount.join(directory)).expect("writable");
    }
    for (path, text) in [
        ("/etc/docker/daemon.json", format!("{{\"data-root\": \"{at}/docker\"}}")),
        ("/etc/systemd/system/backup.service", format!("[Service]\nWorkingDirectory={at}/backup\n")),
    ] {
        fs::create_dir_all(Path::new(path).parent().expect("a file")).expect("memory");
        fs::write(path, text).expect("memory");
    }
    let daemon = lab.daemon(&[&disk]).set("transient.mounts", mounts(&[&ephemeral])).start();
    let entry = coverage(&daemon, &ephemeral.mount);
    has(&entry, &format!("state: the root of docker is {at}/docker, as /etc/docker/daemon.json has it"));
    has(&entry, &format!("state: backup.service works in {at}/backup"));
    let said = daemon.freeze(&["--for", "10s"]);
    assert_eq!(risks(&of(&said, &ephemeral.mount)), risks(&entry), "a hold says what a check says");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
}

fn an_empty_disk_is_not_refused_and_one_file_is(lab: &Lab) {
    let (disk, ephemeral) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    let setup = lab.daemon(&[&disk]).set("transient.mounts", mounts(&[&ephemeral])).set("transient.policy", "refuse");
    let daemon = setup.start();
    fs::write(ephemeral.mount.join("swapfile"), "pages").expect("writable");
    let report = daemon.freeze(&["--for", "10s"]);
    assert_eq!(problems(&report, "TRANSIENT_DATA"), [] as [Value; 0], "an empty disk is nothing to warn about");
    assert!(risks(&of(&report, &ephemeral.mount))[0].starts_with("benign: "), "{report:#}");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    fs::write(ephemeral.mount.join("file1.txt"), "somebody's work").expect("writable");
    let answer = daemon.cli(&["freeze"]);
    answer.exits(4).says("file1.txt at the top of").says("[[transient.mount]]");
    assert_eq!(answer.reason(), "TRANSIENT_DATA", "{answer:?}");
    assert_eq!(daemon.phase(), "idle");
    assert_eq!(daemon.cli(&["check"]).exits(4).json["would_refuse"], true);
}

fn a_loss_accepted_in_writing_is_a_note_and_holds(lab: &Lab) {
    let (disk, ephemeral) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    fs::write(ephemeral.mount.join("file1.txt"), "scratch").expect("writable");
    let accepted = exception(&ephemeral, "accept", Some("scratch only"));
    let setup = lab.daemon(&[&disk]).set("transient.mounts", mounts(&[&ephemeral])).set("transient.policy", "refuse");
    let daemon = setup.set("transient.mount", accepted).start();
    let report = daemon.freeze(&["--for", "10s"]);
    assert_eq!(of(&report, &ephemeral.mount)["accepted"], "scratch only", "{report:#}");
    let said = problems(&report, "TRANSIENT_DATA");
    assert_eq!((said.len(), &said[0]["severity"]), (1, &"note".into()), "{said:#?}");
    assert!(said[0]["message"].as_str().is_some_and(|m| m.ends_with("; accepted: scratch only")), "{said:#?}");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
}

fn a_mount_of_its_own_policy_goes_by_that(lab: &Lab) {
    let (disk, one, other) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    let transient = mounts(&[&one, &other]);
    let setup = lab.daemon(&[&disk]).set("transient.mounts", transient);
    let daemon = setup.set("transient.mount", exception(&one, "refuse", None)).start();
    fs::write(other.mount.join("file"), "x").expect("writable");
    daemon.freeze(&["--for", "10s"]);
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    fs::write(one.mount.join("file"), "x").expect("writable");
    let answer = daemon.cli(&["freeze"]);
    answer.exits(4).says(one.at());
    assert!(!answer.json["error"]["message"].to_string().contains(other.at()), "{answer:?}");
}

fn disks_the_caller_leaves_out_are_not_frozen_and_what_of_ours_lies_there_is_said(lab: &Lab) {
    let (data, tools) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    let (writer, free) = (lab.writer(&data), lab.writer(&tools));
    let program = tools.mount.join("hook.sh");
    fs::write(&program, "#!/bin/sh\n").expect("writable");
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("writable");
    let daemon = lab.daemon(&[&data, &tools]).start();
    fs::create_dir_all(daemon.setup().hooks_dir()).expect("memory");
    symlink(&program, daemon.setup().hooks_dir().join("10-tool")).expect("memory");
    let disk = data.disk.device.to_str().expect("ASCII");
    let report = daemon.freeze(&["--for", "10s", "--disk", disk]);
    writer.assert_blocked();
    assert!(!free.is_blocked(), "its disk is in no snapshot");
    let (kept, left) = (of(&report, &data.mount), of(&report, &tools.mount));
    assert_eq!((&kept["in_snapshot"], &left["in_snapshot"]), (&"yes".into(), &"no".into()), "{report:#}");
    has(&left, &format!("state: the hook 10-tool is {}", program.display()));
    assert_eq!(kept["risks"].as_array().map_or(0, Vec::len), 0, "{kept:#}");
    let said = problems(&report, "OUTSIDE_SNAPSHOT");
    assert_eq!((said.len(), &said[0]["subject"]), (1, &tools.at().into()), "{said:#?}");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    let answer = daemon.cli(&["freeze", "--disk", "serial=nobody"]);
    answer.exits(4);
    assert_eq!(answer.reason(), "DISK_NOT_FOUND", "{answer:?}");
    drop((writer, free));
}

fn a_disk_the_caller_captures_is_frozen_however_transient(lab: &Lab) {
    let (disk, ephemeral) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    fs::write(ephemeral.mount.join("file1.txt"), "x").expect("writable");
    let setup = lab.daemon(&[&disk, &ephemeral]).set("transient.mounts", mounts(&[&ephemeral]));
    let daemon = setup.set("transient.policy", "refuse").start();
    let both = [&disk, &ephemeral].map(|fs| fs.disk.device.to_str().expect("ASCII").to_owned());
    let writer = lab.writer(&ephemeral);
    let report = daemon.freeze(&["--for", "10s", "--disk", &both[0], "--disk", &both[1]]);
    writer.assert_blocked();
    assert_eq!(problems(&report, "TRANSIENT_DATA"), [] as [Value; 0], "{report:#}");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    drop(writer);
}

/// Nobody answers: whoever looks into it waits for ever.
fn a_dead_fuse_mount_in_the_way_is_not_waited_for(lab: &Lab) {
    let (disk, ephemeral) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    fs::create_dir(ephemeral.mount.join("data")).expect("writable");
    let daemon = lab.daemon(&[&disk]).set("transient.mounts", mounts(&[&ephemeral])).start();
    let node = Path::new("/dev/fuse");
    let made = mknod(node, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(10, 229));
    let open = fs::OpenOptions::new().read(true).write(true).open(node);
    let (Ok(()), Ok(nobody)) = (made, open) else { lab.skip("no FUSE in this kernel") };
    fs::create_dir_all("/srv/dead").expect("writable");
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", nobody.as_raw_fd());
    mount(Some("nobody"), "/srv/dead", Some("fuse"), MsFlags::empty(), Some(options.as_str())).expect("mounted");
    let dead = Bind("/srv/dead");
    // in the way of everything that is looked at
    symlink("/srv/dead/x", "/srv/a").expect("memory");
    symlink(ephemeral.mount.join("data"), "/srv/b").expect("memory");
    fs::create_dir_all("/etc/docker").expect("memory");
    fs::write("/etc/docker/daemon.json", "{\"data-root\": \"/srv/dead/docker\"}").expect("memory");
    fs::create_dir_all("/etc/systemd/system").expect("memory");
    fs::write("/etc/systemd/system/dead.service", "[Service]\nExecStart=/srv/a/run\nWorkingDirectory=/srv/dead\n")
        .expect("memory");
    let begun = now();
    let answer = daemon.cli(&["check"]);
    let took = now() - begun;
    answer.exits(0);
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    assert_eq!(problems(&answer.json["plan"], "COVERAGE_INCOMPLETE"), [] as [Value; 0]);
    has(&of(&answer.json["plan"], &ephemeral.mount), &format!("state: /srv/b is a link to {}/data", ephemeral.at()));
    drop(dead);
    drop(nobody);
}

fn what_lies_there_is_counted_and_in_a_later_check(lab: &Lab) {
    let (disk, ephemeral) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    for (directory, files) in [("large", 30), ("small", 3)] {
        fs::create_dir(ephemeral.mount.join(directory)).expect("writable");
        for file in 0..files {
            fs::write(ephemeral.mount.join(directory).join(file.to_string()), [7; 40_000]).expect("writable");
        }
    }
    let daemon = lab.daemon(&[&disk]).set("transient.mounts", mounts(&[&ephemeral])).start();
    let mut entry = Value::Null;
    let counted = until(Duration::from_secs(15), || {
        entry = coverage(&daemon, &ephemeral.mount);
        entry["contents"].is_object()
    });
    assert!(counted, "{entry:#}\n{}", daemon.log());
    let contents = &entry["contents"];
    // with lost+found and the directories themselves
    assert_eq!((&contents["files"], &contents["complete"]), (&36.into(), &true.into()), "{contents:#}");
    assert_eq!(contents["largest"][0]["path"], format!("{}/large", ephemeral.at()), "{contents:#}");
    assert!(contents["bytes"].as_u64().is_some_and(|bytes| (1_300_000..2_000_000).contains(&bytes)), "{contents:#}");
    let threads = || fs::read_dir(format!("/proc/{}/task", daemon.pid())).map_or(0, Iterator::count);
    assert!(until(Duration::from_secs(10), || threads() == 1), "{} threads are left", threads());
}

fn a_count_gives_way_to_a_hold_and_is_made_afterwards(lab: &Lab) {
    let (disk, ephemeral) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    fs::write(ephemeral.mount.join("file1.txt"), "x").expect("writable");
    let daemon = lab.daemon(&[&disk]).set("transient.mounts", mounts(&[&ephemeral])).start();
    // before the first count begins, a second after the start
    let report = daemon.freeze(&["--for", "20s"]);
    assert!(of(&report, &ephemeral.mount)["contents"].is_null(), "{report:#}");
    std::thread::sleep(Duration::from_secs(2));
    let counting = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("it runs").flatten();
        tasks.filter(|t| fs::read_to_string(t.path().join("comm")).is_ok_and(|name| name.trim() == "count")).count()
    };
    assert_eq!(counting(), 0, "something is counted while held");
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    let counted = until(Duration::from_secs(10), || coverage(&daemon, &ephemeral.mount)["contents"].is_object());
    assert!(counted, "it is never counted");
}

fn nothing_is_looked_for_while_held(lab: &Lab) {
    let (disk, ephemeral) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    fs::write(ephemeral.mount.join("file1.txt"), "x").expect("writable");
    let daemon = lab.daemon(&[&disk]).set("transient.mounts", mounts(&[&ephemeral])).start();
    daemon.freeze(&["--for", "10s"]);
    let answer = daemon.cli(&["check"]);
    answer.exits(0);
    assert_eq!(of(&answer.json["plan"], &ephemeral.mount)["risks"].as_array().map_or(0, Vec::len), 0);
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
}
