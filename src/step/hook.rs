//! Running a hook: an executable in `hooks.d`, one argument (`freeze`, `thaw`, `prepare`), own process group, bounded
//! output, verdict from its exit status and nothing else. [`list`] is called while preparing and by `holdstill hooks`,
//! [`run`] by the driver.
//!
//! A hook runs as root, so everything on the way to it must belong to root (or to us) and be writable by nobody else:
//! the file, its directory and every directory above (a sticky one such as /tmp is fine), also where a link leads.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, Metadata},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::statvfs::{FsFlags, statvfs};

use crate::{
    proto,
    sys::process::{self, Stop},
};

/// One usable hook, as found while preparing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// file name, e.g. "10-orders"; the step is "hook:10-orders"
    pub name: String,
    pub path: PathBuf,
    pub limit: Duration,
    pub required: bool,
    /// its settings ask for the `prepare` phase too
    pub prepare: bool,
}

/// What the hooks directory holds.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// in byte order of their names: the order of `freeze`
    pub hooks: Vec<Hook>,
    /// ignored by name, and said: "10-a~", "README.md" …
    pub ignored: Vec<String>,
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
    #[error("run the hook {name}: it exited with status {code}")]
    Exit { name: String, code: i32, ran: Box<Ran> },
    #[error("run the hook {name}: it was killed by signal {signal}")]
    Killed { name: String, signal: i32, ran: Box<Ran> },
    #[error("run the hook {name}: it did not end within {limit:?} and was killed")]
    TimedOut { name: String, limit: Duration, ran: Box<Ran> },
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

/// What a hook sees besides `HOLDSTILL_*`.
const ENVIRONMENT: [(&str, &str); 3] = [("PATH", PATH), ("HOME", "/root"), ("LANG", "C.UTF-8")];
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What every program started by us sees besides `HOLDSTILL_*`.
pub(crate) fn environment() -> BTreeMap<String, String> {
    ENVIRONMENT.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Reads `dir`: what will run, in order. A missing directory is an empty listing.
///
/// # Errors
/// `Unusable` for any file that is neither a usable hook nor ignored by name: not executable, CRLF line ends, missing
/// interpreter, writable by others …; nothing is skipped silently.
pub fn list(dir: &Path, default_limit: Duration) -> Result<Listing, Error> {
    let unreadable = |source| Error::Directory { dir: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Listing::default()),
        Err(error) => return Err(unreadable(error)),
    };
    guarded(dir, &fs::canonicalize(dir).map_err(unreadable)?)?;

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

    let mut listing = Listing::default();
    let mut settings = Vec::new();
    for name in names {
        if ignored(&name) {
            listing.ignored.push(name);
        } else if let Some(stem) = name.strip_suffix(".toml") {
            settings.push((stem.to_owned(), dir.join(&name)));
        } else {
            let path = dir.join(&name);
            usable(&path)?;
            listing.hooks.push(Hook { name, path, limit: default_limit, required: true, prepare: false });
        }
    }
    for (stem, path) in settings {
        let Some(hook) = listing.hooks.iter_mut().find(|hook| hook.name == stem) else {
            let why = format!("these are settings for `{stem}`, and there is no such hook");
            return Err(unusable(
                &path,
                why,
                neighbour_hint(&stem, listing.hooks.iter().map(|hook| hook.name.as_str())),
            ));
        };
        apply_settings(hook, &path)?;
    }
    Ok(listing)
}

/// Names that editors and package managers leave behind, and documentation.
pub(crate) fn ignored(name: &str) -> bool {
    const SUFFIXES: [&str; 5] = ["~", ".bak", ".orig", ".sample", ".md"];
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    name.starts_with('.')
        || SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
        || extension.starts_with("rpm")
        || extension.starts_with("dpkg-")
}

const RENAME: &str = "rename it, for instance to 10-orders";

fn unusable(path: &Path, why: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Unusable { path: path.to_owned(), why: why.into(), hint: hint.into() }
}

