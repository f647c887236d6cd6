//! Reaching a daemon in a guest from its host, with a sentence for each way that fails: over the host's own vsock, or
//! through the unix socket of a vsock device in user space.
//!
//! ```text
//!   us ── "CONNECT 7411\n" ──▶ device ──▶ guest, port 7411
//!   us ◀── "OK 1073741824\n" ── device        from then on it is the guest who speaks
//!   us ◀── end of file ──────── device        the guest is not up yet, or nobody listens there
//! ```

use std::{io, path::Path, time::Duration};

use nix::errno::Errno;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};
use tokio_vsock::{VsockAddr, VsockStream};

use crate::{
    cli::endpoint::Endpoint,
    error::{Failure, reason},
    hold::RefusalKind,
    silence::{self, Heard},
};

/// A guest that is there takes a connection at once.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The longest answer of a device: `OK`, a port number, the end of the line.
const ANSWER_MAX: usize = 32;

/// A wire that fails when the guest has been silent for too long: one that vanished closes nothing.
pub fn heard<S>(wire: S) -> Heard<S> {
    Heard::new(wire, silence::WITH_A_GUEST)
}

/// Connects through this host's kernel.
///
/// # Errors
/// Nobody is there (exit 5).
pub async fn vsock(cid: u32, port: u32) -> Result<VsockStream, Failure> {
    let connected = timeout(CONNECT_LIMIT, VsockStream::connect(VsockAddr::new(cid, port))).await;
    let error = match connected.unwrap_or_else(|_| Err(Errno::ETIMEDOUT.into())) {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    let place = Endpoint::Vsock { cid, port };
    Err(match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNRESET | Errno::ECONNREFUSED) => nobody(&place, "nobody listens there", listen(port)),
        Some(Errno::ENODEV | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => nobody(
            &place,
            "no guest has that CID",
            "is it running, with a vsock device? a host also needs `modprobe vhost_vsock`; firecracker and others keep \
             theirs behind a socket: vsock:/PATH:PORT",
        ),
        Some(Errno::ETIMEDOUT) => nobody(
            &place,
            "the guest does not answer",
            "it is not up yet, or is paused, or has no driver for its vsock device",
        ),
        Some(Errno::EAFNOSUPPORT) => nobody(&place, "this kernel has no vsock", "`modprobe vhost_vsock`"),
        _ => nobody(&place, &error.to_string(), ""),
    })
}

/// Connects through the socket of a device.
///
/// # Errors
/// Nobody is there (exit 5), or not for us (exit 6).
pub async fn device(socket: &Path, port: u32) -> Result<UnixStream, Failure> {
    let place = Endpoint::Device { socket: socket.to_owned(), port };
    let mut stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Failure::local(
            RefusalKind::PermissionDenied,
            reason::NOT_PERMITTED,
            format!("failed to connect to {place}: not permitted"),
        )
        .hint("run it as root, or as the user the VM runs as"),
        io::ErrorKind::NotFound => {
            nobody(&place, "there is no such socket", "is the VM running, with its vsock device there?")
        }
        io::ErrorKind::ConnectionRefused => {
            nobody(&place, "nobody is behind that socket", "the process of the VM, or of its vsock device, is gone")
        }
        _ => nobody(&place, &error.to_string(), ""),
    })?;
    match timeout(CONNECT_LIMIT, asked_for(&mut stream, port)).await {
        Ok(Ok(Said::Connected)) => Ok(stream),
        Ok(Ok(Said::Nothing)) => Err(nobody(&place, "nobody answers in the guest", listen(port))),
        Ok(Ok(Said::Else(answer))) => Err(nobody(
            &place,
            &format!("it says `{answer}` where a vsock device says OK"),
            "for the socket of a daemon on this machine write unix:/PATH",
        )),
        Ok(Err(error)) => Err(nobody(&place, &error.to_string(), listen(port))),
        Err(_) => Err(nobody(
            &place,
            "the vsock device does not answer within 5s",
            "the guest is not up yet, or is paused; or that is the socket of something else",
        )),
    }
}

/// What a device says to being asked for a port.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Connected,
    /// it hung up: the guest is not up yet, or nobody listens there
    Nothing,
    /// it is no such device
    Else(String),
}

