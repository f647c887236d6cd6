//! `holdstill.v1.HoldstillService`: each method checks its input, asks the [`Handle`], and says the answer in the
//! contract's words. Served behind [`super::entrance`].

use std::{io, pin::Pin};

use prost::Message as _;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::{
    access::Peer,
    delivery::Undelivered,
    entrance::MESSAGE_MAX,
    events::{Holding, Watching},
    input,
};
use crate::{
    hold::{Handle, Refusal, RefusalKind},
    proto::{
        CheckRequest, CheckResponse, ExtendRequest, ExtendResponse, FreezeRequest, FreezeResponse, GetReportRequest,
        GetReportResponse, GetStatusRequest, GetStatusResponse, HoldRequest, HoldResponse, ListReportsRequest,
        ListReportsResponse, Report, ThawRequest, ThawResponse, WatchRequest, WatchResponse,
        holdstill_service_server::HoldstillService,
    },
};

const PAGE_DEFAULT: usize = 20;
const PAGE_MAX: usize = 128;
/// The most one report may take of an answer; what is left is for the fields around it.
const REPORT_MAX: usize = MESSAGE_MAX - 16 * 1024;
/// What was noticed at the start gets this much of an answer.
const RESTORED_MAX: usize = 128 * 1024;

/// The contract over a [`Handle`]. Holds no state of any hold.
pub struct Grpc {
    handle: Handle,
    instance: String,
}

