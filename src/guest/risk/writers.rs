//! Who has files open for writing, and where: from /proc/PID/fdinfo alone, so that no disk is touched and none can make us
//! wait.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    num::NonZero,
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    dir::Dir,
    fcntl::{OFlag, openat},
    sys::stat::Mode,
    unistd::read,
};

use super::{
    super::{
        Dev,
        mounts::{self, MountLine},
        tasks::{Processes, writable_mount},
    },
    Level, Risk,
};

/// Files open for writing: of each mount, by its id, how many each process has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Writers(HashMap<u64, BTreeMap<i32, u32>>);

/// One process that writes to a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    pub pid: i32,
    pub files: u32,
}

/// More threads than this would take the processors from those who are to go on.
const MOST_THREADS: usize = 2;

impl Writers {
    /// Some microseconds for each open file of the machine.
    pub fn read(root: &Path, processes: &Processes) -> Writers {
        let pids: Vec<i32> = processes.with_files().collect();
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS);
        let portion = pids.len().div_ceil(threads).max(64);
        let of = |pids: &[i32]| {
            let mut writers = Writers::default();
            pids.iter().for_each(|pid| writers.add(root, *pid));
            writers
        };
        let mut portions = pids.chunks(portion);
        let first = portions.next().unwrap_or_default();
        thread::scope(|scope| {
            let others: Vec<_> = portions.map(|pids| scope.spawn(move || of(pids))).collect();
            let mut all = of(first);
            for other in others {
                for (mount, pids) in other.join().unwrap_or_default().0 {
                    all.0.entry(mount).or_default().extend(pids);
                }
            }
            all
        })
    }

    /// A process that ends meanwhile, or may not be looked at, has nothing open.
    fn add(&mut self, root: &Path, pid: i32) {
        let path = root.join(format!("proc/{pid}/fdinfo"));
        let Ok(mut dir) = Dir::open(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        else {
            return;
        };
        let names: Vec<_> = dir.iter().flatten().map(|entry| entry.file_name().to_owned()).collect();
        // what is asked for stands in the first lines
        let mut text = [0; 192];
        for name in names.iter().filter(|name| name.to_bytes()[0] != b'.') {
            let Ok(file) = openat(dir.as_fd(), name.as_c_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            else {
                continue;
            };
            let Ok(length) = read(&file, &mut text) else { continue };
            if let Some(mount) = writable_mount(&text[..length]) {
                *self.0.entry(mount).or_default().entry(pid).or_default() += 1;
            }
        }
    }

    /// By file system, of whatever mount namespace; `layers` tells where writes to an overlay land. Ids of mounts are the
    /// kernel's, not a namespace's: whoever writes there shows what it is. Pipes and sockets are on mounts nobody shows.
    pub fn by_dev(&self, root: &Path, layers: &dyn Fn(Dev) -> Option<Dev>) -> BTreeMap<Dev, Vec<Writer>> {
        let mut known: HashMap<u64, Option<Dev>> = HashMap::new();
        let add = |known: &mut HashMap<u64, Option<Dev>>, lines: Vec<MountLine>| {
            known.extend(lines.into_iter().map(|line| (line.id, Some(line.dev))));
        };
        add(&mut known, mounts::read(root).unwrap_or_default());
        let mut all: BTreeMap<Dev, BTreeMap<i32, u32>> = BTreeMap::new();
        for (mount, pids) in &self.0 {
            if !known.contains_key(mount)
                && let Some(pid) = pids.keys().next()
            {
                let theirs = fs::read(root.join(format!("proc/{pid}/mountinfo"))).unwrap_or_default();
                add(&mut known, mounts::parse_bytes(&theirs));
            }
            let Some(dev) = *known.entry(*mount).or_default() else { continue };
            let dev = layers(dev).unwrap_or(dev);
            for (pid, files) in pids {
                *all.entry(dev).or_default().entry(*pid).or_default() += files;
            }
        }
        let writers = |pids: BTreeMap<i32, u32>| pids.into_iter().map(|(pid, files)| Writer { pid, files }).collect();
        all.into_iter().map(|(dev, pids)| (dev, writers(pids))).collect()
    }

    /// The file systems of our own mount namespace that anybody writes to.
    pub fn devs(&self, root: &Path) -> BTreeSet<Dev> {
        let own = mounts::read(root).unwrap_or_default();
        own.iter().filter(|line| self.0.contains_key(&line.id)).map(|line| line.dev).collect()
    }
}

/// Those who write to one file system, by the name they go by. `told`: processes that something else speaks for.
pub fn written(root: &Path, processes: &Processes, writers: &[Writer], told: &dyn Fn(i32) -> bool) -> Vec<Risk> {
    let mut names: BTreeMap<&str, Vec<&Writer>> = BTreeMap::new();
    for writer in writers.iter().filter(|writer| !told(writer.pid)) {
        let name = processes.get(writer.pid).map_or("", |process| process.comm.as_str());
        names.entry(name).or_default().push(writer);
    }
    let mut groups: Vec<(&str, Vec<&Writer>)> = names.into_iter().collect();
    let files = |group: &[&Writer]| group.iter().map(|writer| writer.files).sum::<u32>();
    groups.sort_by_key(|(_, group)| std::cmp::Reverse(files(group)));
    let more = groups.len().saturating_sub(super::MOST);
    let mut risks: Vec<Risk> = groups
        .iter()
        .take(super::MOST)
        .map(|(name, group)| {
            let (pid, files) = (group[0].pid, files(group));
            let unit = unit_of(root, pid).map_or_else(String::new, |unit| format!(", {unit}"));
            let who = match group.len() {
                1 => format!("{name} (pid {pid}{unit}) has"),
                count => format!("{count} processes {name} (pid {pid}{unit}) have"),
            };
            let what = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
            Risk {
                level: Level::Written,
                subject: format!("process:{name}"),
                path: PathBuf::new(),
                message: format!("{who} {what} open for writing"),
            }
        })
        .collect();
    if more > 0 {
        let message = format!("and {more} more programs have files open for writing");
        risks.push(Risk { level: Level::Written, subject: message.clone(), path: PathBuf::new(), message });
    }
    risks
}

/// The unit a process belongs to, as its control group is named (cgroups(7)).
fn unit_of(root: &Path, pid: i32) -> Option<String> {
    let text = fs::read_to_string(root.join(format!("proc/{pid}/cgroup"))).ok()?;
    let group = text
        .lines()
        .find_map(|line| line.strip_prefix("0::").or_else(|| line.split_once(":name=systemd:").map(|x| x.1)))?;
    group.rsplit('/').find(|name| name.ends_with(".service")).map(str::to_owned)
}
