//! The file systems on block devices: where they are mounted, how full they are, which disks they lie on. Called for
//! `guest-get-fsinfo`, and so chosen, named and ordered as QEMU's own agent does: hosts show its answer to people and find
//! their own disks by it.
//!
//! Unlike that agent, nothing is asked about a path that a dead server or a hung FUSE daemon could keep: how full such a
//! file system is stays unsaid.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::statvfs::statvfs;

use super::{
    Dev, Kind,
    attachment::{self, Attachment},
    disks::{self, BlockGraph},
    mounts::{self, MountLine, Table, kind_of},
    superblocks::under,
    sysfs::{self, Udev},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// of its device: "vda1", "dm-0"; its number where /sys does not know it
    pub name: String,
    pub mount_point: PathBuf,
    pub fs_type: String,
    /// `None`: it cannot be known, or not without asking somebody who may never answer
    pub usage: Option<Usage>,
    /// through device-mapper and RAID down to real disks and partitions; a loop device has none
    pub disks: Vec<Disk>,
}

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub used: u64,
    /// as far as others than root may fill it
    pub total: u64,
    /// with what is reserved for root
    pub total_privileged: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// "/dev/vda1", when it is a partition that is used
    pub dev: Option<String>,
    /// udev's `ID_SERIAL`: model and serial number
    pub serial: Option<String>,
    pub attachment: Attachment,
}

/// Reads them, last mounted first.
///
/// # Errors
/// `proc/self/mountinfo` cannot be read.
pub fn read(root: &Path) -> io::Result<Vec<FileSystem>> {
    let mounts = mounts::read(root)?;
    // The graph is for one question only, and few guests raise it.
    let has_btrfs = mounts.iter().any(|line| line.fs_type == "btrfs");
    let graph = if has_btrfs { disks::read(root) } else { BlockGraph::default() };
    let listed = listed(&mounts, &|source| Some(graph.by_source(source)?.dev));
    let table = Table::new(&mounts);
    let one = |(dev, line): (Dev, &MountLine)| {
        let link = root.join(format!("sys/dev/block/{dev}"));
        let name = link.canonicalize().ok().and_then(|dir| Some(dir.file_name()?.to_str()?.to_owned()));
        FileSystem {
            name: name.unwrap_or_else(|| dev.to_string()),
            mount_point: line.mount_point.clone(),
            fs_type: line.fs_type.clone(),
            usage: may_be_asked(line, &table).then(|| usage(&under(root, &line.mount_point))).flatten(),
            disks: disks_below(root, link),
        }
    };
    let mut found: Vec<FileSystem> = listed.into_iter().map(one).collect();
    found.reverse();
    Ok(found)
}

/// Mounts of block devices with their numbers, the first mount of each, in the order of the table. btrfs has a number of
/// its own, and is known by the device it was mounted from.
fn listed<'a>(mounts: &'a [MountLine], device: &dyn Fn(&str) -> Option<Dev>) -> Vec<(Dev, &'a MountLine)> {
    let mut seen = BTreeSet::new();
    let on_a_device = |line: &'a MountLine| match (line.dev.major, line.fs_type.as_str()) {
        (0, "btrfs") => Some((device(&line.source)?, line)),
        (0, _) => None,
        (_, _) => Some((line.dev, line)),
    };
    mounts.iter().filter_map(on_a_device).filter(|(dev, _)| seen.insert(*dev)).collect()
}

fn may_be_asked(line: &MountLine, table: &Table) -> bool {
    // not over-mounted either: the answer would be another file system's, and that one may be remote
    kind_of(&line.fs_type) != Kind::Remote && table.is_visible(line) && table.untouchable_above(line).is_none()
}

fn usage(mount_point: &Path) -> Option<Usage> {
    let found = statvfs(mount_point).ok()?;
    let used = found.blocks().saturating_sub(found.blocks_free());
    let unit = found.fragment_size();
    Some(Usage {
        used: used * unit,
        total: (used + found.blocks_available()) * unit,
        total_privileged: found.blocks() * unit,
    })
}

/// The disks and partitions at the bottom of a block device, in the reverse of the order /sys has them.
fn disks_below(root: &Path, device: PathBuf) -> Vec<Disk> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    collect(root, device, &mut seen, &mut found);
    found.reverse();
    found
}

fn collect(root: &Path, device: PathBuf, above: &mut BTreeSet<PathBuf>, found: &mut Vec<Disk>) {
    let Ok(dir) = device.canonicalize() else { return };
    if !dir.to_string_lossy().contains("/devices/virtual/block/") {
        found.push(disk(root, &dir));
        return;
    }
    // A circle, which the kernel does not allow, must not be walked for ever; a disk reached in two ways is listed twice.
    if !above.insert(dir.clone()) {
        return;
    }
    for slave in fs::read_dir(dir.join("slaves")).into_iter().flatten().flatten() {
        collect(root, slave.path(), above, found);
    }
    above.remove(&dir);
}

