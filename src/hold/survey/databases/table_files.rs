//! Files of tables without transactions, seen where the data are: what a server tells an account that may see no table is
//! that there is none.
//!
//! `*.MAD` proves nothing (Aria tables are crash-safe unless they are told not to be), so it is not looked for.

use std::path::Path;

use crate::guest::whereabouts::{Located, Whereabouts};

/// MyISAM, CSV, ARCHIVE.
const ENDINGS: [&str; 3] = ["MYD", "CSV", "ARZ"];
/// The server's own: its logs are CSV tables, and what it needs of them it repairs itself.
const ITS_OWN: [&str; 4] = ["mysql", "sys", "performance_schema", "information_schema"];
/// With more files than this nobody looks any further.
const MOST_FILES: usize = 100_000;

/// Whether there are any. May block: call from a thread with a limit.
pub(super) fn are_there(root: &Path, pid: Option<i32>, data: &Path) -> bool {
    let Ok(whereabouts) = Whereabouts::of(root, pid) else { return false };
    let Ok(data) = whereabouts.find(data) else { return false };
    let mut left = MOST_FILES;
    names(&data, &mut left)
        .into_iter()
        .filter(|name| !ITS_OWN.contains(&name.as_str()) && !name.starts_with('#'))
        .filter_map(|name| whereabouts.find(&data.name.as_deref()?.join(name)).ok())
        .any(|database| names(&database, &mut left).iter().any(|name| is_of_a_table(name)))
}

/// What lies in a directory; nothing if it is none.
fn names(directory: &Located, left: &mut usize) -> Vec<String> {
    let entries = directory.entries().into_iter().flatten().flatten().take(*left);
    let names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    *left -= names.len().min(*left);
    names
}

/// Not a table that is just being rebuilt.
fn is_of_a_table(name: &str) -> bool {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending);
    !name.starts_with('#') && ending.is_some_and(|ending| ENDINGS.contains(&ending))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn files_of_tables_without_transactions_are_seen_and_the_servers_own_are_not() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for dir in ["proc/self", "db/mysql", "db/app", "db/#innodb_temp", "far"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        fs::write(at("proc/self/mountinfo"), "1 0 8:1 / / rw - ext4 /dev/sda rw\n").unwrap();
        for file in ["db/ibdata1", "db/mysql/general_log.CSV", "db/app/t.ibd", "db/app/a.MAD", "db/app/#sql-1.MYD"] {
            fs::write(at(file), "").unwrap();
        }
        let seen = || are_there(root.path(), None, Path::new("/db"));
        assert!(!seen());
        fs::write(at("far/old.MYD"), "").unwrap();
        assert!(!seen());
        symlink("/far", at("db/linked")).unwrap();
        assert!(seen(), "a linked database counts");
        fs::remove_file(at("db/linked")).unwrap();
        fs::write(at("db/app/old.ARZ"), "").unwrap();
        assert!(seen());
    }
}
