//! `--keep PATH`: after the release, what the command wrote there is copied from memory to where it thought it was.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink},
        },
    },
    path::{Path, PathBuf},
};

use super::overlay;

/// What became of one `--keep`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// so many files were copied
    Copied(usize),
    /// the command wrote nothing there, or it is on a file system that was not held: it is where it should be
    AlreadySo,
}

/// The stage of a gate, kept by a descriptor: the tmpfs lives as long as this does, though it is mounted nowhere.
pub struct Stage {
    dir: File,
}

impl Stage {
    /// Takes hold of the stage, which is the gate's current directory.
    ///
    /// # Errors
    /// openat(2): the gate is gone.
    pub fn of(pid: nix::unistd::Pid) -> io::Result<Stage> {
        Ok(Stage { dir: File::open(format!("/proc/{pid}/cwd"))? })
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()))
    }

    /// Copies what was written at `path`, an absolute path as the command saw it.
    ///
    /// # Errors
    /// A file could not be copied; those before it are in place.
    pub fn keep(&self, path: &Path) -> io::Result<Kept> {
        let mut layers = Vec::new();
        let mut overlays = Vec::new();
        for entry in fs::read_dir(self.path())? {
            let layer = entry?.path();
            if let Ok(at) = fs::read(layer.join("at")) {
                overlays.push(PathBuf::from(OsStr::from_bytes(&at)));
                layers.push(layer);
            }
        }
        let Some((i, inside)) = overlay::within(&overlays, path) else { return Ok(Kept::AlreadySo) };
        let from = layers[i].join("upper").join(inside);
        match from.symlink_metadata() {
            Ok(_) => {
                make_parents(&from, path)?;
                copy(&from, path).map(Kept::Copied)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kept::AlreadySo),
            Err(error) => Err(error),
        }
    }
}

/// Makes the directories above `to` that the command made above `from`, alike.
fn make_parents(from: &Path, to: &Path) -> io::Result<()> {
    let (Some(from), Some(to)) = (from.parent(), to.parent()) else { return Ok(()) };
    if to.exists() {
        return Ok(());
    }
    make_parents(from, to)?;
    let metadata = from.metadata()?;
    fs::create_dir(to)?;
    chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))
}

/// Copies a file, link or directory with owner, mode and time; returns how many files.
fn copy(from: &Path, to: &Path) -> io::Result<usize> {
    let metadata = from.symlink_metadata()?;
    let kind = metadata.file_type();
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", to.display()));
    if kind.is_dir() {
        match fs::create_dir(to) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(named(error)),
            _ => {}
        }
        let mut count = 0;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            count += copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        chown(to, Some(metadata.uid()), Some(metadata.gid())).map_err(named)?;
        fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777)).map_err(named)?;
        return Ok(count);
    }
    // a character device 0:0 is overlay's mark for "deleted", see the kernel's overlayfs.rst; deletions are not kept
    if kind.is_char_device() || kind.is_block_device() || kind.is_fifo() || kind.is_socket() {
        return Ok(0);
    }
    let name = to.file_name().ok_or_else(|| named(io::Error::from(io::ErrorKind::InvalidInput)))?;
    let mut beside = OsStr::new(".").to_owned();
    beside.push(name);
    beside.push(".holdstill");
    let beside = to.with_file_name(beside);
    let placed = (|| {
        if kind.is_symlink() {
            symlink(fs::read_link(from)?, &beside)?;
            lchown(&beside, Some(metadata.uid()), Some(metadata.gid()))?;
        } else {
            fs::copy(from, &beside)?;
            chown(&beside, Some(metadata.uid()), Some(metadata.gid()))?;
            fs::set_permissions(&beside, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
            let file = File::options().append(true).open(&beside)?;
            file.set_modified(metadata.modified()?)?;
            file.sync_all()?;
        }
        fs::rename(&beside, to)
    })();
    if placed.is_err() {
        let _ = fs::remove_file(&beside);
    }
    placed.map_err(named).map(|()| 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(files: &[(&str, &str)]) -> (tempfile::TempDir, Stage, PathBuf) {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let disk = temp.path().join("disk");
        let own = temp.path().join("stage/0");
        fs::create_dir_all(&disk).expect("mkdir");
        fs::create_dir_all(own.join("upper")).expect("mkdir");
        fs::write(own.join("at"), disk.as_os_str().as_bytes()).expect("write");
        for (path, text) in files {
            let path = own.join("upper").join(path);
            fs::create_dir_all(path.parent().expect("below upper")).expect("mkdir");
            fs::write(path, text).expect("write");
        }
        let stage = Stage { dir: File::open(temp.path().join("stage")).expect("open") };
        (temp, stage, disk)
    }

    #[test]
    fn a_file_the_command_wrote_ends_up_on_the_disk_with_its_mode() {
        let (temp, stage, disk) = stage(&[("log", "new")]);
        fs::set_permissions(temp.path().join("stage/0/upper/log"), fs::Permissions::from_mode(0o640)).expect("chmod");
        fs::write(disk.join("log"), "old").expect("write");
        assert_eq!(stage.keep(&disk.join("log")).expect("kept"), Kept::Copied(1));
        assert_eq!(fs::read_to_string(disk.join("log")).expect("there"), "new");
        assert_eq!(fs::metadata(disk.join("log")).expect("there").mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(&disk).expect("readable").count(), 1, "nothing else is left there");
    }

    #[test]
    fn directories_the_command_made_above_it_are_made_alike() {
        let (temp, stage, disk) = stage(&[(".config/cli/session", "new")]);
        let made = temp.path().join("stage/0/upper/.config");
        fs::set_permissions(made, fs::Permissions::from_mode(0o700)).expect("chmod");
        assert_eq!(stage.keep(&disk.join(".config/cli")).expect("kept"), Kept::Copied(1));
        assert_eq!(fs::read_to_string(disk.join(".config/cli/session")).expect("there"), "new");
        assert_eq!(fs::metadata(disk.join(".config")).expect("there").mode() & 0o777, 0o700);
    }

    #[test]
    fn a_directory_is_kept_with_everything_written_in_it() {
        let (_temp, stage, disk) = stage(&[("a/b/c", "1"), ("a/d", "2")]);
        assert_eq!(stage.keep(&disk.join("a")).expect("kept"), Kept::Copied(2));
        assert_eq!(fs::read_to_string(disk.join("a/b/c")).expect("there"), "1");
    }

    #[test]
    fn what_was_not_written_stays_as_it_is_and_says_so() {
        let (_temp, stage, disk) = stage(&[]);
        assert_eq!(stage.keep(&disk.join("log")).expect("fine"), Kept::AlreadySo);
        assert_eq!(stage.keep(Path::new("/run/elsewhere")).expect("fine"), Kept::AlreadySo);
    }

    #[test]
    fn a_file_that_cannot_be_kept_is_named() {
        let (_temp, stage, disk) = stage(&[("gone/log", "x")]);
        fs::write(disk.join("gone"), "a file").expect("write");
        let error = stage.keep(&disk.join("gone/log")).expect_err("its directory is a file");
        assert!(error.to_string().starts_with(&disk.join("gone/log").display().to_string()), "{error}");
    }
}
