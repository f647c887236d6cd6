//! Cron's tables, as far as they name a path on a file system in question. Scripts are not read.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{super::Dev, Aim, Level, Risk, Walk, inside, text};

/// Tables of users and packages.
const DIRECTORIES: [&str; 3] = ["/etc/cron.d", "/var/spool/cron/crontabs", "/var/spool/cron"];
/// Files in each directory, and paths in each file.
const MOST: usize = 64;

/// One risk for each table.
pub(super) fn tables(root: &Path, walk: &Walk<'_>, aim: &Aim<'_>) -> Vec<(Dev, Risk)> {
    if !aim.wanted.keys().any(|dev| aim.at_units(*dev)) {
        return Vec::new();
    }
    let mut files = vec![PathBuf::from("/etc/crontab")];
    for directory in DIRECTORIES {
        let Some(place) = walk.to(Path::new(directory)) else { continue };
        let entries = fs::read_dir(inside(root, &place.path)).into_iter().flatten().flatten().take(MOST);
        let plain = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
        files.extend(plain.map(|entry| place.path.join(entry.file_name())));
    }
    let mut risks = Vec::new();
    for file in files {
        let Some(text) = walk.to(&file).and_then(|place| text(&inside(root, &place.path))) else { continue };
        let there = paths(&text).into_iter().filter_map(|path| walk.to(&path)).find(|place| aim.at_units(place.dev));
        if let Some(place) = there {
            let (table, path) = (file.display(), place.path.display());
            let message = format!("a job of {table} uses {path}");
            risks.push((
                place.dev,
                Risk { level: Level::State, subject: format!("cron:{table}"), path: place.path, message },
            ));
        }
    }
    risks
}

/// Absolute paths in commands; a file that a command makes may not be there yet, so its directory is meant.
fn paths(text: &str) -> Vec<PathBuf> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#') && !line.starts_with("PATH="));
    let words = lines.flat_map(|line| line.split(|c: char| c.is_whitespace() || ";&|<>'\"()=".contains(c)));
    let mut paths: Vec<PathBuf> = Vec::new();
    for word in words.filter(|word| word.starts_with('/') && word.len() > 1) {
        let path = PathBuf::from(word);
        let parent = path.parent().filter(|parent| parent.components().count() > 1).map(Path::to_owned);
        for path in std::iter::once(path).chain(parent) {
            if paths.len() < MOST && !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_names_paths_in_its_commands_and_not_in_its_settings() {
        let text = "PATH=/usr/bin:/bin\n# /no\n5 * * * * root cd / && /usr/bin/dump >/mnt/dumps/db.sql 2>&1\n";
        let found: Vec<String> = paths(text).iter().map(|path| path.display().to_string()).collect();
        assert_eq!(found, ["/usr/bin/dump", "/usr/bin", "/mnt/dumps/db.sql", "/mnt/dumps"]);
    }
}
