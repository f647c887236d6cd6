//! Running a foreign program with an end: own process group, closed descriptors, drained and bounded output.
//! Called by `step::hook` and `step::reporter`, on a thread that may block.
//!
//! What a program started here sees: its own process group, standard input empty or a file in memory (never a pipe: one
//! that does not read it cannot keep us), standard output and error in one pipe, every other descriptor closed (ours are all close-on-exec, and `close_range` marks whatever a library forgot),
//! default signal dispositions and an empty mask, umask 022, directory `/`, OOM score 0, and no environment but the
//! one given. It runs as root, or as the [`User`] given, with that user's groups and nobody else's.
//!
//! Where the group ends: at the limit it gets TERM, and KILL 2 s later. When the program exits in time, its verdict is
//! its exit status, whatever it left running. A process it left behind may stay (a script may well start a helper in
//! `freeze` and stop it in `thaw`), but not while holding our pipe: one that still does 1 s after the exit is killed
//! with its group. Helpers redirect their output: `helper >/dev/null 2>&1 &`.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, PipeReader, Read, Seek, Write},
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, OpenOptionsExt},
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, kill, killpg},
    },
    unistd::{Pid, getpgid},
};

use super::{clock::monotonic, family::Identity, table::Pen};

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Exited(i32),
    Signaled(i32),
    /// the limit passed, or it was told to stop, and the whole process group was killed
    TimedOut,
}

/// Tells a running program's keeper to end it before its limit. Cheap to clone; telling twice is telling once.
#[derive(Debug, Clone)]
pub struct Stop(Arc<EventFd>);

impl Stop {
    /// # Errors
    /// eventfd(2): no descriptor is left.
    pub fn new() -> io::Result<Stop> {
        Ok(Stop(Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?)))
    }

    pub fn tell(&self) {
        // full means told already
        let _ = self.0.write(1);
    }
}

#[derive(Debug, Clone)]
pub struct Outcome {
    pub status: Status,
    pub took: Duration,
    /// the last `OUTPUT_TAIL` bytes of stdout and stderr together
    pub output: Vec<u8>,
}

/// How much output is kept.
pub const OUTPUT_TAIL: usize = 4096;

/// What a process group gets between TERM and KILL.
const GRACE: Duration = Duration::from_secs(2);

/// How long the pipe is read after the program ended, and how long a killed one is waited for.
const DRAIN: Duration = Duration::from_secs(1);

/// What to start, and as whom.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    pub program: &'a Path,
    pub arguments: &'a [OsString],
    /// all of it: nothing is inherited
    pub environment: &'a BTreeMap<String, String>,
    /// what it can read, in a file of its own in memory: whether and how fast it reads is its own affair; `None`: nothing
    pub input: Option<&'a [u8]>,
    /// `None`: as we are
    pub user: Option<&'a User>,
}

/// Whom a program runs as. See credentials(7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// the supplementary ones, all of them
    pub groups: Vec<u32>,
}

/// Runs a program in its own process group, and waits. Ended early once `stop` is told. Blocks the calling
/// thread for at most `limit` plus the 2 s a group gets between TERM and KILL, plus 1 s of draining.
///
/// # Errors
/// It could not be started (execve(2)), or not as that user (setgroups(2), setgid(2), setuid(2)), or there is no memory for
/// its input.
pub fn run(start: Start<'_>, limit: Duration, stop: Option<&Stop>) -> io::Result<Outcome> {
    run_signed(start, limit, stop, None)
}

