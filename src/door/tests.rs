//! The doors against a driver with a script: a real unix socket, a real client, no hold.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use prost::Message as _;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinHandle,
};
use tokio_stream::StreamExt as _;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint, server::Connected},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt as _;

use super::{access::Peer, entrance::Entrance, events::Watching, listen};
use crate::{
    config::{Access, Principal, Role},
    hold::history::History,
    hold::{
        Ask, Handle, Refusal, RefusalKind,
        report::{Published, Standing},
    },
    proto::{
        CheckRequest, CheckResponse, Event, ExtendRequest, FreezeRequest, GetReportRequest, GetStatusRequest,
        HoldRequest, HoldSpec, ListReportsRequest, Phase, Report, ThawRequest, ThawResponse, Verdict, WatchRequest,
        event::What, holdstill_service_client::HoldstillServiceClient,
    },
};

mod remote;

/// The driver's side of everything.
pub(super) struct Fake {
    asks: mpsc::UnboundedReceiver<Ask>,
    standing: watch::Sender<Arc<Standing>>,
    events: broadcast::Sender<Event>,
    history: Arc<Mutex<History>>,
    sequence: u64,
}

pub(super) struct FreezeAsked {
    id: String,
    caller: String,
    ticket: u64,
    reply: oneshot::Sender<Result<Report, Refusal>>,
}

impl FreezeAsked {
    pub(super) fn answer(self, answer: Result<Report, Refusal>) {
        let _ = self.reply.send(answer);
    }
}

pub(super) fn fake() -> (Handle, Fake) {
    let (asks, asked) = mpsc::unbounded_channel();
    let (standing, standing_read) = watch::channel(Arc::new(Standing { phase: Phase::Idle, ..Default::default() }));
    let (events, _) = broadcast::channel(256);
    let history: Arc<Mutex<History>> = Arc::default();
    let published = Published { standing: standing_read, events: events.clone(), history: Arc::clone(&history) };
    let planner = Arc::new(|spec: HoldSpec| -> Pin<Box<dyn Future<Output = _> + Send>> {
        let plan = Report { label: spec.label, ..Default::default() };
        Box::pin(async { Ok(CheckResponse { plan: Some(plan), ..Default::default() }) })
    });
    (
        Handle { asks, published, restored: crate::hold::restored::Noticed::default(), planner },
        Fake { asks: asked, standing, events, history, sequence: 0 },
    )
}

impl Fake {
    async fn next(&mut self) -> Ask {
        self.asks.recv().await.expect("a door is open")
    }

    pub(super) async fn freeze_asked(&mut self) -> FreezeAsked {
        match self.next().await {
            Ask::Freeze { id, caller, ticket, reply, .. } => FreezeAsked { id, caller, ticket, reply },
            other => panic!("not a freeze: {other:?}"),
        }
    }

    async fn gone(&mut self, expected: u64) {
        match self.next().await {
            Ask::Gone { ticket } => assert_eq!(ticket, expected),
            other => panic!("not gone: {other:?}"),
        }
    }

    async fn delivered(&mut self, expected: u64) {
        match self.next().await {
            Ask::Delivered { ticket } => assert_eq!(ticket, expected),
            other => panic!("not delivered: {other:?}"),
        }
    }

    /// All that is asked until every door is closed.
    pub(super) async fn rest(mut self) -> Vec<Ask> {
        let mut rest = Vec::new();
        while let Some(ask) = self.asks.recv().await {
            rest.push(ask);
        }
        rest
    }

    /// Publishes in the driver's order: the standing first, then the change.
    fn publish(&mut self, hold_id: &str, what: What) -> u64 {
        self.sequence += 1;
        let sequence = self.sequence;
        self.standing.send_modify(|standing| {
            let mut next = Standing::clone(standing);
            next.sequence = sequence;
            match &what {
                What::Held(report) => next.current = Some(report.clone()),
                What::Released(report) => (next.current, next.last) = (None, Some(report.clone())),
                _ => {}
            }
            *standing = Arc::new(next);
        });
        if let What::Released(report) = &what {
            self.history.lock().unwrap().push(report.clone());
        }
        let _ = self.events.send(Event { sequence, hold_id: hold_id.into(), what: Some(what), time: None });
        sequence
    }
}

