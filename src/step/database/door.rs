//! The way to a server's unix socket, found once and then kept: whatever happens to the path meanwhile, and however long
//! it is, the connection goes to the socket that was found.

use std::{
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Address, Target, target::socket_file};
use crate::sys::{
    credentials,
    view::{FileId, Kind, Spot, View},
};

/// A socket, opened for its place alone.
pub(in crate::step) struct Door {
    socket: Spot,
    name: PathBuf,
}

impl Door {
    /// Finds the socket of a target. Looks at files: call it on a thread that may block.
    ///
    /// # Errors
    /// Nothing is there, or no socket; the target is reached over TCP.
    pub(in crate::step) fn find(target: &Target) -> io::Result<Door> {
        let Address::Socket(path) = &target.at else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it has no unix socket"));
        };
        let (socket, name) = match target.seen_by {
            Some(pid) => {
                let root = Path::new("/proc").join(pid.to_string()).join("root");
                (View::below(&root)?.open(path)?, path.clone())
            }
            None => {
                let socket = Spot::open(&socket_file(target.engine, path)?)?;
                let name = socket.name()?;
                (socket, name)
            }
        };
        match socket.kind()? {
            Kind::Socket => Ok(Door { socket, name }),
            Kind::File | Kind::Directory | Kind::Other => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a socket"))
            }
        }
    }

    /// What to connect to, as long as `self` lives. Short enough for a socket address; must not be made canonical, which
    /// would make it mean another server's socket in our own mount namespace.
    pub(in crate::step) fn path(&self) -> PathBuf {
        self.socket.path()
    }

    /// What the socket is called, by the server if it lives elsewhere.
    pub(in crate::step) fn name(&self) -> &Path {
        &self.name
    }

    /// Which file it is.
    ///
    /// # Errors
    /// fstat(2)'s.
    pub(in crate::step) fn id(&self) -> io::Result<FileId> {
        self.socket.id()
    }

    /// uid and gid.
    ///
    /// # Errors
    /// fstat(2)'s.
    pub(in crate::step) fn owner(&self) -> io::Result<(u32, u32)> {
        self.socket.owner()
    }

    /// Connects as the socket's owner, if we may be anybody, waiting at most `limit` for room in the server's backlog.
    ///
    /// # Errors
    /// connect(2)'s, setresuid(2)'s; `WouldBlock` after `limit`.
    pub(in crate::step) fn connect_as_owner(&self, limit: Duration) -> io::Result<UnixStream> {
        if nix::unistd::geteuid().is_root() {
            let (uid, gid) = self.owner()?;
            credentials::connect_unix_as(&self.path(), uid, gid, limit)
        } else {
            credentials::connect_unix(&self.path(), limit)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::{super::Engine, *};

    #[test]
    fn a_door_leads_to_the_socket_that_was_found_even_as_another_process_names_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let deep = directory.path().join("d".repeat(120));
        std::fs::create_dir(&deep).expect("created");
        let short = directory.path().join("s");
        let listener = UnixListener::bind(&short).expect("it binds");
        let path = deep.join("mysqld.sock");
        std::fs::rename(&short, &path).expect("renamed");
        let here = Target::discovered(Engine::Mysql, path.clone());
        let there = Target { seen_by: Some(std::process::id().cast_signed()), ..here.clone() };
        for target in [here, there] {
            let door = Door::find(&target).expect("it is there");
            door.connect_as_owner(Duration::from_secs(5)).expect("it connects");
            listener.accept().expect("somebody came");
            assert_eq!(door.name(), path);
        }
    }

    #[test]
    fn a_file_is_no_door() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("mysqld.sock");
        std::fs::write(&path, "").expect("written");
        let target =
            Target { seen_by: Some(std::process::id().cast_signed()), ..Target::discovered(Engine::Mysql, path) };
        assert!(Door::find(&target).err().expect("no socket").to_string().contains("not a socket"));
    }
}
