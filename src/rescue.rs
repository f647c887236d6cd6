//! Letting go from the marker alone: `holdstill rescue`, run by systemd's ExecStopPost, at the daemon's start, by hand,
//! or by a warden or guardian whose daemon is lost. Thaws only what is ours, undoes started hooks newest first, restores
//! the tunable; all of it, even when some of it fails. It makes no file, and finding nothing to do is a success.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    fcntl::{Flock, FlockArg, OFlag, openat},
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::stat::Mode,
};

use crate::{
    sys::{
        clock,
        family::{self, Child, Doing, Identity},
        files,
        process::{self, Start, Status},
        writeback,
    },
    warden::{
        Reason, Thawed,
        entry::{Entry, State},
        marker::{Begins, LastRun, Marker, Phase, StartedHook},
        papers::{DIRECTORY, STATE},
        rcu, takeover,
        target::mounts,
    },
};

/// How long another rescue may hold the marker.
const LOCK: Duration = Duration::from_secs(10);
/// A daemon or warden whose pulse stands still for so long does not respond: nine of its ticks.
const RESPONSE: Duration = Duration::from_millis(2250);
/// A daemon that still beats so long after its deadline cannot let go either.
const OVERDUE: Duration = Duration::from_secs(30);
const WARDEN: Duration = Duration::from_secs(3);
const GUARDIANS: Duration = Duration::from_secs(1);
const DIE: Duration = Duration::from_secs(1);
/// How long one FITHAW or one receipt may take.
const THAW: Duration = Duration::from_secs(2);

/// What rescue did.
#[derive(Debug, Default)]
pub struct Rescued {
    /// the hold it ended; `None`: there was nothing to do
    pub hold_id: Option<String>,
    /// file systems that were still held when it came
    pub filesystems: Vec<(PathBuf, Thawed)>,
    /// hooks whose `thaw` it ran, in that order
    pub hooks: Vec<String>,
    pub tunable_restored: bool,
    /// what did not work; everything else was done all the same
    pub problems: Vec<Problem>,
}

#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("end process {pid}: it is inside the kernel and dies when it leaves it")]
    Unkillable { pid: i32 },
    #[error("thaw {}: {source}", mount.display())]
    Thaw { mount: PathBuf, source: io::Error },
    #[error("thaw {}: the kernel has not finished; it is let go the moment that lands", mount.display())]
    StillStuck { mount: PathBuf },
    #[error("write `released` into the receipt of {}", mount.display())]
    Receipt { mount: PathBuf },
    #[error("start the hook {name} to thaw: {source}")]
    HookStart { name: String, source: io::Error },
    #[error("thaw with the hook {name}: {}", status_text(*status))]
    Hook { name: String, status: Status },
    #[error("know how the hook {name} thawed: it had begun when the daemon was lost, and runs only once")]
    HookBegun { name: String },
    #[error("restore /sys/kernel/rcu_expedited: {0}")]
    Tunable(io::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the marker in {}: {source}", run.display())]
    Marker { run: PathBuf, source: io::Error },
    #[error("rescue: another rescue has been at work for {LOCK:?}")]
    Locked,
    #[error("rescue: the daemon (process {pid}) lives and responds; nothing was touched")]
    DaemonResponds { pid: i32 },
}

fn status_text(status: Status) -> String {
    match status {
        Status::Exited(code) => format!("it exited with status {code}"),
        Status::Signaled(signal) => format!("it was killed by signal {signal}"),
        Status::TimedOut => "it did not end in time and was killed".to_owned(),
    }
}

