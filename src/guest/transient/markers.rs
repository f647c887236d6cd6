//! Files that platforms put at the root of a file system they will throw away. The only part of the room that touches a
//! file system: its caller runs it in a thread with a limit, and never while something is held.

use std::{fs, path::Path};

use super::Durability;
use crate::guest::{Dev, Kind, Superblock, platform::Platform};

/// Roots have a few dozen entries; who has more keeps data there.
const MOST_ENTRIES: usize = 1024;

/// One that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// its name as it is written there
    pub file: String,
    pub says: Durability,
}

/// Looks at the roots of local file systems of our own namespace; `found` is told at once, so that one dead disk hides
/// nothing but itself. Does nothing where no platform this may be has such files.
pub fn find(root: &Path, superblocks: &[Superblock], platform: Platform, mut found: impl FnMut(Dev, Found)) {
    let here = platform.known();
    let rules: Vec<_> = match here.generic {
        true => crate::guest::platform::known::all().iter().flat_map(|known| &known.marker).collect(),
        false => here.marker.iter().collect(),
    };
    if rules.is_empty() {
        return;
    }
    for superblock in superblocks {
        let local = matches!(superblock.kind, Kind::Freezable | Kind::FlushOnly);
        let Some(place) = superblock.open_at.as_ref().filter(|_| local && superblock.namespace.is_none()) else {
            continue;
        };
        if place.fs_root != Path::new("/") {
            continue;
        }
        let path = root.join(place.path.strip_prefix("/").unwrap_or(&place.path));
        for entry in fs::read_dir(path).into_iter().flatten().flatten().take(MOST_ENTRIES) {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if let Some(rule) = rules.iter().find(|rule| rule.file.eq_ignore_ascii_case(&name)) {
                found(superblock.dev, Found { file: name, says: rule.says.into() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::guest::{mounts, superblocks};

    fn found(platform: &str, files: &[&str]) -> BTreeMap<Dev, Found> {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let text = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:16 / /mnt rw - ext4 /dev/sdb rw\n\
                    3 1 0:9 / /net rw - nfs4 host:/x rw\n";
        let mounts = mounts::parse(text);
        let superblocks = superblocks::superblocks(&mounts, &[], &|_| true);
        let mut all = BTreeMap::new();
        find(root.path(), &superblocks, Platform::named(platform).unwrap(), |dev, found| drop(all.insert(dev, found)));
        all
    }

    #[test]
    fn the_warning_counts_in_any_case_at_the_root_of_a_local_file_system() {
        let at_mnt = found("azure", &["mnt/dataloss_warning_readme.txt"]);
        assert_eq!(at_mnt.keys().map(ToString::to_string).collect::<Vec<_>>(), ["8:16"]);
        assert_eq!(
            found("azure", &["mnt/docs/DATALOSS_WARNING_README.txt", "net/DATALOSS_WARNING_README.txt"]).len(),
            0
        );
    }

    #[test]
    fn where_no_platform_writes_such_files_nobody_looks_and_where_the_platform_is_unknown_one_does() {
        assert_eq!(found("hetzner", &["mnt/DATALOSS_WARNING_README.txt"]).len(), 0);
        assert_eq!(found("unknown", &["mnt/DATALOSS_WARNING_README.txt"]).len(), 1);
    }
}
