//! The one service every connection is served by: is this caller allowed, which service is meant, was the answer
//! delivered.

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{
    Code, Status,
    body::Body,
    server::NamedService as _,
    transport::{Server, server::Connected},
};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::{Service, ServiceExt as _, util::BoxCloneService};

use super::{
    access::{self, Peer},
    delivery::{self, Answer},
    grpc::Grpc,
};
use crate::{
    hold::{Handle, Refusal, RefusalKind},
    proto::{self, holdstill_service_server::HoldstillServiceServer},
    silence::{self, Heard},
};

type Inner = BoxCloneService<Request<Body>, http::Response<Body>, Infallible>;

/// The largest message taken or given, in bytes.
pub const MESSAGE_MAX: usize = 1 << 20;
/// How many calls one connection may have open.
const STREAMS_MAX: u32 = 64;

/// When hyper itself gives up on an answer to its ping: it must not, see [`silence`].
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn server() -> Server {
    Server::builder().max_concurrent_streams(STREAMS_MAX)
}

/// The contract, health and reflection behind one entrance. Cheap to clone; one serves all listeners.
#[derive(Clone)]
pub struct Entrance {
    holdstill: Inner,
    health: Inner,
    reflection: Inner,
    reporter: HealthReporter,
}

impl Entrance {
    /// Health says SERVING until [`Health::set_serving`] says otherwise.
    ///
    /// # Errors
    /// /proc is not mounted: no instance id can be drawn.
    pub async fn new(handle: Handle) -> io::Result<Self> {
        let (reporter, health) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .expect("the compiler that wrote the descriptor set wrote a whole one");
        let holdstill = HoldstillServiceServer::new(Grpc::new(handle)?)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        let entrance = Entrance {
            holdstill: BoxCloneService::new(holdstill),
            health: BoxCloneService::new(health),
            reflection: BoxCloneService::new(reflection),
            reporter,
        };
        entrance.health().set_serving(true).await;
        Ok(entrance)
    }

    /// What health answers, to be changed while serving.
    pub fn health(&self) -> Health {
        Health(self.reporter.clone())
    }

    /// Serves every connection of `incoming` until `stop` resolves and the calls then open have ended. Hold and
    /// Watch end with the driver, so stop the driver first.
    ///
    /// # Errors
    /// Those of the transport; a failed connection is not one.
    pub async fn serve<C>(
        self,
        incoming: impl Stream<Item = io::Result<C>>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error>
    where
        C: AsyncRead + AsyncWrite + Connected<ConnectInfo = Peer> + Unpin + Send + 'static,
    {
        server().serve_with_incoming_shutdown(self, incoming, stop).await
    }

    /// As [`Entrance::serve`], for connections whose end nobody tells: one whose other end falls silent is ended, and its
    /// caller is gone.
    ///
    /// # Errors
    /// Those of the transport; a failed connection is not one.
    pub async fn serve_remote<C>(
        self,
        incoming: impl Stream<Item = io::Result<C>>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error>
    where
        C: AsyncRead + AsyncWrite + Connected<ConnectInfo = Peer> + Unpin + Send + 'static,
    {
        let asking = server().http2_keepalive_interval(Some(silence::ASK)).http2_keepalive_timeout(Some(NEVER));
        let heard = incoming.map(|c| c.map(|c| Heard::new(c, silence::WITH_A_CALLER)));
        asking.serve_with_incoming_shutdown(self, heard, stop).await
    }

    fn meant_by(&self, path: &str) -> Inner {
        if path.starts_with("/grpc.health.v1.Health/") {
            self.health.clone()
        } else if path.starts_with("/grpc.reflection.v1.ServerReflection/") {
            self.reflection.clone()
        } else {
            self.holdstill.clone()
        }
    }
}

/// What grpc.health.v1 answers. Cheap to clone.
#[derive(Clone)]
pub struct Health(HealthReporter);

impl Health {
    /// False only while there is no warden, never because something is held.
    pub async fn set_serving(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in ["", <HoldstillServiceServer<Grpc>>::NAME] {
            self.0.set_service_status(name, status).await;
        }
    }
}

impl Service<Request<Body>> for Entrance {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        if let Err(refusal) = access::permit(request.extensions().get::<Peer>(), path) {
            return Box::pin(std::future::ready(Ok(tonic::Status::from(refusal).into_http())));
        }
        let service = self.meant_by(path);
        Box::pin(async move { service.oneshot(request).await.map(explained).map(delivery::guard) })
    }
}

/// What the transport refuses on its own (a message too large, or not one) gets the details every refusal has.
fn explained(response: http::Response<Body>) -> http::Response<Body> {
    let Some(status) = Status::from_header_map(response.headers()).filter(|status| status.details().is_empty()) else {
        return response;
    };
    let refusal = match status.code() {
        Code::OutOfRange => Refusal::new(RefusalKind::OutOfRange, "MESSAGE_TOO_LARGE", status.message())
            .hint(format!("a message has at most {MESSAGE_MAX} bytes")),
        Code::Internal => Refusal::new(RefusalKind::InvalidArgument, "MALFORMED_MESSAGE", status.message())
            .hint("compare your copy of holdstill.proto with the server's (reflection is on)"),
        _ => return response,
    };
    tonic::Status::from(refusal).into_http()
}
