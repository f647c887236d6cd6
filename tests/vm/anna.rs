//! Anna put her files on the 30 GB under /mnt, had the machine snapshotted, deleted it, and launched the copy. Here she is
//! told before, and whoever restores is told by the copy alone.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use crate::{
    lab::{Lab, command, process::tool},
    machine::{Agent, Boot, Holdstill, Inside, Machine, Place, agent::Setup, oracle},
};

facts! {
    annas_copy_names_the_disk_her_file_was_on within 240,
}

/// What Nova makes anew for every machine it starts, with the same label.
fn ephemeral_disk(place: &Place, name: &str) -> String {
    let disk = place.disk.join(name);
    fs::File::create(&disk).and_then(|file| file.set_len(64 << 20)).expect("the lab's directory is writable");
    tool(command("mke2fs").args(["-q", "-F", "-t", "ext4", "-L", "ephemeral0"]).arg(&disk));
    disk.display().to_string()
}

/// A machine as Nova starts it: it says so, it has a number of its own, and a disk to be thrown away.
fn on_nova(boot: Boot, number: u32, ephemeral: &str) -> Boot {
    let uuid = format!("5ca1ab1e-0000-4000-8000-{number:012}");
    let firmware = format!("type=1,manufacturer=OpenStack Foundation,product=OpenStack Nova,uuid={uuid}");
    let drive = format!("if=none,id=ephemeral,file={ephemeral},format=raw,cache=unsafe");
    let qemu = ["-smbios", &firmware, "-drive", &drive, "-device", "virtio-blk-pci,drive=ephemeral"];
    Boot { qemu: qemu.map(str::to_owned).to_vec(), ..boot }
}

/// As cloud-init does it at every start: whatever is on the disk, it is mounted at /mnt.
fn mount_ephemeral(guest: &Inside) {
    guest.sh("umount /mnt/data; mount -t ext4 /dev/vdc /mnt");
}

fn begin(guest: &Inside) {
    let agent: &dyn Agent = &Holdstill;
    agent.begin(guest, &Setup { settings: vec![("listen.guest_agent", "\"off\"")], ..Setup::default() });
    assert!(guest.becomes("holdstill status", Duration::from_secs(30)), "{}", guest.output("agent"));
}

/// The one document a verb prints.
fn asked(guest: &Inside, line: &str) -> (i32, Value) {
    let (status, said) = guest.run(&format!("holdstill {line} --json 2>/dev/null"));
    (status, serde_json::from_str(&said).unwrap_or_else(|e| panic!("{line}: {e}: {said}")))
}

/// What is said of /mnt: in a report's coverage.
fn of_mnt(coverage: &Value) -> &Value {
    let named = |entry: &&Value| entry["mounts"].as_array().is_some_and(|mounts| mounts.contains(&json!("/mnt")));
    coverage.as_array().expect("a list").iter().find(named).unwrap_or_else(|| panic!("no /mnt in {coverage:#}"))
}

/// Cuts the root disk alone, as a server snapshot of Nova does.
fn cut_root(guest: &Machine) -> std::path::PathBuf {
    let so_far = guest.place.disk.join("root.qcow2");
    let next = guest.place.disk.join("root-after.qcow2");
    guest.qmp("blockdev-snapshot-sync", json!({"device": "root", "snapshot-file": next, "format": "qcow2"}));
    so_far
}

