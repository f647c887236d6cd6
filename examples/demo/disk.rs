//! The demo's disks, and how a copy of one is cut at one instant.
//!
//! ```text
//!   tmpfs (the demo's own)
//!   └─ storage.img ─ loop ─ ext4 "the storage"       what a hypervisor would keep the machine's disks on
//!      ├─ data.img ─ loop ─ ext4 at /srv             the machine's data disk
//!      └─ transient.img ─ loop ─ ext4 at /mnt        a disk that is in no snapshot
//! ```
//!
//! A copy of `data.img` is cut while the storage is frozen: no write of the machine reaches its disk meanwhile, so the
//! copy is what the disk had received at one instant. What the machine had not written back by then is not in it, as
//! when the plug is pulled. Freezing the storage is the demo's doing, in both copies; it plays the hypervisor.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};

use crate::{Failure, command::succeed, ledger::now};

/// Longest any tool here may take.
const LIMIT: Duration = Duration::from_secs(20);
/// The major number of loop devices (Documentation/admin-guide/devices.txt).
const LOOP_MAJOR: u32 = 7;
const BLOCK: usize = 64 * 1024;

/// What mountinfo says about one mount point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    pub major: u32,
    pub minor: u32,
    /// e.g. "/dev/loop3"
    pub source: String,
}

impl Mounted {
    /// The topmost mount on `path` in this mount namespace.
    ///
    /// # Errors
    /// Nothing is mounted there.
    pub fn at(path: &Path) -> Result<Mounted, Failure> {
        let text = fs::read_to_string("/proc/self/mountinfo")?;
        Mounted::find(&text, path).ok_or_else(|| format!("find a mount on {}", path.display()).into())
    }

    fn find(mountinfo: &str, path: &Path) -> Option<Mounted> {
        let line = mountinfo.lines().rfind(|l| l.split(' ').nth(4).is_some_and(|p| Path::new(p) == path))?;
        let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
        let source = line.split_once(" - ")?.1.split(' ').nth(1)?;
        Some(Mounted { major: major.parse().ok()?, minor: minor.parse().ok()?, source: source.to_owned() })
    }

    pub fn is_loop(&self) -> bool {
        self.major == LOOP_MAJOR
    }

    /// "loop3"
    pub fn kernel_name(&self) -> &str {
        self.source.trim_start_matches("/dev/")
    }
}

/// Is this loop device attached to anything?
pub fn attached(kernel_name: &str) -> bool {
    Path::new("/sys/block").join(kernel_name).join("loop").exists()
}

/// Makes a sparse image of `mib` MiB with an ext4 on it.
///
/// # Errors
/// As open(2), or mkfs.ext4 failed.
pub fn format(image: &Path, mib: u64) -> Result<(), Failure> {
    File::create(image)?.set_len(mib << 20)?;
    // Everything is written now, not by a kernel thread later: what reaches the disk is then the story's doing alone.
    let lazy = "lazy_itable_init=0,lazy_journal_init=0";
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-m", "0", "-N", "8192", "-J", "size=8", "-E", lazy]).arg(image);
    succeed(&mut mkfs, LIMIT).map(drop)
}

/// Mounts `image` through a loop device that detaches itself when the mount is gone.
///
/// # Errors
/// mount(8) failed, or what is mounted there now is not a loop device.
pub fn mount(image: &Path, on: &Path, options: &str) -> Result<Mounted, Failure> {
    let options = format!("loop,{options}");
    succeed(Command::new("mount").args(["-t", "ext4", "-o", &options]).arg(image).arg(on), LIMIT)?;
    let mounted = Mounted::at(on)?;
    if !mounted.is_loop() {
        return Err(format!("mount {}: {} is no loop device", on.display(), mounted.source).into());
    }
    Ok(mounted)
}

/// # Errors
/// umount(8) failed.
pub fn unmount(on: &Path) -> Result<(), Failure> {
    succeed(Command::new("umount").arg(on), LIMIT).map(drop)
}

/// The storage stands still from the making of this to its end.
#[derive(Debug)]
struct Stopped<'a>(&'a Path);

impl<'a> Stopped<'a> {
    fn begin(storage: &'a Path) -> Result<Self, Failure> {
        if !Mounted::at(storage)?.is_loop() {
            return Err(format!("stop {}: not a loop device of the demo", storage.display()).into());
        }
        let stopped = Stopped(storage); // before the freeze: one that fails half-way is undone too
        succeed(Command::new("fsfreeze").arg("-f").arg(storage), LIMIT)?;
        Ok(stopped)
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        thaw(self.0);
    }
}

/// Thaws a file system of the demo's own; one that is not frozen stays as it is. `root` may be a path or
/// "/proc/self/fd/N".
pub fn thaw(root: &Path) {
    let _ = succeed(Command::new("fsfreeze").arg("-u").arg(root), LIMIT);
}

/// A copy of a disk, all of one instant.
#[derive(Debug, Clone)]
pub struct Cut {
    pub image: PathBuf,
    /// The storage took no write from some moment after `began` to some moment before `ended`.
    pub began: Duration,
    pub ended: Duration,
    /// the source was looked at before and after copying: it had not been written to
    pub one_instant: bool,
}

