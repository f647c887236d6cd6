//! The reaper: a process outside the world that holds descriptors on every mount root and lets go whatever happens.
//!
//! It listens on a socket in the lab's directory. A message is one letter and a number: `w` passes a descriptor to watch
//! and is answered its number; `t` thaws one, or all (outer and inner ones at the same time, since a thaw can wait for
//! the file system below it), and is answered how many were frozen; `f` closes one. The reaper thaws by itself when the
//! limit of the fact has passed or when the harness is gone (its stdin ends).

use std::{
    fs,
    io::{self, BufRead, BufReader, IoSliceMut, Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::{command, finish, now};

const SOCKET: &str = "reaper.sock";
/// No thaw takes longer unless the kernel itself is stuck.
const THAW_LIMIT: Duration = Duration::from_secs(20);

/// Stands for every descriptor.
const ALL: i32 = -1;

/// Descriptors being watched, by number; never turned into owned ones, closed by `f` or when the process ends.
type Watched = Arc<Mutex<Vec<RawFd>>>;

/// The reaper process.
pub fn serve(dir: &Path, limit: &str) -> ExitCode {
    let watched = Watched::default();
    let listener = UnixListener::bind(dir.join(SOCKET)).expect("the lab's directory is new");
    println!("ready");
    let limit = Duration::from_secs_f64(limit.parse().expect("the harness says how long"));
    let until = now() + limit;
    let at_limit = watched.clone();
    thread::spawn(move || {
        thread::sleep(until.saturating_sub(now()));
        thaw(&at_limit, ALL);
    });
    let at_accept = watched.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let watched = at_accept.clone();
            thread::spawn(move || answer(&stream, &watched));
        }
    });
    // The harness holds the other end; EOF is its end, well or not.
    let _ = io::stdin().read_to_end(&mut Vec::new());
    thaw(&watched, ALL);
    ExitCode::SUCCESS
}

fn answer(stream: &UnixStream, watched: &Watched) {
    let mut word = [0_u8; 5];
    loop {
        let (length, received) = {
            let mut space = nix::cmsg_space!([RawFd; 1]);
            let mut into = [IoSliceMut::new(&mut word)];
            let message = recvmsg::<()>(stream.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC);
            let Ok(message) = message else { return };
            let mut received = Vec::new();
            for control in message.cmsgs().into_iter().flatten() {
                if let ControlMessageOwned::ScmRights(fds) = control {
                    received.extend(fds);
                }
            }
            (message.bytes, received)
        };
        if length != word.len() {
            return;
        }
        let [letter, number @ ..] = word;
        let number = i32::from_ne_bytes(number);
        let said = match letter {
            b'w' => {
                watched.lock().expect("no holder panics").extend(&received);
                received.first().copied().unwrap_or(ALL)
            }
            b't' => thaw(watched, number),
            _ => {
                watched.lock().expect("no holder panics").retain(|fd| *fd != number);
                i32::from(nix::unistd::close(number).is_ok())
            }
        };
        if writeln!(&mut &*stream, "{said}").is_err() {
            return;
        }
    }
}

/// Thaws one or all, at the same time; answers how many really were frozen.
fn thaw(watched: &Watched, which: RawFd) -> i32 {
    let me = std::process::id();
    let mut fds: Vec<RawFd> = watched.lock().expect("no holder panics").clone();
    fds.retain(|fd| which == ALL || *fd == which);
    let thaws: Vec<Child> = fds
        .iter()
        .filter_map(|fd| {
            command("fsfreeze").args(["-u", &format!("/proc/{me}/fd/{fd}")]).stderr(Stdio::null()).spawn().ok()
        })
        .collect();
    let until = now() + THAW_LIMIT;
    let ended_well = |mut child: Child| finish(&mut child, until.saturating_sub(now())).is_some_and(|s| s.success());
    thaws.into_iter().map(ended_well).map(i32::from).sum()
}

/// The harness's side: the process, and its end.
pub struct Reaper {
    child: Child,
}

impl Reaper {
    /// Starts a reaper in a session of its own: what kills the harness does not kill it.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(dir: &Path, limit: Duration) -> io::Result<Reaper> {
        let mut child = Command::new("setsid")
            .arg(std::env::current_exe()?)
            .arg("--lab-reaper")
            .arg(dir)
            .arg(limit.as_secs_f64().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line)?;
        if line.trim() != "ready" {
            return Err(io::Error::other("the reaper did not start"));
        }
        Ok(Reaper { child })
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = finish(&mut self.child, THAW_LIMIT + Duration::from_secs(5));
    }
}

/// How facts and the harness ask it.
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// # Errors
    /// No reaper listens in `dir`.
    pub fn connect(dir: &Path) -> io::Result<Client> {
        let stream = UnixStream::connect(dir.join(SOCKET))?;
        stream.set_read_timeout(Some(THAW_LIMIT + Duration::from_secs(5)))?;
        Ok(Client { stream })
    }

    fn ask(&self, letter: u8, number: i32, fd: Option<RawFd>) -> io::Result<i32> {
        let fds: Vec<RawFd> = fd.into_iter().collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let [a, b, c, d] = number.to_ne_bytes();
        let words = [letter, a, b, c, d];
        let message = [io::IoSlice::new(&words)];
        sendmsg::<()>(self.stream.as_raw_fd(), &message, control, MsgFlags::MSG_NOSIGNAL, None)?;
        let mut line = String::new();
        BufReader::new(&self.stream).read_line(&mut line)?;
        line.trim().parse().map_err(io::Error::other)
    }

    /// From now on the reaper can thaw the file system mounted at `mount`, which it keeps busy; answers its number.
    ///
    /// # Errors
    /// It cannot be opened, or the reaper is gone.
    pub fn watch(&self, mount: &Path) -> io::Result<i32> {
        let root = fs::File::open(mount)?;
        self.ask(b'w', ALL, Some(root.as_raw_fd()))
    }

    /// Thaws one; answers whether it was frozen.
    ///
    /// # Errors
    /// The reaper is gone.
    pub fn thaw(&self, number: i32) -> io::Result<bool> {
        self.ask(b't', number, None).map(|n| n > 0)
    }

    /// Thaws everything watched; answers how many were frozen.
    ///
    /// # Errors
    /// The reaper is gone.
    pub fn thaw_all(&self) -> io::Result<i32> {
        self.ask(b't', ALL, None)
    }

    /// Closes a descriptor, so that its file system can be unmounted.
    ///
    /// # Errors
    /// The reaper is gone.
    pub fn forget(&self, number: i32) -> io::Result<()> {
        self.ask(b'f', number, None).map(|_| ())
    }
}
