//! Receipts: the record of a hold, kept on the frozen disks themselves, so that the copy can testify.
//!
//! `<fs root>/.holdstill/` (root, 0700) holds `receipt.json` and `state`. Both are filled with real bytes and synced as
//! `prepared` while preparing; after the barrier, before the first FIFREEZE, they are overwritten in place with
//! coordinates and `frozen`, and FIFREEZE's own sync carries that to disk after writers have stopped. When the file
//! system thaws its sentinel overwrites `state` with `released`. So a copy that says `frozen` was cut in between.
//!
//! ```text
//!   state, 4096 bytes; the first 512 are the sector, the rest is padding ('.')
//!   0    magic "HOLDSTIL"        8   format (u32 le) = 1      12  state (u32 le)
//!   16   hold id, 64 bytes       80  fs UUID, 40 bytes        120 boot id, 40 bytes     (zero padded)
//!   160  prepared, unix seconds (i64 le)                      508 CRC-32 of bytes 0..508 (u32 le)
//! ```

use std::{
    fmt, fs, io,
    io::Read,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

/// The directory at a file system's root.
pub const DIRECTORY: &str = ".holdstill";
pub const JSON: &str = "receipt.json";
pub const STATE: &str = "state";

const MAGIC: &[u8; 8] = b"HOLDSTIL";
const FORMAT: u32 = 1;
/// Of `receipt.json`, in its member `format`. Members may be added to it; what would be misread by a program that does not
/// know it needs another number.
pub const JSON_FORMAT: u32 = 1;
/// What of `state` has a meaning.
pub const SECTOR: usize = 512;
/// `state` is padded to this, so that btrfs does not keep it inline in its metadata.
const STATE_SIZE: usize = 4096;
/// `receipt.json` is at most this long; what does not fit is left out and said.
pub const JSON_LIMIT: usize = 60 * 1024;

/// What a disk says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Prepared,
    Frozen,
    Released,
    Aborted,
    /// A machine was started from a copy that said `frozen`, and what has been written since is in no hold.
    Restored,
}

impl State {
    const ALL: [State; 5] = [State::Prepared, State::Frozen, State::Released, State::Aborted, State::Restored];

    fn code(self) -> u32 {
        match self {
            State::Prepared => 1,
            State::Frozen => 2,
            State::Released => 3,
            State::Aborted => 4,
            State::Restored => 5,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Prepared => "prepared",
            State::Frozen => "frozen",
            State::Released => "released",
            State::Aborted => "aborted",
            State::Restored => "restored",
        })
    }
}

/// The sector's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sector {
    pub state: State,
    pub hold_id: String,
    /// empty if the file system's UUID is not known
    pub fs_uuid: String,
    pub boot_id: String,
    /// seconds since 1970
    pub prepared: i64,
}

impl Sector {
    /// The whole `state` file.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![b'.'; STATE_SIZE];
        bytes[..SECTOR].fill(0);
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.state.code().to_le_bytes());
        put(&mut bytes[16..80], &self.hold_id);
        put(&mut bytes[80..120], &self.fs_uuid);
        put(&mut bytes[120..160], &self.boot_id);
        bytes[160..168].copy_from_slice(&self.prepared.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..508]);
        bytes[508..512].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// # Errors
    /// Too short, not ours, another format, damaged, or a state nobody writes.
    pub fn decode(bytes: &[u8]) -> Result<Sector, Unreadable> {
        let sector = bytes.get(..SECTOR).ok_or(Unreadable::Truncated { length: bytes.len() })?;
        let word = |at: usize| u32::from_le_bytes(sector[at..at + 4].try_into().expect("four bytes"));
        if &sector[..8] != MAGIC {
            return Err(Unreadable::NotOurs);
        }
        if word(8) != FORMAT {
            return Err(Unreadable::Format { found: word(8) });
        }
        if word(508) != crc32fast::hash(&sector[..508]) {
            return Err(Unreadable::Damaged);
        }
        let state = State::ALL.into_iter().find(|s| s.code() == word(12));
        Ok(Sector {
            state: state.ok_or(Unreadable::State { found: word(12) })?,
            hold_id: take(&sector[16..80]),
            fs_uuid: take(&sector[80..120]),
            boot_id: take(&sector[120..160]),
            prepared: i64::from_le_bytes(sector[160..168].try_into().expect("eight bytes")),
        })
    }
}

