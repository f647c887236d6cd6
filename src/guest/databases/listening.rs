//! What a process listens on: unix sockets and TCP ports, by the inodes of its descriptors.

use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

/// A unix socket in state LISTEN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listener {
    pub inode: u64,
    pub path: PathBuf,
}

/// A TCP socket in state LISTEN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Port {
    pub inode: u64,
    pub at: SocketAddr,
}

/// Everything listening in one network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Listening {
    pub unix: Vec<Listener>,
    pub tcp: Vec<Port>,
}

impl Listening {
    /// In the network namespace of the process whose directory of /proc this is.
    pub(super) fn read(dir: &Path) -> Listening {
        let text = |name: &str| fs::read_to_string(dir.join("net").join(name)).unwrap_or_default();
        let mut tcp = ports(&text("tcp"));
        tcp.extend(ports(&text("tcp6")));
        Listening { unix: listening(&text("unix")), tcp }
    }
}

/// Decodes /proc/net/unix (unix(7)): `Num RefCount Protocol Flags Type St Inode Path`; the flag is __SO_ACCEPTCON.
pub(super) fn listening(text: &str) -> Vec<Listener> {
    const ACCEPTS: u32 = 0x10000;
    let line = |line: &str| {
        let mut rest = line.trim_start();
        let mut fields = [""; 7];
        for field in &mut fields {
            let (first, after) = rest.split_once(' ')?;
            (*field, rest) = (first, after.trim_start());
        }
        let accepts = u32::from_str_radix(fields[3], 16).ok()? & ACCEPTS != 0;
        let named = !rest.is_empty() && !rest.starts_with('@');
        (accepts && named).then_some(())?;
        Some(Listener { inode: fields[6].parse().ok()?, path: rest.into() })
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// Decodes /proc/net/tcp and tcp6 (proc_net(5)): `sl local_address rem_address st …` and, as tenth field, the inode.
pub(super) fn ports(text: &str) -> Vec<Port> {
    const LISTEN: &str = "0A";
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        (*state == LISTEN).then_some(())?;
        let (address, port) = local.split_once(':')?;
        let at = SocketAddr::new(address_of(address)?, u16::from_str_radix(port, 16).ok()?);
        Some(Port { inode: inode.parse().ok()?, at })
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// Words of 32 bits, each as this machine keeps it in memory.
fn address_of(text: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(text.get(at * 8..at * 8 + 8)?, 16).ok();
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?.to_ne_bytes()).into()),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?.to_ne_bytes());
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

/// The sockets a process has open; `None`: its descriptors are hidden from us.
pub(super) fn socket_inodes(dir: &Path) -> Option<HashSet<u64>> {
    let inode = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    Some(fs::read_dir(dir.join("fd")).ok()?.flatten().filter_map(inode).collect())
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::unix::net::UnixListener};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_text_makes_listing_panic(text in "(0000: |00010000 |0A |1 |0100007F:1538 |/tmp|@| |\n|é){0,40}") {
            listening(&text);
            ports(&text);
        }
    }

    #[test]
    fn this_machines_sockets_can_be_listed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".s.PGSQL.1");
        let _listener = UnixListener::bind(&path).unwrap();
        let tcp = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("[::1]:0").unwrap()];
        let own = Path::new("/proc/self");
        let listed = Listening::read(own);
        let inodes = socket_inodes(own).unwrap();
        assert!(listed.unix.iter().any(|l| l.path == path && inodes.contains(&l.inode)), "{listed:?}");
        for listener in tcp {
            let at = listener.local_addr().unwrap();
            assert!(listed.tcp.iter().any(|l| l.at == at && inodes.contains(&l.inode)), "{at}: {listed:?}");
        }
    }

    #[test]
    fn only_listening_ports_count() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 00000000:0CEA 00000000:0000 0A 00000000:00000000 00:00000000 00000000   106        0 7 1 0000000000000000\n\
            1: 0100007F:0CEA 0100007F:9C40 01 00000000:00000000 00:00000000 00000000   106        0 8 1 0000000000000000\n";
        assert_eq!(ports(text), [Port { inode: 7, at: "0.0.0.0:3306".parse().unwrap() }]);
    }
}
