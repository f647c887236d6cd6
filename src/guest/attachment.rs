//! How a disk is plugged into the machine, as its path in /sys tells: the address by which a hypervisor finds the disk in
//! its own description of the guest. Called by `filesystems`, for `guest-get-fsinfo`.
//!
//! ```text
//!   /sys/devices/pci0000:00/0000:00:05.0/virtio2/host0/target0:0:0/0:0:0:1/block/sda
//!                           controller           host  channel:target:lun
//! ```
//!
//! libvirt matches controller, bus, target and unit against its drives, and QEMU's own agent decided long ago what those
//! are for each controller: for virtio-scsi the unit is the lun and the target is left 0, for IDE the bus is the place of
//! the disk's port among its controller's, for SATA that place is the unit. The same numbers here, or the mapping is lost.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use super::sysfs::is_pci_address;

/// Named as QEMU's guest agent names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    Ide,
    Scsi,
    Virtio,
    Sata,
    Nvme,
    Usb,
    /// a controller QEMU's agent knows nothing of, such as Hyper-V's, Xen's or VMware's
    Unknown,
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ide => "ide",
            Self::Scsi => "scsi",
            Self::Virtio => "virtio",
            Self::Sata => "sata",
            Self::Nvme => "nvme",
            Self::Usb => "usb",
            Self::Unknown => "unknown",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciAddress {
    pub domain: u32,
    pub bus: u32,
    pub slot: u32,
    pub function: u32,
}

impl PciAddress {
    /// "0000:00:05.0"
    fn parse(text: &str) -> Option<Self> {
        let hex = |text| u32::from_str_radix(text, 16).ok();
        let (rest, function) = text.split_once('.').filter(|_| is_pci_address(text))?;
        let [domain, bus, slot] = <[&str; 3]>::try_from(rest.split(':').collect::<Vec<_>>()).ok()?;
        Some(Self { domain: hex(domain)?, bus: hex(bus)?, slot: hex(slot)?, function: hex(function)? })
    }
}

/// The address of a channel device (s390x).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CcwAddress {
    pub cssid: u32,
    pub ssid: u32,
    pub subchno: u32,
    pub devno: u32,
}

/// Where a disk is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attachment {
    pub bus_type: Bus,
    pub pci: Option<PciAddress>,
    pub ccw: Option<CcwAddress>,
    pub bus: u32,
    pub target: u32,
    pub unit: u32,
}

const UNKNOWN: Attachment = Attachment { bus_type: Bus::Unknown, pci: None, ccw: None, bus: 0, target: 0, unit: 0 };

/// Reads it from the canonical /sys directory of a disk or partition.
pub fn read(device: &Path) -> Attachment {
    let path = Sysfs::new(device);
    if let Some(pci) = path.below("pci") {
        path.on_pci(pci)
    } else if let Some(css) = path.below("css") {
        path.on_channel(css)
    } else {
        path.on_plain_virtio().unwrap_or(UNKNOWN)
    }
}

/// The path and its components.
struct Sysfs<'a> {
    path: &'a Path,
    parts: Vec<&'a str>,
}

impl<'a> Sysfs<'a> {
    fn new(path: &'a Path) -> Self {
        Self { path, parts: path.iter().map(|part| part.to_str().unwrap_or_default()).collect() }
    }

    /// Where the components below `devices/KIND…` begin.
    fn below(&self, kind: &str) -> Option<usize> {
        Some(self.parts.windows(2).position(|pair| pair[0] == "devices" && pair[1].starts_with(kind))? + 2)
    }

    /// The directory of the component `at`.
    fn up_to(&self, at: usize) -> PathBuf {
        self.path.iter().take(at + 1).collect()
    }

    /// channel, target and lun
    fn scsi(&self) -> Option<[u32; 3]> {
        let at = self.parts.iter().position(|part| part.starts_with("target"))?;
        let numbers = self.parts.get(at + 1)?.split(':').map(str::parse).collect::<Result<Vec<u32>, _>>().ok()?;
        let [_host, channel, target, lun] = <[u32; 4]>::try_from(numbers).ok()?;
        Some([channel, target, lun])
    }

