//! `hooks`: list, add, remove and test the scripts in the hooks directory. Needs no daemon.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use serde_json::{Value as Json, json};

use super::{Answer, show};
use crate::{
    cli::{HookAction, Hooks},
    config::Loaded,
    error::{Exit, Failure, reason},
    hold::RefusalKind,
    json::to_json,
    proto,
    step::hook::{self, Hook, Phase},
};

/// Does what `args` say.
///
/// # Errors
/// The configuration or a hook cannot be used, or a file operation failed.
pub async fn hooks(loaded: &Loaded, args: &Hooks) -> Result<Answer, Failure> {
    let dir = &loaded.settings.hooks.dir;
    match &args.action {
        HookAction::List => Ok(list(dir, &listing(loaded)?)),
        HookAction::Add { file, name, force } => add(dir, file, name.as_deref(), *force),
        HookAction::Remove { name } => remove(dir, name),
        HookAction::InstallAdapter(args) => super::adapters::adapters(args),
        HookAction::Test { name } => test(&listing(loaded)?, name.as_deref()).await,
    }
}

fn listing(loaded: &Loaded) -> Result<hook::Listing, Failure> {
    hook::list(&loaded.settings.hooks.dir, loaded.settings.hooks.timeout).map_err(|error| failure(&error))
}

/// A hook's error as the command line tells it.
fn failure(error: &hook::Error) -> Failure {
    let (kind, code, next) = match error {
        hook::Error::Directory { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            (RefusalKind::PermissionDenied, reason::NOT_PERMITTED, String::new())
        }
        hook::Error::Directory { .. } => (RefusalKind::FailedPrecondition, reason::LOCAL, String::new()),
        hook::Error::Unusable { hint, .. } => (RefusalKind::FailedPrecondition, "HOOK_UNUSABLE", hint.clone()),
        hook::Error::Start { .. }
        | hook::Error::Panicked { .. }
        | hook::Error::Exit { .. }
        | hook::Error::Killed { .. }
        | hook::Error::TimedOut { .. } => (RefusalKind::Aborted, "STEP_FAILED", String::new()),
    };
    Failure::local(kind, code, format!("failed to {error}")).hint(next)
}

fn list(dir: &Path, listing: &hook::Listing) -> Answer {
    let yes = |b: bool| if b { "yes" } else { "no" };
    let rows = listing.hooks.iter().map(|hook| {
        let phases = if hook.prepare { "prepare, freeze, thaw" } else { "freeze, thaw" };
        let limit = humantime::format_duration(hook.limit).to_string();
        vec![hook.name.clone(), phases.to_owned(), limit, yes(hook.required).to_owned()]
    });
    let mut table = show::table(&["HOOK", "PHASES", "LIMIT", "REQUIRED"], rows);
    if !listing.ignored.is_empty() {
        table.push_str(&format!("ignored by name: {}\n", listing.ignored.join(", ")));
    }
    let hooks: Vec<Json> = listing.hooks.iter().map(hook_json).collect();
    let n = listing.hooks.len();
    Answer {
        document: json!({"dir": dir, "hooks": hooks, "ignored": listing.ignored}),
        table,
        sentence: format!("{n} {} in {}", show::plural(n, "hook", "hooks"), dir.display()),
        exit: Exit::Done,
    }
}

fn hook_json(hook: &Hook) -> Json {
    let limit = humantime::format_duration(hook.limit).to_string();
    json!({"name": hook.name, "path": hook.path, "limit": limit, "required": hook.required, "prepare": hook.prepare})
}

/// A file name that stays in the directory and will not be ignored.
fn checked(name: &str) -> Result<&str, Failure> {
    let ignored = [".bak", ".orig", ".sample", ".md", "~"].iter().any(|end| name.ends_with(end))
        || [".rpm", ".dpkg-"].iter().any(|part| name.contains(part));
    let why = match name {
        "" | "." | ".." => "it is not a file name",
        n if n.contains('/') => "it has a / in it",
        n if n.starts_with('.') || ignored => "a hook of that name would be ignored",
        n if n.ends_with(".toml") => "that is the name of a hook's settings",
        n => return Ok(n),
    };
    let hint = "name it NN-name, e.g. 10-orders; hooks run in the order of their names";
    let message = format!("cannot name a hook `{name}`: {why}");
    Err(Failure::local(RefusalKind::InvalidArgument, reason::MALFORMED, message).hint(hint))
}

