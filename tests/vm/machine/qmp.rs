//! QEMU's own protocol: one JSON object per line, one answer per command, events in between.

use std::{
    io::{BufRead, BufReader, ErrorKind, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

use crate::lab::until;

/// A command of these tests that takes longer has hung; writing memory to a snapshot is the slowest.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    pub fn connect(socket: &Path) -> Qmp {
        let mut found = None;
        until(Duration::from_secs(20), || {
            found = UnixStream::connect(socket).ok();
            found.is_some()
        });
        let stream = found.unwrap_or_else(|| panic!("QEMU does not listen on {}", socket.display()));
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut qmp = Qmp { reader: BufReader::new(stream) };
        let greeting = qmp.line();
        assert!(greeting.get("QMP").is_some(), "{greeting}");
        qmp.run("qmp_capabilities", Value::Null);
        qmp
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => panic!("QEMU has ended"),
            Ok(_) => serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}")),
            Err(e) if e.kind() == ErrorKind::WouldBlock => panic!("QEMU does not answer within {PATIENCE:?}"),
            Err(e) => panic!("{e}"),
        }
    }

    /// What stands behind `return`.
    ///
    /// # Panics
    /// QEMU answers with an error.
    pub fn run(&mut self, command: &str, arguments: Value) -> Value {
        let request = match arguments {
            Value::Null => json!({"execute": command}),
            arguments => json!({"execute": command, "arguments": arguments}),
        };
        writeln!(self.reader.get_ref(), "{request}").expect("QEMU reads");
        loop {
            let mut answer = self.line();
            if answer.get("event").is_some() {
                continue;
            }
            assert!(answer.get("error").is_none(), "{command}: {}", answer["error"]);
            return answer["return"].take();
        }
    }

    /// The monitor for people, where QMP has nothing of the kind; answers with what it says.
    pub fn monitor(&mut self, line: &str) -> String {
        let said = self.run("human-monitor-command", json!({"command-line": line}));
        said.as_str().unwrap_or_default().trim().to_owned()
    }
}
