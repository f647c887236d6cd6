//! Connected: is it the one that was meant, what does it need, or why is it not held.

use super::{
    super::{DISCONNECT_LIMIT, Surroundings, Survey, TOUCH_LIMIT, in_a_thread},
    Instance, MOST_PATHS,
    candidates::{Candidate, Unreachable},
    coverage,
    identity::{self, Answered, Works},
    table_files,
};
use crate::{
    guest::databases,
    hold::{Refusal, RefusalKind, plan::problem},
    proto::{self, Claim, Severity, StepKind, StepOutcome},
    step::{
        database::{self, Session, Target},
        hook::Hook,
    },
};

impl Survey {
    /// Adds the instance if the server that answered is the one that was meant, works on what it says, and is not held
    /// already. Answers its process.
    pub(super) async fn add_if_it_is_the_one(
        &mut self,
        candidate: Candidate,
        session: Session,
        found: &databases::Found,
        surroundings: &Surroundings,
    ) -> Option<i32> {
        let Candidate { target, server: expected } = candidate;
        let peer = session.server_pid();
        let answered = identity::who_answered(peer, expected, &found.engines, &self.guest.processes);
        let pid = match answered {
            Answered::By(pid) => pid,
            Answered::ByAnother(pid) => {
                let why = format!("process {pid} answers at its socket, not the server found there");
                let error = failure(&target, why, "look which of the two it should be, and configure its socket");
                self.cannot_hold(&target, &error);
                let _ = session.release(DISCONNECT_LIMIT).await;
                return expected;
            }
        };
        // two sockets of one server: the first one, a configured one if there is any, holds it
        if pid.is_some_and(|pid| self.is_connected(pid)) {
            let _ = session.release(DISCONNECT_LIMIT).await;
            return pid;
        }
        if let (Some(pid), Some(data)) = (pid, session.places().into_iter().find(|place| place.purpose == "data")) {
            let (root, path) = (surroundings.root.clone(), data.path.clone());
            let told = session.system_identifier();
            let works = in_a_thread(TOUCH_LIMIT, move || identity::works_in(&root, pid, &path, told)).await;
            let another = match works {
                Some(Works::Elsewhere(directory)) => Some(format!("works in {}", directory.display())),
                Some(Works::OnOthersFiles) => Some("has files with another system identifier".to_owned()),
                Some(Works::There | Works::Unknown) | None => None,
            };
            if let Some(another) = another {
                let why = format!(
                    "the server that answers keeps its data in {}, but process {pid} {another}: it is another one",
                    data.path.display(),
                );
                let cure = "configure the server's own socket; through a proxy or pooler it cannot be told apart";
                self.cannot_hold(&target, &failure(&target, why, cure));
                let _ = session.release(DISCONNECT_LIMIT).await;
                return Some(pid);
            }
        }
        self.add_database(target, session, pid, surroundings).await;
        pid
    }

    fn is_connected(&self, pid: i32) -> bool {
        self.databases.iter().any(|db| db.pid == Some(pid))
    }

    async fn add_database(
        &mut self,
        target: Target,
        mut session: Session,
        pid: Option<i32>,
        surroundings: &Surroundings,
    ) {
        doubt_what_it_tells(&target, &mut session, pid, surroundings).await;
        let mut step = database_step(&target);
        step.set_outcome(StepOutcome::Planned);
        let mut described = session.describe();
        let mut judged = self.judge_parts(&session, pid, surroundings).await;
        judged.sort_by_key(|part| part.ground.held);
        described.paths = judged.iter().take(MOST_PATHS).map(|part| part.told(!self.callers)).collect();
        let outside = coverage::outside(&judged);
        let covered = outside.is_none();
        if let Some((why, hint)) = outside {
            described.set_claim(Claim::Uncovered);
            let message = format!("{}: {why}", target.name);
            self.problems.push(problem(Severity::Warning, "DATABASE_UNCOVERED", &step.name, &message, hint));
            step.reason = message;
        }
        self.problems.extend(session.remarks());
        self.say_if_logs_freeze(&session, pid, surroundings).await;
        self.note_parts(&target.name, &judged);
        self.expected.claims.push(described.claim());
        step.detail = Some(proto::step::Detail::Database(described));
        self.steps.push(step);
        self.databases.push(Instance { target, session, pid, covered });
    }

