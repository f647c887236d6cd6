//! The file systems under test: loop-mounted, in a mount namespace of their own, refused if they are anything else,
//! and thawed by a reaper that holds them open if nobody else does.

use std::{
    env, fmt,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use holdstill::sys::clock;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use crate::Result;

/// After so long a reaper thaws, whoever is to blame.
const ROUND_MAX: &str = "60";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Xfs,
    Btrfs,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
        })
    }
}

/// From here on nobody outside sees what is mounted, and all of it goes with the last process inside. Other people's
/// loop mounts are out of sight, because qemu-ga thaws every mount it sees, whoever froze it.
pub fn leave_the_mount_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    // the last mounted lie on top
    for line in mountinfo.lines().rev().filter(|line| source(line).starts_with("/dev/loop")) {
        let target = line.split(' ').nth(4).ok_or("a mount without a mount point")?;
        let target = target.replace("\\040", " ").replace("\\134", "\\");
        umount2(target.as_str(), MntFlags::MNT_DETACH).map_err(|e| format!("put {target} out of sight: {e}"))?;
    }
    Ok(())
}

/// What a line of proc_pid_mountinfo(5) says is mounted: … - type source options
fn source(line: &str) -> &str {
    line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').nth(1)).unwrap_or_default()
}

/// All dirty pages of the machine.
pub fn dirty_mib() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("Dirty:")).ok_or("no Dirty in /proc/meminfo")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024)
}

