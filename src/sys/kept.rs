//! A foreign program that is kept running beside the daemon and never outlives it. Called by `door::qga::relay`.
//!
//! It starts as a hook does (`process`): own process group, every descriptor closed, default signals, umask 022, directory
//! `/`, OOM score 0, no environment but the one given; its input and output are /dev/null. When the thread that started it
//! ends, the kernel kills it, so it is started by the daemon's one thread and by no other. It is reaped when it dies,
//! whenever that is.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{prctl, signal::Signal},
    unistd::getppid,
};
use tokio::{sync::watch, time::timeout};

use super::{family, packet, process::settle};

/// What it gets between TERM and KILL, and after that to leave the kernel.
const GRACE: Duration = Duration::from_secs(2);

/// One that was started. Dropping it kills it.
#[derive(Debug)]
pub struct Kept {
    pid: u32,
    pidfd: OwnedFd,
    /// closed once it is dead and reaped
    alive: watch::Receiver<()>,
}

impl Kept {
    /// Starts `program`. Its death is watched by a task of the runtime this is called in.
    ///
    /// # Errors
    /// fork(2), execve(2) or pidfd_open(2).
    pub fn start(program: &Path, args: &[OsString], environment: &BTreeMap<String, OsString>) -> io::Result<Kept> {
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(environment).current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let parent = nix::unistd::getpid();
        let prepare = move || {
            settle()?;
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // the parent may have died before that took effect
            if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
        };
        // JUSTIFICATION: std can set neither the parent-death signal nor what `settle` does.
        // SAFETY: between fork and exec only async-signal-safe calls: those of `settle`, prctl and getppid.
        unsafe { command.pre_exec(prepare) };
        let mut child = command.spawn()?;
        let pid = child.id();
        let watched = family::pidfd(pid.cast_signed()).and_then(|fd| Ok((fd.try_clone()?, packet::awaitable(fd)?)));
        let (pidfd, death) = match watched {
            Ok(both) => both,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let (living, alive) = watch::channel(());
        tokio::spawn(async move {
            let _ = death.readable().await;
            // a dead one is reaped at once
            let _ = child.wait();
            drop(living);
        });
        Ok(Kept { pid, pidfd, alive })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn is_alive(&self) -> bool {
        self.alive.has_changed().is_ok()
    }

    /// Waits until it is dead and reaped.
    pub async fn ended(&self) {
        // nothing is ever sent: this ends when the other end goes away
        let _ = self.alive.clone().changed().await;
    }

    /// TERM, and KILL 2 s later. Only itself: what it started for others goes on. Takes at most 4 s; one that the kernel
    /// does not let go by then is reaped when it does.
    pub async fn end(self) {
        self.signal(Signal::SIGTERM);
        if timeout(GRACE, self.ended()).await.is_err() {
            self.signal(Signal::SIGKILL);
            let _ = timeout(GRACE, self.ended()).await;
        }
    }

    fn signal(&self, signal: Signal) {
        // JUSTIFICATION: kill(2) could hit a process that took the pid after it was reaped.
        // SAFETY: plain integers and a null siginfo. ESRCH: it is dead, which is what we want.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), signal as i32, 0, 0) };
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::sys::clock::monotonic;

    fn sh(script: &str) -> Kept {
        Kept::start(Path::new("/bin/sh"), &["-c".into(), script.into()], &BTreeMap::new()).expect("sh starts")
    }

    fn status(pid: u32) -> Option<String> {
        fs::read_to_string(format!("/proc/{pid}/status")).ok()
    }

    #[tokio::test]
    async fn one_that_dies_by_itself_is_noticed_and_leaves_no_zombie() {
        let kept = sh("exit 3");
        timeout(Duration::from_secs(20), kept.ended()).await.expect("it exits");
        assert!(!kept.is_alive());
        assert_eq!(status(kept.pid()), None);
    }

    #[tokio::test]
    async fn one_that_ignores_term_is_killed() {
        let kept = sh("trap '' TERM; while :; do sleep 1; done");
        let pid = kept.pid();
        let begun = monotonic();
        let ignores_term = |status: String| {
            let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).expect("a mask").to_owned();
            u64::from_str_radix(&mask, 16).expect("hexadecimal") & (1 << (Signal::SIGTERM as u32 - 1)) != 0
        };
        while !ignores_term(status(pid).expect("alive")) {
            assert!(monotonic() - begun < Duration::from_secs(20));
            tokio::task::yield_now().await;
        }
        let begun = monotonic();
        kept.end().await;
        assert_eq!(status(pid), None);
        let took = monotonic() - begun;
        assert!(took >= GRACE && took < Duration::from_secs(20), "{took:?}");
    }

    #[tokio::test]
    async fn a_dropped_one_is_killed_and_reaped() {
        let kept = sh("exec sleep 1000");
        let (pid, alive) = (kept.pid(), kept.alive.clone());
        assert!(kept.is_alive());
        drop(kept);
        let _ = timeout(Duration::from_secs(20), alive.clone().changed()).await.expect("killed");
        assert_eq!(status(pid), None);
    }

    #[tokio::test]
    async fn it_has_a_group_of_its_own_and_nothing_of_ours_but_dev_null() {
        let kept = Kept::start(Path::new("/bin/sleep"), &["1000".into()], &BTreeMap::new()).expect("it starts");
        let pid = kept.pid();
        let fds = || {
            let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("it is ours").flatten();
            fds.filter_map(|fd| fs::read_link(fd.path()).ok()).collect::<Vec<_>>()
        };
        let begun = monotonic();
        // until its libraries are loaded they are open, too
        while fds() != ["/dev/null"; 3].map(std::path::PathBuf::from) {
            assert!(monotonic() - begun < Duration::from_secs(20), "{:?}", fds());
            tokio::task::yield_now().await;
        }
        let group = nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid.cast_signed()))).expect("alive");
        assert_eq!(group.as_raw().cast_unsigned(), pid);
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("ours").trim(), "0");
        assert_eq!(fs::read(format!("/proc/{pid}/environ")).expect("ours"), b"");
    }

    #[test]
    fn it_dies_with_the_thread_that_started_it() {
        let pid = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let kept = sh("exec sleep 1000");
                let pid = kept.pid();
                std::mem::forget(kept);
                pid
            })
        });
        let pid = pid.join().expect("it ran");
        let until = monotonic() + Duration::from_secs(20);
        // nobody reaps it here, so it stays a zombie
        while status(pid).is_some_and(|status| !status.contains("State:\tZ")) {
            assert!(monotonic() < until, "{:?}", status(pid));
            std::thread::yield_now();
        }
    }
}
