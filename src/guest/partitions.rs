//! The partitions of a disk or image: GPT, or MBR with its chain of logical ones. Read by us and not by the kernel, because
//! its partitions would be devices for everybody to mount, some kernels know only one of the two, and what is read here may
//! be hostile. Called by `hold::verify`.
//!
//! Sources: UEFI specification 5.3 (GPT); block/partitions/msdos.c (what a chain of logical partitions looks like).

/// More are not looked at.
const MOST: usize = 128;
/// A sector; GPT is also looked for where sectors have 4096 bytes.
const SECTOR: u64 = 512;
/// Of a table of GPT entries at most so much is read.
const TABLE: usize = 128 * 1024;

/// One partition, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// as the kernel counts them: logical ones from 5
    pub number: u32,
    pub offset: u64,
    pub length: u64,
}

/// Reads at most `length` bytes from `offset`; fewer at the end, none beyond it or on an error.
pub type Read<'a> = &'a dyn Fn(u64, usize) -> Vec<u8>;

/// The partitions of what is `size` bytes long, in the order of the table; `None` if there is no table. What reaches beyond
/// the end, overlaps the table or runs in a circle is left out.
pub fn read(read: Read<'_>, size: u64) -> Option<Vec<Partition>> {
    let boot = read(0, 512);
    if boot.get(510..512) != Some(&[0x55, 0xAA]) {
        return None;
    }
    let entries: Vec<Entry> = (0..4).map(|at| Entry::parse(&boot, at)).collect();
    if entries.iter().any(|entry| entry.kind == PROTECTIVE) {
        for sector in [SECTOR, 4096] {
            if let Some(found) = gpt(read, size, sector) {
                return Some(found);
            }
        }
    }
    // what else ends in 55 AA (a FAT boot sector, a boot loader alone) has other bytes there
    if entries.iter().any(|entry| !matches!(entry.flag, 0 | 0x80)) || entries.iter().all(|entry| entry.kind == 0) {
        return None;
    }
    Some(mbr(read, size, &entries))
}

const PROTECTIVE: u8 = 0xEE;

#[derive(Debug, Clone, Copy)]
struct Entry {
    flag: u8,
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Entry {
    fn parse(sector: &[u8], at: usize) -> Entry {
        let entry = &sector[446 + 16 * at..462 + 16 * at];
        let word = |at: usize| u64::from(u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]));
        Entry { flag: entry[0], kind: entry[4], start: word(8), sectors: word(12) }
    }

    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0F | 0x85)
    }
}

fn mbr(read: Read<'_>, size: u64, entries: &[Entry]) -> Vec<Partition> {
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(entries) {
        if entry.kind != 0 && !entry.is_extended() && entry.kind != PROTECTIVE {
            found.extend(within(number, entry.start, entry.sectors, SECTOR, size));
        }
    }
    let Some(extended) = entries.iter().find(|entry| entry.is_extended()) else { return found };
    let (mut at, mut number) = (extended.start, 5);
    // each link of the chain is a sector of its own: a chain longer than this is none
    for _ in 0..MOST {
        let sector = read(at.saturating_mul(SECTOR), 512);
        if sector.get(510..512) != Some(&[0x55, 0xAA]) {
            break;
        }
        let (logical, next) = (Entry::parse(&sector, 0), Entry::parse(&sector, 1));
        if logical.kind != 0 {
            found.extend(within(number, at.saturating_add(logical.start), logical.sectors, SECTOR, size));
            number += 1;
        }
        let onward = extended.start.saturating_add(next.start);
        // a chain that does not go on goes round
        if !next.is_extended() || onward <= at {
            break;
        }
        at = onward;
    }
    found.truncate(MOST);
    found
}

fn gpt(read: Read<'_>, size: u64, sector: u64) -> Option<Vec<Partition>> {
    let header = read(sector, 92);
    if header.get(..8) != Some(b"EFI PART") || header.len() < 92 {
        return None;
    }
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    let (table, count, width) = (long(72), word(80) as usize, word(84) as usize);
    if !(128..=4096).contains(&width) {
        return Some(Vec::new());
    }
    let length = count.min(TABLE / width) * width;
    let table = read(table.saturating_mul(sector), length);
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(table.chunks_exact(width)) {
        let long = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("eight bytes"));
        let (first, last) = (long(32), long(40));
        if entry[..16] != [0; 16] && last >= first {
            found.extend(within(number, first, (last - first).saturating_add(1), sector, size));
        }
    }
    found.truncate(MOST);
    Some(found)
}

