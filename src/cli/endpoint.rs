//! Where a daemon is: on this machine, or in a guest of this host.

use std::{fmt, path::PathBuf};

/// The smallest CID a guest can have: 2 is its host, 1 a machine's own loopback, 0 reserved. vsock(7)
const GUEST_CID_MIN: u32 = 3;

/// How a daemon is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// its unix socket, on this machine
    Unix(PathBuf),
    /// the guest with this CID, through this host's kernel
    Vsock { cid: u32, port: u32 },
    /// the guest behind the unix socket of a vsock device in user space: firecracker, cloud-hypervisor, vhost-device-vsock
    Device { socket: PathBuf, port: u32 },
}

impl Endpoint {
    /// # Errors
    /// A sentence with the cure.
    pub fn parse(text: &str) -> Result<Endpoint, String> {
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Endpoint::Unix(path.into())),
            Some(("unix", _)) => Err("the path must be absolute: unix:/run/holdstill/holdstill.sock".to_owned()),
            Some(("vsock", rest)) => vsock(rest),
            Some(("tcp", _)) => Err("tcp endpoints are not in this version".to_owned()),
            _ => Err("an endpoint is vsock:CID:PORT, vsock:/PATH:PORT or unix:/PATH".to_owned()),
        }
    }

    /// Whether the daemon is in another machine: then what it holds is not ours.
    pub fn is_remote(&self) -> bool {
        match self {
            Endpoint::Unix(_) => false,
            Endpoint::Vsock { .. } | Endpoint::Device { .. } => true,
        }
    }
}

fn vsock(rest: &str) -> Result<Endpoint, String> {
    let Some((place, port)) = rest.rsplit_once(':') else {
        return Err("a port is missing: vsock:CID:PORT, or vsock:/PATH:PORT for a device in user space".to_owned());
    };
    let port = port
        .parse()
        .ok()
        .filter(|port| (1..u32::MAX).contains(port))
        .ok_or_else(|| format!("`{port}` is not a vsock port from 1 to {}", u32::MAX - 1))?;
    if place.starts_with('/') {
        return Ok(Endpoint::Device { socket: place.into(), port });
    }
    if place.contains('/') {
        return Err("the device's path must be absolute: vsock:/run/vm/v.vsock:7411".to_owned());
    }
    match place.parse() {
        Ok(cid) if (GUEST_CID_MIN..u32::MAX).contains(&cid) => Ok(Endpoint::Vsock { cid, port }),
        Ok(0..GUEST_CID_MIN) => {
            Err(format!("`{place}` is no guest's CID: those begin at {GUEST_CID_MIN}, 2 is the host"))
        }
        _ => Err(format!("`{place}` is not a CID from {GUEST_CID_MIN} to {}", u32::MAX - 1)),
    }
}

impl fmt::Display for Endpoint {
    /// As it is typed; a path on this machine as people know it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => path.display().fmt(f),
            Endpoint::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Endpoint::Device { socket, port } => write!(f, "vsock:{}:{port}", socket.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_guest_or_a_socket() {
        assert_eq!(Endpoint::parse("vsock:3:7411"), Ok(Endpoint::Vsock { cid: 3, port: 7411 }));
        let device = |socket: &str| Ok(Endpoint::Device { socket: socket.into(), port: 7411 });
        assert_eq!(Endpoint::parse("vsock:/run/vm/v.vsock:7411"), device("/run/vm/v.vsock"));
        assert_eq!(Endpoint::parse("vsock:/run/vm:1/v:7411"), device("/run/vm:1/v"), "a path may have colons");
        assert_eq!(Endpoint::parse("unix:/run/s"), Ok(Endpoint::Unix("/run/s".into())));
    }

    #[test]
    fn a_remote_endpoint_is_shown_as_it_was_typed() {
        for text in ["vsock:3:7411", "vsock:/run/vm/v.vsock:7411"] {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!((endpoint.to_string().as_str(), endpoint.is_remote()), (text, true));
        }
        assert!(!Endpoint::parse("unix:/run/s").unwrap().is_remote());
    }

    #[test]
    fn what_is_no_endpoint_is_said_with_the_cure() {
        let cases = [
            ("", "an endpoint is vsock:CID:PORT"),
            ("3:7411", "an endpoint is vsock:CID:PORT"),
            ("unix:relative", "the path must be absolute"),
            ("tcp:host:7411", "not in this version"),
            ("vsock:3", "a port is missing"),
            ("vsock:/run/v.vsock", "a port is missing"),
            ("vsock:3:", "`` is not a vsock port"),
            ("vsock:3:0", "`0` is not a vsock port from 1 to 4294967294"),
            ("vsock:3:4294967295", "is not a vsock port"),
            ("vsock:2:7411", "`2` is no guest's CID: those begin at 3"),
            ("vsock:a:7411", "`a` is not a CID from 3"),
            ("vsock:4294967295:7411", "is not a CID from 3"),
            ("vsock:-3:7411", "is not a CID from 3"),
            ("vsock:run/v.vsock:7411", "the device's path must be absolute"),
        ];
        for (text, why) in cases {
            let said = Endpoint::parse(text).expect_err(text);
            assert!(said.contains(why), "{text}: {said}");
        }
    }
}
