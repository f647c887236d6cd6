//! `tests/fixtures/platforms/NAME/`: `guest.tree`, a machine, and `expected.toml`, what must be said of it. A new platform
//! is a new directory.

use std::{fs, path::PathBuf};

use serde::Deserialize;

use super::*;
use crate::guest::{self, cloud_init::Metadata, fixture::unpack, fstab};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    platform: String,
    /// `[transient] mounts`
    #[serde(default)]
    configured: Vec<PathBuf>,
    /// `[transient] durable`
    #[serde(default)]
    durable: Vec<PathBuf>,
    /// mount points the caller says are in the snapshot; none: not told
    #[serde(default)]
    captured: Vec<PathBuf>,
    /// by mount point: every file system that is on a disk or in memory
    mount: BTreeMap<String, Mount>,
    /// "CODE subject", in order
    problems: Vec<String>,
    /// words that must be in their messages or hints
    #[serde(default)]
    words: Vec<String>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mount {
    durability: String,
    /// "WEIGHT SAYS SOURCE=VALUE", the strongest first
    #[serde(default)]
    evidence: Vec<String>,
}

struct Found {
    platform: String,
    mounts: BTreeMap<String, Mount>,
    problems: Vec<proto::Problem>,
}

impl Found {
    /// As `expected.toml` would have it.
    fn text(&self) -> String {
        let list = |items: Vec<String>| items.iter().map(|item| format!("\n    {item:?},")).collect::<String>();
        let problems = self.problems.iter().map(|p| format!("{} {}", p.code, p.subject)).collect();
        let mut text = format!("platform = {:?}\nproblems = [{}\n]\n", self.platform, list(problems));
        for (mount, Mount { durability, evidence }) in &self.mounts {
            let evidence = list(evidence.clone());
            text += &format!("\n[mount.{mount:?}]\ndurability = {durability:?}\nevidence = [{evidence}\n]\n");
        }
        text.replace("[\n]", "[]")
    }
}

fn look(root: &Path, expected: &Expected) -> Found {
    let guest = guest::read(root).expect("a mount table");
    let platform = Platform::read(root);
    let mut markers = BTreeMap::new();
    transient::find_markers(root, &guest.superblocks, platform, |dev, found| drop(markers.insert(dev, found)));
    let metadata = Metadata::read(root);
    let configured = transient::Configured { transient: &expected.configured, durable: &expected.durable };
    let knowledge = Knowledge { platform, metadata: &metadata, markers: &markers, configured };
    let storage = Storage::of(&guest, &knowledge, fstab::read(root));
    let local = |s: &&Superblock| !matches!(s.kind, Kind::Pseudo | Kind::Remote);
    let mount = |s: &Superblock| {
        let verdict = &storage.verdicts[&s.dev];
        let line = |e: &transient::Evidence| format!("{} {} {}={}", e.weight, e.says, e.source, e.value);
        let mut evidence: Vec<String> = verdict.evidence.iter().map(line).collect();
        let platform = storage.of_platform(s, &guest);
        evidence.extend(platform.iter().map(|e| format!("heuristic unknown {}={}", e.source, e.value)));
        (display(s), Mount { durability: verdict.durability.to_string(), evidence })
    };
    let coverage = |s: &Superblock| {
        let answer = match expected.captured.is_empty() {
            true => InSnapshot::NotTold,
            false if s.mounts.iter().any(|m| expected.captured.contains(m)) => InSnapshot::Yes,
            false => InSnapshot::No,
        };
        let mounts = s.mounts.iter().map(|m| m.display().to_string()).collect();
        proto::Coverage { mounts, r#type: s.fs_type.clone(), in_snapshot: answer.into(), ..Default::default() }
    };
    let coverage: Vec<proto::Coverage> = guest.superblocks.iter().map(coverage).collect();
    Found {
        platform: platform.to_string(),
        mounts: guest.superblocks.iter().filter(local).map(mount).collect(),
        problems: storage.problems(&guest, &coverage),
    }
}

#[test]
fn every_platform_is_judged_as_its_directory_expects() {
    let platforms = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/platforms");
    let mut wrong = Vec::new();
    let mut directories: Vec<PathBuf> = fs::read_dir(platforms).unwrap().map(|entry| entry.unwrap().path()).collect();
    directories.sort();
    assert!(directories.len() >= 20);
    for directory in directories {
        let name = directory.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(directory.join("expected.toml"))
            .unwrap_or_else(|error| panic!("{name} has no expectations: {error}"));
        let expected: Expected = toml::from_str(&text).unwrap_or_else(|error| panic!("{name}/expected.toml: {error}"));
        let found = look(unpack(&directory.join("guest.tree")).path(), &expected);
        let problems: Vec<String> = found.problems.iter().map(|p| format!("{} {}", p.code, p.subject)).collect();
        let said: String = found.problems.iter().map(|p| format!("{}\n{}\n", p.message, p.hint)).collect();
        if (&found.platform, &found.mounts, &problems) != (&expected.platform, &expected.mount, &expected.problems) {
            wrong.push(format!("{name} is found to be:\n{}", found.text()));
        }
        let missing = expected.words.iter().filter(|words| !said.contains(*words));
        wrong.extend(missing.map(|words| format!("{name}: {words:?} is not said in:\n{said}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
