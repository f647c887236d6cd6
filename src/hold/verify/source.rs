//! What was given to look at, and how its file systems are reached: a directory as it is, a device or image through
//! read-only loop devices and detached mounts (`sys::attach`). Nothing is written, no journal replayed, and nothing stays
//! attached however this process ends.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::grade::Mounted as Use;
use crate::{
    guest::{
        self, Dev, mounts,
        partitions::{self, Partition},
        signature::{self, Content},
        superblock::Raw,
    },
    sys::attach::{self, Mounted},
};

/// Why nothing was looked at.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("look at {path}: {source}")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("look at {0}: it is neither a directory nor a block device nor an image file")]
    NoSource(PathBuf),
    #[error("look into {0}: only root can attach a device or an image")]
    NotRoot(PathBuf),
    #[error("look into {path}: it is {what}, not a raw image")]
    Wrapped { path: PathBuf, what: &'static str },
    #[error("look into {path}: {mount} is mounted from it and can be written to")]
    Mounted { path: PathBuf, mount: PathBuf },
    #[error("look into {path}: the btrfs {uuid} is mounted on this machine, and the kernel would mix the two up")]
    SameBtrfs { path: PathBuf, uuid: String },
}

impl Refused {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Refused::Unreadable { .. } => String::new(),
            Refused::NoSource(_) => "give the root of a mounted copy, a block device, or a raw image".into(),
            Refused::NotRoot(_) => "run it as root, or mount the copy and give its directory".into(),
            Refused::Wrapped { path, what } => {
                let path = path.display();
                format!(
                    "`qemu-nbd -r -c /dev/nbd0 {path}` and verify /dev/nbd0, or `qemu-img convert -f {what} -O raw {path} copy.raw`"
                )
            }
            Refused::Mounted { mount, .. } => {
                let mount = mount.display();
                format!(
                    "unmount {mount} first, or remount it read-only; for what is mounted there `holdstill verify {mount}`"
                )
            }
            Refused::SameBtrfs { .. } => "verify the copy on another machine, or unmount the original first".into(),
        }
    }
}

/// One file system to look at.
#[derive(Debug)]
pub struct Place {
    /// as it was given
    pub path: PathBuf,
    /// of a device or image with a partition table
    pub partition: Option<u32>,
    pub kind: Kind,
}

#[derive(Debug)]
pub enum Kind {
    Directory,
    /// part of a device or image
    Raw {
        file: File,
        offset: u64,
        length: u64,
        raw: Raw,
    },
    /// nothing that could carry a receipt: why, and what to do
    Nothing {
        why: String,
        hint: &'static str,
    },
}

/// A file system that can be read now.
#[derive(Debug)]
pub struct Opened {
    pub root: PathBuf,
    pub raw: Option<Raw>,
    pub usage: Use,
    /// unmounted with it
    _mounted: Option<Mounted>,
}

impl Place {
    /// For people: "/mnt/copy", "disk.img (partition 2)".
    pub fn name(&self) -> String {
        let path = super::plain::text(&self.path.to_string_lossy());
        self.partition.map_or(path.clone(), |number| format!("{path} (partition {number})"))
    }

    /// # Errors
    /// Why it cannot be mounted, for people.
    pub fn open(&self) -> Result<Opened, String> {
        match &self.kind {
            Kind::Directory => Ok(directory(&self.path)),
            Kind::Raw { file, offset, length, raw } => mount(file, *offset, *length, raw),
            Kind::Nothing { why, .. } => Err(why.clone()),
        }
    }
}

/// What there is to look at in each of `paths`. Attaches nothing yet.
///
/// # Errors
/// The first that must not be looked into, or cannot.
pub fn places(paths: &[PathBuf]) -> Result<Vec<Place>, Refused> {
    let mut places = Vec::new();
    for path in paths {
        let unreadable = |source| Refused::Unreadable { path: path.clone(), source };
        let metadata = fs::metadata(path).map_err(unreadable)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            places.push(Place { path: path.clone(), partition: None, kind: Kind::Directory });
        } else if kind.is_file() || kind.is_block_device() {
            if !nix::unistd::geteuid().is_root() {
                return Err(Refused::NotRoot(path.clone()));
            }
            refuse_in_use(path, &metadata)?;
            places.extend(within(path, &metadata)?);
        } else {
            return Err(Refused::NoSource(path.clone()));
        }
    }
    Ok(places)
}

