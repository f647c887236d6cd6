//! `verify` of devices and images: graded as mounted copies are, and nobody can tell afterwards that it looked.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::{Lab, Type, command, daemon::Answer, disk::Disk, process::signal, process::tool, until};

facts! {
    images_are_graded_without_being_touched within 90,
    a_partition_is_graded_and_what_has_no_receipt_is_only_named within 60,
    a_device_is_graded_unless_somebody_writes_to_it within 60,
    a_btrfs_is_not_looked_at_beside_its_original within 60,
    a_verify_that_is_killed_leaves_nothing_attached within 60,
    an_image_that_is_cut_short_or_damaged_is_refused_with_a_sentence within 60,
    a_fresh_disk_in_the_place_of_a_lost_one_is_not_taken_for_it within 60,
    what_is_no_raw_image_is_named,
}

fn verify(lab: &Lab, paths: &[&Path]) -> Answer {
    let paths = paths.iter().map(|path| path.to_str().expect("ASCII"));
    lab.holdstill(&["--json", "verify"].into_iter().chain(paths).collect::<Vec<_>>())
}

/// A copy cut while held.
fn held(lab: &Lab, kind: Type, id: &str) -> PathBuf {
    let fs = lab.fs(kind);
    let daemon = lab.daemon(&[&fs]).start();
    daemon.freeze(&["--id", id, "--for", "20s"]);
    let copy = fs.copy();
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
    copy
}

/// Content and times of a file.
fn print_of(path: &Path) -> (String, std::time::SystemTime) {
    let modified = fs::metadata(path).and_then(|about| about.modified()).expect("it is there");
    (tool(command("sha256sum").arg(path)), modified)
}

/// Nothing is attached that has this file behind it.
fn nothing_attached(file: &Path) {
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(file).expect("it is there")).to_string();
    let mut left = String::new();
    let free = until(Duration::from_secs(5), || {
        left = tool(command("losetup").args(["-a", "-n", "-O", "NAME,BACK-INO"]));
        !left.lines().any(|line| line.split_whitespace().nth(1) == Some(inode.as_str()))
    });
    assert!(free, "{} is still attached:\n{left}", file.display());
}

fn images_are_graded_without_being_touched(lab: &Lab) {
    for (kind, grade) in
        [(Type::Ext4, "cut-inside"), (Type::Xfs, "consistent-with-hold"), (Type::Btrfs, "consistent-with-hold")]
    {
        let copy = held(lab, kind, kind.name());
        let before = print_of(&copy);
        let answer = verify(lab, &[&copy]);
        answer.exits(0);
        assert_eq!(
            (&answer.json["grade"], &answer.json["hold_id"]),
            (&grade.into(), &kind.name().into()),
            "{answer:?}"
        );
        assert_eq!(print_of(&copy), before, "{} was touched", kind.name());
        nothing_attached(&copy);
    }
}

/// A disk with an MBR: the copy from 1 MiB on, and behind it 1 MiB of nothing.
fn partitioned(lab: &Lab, copy: &Path) -> PathBuf {
    const MIB: u64 = 1 << 20;
    let disk = lab.store("partitioned.img");
    let size = fs::metadata(copy).expect("it is there").len();
    let mut table = vec![0_u8; 512];
    let sectors = |bytes: u64| u32::try_from(bytes / 512).expect("small").to_le_bytes();
    for (at, (start, length)) in [(MIB, size), (MIB + size, MIB)].into_iter().enumerate() {
        let entry = &mut table[446 + 16 * at..462 + 16 * at];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&sectors(start));
        entry[12..16].copy_from_slice(&sectors(length));
    }
    table[510..].copy_from_slice(&[0x55, 0xAA]);
    fs::write(&disk, table).expect("there is room");
    let (from, to) = (format!("if={}", copy.display()), format!("of={}", disk.display()));
    tool(command("dd").args([&from, &to]).args(["bs=1M", "seek=1", "conv=notrunc,sparse", "status=none"]));
    fs::OpenOptions::new().write(true).open(&disk).and_then(|file| file.set_len(2 * MIB + size)).expect("sparse");
    disk
}

fn a_partition_is_graded_and_what_has_no_receipt_is_only_named(lab: &Lab) {
    let disk = partitioned(lab, &held(lab, Type::Ext4, "parts"));
    let before = print_of(&disk);
    let answer = verify(lab, &[&disk]);
    answer.exits(0);
    let found: Vec<(&Value, &Value)> =
        answer.json["filesystems"].as_array().expect("a list").iter().map(|f| (&f["partition"], &f["grade"])).collect();
    assert_eq!(found, [(&1.into(), &"cut-inside".into()), (&2.into(), &"none".into())], "{answer:?}");
    assert_eq!(print_of(&disk), before);
    nothing_attached(&disk);
}

fn a_device_is_graded_unless_somebody_writes_to_it(lab: &Lab) {
    let copy = held(lab, Type::Ext4, "device");
    let before = print_of(&copy);
    let device = Disk::attach(&copy);
    let answer = verify(lab, &[&device.device]);
    answer.exits(0);
    assert_eq!(answer.json["grade"], "cut-inside", "{answer:?}");
    drop(device);
    assert_eq!(print_of(&copy), before);
    let mounted = lab.mount_copy(Type::Ext4, &copy);
    for path in [&mounted.disk.device, &copy] {
        let refused = verify(lab, &[path]);
        refused.exits(4).says(mounted.at());
        assert_eq!(refused.reason(), "IN_USE");
    }
}

fn a_btrfs_is_not_looked_at_beside_its_original(lab: &Lab) {
    let fs = lab.fs(Type::Btrfs);
    let copy = fs.copy();
    let refused = verify(lab, &[&copy]);
    refused.exits(4).says("mix the two up");
    assert!(fs.writable_within(Duration::from_secs(2)));
    nothing_attached(&copy);
}

