//! What platforms' rules say of one device: of what it is, of what is written on it, of what the metadata calls it.

use std::{collections::BTreeSet, path::Path};

use super::{Durability, Evidence, Knowledge, Weight, boot};
use crate::guest::{
    Dev, Superblock,
    disks::{BlockDevice, BlockGraph},
    platform::known::{self, About, DiskRule, Globs, Known, MetadataRule, RuleWeight},
};

/// The rules that apply here, and what they look at beside the device itself.
pub(super) struct Rules<'a> {
    graph: &'a BlockGraph,
    /// what the machine boots from
    boot: BTreeSet<Dev>,
    /// that, and what its root lies on
    system: BTreeSet<Dev>,
    disk: Vec<&'static DiskRule>,
    /// what the metadata says that a rule is about
    said: Vec<(&'static MetadataRule, &'a str, &'a str)>,
}

impl<'a> Rules<'a> {
    pub(super) fn new(superblocks: &[Superblock], graph: &'a BlockGraph, knowledge: &Knowledge<'a>) -> Self {
        let here = knowledge.platform.known();
        let is_here = |platform: &Known| platform.name == here.name;
        let disk = known::all()
            .iter()
            .flat_map(|platform| platform.disk.iter().filter(move |rule| rule.anywhere || is_here(platform)));
        let facts = &knowledge.metadata.0;
        let said = here.metadata.iter().flat_map(|rule| {
            let about = facts.iter().filter(|(key, _)| rule.key.fits(key));
            about.map(move |(key, value)| (rule, key.as_str(), value.as_str()))
        });
        let boot = boot::boot_disks(superblocks, graph);
        let system = &boot | &boot::disks_of(Path::new("/"), superblocks, graph);
        Self { graph, boot, system, disk: disk.collect(), said: said.collect() }
    }

    /// Everything that can be said of `device` without looking at what lies below or above it.
    pub(super) fn evidence(&self, device: &BlockDevice) -> Vec<Evidence> {
        let mut all = Vec::new();
        if device.memory {
            all.push(Evidence {
                source: "memory",
                value: device.name.clone(),
                weight: Weight::Identity,
                says: Durability::Transient,
            });
        }
        if let Some(cache) = device.cache.as_ref().filter(|cache| !cache.needed && !cache.devices.is_empty()) {
            let value =
                format!("{}: {}, whole without its cache {}", device.name, cache.mode, cache.devices.join(", "));
            all.push(Evidence { source: "cache", value, weight: Weight::Identity, says: Durability::Unknown });
        }
        let links: Vec<&str> = self.graph.links(&device.name).filter_map(|link| link.to_str()).collect();
        all.extend(self.disk.iter().filter_map(|rule| self.of_rule(rule, device, &links)));
        all.extend(self.said.iter().filter_map(|(rule, key, value)| self.of_metadata(rule, key, value, device)));
        all
    }

    /// What the rule saw, if it fits.
    fn of_rule(&self, rule: &DiskRule, device: &BlockDevice, links: &[&str]) -> Option<Evidence> {
        let id = &device.identity;
        let on_a_disk_alone = rule.label.is_none() && rule.link.is_none();
        if (on_a_disk_alone && !is_whole(device))
            || rule.boot.is_some_and(|boot| boot != self.system.contains(&device.dev))
        {
            return None;
        }
        if device.label.as_ref().is_some_and(|label| rule.except_label.contains(label)) {
            return None;
        }
        if rule.no_serial && id.serial.is_some() {
            return None;
        }
        if let Some(lun) = rule.lun {
            let own = id.scsi.as_deref().and_then(|address| address.rsplit(':').next());
            own.and_then(|own| own.parse::<u32>().ok()).filter(|own| *own == lun)?;
        }
        if !fits(&rule.name, Some(&device.name)) || !fits(&rule.vendor, id.vendor.as_deref()) {
            return None;
        }
        let link = match &rule.link {
            Some(glob) => Some(*links.iter().find(|link| glob.fits(link))?),
            None => None,
        };
        let seen = [
            ("model", &rule.model, id.model.as_deref()),
            ("serial", &rule.serial, id.serial.as_deref()),
            ("vmbus", &rule.vmbus, id.vmbus.as_deref()),
            ("label", &rule.label, device.label.as_deref()),
        ];
        if !seen.iter().all(|(_, globs, text)| fits(globs, *text)) {
            return None;
        }
        let named =
            seen.iter().find(|(_, globs, _)| globs.is_some()).and_then(|(source, _, text)| Some((*source, (*text)?)));
        let (source, seen) = named.or(link.map(|link| ("link", link))).unwrap_or(("serial", "none"));
        let vendor =
            rule.vendor.as_ref().and(id.vendor.as_deref()).map_or_else(String::new, |vendor| format!("{vendor} "));
        let lun = rule.lun.map_or_else(String::new, |lun| format!(" LUN {lun}"));
        Some(Evidence {
            source,
            value: format!("{}: {vendor}{seen}{lun} ({})", device.name, rule.what),
            weight: match rule.weight {
                RuleWeight::Identity => Weight::Identity,
                RuleWeight::Label => Weight::Label,
                RuleWeight::Heuristic => Weight::Heuristic,
            },
            says: rule.says.into(),
        })
    }

    /// Only whole disks are named; a partition inherits from its disk.
    fn of_metadata(&self, rule: &MetadataRule, key: &str, value: &str, device: &BlockDevice) -> Option<Evidence> {
        let about = match rule.disk {
            About::Boot => self.boot.contains(&device.dev) && rule.value.as_ref().is_none_or(|wanted| wanted == value),
            About::Named => is_called(rule, value, &device.name),
        };
        let seen = if value.is_empty() { "none" } else { value };
        (about && is_whole(device)).then(|| Evidence {
            source: "cloud-init",
            value: format!("{}: {key} is {seen} ({})", device.name, rule.what),
            weight: Weight::Metadata,
            says: rule.says.into(),
        })
    }
}

fn is_whole(device: &BlockDevice) -> bool {
    device.partition.is_none() && device.slaves.is_empty() && device.loop_file.is_none() && !device.memory
}

fn fits(globs: &Option<Globs>, text: Option<&str>) -> bool {
    globs.as_ref().is_none_or(|globs| text.is_some_and(|text| globs.fits(text)))
}

/// Metadata speaks of "sdb", or "/dev/sdb", where the kernel has "vdb" or "xvdb".
fn is_called(rule: &MetadataRule, said: &str, name: &str) -> bool {
    let said = said.strip_prefix("/dev/").unwrap_or(said);
    if said == name {
        return true;
    }
    let stem =
        |text: &str| rule.renamed.iter().find_map(|prefix| text.strip_prefix(prefix.as_str()).map(str::to_owned));
    match (stem(said), stem(name)) {
        (Some(a), Some(b)) => !a.is_empty() && a == b,
        (Some(_) | None, None) | (None, Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::platform::Platform;

    #[test]
    fn metadatas_sdb_is_the_kernels_vdb_and_nothing_else() {
        let rule = &Platform::named("openstack").unwrap().known().metadata[0];
        for name in ["sdb", "vdb", "xvdb", "vtbb"] {
            assert!(is_called(rule, "/dev/sdb", name), "{name}");
        }
        for (said, name) in [("sdb", "vdc"), ("sdb", "nvme0n1"), ("", "sda"), ("sd", "vd"), ("sdb", "vdb1")] {
            assert!(!is_called(rule, said, name), "{said} {name}");
        }
    }
}
