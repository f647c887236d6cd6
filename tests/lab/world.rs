//! The private world of a fact: mount and pid namespaces in which the machine's own disks are not mounted at all.
//!
//! The root is an overlay whose lower layer is the machine's root and whose upper layer is memory. An overlay has no
//! freeze operation, so `FIFREEZE` on `/` (or on any file of it) is refused by the kernel. After `pivot_root` the old
//! root is detached: no path, and no line of mountinfo, leads to a real disk. `/dev` has loop devices and the usual
//! character devices, nothing else.

use std::{
    fs, io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        stat::{Mode, SFlag, makedev, mknod},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, pivot_root},
};

/// How many loop devices a world has nodes for.
const LOOPS: u64 = 64;

/// Pid 1 of a world: builds it, runs the fact, reaps orphans, and takes everything with it when the fact has ended.
pub fn init(dir: &Path, name: &str) -> ExitCode {
    match build(dir).and_then(|store| run(&store, name)) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("failed to build the world of {name}: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(store: &fs::File, name: &str) -> io::Result<u8> {
    let fact = Command::new(std::env::current_exe()?)
        .args(["--lab-fact", name])
        .env("HOLDSTILL_LAB_STORE", store.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .spawn()?;
    let fact = Pid::from_raw(fact.id().cast_signed());
    loop {
        match waitpid(None, None)? {
            WaitStatus::Exited(pid, code) if pid == fact => return Ok(u8::try_from(code).unwrap_or(1)),
            WaitStatus::Signaled(pid, signal, _) if pid == fact => {
                eprintln!("the fact's process was killed by {signal}");
                return Ok(1);
            }
            // an orphan: a guardian whose warden was killed, a hook's child
            _ => {}
        }
    }
}

/// Answers a descriptor on `dir`: the only way left to the machine's disk, and it is not mounted.
fn build(dir: &Path) -> io::Result<fs::File> {
    let store = fs::File::open(dir)?;
    let base = dir.join("world");
    fs::create_dir_all(&base)?;
    mount_fs("tmpfs", &base, "size=75%,mode=755")?;
    let root = base.join("root");
    let mut layers = 0;
    let mut overlay = |lower: &Path, at: &Path| -> io::Result<()> {
        layers += 1;
        let (upper, work) = (base.join(format!("upper{layers}")), base.join(format!("work{layers}")));
        for d in [&upper, &work] {
            fs::create_dir_all(d)?;
        }
        fs::create_dir_all(at)?;
        fs::set_permissions(&upper, fs::metadata(lower)?.permissions())?;
        let (lower, upper, work) = (lower.display(), upper.display(), work.display());
        mount_fs("overlay", at, &format!("lowerdir={lower},upperdir={upper},workdir={work}"))
    };
    let others = other_mounts(&base)?;
    overlay(Path::new("/"), &root)?;
    for other in others {
        overlay(&other, &root.join(other.strip_prefix("/").expect("mount points are absolute")))?;
    }
    for (fs_type, at, options) in [
        ("proc", "proc", ""),
        ("sysfs", "sys", ""),
        ("tmpfs", "dev", "mode=755"),
        ("tmpfs", "run", "mode=755"),
        ("tmpfs", "dev/shm", "mode=1777"),
    ] {
        fs::create_dir_all(root.join(at))?;
        mount_fs(fs_type, &root.join(at), options)?;
    }
    devices(&root.join("dev"))?;
    // a tunable of its own: nobody else on this machine changes it, and no fact, however it ends, changes the machine's
    let tunable = base.join("rcu_expedited");
    fs::write(&tunable, "0\n")?;
    bind(&tunable, &root.join("sys/kernel/rcu_expedited"))?;
    hide(&root.join(super::disk::base().strip_prefix("/").expect("the lab's directory is absolute")))?;
    let old = root.join("oldroot");
    fs::create_dir_all(&old)?;
    pivot_root(&root, &old)?;
    std::env::set_current_dir("/")?;
    umount2("/oldroot", MntFlags::MNT_DETACH)?;
    fs::remove_dir("/oldroot")?;
    guard()?;
    Ok(store)
}

/// losetup resolves paths as text: through the overlay it would open a copy in memory instead of the file it was given.
fn hide(through_overlay: &Path) -> io::Result<()> {
    mount_fs("tmpfs", through_overlay, "size=4k")
}

fn mount_fs(fs_type: &str, at: &Path, options: &str) -> io::Result<()> {
    mount(Some("lab"), at, Some(fs_type), MsFlags::empty(), Some(options))
        .map_err(|e| io::Error::other(format!("mount {fs_type} at {}: {e}", at.display())))
}

fn bind(from: &Path, at: &Path) -> io::Result<()> {
    mount(Some(from), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|e| io::Error::other(format!("bind {} to {}: {e}", from.display(), at.display())))
}

fn devices(dev: &Path) -> io::Result<()> {
    let everyone = Mode::from_bits_truncate(0o666);
    let node = |name: &str, kind, major, minor, mode| mknod(&dev.join(name), kind, mode, makedev(major, minor));
    for (name, minor) in [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)] {
        node(name, SFlag::S_IFCHR, 1, minor, everyone)?;
        fs::set_permissions(dev.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    }
    node("loop-control", SFlag::S_IFCHR, 10, 237, Mode::S_IRUSR | Mode::S_IWUSR)?;
    for n in 0..LOOPS {
        node(&format!("loop{n}"), SFlag::S_IFBLK, 7, n, Mode::S_IRUSR | Mode::S_IWUSR)?;
    }
    for (link, to) in [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1")] {
        std::os::unix::fs::symlink(to, dev.join(link))?;
    }
    Ok(())
}

/// Directories of the machine (a separate /home, /usr, /tmp …) that need an overlay of their own to stay visible.
fn other_mounts(base: &Path) -> io::Result<Vec<PathBuf>> {
    let replaced = ["/proc", "/sys", "/dev", "/run", "/boot", "/mnt", "/media"].map(Path::new);
    let mut found: Vec<PathBuf> = Vec::new();
    for mount in mounts()? {
        let at = PathBuf::from(&mount.at);
        let wanted = at != Path::new("/")
            && !replaced.iter().any(|r| at.starts_with(r))
            && !at.starts_with(base)
            && !["autofs", "nfs", "nfs4", "cifs", "fuse"].iter().any(|t| mount.fs_type.starts_with(t))
            && at.is_dir();
        if wanted && !found.contains(&at) {
            found.push(at);
        }
    }
    Ok(found)
}

/// One line of mountinfo, as far as the lab needs it.
pub struct Mount {
    pub dev: String,
    pub at: String,
    pub fs_type: String,
    pub source: String,
}

pub fn mounts() -> io::Result<Vec<Mount>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let [dev, at] = [left.get(2)?, left.get(4)?].map(|s| (*s).to_owned());
        Some(Mount { dev, at, fs_type: (*right.first()?).to_owned(), source: (*right.get(1)?).to_owned() })
    };
    Ok(text.lines().filter_map(parse).collect())
}

