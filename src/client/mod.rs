//! What the verbs do: ask the daemon, and say what was achieved. A verb returns an [`Answer`]; `main` prints it.
//!
//! ```text
//!   cli::Verb ──▶ ask (one rpc) ──▶ show (tables, one sentence) ──▶ Answer { document, table, sentence, exit }
//! ```
//!
//! No verb writes to a descriptor that lies on a held file system, see [`stdio`].

pub mod adapter;
mod adapters;
pub mod connect;
mod coverage;
mod databases;
pub mod hooks;
pub mod live;
pub mod picture;
mod remote;
mod roles;
pub mod show;
pub mod stdio;
pub mod testimony;
pub mod words;

use std::{
    io::{IsTerminal, Write},
    path::Path,
    time::Duration,
};

use connect::{Client, Daemon};
use serde_json::{Value as Json, json};
use tokio_stream::StreamExt;

use crate::{
    cli::{self, endpoint::Endpoint},
    config::{self, Loaded, Settings},
    error::{Exit, Failure, reason},
    hold::RefusalKind,
    json, proto,
};

/// What a verb achieved.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// the one document of `--json`
    pub document: Json,
    /// for people: lines above the sentence; may be empty
    pub table: String,
    /// for people: what was achieved
    pub sentence: String,
    pub exit: Exit,
}

impl Answer {
    /// Prints it: for people on stdout; with `json` the document there, and the sentence on stderr.
    pub fn print(&self, json: bool) {
        // nobody is left to tell if stdout is closed
        let mut out = std::io::stdout().lock();
        let _ = match json {
            true => writeln!(out, "{}", self.document),
            false => writeln!(out, "{}{}", self.table, self.sentence),
        };
        if json && !self.sentence.is_empty() {
            let _ = writeln!(std::io::stderr(), "{}", self.sentence);
        }
    }
}

/// Prints why it did not work: for people on stderr; with `json` also the document on stdout.
pub fn print_failure(failure: &Failure, json: bool) {
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "holdstill: {}", failure.message);
    if !failure.hint.is_empty() {
        let _ = writeln!(err, "hint: {}", failure.hint);
    }
    if json {
        let _ = writeln!(std::io::stdout(), "{}", failure.to_json());
    }
}

/// The configuration given with `--config`, else the machine's.
///
/// # Errors
/// It cannot be used.
pub fn settings(file: Option<&Path>) -> Result<Loaded, config::Error> {
    match file {
        Some(path) => Settings::load_file(path),
        None => Settings::load(Path::new("/")),
    }
}

/// The daemon to ask, and how long holds may take, as far as the flags and the machine's configuration tell. A broken
/// configuration must not keep anyone from letting go: then it is the defaults, and that is said.
pub fn daemon(global: &cli::Global) -> Daemon {
    if let Some(endpoint) = global.endpoint.clone().filter(Endpoint::is_remote) {
        return Daemon { endpoint, patience: REMOTE_PATIENCE };
    }
    let settings = settings(None).map(|loaded| loaded.settings).unwrap_or_else(|error| {
        if global.endpoint.is_none() {
            let _ = writeln!(std::io::stderr(), "holdstill: using the default socket: {error}");
        }
        Settings::default()
    });
    Daemon {
        endpoint: global.endpoint.clone().unwrap_or(Endpoint::Unix(settings.listen.unix)),
        patience: settings.hold.prepare + settings.hold.quiesce + Duration::from_secs(60),
    }
}

/// A guest's own configuration limits how long it prepares; we do not know it. That it is still there is asked on the
/// way, see [`remote`].
const REMOTE_PATIENCE: Duration = Duration::from_secs(60 * 60);

/// `check`: exit 0 ready, 4 would be refused, or has reservations and `strict`. With `sql` only what to paste, exit 0.
///
/// # Errors
/// The daemon is not reachable, or the spec is malformed.
pub async fn check(daemon: &Daemon, args: &cli::Check) -> Result<Answer, Failure> {
    if args.sql {
        return Ok(roles::roles(daemon).await);
    }
    let request = proto::CheckRequest { spec: Some(args.spec.to_proto()) };
    let mut client = daemon.connect().await?;
    let response = connect::within(daemon.patience, client.check(request)).await?;
    let plan = response.plan.clone().unwrap_or_default();
    let reserved = plan.problems.iter().any(|p| p.severity() == proto::Severity::Warning);
    let exit = if response.would_refuse || (args.strict && reserved) { Exit::Refused } else { Exit::Done };
    Ok(Answer {
        document: json::to_json(&response),
        table: show::plan(&plan),
        sentence: show::readiness(&response, args.strict),
        exit,
    })
}