/// Can the file be run: for hooks, and for what else is run as root from a directory of scripts.
pub(crate) fn usable(path: &Path) -> Result<(), Error> {
    let target = match fs::canonicalize(path) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(unusable(path, "it is a link that leads nowhere", "remove it, or repair the link"));
        }
        Err(error) => return Err(unusable(path, format!("it cannot be looked at: {error}"), "")),
    };
    let about =
        fs::metadata(&target).map_err(|error| unusable(path, format!("it cannot be looked at: {error}"), ""))?;
    if !about.is_file() {
        let why = if about.is_dir() { "it is a directory" } else { "it is not a regular file" };
        return Err(unusable(path, why, "only hooks, their .toml settings and documentation (.md) belong here"));
    }
    owned(path, &target, &about)?;
    guarded(path, target.parent().unwrap_or(Path::new("/")))?;
    if about.mode() & 0o100 == 0 {
        let hint = format!("chmod +x {}, or end its name in .sample to switch it off", target.display());
        return Err(unusable(path, "it is not executable", hint));
    }
    if statvfs(&target).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_NOEXEC)) {
        return Err(unusable(path, "it lies on a file system mounted with noexec", "move it, or link to it elsewhere"));
    }
    let mut start = Vec::new();
    open_regular(&target)
        .and_then(|file| file.take(LONGEST_SHEBANG).read_to_end(&mut start))
        .map_err(|error| unusable(path, format!("it cannot be read: {error}"), ""))?;
    interpreter(path, &start)
}

/// Without O_NONBLOCK a FIFO put in place of the file would keep us.
fn open_regular(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(path)
}

/// What the kernel reads of a file to find its interpreter (BINPRM_BUF_SIZE, include/uapi/linux/binfmts.h).
const LONGEST_SHEBANG: u64 = 256;

/// Can the kernel start a file that begins like this?
fn interpreter(path: &Path, start: &[u8]) -> Result<(), Error> {
    if start.starts_with(b"\x7fELF") {
        return Ok(());
    }
    let Some(rest) = start.strip_prefix(b"#!") else {
        let why = match start {
            [] => "it is empty",
            [0xef, 0xbb, 0xbf, ..] => "it starts with a byte order mark, which hides its first line from the kernel",
            [_, ..] => "it is neither a program nor a script that starts with #!",
        };
        return Err(unusable(path, why, "let its first line be #!/bin/sh, or whatever should run it"));
    };
    let line = rest.split(|&byte| byte == b'\n').next().unwrap_or(rest);
    if line.contains(&b'\r') {
        let hint = format!("sed -i 's/\\r$//' {}", path.display());
        return Err(unusable(path, "its lines end in CRLF, so that its interpreter cannot be found", hint));
    }
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    let Some(interpreter) = words.next() else {
        return Err(unusable(path, "it names no interpreter after #!", "let its first line be #!/bin/sh"));
    };
    let interpreter = Path::new("/").join(OsStr::from_bytes(interpreter)); // hooks run with `/` as their directory
    let missing = |what: &Path| {
        let hint = "install it, or correct the first line";
        unusable(path, format!("its interpreter {} does not exist or is not executable", what.display()), hint)
    };
    if !executable(&interpreter) {
        return Err(missing(&interpreter));
    }
    // `#!/usr/bin/env NAME`: the same question one step further. Its options and assignments are left to env itself.
    if interpreter.file_name() == Some(OsStr::new("env"))
        && let Some(name) = words.next().filter(|word| !word.starts_with(b"-") && !word.contains(&b'='))
    {
        let name = Path::new(OsStr::from_bytes(name));
        if !PATH.split(':').any(|directory| executable(&Path::new(directory).join(name))) {
            return Err(missing(name));
        }
    }
    Ok(())
}

fn executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|about| about.is_file() && about.mode() & 0o111 != 0)
}

/// Is `directory`, with every directory above it, out of others' reach? `subject` is whom the answer is about.
pub(crate) fn guarded(subject: &Path, directory: &Path) -> Result<(), Error> {
    for ancestor in directory.ancestors() {
        let about = fs::metadata(ancestor)
            .map_err(|error| unusable(subject, format!("{} cannot be looked at: {error}", ancestor.display()), ""))?;
        let sticky = about.mode() & 0o1000 != 0;
        if sticky && ancestor != directory && ours(&about) {
            continue;
        }
        owned(subject, ancestor, &about)?;
    }
    Ok(())
}

fn ours(about: &Metadata) -> bool {
    about.uid() == 0 || about.uid() == nix::unistd::geteuid().as_raw()
}

