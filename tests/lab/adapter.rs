//! The other agent's side of an adapter: `hooks install-adapter` puts it into a root of its own, and what it installed is called
//! as that agent calls it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::{Daemon, Lab, daemon::BINARY, finish};

/// Longer than any agent of these facts has to wait.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// What was installed, below a directory that stands for the root of the machine.
pub struct Installed {
    root: PathBuf,
}

impl Lab {
    /// Installs the adapter `name`, and lets it ask `daemon` instead of the machine's.
    pub fn adapter(&self, daemon: &Daemon, name: &str) -> Installed {
        let root = self.memory_dir("root");
        let at = root.to_str().expect("ASCII");
        let answer = self.holdstill(&["hooks", "install-adapter", name, "--root", at, "--json"]);
        let installed: Vec<PathBuf> = match answer.exits(0).json["installed"].as_array() {
            Some(paths) => paths.iter().filter_map(|path| path.as_str()).map(PathBuf::from).collect(),
            // what is not for this machine: its last line is what another runs here
            None => {
                let document: serde_json::Value =
                    serde_json::from_str(answer.json["document"].as_str().expect("a document")).expect("JSON");
                let lines = document["mainSteps"][0]["inputs"]["runCommand"].as_array().expect("lines").iter();
                let lines: Vec<&str> = lines.filter_map(|line| line.as_str()).collect();
                let script = lines.join("\n").replace("{{ command }}", "$1").replace("{{ executionId }}", "$2");
                // quoted where the agent puts them in
                let script = script.replace("'$1'", "\"$1\"").replace("'$2'", "\"$2\"");
                fs::write(root.join("script"), script.replace("/usr/bin/holdstill", BINARY)).expect("memory");
                vec![root.join("script")]
            }
        };
        let ask = format!(" --socket {} adapter ", daemon.socket().display());
        for path in installed {
            edit(&path, " adapter ", &ask);
        }
        Installed { root }
    }
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).expect("it was installed").replace(from, to);
    fs::write(path, text).expect("memory");
}

impl Installed {
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// As an administrator would.
    pub fn edit(&self, path: &str, from: &str, to: &str) {
        edit(&self.path(path), from, to);
    }

    /// Executes it, as most agents do. Answers the exit status.
    pub fn call(&self, path: &str, args: &[&str]) -> Option<i32> {
        ended(self.start(path, args))
    }

    pub fn start(&self, path: &str, args: &[&str]) -> Child {
        begin(Command::new(self.path(path)).args(args))
    }

    /// Gives it to a shell, as some do.
    pub fn shell(&self, path: &str, args: &[&str]) -> Option<i32> {
        ended(begin(Command::new("/bin/sh").arg(self.path(path)).args(args)))
    }
}

/// Nothing of ours in its environment, and pipes that nobody reads.
fn begin(command: &mut Command) -> Child {
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap_or_else(|e| panic!("failed to start {command:?}: {e}"))
}

pub fn ended(mut child: Child) -> Option<i32> {
    let status = finish(&mut child, CALL_LIMIT);
    status.unwrap_or_else(|| panic!("it had not ended after {CALL_LIMIT:?}")).code()
}
