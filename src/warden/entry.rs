//! One file system in the marker, and the one rule by which it changes hands.
//!
//! ```text
//!                FIFREEZE            returned 0            before every FITHAW
//!   planned ──────────────▶ freezing ──────────▶ ours ──────────────────────────▶ thawing ───▶ thawed
//!      ▲                       │  │ EBUSY          │ its sentinel returned first      ▲
//!      └──── another error ────┘  └────────▶ foreign ◀                                │
//!                              └──── its guardian is dead and reaped ────────────────┘
//! ```

use std::{
    ffi::OsStr,
    io,
    os::{fd::BorrowedFd, unix::ffi::OsStrExt},
    path::PathBuf,
    sync::atomic::{
        AtomicU32,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

use super::{
    Target, Thawed,
    marker::{get, put},
};
use crate::{
    guest::Dev,
    sys::{family::Identity, freeze, table::Table},
};

/// Room for one entry, bytes.
pub(super) const SIZE: usize = 12 * 1024;

/// The largest `released` sector it can keep.
pub const SECTOR: usize = 4096;

const MOUNT: (usize, usize) = (128, 1024);
const PATH: (usize, usize) = (1152, 1024);
const SOURCE: (usize, usize) = (2176, 1024);
const FS_TYPE: (usize, usize) = (3200, 64);
const UUID: (usize, usize) = (3264, 64);
const RELEASED: usize = 8192;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Planned,
    Freezing,
    Ours,
    Foreign,
    Thawing,
    Thawed,
}

const STATES: [State; 6] =
    [State::Planned, State::Freezing, State::Ours, State::Foreign, State::Thawing, State::Thawed];

impl State {
    /// It is frozen by us, or may be.
    pub fn holds(self) -> bool {
        match self {
            State::Freezing | State::Ours | State::Thawing => true,
            State::Planned | State::Foreign | State::Thawed => false,
        }
    }

    fn number(self) -> u32 {
        u32::try_from(STATES.iter().position(|&s| s == self).expect("every state is listed")).expect("few states")
    }
}

/// One file system's part of the marker, for one hold: a process that slept through the end of its hold finds that this
/// entry is no longer its own, and changes nothing.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    table: &'a Table,
    base: usize,
    /// the hold's number, in the upper bits of the state
    tag: u32,
}

impl<'a> Entry<'a> {
    pub(super) fn new(table: &'a Table, base: usize, hold: u64) -> Self {
        let tag = u32::try_from(hold & 0x00ff_ffff).expect("24 bits") << 8;
        Entry { table, base, tag }
    }

    /// Of another hold than the one it was made for: [`State::Thawed`], for nothing is to be done.
    pub fn state(self) -> State {
        let word = self.word(0).load(Acquire);
        if word & !0xff != self.tag {
            return State::Thawed;
        }
        STATES.get((word & 0xff) as usize).copied().unwrap_or(State::Thawing)
    }

    /// Is it still the entry of the hold it was made for?
    pub fn current(self) -> bool {
        self.word(0).load(Acquire) & !0xff == self.tag
    }

    /// From `from` to `to`, if nobody was faster.
    pub fn turn(self, from: State, to: State) -> bool {
        let (from, to) = (self.tag | from.number(), self.tag | to.number());
        self.word(0).compare_exchange(from, to, AcqRel, Acquire).is_ok()
    }

    /// Records who and where it is; before anybody else knows of it.
    pub fn plan(self, target: &Target) {
        self.word(0).store(self.tag | State::Planned.number(), Release);
        self.word(8).store(u32::from(target.freeze), Relaxed);
        self.word(28).store(target.dev.major, Relaxed);
        self.word(32).store(target.dev.minor, Relaxed);
        self.word(36).store(target.namespace.unwrap_or(0).unsigned_abs(), Relaxed);
        put(self.table, self.base + MOUNT.0, MOUNT.1, target.mount.as_os_str().as_bytes());
        put(self.table, self.base + PATH.0, PATH.1, target.open_at.path.as_os_str().as_bytes());
        put(self.table, self.base + UUID.0, UUID.1, target.uuid.as_bytes());
    }

    /// What the kernel says it was mounted from, should it have to be mounted anew.
    pub fn set_source(self, fs_type: &str, source: &[u8]) {
        put(self.table, self.base + FS_TYPE.0, FS_TYPE.1, fs_type.as_bytes());
        put(self.table, self.base + SOURCE.0, SOURCE.1, source);
    }

