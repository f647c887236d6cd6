//! What a copy says of the moment it was cut, asked of it and not of the agent.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Place;
use crate::lab::{Lab, command, disk, disk::Disk, process::tool};

/// A disk as it was when it was cut, as one raw image.
pub fn raw(place: &Place, cut: &Path) -> PathBuf {
    let name = cut.file_stem().and_then(|n| n.to_str()).expect("the lab's names are ASCII");
    let image = place.disk.join(format!("{name}.raw"));
    // -U: the machine is still running on what is above it
    tool(command("qemu-img").args(["convert", "-U", "-O", "raw"]).arg(cut).arg(&image));
    image
}

/// Whether its journal would have to be replayed: never so for an ext4 that was frozen when it was cut.
pub fn needs_recovery(place: &Place, cut: &Path) -> bool {
    disk::needs_recovery(&raw(place, cut))
}

/// Mounts raw copies without touching them and lets `holdstill verify` grade them.
pub fn verify(lab: &Lab, copies: &[PathBuf], arguments: &[&str]) -> Value {
    let disks: Vec<Disk> = copies.iter().map(|copy| Disk::attach(copy)).collect();
    let mounts: Vec<PathBuf> = (0..disks.len()).map(|i| lab.memory_dir(&format!("copy{i}"))).collect();
    for (disk, at) in disks.iter().zip(&mounts) {
        tool(command("mount").args(["-t", "ext4", "-o", "ro,noload"]).arg(&disk.device).arg(at));
    }
    let mut said: Vec<&str> = vec!["--json", "verify"];
    said.extend(arguments);
    said.extend(mounts.iter().map(|at| at.to_str().expect("the lab's names are ASCII")));
    let answer = lab.holdstill(&said);
    for at in &mounts {
        tool(command("umount").arg(at));
    }
    drop(disks);
    answer.json.clone()
}
