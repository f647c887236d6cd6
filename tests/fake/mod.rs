//! A daemon that answers what it is told to, on a unix socket, for tests of the command line.

use std::{
    path::PathBuf,
    pin::Pin,
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use holdstill::{
    hold::Refusal,
    proto::{
        self,
        holdstill_service_server::{HoldstillService, HoldstillServiceServer},
    },
};
use tokio::sync::Notify;
use tokio_stream::{Stream, StreamExt, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status};
use tonic_health::ServingStatus;
use tower::Service as _;

/// How a lease goes.
#[derive(Debug, Clone)]
pub enum Lease {
    /// held until somebody thaws
    Held,
    /// not held at all
    Refused(Refusal),
    /// held, and released by itself after a while
    Breaks(Duration),
}

type Act = Box<dyn Fn() + Send + Sync>;

/// What it answers.
pub struct Fake {
    pub check: proto::CheckResponse,
    pub freeze: Result<proto::Report, Refusal>,
    pub thaw: Result<proto::Report, Refusal>,
    pub status: proto::GetStatusResponse,
    pub reports: Vec<proto::Report>,
    pub lease: Lease,
    pub serving: bool,
    /// done when everything is held, and when it is let go
    pub freezes: Act,
    pub thaws: Act,
}

impl Default for Fake {
    fn default() -> Fake {
        Fake {
            check: proto::CheckResponse::default(),
            freeze: Ok(report(proto::Verdict::Unspecified)),
            thaw: Ok(report(proto::Verdict::Unbroken)),
            status: proto::GetStatusResponse { phase: proto::Phase::Idle.into(), ..Default::default() },
            reports: Vec::new(),
            lease: Lease::Held,
            serving: true,
            freezes: Box::new(|| ()),
            thaws: Box::new(|| ()),
        }
    }
}

/// A hold "h1" at application level with one file system.
pub fn report(verdict: proto::Verdict) -> proto::Report {
    proto::Report {
        id: "h1".into(),
        consistency: proto::Consistency::Application.into(),
        verdict: verdict.into(),
        remaining: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        steps: vec![filesystem("/srv", (7, 99), proto::StepOutcome::Done)],
        ..Default::default()
    }
}

pub fn filesystem(mount: &str, (major, minor): (u32, u32), outcome: proto::StepOutcome) -> proto::Step {
    let fs = proto::Filesystem { mount: mount.into(), r#type: "ext4".into(), major, minor, ..Default::default() };
    proto::Step {
        name: format!("fs:{mount}"),
        kind: proto::StepKind::Filesystem.into(),
        outcome: outcome.into(),
        detail: Some(proto::step::Detail::Filesystem(fs)),
        ..Default::default()
    }
}

/// The fake, running.
pub struct Daemon {
    pub socket: PathBuf,
    asked: Arc<Mutex<Vec<String>>>,
    _dir: tempfile::TempDir,
}

struct Service {
    fake: Fake,
    asked: Arc<Mutex<Vec<String>>>,
    thawed: Arc<Notify>,
}

impl Fake {
    /// Serves until the test ends.
    pub fn start(self) -> Daemon {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a temporary directory");
        let socket = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
        listener.set_nonblocking(true).expect("nonblocking");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let serving = if self.serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        let service = Service { fake: self, asked: Arc::clone(&asked), thawed: Arc::new(Notify::new()) };
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).expect("registered");
                let (reporter, health) = tonic_health::server::health_reporter();
                reporter.set_service_status("", serving).await;
                let ours = HoldstillServiceServer::new(service);
                let both = tower::service_fn(move |request: http::Request<tonic::body::Body>| {
                    let (mut health, mut ours) = (health.clone(), ours.clone());
                    async move {
                        match request.uri().path().starts_with("/grpc.health") {
                            true => health.call(request).await,
                            false => ours.call(request).await,
                        }
                    }
                });
                tonic::transport::Server::builder().serve_with_incoming(both, UnixListenerStream::new(listener)).await
            })
        });
        Daemon { socket, asked, _dir: dir }
    }
}

impl Daemon {
    /// The rpcs that were called, in order.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no holder panics").clone()
    }

    /// The real program, asking this daemon.
    pub fn holdstill(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdstill"));
        command
            .arg("--socket")
            .arg(&self.socket)
            .args(args)
            .env_remove("HOLDSTILL_SOCKET")
            .env_remove("HOLDSTILL_ENDPOINT");
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.holdstill(args).output().expect("it starts")
    }
}

