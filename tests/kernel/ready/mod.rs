//! Promise: the hooks and reporters that are shipped ready-made in `hooks/` do what their first lines say, with the real
//! servers where Debian has them. The scripts run as shipped, only the list at their top is another.

pub mod containers;
pub mod documented;
pub mod etcd;
pub mod mail;
pub mod redis;
pub mod sqlite;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use crate::lab::{
    Daemon, command, finish,
    process::{signal, tool},
};

/// Adds `hooks/NAME.sample` with these settings beside it; `edits` are what an administrator would change at its top.
pub fn add(daemon: &Daemon, name: &str, settings: &str, edits: &[(&str, &str)]) {
    put(&daemon.setup().hooks_dir(), name, edits);
    if !settings.is_empty() {
        fs::write(daemon.setup().hooks_dir().join(format!("{name}.toml")), settings).expect("memory");
    }
}

/// Puts `hooks/NAME.sample` into `dir`, under the last part of that name.
pub fn put(dir: &Path, name: &str, edits: &[(&str, &str)]) {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("hooks/{name}.sample"));
    let mut text = fs::read_to_string(&sample).expect("it is shipped");
    for (from, to) in edits {
        assert_eq!(text.matches(from).count(), 1, "{from:?} should stand once in {}", sample.display());
        text = text.replace(from, to);
    }
    fs::create_dir_all(dir).expect("memory");
    let script = dir.join(Path::new(name).file_name().expect("it has one"));
    fs::write(&script, text).expect("memory");
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).expect("memory");
}

/// A server that a fact started; ended when dropped.
pub struct Server(Child);

impl Server {
    pub fn start(command: &mut Command) -> Server {
        Server(command.spawn().unwrap_or_else(|e| panic!("failed to start {command:?}: {e}")))
    }

    pub fn kill(&mut self) {
        signal(self.0.id().cast_signed(), nix::sys::signal::Signal::SIGKILL);
        assert!(finish(&mut self.0, Duration::from_secs(10)).is_some(), "it cannot be killed");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        signal(self.0.id().cast_signed(), nix::sys::signal::Signal::SIGKILL);
        let _ = finish(&mut self.0, Duration::from_secs(10));
    }
}

/// Whether a program is installed.
pub fn has(program: &str) -> bool {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|dir| Path::new(dir).join(program).exists())
}

/// What a program prints.
pub fn said(words: &[&str]) -> String {
    tool(command(words[0]).args(&words[1..])).trim().to_owned()
}

/// What the hook printed in the phase the report knows of.
pub fn output(report: &serde_json::Value, hook: &str) -> String {
    let step = crate::lab::daemon::step(report, &format!("hook:{hook}"));
    step["hook"]["output_tail"].as_str().unwrap_or_default().to_owned()
}
