//! The marker: a small table on tmpfs, mapped by every process of ours; what is left when they are gone.
//!
//! ```text
//!   0      header: boot id, hold id, phase, deadline, identities, pulses, tunable, flags        4 KiB
//!   4 KiB  256 hooks of 4 KiB: flag, limit, whom it runs as, name, program, its two undoing argument vectors
//!   ...    512 file systems of 12 KiB: state, identities, where it is, its `released` sector   (see [`super::entry`])
//! ```
//!
//! The file is sparse: pages nobody touched cost nothing. Everything is read and written through atomics, and a state
//! changes hands by compare-and-swap, so a process may die between any two lines.

mod hooks;

use std::{
    fs::{File, OpenOptions},
    io,
    num::NonZeroUsize,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use nix::fcntl::{FallocateFlags, fallocate};

use super::{
    Reason,
    entry::{Entry, State},
};
use crate::sys::{
    clock,
    family::{Doing, Identity},
    table::{self, Table},
};

pub use hooks::{Begins, HookUser, LastRun, StartedHook};

/// How many file systems and hooks one hold can have.
pub const MOST_FILESYSTEMS: usize = 512;
pub const MOST_HOOKS: usize = 256;

const MAGIC: u64 = u64::from_le_bytes(*b"HOLDSTIL");
const VERSION: u32 = 2;

const HOOKS_AT: usize = 4096;
const HOOK_SIZE: usize = 4096;
const ENTRIES_AT: usize = HOOKS_AT + MOST_HOOKS * HOOK_SIZE;
const LENGTH: usize = ENTRIES_AT + MOST_FILESYSTEMS * super::entry::SIZE;

// offsets in the header
const BOOT_ID: (usize, usize) = (64, 64);
const HOLD_ID: (usize, usize) = (128, 128);

/// The mapped table.
#[derive(Debug)]
pub struct Marker {
    table: Arc<Table>,
    file: File,
}

/// How far the hold named in the marker has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Idle,
    Preparing,
    Quiescing,
    Held,
    Releasing,
    /// ended without its daemon: by the warden, a guardian or rescue
    LetGo,
}

const PHASES: [Phase; 6] =
    [Phase::Idle, Phase::Preparing, Phase::Quiescing, Phase::Held, Phase::Releasing, Phase::LetGo];

/// When a hold ends whatever happens: on two clocks, whichever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    pub monotonic: Duration,
    pub boottime: Duration,
}

impl Deadline {
    /// `from_now` after this call.
    pub fn after(from_now: Duration) -> Deadline {
        Deadline { monotonic: clock::monotonic() + from_now, boottime: clock::boottime() + from_now }
    }

    /// What is left of it; zero once it has passed on either clock.
    pub fn left(self) -> Duration {
        self.left_at(clock::monotonic(), clock::boottime())
    }

    /// Has it been over for `grace` already?
    pub fn over_for(self, grace: Duration) -> bool {
        let ago = |clock: Duration| clock.saturating_sub(grace);
        self.left_at(ago(clock::monotonic()), ago(clock::boottime())).is_zero()
    }

    fn left_at(self, monotonic: Duration, boottime: Duration) -> Duration {
        self.monotonic.saturating_sub(monotonic).min(self.boottime.saturating_sub(boottime))
    }
}

/// A hold of this boot that its daemon did not end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    pub hold_id: String,
    pub phase: Phase,
    /// why it was let go, once it was
    pub reason: Option<Reason>,
    /// still frozen by us, or not known to be thawed
    pub held: Vec<PathBuf>,
    /// thawed by somebody else while we held them
    pub foreign: Vec<PathBuf>,
    /// started and not undone, in the order they were started
    pub hooks: Vec<StartedHook>,
}

