//! Running restored.d: one after the other, each once on this machine, while nothing is held.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::watch;

use super::{Seen, list};
use crate::{
    hold::{
        plan::problem,
        report::{Standing, span},
        reporters::nobody_waits,
    },
    proto::{self, RestoredKind, Severity, StepKind, StepOutcome},
    step::hook::{self, Held, Hook, Phase, Ran},
};

/// More scripts than this are not run, and that is said.
const AT_MOST: usize = 64;
/// Of what each prints; together with all else it has to fit into one answer.
const TAIL: usize = 1024;

/// Runs them, and writes into `told` how each went.
pub async fn run(
    dir: PathBuf,
    run: &Path,
    told: &mut proto::Restored,
    seen: &Seen,
    standing: &mut watch::Receiver<Arc<Standing>>,
) {
    let Some(listing) = list(&dir).await else {
        let message = format!("{} did not answer in time: no script was run", dir.display());
        told.problems.push(problem(Severity::Warning, "RESTORED_UNREAD", "", &message, "run them by hand"));
        return;
    };
    for unusable in &listing.unusable {
        let message = format!("{} was not run: {}", unusable.path.display(), unusable.why);
        told.problems.push(problem(Severity::Warning, "RESTORED_UNUSABLE", "", &message, &unusable.hint));
    }
    if listing.scripts.len() > AT_MOST {
        let message = format!("only the first {AT_MOST} scripts of {} were run", dir.display());
        told.problems.push(problem(
            Severity::Warning,
            "RESTORED_TOO_MANY",
            "",
            &message,
            "let one script call several",
        ));
    }
    let environment = environment(run, told, seen);
    for script in listing.scripts.iter().take(AT_MOST) {
        // a hold may have begun since the one before
        if standing.wait_for(|standing| nobody_waits(standing)).await.is_err() {
            return;
        }
        let step = one(script, &environment).await;
        tracing::info!(script = %script.name, outcome = step.outcome().as_str_name(), reason = %step.reason, "restored.d ran");
        if step.outcome() == StepOutcome::Failed {
            let message = format!("restored.d/{}: {}", script.name, step.reason);
            told.problems.push(problem(Severity::Warning, "RESTORED_FAILED", &step.name, &message, "run it by hand"));
        }
        told.steps.push(step);
    }
}

async fn one(script: &Hook, environment: &BTreeMap<String, String>) -> proto::Step {
    let result = hook::run(script, Phase::Freeze, Held::Never, environment, None).await;
    let ran: Option<&Ran> = match &result {
        Ok(ran) => ran.as_ref(),
        Err(error) => error.ran(),
    };
    let mut step = proto::Step { name: format!("restored:{}", script.name), ..Default::default() };
    step.set_kind(StepKind::Hook);
    step.took = ran.and_then(|ran| span(ran.took));
    step.detail = ran.map(|ran| proto::step::Detail::Hook(shortened(&ran.run)));
    match &result {
        Ok(_) => step.set_outcome(StepOutcome::Done),
        Err(error) => {
            step.set_outcome(StepOutcome::Failed);
            step.reason = error.to_string();
            step.hint = error.hint().to_owned();
        }
    }
    step
}

fn shortened(run: &proto::HookRun) -> proto::HookRun {
    let text = &run.output_tail;
    let from = text.len().saturating_sub(TAIL);
    let from = (from..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    proto::HookRun { output_tail: text[from..].to_owned(), ..run.clone() }
}

fn environment(run: &Path, told: &proto::Restored, seen: &Seen) -> BTreeMap<String, String> {
    let kind = match told.kind() {
        RestoredKind::Clone => "clone",
        RestoredKind::Reverted => "reverted",
        RestoredKind::Crashed => "crashed",
        RestoredKind::Attached => "attached",
        RestoredKind::Unspecified => "unknown",
    };
    let last = seen.last.as_ref().map(|last| last.machine_id.clone()).filter(|id| !id.is_empty());
    let machine_id =
        last.or_else(|| seen.papers.iter().map(|paper| paper.was.machine_id.clone()).find(|id| !id.is_empty()));
    BTreeMap::from([
        ("HOLDSTILL_RESTORED".to_owned(), kind.to_owned()),
        ("HOLDSTILL_ID".to_owned(), told.hold_id.clone()),
        ("HOLDSTILL_DIFFERENCES".to_owned(), told.differences.join("\n")),
        ("HOLDSTILL_MACHINE_ID".to_owned(), machine_id.unwrap_or_default()),
        ("HOLDSTILL_RESTORED_FILE".to_owned(), run.join(super::notes::RESTORED).display().to_string()),
    ])
}
