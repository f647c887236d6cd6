//! What is in the top directory of a file system: whether it is worth a word at all.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use super::{super::mounts::Table, Level, Risk, Wanted, inside};

/// Names are shown up to this.
const SHOWN: usize = 4;
/// Looked at before "more" is said.
const MOST: usize = 256;

/// Whether a file system is empty to people, and if not, what is in it.
pub(super) fn top(root: &Path, table: &Table<'_>, wanted: &Wanted, home: &Path, swaps: &[&Path]) -> Risk {
    let at = home.display().to_string();
    let risk = |level, message: String| Risk { level, subject: at.clone(), path: home.to_owned(), message };
    // what is mounted there by now need not be what was when the mounts were read
    if table.covering(home).is_none_or(|line| line.id != wanted.mount_id) {
        return risk(Level::NotEmpty, format!("{at} is not what is mounted there any more: not looked into"));
    }
    match names(root, home, swaps) {
        Err(error) => risk(Level::NotEmpty, format!("{at} cannot be looked into: {error}")),
        Ok((names, _)) if names.is_empty() => {
            risk(Level::Benign, format!("nothing is in {at} that anybody would miss"))
        }
        Ok((names, more)) => {
            let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
            let rest = match names.len() - shown.len() {
                0 => String::new(),
                rest => format!(" and {}{rest} more", if more { "at least " } else { "" }),
            };
            risk(Level::NotEmpty, format!("{} at the top of {at}", shown.join(", ") + &rest))
        }
    }
}

/// What counts, in order of its name, and whether there is more.
fn names(root: &Path, home: &Path, swaps: &[&Path]) -> io::Result<(Vec<String>, bool)> {
    let mut names = Vec::new();
    for (count, entry) in fs::read_dir(inside(root, home))?.enumerate() {
        if count == MOST {
            names.sort();
            return Ok((names, true));
        }
        let entry = entry?;
        let path: PathBuf = home.join(entry.file_name());
        if !is_benign_name(&entry.file_name()) && !swaps.contains(&path.as_path()) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok((names, false))
}

/// Made by mkfs, by the cloud, by ourselves; or temporary, and named so.
pub(super) fn is_benign_name(name: &OsStr) -> bool {
    let name = name.to_string_lossy().to_ascii_lowercase();
    matches!(
        name.as_str(),
        "lost+found"
            | ".holdstill"
            | "dataloss_warning_readme.txt"
            | "$recycle.bin"
            | "system volume information"
            | ".trash"
            | ".trash-0"
            | "tmp"
            | ".tmp"
            | "temp"
            | "cache"
            | ".cache"
            | "swapfile"
            | "swap.img"
    )
}