/// A served unix socket with the fake behind it.
struct Served {
    driver: Fake,
    entrance: Entrance,
    path: PathBuf,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Served {
    async fn new() -> Self {
        let (handle, driver) = fake();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("holdstill.sock");
        let me = Principal::User { name: "me".into(), uid: nix::unistd::getuid().as_raw() };
        let access = Arc::new(Access { operate: vec![me], look: Vec::new() });
        let connections = listen::unix::bind(&path).unwrap().socket.connections(access).unwrap();
        let entrance = Entrance::new(handle).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let serve = entrance.clone().serve(connections, async { _ = stopped.await });
        let serving = tokio::spawn(async { serve.await.unwrap() });
        Served { driver, entrance, path, stop, serving, _dir: dir }
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("unix://{}", self.path.display())).unwrap().connect().await.unwrap()
    }

    async fn client(&self) -> HoldstillServiceClient<Channel> {
        HoldstillServiceClient::new(self.channel().await)
    }

    /// Stops serving, waits until every connection has ended, and tells what the driver was asked since.
    async fn ended(self) -> Vec<Ask> {
        self.stop.send(()).unwrap();
        self.serving.await.unwrap();
        drop(self.entrance);
        self.driver.rest().await
    }
}

fn freeze(id: &str) -> FreezeRequest {
    FreezeRequest { id: id.into(), spec: None }
}

fn report(id: &str, verdict: Verdict) -> Report {
    Report { id: id.into(), verdict: verdict.into(), ..Default::default() }
}

fn held(id: &str) -> Report {
    report(id, Verdict::Unspecified)
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().expect("every refusal has an ErrorInfo");
    assert_eq!(info.domain, "holdstill");
    info.reason
}

#[tokio::test]
async fn a_caller_that_got_its_answer_may_disconnect() {
    let mut served = Served::new().await;
    let mut client = served.client().await;
    let asking = tokio::spawn(async move {
        let answer = client.freeze(freeze("a")).await;
        drop(client);
        answer
    });
    let asked = served.driver.freeze_asked().await;
    let uid = nix::unistd::getuid();
    assert_eq!(asked.id, "a");
    assert!(asked.caller.starts_with(&format!("uid {uid}")), "{}", asked.caller);
    let ticket = asked.ticket;
    asked.answer(Ok(held("a")));
    assert_eq!(asking.await.unwrap().unwrap().into_inner().report.unwrap().id, "a");
    served.driver.delivered(ticket).await;
    assert!(served.ended().await.is_empty(), "nobody is gone after delivery");
}

#[tokio::test]
async fn a_call_cancelled_before_its_answer_is_gone_while_its_connection_lives() {
    let mut served = Served::new().await;
    let mut client = served.client().await;
    let mut other = client.clone();
    let asking = tokio::spawn(async move { client.freeze(freeze("a")).await });
    let asked = served.driver.freeze_asked().await;
    asking.abort();
    served.driver.gone(asked.ticket).await;
    other.get_status(GetStatusRequest {}).await.unwrap();
}

#[tokio::test]
async fn a_client_that_dies_before_its_answer_is_gone() {
    let mut served = Served::new().await;
    // A runtime of its own dies as a process does: its sockets are closed in the middle of everything.
    let path = served.path.clone();
    let (die, death) = oneshot::channel::<()>();
    let process = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).unwrap();
            let mut client = HoldstillServiceClient::new(endpoint.connect().await.unwrap());
            let answer = client.freeze(freeze("a"));
            tokio::select! {
                answer = answer => panic!("answered: {answer:?}"),
                _ = death => {}
            }
        });
    });
    let asked = served.driver.freeze_asked().await;
    die.send(()).unwrap();
    process.join().unwrap();
    served.driver.gone(asked.ticket).await;
    asked.answer(Ok(held("a")));
    assert!(served.ended().await.is_empty());
}

