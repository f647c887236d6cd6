//! `hooks add` and `hooks remove`.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde_json::json;

use super::{super::Answer, failure};
use crate::{
    cli::AddHook,
    error::{Exit, Failure, reason},
    hold::RefusalKind,
    step::hook::{self, Phase, Settings},
};

/// # Errors
/// What is to be added cannot be run, its name is taken, or a file operation failed.
pub fn add(dir: &Path, args: &AddHook) -> Result<Answer, Failure> {
    match (args.convention, &args.file) {
        (Some(convention), path) => switch_on(dir, args, convention, path.as_deref()),
        (None, Some(file)) => add_script(dir, args, file),
        (None, None) => unreachable!("clap asks for one of the two"),
    }
}

fn add_script(dir: &Path, args: &AddHook, file: &Path) -> Result<Answer, Failure> {
    let own = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    // a ready-made one is switched off by this ending
    let own = own.strip_suffix(".sample").unwrap_or(&own);
    let name = checked(ordered(args.name.as_deref().unwrap_or(own), args.order))?;
    let script = fs::read(file).map_err(|e| Failure::io(format!("read {}", file.display()), &e))?;
    hook::startable(file, &script).map_err(|error| failure(&error))?;
    let settings = settings(args)?;
    let to = dir.join(&name);
    let beside = dir.join(format!("{name}.toml"));
    // a convention's settings are nobody else's: they would be lost, or keep every hold from running
    if Settings::read(&beside).is_ok_and(|there| there.convention.is_some()) {
        return Err(taken(&beside, "`holdstill hooks remove` switches it off; or take another name"));
    }
    let replaced = to.symlink_metadata().is_ok();
    if replaced && !args.force {
        return Err(taken(&to, FORCE));
    }
    make(dir)?;
    let written = |what: &Path, error: &io::Error| Failure::io(format!("write {}", what.display()), error);
    // first, so that no hold runs the script without them
    if settings != Settings::default() {
        place(settings.to_toml().as_bytes(), 0o644, dir, &beside, true).map_err(|e| written(&beside, &e))?;
    }
    place(&script, 0o755, dir, &to, args.force).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => taken(&to, FORCE),
        _ => written(&to, &e),
    })?;
    let verb = if replaced { "replaced" } else { "added" };
    Ok(Answer {
        document: json!({"name": name, "path": to, "replaced": replaced}),
        table: String::new(),
        sentence: format!("{verb} {}; try it with `holdstill hooks test {name}`", to.display()),
        exit: Exit::Done,
    })
}

/// Other agents' scripts stay where they are; a file of settings says where that is.
fn switch_on(
    dir: &Path,
    args: &AddHook,
    convention: hook::convention::Convention,
    path: Option<&Path>,
) -> Result<Answer, Failure> {
    let own = format!("50-{}", convention.as_str());
    let name = checked(ordered(args.name.as_deref().unwrap_or(&own), args.order))?;
    let path =
        path.map(|path| std::path::absolute(path).map_err(|e| Failure::io(format!("find {}", path.display()), &e)));
    let settings = Settings { convention: Some(convention), path: path.transpose()?, ..settings(args)? };
    let to = dir.join(format!("{name}.toml"));
    // what a hold would refuse is refused here
    settings.examine(&to).map_err(|error| failure(&error))?;
    let mut listing = hook::Listing::default();
    let on = hook::SwitchedOn { name: name.clone(), settings: settings.clone(), at: to.clone() };
    hook::convention::expand(&on, std::time::Duration::from_secs(1), &mut listing).map_err(|error| failure(&error))?;
    let replaced = to.symlink_metadata().is_ok();
    let script = dir.join(&name);
    if script.symlink_metadata().is_ok() {
        return Err(taken(&script, "take another name"));
    }
    if replaced && !args.force {
        return Err(taken(&script, FORCE));
    }
    make(dir)?;
    place(settings.to_toml().as_bytes(), 0o644, dir, &to, args.force)
        .map_err(|e| Failure::io(format!("write {}", to.display()), &e))?;
    let hooks: Vec<&str> = listing.hooks.iter().map(|hook| hook.name.as_str()).collect();
    let which = if hooks.is_empty() { "there is no script in it yet".to_owned() } else { hooks.join(", ") };
    Ok(Answer {
        document: json!({"name": name, "path": to, "replaced": replaced, "hooks": hooks, "ignored": listing.ignored}),
        table: String::new(),
        sentence: format!("switched on by {}: {which}; try it with `holdstill hooks test {name}`", to.display()),
        exit: Exit::Done,
    })
}

const FORCE: &str = "--force replaces it";

fn taken(to: &Path, hint: &str) -> Failure {
    let message = format!("failed to add {}: there is a hook of that name", to.display());
    Failure::local(RefusalKind::AlreadyExists, "ALREADY_EXISTS", message).hint(hint)
}

