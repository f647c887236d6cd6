//! Where the channel is: a virtio-serial or ISA serial port, a unix socket, vsock. What can be had at start is had then, or
//! the daemon does not start; a port is opened when it is there, and again when it vanished, and is never given up because
//! the host hung up.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::errno::Errno;
use tokio::{
    net::{UnixListener, UnixStream},
    time::sleep,
};
use tokio_vsock::VsockStream;

use super::{
    agent::Agent,
    channel::{self, Line},
    device::Port,
};
use crate::{
    config::GuestAgent,
    door::listen,
    guest::agent_channel::{self, AgentChannel, Owner},
};

/// How long a port that is missing, vanished or taken is left alone.
const RETRY: Duration = Duration::from_secs(5);
/// The same once it has been missing for a minute: most machines without one never get one.
const RETRY_LATER: Duration = Duration::from_secs(60);
/// What a stock agent that is just starting gets to take what is its own.
const SECOND_LOOK: Duration = Duration::from_millis(300);

/// Where hosts will be answered.
pub enum Place {
    Nowhere,
    /// the machine's own port, if nobody else owns it
    Own,
    Device(PathBuf),
    Unix(UnixListener, PathBuf),
    Vsock(listen::vsock::Listener, u32),
}

impl Place {
    /// Listens, where that is what it takes. Needs a tokio runtime.
    ///
    /// # Errors
    /// The socket or port cannot be had. A device that is not there yet is no error: it may come.
    pub fn open(at: &GuestAgent) -> Result<Place, listen::Error> {
        Ok(match at {
            GuestAgent::Off => Place::Nowhere,
            GuestAgent::Auto => Place::Own,
            GuestAgent::Path(path) if is_device(path) => Place::Device(path.clone()),
            GuestAgent::Path(path) => Place::Unix(listen::unix::private_unix(path)?, path.clone()),
            GuestAgent::Vsock(port) => {
                let bound = listen::vsock::bind(*port)?;
                if let Some(note) = bound.note {
                    tracing::info!("{note}");
                }
                Place::Vsock(bound.listener, *port)
            }
        })
    }

    /// Serves hosts without end; ends only if there is nothing to serve.
    pub async fn serve(self, agent: &mut Agent, root: &Path) {
        match self {
            Place::Nowhere => {}
            Place::Own => own(agent, root).await,
            Place::Device(path) => named(&path, agent).await,
            Place::Unix(listener, path) => {
                tracing::info!(socket = %path.display(), "a host can ask on the guest-agent channel");
                unix(&listener, agent).await;
            }
            Place::Vsock(mut listener, port) => {
                tracing::info!(port, "the host can ask on the guest-agent channel, by vsock");
                loop {
                    end_of(channel::serve(&mut listener.accept().await, agent).await);
                }
            }
        }
    }
}

/// What is not there yet is a device if it is to be in /dev.
fn is_device(path: &Path) -> bool {
    fs::metadata(path).map_or(path.starts_with("/dev"), |found| found.file_type().is_char_device())
}

impl Line for UnixStream {}
impl Line for VsockStream {}

async fn unix(listener: &UnixListener, agent: &mut Agent) {
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => end_of(channel::serve(&mut stream, agent).await),
            Err(error) => {
                tracing::warn!(%error, "a guest-agent connection could not be accepted");
                sleep(RETRY).await;
            }
        }
    }
}

/// One client at a time, and its going means nothing.
fn end_of(served: io::Result<()>) {
    if let Err(error) = served {
        tracing::debug!(%error, "a guest-agent client is gone");
    }
}

/// Takes the port if it is there, or when it comes; whoever owned it first keeps it until we are started again.
async fn own(agent: &mut Agent, root: &Path) {
    for look in 0_u32.. {
        let root = root.to_owned();
        let found = tokio::task::spawn_blocking(move || agent_channel::read(&root)).await;
        // a stock agent that was started a moment before us may not have opened it yet
        if look == 0 && found.as_ref().is_ok_and(|found| found.stock.is_some()) {
            sleep(SECOND_LOOK).await;
            continue;
        }
        if let Ok(AgentChannel { device: Some(path), owner, .. }) = found {
            match take(&path, owner) {
                Taken::Ours(port) => device(port, &path, agent).await,
                Taken::NotNow(error) => {
                    tracing::debug!(%error, port = %path.display(), "could not open the guest-agent channel");
                }
                Taken::Theirs(who) => {
                    let port = path.display();
                    tracing::info!(%port, %who, "the guest-agent channel is somebody else's; `holdstill check` says what that means");
                    return;
                }
            }
        }
        sleep(if look < 12 { RETRY } else { RETRY_LATER }).await;
    }
}

enum Taken {
    Ours(Port),
    Theirs(String),
    NotNow(io::Error),
}

fn take(path: &Path, owner: Owner) -> Taken {
    match owner {
        Owner::Other { pid, name } => Taken::Theirs(format!("{name} (pid {pid})")),
        Owner::Nobody | Owner::Us => match Port::open(path) {
            Ok(port) => Taken::Ours(port),
            // one that hides its descriptors from us
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
                Taken::Theirs("another agent".to_owned())
            }
            Err(error) => Taken::NotNow(error),
        },
    }
}

/// Takes the port that was configured, whenever that is possible.
async fn named(path: &Path, agent: &mut Agent) {
    let mut said = None;
    loop {
        match Port::open(path) {
            Ok(port) => {
                said = None;
                device(port, path, agent).await;
            }
            Err(error) => {
                // once for each kind, not every five seconds
                if said.replace(error.kind()) != Some(error.kind()) {
                    tracing::warn!(%error, port = %path.display(), "could not open the guest-agent channel; trying again");
                }
            }
        }
        sleep(RETRY).await;
    }
}

async fn device(mut port: Port, path: &Path, agent: &mut Agent) {
    tracing::info!(port = %path.display(), "the host can ask on the guest-agent channel");
    if let Err(error) = channel::serve(&mut port, agent).await {
        tracing::warn!(%error, port = %path.display(), "the guest-agent channel vanished; waiting for it");
    }
}
