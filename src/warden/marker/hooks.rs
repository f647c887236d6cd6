//! What the marker knows of hooks: those that were started, how each is undone, and its last run.
//!
//! A hook is written down before its first phase runs. Each run writes down itself, between fork and exec: so whoever is
//! left knows what still runs, and whether an undo has begun.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{
            AtomicU32,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use super::{HOOK_SIZE, HOOKS_AT, MOST_HOOKS, Marker, nanos};
use crate::sys::{
    family::{Doing, Identity},
    process::User,
    table::Pen,
};

// offsets in a hook
const HOOK_USER: usize = 16; // flag, uid, gid, number of groups
const HOOK_NAME: (usize, usize) = (32, 256);
const HOOK_PROGRAM: (usize, usize) = (288, 736);
const HOOK_GROUPS: usize = 1024; // 64 of them
const HOOK_THAW: (usize, usize) = (1280, 1024);
const HOOK_FAILED: (usize, usize) = (2304, 1024);
const HOOK_HOME: (usize, usize) = (3328, 512); // the user's name, and after a zero the home
const HOOK_COUNTS: usize = 3840; // how many arguments each of the two vectors has
const HOOK_FINE: usize = 3848; // an exit status that is a success besides 0
const HOOK_RUN: usize = 3856; // when its last run began, and its pid: written by that itself

// how far a hook is; 0: none
const STARTED: u32 = 1;
const UNDONE: u32 = 2;
const UNDO_BEGUN: u32 = 3;

/// How many supplementary groups of a hook's user are known to whoever undoes it.
const MOST_GROUPS: usize = 64;

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
    /// an exit status of its `thaw` that is a success besides 0
    pub fine: Option<i32>,
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
        self.table.u32(base + HOOK_FINE).store(hook.fine.unwrap_or(0).cast_unsigned(), Relaxed);
        self.hook(slot).store(STARTED, Release);
        Ok(())
    }

    /// What a run of this hook writes itself down with; `None`: it was never started.
    pub fn pen(&self, name: &str, begins: Begins) -> Option<Pen> {
        let base = HOOKS_AT + self.slot_of(name)? * HOOK_SIZE;
        let state = match begins {
            Begins::Phase => None,
            Begins::Undo => Some((base, UNDO_BEGUN)),
        };
        Some(Pen { table: Arc::clone(&self.table), at: base + HOOK_RUN, state })
    }

    /// `None`: nothing of it ever ran.
    pub fn last_run(&self, name: &str) -> Option<LastRun> {
        let slot = self.slot_of(name)?;
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
        if let Some(slot) = self.slot_of(name) {
            self.hook(slot).store(UNDONE, Release);
        }
    }

    /// In the order they were started.
    pub fn hooks_not_undone(&self) -> Vec<StartedHook> {
        self.started().map(|slot| self.started_hook(slot)).collect()
    }

    /// The slots of those not undone.
    fn started(&self) -> impl Iterator<Item = usize> {
        let used = (0..MOST_HOOKS).take_while(|&slot| self.hook(slot).load(Acquire) != 0);
        used.filter(|&slot| self.hook(slot).load(Acquire) != UNDONE)
    }

    /// Reads no more than names: this is asked once for each run, while somebody may wait.
    fn slot_of(&self, name: &str) -> Option<usize> {
        let named = |slot: usize| self.get((HOOKS_AT + slot * HOOK_SIZE + HOOK_NAME.0, HOOK_NAME.1));
        self.started().find(|&slot| named(slot) == name.as_bytes())
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
            fine: Some(word(HOOK_FINE).cast_signed()).filter(|code| *code != 0),
            user,
        }
    }

    fn hook(&self, slot: usize) -> &AtomicU32 {
        self.table.u32(HOOKS_AT + slot * HOOK_SIZE)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;
    use crate::sys::{
        clock,
        process::{self, Start},
    };

    pub fn hook(name: &str) -> StartedHook {
        let ids = User { uid: 5, gid: 6, groups: vec![6, 70] };
        StartedHook {
            name: name.to_owned(),
            program: Path::new("/hooks").join(name),
            thaw: vec!["thaw".into(), OsString::new(), "two words".into(), OsString::new()],
            failed: vec![],
            limit: Duration::from_secs(5),
            fine: name.ends_with('c').then_some(205),
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
}
