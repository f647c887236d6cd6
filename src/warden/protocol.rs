//! What daemon, warden and guardians say to each other. A packet is the length of its head (u32, little endian), the
//! head as JSON, and raw bytes where a receipt travels along; descriptors ride beside it.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Event, Receipt, Target, Thawed};
use crate::{
    guest::{Dev, MountPoint, dirty::OpenFile},
    sys::packet::{self, Received},
};

/// Daemon to warden. Every answer carries the `seq` of what it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ask {
    pub seq: u32,
    pub order: Order,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    Begin {
        hold_id: String,
    },
    /// the receipt's bytes follow the head
    Open {
        index: usize,
        target: Plan,
    },
    /// passed on to one guardian; for `Seal` and `Testify` the new `receipt.json` follows the head
    Tell {
        index: usize,
        task: Task,
    },
    /// forks a pacer; the open files follow the head
    Pace {
        index: usize,
        limit: Duration,
        little: u64,
    },
    Arm {
        monotonic: Duration,
        boottime: Duration,
    },
    /// the socket rides along
    GuardSocket,
    Freeze {
        levels: Vec<Vec<usize>>,
        expedite: bool,
        limit: Duration,
    },
    Thaw,
    End,
}

/// Warden to guardian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Task {
    /// `syncfs`
    Sync,
    /// `syncfs`, then the receipt says `frozen` in memory
    Seal,
    /// the receipt's last word
    Testify {
        aborted: bool,
    },
    Freeze,
    Thaw,
    Exit,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TaskAsk {
    pub seq: u32,
    pub task: Task,
}

/// Guardian to warden.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Account {
    /// with the root's descriptor and, if there is a receipt, those of `state` and `receipt.json`
    Opened(Result<Option<String>, Refused>),
    Did {
        seq: u32,
        took: Duration,
        fault: Option<Fault>,
    },
    Froze {
        took: Duration,
        fault: Option<Fault>,
    },
    /// look at the marker
    Thawed,
}

/// Why a target cannot be guarded.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Refused {
    Open(Fault),
    Vanished {
        found: String,
    },
    Receipt {
        why: String,
    },
    Guard(Fault),
    /// what an earlier hold started on this file system has not left the kernel yet: its pid
    Busy {
        pid: i32,
    },
}

