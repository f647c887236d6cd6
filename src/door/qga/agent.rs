//! One request, one answer: which of the commands is meant, may it be used now, and who answers it.

use std::{error::Error as _, io, path::PathBuf, time::Duration};

use serde::Serialize;
use serde_json::{Value, json, value::RawValue};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use super::{
    answers,
    freeze::Freezer,
    policy::{self, Policy},
    relay::{Command, Relay},
    reply::{self, Answer, Error},
    wire::{self, Arguments, Frame, REQUEST_MAX, RESET, Request},
};

/// What the stock agent says of a command it does not take now; hosts look for these words.
const FROZEN: &str = "the agent is in frozen state";
/// What reading the guest for an answer may take, at most.
const READ: Duration = Duration::from_secs(10);

/// Everything taken while frozen. The stock agent has the same list.
const WHILE_FROZEN: [&str; 6] =
    ["guest-ping", "guest-info", "guest-sync", "guest-sync-delimited", "guest-fsfreeze-status", "guest-fsfreeze-thaw"];

/// Everything answered here.
const NATIVE: [&str; 12] = [
    "guest-sync-delimited",
    "guest-sync",
    "guest-ping",
    "guest-info",
    "guest-fsfreeze-status",
    "guest-fsfreeze-freeze",
    "guest-fsfreeze-freeze-list",
    "guest-fsfreeze-thaw",
    "guest-get-fsinfo",
    "guest-get-osinfo",
    "guest-get-host-name",
    "guest-network-get-interfaces",
];

/// The agent behind the channel. One for all connections: a host that reconnects finds its hold as it was.
pub struct Agent {
    pub freezer: Freezer,
    /// the stock agent, for everything else
    pub relay: Relay,
    pub policy: Policy,
    /// where the guest is read
    pub root: PathBuf,
}

impl Agent {
    /// Answers one frame, whole, before the next is looked at.
    ///
    /// # Errors
    /// The other end is gone.
    pub async fn answer<W: AsyncWrite + Unpin + Send>(&mut self, frame: Frame, to: &mut W) -> io::Result<()> {
        let line = match frame {
            Frame::Request(line) => line,
            Frame::Torn => {
                return write(to, &Err(Error::generic("JSON parse error, request torn by a reset")), None).await;
            }
            Frame::TooLong => {
                let error = Error::generic(format!("JSON parse error, request longer than {REQUEST_MAX} bytes"));
                return write(to, &Err(error), None).await;
            }
        };
        let request = match wire::parse(&line) {
            Ok(request) => request,
            Err(malformed) => return write(to, &Err(malformed.error), malformed.id.as_deref()).await,
        };
        if !NATIVE.contains(&request.command.as_str()) {
            return self.relay(request, to).await;
        }
        let Request { command, arguments, id } = request;
        let delimited = command == "guest-sync-delimited";
        let answer = self.native(&command, arguments).await;
        if delimited && answer.is_ok() {
            to.write_all(&[RESET]).await?;
        }
        write(to, &answer, id.as_deref()).await
    }

    /// Whether the command may be used now, and if not, why.
    fn disabled(&self, command: &str) -> Option<Error> {
        if !self.policy.allows(command) {
            return Some(Error::disabled(command, policy::WHY));
        }
        (self.freezer.frozen() && !WHILE_FROZEN.contains(&command)).then(|| Error::disabled(command, FROZEN))
    }

    async fn native(&mut self, command: &str, mut arguments: Arguments) -> Answer {
        if let Some(error) = self.disabled(command) {
            return Err(error);
        }
        match command {
            "guest-sync" | "guest-sync-delimited" => {
                let id = arguments.integer("id")?;
                arguments.done()?;
                Ok(json!(id))
            }
            "guest-fsfreeze-freeze-list" => {
                let mountpoints = arguments.strings("mountpoints")?;
                arguments.done()?;
                self.freezer.freeze(mountpoints).await
            }
            without => {
                arguments.done()?;
                match without {
                    "guest-ping" => Ok(json!({})),
                    "guest-info" => Ok(self.info().await),
                    "guest-fsfreeze-status" => self.freezer.status(),
                    "guest-fsfreeze-freeze" => self.freezer.freeze(None).await,
                    "guest-fsfreeze-thaw" => self.freezer.thaw().await,
                    reading => self.read(reading).await,
                }
            }
        }
    }