/// How a child ended, if it did in time.
pub fn ended_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let begun = clock::monotonic();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if clock::monotonic() - begun > limit {
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn ran(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("run {command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end()).into())
}

/// So many fresh file systems, unmounted and removed when dropped.
pub struct Guest {
    /// on tmpfs: sockets, run directories, mount points
    pub run: tempfile::TempDir,
    mounted: Vec<Mounted>,
}

struct Mounted {
    target: PathBuf,
    /// as the kernel names it: removed once mounted, so that it goes with the last user even if we are killed
    image: String,
}

impl Guest {
    pub fn make(kind: Kind, count: usize) -> Result<Self> {
        let images = env::var_os("HOLDSTILL_BENCH_DIR").unwrap_or_else(|| "/dev/shm".into());
        let run = tempfile::Builder::new().prefix("holdstill-stall-").tempdir_in("/dev/shm")?;
        let images = tempfile::Builder::new().prefix("holdstill-stall-images-").tempdir_in(images)?;
        let mut guest = Guest { run, mounted: Vec::new() };
        // room for the dirt twice over: it is removed and written anew every round
        let size = if count == 1 { 3 << 30 } else { 512 << 20 };
        for n in 0..count {
            let image = images.path().join(format!("disk{n}.img"));
            let target = guest.run.path().join(format!("mnt{n}"));
            File::create(&image)?.set_len(size)?;
            fs::create_dir(&target)?;
            let mut mkfs = Command::new(format!("mkfs.{kind}"));
            match kind {
                // without it a kernel thread writes inode tables while we measure
                Kind::Ext4 => mkfs.args(["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"]),
                Kind::Xfs | Kind::Btrfs => mkfs.arg("-q"),
            };
            ran(mkfs.arg(&image))?;
            ran(Command::new("mount").args(["-o", "loop", "-t", &kind.to_string()]).arg(&image).arg(&target))
                .map_err(|e| format!("no loop device could be mounted: {e}"))?;
            fs::remove_file(&image)?;
            guest.mounted.push(Mounted { target, image: format!("{} (deleted)", image.display()) });
        }
        guest.only_ours()?;
        Ok(guest)
    }

    pub fn targets(&self) -> impl Iterator<Item = &Path> {
        self.mounted.iter().map(|mounted| mounted.target.as_path())
    }

    /// Refuses unless each target is what we mounted there: a loop device over our own image. Asked before every
    /// freeze, because freezing anything else could stop the machine for good.
    pub fn only_ours(&self) -> Result<()> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
        for Mounted { target, image } in &self.mounted {
            // none of ours needs escapes
            let mut here = mountinfo.lines().filter(|line| line.split(' ').nth(4) == target.to_str());
            let (Some(line), None) = (here.next(), here.next()) else {
                return Err(format!("{} is not mounted exactly once", target.display()).into());
            };
            let source = source(line);
            let device = source.strip_prefix("/dev/loop").filter(|n| n.parse::<u32>().is_ok());
            let device = device.ok_or_else(|| format!("{} is on {source}, not a loop device", target.display()))?;
            let backing = fs::read_to_string(format!("/sys/block/loop{device}/loop/backing_file"))?;
            if backing.trim_end() != image {
                return Err(format!("{source} is over {}, not over {image}", backing.trim_end()).into());
            }
        }
        Ok(())
    }

    /// Nothing of ours is dirty after this.
    pub fn clean(&self) -> Result<()> {
        for target in self.targets() {
            match fs::remove_file(target.join("dirt")) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                _ => ran(Command::new("sync").arg("-f").arg(target))?,
            }
        }
        Ok(())
    }

    /// Writes `mib` anew, evenly over all, and leaves it in memory; answers the files.
    pub fn dirty(&self, mib: u64) -> Result<Vec<File>> {
        let block = vec![0xd1; 1 << 20];
        let mut files = Vec::new();
        for target in self.targets() {
            let mut file = File::create(target.join("dirt"))?;
            for _ in 0..mib / self.mounted.len() as u64 {
                file.write_all(&block)?;
            }
            files.push(file);
        }
        Ok(files)
    }

    /// One for each target, each ready when this returns.
    pub fn reapers(&self) -> Result<Vec<Reaper>> {
        self.targets().map(Reaper::start).collect()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for Mounted { target, .. } in self.mounted.drain(..).rev() {
            let begun = clock::monotonic();
            while let Err(e) = umount2(&target, MntFlags::empty()) {
                // a process that just ended may still be letting go
                if clock::monotonic() - begun > Duration::from_secs(5) {
                    eprintln!("warning: unmount {}: {e}", target.display());
                    let _ = umount2(&target, MntFlags::MNT_DETACH);
                    break;
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// A process that holds a file system open and thaws it when we end, die, or take too long.
pub struct Reaper {
    child: Child,
    line: Option<ChildStdin>,
}

impl Reaper {
    fn start(target: &Path) -> Result<Self> {
        let script = format!(
            "exec 9<\"$1\"; echo ready; timeout {ROUND_MAX} cat >/dev/null; exec fsfreeze -u /proc/self/fd/9 2>/dev/null"
        );
        let mut child = Command::new("sh")
            .args(["-c", &script, "reaper"])
            .arg(target)
            // whoever ends our group, by ^C or otherwise, must not end those who clean up after it
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let said = child.stdout.take().ok_or("stdout is piped")?;
        let mut reaper = Reaper { line: child.stdin.take(), child };
        let mut ready = String::new();
        BufReader::new(said).read_line(&mut ready)?;
        if ready != "ready\n" {
            let _ = reaper.child.wait();
            return Err(format!("no reaper for {}", target.display()).into());
        }
        reaper.line.as_ref().ok_or("stdin is piped")?;
        Ok(reaper)
    }
}

impl Drop for Reaper {
    /// Waits for it, so that it cannot thaw the next round's freeze.
    fn drop(&mut self) {
        drop(self.line.take());
        match ended_within(&mut self.child, Duration::from_secs(10)) {
            // the thaw is refused (EINVAL) when nothing is frozen, as it should be
            Some(status) if !status.success() => {}
            Some(_) => eprintln!("warning: a reaper found something frozen and thawed it"),
            None => eprintln!("warning: reaper {} does not end", self.child.id()),
        }
    }
}