impl Service {
    fn note(&self, what: impl Into<String>) {
        self.asked.lock().expect("no holder panics").push(what.into());
    }

    fn released(&self) -> Result<proto::Report, Status> {
        self.fake.thaw.clone().map_err(Status::from)
    }
}

fn event(what: proto::event::What) -> proto::Event {
    proto::Event { sequence: 1, hold_id: "h1".into(), what: Some(what), ..Default::default() }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl HoldstillService for Service {
    async fn check(&self, _: Request<proto::CheckRequest>) -> Result<Response<proto::CheckResponse>, Status> {
        self.note("check");
        Ok(Response::new(self.fake.check.clone()))
    }

    async fn freeze(&self, request: Request<proto::FreezeRequest>) -> Result<Response<proto::FreezeResponse>, Status> {
        self.note(format!("freeze {}", request.get_ref().id));
        let report = self.fake.freeze.clone().map_err(Status::from)?;
        Ok(Response::new(proto::FreezeResponse { report: Some(report) }))
    }

    async fn thaw(&self, request: Request<proto::ThawRequest>) -> Result<Response<proto::ThawResponse>, Status> {
        self.note(format!("thaw {}", request.get_ref().id));
        (self.fake.thaws)();
        self.thawed.notify_one();
        Ok(Response::new(proto::ThawResponse { report: Some(self.released()?), already_released: false }))
    }

    async fn extend(&self, _: Request<proto::ExtendRequest>) -> Result<Response<proto::ExtendResponse>, Status> {
        self.note("extend");
        Ok(Response::new(proto::ExtendResponse { remaining: Some(prost_types::Duration { seconds: 42, nanos: 0 }) }))
    }

    type HoldStream = Streamed<proto::HoldResponse>;

    async fn hold(&self, request: Request<proto::HoldRequest>) -> Result<Response<Self::HoldStream>, Status> {
        self.note(format!("hold {}", request.get_ref().id));
        let held = match &self.fake.lease {
            Lease::Refused(refusal) => return Err(refusal.clone().into()),
            Lease::Held | Lease::Breaks(_) => self.fake.freeze.clone().map_err(Status::from)?,
        };
        (self.fake.freezes)();
        let released = self.released()?;
        let (thawed, lease) = (Arc::clone(&self.thawed), self.fake.lease.clone());
        let first = [proto::event::What::Phase(proto::Phase::Preparing.into()), proto::event::What::Held(held)];
        let last = futures_once(async move {
            match lease {
                Lease::Breaks(after) => tokio::time::sleep(after).await,
                Lease::Held | Lease::Refused(_) => thawed.notified().await,
            }
            Ok(proto::HoldResponse { event: Some(event(proto::event::What::Released(released))) })
        });
        let first = first.map(|what| Ok(proto::HoldResponse { event: Some(event(what)) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(first).chain(last))))
    }

    async fn get_status(
        &self,
        _: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        self.note("status");
        Ok(Response::new(self.fake.status.clone()))
    }

    async fn get_report(
        &self,
        request: Request<proto::GetReportRequest>,
    ) -> Result<Response<proto::GetReportResponse>, Status> {
        let id = &request.get_ref().id;
        let report = self.fake.reports.iter().find(|r| r.id == *id).cloned();
        match report {
            Some(report) => Ok(Response::new(proto::GetReportResponse { report: Some(report) })),
            None => Err(Status::not_found("")),
        }
    }

    async fn list_reports(
        &self,
        _: Request<proto::ListReportsRequest>,
    ) -> Result<Response<proto::ListReportsResponse>, Status> {
        Ok(Response::new(proto::ListReportsResponse { reports: self.fake.reports.clone(), ..Default::default() }))
    }

    type WatchStream = Streamed<proto::WatchResponse>;

    async fn watch(&self, _: Request<proto::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let events = [
            proto::event::What::Snapshot(proto::Report::default()),
            proto::event::What::Phase(proto::Phase::Held.into()),
            proto::event::What::Released(report(proto::Verdict::Unbroken)),
        ];
        let events = events.map(|what| Ok(proto::WatchResponse { event: Some(event(what)) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(events))))
    }
}

/// A stream of the one thing this future yields.
fn futures_once<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> impl Stream<Item = T> + Send {
    let (tell, told) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let _ = tell.send(future.await).await;
    });
    tokio_stream::wrappers::ReceiverStream::new(told)
}