fn add(dir: &Path, file: &Path, name: Option<&str>, force: bool) -> Result<Answer, Failure> {
    let own = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let name = checked(name.unwrap_or(&own))?;
    let script = fs::read(file).map_err(|e| Failure::io(format!("read {}", file.display()), &e))?;
    if !runnable(&script) {
        let message = format!("failed to add {}: it begins with neither #! nor an ELF header", file.display());
        return Err(Failure::local(RefusalKind::FailedPrecondition, "HOOK_UNUSABLE", message)
            .hint("begin a script with its interpreter, e.g. #!/bin/sh"));
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(|e| Failure::io(format!("create {}", dir.display()), &e))?;
    let to = dir.join(name);
    let replaced = to.symlink_metadata().is_ok();
    place(&script, dir, &to, force).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => {
            let message = format!("failed to add {}: there is a hook of that name", to.display());
            Failure::local(RefusalKind::AlreadyExists, "ALREADY_EXISTS", message).hint("--force replaces it")
        }
        _ => Failure::io(format!("write {}", to.display()), &e),
    })?;
    let verb = if replaced { "replaced" } else { "added" };
    Ok(Answer {
        document: json!({"name": name, "path": to, "replaced": replaced}),
        table: String::new(),
        sentence: format!("{verb} {}; try it with `holdstill hooks test {name}`", to.display()),
        exit: Exit::Done,
    })
}

fn runnable(script: &[u8]) -> bool {
    script.starts_with(b"#!") || script.starts_with(b"\x7fELF")
}

/// Writes beside and renames, so that a hold never sees half a hook; without `force` it takes no other's place.
fn place(script: &[u8], dir: &Path, to: &Path, force: bool) -> io::Result<()> {
    // ignored by name, should it be left behind
    let beside = dir.join(format!(".{}.new", to.file_name().unwrap_or_default().to_string_lossy()));
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(&beside)?;
    let written = (|| {
        io::Write::write_all(&mut file, script)?;
        // whatever the umask was
        file.set_permissions(fs::Permissions::from_mode(0o755))?;
        file.sync_all()?;
        match force {
            true => fs::rename(&beside, to),
            // link(2) fails if the name is taken, rename(2) does not
            false => fs::hard_link(&beside, to).and_then(|()| fs::remove_file(&beside)),
        }
    })();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

fn remove(dir: &Path, name: &str) -> Result<Answer, Failure> {
    let name = checked(name)?;
    let path = dir.join(name);
    fs::remove_file(&path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            let message = format!("failed to remove {}: there is no such hook", path.display());
            Failure::local(RefusalKind::NotFound, "HOOK_UNUSABLE", message).hint("`holdstill hooks list` shows them")
        }
        _ => Failure::io(format!("remove {}", path.display()), &e),
    })?;
    let mut removed = vec![path];
    let settings = dir.join(format!("{name}.toml"));
    match fs::remove_file(&settings) {
        Ok(()) => removed.push(settings),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(Failure::io(format!("remove {}", settings.display()), &e)),
    }
    let names = removed.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" and ");
    Ok(Answer {
        document: json!({"name": name, "removed": removed}),
        table: String::new(),
        sentence: format!("removed {names}"),
        exit: Exit::Done,
    })
}

