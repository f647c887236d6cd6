//! A process that writes 4 KiB over and over and remembers how long each took. It is a process, not a thread, because
//! what is blocked on a frozen file system cannot be killed, and must not keep the bench from ending.
//!
//! ```text
//!   bench → writer   longest FROM TO\n     (CLOCK_MONOTONIC, ns)
//!   writer → bench   WAIT\n               (ns; once a write that began after TO has ended)
//!   bench → writer   forget\n
//!   writer → bench   ok\n
//! ```
//! The end of its stdin ends it.

use std::{
    cell::RefCell,
    fmt,
    fs::{self, File},
    io::{self, BufRead, BufReader, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Mutex,
    thread,
    time::Duration,
};

use holdstill::sys::clock;

use crate::Result;

/// What the bench calls itself with to become a writer.
pub const FLAG: &str = "--writer";
const BLOCK: usize = 4096;
const BLOCKS: u64 = 256;
/// Between two writes. Without a pause eight writers on two cores would measure the scheduler.
const PAUSE: Duration = Duration::from_micros(100);
/// How long an answer may take: longer than a reaper lets a freeze last.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// write(2) into the page cache
    Buffered,
    /// O_DSYNC: each write is on the device when it returns
    Dsync,
}

impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Style::Buffered => "buffered",
            Style::Dsync => "O_DSYNC",
        })
    }
}

/// The bench's side of a writer.
pub struct Writer {
    child: Child,
    pipes: RefCell<Option<(ChildStdin, BufReader<ChildStdout>)>>,
}

impl Writer {
    pub fn start(style: Style, target: &Path) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([FLAG, &style.to_string()])
            .arg(target.join("writer"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take()).map(|(to, from)| (to, BufReader::new(from)));
        let writer = Writer { child, pipes: RefCell::new(pipes) };
        writer.forget()?;
        Ok(writer)
    }

    /// The longest write of those under way at some instant between the two.
    pub fn longest(&self, from: Duration, to: Duration) -> Result<Duration> {
        let answer = self.ask(&format!("longest {} {}", from.as_nanos(), to.as_nanos()))?;
        Ok(Duration::from_nanos(answer.parse()?))
    }

    /// Frees the memory of what was written so far.
    pub fn forget(&self) -> Result<()> {
        self.ask("forget").map(drop)
    }

    fn ask(&self, what: &str) -> Result<String> {
        let mut pipes = self.pipes.borrow_mut();
        let (to, from) = pipes.as_mut().ok_or("the writer is gone")?;
        writeln!(to, "{what}")?;
        let mut answer = String::new();
        from.read_line(&mut answer)?;
        match answer.trim_end() {
            "" => Err("a writer ended early".into()),
            answer => Ok(answer.to_owned()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.pipes.take());
        if crate::guest::ended_within(&mut self.child, Duration::from_secs(10)).is_none() {
            eprintln!("warning: writer {} does not end", self.child.id());
        }
    }
}

/// One write, in CLOCK_MONOTONIC.
struct Write {
    began: Duration,
    ended: Duration,
}

/// The writer's side: writes until stdin ends.
pub fn run(style: &str, path: &Path) -> Result<()> {
    let dsync = style == Style::Dsync.to_string();
    fs::write(path, vec![0x5a; BLOCK * BLOCKS as usize])?;
    let file = File::options().write(true).custom_flags(if dsync { nix::libc::O_DSYNC } else { 0 }).open(path)?;
    file.sync_all()?;
    let writes: &Mutex<Vec<Write>> = Box::leak(Box::default());
    thread::spawn(move || {
        let block = [0xa5; BLOCK];
        for at in (0..BLOCKS).cycle() {
            let began = clock::monotonic();
            file.write_all_at(&block, at * BLOCK as u64).expect("the file system has room and is writable");
            let ended = clock::monotonic();
            writes.lock().expect("no holder panics").push(Write { began, ended });
            thread::sleep(PAUSE);
        }
    });
    for line in io::stdin().lock().lines() {
        let line = line?;
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["forget"] => {
                writes.lock().expect("no holder panics").clear();
                println!("ok");
            }
            ["longest", from, to] => {
                let (from, to) = (Duration::from_nanos(from.parse()?), Duration::from_nanos(to.parse()?));
                println!("{}", longest(writes, from, to)?.as_nanos());
            }
            _ => return Err(format!("not understood: {line}").into()),
        }
        io::stdout().flush()?;
    }
    Ok(())
}

fn longest(writes: &Mutex<Vec<Write>>, from: Duration, to: Duration) -> Result<Duration> {
    let asked = clock::monotonic();
    loop {
        {
            let writes = writes.lock().expect("no holder panics");
            if writes.last().is_some_and(|write| write.began > to) {
                let during = writes.iter().filter(|write| write.began <= to && write.ended >= from);
                return Ok(during.map(|write| write.ended - write.began).max().unwrap_or_default());
            }
        }
        if clock::monotonic() - asked > PATIENCE {
            return Err("a write does not return".into());
        }
        thread::sleep(Duration::from_millis(1));
    }
}
