//! Reading hooks.d: what will run, in which order.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Call, Calls, Error, Hook, Phase, Settings, Statuses, User, convention,
    settings::neighbour_hint,
    unusable,
    usable::{Started, guarded, usable},
};

/// What the hooks directory holds, and what the configuration adds.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// in byte order of their names: the order of `freeze`
    pub hooks: Vec<Hook>,
    /// ignored by name, and said: "10-a~", "README.md" …
    pub ignored: Vec<String>,
    /// what of another agent's convention is not followed: whose, and what
    pub notes: Vec<(String, String)>,
}

/// Other agents' scripts that the configuration switches on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchedOn {
    /// "50-vmware"
    pub name: String,
    pub settings: Settings,
    /// where that is written, for messages
    pub at: PathBuf,
}

/// Reads `dir`: what will run, in order. A missing directory is an empty listing.
///
/// # Errors
/// `Unusable` for any file that is neither a usable hook nor ignored by name: not executable, CRLF line ends, missing
/// interpreter, writable by others …; nothing is skipped silently.
pub fn list(dir: &Path, default_limit: Duration, switched_on: &[SwitchedOn]) -> Result<Listing, Error> {
    let mut listing = Listing::default();
    let mut settings = Vec::new();
    let mut scripts = Vec::new();
    for name in names(dir, None)? {
        if ignored(&name) {
            listing.ignored.push(name);
        } else if let Some(stem) = name.strip_suffix(".toml") {
            let path = dir.join(&name);
            settings.push(SwitchedOn { name: stem.to_owned(), settings: Settings::read(&path)?, at: path });
        } else {
            scripts.push(name);
        }
    }
    for name in &scripts {
        let own = settings.iter().position(|own| own.name == *name).map(|at| settings.swap_remove(at));
        listing.hooks.push(hook(dir, name, own, default_limit)?);
    }
    settings.sort_by(|a, b| a.name.cmp(&b.name));
    for other in settings.iter().chain(switched_on) {
        if other.settings.convention.is_none() {
            let why = format!("these are settings for `{}`, and there is no such hook", other.name);
            return Err(unusable(&other.at, why, neighbour_hint(&other.name, scripts.iter().map(String::as_str))));
        }
        convention::expand(other, default_limit, &mut listing)?;
    }
    listing.hooks.sort_by(|a, b| order(&a.name).cmp(&order(&b.name))); // stable: legacy pairs have their own order
    let mut seen = BTreeSet::new();
    for hook in &listing.hooks {
        if !seen.insert(&hook.name) {
            let why = format!("there are two hooks of the name {}", hook.name);
            return Err(unusable(&hook.path, why, "give one of the two another name"));
        }
    }
    Ok(listing)
}

/// Byte order of the names, and of what one convention has within it.
fn order(name: &str) -> (&[u8], &[u8]) {
    let (entry, script) = name.split_once('/').unwrap_or((name, ""));
    (entry.as_bytes(), script.as_bytes())
}

/// The names in `dir`, sorted; none if there is no such directory. It may belong to `user`, whom what is in it runs as.
///
/// # Errors
/// It cannot be read, others could write there, or a name is no text.
pub fn names(dir: &Path, user: Option<&User>) -> Result<Vec<String>, Error> {
    let unreadable = |source| Error::Directory { dir: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    guarded(dir, &fs::canonicalize(dir).map_err(unreadable)?, user)?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(unreadable)?.file_name();
        match name.into_string() {
            Ok(name) if !name.chars().any(char::is_control) => names.push(name),
            Ok(name) => return Err(unusable(&dir.join(name), "its name contains a control character", RENAME)),
            Err(name) => return Err(unusable(&dir.join(name), "its name is not valid UTF-8", RENAME)),
        }
    }
    names.sort_unstable(); // byte order
    Ok(names)
}

/// Names that editors and package managers leave behind, and documentation.
pub fn ignored(name: &str) -> bool {
    const SUFFIXES: [&str; 5] = ["~", ".bak", ".orig", ".sample", ".md"];
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    name.starts_with('.')
        || SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
        || extension.starts_with("rpm")
        || extension.starts_with("dpkg-")
}

