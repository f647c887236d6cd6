//! The databases that run on a restored machine: found and asked as a hold would, but only where they stand.

use std::time::Duration;

use serde_json::Value;

use super::positions::{self, Compared, Outcome};
use crate::{
    config::Settings,
    hold::{
        plan::problem,
        survey::{self, Look, Surroundings},
    },
    proto::{self, Severity},
};

/// A server that takes longer is said to be one that does not answer.
const ASK_LIMIT: Duration = Duration::from_secs(5);
const DISCONNECT_LIMIT: Duration = Duration::from_secs(1);

/// The databases of a receipt's record `told`.
pub fn expected(told: &Value) -> Vec<String> {
    let steps = told["report"]["steps"].as_array().into_iter().flatten();
    let databases = steps.filter(|step| step["database"].is_object());
    databases.filter_map(|step| step["name"].as_str().map(str::to_owned)).take(64).collect()
}

/// Finds and asks them. What cannot be found or asked is said. `prepared`: when the hold was, seconds since 1970.
pub async fn compare(
    settings: &Settings,
    surroundings: &Surroundings,
    told: &Value,
    prepared: i64,
) -> (Vec<Compared>, Vec<proto::Problem>) {
    let (mut compared, mut problems) = (Vec::new(), Vec::new());
    let mut missing = expected(told);
    let spec = proto::HoldSpec::default();
    let survey = match survey::survey(settings, surroundings, &spec, Look::Everything).await {
        Ok(survey) => survey,
        Err(refusal) => {
            let message = format!("the databases here were not asked: {}", refusal.message);
            problems.push(problem(Severity::Warning, "POSITION_UNKNOWN", "", &message, &refusal.hint));
            return (compared, problems);
        }
    };
    for mut instance in survey.databases {
        let name = format!("db:{}", instance.target.name);
        if let Some(at) = missing.iter().position(|known| *known == name) {
            missing.remove(at);
            let one = match instance.session.position(ASK_LIMIT).await {
                Ok(now) => {
                    let now = now.into_iter().map(|c| (c.key, c.value)).collect();
                    positions::running(&told["report"], &name, now, prepared)
                }
                Err(error) => Some(Compared {
                    name,
                    outcome: Outcome::Unknown(error.to_string()),
                    running: true,
                    now: positions::At::new(),
                }),
            };
            compared.extend(one);
        }
        let _ = instance.session.release(DISCONNECT_LIMIT).await;
    }
    for name in missing {
        let why = survey.steps.iter().find(|step| step.name == name).map(|step| step.reason.clone());
        let why = why.filter(|why| !why.is_empty()).unwrap_or_else(|| "no server of this name runs here".to_owned());
        let message = format!("{name}: its position was not compared: {why}");
        let hint = "start it, and ask again before anybody writes to it";
        problems.push(problem(Severity::Note, "POSITION_UNKNOWN", &name, &message, hint));
    }
    (compared, problems)
}