    /// It has a receipt, and these bytes are what its state becomes when it is let go.
    pub fn set_released(self, sector: &[u8]) {
        let room = self.table.bytes(self.base + RELEASED, SECTOR);
        for (to, from) in room.iter().zip(sector) {
            to.store(*from, Relaxed);
        }
        self.word(24).store(u32::try_from(sector.len()).unwrap_or(0), Release);
    }

    /// Those bytes; `None` without a receipt.
    pub fn released(self) -> Option<Vec<u8>> {
        let length = (self.word(24).load(Acquire) as usize).min(SECTOR);
        let bytes = self.table.bytes(self.base + RELEASED, length);
        (length > 0).then(|| bytes.iter().map(|byte| byte.load(Relaxed)).collect())
    }

    /// Nobody may leave this one frozen: its guardian thaws it the moment its FIFREEZE returns.
    pub fn abort(self) -> &'a AtomicU32 {
        self.word(4)
    }

    /// 1 once its sentinel is about to block.
    pub fn entered(self) -> &'a AtomicU32 {
        self.word(12)
    }

    /// 1 once its sentinel came back: it has been thawed, by whomever.
    pub fn returned(self) -> &'a AtomicU32 {
        self.word(16)
    }

    /// 1 once a FIFREEZE of ours returned 0.
    pub fn frozen_once(self) -> &'a AtomicU32 {
        self.word(20)
    }

    pub fn freeze(self) -> bool {
        self.word(8).load(Relaxed) != 0
    }

    /// Its place in the order of freezing; the outermost is thawed first.
    pub fn level(self) -> &'a AtomicU32 {
        self.word(40)
    }

    pub fn dev(self) -> Dev {
        Dev { major: self.word(28).load(Relaxed), minor: self.word(32).load(Relaxed) }
    }

    pub fn namespace(self) -> Option<i32> {
        Some(self.word(36).load(Relaxed).cast_signed()).filter(|&pid| pid > 0)
    }

    pub fn mount(self) -> PathBuf {
        OsStr::from_bytes(&get(self.table, self.base + MOUNT.0, MOUNT.1)).into()
    }

    /// Where it was opened.
    pub fn path(self) -> PathBuf {
        OsStr::from_bytes(&get(self.table, self.base + PATH.0, PATH.1)).into()
    }

    pub fn uuid(self) -> String {
        String::from_utf8_lossy(&get(self.table, self.base + UUID.0, UUID.1)).into_owned()
    }

    pub fn fs_type(self) -> String {
        String::from_utf8_lossy(&get(self.table, self.base + FS_TYPE.0, FS_TYPE.1)).into_owned()
    }

    pub fn source(self) -> PathBuf {
        OsStr::from_bytes(&get(self.table, self.base + SOURCE.0, SOURCE.1)).into()
    }

    /// The process that may FIFREEZE or FITHAW it now: its guardian, later perhaps a thawer.
    pub fn owner(self) -> Option<Identity> {
        self.identity(48)
    }

    pub fn set_owner(self, identity: Identity) {
        self.set_identity(48, identity);
    }

    pub fn sentinel(self) -> Option<Identity> {
        self.identity(64)
    }

    pub fn set_sentinel(self, identity: Identity) {
        self.set_identity(64, identity);
    }

    fn identity(self, at: usize) -> Option<Identity> {
        let pid = self.word(at).load(Acquire).cast_signed();
        (pid > 0).then(|| Identity { pid, started: self.table.u64(self.base + at + 8).load(Acquire) })
    }

    fn set_identity(self, at: usize, identity: Identity) {
        self.table.u64(self.base + at + 8).store(identity.started, Release);
        self.word(at).store(identity.pid.unsigned_abs(), Release);
    }

    fn word(self, at: usize) -> &'a AtomicU32 {
        self.table.u32(self.base + at)
    }

    /// How its freeze ended, for whoever asked.
    pub fn ended(self) -> Thawed {
        let frozen = self.frozen_once().load(Acquire) != 0;
        match self.state() {
            State::Planned => Thawed::NeverFrozen,
            State::Freezing | State::Ours | State::Thawing => Thawed::StillStuck,
            State::Foreign if frozen => Thawed::Foreign,
            State::Thawed if frozen => Thawed::Ours,
            State::Foreign | State::Thawed => Thawed::NeverFrozen,
        }
    }

    /// The owner's FITHAW: only what is ours and was not thawed by somebody else.
    ///
    /// # Errors
    /// FITHAW failed and the file system is still frozen, and ours.
    pub fn let_go(self, root: BorrowedFd<'_>) -> io::Result<()> {
        if self.returned().load(Acquire) != 0 {
            self.turn(State::Ours, State::Foreign);
        }
        if self.turn(State::Ours, State::Thawing) { self.thaw(root, State::Foreign) } else { Ok(()) }
    }

    /// FITHAW in place of an owner that is proven dead. Where it died inside FIFREEZE or FITHAW the entry counts as ours
    /// until proven thawed: by FITHAW, by its EINVAL, or by the sentinel's return.
    ///
    /// # Errors
    /// FITHAW failed and the file system is still frozen.
    pub fn take_over(self, root: BorrowedFd<'_>) -> io::Result<()> {
        match self.state() {
            State::Planned | State::Foreign | State::Thawed => Ok(()),
            State::Ours => self.let_go(root),
            State::Thawing if self.returned().load(Acquire) != 0 => {
                self.turn(State::Thawing, State::Thawed);
                Ok(())
            }
            State::Freezing if !self.turn(State::Freezing, State::Thawing) => Ok(()),
            State::Freezing | State::Thawing => self.thaw(root, State::Thawed),
        }
    }

    fn thaw(self, root: BorrowedFd<'_>, not_frozen: State) -> io::Result<()> {
        match freeze::fithaw(root) {
            Ok(()) => {
                self.frozen_once().store(1, Release);
                self.turn(State::Thawing, State::Thawed);
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.turn(State::Thawing, not_frozen);
            }
            Err(error) => {
                self.turn(State::Thawing, State::Ours);
                return Err(error);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::marker::Marker, *};

    fn with_entry(check: impl FnOnce(Entry<'_>)) {
        let run = tempfile::tempdir().unwrap();
        let marker = Marker::create(run.path()).unwrap();
        marker.begin("h").unwrap();
        plan(marker.entry(0));
        marker.uses(1);
        check(marker.entry(0));
    }

    fn plan(entry: Entry<'_>) {
        let open_at = crate::guest::MountPoint { path: "/mnt".into(), mount_id: 1, fs_root: "/".into() };
        entry.plan(&Target {
            dev: Dev { major: 7, minor: 0 },
            mount: "/mnt".into(),
            open_at,
            namespace: None,
            uuid: String::new(),
            freeze: true,
            receipt: None,
        });
    }

    #[test]
    fn a_process_that_slept_through_the_end_of_its_hold_changes_nothing() {
        let run = tempfile::tempdir().unwrap();
        let marker = Marker::create(run.path()).unwrap();
        marker.begin("h1").unwrap();
        let old = marker.entry(0);
        plan(old);
        assert!(old.turn(State::Planned, State::Freezing) && old.turn(State::Freezing, State::Ours));
        marker.begin("h2").unwrap();
        let new = marker.entry(0);
        plan(new);
        assert!(new.turn(State::Planned, State::Freezing) && new.turn(State::Freezing, State::Ours));
        assert!(!old.current() && !old.turn(State::Ours, State::Thawing));
        assert_eq!((old.state(), new.state()), (State::Thawed, State::Ours));
    }

    #[test]
    fn an_entry_is_claimed_by_one_only() {
        with_entry(|entry| {
            assert!(entry.turn(State::Planned, State::Freezing) && entry.turn(State::Freezing, State::Ours));
            assert!(entry.turn(State::Ours, State::Thawing));
            assert!(!entry.turn(State::Ours, State::Foreign), "the sentinel comes too late");
        });
    }

    #[test]
    fn a_freeze_of_somebody_else_was_never_ours() {
        with_entry(|entry| {
            entry.turn(State::Planned, State::Freezing);
            entry.turn(State::Freezing, State::Foreign);
            assert_eq!(entry.ended(), Thawed::NeverFrozen);
            entry.frozen_once().store(1, Release);
            assert_eq!(entry.ended(), Thawed::Foreign);
        });
    }

    #[test]
    fn what_the_sentinel_saw_thawed_is_not_thawed_again() {
        use std::os::fd::AsFd;
        with_entry(|entry| {
            // a descriptor on which FITHAW would fail: it must not even be tried
            let nothing = std::fs::File::open("/dev/null").unwrap();
            entry.turn(State::Planned, State::Freezing);
            entry.turn(State::Freezing, State::Ours);
            entry.frozen_once().store(1, Release);
            entry.returned().store(1, Release);
            entry.let_go(nothing.as_fd()).unwrap();
            assert_eq!(entry.ended(), Thawed::Foreign);
        });
    }
}