/// Warden to daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    pub seq: u32,
    pub word: Word,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Word {
    Ready,
    Begun,
    NotBegun(Fault),
    /// an order that makes no sense now
    NoHold,
    StillStuck {
        mount: Bytes,
    },
    /// duplicates of the guardian's descriptors ride along
    Opened {
        index: usize,
        result: Result<Option<String>, Refused>,
    },
    Did {
        index: usize,
        took: Duration,
        fault: Option<Fault>,
    },
    /// armed, or guarding the socket
    Done,
    Frozen {
        took: Vec<(usize, Duration)>,
        failed: Option<NotFrozen>,
    },
    Thawed {
        how: Vec<ThawedWord>,
    },
    Ended,
    Event(EventWord),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum NotFrozen {
    Fault { index: usize, fault: Fault },
    Foreign { index: usize },
    TooSlow { indices: Vec<usize> },
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum ThawedWord {
    Ours,
    Foreign,
    NeverFrozen,
    StillStuck,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum EventWord {
    ForeignThaw { index: usize },
    GuardianLost { index: usize },
    Deadline,
    TimeJumped,
}

impl From<EventWord> for Event {
    fn from(word: EventWord) -> Event {
        match word {
            EventWord::ForeignThaw { index } => Event::ForeignThaw { index },
            EventWord::GuardianLost { index } => Event::GuardianLost { index },
            EventWord::Deadline => Event::Deadline,
            EventWord::TimeJumped => Event::TimeJumped,
        }
    }
}

impl From<Thawed> for ThawedWord {
    fn from(thawed: Thawed) -> ThawedWord {
        match thawed {
            Thawed::Ours => ThawedWord::Ours,
            Thawed::Foreign => ThawedWord::Foreign,
            Thawed::NeverFrozen => ThawedWord::NeverFrozen,
            Thawed::StillStuck => ThawedWord::StillStuck,
        }
    }
}

impl From<ThawedWord> for Thawed {
    fn from(word: ThawedWord) -> Thawed {
        match word {
            ThawedWord::Ours => Thawed::Ours,
            ThawedWord::Foreign => Thawed::Foreign,
            ThawedWord::NeverFrozen => Thawed::NeverFrozen,
            ThawedWord::StillStuck => Thawed::StillStuck,
        }
    }
}

/// An `io::Error` that travels.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Fault {
    errno: Option<i32>,
    text: String,
}

impl Fault {
    pub(super) fn because(text: &str) -> Fault {
        Fault { errno: None, text: text.to_owned() }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        Fault { errno: error.raw_os_error(), text: error.to_string() }
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> io::Error {
        match fault.errno {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::other(fault.text),
        }
    }
}

/// A path as it is, UTF-8 or not.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Bytes(Vec<u8>);

impl From<&Path> for Bytes {
    fn from(path: &Path) -> Bytes {
        Bytes(path.as_os_str().as_bytes().to_vec())
    }
}

impl From<Bytes> for PathBuf {
    fn from(bytes: Bytes) -> PathBuf {
        OsString::from_vec(bytes.0).into()
    }
}

/// A [`Target`] whose receipt is in the bytes that follow.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    dev: (u32, u32),
    mount: Bytes,
    path: Bytes,
    mount_id: u64,
    fs_root: Bytes,
    namespace: Option<i32>,
    uuid: String,
    freeze: bool,
    /// lengths of `receipt.json` and the four states
    receipt: Option<[usize; 5]>,
}

impl Plan {
    pub(super) fn of(target: &Target) -> Plan {
        Plan {
            dev: (target.dev.major, target.dev.minor),
            mount: target.mount.as_path().into(),
            path: target.open_at.path.as_path().into(),
            mount_id: target.open_at.mount_id,
            fs_root: target.open_at.fs_root.as_path().into(),
            namespace: target.namespace,
            uuid: target.uuid.clone(),
            freeze: target.freeze,
            receipt: target.receipt.as_ref().map(|receipt| parts(receipt).map(<[u8]>::len)),
        }
    }

    pub(super) fn dev(&self) -> Dev {
        Dev { major: self.dev.0, minor: self.dev.1 }
    }

    /// The target again; `None` if the bytes are not as many as announced.
    pub(super) fn target(self, mut bytes: &[u8]) -> Option<Target> {
        let receipt = match self.receipt {
            None => None,
            Some(lengths) => {
                let mut parts = Vec::new();
                for length in lengths {
                    let (part, rest) = bytes.split_at_checked(length)?;
                    parts.push(part.to_vec());
                    bytes = rest;
                }
                let [json, prepared, frozen, released, aborted] = parts.try_into().ok()?;
                Some(Receipt { json, prepared, frozen, released, aborted })
            }
        };
        Some(Target {
            dev: self.dev(),
            mount: self.mount.into(),
            open_at: MountPoint { path: self.path.into(), mount_id: self.mount_id, fs_root: self.fs_root.into() },
            namespace: self.namespace,
            uuid: self.uuid,
            freeze: self.freeze,
            receipt,
        })
    }
}

/// A receipt's parts in the order they travel.
pub(super) fn parts(receipt: &Receipt) -> [&[u8]; 5] {
    [&receipt.json, &receipt.prepared, &receipt.frozen, &receipt.released, &receipt.aborted]
}

/// Open files as they travel: three numbers each.
pub(super) fn pack(files: &[OpenFile]) -> Vec<u8> {
    let packed =
        |file: &OpenFile| [&file.pid.to_le_bytes()[..], &file.fd.to_le_bytes(), &file.mount_id.to_le_bytes()].concat();
    files.iter().flat_map(packed).collect()
}

/// The reverse of [`pack`].
pub(super) fn unpack(bytes: &[u8]) -> Vec<OpenFile> {
    let unpacked = |file: &[u8]| {
        let (pid, rest) = file.split_first_chunk()?;
        let (fd, rest) = rest.split_first_chunk()?;
        let (pid, fd) = (i32::from_le_bytes(*pid), i32::from_le_bytes(*fd));
        Some(OpenFile { pid, fd, mount_id: u64::from_le_bytes(*rest.first_chunk()?) })
    };
    bytes.chunks_exact(16).filter_map(unpacked).collect()
}

/// Sends one packet; never waits.
///
/// # Errors
/// As [`packet::send`].
pub(super) fn send(socket: impl AsFd, head: &impl Serialize, tail: &[&[u8]], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let head = serde_json::to_vec(head)?;
    let length = u32::try_from(head.len()).map_err(|_| io::ErrorKind::InvalidInput)?.to_le_bytes();
    let mut all: Vec<&[u8]> = vec![&length, &head];
    all.extend(tail);
    packet::send(socket, &all, fds)
}

/// What [`receive`] brought.
#[derive(Debug)]
pub(super) enum Heard<T> {
    Message {
        head: T,
        tail: Vec<u8>,
        fds: Vec<OwnedFd>,
    },
    Nothing,
    /// the other end is gone, or talks nonsense, which is the same
    End,
}

/// Takes the next packet, if there is one; never waits.
pub(super) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Heard<T> {
    match packet::receive(socket) {
        Ok(Received::Message { bytes, fds }) => match parse(&bytes) {
            Some((head, tail)) => Heard::Message { head, tail, fds },
            None => Heard::End,
        },
        Ok(Received::Nothing) => Heard::Nothing,
        Ok(Received::End) | Err(_) => Heard::End,
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Option<(T, Vec<u8>)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (head, tail) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    Some((serde_json::from_slice(head).ok()?, tail.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_travels_with_its_receipt_and_a_path_that_is_not_utf8() {
        let odd = PathBuf::from(OsString::from_vec(b"/mnt/\xff".to_vec()));
        let target = Target {
            dev: Dev { major: 7, minor: 1 },
            mount: odd.clone(),
            open_at: MountPoint { path: odd.clone(), mount_id: 9, fs_root: "/".into() },
            namespace: None,
            uuid: "u".into(),
            freeze: true,
            receipt: Some(Receipt {
                json: b"{}".to_vec(),
                prepared: b"p".to_vec(),
                frozen: b"ff".to_vec(),
                released: b"rrr".to_vec(),
                aborted: vec![],
            }),
        };
        let (a, b) = packet::pair().unwrap();
        let ask = Ask { seq: 3, order: Order::Open { index: 5, target: Plan::of(&target) } };
        send(&a, &ask, &parts(target.receipt.as_ref().unwrap()), &[]).unwrap();
        let Heard::Message { head: Ask { seq: 3, order: Order::Open { index: 5, target } }, tail, .. } = receive(&b)
        else {
            panic!("an Open was sent")
        };
        let target = target.target(&tail).unwrap();
        let receipt = target.receipt.unwrap();
        assert_eq!(
            (target.mount, receipt.json, receipt.released, receipt.aborted),
            (odd, b"{}".to_vec(), b"rrr".to_vec(), vec![])
        );
    }

    #[test]
    fn open_files_arrive_as_they_were_sent() {
        let files = [OpenFile { pid: 7, fd: 3, mount_id: 1 << 40 }, OpenFile { pid: i32::MAX, fd: 0, mount_id: 31 }];
        assert_eq!(unpack(&pack(&files)), files);
        assert_eq!(unpack(&pack(&files)[..20]), files[..1]);
    }

    #[test]
    fn nonsense_is_the_end_of_a_conversation() {
        let (a, b) = packet::pair().unwrap();
        packet::send(&a, &[b"\xff\xff\xff\xff"], &[]).unwrap();
        assert!(matches!(receive::<Ask>(&b), Heard::End));
    }
}
