//! What a test does within a guest: commands through the shell port, and whether writers wait.

use std::{
    cell::{Cell, RefCell},
    fs,
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::lab::{now, until};

/// A command that takes longer has hung: everything a test runs in a guest is small.
const PATIENCE: Duration = Duration::from_secs(30);
/// A write that is not through by then waits for a thaw: under emulation a small one takes a few milliseconds.
pub const STILL: Duration = Duration::from_millis(700);

/// A directory on each of the guest's disks.
const DISKS: [&str; 2] = ["/mnt/data", "/srv"];

pub struct Inside {
    socket: PathBuf,
    serial: PathBuf,
    stream: RefCell<Option<UnixStream>>,
    count: Cell<u32>,
}

impl Inside {
    pub fn new(socket: &Path, serial: &Path) -> Inside {
        Inside { socket: socket.to_owned(), serial: serial.to_owned(), stream: RefCell::default(), count: Cell::new(0) }
    }

    /// Everything the console said so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.serial).unwrap_or_default()).into_owned()
    }

    fn tail(&self) -> String {
        let said = self.console();
        let lines: Vec<&str> = said.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Waits for the guest's shell; `ended` says why it will never come.
    pub fn wait_for_shell(&self, limit: Duration, ended: impl Fn() -> Option<String>) {
        let end = now() + limit;
        loop {
            if let Some(why) = ended() {
                panic!("{why}\nthe console said:\n{}", self.tail());
            }
            if let Some((0, _)) = self.try_sh("true", Duration::from_secs(5)) {
                return;
            }
            assert!(now() < end, "no shell within {limit:?}; the console said:\n{}", self.tail());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Forgets the connection: the machine behind it is another now.
    pub fn hang_up(&self) {
        self.stream.take();
    }

    /// Runs a command; answers its status and what it printed.
    ///
    /// # Panics
    /// It has not ended within half a minute.
    pub fn run(&self, command: &str) -> (i32, String) {
        self.try_sh(command, PATIENCE)
            .unwrap_or_else(|| panic!("`{command}` did not end in the guest; its console said:\n{}", self.tail()))
    }

    /// Runs a command that must succeed; answers what it printed.
    pub fn sh(&self, command: &str) -> String {
        let (status, said) = self.run(command);
        assert_eq!(status, 0, "`{command}` in the guest: {said}");
        said
    }

    /// Runs a command in the background, its output in /run/NAME.out.
    pub fn start(&self, name: &str, command: &str) {
        self.sh(&format!("setsid sh -c {} >>/run/{name}.out 2>&1 </dev/null &\n:", quoted(command)));
    }

    /// What a command in the background has printed.
    pub fn output(&self, name: &str) -> String {
        self.run(&format!("cat /run/{name}.out")).1
    }

    /// Writes a file in the guest, and the directories it is in.
    pub fn write(&self, path: &str, text: &str) {
        self.sh(&format!("mkdir -p $(dirname {path}); printf %s {} >{path}", quoted(text)));
    }

    /// Whether a command becomes true within `limit`, in host time.
    pub fn becomes(&self, command: &str, limit: Duration) -> bool {
        until(limit, || self.run(command).0 == 0)
    }

    fn try_sh(&self, command: &str, limit: Duration) -> Option<(i32, String)> {
        let mut kept = self.stream.borrow_mut();
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => UnixStream::connect(&self.socket).ok()?,
        };
        self.count.set(self.count.get() + 1);
        let mark = format!("\u{1}{}:", self.count.get());
        // the shell must not read on in what the command reads
        let line = format!("{{ {command}\n}} </dev/null 2>&1; printf '\\1%s:%s\\n' {} $?\n", self.count.get());
        stream.write_all(line.as_bytes()).ok()?;
        let mut said: Vec<u8> = Vec::new();
        let end = now() + limit;
        let mut chunk = [0; 65536];
        loop {
            let rest = end.saturating_sub(now());
            if rest.is_zero() {
                return None;
            }
            stream.set_read_timeout(Some(rest)).ok()?;
            match stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(count) => said.extend(&chunk[..count]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
            let text = String::from_utf8_lossy(&said);
            if let Some((output, rest)) = text.split_once(&mark)
                && let Some(status) = rest.strip_suffix('\n')
            {
                let answer = (status.parse().ok()?, output.to_owned());
                *kept = Some(stream);
                return Some(answer);
            }
        }
    }

    /// Starts a small write on each of the file systems mounted at `mounts`; answers a number for [`Inside::waits_for`].
    fn probe(&self, mounts: &[&str]) -> u32 {
        self.count.set(self.count.get() + 1);
        let number = self.count.get();
        let probe = |(i, at): (usize, &&str)| {
            let done = format!("/run/probe-{number}-{i}");
            format!("setsid sh -c 'echo {number} >{at}/.probe && : >{done}' >/dev/null 2>&1 &\n")
        };
        let probes: String = mounts.iter().enumerate().map(probe).collect();
        self.sh(&format!("{probes}:"));
        number
    }

    /// Whether as many probes as `wanted` are through within `limit`; looked at from within, because a look from here
    /// costs more than a write there.
    fn waits_for(&self, number: u32, wanted: usize, limit: Duration) -> bool {
        let ticks = (limit.as_millis() / 20).max(1);
        let done = format!("set -- /run/probe-{number}-*; [ -e \"$1\" ] && [ $# -ge {wanted} ]");
        let wait = format!("n=0; until {done}; do n=$((n+1)); [ $n -lt {ticks} ] || break; usleep 20000; done; {done}");
        let (status, _) = self
            .try_sh(&wait, PATIENCE + limit)
            .unwrap_or_else(|| panic!("the guest's shell hangs; its console said:\n{}", self.tail()));
        status == 0
    }

    /// Whether a new small write on each of the file systems mounted at `mounts` ends within `limit`.
    pub fn writable_within(&self, mounts: &[&str], limit: Duration) -> bool {
        self.waits_for(self.probe(mounts), mounts.len(), limit)
    }

    /// Whether writers wait on both disks.
    pub fn is_frozen(&self) -> bool {
        !self.waits_for(self.probe(&DISKS), 1, STILL)
    }

    /// How long until both disks can be written to again; `None` if that takes longer than `limit`.
    pub fn thaws_within(&self, limit: Duration) -> Option<Duration> {
        let begun = now();
        self.writable_within(&DISKS, limit).then(|| now() - begun)
    }

    /// Writers on both disks, so that a snapshot cut at any moment finds a journal in use.
    pub fn write_all_the_time(&self) {
        let one = "i=$((i+1)); echo $i >/mnt/data/written; echo $i >/srv/written; sync";
        self.start("writer", &format!("i=0; while :; do {one}; done"));
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the console said last:\n{}", self.tail());
        }
    }
}

/// One word for a shell, whatever is in it.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
