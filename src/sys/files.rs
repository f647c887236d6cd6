//! Opening a mount point so that nobody can redirect it, and proving afterwards what was opened.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::{
        stat::Mode,
        statfs::{BTRFS_SUPER_MAGIC, fstatfs},
    },
};

/// FS_NOCOW_FL (linux/fs.h).
const NOCOW: libc::c_long = 0x0080_0000;

nix::ioctl_read!(ioctl_getflags, b'f', 1, libc::c_long);
nix::ioctl_write_ptr!(ioctl_setflags, b'f', 2, libc::c_long);

/// Opens the directory `path` for reading, following no link of any kind (openat2(2)); `namespace`: as process PID sees
/// it, confined to its root, because such a path is the container's to forge.
///
/// # Errors
/// open(2)'s and openat2(2)'s; ELOOP if any component is a link.
pub fn open_mount(path: &Path, namespace: Option<i32>) -> io::Result<OwnedFd> {
    let root = match namespace {
        Some(pid) => format!("/proc/{pid}/root"),
        None => "/".to_owned(),
    };
    let root = open(root.as_str(), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(openat2(&root, path, how)?)
}

/// The id of the mount a descriptor was opened on, as mountinfo counts them (proc_pid_fdinfo(5)).
///
/// # Errors
/// fdinfo is unreadable or has no `mnt_id:` line.
pub fn mount_id(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "fdinfo has no mnt_id"))
}

/// Is this descriptor on btrfs?
///
/// # Errors
/// fstatfs(2)'s.
pub fn on_btrfs(fd: impl AsFd) -> io::Result<bool> {
    Ok(fstatfs(fd)?.filesystem_type() == BTRFS_SUPER_MAGIC)
}

/// Has this file the NOCOW attribute (ioctl_iflags(2))?
///
/// # Errors
/// The ioctl's.
pub fn is_nocow(file: &File) -> io::Result<bool> {
    Ok(flags(file)? & NOCOW != 0)
}

/// Sets NOCOW, which btrfs honours on empty files only: overwriting in place then needs no new blocks.
///
/// # Errors
/// The ioctl's.
pub fn set_nocow(file: &File) -> io::Result<()> {
    let flags = flags(file)? | NOCOW;
    // JUSTIFICATION: no crate offers FS_IOC_SETFLAGS.
    // SAFETY: the pointer is to a live long; the kernel reads its first four bytes.
    unsafe { ioctl_setflags(file.as_raw_fd(), &raw const flags) }?;
    Ok(())
}

fn flags(file: &File) -> io::Result<libc::c_long> {
    let mut flags: libc::c_long = 0;
    // JUSTIFICATION: no crate offers FS_IOC_GETFLAGS.
    // SAFETY: the pointer is to a live long; the kernel writes its first four bytes.
    unsafe { ioctl_getflags(file.as_raw_fd(), &raw mut flags) }?;
    Ok(flags)
}
