//! Hooks that tell a story, and what it must be:
//!
//! ```text
//!   it.hook("a").hook("b").fails_in("freeze");
//!   it.freeze().exits(1);
//!   it.expect("a freeze, b freeze, b thaw step_failed, a thaw step_failed");
//! ```
//!
//! Each line is noted in memory, by the hook itself, before it does anything else: `name phase`, and in `thaw` the reason
//! it was given. A hook tells on us, too, so that every story examines it:
//!
//! - `a FROZEN`: its thaw ran while a write to the held file system still had to wait
//! - `a OVERLAPS`: its thaw ran while an earlier phase of the same hook was still running

use std::{cell::RefCell, fs, os::unix::net::UnixStream, path::PathBuf, time::Duration};

use nix::sys::signal::Signal;

use super::script::Hook;
use crate::lab::{
    Daemon, Fs, Lab, Type,
    daemon::{Answer, Running, Setup},
    process::{ours, signal},
    until,
};

/// How long a story may take to come to its end, unless a hook has a limit to run into.
const SOON: Duration = Duration::from_secs(8);
/// More than any hook here takes that is not meant to run into it.
const LIMIT: &str = "3s";

/// A daemon over file systems, with hooks that note what they do.
pub struct Story<'lab> {
    pub lab: &'lab Lab,
    /// what it started with; only then [`Story::next_daemon`]
    setup: Setup<'lab>,
    daemon: Option<Daemon<'lab>>,
    /// where hooks note things; the log is `told` in it
    pub notes: PathBuf,
    hooks: RefCell<Vec<Hook>>,
    pub disks: Vec<Fs<'lab>>,
}

/// Over one file system.
pub fn story(lab: &Lab) -> Story<'_> {
    story_over(lab, vec![lab.fs(Type::Ext4)], |setup| setup)
}

/// Over `disks`, all of them held, and a daemon set up further by `set`.
pub fn story_over<'lab>(
    lab: &'lab Lab,
    disks: Vec<Fs<'lab>>,
    set: impl FnOnce(Setup<'lab>) -> Setup<'lab>,
) -> Story<'lab> {
    let setup = lab.daemon(&disks.iter().collect::<Vec<_>>()).set("hooks.timeout", LIMIT);
    let setup = set(setup);
    let daemon = setup.clone().start();
    let notes = lab.memory_dir("story");
    Story { lab, setup, daemon: Some(daemon), notes, hooks: RefCell::default(), disks }
}

impl<'lab> Story<'lab> {
    // --- who takes part ---

    /// One more hook, after those there are.
    pub fn hook(&self, name: &str) -> &Self {
        self.hooks.borrow_mut().push(Hook { name: name.to_owned(), ..Hook::default() });
        self.write()
    }

    /// The last hook does this, in a phase.
    pub fn does(&self, phase: &str, script: &str) -> &Self {
        self.last(|hook| hook.does.push((phase.to_owned(), script.to_owned())))
    }

    /// As [`Story::does`], and before it looks whether the guest moves.
    pub fn does_first(&self, phase: &str, script: &str) -> &Self {
        self.last(|hook| hook.first.push((phase.to_owned(), script.to_owned())))
    }

    pub fn fails_in(&self, phase: &str) -> &Self {
        self.does(phase, "echo 'out of order' >&2; exit 3")
    }

    /// It does not end by itself.
    pub fn hangs_in(&self, phase: &str) -> &Self {
        self.does(phase, "sleep 60")
    }

    pub fn dies_in(&self, phase: &str) -> &Self {
        self.does(phase, "kill -KILL $$")
    }

    /// In its freeze, it removes a hook that has been listed already.
    pub fn removes(&self, name: &str) -> &Self {
        self.does("freeze", &format!("rm {}/*-{name}", self.setup.hooks_dir().display()))
    }

    /// It runs in `prepare` too.
    pub fn prepares(&self) -> &Self {
        self.last(|hook| hook.settings.push("prepare = true".into()))
    }

    /// It runs in `prepare`, and not in `freeze`.
    pub fn only_prepares(&self) -> &Self {
        self.last(|hook| hook.settings.push("phases = [\"prepare\"]".into()))
    }

    pub fn optional(&self) -> &Self {
        self.last(|hook| hook.settings.push("required = false".into()))
    }

    pub fn limit(&self, limit: &str) -> &Self {
        self.last(|hook| hook.settings.push(format!("timeout = \"{limit}\"")))
    }

    fn last(&self, edit: impl FnOnce(&mut Hook)) -> &Self {
        edit(self.hooks.borrow_mut().last_mut().expect("first a hook"));
        self.write()
    }

