//! What to look for on a file system that will be missed, and what to count.

use std::path::Path;

use crate::{
    guest::{
        Guest, Kind, Superblock,
        risk::{Care, Wanted},
        transient,
    },
    hold::{contents::Place, survey::facts},
};

/// What to look for on a file system that will be missed; `None`: nothing that can be found without asking databases.
pub(super) fn wanted(superblock: &Superblock) -> Option<Wanted> {
    let own = superblock.namespace.is_none();
    let is_root = own && superblock.mounts.iter().any(|mount| mount == Path::new("/"));
    let care = match superblock.kind {
        Kind::Freezable | Kind::FlushOnly | Kind::Unknown if is_root => Care::System,
        Kind::Freezable | Kind::FlushOnly | Kind::Unknown if own => Care::Everything,
        // its paths are another namespace's; who writes there is told all the same
        Kind::Freezable | Kind::FlushOnly | Kind::Unknown => Care::Nothing,
        Kind::Memory if own && !superblock.mounts.iter().all(|mount| is_for_memory(mount)) => Care::State,
        Kind::Memory | Kind::Remote | Kind::Stacked | Kind::Image | Kind::Pseudo => return None,
    };
    let mount = superblock.open_at.as_ref().filter(|_| superblock.below.is_none());
    let home = mount.filter(|_| matches!(care, Care::Everything | Care::System));
    Some(Wanted {
        dev: superblock.dev,
        care,
        mount_id: home.map(|mount| mount.mount_id).unwrap_or_default(),
        home: home.map(|mount| mount.path.clone()),
    })
}

/// A disk that can be looked into.
pub(super) fn to_count(superblock: &Superblock, uuid: &str) -> Option<Place> {
    let home = wanted(superblock)?.home?;
    Some(Place { dev: superblock.dev, uuid: uuid.to_owned(), top: home })
}

/// Before anybody asks: disks that are transient, whatever the snapshot.
pub(in crate::hold::survey) fn to_count_at_start(
    guest: &Guest,
    root: &Path,
    configured: transient::Configured<'_>,
) -> Vec<Place> {
    let verdicts = facts::verdicts_at_start(guest, root, configured);
    let gone = |superblock: &&Superblock| {
        verdicts.get(&superblock.dev).is_some_and(|verdict| match verdict.durability {
            transient::Durability::Transient | transient::Durability::Mixed => true,
            transient::Durability::Unknown | transient::Durability::Durable => false,
        })
    };
    let uuid = |superblock: &Superblock| guest.disks.uuid(superblock.dev).unwrap_or_default().to_owned();
    guest.superblocks.iter().filter(gone).filter_map(|s| to_count(s, &uuid(s))).collect()
}

/// Where everybody has something in memory, and knows it.
fn is_for_memory(mount: &Path) -> bool {
    let usual = ["/run", "/dev", "/tmp", "/sys", "/proc", "/var/run", "/var/lock", "/var/tmp"];
    // secrets and shared memory of containers
    let runtimes = ["/var/lib/kubelet", "/var/lib/docker", "/var/lib/containers", "/var/lib/containerd"];
    usual.iter().chain(&runtimes).any(|above| mount.starts_with(above))
}

/// Who writes into memory is of no interest.
pub(super) fn counts_writers(superblock: &Superblock) -> bool {
    match superblock.kind {
        Kind::Freezable | Kind::FlushOnly | Kind::Unknown => true,
        Kind::Memory | Kind::Remote | Kind::Stacked | Kind::Image | Kind::Pseudo => false,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::guest::Dev;

    pub(in crate::hold::survey::at_risk) fn superblock(kind: Kind, mounts: &[&str]) -> Superblock {
        Superblock {
            dev: Dev { major: 8, minor: 1 },
            fs_type: "ext4".into(),
            source: "/dev/sda1".into(),
            options: "rw".into(),
            kind,
            read_only: false,
            open_at: None,
            mounts: mounts.iter().map(PathBuf::from).collect(),
            namespace: None,
            below: None,
        }
    }

    fn care(kind: Kind, mounts: &[&str]) -> Option<Care> {
        wanted(&superblock(kind, mounts)).map(|wanted| wanted.care)
    }

    #[test]
    fn disks_are_looked_at_closely_memory_where_people_put_things_and_the_rest_not_at_all() {
        assert_eq!(care(Kind::Freezable, &["/mnt"]), Some(Care::Everything));
        assert_eq!(care(Kind::FlushOnly, &["/mnt"]), Some(Care::Everything));
        assert_eq!(care(Kind::Freezable, &["/", "/mnt"]), Some(Care::System));
        assert_eq!(care(Kind::Memory, &["/var/lib/mysql"]), Some(Care::State));
        for quiet in [&["/run"][..], &["/dev/shm"], &["/tmp", "/var/tmp"], &["/run/user/0"]] {
            assert_eq!(care(Kind::Memory, quiet), None, "{quiet:?}");
        }
        assert_eq!(care(Kind::Remote, &["/net"]), None);
        let theirs = Superblock { namespace: Some(7), ..superblock(Kind::Freezable, &["/mnt"]) };
        assert_eq!(wanted(&theirs).map(|wanted| wanted.care), Some(Care::Nothing));
    }
}
