//! Whom a file of passwords is meant for.

use std::{fs, path::Path};

use super::option_file::Options;
use crate::{
    step::database::{Address, Door, Given, Target, target::without_var},
    sys::view::Spot,
};

/// Whether a client started here without further arguments would take these options to this server.
pub(super) fn is_meant(options: &Options, target: &Target) -> bool {
    let loopback = |host: &str| matches!(host, "localhost" | "127.0.0.1" | "::1");
    // nobody said where it is, so that the file may
    if target.place == Given::Guessed {
        return true;
    }
    match (&target.at, options.socket.as_deref(), options.host.as_deref()) {
        (Address::Socket(path), Some(socket), _) => is_ours(target) && same_file(path, Path::new(socket)),
        (Address::Socket(path), None, Some("localhost") | None) => {
            target.configured
                || (is_ours(target) && USUAL_SOCKETS.iter().any(|usual| without_var(path) == Path::new(usual)))
        }
        (Address::Socket(_), None, Some(_)) => false,
        (Address::Tcp { host, port }, _, Some(named)) => {
            (host == named || (loopback(host) && loopback(named))) && *port == options.port.unwrap_or(3306)
        }
        (Address::Tcp { .. }, _, None) => target.configured && options.socket.is_none(),
    }
}

/// Where distributions put it; not /tmp, where anybody may.
const USUAL_SOCKETS: [&str; 3] = ["/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/run/mysql/mysql.sock"];

fn same_file(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| without_var(path));
    place(one) == place(other)
}

/// Whether the target's socket is what its path means to us, too: so it is for a service in a sandbox, not in a container.
pub(super) fn is_ours(target: &Target) -> bool {
    match (&target.at, target.seen_by) {
        (Address::Tcp { .. }, _) | (Address::Socket(_), None) => true,
        (Address::Socket(path), Some(_)) => {
            let here = Spot::open(path).and_then(|spot| spot.id());
            let there = Door::find(target).and_then(|door| door.id());
            matches!((here, there), (Ok(here), Ok(there)) if here == there)
        }
    }
}
