//! `/etc/fstab`, as far as it decides whether a restored copy boots (fstab(5), systemd.mount(5)). Read by the survey. A pure
//! parser of hostile text: a line it does not understand is no entry.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use super::{Dev, disks::BlockGraph, mounts};

const MOST_BYTES: u64 = 256 << 10;
/// No machine boots with as many.
const MOST_ENTRIES: usize = 1024;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub source: Source,
    /// the first word, as it is written
    pub spec: String,
    /// the mount point; "none" for swap
    pub target: PathBuf,
    pub fs_type: String,
    pub options: Vec<String>,
}

/// What is to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Uuid(String),
    Label(String),
    /// PARTUUID or PARTLABEL, as the link udev makes
    Partition(PathBuf),
    Path(PathBuf),
    /// tmpfs, a network share …
    Other,
}

/// Below `root`; nothing if there is none, or it is no small file.
pub fn read(root: &Path) -> Vec<Entry> {
    let mut text = String::new();
    let read = File::open(root.join("etc/fstab")).and_then(|file| file.take(MOST_BYTES).read_to_string(&mut text));
    if read.is_err() { Vec::new() } else { parse(&text) }
}

pub fn parse(text: &str) -> Vec<Entry> {
    text.lines().filter_map(entry).take(MOST_ENTRIES).collect()
}

fn entry(line: &str) -> Option<Entry> {
    let mut words = line.split_ascii_whitespace();
    let spec = words.next().filter(|word| !word.starts_with('#'))?;
    let (target, fs_type) = (words.next()?, words.next()?);
    let options = words.next().unwrap_or("defaults");
    Some(Entry {
        source: source(&mounts::unescape(spec)),
        spec: spec.to_owned(),
        target: mounts::unescape(target).into(),
        fs_type: fs_type.to_owned(),
        options: options.split(',').map(str::to_owned).collect(),
    })
}

fn source(spec: &str) -> Source {
    let (tag, value) = spec.split_once('=').unwrap_or(("", spec));
    let value = value.trim_matches(['"', '\'']);
    match tag.to_ascii_uppercase().as_str() {
        "UUID" => Source::Uuid(value.to_owned()),
        "LABEL" => Source::Label(value.to_owned()),
        "PARTUUID" => Source::Partition(Path::new("/dev/disk/by-partuuid").join(value.to_ascii_lowercase())),
        "PARTLABEL" => Source::Partition(Path::new("/dev/disk/by-partlabel").join(value)),
        _ if spec.starts_with('/') => Source::Path(spec.into()),
        _ => Source::Other,
    }
}

impl Entry {
    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|own| own == option)
    }

    pub fn is_swap(&self) -> bool {
        self.fs_type == "swap"
    }

    /// A file or directory of another file system: a swap file, a disk image, the other place of a bind mount.
    pub fn file(&self) -> Option<&Path> {
        match &self.source {
            Source::Path(path) if !path.starts_with("/dev") => Some(path),
            Source::Path(_) | Source::Uuid(_) | Source::Label(_) | Source::Partition(_) | Source::Other => None,
        }
    }

    /// Whether the boot goes on without it: not mounted at boot, on first use, after the network, or allowed to fail.
    pub fn may_fail(&self) -> bool {
        ["noauto", "nofail", "_netdev", "x-systemd.automount"].into_iter().any(|option| self.has(option))
    }

    /// The block device it means here.
    pub fn device(&self, graph: &BlockGraph) -> Option<Dev> {
        let find = |wanted: &str, of: fn(&super::disks::BlockDevice) -> Option<&str>| {
            graph.devices.values().find(|d| of(d).is_some_and(|own| own.eq_ignore_ascii_case(wanted))).map(|d| d.dev)
        };
        match &self.source {
            Source::Uuid(uuid) => find(uuid, |device| device.uuid.as_deref()),
            Source::Label(label) => {
                graph.devices.values().find(|d| d.label.as_deref() == Some(label.as_str())).map(|d| d.dev)
            }
            Source::Partition(link) => graph.by_source(link.to_str()?).map(|d| d.dev),
            Source::Path(path) => graph.by_source(path.to_str()?).map(|d| d.dev),
            Source::Other => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::guest::{disks, fixture::fixture};

    #[test]
    fn every_way_to_name_a_device_is_read() {
        let text = "# a comment\n\nUUID=\"6F1F-1A1E\" /boot/efi vfat umask=0077 0 1\n  LABEL=cloudimg\\040rootfs / ext4\n\
                    PARTUUID=AB-01 none swap sw 0 0\n/dev/vdb /mnt auto defaults,nofail,comment=cloudconfig 0 2\n\
                    tmpfs /tmp tmpfs\nhost:/x /net nfs _netdev\n/mnt/db /var/lib/db none bind\nbroken\n";
        let entries = parse(text);
        let sources: Vec<&Source> = entries.iter().map(|e| &e.source).collect();
        assert_eq!(sources[0], &Source::Uuid("6F1F-1A1E".into()));
        assert_eq!(sources[1], &Source::Label("cloudimg rootfs".into()));
        assert_eq!(sources[2], &Source::Partition("/dev/disk/by-partuuid/ab-01".into()));
        assert_eq!(sources[3], &Source::Path("/dev/vdb".into()));
        assert_eq!((sources[4], sources[5], sources.len()), (&Source::Other, &Source::Other, 7));
        assert!(entries[2].is_swap() && entries[6].file().is_some() && entries[3].may_fail() && !entries[0].may_fail());
    }

    #[test]
    fn an_entry_is_found_by_what_udev_knows() {
        let graph = disks::read(fixture("lvm-on-two-disks").path());
        let found = |spec: &str| parse(&format!("{spec} /x ext4"))[0].device(&graph).map(|dev| dev.to_string());
        assert_eq!(found("UUID=11111111-2222-3333-4444-555555555555").as_deref(), Some("254:1"));
        assert_eq!(found("LABEL=rootfs").as_deref(), Some("254:1"));
        assert_eq!(found("/dev/vg0/data").as_deref(), Some("252:0"));
        assert_eq!((found("UUID=no"), found("LABEL="), found("/dev/gone")), (None, None, None));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([ \\t\\n#=\\\\\"',/a-zA-Z0-9é]|UUID=|none|swap){0,20}") {
            parse(&text);
        }
    }
}