/// The file systems of a device or image.
fn within(path: &Path, metadata: &fs::Metadata) -> Result<Vec<Place>, Refused> {
    let unreadable = |source| Refused::Unreadable { path: path.to_owned(), source };
    let file = attach::open_quietly(path).map_err(unreadable)?;
    let size = match metadata.file_type().is_block_device() {
        true => nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekEnd)
            .map_err(|e| unreadable(e.into()))?
            .cast_unsigned(),
        false => metadata.len(),
    };
    let whole = read_part(&file, 0, size);
    let place = |partition, offset, length| -> Result<Place, Refused> {
        let part = read_part(&file, offset, length);
        let nothing = |why: String, hint| Ok(Kind::Nothing { why, hint });
        let kind = match signature::of(&part, length) {
            Content::Filesystem(raw) => {
                if raw.fs_type == "btrfs" && Path::new("/sys/fs/btrfs").join(&raw.uuid).exists() {
                    return Err(Refused::SameBtrfs { path: path.to_owned(), uuid: raw.uuid });
                }
                file.try_clone().map(|file| Kind::Raw { file, offset, length, raw }).map_err(unreadable)
            }
            Content::Wrapped { format } => return Err(Refused::Wrapped { path: path.to_owned(), what: format }),
            Content::Member { of, hint } => nothing(format!("it is part of {of}"), hint),
            Content::Other(name) => nothing(format!("it is {name}, which has no receipts"), ""),
            Content::Unknown => nothing("it holds no file system that is known here".to_owned(), ""),
        };
        Ok(Place { path: path.to_owned(), partition, kind: kind? })
    };
    let all = place(None, 0, size)?;
    if let Kind::Nothing { why, .. } = &all.kind
        && why.contains("no file system that is known")
        && let Some(found) = partitions::read(&whole, size)
    {
        if found.is_empty() {
            let why = "its partition table names nothing that lies on it".to_owned();
            return Ok(vec![Place { kind: Kind::Nothing { why, hint: "" }, ..all }]);
        }
        return found
            .iter()
            .map(|Partition { number, offset, length }| place(Some(*number), *offset, *length))
            .collect();
    }
    Ok(vec![all])
}

/// Reads from a part; what cannot be read is not there.
fn read_part(file: &File, start: u64, length: u64) -> impl Fn(u64, usize) -> Vec<u8> + '_ {
    move |offset, wanted| {
        let left = usize::try_from(length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; wanted.min(left)];
        let mut filled = 0;
        while filled < bytes.len() {
            let Some(at) = start.checked_add(offset).and_then(|at| at.checked_add(filled as u64)) else { break };
            match file.read_at(&mut bytes[filled..], at) {
                Ok(0) | Err(_) => break,
                Ok(more) => filled += more,
            }
        }
        bytes.truncate(filled);
        bytes
    }
}

/// Mounted where it can be written to: it would change under our eyes, and two mounts of one journal are no copy.
fn refuse_in_use(path: &Path, metadata: &fs::Metadata) -> Result<(), Refused> {
    let lines = mounts::read(Path::new("/")).map_err(|source| Refused::Unreadable { path: path.to_owned(), source })?;
    let devices: Vec<Dev> = match metadata.file_type().is_block_device() {
        true => with_partitions(&[device(metadata.rdev())]),
        false => with_partitions(&loops_over(metadata)),
    };
    let names: Vec<PathBuf> = devices.iter().filter_map(|dev| node(*dev)).collect();
    let writes = |line: &&mounts::MountLine| line.super_options.split(',').any(|option| option == "rw");
    let of_it = |line: &&mounts::MountLine| {
        devices.contains(&line.dev) || (line.dev.major == 0 && names.iter().any(|name| Path::new(&line.source) == name))
    };
    match lines.iter().filter(writes).find(of_it) {
        Some(line) => Err(Refused::Mounted { path: path.to_owned(), mount: line.mount_point.clone() }),
        None => Ok(()),
    }
}