/// Why a receipt proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("its state is cut short at {length} bytes")]
    Truncated { length: usize },
    #[error("its state was not written by holdstill")]
    NotOurs,
    #[error("its state has format {found}; this version reads format {FORMAT}")]
    Format { found: u32 },
    #[error("its state is damaged (checksum)")]
    Damaged,
    #[error("its state is {found}, which no version writes")]
    State { found: u32 },
    #[error("{0} is a symbolic link or not a regular file; a receipt never is")]
    Hostile(PathBuf),
    #[error("{path} is {size} bytes long; a receipt is at most {JSON_LIMIT}")]
    Huge { path: PathBuf, size: u64 },
    #[error("its receipt.json is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error(
        "its receipt.json has format {found}; this version reads format {JSON_FORMAT}: use the holdstill that wrote it, or a later one"
    )]
    JsonFormat { found: serde_json::Value },
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
}

/// A receipt as read back.
#[derive(Debug)]
pub struct Found {
    /// the mount root it was read from
    pub root: PathBuf,
    pub sector: Sector,
    /// `receipt.json`
    pub record: serde_json::Value,
}

/// Pads `json` with spaces and a line end to `size` bytes, so that overwriting it in place never changes its length.
/// The record is cut down by the caller if it does not fit; `None` says it has to be.
pub fn padded(json: &impl serde::Serialize, size: usize) -> Option<Vec<u8>> {
    let mut bytes = serde_json::to_vec(json).expect("strings, numbers and JSON values serialise");
    if bytes.len() >= size {
        return None;
    }
    bytes.resize(size - 1, b' ');
    bytes.push(b'\n');
    Some(bytes)
}

/// What there is for a `receipt.json`, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// on the file system; 0: nobody could say, or it is full
    pub free: u64,
    /// by the one that is there
    pub taken: u64,
}

/// Blocks of this are what a file takes.
const BLOCK: usize = 4096;
/// Left alone on a disk that is nearly full: the directory, the inodes, `state`, and what a journal wants of them.
const SPARE: u64 = 64 * 1024;

/// The size `receipt.json` gets for a record of `length` bytes: room for coordinates and verdict, in whole blocks. Never
/// less than it has: a disk that is full by the next hold still has the receipt's own blocks, and what does not fit into
/// those is left out.
pub fn size_for(length: usize, room: Room) -> usize {
    let wanted = (length + length / 2 + BLOCK).next_multiple_of(BLOCK).min(JSON_LIMIT);
    let taken = usize::try_from(room.taken).unwrap_or(0).next_multiple_of(BLOCK).min(JSON_LIMIT);
    let more = usize::try_from(room.free.saturating_sub(SPARE)).unwrap_or(usize::MAX) / BLOCK * BLOCK;
    match room {
        Room { free: 0, taken: 0 } => wanted,
        Room { .. } => wanted.min(taken.saturating_add(more)).max(taken).max(BLOCK),
    }
}

/// Reads the receipt of the file system mounted at `root`. `Ok(None)`: there is none.
///
/// # Errors
/// There is something, but it proves nothing; says why. Symbolic links, devices and huge files are never followed.
pub fn read(root: &Path) -> Result<Option<Found>, Unreadable> {
    let dir = root.join(DIRECTORY);
    match fs::symlink_metadata(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Unreadable::Read { path: dir, source }),
        Ok(meta) if !meta.is_dir() => return Err(Unreadable::Hostile(dir)),
        Ok(_) => {}
    }
    let state = dir.join(STATE);
    let sector = match read_file(&state) {
        Err(Unreadable::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => Sector::decode(&other?)?,
    };
    let record: serde_json::Value = serde_json::from_slice(&read_file(&dir.join(JSON))?)?;
    if let Some(found) = record.get("format").filter(|format| **format != JSON_FORMAT) {
        return Err(Unreadable::JsonFormat { found: found.clone() });
    }
    Ok(Some(Found { root: root.to_owned(), sector, record }))
}

