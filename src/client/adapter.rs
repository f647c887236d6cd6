//! Being called by another agent that makes the snapshots: `before` asks for a hold and leaves its id on tmpfs, `after`
//! lets go of just that one, and each is answered in the agent's own exit statuses ([`convention`]). What
//! `hooks install-adapter` installs calls it.
//!
//! ```text
//!   their agent ──▶ script ──▶ holdstill adapter AGENT WORD ──▶ the daemon
//!        ▲                          │ exit status
//!        └──────────────────────────┘
//! ```
//!
//! Whoever is killed while it waits is a caller that is gone, and all is let go. While held nothing is written: the
//! agent's end of our output may lie on what is held.

mod convention;
mod google;
mod ticket;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use clap::ValueEnum;

use self::{
    convention::{Asked, Came},
    ticket::{Left, Ticket},
};
use super::{
    LOOK_PATIENCE, RELEASE_PATIENCE,
    connect::{self, Daemon},
    show,
};
use crate::{
    cli::{self, Adapted, IfNotHeld, endpoint::Endpoint},
    error::Failure,
    proto::{self, Phase, Verdict},
};

/// Where somebody stands, and what they ask.
struct Adapter<'a> {
    daemon: Daemon,
    ticket: PathBuf,
    asked: &'a cli::Adapter,
    spec: proto::HoldSpec,
}

/// Answers, with the exit status the agent understands.
pub async fn answer(global: &cli::Global, args: cli::Adapter) -> u8 {
    let agent = args.agent;
    let Some(asked) = convention::asked(agent, &args.word) else {
        say(agent, &format!("`{}` is not among its words; see docs/adapters.md", args.word));
        return convention::MALFORMED;
    };
    let adapter = Adapter::new(global, &args);
    let came = match asked {
        // every hook has that, and nothing else does: `run` sets the id alone
        Asked::Before | Asked::After | Asked::Try if std::env::var_os("HOLDSTILL_PHASE").is_some() => Came::OurOwn,
        Asked::Before => adapter.before().await.unwrap_or_else(Came::NotHeld),
        Asked::After => adapter.after().await.unwrap_or_else(Came::Unknown),
        Asked::Try => adapter.could().await.unwrap_or_else(|failure| Came::NotReady(failure.message)),
    };
    let sentence = came.sentence();
    if !sentence.is_empty() {
        say(agent, &sentence);
    }
    came.status(agent, args.if_not_held)
}

/// One line, which no pipe that nobody reads is too small for.
fn say(agent: Adapted, sentence: &str) {
    let line: String = sentence.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let _ = writeln!(io::stderr(), "holdstill for {}: {line}", name(agent));
}