#[tokio::test]
async fn a_deadline_shorter_than_the_freeze_means_gone() {
    let mut served = Served::new().await;
    let mut client = served.client().await;
    let mut request = Request::new(freeze("a"));
    request.set_timeout(Duration::from_millis(50));
    let asking = tokio::spawn(async move { client.freeze(request).await });
    let asked = served.driver.freeze_asked().await;
    served.driver.gone(asked.ticket).await;
    let status = asking.await.unwrap().unwrap_err();
    assert!(matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded), "{status}");
}

#[tokio::test]
async fn of_two_joined_callers_only_the_one_that_left_is_gone() {
    let mut served = Served::new().await;
    let (mut one, mut two) = (served.client().await, served.client().await);
    let first = tokio::spawn(async move { one.freeze(freeze("a")).await });
    let first_asked = served.driver.freeze_asked().await;
    let second = tokio::spawn(async move { two.freeze(freeze("a")).await });
    let second_asked = served.driver.freeze_asked().await;
    assert_eq!((first_asked.id.as_str(), second_asked.id.as_str()), ("a", "a"));
    first.abort();
    served.driver.gone(first_asked.ticket).await;
    let ticket = second_asked.ticket;
    second_asked.answer(Ok(held("a")));
    second.await.unwrap().unwrap();
    served.driver.delivered(ticket).await;
}

#[tokio::test]
async fn a_refusal_travels_with_its_code_reason_hint_and_hold() {
    let mut served = Served::new().await;
    let mut client = served.client().await;
    let asking = tokio::spawn(async move { client.freeze(freeze("b")).await });
    served.driver.freeze_asked().await.answer(Err(Refusal::new(
        RefusalKind::FailedPrecondition,
        "HOLD_IN_PROGRESS",
        "hold `a` is in progress",
    )
    .hint("wait")
    .about("a")));
    let status = asking.await.unwrap().unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "hold `a` is in progress"));
    let info = status.get_details_error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.metadata["hold_id"].as_str()), ("HOLD_IN_PROGRESS", "a"));
    assert_eq!(status.get_details_precondition_failure().unwrap().violations[0].r#type, "HOLD_IN_PROGRESS");
}

#[tokio::test]
async fn a_refusal_of_100_kib_still_arrives() {
    let mut served = Served::new().await;
    let mut client = served.client().await;
    let asking = tokio::spawn(async move { client.freeze(freeze("b")).await });
    let long = "é\n".repeat(50 * 1024);
    let refusal = Refusal::new(RefusalKind::Aborted, "STEP_FAILED", long.clone()).hint(long.clone()).about(long);
    served.driver.freeze_asked().await.answer(Err(refusal));
    let status = asking.await.unwrap().unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Aborted, "STEP_FAILED"));
    assert!(status.details().len() <= 4096);
}

#[tokio::test]
async fn bad_input_is_refused_before_the_driver_sees_any_of_it() {
    let served = Served::new().await;
    let mut client = served.client().await;
    let minus = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let bad = HoldSpec { max_hold: minus, ..Default::default() };
    for status in [
        client.freeze(freeze("a b")).await.unwrap_err(),
        client.freeze(FreezeRequest { id: "a".into(), spec: Some(bad.clone()) }).await.unwrap_err(),
        client.hold(HoldRequest { id: "-".into(), spec: None }).await.unwrap_err(),
        client.check(CheckRequest { spec: Some(bad) }).await.unwrap_err(),
        client.thaw(ThawRequest { id: "../x".into(), ..Default::default() }).await.unwrap_err(),
        client.thaw(ThawRequest { snapshot_ref: "s".repeat(4097), ..Default::default() }).await.unwrap_err(),
        client.extend(ExtendRequest { id: "a".into(), max_hold: None }).await.unwrap_err(),
        client.extend(ExtendRequest { id: "a".into(), max_hold: minus }).await.unwrap_err(),
        client.extend(ExtendRequest::default()).await.unwrap_err(),
        client.get_report(GetReportRequest { id: "?".into() }).await.unwrap_err(),
        client.list_reports(ListReportsRequest { page_size: -1, ..Default::default() }).await.unwrap_err(),
        client.list_reports(ListReportsRequest { page_token: "x".into(), ..Default::default() }).await.unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        reason(&status);
        assert!(!status.get_details_bad_request().unwrap().field_violations[0].field.is_empty(), "{status}");
    }
    drop(client);
    assert!(served.ended().await.is_empty());
}

