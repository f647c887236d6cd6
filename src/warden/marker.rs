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

use std::{
    ffi::{OsStr, OsString},
    fs::{File, OpenOptions},
    io,
    num::NonZeroUsize,
    os::unix::{
        ffi::OsStrExt,
        fs::{OpenOptionsExt, PermissionsExt},
    },
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
    process::User,
    table::{self, Pen, Table},
};

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

// offsets in a hook
const HOOK_USER: usize = 16; // flag, uid, gid, number of groups
const HOOK_NAME: (usize, usize) = (32, 256);
const HOOK_PROGRAM: (usize, usize) = (288, 736);
const HOOK_GROUPS: usize = 1024; // 64 of them
const HOOK_THAW: (usize, usize) = (1280, 1024);
const HOOK_FAILED: (usize, usize) = (2304, 1024);
const HOOK_HOME: (usize, usize) = (3328, 512); // the user's name, and after a zero the home
const HOOK_COUNTS: usize = 3840; // how many arguments each of the two vectors has
const HOOK_RUN: usize = 3856; // when its last run began, and its pid: written by that itself

// how far a hook is; 0: none
const STARTED: u32 = 1;
const UNDONE: u32 = 2;
const UNDO_BEGUN: u32 = 3;

/// How many supplementary groups of a hook's user are known to whoever undoes it.
const MOST_GROUPS: usize = 64;

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

/// A hook that was started, as recorded: what its undo needs, whoever is left to run it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedHook {
    pub name: String,
    /// what undoes it; empty: nothing does
    pub program: PathBuf,
    /// its arguments after a hold that was held
    pub thaw: Vec<OsString>,
    /// its arguments after one that never was
    pub failed: Vec<OsString>,
    pub limit: Duration,
    /// `None`: root
    pub user: Option<HookUser>,
}

/// Whom a hook runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookUser {
    pub name: String,
    pub home: String,
    pub ids: User,
}

/// What a hook is about to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    Phase,
    Undo,
}

/// The last run of a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastRun {
    pub of: Begins,
    /// CLOCK_BOOTTIME
    pub begun: Duration,
    /// while it lives
    pub process: Option<Identity>,
}

