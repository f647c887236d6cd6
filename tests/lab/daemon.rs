//! A real daemon over real file systems, and the command line that asks it.

use std::{
    cell::{Cell, RefCell},
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    Fs, Lab, finish, now,
    process::{self, Process, command},
    until,
};

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_holdstill");
/// A verb that takes longer has hung: holds of these tests end well before.
const VERB_LIMIT: Duration = Duration::from_secs(60);

/// How a daemon will be started.
#[derive(Clone)]
pub struct Setup<'lab> {
    lab: &'lab Lab,
    binary: PathBuf,
    config: toml::Table,
    run: PathBuf,
    environment: Vec<(String, String)>,
    /// what runs the program somewhere else, e.g. in a private root
    wrapper: Vec<String>,
}

impl Lab {
    /// A daemon that may hold exactly these file systems: `include` is never empty.
    pub fn daemon(&self, over: &[&Fs]) -> Setup<'_> {
        let mounts: Vec<&Path> = over.iter().map(|fs| fs.mount.as_path()).collect();
        self.daemon_at(&mounts)
    }

    pub fn daemon_at(&self, mounts: &[&Path]) -> Setup<'_> {
        assert!(!mounts.is_empty(), "an empty include would mean every file system");
        let run = self.memory_dir("daemon");
        let text = |path: &Path| path.display().to_string();
        let include: Vec<String> = mounts.iter().map(|m| text(m)).collect();
        let empty = Setup {
            lab: self,
            binary: BINARY.into(),
            config: toml::Table::new(),
            run,
            environment: Vec::new(),
            wrapper: Vec::new(),
        };
        let (run, state) = (text(&empty.run.join("run")), text(&empty.run.join("state")));
        let (socket, hooks) = (text(&empty.run.join("run/holdstill.sock")), text(&empty.run.join("hooks.d")));
        empty
            .set("filesystems.include", include)
            .set("paths.run", run)
            .set("paths.state", state)
            .set("listen.unix", socket)
            // a machine that runs tests may be a virtual one itself, whose channel is not ours to take
            .set("listen.guest_agent", "off")
            // facts hold in quick succession; the one about the interval sets its own
            .set("hold.interval", "0s")
            .set("hooks.dir", hooks)
            .set("databases.discover", false)
    }

    /// Runs a verb that needs no daemon.
    pub fn holdstill(&self, args: &[&str]) -> Answer {
        Running::start(self, Command::new(BINARY).args(args)).finish()
    }
}

