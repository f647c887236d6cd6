//! The list of platforms in docs/coverage.md, made from what is known of them. Only a test makes it.

use std::{fmt::Write as _, fs, path::Path};

use super::known::{self, DiskRule, Globs, Known, MetadataRule, RuleWeight, Says};

const BEGIN: &str = "<!-- platforms: made by `UPDATE=1 cargo test --lib platforms_in_the_docs` -->\n";
const END: &str = "<!-- end of platforms -->";

fn list() -> String {
    let mut text = String::new();
    let mut nothing = Vec::new();
    for platform in known::all().iter().filter(|platform| platform.name != "unknown") {
        let lines = lines(platform);
        if lines.is_empty() {
            nothing.push(platform.title.as_str());
            continue;
        }
        let _ = write!(text, "**{}**\n\n{}\n", platform.title, lines.concat());
    }
    let _ = write!(text, "Recognised, and nothing is known of their disks: {}.\n\n", nothing.join(", "));
    text
}

fn lines(platform: &Known) -> Vec<String> {
    let mut lines = Vec::new();
    for (says, word) in [(Says::Transient, "transient"), (Says::Durable, "durable")] {
        let sure = |rule: &&DiskRule| rule.says == says && rule.weight != RuleWeight::Heuristic;
        lines.extend(platform.disk.iter().filter(sure).map(|rule| format!("- {word}: {}\n", disk(rule))));
        let markers = platform.marker.iter().filter(|marker| marker.says == says);
        lines.extend(markers.map(|m| format!("- {word}: a file `{}` at its root ([source]({}))\n", m.file, m.source)));
        let metadata = platform.metadata.iter().filter(|rule| rule.says == says);
        lines.extend(metadata.map(|rule| format!("- {word}: {}\n", of_metadata(rule))));
    }
    let hints = platform.disk.iter().filter(|rule| rule.weight == RuleWeight::Heuristic);
    lines.extend(hints.map(|rule| format!("- a hint alone: {}\n", disk(rule))));
    lines.extend(
        platform.snapshot.iter().map(|rule| format!("- a snapshot: {} ([source]({}))\n", rule.what, rule.source)),
    );
    lines.extend(platform.advice.iter().map(|advice| format!("- not to be seen: {advice}\n")));
    lines
}

fn disk(rule: &DiskRule) -> String {
    let fields = [
        ("vendor", &rule.vendor),
        ("model", &rule.model),
        ("serial number", &rule.serial),
        ("VMBus id", &rule.vmbus),
        ("link", &rule.link),
        ("label", &rule.label),
    ];
    let mut looks: Vec<String> =
        fields.into_iter().filter_map(|(name, globs)| Some(format!("{name} {}", text(globs.as_ref()?)))).collect();
    looks.extend(rule.lun.map(|lun| format!("LUN {lun}")));
    if rule.no_serial {
        looks.push("no serial number".into());
    }
    format!("{}: {} ([source]({}))", rule.what, looks.join(", "), rule.source)
}

fn of_metadata(rule: &MetadataRule) -> String {
    let value = rule.value.as_ref().map_or_else(String::new, |value| format!(" is \"{value}\""));
    format!("{}: metadata `{}`{value} ([source]({}))", rule.what, rule.key.as_str(), rule.source)
}

fn text(globs: &Globs) -> String {
    let all = match globs {
        Globs::One(glob) => vec![glob],
        Globs::Any(globs) => globs.iter().collect(),
    };
    all.into_iter().map(|glob| format!("`{}`", glob.as_str())).collect::<Vec<_>>().join(" or ")
}

#[test]
fn platforms_in_the_docs_are_those_that_are_known() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/coverage.md");
    let page = fs::read_to_string(&path).expect("the page");
    let (before, rest) = page.split_once(BEGIN).expect("where the table begins");
    let (_, after) = rest.split_once(END).expect("where it ends");
    let new = format!("{before}{BEGIN}\n{}{END}{after}", list());
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &new).expect("the page is writable");
    }
    assert!(page == new || std::env::var_os("UPDATE").is_some(), "run UPDATE=1 cargo test --lib platforms_in_the_docs");
}