    /// The place of this disk's port among its controller's, counted from 0.
    fn port(&self) -> Option<u32> {
        ["ata", "host"].iter().find_map(|kind| {
            let at = self.parts.iter().position(|part| numbered(part, kind).is_some())?;
            let own = numbered(self.parts[at], kind)?;
            let mut all: Vec<u32> = fs::read_dir(self.up_to(at - 1))
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|entry| numbered(entry.file_name().to_str()?, kind))
                .collect();
            all.sort_unstable();
            u32::try_from(all.iter().position(|port| *port == own)?).ok()
        })
    }

    /// Through bridges down to the controller, which is the first device whose driver is a disk controller's.
    fn on_pci(&self, first: usize) -> Attachment {
        let mut found = UNKNOWN;
        for (at, part) in self.parts.iter().enumerate().skip(first) {
            let Some(address) = PciAddress::parse(part) else { break };
            let driver = fs::read_link(self.up_to(at).join("driver")).unwrap_or_default();
            let driver = driver.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let (scsi, port) = (self.scsi(), || self.port().filter(|_| self.scsi().is_some()));
            found = match driver {
                "virtio-pci" => match scsi {
                    Some([_, _, lun]) => Attachment { bus_type: Bus::Scsi, unit: lun, ..UNKNOWN },
                    None => Attachment { bus_type: Bus::Virtio, ..UNKNOWN },
                },
                "ata_piix" => match (scsi, port()) {
                    (Some([_, target, _]), Some(bus)) => {
                        Attachment { bus_type: Bus::Ide, bus, unit: target, ..UNKNOWN }
                    }
                    (None, _) | (_, None) => UNKNOWN,
                },
                "ahci" => port().map_or(UNKNOWN, |unit| Attachment { bus_type: Bus::Sata, unit, ..UNKNOWN }),
                "sym53c8xx" => scsi.map_or(UNKNOWN, |[_, unit, _]| Attachment { bus_type: Bus::Scsi, unit, ..UNKNOWN }),
                "nvme" => Attachment { bus_type: Bus::Nvme, ..UNKNOWN },
                "xhci_hcd" | "ehci-pci" => Attachment { bus_type: Bus::Usb, ..UNKNOWN },
                _ => continue,
            };
            found.pci = Some(address);
            break;
        }
        found
    }

    /// `devices/css0/0.0.0003/0.0.0001/virtio1/…`: subchannel, then device.
    fn on_channel(&self, first: usize) -> Attachment {
        let numbers = |at: usize| -> Option<[u32; 3]> {
            let part = *self.parts.get(at)?;
            let numbers: Result<Vec<u32>, _> = part.split('.').map(|n| u32::from_str_radix(n, 16)).collect();
            numbers.ok()?.try_into().ok()
        };
        let (Some([cssid, ssid, subchno]), Some([_, _, devno])) = (numbers(first), numbers(first + 1)) else {
            return UNKNOWN;
        };
        let ccw = Some(CcwAddress { cssid, ssid, subchno, devno });
        Attachment { ccw, ..self.on_plain_virtio().unwrap_or(UNKNOWN) }
    }

    /// Virtio without PCI: microvm, ARM boards, s390x.
    fn on_plain_virtio(&self) -> Option<Attachment> {
        let has = |kind: &str| self.parts.iter().any(|part| part.starts_with(kind));
        (has("virtio") && has("block")).then(|| match self.scsi() {
            Some([bus, target, unit]) => Attachment { bus_type: Bus::Scsi, bus, target, unit, ..UNKNOWN },
            None => Attachment { bus_type: Bus::Virtio, ..UNKNOWN },
        })
    }
}