/// Runs what a hold would run, in its order, and undoes everything that was started, newest first.
async fn test(listing: &hook::Listing, name: Option<&str>) -> Result<Answer, Failure> {
    let chosen: Vec<&Hook> = listing.hooks.iter().filter(|h| name.is_none_or(|name| h.name == name)).collect();
    if let (Some(name), true) = (name, chosen.is_empty()) {
        let message = format!("failed to test {name}: there is no such hook");
        return Err(
            Failure::local(RefusalKind::NotFound, "HOOK_UNUSABLE", message).hint("`holdstill hooks list` shows them")
        );
    }
    // everything a hold sets, so that a script with `set -u` fails here or nowhere
    let mut environment: BTreeMap<String, String> =
        ["LABEL", "REQUIRE", "MOUNTS"].map(|name| (format!("HOLDSTILL_{name}"), String::new())).into();
    environment.insert("HOLDSTILL_ID".to_owned(), "test".to_owned());
    environment.insert("HOLDSTILL_MAX_HOLD_SECONDS".to_owned(), "0".to_owned());
    let mut tried = Vec::new();
    let mut started: Vec<&Hook> = Vec::new();
    'all: for phase in [Phase::Prepare, Phase::Freeze] {
        for hook in chosen.iter().filter(|h| phase == Phase::Freeze || h.prepare) {
            if !started.contains(hook) {
                started.push(hook);
            }
            environment.insert("HOLDSTILL_PHASE".to_owned(), phase_text(phase).to_owned());
            let run = Tried::new(hook, phase, hook::run(hook, phase, &environment).await);
            let failed = run.failed.is_some();
            tried.push(run);
            if failed && hook.required {
                break 'all;
            }
        }
    }
    environment.insert("HOLDSTILL_PHASE".to_owned(), phase_text(Phase::Thaw).to_owned());
    environment.insert("HOLDSTILL_REASON".to_owned(), "asked".to_owned());
    for hook in started.iter().rev() {
        tried.push(Tried::new(hook, Phase::Thaw, hook::run(hook, Phase::Thaw, &environment).await));
    }
    Ok(tested(&tried, chosen.len()))
}

/// One phase of one hook, run.
struct Tried {
    step: proto::Step,
    phase: Phase,
    failed: Option<String>,
}

impl Tried {
    fn new(hook: &Hook, phase: Phase, result: Result<hook::Ran, hook::Error>) -> Tried {
        let mut step = proto::Step {
            name: format!("hook:{}", hook.name),
            kind: proto::StepKind::Hook.into(),
            outcome: proto::StepOutcome::Done.into(),
            required: hook.required,
            ..Default::default()
        };
        let (ran, failed) = match result {
            Ok(ran) => (Some(ran), None),
            Err(error) => {
                let text = error.to_string();
                match error {
                    hook::Error::Exit { ran, .. }
                    | hook::Error::Killed { ran, .. }
                    | hook::Error::TimedOut { ran, .. } => (Some(*ran), Some(text)),
                    hook::Error::Directory { .. }
                    | hook::Error::Unusable { .. }
                    | hook::Error::Panicked { .. }
                    | hook::Error::Start { .. } => (None, Some(text)),
                }
            }
        };
        if let Some(text) = &failed {
            step.outcome = proto::StepOutcome::Failed.into();
            step.reason.clone_from(text);
        }
        if let Some(ran) = ran {
            step.took = ran.took.try_into().ok();
            step.detail = Some(proto::step::Detail::Hook(ran.run));
        }
        Tried { step, phase, failed }
    }
}

fn phase_text(phase: Phase) -> &'static str {
    match phase {
        Phase::Prepare => "prepare",
        Phase::Freeze => "freeze",
        Phase::Thaw => "thaw",
    }
}

