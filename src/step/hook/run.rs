//! Running one phase of a hook: own process group, bounded output, verdict from its exit status and nothing else.

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{Call, Error, Hook, Phase, Ran, Statuses, User};
use crate::{
    proto,
    sys::{
        clock::monotonic,
        process::{self, Start, Stop},
        table::Pen,
    },
};

/// Where a hook's own commands are found.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How the hold ends that a `thaw` belongs to; said to the other phases, too, but they do not ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// it was held, or may be yet
    Yes,
    Never,
}

/// Runs one phase of a hook in its own process group, within `hook.limit`, killing the whole group (TERM, then KILL)
/// at the limit, or earlier once `stop` is told: the hold it belongs to ends. `environment` is added to a small defined
/// one. `None`: it has nothing to do in this phase.
///
/// Dropping the future does not end the hook: it runs on, up to its limit.
///
/// # Errors
/// Anything but what its convention calls success.
pub async fn run(
    hook: &Hook,
    phase: Phase,
    held: Held,
    environment: &BTreeMap<String, String>,
    stop: Option<Stop>,
) -> Result<Option<Ran>, Error> {
    run_signed(hook, phase, held, environment, stop, None).await
}

/// As [`run`]; with `pen` it writes itself down where others find it should we be lost.
///
/// # Errors
/// As [`run`].
pub async fn run_signed(
    hook: &Hook,
    phase: Phase,
    held: Held,
    environment: &BTreeMap<String, String>,
    stop: Option<Stop>,
    pen: Option<Pen>,
) -> Result<Option<Ran>, Error> {
    let call = match (phase, held) {
        (Phase::Prepare, _) => &hook.calls.prepare,
        (Phase::Freeze, _) => &hook.calls.freeze,
        (Phase::Thaw, Held::Yes) => &hook.calls.thaw,
        (Phase::Thaw, Held::Never) => &hook.calls.failed,
    };
    let Some(call) = call.clone() else { return Ok(None) };
    let all = self::environment(hook.user.as_ref(), hook.limit, environment);
    let (user, limit) = (hook.user.as_ref().map(|user| user.ids.clone()), hook.limit);
    let name = || hook.name.clone();
    let statuses = hook.statuses;
    let (outcome, took) = tokio::task::spawn_blocking(move || {
        let told = Told { user: user.as_ref(), environment: &all, stop: stop.as_ref(), pen: pen.as_ref() };
        again(&call, statuses, told, limit)
    })
    .await
    .map_err(|_| Error::Panicked { name: name() })?
    .map_err(|source| Error::Start { name: name(), source })?;

    let (exit_code, signal) = match outcome.status {
        process::Status::Exited(code) => (Some(code), None),
        process::Status::Signaled(signal) => (None, Some(signal)),
        process::Status::TimedOut => (None, None),
    };
    let run = proto::HookRun { exit_code, signal, output_tail: tail_text(&outcome.output) };
    let ran = |warning| Ran { took, run, warning };
    match outcome.status {
        process::Status::Exited(code) => match statuses.judge(phase, code) {
            Ok(warning) => Ok(Some(ran(warning))),
            Err(meaning) => Err(Error::Exit { name: name(), code, meaning, ran: Box::new(ran(None)) }),
        },
        process::Status::Signaled(signal) => Err(Error::Killed { name: name(), signal, ran: Box::new(ran(None)) }),
        process::Status::TimedOut => Err(Error::TimedOut { name: name(), limit, ran: Box::new(ran(None)) }),
    }
}

/// What each of its runs has in common.
#[derive(Clone, Copy)]
struct Told<'a> {
    user: Option<&'a process::User>,
    environment: &'a BTreeMap<String, String>,
    stop: Option<&'a Stop>,
    pen: Option<&'a Pen>,
}

/// Runs it, and again as often as its convention says, all within `limit`. With how long that took in all.
fn again(call: &Call, statuses: Statuses, told: Told<'_>, limit: Duration) -> io::Result<(process::Outcome, Duration)> {
    let begun = monotonic();
    let arguments = call.arguments();
    let mut left = call.retries;
    loop {
        let Told { user, environment, stop, pen } = told;
        let start = Start { program: &call.program, arguments: &arguments, environment, input: None, user };
        let outcome = process::run_signed(start, limit.saturating_sub(monotonic() - begun), stop, pen)?;
        let spent = monotonic() - begun;
        let failed = match outcome.status {
            process::Status::Exited(code) => statuses.judge(Phase::Freeze, code).is_err(),
            process::Status::Signaled(_) => true,
            process::Status::TimedOut => false, // nothing is left of its time
        };
        if !failed || left == 0 || spent >= limit {
            return Ok((outcome, spent));
        }
        left -= 1;
    }
}

