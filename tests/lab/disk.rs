//! Disks and file systems that exist as long as their value: sparse files in the lab's directory, loop devices, mounts.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    Lab, command, finish,
    process::{tool, until},
    world,
};

/// Where all labs keep their files on the machine's disk.
pub fn base() -> PathBuf {
    std::env::var_os("HOLDSTILL_LAB_DIR").map_or_else(|| PathBuf::from("/var/tmp/holdstill-lab"), PathBuf::from)
}

/// Whether a loop device's backing file (as sysfs names it) belongs to a lab.
pub fn is_of_the_lab(backing: &str) -> bool {
    let backing = Path::new(backing.trim().trim_end_matches(" (deleted)"));
    // a disk on a disk: its file lies on a file system the lab mounted below /mnt or /lab
    backing.starts_with(base()) || ["/mnt", "/lab"].iter().any(|d| backing.starts_with(d))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Ext4,
    Xfs,
    Btrfs,
}

impl Type {
    pub fn name(self) -> &'static str {
        match self {
            Type::Ext4 => "ext4",
            Type::Xfs => "xfs",
            Type::Btrfs => "btrfs",
        }
    }

    fn mkfs(self) -> Command {
        let (program, args): (_, &[&str]) = match self {
            // nothing left to initialise later: a background thread's writes would be blamed on somebody
            Type::Ext4 => ("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"]),
            Type::Xfs => ("mkfs.xfs", &["-q"]),
            Type::Btrfs => ("mkfs.btrfs", &["-q"]),
        };
        let mut command = command(program);
        command.args(args);
        command
    }

    /// Megabytes; the smallest each mkfs accepts without complaint.
    fn usual_size(self) -> u64 {
        match self {
            Type::Ext4 => 64,
            Type::Xfs => 320,
            Type::Btrfs => 256,
        }
    }
}

/// A loop device over a file.
pub struct Disk {
    pub device: PathBuf,
    pub image: PathBuf,
}

impl Disk {
    /// Attaches `image`, which must exist.
    pub fn attach(image: &Path) -> Disk {
        let device = tool(command("losetup").args(["-f", "--show"]).arg(image));
        let backing = tool(command("losetup").args(["-n", "-O", "BACK-INO"]).arg(device.trim()));
        let inode = fs::metadata(image).expect("it was just attached").ino();
        assert_eq!(backing.trim(), inode.to_string(), "losetup attached another file than {}", image.display());
        Disk { device: PathBuf::from(device.trim()), image: image.to_owned() }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = finish(&mut command("losetup").arg("-d").arg(&self.device).spawn().expect("util-linux"), LIMIT);
    }
}

const LIMIT: Duration = Duration::from_secs(10);

/// A mounted file system on a disk of its own.
pub struct Fs<'lab> {
    lab: &'lab Lab,
    pub kind: Type,
    pub mount: PathBuf,
    pub disk: Disk,
    /// the reaper's descriptor on it
    watched: i32,
    mounted: bool,
}

impl Lab {
    /// A new file system mounted at a new place below /mnt.
    pub fn fs(&self, kind: Type) -> Fs<'_> {
        let at = format!("/mnt/{}-{}", kind.name(), self.next());
        self.fs_at(kind, Path::new(&at), kind.usual_size())
    }

    /// A new file system of `megabytes`, mounted at `mount` (made if missing).
    pub fn fs_at(&self, kind: Type, mount: &Path, megabytes: u64) -> Fs<'_> {
        let image = self.store(&format!("disk-{}.img", self.next()));
        self.fs_on(kind, mount, &image, megabytes)
    }

    /// A new file system in `image`, which may lie on another file system of the lab.
    pub fn fs_on(&self, kind: Type, mount: &Path, image: &Path, megabytes: u64) -> Fs<'_> {
        let file = fs::File::create_new(image).unwrap_or_else(|e| panic!("failed to create {}: {e}", image.display()));
        file.set_len(megabytes << 20).expect("sparse files are cheap");
        if self.has(&kind.mkfs()) {
            tool(kind.mkfs().arg(image));
        } else {
            self.skip(&format!("no tool to make a {} file system", kind.name()));
        }
        self.mount_disk(kind, Disk::attach(image), mount, "noatime")
    }

    /// Mounts a copy of a disk's image. It gets its journal replayed, as at a boot.
    pub fn mount_copy(&self, kind: Type, image: &Path) -> Fs<'_> {
        let at = format!("/mnt/copy-{}", self.next());
        let options = if kind == Type::Xfs { "noatime,nouuid" } else { "noatime" };
        self.mount_disk(kind, Disk::attach(image), Path::new(&at), options)
    }

    /// Mounts a copy where the original was, as when a machine starts from it.
    pub fn mount_copy_at(&self, kind: Type, image: &Path, mount: &Path) -> Fs<'_> {
        let options = if kind == Type::Xfs { "noatime,nouuid" } else { "noatime" };
        self.mount_disk(kind, Disk::attach(image), mount, options)
    }

    fn mount_disk(&self, kind: Type, disk: Disk, mount: &Path, options: &str) -> Fs<'_> {
        fs::create_dir_all(mount).expect("the world's root is writable");
        tool(command("mount").args(["-t", kind.name(), "-o", options]).arg(&disk.device).arg(mount));
        world::guard().expect("everything mounted is the lab's");
        let watched = self.reaper.watch(mount).expect("the reaper answers");
        Fs { lab: self, kind, mount: mount.to_owned(), disk, watched, mounted: true }
    }

    fn has(&self, program: &Command) -> bool {
        let dirs = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&dirs)
            .chain([PathBuf::from("/sbin"), PathBuf::from("/usr/sbin")])
            .any(|d| d.join(program.get_program()).is_file())
    }

    /// Mounts a tmpfs.
    pub fn tmpfs_at(&self, mount: &Path) {
        fs::create_dir_all(mount).expect("the world's root is writable");
        tool(command("mount").args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(mount));
    }
}

