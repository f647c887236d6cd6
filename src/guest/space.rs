//! How much is on a file system, and how much would fit. Called by the survey.

use std::{
    fs, io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::AtFlags,
    libc,
    sys::{stat::fstatat, statvfs::fstatvfs},
};

use super::{Kind, Superblock};

/// In bytes; 0 if nobody could say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    pub used: u64,
    pub size: u64,
    /// to anybody: of what is reserved, ext4 keeps a part even from root, and does not say how much
    pub free: u64,
    /// what the file asked about takes; 0 if there is none
    pub of_file: u64,
}

/// The space on a local file system, and what `file` below its root takes of it; `None` where asking could hang or needs
/// another namespace's paths. statvfs(3) is answered from memory by every type asked here, but run it in a thread with a
/// limit all the same.
///
/// # Errors
/// open(2) and fstatvfs(3); `ESTALE` if something else is mounted there by now.
pub fn of(superblock: &Superblock, file: &Path) -> io::Result<Option<Space>> {
    let local = matches!(superblock.kind, Kind::Freezable | Kind::FlushOnly | Kind::Memory);
    let Some(mount) =
        superblock.open_at.as_ref().filter(|_| local && superblock.below.is_none() && superblock.namespace.is_none())
    else {
        return Ok(None);
    };
    let root = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(&mount.path)?;
    if mount_id(&root)? != Some(mount.mount_id) {
        return Err(Errno::ESTALE.into());
    }
    let stat = fstatvfs(&root)?;
    let bytes = |blocks: u64| blocks * stat.fragment_size();
    let of_file = fstatat(&root, file, AtFlags::AT_SYMLINK_NOFOLLOW).map_or(0, |stat| stat.st_size);
    Ok(Some(Space {
        used: bytes(stat.blocks().saturating_sub(stat.blocks_free())),
        size: bytes(stat.blocks()),
        free: bytes(stat.blocks_available()),
        of_file: u64::try_from(of_file).unwrap_or(0),
    }))
}

/// The mount an open descriptor is on, as the kernel has it.
fn mount_id(file: &fs::File) -> io::Result<Option<u64>> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    Ok(info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest;

    #[test]
    fn the_root_has_some_space_in_use_and_what_must_not_be_touched_is_not_asked() {
        let guest = guest::read(Path::new("/")).unwrap();
        let mut root = guest.superblocks.into_iter().find(|s| s.mounts.iter().any(|m| m == Path::new("/"))).unwrap();
        if matches!(root.kind, Kind::Freezable | Kind::FlushOnly | Kind::Memory) {
            let space = of(&root, Path::new("etc/passwd")).unwrap().unwrap();
            assert!(space.used > 0 && space.used <= space.size);
            root.open_at.as_mut().unwrap().mount_id += 1_000_000;
            assert_eq!(of(&root, Path::new("etc/passwd")).unwrap_err().raw_os_error(), Some(libc::ESTALE));
        }
        root.below = Some("/net is autofs".into());
        assert_eq!(of(&root, Path::new("etc/passwd")).unwrap(), None);
    }
}