fn tested(tried: &[Tried], hooks: usize) -> Answer {
    let mut out = show::table(
        &["HOOK", "PHASE", "STATE", "TOOK"],
        tried.iter().map(|t| {
            let state = show::outcome(t.step.outcome()).to_owned();
            vec![t.step.name.clone(), phase_text(t.phase).to_owned(), state, show::duration(t.step.took.as_ref())]
        }),
    );
    for t in tried {
        if let Some(proto::step::Detail::Hook(run)) = &t.step.detail {
            for line in run.output_tail.lines() {
                out.push_str(&format!("{} {}: {line}\n", t.step.name, phase_text(t.phase)));
            }
        }
    }
    let failed: Vec<&String> = tried.iter().filter_map(|t| t.failed.as_ref()).collect();
    let runs: Vec<Json> =
        tried.iter().map(|t| json!({"phase": phase_text(t.phase), "step": to_json(&t.step)})).collect();
    Answer {
        document: json!({"runs": runs, "passed": failed.is_empty()}),
        table: out,
        sentence: match failed.first() {
            Some(why) => format!("failed to {why}"),
            None => format!("{hooks} {} ran `freeze` and `thaw` and succeeded", show::plural(hooks, "hook", "hooks")),
        },
        exit: if failed.is_empty() { Exit::Done } else { Exit::Failed },
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn place_for_tests() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let script = temp.path().join("10-a");
        fs::write(&script, "#!/bin/sh\n").expect("write");
        let dir = temp.path().join("etc/hooks.d");
        (temp, script, dir)
    }

    #[test]
    fn a_hook_is_added_executable_into_a_directory_made_for_it() {
        let (_temp, script, dir) = place_for_tests();
        let answer = add(&dir, &script, None, false).expect("added");
        let mode = fs::metadata(dir.join("10-a")).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        assert_eq!(answer.document["replaced"], false);
        assert_eq!(fs::read_dir(&dir).expect("readable").count(), 1, "nothing else is left there");
    }

    #[test]
    fn a_hook_takes_no_others_place_unless_forced() {
        let (_temp, script, dir) = place_for_tests();
        add(&dir, &script, None, false).expect("added");
        fs::write(&script, "#!/bin/sh\ntrue\n").expect("write");
        let failure = add(&dir, &script, None, false).expect_err("taken");
        assert_eq!((failure.exit.code(), failure.hint.as_str()), (4, "--force replaces it"));
        assert_eq!(fs::read(dir.join("10-a")).expect("there"), b"#!/bin/sh\n");
        assert_eq!(add(&dir, &script, None, true).expect("forced").document["replaced"], true);
        assert_eq!(fs::read(dir.join("10-a")).expect("there"), b"#!/bin/sh\ntrue\n");
    }

    #[test]
    fn a_name_that_would_be_ignored_or_lead_elsewhere_is_refused_with_exit_2() {
        let (_temp, script, dir) = place_for_tests();
        for name in ["", "..", "../x", ".hidden", "a~", "a.bak", "a.sample", "a.rpmsave", "a.dpkg-old", "a.toml"] {
            assert_eq!(add(&dir, &script, Some(name), false).expect_err(name).exit.code(), 2, "{name}");
        }
        assert!(!dir.exists(), "nothing was touched");
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let (_temp, script, dir) = place_for_tests();
        fs::write(&script, "echo hello\n").expect("write");
        let failure = add(&dir, &script, None, false).expect_err("no #!");
        assert_eq!((failure.exit.code(), failure.reason.as_str()), (4, "HOOK_UNUSABLE"));
    }

    #[test]
    fn removing_takes_the_settings_too_and_an_unknown_one_is_refused() {
        let (_temp, script, dir) = place_for_tests();
        add(&dir, &script, None, false).expect("added");
        fs::write(dir.join("10-a.toml"), "").expect("write");
        remove(&dir, "10-a").expect("removed");
        assert_eq!(fs::read_dir(&dir).expect("readable").count(), 0);
        assert_eq!(remove(&dir, "10-a").expect_err("gone").exit.code(), 4);
    }

    #[test]
    fn a_failed_phase_makes_the_test_fail_with_what_it_printed() {
        let hook = Hook {
            name: "10-a".into(),
            path: "/x".into(),
            limit: std::time::Duration::from_secs(1),
            required: true,
            prepare: false,
        };
        let ran = |code, output: &str| hook::Ran {
            took: std::time::Duration::from_millis(2),
            run: proto::HookRun { exit_code: Some(code), signal: None, output_tail: output.into() },
        };
        let error = hook::Error::Exit { name: "10-a".into(), code: 3, ran: Box::new(ran(3, "no disk\n")) };
        let tried = [Tried::new(&hook, Phase::Freeze, Err(error)), Tried::new(&hook, Phase::Thaw, Ok(ran(0, "")))];
        let answer = tested(&tried, 1);
        assert_eq!(answer.exit.code(), 1);
        assert_eq!(answer.sentence, "failed to run the hook 10-a: it exited with status 3");
        assert!(answer.table.contains("hook:10-a freeze: no disk"), "{}", answer.table);
        assert_eq!(answer.document["runs"][0]["step"]["hook"]["exit_code"], 3);
    }
}