#[tokio::test]
async fn a_message_above_1_mib_is_refused_with_a_reason() {
    let served = Served::new().await;
    let mut client = served.client().await;
    let spec = HoldSpec { label: "l".repeat(1 << 20), ..Default::default() };
    let status = client.freeze(FreezeRequest { id: "a".into(), spec: Some(spec) }).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::OutOfRange, "MESSAGE_TOO_LARGE"));
    drop(client);
    assert!(served.ended().await.is_empty());
}

#[tokio::test]
async fn an_empty_id_is_replaced_for_freeze_and_passed_on_for_thaw() {
    let mut served = Served::new().await;
    let mut client = served.client().await;
    let mut thawing = client.clone();
    let asking = tokio::spawn(async move { client.freeze(freeze("")).await });
    let asked = served.driver.freeze_asked().await;
    assert_eq!(asked.id.len(), 36, "{}", asked.id);
    let ticket = asked.ticket;
    asked.answer(Ok(Report::default()));
    asking.await.unwrap().unwrap();
    served.driver.delivered(ticket).await;

    let thaw = ThawRequest { id: String::new(), snapshot_ref: "snap-1".into() };
    let thawing = tokio::spawn(async move { thawing.thaw(thaw).await });
    match served.driver.next().await {
        Ask::Thaw { id, snapshot_ref, reply } => {
            assert_eq!((id.as_str(), snapshot_ref.as_str()), ("", "snap-1"));
            let report = Some(report("a", Verdict::Broken));
            reply.send(Ok(ThawResponse { report, already_released: true })).unwrap();
        }
        other => panic!("not a thaw: {other:?}"),
    }
    let answer = thawing.await.unwrap().expect("a broken hold is not an error of Thaw").into_inner();
    assert!(answer.already_released && answer.report.unwrap().verdict() == Verdict::Broken);
}

#[tokio::test]
async fn what_is_known_can_be_read_without_the_driver() {
    let mut served = Served::new().await;
    served.driver.publish("a", What::Released(report("a", Verdict::Unbroken)));
    served.driver.publish("b", What::Held(held("b")));
    let mut client = served.client().await;
    let status = client.get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.current.unwrap().id.as_str(), status.last.unwrap().id.as_str()), ("b", "a"));
    assert_eq!((status.instance.len(), status.version.as_str()), (36, env!("CARGO_PKG_VERSION")));
    let again = client.get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.instance, again.instance);
    for id in ["a", "b"] {
        let found = client.get_report(GetReportRequest { id: id.into() }).await.unwrap().into_inner();
        assert_eq!(found.report.unwrap().id, id);
    }
    let unknown = client.get_report(GetReportRequest { id: "c".into() }).await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::NotFound, "UNKNOWN_HOLD"));
    let list = client.list_reports(ListReportsRequest::default()).await.unwrap().into_inner();
    assert_eq!((list.reports.len(), list.next_page_token.as_str()), (1, ""));
    let spec = HoldSpec { label: "nightly".into(), ..Default::default() };
    let plan = client.check(CheckRequest { spec: Some(spec) }).await.unwrap().into_inner().plan.unwrap();
    assert_eq!(plan.label, "nightly");
}

/// What a stream said, in words.
fn word(event: Event) -> String {
    match event.what.expect("an event says something") {
        What::Snapshot(r) => format!("snapshot {}", r.id),
        What::Phase(p) => format!("phase {}", Phase::try_from(p).unwrap().as_str_name()),
        What::Step(s) => format!("step {}", s.name),
        What::Problem(p) => format!("problem {}", p.code),
        What::Held(r) => format!("held {}", r.id),
        What::Released(r) => format!("released {}", r.id),
        What::Lagged(n) => format!("lagged {n}"),
    }
}

