//! The two ioctls this program is about, and the flush before them. Only guardians, thawers and rescue call these.

use std::{io, os::fd::AsRawFd, os::fd::BorrowedFd};

nix::ioctl_readwrite!(ioctl_fifreeze, b'X', 119, libc::c_int);
nix::ioctl_readwrite!(ioctl_fithaw, b'X', 120, libc::c_int);

/// FIFREEZE (linux/fs.h). Blocks until the file system is frozen; nothing can interrupt it, SIGKILL included.
///
/// # Errors
/// EBUSY: somebody else has frozen it. EOPNOTSUPP: this type has no freeze operation. Else what the sync met.
pub fn fifreeze(root: BorrowedFd<'_>) -> io::Result<()> {
    let mut zero = 0;
    // JUSTIFICATION: no crate offers FIFREEZE.
    // SAFETY: `root` is open for the whole call and the argument is a live int; the kernel reads none of it.
    unsafe { ioctl_fifreeze(root.as_raw_fd(), &raw mut zero) }?;
    Ok(())
}

/// FITHAW (linux/fs.h). Blocks while the thaw itself must write to a device that is frozen below it.
///
/// # Errors
/// EINVAL: it was not frozen. Else the file system could not be thawed and still is frozen.
pub fn fithaw(root: BorrowedFd<'_>) -> io::Result<()> {
    let mut zero = 0;
    // JUSTIFICATION: no crate offers FITHAW.
    // SAFETY: as for FIFREEZE.
    unsafe { ioctl_fithaw(root.as_raw_fd(), &raw mut zero) }?;
    Ok(())
}
