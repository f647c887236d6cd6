//! The stock agent beside ours, where a test or a bench compares them.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use serde_json::{Value, json};

use super::{Lab, command, finish, process::signal, until};

/// The real qemu-ga, asked where the hypervisor's end of its channel would be. In a world of the lab nothing but loop devices
/// can be frozen, so it may be asked to freeze all there is.
pub struct QemuGa {
    child: Child,
    stream: BufReader<UnixStream>,
}

impl QemuGa {
    pub fn start(lab: &Lab, hook: Option<&Path>) -> QemuGa {
        if Command::new("qemu-ga").arg("--version").output().is_err() {
            lab.skip("qemu-ga is not installed (qemu-guest-agent)");
        }
        super::world::guard().expect("everything mounted is the lab's");
        let run = lab.memory_dir("qemu-ga");
        let socket = run.join("socket");
        let mut command = command("qemu-ga");
        command.args(["--method", "unix-listen", "--path"]).arg(&socket).arg("--statedir").arg(&run);
        command.args(hook.map(|hook| format!("-F{}", hook.display())));
        let child = command.spawn().expect("it is a program");
        let mut stream = None;
        until(Duration::from_secs(10), || {
            stream = UnixStream::connect(&socket).ok();
            stream.is_some()
        });
        let stream = stream.expect("qemu-ga did not come up");
        stream.set_read_timeout(Some(Duration::from_secs(25))).expect("a socket");
        QemuGa { child, stream: BufReader::new(stream) }
    }

    pub fn ask(&mut self, command: &str) -> Value {
        writeln!(self.stream.get_mut(), "{}", json!({"execute": command})).expect("it listens");
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("it answers");
        serde_json::from_str(&line).expect("one JSON object a line")
    }

    pub fn kill(&mut self) {
        signal(self.child.id().cast_signed(), nix::sys::signal::Signal::SIGKILL);
        finish(&mut self.child, Duration::from_secs(5));
    }
}

impl Drop for QemuGa {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.kill();
        }
    }
}
