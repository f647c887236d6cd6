//! One block device as /sys and udev describe it. Called by `disks`, which ties them together.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Component, Path, PathBuf},
};

use super::{Dev, read_small};

/// One block device as the kernel names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    pub dev: Dev,
    /// "vda1", "dm-0", "loop3"
    pub name: String,
    pub size_bytes: u64,
    /// Some: a partition of this disk
    pub partition: Option<Partition>,
    /// what dm, md or bcache built it from
    pub slaves: Vec<Dev>,
    /// the file behind a loop device, as the kernel prints it
    pub loop_file: Option<LoopFile>,
    pub dm: Option<DeviceMapper>,
    /// "raid1", "linear" …
    pub md_level: Option<String>,
    /// bcache: whether what it caches is whole without the cache; else the cache is among the slaves
    pub cache: Option<Cache>,
    /// zram or brd: its contents live in memory
    pub memory: bool,
    pub identity: Identity,
    /// of the file system or volume directly on it, as udev or `/dev/disk` has it
    pub uuid: Option<String>,
    pub label: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    pub disk: Dev,
    pub number: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopFile {
    /// in whatever mount namespace it was attached from
    pub path: PathBuf,
    /// unlinked since
    pub deleted: bool,
}

/// The cache of a bcache device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// "writeback", "writethrough" …; empty: could not be read
    pub mode: String,
    /// kernel names of the caching devices
    pub devices: Vec<String>,
    /// it may hold what the disk behind it does not have yet
    pub needed: bool,
}

/// A device-mapper device's own names; `uuid` starts with `LVM-`, `CRYPT-`, `mpath-` …
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceMapper {
    pub name: String,
    pub uuid: String,
}

/// What hardware says about itself; trimmed, `None` when absent or empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    pub vendor: Option<String>,
    pub model: Option<String>,
    pub serial: Option<String>,
    pub wwid: Option<String>,
    pub nguid: Option<String>,
    /// "0000:00:05.0"
    pub pci: Option<String>,
    /// host:channel:target:lun
    pub scsi: Option<String>,
    /// the VMBus device id of the controller, without braces (Hyper-V and Azure)
    pub vmbus: Option<String>,
    pub removable: bool,
}

pub(super) fn device(root: &Path, dev: Dev, dir: &Path) -> Option<BlockDevice> {
    let name = dir.file_name()?.to_str()?.replace('!', "/");
    let size_bytes = line(dir.join("size")).and_then(|sectors| sectors.parse::<u64>().ok()).unwrap_or(0) * 512;
    if size_bytes == 0 && is_spare(&name) {
        return None;
    }
    let partition = line(dir.join("partition")).and_then(|number| {
        let disk = Dev::parse(&line(dir.parent()?.join("dev"))?)?;
        Some(Partition { disk, number: number.parse().ok()? })
    });
    let loop_file = line(dir.join("loop/backing_file")).map(|path| match path.strip_suffix(" (deleted)") {
        Some(path) => LoopFile { path: path.into(), deleted: true },
        None => LoopFile { path: path.into(), deleted: false },
    });
    let dm = line(dir.join("dm/name"))
        .map(|name| DeviceMapper { name, uuid: line(dir.join("dm/uuid")).unwrap_or_default() });
    let udev = Udev::read(root, dev);
    let identity = match partition {
        Some(_) => Identity::default(),
        None => identity(dir, &udev),
    };
    Some(BlockDevice {
        dev,
        size_bytes,
        memory: is_memory(&name),
        name,
        partition,
        slaves: Vec::new(),
        loop_file,
        dm,
        md_level: line(dir.join("md/level")),
        cache: cache(dir),
        identity,
        uuid: udev.get("ID_FS_UUID"),
        label: udev.get("ID_FS_LABEL"),
    })
}