impl Grpc {
    /// Draws this start's instance id.
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn new(handle: Handle) -> io::Result<Self> {
        Ok(Grpc { handle, instance: input::uuid()? })
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl HoldstillService for Grpc {
    type HoldStream = Streamed<HoldResponse>;
    type WatchStream = Streamed<WatchResponse>;

    async fn check(&self, request: Request<CheckRequest>) -> Answer<CheckResponse> {
        let spec = input::spec(request.into_inner().spec).map_err(Status::from)?;
        let mut answer = self.handle.check(spec).await.map_err(Status::from)?;
        answer.plan = answer.plan.map(|plan| fitted(plan, REPORT_MAX));
        Ok(Response::new(answer))
    }

    async fn freeze(&self, request: Request<FreezeRequest>) -> Answer<FreezeResponse> {
        let caller = caller(&request);
        let FreezeRequest { id, spec } = request.into_inner();
        let (id, spec) = input::hold(id, spec).map_err(Status::from)?;
        let (report, lease) = self.handle.freeze(id, spec, caller).await.map_err(Status::from)?;
        let mut response = Response::new(FreezeResponse { report: Some(fitted(report, REPORT_MAX)) });
        response.extensions_mut().insert(Undelivered::new(lease));
        Ok(response)
    }

    async fn thaw(&self, request: Request<ThawRequest>) -> Answer<ThawResponse> {
        let ThawRequest { id, snapshot_ref } = request.into_inner();
        let id = input::named_or_empty(id).map_err(Status::from)?;
        let snapshot_ref = input::snapshot_ref(snapshot_ref).map_err(Status::from)?;
        let mut answer = self.handle.thaw(id, snapshot_ref).await.map_err(Status::from)?;
        answer.report = answer.report.map(|report| fitted(report, REPORT_MAX));
        Ok(Response::new(answer))
    }

    async fn extend(&self, request: Request<ExtendRequest>) -> Answer<ExtendResponse> {
        let ExtendRequest { id, max_hold } = request.into_inner();
        let id = input::named_or_empty(id).map_err(Status::from)?;
        let max_hold = max_hold.ok_or_else(|| {
            Status::from(Refusal::new(RefusalKind::InvalidArgument, "MISSING_DURATION", "max_hold: not given"))
        })?;
        let max_hold = input::duration("max_hold", &max_hold).map_err(Status::from)?;
        let remaining = self.handle.extend(id, max_hold).await.map_err(Status::from)?;
        let remaining = prost_types::Duration::try_from(remaining).expect("a hold lasts no 292 billion years");
        Ok(Response::new(ExtendResponse { remaining: Some(remaining) }))
    }

    async fn hold(&self, request: Request<HoldRequest>) -> Answer<Self::HoldStream> {
        let caller = caller(&request);
        let HoldRequest { id, spec } = request.into_inner();
        let (id, spec) = input::hold(id, spec).map_err(Status::from)?;
        Ok(Response::new(Box::pin(Holding::new(self.handle.clone(), id, spec, caller))))
    }

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Answer<GetStatusResponse> {
        let standing = self.handle.published().standing();
        let restored = self.handle.restored(RESTORED_MAX);
        let half = |report: &Report| fitted(report.clone(), (REPORT_MAX - RESTORED_MAX) / 2);
        Ok(Response::new(GetStatusResponse {
            phase: standing.phase.into(),
            current: standing.current.as_ref().map(half),
            last: standing.last.as_ref().map(half),
            instance: self.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            restored,
        }))
    }

    async fn get_report(&self, request: Request<GetReportRequest>) -> Answer<GetReportResponse> {
        let id = input::named(request.into_inner().id).map_err(Status::from)?;
        match self.handle.published().report(&id) {
            Some(report) => Ok(Response::new(GetReportResponse { report: Some(fitted(report, REPORT_MAX)) })),
            None => Err(Status::from(
                Refusal::new(RefusalKind::NotFound, "UNKNOWN_HOLD", format!("no hold `{id}` is known"))
                    .hint("`holdstill history` lists those that are")
                    .about(id),
            )),
        }
    }

    async fn list_reports(&self, request: Request<ListReportsRequest>) -> Answer<ListReportsResponse> {
        let page = page(self.handle.published().reports(), request.get_ref()).map_err(Status::from)?;
        Ok(Response::new(page))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        let after = request.get_ref().after_sequence;
        Ok(Response::new(Box::pin(Watching::new(self.handle.published(), after))))
    }
}

/// Who asks, for reports. The entrance lets nobody in who is not known.
fn caller<T>(request: &Request<T>) -> String {
    request.extensions().get::<Peer>().map(|peer| peer.caller.clone()).unwrap_or_default()
}

/// One page of `reports` (newest first), beginning after the report the token names. Older ones are dropped first, so
/// a token whose report is gone has nothing left to list.
fn page(reports: Vec<Report>, asked: &ListReportsRequest) -> Result<ListReportsResponse, Refusal> {
    let size = match usize::try_from(asked.page_size) {
        Ok(0) => PAGE_DEFAULT,
        Ok(size) => size.min(PAGE_MAX),
        Err(_) => {
            let message = format!("page_size: {} is negative", asked.page_size);
            return Err(Refusal::new(RefusalKind::InvalidArgument, "MALFORMED_PAGE_SIZE", message));
        }
    };
    let begin = if asked.page_token.is_empty() {
        0
    } else if asked.page_token.starts_with(TOKEN) {
        reports.iter().position(|r| token(r) == asked.page_token).map_or(reports.len(), |at| at + 1)
    } else {
        let message = "page_token: it is not one of ours";
        return Err(Refusal::new(RefusalKind::InvalidArgument, "MALFORMED_PAGE_TOKEN", message)
            .hint("pass next_page_token of the answer before, or nothing"));
    };
    let mut page = ListReportsResponse::default();
    let mut room = REPORT_MAX;
    let mut rest = reports.into_iter().skip(begin).peekable();
    while let Some(report) = rest.next_if(|_| page.reports.len() < size) {
        let report = fitted(report, REPORT_MAX / 2);
        // each report costs a tag and its length besides itself
        room = room.saturating_sub(report.encoded_len() + 8);
        page.next_page_token = token(&report);
        page.reports.push(report);
        if room < REPORT_MAX / 2 {
            break;
        }
    }
    if rest.peek().is_none() {
        page.next_page_token.clear();
    }
    Ok(page)
}

const TOKEN: &str = "after~";

/// Names one report in a list: an id that was refused may come back, at another time.
fn token(report: &Report) -> String {
    let admitted = report.admitted_time.unwrap_or_default();
    format!("{TOKEN}{}~{}.{}", report.id, admitted.seconds, admitted.nanos)
}

/// The report, with its longest lists halved (and `truncated` set) until it takes at most `limit` bytes: an answer
/// that is too large would reach nobody.
pub(super) fn fitted(mut report: Report, limit: usize) -> Report {
    while report.encoded_len() > limit {
        report.truncated = true;
        let longest = report.steps.len().max(report.coverage.len()).max(report.problems.len());
        let longest = longest.max(report.breaches.len());
        if longest == 0 {
            break;
        }
        let cut = |length: usize| if length == longest { length / 2 } else { length };
        report.steps.truncate(cut(report.steps.len()));
        report.coverage.truncate(cut(report.coverage.len()));
        report.problems.truncate(cut(report.problems.len()));
        report.breaches.truncate(cut(report.breaches.len()));
    }
    report
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::proto::{Problem, Step};

    fn history(count: usize) -> Vec<Report> {
        (0..count).rev().map(|n| Report { id: format!("h{n}"), ..Default::default() }).collect()
    }

    fn ask(size: i32, token: &str) -> ListReportsRequest {
        ListReportsRequest { page_size: size, page_token: token.to_owned() }
    }

    fn ids(page: &ListReportsResponse) -> Vec<&str> {
        page.reports.iter().map(|r| r.id.as_str()).collect()
    }

    #[test]
    fn pages_continue_where_the_last_ended_even_when_new_holds_came() {
        let first = page(history(5), &ask(2, "")).unwrap();
        assert_eq!(ids(&first), ["h4", "h3"]);
        let second = page(history(7), &ask(2, &first.next_page_token)).unwrap();
        assert_eq!(ids(&second), ["h2", "h1"]);
        let third = page(history(7), &ask(2, &second.next_page_token)).unwrap();
        assert_eq!((ids(&third), third.next_page_token.as_str()), (vec!["h0"], ""));
    }

    #[test]
    fn a_page_has_20_reports_unless_asked_and_never_more_than_128() {
        assert_eq!(page(history(300), &ask(0, "")).unwrap().reports.len(), 20);
        assert_eq!(page(history(300), &ask(1000, "")).unwrap().reports.len(), 128);
        assert_eq!(page(history(3), &ask(-1, "")).unwrap_err().reason, "MALFORMED_PAGE_SIZE");
        assert_eq!(page(history(3), &ask(1, "7")).unwrap_err().reason, "MALFORMED_PAGE_TOKEN");
    }

    #[test]
    fn a_page_of_large_reports_ends_early_and_none_is_left_out() {
        let large = |n| Report { id: format!("h{n}"), label: "x".repeat(100_000), ..Default::default() };
        let all: Vec<Report> = (0..30).map(large).collect();
        let (mut seen, mut token) = (0, String::new());
        loop {
            let page = page(all.clone(), &ask(200, &token)).unwrap();
            assert!(page.encoded_len() <= MESSAGE_MAX);
            seen += page.reports.len();
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, 30);
    }

    #[test]
    fn a_report_too_large_for_a_message_is_shortened_and_says_so() {
        let step = Step { name: format!("fs:/{}", "m".repeat(4000)), ..Default::default() };
        let problem = Problem { message: "p".repeat(100), ..Default::default() };
        let report = Report { steps: vec![step; 4096], problems: vec![problem; 3], ..Default::default() };
        let fitted = fitted(report, REPORT_MAX);
        assert!(fitted.encoded_len() <= REPORT_MAX && fitted.truncated);
        assert!(fitted.steps.len() > 100);
        assert_eq!(fitted.problems.len(), 3);
        let small = Report { id: "a".into(), ..Default::default() };
        assert_eq!(super::fitted(small.clone(), REPORT_MAX), small);
    }

    #[test]
    fn the_details_of_a_refusal_stay_below_4_kib_whatever_it_has_to_say() {
        for kind in [RefusalKind::InvalidArgument, RefusalKind::FailedPrecondition, RefusalKind::Unavailable] {
            let refusal =
                Refusal::new(kind, "STEP_FAILED", "ä".repeat(50 * 1024)).hint("h".repeat(9999)).about("i".repeat(9999));
            let status = Status::from(refusal);
            assert!(status.details().len() <= 4096, "{kind:?}: {}", status.details().len());
            assert!(status.message().ends_with('…'));
            let info = status.get_details_error_info().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), ("STEP_FAILED", "holdstill"));
        }
    }

    #[test]
    fn a_malformed_field_is_named_in_a_bad_request() {
        let status = Status::from(input::named("-".into()).unwrap_err());
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!((violations[0].field.as_str(), violations[0].description.as_str()), ("id", "`-` is not an id"));
    }
}
