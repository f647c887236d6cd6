//! Around the stage: what the demo needs of this machine, the build, the disks, and taking everything away again,
//! whatever happened inside.

use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::Uid,
};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    Failure,
    command::{output, succeed, wait},
    disk,
    ledger::now,
    stage,
};

/// The stage is ended after this long, whatever it does.
const STAGE_LIMIT: Duration = Duration::from_secs(150);
const LIMIT: Duration = Duration::from_secs(20);
/// Three disks and two copies, all in memory; with both database servers about half of it is used.
const MEMORY_KIB: u64 = 900 << 10;

/// Why the demo does not begin.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("failed to begin: it mounts disks of its own, so it must run as root (try `sudo -E env PATH=$PATH …`)")]
    NotRoot,
    #[error("failed to begin: this machine has no usable loop devices ({0}), and the demo freezes nothing else")]
    NoLoop(String),
    #[error("failed to begin: {0}")]
    Missing(String),
}

pub fn main() -> ExitCode {
    if let Err(unfit) = fit() {
        eprintln!("holdstill demo: {unfit}");
        return ExitCode::from(match unfit {
            Unfit::NotRoot => 6,
            Unfit::NoLoop(_) | Unfit::Missing(_) => 4,
        });
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    if let Err(why) = note_interrupts(&interrupted) {
        eprintln!("holdstill demo: failed to watch for Ctrl-C: {why}");
        return ExitCode::FAILURE;
    }
    let code = match build().and_then(|program| show(&program, &interrupted)) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("holdstill demo: failed to {why}");
            ExitCode::FAILURE
        }
    };
    if interrupted.load(Ordering::Relaxed) { ExitCode::from(130) } else { code }
}

fn fit() -> Result<(), Unfit> {
    if !Uid::effective().is_root() {
        return Err(Unfit::NotRoot);
    }
    for tool in ["mkfs.ext4", "mount", "umount", "losetup", "fsfreeze", "unshare"] {
        let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|d| Path::new(d).join(tool).exists());
        if !found {
            return Err(Unfit::Missing(format!("`{tool}` is not installed (Debian: e2fsprogs, mount, util-linux)")));
        }
    }
    let free = output(Command::new("losetup").arg("--find"), LIMIT).map_err(|e| Unfit::NoLoop(e.to_string()))?;
    if !free.status.success() {
        return Err(Unfit::NoLoop(String::from_utf8_lossy(&free.stderr).trim().to_owned()));
    }
    if let Some(dir) = ["/srv", "/mnt"].iter().find(|d| !Path::new(d).is_dir()) {
        return Err(Unfit::Missing(format!("there is no directory {dir} to mount a disk on")));
    }
    let available = available_kib(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    match available {
        Some(kib) if kib < MEMORY_KIB => {
            let (has, needs) = (kib >> 10, MEMORY_KIB >> 10);
            Err(Unfit::Missing(format!("its disks live in memory: it needs {needs} MiB available, there are {has}")))
        }
        Some(_) | None => Ok(()),
    }
}

fn available_kib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Ctrl-C and friends end the stage, not this process: it has to clean up.
fn note_interrupts(interrupted: &Arc<AtomicBool>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    let interrupted = Arc::clone(interrupted);
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! { _ = signals.0.recv() => {}, _ = signals.1.recv() => {}, _ = signals.2.recv() => {} }
                interrupted.store(true, Ordering::Relaxed);
            }
        });
    });
    Ok(())
}

/// Builds the program the demo shows, and finds where cargo put it.
fn build() -> Result<PathBuf, Failure> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--bin", "holdstill", "--message-format=json-render-diagnostics"]);
    // Together with this example, so that what it was compiled with is used again.
    build.args(["--example", "demo"]).current_dir(env!("CARGO_MANIFEST_DIR")).stdout(Stdio::piped());
    let mut child = build.spawn().map_err(|e| format!("start cargo: {e}"))?;
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let built: Vec<PathBuf> = lines.filter_map(|l| executable(&l, "holdstill")).collect();
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("build holdstill: cargo: {status}").into());
    }
    built.into_iter().next_back().ok_or_else(|| "build holdstill: cargo named no executable".into())
}

/// The executable a line of cargo's messages names, if it is that of the binary `name`.
fn executable(message: &str, name: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let kinds = message["target"]["kind"].as_array()?;
    let is_it = message["target"]["name"] == name && kinds.iter().any(|k| k == "bin");
    is_it.then(|| message["executable"].as_str().map(PathBuf::from))?
}

/// Everything made on this machine, in the order it was made; taken away newest first when dropped.
#[derive(Debug)]
struct Made {
    work: TempDir,
    mounts: Vec<PathBuf>,
    /// descriptors on what gets frozen, outermost first
    frozen: Vec<File>,
    loops: Vec<String>,
    stage: Option<Child>,
}