    /// Where the hook called `name` lies.
    pub fn path_of(&self, name: &str) -> PathBuf {
        let position = self.hooks.borrow().iter().position(|hook| hook.name == name).expect("a hook of the story");
        self.setup.hooks_dir().join(format!("{}-{name}", 10 + position))
    }

    fn write(&self) -> &Self {
        let hooks = self.hooks.borrow();
        let hook = hooks.last().expect("just pushed");
        let file = format!("{}-{}", 9 + hooks.len(), hook.name);
        self.setup.hook(&file, &hook.script(&self.notes, &self.disks[0].mount));
        if !hook.settings.is_empty() {
            let settings = self.setup.hooks_dir().join(format!("{file}.toml"));
            fs::write(settings, hook.settings.join("\n")).expect("memory");
        }
        self
    }

    /// Forgets the hooks and what they told.
    pub fn clear(&self) {
        self.hooks.borrow_mut().clear();
        for dir in [self.setup.hooks_dir(), self.notes.clone()] {
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(dir).expect("memory");
        }
    }

    // --- what happens ---

    pub fn daemon(&self) -> &Daemon<'lab> {
        self.daemon.as_ref().expect("taken only to put the next one there")
    }

    /// `freeze`, to its answer, whatever that is.
    pub fn freeze(&self) -> Answer {
        self.daemon().cli(&["freeze", "--id", "told", "--for", "20s"])
    }

    /// `freeze`, to where the story ends with `line`.
    pub fn freeze_until(&self, line: &str) -> Running {
        let client = self.daemon().start_cli(&["freeze", "--id", "told", "--for", "20s"]);
        self.wait_for(line);
        client
    }

    /// Waits until the story ends with `line`.
    pub fn wait_for(&self, line: &str) {
        assert!(until(SOON, || self.told().ends_with(line)), "{line:?} is not reached: {:?}", self.told());
    }

    /// Every process of ours is stopped, and then killed: nobody is left to notice. Hooks live on.
    pub fn lose_everybody(&mut self) {
        let all = ours();
        all.iter().for_each(|process| signal(process.pid, Signal::SIGSTOP));
        self.daemon().kill();
        all.iter().for_each(|process| signal(process.pid, Signal::SIGKILL));
        // Its socket and its lock are there until it is gone, and with it a hook that it was just about to execute. Of the
        // others some wait inside the kernel for a thaw.
        let socket = self.daemon().socket();
        assert!(until(SOON, || UnixStream::connect(&socket).is_err()), "a killed daemon lives");
        self.setup = self.daemon.take().expect("there was one").forsake();
    }

    /// What went wrong must not spoil the next story.
    pub fn give_up(mut self) {
        self.lab.reaper_thaws();
        if let Some(daemon) = self.daemon.take() {
            eprintln!("---- the daemon's log ----\n{}----", daemon.log());
            daemon.kill();
            drop(daemon.forsake());
        }
        ours().iter().for_each(|process| signal(process.pid, Signal::SIGKILL));
        self.lab.reaper_thaws();
        let _ = until(SOON, || ours().is_empty());
    }

    pub fn rescue(&self) -> Answer {
        let config = self.setup.config_path();
        self.lab.holdstill(&["--json", "rescue", "--config", config.to_str().expect("ASCII")])
    }

    /// The one after a daemon that was killed or ended.
    pub fn next_daemon(&mut self) {
        let next = match self.daemon.take() {
            Some(daemon) => daemon.again(),
            None => self.setup.clone().start(),
        };
        self.daemon = Some(next);
    }

    // --- what came of it ---

    pub fn told(&self) -> String {
        fs::read_to_string(self.notes.join("told")).unwrap_or_default().trim().replace('\n', ", ")
    }

    /// The story so far is this one, or soon will be.
    pub fn expect(&self, story: &str) {
        assert!(until(SOON, || self.told() == story), "it was told\n  {}\ninstead of\n  {story}", self.told());
    }

    /// The guest moves: every file system can be written to.
    pub fn assert_moving(&self) {
        for disk in &self.disks {
            assert!(disk.writable_within(Duration::from_secs(2)), "{} is still frozen", disk.at());
        }
    }

    /// The report of the hold of this story.
    pub fn report(&self) -> serde_json::Value {
        self.daemon().cli(&["history", "told"]).report()
    }
}

/// Whether the report says so with this code.
pub fn has_problem(report: &serde_json::Value, code: &str) -> bool {
    let problems = report["problems"].as_array().map(Vec::as_slice).unwrap_or_default();
    problems.iter().any(|problem| problem["code"] == code)
}
