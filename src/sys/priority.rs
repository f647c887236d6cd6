//! Work that gives way to everybody else's.

/// The class of I/O priority that is served when nobody else wants the disk (ioprio_set(2)), and whom it is for.
const IOPRIO_CLASS_IDLE: libc::c_int = 3 << 13;
const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// From now on the calling thread gets a processor and a disk only when nobody else wants them. For threads that end soon:
/// there is no way back. What the kernel does not allow is left as it is.
pub fn only_when_idle() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // JUSTIFICATION: nix has neither call.
    // SAFETY: 0 is the calling thread; `parameters` is alive for the call; the rest are plain integers.
    unsafe {
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters);
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_thread_that_asks_gives_way() {
        let policy = || std::fs::read_to_string("/proc/thread-self/sched").unwrap_or_default();
        let idle = |text: &str| text.lines().any(|line| line.starts_with("policy") && line.ends_with(" 5"));
        let there = std::thread::spawn(move || {
            only_when_idle();
            policy()
        });
        let there = there.join().expect("it ends");
        assert!(there.is_empty() || idle(&there), "{there}");
        assert!(!idle(&policy()));
    }
}
