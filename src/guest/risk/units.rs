//! systemd's services, and which of them need a file system: what their unit files say, without asking systemd, which may be
//! slow, and is not everywhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use super::{super::Dev, Aim, Found, Level, Place, Risk, Walk, inside, text};

/// The strongest first (systemd.unit(5)).
const HOMES: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// No machine is known with more services.
const MOST_UNITS: usize = 2_000;
/// Paths of one service; of more the first ones.
const MOST_PATHS: usize = 24;

/// Services of which something lies on a file system in question, one risk each.
pub(super) fn units(root: &Path, walk: &Walk<'_>, aim: &Aim<'_>, found: &Found) -> Vec<(Dev, Risk)> {
    if !aim.wanted.keys().any(|dev| aim.at_units(*dev)) {
        return Vec::new();
    }
    let files = files(root, walk);
    let mut risks = Vec::new();
    for (name, files) in files {
        if found.is_over() {
            break;
        }
        let mut unit = Unit::default();
        let mut worst: Option<(Dev, Risk)> = None;
        let mut consider = |place: Place, level, why: &str| {
            if aim.at_units(place.dev) && worst.as_ref().is_none_or(|(_, known)| known.level < level) {
                let message = format!("{name} {why} {}", place.path.display());
                let subject = format!("unit:{name}");
                worst = Some((place.dev, Risk { level, subject, path: place.path, message }));
            }
        };
        for file in files {
            let Some(place) = walk.to(&file) else { continue };
            unit.read(&text(&inside(root, &place.path)).unwrap_or_default());
            consider(place, Level::State, "is");
        }
        for (path, level, why) in unit.paths(&name) {
            if let Some(place) = walk.to(&path) {
                consider(place, level, why);
            }
        }
        risks.extend(worst);
    }
    risks
}

/// Each service's unit file, as the precedence has it, and its drop-ins.
fn files(root: &Path, walk: &Walk<'_>) -> BTreeMap<String, Vec<PathBuf>> {
    let mut units: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let mut drop_ins: BTreeMap<String, BTreeMap<OsString, PathBuf>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for home in HOMES {
        let Some(place) = walk.to(Path::new(home)) else { continue };
        // /lib is a link to /usr/lib on most machines
        if !seen.insert(place.path.clone()) {
            continue;
        }
        for entry in fs::read_dir(inside(root, &place.path)).into_iter().flatten().flatten() {
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let Ok(kind) = entry.file_type() else { continue };
            let path = place.path.join(&name);
            if name.ends_with(".service") && (kind.is_file() || (kind.is_symlink() && !is_alias(root, &path, &name))) {
                if units.len() < MOST_UNITS {
                    units.entry(name).or_insert_with(|| vec![path]);
                }
            } else if let Some(unit) =
                name.strip_suffix(".d").filter(|unit| unit.ends_with(".service") && kind.is_dir())
            {
                for file in fs::read_dir(inside(root, &path)).into_iter().flatten().flatten() {
                    let file_name = file.file_name();
                    if file_name.as_encoded_bytes().ends_with(b".conf") {
                        let known = drop_ins.entry(unit.to_owned()).or_default();
                        known.entry(file_name).or_insert_with(|| path.join(file.file_name()));
                    }
                }
            }
        }
    }
    for (unit, files) in drop_ins {
        if let Some(unit) = units.get_mut(&unit) {
            unit.extend(files.into_values());
        }
    }
    units
}

/// A second name of another unit.
fn is_alias(root: &Path, path: &Path, name: &str) -> bool {
    let target = fs::read_link(inside(root, path)).unwrap_or_default();
    target
        .file_name()
        .is_none_or(|target| target != name && target != "null" && target.to_string_lossy().ends_with(".service"))
}

/// What a unit file says, as far as it names places; a list is emptied by an empty value.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unit(BTreeMap<&'static str, Vec<String>>);

const KEYS: [&str; 10] = [
    "WorkingDirectory",
    "RootDirectory",
    "StateDirectory",
    "LogsDirectory",
    "CacheDirectory",
    "ExecStart",
    "EnvironmentFile",
    "RequiresMountsFor",
    "WantsMountsFor",
    "ReadWritePaths",
];

impl Unit {
    /// One file of it, the unit's own first (systemd.syntax(7)).
    fn read(&mut self, text: &str) {
        let mut line = String::new();
        for part in text.lines().map(str::trim) {
            if part.starts_with(['#', ';']) {
                continue;
            }
            if let Some(begun) = part.strip_suffix('\\') {
                line.push_str(begun);
                line.push(' ');
                continue;
            }
            line.push_str(part);
            if let Some((key, value)) = line.split_once('=')
                && let Some(key) = KEYS.into_iter().find(|known| *known == key.trim())
            {
                let values = self.0.entry(key).or_default();
                match value.trim() {
                    "" => values.clear(),
                    value => values.push(value.to_owned()),
                }
            }
            line.clear();
        }
    }

