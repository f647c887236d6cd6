//! Whether what is written to a file system survives the machine, and how that is known. Called by `plan` and coverage.
//!
//! Never a bare verdict: each carries its evidence. What administrators configure comes first, then what a device says of
//! itself, then labels. Everything else is unknown, which is not durable. Verdicts travel up: a file system on a loop file
//! on a transient disk is transient, one with a single transient leg is mixed, and worth more worry than either.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    Dev, Kind, Superblock,
    disks::{BlockDevice, BlockGraph, Node},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    Unknown,
    Durable,
    Transient,
    /// some of the devices it needs are transient: a snapshot without them may be worth nothing
    Mixed,
}

/// Why, in a form people can check: source is `config`, `type`, `memory`, `model`, `vmbus` or `label`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    pub source: &'static str,
    pub value: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub durability: Durability,
    pub evidence: Vec<Evidence>,
}

impl Verdict {
    fn unknown() -> Self {
        Self { durability: Durability::Unknown, evidence: Vec::new() }
    }

    fn because(durability: Durability, source: &'static str, value: String) -> Self {
        Self { durability, evidence: vec![Evidence { source, value }] }
    }
}

/// A verdict for every superblock. `configured` are mount points the administrator calls transient.
pub fn classify(superblocks: &[Superblock], graph: &BlockGraph, configured: &[PathBuf]) -> BTreeMap<Dev, Verdict> {
    let by_dev = superblocks.iter().map(|s| (s.dev, s)).collect();
    let mut judge =
        Judge { by_dev, graph, configured: configured.iter().map(|p| tidy(p)).collect(), known: BTreeMap::new() };
    superblocks.iter().map(|s| (s.dev, judge.verdict(Node::Superblock(s.dev)))).collect()
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

struct Judge<'a> {
    by_dev: BTreeMap<Dev, &'a Superblock>,
    graph: &'a BlockGraph,
    configured: Vec<PathBuf>,
    known: BTreeMap<Node, Verdict>,
}

impl Judge<'_> {
    fn verdict(&mut self, node: Node) -> Verdict {
        if let Some(verdict) = self.known.get(&node) {
            return verdict.clone();
        }
        // Should the graph run in a circle, this is what is found at its end.
        self.known.insert(node, Verdict::unknown());
        let own = match node {
            Node::Superblock(dev) => self.of_superblock(dev),
            Node::Block(dev) => self.graph.devices.get(&dev).and_then(of_identity),
        };
        let verdict = own.unwrap_or_else(|| {
            let below = self.graph.directly_below(node);
            let below = combine(below.into_iter().map(|node| self.verdict(node)).collect());
            match below.durability {
                Durability::Unknown => self.of_label(node).unwrap_or(below),
                Durability::Durable | Durability::Transient | Durability::Mixed => below,
            }
        });
        self.known.insert(node, verdict.clone());
        verdict
    }

    fn of_superblock(&self, dev: Dev) -> Option<Verdict> {
        let superblock = self.by_dev.get(&dev)?;
        if let Some(mount) = self.configured.iter().find(|path| is_named(superblock, path)) {
            return Some(Verdict::because(Durability::Transient, "config", mount.display().to_string()));
        }
        let on_disk = self.graph.directly_below(Node::Superblock(dev));
        (superblock.kind == Kind::Memory && on_disk.is_empty())
            .then(|| Verdict::because(Durability::Transient, "type", superblock.fs_type.clone()))
    }

    fn of_label(&self, node: Node) -> Option<Verdict> {
        let Node::Block(dev) = node else { return None };
        let device = self.graph.devices.get(&dev)?;
        let label = device.label.as_deref().filter(|label| is_transient_label(label))?;
        Some(Verdict::because(Durability::Transient, "label", format!("{}: {label}", device.name)))
    }
}

/// What a device says about itself.
fn of_identity(device: &BlockDevice) -> Option<Verdict> {
    let say = |durability, source, value: &str| {
        Some(Verdict::because(durability, source, format!("{}: {value}", device.name)))
    };
    if device.memory {
        return Some(Verdict::because(Durability::Transient, "memory", device.name.clone()));
    }
    let id = &device.identity;
    if let Some(model) = &id.model
        && let Some(durability) = of_model(id.vendor.as_deref(), model)
    {
        return say(durability, "model", model);
    }
    if let Some(controller) = &id.vmbus
        && is_azure_resource_disk(controller, id.scsi.as_deref())
    {
        return say(Durability::Transient, "vmbus", controller);
    }
    None
}

fn of_model(vendor: Option<&str>, model: &str) -> Option<Durability> {
    let google = vendor == Some("Google");
    let nvme_card = model.strip_prefix("nvme_card");
    match model {
        "Amazon EC2 NVMe Instance Storage" => Some(Durability::Transient),
        "Amazon Elastic Block Store" => Some(Durability::Durable),
        _ if model.starts_with("Microsoft NVMe Direct Disk") => Some(Durability::Transient),
        _ if model.starts_with("MSFT NVMe Accelerator") => Some(Durability::Durable),
        _ if nvme_card == Some("-pd") => Some(Durability::Durable),
        _ if nvme_card.is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit())) => Some(Durability::Transient),
        _ if google && model.contains("EphemeralDisk") => Some(Durability::Transient),
        _ if google && model.contains("PersistentDisk") => Some(Durability::Durable),
        _ => None,
    }
}