fn quiescing() -> What {
    What::Phase(Phase::Quiescing.into())
}

#[tokio::test]
async fn a_hold_tells_its_progress_then_held_then_released_last() {
    let mut served = Served::new().await;
    let mut client = served.client().await;
    let mut stream = client.hold(HoldRequest { id: "a".into(), spec: None }).await.unwrap().into_inner();
    let asked = served.driver.freeze_asked().await;
    served.driver.publish("elsewhere", quiescing());
    served.driver.publish("a", quiescing());
    assert_eq!(word(stream.message().await.unwrap().unwrap().event.unwrap()), "phase PHASE_QUIESCING");
    let sequence = served.driver.publish("a", What::Held(held("a")));
    let ticket = asked.ticket;
    asked.answer(Ok(held("a")));
    let event = stream.message().await.unwrap().unwrap().event.unwrap();
    assert_eq!((event.sequence, word(event)), (sequence, "held a".into()));
    served.driver.publish("a", What::Released(report("a", Verdict::Unbroken)));
    assert_eq!(word(stream.message().await.unwrap().unwrap().event.unwrap()), "released a");
    assert!(stream.message().await.unwrap().is_none(), "then OK");
    served.driver.delivered(ticket).await;
    drop((stream, client));
    assert!(served.ended().await.is_empty());
}

#[tokio::test]
async fn a_hold_whose_caller_stops_listening_is_gone_before_and_while_held() {
    for answered in [false, true] {
        let mut served = Served::new().await;
        let mut client = served.client().await;
        let mut stream = client.hold(HoldRequest { id: "a".into(), spec: None }).await.unwrap().into_inner();
        let asked = served.driver.freeze_asked().await;
        let ticket = asked.ticket;
        if answered {
            served.driver.publish("a", What::Held(held("a")));
            asked.answer(Ok(held("a")));
            assert_eq!(word(stream.message().await.unwrap().unwrap().event.unwrap()), "held a");
        }
        drop(stream);
        served.driver.gone(ticket).await;
    }
}

#[tokio::test]
async fn a_hold_that_joins_begins_with_where_that_hold_stands() {
    let mut served = Served::new().await;
    served.driver.publish("a", What::Held(held("a")));
    let mut client = served.client().await;
    let mut stream = client.hold(HoldRequest { id: "a".into(), spec: None }).await.unwrap().into_inner();
    served.driver.freeze_asked().await.answer(Ok(held("a")));
    assert_eq!(word(stream.message().await.unwrap().unwrap().event.unwrap()), "snapshot a");
    assert_eq!(word(stream.message().await.unwrap().unwrap().event.unwrap()), "held a");
}

#[tokio::test]
async fn a_hold_says_held_before_released_whichever_the_door_reads_first() {
    let mut served = Served::new().await;
    let mut client = served.client().await;
    let stream = client.hold(HoldRequest { id: "a".into(), spec: None }).await.unwrap().into_inner();
    let asked = served.driver.freeze_asked().await;
    // the end of an earlier attempt under the same id is not this hold's
    served.driver.publish("a", What::Released(report("a", Verdict::NeverHeld)));
    served.driver.publish("a", What::Released(report("a", Verdict::Broken)));
    asked.answer(Ok(held("a")));
    let said: Vec<String> = stream.map(|m| word(m.unwrap().event.unwrap())).collect().await;
    assert_eq!(said, ["held a", "released a"]);
}

#[tokio::test]
async fn a_hold_thawed_while_preparing_ends_with_the_drivers_refusal() {
    let mut served = Served::new().await;
    let mut client = served.client().await;
    let mut stream = client.hold(HoldRequest { id: "a".into(), spec: None }).await.unwrap().into_inner();
    let asked = served.driver.freeze_asked().await;
    served.driver.publish("a", What::Released(report("a", Verdict::NeverHeld)));
    asked.answer(Err(Refusal::new(RefusalKind::Aborted, "THAWED_MEANWHILE", "hold `a` was thawed meanwhile")));
    let status = stream.message().await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Aborted, "THAWED_MEANWHILE"));
}