fn device(dev: u64) -> Dev {
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Dev { major: number(nix::sys::stat::major(dev)), minor: number(nix::sys::stat::minor(dev)) }
}

/// Loop devices over this file.
fn loops_over(metadata: &fs::Metadata) -> Vec<Dev> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().join("loop").exists())
        .filter_map(|entry| {
            let node = Path::new("/dev").join(entry.file_name());
            let backing = attach::backing_of(&node).ok()?;
            (backing == (metadata.dev(), metadata.ino())).then(|| fs::metadata(node).ok())?
        })
        .map(|node| device(node.rdev()))
        .collect()
}

fn with_partitions(disks: &[Dev]) -> Vec<Dev> {
    let parts = |dev: &Dev| {
        let entries = fs::read_dir(format!("/sys/dev/block/{dev}")).into_iter().flatten().flatten();
        let dev_of = |entry: fs::DirEntry| {
            let dir = entry.path();
            dir.join("partition").exists().then(|| fs::read_to_string(dir.join("dev")).ok())?.as_deref().and_then(parse)
        };
        std::iter::once(*dev).chain(entries.filter_map(dev_of)).collect::<Vec<_>>()
    };
    disks.iter().flat_map(parts).collect()
}

fn parse(text: &str) -> Option<Dev> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(Dev { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

fn node(dev: Dev) -> Option<PathBuf> {
    let name = fs::read_link(format!("/sys/dev/block/{dev}")).ok()?;
    Some(Path::new("/dev").join(name.file_name()?))
}

/// A mounted copy: its raw superblock is read past the mount.
fn directory(root: &Path) -> Opened {
    let line = || {
        let root = fs::canonicalize(root).ok()?;
        let lines = guest::mounts::read(Path::new("/")).ok()?;
        guest::mounts::covering(&lines, &root).cloned()
    };
    let line = line();
    let device = line.as_ref().and_then(|line| match line.dev.major {
        // btrfs has a device number of its own, and names one of its devices
        0 => line.source.starts_with("/dev/").then(|| PathBuf::from(&line.source)),
        _ => node(line.dev),
    });
    let raw = device.and_then(|device| guest::superblock::read(&device).ok().flatten());
    let still = line.is_some_and(|line| line.super_options.split(',').any(|option| option == "ro"));
    let usage = if still { Use::Still } else { Use::ReadWrite };
    Opened { root: root.to_owned(), raw, usage, _mounted: None }
}

fn mount(file: &File, offset: u64, length: u64, raw: &Raw) -> Result<Opened, String> {
    let attached =
        attach::attach_read_only(file, offset, length).map_err(|error| format!("cannot be attached: {error}"))?;
    let (fs_type, options): (_, &[&[&str]]) = match raw.fs_type {
        "xfs" => ("xfs", &[&["norecovery", "nouuid"]]),
        // the second is what kernels before 5.9 call it
        "btrfs" => ("btrfs", &[&["rescue=nologreplay"], &["nologreplay"]]),
        // one driver for all of them
        _ => ("ext4", &[&["noload"]]),
    };
    let mut refused = String::new();
    for options in options {
        match attach::mount_detached(fs_type, &attached.path, options) {
            Ok(mounted) => {
                let root = mounted.root();
                return Ok(Opened { root, raw: Some(raw.clone()), usage: Use::Still, _mounted: Some(mounted) });
            }
            Err(error) if refused.is_empty() => refused = format!("cannot be mounted as {fs_type}: {error}"),
            Err(_) => {}
        }
    }
    Err(super::plain::text(&refused))
}
