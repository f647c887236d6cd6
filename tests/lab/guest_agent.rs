//! A host on the guest-agent channel, when the channel is a unix socket.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

use super::{now, until};

/// An answer that takes longer never comes: holds of these tests take less.
const PATIENCE: Duration = Duration::from_secs(20);

/// What no JSON contains: it makes an agent forget what it has half read, and stands before the answer of a delimited sync.
pub const RESET: u8 = 0xff;

/// One connection to an agent.
pub struct Host {
    reader: BufReader<UnixStream>,
    /// the beginning of a line whose end has not come yet
    partial: Vec<u8>,
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
        Host { reader: BufReader::new(stream), partial: Vec::new() }
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

    /// Whether the agent's side takes all of these bytes in time.
    pub fn takes_within(&self, bytes: &[u8], limit: Duration) -> bool {
        let mut stream = self.reader.get_ref();
        stream.set_write_timeout(Some(limit)).expect("a socket");
        let taken = stream.write_all(bytes).is_ok();
        stream.set_write_timeout(None).expect("a socket");
        taken
    }

    /// The first so many bytes of what comes next.
    pub fn first_bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes).expect("an answer in time");
        bytes
    }

    /// The next line, without its newline.
    pub fn line(&mut self) -> Vec<u8> {
        self.line_within(PATIENCE).expect("an answer in time")
    }

    /// The next line, without its newline, if it comes in time.
    pub fn line_within(&mut self, limit: Duration) -> Option<Vec<u8>> {
        let end = now() + limit;
        loop {
            let rest = end.saturating_sub(now()).max(Duration::from_millis(1));
            self.reader.get_ref().set_read_timeout(Some(rest)).expect("a socket");
            let read = self.reader.read_until(b'\n', &mut self.partial);
            if self.partial.last() == Some(&b'\n') {
                self.partial.pop();
                return Some(std::mem::take(&mut self.partial));
            }
            match read {
                Ok(_) => panic!("the agent hung up"),
                Err(e) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&e.kind()) && now() < end => {}
                Err(_) => return None,
            }
        }
    }

    pub fn answer(&mut self) -> Value {
        self.answer_within(PATIENCE).expect("an answer in time")
    }

    /// The next answer, if it comes in time; the byte before that of a delimited sync is left out.
    pub fn answer_within(&mut self, limit: Duration) -> Option<Value> {
        let line = self.line_within(limit)?;
        let text = line.strip_prefix(&[RESET]).unwrap_or(&line);
        Some(serde_json::from_slice(text).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&line))))
    }

    /// Resets the agent's parser and waits until it is in step with us, as a host does that knows nothing of it.
    pub fn syncs_within(&mut self, limit: Duration) -> bool {
        let id = now().as_nanos() as u64;
        self.send(&[RESET]);
        self.send(request("guest-sync-delimited", json!({"id": id})).as_bytes());
        let end = now() + limit;
        while let Some(line) = self.line_within(end.saturating_sub(now())) {
            // older answers, and what it says of the reset
            let ours = line.iter().rposition(|byte| *byte == RESET).map(|at| &line[at + 1..]);
            let answer: Option<Value> = ours.and_then(|text| serde_json::from_slice(text).ok());
            if answer.is_some_and(|answer| answer["return"] == json!(id)) {
                return true;
            }
        }
        false
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
