//! Where the server's files are, in its own view.

use std::path::{Component, Path, PathBuf};

use super::{
    flavour::Server,
    link::{Link, Trouble, code, if_allowed},
    settings::Settings,
};
use crate::step::database::{Deadline, Place};

/// Every directory the settings name. `tmpdir` is none of them: what lies there is gone after any restart.
pub(super) fn named(settings: &Settings) -> Vec<Place> {
    let set = |name: &str| Some(settings.get(name)).filter(|value| !value.is_empty());
    let Some(data) = set("datadir").map(Path::new) else { return Vec::new() };
    let absolute = |path: &str| -> PathBuf {
        data.join(path).components().filter(|component| !matches!(component, Component::CurDir)).collect()
    };
    let mut places = Vec::new();
    add(&mut places, "data", absolute(""));
    for (purpose, name) in [
        ("data", "innodb_data_home_dir"),
        ("redo", "innodb_log_group_home_dir"),
        ("undo", "innodb_undo_directory"),
        ("doublewrite", "innodb_doublewrite_dir"),
        ("aria log", "aria_log_dir_path"),
    ] {
        set(name).map(absolute).into_iter().for_each(|path| add(&mut places, purpose, path));
    }
    for file in set("innodb_data_file_path").unwrap_or("").split(';').filter(|file| file.starts_with('/')) {
        let file = file.split(':').next().unwrap_or(file);
        parent(file).into_iter().for_each(|path| add(&mut places, "data", path));
    }
    for (purpose, name) in [("binlog", "log_bin_basename"), ("relay log", "relay_log_basename")] {
        let directory = set(name).map(absolute).and_then(|base| base.parent().map(Path::to_owned));
        directory.into_iter().for_each(|path| add(&mut places, purpose, path));
    }
    for name in ["keyring_file_data", "file_key_management_filename"] {
        set(name).map(absolute).into_iter().for_each(|path| add(&mut places, "keyring", path));
    }
    places
}

fn add(places: &mut Vec<Place>, purpose: &'static str, path: PathBuf) {
    if !places.iter().any(|place| place.path == path) {
        places.push(Place::new(purpose, path));
    }
}

fn parent(file: &str) -> Option<PathBuf> {
    Path::new(file).parent().map(Path::to_owned)
}

/// Adds the directories of InnoDB files that lie outside the data directory: tablespaces, tables with a DATA DIRECTORY,
/// undo. `false`: the account may not know.
///
/// # Errors
/// The connection failed.
pub(super) async fn add_far(
    places: &mut Vec<Place>,
    link: &mut Link,
    server: &Server,
    deadline: Deadline,
) -> Result<bool, Trouble> {
    let Some(files) = if_allowed(far_files(link, server, deadline).await)? else { return Ok(false) };
    let mut directories: Vec<_> =
        files.into_iter().filter_map(|[file, kind]| Some((parent(&file)?, kind == "UNDO LOG"))).collect();
    directories.sort();
    for (directory, undo) in directories {
        add(places, if undo { "undo" } else { "tablespace" }, directory);
    }
    Ok(true)
}

async fn far_files(link: &mut Link, server: &Server, deadline: Deadline) -> Result<Vec<[String; 2]>, Trouble> {
    const MYSQL: &str = "SELECT DISTINCT FILE_NAME, FILE_TYPE FROM information_schema.FILES \
                         WHERE FILE_NAME LIKE '/%' AND FILE_TYPE <> 'TEMPORARY'";
    const NEW: &str = "SELECT FILENAME FROM information_schema.INNODB_SYS_TABLESPACES WHERE FILENAME LIKE '/%'";
    const OLD: &str = "SELECT PATH FROM information_schema.INNODB_SYS_DATAFILES WHERE PATH LIKE '/%'";
    const NO_SUCH_COLUMN: u16 = 1054;
    if !server.is_mariadb() {
        return link.table(deadline, MYSQL).await;
    }
    match link.table(deadline, NEW).await {
        Err(failed) if code(&failed) == Some(NO_SUCH_COLUMN) => link.table(deadline, OLD).await,
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_directory_is_absolute_and_named_once() {
        let settings = Settings::of(&[
            ("datadir", "/srv/db/"),
            ("innodb_data_home_dir", ""),
            ("innodb_data_file_path", "ibdata1:12M;/fast/ibdata2:12M:autoextend"),
            ("innodb_log_group_home_dir", "./"),
            ("innodb_undo_directory", "./undo"),
            ("innodb_doublewrite_dir", "/dw"),
            ("aria_log_dir_path", "/srv/db/"),
            ("log_bin_basename", "/logs/bin"),
            ("relay_log_basename", ""),
            ("keyring_file_data", "/keys/ring"),
        ]);
        let places = named(&settings);
        let told: Vec<_> = places.iter().map(|place| (place.purpose, place.path.to_str().expect("UTF-8"))).collect();
        assert_eq!(
            told,
            [
                ("data", "/srv/db"),
                ("undo", "/srv/db/undo"),
                ("doublewrite", "/dw"),
                ("data", "/fast"),
                ("binlog", "/logs"),
                ("keyring", "/keys/ring"),
            ]
        );
    }
}
