//! Processes and threads: who runs here, and who sleeps where no signal reaches. Called by `preflight`, `databases` and
//! `superblocks`.
//!
//! Only files of /proc that never wait for the process itself are read; `cmdline` and `maps` do (they take its memory lock).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use super::{
    Dev,
    mounts::{self, MountLine},
    read_small,
};

/// Every process below `proc`, lowest first.
pub(super) fn pids(root: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(root.join("proc")) else { return Vec::new() };
    let mut pids: Vec<i32> = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// A process by its name, parent, state letter and number of threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub comm: String,
    pub parent: i32,
    pub state: u8,
    /// 0: not known
    threads: u32,
}

/// All that runs, read once: thousands of processes are thousands of files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Processes(BTreeMap<i32, Process>);

impl Processes {
    /// One that ends meanwhile or hides its name is kept without one: its other files may still be read.
    pub fn read(root: &Path) -> Processes {
        let proc = root.join("proc");
        let read = |pid: i32| {
            let stat = read_small(&proc.join(format!("{pid}/stat"))).unwrap_or_default();
            let nameless = || Process { comm: String::new(), parent: 0, state: b'?', threads: 0 };
            (pid, process(&String::from_utf8_lossy(&stat)).unwrap_or_else(nameless))
        };
        Processes(pids(root).into_iter().map(read).collect())
    }

    /// Lowest pid first.
    pub fn iter(&self) -> impl Iterator<Item = (i32, &Process)> {
        self.0.iter().map(|(pid, process)| (*pid, process))
    }

    pub fn get(&self, pid: i32) -> Option<&Process> {
        self.0.get(&pid)
    }

    /// Pids of all but kernel threads, which have neither files nor mounts of their own.
    pub fn with_files(&self) -> impl Iterator<Item = i32> {
        // in a pid namespace of its own, 2 is somebody else
        let has_kthreadd = self.get(2).is_some_and(|second| second.comm == "kthreadd" && second.parent == 0);
        self.iter()
            .filter(move |(pid, process)| !(has_kthreadd && (*pid == 2 || process.parent == 2)))
            .map(|(pid, _)| pid)
    }
}

/// Decodes /proc/PID/stat; the name may hold spaces and parentheses (proc_pid_stat(5)).
fn process(stat: &str) -> Option<Process> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, comm) = head.split_once('(')?;
    let mut fields = tail.split_ascii_whitespace();
    Some(Process {
        comm: comm.into(),
        state: fields.next()?.bytes().next()?,
        parent: fields.next()?.parse().ok()?,
        // field 20 of the whole line; the parent was field 4
        threads: fields.nth(15).and_then(|count| count.parse().ok()).unwrap_or(0),
    })
}

/// A thread in uninterruptible sleep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockedTask {
    pub pid: i32,
    pub tid: i32,
    pub comm: String,
    /// the kernel function it sleeps in, empty if the kernel does not say
    pub wchan: String,
    /// in clock ticks since boot: with `tid` it names a thread for good
    pub starttime: u64,
    /// how often it was scheduled away so far: unchanged, it never ran
    pub switches: u64,
    /// superblocks it is blocked in, if its system call names a descriptor; else those it has open for writing
    pub on: Vec<Dev>,
}

/// Threads in uninterruptible sleep now. Of each, only files that never wait for it are read (not `cmdline`, not `maps`).
pub fn blocked_tasks(root: &Path, processes: &Processes) -> Vec<BlockedTask> {
    let mut blocked = Vec::new();
    let mut own = None;
    for (pid, process) in processes.iter() {
        if process.threads == 1 && process.state != b'D' {
            continue;
        }
        let process = root.join("proc").join(pid.to_string());
        for entry in fs::read_dir(process.join("task")).into_iter().flatten().flatten() {
            let Ok(stat) = read_small(&entry.path().join("stat")) else { continue };
            let Some((comm, b'D', starttime)) = task(&String::from_utf8_lossy(&stat)) else { continue };
            let Some(tid) = entry.file_name().to_str().and_then(|tid| tid.parse().ok()) else { continue };
            let own = own.get_or_insert_with(|| mounts::read(root).unwrap_or_default());
            let wchan = fs::read_to_string(entry.path().join("wchan")).unwrap_or_default();
            let on = blocked_on(&process, &entry.path(), own);
            let wchan = if wchan.trim() == "0" { String::new() } else { wchan.trim().to_string() };
            let switches = switches(&fs::read_to_string(entry.path().join("status")).unwrap_or_default());
            blocked.push(BlockedTask { pid, tid, comm, wchan, starttime, switches, on });
        }
    }
    blocked
}

