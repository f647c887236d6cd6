//! Whether everything a database needs is in the snapshot: each of its places, what is linked from or mounted below them,
//! on a file system that is frozen.

use std::path::{Path, PathBuf};

use crate::{
    guest::{
        Dev,
        whereabouts::{Located, Lost, Whereabouts},
    },
    proto,
    step::database::Place,
};

/// One thing a database needs, and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub purpose: &'static str,
    /// as the server names it
    pub path: PathBuf,
    /// copied after the thaw
    pub after_thaw: bool,
    pub at: Result<Dev, Lost>,
}

/// Finds all parts of a database, as its server sees them. May block: call from a thread with a limit.
pub(super) fn parts(root: &Path, pid: Option<i32>, places: &[Place]) -> Vec<Part> {
    let whereabouts = match Whereabouts::of(root, pid) {
        Ok(whereabouts) => whereabouts,
        Err(error) => {
            let lost = |place: &Place| part(place, Err(format!("cannot be looked at as its server sees it: {error}")));
            return places.iter().map(lost).collect();
        }
    };
    let located: Vec<Result<Located, Lost>> = places.iter().map(|place| whereabouts.find(&place.path)).collect();
    let names: Vec<PathBuf> = located.iter().flatten().filter_map(|l| l.name.clone()).collect();
    let mut parts = Vec::new();
    for (place, located) in places.iter().zip(&located) {
        parts.push(part(place, located.as_ref().map(|l| l.dev).map_err(Clone::clone)));
        if let Ok(located) = located {
            below(&whereabouts, place, located, &names, &mut parts);
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    parts.retain(|part| seen.insert((part.purpose, part.path.clone())));
    parts
}

fn part(place: &Place, at: Result<Dev, Lost>) -> Part {
    Part { purpose: place.purpose, path: place.path.clone(), after_thaw: place.after_thaw, at }
}

/// What is mounted below a place, and what links in a data directory lead to, unless another place says so itself.
fn below(whereabouts: &Whereabouts, place: &Place, located: &Located, names: &[PathBuf], parts: &mut Vec<Part>) {
    let own = located.name.as_deref();
    // a place of its own that lies further in answers for what is there
    let told = |path: &Path| names.iter().any(|name| Some(name.as_path()) != own && path.starts_with(name));
    let deeper = |path: &Path| own.is_some_and(|own| path.starts_with(own));
    let mut add = |purpose, path: PathBuf, at| parts.push(Part { purpose, path, after_thaw: place.after_thaw, at });
    for (path, dev) in whereabouts.mounted_below(located) {
        // a place around this one names it, too
        if !names
            .iter()
            .any(|name| Some(name.as_path()) != own && path.starts_with(name) && name.starts_with(own.unwrap_or(name)))
        {
            add("mounted", path, Ok(dev));
        }
    }
    if place.purpose != "data" {
        return;
    }
    let tablespaces = whereabouts.find(&place.path.join("pg_tblspc")).ok();
    for (purpose, directory) in [("linked", Some(located)), ("tablespace", tablespaces.as_ref())] {
        let Some(directory) = directory else { continue };
        match whereabouts.links_in(directory) {
            Err(lost) => add(purpose, directory.name.clone().unwrap_or_else(|| place.path.clone()), Err(lost)),
            Ok(links) => {
                for (path, target) in links {
                    match target {
                        Ok(target) => {
                            let name = target.name.clone().unwrap_or_default();
                            // one that stays on the same file system is copied with it
                            if !told(&name) && !deeper(&name) && target.dev != located.dev {
                                add(purpose, path, Ok(target.dev));
                            }
                            for (mounted, dev) in whereabouts.mounted_below(&target) {
                                if !told(&mounted) && !deeper(&mounted) {
                                    add("mounted", mounted, Ok(dev));
                                }
                            }
                        }
                        Err(lost) => add(purpose, path, Err(lost)),
                    }
                }
            }
        }
    }
}

/// A file system of the hold, as far as a part needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ground {
    /// the name of its step; empty if it has none
    pub step: String,
    pub held: bool,
    /// why it is not held; may be empty
    pub reason: String,
}

/// A part and what it lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judged {
    pub part: Part,
    pub ground: Ground,
}

impl Judged {
    /// `by_us`: what is held is held by us, not by the caller.
    pub(super) fn told(&self, by_us: bool) -> proto::DataPath {
        proto::DataPath {
            purpose: self.part.purpose.into(),
            path: self.part.path.display().to_string(),
            filesystem: self.ground.step.clone(),
            held: self.ground.held && by_us,
        }
    }

    fn why_not(&self) -> String {
        let Judged { part, ground } = self;
        let what = format!("{} {}", part.purpose, part.path.display());
        match (&part.at, ground.step.as_str(), ground.reason.as_str()) {
            (Err(lost), _, _) => format!("{what} {lost}"),
            (Ok(dev), "", "") => format!("{what} is on a file system that is not listed here ({dev})"),
            (Ok(_), "", reason) => format!("{what} {reason}"),
            (Ok(_), step, "") => format!("{what} is on {step}, which is not frozen"),
            (Ok(_), step, reason) => format!("{what} is on {step}, which is not frozen: {reason}"),
        }
    }
}

