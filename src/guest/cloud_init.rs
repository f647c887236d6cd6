//! What cloud-init left on disk of what the platform told it: which cloud, which instance, which disks. Called by
//! `platform` and `transient`. No network is used, and nothing in these files is trusted to be small, whole or true: they
//! are hearsay, below what a disk says of itself.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use serde_json::Value;

/// The largest seen were below 200 KiB, most of it user data.
const MOST_BYTES: u64 = 2 << 20;
const MOST_FACTS: usize = 4096;
const DEEPEST: usize = 12;
const LONGEST: usize = 512;

/// The platform's metadata as `key/key` → text, without what it is below (`ds/meta_data`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata(pub BTreeMap<String, String>);

/// What cloud-init calls the cloud: "openstack", "aws", "gce" …
pub fn cloud_id(root: &Path) -> Option<String> {
    // a link to cloud-id-NAME
    word(&root.join("run/cloud-init/cloud-id"))
}

/// The platform's name for this instance, as cloud-init found it in this boot. What it left in /var is not asked: in a copy
/// that is the original's name until cloud-init has run, and for ever where it does not.
pub fn instance_id(root: &Path) -> Option<String> {
    let said = || {
        let data = instance_data(root)?;
        let id = data.get("v1")?.get("instance_id")?.as_str()?;
        tidy(id)
    };
    word(&root.join("run/cloud-init/.instance-id"))
        .or_else(said)
        .filter(|id| id != "NO_PREVIOUS_INSTANCE_ID" && id != "None")
}

impl Metadata {
    /// Only of this boot: what an earlier one left in /var may be another machine's.
    pub fn read(root: &Path) -> Self {
        instance_data(root).map(|data| Self::of(&data)).unwrap_or_default()
    }

    fn of(data: &Value) -> Self {
        let mut facts = BTreeMap::new();
        for source in ["meta_data", "meta-data", "ec2_metadata"] {
            if let Some(value) = data.get("ds").and_then(|ds| ds.get(source)) {
                flatten(value, String::new(), 0, &mut facts);
            }
        }
        Self(facts)
    }
}

/// Root's file has what the other one shows as "redacted for non-root user".
fn instance_data(root: &Path) -> Option<Value> {
    let run = root.join("run/cloud-init");
    ["instance-data-sensitive.json", "instance-data.json"]
        .into_iter()
        .find_map(|name| serde_json::from_slice(&bounded(&run.join(name)).ok()?).ok())
}

fn flatten(value: &Value, key: String, depth: usize, facts: &mut BTreeMap<String, String>) {
    if facts.len() >= MOST_FACTS || depth > DEEPEST || key.len() > LONGEST {
        return;
    }
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}/{name}") };
    match value {
        Value::Object(members) => {
            // others' secrets, and of no use here
            let members = members.iter().filter(|(name, _)| !name.contains("user-data") && !name.contains("user_data"));
            for (name, member) in members {
                flatten(member, below(name), depth + 1, facts);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                flatten(item, below(&index.to_string()), depth + 1, facts);
            }
        }
        Value::String(text) if text.len() <= LONGEST => {
            facts.entry(key).or_insert_with(|| text.clone());
        }
        Value::Bool(_) | Value::Number(_) => {
            facts.entry(key).or_insert_with(|| value.to_string());
        }
        Value::String(_) | Value::Null => {}
    }
}

/// A short line of printable text.
fn word(path: &Path) -> Option<String> {
    tidy(&String::from_utf8_lossy(&bounded(path).ok()?))
}

fn tidy(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty() && text.len() <= 256 && text.chars().all(|c| c.is_ascii_graphic() || c == ' '))
        .then(|| text.to_owned())
}

/// A regular file of bounded size; a FIFO or a device in its place is not waited for.
fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::fs;

    use super::*;

    fn guest(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn metadata_is_found_wherever_a_data_source_keeps_it() {
        for source in ["meta_data", "meta-data", "ec2_metadata"] {
            let text =
                format!(r#"{{"ds": {{"{source}": {{"block-device-mapping": {{"ephemeral0": "sdb"}}, "n": [1]}}}}}}"#);
            let metadata = Metadata::read(guest(&[("run/cloud-init/instance-data.json", &text)]).path());
            assert_eq!(metadata.0["block-device-mapping/ephemeral0"], "sdb");
            assert_eq!(metadata.0["n/0"], "1");
        }
    }

    #[test]
    fn roots_file_comes_before_the_redacted_one() {
        let data = |id| format!(r#"{{"v1": {{"instance_id": "{id}"}}}}"#);
        let files = [
            ("run/cloud-init/instance-data.json", &*data("redacted for non-root user")),
            ("run/cloud-init/instance-data-sensitive.json", &*data("i-0123")),
        ];
        assert_eq!(instance_id(guest(&files).path()).as_deref(), Some("i-0123"));
    }

    #[test]
    fn what_an_earlier_boot_left_is_neither_this_machines_name_nor_its_metadata() {
        let old = guest(&[
            ("var/lib/cloud/data/instance-id", "i-the-original\n"),
            ("var/lib/cloud/instance/instance-data.json", r#"{"ds": {"meta_data": {"a": "b"}}}"#),
        ]);
        assert_eq!((instance_id(old.path()), Metadata::read(old.path())), (None, Metadata::default()));
        let now = guest(&[("run/cloud-init/.instance-id", "i-0123\n"), ("var/lib/cloud/data/instance-id", "i-other")]);
        assert_eq!(instance_id(now.path()).as_deref(), Some("i-0123"));
        let none = guest(&[("run/cloud-init/.instance-id", "NO_PREVIOUS_INSTANCE_ID")]);
        assert_eq!(instance_id(none.path()), None);
    }

    #[test]
    fn huge_deep_odd_and_broken_files_are_as_if_they_were_not_there() {
        let deep = format!(r#"{{"ds": {{"meta_data": {}1{}}}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        let huge = format!(r#"{{"ds": {{"meta_data": {{"a": "{}"}}}}}}"#, "x".repeat(3 << 20));
        for text in [&*deep, &*huge, "", "{", "null", "\u{0}", r#"{"ds": 1}"#, r#"{"v1": {"instance_id": 7}}"#] {
            let root = guest(&[("run/cloud-init/instance-data.json", text), ("run/cloud-init/cloud-id", "a\u{1b}[2J")]);
            assert_eq!(Metadata::read(root.path()), Metadata::default());
            assert_eq!((cloud_id(root.path()), instance_id(root.path())), (None, None));
        }
        let root = guest(&[("run/cloud-init/x", "")]);
        nix::unistd::mkfifo(&root.path().join("run/cloud-init/cloud-id"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(cloud_id(root.path()), None, "and nobody waited");
    }

    #[test]
    fn there_is_an_end_to_what_is_kept() {
        let many: Vec<String> = (0..10_000).map(|n| format!("\"{n}\": \"v\"")).collect();
        let text = format!(r#"{{"ds": {{"meta_data": {{{}}}}}}}"#, many.join(","));
        let metadata = Metadata::read(guest(&[("run/cloud-init/instance-data.json", &text)]).path());
        assert_eq!(metadata.0.len(), MOST_FACTS);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[{}\\[\\]\",:a-z0-9\\\\ ]{0,60}") {
            let root = guest(&[("run/cloud-init/instance-data.json", &text)]);
            Metadata::read(root.path());
            instance_id(root.path());
        }
    }
}