/// As [`run`]; with `pen` the program writes itself down before it begins.
///
/// # Errors
/// As [`run`].
pub fn run_signed(start: Start<'_>, limit: Duration, stop: Option<&Stop>, pen: Option<&Pen>) -> io::Result<Outcome> {
    let started = monotonic();
    let (reader, writer) = io::pipe()?;
    set_nonblocking(&reader)?;
    let mut output = Tail { reader: Some(reader), kept: Vec::new() };
    let program = Program::start(start, pen, writer)?;

    let mut ended = program.wait(&mut output, started + limit, stop);
    let in_time = ended;
    let told = monotonic();
    if !ended {
        program.signal(Signal::SIGTERM);
        ended = program.wait(&mut output, told + GRACE, None);
    }
    if !ended {
        program.signal(Signal::SIGKILL);
        ended = program.wait(&mut output, told + GRACE + DRAIN, None);
    }
    if in_time {
        output.drain(monotonic() + DRAIN);
    }
    // Until it is reaped its number names no other group.
    if !in_time || output.reader.is_some() {
        program.signal(Signal::SIGKILL);
    }
    output.read_available();
    let took = monotonic() - started;
    let status = match (in_time, ended) {
        (true, _) => verdict(program.reap()?),
        (false, true) => {
            program.reap()?;
            Status::TimedOut
        }
        (false, false) => {
            program.reap_later();
            Status::TimedOut
        }
    };
    Ok(Outcome { status, took, output: output.into_bytes() })
}

fn verdict(status: ExitStatus) -> Status {
    match (status.code(), status.signal()) {
        (Some(code), _) => Status::Exited(code),
        (None, Some(signal)) => Status::Signaled(signal),
        (None, None) => unreachable!("a reaped process has exited or was killed"),
    }
}

fn in_memory(input: &[u8]) -> io::Result<File> {
    // kernels before 6.3 do not know the second flag; later ones want it said
    let close = MFdFlags::MFD_CLOEXEC;
    let file = match memfd_create(c"input", close | MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL)) {
        Err(Errno::EINVAL) => memfd_create(c"input", close)?,
        other => other?,
    };
    let mut file = File::from(file);
    file.write_all(input)?;
    file.rewind()?;
    Ok(file)
}

/// A started program that has not been reaped.
struct Program {
    child: Child,
    pidfd: OwnedFd,
}

impl Program {
    fn start(start: Start<'_>, pen: Option<&Pen>, output: io::PipeWriter) -> io::Result<Program> {
        let mut command = Command::new(start.program);
        command.args(start.arguments).env_clear().envs(start.environment).current_dir("/").process_group(0);
        let input = start.input.map(in_memory).transpose()?.map_or_else(Stdio::null, Stdio::from);
        command.stdin(input).stdout(output.try_clone()?).stderr(output);
        // JUSTIFICATION: std resets the mask and SIGPIPE only, and can set neither umask nor OOM score.
        // SAFETY: between fork and exec only async-signal-safe calls: close_range, signal, umask, open, write, close.
        unsafe { command.pre_exec(settle) };
        if let Some(user) = start.user.cloned() {
            // JUSTIFICATION: std's own uid() comes before what `settle` does, which then would need root's rights.
            // SAFETY: only async-signal-safe calls, on memory allocated before the fork.
            unsafe { command.pre_exec(move || become_user(&user)) };
        }
        if let Some(pen) = pen.cloned() {
            // JUSTIFICATION: only the program itself can say that it runs before it does.
            // SAFETY: atomic stores into memory that is mapped, and system calls.
            unsafe {
                command.pre_exec(move || {
                    pen.sign();
                    Ok(())
                })
            };
        }
        let mut child = command.spawn()?;
        drop(command); // and with it our ends of the pipe
        match pidfd_open(child.id()) {
            Ok(pidfd) => Ok(Program { child, pidfd }),
            Err(error) => {
                let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
                let _ = child.kill();
                std::thread::spawn(move || child.wait());
                Err(error)
            }
        }
    }

    fn wait(&self, output: &mut Tail, until: Duration, stop: Option<&Stop>) -> bool {
        wait(&self.pidfd, output, until, stop)
    }