fn disk(root: &Path, dir: &Path) -> Disk {
    let uevent = fs::read_to_string(dir.join("uevent")).unwrap_or_default();
    let dev = sysfs::line(dir.join("dev")).as_deref().and_then(Dev::parse);
    Disk {
        dev: uevent.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(|name| format!("/dev/{name}")),
        serial: dev.and_then(|dev| Udev::read(root, dev).get("ID_SERIAL")),
        attachment: attachment::read(dir),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fixture::fixture, *};

    fn points(text: &str, device: &dyn Fn(&str) -> Option<Dev>) -> Vec<String> {
        let mounts = mounts::parse(text);
        listed(&mounts, device).iter().map(|(dev, line)| format!("{} {dev}", line.mount_point.display())).collect()
    }

    #[test]
    fn what_is_on_a_block_device_is_listed_once_where_it_was_mounted_first() {
        let text = "1 0 254:1 / / rw - ext4 /dev/vda1 rw\n\
                    2 1 0:22 / /proc rw - proc proc rw\n\
                    3 1 254:1 /srv /bind rw - ext4 /dev/vda1 rw\n\
                    4 1 0:40 / /net rw - nfs4 host:/x rw\n\
                    5 1 7:0 / /snap rw - squashfs /dev/loop0 ro\n\
                    6 1 8:1 / /ntfs rw - fuseblk /dev/sda1 rw\n";
        assert_eq!(points(text, &|_| None), ["/ 254:1", "/snap 7:0", "/ntfs 8:1"]);
    }

    #[test]
    fn subvolumes_are_listed_under_the_device_they_were_mounted_from() {
        let text = "1 0 0:30 /@ / rw - btrfs /dev/vda2 rw\n\
                    2 1 0:30 /@home /home rw - btrfs /dev/vda2 rw\n\
                    3 1 0:44 / /x rw - btrfs /dev/gone rw\n";
        let vda2 = Dev { major: 254, minor: 2 };
        assert_eq!(points(text, &|source| (source == "/dev/vda2").then_some(vda2)), ["/ 254:2"]);
    }

    #[test]
    fn nobody_who_may_not_answer_is_asked_how_full_a_file_system_is() {
        let mounts = mounts::parse(
            "1 0 8:1 / / rw - ext4 a rw\n\
             2 1 8:2 / /covered rw - ext4 b rw\n\
             3 2 0:40 / /covered rw - nfs4 srv:/ rw\n\
             4 1 0:41 / /net rw - nfs4 srv:/ rw\n\
             5 4 8:3 / /net/below rw - ext4 c rw\n\
             6 1 8:4 / /ntfs rw - fuseblk d rw\n",
        );
        let table = Table::new(&mounts);
        let asked: Vec<u64> = mounts.iter().filter(|line| may_be_asked(line, &table)).map(|line| line.id).collect();
        assert_eq!(asked, [1]);
    }

    #[test]
    fn a_volume_has_an_entry_for_each_disk_below_it() {
        let found = read(fixture("lvm-on-two-disks").path()).expect("a mount table");
        assert_eq!(found.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["dm-0", "vda1"], "last mounted first");
        let mut units: Vec<u32> = found[0].disks.iter().map(|disk| disk.attachment.unit).collect();
        units.sort_unstable();
        assert_eq!(units.len(), 2);
        assert_eq!(found[1].disks.len(), 1);
    }

    #[test]
    fn a_loop_device_has_no_disk_and_a_device_sys_does_not_know_has_its_number() {
        let root = fixture("loop-on-ext4");
        let found = read(root.path()).expect("a mount table");
        let on_loop = found.iter().find(|f| f.name == "loop0").expect("mounted");
        assert_eq!(on_loop.disks, []);
        let table = root.path().join("proc/self/mountinfo");
        let text = fs::read_to_string(&table).expect("there") + "99 1 8:77 / /odd rw - ext4 /dev/x rw\n";
        fs::write(table, text).expect("written");
        assert_eq!(read(root.path()).expect("a mount table")[0].name, "8:77");
    }

    #[test]
    fn this_machine_says_how_full_its_root_is() {
        let found = read(Path::new("/")).expect("a mount table");
        if let Some(root) = found.iter().find(|f| f.mount_point == Path::new("/")) {
            let usage = root.usage.expect("local");
            assert!(usage.used <= usage.total && usage.total <= usage.total_privileged, "{usage:?}");
        }
    }
}
