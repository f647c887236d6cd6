//! Whether a MySQL or MariaDB server tells us of all its tables: those without transactions leave files of their own.

use std::{ffi::OsStr, fs, path::Path};

/// Directories of the server's own, whose tables of this kind are logs and statistics.
const ITS_OWN: [&str; 4] = ["mysql", "performance_schema", "sys", "information_schema"];
/// MyISAM, CSV, ARCHIVE. Aria's `*.MAD` may be transactional.
const WITHOUT_TRANSACTIONS: [&str; 3] = ["MYD", "CSV", "ARZ"];
/// More than these are not looked through: by then the server has told of one, or its account sees nothing.
const MOST_FILES: usize = 20_000;

/// A file of a table without transactions lies in the server's data directory, which is where it works. Follows no links.
/// May block.
pub(super) fn has_tables_without_transactions(root: &Path, pid: i32) -> bool {
    let data = root.join("proc").join(pid.to_string()).join("cwd");
    let schemas = fs::read_dir(data).into_iter().flatten().flatten().filter(|entry| {
        let its_own = ITS_OWN.iter().any(|name| entry.file_name() == OsStr::new(name));
        !its_own && entry.file_type().is_ok_and(|kind| kind.is_dir())
    });
    let files = schemas.flat_map(|schema| fs::read_dir(schema.path()).into_iter().flatten().flatten());
    files.take(MOST_FILES).any(|file| {
        let path = file.path();
        path.extension()
            .is_some_and(|extension| WITHOUT_TRANSACTIONS.iter().any(|known| extension == OsStr::new(known)))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_of_such_a_table_is_found_and_the_servers_own_are_not() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("data");
        for dir in ["mysql", "app"] {
            fs::create_dir_all(data.join(dir)).unwrap();
        }
        fs::create_dir_all(root.path().join("proc/7")).unwrap();
        symlink(&data, root.path().join("proc/7/cwd")).unwrap();
        fs::write(data.join("mysql/general_log.CSV"), "").unwrap();
        fs::write(data.join("app/orders.ibd"), "").unwrap();
        assert!(!has_tables_without_transactions(root.path(), 7));
        fs::write(data.join("app/old.MYD"), "").unwrap();
        assert!(has_tables_without_transactions(root.path(), 7));
        assert!(!has_tables_without_transactions(root.path(), 8), "nobody there");
    }
}