    pub(super) fn cannot_hold(&mut self, target: &Target, error: &database::Error) {
        let mut step = database_step(target);
        step.set_outcome(StepOutcome::Failed);
        step.reason = error.to_string();
        step.hint.clone_from(&error.hint);
        if target.configured && target.required {
            let refusal = Refusal::new(RefusalKind::FailedPrecondition, "DATABASE_UNREACHABLE", error.to_string());
            self.refusals.push(refusal.hint(error.hint.clone()));
        } else {
            self.expected.capped = true;
            let message = error.to_string();
            self.problems.push(problem(Severity::Warning, "DATABASE_UNREACHABLE", &step.name, &message, &error.hint));
        }
        self.steps.push(step);
    }

    /// A server that nothing was tried with.
    pub(super) fn not_held(&mut self, engine: &databases::RunningEngine, unreachable: Option<&Unreachable>) {
        let subject = format!("db:{}", engine.engine);
        // an optional one does not vouch: it may have failed
        let holds = |hook: &&Hook| hook.required && hook.holds.contains(&engine.engine) && hook.vouches_in().is_some();
        if let Some(hook) = self.hooks.iter().find(holds) {
            let (engine, pid, name) = (engine.engine, engine.pid, &hook.name);
            let message = format!("{engine} runs (pid {pid}) and is held by the hook {name}, as its settings say");
            self.problems.push(problem(Severity::Note, "HELD_BY_HOOK", &subject, &message, ""));
            return;
        }
        self.expected.capped = true;
        let container = engine.container.as_ref().map_or_else(String::new, |name| format!(" in container {name}"));
        let why = unreachable.map_or_else(String::new, |u| format!(", as {}", u.why));
        let message = format!(
            "{} runs (pid {}{container}) and is not held{why}: its files are as after a power cut",
            engine.engine, engine.pid
        );
        let hook = format!(
            "add a hook that brings it to a consistent point: `holdstill hooks add FILE --holds {}`",
            engine.engine
        );
        let usual = match engine.engine {
            databases::Engine::Postgresql | databases::Engine::Mysql | databases::Engine::Mariadb => {
                format!("configure it as a [[database]], or {hook}")
            }
            databases::Engine::Redis
            | databases::Engine::Valkey
            | databases::Engine::Mongodb
            | databases::Engine::Etcd
            | databases::Engine::Clickhouse
            | databases::Engine::Cassandra
            | databases::Engine::Elasticsearch => hook,
        };
        let hint = unreachable.map_or(usual.as_str(), |u| u.cure.as_str());
        self.problems.push(problem(Severity::Warning, "DATABASE_NOT_HELD", &subject, &message, hint));
    }
}

/// A MySQL-like server that hides tables from us is held as if there were some.
async fn doubt_what_it_tells(target: &Target, session: &mut Session, pid: Option<i32>, surroundings: &Surroundings) {
    let data = session.places().into_iter().find(|place| place.purpose == "data");
    if let (database::Engine::Mysql, Some(pid), Some(data)) = (target.engine, pid, data) {
        let root = surroundings.root.clone();
        let seen = in_a_thread(TOUCH_LIMIT, move || table_files::are_there(&root, Some(pid), &data.path)).await;
        if seen == Some(true) {
            session.doubt_tables();
        }
    }
}

pub(super) fn failure(target: &Target, why: String, hint: &str) -> database::Error {
    database::Error { name: target.name.clone(), what: "hold", why, hint: hint.to_owned() }
}

fn database_step(target: &Target) -> proto::Step {
    let mut step = proto::Step { name: format!("db:{}", target.name), ..Default::default() };
    step.set_kind(StepKind::Database);
    step.required = target.required;
    step
}
