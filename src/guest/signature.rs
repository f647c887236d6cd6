//! What a device or image holds, by the bytes that every format begins with, and what has to be done about the ones that
//! are no file system. Called by `hold::verify`. Pure; the formats' own documents are the sources of the offsets.

use super::partitions::Read;
use super::superblock::{self, Raw};

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// one that can carry a receipt
    Filesystem(Raw),
    /// the format of a hypervisor: its blocks are not where a disk's are
    Wrapped { format: &'static str },
    /// part of something that has to be put together or unlocked first
    Member { of: &'static str, hint: &'static str },
    /// known, and never with a receipt: swap space, FAT …
    Other(&'static str),
    /// not known; perhaps a partition table
    Unknown,
}

/// Each where, the bytes there, and what they mean.
const WRAPPED: [(u64, &[u8], &str); 6] = [
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
];

const LVM: (&str, &str) = ("an LVM volume group", "activate it read-only (`vgchange -ay`), then verify /dev/VG/LV");
const LUKS: (&str, &str) =
    ("an encrypted volume (LUKS)", "open it (`cryptsetup open --readonly`), then verify /dev/mapper/NAME");
const MD: (&str, &str) = ("an md array", "assemble it (`mdadm --assemble --readonly`), then verify /dev/mdN");
const BTRFS: (&str, &str) = (
    "a btrfs on several devices",
    "attach all of them read-only, mount it with ro,rescue=nologreplay, and verify that directory",
);
const BCACHE: (&str, &str) = ("a bcache device", "register it, then verify /dev/bcacheN");

const MEMBERS: [(u64, &[u8], (&str, &str)); 8] = [
    (0x018, b"LVM2 001", LVM),
    (0x218, b"LVM2 001", LVM),
    (0x418, b"LVM2 001", LVM),
    (0x618, b"LVM2 001", LVM),
    (0, b"LUKS\xba\xbe", LUKS),
    (0, b"\xfc\x4e\x2b\xa9", MD),
    (0x1000, b"\xfc\x4e\x2b\xa9", MD),
    (0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", BCACHE),
];

const OTHERS: [(u64, &[u8], &str); 8] = [
    (0xff6, b"SWAPSPACE2", "swap space"),
    (0x36, b"FAT", "FAT"),
    (0x52, b"FAT32", "FAT"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (0x8001, b"CD001", "a CD image"),
    (0, b"hsqs", "squashfs"),
    (0x400, b"\x10\x20\xf5\xf2", "F2FS, which cannot be mounted without a trace"),
];

/// Enough for everything above and for the superblocks.
const SPAN: usize = 0x1_2000;

/// What the `size` bytes hold.
pub fn of(read: Read<'_>, size: u64) -> Content {
    let bytes = read(0, SPAN);
    let has = |at: u64, magic: &[u8]| {
        usize::try_from(at).ok().and_then(|at| bytes.get(at..at + magic.len())).is_some_and(|found| found == magic)
    };
    if let Some((_, _, format)) = WRAPPED.iter().find(|(at, magic, _)| has(*at, magic)) {
        return Content::Wrapped { format };
    }
    if let Some((_, _, (of, hint))) = MEMBERS.iter().find(|(at, magic, _)| has(*at, magic)) {
        return Content::Member { of, hint };
    }
    if let Some(raw) = superblock::parse(&bytes) {
        if raw.devices > 1 {
            return Content::Member { of: BTRFS.0, hint: BTRFS.1 };
        }
        // the older formats of md keep their mark at the end, where the file system before it does not reach
        return match is_md_at_its_end(read, size) {
            true => Content::Member { of: MD.0, hint: MD.1 },
            false => Content::Filesystem(raw),
        };
    }
    match OTHERS.iter().find(|(at, magic, _)| has(*at, magic)) {
        Some((_, _, name)) => Content::Other(name),
        None => Content::Unknown,
    }
}

/// Format 1.0: 8 KiB before the end, rounded down to 4 KiB; 0.90: the last whole 64 KiB before the end.
fn is_md_at_its_end(read: Read<'_>, size: u64) -> bool {
    let newer = size.checked_sub(8192).map(|at| at & !4095);
    let older = (size & !0xffff).checked_sub(0x1_0000);
    [newer, older].into_iter().flatten().filter(|at| *at > 0).any(|at| read(at, 4) == b"\xfc\x4e\x2b\xa9")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(size: usize, at: usize, magic: &[u8]) -> Content {
        let mut bytes = vec![0; size];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        let read = |offset: u64, length: usize| {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            bytes[from..bytes.len().min(from.saturating_add(length))].to_vec()
        };
        of(&read, size as u64)
    }

    #[test]
    fn every_format_is_known_by_its_own_bytes() {
        const SIZE: usize = 1 << 20;
        for (at, magic, format) in WRAPPED {
            assert_eq!(with(SIZE, at as usize, magic), Content::Wrapped { format });
        }
        for (at, magic, (of, hint)) in MEMBERS {
            assert_eq!(with(SIZE, at as usize, magic), Content::Member { of, hint });
        }
        for (at, magic, name) in OTHERS {
            assert_eq!(with(SIZE, at as usize, magic), Content::Other(name));
        }
        assert!(matches!(with(SIZE, 0, b"XFSB"), Content::Filesystem(_)));
        assert_eq!(with(SIZE, 4096 * 3, b"nothing"), Content::Unknown);
    }

    #[test]
    fn what_is_cut_short_or_empty_is_unknown() {
        for size in [0, 1, 3, 511, 512, 1023, 4096] {
            assert_eq!(with(size, 0, b""), Content::Unknown, "{size}");
        }
    }

    #[test]
    fn a_file_system_on_an_array_with_its_mark_at_the_end_is_a_member() {
        let size = 1 << 20;
        let mut bytes = vec![0; size];
        bytes[..4].copy_from_slice(b"XFSB");
        bytes[size - 8192..size - 8188].copy_from_slice(b"\xfc\x4e\x2b\xa9");
        let read = |offset: u64, length: usize| {
            bytes[(offset as usize).min(size)..size.min(offset as usize + length)].to_vec()
        };
        assert!(matches!(of(&read, size as u64), Content::Member { .. }));
    }
}
