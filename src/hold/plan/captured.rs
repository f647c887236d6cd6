//! The disks the caller is going to snapshot, and which file systems that means.

use std::collections::{BTreeMap, BTreeSet};

use super::{Inputs, Leaf};
use crate::{
    guest::Dev,
    hold::{Refusal, RefusalKind},
    proto,
};

/// What the caller is going to snapshot.
pub(super) struct Captured {
    /// every file system that lies wholly on disks the caller names
    pub whole: BTreeSet<Dev>,
    /// disks that are not captured, of those with some that are
    pub missing: BTreeMap<Dev, Vec<String>>,
}

/// `None`: not told.
///
/// # Errors
/// A disk that no mounted file system lies on.
pub(super) fn captured(inputs: &Inputs<'_>) -> Result<Option<Captured>, Refusal> {
    use proto::disk_selector::By;
    let Some(scope) = &inputs.spec.scope else { return Ok(None) };
    let mut captured: BTreeMap<Dev, BTreeSet<usize>> = BTreeMap::new();
    for selector in &scope.disks {
        let is = |leaf: &Leaf| match &selector.by {
            Some(By::Device(name)) => {
                let name = name.strip_prefix("/dev/").unwrap_or(name);
                leaf.names.iter().any(|n| n == name)
            }
            Some(By::Serial(serial)) => !serial.is_empty() && leaf.disk.serial == *serial,
            Some(By::Wwn(wwn)) => !wwn.is_empty() && same_hex(&leaf.disk.wwn, wwn),
            Some(By::PciAddress(address)) => !address.is_empty() && leaf.disk.pci_address == *address,
            Some(By::Nguid(nguid)) => !nguid.is_empty() && same_hex(&leaf.disk.nguid, nguid),
            None => false,
        };
        let mut matched = false;
        for (dev, facts) in inputs.facts {
            // the same disk may be named twice
            let legs: Vec<usize> = (0..facts.leaves.len()).filter(|leg| is(&facts.leaves[*leg])).collect();
            if !legs.is_empty() {
                matched = true;
                captured.entry(*dev).or_default().extend(legs);
            }
        }
        if !matched {
            return Err(Refusal::new(
                RefusalKind::FailedPrecondition,
                "DISK_NOT_FOUND",
                format!("hold the disk {}: no mounted file system lies on such a disk", selector_text(selector)),
            )
            .hint("`lsblk -o NAME,SERIAL,WWN` lists disks; a selector that matches nothing is never ignored"));
        }
    }
    let (mut whole, mut missing) = (BTreeSet::new(), BTreeMap::new());
    for (dev, legs) in captured {
        // a file system is in the snapshot only with every disk it lies on
        let leaves = inputs.facts.get(&dev).map_or(&[] as &[Leaf], |facts| &facts.leaves);
        let left: Vec<String> =
            (0..leaves.len()).filter(|leg| !legs.contains(leg)).map(|leg| leaves[leg].disk.name.clone()).collect();
        if left.is_empty() {
            whole.insert(dev);
        } else {
            missing.insert(dev, left);
        }
    }
    Ok(Some(Captured { whole, missing }))
}

/// How the contract's command line writes this selector.
fn selector_text(selector: &proto::DiskSelector) -> String {
    use proto::disk_selector::By;
    match &selector.by {
        Some(By::Device(name)) => name.clone(),
        Some(By::Serial(serial)) => format!("serial={serial}"),
        Some(By::Wwn(wwn)) => format!("wwn={wwn}"),
        Some(By::PciAddress(address)) => format!("pci={address}"),
        Some(By::Nguid(nguid)) => format!("nguid={nguid}"),
        None => "(nothing)".into(),
    }
}

fn same_hex(a: &str, b: &str) -> bool {
    let plain = |s: &str| {
        let s = s.strip_prefix("0x").or_else(|| s.strip_prefix("naa.")).or_else(|| s.strip_prefix("eui.")).unwrap_or(s);
        s.replace('-', "").to_ascii_lowercase()
    };
    plain(a) == plain(b)
}
