//! Running a reporter: an executable in `report.d`, beside `hooks.d`, that reads the whole report of a hold that is over.
//! [`list`] is called by `check` and, with [`run`], by `hold::reporters`.
//!
//! A reporter runs as root, so the same must be true of it and of the way to it as of a hook. But nothing depends on it:
//! what is unusable is said, and keeps neither a hold nor the other reporters.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::hook;
use crate::sys::process::{self, Start, Status};

/// One usable reporter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reporter {
    /// file name, e.g. "10-mail"
    pub name: String,
    pub path: PathBuf,
}

/// What `report.d` holds.
#[derive(Debug, Default)]
pub struct Listing {
    /// in byte order of their names
    pub reporters: Vec<Reporter>,
    pub unusable: Vec<Unusable>,
}

/// A file in `report.d`, or that directory itself, that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("use the reporter {}: {why}", path.display())]
pub struct Unusable {
    pub path: PathBuf,
    pub why: String,
    pub hint: String,
}

/// Why one did not do what it should. `said` is the end of what it printed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("start the reporter {name}: {source}")]
    Start { name: String, source: io::Error },
    #[error("run the reporter {name}: it exited with status {code}")]
    Exit { name: String, code: i32, said: String },
    #[error("run the reporter {name}: it was killed by signal {signal}")]
    Killed { name: String, signal: i32, said: String },
    #[error("run the reporter {name}: it did not end within {limit:?} and was killed")]
    TimedOut { name: String, limit: Duration, said: String },
}

impl Error {
    pub fn said(&self) -> &str {
        match self {
            Error::Exit { said, .. } | Error::Killed { said, .. } | Error::TimedOut { said, .. } => said,
            Error::Start { .. } => "",
        }
    }
}

/// Where reporters are: beside the hooks directory.
pub fn directory(hooks: &Path) -> PathBuf {
    hooks.with_file_name("report.d")
}

/// Reads `dir`. Files that hooks ignore by name are ignored here too; a missing directory is an empty listing.
pub fn list(dir: &Path) -> Listing {
    let mut listing = Listing::default();
    let names = match names(dir) {
        Ok(names) => names,
        Err(unusable) => {
            listing.unusable.push(unusable);
            return listing;
        }
    };
    for name in names {
        let path = dir.join(&name);
        match hook::usable(&path, hook::Started::ByKernel, None) {
            Ok(()) => listing.reporters.push(Reporter { name, path }),
            Err(error) => listing.unusable.push(unusable(&path, error)),
        }
    }
    listing
}

fn names(dir: &Path) -> Result<Vec<String>, Unusable> {
    let unreadable = |error: io::Error| Unusable {
        path: dir.to_owned(),
        why: format!("it cannot be read: {error}"),
        hint: String::new(),
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let real = fs::canonicalize(dir).map_err(unreadable)?;
    hook::guarded(dir, &real, None).map_err(|error| unusable(dir, error))?;
    let mut names = Vec::new();
    for entry in entries {
        // a name that is no text is shown as well as it can be, and then cannot be found: unusable, and said
        names.push(entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| !hook::ignored(name));
    names.sort_unstable();
    Ok(names)
}

fn unusable(path: &Path, error: hook::Error) -> Unusable {
    match error {
        hook::Error::Unusable { path, why, hint } => Unusable { path, why, hint },
        other => Unusable { path: path.to_owned(), why: other.to_string(), hint: other.hint().to_owned() },
    }
}

/// Runs one with `document` as its input and `environment` besides the defined one of hooks. Blocks for at most `limit`
/// and the few seconds it takes to end a process group.
///
/// # Errors
/// Anything but exit status 0.
pub fn run(
    reporter: &Reporter,
    document: &[u8],
    environment: &BTreeMap<String, String>,
    limit: Duration,
) -> Result<Duration, Error> {
    let environment = hook::environment(None, limit, environment);
    let name = reporter.name.clone();
    let start =
        Start { program: &reporter.path, arguments: &[], environment: &environment, input: Some(document), user: None };
    let outcome = match process::run(start, limit, None) {
        Ok(outcome) => outcome,
        Err(source) => return Err(Error::Start { name, source }),
    };
    let said = String::from_utf8_lossy(&outcome.output).trim().to_owned();
    match outcome.status {
        Status::Exited(0) => Ok(outcome.took),
        Status::Exited(code) => Err(Error::Exit { name, code, said }),
        Status::Signaled(signal) => Err(Error::Killed { name, signal, said }),
        Status::TimedOut => Err(Error::TimedOut { name, limit, said }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(dir: &Path, name: &str, mode: u32, text: &str) {
        fs::write(dir.join(name), text).expect("written");
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).expect("mode set");
    }

    #[test]
    fn an_unusable_one_is_named_and_the_others_remain() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        file(dir.path(), "20-b", 0o755, "#!/bin/sh\n");
        file(dir.path(), "10-a", 0o644, "#!/bin/sh\n");
        file(dir.path(), "30-c", 0o777, "#!/bin/sh\n");
        file(dir.path(), "README.md", 0o644, "");
        file(dir.path(), "40-d.sample", 0o644, "");
        let listing = list(dir.path());
        let names: Vec<_> = listing.reporters.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["20-b"]);
        let said: Vec<_> = listing.unusable.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].ends_with("10-a: it is not executable"), "{said:?}");
        assert!(said[1].contains("30-c: it can be written by others"), "{said:?}");
    }

    #[test]
    fn no_directory_is_no_reporter_and_one_that_others_can_write_is_said() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let none = list(&dir.path().join("report.d"));
        assert!(none.reporters.is_empty() && none.unusable.is_empty());
        file(dir.path(), "10-a", 0o755, "#!/bin/sh\n");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("mode set");
        let open = list(dir.path());
        assert!(open.reporters.is_empty());
        assert!(open.unusable[0].to_string().contains("it can be written by others"), "{:?}", open.unusable);
    }
}
