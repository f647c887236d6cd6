//! The file system as one process sees it, looked at without being led astray. Called by `step::database` for sockets and
//! by `hold::survey` for data.
//!
//! A server in a container names paths of the container, and whoever runs the container decides where those lead: a link
//! there may say `/run/mysqld/mysqld.sock` and mean ours. So the kernel resolves every path below the process's own root,
//! links included, and through no magic link of /proc (openat2(2)). What is opened is opened for its place alone (`O_PATH`):
//! no device is asked and no FIFO waits. A dead network file system may: call from a thread with a limit.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2, readlink},
    sys::stat::{Mode, fstat},
};

/// A process's root.
#[derive(Debug)]
pub struct View {
    root: OwnedFd,
}

/// A file opened for its place alone.
#[derive(Debug)]
pub struct Spot {
    fd: OwnedFd,
}

/// Which file it is, whatever it is called: `st_dev` and `st_ino`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    pub dev: u64,
    pub ino: u64,
}

impl View {
    /// What is below `root`: `/`, or `/proc/PID/root` for what process PID sees.
    ///
    /// # Errors
    /// open(2)'s: the process is gone, or may not be looked at.
    pub fn below(root: &Path) -> io::Result<View> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(View { root: open(root, flags, Mode::empty())? })
    }

    /// The file that `path` leads to here. Links are followed; none leads out.
    ///
    /// # Errors
    /// openat2(2)'s.
    pub fn open(&self, path: &Path) -> io::Result<Spot> {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
        loop {
            match openat2(&self.root, path, how) {
                Ok(fd) => return Ok(Spot { fd }),
                // a rename or mount somewhere on this machine met a `..`: the kernel asks to be asked again
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Opens a regular file here for reading.
    ///
    /// # Errors
    /// openat2(2)'s; `InvalidInput` if it is no regular file.
    pub fn read(&self, path: &Path) -> io::Result<File> {
        let spot = self.open(path)?;
        if spot.kind()? != Kind::File {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        File::open(spot.path())
    }

    /// What this view calls that file; `None` if it does not lie below this root.
    pub fn name_of(&self, spot: &Spot) -> Option<PathBuf> {
        let text = |fd: &OwnedFd| readlink(descriptor(fd).as_path()).ok();
        let (root, path) = (text(&self.root)?, PathBuf::from(text(&spot.fd)?));
        let below = path.strip_prefix(Path::new(&root)).ok()?;
        Some(Path::new("/").join(below))
    }
}

/// What kind of file it is, as far as anybody here asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Socket,
    Other,
}

impl Spot {
    /// Opens what `path` leads to in our own view, as any program would.
    ///
    /// # Errors
    /// open(2)'s.
    pub fn open(path: &Path) -> io::Result<Spot> {
        Ok(Spot { fd: open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())? })
    }

    /// A path to it that nobody can redirect and that fits a socket address; valid as long as `self` lives.
    pub fn path(&self) -> PathBuf {
        descriptor(&self.fd)
    }

    /// Where it is, as the kernel names it: true in our own mount namespace only.
    ///
    /// # Errors
    /// readlink(2)'s.
    pub fn name(&self) -> io::Result<PathBuf> {
        Ok(readlink(self.path().as_path())?.into())
    }

    /// # Errors
    /// fstat(2)'s.
    pub fn id(&self) -> io::Result<FileId> {
        let stat = fstat(&self.fd)?;
        Ok(FileId { dev: stat.st_dev, ino: stat.st_ino })
    }

    /// # Errors
    /// fstat(2)'s.
    pub fn kind(&self) -> io::Result<Kind> {
        Ok(match fstat(&self.fd)?.st_mode & libc::S_IFMT {
            libc::S_IFREG => Kind::File,
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFSOCK => Kind::Socket,
            _ => Kind::Other,
        })
    }

    /// uid and gid.
    ///
    /// # Errors
    /// fstat(2)'s.
    pub fn owner(&self) -> io::Result<(u32, u32)> {
        let stat = fstat(&self.fd)?;
        Ok((stat.st_uid, stat.st_gid))
    }

    /// The id of the mount it lies on.
    ///
    /// # Errors
    /// fdinfo is unreadable.
    pub fn mount_id(&self) -> io::Result<u64> {
        super::files::mount_id(self.fd.as_fd())
    }
}

fn descriptor(fd: &OwnedFd) -> PathBuf {
    Path::new("/proc/self/fd").join(OsStr::from_bytes(fd.as_raw_fd().to_string().as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::{fs::symlink, net::UnixListener},
    };

    use super::*;

    fn machine() -> (tempfile::TempDir, PathBuf) {
        let outside = tempfile::tempdir().expect("a temporary directory");
        let root = outside.path().join("container");
        fs::create_dir_all(root.join("run")).expect("created");
        (outside, root)
    }

    #[test]
    fn a_link_in_a_container_leads_to_the_containers_file_never_to_ours() {
        let (outside, root) = machine();
        let ours = outside.path().join("ours.sock");
        let _listener = UnixListener::bind(&ours).expect("it binds");
        symlink(&ours, root.join("run/absolute.sock")).expect("linked");
        symlink("../../ours.sock", root.join("run/climbing.sock")).expect("linked");
        let view = View::below(&root).expect("a directory");
        for forged in ["/run/absolute.sock", "/run/climbing.sock"] {
            let error = view.open(Path::new(forged)).expect_err("nothing is there in the container");
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{forged}");
        }
    }

    #[test]
    fn a_magic_link_is_no_way_out() {
        let (_outside, root) = machine();
        symlink("/proc/self/root", root.join("way-out")).expect("linked");
        let view = View::below(Path::new("/")).expect("the root");
        let error = view.open(&root.join("way-out/etc")).expect_err("a magic link");
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn a_file_is_called_what_its_view_calls_it() {
        let (_outside, root) = machine();
        fs::create_dir_all(root.join("srv/data")).expect("created");
        symlink("/srv/data", root.join("data")).expect("linked");
        let view = View::below(&root).expect("a directory");
        let spot = view.open(Path::new("/data")).expect("it is there");
        assert_eq!(view.name_of(&spot).as_deref(), Some(Path::new("/srv/data")));
        assert_eq!(spot.kind().expect("asked"), Kind::Directory);
        let same = Spot::open(&root.join("srv/data")).expect("it is there");
        assert_eq!(spot.id().expect("asked"), same.id().expect("asked"));
        assert_eq!(view.name_of(&Spot::open(Path::new("/usr")).expect("there")), None);
    }

    #[test]
    fn a_socket_is_reached_through_its_descriptor_whatever_happens_to_its_name() {
        let (_outside, root) = machine();
        let path = root.join("run/db.sock");
        let listener = UnixListener::bind(&path).expect("it binds");
        let spot = View::below(&root).expect("a directory").open(Path::new("/run/db.sock")).expect("there");
        fs::rename(&path, root.join("run/moved.sock")).expect("renamed");
        let _impostor = UnixListener::bind(&path).expect("it binds");
        std::os::unix::net::UnixStream::connect(spot.path()).expect("it connects");
        listener.accept().expect("to the one that was opened");
    }
}