/// Looked at before it is opened: opening a device can already be an order to it (a watchdog, a tape).
fn read_file(path: &Path) -> Result<Vec<u8>, Unreadable> {
    let wrap = |source: io::Error| Unreadable::Read { path: path.to_owned(), source };
    let handle = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
        .map_err(wrap)?;
    let meta = handle.metadata().map_err(wrap)?;
    if !meta.is_file() {
        return Err(Unreadable::Hostile(path.to_owned()));
    }
    if meta.size() > JSON_LIMIT as u64 {
        return Err(Unreadable::Huge { path: path.to_owned(), size: meta.size() });
    }
    let file = fs::File::open(format!("/proc/self/fd/{}", handle.as_raw_fd())).map_err(wrap)?;
    let mut bytes = Vec::new();
    file.take(JSON_LIMIT as u64).read_to_end(&mut bytes).map_err(wrap)?;
    Ok(bytes)
}

fn put(field: &mut [u8], text: &str) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text.as_bytes()[..length]);
}

fn take(field: &[u8]) -> String {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sector(state: State) -> Sector {
        Sector {
            state,
            hold_id: "nightly-1".into(),
            fs_uuid: "0b6b4a4e-8c2c-4f53-a9f7-9d8a8a9b8d11".into(),
            boot_id: "b1f0f3d2-2b3c-4d4e-8f9a-0b1c2d3e4f50".into(),
            prepared: 1_795_000_000,
        }
    }

    fn write(root: &Path, state: &[u8], json: &[u8]) {
        fs::create_dir_all(root.join(DIRECTORY)).unwrap();
        fs::write(root.join(DIRECTORY).join(STATE), state).unwrap();
        fs::write(root.join(DIRECTORY).join(JSON), json).unwrap();
    }

    #[test]
    fn what_was_written_is_read_back() {
        for state in State::ALL {
            let root = tempfile::tempdir().unwrap();
            let json = padded(&serde_json::json!({"hold_id": "nightly-1"}), 4096).unwrap();
            write(root.path(), &sector(state).encode(), &json);
            let found = read(root.path()).unwrap().expect("a receipt");
            assert_eq!(found.sector, sector(state));
            assert_eq!(found.record["hold_id"], "nightly-1");
        }
    }

    #[test]
    fn a_receipt_keeps_its_blocks_and_takes_no_more_than_a_full_disk_has() {
        let size = |length, free, taken| size_for(length, Room { free, taken });
        let plenty = 1 << 30;
        assert_eq!(size(3000, plenty, 0), 12 * 1024);
        assert_eq!(size(3000, plenty, 20 * 1024), 20 * 1024, "never smaller than it was");
        assert_eq!(size(10_000, 0, 8 * 1024), 8 * 1024, "on a full disk what it has must do");
        assert_eq!(size(10_000, 70_000, 8 * 1024), 12 * 1024, "nearly full");
        assert_eq!(size(10_000, 4096, 0), BLOCK, "a short one is tried");
        assert_eq!(size(10_000, 0, 0), 20 * 1024, "nobody could say");
        assert_eq!(size(1 << 20, plenty, 1 << 30), JSON_LIMIT);
    }

    #[test]
    fn a_file_system_without_a_receipt_has_none() {
        assert!(read(tempfile::tempdir().unwrap().path()).unwrap().is_none());
    }

    #[test]
    fn hostile_receipts_are_refused() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &sector(State::Frozen).encode(), b"{}");
        let state = root.path().join(DIRECTORY).join(STATE);
        fs::remove_file(&state).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &state).unwrap();
        assert!(matches!(read(root.path()), Err(Unreadable::Hostile(_))));
        fs::remove_file(&state).unwrap();
        fs::File::create(&state).unwrap().set_len(1 << 40).unwrap();
        assert!(matches!(read(root.path()), Err(Unreadable::Huge { .. })));
        let linked = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(root.path().join(DIRECTORY), linked.path().join(DIRECTORY)).unwrap();
        assert!(matches!(read(linked.path()), Err(Unreadable::Hostile(_))));
    }

    #[test]
    fn a_receipt_of_a_later_format_is_not_guessed_at() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &sector(State::Frozen).encode(), br#"{"format":2,"hold_id":"nightly-1"}"#);
        let error = read(root.path()).unwrap_err().to_string();
        assert!(error.contains("has format 2; this version reads format 1"), "{error}");
    }

    proptest! {
        #[test]
        fn any_flipped_bit_of_the_sector_is_noticed(bit in 0usize..SECTOR * 8) {
            let mut bytes = sector(State::Frozen).encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Sector::decode(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1024)) {
            let _ = Sector::decode(&bytes);
        }
    }
}