/// Why the copy will lack something the server needs, with the cure; `None`: it has everything.
pub(super) fn outside(judged: &[Judged]) -> Option<(String, &'static str)> {
    let missing: Vec<String> =
        judged.iter().filter(|j| !j.ground.held && !j.part.after_thaw).map(Judged::why_not).collect();
    if !missing.is_empty() {
        let shown = missing.len().min(MOST_NAMED);
        let more = match missing.len() - shown {
            0 => String::new(),
            n => format!("; and {n} more"),
        };
        let why = format!("{}{more}", missing[..shown].join("; "));
        return Some((why, "bring that file system into scope, or move the files"));
    }
    // its log is copied after the thaw; what it shares a file system with was copied before
    let same = |one: &Judged, other: &Judged| one.part.at == other.part.at || one.ground.step == other.ground.step;
    let data = || judged.iter().filter(|j| !j.part.after_thaw);
    let shared = judged
        .iter()
        .filter(|j| j.part.after_thaw)
        .find(|log| log.part.at.is_err() || log.ground.step.is_empty() || data().any(|data| same(log, data)))?;
    let why = match &shared.part.at {
        Err(lost) => format!("{} {} {lost}", shared.part.purpose, shared.part.path.display()),
        Ok(_) => {
            format!("{} lies where the data does, so it cannot be copied after the thaw", shared.part.path.display())
        }
    };
    Some((why, "copy everything while held: leave --capture out"))
}

/// More missing parts than this are counted.
const MOST_NAMED: usize = 4;

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    const DATA: Dev = Dev { major: 8, minor: 1 };
    const OTHER: Dev = Dev { major: 8, minor: 2 };

    fn judged(purpose: &'static str, path: &str, dev: Dev, held: bool) -> Judged {
        let part = Part { purpose, path: path.into(), after_thaw: false, at: Ok(dev) };
        let reason = if held { "" } else { "not in [filesystems] include" };
        Judged { part, ground: Ground { step: format!("fs:/{}", dev.minor), held, reason: reason.into() } }
    }

    fn later(mut log: Judged) -> Judged {
        log.part.after_thaw = true;
        log
    }

    #[test]
    fn what_is_not_held_is_named_with_where_it_lies_and_why() {
        assert_eq!(outside(&[judged("data", "/db", DATA, true), judged("redo", "/log", OTHER, true)]), None);
        let (why, cure) =
            outside(&[judged("data", "/db", DATA, true), judged("linked", "/db/far", OTHER, false)]).unwrap();
        assert_eq!(why, "linked /db/far is on fs:/2, which is not frozen: not in [filesystems] include");
        assert!(cure.contains("into scope"));
        let mut lost = judged("undo", "/gone", OTHER, false);
        lost.part.at = Err("cannot be followed: no such file".into());
        assert_eq!(outside(&[lost]).unwrap().0, "undo /gone cannot be followed: no such file");
        let many: Vec<Judged> = (0..9).map(|_| judged("tablespace", "/x", OTHER, false)).collect();
        assert!(outside(&many).unwrap().0.ends_with("; and 5 more"));
    }

    #[test]
    fn a_log_that_is_copied_later_lies_apart_and_need_not_be_held() {
        let data = judged("data", "/db", DATA, true);
        assert_eq!(outside(&[data.clone(), later(judged("wal", "/wal", OTHER, false))]), None);
        let (why, cure) = outside(&[data, later(judged("wal", "/db/pg_wal", DATA, true))]).unwrap();
        assert!(why.contains("lies where the data does") && cure.contains("--capture"), "{why}");
    }

    #[test]
    fn links_and_mounts_in_a_data_directory_are_parts_unless_they_stay_or_are_places_themselves() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for dir in ["proc/self", "db/near", "db/pg_tblspc", "db/mounted", "far/one", "far/two", "far/wal", "beside"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        symlink("/far/one", at("db/one")).unwrap();
        symlink("/far/two", at("db/pg_tblspc/16400")).unwrap();
        symlink("/far/wal", at("db/pg_wal")).unwrap();
        symlink("/db/near", at("db/inside")).unwrap();
        symlink("/beside", at("db/beside")).unwrap();
        // every directory is really on one file system: what the kernel says is not in this table, so st_dev counts
        let table = "1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 8:2 / /db/mounted rw - ext4 /dev/sdb rw\n\
                     3 1 8:3 / /far/two/deep rw - ext4 /dev/sdc rw\n4 1 8:4 / /far/wal/deep rw - ext4 /dev/sdd rw\n";
        fs::write(at("proc/self/mountinfo"), table).unwrap();
        let places = [Place::new("data", "/db"), Place::new("wal", "/db/pg_wal")];
        let found = parts(root.path(), None, &places);
        let shown: Vec<(&str, String)> = found.iter().map(|p| (p.purpose, p.path.display().to_string())).collect();
        let expected = [
            ("data", "/db"),
            ("mounted", "/db/mounted"),
            ("mounted", "/far/two/deep"),
            ("wal", "/db/pg_wal"),
            ("mounted", "/far/wal/deep"),
        ];
        assert_eq!(shown, expected.map(|(purpose, path)| (purpose, path.to_owned())));
    }
}
