//! The first kilobytes of a block device or image, as ext2/3/4, XFS and btrfs lay them out: whose UUID it is, and
//! whether an ext journal still has to be replayed. Pure parsers; reading never writes and never replays anything.
//!
//! Sources: `fs/ext4/ext4.h` (struct ext4_super_block at 1024), `fs/xfs/libxfs/xfs_format.h` (struct xfs_dsb at 0),
//! `include/uapi/linux/btrfs_tree.h` (struct btrfs_super_block at 65536).

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

/// Enough to hold every header below.
const SPAN: usize = 0x10000 + 0x1000;
const EXT: usize = 0x400;
const EXT_NEEDS_RECOVERY: u32 = 0x4;
const EXT_HAS_JOURNAL: u32 = 0x4;
const BTRFS: usize = 0x10000;

/// What a raw superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw {
    pub fs_type: &'static str,
    pub uuid: String,
    /// empty if it has none
    pub label: String,
    /// ext only
    pub ext: Option<Ext>,
    /// btrfs only: something was synced since the last commit, which a mount would replay. A freeze commits, so none is
    /// there while frozen.
    pub log_tree: bool,
    /// how many devices it is on; more than one with btrfs only
    pub devices: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ext {
    pub has_journal: bool,
    /// the journal holds what the file system does not: set while mounted, cleared while frozen
    pub needs_recovery: bool,
    pub mount_count: u16,
    /// last mount, unix seconds
    pub mount_time: u32,
}

/// Reads the superblock of a device or image file.
///
/// # Errors
/// It cannot be opened or read. `Ok(None)`: none of the known kinds.
pub fn read(path: &Path) -> io::Result<Option<Raw>> {
    let file = File::open(path)?;
    let mut bytes = vec![0; SPAN];
    let mut filled = 0;
    while filled < SPAN {
        match file.read_at(&mut bytes[filled..], filled as u64)? {
            0 => break,
            more => filled += more,
        }
    }
    Ok(parse(&bytes[..filled]))
}

/// Parses the start of a device.
pub fn parse(bytes: &[u8]) -> Option<Raw> {
    ext(bytes).or_else(|| xfs(bytes)).or_else(|| btrfs(bytes))
}

fn ext(bytes: &[u8]) -> Option<Raw> {
    let sb = bytes.get(EXT..EXT + 0x400)?;
    let (half, word) = (
        |at| u16::from_le_bytes([sb[at], sb[at + 1]]),
        |at: usize| u32::from_le_bytes([sb[at], sb[at + 1], sb[at + 2], sb[at + 3]]),
    );
    if half(0x38) != 0xEF53 {
        return None;
    }
    let has_journal = word(0x5c) & EXT_HAS_JOURNAL != 0;
    let ext = Ext {
        has_journal,
        needs_recovery: word(0x60) & EXT_NEEDS_RECOVERY != 0,
        mount_count: half(0x34),
        mount_time: word(0x2c),
    };
    Some(Raw {
        fs_type: if has_journal { "ext4" } else { "ext2" },
        uuid: uuid(&sb[0x68..0x78]),
        label: label(&sb[0x78..0x88]),
        ext: Some(ext),
        log_tree: false,
        devices: 1,
    })
}

fn xfs(bytes: &[u8]) -> Option<Raw> {
    let sb = bytes.get(..0x100)?;
    (&sb[..4] == b"XFSB").then(|| Raw {
        fs_type: "xfs",
        uuid: uuid(&sb[0x20..0x30]),
        label: label(&sb[0x6c..0x78]),
        ext: None,
        log_tree: false,
        devices: 1,
    })
}

fn btrfs(bytes: &[u8]) -> Option<Raw> {
    let sb = bytes.get(BTRFS..BTRFS + 0x400)?;
    let devices = u64::from_le_bytes(sb[0x88..0x90].try_into().expect("eight bytes"));
    let log_tree = sb[0x60..0x68] != [0; 8];
    (&sb[0x40..0x48] == b"_BHRfS_M").then(|| Raw {
        fs_type: "btrfs",
        uuid: uuid(&sb[0x20..0x30]),
        label: label(&sb[0x12b..0x22b]),
        ext: None,
        log_tree,
        devices,
    })
}

/// Zero padded.
fn label(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn uuid(bytes: &[u8]) -> String {
    let hex = |range: std::ops::Range<usize>| bytes[range].iter().map(|b| format!("{b:02x}")).collect::<String>();
    [hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16)].join("-")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_fresh_ext4_has_a_journal_that_needs_no_recovery() {
        let mut image = vec![0u8; SPAN];
        image[EXT + 0x38..EXT + 0x3a].copy_from_slice(&0xEF53u16.to_le_bytes());
        image[EXT + 0x5c..EXT + 0x60].copy_from_slice(&EXT_HAS_JOURNAL.to_le_bytes());
        image[EXT + 0x34] = 7;
        image[EXT + 0x68..EXT + 0x78].copy_from_slice(&[0xab; 16]);
        image[EXT + 0x78..EXT + 0x82].copy_from_slice(b"ephemeral0");
        let raw = parse(&image).expect("ext4");
        assert_eq!((raw.fs_type, raw.uuid.as_str()), ("ext4", "abababab-abab-abab-abab-abababababab"));
        assert_eq!(raw.label, "ephemeral0");
        let ext = raw.ext.expect("ext");
        assert_eq!((ext.needs_recovery, ext.mount_count), (false, 7));
        image[EXT + 0x60] = EXT_NEEDS_RECOVERY as u8;
        assert!(parse(&image).unwrap().ext.unwrap().needs_recovery);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let _ = parse(&bytes);
        }
    }
}
