//! Whether what is written to a file system survives the machine, and how that is known. Called by `plan` and coverage.
//!
//! Never a bare verdict: each carries its evidence, and what lost is kept and shown. In falling order:
//!
//! ```text
//!   configuration   what the administrator says
//!   identity        what the device says of itself: its model, its controller, its number
//!   label           what a platform wrote on it: a label, a warning file
//!   metadata        what cloud-init kept of the platform's metadata
//!   heuristic       what is merely usual. Shown, and never decides
//! ```
//!
//! Everything else is unknown, which is not durable. Verdicts travel up: a file system on a loop file on a transient disk is
//! transient, one with a single transient leg is mixed, and worth more worry than either. What platforms' disks look like
//! is data: [`super::platform::known`].

mod boot;
mod judge;
mod markers;
mod rules;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

pub use self::{
    boot::{Contents, boot_disks, contents},
    markers::{Found, find as find_markers},
};
use super::{
    Dev, Superblock,
    cloud_init::Metadata,
    disks::{BlockGraph, Node},
    platform::{Platform, known::Says},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    Unknown,
    Durable,
    Transient,
    /// some of the devices it needs are transient: a snapshot without them may be worth nothing
    Mixed,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Durable => "durable",
            Self::Transient => "transient",
            Self::Mixed => "mixed",
        })
    }
}

impl From<Says> for Durability {
    fn from(says: Says) -> Self {
        match says {
            Says::Transient => Self::Transient,
            Says::Durable => Self::Durable,
        }
    }
}

/// How good a piece of evidence is, rising: a stronger one beats any number of weaker ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    Heuristic,
    Metadata,
    Label,
    Identity,
    Configuration,
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Heuristic => "heuristic",
            Self::Metadata => "metadata",
            Self::Label => "label",
            Self::Identity => "identity",
            Self::Configuration => "configuration",
        })
    }
}

/// Why, in a form people can check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// where it was read: `config`, `type`, `memory`, `model`, `serial`, `vmbus`, `link`, `label`, `file`, `cloud-init`, `cache`
    pub source: &'static str,
    pub value: String,
    pub weight: Weight,
    /// what it says by itself; `Unknown`: nothing about this
    pub says: Durability,
}

/// A part that is transient while another is not, and what it is to the whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    /// kernel name, or mount point
    pub name: String,
    /// "a leg of md0", "its external journal"
    pub role: String,
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.role)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub durability: Durability,
    /// the strongest first
    pub evidence: Vec<Evidence>,
    /// of what decided
    weight: Weight,
    /// why it is mixed; else empty
    pub legs: Vec<Leg>,
}

impl Verdict {
    fn unknown() -> Self {
        Self { durability: Durability::Unknown, evidence: Vec::new(), weight: Weight::Heuristic, legs: Vec::new() }
    }
}

/// What is known beside the mounts and the block devices.
#[derive(Debug)]
pub struct Knowledge<'a> {
    pub platform: Platform,
    pub metadata: &'a Metadata,
    /// warning files that were found
    pub markers: &'a BTreeMap<Dev, Found>,
    pub configured: Configured<'a>,
}

/// Mount points of which the administrator says it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Configured<'a> {
    pub transient: &'a [PathBuf],
    pub durable: &'a [PathBuf],
}

/// A verdict for every superblock.
pub fn classify(superblocks: &[Superblock], graph: &BlockGraph, knowledge: &Knowledge<'_>) -> BTreeMap<Dev, Verdict> {
    let mut judge = judge::Judge::new(superblocks, graph, knowledge);
    superblocks.iter().map(|s| (s.dev, judge.verdict(Node::Superblock(s.dev)))).collect()
}

/// The same for devices that no file system is mounted from, such as swap.
pub fn classify_devices(
    devices: &[Dev],
    superblocks: &[Superblock],
    graph: &BlockGraph,
    knowledge: &Knowledge<'_>,
) -> BTreeMap<Dev, Verdict> {
    let mut judge = judge::Judge::new(superblocks, graph, knowledge);
    devices.iter().map(|dev| (*dev, judge.verdict(Node::Block(*dev)))).collect()
}

/// Configured mount points that are none here, or that are the root: silence would look like consent.
pub fn unmatched(superblocks: &[Superblock], configured: &[PathBuf]) -> Vec<PathBuf> {
    let named = |path: &PathBuf| superblocks.iter().any(|s| is_named(s, &tidy(path)));
    configured.iter().filter(|path| !named(path)).cloned().collect()
}

/// A bind mount of the root file system is not a name by which it can be called transient.
fn is_named(superblock: &Superblock, path: &Path) -> bool {
    superblock.namespace.is_none()
        && superblock.mounts.iter().any(|mount| mount == path)
        && (path == Path::new("/") || !superblock.mounts.iter().any(|mount| mount == Path::new("/")))
}