/// `bcache/` of a bcache device is that of the disk behind it; `bcache/cache` is the set of its caches
/// (`Documentation/admin-guide/bcache.rst`).
fn cache(dir: &Path) -> Option<Cache> {
    let name = dir.file_name()?.to_str()?;
    if !is_numbered(name, &["bcache"]) {
        return None;
    }
    let dir = dir.join("bcache");
    // "[writethrough] writeback writearound none"
    let modes = line(dir.join("cache_mode")).unwrap_or_default();
    let mode = modes.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("", |(mode, _)| mode);
    let clean = line(dir.join("state")).is_some_and(|state| state == "clean" || state == "no cache");
    let device = |(link, target): (PathBuf, String)| {
        let of_cache = target == "bcache" && link.file_name()?.to_str()?.starts_with("cache");
        let target = of_cache.then(|| fs::read_link(&link).ok()).flatten()?;
        Some(target.parent()?.file_name()?.to_str()?.to_owned())
    };
    let mut devices: Vec<String> = links(&dir.join("cache")).into_iter().filter_map(device).collect();
    devices.sort();
    let needed = !(clean && matches!(mode, "writethrough" | "writearound" | "none"));
    Some(Cache { mode: mode.to_owned(), devices, needed })
}

fn is_memory(name: &str) -> bool {
    is_numbered(name, &["zram", "ram"])
}

/// Waiting to be given something: every machine has eight loops or sixteen nbds that are nothing.
fn is_spare(name: &str) -> bool {
    is_numbered(name, &["loop", "nbd"])
}

fn is_numbered(name: &str, kinds: &[&str]) -> bool {
    kinds.iter().any(|kind| {
        name.strip_prefix(kind).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    })
}

fn identity(dir: &Path, udev: &Udev) -> Identity {
    let parent = dir.join("device");
    let either = |name: &str| line(dir.join(name)).or_else(|| line(parent.join(name)));
    let parts: Vec<&str> = dir.iter().filter_map(|part| part.to_str()).collect();
    let scsi = parent
        .canonicalize()
        .ok()
        .and_then(|path| Some(path.file_name()?.to_str()?.to_string()))
        .filter(|name| name.split(':').count() == 4 && name.bytes().all(|b| b.is_ascii_digit() || b == b':'));
    Identity {
        vendor: either("vendor").filter(|vendor| !vendor.starts_with("0x")),
        model: either("model"),
        serial: either("serial")
            .or_else(|| udev.get("ID_SERIAL_SHORT"))
            .or_else(|| unit_serial_number(&fs::read(parent.join("vpd_pg80")).ok()?)),
        wwid: either("wwid"),
        nguid: line(dir.join("nguid")).filter(|id| id.bytes().any(|b| b != b'0' && b != b'-')),
        pci: parts.iter().rev().find(|part| is_pci_address(part)).map(ToString::to_string),
        vmbus: scsi.as_ref().and_then(|_| vmbus_id(&parent)),
        scsi,
        removable: line(dir.join("removable")).as_deref() == Some("1"),
    }
}

/// SCSI's unit serial number page: four bytes of header, then text (SPC-4, 7.8.15).
fn unit_serial_number(page: &[u8]) -> Option<String> {
    let serial = String::from_utf8_lossy(page.get(4..)?).trim_matches(['\0', ' ']).to_string();
    (!serial.is_empty()).then_some(serial)
}

/// dddd:dd:dd.d
pub(super) fn is_pci_address(part: &str) -> bool {
    let lengths: Vec<usize> = part.split([':', '.']).map(str::len).collect();
    lengths == [4, 2, 2, 1]
        && part.bytes().all(|b| b.is_ascii_hexdigit() || b == b':' || b == b'.')
        && part.contains('.')
        && part.matches(':').count() == 2
}

/// The controller's `device_id`, a few directories above a SCSI device.
fn vmbus_id(device: &Path) -> Option<String> {
    let device = device.canonicalize().ok()?;
    let id = device.ancestors().take(6).find_map(|dir| line(dir.join("device_id")))?;
    Some(id.trim_matches(['{', '}']).to_ascii_lowercase())
}

/// udev's database of one device: `E:NAME=value` lines.
pub(super) struct Udev(String);

impl Udev {
    pub(super) fn read(root: &Path, dev: Dev) -> Self {
        Self(fs::read_to_string(root.join(format!("run/udev/data/b{dev}"))).unwrap_or_default())
    }

