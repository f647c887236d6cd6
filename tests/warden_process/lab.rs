//! Real file systems on loop devices, in a mount namespace of the test's own, and a reaper that thaws them whatever
//! happens. Nothing but a loop device (major 7) is ever frozen.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use holdstill::sys::{clock::monotonic, files, freeze};

/// How long anything may stay frozen before the reaper thaws it.
pub const REAPER: Duration = Duration::from_secs(25);

/// A directory on tmpfs, file systems in it, and their reaper. Dropping it lets everything go.
pub struct Lab {
    pub dir: PathBuf,
    pub mounts: Vec<PathBuf>,
    reaper: Option<Reaper>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fs {
    Ext4,
    Xfs,
    Btrfs,
}

impl Lab {
    pub fn new(name: &str) -> Lab {
        let dir = PathBuf::from(format!("/dev/shm/warden-{}-{name}", std::process::id()));
        fs::create_dir_all(dir.join("run")).unwrap();
        Lab { dir, mounts: vec![], reaper: None }
    }

    /// With `count` small ext4 file systems.
    pub fn ext4(name: &str, count: usize) -> Lab {
        let mut lab = Lab::new(name);
        for _ in 0..count {
            lab.add(Fs::Ext4);
        }
        lab.watched()
    }

    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub fn add(&mut self, fs: Fs) -> PathBuf {
        let image = self.dir.join(format!("image{}", self.mounts.len()));
        let size = match fs {
            Fs::Ext4 => 48,
            Fs::Xfs => 320,
            Fs::Btrfs => 128,
        };
        self.mount_image_of(fs, &image, size)
    }

    /// Makes an image file of so many MiB, a file system in it, and mounts it.
    pub fn mount_image_of(&mut self, fs: Fs, image: &Path, size: u64) -> PathBuf {
        let mkfs: &[&str] = match fs {
            Fs::Ext4 => &["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
            Fs::Xfs => &["mkfs.xfs", "-q", "-f"],
            Fs::Btrfs => &["mkfs.btrfs", "-q", "-f"],
        };
        fs::File::create(image).unwrap().set_len(size << 20).unwrap();
        call(mkfs.iter().map(OsStr::new).chain([image.as_os_str()]));
        let mount = self.dir.join(format!("mnt{}", self.mounts.len()));
        fs::create_dir(&mount).unwrap();
        call(["mount", "-o", "loop"].iter().map(OsStr::new).chain([image.as_os_str(), mount.as_os_str()]));
        assert!(on_loop(&mount), "{} is not on a loop device", mount.display());
        self.mounts.push(mount.clone());
        mount
    }

    /// Starts the reaper, which holds a descriptor of each mount's root.
    pub fn watched(mut self) -> Lab {
        self.reaper = Some(Reaper::watch(&self.mounts));
        self
    }
}

/// A process of its own that thaws everything when its time is over.
pub struct Reaper(Child);

impl Reaper {
    pub fn watch(mounts: &[PathBuf]) -> Reaper {
        let mut reaper = Command::new("/proc/self/exe");
        reaper.arg("reaper").arg(REAPER.as_secs().to_string()).args(mounts);
        let mut reaper = reaper.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(reaper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        Reaper(reaper)
    }

    pub fn stop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // the outermost was mounted first; thaw it first, then unmount the innermost first
        for mount in &self.mounts {
            if let Some(root) = files::open_mount(mount, None).ok().filter(|_| on_loop(mount)) {
                let _ = freeze::fithaw(root.as_fd());
            }
        }
        if let Some(mut reaper) = self.reaper.take() {
            reaper.stop();
        }
        for mount in self.mounts.iter().rev() {
            let _ = Command::new("umount").arg(mount).stderr(Stdio::null()).status();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// `reaper SECONDS MOUNT…`: opens all, says so, and thaws all when the time is over.
pub fn reaper(arguments: &[String]) {
    let roots: Vec<_> = arguments[1..].iter().map(|mount| fs::File::open(mount).unwrap()).collect();
    println!("ready");
    // again and again: a test may freeze many times
    loop {
        std::thread::sleep(Duration::from_secs(arguments[0].parse().unwrap()));
        for root in &roots {
            let _ = freeze::fithaw(root.as_fd());
        }
    }
}

/// `probe MOUNT`: one write; ends when it got through.
pub fn probe(mount: &str) {
    fs::write(Path::new(mount).join("probe"), b"x").unwrap();
}

/// A process about to write to a file system.
pub struct Probe(Child);

impl Probe {
    pub fn start(mount: &Path) -> Probe {
        let child = Command::new("/proc/self/exe").arg("probe").arg(mount).spawn().unwrap();
        Probe(child)
    }

    /// How long until its write got through; `None` if it did not within `limit`.
    pub fn through(&mut self, limit: Duration) -> Option<Duration> {
        let start = monotonic();
        while monotonic() < start + limit {
            if self.0.try_wait().unwrap().is_some() {
                return Some(monotonic() - start);
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        None
    }

    /// It must be waiting: the file system is frozen.
    pub fn assert_blocked(&mut self) {
        assert_eq!(self.through(Duration::from_millis(60)), None, "a write got through");
    }
}

pub fn on_loop(mount: &Path) -> bool {
    let id = files::open_mount(mount, None).and_then(|root| files::mount_id(root.as_fd()));
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    id.is_ok_and(|id| {
        let line = text.lines().find(|line| line.starts_with(&format!("{id} ")));
        // btrfs has a device number of its own; its source is the loop device
        line.is_some_and(|line| line.contains(" 7:") || line.contains(" - btrfs /dev/loop"))
    })
}

pub fn call<'a>(command: impl IntoIterator<Item = &'a OsStr>) {
    let command: Vec<_> = command.into_iter().collect();
    let status = Command::new(command[0]).args(&command[1..]).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// Somebody else's freeze and thaw, in processes of their own.
pub fn foreign(what: &str, mount: &Path) {
    assert!(on_loop(mount));
    call(["timeout", "-k", "1", "10", "fsfreeze", what].iter().map(OsStr::new).chain([mount.as_os_str()]));
}

/// Waits until `so`; panics with `what` after `limit`.
pub fn wait_until(what: &str, limit: Duration, mut so: impl FnMut() -> bool) {
    let start = monotonic();
    while !so() {
        assert!(monotonic() < start + limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Processes of the warden's family that use this run directory or descend from `root`, by name.
pub fn family(lab: &Lab) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let read = |name: &str| fs::read(process.path().join(name)).unwrap_or_default();
        let (line, name) = (String::from_utf8_lossy(&read("cmdline")).into_owned(), read("comm"));
        let name = String::from_utf8_lossy(&name).trim().to_owned();
        let ours = line.contains(&*lab.run().to_string_lossy());
        if ours && (line.contains("\0warden\0") || line.contains("\0rescue\0")) {
            found.push((pid, name));
        }
    }
    found
}

/// The pid of the first process with this name in the family.
pub fn member(lab: &Lab, name: &str) -> i32 {
    let members = family(lab);
    members.iter().find(|(_, n)| n == name).unwrap_or_else(|| panic!("no {name} in {members:?}")).0
}

pub fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}