/// `freeze`: exit 0 only when everything is held at or above the required level.
///
/// # Errors
/// Anything else; the hold is then let go. Exit 2 if our own output lies on a file system to be held.
pub async fn freeze(daemon: &Daemon, spec: &cli::Spec) -> Result<Answer, Failure> {
    let mut client = daemon.connect().await?;
    let spec_asked = spec.to_proto();
    let ours = daemon.output_at_stake();
    if ours.on_a_disk() {
        let request = proto::CheckRequest { spec: Some(spec_asked.clone()) };
        let plan = connect::within(daemon.patience, client.check(request)).await?.plan.unwrap_or_default();
        ours.refuse_if_held(&plan)?;
    }
    let limit = daemon.patience_for(&spec_asked);
    let request = proto::FreezeRequest { id: spec.id.clone().unwrap_or_default(), spec: Some(spec_asked) };
    let live = live::start(&client, std::io::stderr().is_terminal());
    let answer = connect::within(limit, client.freeze(request)).await;
    live.stop().await;
    let response = answer?;
    let report = response.report.clone().unwrap_or_default();
    Ok(Answer {
        document: json::to_json(&response),
        table: show::steps_and_gaps(&report),
        sentence: show::held(&report, &daemon.as_typed()),
        exit: Exit::Done,
    })
}

/// `thaw`: exit 0 unbroken or nothing held, 3 broken.
///
/// # Errors
/// The id is unknown, or the daemon is not reachable.
pub async fn thaw(daemon: &Daemon, args: &cli::Thaw) -> Result<Answer, Failure> {
    let request = proto::ThawRequest {
        id: args.id.clone().unwrap_or_default(),
        snapshot_ref: args.snapshot_ref.clone().unwrap_or_default(),
    };
    let mut client = daemon.connect().await?;
    let response = connect::within(RELEASE_PATIENCE, client.thaw(request)).await?;
    released(&response)
}

/// Letting go takes a moment; beyond this something is stuck in the kernel.
pub const RELEASE_PATIENCE: Duration = Duration::from_secs(120);
const LOOK_PATIENCE: Duration = Duration::from_secs(10);

/// The answer to a release.
///
/// # Errors
/// It carries no verdict: nothing is proven.
fn released(response: &proto::ThawResponse) -> Result<Answer, Failure> {
    let report = response.report.clone().unwrap_or_default();
    let exit = match report.verdict() {
        proto::Verdict::Unbroken | proto::Verdict::NeverHeld => Exit::Done,
        proto::Verdict::Broken => Exit::Broken,
        proto::Verdict::Unspecified => {
            let message = "the daemon answered without a verdict: nothing is proven";
            return Err(Failure::local(RefusalKind::Aborted, reason::UNKNOWN, message));
        }
    };
    Ok(Answer {
        document: json::to_json(response),
        table: show::steps_and_gaps(&report),
        sentence: show::released(&report, response.already_released),
        exit,
    })
}

/// `extend`.
///
/// # Errors
/// Above the cap, not the hold in progress, or the daemon is not reachable.
pub async fn extend(daemon: &Daemon, args: &cli::Extend) -> Result<Answer, Failure> {
    let max_hold = args.max_hold.try_into().expect("parsed within 24h");
    let request = proto::ExtendRequest { id: args.id.clone().unwrap_or_default(), max_hold: Some(max_hold) };
    let mut client = daemon.connect().await?;
    not_on_what_is_held(daemon, &mut client).await?;
    let response = connect::within(LOOK_PATIENCE, client.extend(request)).await?;
    let sentence = format!("extended: held for at most {} from now", words::duration(response.remaining.as_ref()));
    Ok(Answer { document: json::to_json(&response), table: String::new(), sentence, exit: Exit::Done })
}

/// Refuses if our own output lies on a file system that is held right now: writing there would wait for the release.
async fn not_on_what_is_held(daemon: &Daemon, client: &mut Client) -> Result<(), Failure> {
    let ours = daemon.output_at_stake();
    if ours.on_a_disk() {
        let status = connect::within(LOOK_PATIENCE, client.get_status(proto::GetStatusRequest {})).await?;
        ours.refuse_if_held(&status.current.unwrap_or_default())?;
    }
    Ok(())
}

/// `rehearse`: a hold under a lease, let go as soon as it is held. Leaves no receipt.
///
/// # Errors
/// As for [`freeze`].
pub async fn rehearse(daemon: &Daemon, spec: &cli::Spec) -> Result<Answer, Failure> {
    let mut client = daemon.connect().await?;
    let asked = proto::HoldSpec { rehearsal: true, ..spec.to_proto() };
    let limit = daemon.patience_for(&asked);
    let live = live::start(&client, std::io::stderr().is_terminal());
    let lease = connect::lease(&mut client, spec.id.clone().unwrap_or_default(), asked, limit).await;
    live.stop().await;
    let lease = lease?;
    let request = proto::ThawRequest { id: lease.held.id.clone(), snapshot_ref: String::new() };
    let response = connect::within(RELEASE_PATIENCE, client.thaw(request)).await?;
    let answer = released(&response)?;
    let report = response.report.unwrap_or_default();
    Ok(Answer { sentence: format!("{}\n{}", answer.sentence, show::rehearsed(&report)), ..answer })
}

