//! The network interfaces with their addresses and counters. Called for `guest-network-get-interfaces`: a host learns the
//! guest's addresses from it.

use std::{fs, io, net::IpAddr, path::Path};

use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    sys::socket::SockaddrStorage,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// "eth0"; an address labelled "eth0:1" is an interface of its own, as getifaddrs(3) has it
    pub name: String,
    /// zeros for one that has none, such as lo
    pub hardware: [u8; 6],
    pub addresses: Vec<Address>,
    /// `None` without an address, or when the kernel counts under another name
    pub counters: Option<Counters>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub ip: IpAddr,
    /// bits of its network
    pub prefix: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// One line of what getifaddrs(3) returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub hardware: Option<[u8; 6]>,
    pub address: Option<Address>,
}

/// The interfaces of our own network namespace; their counters from `proc/net/dev` below `root`.
///
/// # Errors
/// getifaddrs(3)'s.
pub fn read(root: &Path) -> io::Result<Vec<Interface>> {
    let counters = fs::read_to_string(root.join("proc/net/dev")).unwrap_or_default();
    Ok(interfaces(getifaddrs()?.map(Entry::from), &counters))
}

/// Gathers the entries of each interface, in the order in which they first appear.
pub fn interfaces(entries: impl IntoIterator<Item = Entry>, proc_net_dev: &str) -> Vec<Interface> {
    let mut found: Vec<Interface> = Vec::new();
    for entry in entries {
        let at = found.iter().position(|known| known.name == entry.name).unwrap_or_else(|| {
            let hardware = hardware_of(&entry.name, &found);
            found.push(Interface { name: entry.name, hardware, addresses: Vec::new(), counters: None });
            found.len() - 1
        });
        let interface = &mut found[at];
        interface.hardware = entry.hardware.unwrap_or(interface.hardware);
        if let Some(address) = entry.address {
            interface.addresses.push(address);
            interface.counters = interface.counters.or_else(|| counters(proc_net_dev, &interface.name));
        }
    }
    found
}

/// A label's hardware is that of the interface it stands for.
fn hardware_of(name: &str, known: &[Interface]) -> [u8; 6] {
    let base = name.split(':').next().unwrap_or(name);
    known.iter().find(|interface| interface.name == base).map_or([0; 6], |interface| interface.hardware)
}

/// One interface's line of /proc/net/dev (proc_pid_net(5)).
pub fn counters(text: &str, name: &str) -> Option<Counters> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'))?;
    let numbers: Vec<u64> = line.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let [rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, tx_bytes, tx_packets, tx_errors, tx_dropped, ..] =
        numbers[..]
    else {
        return None;
    };
    Some(Counters { rx_bytes, rx_packets, rx_errors, rx_dropped, tx_bytes, tx_packets, tx_errors, tx_dropped })
}

impl From<InterfaceAddress> for Entry {
    fn from(found: InterfaceAddress) -> Entry {
        let hardware = found.address.as_ref().and_then(|address| address.as_link_addr()?.addr());
        let prefix = found.netmask.as_ref().and_then(ip).map_or(0, ones);
        let address = found.address.as_ref().and_then(ip).map(|ip| Address { ip, prefix });
        Entry { name: found.interface_name, hardware, address }
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

fn ones(mask: IpAddr) -> u32 {
    match mask {
        IpAddr::V4(mask) => mask.to_bits().count_ones(),
        IpAddr::V6(mask) => mask.to_bits().count_ones(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTERS: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     120       2    0    0    0     0          0         0      120       2    0    0    0     0       0          0
  eth0:9223372036854775808 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
";

    fn link(name: &str, hardware: Option<[u8; 6]>) -> Entry {
        Entry { name: name.into(), hardware, address: None }
    }

    fn address(name: &str, ip: &str, prefix: u32) -> Entry {
        Entry { name: name.into(), hardware: None, address: Some(Address { ip: ip.parse().expect("an IP"), prefix }) }
    }

    #[test]
    fn an_interface_gathers_its_addresses_and_is_counted_once_it_has_one() {
        let found = interfaces(
            [
                link("lo", None),
                link("eth0", Some([2, 0, 0, 0, 0, 1])),
                link("eth1", Some([2, 0, 0, 0, 0, 2])),
                address("lo", "127.0.0.1", 8),
                address("eth0", "192.0.2.7", 24),
                address("eth0", "fe80::1", 64),
            ],
            COUNTERS,
        );
        assert_eq!(found.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["lo", "eth0", "eth1"]);
        assert_eq!(found[0].hardware, [0; 6], "lo has none");
        assert_eq!(found[1].addresses.len(), 2);
        let counters = found[1].counters.expect("counted");
        assert_eq!((counters.rx_bytes, counters.rx_dropped, counters.tx_bytes), (1 << 63, 4, 9));
        assert_eq!(found[2].counters, None);
    }

    #[test]
    fn a_label_is_an_interface_with_the_hardware_of_its_own_and_without_counters() {
        let found = interfaces([link("eth0", Some([2; 6])), address("eth0:1", "192.0.2.8", 32)], COUNTERS);
        assert_eq!((found[1].name.as_str(), found[1].hardware, found[1].counters), ("eth0:1", [2; 6], None));
    }

    #[test]
    fn lines_of_another_form_count_nothing() {
        assert_eq!(counters("eth0: 1 2 3", "eth0"), None);
        assert_eq!(counters("eth0: 1 2 x 4 5 6 7 8 9 10 11 12 13 14 15 16", "eth0"), None);
        assert_eq!(counters(COUNTERS, "eth"), None);
    }

    #[test]
    fn this_machine_can_talk_to_itself() {
        let found = read(Path::new("/")).expect("getifaddrs");
        assert!(found.iter().all(|interface| !interface.name.is_empty()));
        if let Some(lo) = found.iter().find(|interface| interface.name == "lo" && !interface.addresses.is_empty()) {
            assert!(lo.addresses.iter().any(|address| address.ip.is_loopback()), "{lo:?}");
        }
    }
}
