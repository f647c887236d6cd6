//! Writing parts of files back, and opening files for that without touching what is not a regular file. Only pacers,
//! guardians and sentinels call these: every one of them can block.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::Mode,
};

/// Begins to write the dirty pages of `from .. from + length` back; `length` 0: to the end (sync_file_range(2)). Clean pages
/// cost nothing, metadata and the device's cache are left alone, and errors met later are not taken from those who are to
/// be told of them.
///
/// # Errors
/// What could be told at once: ENOSPC, EIO.
pub fn begin(file: &File, from: u64, length: u64) -> io::Result<()> {
    let range = (from.try_into(), length.try_into());
    let (Ok(from), Ok(length)) = range else { return Err(io::ErrorKind::InvalidInput.into()) };
    // JUSTIFICATION: nix has no sync_file_range.
    // SAFETY: plain integers and a descriptor that is open for the whole call.
    Errno::result(unsafe { libc::sync_file_range(file.as_raw_fd(), from, length, libc::SYNC_FILE_RANGE_WRITE) })?;
    Ok(())
}

/// Writes all of `file`'s dirty pages and waits until the device has them. Not for files of others: it takes errors away from
/// them (see docs/findings.md). Metadata and the device's cache are left alone.
///
/// # Errors
/// EIO, ENOSPC.
pub fn through(file: &File) -> io::Result<()> {
    let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // JUSTIFICATION: nix has no sync_file_range.
    // SAFETY: plain integers and a descriptor that is open for the whole call.
    Errno::result(unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, all) })?;
    Ok(())
}

/// The same number on every architecture Rust's standard library knows; libc has it for few.
const CACHESTAT: libc::c_long = 451;

/// struct cachestat_range and struct cachestat (linux/mman.h)
#[repr(C)]
struct Range {
    from: u64,
    length: u64,
}

#[repr(C)]
#[derive(Default)]
struct Cached {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// How many pages of `from .. from + length` are being written now; `length` 0: to the end (cachestat(2), Linux 6.5).
///
/// # Errors
/// ENOSYS: this kernel cannot tell. EPERM: not root.
pub fn in_progress(file: impl AsFd, from: u64, length: u64) -> io::Result<u64> {
    let (range, mut cached) = (Range { from, length }, Cached::default());
    let fd = file.as_fd().as_raw_fd();
    // JUSTIFICATION: nix has no cachestat.
    // SAFETY: both pointers are to live structs of the kernel's layout; it reads the first and writes the second.
    Errno::result(unsafe { libc::syscall(CACHESTAT, fd, &raw const range, &raw mut cached, 0) })?;
    Ok(cached.writeback)
}

/// A handle on whatever process `pid` has open as `fd`: it opens no device, waits for no FIFO, and can only be asked what
/// it is (open(2), `O_PATH`).
///
/// # Errors
/// ENOENT: the process is gone, or has closed it.
pub fn handle_of(pid: i32, fd: i32) -> io::Result<OwnedFd> {
    Ok(open(format!("/proc/{pid}/fd/{fd}").as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// A handle on `name` in `directory`: of a link on the link itself, and none on what is mounted there.
///
/// # Errors
/// openat2(2)'s; EXDEV: a mount point, or not below it.
pub fn handle_below(directory: BorrowedFd<'_>, name: &Path) -> io::Result<OwnedFd> {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(NOWHERE_ELSE);
    Ok(openat2(directory, name, how)?)
}

/// Opens the directory `path` below `root` for reading, leaving its access time as it is and following neither links nor
/// mount points.
///
/// # Errors
/// openat2(2)'s; ELOOP: a link; EXDEV: a mount point.
pub fn directory_below(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOATIME | OFlag::O_CLOEXEC;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    Ok(openat2(root, path, OpenHow::new().flags(flags).resolve(NOWHERE_ELSE))?)
}

const NOWHERE_ELSE: ResolveFlag = ResolveFlag::RESOLVE_BENEATH
    .union(ResolveFlag::RESOLVE_NO_XDEV)
    .union(ResolveFlag::RESOLVE_NO_SYMLINKS)
    .union(ResolveFlag::RESOLVE_NO_MAGICLINKS);

/// Opens what a handle names, which its caller has seen to be a regular file; it is the same file, whatever has become of
/// its name.
///
/// # Errors
/// open(2)'s; EWOULDBLOCK: somebody has a lease on it.
pub fn reopen(handle: &OwnedFd) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_NOATIME | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    Ok(File::from(open(path.as_str(), flags, Mode::empty())?))
}
