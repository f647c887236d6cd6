//! Starting the command of `run`: a fresh copy of this program first (`holdstill gate`), which sets up, waits, and then
//! becomes the command. Being a program of its own, the waiting side is single-threaded and may use all of Rust; nothing
//! runs between fork and exec. Called by `run`; [`become_command`] by the gate itself.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, PipeReader},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::Path,
    process::{self, Command, ExitStatus, Stdio},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        prctl,
        signal::{Signal, killpg},
    },
    unistd::Pid,
};

/// A started gate, later the command.
pub struct Child {
    /// also its process group
    pub pid: Pid,
    /// what is said between us and the gate; it ends when the gate becomes the command
    pub gate: UnixStream,
    pub stdout: PipeReader,
    pub stderr: PipeReader,
    pub process: process::Child,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exited(u8),
    Signaled(u8),
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Ended {
        let byte = |n: i32| u8::try_from(n).unwrap_or(u8::MAX);
        match (status.code(), status.signal()) {
            (Some(code), _) => Ended::Exited(byte(code)),
            (None, signal) => Ended::Signaled(byte(signal.unwrap_or_default())),
        }
    }
}

/// Starts `program` with `args` in its own process group, with the gate's socket as its stdin.
///
/// # Errors
/// socketpair(2), pipe(2), fork(2) or execve(2).
pub fn spawn(program: &Path, args: &[OsString]) -> io::Result<Child> {
    let (gate, theirs) = UnixStream::pair()?;
    let (stdout, stdout_end) = io::pipe()?;
    let (stderr, stderr_end) = io::pipe()?;
    let process = Command::new(program)
        .args(args)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(stdout_end)
        .stderr(stderr_end)
        .process_group(0)
        .spawn()?;
    let pid = Pid::from_raw(i32::try_from(process.id()).expect("a pid is a pid_t"));
    Ok(Child { pid, gate, stdout, stderr, process })
}

/// Sends a signal to the whole process group of a child that has not been waited for.
///
/// # Errors
/// kill(2); ESRCH if nobody is left.
pub fn signal_group(pid: Pid, signal: Signal) -> io::Result<()> {
    Ok(killpg(pid, signal)?)
}

/// In the gate: be told to end (TERM) when the process that started us dies, also as the command.
///
/// # Errors
/// prctl(2).
pub fn end_with_parent() -> io::Result<()> {
    Ok(prctl::set_pdeathsig(Signal::SIGTERM)?)
}

/// In the gate: becomes the command. Its stdin is `/dev/null`; of the descriptors we inherited it gets stdout and stderr
/// alone, because any other may lie on what is held. Returns only if that failed.
pub fn become_command(program: &OsStr, name: &OsStr, args: &[OsString], hold_id: &str) -> io::Error {
    let prepared = (|| {
        let nothing = File::open("/dev/null")?;
        nix::unistd::dup2_stdin(&nothing)?;
        close_on_exec_from(3)
    })();
    match prepared {
        Ok(()) => Command::new(program).arg0(name).args(args).env("HOLDSTILL_ID", hold_id).exec(),
        Err(error) => error,
    }
}

/// Marks every descriptor from `first` on to be closed by execve(2); they stay usable should that fail.
fn close_on_exec_from(first: i32) -> io::Result<()> {
    let names: Vec<_> = fs::read_dir("/proc/self/fd")?.collect::<Result<_, _>>()?;
    for fd in names.iter().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).filter(|fd| *fd >= first)
    {
        // JUSTIFICATION: descriptors we merely inherited have no owner in this program to borrow from
        // SAFETY: the flag of an open descriptor is changed, nothing is closed or aliased; EBADF (the directory's own,
        // closed by now) is an error code
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        match fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
            Ok(_) | Err(Errno::EBADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn args(list: &[&str]) -> Vec<OsString> {
        list.iter().map(OsString::from).collect()
    }

    #[test]
    fn a_child_talks_over_its_gate_and_its_two_pipes_and_its_end_is_known() {
        let script = "read word; echo out $word; echo err $word >&2; exit 7";
        let mut child = spawn(Path::new("/bin/sh"), &args(&["-c", script])).expect("sh starts");
        child.gate.write_all(b"hello\n").expect("it reads");
        let (mut out, mut err) = (String::new(), String::new());
        child.stdout.read_to_string(&mut out).expect("readable");
        child.stderr.read_to_string(&mut err).expect("readable");
        assert_eq!((out.as_str(), err.as_str()), ("out hello\n", "err hello\n"));
        assert_eq!(Ended::from(child.process.wait().expect("ours")), Ended::Exited(7));
    }

    #[test]
    fn a_signal_reaches_the_whole_group() {
        let mut child = spawn(Path::new("/bin/sh"), &args(&["-c", "sleep 60 & echo up; wait"])).expect("sh starts");
        let mut up = [0; 3];
        child.stdout.read_exact(&mut up).expect("it is up");
        signal_group(child.pid, Signal::SIGTERM).expect("alive");
        assert_eq!(Ended::from(child.process.wait().expect("ours")), Ended::Signaled(15));
        // the background sleep held the pipe open too: end of file means it is gone as well
        child.stdout.read_to_end(&mut Vec::new()).expect("readable");
    }
}
