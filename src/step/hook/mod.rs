//! Hooks: what DBAs and application owners register to run around a hold. [`list`](list::list) is called while preparing
//! and by `holdstill hooks`, [`run`](run::run) by the driver.
//!
//! ```text
//!   hooks.d/10-orders            an executable: argument `freeze`, `thaw`, and `prepare` if asked for
//!   hooks.d/10-orders.toml       its settings                                         → [`settings`]
//!   hooks.d/50-vmware.toml       with `convention = "vmware"`: scripts written for another agent, where they lie
//!                                                                                     → [`convention`]
//! ```
//!
//! Both become a [`Hook`]: what to execute in each phase, as whom, and what its exit status means. From there on nobody
//! asks where one came from. Everything on the way to what runs as root must be out of others' reach: [`usable`].

pub mod convention;
pub mod list;
pub mod run;
mod settings;
mod usable;
mod user;

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

pub use list::{Listing, SwitchedOn, ignored, list};
pub use run::{Held, environment, run, run_signed, tail};
pub use settings::{Settings, not_an_engine};
pub use usable::{Started, guarded, interpreter as startable, usable};
pub use user::User;

use crate::{guest::databases::Engine, proto};

/// One usable hook, as found while preparing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// "10-orders", or "50-vmware/10-orders"; the step is "hook:10-orders"
    pub name: String,
    /// the file a person would look at
    pub path: PathBuf,
    /// of each phase
    pub limit: Duration,
    pub required: bool,
    /// `None`: root
    pub user: Option<User>,
    pub calls: Calls,
    pub statuses: Statuses,
    /// running engines that it brings to a consistent point, as its settings say
    pub holds: Vec<Engine>,
}

/// What is executed in each phase; `None`: nothing. `thaw` comes once for whatever was started, whether or not it ran.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Calls {
    pub prepare: Option<Call>,
    pub freeze: Option<Call>,
    /// after a hold that was held
    pub thaw: Option<Call>,
    /// instead of it after one that never was
    pub failed: Option<Call>,
}

/// An argument vector, never a shell string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub program: PathBuf,
    pub words: Vec<Word>,
    /// after a failure it is run again this often, within the hook's limit
    pub retries: u32,
}

/// One argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    Text(OsString),
    /// the names of the disks that are held, with commas between: "sda,sdb"
    Disks,
    /// the hold's id if it is a UUID, else "None": what AWS's Data Lifecycle Manager passes
    ExecutionId,
    /// a file on tmpfs with this text, in which `{{ executionId }}` has been replaced
    Script(String),
}

/// What a hold tells a hook's arguments.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub hold_id: String,
    /// "sda", "nvme0n1"
    pub disks: Vec<String>,
    /// where scripts are put; on tmpfs
    pub staging: PathBuf,
}

/// What exit statuses mean, in the words of the convention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statuses {
    /// 0 is success, nothing else is
    Zero,
    /// Azure's script framework: 2 is success with a warning
    Azure,
    /// AWS's Data Lifecycle Manager: 201 to 206 have names
    Dlm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Prepare,
    Freeze,
    Thaw,
}

/// A hook that ran.
#[derive(Debug, Clone)]
pub struct Ran {
    pub took: Duration,
    pub run: proto::HookRun,
    /// it succeeded by its convention, and has something to say
    pub warning: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the hooks directory {}: {source}", dir.display())]
    Directory { dir: PathBuf, source: io::Error },
    #[error("use the hook {}: {why}", path.display())]
    Unusable { path: PathBuf, why: String, hint: String },
    #[error("start the hook {name}: {source}")]
    Start { name: String, source: io::Error },
    #[error("run the hook {name}: the thread that ran it panicked")]
    Panicked { name: String },
    #[error("run the hook {name}: it exited with status {code}{}", in_words(meaning))]
    Exit { name: String, code: i32, meaning: &'static str, ran: Box<Ran> },
    #[error("run the hook {name}: it was killed by signal {signal}")]
    Killed { name: String, signal: i32, ran: Box<Ran> },
    #[error("run the hook {name}: it did not end within {limit:?} and was killed")]
    TimedOut { name: String, limit: Duration, ran: Box<Ran> },
}

fn in_words(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(" ({words})") }
}

impl Error {
    /// What to do next; empty if there is nothing to say.
    pub fn hint(&self) -> &str {
        match self {
            Error::Unusable { hint, .. } => hint,
            Error::TimedOut { .. } => {
                "give it more time with `timeout = \"…\"` in the .toml file beside it, or make it faster"
            }
            Error::Directory { .. }
            | Error::Start { .. }
            | Error::Panicked { .. }
            | Error::Exit { .. }
            | Error::Killed { .. } => "",
        }
    }

    /// What is known of the run, if it started: for the step's `detail`.
    pub fn ran(&self) -> Option<&Ran> {
        match self {
            Error::Exit { ran, .. } | Error::Killed { ran, .. } | Error::TimedOut { ran, .. } => Some(ran),
            Error::Directory { .. } | Error::Unusable { .. } | Error::Start { .. } | Error::Panicked { .. } => None,
        }
    }
}

impl Phase {
    /// The hook's argument.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Prepare => "prepare",
            Phase::Freeze => "freeze",
            Phase::Thaw => "thaw",
        }
    }
}

impl Hook {
    /// The phases it has something to do in, in their order.
    pub fn phases(&self) -> impl Iterator<Item = Phase> {
        let calls = &self.calls;
        [
            (Phase::Prepare, calls.prepare.is_some()),
            (Phase::Freeze, calls.freeze.is_some()),
            (Phase::Thaw, calls.thaw.is_some() || calls.failed.is_some()),
        ]
        .into_iter()
        .filter_map(|(phase, has)| has.then_some(phase))
    }

