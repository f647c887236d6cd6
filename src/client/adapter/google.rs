//! The disks Google's agent says it is going to snapshot: `TARGET/LUN,…` of its SCSI controller, or names like `nvme0n2`
//! that newer versions find from the NVMe identifiers.

use std::{fs, path::Path};

use crate::proto::{DiskSelector, disk_selector::By};

/// The disks meant by `list`; `None`: not told, or one of them is not to be found here, and then nothing is left out.
pub fn disks(list: &str, root: &Path) -> Option<Vec<DiskSelector>> {
    let entries: Vec<&str> = list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
    let disks = entries.iter().map(|entry| Some(selector(device(entry, root)?))).collect::<Option<Vec<_>>>()?;
    (!disks.is_empty()).then_some(disks)
}

fn selector(name: String) -> DiskSelector {
    DiskSelector { by: Some(By::Device(name)) }
}

fn device(entry: &str, root: &Path) -> Option<String> {
    match entry.split_once('/') {
        None => root.join("sys/class/block").join(entry).exists().then(|| entry.to_owned()),
        Some((target, lun)) => scsi(target.parse().ok()?, lun.parse().ok()?, root),
    }
}

/// The block device at this target and unit, if there is just one: `/sys/class/scsi_device/HOST:BUS:TARGET:LUN`.
fn scsi(target: u32, lun: u32, root: &Path) -> Option<String> {
    let mut names = fs::read_dir(root.join("sys/class/scsi_device")).ok()?.flatten().filter_map(|entry| {
        let address = entry.file_name().into_string().ok()?;
        let mut numbers = address.split(':').skip(2).map(str::parse::<u32>);
        let here = (numbers.next()?.ok()?, numbers.next()?.ok()?) == (target, lun);
        let mut block = fs::read_dir(entry.path().join("device/block")).ok().filter(|_| here)?;
        block.next()?.ok()?.file_name().into_string().ok()
    });
    let name = names.next()?;
    names.next().is_none().then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_found_by_their_scsi_address_or_their_name_and_one_unknown_means_not_told() {
        let root = tempfile::tempdir().unwrap();
        let dirs = ["scsi_device/0:0:1:0/device/block/sda", "scsi_device/0:0:2:0/device/block/sdb", "block/nvme0n2"];
        dirs.iter().for_each(|dir| fs::create_dir_all(root.path().join("sys/class").join(dir)).unwrap());
        let found = |list: &str| {
            let names = |disks: Vec<DiskSelector>| -> Vec<String> {
                let name = |disk: DiskSelector| match disk.by {
                    Some(By::Device(name)) => name,
                    other => panic!("{other:?}"),
                };
                disks.into_iter().map(name).collect()
            };
            disks(list, root.path()).map(names)
        };
        assert_eq!(found("1/0,2/0"), Some(vec!["sda".into(), "sdb".into()]));
        assert_eq!(found("nvme0n2"), Some(vec!["nvme0n2".into()]));
        for unknown in ["", ",", "1/0,9/0", "nvme0n7", "a/b", "../../etc"] {
            assert_eq!(found(unknown), None, "{unknown}");
        }
    }
}