/// `status`: exit 0 if holds are accepted, 4 if the daemon answers but cannot hold.
///
/// # Errors
/// The daemon is not reachable, or our own output lies on a held file system.
pub async fn status(daemon: &Daemon) -> Result<Answer, Failure> {
    let mut client = daemon.connect().await?;
    let response = connect::within(LOOK_PATIENCE, client.get_status(proto::GetStatusRequest {})).await?;
    daemon.output_at_stake().refuse_if_held(&response.current.clone().unwrap_or_default())?;
    let accepting = daemon.accepts_holds().await?;
    let refused = "holds are not accepted: the daemon has no warden";
    Ok(Answer {
        document: json::to_json(&response),
        table: show::status(&response),
        sentence: if accepting { show::standing(&response) } else { refused.to_owned() },
        exit: if accepting { Exit::Done } else { Exit::Refused },
    })
}

/// `watch`: prints events until the daemon stops. Output that lies on a disk is kept in memory while anything is held.
///
/// # Errors
/// The daemon is not reachable, or stopped.
pub async fn watch(daemon: &Daemon, json: bool) -> Result<Answer, Failure> {
    let mut client = daemon.connect().await?;
    let waits = daemon.output_at_stake().on_a_disk();
    let program = daemon.as_typed();
    let mut events = client.watch(proto::WatchRequest::default()).await?.into_inner();
    let mut kept = String::new();
    let mut held = false;
    while let Some(response) = events.next().await {
        let response = response?;
        held = response.event.as_ref().map_or(held, |event| show::holds_after(event, held));
        let line = if json { json::to_json(&response).to_string() } else { show::event(&response, &program) };
        kept.push_str(&line);
        kept.push('\n');
        if !(waits && held) {
            // nobody is left to tell if stdout is closed
            if std::io::stdout().write_all(kept.as_bytes()).is_err() {
                break;
            }
            kept.clear();
        }
    }
    Err(Failure::local(RefusalKind::Unavailable, reason::DAEMON_UNREACHABLE, "the daemon stopped"))
}

/// `history`: the list, or one whole report.
///
/// # Errors
/// The id is unknown, or the daemon is not reachable.
pub async fn history(daemon: &Daemon, args: &cli::History) -> Result<Answer, Failure> {
    let mut client = daemon.connect().await?;
    not_on_what_is_held(daemon, &mut client).await?;
    if let Some(id) = &args.id {
        let request = proto::GetReportRequest { id: id.clone() };
        let response = connect::within(LOOK_PATIENCE, client.get_report(request)).await?;
        let report = response.report.clone().unwrap_or_default();
        if let Some(file) = &args.svg {
            return picture::drawn(&report, file);
        }
        let table = show::steps_and_gaps(&report) + &picture::here(&report);
        return Ok(Answer {
            document: json::to_json(&response),
            table,
            sentence: show::ended(&report),
            exit: Exit::Done,
        });
    }
    let request = proto::ListReportsRequest { page_size: args.limit, page_token: String::new() };
    let response = connect::within(LOOK_PATIENCE, client.list_reports(request)).await?;
    let sentence = match response.reports.len() {
        0 => "no hold yet".to_owned(),
        n => format!("{n} {} shown, newest first; `holdstill history ID` shows one", words::plural(n, "hold", "holds")),
    };
    Ok(Answer {
        document: json::to_json(&response),
        table: show::history(&response.reports),
        sentence,
        exit: Exit::Done,
    })
}

/// `config`: every value in force and where it came from.
///
/// # Errors
/// The configuration cannot be used.
pub fn config(file: Option<&Path>) -> Result<Answer, Failure> {
    let loaded = settings(file)?;
    let rows = loaded
        .effective
        .iter()
        .map(|e| vec![e.key.clone(), e.value.clone().unwrap_or_else(|| "(not set)".to_owned()), e.source.to_string()]);
    let values: Vec<Json> = loaded
        .effective
        .iter()
        .map(|e| json!({"key": e.key, "value": e.value, "source": e.source.to_string()}))
        .collect();
    let changed = loaded.effective.iter().filter(|e| e.source != config::Source::Default).count();
    let mut table = words::table(&["KEY", "VALUE", "SOURCE"], rows);
    for note in &loaded.notes {
        table.push_str(&format!("note: {note}\n"));
    }
    Ok(Answer {
        document: json!({"values": values, "notes": loaded.notes}),
        table,
        sentence: match changed {
            0 => "everything is at its default".to_owned(),
            n => format!("{n} {} set, the rest is at its default", words::plural(n, "value is", "values are")),
        },
        exit: Exit::Done,
    })
}
