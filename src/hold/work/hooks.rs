//! Running hooks: the undo first, then the phase; and their undo.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::{RunningHook, Undo, Work};
use crate::{
    hold::{
        end::End,
        plan::{level_text, problem},
        report::span,
        survey,
    },
    proto::{self, ReleaseReason, Severity, StepOutcome},
    step::hook,
    sys::process::Stop,
};

impl Work<'_> {
    pub(super) fn push_hook(&mut self, index: usize) -> Result<(), End> {
        let hook = &self.hooks[index];
        self.undos.push(Undo::Hook { index, running: None });
        if let Err(error) = self.warden.marker().hook_started(&hook.name, &hook.path, hook.limit) {
            return Err(End::failed(format!("note the hook {} in the marker: {error}", hook.name), ""));
        }
        Ok(())
    }

    /// Runs one phase; its undo is on the stack already, and gets the running task, so that a dropped future leaves
    /// nothing unknown behind.
    pub(super) async fn run_hook(&mut self, index: usize, phase: hook::Phase, until: Instant) -> Result<(), End> {
        let mut hook = self.hooks[index].clone();
        hook.limit = hook.limit.min(until.saturating_duration_since(Instant::now()));
        let name = format!("hook:{}", hook.name);
        let environment = self.environment(phase, None);
        let stop = Stop::new().map_err(|error| End::failed(format!("start {name}: {error}"), ""))?;
        let (task_hook, task_stop) = (hook.clone(), stop.clone());
        let task =
            tokio::spawn(async move { hook::run_unless(&task_hook, phase, &environment, Some(task_stop)).await });
        let running = self.undos.iter_mut().find_map(|undo| match undo {
            Undo::Hook { index: at, running } if *at == index => Some(running),
            Undo::Hook { .. } | Undo::Sessions | Undo::Guards | Undo::Databases | Undo::Filesystems => None,
        });
        let running = running.expect("pushed before it runs").insert(RunningHook { task, stop });
        let result = (&mut running.task).await.unwrap_or_else(|_| {
            Err(hook::Error::Start { name: hook.name.clone(), source: std::io::Error::other("its task panicked") })
        });
        if let Some(Undo::Hook { running, .. }) =
            self.undos.iter_mut().find(|undo| matches!(undo, Undo::Hook { index: at, .. } if *at == index))
        {
            *running = None;
        }
        let ran = match &result {
            Ok(ran) => Some(ran),
            Err(error) => error.ran(),
        };
        self.publisher.step(&name, |step| {
            if let Some(ran) = ran {
                let before = step.took.and_then(|t| Duration::try_from(t).ok()).unwrap_or_default();
                step.took = span(before + ran.took);
                step.detail = Some(proto::step::Detail::Hook(ran.run.clone()));
            }
            match &result {
                Ok(_) => step.set_outcome(StepOutcome::Done),
                Err(error) => {
                    step.set_outcome(StepOutcome::Failed);
                    step.reason = error.to_string();
                    step.hint = error.hint().into();
                }
            }
        });
        match result {
            Ok(_) => {
                if hook.required && phase == hook::Phase::Freeze {
                    self.achieved.required_hooks += 1;
                }
                Ok(())
            }
            Err(error) if hook.required => Err(End::failed(error.to_string(), error.hint())),
            Err(error) => {
                self.achieved.capped = true;
                let message = error.to_string();
                self.publisher.problem(problem(Severity::Warning, "HOOK_FAILED", &name, &message, error.hint()));
                Ok(())
            }
        }
    }

    /// What every hook is told.
    fn environment(&self, phase: hook::Phase, reason: Option<ReleaseReason>) -> BTreeMap<String, String> {
        // those of other mount namespaces are no paths to a hook
        let mounts: Vec<&str> =
            self.names.iter().filter_map(|n| n.strip_prefix("fs:")).filter(|n| !n.contains("@pid")).collect();
        let mut environment = BTreeMap::from([
            ("HOLDSTILL_ID".into(), self.id.clone()),
            ("HOLDSTILL_PHASE".into(), phase.as_str().into()),
            ("HOLDSTILL_LABEL".into(), self.spec.label.clone()),
            ("HOLDSTILL_REQUIRE".into(), level_text(survey::required(&self.settings, &self.spec).level).into()),
            ("HOLDSTILL_MOUNTS".into(), mounts.join("\n")),
            ("HOLDSTILL_MAX_HOLD_SECONDS".into(), self.max_hold().as_secs().to_string()),
        ]);
        if let Some(reason) = reason {
            let reason = match reason {
                ReleaseReason::Unspecified => "refused".into(),
                ReleaseReason::Asked
                | ReleaseReason::CallerGone
                | ReleaseReason::Deadline
                | ReleaseReason::StepFailed
                | ReleaseReason::Shutdown
                | ReleaseReason::DaemonLost
                | ReleaseReason::WardenLost
                | ReleaseReason::TimeJumped => {
                    reason.as_str_name().trim_start_matches("RELEASE_REASON_").to_ascii_lowercase()
                }
            };
            environment.insert("HOLDSTILL_REASON".into(), reason);
        }
        environment
    }

    pub(super) async fn undo_hook(
        &mut self,
        index: usize,
        running: Option<RunningHook>,
        end: &End,
    ) -> Result<(), String> {
        if let Some(running) = running {
            // its phase was cut off in the middle: it is ended first, and only then undone
            running.stop.tell();
            let _ = running.task.await;
        }
        let hook = self.hooks[index].clone();
        let name = format!("hook:{}", hook.name);
        let environment = self.environment(hook::Phase::Thaw, Some(end.reason));
        let result = hook::run(&hook, hook::Phase::Thaw, &environment).await;
        self.warden.marker().hook_undone(&hook.name);
        let took = match &result {
            Ok(ran) => Some(ran.took),
            Err(error) => error.ran().map(|ran| ran.took),
        };
        self.publisher.step(&name, |step| {
            step.undo_took = took.and_then(span);
            match &result {
                Ok(_) if step.outcome() == StepOutcome::Done => step.set_outcome(StepOutcome::Undone),
                Ok(_) => {}
                Err(error) => {
                    step.set_outcome(StepOutcome::UndoFailed);
                    step.reason = error.to_string();
                }
            }
        });
        result.map(|_| ()).map_err(|error| {
            let message = error.to_string();
            self.publisher.problem(problem(Severity::Warning, "UNDO_FAILED", &name, &message, error.hint()));
            message
        })
    }
}
