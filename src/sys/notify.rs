//! Telling systemd how we are, see sd_notify(3). The daemon calls it; outside systemd it does nothing.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// What came of telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Sent,
    /// no `NOTIFY_SOCKET`: nobody wants to know
    NobodyAsked,
}

/// The daemon is up and takes asks. `status` is the line `systemctl status` shows.
///
/// # Errors
/// See [`status`].
pub fn ready(status: &str) -> io::Result<Told> {
    send(&format!("READY=1\nSTATUS={}", line(status)))
}

/// The line `systemctl status` shows.
///
/// # Errors
/// The socket named by `NOTIFY_SOCKET` is unusable, or full: this never waits.
pub fn status(status: &str) -> io::Result<Told> {
    send(&format!("STATUS={}", line(status)))
}

/// The daemon is letting go and will end.
///
/// # Errors
/// See [`status`].
pub fn stopping(status: &str) -> io::Result<Told> {
    send(&format!("STOPPING=1\nSTATUS={}", line(status)))
}

/// A newline in a status would begin another assignment.
fn line(status: &str) -> String {
    status.replace(['\n', '\r'], " ")
}

fn send(state: &str) -> io::Result<Told> {
    env::var_os("NOTIFY_SOCKET").map_or(Ok(Told::NobodyAsked), |address| send_to(&address, state))
}

fn send_to(address: &OsStr, state: &str) -> io::Result<Told> {
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address)?;
    Ok(Told::Sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        socket.set_nonblocking(true).unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_path_and_an_abstract_name_are_both_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        assert_eq!(send_to(path.as_os_str(), "READY=1").unwrap(), Told::Sent);
        assert_eq!(received(&by_path), "READY=1");

        let name = format!("holdstill-notify-test-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        assert_eq!(send_to(OsStr::new(&format!("@{name}")), "STOPPING=1").unwrap(), Told::Sent);
        assert_eq!(received(&by_name), "STOPPING=1");
    }

    #[test]
    fn a_full_socket_is_an_error_at_once_not_a_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _never_read = UnixDatagram::bind(&path).unwrap();
        let error = (0..100_000).find_map(|_| send_to(path.as_os_str(), "STATUS=x").err()).expect("it fills up");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_status_stays_one_line() {
        assert_eq!(line("held\nREADY=0"), "held READY=0");
    }
}