/// Refuses unless freezing everything mounted here could hurt nobody: `/` is an overlay or on a loop device, and every
/// block device mounted is a loop device whose backing file is the lab's. btrfs has no device number of its own, hence
/// the look at the source.
///
/// # Errors
/// Names the mount that is not the lab's.
pub fn guard() -> io::Result<()> {
    let refuse = |why: String| Err(io::Error::other(format!("this is no world of the lab: {why}")));
    let mounts = mounts()?;
    let Some(root) = mounts.iter().rev().find(|m| m.at == "/") else { return refuse("no root".to_owned()) };
    if root.fs_type != "overlay" && !root.dev.starts_with("7:") {
        return refuse(format!("/ is {} on {}", root.fs_type, root.dev));
    }
    for mount in &mounts {
        let memory = ["devpts", "overlay", "proc", "sysfs", "tmpfs"].contains(&mount.fs_type.as_str());
        let on_loop =
            mount.dev.starts_with("7:") || (mount.fs_type == "btrfs" && mount.source.starts_with("/dev/loop"));
        if !memory && !on_loop {
            return refuse(format!("{} ({} {}) is mounted", mount.at, mount.fs_type, mount.dev));
        }
        if on_loop {
            let name = mount.source.trim_start_matches("/dev/");
            let backing = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).unwrap_or_default();
            if !super::disk::is_of_the_lab(&backing) {
                return refuse(format!("{} on {} is backed by {backing:?}", mount.at, mount.source));
            }
        }
    }
    Ok(())
}