fn make(dir: &Path) -> Result<(), Failure> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(dir);
    made.map_err(|e| Failure::io(format!("create {}", dir.display()), &e))
}

/// What the flags say; whom it runs as must exist.
fn settings(args: &AddHook) -> Result<Settings, Failure> {
    if let Some(user) = &args.user {
        hook::User::named(user).map_err(|why| {
            let message = format!("cannot add a hook that runs as {user}: {why}");
            Failure::local(RefusalKind::InvalidArgument, reason::MALFORMED, message)
        })?;
    }
    let required = match (args.required, args.optional) {
        (true, _) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
    };
    let mut phases: Vec<Phase> = args.phases.clone();
    phases.dedup();
    Ok(Settings {
        timeout: args.timeout,
        required,
        user: args.user.clone(),
        phases: (!phases.is_empty()).then_some(phases),
        argument: args.argument.clone(),
        holds: args.holds.clone(),
        ..Settings::default()
    })
}

/// `name` with its number replaced by `order`, or put before it.
fn ordered(name: &str, order: Option<u8>) -> String {
    let Some(order) = order else { return name.to_owned() };
    let rest =
        name.split_once('-').filter(|(number, _)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
    format!("{order:02}-{}", rest.map_or(name, |(_, rest)| rest))
}

/// A file name that stays in the directory and will not be ignored.
fn checked(name: String) -> Result<String, Failure> {
    let why = match name.as_str() {
        "" | "." | ".." => "it is not a file name",
        n if n.contains('/') => "it has a / in it",
        n if n.contains(char::is_control) => "it has a control character in it",
        n if n.starts_with('-') => "it looks like an option",
        n if hook::ignored(n) => "a hook of that name would be ignored",
        n if n.ends_with(".toml") => "that is the name of a hook's settings",
        _ => return Ok(name),
    };
    let hint = "name it NN-name, e.g. 10-orders; hooks run in the order of their names";
    let message = format!("cannot name a hook `{}`: {why}", name.escape_debug());
    Err(Failure::local(RefusalKind::InvalidArgument, reason::MALFORMED, message).hint(hint))
}

/// Writes beside and renames, so that a hold never sees half a file; without `force` it takes no other's place.
fn place(content: &[u8], mode: u32, dir: &Path, to: &Path, force: bool) -> io::Result<()> {
    // ignored by name, should it be left behind
    let beside = dir.join(format!(".{}.new", to.file_name().unwrap_or_default().to_string_lossy()));
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    let written = (|| {
        io::Write::write_all(&mut file, content)?;
        // whatever the umask was
        file.set_permissions(fs::Permissions::from_mode(mode))?;
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

/// # Errors
/// There is no such hook, or it cannot be removed.
pub fn remove(dir: &Path, name: &str) -> Result<Answer, Failure> {
    let name = checked(name.to_owned())?;
    let mut removed: Vec<PathBuf> = Vec::new();
    // the script first: settings without it are said, a script without its settings would run
    for path in [dir.join(&name), dir.join(format!("{name}.toml"))] {
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Failure::io(format!("remove {}", path.display()), &e)),
        }
    }
    if removed.is_empty() {
        let message = format!("failed to remove {}: there is no such hook", dir.join(&name).display());
        let hint = "`holdstill hooks list` shows them; scripts under [[hooks.convention]] are switched off there";
        return Err(Failure::local(RefusalKind::NotFound, "HOOK_UNUSABLE", message).hint(hint));
    }
    let names = removed.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" and ");
    Ok(Answer {
        document: json!({"name": name, "removed": removed}),
        table: String::new(),
        sentence: format!("removed {names}"),
        exit: Exit::Done,
    })
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

    fn of(file: &Path) -> AddHook {
        AddHook { file: Some(file.to_owned()), ..AddHook::default() }
    }

    fn add_as(dir: &Path, file: &Path, name: Option<&str>, force: bool) -> Result<Answer, Failure> {
        add(dir, &AddHook { name: name.map(str::to_owned), force, ..of(file) })
    }

    #[test]
    fn a_hook_is_added_executable_into_a_directory_made_for_it() {
        let (_temp, script, dir) = place_for_tests();
        let answer = add_as(&dir, &script, None, false).expect("added");
        let mode = fs::metadata(dir.join("10-a")).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        assert_eq!(answer.document["replaced"], false);
        assert_eq!(fs::read_dir(&dir).expect("readable").count(), 1, "nothing else is left there");
    }

    #[test]
    fn a_hook_takes_no_others_place_unless_forced() {
        let (_temp, script, dir) = place_for_tests();
        add_as(&dir, &script, None, false).expect("added");
        fs::write(&script, "#!/bin/sh\ntrue\n").expect("write");
        let failure = add_as(&dir, &script, None, false).expect_err("taken");
        assert_eq!((failure.exit.code(), failure.hint.as_str()), (4, "--force replaces it"));
        assert_eq!(fs::read(dir.join("10-a")).expect("there"), b"#!/bin/sh\n");
        assert_eq!(add_as(&dir, &script, None, true).expect("forced").document["replaced"], true);
        assert_eq!(fs::read(dir.join("10-a")).expect("there"), b"#!/bin/sh\ntrue\n");
    }

    #[test]
    fn a_name_that_would_be_ignored_or_lead_elsewhere_is_refused_with_exit_2() {
        let (_temp, script, dir) = place_for_tests();
        for name in ["", "..", "../x", "a\nb", "-x", ".hidden", "a~", "a.bak", "a.rpmsave", "a.dpkg-old", "a.toml"] {
            assert_eq!(add_as(&dir, &script, Some(name), false).expect_err(name).exit.code(), 2, "{name}");
        }
        assert!(!dir.exists(), "nothing was touched");
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let (_temp, script, dir) = place_for_tests();
        fs::write(&script, "echo hello\n").expect("write");
        let failure = add_as(&dir, &script, None, false).expect_err("no #!");
        assert_eq!((failure.exit.code(), failure.reason.as_str()), (4, "HOOK_UNUSABLE"));
    }

    #[test]
    fn removing_takes_the_settings_too_and_an_unknown_one_is_refused() {
        let (_temp, script, dir) = place_for_tests();
        add_as(&dir, &script, None, false).expect("added");
        fs::write(dir.join("10-a.toml"), "").expect("write");
        remove(&dir, "10-a").expect("removed");
        assert_eq!(fs::read_dir(&dir).expect("readable").count(), 0);
        assert_eq!(remove(&dir, "10-a").expect_err("gone").exit.code(), 4);
    }

    #[test]
    fn flags_become_settings_beside_the_script_and_the_order_its_number() {
        let (_temp, script, dir) = place_for_tests();
        let args = AddHook {
            order: Some(7),
            timeout: Some(std::time::Duration::from_secs(20)),
            optional: true,
            user: Some("root".into()),
            phases: vec![Phase::Prepare, Phase::Freeze],
            ..of(&script)
        };
        let answer = add(&dir, &args).expect("added");
        assert_eq!(answer.document["name"], "07-a");
        let listed = hook::list(&dir, std::time::Duration::from_secs(5), &[]).expect("usable").hooks.remove(0);
        assert_eq!((listed.limit.as_secs(), listed.required), (20, false));
        assert!(listed.phases().eq([Phase::Prepare, Phase::Freeze, Phase::Thaw]));
        let failure = add(&dir, &AddHook { name: Some("b".into()), user: Some("no-such-user".into()), ..of(&script) });
        assert_eq!(failure.expect_err("nobody").exit.code(), 2);
        assert!(!dir.join("b").exists(), "nothing was touched");
    }

    #[test]
    fn a_convention_is_switched_on_by_a_file_and_off_by_removing_it() {
        let (temp, script, dir) = place_for_tests();
        let scripts = temp.path().join("backupScripts.d");
        fs::create_dir(&scripts).expect("made");
        fs::copy(&script, scripts.join("10-x")).expect("copied");
        fs::set_permissions(scripts.join("10-x"), fs::Permissions::from_mode(0o755)).expect("mode set");
        let convention = Some(hook::convention::Convention::Vmware);
        let args = AddHook { convention, argument: Some("nightly".into()), ..of(&scripts) };
        let answer = add(&dir, &args).expect("switched on");
        assert_eq!(answer.document["hooks"][0], "50-vmware/10-x");
        let listed = hook::list(&dir, std::time::Duration::from_secs(5), &[]).expect("usable").hooks.remove(0);
        let failed = listed.calls.failed.expect("it has one");
        assert_eq!(failed.arguments(), ["freezeFail", "nightly"]);
        assert_eq!(add(&dir, &args).expect_err("it is on already").exit.code(), 4);
        for force in [false, true] {
            let own = AddHook { name: Some("50-vmware".into()), optional: true, force, ..of(&script) };
            assert_eq!(add(&dir, &own).expect_err("a convention has that name").exit.code(), 4);
        }
        let qemu = AddHook { convention: Some(hook::convention::Convention::Qemu), ..args };
        assert!(add(&dir, &qemu).expect_err("only vmware has one").message.contains("takes an `argument`"));
        assert_eq!(hook::list(&dir, std::time::Duration::from_secs(5), &[]).expect("usable").hooks.len(), 1);
        remove(&dir, "50-vmware").expect("off");
        assert!(scripts.join("10-x").exists(), "the scripts stay");
        let nowhere = AddHook { convention, ..of(&temp.path().join("nowhere")) };
        assert_eq!(add(&dir, &nowhere).expect_err("no such directory").exit.code(), 4);
    }
}
