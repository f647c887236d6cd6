//! `hooks test`: runs what a hold would run, holding nothing.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde_json::{Value as Json, json};

use super::super::{Answer, words};
use crate::{
    error::{Exit, Failure},
    hold::RefusalKind,
    json::to_json,
    proto,
    step::hook::{self, Held, Hook, Phase},
};

/// Runs what a hold would run, in its order, and undoes everything that was started, newest first.
///
/// # Errors
/// There is no such hook, or `run` cannot be written to.
pub async fn test(listing: hook::Listing, run: &Path, name: Option<&str>) -> Result<Answer, Failure> {
    let mut chosen = listing.hooks;
    chosen.retain(|hook| name.is_none_or(|name| is_called(hook, name)));
    if let (Some(name), true) = (name, chosen.is_empty()) {
        let message = format!("failed to test {name}: there is no such hook");
        return Err(
            Failure::local(RefusalKind::NotFound, "HOOK_UNUSABLE", message).hint("`holdstill hooks list` shows them")
        );
    }
    // everything a hold sets, so that a script with `set -u` fails here or nowhere
    let mut environment: BTreeMap<String, String> =
        ["LABEL", "REQUIRE", "MOUNTS", "REPORT"].map(|name| (format!("HOLDSTILL_{name}"), String::new())).into();
    environment.insert("HOLDSTILL_ID".to_owned(), "test".to_owned());
    environment.insert("HOLDSTILL_MAX_HOLD_SECONDS".to_owned(), "0".to_owned());
    let staging = run.join("scripts-tested");
    let facts = hook::Facts { hold_id: "test".to_owned(), disks: Vec::new(), staging: staging.clone() };
    for hook in &mut chosen {
        hook.fill(&facts)
            .map_err(|e| Failure::io(format!("put the script of {} into {}", hook.name, staging.display()), &e))?;
    }
    let tried = try_all(&chosen, environment).await;
    match fs::remove_dir_all(&staging) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Failure::io(format!("remove {}", staging.display()), &e)),
        Ok(()) | Err(_) => Ok(tested(&tried, chosen.len())),
    }
}

/// "50-vmware" is all of its scripts, "50-vmware/10-orders" one of them.
fn is_called(hook: &Hook, name: &str) -> bool {
    hook.name == name || hook.name.split_once('/').is_some_and(|(convention, _)| convention == name)
}

async fn try_all(chosen: &[Hook], mut environment: BTreeMap<String, String>) -> Vec<Tried> {
    let mut tried = Vec::new();
    let mut started: Vec<&Hook> = Vec::new();
    let mut held = Held::Yes;
    'all: for phase in [Phase::Prepare, Phase::Freeze] {
        for hook in chosen.iter().filter(|hook| phase == Phase::Freeze || hook.calls.prepare.is_some()) {
            if !started.contains(&hook) {
                started.push(hook);
            }
            environment.insert("HOLDSTILL_PHASE".to_owned(), phase.as_str().to_owned());
            let Some(run) = Tried::new(hook, phase, hook::run(hook, phase, Held::Yes, &environment, None).await) else {
                continue;
            };
            let failed = run.failed.is_some();
            tried.push(run);
            if failed && hook.required {
                held = Held::Never;
                break 'all;
            }
        }
    }
    let reason = if held == Held::Yes { "asked" } else { "step_failed" };
    environment.insert("HOLDSTILL_PHASE".to_owned(), Phase::Thaw.as_str().to_owned());
    environment.insert("HOLDSTILL_REASON".to_owned(), reason.to_owned());
    for hook in started.iter().rev() {
        let thaw = hook::run(hook, Phase::Thaw, held, &environment, None).await;
        tried.extend(Tried::new(hook, Phase::Thaw, thaw));
    }
    tried
}

/// One phase of one hook, run.
struct Tried {
    step: proto::Step,
    phase: Phase,
    failed: Option<String>,
}