impl<'lab> Setup<'lab> {
    /// Sets one key, e.g. `set("hold.max", "3s")`.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        let (section, key) = key.split_once('.').expect("section.key");
        let section = self.config.entry(section).or_insert_with(|| toml::Table::new().into());
        section.as_table_mut().expect("a section").insert(key.to_owned(), value.into());
        self
    }

    /// Adds one `[[database]]`.
    #[must_use]
    pub fn database(mut self, entry: toml::Table) -> Self {
        let list = self.config.entry("database").or_insert_with(|| toml::Value::Array(Vec::new()));
        list.as_array_mut().expect("a list").push(entry.into());
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Another program than the one cargo built for the tests.
    #[must_use]
    pub fn binary(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.binary);
        self
    }

    /// Runs daemon and verbs inside a private root, from a copy of the program that lies on that root.
    #[must_use]
    pub fn inside(mut self, root: &super::private_root::PrivateRoot) -> Self {
        self.wrapper = root.wrapper();
        self.binary(Path::new(super::private_root::PROGRAM))
    }

    /// The program, wherever it has to run.
    fn program(&self) -> Command {
        let mut words = self.wrapper.iter().map(String::as_str).chain(self.binary.to_str());
        let mut command = command(words.next().expect("at least the program"));
        command.args(words);
        command
    }

    /// Adds a hook, before or after the daemon started.
    pub fn hook(&self, name: &str, script: &str) {
        Self::script(&self.hooks_dir(), name, script);
    }

    /// Adds a reporter, before or after the daemon started.
    pub fn reporter(&self, name: &str, script: &str) {
        Self::script(&self.reports_dir(), name, script);
    }

    /// Adds a script for restored machines, before the daemon started.
    pub fn restored(&self, name: &str, script: &str) {
        Self::script(&self.run.join("restored.d"), name, script);
    }

    fn script(dir: &Path, name: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.join(name);
        fs::create_dir_all(dir).expect("memory");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("memory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("memory");
    }

    pub fn hooks_dir(&self) -> PathBuf {
        self.run.join("hooks.d")
    }

    pub fn reports_dir(&self) -> PathBuf {
        self.run.join("report.d")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.run.join("run")
    }

    /// The configuration as it would be written; for tests of what is refused, edit it and use [`Setup::serve`].
    pub fn config_text(&self) -> String {
        toml::to_string(&self.config).expect("a table of plain values")
    }

    pub fn config_path(&self) -> PathBuf {
        self.run.join("holdstill.toml")
    }

    fn command(&self) -> Command {
        fs::write(self.config_path(), self.config_text()).expect("memory");
        let mut command = self.program();
        command.arg("serve").arg("--config").arg(self.config_path());
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Runs `serve` to its end: for daemons that must not come up.
    pub fn serve(&self) -> Answer {
        super::world::guard().expect("everything mounted is the lab's");
        Running::start(self.lab, &mut self.command()).finish_within(Duration::from_secs(10))
    }

    /// Starts it and waits until it answers.
    pub fn start(self) -> Daemon<'lab> {
        super::world::guard().expect("everything mounted is the lab's");
        let log = self.run.join("log");
        let file = fs::OpenOptions::new().append(true).create(true).open(&log).expect("memory");
        let mut command = self.command();
        command.stdout(file.try_clone().expect("a descriptor")).stderr(file);
        let child = command.spawn().unwrap_or_else(|e| panic!("failed to start {}: {e}", self.binary.display()));
        let daemon =
            Daemon { setup: self, child: RefCell::new(child), killed: Cell::new(false), forsaken: Cell::new(false) };
        let socket = daemon.socket();
        let up = until(Duration::from_secs(10), || {
            UnixStream::connect(&socket).is_ok() || daemon.child.borrow_mut().try_wait().is_ok_and(|s| s.is_some())
        });
        assert!(up && UnixStream::connect(&socket).is_ok(), "the daemon did not come up:\n{}", daemon.log());
        daemon
    }
}

/// A running daemon; stopped when dropped, and everything of it must be gone then.
pub struct Daemon<'lab> {
    setup: Setup<'lab>,
    child: RefCell<Child>,
    /// the fact killed it on purpose, or had it killed
    killed: Cell<bool>,
    /// others clean up after it
    forsaken: Cell<bool>,
}