impl StartedHook {
    /// Is there room in the marker for it?
    ///
    /// # Errors
    /// What is too long.
    pub fn fits(&self) -> io::Result<()> {
        let too_long = |what: &str, most: usize| {
            Err(io::Error::new(io::ErrorKind::InvalidFilename, format!("{what} is longer than {most} bytes")))
        };
        if self.name.len() >= HOOK_NAME.1 {
            return too_long("its name", HOOK_NAME.1 - 1);
        }
        if self.program.as_os_str().len() >= HOOK_PROGRAM.1 {
            return too_long("its path", HOOK_PROGRAM.1 - 1);
        }
        if [&self.thaw, &self.failed].iter().any(|words| joined(words).len() >= HOOK_THAW.1) {
            return too_long("what it is called with", HOOK_THAW.1 - 1);
        }
        match &self.user {
            Some(user) if user.ids.groups.len() > MOST_GROUPS => {
                Err(io::Error::other(format!("its user is in more than {MOST_GROUPS} groups")))
            }
            Some(user) if user.name.len() + user.home.len() + 2 >= HOOK_HOME.1 => {
                too_long("its user's home", HOOK_HOME.1 - 1)
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Arguments as execve(2) lays them out: each with a zero behind it.
fn joined(words: &[OsString]) -> Vec<u8> {
    words.iter().flat_map(|word| word.as_bytes().iter().copied().chain([0])).collect()
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

    /// Written *before* a hook's first phase runs, so that its undo is known whoever dies.
    ///
    /// # Errors
    /// More hooks than the marker has room for, or [`StartedHook::fits`] not.
    pub fn hook_started(&self, hook: &StartedHook) -> io::Result<()> {
        let slot = (0..MOST_HOOKS).find(|&slot| self.hook(slot).load(Acquire) == 0);
        let slot = slot.ok_or_else(|| io::Error::new(io::ErrorKind::StorageFull, "more than 256 hooks"))?;
        hook.fits()?;
        let base = HOOKS_AT + slot * HOOK_SIZE;
        let at = |(offset, length): (usize, usize)| (base + offset, length);
        self.put(at(HOOK_NAME), hook.name.as_bytes());
        self.put(at(HOOK_PROGRAM), hook.program.as_os_str().as_bytes());
        for (index, (field, words)) in [(HOOK_THAW, &hook.thaw), (HOOK_FAILED, &hook.failed)].into_iter().enumerate() {
            self.put(at(field), &joined(words));
            let count = u32::try_from(words.len()).expect("they fit");
            self.table.u32(base + HOOK_COUNTS + 4 * index).store(count, Relaxed);
        }
        if let Some(user) = &hook.user {
            let groups = u32::try_from(user.ids.groups.len()).expect("few groups");
            for (index, word) in [1, user.ids.uid, user.ids.gid, groups].into_iter().enumerate() {
                self.table.u32(base + HOOK_USER + 4 * index).store(word, Relaxed);
            }
            for (index, &group) in user.ids.groups.iter().enumerate() {
                self.table.u32(base + HOOK_GROUPS + 4 * index).store(group, Relaxed);
            }
            self.put(at(HOOK_HOME), format!("{}\0{}", user.name, user.home).as_bytes());
        }
        self.table.u64(base + 8).store(nanos(hook.limit), Relaxed);
        self.hook(slot).store(STARTED, Release);
        Ok(())
    }

    /// What a run of this hook writes itself down with; `None`: it was never started.
    pub fn pen(&self, name: &str, begins: Begins) -> Option<Pen> {
        let (slot, _) = self.started().find(|(_, hook)| hook.name == name)?;
        let base = HOOKS_AT + slot * HOOK_SIZE;
        let state = match begins {
            Begins::Phase => None,
            Begins::Undo => Some((base, UNDO_BEGUN)),
        };
        Some(Pen { table: Arc::clone(&self.table), at: base + HOOK_RUN, state })
    }

    /// `None`: nothing of it ever ran.
    pub fn last_run(&self, name: &str) -> Option<LastRun> {
        let (slot, _) = self.started().find(|(_, hook)| hook.name == name)?;
        let base = HOOKS_AT + slot * HOOK_SIZE;
        let of = if self.hook(slot).load(Acquire) == UNDO_BEGUN { Begins::Undo } else { Begins::Phase };
        let pid = self.table.u32(base + HOOK_RUN + 8).load(Acquire).cast_signed();
        let begun = Duration::from_nanos(self.table.u64(base + HOOK_RUN).load(Acquire));
        // whoever got the same pid later began later
        let same = |process: &Identity| process.began_by(begun) && process.doing() != Doing::Dead;
        (pid > 0).then(|| LastRun { of, begun, process: Identity::of(pid).filter(same) })
    }

    /// Its `thaw` has run, with whatever result.
    pub fn hook_undone(&self, name: &str) {
        for (slot, _) in self.started().filter(|(_, hook)| hook.name == name) {
            self.hook(slot).store(UNDONE, Release);
        }
    }

    /// In the order they were started.
    pub fn hooks_not_undone(&self) -> Vec<StartedHook> {
        self.started().map(|(_, hook)| hook).collect()
    }

    fn started(&self) -> impl Iterator<Item = (usize, StartedHook)> {
        let used = (0..MOST_HOOKS).take_while(|&slot| self.hook(slot).load(Acquire) != 0);
        used.filter(|&slot| self.hook(slot).load(Acquire) != UNDONE).map(|slot| (slot, self.started_hook(slot)))
    }

    fn started_hook(&self, slot: usize) -> StartedHook {
        let base = HOOKS_AT + slot * HOOK_SIZE;
        let at = |(offset, length): (usize, usize)| (base + offset, length);
        let word = |offset: usize| self.table.u32(base + offset).load(Relaxed);
        let words = |field, counted: usize| {
            let count = word(HOOK_COUNTS + counted) as usize;
            let bytes = self.raw(at(field));
            bytes.split(|&byte| byte == 0).take(count).map(|word| OsStr::from_bytes(word).to_owned()).collect()
        };
        let user = (word(HOOK_USER) == 1).then(|| {
            let groups = (word(HOOK_USER + 12) as usize).min(MOST_GROUPS);
            let both = String::from_utf8_lossy(&self.raw(at(HOOK_HOME))).into_owned();
            let mut both = both.split('\0').map(str::to_owned);
            HookUser {
                name: both.next().unwrap_or_default(),
                home: both.next().unwrap_or_default(),
                ids: User {
                    uid: word(HOOK_USER + 4),
                    gid: word(HOOK_USER + 8),
                    groups: (0..groups).map(|index| word(HOOK_GROUPS + 4 * index)).collect(),
                },
            }
        });
        StartedHook {
            name: self.text(at(HOOK_NAME)),
            program: OsStr::from_bytes(&self.get(at(HOOK_PROGRAM))).into(),
            thaw: words(HOOK_THAW, 0),
            failed: words(HOOK_FAILED, 4),
            limit: Duration::from_nanos(self.table.u64(base + 8).load(Relaxed)),
            user,
        }
    }

    fn reached(&self) -> &AtomicU32 {
        self.table.u32(48)
    }

    fn hook(&self, slot: usize) -> &AtomicU32 {
        self.table.u32(HOOKS_AT + slot * HOOK_SIZE)
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
    use crate::sys::process::{self, Start};

    fn hook(name: &str) -> StartedHook {
        let ids = User { uid: 5, gid: 6, groups: vec![6, 70] };
        StartedHook {
            name: name.to_owned(),
            program: Path::new("/hooks").join(name),
            thaw: vec!["thaw".into(), OsString::new(), "two words".into(), OsString::new()],
            failed: vec![],
            limit: Duration::from_secs(5),
            user: name.ends_with('c').then(|| HookUser { name: "pat".into(), home: "/home/pat".into(), ids }),
        }
    }

    #[test]
    fn what_does_not_fit_is_said_instead_of_cut() {
        let long = |length: usize| OsString::from("x".repeat(length));
        for (too_long, what) in [
            (StartedHook { program: PathBuf::from(long(736)), ..hook("a") }, "its path is longer than 735 bytes"),
            (StartedHook { thaw: vec![long(1023)], ..hook("a") }, "what it is called with is longer than 1023 bytes"),
        ] {
            assert_eq!(too_long.fits().unwrap_err().to_string(), what);
        }
        assert!(StartedHook { thaw: vec![long(1022)], ..hook("a") }.fits().is_ok());
    }

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
    fn a_run_writes_itself_down_and_is_known_while_it_lives() {
        let run = tempfile::tempdir().unwrap();
        let marker = Marker::create(run.path()).unwrap();
        marker.begin("h1").unwrap();
        marker.hook_started(&hook("10-a")).unwrap();
        assert_eq!(marker.last_run("10-a"), None);
        let sleep = |seconds: &str, begins| {
            let pen = marker.pen("10-a", begins).unwrap();
            let arguments = [seconds.into()];
            let environment = Default::default();
            let program = Path::new("/bin/sleep");
            let start = Start { program, arguments: &arguments, environment: &environment, input: None, user: None };
            process::run_signed(start, Duration::from_secs(20), None, Some(&pen)).unwrap();
        };
        std::thread::scope(|scope| {
            scope.spawn(|| sleep("0.5", Begins::Phase));
            let until = clock::monotonic() + Duration::from_secs(10);
            let lives = || marker.last_run("10-a").is_some_and(|last| last.process.is_some());
            while !lives() {
                assert!(clock::monotonic() < until, "it runs, and nobody knows");
                std::thread::yield_now();
            }
        });
        let ended = marker.last_run("10-a").unwrap();
        assert_eq!((ended.of, ended.process), (Begins::Phase, None));
        sleep("0", Begins::Undo);
        let undone = marker.last_run("10-a").unwrap();
        assert_eq!((undone.of, undone.process, undone.begun > ended.begun), (Begins::Undo, None, true));
        assert_eq!(marker.hooks_not_undone().len(), 1, "how it ended is not known yet");
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