/// As it is typed.
pub(super) fn name(agent: Adapted) -> String {
    agent.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl<'a> Adapter<'a> {
    fn new(global: &cli::Global, asked: &'a cli::Adapter) -> Adapter<'a> {
        let settings = super::settings(None).map(|loaded| loaded.settings).unwrap_or_default();
        let beside = match &global.endpoint {
            Some(Endpoint::Unix(socket)) => socket.parent().map(Path::to_owned),
            Some(Endpoint::Vsock { .. } | Endpoint::Device { .. }) | None => None,
        };
        let ticket = beside.unwrap_or(settings.paths.run).join(format!("adapter-{}", name(asked.agent)));
        // what the agent's time limit makes us ask for is never more than the administrator allows
        let spec = cli::Spec {
            prepare: asked.spec.prepare.map(|limit| limit.min(settings.hold.prepare)),
            quiesce: asked.spec.quiesce.map(|limit| limit.min(settings.hold.quiesce)),
            ..asked.spec.clone()
        };
        let mut spec = spec.to_proto();
        if spec.label.is_empty() {
            let execution = asked.argument.as_deref().filter(|_| asked.agent == Adapted::AwsDlm).unwrap_or_default();
            spec.label = format!("{} {execution}", name(asked.agent)).trim_end().chars().take(200).collect();
        }
        if asked.agent == Adapted::Google
            && spec.scope.is_none()
            && let Some(disks) = google::disks(asked.argument.as_deref().unwrap_or_default(), Path::new("/"))
        {
            spec.scope = Some(proto::SnapshotScope { disks });
        }
        Adapter { daemon: super::daemon(global), ticket, asked, spec }
    }

    async fn before(&self) -> Result<Came, Failure> {
        let file = |error: io::Error| Failure::io(format!("write {}", self.ticket.display()), &error);
        let Some(mut ticket) = Ticket::lock(&self.ticket).map_err(|error| self.unopened(&error))? else {
            return Ok(Came::HeldAlready("another call of this agent is asking for a hold just now".to_owned()));
        };
        if let Left::Hold(id) = ticket.left().map_err(file)?
            && self.goes_on(&id).await?
        {
            return Ok(Came::HeldAlready(format!("the hold {id}, which this agent asked for before, is not over")));
        }
        let id = self.fresh_id();
        // before it is asked for, so that a call to let go that overtakes this one knows what to end
        ticket.leave(&Left::Hold(id.clone())).map_err(file)?;
        let mut held = self.freeze(&id, self.spec.clone()).await;
        if matches!(&held, Err(failure) if failure.reason == "DISK_NOT_FOUND") && self.asked.spec.disk.is_empty() {
            // a disk without a file system of ours: what is on the others is not left out for that
            held = self.freeze(&id, proto::HoldSpec { scope: None, ..self.spec.clone() }).await;
        }
        match held {
            Ok(()) => Ok(Came::Held),
            Err(failure) if failure.reason == "NOTHING_TO_HOLD" => {
                ticket.leave(&Left::Nothing).map_err(file)?;
                Ok(Came::Nothing)
            }
            Err(failure) => {
                let left = match self.asked.if_not_held {
                    IfNotHeld::Fail => Left::Blank,
                    IfNotHeld::GoOn => Left::Nothing,
                };
                ticket.leave(&left).map_err(file)?;
                Err(failure)
            }
        }
    }

    async fn after(&self) -> Result<Came, Failure> {
        let file = |error: io::Error| Failure::io(format!("read {}", self.ticket.display()), &error);
        let left = ticket::look(&self.ticket).map_err(file)?;
        let came = match &left {
            Left::Blank => return Ok(Came::NotOurs),
            Left::Nothing => Came::Nothing,
            Left::Hold(id) => match self.thaw(id).await {
                // whoever was to ask for it ended before
                Err(failure) if failure.reason == "UNKNOWN_HOLD" => Came::Unknown(failure),
                answered => answered?,
            },
        };
        // whoever asks for the next hold already has written over it
        if let Ok(Some(mut ticket)) = Ticket::lock(&self.ticket)
            && ticket.left().is_ok_and(|now| now == left)
        {
            let _ = ticket.leave(&Left::Blank);
        }
        Ok(came)
    }

    async fn could(&self) -> Result<Came, Failure> {
        let mut client = self.daemon.connect().await?;
        let request = proto::CheckRequest { spec: Some(self.spec.clone()) };
        let response = connect::within(self.daemon.patience, client.check(request)).await?;
        let plan = response.plan.unwrap_or_default();
        let refusal = plan.problems.iter().find(|p| p.severity() == proto::Severity::Refusal);
        Ok(match refusal {
            None if response.would_refuse => Came::NotReady("a hold would be refused".to_owned()),
            None => Came::Ready,
            Some(problem) if problem.code == "NOTHING_TO_HOLD" => Came::Nothing,
            Some(problem) => Came::NotReady(problem.message.clone()),
        })
    }

    async fn freeze(&self, id: &str, spec: proto::HoldSpec) -> Result<(), Failure> {
        let mut client = self.daemon.connect().await?;
        let limit = self.daemon.patience_for(&spec);
        let request = proto::FreezeRequest { id: id.to_owned(), spec: Some(spec) };
        connect::within(limit, client.freeze(request)).await.map(|_held| ())
    }

    async fn thaw(&self, id: &str) -> Result<Came, Failure> {
        let mut client = self.daemon.connect().await?;
        let request = proto::ThawRequest { id: id.to_owned(), snapshot_ref: String::new() };
        let response = connect::within(RELEASE_PATIENCE, client.thaw(request)).await?;
        let report = response.report.unwrap_or_default();
        let ended = show::released(&report, response.already_released);
        Ok(match report.verdict() {
            Verdict::Unbroken => Came::Unbroken,
            Verdict::NeverHeld => Came::NeverHeld(ended),
            Verdict::Broken => Came::Broken(ended),
            Verdict::Unspecified => Came::Broken("the daemon answered without a verdict: nothing is proven".to_owned()),
        })
    }

    /// Is this hold prepared, or held, or being let go?
    async fn goes_on(&self, id: &str) -> Result<bool, Failure> {
        let mut client = self.daemon.connect().await?;
        let response = connect::within(LOOK_PATIENCE, client.get_status(proto::GetStatusRequest {})).await?;
        let idle = match response.phase() {
            Phase::Unspecified | Phase::Idle => true,
            Phase::Preparing | Phase::Prepared | Phase::Quiescing | Phase::Held | Phase::Releasing => false,
        };
        Ok(!idle && response.current.is_some_and(|report| report.id == id))
    }

    /// Ours alone, as nobody else may ask in this agent's name meanwhile; and it tells people who and when.
    fn fresh_id(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        format!("{}-{}-{}", name(self.asked.agent), now.as_secs(), std::process::id())
    }

    fn unopened(&self, error: &io::Error) -> Failure {
        let failure = Failure::io(format!("open {}", self.ticket.display()), error);
        match error.kind() {
            io::ErrorKind::NotFound => {
                failure.hint("no daemon has run since this machine started: `systemctl start holdstill`")
            }
            _ => failure,
        }
    }
}