#[tokio::test]
async fn a_hold_that_missed_its_own_end_still_tells_it() {
    let (handle, mut driver) = fake();
    let mut stream = super::events::Holding::new(handle, "a".into(), HoldSpec::default(), "me".into());
    let (first, ()) = tokio::join!(stream.next(), async {
        driver.freeze_asked().await.answer(Ok(held("a")));
    });
    assert_eq!(word(first.unwrap().unwrap().event.unwrap()), "held a");
    driver.publish("a", What::Released(report("a", Verdict::Unbroken)));
    for _ in 0..300 {
        driver.publish("b", quiescing());
    }
    let said: Vec<String> = stream.map(|m| word(m.unwrap().event.unwrap())).collect().await;
    assert_eq!(said, ["lagged 45", "released a"]);
}

#[tokio::test]
async fn a_watch_begins_with_a_snapshot_and_goes_on_with_what_came_after_it() {
    let mut served = Served::new().await;
    served.driver.publish("a", quiescing());
    let known = served.driver.publish("a", What::Held(held("a")));
    let mut client = served.client().await;
    for after_sequence in [0, 1, known, 9999] {
        let mut stream = client.watch(WatchRequest { after_sequence }).await.unwrap().into_inner();
        let first = stream.message().await.unwrap().unwrap().event.unwrap();
        let sequence = first.sequence;
        assert_eq!(word(first), "snapshot a", "after {after_sequence}");
        let next = served.driver.publish("a", quiescing());
        assert_eq!(next, sequence + 1);
        assert_eq!(stream.message().await.unwrap().unwrap().event.unwrap().sequence, next);
    }
}

#[tokio::test]
async fn a_watch_of_an_idle_guest_begins_with_an_empty_snapshot() {
    let (handle, _driver) = fake();
    let first = Watching::new(handle.published(), 0).next().await.unwrap().unwrap().event.unwrap();
    match first.what {
        Some(What::Snapshot(report)) => assert_eq!(report, Report { phase: Phase::Idle.into(), ..Default::default() }),
        other => panic!("not a snapshot: {other:?}"),
    }
}

#[tokio::test]
async fn a_slow_watcher_is_told_how_much_it_missed() {
    let (handle, mut driver) = fake();
    let mut watching = Watching::new(handle.published(), 0);
    assert_eq!(word(watching.next().await.unwrap().unwrap().event.unwrap()), "snapshot ");
    for _ in 0..300 {
        driver.publish("a", quiescing());
    }
    assert_eq!(word(watching.next().await.unwrap().unwrap().event.unwrap()), "lagged 44");
    assert_eq!(watching.next().await.unwrap().unwrap().event.unwrap().sequence, 45);
}

#[tokio::test]
async fn streams_end_with_the_driver_so_that_serving_can_end() {
    let mut served = Served::new().await;
    let mut client = served.client().await;
    let mut watch = client.watch(WatchRequest::default()).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let mut hold = client.hold(HoldRequest { id: "a".into(), spec: None }).await.unwrap().into_inner();
    served.driver.freeze_asked().await.answer(Ok(held("a")));
    hold.message().await.unwrap().unwrap();
    drop(served.driver);
    for status in [watch.message().await.unwrap_err(), hold.message().await.unwrap_err()] {
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "STOPPING"));
    }
    served.stop.send(()).unwrap();
    served.serving.await.unwrap();
}

#[tokio::test]
async fn health_is_serving_unless_there_is_no_warden() {
    let served = Served::new().await;
    let mut health = HealthClient::new(served.channel().await);
    for service in ["", "holdstill.v1.HoldstillService"] {
        for serving in [true, false] {
            served.entrance.health().set_serving(serving).await;
            let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
            let expected = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
            assert_eq!(answer.status(), expected, "{service:?}");
        }
    }
}