/// Those that were blocked from the first sample to the second and never ran in between; take them at least two seconds
/// apart. A busy disk's writers are blocked whenever one looks, but they run.
pub fn blocked_throughout(first: &[BlockedTask], second: &[BlockedTask]) -> Vec<BlockedTask> {
    let key = |task: &BlockedTask| (task.tid, task.starttime, task.switches);
    let before: BTreeSet<_> = first.iter().map(key).collect();
    second.iter().filter(|task| before.contains(&key(task))).cloned().collect()
}

/// Voluntary and involuntary context switches of /proc/TID/status.
fn switches(status: &str) -> u64 {
    let count = |line: &str| line.split_once("voluntary_ctxt_switches:")?.1.trim().parse::<u64>().ok();
    status.lines().filter_map(count).sum()
}

/// Name, state and start time of /proc/TID/stat.
fn task(stat: &str) -> Option<(String, u8, u64)> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, comm) = head.split_once('(')?;
    let mut fields = tail.split_ascii_whitespace();
    let state = fields.next()?.bytes().next()?;
    // Field 22 of the whole line; the state was field 3.
    Some((comm.into(), state, fields.nth(18)?.parse().ok()?))
}

/// The superblocks behind the descriptor its system call was given, or behind all it has open for writing.
fn blocked_on(process: &Path, task: &Path, own: &[MountLine]) -> Vec<Dev> {
    let called_with = fs::read_to_string(task.join("syscall")).ok().and_then(|text| descriptor_of_call(&text));
    let descriptors: Vec<Descriptor> = match called_with {
        Some(fd) => read_descriptor(&process.join("fdinfo").join(fd.to_string())).into_iter().collect(),
        None => fs::read_dir(process.join("fdinfo"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| read_descriptor(&entry.path()))
            .filter(|descriptor| descriptor.writable)
            .collect(),
    };
    let mut theirs = None;
    let mut on: Vec<Dev> = Vec::new();
    for descriptor in descriptors {
        let line = mounts::by_mount_id(own, descriptor.mount_id).cloned().or_else(|| {
            let theirs = theirs
                .get_or_insert_with(|| mounts::parse_bytes(&fs::read(process.join("mountinfo")).unwrap_or_default()));
            mounts::by_mount_id(theirs, descriptor.mount_id).cloned()
        });
        on.extend(line.map(|line| line.dev).filter(|dev| !on.contains(dev)));
    }
    on
}

/// The mount that /proc/PID/fdinfo/FD, or its beginning, says a file is open for writing on.
pub(super) fn writable_mount(fdinfo: &[u8]) -> Option<u64> {
    let descriptor = descriptor(str::from_utf8(fdinfo).ok()?)?;
    descriptor.writable.then_some(descriptor.mount_id)
}

/// What /proc/PID/fdinfo/FD says of an open file.
pub(super) struct Descriptor {
    pub mount_id: u64,
    pub writable: bool,
    /// O_DIRECT: what is written through it is not cached
    pub direct: bool,
    /// since Linux 5.14
    pub inode: Option<u64>,
}

pub(super) fn read_descriptor(fdinfo: &Path) -> Option<Descriptor> {
    descriptor(&String::from_utf8(read_small(fdinfo).ok()?).ok()?)
}

/// Decodes /proc/PID/fdinfo/FD: `flags:` is octal, its two lowest bits O_ACCMODE (proc_pid_fdinfo(5)).
fn descriptor(text: &str) -> Option<Descriptor> {
    let field = |name: &str| text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim()));
    let flags = i32::from_str_radix(field("flags:")?, 8).ok()?;
    Some(Descriptor {
        mount_id: field("mnt_id:")?.parse().ok()?,
        writable: flags & libc::O_ACCMODE != 0,
        direct: flags & libc::O_DIRECT != 0,
        inode: field("ino:").and_then(|inode| inode.parse().ok()),
    })
}

