//! Asking a daemon as a program does: gRPC over its socket, with a runtime of one thread.

use std::{future::Future, time::Duration};

use holdstill::proto::{self, holdstill_service_client::HoldstillServiceClient};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt;

use super::Daemon;

/// A connection and the runtime it lives on.
pub struct Grpc {
    runtime: tokio::runtime::Runtime,
    client: HoldstillServiceClient<Channel>,
}

impl Daemon<'_> {
    /// Connects; answers when the connection stands.
    pub fn grpc(&self) -> Grpc {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let socket = self.socket();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://holdstill.invalid");
        let channel = runtime.block_on(endpoint.connect_with_connector(connector)).expect("the daemon answers");
        Grpc { runtime, client: HoldstillServiceClient::new(channel) }
    }
}

impl Grpc {
    /// A client to use inside [`Grpc::wait`].
    pub fn client(&self) -> HoldstillServiceClient<Channel> {
        self.client.clone()
    }

    /// Runs a future to its end.
    ///
    /// # Panics
    /// It takes longer than 60 s.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        let limited = async { tokio::time::timeout(Duration::from_secs(60), future).await };
        self.runtime.block_on(limited).expect("no call takes 60 s")
    }

    pub fn freeze(&self, id: &str, spec: proto::HoldSpec) -> Result<proto::Report, Refused> {
        let request = proto::FreezeRequest { id: id.to_owned(), spec: Some(spec) };
        let mut client = self.client();
        let answer = self.wait(client.freeze(request));
        answer.map(|r| r.into_inner().report.expect("a freeze answers a report")).map_err(Refused::from)
    }

    pub fn thaw(&self, id: &str) -> Result<proto::ThawResponse, Refused> {
        let request = proto::ThawRequest { id: id.to_owned(), ..Default::default() };
        let mut client = self.client();
        self.wait(client.thaw(request)).map(tonic::Response::into_inner).map_err(Refused::from)
    }

    pub fn report(&self, id: &str) -> proto::Report {
        let mut client = self.client();
        let answer = self.wait(client.get_report(proto::GetReportRequest { id: id.to_owned() }));
        answer.expect("the report is kept").into_inner().report.expect("it is the answer")
    }

    pub fn status(&self) -> proto::GetStatusResponse {
        let mut client = self.client();
        self.wait(client.get_status(proto::GetStatusRequest {})).expect("status always answers").into_inner()
    }

    /// Until the daemon says it is in `phase`.
    pub fn wait_for_phase(&self, phase: proto::Phase, limit: Duration) {
        let reached = super::until(limit, || self.status().phase() == phase);
        assert!(reached, "the phase is {:?}, not {phase:?}, after {limit:?}", self.status().phase());
    }
}

/// A status, with the reason of the contract.
#[derive(Debug)]
pub struct Refused {
    pub code: tonic::Code,
    pub reason: String,
    pub message: String,
    pub hold_id: String,
}

impl From<tonic::Status> for Refused {
    fn from(status: tonic::Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let hold_id = info.and_then(|i| i.metadata.get("hold_id").cloned()).unwrap_or_default();
        Refused {
            code: status.code(),
            reason: info.map(|i| i.reason.clone()).unwrap_or_default(),
            message: status.message().to_owned(),
            hold_id,
        }
    }
}

/// A spec that ends by itself after `seconds`.
pub fn for_seconds(seconds: i64) -> proto::HoldSpec {
    proto::HoldSpec { max_hold: Some(prost_types::Duration { seconds, nanos: 0 }), ..Default::default() }
}