fn show(program: &Path, interrupted: &AtomicBool) -> Result<ExitCode, Failure> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| format!("enter a mount namespace: {e}"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|e| format!("make the mount namespace private: {e}"))?;
    let here = env::current_exe()?;
    let work = tempfile::Builder::new().prefix("holdstill-demo-").tempdir_in("/tmp")?;
    let mut made = Made { work, mounts: vec![], frozen: vec![], loops: vec![], stage: None };
    made.disks()?;
    // Copies: what lies on /srv or /mnt of this machine is hidden in the namespace from now on.
    let bin = made.work.path().join("bin");
    fs::create_dir(&bin)?;
    fs::copy(here, bin.join("demo")).and_then(|_| fs::copy(program, bin.join("holdstill")))?;
    let ended = made.run_stage(&bin, interrupted);
    let told = |file| fs::read_to_string(made.work.path().join(file)).unwrap_or_default();
    let (count, loops) = (told(stage::COUNT), told(stage::LOOPS));
    made.loops.extend(loops.lines().map(str::to_owned));
    let (devices, left) = made.take_away();
    let mut count = count.split_whitespace().filter_map(|n| n.parse::<usize>().ok());
    let Some(0) = ended? else {
        if let (Some(all), Some(untrue @ 1..)) = (count.next(), count.next()) {
            println!("\nholdstill demo: {untrue} of the {all} sentences above are NOT SO");
        }
        return Ok(ExitCode::FAILURE);
    };
    let sentence = format!("nothing is left behind: no mount, no process, none of {} attached", devices.join(" "));
    println!("  {}  {sentence}", if left.is_empty() { "true  " } else { "NOT SO" });
    if !left.is_empty() {
        return Err(format!("clean up: {}", left.join(", ")).into());
    }
    let all = count.next().unwrap_or(0) + 1;
    println!("\nholdstill demo: all {all} sentences above were checked and are so");
    Ok(ExitCode::SUCCESS)
}

impl Made {
    /// The storage and on it the two disks of the machine; see [`disk`] for the picture.
    fn disks(&mut self) -> Result<(), Failure> {
        let work = self.work.path().to_owned();
        mount(Some("holdstill-demo"), &work, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
            .map_err(|e| format!("mount a tmpfs on {}: {e}", work.display()))?;
        self.mounts.push(work.clone());
        let storage = work.join("storage");
        fs::create_dir(&storage)?;
        disk::format(&work.join("storage.img"), 1024)?;
        self.mount(&work.join("storage.img"), &storage)?;
        for (image, mib, on) in [("data.img", 640, "/srv"), ("transient.img", 64, "/mnt")] {
            let image = storage.join(image);
            disk::format(&image, mib)?;
            self.mount(&image, on.as_ref())?;
        }
        for root in [storage.as_path(), "/srv".as_ref()] {
            self.frozen.push(File::open(root)?);
        }
        Ok(())
    }

    fn mount(&mut self, image: &Path, on: &Path) -> Result<(), Failure> {
        let mounted = disk::mount(image, on, "rw,noatime")?;
        self.mounts.push(on.to_owned());
        self.loops.push(mounted.kernel_name().to_owned());
        Ok(())
    }

    /// Runs the stage to its end, to the limit, or until interrupted. `None`: it was ended.
    fn run_stage(&mut self, bin: &Path, interrupted: &AtomicBool) -> Result<Option<i32>, Failure> {
        let mut stage = Command::new("unshare");
        stage.args(["--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--propagation", "private"]);
        stage.arg("--").arg(bin.join("demo")).arg("@stage").arg(self.work.path()).arg(bin.join("holdstill"));
        // Its own process group: Ctrl-C reaches this process, which ends the stage and then cleans up. Its stdin ends
        // with this process: a stage without an outside lets go and ends.
        stage.process_group(0).stdin(Stdio::piped()).current_dir("/");
        let stage = self.stage.insert(stage.spawn().map_err(|e| format!("start unshare: {e}"))?);
        let until = now() + STAGE_LIMIT;
        while !interrupted.load(Ordering::Relaxed) {
            if let Some(status) = wait(stage, Duration::from_millis(50))? {
                return Ok(status.code());
            }
            if now() > until {
                return Err(format!("end within {} s; everything was ended and let go", STAGE_LIMIT.as_secs()).into());
            }
        }
        eprintln!("holdstill demo: interrupted; letting go and cleaning up");
        Ok(None)
    }

    /// Takes everything away, and says which loop devices there were and what could not be taken away.
    fn take_away(mut self) -> (Vec<String>, Vec<String>) {
        let left = self.undo();
        (std::mem::take(&mut self.loops), left)
    }

    fn undo(&mut self) -> Vec<String> {
        let mut left = vec![];
        if let Some(mut stage) = self.stage.take() {
            let _ = stage.kill(); // and with it, by --kill-child, everything in its PID namespace
            let _ = wait(&mut stage, Duration::from_secs(5));
        }
        for root in self.frozen.drain(..) {
            disk::thaw(format!("/proc/{}/fd/{}", std::process::id(), root.as_raw_fd()).as_ref());
        }
        let until = now() + Duration::from_secs(10);
        while let Some(on) = self.mounts.pop() {
            while let Err(why) = succeed(Command::new("umount").arg(&on), LIMIT) {
                if now() > until {
                    left.push(why.to_string());
                    break;
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        // A loop device detaches itself when its last user is gone.
        while self.loops.iter().any(|l| disk::attached(l)) {
            if now() > until {
                left.extend(self.loops.iter().filter(|l| disk::attached(l)).cloned());
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        left
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for left in self.undo() {
            eprintln!("holdstill demo: failed to clean up: {left}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_the_one_cargo_names_not_a_library_or_an_example() {
        let line = |kind: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"holdstill"}},"executable":{executable}}}"#
            )
        };
        assert_eq!(executable(&line("bin", "\"/t/holdstill\""), "holdstill"), Some("/t/holdstill".into()));
        assert_eq!(executable(&line("lib", "null"), "holdstill"), None);
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#, "holdstill"), None);
    }

    #[test]
    fn available_memory_is_the_kernel_s_estimate() {
        assert_eq!(available_kib("MemTotal:  100 kB\nMemAvailable:   23646 kB\n"), Some(23646));
        assert_eq!(available_kib("MemTotal:  100 kB\n"), None);
    }
}
