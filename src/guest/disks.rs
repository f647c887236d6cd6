//! Block devices and what lies on what, from /sys alone. Called by [`super::read`]; `plan` orders by it, coverage names
//! disks by it, `transient` carries verdicts up through it. No block device is ever opened here.
//!
//! ```text
//!   superblock ──members──▶ block device ──slaves──▶ block device ──disk──▶ disk       (a leaf)
//!        │                        └───file of a loop device──▶ superblock ──▶ …
//!        └──upper and lower directories of an overlay──▶ superblock ──▶ …
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

pub use super::sysfs::{BlockDevice, Cache, DeviceMapper, Identity, LoopFile, Partition};
use super::{
    Dev, Kind, Superblock,
    mounts::{self, MountLine, Table},
    sysfs,
};

/// Bytes written to each block device since boot, from /proc/diskstats (`Documentation/admin-guide/iostats.rst`: field 7
/// is sectors of 512 bytes).
pub fn written(root: &Path) -> BTreeMap<Dev, u64> {
    let text = fs::read_to_string(root.join("proc/diskstats")).unwrap_or_default();
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let dev = Dev { major: fields.first()?.parse().ok()?, minor: fields.get(1)?.parse().ok()? };
        Some((dev, fields.get(9)?.parse::<u64>().ok()? * 512))
    };
    text.lines().filter_map(line).collect()
}

/// Something that could not be followed, for people: it costs an edge, and so perhaps the right order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub superblock: Dev,
    pub message: String,
}

/// Block devices and what they lie on, from /sys.
#[derive(Debug, Clone, Default)]
pub struct BlockGraph {
    pub devices: BTreeMap<Dev, BlockDevice>,
    pub notes: Vec<Note>,
    /// superblocks that are not simply on the device of their number: btrfs, external journals and logs
    members: BTreeMap<Dev, Vec<Dev>>,
    /// (superblock, member) that is more than a place for its files
    roles: BTreeMap<(Dev, Dev), Role>,
    /// loop devices: the superblock their file is on
    files: BTreeMap<Dev, Dev>,
    /// overlays: the superblocks of the directories they are made of, the writable one first
    layers: BTreeMap<Dev, Vec<Dev>>,
    /// mounted btrfs file systems: fsid and member devices
    btrfs: BTreeMap<String, Vec<Dev>>,
    /// superblocks' fsid, where /sys/fs knows it
    fsids: BTreeMap<Dev, String>,
    /// ext4 file systems whose journal is another device
    journals: BTreeMap<Dev, Dev>,
    /// what links in /dev lead to, by path: "/dev/mapper/vg-data" is "dm-0"
    aliases: BTreeMap<PathBuf, String>,
}

/// Reads `sys`, `dev/disk` and `run/udev/data` below `root`. What is missing there is missing in the graph.
pub fn read(root: &Path) -> BlockGraph {
    let mut graph = BlockGraph::default();
    let (uuids, labels) = (sysfs::by_links(root, "dev/disk/by-uuid"), sysfs::by_links(root, "dev/disk/by-label"));
    let mut pending = Vec::new();
    for entry in fs::read_dir(root.join("sys/dev/block")).into_iter().flatten().flatten() {
        let Some(dev) = entry.file_name().to_str().and_then(Dev::parse) else { continue };
        let Ok(dir) = sysfs::followed(&entry.path()) else { continue };
        let Some(mut device) = sysfs::device(root, dev, &dir) else { continue };
        device.uuid = device.uuid.or_else(|| uuids.get(&device.name).cloned());
        device.label = device.label.or_else(|| labels.get(&device.name).cloned());
        pending.push((dev, sysfs::names_in(&dir.join("slaves"))));
        graph.devices.insert(dev, device);
    }
    let by_name: HashMap<String, Dev> = graph.devices.values().map(|d| (d.name.clone(), d.dev)).collect();
    let find = |name: &String| by_name.get(&name.replace('!', "/")).copied();
    for (dev, mut slaves) in pending {
        let device = graph.devices.get_mut(&dev).expect("inserted above");
        if let Some(cache) = &device.cache {
            slaves.retain(|slave| !cache.devices.contains(slave));
            slaves.extend(cache.devices.iter().filter(|_| cache.needed).cloned());
        }
        device.slaves = slaves.iter().filter_map(find).collect();
    }
    for fsid in sysfs::names_in(&root.join("sys/fs/btrfs")) {
        let devices: Vec<Dev> =
            sysfs::names_in(&root.join("sys/fs/btrfs").join(&fsid).join("devices")).iter().filter_map(find).collect();
        if !devices.is_empty() {
            graph.btrfs.insert(fsid, devices);
        }
    }
    for name in sysfs::names_in(&root.join("sys/fs/ext4")) {
        let (Some(dev), Some(journal)) = (find(&name), sysfs::external_journal(root, &name)) else { continue };
        if let Some(journal) = find(&journal).filter(|journal| *journal != dev) {
            graph.journals.insert(dev, journal);
        }
    }
    graph.aliases = sysfs::aliases(root);
    graph
}