/// Generation 1: by the controller's id; generation 2: one controller, LUN 1 (0 is the system disk, 2 the CD).
fn is_azure_resource_disk(controller: &str, scsi: Option<&str>) -> bool {
    let lun = scsi.and_then(|address| address.rsplit(':').next());
    controller.starts_with("00000000-0001-")
        || (controller == "f8b3781a-1e82-4818-a1c3-63d806ec15bb" && lun == Some("1"))
}

/// Labels that clouds, not people, put on disks they will throw away.
fn is_transient_label(label: &str) -> bool {
    let nova = label.strip_prefix("ephemeral").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    nova || matches!(label, "AzureEphmDsk" | "Temporary Storage")
}

fn combine(parts: Vec<Verdict>) -> Verdict {
    let all = |wanted| !parts.is_empty() && parts.iter().all(|part| part.durability == wanted);
    let some = parts.iter().any(|p| matches!(p.durability, Durability::Transient | Durability::Mixed));
    let durability = match () {
        () if all(Durability::Transient) => Durability::Transient,
        () if all(Durability::Durable) => Durability::Durable,
        () if some => Durability::Mixed,
        () => Durability::Unknown,
    };
    let mut evidence: Vec<Evidence> = Vec::new();
    for item in parts.into_iter().flat_map(|part| part.evidence) {
        if !evidence.contains(&item) {
            evidence.push(item);
        }
    }
    Verdict { durability, evidence }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{self, Guest, disks, fixture::fixture, mounts, superblocks};

    fn verdicts(guest: &Guest, configured: &[&str]) -> BTreeMap<String, (Durability, Vec<String>)> {
        let configured: Vec<PathBuf> = configured.iter().map(PathBuf::from).collect();
        classify(&guest.superblocks, &guest.disks, &configured)
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
    fn aws_disks_say_what_they_are() {
        let found = of("nvme", &[]);
        assert_eq!(found["259:1"], said(Durability::Durable, &["model=nvme0n1: Amazon Elastic Block Store"]));
        assert_eq!(found["259:2"], said(Durability::Transient, &["model=nvme1n1: Amazon EC2 NVMe Instance Storage"]));
        assert_eq!(found["253:0"], said(Durability::Transient, &["memory=zram0"]));
        assert_eq!(found["0:25"], said(Durability::Transient, &["type=tmpfs"]));
    }

    #[test]
    fn one_transient_leg_makes_a_raid_mixed_and_names_every_leg() {
        let (durability, evidence) = &of("raid-with-one-transient-leg", &[])["9:0"];
        assert_eq!((*durability, evidence.len()), (Durability::Mixed, 2));
    }

    #[test]
    fn azure_resource_disks_are_told_from_data_disks_in_both_generations() {
        let found = of("azure", &[]);
        let durability = |dev: &str| found[dev].0;
        assert_eq!(
            ["8:0", "8:16", "8:32", "8:48"].map(durability),
            [Durability::Unknown, Durability::Transient, Durability::Unknown, Durability::Transient]
        );
    }

    #[test]
    fn novas_label_tells_where_the_device_does_not() {
        let found = of("nova", &[]);
        assert_eq!(found["254:16"], said(Durability::Transient, &["label=vdb: ephemeral0"]));
        assert_eq!(found["254:0"], said(Durability::Unknown, &[]));
        assert!(!is_transient_label("ephemeral") && !is_transient_label("ephemeral-data"));
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
    fn a_bind_mount_of_the_root_does_not_make_the_root_transient() {
        let text = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:1 /srv /mnt rw - ext4 /dev/sda1 rw\n";
        let mounts = mounts::parse(text);
        let superblocks = superblocks::superblocks(&mounts, &[], &|_| true);
        let mut graph = disks::BlockGraph::default();
        graph.connect(&superblocks, &mounts);
        let configured = [PathBuf::from("/mnt"), PathBuf::from("/nowhere")];
        assert_eq!(classify(&superblocks, &graph, &configured)[&superblocks[0].dev].durability, Durability::Unknown);
        assert_eq!(unmatched(&superblocks, &configured), configured);
        assert_eq!(unmatched(&superblocks, &["/".into()]), [] as [PathBuf; 0]);
    }

    #[test]
    fn google_and_azure_models_are_told_exactly() {
        assert_eq!(of_model(None, "nvme_card"), Some(Durability::Transient));
        assert_eq!(of_model(None, "nvme_card3"), Some(Durability::Transient));
        assert_eq!(of_model(None, "nvme_card-pd"), Some(Durability::Durable));
        assert_eq!(of_model(None, "nvme_cardboard"), None);
        assert_eq!(of_model(Some("Google"), "EphemeralDisk"), Some(Durability::Transient));
        assert_eq!(of_model(Some("ATA"), "EphemeralDisk"), None);
        assert_eq!(of_model(None, "Microsoft NVMe Direct Disk v2"), Some(Durability::Transient));
        assert_eq!(of_model(None, "MSFT NVMe Accelerator v1.0"), Some(Durability::Durable));
    }
}
