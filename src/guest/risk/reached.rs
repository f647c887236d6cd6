//! Directories that people take for part of the system and that lie elsewhere: /var/lib/mysql is a link to /mnt/mysql, /srv a
//! bind mount of /mnt/srv.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    super::{
        Dev,
        mounts::{MountLine, Table, option},
    },
    Aim, Level, Risk, Walk, inside,
};

/// Where links are looked for, one level deep.
const USUAL: [&str; 15] = [
    "/",
    "/etc",
    "/home",
    "/opt",
    "/root",
    "/srv",
    "/usr",
    "/usr/local",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/opt",
    "/var/spool",
    "/var/www",
    "/data",
];

/// A directory with more entries is nobody's idea of a place for links.
const MOST_ENTRIES: usize = 2_000;

/// Bind mounts of parts of the file systems in question.
pub(super) fn binds(lines: &[MountLine], table: &Table<'_>, aim: &Aim<'_>) -> Vec<(Dev, Risk)> {
    let mut risks = Vec::new();
    for line in lines.iter().filter(|line| aim.at_state(line.dev) && table.is_visible(line)) {
        // a subvolume of btrfs has a root of its own, and is no part of another mount
        let subvolume = option(&line.super_options, "subvol").is_some_and(|name| Path::new(name) == line.fs_root);
        let Some(real) = (!subvolume).then(|| elsewhere(line, lines, table)).flatten() else { continue };
        let (here, real) = (line.mount_point.display(), real.display());
        risks.push((
            line.dev,
            Risk {
                level: level_of(&line.mount_point),
                subject: here.to_string(),
                path: PathBuf::from(real.to_string()),
                message: format!("{here} is a bind mount of {real}"),
            },
        ));
    }
    risks
}

/// Where else, and first, the same directory is: `line` is a bind mount of that.
fn elsewhere(line: &MountLine, lines: &[MountLine], table: &Table<'_>) -> Option<PathBuf> {
    lines.iter().filter(|other| other.dev == line.dev && other.id != line.id && table.is_visible(other)).find_map(
        |other| {
            let below = line.fs_root.strip_prefix(&other.fs_root).ok()?;
            // mounted twice as a whole: the earlier one is the real one
            let part = !below.as_os_str().is_empty();
            let earlier = lines.iter().position(|l| l.id == other.id) < lines.iter().position(|l| l.id == line.id);
            let inside = line.mount_point.starts_with(&other.mount_point);
            (!inside && (part || earlier))
                .then(|| if part { other.mount_point.join(below) } else { other.mount_point.clone() })
        },
    )
}

/// Links in the usual places.
pub(super) fn links(root: &Path, walk: &Walk<'_>, aim: &Aim<'_>) -> Vec<(Dev, Risk)> {
    let mut risks: Vec<(Dev, Risk)> = Vec::new();
    for directory in USUAL {
        let Some(place) = walk.to(Path::new(directory)) else { continue };
        let Ok(entries) = fs::read_dir(inside(root, &place.path)) else { continue };
        for entry in entries.flatten().take(MOST_ENTRIES) {
            if !entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                continue;
            }
            let link = Path::new(directory).join(entry.file_name());
            let Some(target) = walk.to(&link).filter(|t| aim.at_state(t.dev) && t.dev != place.dev) else { continue };
            risks.push((
                target.dev,
                Risk {
                    level: level_of(&link),
                    subject: link.display().to_string(),
                    message: format!("{} is a link to {}", link.display(), target.path.display()),
                    path: target.path,
                },
            ));
        }
    }
    risks
}

/// Nobody misses what is temporary by its name.
fn level_of(path: &Path) -> Level {
    if super::top::is_benign_name(path.file_name().unwrap_or_default()) { Level::Benign } else { Level::State }
}