/// In bytes, if it lies within the disk and not on its first sector.
fn within(number: u32, start: u64, sectors: u64, sector: u64, size: u64) -> Option<Partition> {
    let (offset, length) = (start.checked_mul(sector)?, sectors.checked_mul(sector)?);
    let end = offset.checked_add(length)?;
    (start > 0 && length > 0 && end <= size).then_some(Partition { number, offset, length })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// The partitions of these bytes.
    fn of(bytes: &[u8]) -> Option<Vec<Partition>> {
        let part = |offset: u64, length: usize| {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            bytes[from..bytes.len().min(from.saturating_add(length))].to_vec()
        };
        read(&part, bytes.len() as u64)
    }

    fn disk() -> Vec<u8> {
        let mut bytes = vec![0; 8 << 20];
        sign(&mut bytes, 0);
        bytes
    }

    fn sign(bytes: &mut [u8], sector: usize) {
        bytes[sector * 512 + 510..sector * 512 + 512].copy_from_slice(&[0x55, 0xAA]);
    }

    fn entry(bytes: &mut [u8], sector: usize, at: usize, kind: u8, start: u32, sectors: u32) {
        let entry = &mut bytes[sector * 512 + 446 + 16 * at..][..16];
        entry[4] = kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    }

    #[test]
    fn primary_and_logical_partitions_are_found_where_they_are() {
        let mut bytes = disk();
        entry(&mut bytes, 0, 0, 0x83, 2048, 2048);
        entry(&mut bytes, 0, 1, 0x05, 4096, 8192);
        entry(&mut bytes, 4096, 0, 0x83, 8, 1000);
        entry(&mut bytes, 4096, 1, 0x05, 2048, 2000);
        sign(&mut bytes, 4096);
        entry(&mut bytes, 6144, 0, 0x83, 8, 100);
        sign(&mut bytes, 6144);
        let found: Vec<(u32, u64, u64)> =
            of(&bytes).unwrap().iter().map(|p| (p.number, p.offset / 512, p.length / 512)).collect();
        assert_eq!(found, [(1, 2048, 2048), (5, 4104, 1000), (6, 6152, 100)]);
    }

    #[test]
    fn a_gpt_is_believed_before_its_protective_mbr() {
        let mut bytes = disk();
        entry(&mut bytes, 0, 0, PROTECTIVE, 1, u32::MAX);
        bytes[512..520].copy_from_slice(b"EFI PART");
        bytes[512 + 72..512 + 80].copy_from_slice(&2u64.to_le_bytes());
        bytes[512 + 80..512 + 84].copy_from_slice(&128u32.to_le_bytes());
        bytes[512 + 84..512 + 88].copy_from_slice(&128u32.to_le_bytes());
        let second = 1024 + 128;
        bytes[second..second + 16].fill(7);
        bytes[second + 32..second + 40].copy_from_slice(&2048u64.to_le_bytes());
        bytes[second + 40..second + 48].copy_from_slice(&4095u64.to_le_bytes());
        assert_eq!(of(&bytes).unwrap(), [Partition { number: 2, offset: MIB, length: MIB }]);
    }

    #[test]
    fn a_table_that_is_wrong_or_runs_in_a_circle_ends() {
        let mut bytes = disk();
        entry(&mut bytes, 0, 0, 0x83, 0, 100);
        entry(&mut bytes, 0, 1, 0x83, 2048, u32::MAX);
        entry(&mut bytes, 0, 2, 0x0F, 4096, 8192);
        entry(&mut bytes, 4096, 0, 0x83, 8, 8);
        entry(&mut bytes, 4096, 1, 0x05, 0, 8192);
        sign(&mut bytes, 4096);
        let found = of(&bytes).unwrap();
        assert_eq!(found, [Partition { number: 5, offset: 4104 * 512, length: 8 * 512 }]);
    }

    #[test]
    fn what_is_no_table_is_none() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&disk()), None, "signed and empty");
        let mut fat = disk();
        fat[446] = 0x33;
        fat[450] = 0x83;
        assert_eq!(of(&fat), None, "a boot sector has code there");
    }

    proptest! {
        #[test]
        fn arbitrary_tables_never_panic_and_lie_within(mut bytes in proptest::collection::vec(any::<u8>(), 512..4096), gpt in any::<bool>()) {
            bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
            for at in 0..4 {
                bytes[446 + 16 * at] = 0;
            }
            if gpt && bytes.len() >= 1024 {
                bytes[450] = PROTECTIVE;
                bytes[512..520].copy_from_slice(b"EFI PART");
                bytes[596..600].copy_from_slice(&128u32.to_le_bytes());
            }
            for partition in of(&bytes).unwrap_or_default() {
                prop_assert!(partition.offset >= 512 && partition.offset + partition.length <= bytes.len() as u64);
            }
        }
    }
}
