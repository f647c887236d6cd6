//! A host on the guest-agent channel, when the channel is a unix socket.

use std::{
    io::{BufRead, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

use super::until;

/// An answer that takes longer never comes: holds of these tests take less.
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection to an agent.
pub struct Host {
    reader: BufReader<UnixStream>,
}

impl Host {
    pub fn connect(socket: &Path) -> Host {
        let mut found = None;
        until(Duration::from_secs(5), || {
            found = UnixStream::connect(socket).ok();
            found.is_some()
        });
        let stream = found.unwrap_or_else(|| panic!("nobody listens on {}", socket.display()));
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Host { reader: BufReader::new(stream) }
    }

    /// Sends bytes as they are.
    pub fn send(&self, bytes: &[u8]) {
        self.reader.get_ref().write_all(bytes).expect("the agent reads");
    }

    /// Sends the same again and again, reading nothing, until the agent takes no more for a second. How often it did.
    pub fn sends_until_nothing_is_taken(&self, bytes: &[u8]) -> usize {
        let mut stream = self.reader.get_ref();
        stream.set_write_timeout(Some(Duration::from_secs(1))).expect("a socket");
        let sent = (0..100_000).take_while(|_| stream.write_all(bytes).is_ok()).count();
        stream.set_write_timeout(None).expect("a socket");
        sent
    }

    /// The next line, without its newline.
    pub fn line(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line).expect("an answer in time");
        assert_eq!(line.pop(), Some(b'\n'), "the agent hung up");
        line
    }

    pub fn answer(&mut self) -> Value {
        let line = self.line();
        serde_json::from_slice(&line).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&line)))
    }

    /// One request, one answer: what stands behind `return`, or the whole error.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        self.send(request(command, arguments).as_bytes());
        let mut answer = self.answer();
        if answer.get("return").is_some() { answer["return"].take() } else { answer["error"].take() }
    }

    pub fn freeze(&mut self) -> Value {
        self.ask("guest-fsfreeze-freeze", Value::Null)
    }

    pub fn thaw(&mut self) -> Value {
        self.ask("guest-fsfreeze-thaw", Value::Null)
    }

    pub fn status(&mut self) -> Value {
        self.ask("guest-fsfreeze-status", Value::Null)
    }

    /// Nothing more comes for this long.
    pub fn is_silent_for(&mut self, limit: Duration) -> bool {
        self.reader.get_ref().set_read_timeout(Some(limit)).expect("a socket");
        let silent = self.reader.read(&mut [0]).is_err();
        self.reader.get_ref().set_read_timeout(Some(PATIENCE)).expect("a socket");
        silent
    }
}

/// One request with its newline; `Null`: no arguments.
pub fn request(command: &str, arguments: Value) -> String {
    let request = match arguments {
        Value::Null => json!({"execute": command}),
        arguments => json!({"execute": command, "arguments": arguments}),
    };
    format!("{request}\n")
}