impl Marker {
    /// The marker of `run`, made if there is none of this boot. One that is in use stays as it is.
    ///
    /// # Errors
    /// The directory is missing, or what lies there is not ours and cannot be replaced.
    pub fn create(run: &Path) -> io::Result<Marker> {
        let boot_id = boot_id()?;
        if let Some(marker) = Marker::map(run)?.filter(|marker| marker.text(BOOT_ID) == boot_id) {
            return Ok(marker);
        }
        let (path, new) = (run.join("marker"), run.join("marker.new"));
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&new)?;
        file.set_permissions(PermissionsExt::from_mode(0o600))?;
        file.set_len(LENGTH as u64)?;
        let marker = Marker::of(file)?;
        marker.put(BOOT_ID, boot_id.as_bytes());
        marker.version().store(VERSION, Release);
        marker.magic().store(MAGIC, Release);
        std::fs::rename(new, path)?;
        Ok(marker)
    }

    /// The marker of `run` as it is, whatever its boot; `None` if there is none or it is not one of this version.
    ///
    /// # Errors
    /// It exists but cannot be opened or mapped.
    pub fn map(run: &Path) -> io::Result<Option<Marker>> {
        let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(run.join("marker"));
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if file.metadata()?.len() != LENGTH as u64 {
            return Ok(None);
        }
        let marker = Marker::of(file)?;
        let known = marker.magic().load(Acquire) == MAGIC && marker.version().load(Acquire) == VERSION;
        Ok(known.then_some(marker))
    }

    /// The hold of this boot that its daemon did not end, if there is one: what a restarted daemon must know.
    ///
    /// # Errors
    /// As [`Marker::map`].
    pub fn open(run: &Path) -> io::Result<Option<Leftover>> {
        let Some(marker) = Marker::map(run)? else { return Ok(None) };
        Ok((marker.of_this_boot()?).then(|| marker.leftover()).flatten())
    }

    fn of(file: File) -> io::Result<Marker> {
        let table = Table::map(&file, NonZeroUsize::new(LENGTH).expect("the table has a length"))?;
        Ok(Marker { table: Arc::new(table), file })
    }

    /// Written since this machine booted?
    ///
    /// # Errors
    /// The kernel does not say which boot this is.
    pub fn of_this_boot(&self) -> io::Result<bool> {
        Ok(self.text(BOOT_ID) == boot_id()?)
    }

    /// What the daemon left undone; `None` if the last hold ended as it should.
    pub fn leftover(&self) -> Option<Leftover> {
        let phase = self.phase();
        let mounts = |state: fn(State) -> bool| {
            self.entries().filter(|entry| state(entry.state())).map(|entry| entry.mount()).collect()
        };
        (phase != Phase::Idle).then(|| Leftover {
            hold_id: self.hold_id(),
            phase,
            reason: self.reason(),
            held: mounts(State::holds),
            foreign: mounts(|state| state == State::Foreign),
            hooks: self.hooks_not_undone(),
        })
    }

    /// Forgets the last hold and names the next.
    ///
    /// # Errors
    /// tmpfs could not drop the old pages.
    pub fn begin(&self, hold_id: &str) -> io::Result<()> {
        let used = i64::try_from(LENGTH - HOOKS_AT).expect("the table is small");
        let start = i64::try_from(HOOKS_AT).expect("the table is small");
        fallocate(&self.file, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, start, used)?;
        // the tunable is not forgotten: it stays known until restored
        for word in [self.count(), self.table.u32(32), self.claim(), self.daemon_lost(), self.reached()] {
            word.store(0, Release);
        }
        self.disarm();
        self.put(HOLD_ID, hold_id.as_bytes());
        self.generation().fetch_add(1, AcqRel);
        self.set_phase(Phase::Preparing);
        Ok(())
    }

    pub fn hold_id(&self) -> String {
        self.text(HOLD_ID)
    }

    pub fn phase(&self) -> Phase {
        PHASES.get(self.table.u32(16).load(Acquire) as usize).copied().unwrap_or(Phase::Releasing)
    }

    /// The driver says where its hold is; [`Phase::Idle`] means that nothing is left to undo.
    pub fn set_phase(&self, phase: Phase) {
        let value = PHASES.iter().position(|&p| p == phase).expect("every phase is listed");
        self.table.u32(16).store(u32::try_from(value).expect("few phases"), Release);
    }

    /// The driver says that all is held.
    pub fn note_held(&self) {
        self.reached().store(1, Release);
    }

    /// Did this hold ever come to be held? Hooks of some conventions are undone with another word if not.
    pub fn was_held(&self) -> bool {
        self.reached().load(Acquire) == 1
    }

    fn reached(&self) -> &AtomicU32 {
        self.table.u32(48)
    }

    /// The file systems of this hold, by index.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = Entry<'_>> + ExactSizeIterator {
        (0..(self.count().load(Acquire) as usize).min(MOST_FILESYSTEMS)).map(|index| self.entry(index))
    }

    pub fn entry(&self, index: usize) -> Entry<'_> {
        assert!(index < MOST_FILESYSTEMS, "the marker has room for 512 file systems");
        Entry::new(&self.table, ENTRIES_AT + index * super::entry::SIZE, self.generation().load(Acquire))
    }

    /// At least `count` entries are in use.
    pub fn uses(&self, count: usize) {
        self.count().fetch_max(u32::try_from(count).expect("at most 512"), AcqRel);
    }

    /// Is there a file system that is, or may be, frozen by us?
    pub fn holds(&self) -> bool {
        self.entries().any(|entry| entry.state().holds())
    }

    /// Ends guardians and sentinels that are stopped and hold nothing: they would stay for ever.
    pub fn end_stopped(&self) {
        for entry in self.entries().filter(|entry| !entry.state().holds()) {
            let members = entry.owner().into_iter().chain(entry.sentinel());
            members.filter(|member| member.doing() == Doing::Stopped).for_each(Identity::kill);
        }
    }

    /// `None` until armed.
    pub fn deadline(&self) -> Option<Deadline> {
        let read = |offset| Duration::from_nanos(self.table.u64(offset).load(Acquire));
        let deadline = Deadline { monotonic: read(256), boottime: read(264) };
        (!deadline.monotonic.is_zero()).then_some(deadline)
    }

    pub fn arm(&self, deadline: Deadline) {
        self.table.u64(264).store(nanos(deadline.boottime), Release);
        self.table.u64(256).store(nanos(deadline.monotonic), Release);
    }

    pub fn disarm(&self) {
        self.table.u64(256).store(0, Release);
    }

    /// Why the hold was let go without being asked to; a stronger reason replaces a weaker.
    pub fn let_go_because(&self, reason: Reason) {
        self.table.u32(32).fetch_max(reason as u32, AcqRel);
    }

    pub fn reason(&self) -> Option<Reason> {
        Reason::from_number(self.table.u32(32).load(Acquire))
    }

    /// `true` for the one of several processes that becomes the rescue, and for a next one should that die.
    pub fn claim_rescue(&self, pid: i32) -> bool {
        let claimed = self.claim().load(Acquire);
        let alive = |pid: u32| Identity::of(pid.cast_signed()).is_some_and(|claimant| claimant.doing() != Doing::Dead);
        let free = claimed == 0 || !alive(claimed);
        free && self.claim().compare_exchange(claimed, pid.unsigned_abs(), AcqRel, Acquire).is_ok()
    }

    /// Takes over a claim (rescue holds the marker's lock, so its predecessor is gone).
    pub fn take_rescue(&self, pid: i32) {
        self.claim().store(pid.unsigned_abs(), Release);
    }

    pub fn daemon(&self) -> Option<Identity> {
        self.identity(272)
    }

    pub fn set_daemon(&self, daemon: Identity) {
        self.set_identity(272, daemon);
    }

    pub fn warden(&self) -> Option<Identity> {
        self.identity(288)
    }

    pub fn set_warden(&self, warden: Identity) {
        self.set_identity(288, warden);
    }

    fn identity(&self, at: usize) -> Option<Identity> {
        let pid = self.table.u32(at).load(Acquire).cast_signed();
        (pid > 0).then(|| Identity { pid, started: self.table.u64(at + 8).load(Acquire) })
    }

    fn set_identity(&self, at: usize, identity: Identity) {
        self.table.u64(at + 8).store(identity.started, Release);
        self.table.u32(at).store(identity.pid.unsigned_abs(), Release);
    }

    /// Counts up every 250 ms while a hold lives and the daemon runs: the daemon's beat.
    pub fn daemon_pulse(&self) -> &AtomicU64 {
        self.table.u64(304)
    }

    /// The warden's.
    pub fn warden_pulse(&self) -> &AtomicU64 {
        self.table.u64(312)
    }

    /// How many holds this marker has seen: a process of an older one must not touch this one.
    pub fn generation(&self) -> &AtomicU64 {
        self.table.u64(320)
    }

    /// 1 while /sys/kernel/rcu_expedited is changed by us (its old value is then 0).
    pub fn rcu_raised(&self) -> &AtomicU32 {
        self.table.u32(40)
    }

    /// 1 once the daemon was found dead or not responding: rescue need not find out again.
    pub fn daemon_lost(&self) -> &AtomicU32 {
        self.table.u32(44)
    }

    /// The file itself, to lock.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn magic(&self) -> &AtomicU64 {
        self.table.u64(0)
    }

    fn version(&self) -> &AtomicU32 {
        self.table.u32(8)
    }

    fn count(&self) -> &AtomicU32 {
        self.table.u32(20)
    }

    fn claim(&self) -> &AtomicU32 {
        self.table.u32(36)
    }

    fn text(&self, field: (usize, usize)) -> String {
        String::from_utf8_lossy(&self.get(field)).into_owned()
    }

    fn get(&self, (at, room): (usize, usize)) -> Vec<u8> {
        get(&self.table, at, room)
    }

    /// The whole of a field, zeros and all.
    fn raw(&self, (at, room): (usize, usize)) -> Vec<u8> {
        self.table.bytes(at, room).iter().map(|byte| byte.load(Relaxed)).collect()
    }

    fn put(&self, (at, room): (usize, usize), bytes: &[u8]) {
        put(&self.table, at, room, bytes);
    }
}

