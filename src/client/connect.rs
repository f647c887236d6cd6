//! Reaching the daemon on its unix socket, with a sentence for each way that fails.

use std::{future::Future, io, path::PathBuf, sync::Mutex, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio_stream::StreamExt;
use tonic::{
    Response, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{
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
    pub socket: PathBuf,
    /// configured budgets for preparing and quiescing, and a minute
    pub patience: Duration,
}

impl Daemon {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there (exit 5), or not to us (exit 6).
    pub async fn connect(&self) -> Result<Client, Failure> {
        Ok(HoldstillServiceClient::new(self.channel().await?).max_decoding_message_size(MESSAGE_LIMIT))
    }

    async fn channel(&self) -> Result<Channel, Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        // the connector is called once for this stream; a lost connection is not silently replaced by another daemon's
        let stream = Mutex::new(Some(stream));
        let connector = tower::service_fn(move |_| {
            let stream = stream.lock().expect("no holder panics").take();
            async move { stream.map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
        });
        // the authority is never looked up
        let connected = Endpoint::from_static("http://holdstill").connect_with_connector(connector).await;
        connected.map_err(|error| self.unreachable(&io::Error::other(error)))
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        let socket = self.socket.display();
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
