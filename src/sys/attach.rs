//! Copies as file systems, without a trace: a read-only loop device over a device or an image, and a mount that is in no
//! mount namespace. Both end with the last descriptor on them, so that nothing stays attached however this process ends,
//! SIGKILL included. Only `verify` calls these.
//!
//! Sources: drivers/block/loop.c, `linux/loop.h`, fs/fsopen.c, `linux/mount.h`.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
};

use nix::errno::Errno;

const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
/// the device lets go of its file when it is closed for the last time
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Somebody else may take the free device we were told of.
const ATTEMPTS: usize = 16;

/// struct loop_info64
#[repr(C)]
#[derive(Default)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names: [[u64; 8]; 2],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// struct loop_config
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// A read-only loop device. It lives until this is dropped and nothing is mounted from it.
#[derive(Debug)]
pub struct Attached {
    pub path: PathBuf,
    _device: File,
}

/// Opens a device or an image for reading, and leaves its access time as it is where that is permitted.
///
/// # Errors
/// open(2)'s.
pub fn open_quietly(path: &Path) -> io::Result<File> {
    let open =
        |flags| OpenOptions::new().read(true).custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | flags).open(path);
    match open(libc::O_NOATIME) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => open(0),
        other => other,
    }
}

/// Makes `length` bytes from `offset` of a device or image a block device that cannot be written to. `length` 0: to its end.
///
/// # Errors
/// EACCES, EPERM: not root. ENOENT: this machine has no loop devices (a container). EBUSY: all are taken.
pub fn attach_read_only(file: &File, offset: u64, length: u64) -> io::Result<Attached> {
    let control = File::open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS {
        // JUSTIFICATION: no crate offers LOOP_CTL_GET_FREE.
        // SAFETY: the ioctl takes no argument; the descriptor is open for the whole call.
        let number = Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) })?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::open(&path)?;
        let config = LoopConfig {
            fd: file.as_raw_fd().cast_unsigned(),
            block_size: 0,
            info: LoopInfo {
                offset,
                sizelimit: length,
                flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
                ..LoopInfo::default()
            },
            reserved: [0; 8],
        };
        // JUSTIFICATION: no crate offers LOOP_CONFIGURE (Linux 5.8).
        // SAFETY: the pointer is to a live struct of the kernel's layout, which it only reads.
        let configured =
            Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) });
        match configured {
            Ok(_) => return Ok(Attached { path, _device: device }),
            Err(Errno::EBUSY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::EBUSY.into())
}

/// Which file a loop device is over: `st_dev` and `st_ino`.
///
/// # Errors
/// It is over none, or may not be looked at.
pub fn backing_of(device: &Path) -> io::Result<(u64, u64)> {
    let device = File::open(device)?;
    let mut info = LoopInfo::default();
    // JUSTIFICATION: no crate offers LOOP_GET_STATUS64; sysfs has the file's name only, as some other namespace sees it.
    // SAFETY: the pointer is to a live struct of the kernel's layout, which it fills.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64 as _, &raw mut info) })?;
    Ok((info.device, info.inode))
}

/// A mounted file system that no path leads to but that of its descriptor.
#[derive(Debug)]
pub struct Mounted(OwnedFd);

impl Mounted {
    /// A path to its root, valid in this process and as long as `self` lives.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// Why it could not be mounted, with what the kernel says of it.
#[derive(Debug, thiserror::Error)]
#[error("{source}{said}")]
pub struct NotMounted {
    pub source: io::Error,
    /// ": " and its messages; empty if it says nothing
    said: String,
}

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
/// read-only, no set-uid programs, no devices, nothing executable
const ATTRIBUTES: libc::c_uint = 0x1 | 0x2 | 0x4 | 0x8;

/// Mounts `device` read-only with further `options` ("noload", "rescue=nologreplay"), detached from every namespace.
///
/// # Errors
/// What the kernel has against it.
pub fn mount_detached(fs_type: &str, device: &Path, options: &[&str]) -> Result<Mounted, NotMounted> {
    let plain = |errno: Errno| NotMounted { source: errno.into(), said: String::new() };
    let name = CString::new(fs_type).expect("types have no NUL");
    // JUSTIFICATION: neither nix nor libc wraps the mount API of Linux 5.2.
    // SAFETY: a NUL-terminated string that lives through the call, and flags.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) };
    let context = owned(context).map_err(plain)?;
    let fd = context.as_raw_fd();
    let create = || {
        configure(fd, FSCONFIG_SET_STRING, Some("source"), device.to_str())?;
        configure(fd, FSCONFIG_SET_FLAG, Some("ro"), None)?;
        for option in options {
            match option.split_once('=') {
                Some((key, value)) => configure(fd, FSCONFIG_SET_STRING, Some(key), Some(value))?,
                None => configure(fd, FSCONFIG_SET_FLAG, Some(option), None)?,
            }
        }
        configure(fd, FSCONFIG_CMD_CREATE, None, None)?;
        // JUSTIFICATION: as above.
        // SAFETY: plain integers and a descriptor that is open for the whole call.
        owned(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, ATTRIBUTES) })
    };
    let mounted = create();
    mounted.map(Mounted).map_err(|errno| NotMounted { said: messages(&context), ..plain(errno) })
}

fn configure(fd: RawFd, command: libc::c_uint, key: Option<&str>, value: Option<&str>) -> Result<(), Errno> {
    let text = |text: Option<&str>| text.map(|text| CString::new(text).map_err(|_| Errno::EINVAL)).transpose();
    let (key, value) = (text(key)?, text(value)?);
    let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
    // JUSTIFICATION: as for fsopen.
    // SAFETY: both pointers are null or to NUL-terminated strings that live through the call.
    let done = unsafe { libc::syscall(libc::SYS_fsconfig, fd, command, pointer(&key), pointer(&value), 0) };
    Errno::result(done).map(|_| ())
}

fn owned(fd: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = RawFd::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // JUSTIFICATION: a descriptor that a raw system call has returned.
    // SAFETY: it is open and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel has said in this context: one message per read, "e " before an error (fs/fs_context.c).
fn messages(context: &OwnedFd) -> String {
    let mut said = String::new();
    let mut buffer = [0; 1024];
    // bounded: the kernel keeps eight
    for _ in 0..8 {
        let Ok(length @ 1..) = nix::unistd::read(context, &mut buffer) else { break };
        let message = String::from_utf8_lossy(&buffer[..length]);
        said.push_str(": ");
        said.push_str(message.trim().trim_start_matches("e ").trim_start_matches("w "));
    }
    said
}