impl BlockGraph {
    /// A device by its kernel name.
    pub fn by_name(&self, name: &str) -> Option<&BlockDevice> {
        self.devices.values().find(|device| device.name == name)
    }

    /// The device a mount's source names: a kernel name, a link in /dev, `/dev/mapper/NAME` or `/dev/VG/LV`.
    pub fn by_source(&self, source: &str) -> Option<&BlockDevice> {
        let path = source.strip_prefix("/dev/")?;
        let dm_name = match path.split_once('/') {
            Some(("mapper", name)) => name.to_string(),
            Some((group, volume)) => format!("{}-{}", group.replace('-', "--"), volume.replace('-', "--")),
            None => String::new(),
        };
        self.by_name(path)
            .or_else(|| self.by_name(self.aliases.get(Path::new(source))?))
            .or_else(|| self.devices.values().find(|d| d.dm.as_ref().is_some_and(|dm| dm.name == dm_name)))
    }

    /// The disk of a partition, or the device itself.
    pub fn disk(&self, dev: Dev) -> Option<&BlockDevice> {
        let device = self.devices.get(&dev)?;
        match device.partition {
            Some(partition) => self.devices.get(&partition.disk),
            None => Some(device),
        }
    }

    /// The block devices a superblock was made from; empty if it is not on any.
    pub fn members(&self, superblock: Dev) -> Vec<Dev> {
        match self.members.get(&superblock) {
            Some(members) => members.clone(),
            None => self.devices.contains_key(&superblock).then_some(superblock).into_iter().collect(),
        }
    }

    /// The superblock that holds the file of a loop device, if that is known.
    pub fn file_of(&self, block_device: Dev) -> Option<Dev> {
        self.files.get(&block_device).copied()
    }

    /// The superblocks of an overlay's directories, the one its writes land on first.
    pub fn layers(&self, superblock: Dev) -> &[Dev] {
        self.layers.get(&superblock).map_or(&[], Vec::as_slice)
    }

    /// Everything at the bottom: disks, and superblocks that are on none (tmpfs). Through partitions, dm, md, bcache, loop
    /// devices and the writable layer of overlays.
    pub fn leaves(&self, superblock: Dev) -> Vec<Dev> {
        let mut leaves = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut left = vec![Node::Superblock(superblock)];
        while let Some(node) = left.pop() {
            if !seen.insert(node) {
                continue;
            }
            let below = self.directly_below(node);
            if below.is_empty() {
                let (Node::Superblock(dev) | Node::Block(dev)) = node;
                leaves.insert(dev);
            }
            left.extend(below);
        }
        leaves.into_iter().collect()
    }

    /// What a superblock or block device is made of, one level down, as far as writes are concerned.
    fn directly_below(&self, node: Node) -> Vec<Node> {
        self.parts(node).into_iter().filter(|(role, _)| *role != Role::LowerLayer).map(|(_, node)| node).collect()
    }

    /// All that a superblock or block device is made of, one level down, and what each part is to it.
    pub(super) fn parts(&self, node: Node) -> Vec<(Role, Node)> {
        match node {
            Node::Superblock(dev) => match self.layers(dev).split_first() {
                Some((&writable, lower)) => {
                    let lower = lower.iter().map(|layer| (Role::LowerLayer, Node::Superblock(*layer)));
                    std::iter::once((Role::Whole, Node::Superblock(writable))).chain(lower).collect()
                }
                None => {
                    let members = self.members(dev);
                    let several = members.len() > 1 && members.iter().all(|m| !self.roles.contains_key(&(dev, *m)));
                    let usual = if several { Role::Device } else { Role::Whole };
                    let role = |member| self.roles.get(&(dev, member)).copied().unwrap_or(usual);
                    members.into_iter().map(|member| (role(member), Node::Block(member))).collect()
                }
            },
            Node::Block(dev) => {
                let Some(device) = self.devices.get(&dev) else { return Vec::new() };
                if let Some(&outer) = self.files.get(&dev) {
                    return vec![(Role::Whole, Node::Superblock(outer))];
                }
                let cache = device.cache.iter().flat_map(|cache| &cache.devices);
                let cache: Vec<Dev> = cache.filter_map(|name| Some(self.by_name(name)?.dev)).collect();
                let slave = |slave: &Dev| {
                    let role = match device.slaves.len() {
                        1 => Role::Whole,
                        _ if cache.contains(slave) => Role::Cache,
                        _ => Role::Leg,
                    };
                    (role, Node::Block(*slave))
                };
                let disk = device.partition.iter().map(|partition| (Role::Whole, Node::Block(partition.disk)));
                device.slaves.iter().map(slave).chain(disk).collect()
            }
        }
    }

