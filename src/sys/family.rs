//! Processes of our own: forking them, knowing them again, ending them, and what each does to itself at its start.

use std::{
    ffi::CStr,
    io::{self, Read as _},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, SigmaskHow, sigprocmask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, SysconfVar, fork, sysconf},
};

/// Which process: a pid alone is reused, a pid with its start time (clock ticks since boot, proc_pid_stat(5)) is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub pid: i32,
    pub started: u64,
}

/// What a process is doing, of what matters here (proc_pid_stat(5), field 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    Living,
    /// stopped by a signal or a debugger
    Stopped,
    /// inside the kernel, not to be interrupted
    Blocked,
    /// gone, or a zombie
    Dead,
}

impl Identity {
    /// Who has this pid now; `None` if nobody.
    pub fn of(pid: i32) -> Option<Identity> {
        Some(Identity { pid, started: stat(pid)?.1 })
    }

    /// Had it been started by then (CLOCK_BOOTTIME)?
    pub fn began_by(self, then: Duration) -> bool {
        let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u128::try_from(ticks).ok());
        u128::from(self.started) <= then.as_nanos() * ticks.unwrap_or(100) / 1_000_000_000
    }

    /// What that very process is doing.
    pub fn doing(self) -> Doing {
        match stat(self.pid) {
            Some((state, started)) if started == self.started => match state {
                'Z' | 'X' => Doing::Dead,
                'T' | 't' => Doing::Stopped,
                'D' => Doing::Blocked,
                _other => Doing::Living,
            },
            Some(_) | None => Doing::Dead,
        }
    }

    /// A descriptor that is readable once that very process is dead; `None` if it is already gone.
    pub fn pidfd(self) -> Option<OwnedFd> {
        let fd = pidfd(self.pid).ok()?;
        (Identity::of(self.pid) == Some(self)).then_some(fd)
    }

    /// SIGKILL to that very process. One inside the kernel dies when it leaves it.
    pub fn kill(self) {
        if let Some(fd) = self.pidfd() {
            // JUSTIFICATION: kill(2) could hit a process that took the pid a moment ago.
            // SAFETY: plain integers and a null siginfo.
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), libc::SIGKILL, 0, 0) };
        }
    }
}

/// State letter and start time.
fn stat(pid: i32) -> Option<(char, u64)> {
    let mut text = vec![0; 4096];
    // one read has it all; this is asked while writers wait
    let length = std::fs::File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut text).ok()?;
    text.truncate(length);
    // the command name may hold anything, spaces and parentheses included
    let text = String::from_utf8_lossy(&text[text.iter().rposition(|&byte| byte == b')')? + 1..]).into_owned();
    let mut fields = text.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.nth(18)?.parse().ok()?))
}

/// pidfd_open(2).
///
/// # Errors
/// ESRCH if there is no such process.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // JUSTIFICATION: nix has no pidfd_open.
    // SAFETY: plain integers; a non-negative result is a new descriptor of ours, close-on-exec.
    unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        Ok(OwnedFd::from_raw_fd(RawFd::try_from(fd).expect("descriptors fit an int")))
    }
}

/// Waits until a pidfd says its process is dead; `false` if `limit` passed first.
pub fn died_within(pidfd: &OwnedFd, limit: Duration) -> bool {
    let limit = PollTimeout::try_from(limit.as_millis()).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(pidfd), PollFlags::POLLIN)];
    matches!(poll(&mut fds, limit), Ok(1..))
}

/// A forked child of this process.
#[derive(Debug)]
pub struct Child {
    pub identity: Identity,
    pub pidfd: OwnedFd,
}

impl Child {
    /// Reaps it if it is dead: its exit status, or -1 if a signal ended it; `None` while it lives.
    pub fn reap(&self) -> Option<i32> {
        match waitpid(Pid::from_raw(self.identity.pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => Some(code),
            Ok(WaitStatus::Signaled(..)) | Err(_) => Some(-1),
            Ok(_) => None,
        }
    }

    pub fn kill(&self) {
        self.identity.kill();
    }
}

/// Forks a child that runs `body` and exits with what it returns, 101 if it panics. It keeps of its descriptors those
/// in `keep`, and nothing of what it inherited is dropped.
///
/// # Errors
/// fork(2)'s and pidfd_open(2)'s (the child is then ended again); `Unsupported` in a process with more than one thread.
pub fn spawn(keep: &[RawFd], body: impl FnOnce() -> i32) -> io::Result<Child> {
    if threads() > 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "fork in a process with several threads"));
    }
    // JUSTIFICATION: a guardian must exist before the freeze and share nothing that can block.
    // SAFETY: this process has one thread (checked above), so no lock is held by a thread the child lacks.
    match unsafe { fork() }? {
        ForkResult::Child => {
            close_all_but(keep);
            let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or(101);
            // JUSTIFICATION: exit(3) would run the parent's destructors in the child.
            // SAFETY: ends this process; nothing runs after it.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => {
            let pid = child.as_raw();
            // not yet reaped, so the pid is still this child's
            match (Identity::of(pid), pidfd(pid)) {
                (Some(identity), Ok(pidfd)) => Ok(Child { identity, pidfd }),
                (_, failed) => {
                    let _ = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
                    let _ = waitpid(child, None);
                    Err(failed.err().unwrap_or_else(|| io::Error::other("/proc shows no start time for a child")))
                }
            }
        }
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// Closes every descriptor above 2 except `keep`: one forgotten copy of a socket's end, and its EOF never comes.
pub fn close_all_but(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep.iter().filter_map(|&fd| u32::try_from(fd).ok()).filter(|&fd| fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep.into_iter().chain([u32::MAX]) {
        if fd > first {
            let last = if fd == u32::MAX { fd } else { fd - 1 };
            // JUSTIFICATION: nix has no close_range.
            // SAFETY: called before anything owns the descriptors it closes, or in a child that never drops them.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
        first = fd.saturating_add(1);
    }
}

/// Blocks every signal that can be: such a process ends by its own decision or by SIGKILL.
pub fn block_signals() {
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
}

/// The reverse, before an exec: a blocked mask is inherited.
pub fn unblock_signals() {
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// The name `ps` shows, at most 15 bytes.
pub fn name(name: &CStr) {
    let _ = prctl::set_name(name);
}

/// Be killed when the process that forked us dies. Only for helpers that hold nothing.
///
/// # Errors
/// It is dead already, or prctl(2) refused.
pub fn end_with(parent: i32) -> io::Result<()> {
    prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    if nix::unistd::getppid().as_raw() == parent { Ok(()) } else { Err(io::ErrorKind::NotConnected.into()) }
}

/// No core dump: writing one could block on a frozen file system.
pub fn no_core() {
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
}

/// As many descriptors as the hard limit allows: each file system takes eight.
pub fn many_files() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Keeps pages in memory as they are touched, so that no page fault waits for a frozen disk (mlockall(2)).
pub fn lock_memory() {
    // JUSTIFICATION: nix's flags lack MCL_ONFAULT, without which a 20 MB binary becomes 20 MB resident.
    // SAFETY: changes no memory contents.
    unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
}

/// The reverse of [`lock_memory`].
pub fn unlock_memory() {
    let _ = nix::sys::mman::munlockall();
}