impl Fs<'_> {
    /// The mount point as text.
    pub fn at(&self) -> &str {
        self.mount.to_str().expect("the lab's names are ASCII")
    }

    /// "fs:/mnt/ext4-1"
    pub fn step(&self) -> String {
        format!("fs:{}", self.at())
    }

    /// Freezes it as somebody else would. Refused unless everything mounted here is the lab's.
    pub fn freeze_by_others(&self) {
        world::guard().expect("everything mounted is the lab's");
        tool(command("fsfreeze").arg("-f").arg(&self.mount));
    }

    /// Thaws it as somebody else would; answers whether it was frozen.
    pub fn thaw_by_others(&self) -> bool {
        let thaw = command("fsfreeze").arg("-u").arg(&self.mount).stderr(std::process::Stdio::null()).spawn();
        finish(&mut thaw.expect("util-linux"), LIMIT).is_some_and(|s| s.success())
    }

    /// A copy of the whole disk as it is now, by blocks: what a snapshot would see. Only meaningful while held.
    pub fn copy(&self) -> PathBuf {
        let copy = self.lab.store(&format!("copy-{}.img", self.lab.next()));
        tool(command("cp").args(["--sparse=always", "--reflink=auto"]).arg(&self.disk.image).arg(&copy));
        copy
    }

    /// A fact has unmounted it itself: there is nothing left to unmount.
    pub fn forget_mount(mut self) {
        self.mounted = false;
    }

    /// Whether a small write by another process ends within `limit`.
    pub fn writable_within(&self, limit: Duration) -> bool {
        let file = self.mount.join(".lab-probe");
        let write = command("sh").args(["-c", "echo probe > \"$0\""]).arg(file).spawn();
        finish(&mut write.expect("sh"), limit).is_some_and(|s| s.success())
    }
}

impl Drop for Fs<'_> {
    fn drop(&mut self) {
        match self.lab.reaper.thaw(self.watched).and_then(|was| self.lab.reaper.forget(self.watched).map(|()| was)) {
            Ok(false) => {}
            Ok(true) => self.lab.trouble(format!("{} was still frozen when it was to be unmounted", self.at())),
            Err(e) => self.lab.trouble(format!("the reaper does not answer: {e}")),
        }
        let unmounted = !self.mounted
            || until(LIMIT, || {
                let mut umount = command("umount");
                let umount = umount.arg(&self.mount).stderr(std::process::Stdio::null()).spawn();
                finish(&mut umount.expect("util-linux"), LIMIT).is_some_and(|s| s.success())
            });
        if !unmounted {
            self.lab.trouble(format!("{} stays busy", self.at()));
            let _ = finish(&mut command("umount").arg("-l").arg(&self.mount).spawn().expect("util-linux"), LIMIT);
        }
    }
}

/// Whether an ext4 image's journal would be replayed at the next mount: never so when it was copied while frozen.
pub fn needs_recovery(image: &Path) -> bool {
    tool(command("dumpe2fs").arg("-h").arg(image)).lines().any(|l| l.contains("needs_recovery"))
}

/// Loop devices of labs that still exist: (device name, backing file).
pub fn attached() -> Vec<(String, String)> {
    attached_in(&base())
}

/// Those over files below `dir`.
pub fn attached_in(dir: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir("/sys/block").map(|e| e.flatten().collect::<Vec<_>>()).unwrap_or_default();
    let of_lab = |e: fs::DirEntry| {
        let backing = fs::read_to_string(e.path().join("loop/backing_file")).ok()?;
        let ours = backing.trim().trim_end_matches(" (deleted)");
        Path::new(ours).starts_with(dir).then(|| (e.file_name().to_string_lossy().into_owned(), backing))
    };
    entries.into_iter().filter_map(of_lab).collect()
}

/// Lets go of what a lab left that was killed: frozen file systems no process has mounted any more, loop devices, files.
///
/// # Errors
/// The base directory cannot be made or read.
pub fn sweep() -> io::Result<()> {
    let base = base();
    fs::create_dir_all(&base)?;
    for (name, backing) in attached() {
        let device = Path::new("/dev").join(&name);
        eprintln!("letting go of {name}, left by an earlier run ({})", backing.trim());
        let at = base.join("sweep");
        fs::create_dir_all(&at)?;
        // a frozen superblock pins its device; mounting the device again reaches that same superblock
        let script =
            "mount -t auto \"$0\" \"$1\" && { fsfreeze -u \"$1\" 2>/dev/null; umount \"$1\"; }; losetup -d \"$0\"";
        let sweep = command("unshare").args(["-m", "sh", "-c", script]).arg(&device).arg(&at).spawn();
        if sweep.and_then(|mut c| finish(&mut c, LIMIT).ok_or_else(|| io::ErrorKind::TimedOut.into())).is_err() {
            eprintln!("{name} could not be let go");
        }
    }
    for entry in fs::read_dir(&base)?.flatten() {
        if entry.path().is_dir() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}