    /// The links in /dev that lead to a device.
    pub fn links<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Path> {
        self.aliases.iter().filter(move |(_, target)| *target == name).map(|(link, _)| link.as_path())
    }

    /// Whether all it is made of is zram or brd.
    pub fn is_in_memory(&self, superblock: Dev) -> bool {
        let leaves = self.leaves(superblock);
        !leaves.is_empty() && leaves.iter().all(|leaf| self.devices.get(leaf).is_some_and(|device| device.memory))
    }

    /// The UUID of a file system, if udev, `/dev/disk/by-uuid` or sysfs knows it.
    pub fn uuid(&self, superblock: Dev) -> Option<&str> {
        let own = self.fsids.get(&superblock).or_else(|| self.devices.get(&superblock)?.uuid.as_ref());
        own.map(String::as_str)
    }

    /// The label of a file system, if udev or `/dev/disk/by-label` knows it.
    pub fn label(&self, superblock: Dev) -> Option<&str> {
        self.members(superblock).iter().find_map(|dev| self.devices.get(dev)?.label.as_deref())
    }

    /// What a superblock itself says, where there is no udev to ask.
    pub fn learn_label(&mut self, superblock: Dev, label: &str) {
        for member in self.members(superblock) {
            if let Some(device) = self.devices.get_mut(&member) {
                device.label.get_or_insert_with(|| label.to_owned());
            }
        }
    }

    /// Ties superblocks to devices, loop devices to the file systems of their files, and overlays to their layers.
    pub fn connect(&mut self, superblocks: &[Superblock], mounts: &[MountLine]) {
        let table = Table::new(mounts);
        let known: BTreeSet<Dev> = superblocks.iter().map(|s| s.dev).collect();
        for superblock in superblocks {
            self.connect_members(superblock);
            if superblock.kind == Kind::Stacked {
                self.connect_layers(superblock, &table);
            }
        }
        let loops: Vec<(Dev, LoopFile)> =
            self.devices.values().filter_map(|d| Some((d.dev, d.loop_file.clone()?))).collect();
        for (dev, file) in loops {
            if let Some(outer) = table.covering(&file.path).map(|line| line.dev).filter(|outer| known.contains(outer)) {
                self.files.insert(dev, outer);
            }
        }
        for superblock in superblocks {
            self.note_loops(superblock);
        }
    }

    fn connect_members(&mut self, superblock: &Superblock) {
        let mut members = match superblock.fs_type.as_str() {
            "btrfs" => match self.btrfs_of(superblock) {
                Some((fsid, devices)) => {
                    self.fsids.insert(superblock.dev, fsid);
                    devices
                }
                None => self.by_source(&superblock.source).map(|device| device.dev).into_iter().collect(),
            },
            "bcachefs" => {
                superblock.source.split(':').filter_map(|part| self.by_source(part)).map(|device| device.dev).collect()
            }
            _ => self.members(superblock.dev),
        };
        if members.is_empty() {
            if superblock.kind == Kind::Freezable {
                self.note(superblock.dev, format!("{} is not a block device /sys knows", superblock.source));
            }
            return;
        }
        for (name, role) in [("logdev", Role::Log), ("rtdev", Role::Realtime)] {
            match mounts::option(&superblock.options, name)
                .map(|source| (source, self.by_source(source).map(|device| device.dev)))
            {
                Some((_, Some(device))) => {
                    members.push(device);
                    self.roles.insert((superblock.dev, device), role);
                }
                Some((source, None)) => {
                    self.note(superblock.dev, format!("{name}={source} is not a block device /sys knows"));
                }
                None => {}
            }
        }
        if let Some(journal) = self.journals.get(&superblock.dev) {
            members.push(*journal);
            self.roles.insert((superblock.dev, *journal), Role::Journal);
        }
        if members != [superblock.dev] {
            self.members.insert(superblock.dev, members);
        }
    }