/// Cuts `disk` into `copy` while `storage`, the file system `disk` lies on, takes no writes. `copy` must lie elsewhere.
///
/// # Errors
/// The storage could not be stopped, or reading or writing failed.
pub fn cut(storage: &Path, disk: &Path, copy: &Path) -> Result<Cut, Failure> {
    // The storage's own cache, written down first: then it stands still for the copying only.
    nix::unistd::syncfs(File::open(storage)?)?;
    let mut source = File::open(disk)?;
    let target = File::create(copy)?;
    let began = now();
    let stopped = Stopped::begin(storage)?;
    let look = |f: &File| f.metadata().map(|m| (m.mtime(), m.mtime_nsec(), m.blocks()));
    let before = look(&source)?;
    copy_data(&mut source, target)?;
    let one_instant = before == look(&source)?;
    drop(stopped);
    Ok(Cut { image: copy.to_owned(), began, ended: now(), one_instant })
}

/// Copies what is not a hole. Returns how many bytes that was.
fn copy_data(source: &mut File, mut target: File) -> Result<u64, Failure> {
    let end = source.metadata()?.len();
    target.set_len(end)?;
    let (mut at, mut copied) = (0, 0);
    let mut block = vec![0; BLOCK];
    loop {
        let data = match lseek(&*source, at, Whence::SeekData) {
            Ok(data) => data,
            Err(Errno::ENXIO) => return Ok(copied), // only a hole is left
            Err(e) => return Err(e.into()),
        };
        let hole = lseek(&*source, data, Whence::SeekHole)?;
        source.seek(SeekFrom::Start(data.cast_unsigned()))?;
        target.seek(SeekFrom::Start(data.cast_unsigned()))?;
        let mut left = hole.cast_unsigned() - data.cast_unsigned();
        copied += left;
        while left > 0 {
            let piece = &mut block[..BLOCK.min(usize::try_from(left).unwrap_or(BLOCK))];
            source.read_exact(piece)?;
            target.write_all(piece)?;
            left -= piece.len() as u64;
        }
        at = hole;
    }
}

/// Must a mount of this ext4 image replay its journal first? Read from the raw superblock, before anybody mounts it:
/// `EXT4_FEATURE_INCOMPAT_RECOVER`, 0x4 in `s_feature_incompat` at 0x60 (fs/ext4/ext4.h).
///
/// # Errors
/// It cannot be read or is no ext4.
pub fn needs_recovery(image: &Path) -> Result<bool, Failure> {
    let mut superblock = [0; 1024];
    let mut file = File::open(image)?;
    file.seek(SeekFrom::Start(1024))?;
    file.read_exact(&mut superblock)?;
    if superblock[0x38..0x3a] != [0x53, 0xef] {
        return Err(format!("read {}: it is no ext4 file system", image.display()).into());
    }
    Ok(superblock[0x60] & 0x4 != 0)
}

/// Every regular file below `dir` on its file system, with its length, by path.
///
/// # Errors
/// As readdir(3).
pub fn files(dir: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let device = fs::symlink_metadata(dir)?.dev();
    let (mut found, mut open) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let meta = fs::symlink_metadata(entry.path())?;
            if meta.is_dir() && meta.dev() == device {
                open.push(entry.path());
            } else if meta.is_file() {
                found.push((entry.path(), meta.len()));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_on_a_path_is_the_one_found() {
        let text = "\
30 1 254:0 / / rw - ext4 /dev/vda rw
31 30 254:16 / /srv rw - ext4 /dev/vdb rw
32 31 7:3 / /srv rw,noatime - ext4 /dev/loop3 rw
33 30 7:4 / /srv/deeper rw - ext4 /dev/loop4 rw
";
        let found = Mounted::find(text, Path::new("/srv")).expect("mounted");
        assert_eq!(found, Mounted { major: 7, minor: 3, source: "/dev/loop3".into() });
        assert_eq!((found.is_loop(), found.kernel_name()), (true, "loop3"));
        assert!(!Mounted::find(text, Path::new("/")).expect("mounted").is_loop());
        assert_eq!(Mounted::find(text, Path::new("/mnt")), None);
    }

    #[test]
    fn a_sparse_copy_has_the_same_bytes_and_the_same_holes() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut source = File::create(&from).expect("created");
        source.set_len(8 << 20).expect("sized");
        for at in [0, 3 << 20, (8 << 20) - 5] {
            source.seek(SeekFrom::Start(at)).expect("seek");
            source.write_all(b"bytes").expect("written");
        }
        let copied =
            copy_data(&mut File::open(&from).expect("open"), File::create(&to).expect("open")).expect("copied");
        assert!(fs::read(&from).expect("read") == fs::read(&to).expect("read"));
        assert!(copied < 1 << 20, "{copied} bytes copied of a file that is nearly all hole");
    }

    #[test]
    fn a_fresh_ext4_needs_no_recovery_and_something_else_is_no_ext4() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
        let image = dir.path().join("image");
        format(&image, 32).expect("mkfs.ext4 of e2fsprogs");
        assert!(!needs_recovery(&image).expect("read"));
        let mut file = File::options().write(true).open(&image).expect("open");
        file.seek(SeekFrom::Start(1024 + 0x38)).expect("seek");
        file.write_all(b"XX").expect("written");
        assert!(needs_recovery(&image).expect_err("no ext4").to_string().contains("no ext4"));
    }
}