fn owned(subject: &Path, path: &Path, about: &Metadata) -> Result<(), Error> {
    let what = if subject == path { "it".to_owned() } else { path.display().to_string() };
    if !ours(about) {
        let why = format!("{what} belongs to uid {}, who could change what runs as root", about.uid());
        return Err(unusable(subject, why, format!("chown root {}", path.display())));
    }
    if about.mode() & 0o022 != 0 {
        let why = format!("{what} can be written by others (mode {:04o})", about.mode() & 0o7777);
        return Err(unusable(subject, why, format!("chmod go-w {}", path.display())));
    }
    Ok(())
}

/// Longest settings file that is read.
const LONGEST_SETTINGS: u64 = 64 * 1024;

fn apply_settings(hook: &mut Hook, path: &Path) -> Result<(), Error> {
    const KEYS: [&str; 3] = ["timeout", "required", "prepare"];
    let wrong = |why: String| unusable(path, why, "the keys are timeout = \"5s\", required = true, prepare = false");
    let mut text = String::new();
    let read = fs::canonicalize(path).and_then(|target| {
        let file = open_regular(&target)?;
        let about = file.metadata()?;
        if about.is_file() {
            file.take(LONGEST_SETTINGS).read_to_string(&mut text)?
        } else {
            0
        };
        Ok((target, about))
    });
    let (target, about) = read.map_err(|error| wrong(format!("it cannot be read: {error}")))?;
    if !about.is_file() {
        return Err(wrong("it is not a regular file".to_owned()));
    }
    owned(path, &target, &about)?;
    guarded(path, target.parent().unwrap_or(Path::new("/")))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        wrong(format!("it is not valid TOML: {}", error.to_string().trim_end().replace('\n', " ")))
    })?;
    for (key, value) in &table {
        let flag = || value.as_bool().ok_or_else(|| wrong(format!("`{key}` must be true or false, not {value}")));
        match key.as_str() {
            "required" => hook.required = flag()?,
            "prepare" => hook.prepare = flag()?,
            "timeout" => {
                let text = value
                    .as_str()
                    .ok_or_else(|| wrong(format!("`timeout` must be text such as \"5s\", not {value}")))?;
                let limit = humantime::parse_duration(text)
                    .map_err(|error| wrong(format!("`timeout` is not a duration: {error}")))?;
                if limit.is_zero() {
                    return Err(wrong("`timeout` must be longer than nothing".to_owned()));
                }
                hook.limit = limit;
            }
            unknown => {
                return Err(unusable(
                    path,
                    format!("unknown key `{unknown}`"),
                    neighbour_hint(unknown, KEYS.into_iter()),
                ));
            }
        }
    }
    Ok(())
}

/// "did you mean …?", or the whole choice when nothing is near.
fn neighbour_hint<'a>(wrong: &str, choice: impl Iterator<Item = &'a str>) -> String {
    let choice: Vec<&str> = choice.collect();
    let near = choice.iter().map(|right| (strsim::jaro_winkler(wrong, right), right));
    match near.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((likeness, right)) if likeness > 0.7 => format!("did you mean `{right}`?"),
        Some(_) => format!("there are: {}", choice.join(", ")),
        None => "there are none".to_owned(),
    }
}

/// Runs one phase of a hook in its own process group, within `hook.limit`, killing the whole group (TERM, then KILL)
/// at the limit. `environment` is added to a small defined one (PATH, HOME, LANG).
///
/// Dropping the future does not end the hook: it runs on, up to its limit.
///
/// # Errors
/// Anything but exit status 0.
pub async fn run(hook: &Hook, phase: Phase, environment: &BTreeMap<String, String>) -> Result<Ran, Error> {
    run_unless(hook, phase, environment, None).await
}