/// The bytes of a field, up to its first NUL.
pub(super) fn get(table: &table::Table, at: usize, room: usize) -> Vec<u8> {
    table.bytes(at, room).iter().map(|byte| byte.load(Relaxed)).take_while(|&byte| byte != 0).collect()
}

/// Fills a field, cutting what does not fit and leaving a NUL at its end.
pub(super) fn put(table: &table::Table, at: usize, room: usize, bytes: &[u8]) {
    let padded = bytes.iter().copied().take(room - 1).chain(std::iter::repeat(0));
    for (to, from) in table.bytes(at, room).iter().zip(padded) {
        to.store(from, Relaxed);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hooks::tests::hook;

    #[test]
    fn a_hold_its_daemon_did_not_end_is_found_with_its_hooks_in_order() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(Marker::open(run.path()).unwrap(), None);
        let marker = Marker::create(run.path()).unwrap();
        marker.begin("h1").unwrap();
        marker.set_phase(Phase::Quiescing);
        for name in ["10-a", "20-b", "30-c"] {
            marker.hook_started(&hook(name)).unwrap();
        }
        marker.hook_undone("20-b");
        drop(marker);
        let left = Marker::open(run.path()).unwrap().unwrap();
        assert_eq!((left.hold_id.as_str(), left.phase, left.reason), ("h1", Phase::Quiescing, None));
        let names: Vec<_> = left.hooks.iter().map(|hook| hook.name.as_str()).collect();
        assert_eq!(names, ["10-a", "30-c"]);
        assert_eq!(left.hooks[1].clone(), hook("30-c"));
    }

    #[test]
    fn a_hold_that_ended_leaves_nothing_and_the_next_starts_empty() {
        let run = tempfile::tempdir().unwrap();
        let marker = Marker::create(run.path()).unwrap();
        marker.begin("h1").unwrap();
        marker.hook_started(&hook("10-a")).unwrap();
        marker.uses(1);
        marker.arm(Deadline::after(Duration::from_secs(1)));
        marker.begin("h2").unwrap();
        assert_eq!((marker.hooks_not_undone().len(), marker.entries().len(), marker.deadline()), (0, 0, None));
        marker.set_phase(Phase::Idle);
        assert_eq!(Marker::open(run.path()).unwrap(), None);
    }

    #[test]
    fn a_marker_in_use_is_kept_and_one_of_another_boot_replaced() {
        let run = tempfile::tempdir().unwrap();
        let marker = Marker::create(run.path()).unwrap();
        marker.begin("h1").unwrap();
        assert_eq!(Marker::create(run.path()).unwrap().hold_id(), "h1");
        marker.put(BOOT_ID, b"another");
        assert_eq!(Marker::open(run.path()).unwrap(), None);
        assert_eq!(Marker::create(run.path()).unwrap().hold_id(), "");
    }

    #[test]
    fn a_deadline_ends_on_whichever_clock_comes_first() {
        let at = Duration::from_secs;
        let deadline = Deadline { monotonic: at(100), boottime: at(200) };
        assert_eq!(deadline.left_at(at(90), at(190)), at(10));
        assert_eq!(deadline.left_at(at(90), at(199)), at(1));
        assert_eq!(deadline.left_at(at(90), at(500)), Duration::ZERO);
    }

    #[test]
    fn only_one_process_becomes_the_rescue_unless_it_dies() {
        let run = tempfile::tempdir().unwrap();
        let marker = Marker::create(run.path()).unwrap();
        let (one, other) = (std::process::id().cast_signed(), std::os::unix::process::parent_id().cast_signed());
        assert!(marker.claim_rescue(one) && !marker.claim_rescue(other));
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        marker.take_rescue(dead.id().cast_signed());
        assert!(marker.claim_rescue(other));
    }
}
