//! What an agent's first call leaves for its second: the id of the hold, in one file per agent on tmpfs. It is never
//! removed, only emptied, so that two calls at once see the same file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// No hold's id, which begins with a letter.
const NOTHING: &str = "-";
/// An id is at most 64 bytes.
const LENGTH: u64 = 128;

/// What the last call left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// nobody asked, or all of it is over
    Blank,
    /// asked, and answered that it may go on with nothing held
    Nothing,
    /// asked to hold under this id; that may be over
    Hold(String),
}

/// The file, locked: whoever has it is the only one that asks for a hold in this agent's name.
pub struct Ticket(Flock<File>);

impl Ticket {
    /// `None`: another call has it.
    ///
    /// # Errors
    /// It cannot be opened: the directory is missing, or this is not root.
    pub fn lock(path: &Path) -> io::Result<Option<Ticket>> {
        let mut options = OpenOptions::new();
        let options = options.create(true).truncate(false).read(true).write(true).mode(0o600);
        let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => Ok(Some(Ticket(locked))),
            Err((_, Errno::EAGAIN)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }

    /// # Errors
    /// read(2).
    pub fn left(&mut self) -> io::Result<Left> {
        self.0.rewind()?;
        read(&self.0)
    }

    /// # Errors
    /// write(2): tmpfs is full.
    pub fn leave(&mut self, left: &Left) -> io::Result<()> {
        let text = match left {
            Left::Blank => "",
            Left::Nothing => NOTHING,
            Left::Hold(id) => id,
        };
        self.0.rewind()?;
        self.0.set_len(0)?;
        self.0.write_all(text.as_bytes())
    }
}

/// What was left, whoever has it locked.
///
/// # Errors
/// It cannot be read; that it is not there is no error.
pub fn look(path: &Path) -> io::Result<Left> {
    match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path) {
        Ok(file) => read(&file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Left::Blank),
        Err(error) => Err(error),
    }
}

fn read(file: &File) -> io::Result<Left> {
    let mut text = String::new();
    file.take(LENGTH).read_to_string(&mut text)?;
    Ok(match text.trim() {
        "" => Left::Blank,
        NOTHING => Left::Nothing,
        id => Left::Hold(id.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_at_a_time_writes_and_anybody_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter-qemu-ga");
        assert_eq!(look(&path).unwrap(), Left::Blank, "none is there");
        let mut ticket = Ticket::lock(&path).unwrap().expect("nobody has it");
        assert_eq!(ticket.left().unwrap(), Left::Blank);
        ticket.leave(&Left::Hold("qemu-ga-1-2".into())).unwrap();
        assert!(Ticket::lock(&path).unwrap().is_none());
        assert_eq!(look(&path).unwrap(), Left::Hold("qemu-ga-1-2".into()));
        ticket.leave(&Left::Nothing).unwrap();
        assert_eq!((look(&path).unwrap(), ticket.left().unwrap()), (Left::Nothing, Left::Nothing));
        ticket.leave(&Left::Blank).unwrap();
        drop(ticket);
        assert_eq!(Ticket::lock(&path).unwrap().expect("it was given back").left().unwrap(), Left::Blank);
    }
}