/// The descriptor a blocked system call was given as its first argument, if it is one of those that wait for storage:
/// /proc/TID/syscall is "number 0xargument …", "running", or "-1 …" for a page fault.
fn descriptor_of_call(text: &str) -> Option<i32> {
    use nix::libc::{
        SYS_fallocate, SYS_fdatasync, SYS_fsync, SYS_ftruncate, SYS_ioctl, SYS_pread64, SYS_preadv, SYS_pwrite64,
        SYS_pwritev, SYS_pwritev2, SYS_read, SYS_readv, SYS_syncfs, SYS_write, SYS_writev,
    };
    let mut fields = text.split_ascii_whitespace();
    let number = fields.next()?.parse().ok()?;
    let calls = [
        SYS_write,
        SYS_writev,
        SYS_pwrite64,
        SYS_pwritev,
        SYS_pwritev2,
        SYS_read,
        SYS_readv,
        SYS_pread64,
        SYS_preadv,
        SYS_fsync,
        SYS_fdatasync,
        SYS_syncfs,
        SYS_ftruncate,
        SYS_fallocate,
        SYS_ioctl,
    ];
    let argument = fields.next()?.strip_prefix("0x")?;
    calls.contains(&number).then(|| i32::try_from(u64::from_str_radix(argument, 16).ok()?).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blocked_in(root: &Path) -> Vec<BlockedTask> {
        blocked_tasks(root, &Processes::read(root))
    }
    use crate::guest::fixture::fixture;

    fn dev(text: &str) -> Dev {
        Dev::parse(text).unwrap()
    }

    #[test]
    #[cfg(target_arch = "x86_64")] // the fixture's system call numbers are
    fn a_blocked_thread_is_on_the_file_system_of_its_call_or_on_all_it_writes_to() {
        let mut blocked = blocked_in(fixture("preflight").path());
        blocked.sort_by_key(|task| task.tid);
        let [calling, faulting] = &mut blocked[..] else { panic!("{blocked:?}") };
        assert_eq!((calling.tid, calling.wchan.as_str()), (401, "percpu_rwsem_wait"));
        assert_eq!(calling.on, [dev("0:40")]);
        // Descriptor 7 is on NFS, but for reading only.
        faulting.on.sort();
        assert_eq!((faulting.wchan.as_str(), &faulting.on[..]), ("", &[dev("0:40"), dev("254:0")][..]));
    }

    #[test]
    fn only_a_thread_that_never_ran_in_between_was_blocked_throughout() {
        let first = blocked_in(fixture("preflight").path());
        assert_eq!((first.len(), first[0].switches), (2, 42));
        assert_eq!(blocked_throughout(&first, &first).len(), 2);
        let mut second = first.clone();
        second[0].switches += 1;
        second[1].starttime += 1;
        assert_eq!(blocked_throughout(&first, &second), []);
    }

    #[test]
    fn names_with_spaces_and_parentheses_are_names() {
        let line = "7 (a) b (c)) D 3 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 0";
        assert_eq!(task(line), Some(("a) b (c)".into(), b'D', 4711)));
        let process = process(line).unwrap();
        assert_eq!((process.comm.as_str(), process.state, process.parent), ("a) b (c)", b'D', 3));
        assert!(task("7 (short) D 3").is_none() && process_is_none("garbage"));
    }

    fn process_is_none(line: &str) -> bool {
        process(line).is_none()
    }

    proptest! {
        #[test]
        fn no_text_makes_decoding_panic(text in "([0-9]{1,3} |\\(|\\)|D |0x|-1|flags:|mnt_id:|\n|é){0,40}") {
            task(&text);
            process(&text);
            descriptor(&text);
            descriptor_of_call(&text);
            switches(&text);
        }
    }

    #[test]
    fn a_running_call_and_a_page_fault_name_no_descriptor() {
        assert_eq!(descriptor_of_call("running"), None);
        assert_eq!(descriptor_of_call("-1 0x7ffe 0x7f12"), None);
        let write = nix::libc::SYS_write;
        assert_eq!(descriptor_of_call(&format!("{write} 0xa 0x0 0x0 0x0 0x0 0x0 0x0 0x0")), Some(10));
        assert_eq!(descriptor_of_call(&format!("{write} 0xffffffffffffffff 0x0")), None);
    }

    #[test]
    fn this_machines_processes_include_this_one() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(Processes::read(Path::new("/")).get(me).is_some());
        // Other threads of this very test may be blocked at times; the one that looks is not.
        let this_thread = nix::unistd::gettid().as_raw();
        assert!(blocked_in(Path::new("/")).iter().all(|task| task.tid != this_thread));
    }
}