    fn signal(&self, signal: Signal) {
        signal_all(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    fn reap(mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// It was killed but has not left the kernel (it waits for a disk); somebody must take its status when it does.
    fn reap_later(mut self) {
        std::thread::spawn(move || self.child.wait());
    }
}

/// Waits for a program's end, reading its output all the while; `false`: `until` passed first.
fn wait(pidfd: &OwnedFd, output: &mut Tail, until: Duration, stop: Option<&Stop>) -> bool {
    loop {
        let left = until.saturating_sub(monotonic());
        let stop = stop.map(|stop| stop.0.as_fd());
        let (ended, readable, stopped) = poll_all(pidfd.as_fd(), output.reader.as_ref().map(AsFd::as_fd), stop, left);
        if readable {
            output.read_available();
        }
        if ended {
            return true;
        }
        if left.is_zero() || stopped {
            return false;
        }
    }
}

/// To a program that has not been reaped, and its group.
fn signal_all(program: Pid, signal: Signal) {
    // ESRCH: the group is gone, which is what we want.
    let _ = killpg(program, signal);
    // it may have moved to another group
    if getpgid(Some(program)) != Ok(program) {
        let _ = kill(program, signal);
    }
}

/// Waits for a program that another process of ours started and cannot wait for any more; at the limit it is ended as
/// [`run`] does it. Nobody learns its exit status. `false`: it still lives.
pub fn outlast(program: Identity, limit: Duration) -> bool {
    let Some(pidfd) = program.pidfd() else { return true };
    let pid = Pid::from_raw(program.pid);
    let mut output = Tail { reader: output_of(program), kept: Vec::new() };
    let mut ends_within = |limit| wait(&pidfd, &mut output, monotonic() + limit, None);
    ends_within(limit)
        || {
            signal_all(pid, Signal::SIGTERM);
            ends_within(GRACE)
        }
        || {
            signal_all(pid, Signal::SIGKILL);
            ends_within(DRAIN)
        }
}

/// The other end of the pipe it writes to. Nobody else has it any more, and a write to a pipe without one ends the writer.
fn output_of(program: Identity) -> Option<PipeReader> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut open = OpenOptions::new();
    let file = open.read(true).custom_flags(flags.bits()).open(format!("/proc/{}/fd/1", program.pid)).ok()?;
    file.metadata().is_ok_and(|about| about.file_type().is_fifo()).then(|| OwnedFd::from(file).into())
}

/// Runs in the child, between fork and exec.
pub(super) fn settle() -> io::Result<()> {
    // JUSTIFICATION: these have no safe counterpart that is async-signal-safe.
    // SAFETY: plain system calls on constants, a NUL-terminated literal and a zeroed struct of the size the kernel reads
    // (four words on every 64-bit machine we build for); no memory of ours is written.
    unsafe {
        // Fails before Linux 5.11; our own descriptors are close-on-exec anyway.
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        let default = [0u64; 4]; // the kernel's struct sigaction: SIG_DFL, no flags, no restorer, empty mask
        for signal in 1..=64 {
            // The raw call, because glibc refuses its own two; KILL and STOP the kernel refuses, rightly.
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), size_of::<u64>());
        }
        libc::umask(0o022);
        let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if score >= 0 {
            libc::write(score, c"0".as_ptr().cast(), 1);
            libc::close(score);
        }
    }
    Ok(())
}

