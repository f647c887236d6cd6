//! What we do not answer ourselves goes to the stock qemu-ga, if one is installed: hosts and their administrators lose
//! nothing by our owning its port. Used by the agent, one request at a time; never while held.
//!
//! ```text
//!   off, or none installed          a request                     its end, or silence
//!          nothing ◀──────── idle ───────────▶ running: a child ──────────────────────▶ idle
//!                                              RUN/relay/socket      again at the next need, at most once a second
//! ```
//!
//! We run nothing that a host names. Executing commands, opening files, setting passwords remain that program's business and
//! its administrator's; it gets the host's line to the letter, and what `policy` forbids never comes this far.
//!
//! It is started at the first need and then kept, because the files a host has opened through it and the results of what it
//! executed live in its memory (3 MiB). Besides the warden and hooks it is the daemon's only child. It has a configuration
//! of its own: the administrator's could make it a daemon, or give it our port, and it must never freeze anything. It does
//! not outlive the daemon (`sys::kept`); what a host executed through it does, as it would outlive qemu-ga.

use std::{
    ffi::OsString,
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::UnixStream,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::policy::Policy;
use crate::sys::kept::Kept;

mod exchange;
mod start;
#[cfg(test)]
mod tests;

use exchange::{Broken, Done, Fences, Handed, exchange};
use start::{Program, configuration, environment, is_silent, join, prepare};

/// How long one command may take: guest-fstrim on a large disk takes minutes.
const PATIENCE: Duration = Duration::from_secs(600);

/// How long it may take to start and open its socket, or to say what it can do.
const START: Duration = Duration::from_secs(5);

/// The least time between two starts.
const AGAIN: Duration = Duration::from_secs(1);

const LOST: &str =
    "the files and results it kept for hosts are lost; it is started again when needed, at most once a second";

/// A command the stock agent says it has.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Command {
    pub name: String,
    pub enabled: bool,
    /// whether success is answered; very old ones do not say
    #[serde(default = "yes")]
    pub success_response: bool,
}

fn yes() -> bool {
    true
}

/// Why a request could not be passed on; completes "failed to …".
#[derive(Debug, thiserror::Error)]
pub enum Why {
    #[error("find qemu-ga, which would answer this: it is not installed")]
    NotInstalled,
    #[error("start {}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("get qemu-ga to listen within {} s", START.as_secs())]
    Deaf,
    #[error("get an answer from qemu-ga: it ended")]
    Ended,
    #[error("get an answer from qemu-ga within {} minutes; it was ended", PATIENCE.as_secs() / 60)]
    Silent,
    #[error("get an answer from qemu-ga: it went on without one")]
    Unanswered,
    #[error("hand on the answer of qemu-ga")]
    Sink(#[source] io::Error),
}

/// A request that was not answered, or not to the end.
#[derive(Debug)]
pub struct Failed {
    pub why: Why,
    /// Bytes of an answer the host has got. If any: they were ended with a newline so that its parser can recover, it has had
    /// its one line, and it is to be told nothing more.
    pub sent: u64,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.why)?;
        match self.sent {
            0 => Ok(()),
            sent => write!(f, " after {sent} bytes, which the host has got"),
        }
    }
}

impl std::error::Error for Failed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.why.source()
    }
}

impl Handed {
    fn bytes(self) -> u64 {
        match self {
            Handed::Part(bytes) => bytes,
            Handed::Nothing | Handed::Whole => 0,
        }
    }
}

impl From<Why> for Failed {
    fn from(why: Why) -> Failed {
        Failed { why, sent: 0 }
    }
}

/// The way to the stock agent. Dropping it ends that agent.
#[derive(Debug)]
pub struct Relay {
    program: Program,
    /// `RUN/relay`, on tmpfs
    directory: PathBuf,
    configuration: String,
    running: Option<Running>,
    started: Option<Instant>,
    fences: Fences,
}

#[derive(Debug)]
struct Running {
    child: Kept,
    /// in step with it: nothing is on the way. `None`: to be connected
    stream: Option<UnixStream>,
    commands: Option<Vec<Command>>,
}

impl Relay {
    /// Nothing is started, nothing is written. `policy` goes into the stock agent's own configuration, so that what it says
    /// of itself is true.
    pub fn new(run_dir: &Path, policy: &Policy) -> Relay {
        Relay::with(Program::Installed, run_dir, policy)
    }

    /// One that has no commands and passes nothing on.
    pub fn off() -> Relay {
        Relay::with(Program::None, Path::new(""), &Policy::default())
    }

    /// As [`Relay::new`], with another program, or with arguments before its own.
    pub fn with_program(run_dir: &Path, policy: &Policy, path: PathBuf, args: Vec<OsString>) -> Relay {
        Relay::with(Program::Given { path, args }, run_dir, policy)
    }

    fn with(program: Program, run_dir: &Path, policy: &Policy) -> Relay {
        Relay {
            program,
            directory: run_dir.join("relay"),
            configuration: configuration(policy),
            running: None,
            started: None,
            fences: Fences::new(std::process::id()),
        }
    }

    /// What it can do, by its own account; asked once for each time it is started. Empty when there is none, or it does not
    /// say so within 5 s.
    pub async fn commands(&mut self) -> &[Command] {
        let known = self.running().is_some_and(|running| running.commands.is_some());
        if !known {
            match timeout(START, self.ask_commands()).await {
                Ok(Ok(commands)) => {
                    if let Some(running) = &mut self.running {
                        running.commands = Some(commands);
                    }
                }
                Ok(Err(Failed { why: Why::NotInstalled, .. })) => {}
                Ok(Err(error)) => tracing::warn!("failed to {}", told(&error)),
                Err(_) => tracing::warn!("failed to learn from qemu-ga within {} s what it can do", START.as_secs()),
            }
        }
        self.known()
    }