impl<'lab> Daemon<'lab> {
    pub fn setup(&self) -> &Setup<'lab> {
        &self.setup
    }

    pub fn socket(&self) -> PathBuf {
        self.setup.run_dir().join("holdstill.sock")
    }

    pub fn pid(&self) -> i32 {
        self.child.borrow().id().cast_signed()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.setup.run.join("log")).unwrap_or_default()
    }

    /// The warden: the daemon's direct child that executes the same program.
    pub fn warden(&self) -> i32 {
        let pid = self.pid();
        let child = || process::ours().into_iter().find(|p| p.parent == pid).map(|p| p.pid);
        assert!(until(Duration::from_secs(5), || child().is_some()), "the daemon has no warden");
        child().expect("it was there a moment ago")
    }

    /// The warden's children: guardians and sentinels.
    fn wards(&self) -> Vec<Process> {
        let warden = self.warden();
        process::ours().into_iter().filter(|p| p.parent == warden).collect()
    }

    /// One guardian and one sentinel, while held. They are told apart by their names if they have names, else by what
    /// they do: a sentinel is blocked in a write (state D), a guardian waits to be asked.
    pub fn guardian(&self) -> Option<i32> {
        self.ward("guard", 'S')
    }

    pub fn sentinel(&self) -> Option<i32> {
        self.ward("senti", 'D')
    }

    fn ward(&self, name: &str, state: char) -> Option<i32> {
        let wards = self.wards();
        let by_name = |p: &&Process| p.name.contains(name) || p.command.contains(name);
        wards.iter().find(by_name).or_else(|| wards.iter().find(|p| p.state == state)).map(|p| p.pid)
    }

    /// Runs a verb with `--json`; waits for its end.
    pub fn cli(&self, args: &[&str]) -> Answer {
        self.start_cli(args).finish()
    }

    /// Starts a verb with `--json`.
    pub fn start_cli(&self, args: &[&str]) -> Running {
        let mut command = self.setup.program();
        command.arg("--socket").arg(self.socket()).arg("--json").args(args);
        Running::start(self.setup.lab, &mut command)
    }

    /// `freeze` with `args`, expected to hold; answers the report.
    pub fn freeze(&self, args: &[&str]) -> Value {
        let answer = self.cli(&[&["freeze"], args].concat());
        answer.exits(0);
        answer.report()
    }

    /// `thaw` of whatever is held or was held last; answers the report. Broken (exit 3) is an answer too.
    pub fn thaw(&self) -> Value {
        let answer = self.cli(&["thaw"]);
        assert!(matches!(answer.code, Some(0 | 3)), "thaw failed: {answer:?}");
        answer.report()
    }

    /// "idle", "held" …
    pub fn phase(&self) -> String {
        let answer = self.cli(&["status"]);
        answer.json["phase"].as_str().unwrap_or_default().to_owned()
    }

    pub fn wait_for_phase(&self, phase: &str, limit: Duration) {
        let mut last = String::new();
        let reached = until(limit, || {
            last = self.phase();
            last == phase
        });
        assert!(reached, "the phase is {last:?}, not {phase:?}, after {limit:?}");
    }

    /// SIGKILL; from now on its absence is no trouble.
    pub fn kill(&self) {
        self.killed.set(true);
        process::signal(self.pid(), Signal::SIGKILL);
    }

    /// SIGSTOP. Whoever finds it silent may end it: from now on that is no trouble.
    pub fn stop(&self) {
        self.killed.set(true);
        process::signal(self.pid(), Signal::SIGSTOP);
    }

    /// SIGCONT after [`Daemon::stop`]; a daemon that was ended meanwhile is started again.
    pub fn go_on(self) -> Daemon<'lab> {
        process::signal(self.pid(), Signal::SIGCONT);
        let ended = || self.child.borrow_mut().try_wait().is_ok_and(|s| s.is_some());
        if until(Duration::from_secs(1), ended) { self.again() } else { self }
    }

    /// Waits for an end that the fact brought about; answers the exit code.
    pub fn wait_end(&self, limit: Duration) -> Option<i32> {
        self.killed.set(true);
        let status = finish(&mut self.child.borrow_mut(), limit);
        assert!(status.is_some(), "the daemon had not ended after {limit:?}:\n{}", self.log());
        status.and_then(|s| s.code())
    }

    /// Gives up a daemon that was killed with all its processes, without waiting for what only a thaw can end.
    pub fn forsake(self) -> Setup<'lab> {
        self.forsaken.set(true);
        self.setup.clone()
    }

    /// A daemon with the same configuration, after this one has been killed or ended.
    pub fn again(self) -> Daemon<'lab> {
        let setup = self.setup.clone();
        drop(self);
        setup.start()
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let lab = self.setup.lab;
        if std::thread::panicking() {
            eprintln!("---- the daemon's log ----\n{}----", self.log());
        }
        if self.forsaken.get() {
            return;
        }
        let mut child = self.child.borrow_mut();
        if let Ok(Some(status)) = child.try_wait() {
            if !self.killed.get() {
                lab.trouble(format!("the daemon ended by itself: {status}"));
            }
        } else {
            process::signal(child.id().cast_signed(), Signal::SIGCONT);
            process::signal(child.id().cast_signed(), Signal::SIGTERM);
            if finish(&mut child, Duration::from_secs(8)).is_none() {
                lab.trouble("the daemon did not end within 8 s after SIGTERM");
            }
        }
        let gone = until(Duration::from_secs(4), || process::ours().is_empty());
        if !gone {
            lab.trouble(format!("processes of ours outlived the daemon: {:?}", process::ours()));
            for process in process::ours() {
                process::signal(process.pid, Signal::SIGKILL);
            }
        }
    }
}