impl Tried {
    /// `None`: it has nothing to do in this phase.
    fn new(hook: &Hook, phase: Phase, result: Result<Option<hook::Ran>, hook::Error>) -> Option<Tried> {
        let mut step = proto::Step {
            name: format!("hook:{}", hook.name),
            kind: proto::StepKind::Hook.into(),
            outcome: proto::StepOutcome::Done.into(),
            required: hook.required,
            ..Default::default()
        };
        let (ran, failed) = match result {
            Ok(None) => return None,
            Ok(ran) => (ran, None),
            Err(error) => {
                let text = error.to_string();
                match error {
                    hook::Error::Exit { ran, .. }
                    | hook::Error::Killed { ran, .. }
                    | hook::Error::TimedOut { ran, .. } => (Some(*ran), Some(text)),
                    hook::Error::Directory { .. }
                    | hook::Error::Unusable { .. }
                    | hook::Error::Panicked { .. }
                    | hook::Error::Start { .. } => (None, Some(text)),
                }
            }
        };
        if let Some(text) = &failed {
            step.outcome = proto::StepOutcome::Failed.into();
            step.reason.clone_from(text);
        }
        if let Some(ran) = ran {
            step.reason.push_str(ran.warning.as_deref().unwrap_or_default());
            step.took = ran.took.try_into().ok();
            step.detail = Some(proto::step::Detail::Hook(ran.run));
        }
        Some(Tried { step, phase, failed })
    }
}

/// Without what a terminal would take for a command.
fn harmless(line: &str) -> String {
    line.chars().map(|c| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn tested(tried: &[Tried], hooks: usize) -> Answer {
    let mut out = words::table(
        &["HOOK", "PHASE", "STATE", "TOOK"],
        tried.iter().map(|t| {
            let state = words::outcome(t.step.outcome()).to_owned();
            vec![t.step.name.clone(), t.phase.as_str().to_owned(), state, words::duration(t.step.took.as_ref())]
        }),
    );
    for t in tried {
        if let Some(proto::step::Detail::Hook(run)) = &t.step.detail {
            for line in run.output_tail.lines() {
                out.push_str(&format!("{} {}: {}\n", t.step.name, t.phase.as_str(), harmless(line)));
            }
        }
    }
    let failed: Vec<&String> = tried.iter().filter_map(|t| t.failed.as_ref()).collect();
    let runs: Vec<Json> = tried.iter().map(|t| json!({"phase": t.phase.as_str(), "step": to_json(&t.step)})).collect();
    Answer {
        document: json!({"runs": runs, "passed": failed.is_empty()}),
        table: out,
        sentence: match failed.first() {
            Some(why) => format!("failed to {why}"),
            None => format!("{hooks} {} ran as in a hold and succeeded", words::plural(hooks, "hook", "hooks")),
        },
        exit: if failed.is_empty() { Exit::Done } else { Exit::Failed },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_phase_makes_the_test_fail_with_what_it_printed() {
        let hook = Hook {
            name: "10-a".into(),
            path: "/x".into(),
            limit: std::time::Duration::from_secs(1),
            required: true,
            user: None,
            calls: hook::Calls::default(),
            statuses: hook::Statuses::Zero,
            holds: Vec::new(),
        };
        let ran = |code, output: &str| hook::Ran {
            took: std::time::Duration::from_millis(2),
            run: proto::HookRun { exit_code: Some(code), signal: None, output_tail: output.into() },
            warning: None,
        };
        let error =
            hook::Error::Exit { name: "10-a".into(), code: 3, meaning: "", ran: Box::new(ran(3, "no \u{1b}disk\n")) };
        let tried = [(Phase::Freeze, Err(error)), (Phase::Thaw, Ok(Some(ran(0, ""))))];
        let tried = tried.map(|(phase, result)| Tried::new(&hook, phase, result).expect("it ran"));
        let answer = tested(&tried, 1);
        assert_eq!(answer.exit.code(), 1);
        assert_eq!(answer.sentence, "failed to run the hook 10-a: it exited with status 3");
        assert!(answer.table.contains("hook:10-a freeze: no \u{fffd}disk"), "{}", answer.table);
        assert_eq!(answer.document["runs"][0]["step"]["hook"]["exit_code"], 3);
    }
}