/// Reads not one byte beyond the answer: the next is the guest's.
async fn asked_for(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), port: u32) -> io::Result<Said> {
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut answer = Vec::new();
    while answer.len() < ANSWER_MAX {
        match stream.read_u8().await {
            Ok(b'\n') if answer.starts_with(b"OK ") => return Ok(Said::Connected),
            Ok(b'\n') => break,
            Ok(byte) => answer.push(byte),
            Err(error) if answer.is_empty() && hung_up(&error) => return Ok(Said::Nothing),
            Err(error) if hung_up(&error) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(Said::Else(answer.escape_ascii().to_string()))
}

fn hung_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}

fn listen(port: u32) -> String {
    format!(
        "it is not up yet, or its daemon does not listen there: set `vsock = {port}` in [listen] of its \
         /etc/holdstill/holdstill.toml, and restart holdstill"
    )
}

fn nobody(place: &Endpoint, why: &str, hint: impl Into<String>) -> Failure {
    let message = format!("failed to connect to {place}: {why}");
    Failure::local(RefusalKind::Unavailable, reason::DAEMON_UNREACHABLE, message).hint(hint)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::duplex,
        net::UnixListener,
        time::{Instant, sleep},
    };

    use super::*;
    use crate::proto::{GetStatusRequest, holdstill_service_client::HoldstillServiceClient};

    async fn said(answer: &[u8]) -> (Said, Vec<u8>) {
        let (mut ours, mut theirs) = duplex(64);
        theirs.write_all(answer).await.unwrap();
        let mut asked = [0; 13];
        let (said, _) = tokio::join!(asked_for(&mut ours, 7411), theirs.read_exact(&mut asked));
        assert_eq!(&asked, b"CONNECT 7411\n");
        drop(theirs);
        let mut rest = Vec::new();
        ours.read_to_end(&mut rest).await.unwrap();
        (said.unwrap(), rest)
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_the_guests() {
        assert_eq!(said(b"OK 1073741824\n\0\0guest").await, (Said::Connected, b"\0\0guest".to_vec()));
    }

    #[tokio::test]
    async fn whatever_else_is_said_is_no_connection() {
        assert_eq!(said(b"NO\n").await.0, Said::Else("NO".into()));
        assert_eq!(said(b"OKAY\n").await.0, Said::Else("OKAY".into()));
        let endless = said(&[0xff; 40]).await.0;
        assert_eq!(endless, Said::Else("\\xff".repeat(ANSWER_MAX)));
    }

    /// A device that answers each connection with `answer` and hangs up; with none it says nothing and stays.
    fn device_saying(answer: Option<&'static [u8]>) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.vsock");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut line = [0; 13];
                stream.read_exact(&mut line).await.unwrap();
                match answer {
                    Some(answer) => stream.write_all(answer).await.unwrap(),
                    None => open.push(stream),
                }
            }
        });
        (dir, path)
    }

    #[tokio::test(start_paused = true)]
    async fn each_way_of_not_reaching_a_guest_has_its_sentence_and_exit_5() {
        for (answer, why, hint) in [
            (Some(&b""[..]), "nobody answers in the guest", "set `vsock = 7411` in [listen]"),
            (Some(&b"HTTP/1.1 400\n"[..]), "it says `HTTP/1.1 400` where", "write unix:/PATH"),
            (None, "does not answer within 5s", "not up yet"),
        ] {
            let (_dir, path) = device_saying(answer);
            let failure = device(&path, 7411).await.unwrap_err();
            assert!(failure.message.contains(why) && failure.hint.contains(hint), "{failure:?}");
            assert_eq!(failure.exit.code(), 5);
        }
        let (dir, path) = device_saying(None);
        let missing = device(&dir.path().join("none"), 7411).await.unwrap_err();
        assert!(missing.message.ends_with("there is no such socket") && missing.exit.code() == 5, "{missing:?}");
        drop(std::os::unix::net::UnixListener::bind(dir.path().join("dead")).unwrap());
        let dead = device(&dir.path().join("dead"), 7411).await.unwrap_err();
        assert!(dead.message.ends_with("nobody is behind that socket") && dead.exit.code() == 5, "{dead:?}");
        drop(path);
    }

    /// One call over a wire whose other end says nothing for `quiet`, then hangs up.
    async fn given_up_after(quiet: Duration) -> u64 {
        let (ours, theirs) = duplex(64 * 1024);
        let mut ours = Some(hyper_util::rt::TokioIo::new(heard(ours)));
        let connector =
            tower::service_fn(move |_: http::Uri| std::future::ready(ours.take().ok_or(io::Error::other("one"))));
        let endpoint = tonic::transport::Endpoint::from_static("http://holdstill");
        let channel = endpoint.connect_with_connector(connector).await.unwrap();
        tokio::spawn(async move {
            sleep(quiet).await;
            drop(theirs);
        });
        let begun = Instant::now();
        HoldstillServiceClient::new(channel).get_status(GetStatusRequest {}).await.unwrap_err();
        begun.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_vanished_is_given_up_but_not_one_that_is_paused_for_a_minute_and_a_half() {
        assert_eq!(given_up_after(Duration::from_secs(90)).await, 90, "by its end, not by ours");
        assert_eq!(given_up_after(Duration::from_secs(3600)).await, 120);
    }
}