/// A verb under way.
pub struct Running {
    child: Child,
    dir: PathBuf,
    shown: String,
    begun: Duration,
}

/// What a verb said.
#[derive(Debug)]
pub struct Answer {
    shown: String,
    pub code: Option<i32>,
    /// null if stdout is not one JSON document
    pub json: Value,
    pub out: String,
    pub err: String,
    pub took: Duration,
}

impl Running {
    pub fn start(lab: &Lab, command: &mut Command) -> Running {
        let dir = lab.memory_dir("verb");
        let file = |name| fs::File::create(dir.join(name)).expect("memory");
        command.stdin(std::process::Stdio::null()).stdout(file("out")).stderr(file("err"));
        let shown = format!("{command:?}");
        let begun = now();
        let child = command.spawn().unwrap_or_else(|e| panic!("failed to start {shown}: {e}"));
        Running { child, dir, shown, begun }
    }

    pub fn finish(self) -> Answer {
        self.finish_within(VERB_LIMIT)
    }

    /// # Panics
    /// It has not ended after `limit`.
    pub fn finish_within(mut self, limit: Duration) -> Answer {
        let status = finish(&mut self.child, limit);
        let read = |name| String::from_utf8_lossy(&fs::read(self.dir.join(name)).expect("memory")).into_owned();
        let (out, err) = (read("out"), read("err"));
        assert!(status.is_some(), "{} had not ended after {limit:?}\nstdout: {out}\nstderr: {err}", self.shown);
        Answer {
            code: status.and_then(|s| s.code()),
            json: serde_json::from_str(&out).unwrap_or(Value::Null),
            out,
            err,
            took: now() - self.begun,
            shown: self.shown,
        }
    }

    /// Kills the client; it must not be able to mind.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        assert!(finish(&mut self.child, Duration::from_secs(5)).is_some(), "{} cannot be killed", self.shown);
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|s| s.is_some())
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }
}

impl Answer {
    /// Fails with everything that was said unless it ended with `code`.
    pub fn exits(&self, code: i32) -> &Answer {
        assert_eq!(self.code, Some(code), "{} said\n{}\n{}", self.shown, self.out, self.err);
        self
    }

    /// The report inside the answer, whichever verb it is of.
    pub fn report(&self) -> Value {
        let report = &self.json["report"];
        assert!(report.is_object(), "{} has no report: {}\n{}", self.shown, self.out, self.err);
        report.clone()
    }

    /// The error's reason, e.g. "HOLD_IN_PROGRESS".
    pub fn reason(&self) -> &str {
        self.json["error"]["reason"].as_str().unwrap_or_default()
    }

    /// What it said for people and machines, with `word` in it somewhere.
    pub fn says(&self, word: &str) -> &Answer {
        let said = format!("{}\n{}", self.out, self.err).to_lowercase();
        assert!(
            said.contains(&word.to_lowercase()),
            "{} does not say {word:?}:\n{}\n{}",
            self.shown,
            self.out,
            self.err
        );
        self
    }
}

/// The step `name` of a report.
pub fn step<'a>(report: &'a Value, name: &str) -> &'a Value {
    let steps = report["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    steps.iter().find(|s| s["name"] == name).unwrap_or_else(|| panic!("no step {name} in {report:#}"))
}