fn annas_copy_names_the_disk_her_file_was_on(lab: &Lab) {
    let place = Place::new(lab, "anna");
    let guest = Machine::boot(&place, &on_nova(Boot::small(), 1, &ephemeral_disk(&place, "ephemeral.raw")));
    mount_ephemeral(&guest);
    guest.sh("mkdir /mnt/photos && echo dear >/mnt/photos/file1.txt && ln -s /mnt/photos /srv/photos && echo dull >/srv/file2.txt && sync");
    begin(&guest);

    // before anything is cut
    let (_, check) = asked(&guest, "check");
    let before = of_mnt(&check["plan"]["coverage"]);
    assert_eq!((&before["disk"], &before["durability"]), (&"vdc".into(), &"transient".into()), "{before:#}");
    let warned = check["plan"]["problems"].to_string();
    assert!(warned.contains("TRANSIENT_DATA") && warned.contains("/mnt"), "{warned}");

    let (status, held) = asked(&guest, "freeze --id nightly --disk serial=root");
    assert_eq!(status, 0, "{held:#}");
    let copy = cut_root(&guest);
    let (status, thawed) = asked(&guest, "thaw nightly");
    assert_eq!((status, &thawed["report"]["verdict"]), (0, &"unbroken".into()), "{thawed:#}");
    guest.kill();
    drop(guest);

    // the copy alone, before anybody starts it
    let image = oracle::raw(&place, &copy);
    let verified = lab.holdstill(&["--json", "verify", image.to_str().expect("ASCII")]);
    names_what_was_left(&verified.json);
    assert_eq!(verified.json["grade"], "cut-inside", "{verified:?}");

    // started, with a new disk that looks the same
    let again = Place::new(lab, "launched");
    let data = place.disk.join("data.qcow2");
    let boot = Boot { copy_of: Some([copy, data]), ..Boot::small() };
    let launched = Machine::boot(&again, &on_nova(boot, 2, &ephemeral_disk(&again, "ephemeral.raw")));
    mount_ephemeral(&launched);
    assert_eq!(launched.sh("cat /srv/file2.txt").trim(), "dull");
    let (missing, said) = launched.run("cat /srv/photos/file1.txt");
    assert!(missing != 0 && said.contains("No such file"), "{said}");
    let (_, verified) = asked(&launched, "verify");
    names_what_was_left(&verified);
    assert!(verified.to_string().contains("LOOK_ALIKE"), "{verified:#}");
    let grade = verified["grade"].clone();

    // its daemon notices, does what is to be done on a clone, and the old testimony is not told twice
    launched.write(
        "/etc/holdstill/restored.d/10-note",
        "#!/bin/sh\necho $HOLDSTILL_RESTORED of $HOLDSTILL_ID >>/srv/noticed\n",
    );
    launched.sh("chmod 755 /etc/holdstill/restored.d/10-note");
    begin(&launched);
    assert!(launched.becomes("[ -s /srv/noticed ]", Duration::from_secs(20)), "{}", launched.output("agent"));
    let (_, status) = asked(&launched, "status");
    let restored = &status["restored"];
    assert_eq!((&restored["kind"], &restored["hold_id"]), (&"clone".into(), &"nightly".into()), "{status:#}");
    assert!(restored["differences"].to_string().contains("product_uuid"), "{restored:#}");
    let receipt = |guest: &Machine| asked(guest, "receipt /").1["state"].clone();
    assert!(launched.becomes("holdstill receipt / --json | grep -q restored", Duration::from_secs(10)));
    assert_eq!(receipt(&launched), "restored");
    assert_eq!(asked(&launched, "verify").1["grade"], grade, "in this boot it is known what the copy was worth");
    launched.sh("kill $(cat /run/agent.pid)");
    assert!(launched.becomes("! holdstill status", Duration::from_secs(10)));
    begin(&launched);
    launched.sh("sleep 2");
    assert_eq!(launched.sh("cat /srv/noticed").trim(), "clone of nightly", "once");

    // a plain snapshot of it is not one of that hold
    launched.sh("sync");
    let later = oracle::raw(&again, &cut_root(&launched));
    let verified = lab.holdstill(&["--json", "verify", later.to_str().expect("ASCII")]);
    verified.exits(3);
    assert_eq!(verified.json["grade"], "restored", "{verified:?}");
}

/// Which disk, where it was, and what on it: from the receipt.
fn names_what_was_left(verified: &Value) {
    let left = of_mnt(&verified["coverage"]);
    assert_eq!((&left["disk"], &left["in_snapshot"]), (&"vdc".into(), &"no".into()), "{left:#}");
    assert_eq!(left["durability"], "transient");
    let said = verified["problems"].to_string();
    assert!(said.contains("/mnt") && said.contains("photos"), "{said}");
}