    /// What it said when it was last asked, without asking or starting it.
    pub fn known(&self) -> &[Command] {
        self.running.as_ref().and_then(|running| running.commands.as_deref()).unwrap_or_default()
    }

    async fn ask_commands(&mut self) -> Result<Vec<Command>, Failed> {
        #[derive(Deserialize)]
        struct Reply {
            #[serde(rename = "return")]
            info: Info,
        }
        #[derive(Deserialize)]
        struct Info {
            supported_commands: Vec<Command>,
        }
        let mut reply = Vec::new();
        self.pass(b"{\"execute\": \"guest-info\"}\n", true, &mut reply).await?;
        let reply: Result<Reply, _> = serde_json::from_slice(&reply);
        Ok(reply.map_err(|_| Why::Unanswered)?.info.supported_commands)
    }

    /// Hands one request over, to the letter, and its one reply line to `sink` as it arrives. `line` is a single JSON object.
    /// `success_response`: whether success is answered at all (as [`Command`] says); if not, nothing may come, and that is a
    /// success too. Takes at most 10 minutes, then the agent is ended, and as long as `sink` takes.
    ///
    /// A caller that stops waiting leaves nothing behind: the next request has a connection of its own.
    ///
    /// # Errors
    /// See [`Failed`]: whether the host has already got a part of the answer decides what it may still be told.
    pub async fn pass<W: AsyncWrite + Unpin>(
        &mut self,
        line: &[u8],
        success_response: bool,
        sink: &mut W,
    ) -> Result<(), Failed> {
        let deadline = Instant::now() + PATIENCE;
        let mut stream = self.connection(deadline).await?;
        let fence = self.fences.next();
        let mut handed = Handed::Nothing;
        let patience = deadline.saturating_duration_since(Instant::now());
        let why = match exchange(&mut stream, line, fence, sink, &mut handed, patience).await {
            Ok(done) => {
                if let Some(running) = &mut self.running {
                    running.stream = Some(stream);
                }
                return match done {
                    Done::Silence if success_response => Err(Why::Unanswered.into()),
                    Done::Silence | Done::Answered => Ok(()),
                };
            }
            // its rest comes to nobody: the connection is dropped
            Err(Broken::Sink(error)) => return Err(Failed { why: Why::Sink(error), sent: handed.bytes() }),
            Err(Broken::Closed) => Why::Ended,
            Err(Broken::Silent) => Why::Silent,
        };
        drop(stream);
        if let Handed::Part(_) = handed {
            let _ = sink.write_all(b"\n").await;
            let _ = sink.flush().await;
        }
        tracing::warn!("failed to {why}; {LOST}");
        self.end().await;
        match handed {
            // it came to its end after all it was asked for
            Handed::Whole => Ok(()),
            Handed::Nothing | Handed::Part(_) => Err(Failed { why, sent: handed.bytes() }),
        }
    }

    /// Ends it, if it runs: at the end of the daemon. It is started again if it is needed again.
    pub async fn end(&mut self) {
        if let Some(running) = self.running.take() {
            running.child.end().await;
        }
    }

    /// The one that runs, if it still does.
    fn running(&mut self) -> Option<&mut Running> {
        if self.running.as_ref().is_some_and(|running| !running.child.is_alive()) {
            tracing::warn!("qemu-ga ended; {LOST}");
            self.running = None;
        }
        self.running.as_mut()
    }

    /// A connection with nothing on the way.
    async fn connection(&mut self, deadline: Instant) -> Result<UnixStream, Failed> {
        if self.running().is_none() {
            self.start().await?;
        }
        let running = self.running.as_mut().expect("started, or the start had failed");
        if let Some(stream) = running.stream.take()
            && is_silent(&stream)
        {
            return Ok(stream);
        }
        // It may still be at work on what a caller stopped waiting for.
        let why = match timeout_at(deadline, join(&self.directory, &running.child, self.fences.next())).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(why)) => why,
            Err(_) => Why::Silent,
        };
        tracing::warn!("failed to {why}; {LOST}");
        self.end().await;
        Err(why.into())
    }

    async fn start(&mut self) -> Result<(), Why> {
        if matches!(self.program, Program::None) {
            return Err(Why::NotInstalled);
        }
        if let Some(started) = self.started {
            sleep_until(started + AGAIN).await;
        }
        let (program, directory, configuration) =
            (self.program.clone(), self.directory.clone(), self.configuration.clone());
        let prepared = tokio::task::spawn_blocking(move || prepare(program, &directory, &configuration));
        let (path, args) = match timeout(START, prepared).await {
            Ok(Ok(prepared)) => prepared?,
            Ok(Err(_)) | Err(_) => return Err(Why::Deaf),
        };
        self.started = Some(Instant::now());
        // On this thread, the daemon's own: the child dies with the thread that starts it.
        let child = Kept::start(&path, &args, &environment(&self.directory))
            .map_err(|source| Why::Start { program: path.clone(), source })?;
        let why = match timeout(START, join(&self.directory, &child, self.fences.next())).await {
            Ok(Ok(stream)) => {
                tracing::info!(pid = child.pid(), program = %path.display(), "started for what we do not answer ourselves");
                self.running = Some(Running { child, stream: Some(stream), commands: None });
                return Ok(());
            }
            Ok(Err(why)) => why,
            Err(_) => Why::Deaf,
        };
        child.end().await;
        Err(why)
    }
}

/// The error and its cause.
fn told(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}
