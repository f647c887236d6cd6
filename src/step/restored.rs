//! Scripts for a machine that was started from a copy: `restored.d`, beside `hooks.d`. [`list`] is called by `check`,
//! `hooks list` and, with [`super::hook::run`], by `hold::restored`.
//!
//! They are hooks without phases: run by the same runner, once for each machine, with settings `timeout` and `user` beside
//! them. One that cannot be used is said, and keeps neither the others nor a hold.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::hook::{self, Call, Calls, Hook, Statuses, User};

/// What restored.d holds.
#[derive(Debug, Default)]
pub struct Listing {
    /// in byte order of their names: the order in which they run
    pub scripts: Vec<Hook>,
    pub unusable: Vec<Unusable>,
}

/// A file in `restored.d`, or that directory itself, that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("use {}: {why}", path.display())]
pub struct Unusable {
    pub path: PathBuf,
    pub why: String,
    pub hint: String,
}

/// Making keys takes a while on a machine that has just started.
const LIMIT: Duration = Duration::from_secs(60);

/// Where they are: beside the hooks directory.
pub fn directory(hooks: &Path) -> PathBuf {
    hooks.with_file_name("restored.d")
}

/// Reads `dir`. Files that hooks ignore by name are ignored here too; a missing directory is an empty listing.
pub fn list(dir: &Path) -> Listing {
    let mut listing = Listing::default();
    let names = match hook::list::names(dir, None) {
        Ok(names) => names,
        Err(error) => {
            listing.unusable.push(unusable(dir, error));
            return listing;
        }
    };
    for name in names.iter().filter(|name| !hook::ignored(name)) {
        let path = dir.join(name);
        let found = match name.strip_suffix(".toml") {
            Some(script) if names.iter().any(|other| other == script) => continue,
            Some(script) => {
                let why = format!("these are settings for `{script}`, and there is no such script");
                Err(Unusable { path, why, hint: "remove it, or put the script beside it".to_owned() })
            }
            None => {
                let own = names.contains(&format!("{name}.toml")).then(|| dir.join(format!("{name}.toml")));
                script(name, &path, own.as_deref()).map_err(|error| unusable(&path, error))
            }
        };
        match found {
            Ok(script) => listing.scripts.push(script),
            Err(unusable) => listing.unusable.push(unusable),
        }
    }
    listing
}

fn script(name: &str, path: &Path, own: Option<&Path>) -> Result<Hook, hook::Error> {
    let wrong = |why: String, hint: &str| hook::Error::Unusable {
        path: own.unwrap_or(path).to_owned(),
        why,
        hint: hint.to_owned(),
    };
    let settings = own.map(hook::Settings::read).transpose()?.unwrap_or_default();
    let meant_for_hooks = settings.phases.is_some()
        || settings.convention.is_some()
        || !settings.holds.is_empty()
        || settings.required.is_some();
    if meant_for_hooks {
        return Err(wrong("only `timeout` and `user` mean anything here".to_owned(), "remove the other keys"));
    }
    let user = settings.user.as_deref().map(User::named).transpose().map_err(|why| wrong(why, ""))?;
    hook::usable(path, hook::Started::ByKernel, user.as_ref())?;
    Ok(Hook {
        name: name.to_owned(),
        path: path.to_owned(),
        limit: settings.timeout.unwrap_or(LIMIT),
        required: false,
        user,
        calls: Calls { freeze: Some(Call::new(path, &[])), ..Calls::default() },
        statuses: Statuses::Zero,
        holds: Vec::new(),
    })
}

fn unusable(path: &Path, error: hook::Error) -> Unusable {
    match error {
        hook::Error::Unusable { path, why, hint } => Unusable { path, why, hint },
        other => Unusable { path: path.to_owned(), why: other.to_string(), hint: other.hint().to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn file(dir: &Path, name: &str, mode: u32, text: &str) {
        fs::write(dir.join(name), text).expect("written");
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).expect("mode set");
    }

    #[test]
    fn scripts_have_a_limit_of_their_own_and_what_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        file(dir.path(), "10-a", 0o755, "#!/bin/sh\n");
        file(dir.path(), "10-a.toml", 0o644, "timeout = \"2m\"\n");
        file(dir.path(), "20-b", 0o755, "#!/bin/sh\n");
        file(dir.path(), "20-b.toml", 0o644, "phases = [\"freeze\"]\n");
        file(dir.path(), "30-c", 0o644, "#!/bin/sh\n");
        file(dir.path(), "40-d.toml", 0o644, "");
        file(dir.path(), "50-e.sample", 0o644, "");
        let listing = list(dir.path());
        let found: Vec<_> = listing.scripts.iter().map(|s| (s.name.as_str(), s.limit.as_secs())).collect();
        assert_eq!(found, [("10-a", 120)]);
        let said: Vec<_> = listing.unusable.iter().map(ToString::to_string).collect();
        assert!(said[0].contains("20-b.toml: only `timeout` and `user`"), "{said:?}");
        assert!(said[1].contains("30-c: it is not executable") && said[2].contains("no such script"), "{said:?}");
        assert!(list(&dir.path().join("none")).scripts.is_empty());
    }
}
