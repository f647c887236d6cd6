//! What the files of a database say without a server: which one it is, and where its last checkpoint was. Read confined to
//! the copy, following no link out of it.

use std::{io::Read, path::Path};

use serde_json::Value;

use super::left;
use crate::sys::view::View;

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    Postgresql {
        system: u64,
        checkpoint: Option<u64>,
        timeline: Option<u32>,
    },
    Mysql {
        uuid: String,
    },
    /// why not, for people
    Unreadable(String),
}

/// The databases of a receipt whose data directory lies in the copy at `root`, by step.
pub(super) fn identities(told: &Value, root: &Path) -> Vec<(String, Identity)> {
    let Ok(view) = View::below(root) else { return Vec::new() };
    let steps = told["report"]["steps"].as_array().into_iter().flatten();
    let mut found = Vec::new();
    for step in steps.filter(|step| step["database"].is_object()).take(64) {
        let paths = step["database"]["paths"].as_array().into_iter().flatten();
        let data = paths.filter(|path| path["purpose"] == "data").find_map(|path| path["path"].as_str());
        let (Some(name), Some(data)) = (step["name"].as_str(), data) else { continue };
        let Some(inside) = left::below_root(told, Path::new(data)) else { continue };
        let identity = match step["database"]["engine"].as_str() {
            Some("postgresql") => postgresql(&view, &inside),
            Some("mysql") => mysql(&view, &inside),
            // MariaDB leaves no name of its own among its files
            Some(_) | None => continue,
        };
        found.push((name.to_owned(), identity));
    }
    found
}

fn head(view: &View, path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let unreadable = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
    let mut bytes = Vec::new();
    view.read(path).map_err(unreadable)?.take(most).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

fn postgresql(view: &View, data: &Path) -> Identity {
    match head(view, &data.join("global/pg_control"), 512) {
        Ok(bytes) => control(&bytes),
        Err(why) => Identity::Unreadable(why),
    }
}

/// `pg_control` (src/include/catalog/pg_control.h), in the byte order of the machine it is on. Its first members have kept
/// their places since version 11; before, and in versions not known yet, only the identifier is taken.
fn control(bytes: &[u8]) -> Identity {
    let long = |at: usize| bytes.get(at..at + 8).map(|b| u64::from_ne_bytes(b.try_into().expect("eight bytes")));
    let word = |at: usize| bytes.get(at..at + 4).map(|b| u32::from_ne_bytes(b.try_into().expect("four bytes")));
    let (Some(system), Some(version)) = (long(0), word(8)) else {
        return Identity::Unreadable("its global/pg_control is cut short".to_owned());
    };
    let known = (1100..=1900).contains(&version);
    Identity::Postgresql {
        system,
        checkpoint: long(32).filter(|_| known),
        timeline: word(48).filter(|timeline| known && *timeline > 0),
    }
}

fn mysql(view: &View, data: &Path) -> Identity {
    let text = match head(view, &data.join("auto.cnf"), 4096) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(why) => return Identity::Unreadable(why),
    };
    let uuid = text.lines().find_map(|line| line.trim().strip_prefix("server-uuid")?.trim_start().strip_prefix('='));
    match uuid.map(str::trim).filter(|uuid| uuid.len() == 36 && uuid.chars().all(|c| c.is_ascii_hexdigit() || c == '-'))
    {
        Some(uuid) => Identity::Mysql { uuid: uuid.to_owned() },
        None => Identity::Unreadable("its auto.cnf names no server".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_file_is_read_as_far_as_its_version_is_known() {
        let mut bytes = vec![0; 512];
        bytes[..8].copy_from_slice(&77_u64.to_ne_bytes());
        bytes[8..12].copy_from_slice(&1300_u32.to_ne_bytes());
        bytes[32..40].copy_from_slice(&0x200_0028_u64.to_ne_bytes());
        bytes[48..52].copy_from_slice(&3_u32.to_ne_bytes());
        let whole = Identity::Postgresql { system: 77, checkpoint: Some(0x200_0028), timeline: Some(3) };
        assert_eq!(control(&bytes), whole);
        for version in [1002_u32, 9999] {
            bytes[8..12].copy_from_slice(&version.to_ne_bytes());
            assert_eq!(control(&bytes), Identity::Postgresql { system: 77, checkpoint: None, timeline: None });
        }
        assert!(matches!(control(&bytes[..9]), Identity::Unreadable(_)));
    }

    #[test]
    fn mysql_is_known_by_its_auto_cnf_and_by_nothing_that_is_not_one() {
        let root = tempfile::tempdir().unwrap();
        let view = View::below(root.path()).unwrap();
        let read = |text: &str| {
            std::fs::write(root.path().join("auto.cnf"), text).unwrap();
            mysql(&view, Path::new("/"))
        };
        let uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
        assert_eq!(read(&format!("[auto]\nserver-uuid = {uuid}\n")), Identity::Mysql { uuid: uuid.into() });
        assert!(matches!(read("server-uuid=\x1b[2J"), Identity::Unreadable(_)));
        std::fs::remove_file(root.path().join("auto.cnf")).unwrap();
        assert!(matches!(mysql(&view, Path::new("/")), Identity::Unreadable(_)));
    }
}
