//! What is known of each platform: `known/NAME.toml`, one file each, compiled in by `build.rs`. A new platform is a new
//! file; its keys are the fields below, and a test reads every file, so that a mistake in one is found before it ships.

use std::sync::LazyLock;

use glob::Pattern;
use serde::Deserialize;

// FILES: every file in known/, as (name, text)
include!(concat!(env!("OUT_DIR"), "/platforms.rs"));

/// One platform.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// "openstack": its file's name
    pub name: String,
    /// "OpenStack"
    pub title: String,
    /// a hypervisor anybody may run, not one operator's cloud: what cloud-init knows better is believed instead
    #[serde(default)]
    pub generic: bool,
    /// what `/run/cloud-init/cloud-id` says here
    #[serde(default)]
    pub cloud_ids: Vec<String>,
    /// how the host's side adds a guest-agent channel, where it can
    pub guest_agent_channel: Option<String>,
    /// what cannot be known of its disks from inside
    pub advice: Option<String>,
    /// any of these is enough
    #[serde(default)]
    pub recognise: Vec<Recognise>,
    #[serde(default)]
    pub disk: Vec<DiskRule>,
    #[serde(default)]
    pub marker: Vec<Marker>,
    #[serde(default)]
    pub metadata: Vec<MetadataRule>,
    /// the first that fits
    #[serde(default)]
    pub snapshot: Vec<SnapshotRule>,
}

/// What its firmware says; all that are given must fit.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recognise {
    pub chassis_asset_tag: Option<Globs>,
    pub hypervisor_uuid: Option<Globs>,
    pub product_name: Option<Globs>,
    pub product_serial: Option<Globs>,
    pub sys_vendor: Option<Globs>,
    pub product_uuid: Option<Globs>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Says {
    Transient,
    Durable,
}

/// What kind of knowledge a disk rule is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleWeight {
    #[default]
    Identity,
    Label,
    /// never decides, is only shown
    Heuristic,
}

/// What a disk looks like that is transient, or durable; all that are given must fit.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRule {
    pub says: Says,
    #[serde(default)]
    pub weight: RuleWeight,
    /// what such a disk is, for people
    pub what: String,
    /// where that is written
    pub source: String,
    /// nobody else's disks look like it: fits on a platform that was not recognised, too
    #[serde(default)]
    pub anywhere: bool,
    /// kernel name
    pub name: Option<Globs>,
    pub vendor: Option<Globs>,
    pub model: Option<Globs>,
    pub serial: Option<Globs>,
    #[serde(default)]
    pub no_serial: bool,
    /// VMBus device id of the controller
    pub vmbus: Option<Globs>,
    pub lun: Option<u32>,
    /// a link of udev's
    pub link: Option<Globs>,
    pub label: Option<Globs>,
    #[serde(default)]
    pub except_label: Vec<String>,
    /// is it a disk the machine boots from
    pub boot: Option<bool>,
}

/// A file at the root of a file system, its name in any case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marker {
    pub file: String,
    pub says: Says,
    pub source: String,
}

/// What cloud-init kept of the platform's metadata.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetadataRule {
    /// below `ds.meta_data`, `ds.meta-data` or `ds.ec2_metadata`
    pub key: Glob,
    /// which disk it is about
    pub disk: About,
    /// what must be there; with `disk = "named"` it is the disk's name
    pub value: Option<String>,
    pub says: Says,
    pub what: String,
    /// the name may be spelt with any of these prefixes: the metadata's "sdb" is the kernel's "vdb"
    #[serde(default)]
    pub renamed: Vec<String>,
    pub source: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum About {
    Boot,
    Named,
}

/// What a snapshot of a server contains here, when nobody says more.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRule {
    pub contains: Contains,
    /// fits only if the disk it boots from has such a serial number
    pub boot_serial: Option<Globs>,
    pub what: String,
    pub source: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contains {
    /// every durable disk
    All,
    /// attached volumes are left out
    BootDisk,
    /// whoever takes it chooses
    Chosen,
}

/// One or more globs; any of them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Globs {
    One(Glob),
    Any(Vec<Glob>),
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Glob(Pattern);

impl TryFrom<String> for Glob {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Pattern::new(&text).map(Self).map_err(|error| format!("{text:?} is not a glob: {error}"))
    }
}

