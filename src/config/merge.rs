//! Which files, in which order, and how they lie over each other: tables merge, lists replace, `[[database]]` merges by name.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    Error,
    fragment::{Fragment, Row},
};

/// Strongest first.
const HOMES: [&str; 3] = ["etc/holdstill", "run/holdstill", "usr/lib/holdstill"];

/// The main file, if there is one, then the drop-ins in the order they apply.
pub(super) fn files(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for home in HOMES {
        let main = root.join(home).join("holdstill.toml");
        match main.symlink_metadata() {
            Ok(_) => {
                files.push(main);
                break;
            }
            Err(error) if absent(&error) => {}
            Err(source) => return Err(Error::Read { path: main, source }),
        }
    }
    let mut drop_ins = BTreeMap::<OsString, PathBuf>::new();
    for home in HOMES {
        let dir = root.join(home).join("holdstill.toml.d");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if absent(&error) => continue,
            Err(source) => return Err(Error::Read { path: dir, source }),
        };
        for entry in entries {
            let entry = entry.map_err(|source| Error::Read { path: dir.clone(), source })?;
            let name = entry.file_name();
            let named = name.as_encoded_bytes();
            if named.ends_with(b".toml") && !named.starts_with(b".") {
                drop_ins.entry(name).or_insert_with(|| entry.path());
            }
        }
    }
    files.extend(drop_ins.into_values());
    Ok(files)
}

fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Lays each fragment over the ones before it.
pub(super) fn merge(fragments: Vec<Fragment>) -> Fragment {
    let mut merged = Fragment::default();
    for fragment in fragments {
        for (section, row) in fragment.tables {
            lay(
                merged.tables.entry(section).or_insert_with(|| Row { at: row.at.clone(), table: BTreeMap::new() }),
                row,
            );
        }
        for (section, rows) in fragment.rows {
            if section == "database" {
                by_name(merged.rows.entry(section).or_default(), rows);
            } else {
                merged.rows.insert(section, rows);
            }
        }
    }
    merged
}

fn lay(under: &mut Row, over: Row) {
    under.table.extend(over.table);
}

/// Rows of one file never merge with each other: two of one name there are a mistake, found when they are judged.
fn by_name(under: &mut Vec<Row>, over: Vec<Row>) {
    let name = |row: &Row| row.table.get("name").map(|entry| entry.value.clone());
    let known = under.len();
    let mut taken = vec![false; known];
    for row in over {
        let wanted = name(&row);
        let place = (0..known).find(|&i| !taken[i] && wanted.is_some() && name(&under[i]) == wanted);
        match place {
            Some(i) => {
                taken[i] = true;
                lay(&mut under[i], row);
            }
            None => under.push(row),
        }
    }
}