    /// The phase whose success says that its application is consistent; `None`: it has nothing to do before the freeze.
    pub fn vouches_in(&self) -> Option<Phase> {
        let calls = &self.calls;
        calls.freeze.as_ref().map(|_| Phase::Freeze).or(calls.prepare.as_ref().map(|_| Phase::Prepare))
    }

    /// Its arguments filled in.
    ///
    /// # Errors
    /// A script could not be put where it is run from.
    pub fn fill(&mut self, facts: &Facts) -> io::Result<()> {
        let calls = &mut self.calls;
        for call in [&mut calls.prepare, &mut calls.freeze, &mut calls.thaw, &mut calls.failed].into_iter().flatten() {
            for word in &mut call.words {
                *word = Word::Text(word.filled(facts, self.user.as_ref())?);
            }
        }
        Ok(())
    }
}

impl Call {
    pub fn new(program: &Path, words: &[&str]) -> Call {
        Call {
            program: program.to_owned(),
            words: words.iter().map(|word| Word::Text(word.into())).collect(),
            retries: 0,
        }
    }

    /// Its arguments, once they are filled in: what is not is left out.
    pub fn arguments(&self) -> Vec<OsString> {
        let text = |word: &Word| match word {
            Word::Text(text) => Some(text.clone()),
            Word::Disks | Word::ExecutionId | Word::Script(_) => None,
        };
        self.words.iter().filter_map(text).collect()
    }
}

impl Word {
    fn filled(&self, facts: &Facts, user: Option<&User>) -> io::Result<OsString> {
        let id = || if is_uuid(&facts.hold_id) { facts.hold_id.clone() } else { "None".to_owned() };
        Ok(match self {
            Word::Text(text) => text.clone(),
            Word::Disks => facts.disks.join(",").into(),
            Word::ExecutionId => id().into(),
            Word::Script(text) => convention::stage(&facts.staging, &text.replace(EXECUTION_ID, &id()), user)?.into(),
        })
    }
}

/// What [`Word::Script`] has where the id goes.
const EXECUTION_ID: &str = "{{ executionId }}";

fn is_uuid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12]) && text.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
}

impl Statuses {
    /// What `thaw` may end with besides 0: for whoever has to judge it without us.
    pub fn fine_to_thaw(self) -> Option<i32> {
        match self {
            Statuses::Zero => None,
            Statuses::Azure => Some(2),
            Statuses::Dlm => Some(205),
        }
    }

    /// `Ok`: success, perhaps with a warning; `Err`: failure, with the convention's name for it if it has one.
    fn judge(self, phase: Phase, code: i32) -> Result<Option<String>, &'static str> {
        match (self, code) {
            (Statuses::Zero | Statuses::Azure | Statuses::Dlm, 0) => Ok(None),
            (Statuses::Azure, 2) => Ok(Some("it exited with status 2: a warning".to_owned())),
            // its own freeze had failed, or did nothing
            (Statuses::Dlm, 205) if phase == Phase::Thaw => {
                Ok(Some("it exited with status 205: it had nothing to thaw".to_owned()))
            }
            (Statuses::Dlm, code) => Err(match code {
                201 => "pre-script failed",
                202 => "post-script failed",
                203 => "thawed by its own timer before post-script",
                204 => "pre-script when post-script was expected: it is frozen already",
                205 => "post-script when pre-script was expected",
                206 => "the application is not ready",
                _ => "",
            }),
            (Statuses::Zero | Statuses::Azure, _) => Err(""),
        }
    }
}

fn unusable(path: &Path, why: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Unusable { path: path.to_owned(), why: why.into(), hint: hint.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_filled_with_what_the_hold_knows() {
        let call = Call { program: "/x".into(), words: vec![Word::Disks, Word::ExecutionId], retries: 0 };
        let mut hook = Hook {
            name: "a".into(),
            path: "/x".into(),
            limit: Duration::ZERO,
            required: true,
            user: None,
            calls: Calls { freeze: Some(call), ..Calls::default() },
            statuses: Statuses::Zero,
            holds: Vec::new(),
        };
        let mut named = hook.clone();
        let disks = vec!["sda".to_owned(), "sdb".to_owned()];
        hook.fill(&Facts { hold_id: "nightly".into(), disks, staging: PathBuf::new() }).expect("nothing to write");
        assert_eq!(hook.calls.freeze.expect("it has one").arguments(), ["sda,sdb", "None"]);
        let hold_id = "5f0c2d9e-6b0e-4a57-9f7c-1f0a2b3c4d5e".to_owned();
        named.fill(&Facts { hold_id: hold_id.clone(), ..Facts::default() }).expect("nothing to write");
        assert_eq!(named.calls.freeze.expect("it has one").arguments(), [OsString::new(), hold_id.into()]);
    }

    #[test]
    fn only_what_a_convention_calls_success_is_success() {
        let judge = |statuses: Statuses, code| statuses.judge(Phase::Freeze, code);
        assert_eq!(judge(Statuses::Zero, 0), Ok(None));
        assert_eq!(judge(Statuses::Zero, 2), Err(""));
        assert!(matches!(judge(Statuses::Azure, 2), Ok(Some(_))));
        assert_eq!(judge(Statuses::Azure, 1), Err(""));
        for code in 201..=206 {
            assert!(judge(Statuses::Dlm, code).is_err_and(|name| !name.is_empty()), "{code}");
        }
        assert_eq!(judge(Statuses::Dlm, 1), Err(""));
        assert!(matches!(Statuses::Dlm.judge(Phase::Thaw, 205), Ok(Some(_))), "it was not frozen: nothing failed");
    }
}