impl Glob {
    pub fn fits(&self, text: &str) -> bool {
        self.0.matches(text)
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl Globs {
    pub fn fits(&self, text: &str) -> bool {
        match self {
            Self::One(glob) => glob.fits(text),
            Self::Any(globs) => globs.iter().any(|glob| glob.fits(text)),
        }
    }
}

/// Every platform, by name.
pub fn all() -> &'static [Known] {
    static ALL: LazyLock<Vec<Known>> = LazyLock::new(|| {
        let read = |(name, text): &(&str, &str)| read(name, text).expect("a test reads every one of them");
        FILES.iter().map(read).collect()
    });
    &ALL
}

/// Reads one file's text.
fn read(file: &str, text: &str) -> Result<Known, String> {
    let wrong = |what: String| format!("failed to read {file}.toml: {what}");
    let known: Known = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
    if known.name != file {
        return Err(wrong(format!("its name is {:?}; it must be the file's", known.name)));
    }
    if known.title.trim().is_empty() {
        return Err(wrong("it has no title".into()));
    }
    for rule in &known.recognise {
        if rule.strength() == 0 {
            return Err(wrong("a [[recognise]] names no field, so it would fit every machine".into()));
        }
    }
    for rule in &known.disk {
        rule.check().map_err(|what| wrong(format!("the [[disk]] rule {:?} {what}", rule.what)))?;
    }
    for marker in &known.marker {
        if marker.file.is_empty() || marker.file.contains('/') {
            return Err(wrong(format!("the [[marker]] {:?} is not the name of a file", marker.file)));
        }
    }
    let rules = known.disk.iter().map(|r| &r.source).chain(known.marker.iter().map(|r| &r.source));
    let more = known.metadata.iter().map(|r| &r.source).chain(known.snapshot.iter().map(|r| &r.source));
    match rules.chain(more).find(|source| !source.starts_with("https://")) {
        Some(source) => Err(wrong(format!("the source {source:?} is not an https address"))),
        None => Ok(known),
    }
}

impl Recognise {
    /// Rules that look at what a platform itself writes are better than those that look at its hardware's maker.
    pub(super) fn strength(&self) -> u8 {
        match () {
            () if self.chassis_asset_tag.is_some() => 5,
            () if self.hypervisor_uuid.is_some() => 4,
            () if self.product_name.is_some() || self.product_serial.is_some() => 3,
            () if self.sys_vendor.is_some() => 2,
            () if self.product_uuid.is_some() => 1,
            () => 0,
        }
    }
}

impl DiskRule {
    fn check(&self) -> Result<(), &'static str> {
        let strong = [&self.model, &self.serial, &self.vmbus, &self.link].into_iter().any(Option::is_some);
        match self.weight {
            RuleWeight::Identity if !strong => Err("is an identity and looks at no model, serial, vmbus or link"),
            RuleWeight::Label if self.label.is_none() => Err("has the weight of a label and looks at none"),
            RuleWeight::Heuristic if self.anywhere => Err("is a heuristic and cannot hold anywhere"),
            RuleWeight::Heuristic if self.label.is_none() && !self.no_serial && !strong => Err("looks at nothing"),
            RuleWeight::Identity | RuleWeight::Label if self.label.is_some() && strong => {
                Err("looks at a label and an identity; make it two")
            }
            RuleWeight::Identity | RuleWeight::Label | RuleWeight::Heuristic => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        read("cloud", text).expect_err("malformed")
    }

    #[test]
    fn every_file_is_read_and_no_two_share_a_name_or_a_cloud_id() {
        let known: Vec<Known> =
            FILES.iter().map(|(name, text)| read(name, text).unwrap_or_else(|e| panic!("{e}"))).collect();
        assert!(known.len() > 15, "all of them are compiled in");
        assert!(known.iter().any(|k| k.name == "unknown" && k.generic && k.recognise.is_empty()));
        let mut ids: Vec<&String> = known.iter().flat_map(|k| &k.cloud_ids).collect();
        let count = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }

    #[test]
    fn a_mistake_is_named_with_its_file() {
        let rule =
            "name = \"cloud\"\ntitle = \"C\"\n[[disk]]\nsays = \"transient\"\nwhat = \"w\"\nsource = \"https://c\"\n";
        assert!(refused("name = \"cloud\"").starts_with("failed to read cloud.toml: "));
        assert!(refused("name = \"other\"\ntitle = \"O\"").ends_with("it must be the file's"));
        assert!(refused(&format!("{rule}modell = \"x\"\n")).contains("modell"));
        assert!(refused(&format!("{rule}model = \"a[\"\n")).contains("cloud.toml"));
        assert!(refused(rule).ends_with("looks at no model, serial, vmbus or link"));
        assert!(refused(&format!("{rule}label = \"x\"\nmodel = \"y\"\n")).ends_with("make it two"));
        assert!(refused(&format!("{rule}model = \"y\"\n").replace("https://c", "a friend")).contains("\"a friend\""));
        assert!(refused("name = \"cloud\"\ntitle = \"C\"\n[[recognise]]\n").contains("every machine"));
    }
}