    fn btrfs_of(&self, superblock: &Superblock) -> Option<(String, Vec<Dev>)> {
        let named = self.by_source(&superblock.source);
        let found = self
            .btrfs
            .iter()
            .find(|(_, devices)| named.is_some_and(|device| devices.contains(&device.dev)))
            // "/dev/root" names no device, and a removed one none of its; with one btrfs about there is no doubt.
            .or_else(|| self.btrfs.iter().next().filter(|_| self.btrfs.len() == 1));
        found.map(|(fsid, devices)| (fsid.clone(), devices.clone()))
    }

    fn connect_layers(&mut self, superblock: &Superblock, table: &Table) {
        let mut layers: Vec<Dev> = Vec::new();
        for name in ["upperdir", "workdir", "lowerdir", "lowerdir+", "datadir+"] {
            let values = superblock.options.split(',').filter_map(|o| o.strip_prefix(name)?.strip_prefix('='));
            // Relative ones are relative to whoever mounted it. Colons separate; `::` comes before data-only layers.
            for path in values.flat_map(|value| value.split(':')).filter(|path| path.starts_with('/')) {
                let layer = table.covering(Path::new(path)).map(|line| line.dev);
                // An overlay on itself is a path from another root, such as an initramfs.
                layers.extend(layer.filter(|dev| *dev != superblock.dev && !layers.contains(dev)));
            }
        }
        if !layers.is_empty() {
            self.layers.insert(superblock.dev, layers);
        }
    }

    /// Says what is doubtful about the loop devices below a superblock, and cuts off a file that would lie on itself.
    fn note_loops(&mut self, superblock: &Superblock) {
        for dev in self.loops_below(superblock.dev) {
            let device = &self.devices[&dev];
            let Some(file) = &device.loop_file else { continue };
            let subject = format!("{}'s file {}", device.name, file.path.display());
            match self.files.get(&dev) {
                Some(outer) if *outer == superblock.dev => {
                    self.files.remove(&dev);
                    let message = format!("{subject} is of another mount namespace: what it lies on is not known");
                    self.note(superblock.dev, message);
                }
                Some(_) if file.deleted => {
                    let message = format!("{subject} is deleted: taken to be on the file system it was on");
                    self.note(superblock.dev, message);
                }
                Some(_) => {}
                None => self.note(superblock.dev, format!("{subject} is on no file system known here")),
            }
        }
    }

    fn note(&mut self, superblock: Dev, message: String) {
        self.notes.push(Note { superblock, message });
    }

    /// Loop devices below a superblock, not through the files of other loop devices.
    fn loops_below(&self, superblock: Dev) -> Vec<Dev> {
        self.blocks_below(superblock)
            .into_iter()
            .filter(|dev| self.devices.get(dev).is_some_and(|d| d.loop_file.is_some()))
            .collect()
    }

    /// Every block device below a superblock down to disks and loop devices.
    pub fn blocks_below(&self, superblock: Dev) -> BTreeSet<Dev> {
        let mut seen = BTreeSet::new();
        let mut left = self.members(superblock);
        while let Some(dev) = left.pop() {
            if seen.insert(dev)
                && let Some(device) = self.devices.get(&dev)
            {
                left.extend(device.slaves.iter().copied().chain(device.partition.map(|p| p.disk)));
            }
        }
        seen
    }

    /// (inner, outer): what inner writes ends in a file on outer, so inner must freeze first.
    pub fn lies_on(&self, superblocks: &[Superblock]) -> Vec<(Dev, Dev)> {
        let mut edges = BTreeSet::new();
        for superblock in superblocks {
            let files = self.loops_below(superblock.dev).into_iter().filter_map(|dev| self.file_of(dev));
            let outer = self.layers(superblock.dev).iter().copied().chain(files);
            edges.extend(outer.filter(|outer| *outer != superblock.dev).map(|outer| (superblock.dev, outer)));
        }
        edges.into_iter().collect()
    }
}

/// A superblock and a block device may have the same number; what is below them differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Node {
    Superblock(Dev),
    Block(Dev),
}