impl Rescued {
    /// The document of `rescue --json`.
    pub fn to_json(&self) -> serde_json::Value {
        let filesystems: Vec<_> = self
            .filesystems
            .iter()
            .map(|(mount, how)| {
                let how = match how {
                    Thawed::Ours => "thawed",
                    Thawed::Foreign => "foreign",
                    Thawed::NeverFrozen => "not_frozen",
                    Thawed::StillStuck => "stuck",
                };
                serde_json::json!({"mount": mount, "outcome": how})
            })
            .collect();
        serde_json::json!({
            "hold_id": self.hold_id.as_deref().unwrap_or_default(),
            "filesystems": filesystems,
            "hooks": self.hooks,
            "problems": self.problems.iter().map(|p| format!("failed to {p}")).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Rescued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(id) = &self.hold_id else { return write!(f, "nothing was held") };
        write!(f, "hold {id} is let go")?;
        for (mount, how) in &self.filesystems {
            let how = match how {
                Thawed::Ours => "thawed",
                Thawed::Foreign => "had been thawed by somebody else",
                Thawed::NeverFrozen => "was not frozen",
                Thawed::StillStuck => "is still frozen",
            };
            write!(f, "\n{} {how}", mount.display())?;
        }
        for name in &self.hooks {
            write!(f, "\nhook:{name} ran its thaw")?;
        }
        self.problems.iter().try_for_each(|problem| write!(f, "\nfailed to {problem}"))
    }
}

/// Lets go of the hold recorded in `run`. `environment` is what hooks get besides their `HOLDSTILL_*`. Call it before
/// any thread is started: what can block is done in forked children.
///
/// # Errors
/// The marker is unreadable or locked, or the daemon is well and its hold its own business.
pub fn run(run: &Path, environment: &BTreeMap<String, String>) -> Result<Rescued, Error> {
    let marker_error = |source| Error::Marker { run: run.to_owned(), source };
    let Some(marker) = Marker::map(run).map_err(marker_error)? else { return Ok(Rescued::default()) };
    if !marker.of_this_boot().map_err(marker_error)? {
        return Ok(Rescued::default());
    }
    let _alone = lock(&marker)?;
    if !left(&marker) {
        // an idle warden ends with its daemon, unless it is stopped
        let stopped = marker.warden().filter(|warden| warden.doing() == Doing::Stopped);
        if living(marker.daemon()).is_none() {
            stopped.into_iter().for_each(Identity::kill);
            marker.end_stopped();
        }
        return Ok(Rescued::default());
    }
    let mut rescued = Rescued { hold_id: Some(marker.hold_id()), ..Rescued::default() };
    marker.take_rescue(std::process::id().cast_signed());
    end_daemon(&marker, &mut rescued)?;
    marker.daemon_lost().store(1, SeqCst);
    marker.let_go_because(Reason::DaemonLost);
    end_warden(&marker, &mut rescued);
    thaw(&marker, run, &mut rescued);
    marker.end_stopped();
    settle_receipts(&marker, &mut rescued);
    run_hooks(&marker, environment, &mut rescued);
    match rcu::restore(Path::new("/"), &marker) {
        Ok(restored) => rescued.tunable_restored = restored,
        Err(error) => rescued.problems.push(Problem::Tunable(error)),
    }
    marker.set_phase(Phase::LetGo);
    Ok(rescued)
}

fn left(marker: &Marker) -> bool {
    !matches!(marker.phase(), Phase::Idle | Phase::LetGo)
        || marker.holds()
        || !marker.hooks_not_undone().is_empty()
        || marker.rcu_raised().load(SeqCst) != 0
}

/// One rescue at a time; given back when it is dropped.
fn lock(marker: &Marker) -> Result<Flock<fs::File>, Error> {
    let mut locked = None;
    wait_until(LOCK, || {
        let file = marker.file().try_clone().ok();
        locked = file.and_then(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).ok());
        locked.is_some()
    });
    locked.ok_or(Error::Locked)
}

/// Looks every few milliseconds; `false` if `limit` passed first.
fn wait_until(limit: Duration, mut so: impl FnMut() -> bool) -> bool {
    let until = clock::monotonic() + limit;
    loop {
        if so() {
            return true;
        }
        if clock::monotonic() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Somebody else, alive; a zombie is not.
fn living(identity: Option<Identity>) -> Option<Identity> {
    let own = std::process::id().cast_signed();
    identity.filter(|identity| identity.pid != own && identity.doing() != Doing::Dead)
}

fn beats(identity: Identity, pulse: &AtomicU64) -> bool {
    let before = pulse.load(SeqCst);
    let done = || pulse.load(SeqCst) != before || matches!(identity.doing(), Doing::Dead | Doing::Stopped);
    wait_until(RESPONSE, done) && pulse.load(SeqCst) != before
}

fn end(identity: Identity, rescued: &mut Rescued) {
    let Some(pidfd) = identity.pidfd() else { return };
    identity.kill();
    if !family::died_within(&pidfd, DIE) {
        rescued.problems.push(Problem::Unkillable { pid: identity.pid });
    }
}

fn end_daemon(marker: &Marker, rescued: &mut Rescued) -> Result<(), Error> {
    let Some(daemon) = living(marker.daemon()) else { return Ok(()) };
    let overdue = marker.deadline().is_some_and(|deadline| deadline.over_for(OVERDUE));
    let known_lost = marker.daemon_lost().load(SeqCst) != 0;
    if !known_lost && !overdue && beats(daemon, marker.daemon_pulse()) {
        return Err(Error::DaemonResponds { pid: daemon.pid });
    }
    end(daemon, rescued);
    Ok(())
}

/// A warden that responds sees its daemon gone and lets go by itself.
fn end_warden(marker: &Marker, rescued: &mut Rescued) {
    let Some(warden) = living(marker.warden()) else { return };
    let done = || !marker.holds() || matches!(warden.doing(), Doing::Dead | Doing::Stopped);
    wait_until(WARDEN, done);
    if marker.holds() || warden.doing() == Doing::Stopped {
        end(warden, rescued);
    }
}

fn thaw(marker: &Marker, run: &Path, rescued: &mut Rescued) {
    let own = std::process::id().cast_signed();
    for entry in marker.entries() {
        entry.abort().store(1, SeqCst);
        if entry.owner().is_some_and(|owner| owner.pid == own) {
            // this very process was its guardian
            entry.set_owner(Identity { pid: 0, started: 0 });
        }
    }
    let mut held: Vec<Entry<'_>> = marker.entries().filter(|entry| entry.state().holds()).collect();
    held.sort_by_key(|entry| std::cmp::Reverse(entry.level().load(SeqCst)));
    wait_until(GUARDIANS, || !marker.holds());
    let mut children = Vec::new();
    for entry in held.iter().filter(|entry| entry.state().holds()) {
        match family::spawn(&[], || code(thaw_one(*entry, run))) {
            Ok(child) => children.push((entry, child)),
            Err(source) => rescued.problems.push(Problem::Thaw { mount: entry.mount(), source }),
        }
    }
    let until = clock::monotonic() + THAW;
    for (entry, child) in children {
        if let Some(errno) = wait_for(&child, until).filter(|&code| code != 0) {
            let source =
                if errno > 0 { io::Error::from_raw_os_error(errno) } else { io::ErrorKind::Interrupted.into() };
            rescued.problems.push(Problem::Thaw { mount: entry.mount(), source });
        }
    }
    for entry in held {
        if entry.state().holds() {
            rescued.problems.push(Problem::StillStuck { mount: entry.mount() });
        }
        rescued.filesystems.push((entry.mount(), entry.ended()));
    }
}

/// Its exit status; `None` if it has not ended by then: it is left to end alone.
fn wait_for(child: &Child, until: Duration) -> Option<i32> {
    family::died_within(&child.pidfd, until.saturating_sub(clock::monotonic())).then(|| child.reap()).flatten()
}

/// An exit status from a result: 0 or the errno.
fn code(result: io::Result<()>) -> i32 {
    result.map_or_else(|error| error.raw_os_error().filter(|&errno| errno < 256).unwrap_or(libc::EIO), |()| 0)
}

fn thaw_one(entry: Entry<'_>, run: &Path) -> io::Result<()> {
    let root = open(entry).or_else(|_nowhere| mount_anew(entry, run))?;
    takeover::thaw(entry, &root)
}

/// Opens the file system wherever it is still mounted: where it was held, elsewhere, in another namespace.
fn open(entry: Entry<'_>) -> io::Result<OwnedFd> {
    let recorded = (entry.namespace(), entry.path());
    let elsewhere = [None].into_iter().chain(namespaces().into_iter().map(Some));
    let elsewhere = elsewhere.flat_map(|namespace| {
        let mounts = mounts(namespace).unwrap_or_default();
        mounts.into_iter().filter(|mount| mount.dev == entry.dev()).map(move |mount| (namespace, mount.point))
    });
    let places = std::iter::once(recorded).chain(elsewhere);
    let found = places.into_iter().find_map(|(namespace, path)| {
        let fd = files::open_mount(&path, namespace).ok()?;
        let id = files::mount_id(fd.as_fd()).ok()?;
        let right = mounts(namespace).ok()?.iter().any(|mount| mount.id == id && mount.dev == entry.dev());
        right.then_some(fd)
    });
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// One process of each mount namespace.
fn namespaces() -> Vec<i32> {
    let mut seen = BTreeSet::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|namespace| seen.insert(namespace)))
        .collect()
}

/// A frozen superblock survives its last umount. Runs in a child: the namespace, and the mount in it, end with it.
fn mount_anew(entry: Entry<'_>, run: &Path) -> io::Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some(&entry.source()), run, Some(entry.fs_type().as_str()), MsFlags::empty(), None::<&str>)?;
    let root = files::open_mount(run, None)?;
    let id = files::mount_id(root.as_fd())?;
    let right =
        mounts(None)?.iter().any(|mount| mount.id == id && (mount.dev == entry.dev() || entry.dev().major == 0));
    right.then_some(root).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
}

/// Where the sentinel died before it could write `released`.
fn settle_receipts(marker: &Marker, rescued: &mut Rescued) {
    let unsettled = |entry: &Entry<'_>| {
        entry.frozen_once().load(SeqCst) != 0
            && entry.returned().load(SeqCst) == 0
            && matches!(entry.state(), State::Thawed | State::Foreign)
    };
    let sentinels = || marker.entries().filter(unsettled).any(|entry| living(entry.sentinel()).is_some());
    wait_until(DIE, || !sentinels());
    for entry in marker.entries().filter(unsettled) {
        let Some(released) = entry.released() else { continue };
        let child = family::spawn(&[], || code(open(entry).and_then(|root| write_state(&root, &released))));
        let until = clock::monotonic() + THAW;
        if child.ok().and_then(|child| wait_for(&child, until)) != Some(0) {
            rescued.problems.push(Problem::Receipt { mount: entry.mount() });
        }
    }
}

fn write_state(root: &OwnedFd, released: &[u8]) -> io::Result<()> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = openat(root, DIRECTORY, flags, Mode::empty())?;
    let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let state = fs::File::from(openat(directory, STATE, flags, Mode::empty())?);
    state.write_all_at(released, 0)?;
    writeback::begin(&state, 0, 0)
}