const RENAME: &str = "rename it, for instance to 10-orders";

/// A script of our own convention.
fn hook(dir: &Path, name: &str, own: Option<SwitchedOn>, default_limit: Duration) -> Result<Hook, Error> {
    let path = dir.join(name);
    let (settings, at) = own.map_or((Settings::default(), path.clone()), |own| (own.settings, own.at));
    if let Some(convention) = settings.convention {
        let why = format!("it switches on the convention {}, but there is a hook of its name", convention.as_str());
        return Err(unusable(&at, why, "give one of the two another name"));
    }
    let user = settings.user.as_deref().map(User::named).transpose().map_err(|why| unusable(&at, why, ""))?;
    usable(&path, Started::ByKernel, user.as_ref())?;
    let wanted = settings.phases.unwrap_or_else(|| vec![Phase::Freeze]);
    let call = |phase: Phase| Some(Call::new(&path, &[phase.as_str()]));
    let calls = Calls {
        prepare: wanted.contains(&Phase::Prepare).then(|| call(Phase::Prepare)).flatten(),
        freeze: wanted.contains(&Phase::Freeze).then(|| call(Phase::Freeze)).flatten(),
        thaw: call(Phase::Thaw),
        failed: call(Phase::Thaw),
    };
    Ok(Hook {
        name: name.to_owned(),
        limit: settings.timeout.unwrap_or(default_limit),
        required: settings.required.unwrap_or(true),
        user,
        calls,
        statuses: Statuses::Zero,
        holds: settings.holds,
        path,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    struct Hooks(tempfile::TempDir);

    impl Hooks {
        fn new() -> Hooks {
            Hooks(tempfile::tempdir().expect("a temporary directory"))
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn file(self, name: &str, mode: u32, content: impl AsRef<[u8]>) -> Hooks {
            fs::write(self.path(name), content).expect("written");
            fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).expect("mode set");
            self
        }

        fn hook(self, name: &str) -> Hooks {
            self.file(name, 0o755, "#!/bin/sh\nexit 0\n")
        }

        fn list(&self) -> Result<Listing, Error> {
            list(self.0.path(), LIMIT, &[])
        }

        fn names(&self) -> Vec<String> {
            self.list().expect("all usable").hooks.into_iter().map(|hook| hook.name).collect()
        }

        fn refused(&self) -> (String, String) {
            let error = self.list().expect_err("something is wrong with it");
            (error.to_string(), error.hint().to_owned())
        }
    }

    fn refused(hooks: Hooks, why: &str, hint: &str) {
        let (message, cure) = hooks.refused();
        assert!(message.contains(why), "{message}");
        assert!(cure.contains(hint), "{cure}");
    }

    #[test]
    fn a_missing_directory_is_an_empty_listing() {
        let listing = list(Path::new("/no/such/hooks.d"), LIMIT, &[]).expect("no hooks is fine");
        assert!(listing.hooks.is_empty() && listing.ignored.is_empty());
    }

    #[test]
    fn hooks_run_in_byte_order() {
        let hooks = Hooks::new().hook("9-late").hook("10-b").hook("10-a").hook("Z").hook("a");
        assert_eq!(hooks.names(), ["10-a", "10-b", "9-late", "Z", "a"]);
    }

    #[test]
    fn what_editors_and_packages_leave_behind_is_ignored_and_said() {
        let names =
            [".hidden", "10-a.bak", "10-a.dpkg-new", "10-a.md", "10-a.orig", "10-a.rpmsave", "10-a.sample", "10-a~"];
        let mut hooks = Hooks::new().hook("10-a").hook("20-rpm");
        for name in names {
            hooks = hooks.file(name, 0o666, "whatever");
        }
        assert_eq!(hooks.list().expect("usable").ignored, names);
        assert_eq!(hooks.names(), ["10-a", "20-rpm"]);
    }

    #[test]
    fn anything_else_that_cannot_run_is_an_error() {
        let with = |content: &str| Hooks::new().file("10-a", 0o755, content);
        refused(Hooks::new().file("10-a", 0o644, "#!/bin/sh\n"), "not executable", "chmod +x");
        refused(with("#!/bin/sh\r\nexit 0\r\n"), "CRLF", "sed -i");
        refused(with("#!/no/such/sh\n"), "/no/such/sh", "first line");
        refused(with("#!/usr/bin/env no-such-language\n"), "no-such-language", "first line");
        refused(with("#!\n"), "no interpreter", "#!/bin/sh");
        refused(with("exit 0\n"), "neither a program nor a script", "#!/bin/sh");
        refused(with("\u{feff}#!/bin/sh\n"), "byte order mark", "#!/bin/sh");
        refused(with(""), "empty", "#!/bin/sh");
        let directory = Hooks::new();
        fs::create_dir(directory.path("10-a")).expect("created");
        refused(directory, "directory", "belong here");
        let dangling = Hooks::new();
        symlink("nowhere", dangling.path("10-a")).expect("linked");
        refused(dangling, "leads nowhere", "repair");
        let fifo = Hooks::new();
        nix::unistd::mkfifo(&fifo.path("10-a"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        refused(fifo, "not a regular file", "belong here");
    }

    #[test]
    fn a_script_found_through_env_and_a_program_are_usable() {
        let program = fs::read("/bin/true").expect("every system has it");
        let hooks = Hooks::new().file("10-env", 0o700, "#!/usr/bin/env sh\n").file("20-elf", 0o755, program);
        assert_eq!(hooks.names(), ["10-env", "20-elf"]);
    }

    #[test]
    fn what_others_could_change_does_not_run_as_root() {
        refused(Hooks::new().file("10-a", 0o775, "#!/bin/sh\n"), "written by others", "chmod go-w");
        let open = Hooks::new().hook("10-a");
        fs::set_permissions(open.0.path(), fs::Permissions::from_mode(0o777)).expect("mode set");
        refused(open, "written by others", "chmod go-w");
        let elsewhere = Hooks::new();
        fs::create_dir(elsewhere.path("drop")).expect("created");
        fs::set_permissions(elsewhere.path("drop"), fs::Permissions::from_mode(0o777)).expect("mode set");
        let elsewhere = elsewhere.hook("drop/target");
        let linked = Hooks::new();
        symlink(elsewhere.path("drop/target"), linked.path("10-a")).expect("linked");
        refused(linked, "drop can be written by others", "chmod go-w");
    }

    #[test]
    fn a_hook_of_another_user_is_refused() {
        let hooks = Hooks::new().hook("10-a");
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(hooks.path("10-a"), Some(65534), None).expect("root may");
            refused(hooks, "belongs to uid 65534", "chown root");
        } else {
            assert_eq!(hooks.names(), ["10-a"], "our own is as good as root's");
        }
    }

    #[test]
    fn settings_beside_a_hook_change_it() {
        let hooks = Hooks::new().hook("10-a").hook("20-b").file(
            "10-a.toml",
            0o644,
            "timeout = \"1m 30s\"\nrequired = false\nprepare = true\n",
        );
        let listing = hooks.list().expect("usable");
        let [a, b] = &listing.hooks[..] else { panic!("two hooks") };
        assert_eq!((a.limit, a.required), (Duration::from_secs(90), false));
        assert!(a.phases().eq([Phase::Prepare, Phase::Freeze, Phase::Thaw]));
        assert_eq!((b.limit, b.required), (LIMIT, true));
        assert!(b.phases().eq([Phase::Freeze, Phase::Thaw]));
    }

    #[test]
    fn wrong_settings_name_the_key_and_its_neighbour() {
        let with = |text: &str| Hooks::new().hook("10-a").file("10-a.toml", 0o644, text);
        refused(with("timeuot = \"5s\""), "unknown key `timeuot`", "did you mean `timeout`?");
        refused(with("xyz = 1"), "unknown key `xyz`", "timeout, required, user");
        refused(with("timeout = 5"), "must be text such as \"5s\"", "timeout");
        refused(with("timeout = \"soon\""), "not a duration", "timeout");
        refused(with("timeout = \"0s\""), "longer than nothing", "timeout");
        refused(with("required = \"yes\""), "true or false", "required");
        refused(with("= 5"), "not valid TOML", "timeout");
        refused(Hooks::new().hook("10-a").file("10-a.toml", 0o666, ""), "written by others", "chmod go-w");
    }

    #[test]
    fn settings_without_a_hook_are_an_error() {
        refused(Hooks::new().hook("10-orders").file("10-order.toml", 0o644, ""), "no such hook", "`10-orders`");
        refused(Hooks::new().file("10-a.toml", 0o644, ""), "no such hook", "there are none");
    }

    #[test]
    fn a_hook_of_the_user_it_runs_as_is_fine_and_one_of_another_is_not() {
        if !nix::unistd::geteuid().is_root() {
            return; // only root can give files away
        }
        let hooks = Hooks::new().hook("10-a").file("10-a.toml", 0o644, "user = \"nobody\"");
        fs::set_permissions(hooks.0.path(), fs::Permissions::from_mode(0o755)).expect("mode set"); // a temporary one is 0700
        let nobody = nix::unistd::User::from_name("nobody").expect("readable").expect("every machine has it");
        std::os::unix::fs::chown(hooks.path("10-a"), Some(nobody.uid.as_raw()), None).expect("root may");
        let listed = hooks.list().expect("usable").hooks.remove(0);
        assert_eq!(listed.user.expect("one").ids.uid, nobody.uid.as_raw());
        std::os::unix::fs::chown(hooks.path("10-a"), Some(12), None).expect("root may");
        refused(hooks, "belongs to uid 12, who could change what runs as nobody", "chown nobody");
        refused(
            Hooks::new().hook("10-a").file("10-a.toml", 0o644, "user = \"no-such-user\""),
            "there is no user no-such-user",
            "",
        );
    }

    #[test]
    fn a_hook_that_its_user_cannot_read_or_reach_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            return; // only root can ask as somebody else
        }
        let with = |mode, above| {
            let hooks = Hooks::new().file("10-a", mode, "#!/bin/sh\n").file("10-a.toml", 0o644, "user = \"nobody\"");
            fs::set_permissions(hooks.0.path(), fs::Permissions::from_mode(above)).expect("mode set");
            hooks
        };
        assert_eq!(with(0o755, 0o755).names(), ["10-a"]);
        refused(with(0o700, 0o755), "nobody may not read and execute it", "chmod 0755");
        refused(with(0o711, 0o755), "nobody may not read and execute it", "chmod 0755");
        refused(with(0o755, 0o700), "nobody may not read and execute it", "directories above");
    }

    #[test]
    fn a_conventions_directory_may_belong_to_whom_its_scripts_run_as() {
        if !nix::unistd::geteuid().is_root() {
            return; // only root can give files away
        }
        let theirs = Hooks::new().hook("10-x");
        let nobody = nix::unistd::User::from_name("nobody").expect("readable").expect("every machine has it");
        for path in [theirs.0.path().to_owned(), theirs.path("10-x")] {
            std::os::unix::fs::chown(path, Some(nobody.uid.as_raw()), None).expect("root may");
        }
        let with = |user| {
            let text = format!("convention = \"qemu\"\npath = \"{}\"\n{user}", theirs.0.path().display());
            Hooks::new().file("50-qemu.toml", 0o644, text)
        };
        assert_eq!(with("user = \"nobody\"").names(), ["50-qemu/10-x"]);
        refused(with(""), "who could change what runs as root", "chown root");
    }

    #[test]
    fn phases_are_those_asked_for_and_thaw_comes_always() {
        let with = |text: &str| {
            let hooks = Hooks::new().hook("10-a").file("10-a.toml", 0o644, text);
            let hook = hooks.list().expect("usable").hooks.remove(0);
            hook.phases().map(Phase::as_str).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(with("phases = [\"prepare\"]"), "prepare thaw");
        assert_eq!(with("phases = [\"thaw\"]"), "thaw");
        assert_eq!(with("phases = []"), "thaw");
        assert_eq!(with("phases = [\"prepare\", \"freeze\", \"thaw\"]"), "prepare freeze thaw");
    }
}