    pub(super) fn get(&self, name: &str) -> Option<String> {
        let value = self.0.lines().find_map(|l| l.strip_prefix("E:")?.strip_prefix(name)?.strip_prefix('='))?;
        (!value.is_empty()).then(|| value.to_string())
    }
}

/// The journal of an ext4 file system, if it is a device: its kernel thread is then `jbd2/sdb1`, not `jbd2/sda1-8`.
pub(super) fn external_journal(root: &Path, name: &str) -> Option<String> {
    let pid = line(root.join("sys/fs/ext4").join(name).join("journal_task"))?;
    let comm = line(root.join("proc").join(pid).join("comm"))?;
    Some(comm.strip_prefix("jbd2/")?.to_string())
}

/// Kernel names by what `/dev/disk/by-*` links call them: name → decoded link name.
pub(super) fn by_links(root: &Path, dir: &str) -> HashMap<String, String> {
    links(&root.join(dir))
        .into_iter()
        .filter_map(|(link, target)| Some((target, unescape(link.file_name()?.to_str()?))))
        .collect()
}

/// udev writes `\x20` for bytes a file name should not have.
fn unescape(name: &str) -> String {
    let mut out = Vec::new();
    let mut rest = name.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = (first == b'\\' && tail.first() == Some(&b'x'))
            .then(|| u8::from_str_radix(str::from_utf8(tail.get(1..3)?).ok()?, 16).ok())
            .flatten();
        rest = match hex {
            Some(byte) => {
                out.push(byte);
                &tail[3..]
            }
            None => {
                out.push(first);
                tail
            }
        };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Symbolic links in `dir` with the last component of their targets. `readlink` alone: nothing is opened.
fn links(dir: &Path) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        // the directory itself says which are links
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()))
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            Some((entry.path(), target.file_name()?.to_str()?.to_string()))
        })
        .collect()
}

/// The links a file system's source may be spelt as. Only directories udev owns: others below /dev may be mount points.
pub(super) fn aliases(root: &Path) -> BTreeMap<PathBuf, String> {
    let dev = root.join("dev");
    let below = |dir: PathBuf| names_in(&dir).into_iter().map(move |name| dir.join(name));
    // Azure's are one deeper: /dev/disk/azure/local/by-index/0
    let azure = dev.join("disk/azure");
    let deeper = below(azure.clone()).chain(below(azure.join("local"))).chain(below(azure.join("data")));
    let directories =
        [dev.clone(), dev.join("mapper"), dev.join("md")].into_iter().chain(below(dev.join("disk"))).chain(deeper);
    let absolute =
        |(link, target): (PathBuf, String)| Some((Path::new("/").join(link.strip_prefix(root).ok()?), target));
    directories.flat_map(|dir| links(&dir)).filter_map(absolute).collect()
}

/// Where a link of /sys leads: `../../devices/…`, below which there are no more links. One system call instead of one for
/// each directory on the way.
pub(super) fn followed(link: &Path) -> io::Result<PathBuf> {
    let target = fs::read_link(link)?;
    let mut path = link.parent().unwrap_or(Path::new("/")).to_owned();
    for part in target.components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            part => path.push(part),
        }
    }
    Ok(path)
}

pub(super) fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

pub(super) fn line(path: PathBuf) -> Option<String> {
    let bytes = read_small(&path).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().to_string();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn udevs_escapes_and_partition_like_names_are_read_right() {
        assert_eq!(unescape(r"cloudimg\x20rootfs"), "cloudimg rootfs");
        assert_eq!(unescape(r"odd\x2"), r"odd\x2");
        assert_eq!(unescape(r"é\x"), r"é\x");
        assert!(is_memory("ram0") && is_memory("zram12") && !is_memory("ram") && !is_memory("rambo1"));
        assert!(is_pci_address("0000:00:05.0") && !is_pci_address("0:0:0:1") && !is_pci_address("0000.00.05:0"));
    }

    proptest! {
        #[test]
        fn no_name_makes_decoding_panic(name in "(\\\\|x|[0-9a-f]|é|:|\\.){0,12}") {
            unescape(&name);
            is_pci_address(&name);
            Dev::parse(&name);
            unit_serial_number(name.as_bytes());
        }
    }
}
