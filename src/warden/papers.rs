//! The two files of a receipt: `<fs root>/.holdstill/receipt.json` and `state`. Runs in guardians, because every write
//! to a target can block. What the bytes mean is `hold::receipt`'s business.

use std::{
    fs::{File, Permissions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt, PermissionsExt},
    },
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::{Mode, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};

use super::Receipt;
use crate::sys::{files, writeback};

/// The directory on each file system.
pub(crate) const DIRECTORY: &str = ".holdstill";
const JSON: &str = "receipt.json";
pub(crate) const STATE: &str = "state";

/// Both files, open for writing.
#[derive(Debug)]
pub(super) struct Papers {
    pub json: File,
    pub state: File,
}

/// Why there are no papers.
#[derive(Debug)]
pub(super) enum NoPapers {
    /// the disk is full: the hold goes on without
    Full(String),
    /// something of somebody else is in the way
    InTheWay(String),
}

impl Papers {
    /// Opens or makes both files below `root`, fills them with what says `prepared`, and syncs them. Of files that were
    /// there only the content needs to be synced, which costs no journal commit, the directory not at all.
    pub(super) fn prepare(root: &OwnedFd, receipt: &Receipt) -> Result<Papers, NoPapers> {
        let directory = directory(root)?;
        let papers = Papers { json: file(&directory, JSON)?, state: file(&directory, STATE)? };
        let write = || {
            let new = papers.json.metadata()?.len() == 0 || papers.state.metadata()?.len() == 0;
            fill(&papers.json, &receipt.json)?;
            fill(&papers.state, &receipt.prepared)?;
            papers.json.sync_data()?;
            papers.state.sync_data()?;
            if new { directory.sync_all() } else { Ok(()) }
        };
        write().map_err(|error| no_papers(DIRECTORY, &error))?;
        Ok(papers)
    }

    /// Overwrites both in place, in memory only: FIFREEZE's own sync, or time, carries them to disk.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn say(&self, json: &[u8], state: &[u8]) -> io::Result<()> {
        if !json.is_empty() {
            fill(&self.json, json)?;
        }
        fill(&self.state, state)
    }

    /// What they say now is on the disk when this returns, as far as a copy of it is concerned. No journal commit, no flush.
    ///
    /// # Errors
    /// The device's.
    pub(super) fn reach_the_disk(&self) -> io::Result<()> {
        writeback::through(&self.state)?;
        writeback::through(&self.json)
    }
}

fn directory(root: &OwnedFd) -> Result<File, NoPapers> {
    match mkdirat(root, DIRECTORY, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(no_papers(DIRECTORY, &error.into())),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = match openat(root, DIRECTORY, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::ELOOP | Errno::ENOTDIR) => {
            return Err(in_the_way(DIRECTORY, "is not a directory but a link or file"));
        }
        Err(error) => return Err(no_papers(DIRECTORY, &error.into())),
    };
    let metadata = directory.metadata().map_err(|error| no_papers(DIRECTORY, &error))?;
    if metadata.uid() != 0 {
        return Err(in_the_way(DIRECTORY, &format!("belongs to user {}, not to root", metadata.uid())));
    }
    if metadata.mode() & 0o7777 != 0o700 {
        directory.set_permissions(Permissions::from_mode(0o700)).map_err(|error| no_papers(DIRECTORY, &error))?;
    }
    Ok(directory)
}

/// An existing file is reused if it is a plain one of root's with one name and, on btrfs, overwritten in place.
fn file(directory: &File, name: &str) -> Result<File, NoPapers> {
    let fault = |error: io::Error| no_papers(&format!("{DIRECTORY}/{name}"), &error);
    let btrfs = files::on_btrfs(directory).map_err(fault)?;
    for _attempt in 0..2 {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(fd) => File::from(fd),
            Err(Errno::ELOOP | Errno::EISDIR | Errno::ENXIO) => {
                return Err(in_the_way(
                    &format!("{DIRECTORY}/{name}"),
                    "is a link or another thing that is not a file",
                ));
            }
            Err(error) => return Err(fault(error.into())),
        };
        let metadata = file.metadata().map_err(fault)?;
        if !metadata.is_file() || metadata.nlink() != 1 || metadata.uid() != 0 {
            return Err(in_the_way(&format!("{DIRECTORY}/{name}"), "is not a plain file of root with a single name"));
        }
        if btrfs && metadata.len() == 0 {
            files::set_nocow(&file).map_err(fault)?;
        }
        if !btrfs || files::is_nocow(&file).map_err(fault)? {
            return Ok(file);
        }
        unlinkat(directory.as_fd(), name, UnlinkatFlags::NoRemoveDir).map_err(|error| fault(error.into()))?;
    }
    Err(in_the_way(&format!("{DIRECTORY}/{name}"), "is replaced by somebody else all the time"))
}

fn fill(file: &File, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, 0)?;
    if file.metadata()?.len() != bytes.len() as u64 {
        file.set_len(bytes.len() as u64)?;
    }
    Ok(())
}

fn in_the_way(what: &str, why: &str) -> NoPapers {
    NoPapers::InTheWay(format!("{what} {why}"))
}

fn no_papers(what: &str, error: &io::Error) -> NoPapers {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => NoPapers::Full(format!("{what}: {error}")),
        Some(_) | None => NoPapers::InTheWay(format!("{what}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn receipt() -> Receipt {
        let [json, prepared, frozen, released, aborted] =
            [b"{}  ", b"prep", b"froz", b"rele", b"abor"].map(|bytes: &[u8; 4]| bytes.to_vec());
        Receipt { json, prepared, frozen, released, aborted }
    }

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = File::open(dir.path()).unwrap().into();
        (dir, fd)
    }

    #[test]
    fn papers_are_private_filled_and_reused_in_place() {
        let (dir, fd) = root();
        Papers::prepare(&fd, &receipt()).unwrap();
        let state = dir.path().join(".holdstill/state");
        let first = fs::metadata(&state).unwrap().ino();
        fs::write(&state, "longer than one sector of the old kind").unwrap();
        let papers = Papers::prepare(&fd, &receipt()).unwrap();
        assert_eq!((fs::metadata(&state).unwrap().ino(), fs::read(&state).unwrap()), (first, b"prep".to_vec()));
        papers.say(b"[1] ", b"froz").unwrap();
        assert_eq!(fs::read(&state).unwrap(), b"froz");
        assert_eq!(fs::read(dir.path().join(".holdstill/receipt.json")).unwrap(), b"[1] ");
        assert_eq!(fs::metadata(dir.path().join(".holdstill")).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_link_where_the_directory_or_a_file_belongs_is_refused_and_not_followed() {
        let (dir, fd) = root();
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(elsewhere.path(), dir.path().join(DIRECTORY)).unwrap();
        assert!(matches!(Papers::prepare(&fd, &receipt()), Err(NoPapers::InTheWay(_))));
        fs::remove_file(dir.path().join(DIRECTORY)).unwrap();
        fs::create_dir(dir.path().join(DIRECTORY)).unwrap();
        symlink(elsewhere.path().join("victim"), dir.path().join(DIRECTORY).join(STATE)).unwrap();
        assert!(matches!(Papers::prepare(&fd, &receipt()), Err(NoPapers::InTheWay(_))));
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_second_name_for_the_state_file_is_refused() {
        let (dir, fd) = root();
        Papers::prepare(&fd, &receipt()).unwrap();
        fs::hard_link(dir.path().join(".holdstill/state"), dir.path().join("other")).unwrap();
        assert!(matches!(Papers::prepare(&fd, &receipt()), Err(NoPapers::InTheWay(_))));
    }
}