/// What a hook or reporter sees: a small defined environment, when it will be ended, and what the hold says.
pub fn environment(user: Option<&User>, limit: Duration, hold: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let (name, home) = user.map_or(("root", "/root".into()), |user| (user.name.as_str(), user.home.to_string_lossy()));
    // no clock of ours is involved in ending it: this one is for the script's `date +%s`
    let ends = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + limit;
    let own = [
        ("PATH", PATH.to_owned()),
        ("HOME", home.into_owned()),
        ("USER", name.to_owned()),
        ("LOGNAME", name.to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("HOLDSTILL_TIMEOUT_SECONDS", limit.as_secs().to_string()),
        ("HOLDSTILL_DEADLINE", ends.as_secs().to_string()),
    ];
    let mut all: BTreeMap<String, String> = own.map(|(key, value)| (key.to_owned(), value)).into();
    all.extend(hold.clone());
    all
}

/// Output as text of at most `OUTPUT_TAIL` bytes: what is not UTF-8 is replaced, which may make it longer.
fn tail_text(output: &[u8]) -> String {
    tail(&String::from_utf8_lossy(output))
}

/// The last `OUTPUT_TAIL` bytes of it, or a few less.
pub fn tail(text: &str) -> String {
    let from = text.len().saturating_sub(process::OUTPUT_TAIL);
    let from = (from..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    text[from..].to_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::step::hook::list;

    const LIMIT: Duration = Duration::from_secs(5);

    /// Hooks in a directory of their own, each `NAME`, `SCRIPT`.
    fn hooks(scripts: &[(&str, &str)]) -> (tempfile::TempDir, Vec<Hook>) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (name, script) in scripts {
            let path = dir.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode set");
        }
        let listed = list(dir.path(), LIMIT, &[]).expect("all usable").hooks;
        (dir, listed)
    }

    /// Another test's fork may hold our script open for writing for an instant (ETXTBSY).
    async fn run_settled(hook: &Hook, phase: Phase, environment: &BTreeMap<String, String>) -> Result<Ran, Error> {
        loop {
            match run(hook, phase, Held::Yes, environment, None).await {
                Err(Error::Start { source, .. }) if source.kind() == io::ErrorKind::ExecutableFileBusy => {}
                other => return other.map(|ran| ran.expect("it has this phase")),
            }
        }
    }

    #[tokio::test]
    async fn a_hook_sees_its_phase_its_end_and_the_environment_given() {
        let (_dir, listed) = hooks(&[(
            "10-a",
            "echo $1 $HOLDSTILL_ID $HOME $USER $HOLDSTILL_TIMEOUT_SECONDS $((HOLDSTILL_DEADLINE - $(date +%s)))\necho >&2 to stderr",
        )]);
        let environment = BTreeMap::from([("HOLDSTILL_ID".to_owned(), "h1".to_owned())]);
        let ran = run_settled(&listed[0], Phase::Thaw, &environment).await.expect("it exits 0");
        let said = ran.run.output_tail.replace("5 4\n", "5 5\n"); // a second may end in between
        assert_eq!(said, "thaw h1 /root root 5 5\nto stderr\n");
        assert_eq!((ran.run.exit_code, ran.run.signal), (Some(0), None));
    }

    #[tokio::test]
    async fn only_exit_status_zero_is_success() {
        let (dir, mut listed) =
            hooks(&[("10-exits", "echo why; exit 9"), ("20-dies", "kill -SEGV $$"), ("30-hangs", "sleep 60")]);
        listed[2].limit = Duration::from_millis(100);
        let mut errors = Vec::new();
        for hook in &listed {
            errors.push(run_settled(hook, Phase::Freeze, &BTreeMap::new()).await.expect_err("none exits 0"));
        }
        assert!(matches!(&errors[0], Error::Exit { code: 9, ran, .. } if ran.run.output_tail == "why\n"));
        assert!(matches!(&errors[1], Error::Killed { signal: 11, ran, .. } if ran.run.signal == Some(11)));
        assert!(matches!(&errors[2], Error::TimedOut { ran, .. } if ran.run.exit_code.is_none()));
        assert_eq!(errors[0].to_string(), "run the hook 10-exits: it exited with status 9");
        fs::remove_file(dir.path().join("10-exits")).expect("it was there");
        let error = run(&listed[0], Phase::Freeze, Held::Yes, &BTreeMap::new(), None).await.expect_err("it is gone");
        assert!(matches!(error, Error::Start { .. }));
    }

    #[tokio::test]
    async fn a_phase_without_a_call_is_no_run() {
        let (_dir, listed) = hooks(&[("10-a", "exit 1")]);
        let nothing = run(&listed[0], Phase::Prepare, Held::Yes, &BTreeMap::new(), None).await;
        assert!(matches!(nothing, Ok(None)));
    }

    #[tokio::test]
    async fn retries_run_it_again_within_its_limit() {
        let (dir, mut listed) = hooks(&[("10-a", "d=$(dirname $0); echo >> $d/.n; [ $(wc -l < $d/.n) = 3 ]")]);
        let tries = || fs::read(dir.path().join(".n")).expect("it ran").len();
        listed[0].calls.freeze.as_mut().expect("it has one").retries = 1;
        run_settled(&listed[0], Phase::Freeze, &BTreeMap::new()).await.expect_err("the third would do");
        assert_eq!(tries(), 2);
        run_settled(&listed[0], Phase::Freeze, &BTreeMap::new()).await.expect("the third does");
        assert_eq!(tries(), 3);
    }

    #[test]
    fn replaced_bytes_do_not_make_the_tail_longer() {
        let text = tail_text(&[0xff; process::OUTPUT_TAIL]);
        assert!(text.len() <= process::OUTPUT_TAIL && text.starts_with('\u{fffd}'));
    }
}
