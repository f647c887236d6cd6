//! Reaching the daemon, with a sentence for each way that fails. One in a guest is reached through [`super::remote`].

use std::{future::Future, io, path::Path, sync::Mutex, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};
use tokio_stream::StreamExt;
use tonic::{
    Response, Status, Streaming,
    transport::{self, Channel},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    remote::{self, heard},
    stdio,
};
use crate::{
    cli::endpoint::Endpoint,
    error::{Failure, reason},
    hold::RefusalKind,
    proto::{self, holdstill_service_client::HoldstillServiceClient},
};

pub type Client = HoldstillServiceClient<Channel>;

/// Largest message either side sends, in bytes.
const MESSAGE_LIMIT: usize = 2 * 1024 * 1024;

/// Where the daemon is, and how long it may take to hold.
#[derive(Debug, Clone)]
pub struct Daemon {
    pub endpoint: Endpoint,
    /// how long it may take to prepare and quiesce, and a minute
    pub patience: Duration,
}

/// What gRPC runs over.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

impl Daemon {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there (exit 5), or not to us (exit 6).
    pub async fn connect(&self) -> Result<Client, Failure> {
        Ok(HoldstillServiceClient::new(self.channel().await?).max_decoding_message_size(MESSAGE_LIMIT))
    }

    async fn wire(&self) -> Result<Box<dyn Wire>, Failure> {
        Ok(match &self.endpoint {
            Endpoint::Unix(path) => {
                Box::new(UnixStream::connect(path).await.map_err(|error| unreachable(path, &error))?)
            }
            Endpoint::Vsock { cid, port } => Box::new(heard(remote::vsock(*cid, *port).await?)),
            Endpoint::Device { socket, port } => Box::new(heard(remote::device(socket, *port).await?)),
        })
    }

    async fn channel(&self) -> Result<Channel, Failure> {
        // the connector is called once for this wire; a lost connection is not silently replaced by another daemon's
        let wire = Mutex::new(Some(self.wire().await?));
        let connector = tower::service_fn(move |_| {
            let wire = wire.lock().expect("no holder panics").take();
            async move { wire.map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
        });
        // the authority is never looked up
        transport::Endpoint::from_static("http://holdstill").connect_with_connector(connector).await.map_err(|error| {
            let message = format!("failed to connect to {}: {error}", self.endpoint);
            Failure::local(RefusalKind::Unavailable, reason::DAEMON_UNREACHABLE, message)
        })
    }

    /// What our own output stands on, if it is this machine that is held.
    pub fn output_at_stake(&self) -> stdio::Standing {
        if self.endpoint.is_remote() { stdio::Standing::default() } else { stdio::Standing::of_this_process() }
    }

    /// The program as typed to ask this daemon again.
    pub fn as_typed(&self) -> String {
        match &self.endpoint {
            Endpoint::Unix(_) => "holdstill".to_owned(),
            remote @ (Endpoint::Vsock { .. } | Endpoint::Device { .. }) => format!("holdstill --endpoint {remote}"),
        }
    }

    /// Whether the daemon can hold at all; it cannot without a warden.
    ///
    /// # Errors
    /// The daemon went away.
    pub async fn accepts_holds(&self) -> Result<bool, Failure> {
        let mut health = HealthClient::new(self.channel().await?);
        let request = HealthCheckRequest { service: String::new() };
        let answer = within(Duration::from_secs(10), health.check(request)).await?;
        Ok(answer.status() == ServingStatus::Serving)
    }

    /// The longest a freeze of this spec may take before it is held: beyond it the daemon has stopped responding.
    pub fn patience_for(&self, spec: &proto::HoldSpec) -> Duration {
        let asked = [spec.prepare_timeout, spec.quiesce_timeout];
        let asked = asked.into_iter().flatten().filter_map(|d| Duration::try_from(d).ok()).sum::<Duration>();
        self.patience + asked
    }
}

fn unreachable(socket: &Path, error: &io::Error) -> Failure {
    let socket = socket.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => Failure::local(
            RefusalKind::PermissionDenied,
            reason::NOT_PERMITTED,
            format!("failed to connect to {socket}: not permitted"),
        )
        .hint("run it as root, or join the group `holdstill` to look: `usermod -aG holdstill NAME`, then log in again"),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::local(
            RefusalKind::Unavailable,
            reason::DAEMON_UNREACHABLE,
            format!("failed to connect to {socket}: no daemon is listening there"),
        )
        .hint("start it: `systemctl start holdstill`; if it has died, `holdstill rescue` lets go of what it left held"),
        _ => Failure::local(
            RefusalKind::Unavailable,
            reason::DAEMON_UNREACHABLE,
            format!("failed to connect to {socket}: {error}"),
        ),
    }
}

/// A call with an end.
///
/// # Errors
/// The daemon's own, or that it did not answer in time.
pub async fn within<T>(limit: Duration, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Failure> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(silent(limit)),
    }
}

fn silent(limit: Duration) -> Failure {
    let message = format!("the daemon did not answer within {}", humantime::format_duration(limit));
    Failure::local(RefusalKind::Unavailable, reason::DAEMON_UNREACHABLE, message)
        .hint("whatever it held is let go at the deadline; see `systemctl status holdstill`")
}

/// A hold that lives as long as this does.
pub struct Lease {
    /// the report at the moment everything was held
    pub held: proto::Report,
    pub events: Streaming<proto::HoldResponse>,
}

/// Holds under a lease, and waits until everything is held.
///
/// # Errors
/// Everything but held.
pub async fn lease(client: &mut Client, id: String, spec: proto::HoldSpec, limit: Duration) -> Result<Lease, Failure> {
    let held = async {
        let mut events = client.hold(proto::HoldRequest { id, spec: Some(spec) }).await?.into_inner();
        while let Some(response) = events.next().await {
            match response?.event.and_then(|event| event.what) {
                Some(proto::event::What::Held(held)) => return Ok(Lease { held, events }),
                Some(proto::event::What::Released(report)) => return Err(ended_early(&report)),
                Some(
                    proto::event::What::Snapshot(_)
                    | proto::event::What::Phase(_)
                    | proto::event::What::Step(_)
                    | proto::event::What::Problem(_)
                    | proto::event::What::Lagged(_),
                )
                | None => {}
            }
        }
        Err(ended_early(&proto::Report::default()))
    };
    tokio::time::timeout(limit, held).await.unwrap_or_else(|_| Err(silent(limit)))
}

fn ended_early(report: &proto::Report) -> Failure {
    let why = report.problems.iter().chain(&report.breaches).max_by_key(|p| p.severity());
    let message = why.map_or_else(|| "the hold ended before everything was held".to_owned(), |p| p.message.clone());
    let failure = Failure::local(RefusalKind::Aborted, "STEP_FAILED", message);
    failure.hint(why.map_or("", |p| p.hint.as_str()))
}