    /// Every path it names, what its loss means, and the words between the two names.
    fn paths(&self, unit: &str) -> Vec<(PathBuf, Level, &'static str)> {
        let mut paths = Vec::new();
        for (key, values) in &self.0 {
            let words = values.iter().flat_map(|value| value.split_ascii_whitespace());
            for word in words.filter_map(|word| expanded(word, unit)) {
                let below = |base: &str| Path::new(base).join(word.split(':').next().unwrap_or_default());
                let (path, level, why) = match *key {
                    "StateDirectory" => (below("/var/lib"), Level::State, "keeps its state in"),
                    "LogsDirectory" => (below("/var/log"), Level::State, "logs to"),
                    "CacheDirectory" => (below("/var/cache"), Level::Benign, "has its cache in"),
                    "WorkingDirectory" => (bare(&word), Level::State, "works in"),
                    "RootDirectory" => (bare(&word), Level::State, "has its root in"),
                    "EnvironmentFile" => (bare(&word), Level::State, "reads"),
                    "ExecStart" => (argument(&word), Level::State, "is started with"),
                    "ReadWritePaths" => (bare(&word), Level::State, "writes to"),
                    _ => (bare(&word), Level::State, "needs"),
                };
                // "/" and the like say nothing
                if path.is_absolute() && path.components().count() > 1 && paths.len() < MOST_PATHS {
                    paths.push((path, level, why));
                }
            }
        }
        paths
    }
}

/// A path without the marks that may stand before it.
fn bare(word: &str) -> PathBuf {
    PathBuf::from(word.trim_matches('"').trim_start_matches(['-', '+', '!', '@', ':', '|']))
}

/// The path in a word of a command line: the program, an argument, or the value of an option.
fn argument(word: &str) -> PathBuf {
    let word = word.trim_matches(['"', '\'']);
    match word.split_once("=/") {
        Some((option, path)) if option.starts_with('-') => Path::new("/").join(path),
        Some(_) | None => bare(word),
    }
}

/// With its specifiers replaced (systemd.unit(5)); `None`: by what only systemd knows.
fn expanded(word: &str, unit: &str) -> Option<String> {
    if !word.contains('%') {
        return Some(word.to_owned());
    }
    let stem = unit.strip_suffix(".service").unwrap_or(unit);
    let (prefix, instance) = stem.split_once('@').unwrap_or((stem, ""));
    let mut out = String::new();
    let mut rest = word.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match rest.next()? {
            'S' => out.push_str("/var/lib"),
            'C' => out.push_str("/var/cache"),
            'L' => out.push_str("/var/log"),
            'E' => out.push_str("/etc"),
            't' => out.push_str("/run"),
            'n' => out.push_str(unit),
            'N' => out.push_str(stem),
            'p' => out.push_str(prefix),
            'i' | 'I' if !instance.is_empty() => out.push_str(instance),
            '%' => out.push('%'),
            _ => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<(String, &'static str)> {
        let mut unit = Unit::default();
        unit.read(text);
        unit.paths("app@one.service").into_iter().map(|(path, _, why)| (path.display().to_string(), why)).collect()
    }

    #[test]
    fn the_places_a_unit_names_are_found_through_marks_specifiers_and_continued_lines() {
        let said = paths(
            "[Unit]\nRequiresMountsFor=/mnt/a /mnt/b\n[Service]\n# ExecStart=/no\nExecStart=-/opt/app/run --data=/mnt/data \\\n\
             \x20 --config \"/etc/app.toml\" 'x'\nStateDirectory=app/%i\nEnvironmentFile=-/etc/default/%p\nWorkingDirectory=~\n",
        );
        let expected = [
            ("/etc/default/app", "reads"),
            ("/opt/app/run", "is started with"),
            ("/mnt/data", "is started with"),
            ("/etc/app.toml", "is started with"),
            ("/mnt/a", "needs"),
            ("/mnt/b", "needs"),
            ("/var/lib/app/one", "keeps its state in"),
        ];
        assert_eq!(said, expected.map(|(path, why)| (path.to_owned(), why)));
    }

    #[test]
    fn an_empty_value_takes_back_what_was_said_before_and_unknown_specifiers_are_not_guessed() {
        assert_eq!(
            paths("ExecStart=/a\nExecStart=\nExecStart=/b\nWorkingDirectory=/home/%u\n"),
            [("/b".to_owned(), "is started with")]
        );
        assert_eq!(expanded("%%x", "a.service"), Some("%x".into()));
        assert_eq!(expanded("%i", "a.service"), None);
    }
}