fn a_verify_that_is_killed_leaves_nothing_attached(lab: &Lab) {
    let copies = [held(lab, Type::Ext4, "killed"), held(lab, Type::Xfs, "killed")];
    let before: Vec<_> = copies.iter().map(|copy| print_of(copy)).collect();
    let mut cut_short = 0;
    for n in 0..24_u64 {
        let word = [Signal::SIGKILL, Signal::SIGINT, Signal::SIGTERM][n as usize % 3];
        let mut verify = command(crate::lab::daemon::BINARY);
        verify.arg("verify").args(&copies).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = verify.spawn().expect("it is built");
        std::thread::sleep(Duration::from_millis(2 + 3 * n));
        signal(child.id().cast_signed(), word);
        let status = crate::lab::finish(&mut child, Duration::from_secs(10)).expect("it ends");
        cut_short += usize::from(status.code().is_none());
    }
    assert!(cut_short > 0, "all were done before they could be killed");
    for (copy, before) in copies.iter().zip(before) {
        nothing_attached(copy);
        assert_eq!(print_of(copy), before);
    }
}

fn an_image_that_is_cut_short_or_damaged_is_refused_with_a_sentence(lab: &Lab) {
    let copy = held(lab, Type::Ext4, "damaged");
    let image = lab.store("damaged.img");
    type Damage = fn(&mut Vec<u8>);
    let cases: [(&str, Damage); 7] = [
        ("empty", |bytes| bytes.clear()),
        ("one byte", |bytes| bytes.truncate(1)),
        ("half a superblock", |bytes| bytes.truncate(1024 + 200)),
        ("a superblock alone", |bytes| bytes.truncate(4096)),
        ("no group descriptors", |bytes| bytes[2048..8192].fill(0xff)),
        ("an impossible block size", |bytes| bytes[1024 + 24] = 200),
        ("noise behind the superblock", |bytes| {
            bytes[8192..4 << 20]
                .iter_mut()
                .zip(0_u32..)
                .for_each(|(b, n)| *b = (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        }),
    ];
    let whole = fs::read(&copy).expect("64 MiB");
    for (what, damage) in cases {
        let mut bytes = whole.clone();
        damage(&mut bytes);
        fs::write(&image, bytes).expect("there is room");
        let answer = verify(lab, &[&image]);
        assert_eq!(answer.code, Some(1), "{what}: {answer:?}");
        let problems = answer.json["problems"].as_array().expect("a list").len();
        assert!(problems <= 1 && answer.err.lines().count() == 1, "{what}: {answer:?}");
        nothing_attached(&image);
    }
}

fn a_fresh_disk_in_the_place_of_a_lost_one_is_not_taken_for_it(lab: &Lab) {
    let root = lab.fs(Type::Ext4);
    let lost = lab.fs_at(Type::Ext4, Path::new("/mnt/resource"), 64);
    fs::create_dir(lost.mount.join("photos"))
        .and_then(|()| fs::write(lost.mount.join("photos/file1.txt"), "dear"))
        .expect("it fits");
    let daemon = lab.daemon(&[&root]).set("transient.mounts", vec!["/mnt/resource".to_owned()]).start();
    daemon.freeze(&["--id", "nightly", "--for", "20s"]);
    let copy = root.copy();
    daemon.thaw();
    drop(daemon);
    let (at, image) = (root.mount.clone(), copy.clone());
    drop((root, lost));

    // the copy alone
    let answer = verify(lab, &[&copy]);
    answer.exits(0).says("/mnt/resource");
    assert_eq!(answer.json["problems"][0]["code"], "LEFT_BEHIND", "{answer:?}");

    // the restored machine, which got a new disk
    let _root = lab.mount_copy(Type::Ext4, &image);
    let bare = verify(lab, &[]);
    bare.exits(0).says("nothing is mounted at /mnt/resource");
    let fresh = lab.fs_at(Type::Ext4, Path::new("/mnt/resource"), 64);
    let answer = verify(lab, &[]);
    answer.exits(0).says("the data is not here");
    assert_eq!(answer.json["problems"][0]["code"], "LOOK_ALIKE", "{answer:?} {}", at.display());
    drop(fresh);
}

fn what_is_no_raw_image_is_named(lab: &Lab) {
    let file = lab.store("other.img");
    let with = |at: usize, magic: &[u8]| {
        let mut bytes = vec![0; 1 << 20];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        fs::write(&file, bytes).expect("there is room");
        verify(lab, &[&file])
    };
    with(0, b"QFI\xfb").exits(4).says("qemu-nbd -r");
    with(0, b"vhdxfile").exits(4).says("vhdx");
    with(0, b"LUKS\xba\xbe").exits(1).says("cryptsetup open --readonly");
    with(0x218, b"LVM2 001").exits(1).says("vgchange");
    with(0xff6, b"SWAPSPACE2").exits(1).says("swap space");
    let fifo = lab.memory_dir("fifo").join("pipe");
    tool(command("mkfifo").arg(&fifo));
    verify(lab, &[&fifo]).exits(2).says("neither a directory nor");
    let stranger = command("setpriv")
        .args(["--reuid=65534", "--clear-groups", crate::lab::daemon::BINARY, "verify"])
        .arg(&fifo)
        .output();
    assert_eq!(stranger.expect("util-linux").status.code(), Some(2));
    let image = Path::new("/run/strangers.img");
    fs::write(image, [0; 4096]).expect("memory");
    let stranger = command("setpriv")
        .args(["--reuid=65534", "--clear-groups", crate::lab::daemon::BINARY, "verify"])
        .arg(image)
        .output();
    assert_eq!(stranger.expect("util-linux").status.code(), Some(6));
}