fn run_hooks(marker: &Marker, environment: &BTreeMap<String, String>, rescued: &mut Rescued) {
    let defaults = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", "/root"),
        ("USER", "root"),
        ("LOGNAME", "root"),
        ("LANG", "C.UTF-8"),
    ];
    let own = [
        ("HOLDSTILL_PHASE", "thaw".to_owned()),
        ("HOLDSTILL_ID", marker.hold_id()),
        ("HOLDSTILL_REASON", "daemon_lost".to_owned()),
        // what only the daemon knew; set all the same, for scripts with `set -u`
        ("HOLDSTILL_LABEL", String::new()),
        ("HOLDSTILL_REQUIRE", String::new()),
        ("HOLDSTILL_MOUNTS", String::new()),
        ("HOLDSTILL_REPORT", String::new()),
        ("HOLDSTILL_MAX_HOLD_SECONDS", "0".to_owned()),
    ];
    let mut all: BTreeMap<String, String> = defaults.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    all.extend(environment.clone());
    all.extend(own.map(|(name, value)| (name.to_owned(), value)));
    let held = marker.was_held();
    for StartedHook { name, program, thaw, failed, limit, fine, user } in marker.hooks_not_undone().into_iter().rev() {
        if program.as_os_str().is_empty() {
            marker.hook_undone(&name); // it has nothing to undo
            continue;
        }
        match marker.last_run(&name) {
            Some(LastRun { of: Begins::Undo, begun, process }) => {
                // it runs once: whoever began it is lost, and with them how it ended
                let left = limit.saturating_sub(clock::boottime().saturating_sub(begun));
                outlast(process, left, rescued);
                rescued.problems.push(Problem::HookBegun { name: name.clone() });
                marker.hook_undone(&name);
                continue;
            }
            // a phase that nobody waits for any more is ended first
            Some(LastRun { of: Begins::Phase, process, .. }) => outlast(process, Duration::ZERO, rescued),
            None => {}
        }
        let ends = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + limit;
        all.insert("HOLDSTILL_TIMEOUT_SECONDS".to_owned(), limit.as_secs().to_string());
        all.insert("HOLDSTILL_DEADLINE".to_owned(), ends.as_secs().to_string());
        let mut environment = all.clone();
        if let Some(user) = &user {
            let words = [("HOME", &user.home), ("USER", &user.name), ("LOGNAME", &user.name)];
            environment.extend(words.map(|(name, value)| (name.to_owned(), value.clone())));
        }
        let arguments = if held { &thaw } else { &failed };
        let signs = marker.pen(&name, Begins::Undo);
        let ids = user.as_ref().map(|user| &user.ids);
        let start = Start { program: &program, arguments, environment: &environment, input: None, user: ids };
        match process::run_signed(start, limit, None, signs.as_ref()) {
            Ok(outcome) if matches!(outcome.status, Status::Exited(code) if code == 0 || Some(code) == fine) => {}
            Ok(outcome) => rescued.problems.push(Problem::Hook { name: name.clone(), status: outcome.status }),
            Err(source) => rescued.problems.push(Problem::HookStart { name: name.clone(), source }),
        }
        marker.hook_undone(&name);
        rescued.hooks.push(name);
    }
}

/// Waits for a program whose daemon is lost, and ends it after `left`.
fn outlast(program: Option<Identity>, left: Duration, rescued: &mut Rescued) {
    if let Some(program) = program.filter(|program| !process::outlast(*program, left)) {
        rescued.problems.push(Problem::Unkillable { pid: program.pid });
    }
}