#[tokio::test]
async fn reflection_lists_the_contract() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let served = Served::new().await;
    let mut client = ServerReflectionClient::new(served.channel().await);
    let ask = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut answers = client.server_reflection_info(tokio_stream::once(ask)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let names: Vec<&str> = list.service.iter().map(|s| s.name.as_str()).collect();
    assert!(names.contains(&"holdstill.v1.HoldstillService"), "{names:?}");
    assert!(names.contains(&"grpc.health.v1.Health"), "{names:?}");
}

/// A connection whose peer is whoever the test says.
struct Pretended<S>(S, Peer);

impl<S> Connected for Pretended<S> {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.1.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Pretended<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Pretended<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

async fn client_as(entrance: &Entrance, role: Option<Role>) -> (Channel, JoinHandle<()>) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let peer = Peer { caller: "uid 1000 (alice), pid 7".into(), role };
    let incoming = tokio_stream::once(Ok(Pretended(theirs, peer))).chain(tokio_stream::pending());
    let serve = entrance.clone().serve(incoming, std::future::pending());
    let serving = tokio::spawn(async { serve.await.unwrap() });
    let mut ours = Some(hyper_util::rt::TokioIo::new(ours));
    let connector = tower::service_fn(move |_: http::Uri| {
        let once = ours.take().ok_or_else(|| std::io::Error::other("one connection"));
        std::future::ready(once)
    });
    (Endpoint::from_static("http://duplex").connect_with_connector(connector).await.unwrap(), serving)
}

#[tokio::test]
async fn one_who_may_look_can_read_everything_and_change_nothing() {
    let (handle, driver) = fake();
    let entrance = Entrance::new(handle).await.unwrap();
    let (channel, serving) = client_as(&entrance, Some(Role::Look)).await;
    let mut client = HoldstillServiceClient::new(channel.clone());
    client.check(CheckRequest::default()).await.unwrap();
    client.get_status(GetStatusRequest {}).await.unwrap();
    client.list_reports(ListReportsRequest::default()).await.unwrap();
    client.watch(WatchRequest::default()).await.unwrap();
    assert_eq!(client.get_report(GetReportRequest { id: "a".into() }).await.unwrap_err().code(), Code::NotFound);
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
    let max_hold = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    for status in [
        client.freeze(freeze("a")).await.unwrap_err(),
        client.thaw(ThawRequest::default()).await.unwrap_err(),
        client.extend(ExtendRequest { id: "a".into(), max_hold }).await.unwrap_err(),
        client.hold(HoldRequest { id: "a".into(), spec: None }).await.unwrap_err(),
    ] {
        assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "PERMISSION_DENIED"));
        assert!(status.message().starts_with("uid 1000 (alice), pid 7 may not operate"), "{status}");
    }
    drop(client);
    drop(entrance);
    serving.abort();
    assert!(driver.rest().await.is_empty(), "the driver was not asked");
}

#[tokio::test]
async fn one_without_a_role_is_refused_everything_by_name() {
    let (handle, _driver) = fake();
    let entrance = Entrance::new(handle).await.unwrap();
    let (channel, _serving) = client_as(&entrance, None).await;
    let status = HoldstillServiceClient::new(channel.clone()).get_status(GetStatusRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("alice"), "{status}");
    let status = HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_held_report_too_large_for_a_message_is_delivered_shortened() {
    let mut served = Served::new().await;
    let mut client = served.client().await;
    let asking = tokio::spawn(async move { client.freeze(freeze("a")).await });
    let asked = served.driver.freeze_asked().await;
    let ticket = asked.ticket;
    let step = crate::proto::Step { name: "fs:/".to_owned() + &"m".repeat(4000), ..Default::default() };
    asked.answer(Ok(Report { steps: vec![step; 4096], ..held("a") }));
    let report = asking.await.unwrap().expect("held is held").into_inner().report.unwrap();
    assert!(report.truncated && report.encoded_len() <= 1 << 20);
    served.driver.delivered(ticket).await;
}
