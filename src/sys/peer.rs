//! Who is at the other end of a unix socket, as the kernel recorded it when they connected. `door::listen` asks.

use std::{
    fs, io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{getsockopt, sockopt},
};

/// A peer's identity at the moment of its connect(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    /// 0 if the peer lives in a pid namespace this process cannot see into
    pub pid: i32,
    /// supplementary groups
    pub groups: Vec<u32>,
}

/// Reads SO_PEERCRED and SO_PEERGROUPS, see unix(7).
///
/// # Errors
/// Those of getsockopt(2), such as a socket that is not connected.
pub fn credentials(socket: &impl AsFd) -> io::Result<Credentials> {
    let cred = getsockopt(socket, sockopt::PeerCredentials)?;
    Ok(Credentials { uid: cred.uid(), gid: cred.gid(), pid: cred.pid(), groups: groups(socket)? })
}

/// SO_PEERGROUPS. The kernel answers ERANGE with the size it needs; the list cannot change after connect(2).
fn groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut bytes = libc::socklen_t::try_from(groups.len() * size_of::<libc::gid_t>())
            .expect("a process has at most 65536 groups");
        // JUSTIFICATION: neither std nor nix offer SO_PEERGROUPS.
        // SAFETY: `groups` is writable for `bytes` bytes, any bit pattern is a gid, and both outlive the call.
        let answer = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = bytes as usize / size_of::<libc::gid_t>();
        match Errno::result(answer) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            Err(Errno::ERANGE) if count > groups.len() => groups.resize(count, 0),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The login name of `uid`, for people to read; nothing is decided by it. Only `/etc/passwd` is asked: a name service
/// on the network could make us wait while everything is frozen.
pub fn name_of(uid: u32) -> Option<String> {
    fs::read_to_string("/etc/passwd").ok().and_then(|passwd| name_in(&passwd, uid).map(str::to_owned))
}

/// passwd(5): name:password:UID:…
fn name_in(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, found) = (fields.next()?, fields.nth(1)?);
        (found.parse() == Ok(uid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use nix::unistd::{getgid, getgroups, getpid, getuid};

    use super::*;

    #[test]
    fn a_socket_pair_is_owned_by_ourselves() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let found = credentials(&ours).unwrap();
        assert_eq!((found.uid, found.gid, found.pid), (getuid().as_raw(), getgid().as_raw(), getpid().as_raw()));
        let mut expected: Vec<u32> = getgroups().unwrap().iter().map(|g| g.as_raw()).collect();
        let mut groups = found.groups;
        expected.sort_unstable();
        groups.sort_unstable();
        assert_eq!(groups, expected);
    }

    #[test]
    fn a_name_is_found_by_uid_and_broken_lines_are_passed_over() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n\nbroken\nhalf:x\nalice:x:1000:1000::/home/alice:/bin/sh\n";
        assert_eq!(name_in(passwd, 0), Some("root"));
        assert_eq!(name_in(passwd, 1000), Some("alice"));
        assert_eq!(name_in(passwd, 7), None);
    }
}
