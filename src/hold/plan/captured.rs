//! The disks the caller is going to snapshot, and which file systems that means.

use std::collections::{BTreeMap, BTreeSet};

use super::{Inputs, Leaf};
use crate::{
    guest::Dev,
    hold::{Refusal, RefusalKind},
    proto,
};

/// Every file system that lies wholly on disks the caller names; `None`: not told.
///
/// # Errors
/// A disk that no mounted file system lies on.
pub(super) fn captured(inputs: &Inputs<'_>) -> Result<Option<BTreeSet<Dev>>, Refusal> {
    use proto::disk_selector::By;
    let Some(scope) = &inputs.spec.scope else { return Ok(None) };
    let mut captured: BTreeMap<Dev, usize> = BTreeMap::new();
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
            let legs = facts.leaves.iter().filter(|l| is(l)).count();
            if legs > 0 {
                matched = true;
                *captured.entry(*dev).or_default() += legs;
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
    // a file system is in the snapshot only with every disk it lies on
    let whole =
        |(dev, legs): (Dev, usize)| inputs.facts.get(&dev).is_some_and(|f| legs >= f.leaves.len()).then_some(dev);
    Ok(Some(captured.into_iter().filter_map(whole).collect()))
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
