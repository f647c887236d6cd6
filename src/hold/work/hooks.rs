//! Running hooks: the undo first, then the phase; and their undo.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt,
    time::Duration,
};

use tokio::time::Instant;

use super::{RunningHook, Undo, Work};
use crate::{
    hold::{
        Refusal, RefusalKind,
        end::End,
        plan::{level_text, problem},
        report::span,
        survey,
    },
    json::to_json,
    proto::{self, ReleaseReason, Severity, StepOutcome},
    step::hook::{self, Hook},
    sys::process::Stop,
    warden::marker::{self, Begins, HookUser, StartedHook},
};

impl Work<'_> {
    pub(super) fn push_hook(&mut self, index: usize) -> Result<(), End> {
        let hook = &self.hooks[index];
        self.undos.push(Undo::Hook { index, running: None });
        if let Err(error) = self.warden.marker().hook_started(&started(hook)) {
            return Err(End::failed(format!("note the hook {} in the marker: {error}", hook.name), ""));
        }
        Ok(())
    }

    /// Fills in what only the hold knows, and looks whether whoever may have to undo a hook will know how.
    pub(super) fn settle_hooks(&mut self, disks: Vec<String>) -> Result<(), End> {
        let most = marker::MOST_HOOKS;
        if self.hooks.len() > most {
            let why = format!("use {} hooks: there is room for {most}", self.hooks.len());
            let refusal = Refusal::new(RefusalKind::FailedPrecondition, "HOOK_UNUSABLE", why);
            return Err(End::refused(refusal.hint("let one script call several")));
        }
        let staging = self.settings.paths.run.join("scripts");
        let facts = hook::Facts { hold_id: self.id.clone(), disks, staging };
        for hook in &mut self.hooks {
            let settled = hook.fill(&facts).and_then(|()| started(hook).fits());
            settled.map_err(|error| {
                let why = format!("use the hook {}: {error}", hook.name);
                End::refused(Refusal::new(RefusalKind::FailedPrecondition, "HOOK_UNUSABLE", why))
            })?;
        }
        Ok(())
    }

    /// Writes the report so far where hooks find it, once for each phase: it costs a millisecond. A hook that cannot have
    /// it is run all the same.
    fn tell_hooks(&mut self, phase: hook::Phase) {
        if self.reported == Some(phase) {
            return;
        }
        self.reported = Some(phase);
        let Some(report) = self.publisher.current() else { return };
        let (path, new) = (self.settings.paths.run.join(REPORT), self.settings.paths.run.join(".report.json"));
        // who may ask for a report is said in [access]: here it is root alone
        let mut file = OpenOptions::new();
        let file = file.write(true).create(true).truncate(true).mode(0o600).open(&new);
        let written = file.and_then(|mut file| file.write_all(to_json(&report).to_string().as_bytes()));
        let written = written.and_then(|()| fs::rename(&new, &path));
        if let Err(error) = written {
            tracing::warn!(hold = %self.id, %error, "could not write the report for hooks");
        }
    }

    /// Runs one phase; its undo is on the stack already, and gets the running task, so that a dropped future leaves
    /// nothing unknown behind.
    pub(super) async fn run_hook(&mut self, index: usize, phase: hook::Phase, until: Instant) -> Result<(), End> {
        let mut hook = self.hooks[index].clone();
        hook.limit = hook.limit.min(until.saturating_duration_since(Instant::now()));
        let name = format!("hook:{}", hook.name);
        self.publisher.steps_begin([&name]);
        self.tell_hooks(phase);
        let environment = self.environment(phase, None);
        let stop = Stop::new().map_err(|error| End::failed(format!("start {name}: {error}"), ""))?;
        let (task_hook, task_stop) = (hook.clone(), stop.clone());
        let pen = self.warden.marker().pen(&hook.name, Begins::Phase);
        let task = tokio::spawn(async move {
            hook::run_signed(&task_hook, phase, hook::Held::Yes, &environment, Some(task_stop), pen).await
        });
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
            Ok(ran) => ran.as_ref(),
            Err(error) => error.ran(),
        };
        self.publisher.step(&name, |step| {
            if let Some(ran) = ran {
                let before = step.took.and_then(|t| Duration::try_from(t).ok()).unwrap_or_default();
                step.took = span(before + ran.took);
                tell(step, &ran.run);
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
            Ok(ran) => {
                if let Some(warning) = ran.and_then(|ran| ran.warning) {
                    self.publisher.problem(problem(Severity::Warning, "HOOK_WARNED", &name, &warning, ""));
                }
                if hook.required && hook.vouches_in() == Some(phase) {
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
            ("HOLDSTILL_REPORT".into(), self.settings.paths.run.join(REPORT).display().to_string()),
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
        self.publisher.undos_begin([&name]);
        self.tell_hooks(hook::Phase::Thaw);
        let environment = self.environment(hook::Phase::Thaw, Some(end.reason));
        let held = if self.warden.marker().was_held() { hook::Held::Yes } else { hook::Held::Never };
        let pen = self.warden.marker().pen(&hook.name, Begins::Undo);
        let result = hook::run_signed(&hook, hook::Phase::Thaw, held, &environment, None, pen).await;
        self.warden.marker().hook_undone(&hook.name);
        let ran = match &result {
            Ok(ran) => ran.as_ref(),
            Err(error) => error.ran(),
        };
        self.publisher.step(&name, |step| {
            step.undo_took = ran.map(|ran| ran.took).and_then(span);
            match ran.map(|ran| &ran.run) {
                // what failed before it stays what is known of how it ended
                Some(run) if result.is_ok() => {
                    tell(step, &proto::HookRun { output_tail: run.output_tail.clone(), ..known(step) })
                }
                Some(run) => tell(step, run),
                None => {}
            }
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

/// How its phases before ended.
fn known(step: &proto::Step) -> proto::HookRun {
    if let Some(proto::step::Detail::Hook(run)) = &step.detail { run.clone() } else { proto::HookRun::default() }
}

/// How this phase ended, and what it printed after those before it.
fn tell(step: &mut proto::Step, run: &proto::HookRun) {
    let output_tail = hook::tail(&[known(step).output_tail, run.output_tail.clone()].concat());
    step.detail = Some(proto::step::Detail::Hook(proto::HookRun { output_tail, ..run.clone() }));
}

/// The report so far, for hooks; in `[paths] run`.
const REPORT: &str = "report.json";

/// What whoever has to undo a hook must know of it.
fn started(hook: &Hook) -> StartedHook {
    let undo = hook.calls.thaw.as_ref().or(hook.calls.failed.as_ref());
    let arguments = |call: &Option<hook::Call>| call.as_ref().map(hook::Call::arguments).unwrap_or_default();
    StartedHook {
        name: hook.name.clone(),
        program: undo.map(|call| call.program.clone()).unwrap_or_default(),
        thaw: arguments(&hook.calls.thaw),
        failed: arguments(&hook.calls.failed),
        limit: hook.limit,
        fine: hook.statuses.fine_to_thaw(),
        user: hook.user.as_ref().map(|user| HookUser {
            name: user.name.clone(),
            home: user.home.to_string_lossy().into_owned(),
            ids: user.ids.clone(),
        }),
    }
}