/// What one part is to what is made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// all of it is there
    Whole,
    /// one of the devices of a btrfs or bcachefs
    Device,
    /// of a RAID, a logical volume …
    Leg,
    Journal,
    Log,
    Realtime,
    Cache,
    /// of an overlay: read, not written
    LowerLayer,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{self, Guest, fixture::fixture};

    fn guest(name: &str) -> Guest {
        guest::read(fixture(name).path()).unwrap()
    }

    fn dev(text: &str) -> Dev {
        Dev::parse(text).unwrap()
    }

    fn names(guest: &Guest, devs: &[Dev]) -> Vec<String> {
        devs.iter().map(|dev| guest.disks.devices.get(dev).map_or(dev.to_string(), |d| d.name.clone())).collect()
    }

    fn leaves(guest: &Guest, superblock: &str) -> Vec<String> {
        names(guest, &guest.disks.leaves(dev(superblock)))
    }

    fn edges(guest: &Guest) -> Vec<(String, String)> {
        guest.lies_on.iter().map(|(inner, outer)| (inner.to_string(), outer.to_string())).collect()
    }

    #[test]
    fn a_logical_volume_comes_down_to_its_disks() {
        let guest = guest("lvm-on-two-disks");
        assert_eq!(leaves(&guest, "252:0"), ["sda", "sdb"]);
        assert_eq!(leaves(&guest, "254:1"), ["vda"]);
        assert_eq!(guest.disks.devices[&dev("254:1")].partition, Some(Partition { disk: dev("254:0"), number: 1 }));
        let volume = guest.disks.by_source("/dev/mapper/vg0-data").unwrap();
        assert_eq!(volume.dm, Some(DeviceMapper { name: "vg0-data".into(), uuid: "LVM-bXqCkGRt".into() }));
        assert_eq!(guest.disks.by_source("/dev/vg0/data").map(|d| d.dev), Some(volume.dev));
        assert_eq!(guest.disks.by_source("/dev/dm-0").map(|d| d.dev), Some(volume.dev));
        assert_eq!(guest.disks.by_source("tmpfs"), None);
        assert_eq!(edges(&guest), []);
    }

    #[test]
    fn a_disk_says_who_it_is() {
        let guest = guest("lvm-on-two-disks");
        let disk = &guest.disks.by_name("sdb").unwrap();
        assert_eq!(disk.size_bytes, 20 << 30);
        let id = &disk.identity;
        assert_eq!((id.vendor.as_deref(), id.model.as_deref()), (Some("QEMU"), Some("QEMU HARDDISK")));
        assert_eq!((id.serial.as_deref(), id.wwid.as_deref()), (Some("serial-1"), Some("naa.6001401")));
        assert_eq!((id.pci.as_deref(), id.scsi.as_deref()), (Some("0000:00:05.0"), Some("0:0:0:1")));
        let root = guest.disks.disk(dev("254:1")).unwrap();
        assert_eq!((root.name.as_str(), root.identity.serial.as_deref()), ("vda", Some("root-disk")));
    }

    #[test]
    fn uuids_come_from_udev_or_from_links_and_are_not_made_up() {
        let guest = guest("lvm-on-two-disks");
        assert_eq!(guest.disks.uuid(dev("254:1")), Some("11111111-2222-3333-4444-555555555555"));
        assert_eq!(guest.disks.label(dev("254:1")), Some("rootfs"));
        assert_eq!(guest.disks.uuid(dev("252:0")), Some("6f1f1a1e-8f0b-4f8e-9c1e-0d3f4a5b6c7d"));
        assert_eq!(guest.disks.uuid(dev("8:0")), None);
    }

    #[test]
    fn a_raid_comes_down_to_all_its_legs() {
        let guest = guest("raid-with-one-transient-leg");
        assert_eq!(leaves(&guest, "9:0"), ["nvme0n1", "nvme1n1"]);
        assert_eq!(guest.disks.by_name("md0").unwrap().md_level.as_deref(), Some("raid1"));
    }

    #[test]
    fn an_all_zero_nguid_is_none() {
        let guest = guest("nvme");
        let nguid = |name| guest.disks.by_name(name).unwrap().identity.nguid.clone();
        assert_eq!(nguid("nvme0n1").as_deref(), Some("24a0dd40-4dc1-4b26-9af7-1c2a7e5f0d01"));
        assert_eq!(nguid("nvme1n1"), None);
        assert!(guest.disks.by_name("zram0").unwrap().memory && guest.disks.by_name("ram0").unwrap().memory);
    }

    #[test]
    fn a_file_system_on_a_loop_device_lies_on_the_one_its_file_is_on() {
        let guest = guest("loop-on-ext4");
        let expected = [("7:0", "254:0"), ("7:1", "254:0"), ("7:2", "0:25")];
        assert_eq!(edges(&guest), expected.map(|(inner, outer)| (inner.into(), outer.into())));
        assert_eq!((leaves(&guest, "7:0"), leaves(&guest, "7:2")), (vec!["vda".into()], vec!["0:25".into()]));
        let notes: Vec<Dev> = guest.disks.notes.iter().map(|note| note.superblock).collect();
        assert_eq!(notes, [dev("7:1")], "a deleted file is still on the disk, but say so");
    }

    #[test]
    fn loops_on_volumes_on_loops_make_a_chain() {
        let guest = guest("loop-on-lvm-on-loop");
        assert_eq!(edges(&guest), [("7:1".into(), "252:0".into()), ("252:0".into(), "254:0".into())]);
        assert_eq!(leaves(&guest, "7:1"), ["vda"]);
        let all: Vec<Dev> = guest.superblocks.iter().map(|s| s.dev).collect();
        let order = guest::order::levels(&all, &guest.lies_on, Some(dev("254:0"))).unwrap();
        assert_eq!(order, [vec![dev("7:1")], vec![dev("252:0")], vec![dev("254:0")]]);
    }

    #[test]
    fn btrfs_is_on_all_its_devices_whichever_its_source_names() {
        let guest = guest("btrfs-on-two-disks");
        assert_eq!(names(&guest, &guest.disks.members(dev("0:40"))), ["vdb", "vdc"]);
        assert_eq!(guest.disks.uuid(dev("0:40")), Some("0f8b8c1e-6f0c-4a57-9c55-3d1f4b6e7a21"));
        assert_eq!(guest.superblocks.iter().filter(|s| s.fs_type == "btrfs").count(), 1);
    }

    #[test]
    fn an_external_journal_is_a_member_too() {
        let guest = guest("btrfs-on-two-disks");
        assert_eq!(leaves(&guest, "254:0"), ["vda", "vdd"]);
    }

    #[test]
    fn an_external_log_is_a_member_and_one_nobody_knows_is_said() {
        let mut graph = read(fixture("nova").path());
        let text = "1 0 254:0 / / rw - xfs /dev/vda rw,attr2,logdev=/dev/vdb,noquota\n\
                    2 1 254:16 / /x rw - xfs /dev/vdb rw,logdev=/dev/gone\n";
        let mounts = mounts::parse(text);
        let superblocks = guest::superblocks::superblocks(&mounts, &[], &|_| true);
        graph.connect(&superblocks, &mounts);
        assert_eq!(graph.members(dev("254:0")), [dev("254:0"), dev("254:16")]);
        assert_eq!(graph.members(dev("254:16")), [dev("254:16")]);
        assert_eq!(graph.notes.len(), 1);
        assert!(graph.notes[0].message.contains("/dev/gone"), "{:?}", graph.notes);
    }

    #[test]
    fn a_loop_file_that_would_be_on_its_own_file_system_is_of_another_namespace() {
        let mut graph = read(fixture("loop-on-ext4").path());
        let mounts = mounts::parse("1 0 7:0 / / rw - ext4 /dev/loop0 rw\n");
        let superblocks = guest::superblocks::superblocks(&mounts, &[], &|_| true);
        graph.connect(&superblocks, &mounts);
        assert_eq!(graph.lies_on(&superblocks), []);
        assert!(graph.notes[0].message.contains("another mount namespace"), "{:?}", graph.notes);
    }

    #[test]
    fn an_overlay_lies_on_its_layers_and_writes_to_the_upper_one() {
        let mounts = mounts::parse(
            "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
             2 1 8:2 / /upper rw - ext4 /dev/sda2 rw\n\
             3 1 0:50 / /merged rw - overlay overlay rw,lowerdir=/usr:/merged:l/rel,upperdir=/upper/u,workdir=/upper/w\n",
        );
        let superblocks = guest::superblocks::superblocks(&mounts, &[], &|_| true);
        let mut graph = BlockGraph::default();
        graph.connect(&superblocks, &mounts);
        let overlay = dev("0:50");
        assert_eq!(graph.lies_on(&superblocks), [(overlay, dev("8:1")), (overlay, dev("8:2"))]);
        assert_eq!(graph.leaves(overlay), [dev("8:2")]);
    }

    #[test]
    fn a_circle_of_slaves_ends() {
        let mut graph = read(fixture("loop-on-lvm-on-loop").path());
        graph.devices.get_mut(&dev("7:0")).unwrap().slaves = vec![dev("252:0")];
        assert_eq!(graph.leaves(dev("252:0")), []);
    }
}
