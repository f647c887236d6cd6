//! MySQL takes seconds to initialise a data directory; a copy of one takes none. The first of an edition in a run is kept,
//! stopped and untouched, beside the facts' own directories.

use std::{fs, path::Path};

use super::{
    edition::{Edition, Engine},
    options::{Place, ServerOptions},
};
use crate::lab::{Lab, command, disk, process::tool};

const PREFIX: &str = "template-";

/// Whether a data directory made with these options is like any other of the edition.
fn is_plain(edition: &Edition, data: &Path, options: &ServerOptions) -> bool {
    let plain = options.log.is_none() && options.spaces.is_none() && options.settings.is_empty();
    let beside = options.place == Place::Beside && options.binds.is_empty();
    // what the engine makes of a directory that is not empty is for the engine to say
    let empty = fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_none());
    edition.engine == Engine::Mysql && plain && beside && empty
}

/// Fills `data` as `initialise` would.
///
/// # Errors
/// What `initialise` says.
pub fn filled(
    lab: &Lab,
    edition: &Edition,
    data: &Path,
    options: &ServerOptions,
    initialise: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    if !is_plain(edition, data, options) {
        return initialise();
    }
    let template = lab.store(&format!("../{PREFIX}{}", edition.version));
    if template.exists() {
        copy(&template, data);
        return Ok(());
    }
    initialise()?;
    let new = lab.store("template");
    fs::create_dir(&new).expect("the lab's directory is writable");
    copy(data, &new);
    // every server has a name of its own, which it gives itself when it starts
    let _ = fs::remove_file(new.join("auto.cnf"));
    if let Err(e) = fs::rename(&new, &template) {
        // a fact beside this one was faster
        assert!(template.exists(), "{} stays where it is: {e}", new.display());
        let _ = fs::remove_dir_all(new);
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) {
    tool(command("cp").args(["-a", "--sparse=always", "-T"]).arg(from).arg(to));
}

/// Removes those of this run.
pub fn forget() {
    let entries = fs::read_dir(disk::base()).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        let _ = fs::remove_dir_all(entry.path());
    }
}
