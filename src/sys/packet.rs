//! Whole messages with descriptors over a SOCK_SEQPACKET pair. Nothing here ever waits.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recv, recvmsg, sendmsg,
        setsockopt, socketpair,
        sockopt::{SndBuf, SndBufForce},
    },
};

use tokio::io::unix::AsyncFd;

/// The most descriptors one message carries.
pub const MOST_FDS: usize = 4;

/// Room for several of the largest messages (a receipt of 64 KiB and four sectors), bytes.
const BUFFER: usize = 1 << 20;

/// What one read brought.
#[derive(Debug)]
pub enum Received {
    Message {
        bytes: Vec<u8>,
        fds: Vec<OwnedFd>,
    },
    /// nothing there yet
    Nothing,
    /// the other end is gone
    End,
}

/// A connected pair, close-on-exec and non-blocking.
///
/// # Errors
/// socketpair(2)'s.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    for end in [&a, &b] {
        if setsockopt(end, SndBufForce, &BUFFER).is_err() {
            setsockopt(end, SndBuf, &BUFFER)?;
        }
    }
    Ok((a, b))
}

/// Makes a descriptor awaitable.
///
/// # Errors
/// epoll_ctl(2)'s, or there is no tokio runtime with I/O here.
pub fn awaitable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // JUSTIFICATION: registering a descriptor trusts it to stay the same; tokio asks us to say that it does.
    // SAFETY: an OwnedFd names one open descriptor until it is dropped, and the AsyncFd owns it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Sends one message made of `parts`, all of it or nothing.
///
/// # Errors
/// `WouldBlock` if the other end's queue is full, `BrokenPipe` if it is gone.
pub fn send(socket: impl AsFd, parts: &[&[u8]], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let parts: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &parts, control, flags, None)?;
    Ok(())
}

/// Takes the next message, if there is one.
///
/// # Errors
/// recvmsg(2)'s, other than those that mean [`Received::Nothing`] or [`Received::End`].
pub fn receive(socket: impl AsFd) -> io::Result<Received> {
    let raw = socket.as_fd().as_raw_fd();
    let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
    let length = match recv(raw, &mut [0u8; 1], peek) {
        Ok(0) | Err(Errno::ECONNRESET) => return Ok(Received::End),
        Ok(length) => length,
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Received::Nothing),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = vec![0; length];
    let mut control = cmsg_space!([RawFd; MOST_FDS]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(raw, &mut parts, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            for fd in raw {
                // JUSTIFICATION: the kernel hands descriptors over as integers.
                // SAFETY: it has just installed this one for us; nobody else knows its number.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok(Received::Message { bytes, fds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_whole_with_its_descriptors_and_the_end_is_seen_after_it() {
        let (a, b) = pair().unwrap();
        let large = vec![7u8; 150 * 1024];
        send(&a, &[b"head", &large], &[a.as_fd()]).unwrap();
        drop(a);
        let Received::Message { bytes, fds } = receive(&b).unwrap() else { panic!("a message was sent") };
        assert_eq!((bytes.len(), &bytes[..4], fds.len()), (4 + large.len(), &b"head"[..], 1));
        assert!(matches!(receive(&b).unwrap(), Received::Nothing), "its own far end arrived as a descriptor");
        drop(fds);
        assert!(matches!(receive(&b).unwrap(), Received::End));
    }
}