/// As [`run`], but ended early once `stop` is told: the hold it belongs to ends.
///
/// # Errors
/// Anything but exit status 0.
pub async fn run_unless(
    hook: &Hook,
    phase: Phase,
    environment: &BTreeMap<String, String>,
    stop: Option<Stop>,
) -> Result<Ran, Error> {
    let mut all = self::environment();
    all.extend(environment.iter().map(|(key, value)| (key.clone(), value.clone())));
    let (path, limit) = (hook.path.clone(), hook.limit);
    let name = || hook.name.clone();
    let outcome = tokio::task::spawn_blocking(move || {
        process::run_unless(&path, &[OsStr::new(phase.as_str())], &all, limit, stop.as_ref())
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
    let ran = Ran { took: outcome.took, run };
    match outcome.status {
        process::Status::Exited(0) => Ok(ran),
        process::Status::Exited(code) => Err(Error::Exit { name: name(), code, ran: Box::new(ran) }),
        process::Status::Signaled(signal) => Err(Error::Killed { name: name(), signal, ran: Box::new(ran) }),
        process::Status::TimedOut => Err(Error::TimedOut { name: name(), limit, ran: Box::new(ran) }),
    }
}

/// Output as text of at most `OUTPUT_TAIL` bytes: what is not UTF-8 is replaced, which may make it longer.
fn tail_text(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let from = text.len().saturating_sub(process::OUTPUT_TAIL);
    let from = (from..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    text[from..].to_owned()
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
            list(self.0.path(), LIMIT)
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
        let listing = list(Path::new("/no/such/hooks.d"), LIMIT).expect("no hooks is fine");
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
        assert_eq!((a.limit, a.required, a.prepare), (Duration::from_secs(90), false, true));
        assert_eq!((b.limit, b.required, b.prepare), (LIMIT, true, false));
    }

    #[test]
    fn wrong_settings_name_the_key_and_its_neighbour() {
        let with = |text: &str| Hooks::new().hook("10-a").file("10-a.toml", 0o644, text);
        refused(with("timeuot = \"5s\""), "unknown key `timeuot`", "did you mean `timeout`?");
        refused(with("xyz = 1"), "unknown key `xyz`", "timeout, required, prepare");
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

    #[tokio::test]
    async fn a_hook_sees_its_phase_and_the_environment_given() {
        let hooks = Hooks::new().file("10-a", 0o755, "#!/bin/sh\necho $1 $HOLDSTILL_ID $HOME; echo >&2 to stderr\n");
        let hook = hooks.list().expect("usable").hooks.remove(0);
        let environment = BTreeMap::from([("HOLDSTILL_ID".to_owned(), "h1".to_owned())]);
        let ran = run_settled(&hook, Phase::Thaw, &environment).await.expect("it exits 0");
        assert_eq!(ran.run.output_tail, "thaw h1 /root\nto stderr\n");
        assert_eq!((ran.run.exit_code, ran.run.signal), (Some(0), None));
    }

    #[tokio::test]
    async fn only_exit_status_zero_is_success() {
        let hooks = Hooks::new()
            .file("10-exits", 0o755, "#!/bin/sh\necho why; exit 9\n")
            .file("20-dies", 0o755, "#!/bin/sh\nkill -SEGV $$\n")
            .file("30-hangs", 0o755, "#!/bin/sh\nsleep 60\n");
        let mut listed = hooks.list().expect("usable").hooks;
        listed[2].limit = Duration::from_millis(100);
        let mut errors = Vec::new();
        for hook in &listed {
            errors.push(run_settled(hook, Phase::Freeze, &BTreeMap::new()).await.expect_err("none exits 0"));
        }
        assert!(matches!(&errors[0], Error::Exit { code: 9, ran, .. } if ran.run.output_tail == "why\n"));
        assert!(matches!(&errors[1], Error::Killed { signal: 11, ran, .. } if ran.run.signal == Some(11)));
        assert!(matches!(&errors[2], Error::TimedOut { ran, .. } if ran.run.exit_code.is_none()));
        assert_eq!(errors[0].to_string(), "run the hook 10-exits: it exited with status 9");
        let gone = Hook { path: hooks.path("gone"), ..listed.remove(0) };
        let error = run(&gone, Phase::Freeze, &BTreeMap::new()).await.expect_err("nothing is there");
        assert!(matches!(error, Error::Start { .. }));
    }

    /// Another test's fork may hold our script open for writing for an instant (ETXTBSY).
    async fn run_settled(hook: &Hook, phase: Phase, environment: &BTreeMap<String, String>) -> Result<Ran, Error> {
        loop {
            match run(hook, phase, environment).await {
                Err(Error::Start { source, .. }) if source.kind() == io::ErrorKind::ExecutableFileBusy => {}
                other => return other,
            }
        }
    }

    #[test]
    fn replaced_bytes_do_not_make_the_tail_longer() {
        let text = tail_text(&[0xff; process::OUTPUT_TAIL]);
        assert!(text.len() <= process::OUTPUT_TAIL && text.starts_with('\u{fffd}'));
    }
}