    /// Reads the guest, off the thread that has everything else to do.
    async fn read(&self, command: &str) -> Answer {
        let Some(reader) = answers::native(command) else { return Err(unknown(command)) };
        let root = self.root.clone();
        match timeout(READ, tokio::task::spawn_blocking(move || reader(&root))).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::generic(format!("failed to answer {command}: its reader panicked"))),
            Err(_) => Err(Error::generic(format!("failed to answer {command} within {} s", READ.as_secs()))),
        }
    }

    /// What is answered here and what the relay answers, and whether it would now.
    async fn info(&mut self) -> Value {
        let entry = |name: &str, enabled: bool, success_response: bool| json!({"enabled": enabled, "name": name, "success-response": success_response});
        let mut commands: Vec<Value> =
            NATIVE.iter().map(|name| entry(name, self.disabled(name).is_none(), true)).collect();
        let closed = self.freezer.anyone_waits();
        // asking may start it, which reads its program from a disk
        let relayed = if closed { self.relay.known() } else { self.relay.commands().await }.to_vec();
        for Command { name, enabled, success_response } in relayed {
            if !NATIVE.contains(&name.as_str()) {
                let enabled = enabled && !closed && self.policy.allows(&name);
                commands.push(entry(&name, enabled, success_response));
            }
        }
        json!({"version": concat!(env!("CARGO_PKG_VERSION"), " (holdstill)"), "supported_commands": commands})
    }

    /// Hands it to the stock agent, which answers it or not.
    async fn relay<W: AsyncWrite + Unpin + Send>(&mut self, request: Request, to: &mut W) -> io::Result<()> {
        let Request { command, arguments, id } = request;
        let id = id.as_deref();
        if !self.policy.allows(&command) {
            return write(to, &Err(Error::disabled(&command, policy::WHY)), id).await;
        }
        // whoever holds the guest: what it runs could wait for a disk, and every later request behind it
        if self.freezer.anyone_waits() {
            return write(to, &Err(Error::disabled(&command, FROZEN)), id).await;
        }
        let known = self.relay.commands().await.iter().find(|known| known.name == command);
        let Some(success_response) = known.map(|known| known.success_response) else {
            return write(to, &Err(unknown(&command)), id).await;
        };
        let line = rewritten(&command, &arguments, id);
        match self.relay.pass(&line, success_response, to).await {
            Ok(()) => to.flush().await,
            Err(failed) => {
                let told = failed.source().map_or_else(|| failed.to_string(), |cause| format!("{failed}: {cause}"));
                tracing::warn!(%command, "failed to {told}");
                // a host that has had a part of its one line is told nothing more
                if failed.sent > 0 {
                    Ok(())
                } else {
                    write(to, &Err(Error::generic(format!("failed to {told}"))), id).await
                }
            }
        }
    }
}

/// The request as we understood it: nothing travels on that we did not read.
fn rewritten(command: &str, arguments: &Arguments, id: Option<&RawValue>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Line<'a> {
        execute: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        arguments: Option<&'a RawValue>,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a RawValue>,
    }
    let line = Line { execute: command, arguments: arguments.raw(), id };
    let mut line = serde_json::to_vec(&line).expect("its keys are strings");
    line.push(b'\n');
    line
}

fn unknown(command: &str) -> Error {
    // nobody calls a command by more; the text goes into hosts' logs
    Error::not_found(&command.chars().take(128).collect::<String>())
}

async fn write<W: AsyncWrite + Unpin>(to: &mut W, answer: &Answer, id: Option<&RawValue>) -> io::Result<()> {
    to.write_all(&reply::line(answer, id)).await?;
    to.flush().await
}
