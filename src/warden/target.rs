//! Opening a target and proving that it is the file system that was planned. Runs in its guardian, or in a child of
//! rescue: an open can hang.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::PathBuf,
};

use super::{
    Target,
    protocol::{Fault, Refused},
};
use crate::{guest::Dev, sys::files};

/// One line of mountinfo (proc_pid_mountinfo(5)), of what matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub id: u64,
    pub dev: Dev,
    pub point: PathBuf,
    pub fs_type: String,
    pub source: PathBuf,
}

/// The target's root directory and what the kernel says about it.
#[derive(Debug)]
pub(super) struct Root {
    pub fd: OwnedFd,
    pub mount: Mount,
}

/// Opens `target` where it was planned and compares mount id and device.
pub(super) fn open(target: &Target) -> Result<Root, Refused> {
    let fault = |error: io::Error| Refused::Open(error.into());
    let fd = files::open_mount(&target.open_at.path, target.namespace).map_err(fault)?;
    let id = files::mount_id(fd.as_fd()).map_err(fault)?;
    let mount = mounts(target.namespace).map_err(fault)?.into_iter().find(|mount| mount.id == id);
    match mount {
        Some(mount) if id == target.open_at.mount_id && mount.dev == target.dev => Ok(Root { fd, mount }),
        Some(mount) => Err(Refused::Vanished { found: format!("{} on {}", mount.dev, mount.point.display()) }),
        None => Err(Refused::Open(Fault::because("its mount is not in mountinfo"))),
    }
}

/// The mounts process `namespace` sees, or our own.
///
/// # Errors
/// mountinfo cannot be read: that process is gone.
pub(crate) fn mounts(namespace: Option<i32>) -> io::Result<Vec<Mount>> {
    let path = match namespace {
        Some(pid) => format!("/proc/{pid}/mountinfo"),
        None => "/proc/self/mountinfo".to_owned(),
    };
    Ok(parse(&std::fs::read(path)?))
}

fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u64>().ok();
    let id = number(fields.next()?)?;
    let dev = std::str::from_utf8(fields.nth(1)?).ok()?.split_once(':')?;
    let dev = Dev { major: dev.0.parse().ok()?, minor: dev.1.parse().ok()? };
    let point = unescape(fields.nth(1)?);
    fields.find(|field| field == b"-")?;
    let fs_type = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(Mount { id, dev, point, fs_type, source: unescape(fields.next()?) })
}

/// Space, tab, newline and backslash travel as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let (mut plain, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| byte == b'\\');
        let octal = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(octal.unwrap_or(byte));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mountinfo_line_is_read_whatever_optional_fields_and_escapes_it_has() {
        let text = b"36 35 98:0 /mnt1 /mnt\\0402\\134x rw,noatime master:1 shared:7 - ext3 /dev/root rw\n\
            37 35 0:41 /@ /b rw - btrfs /dev/vdb1 rw,subvol=/@\n";
        let found = parse(text);
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0],
            Mount {
                id: 36,
                dev: Dev { major: 98, minor: 0 },
                point: "/mnt 2\\x".into(),
                fs_type: "ext3".into(),
                source: "/dev/root".into(),
            }
        );
        assert_eq!((found[1].id, found[1].dev.minor, found[1].source.to_str()), (37, 41, Some("/dev/vdb1")));
    }
}