/// Runs in the child, between fork and exec, last: afterwards it is root no more.
fn become_user(user: &User) -> io::Result<()> {
    // JUSTIFICATION: nix's wrappers want types of its own, which would be allocated here; std's need a Command.
    // SAFETY: `groups` holds as many numbers as are said; in a child that has one thread these change that thread only.
    let done = unsafe {
        libc::setgroups(user.groups.len(), user.groups.as_ptr()) == 0
            && libc::setgid(user.gid) == 0
            && libc::setuid(user.uid) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The last bytes of what comes out of a pipe.
struct Tail {
    /// `None` once every writer has closed its end
    reader: Option<PipeReader>,
    kept: Vec<u8>,
}

impl Tail {
    /// Reads what is there. Bounded, so that a program that writes without end cannot keep us from the clock.
    fn read_available(&mut self) {
        let mut buffer = [0; 16 * 1024];
        for _ in 0..64 {
            let Some(reader) = &mut self.reader else { return };
            match reader.read(&mut buffer) {
                Ok(0) => self.reader = None,
                Ok(n) => self.keep(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.reader = None,
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(&bytes[bytes.len().saturating_sub(OUTPUT_TAIL)..]);
        if self.kept.len() > OUTPUT_TAIL {
            self.kept.drain(..self.kept.len() - OUTPUT_TAIL);
        }
    }

    /// Reads until the last writer closed its end or `until` passed.
    fn drain(&mut self, until: Duration) {
        loop {
            self.read_available();
            let Some(reader) = &self.reader else { return };
            let left = until.saturating_sub(monotonic());
            if left.is_zero() {
                return;
            }
            poll_one(reader.as_fd(), left);
        }
    }

    fn into_bytes(self) -> Vec<u8> {
        self.kept
    }
}

fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// A descriptor that becomes readable when process `pid`, an unreaped child of ours, ends. Linux 5.3.
fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // JUSTIFICATION: neither std nor nix wraps pidfd_open(2).
    // SAFETY: takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0u32) };
    let fd = i32::try_from(Errno::result(fd)?).expect("descriptors are small");
    // JUSTIFICATION: gives the new descriptor its owner.
    // SAFETY: the kernel has just returned it to us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits at most `left` (rounded up to a millisecond): is the first one ready, and the second?
fn poll_all(
    ended: BorrowedFd<'_>,
    output: Option<BorrowedFd<'_>>,
    stop: Option<BorrowedFd<'_>>,
    left: Duration,
) -> (bool, bool, bool) {
    // one that is absent stands for itself: poll(2) has no gap for it that nix could build
    let watched = [Some(ended), output, stop].map(|fd| fd.unwrap_or(ended));
    let mut fds = watched.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    // EINTR and ENOMEM look like "not yet": the caller asks again until its time is up.
    if poll(&mut fds, timeout(left)).is_err() {
        return (false, false, false);
    }
    let ready = |at: usize| fds[at].any().unwrap_or(false);
    (ready(0), output.is_some() && ready(1), stop.is_some() && ready(2))
}

fn poll_one(fd: BorrowedFd<'_>, left: Duration) {
    let _ = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout(left));
}

fn timeout(left: Duration) -> PollTimeout {
    PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn script(text: &str) -> tempfile::TempPath {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), text).expect("written");
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o755)).expect("made executable");
        file.into_temp_path() // closed: a file open for writing cannot be executed
    }

    fn run_script(text: &str, limit: Duration) -> Outcome {
        let file = script(&format!("#!/bin/sh\n{text}"));
        let environment = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let arguments = ["freeze".into()];
        let start = Start { program: &file, arguments: &arguments, environment: &environment, input: None, user: None };
        retry_busy(|| run(start, limit, None)).expect("it starts")
    }

    /// Another test's fork may hold our script open for writing for an instant (ETXTBSY).
    fn retry_busy(mut start: impl FnMut() -> io::Result<Outcome>) -> io::Result<Outcome> {
        loop {
            match start() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                other => return other,
            }
        }
    }

    fn alive(pid: &str) -> bool {
        match fs::read_to_string(format!("/proc/{}/stat", pid.trim())) {
            Ok(stat) => !stat.rsplit(") ").next().unwrap_or("").starts_with(['Z', 'X']),
            Err(_) => false,
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_program_told_to_stop_ends_long_before_its_limit() {
        let stop = Stop::new().expect("a descriptor");
        stop.tell();
        let file = script("#!/bin/sh\nexec sleep 100\n");
        let start = Start { program: &file, arguments: &[], environment: &BTreeMap::new(), input: None, user: None };
        let begun = monotonic();
        let outcome = retry_busy(|| run(start, Duration::from_secs(50), Some(&stop))).expect("it starts");
        assert_eq!(outcome.status, Status::TimedOut);
        assert!(monotonic() - begun < Duration::from_secs(10));
    }

    #[test]
    fn it_runs_as_the_user_given_with_that_users_groups_and_nobody_elses() {
        if !nix::unistd::geteuid().is_root() {
            return; // nobody else can become somebody
        }
        let file = script("#!/bin/sh\nid -u; id -g; id -G; cat /proc/self/oom_score_adj\n");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("others may run it");
        let environment = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let user = User { uid: 65534, gid: 65533, groups: vec![65533, 12, 7] };
        let start = Start { program: &file, arguments: &[], environment: &environment, input: None, user: Some(&user) };
        let outcome = retry_busy(|| run(start, LONG, None)).expect("it starts");
        assert_eq!(String::from_utf8_lossy(&outcome.output), "65534\n65533\n65533 7 12\n0\n");
    }

    fn run_script_reading(input: &[u8], text: &str) -> Outcome {
        let file = script(&format!("#!/bin/sh\n{text}"));
        let environment = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let start = Start { program: &file, arguments: &[], environment: &environment, input: Some(input), user: None };
        retry_busy(|| run(start, LONG, None)).expect("it starts")
    }

    #[test]
    fn it_reads_the_whole_of_its_input_and_then_its_end() {
        let input = vec![b'x'; 3_000_000];
        let out = run_script_reading(&input, "cat | wc -c; cat | wc -c; cat /dev/stdin | wc -c");
        assert_eq!(String::from_utf8(out.output).expect("text"), "3000000\n0\n3000000\n");
    }

    #[test]
    fn one_that_does_not_read_its_input_or_closes_it_ends_as_it_would_without() {
        let input = vec![b'x'; 3_000_000];
        assert_eq!(run_script_reading(&input, "exit 5").status, Status::Exited(5));
        assert_eq!(run_script_reading(&input, "exec 0<&-; head -c 10000000 /dev/zero").status, Status::Exited(0));
    }

    #[test]
    fn the_verdict_is_the_exit_status() {
        assert_eq!(run_script("exit 0", LONG).status, Status::Exited(0));
        assert_eq!(run_script("exit 7", LONG).status, Status::Exited(7));
        assert_eq!(run_script("kill -9 $$", LONG).status, Status::Signaled(9));
    }

    #[test]
    fn it_sees_its_argument_a_defined_environment_and_nothing_of_ours() {
        let leaked = tempfile::NamedTempFile::new().expect("a temporary file");
        fcntl(leaked.as_file(), FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).expect("made inheritable");
        let out = run_script(
            "echo $1; pwd; umask; cat /proc/self/oom_score_adj; cat; env | grep -v '^_\\|PWD='; readlink /proc/$$/fd/*",
            LONG,
        );
        let text = String::from_utf8(out.output).expect("text");
        assert!(text.starts_with("freeze\n/\n0022\n0\nPATH=/usr/bin:/bin\n/dev/null\npipe:"), "{text}");
        assert!(!text.contains(leaked.path().to_str().expect("a plain name")), "{text}");
    }

    #[test]
    fn signals_ignored_by_us_are_not_ignored_by_it() {
        // SAFETY: ignoring a signal installs no handler. JUSTIFICATION: this is the state a daemon may be in.
        let before = unsafe { nix::sys::signal::signal(Signal::SIGUSR2, nix::sys::signal::SigHandler::SigIgn) };
        let out = run_script("grep -E '^Sig(Ign|Blk)' /proc/self/status", LONG);
        // SAFETY: puts back what was there. JUSTIFICATION: as above.
        unsafe { nix::sys::signal::signal(Signal::SIGUSR2, before.expect("it was set")).expect("restored") };
        let text = String::from_utf8(out.output).expect("text");
        assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
        assert!(text.contains("SigIgn:\t0000000000000000"), "{text}");
    }

    #[test]
    fn ten_megabytes_of_output_leave_the_last_four_kilobytes() {
        let out = run_script("head -c 10485760 /dev/zero | tr '\\0' x; echo; echo the end >&2", LONG);
        assert_eq!(out.status, Status::Exited(0));
        assert_eq!(out.output.len(), OUTPUT_TAIL);
        assert!(out.output.ends_with(b"x\nthe end\n"));
    }

    #[test]
    fn output_without_end_does_not_outlast_the_limit() {
        let out = run_script("yes", Duration::from_millis(300));
        assert_eq!(out.status, Status::TimedOut);
        assert!(out.took < Duration::from_secs(2), "{:?}", out.took);
    }

    #[test]
    fn a_script_that_ignores_term_is_killed_with_its_children() {
        let out = run_script("trap '' TERM; sleep 300 & echo $!; wait; wait; wait", Duration::from_millis(200));
        assert_eq!(out.status, Status::TimedOut);
        assert!(out.took >= Duration::from_millis(2200) && out.took < Duration::from_millis(3500), "{:?}", out.took);
        let child = String::from_utf8(out.output).expect("text");
        assert!(!alive(&child), "the sleep it started lives on");
    }

    #[test]
    fn a_program_of_somebody_lost_is_waited_for_and_at_its_limit_ended_with_its_group() {
        let start = |seconds: &str| {
            let mut child = Command::new("sh").args(["-c", &format!("sleep {seconds}; :")]).process_group(0).spawn();
            let child = child.as_mut().expect("sh");
            let pid = child.id().cast_signed();
            (Identity::of(pid).expect("it has not been reaped"), monotonic())
        };
        let (brief, begun) = start("0.2");
        assert!(outlast(brief, LONG) && monotonic() - begun < LONG / 2, "it ends by itself");
        let (long, begun) = start("300");
        assert!(outlast(long, Duration::from_millis(100)) && monotonic() - begun < GRACE, "TERM ends it");
    }

    #[test]
    fn a_program_of_somebody_lost_can_go_on_printing() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let said = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 0.3; yes | head -c 200000; echo 'done' >\"$0\""]).arg(said.path()).stdout(writer);
        let mut child = command.process_group(0).spawn().expect("sh");
        drop(command);
        let program = Identity::of(child.id().cast_signed()).expect("it has not been reaped");
        std::thread::scope(|scope| {
            let outlasted = scope.spawn(|| outlast(program, LONG));
            std::thread::sleep(Duration::from_millis(100));
            drop(reader);
            assert!(outlasted.join().expect("it does not panic"));
        });
        child.wait().expect("it was ours");
        assert_eq!(fs::read_to_string(said.path()).expect("it is there"), "done\n");
    }

    #[test]
    fn a_stopped_script_does_not_hang_us() {
        let out = run_script("kill -STOP $$", Duration::from_millis(200));
        assert_eq!(out.status, Status::TimedOut);
        assert!(out.took < Duration::from_millis(3500), "{:?}", out.took);
    }

    #[test]
    fn a_daemon_that_keeps_our_pipe_is_killed_and_does_not_change_the_verdict() {
        let out = run_script("sleep 300 & echo $!; exit 3", LONG);
        assert_eq!(out.status, Status::Exited(3));
        assert!(out.took >= DRAIN && out.took < Duration::from_secs(5), "{:?}", out.took);
        let daemon = String::from_utf8(out.output).expect("text");
        let until = monotonic() + Duration::from_secs(5);
        while alive(&daemon) {
            assert!(monotonic() < until, "the daemon it left holds our pipe");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_helper_that_let_go_of_our_pipe_may_stay() {
        let out = run_script("sleep 300 >/dev/null 2>&1 & echo $!", LONG);
        assert_eq!(out.status, Status::Exited(0));
        assert!(out.took < DRAIN, "nothing to wait for, but it took {:?}", out.took);
        let helper = String::from_utf8(out.output).expect("text");
        assert!(alive(&helper));
        let pid = helper.trim().parse().expect("a pid");
        nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it was ours to end");
    }

    #[test]
    fn a_daemon_that_left_the_group_cannot_hold_us() {
        let out = run_script("setsid sleep 5 & exit 0", LONG);
        assert_eq!(out.status, Status::Exited(0));
        assert!(out.took < Duration::from_secs(4), "{:?}", out.took);
    }

    #[test]
    fn what_cannot_be_started_is_an_error() {
        let none = BTreeMap::new();
        let start = |program: &Path| {
            let start = Start { program, arguments: &[], environment: &none, input: None, user: None };
            retry_busy(|| run(start, LONG, None)).expect_err("it cannot start").kind()
        };
        let plain = script("#!/bin/sh\nexit 0\n");
        fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).expect("made not executable");
        assert_eq!(start(&plain), io::ErrorKind::PermissionDenied);
        assert_eq!(start(&script("#!/no/such/interpreter\n")), io::ErrorKind::NotFound);
        assert_eq!(start(&script("#!/bin/sh\r\nexit 0\r\n")), io::ErrorKind::NotFound);
        assert_eq!(start(Path::new("/no/such/hook")), io::ErrorKind::NotFound);
    }
}