/// "/mnt//data/./" is "/mnt/data".
fn tidy(path: &Path) -> PathBuf {
    path.components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{self, Guest, disks, fixture::fixture, mounts, superblocks};

    fn on<'a>(
        platform: &str,
        transient: &'a [PathBuf],
        metadata: &'a Metadata,
        markers: &'a BTreeMap<Dev, Found>,
    ) -> Knowledge<'a> {
        let configured = Configured { transient, durable: &[] };
        Knowledge { platform: Platform::named(platform).unwrap(), metadata, markers, configured }
    }

    fn verdicts(guest: &Guest, configured: &[&str]) -> BTreeMap<String, (Durability, Vec<String>)> {
        let configured: Vec<PathBuf> = configured.iter().map(PathBuf::from).collect();
        classify(&guest.superblocks, &guest.disks, &on("azure", &configured, &Metadata::default(), &BTreeMap::new()))
            .into_iter()
            .map(|(dev, verdict)| {
                let evidence = verdict.evidence.iter().map(|e| format!("{}={}", e.source, e.value)).collect();
                (dev.to_string(), (verdict.durability, evidence))
            })
            .collect()
    }

    fn of(name: &str, configured: &[&str]) -> BTreeMap<String, (Durability, Vec<String>)> {
        verdicts(&guest::read(fixture(name).path()).unwrap(), configured)
    }

    fn said(durability: Durability, evidence: &[&str]) -> (Durability, Vec<String>) {
        (durability, evidence.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn one_transient_leg_makes_a_raid_mixed_and_names_every_leg() {
        let (durability, evidence) = &of("raid-with-one-transient-leg", &[])["9:0"];
        assert_eq!((*durability, evidence.len()), (Durability::Mixed, 2));
    }

    #[test]
    fn what_the_administrator_says_comes_first_and_travels_up_through_loop_files() {
        let guest = guest::read(fixture("loop-on-lvm-on-loop").path()).unwrap();
        assert_eq!(verdicts(&guest, &[])["7:1"].0, Durability::Unknown);
        let found = verdicts(&guest, &["/vg/"]);
        assert_eq!(found["252:0"], said(Durability::Transient, &["config=/vg"]));
        assert_eq!(found["7:1"], said(Durability::Transient, &["config=/vg"]));
        assert_eq!(found["254:0"].0, Durability::Unknown);
    }

    #[test]
    fn a_file_on_tmpfs_makes_what_is_in_it_transient() {
        assert_eq!(of("loop-on-ext4", &[])["7:2"], said(Durability::Transient, &["type=tmpfs"]));
    }

    #[test]
    fn what_the_administrator_calls_durable_is_whatever_its_disk_says() {
        let guest = guest::read(fixture("nova").path()).unwrap();
        let mount = guest.superblocks.iter().find(|s| s.dev.to_string() == "254:16").unwrap().mounts[0].clone();
        let (durable, metadata, markers) = ([mount.clone()], Metadata::default(), BTreeMap::new());
        let mut knowledge = on("openstack", &[], &metadata, &markers);
        let verdict = |knowledge: &Knowledge<'_>| {
            classify(&guest.superblocks, &guest.disks, knowledge)[&Dev { major: 254, minor: 16 }].clone()
        };
        assert_eq!(verdict(&knowledge).durability, Durability::Transient);
        knowledge.configured.durable = &durable;
        let now = verdict(&knowledge);
        assert_eq!((now.durability, now.evidence[0].source), (Durability::Durable, "config"));
        assert!(now.evidence.iter().any(|item| item.source == "label"), "what lost is shown: {now:?}");
    }

    #[test]
    fn a_bind_mount_of_the_root_does_not_make_the_root_transient() {
        let text = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:1 /srv /mnt rw - ext4 /dev/sda1 rw\n";
        let mounts = mounts::parse(text);
        let superblocks = superblocks::superblocks(&mounts, &[], &|_| true);
        let mut graph = disks::BlockGraph::default();
        graph.connect(&superblocks, &mounts);
        let configured = [PathBuf::from("/mnt"), PathBuf::from("/nowhere")];
        let (metadata, markers) = (Metadata::default(), BTreeMap::new());
        let knowledge = on("kvm", &configured, &metadata, &markers);
        assert_eq!(classify(&superblocks, &graph, &knowledge)[&superblocks[0].dev].durability, Durability::Unknown);
        assert_eq!(unmatched(&superblocks, &configured), configured);
        assert_eq!(unmatched(&superblocks, &["/".into()]), [] as [PathBuf; 0]);
    }
}