/// "ata3" is 3.
fn numbered(part: &str, kind: &str) -> Option<u32> {
    part.strip_prefix(kind)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A /sys of these devices, each with the driver of one of its directories.
    fn read_at(driver: (&str, &str), also: &[&str], device: &str) -> Attachment {
        let root = tempfile::tempdir().expect("a directory");
        let dir = |path: &str| {
            let path = root.path().join("sys/devices").join(path);
            fs::create_dir_all(&path).expect("created");
            path
        };
        let device = dir(device);
        also.iter().for_each(|path| drop(dir(path)));
        symlink(Path::new("../drivers").join(driver.1), dir(driver.0).join("driver")).expect("a link");
        read(&device)
    }

    fn numbers(found: Attachment) -> (String, [u32; 3], Option<u32>) {
        (found.bus_type.to_string(), [found.bus, found.target, found.unit], found.pci.map(|pci| pci.slot))
    }

    const SLOT: &str = "pci0000:00/0000:00:1f.2";

    #[test]
    fn a_virtio_disk_is_its_controller_and_a_virtio_scsi_disk_its_lun() {
        let found = read_at((SLOT, "virtio-pci"), &[], &format!("{SLOT}/virtio1/block/vda/vda1"));
        assert_eq!(numbers(found), ("virtio".into(), [0, 0, 0], Some(0x1f)));
        let found = read_at((SLOT, "virtio-pci"), &[], &format!("{SLOT}/virtio2/host0/target0:0:3/0:0:3:7/block/sda"));
        assert_eq!(numbers(found), ("scsi".into(), [0, 0, 7], Some(0x1f)), "QEMU's agent leaves the target out");
    }

    #[test]
    fn ports_are_counted_in_numeric_order_among_the_controllers_own() {
        let ports: Vec<String> = [9, 10, 11].iter().map(|n| format!("{SLOT}/ata{n}")).collect();
        let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
        let disk = format!("{SLOT}/ata10/host9/target9:0:1/9:0:1:0/block/sdb");
        assert_eq!(numbers(read_at((SLOT, "ahci"), &ports, &disk)), ("sata".into(), [0, 0, 1], Some(0x1f)));
        assert_eq!(numbers(read_at((SLOT, "ata_piix"), &ports, &disk)), ("ide".into(), [1, 0, 1], Some(0x1f)));
    }

    #[test]
    fn bridges_are_walked_through_to_the_controller() {
        let behind = "pci0000:00/0000:00:02.0/0000:01:00.0";
        let found = read_at((behind, "nvme"), &[], &format!("{behind}/nvme/nvme0/nvme0n1"));
        assert_eq!(found.pci, Some(PciAddress { domain: 0, bus: 1, slot: 0, function: 0 }));
        assert_eq!(found.bus_type, Bus::Nvme);
        let found =
            read_at((behind, "xhci_hcd"), &[], &format!("{behind}/usb1/1-1/host3/target3:0:0/3:0:0:0/block/sda"));
        assert_eq!(numbers(found), ("usb".into(), [0, 0, 0], Some(0)));
    }

    #[test]
    fn a_controller_nobody_knows_is_said_to_be_unknown() {
        let found = read_at((SLOT, "pvscsi"), &[], &format!("{SLOT}/host0/target0:0:1/0:0:1:0/block/sda"));
        assert_eq!(found, UNKNOWN);
        let found = read_at(("vbd-51712", "vbd"), &[], "vbd-51712/block/xvda");
        assert_eq!(found, UNKNOWN);
    }

    #[test]
    fn virtio_without_pci_is_virtio_all_the_same() {
        let path = "platform/a003e00.virtio_mmio/virtio0/block/vda";
        assert_eq!(numbers(read_at((path, "x"), &[], path)), ("virtio".into(), [0, 0, 0], None));
        let path = "css0/0.0.0003/0.1.000a/virtio3/host0/target0:1:2/0:1:2:3/block/sda";
        let found = read_at((path, "x"), &[], path);
        assert_eq!(numbers(found), ("scsi".into(), [1, 2, 3], None));
        assert_eq!(found.ccw, Some(CcwAddress { cssid: 0, ssid: 0, subchno: 3, devno: 10 }));
    }
}
