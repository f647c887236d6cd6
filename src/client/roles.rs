//! `check --sql`: the role holdstill needs in each database, as SQL to paste.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Answer, connect, connect::Daemon};
use crate::{
    error::{Exit, Failure},
    proto,
    step::database::roles::{self, Flavour},
};

/// Roles for the databases that were found, of the versions found; where there are none, or nobody can be asked, for all.
pub async fn roles(daemon: &Daemon) -> Answer {
    match ask(daemon).await {
        Ok(plan) => answer(&plan, None),
        Err(failure) => answer(&proto::Report::default(), Some(&failure)),
    }
}

async fn ask(daemon: &Daemon) -> Result<proto::Report, Failure> {
    let mut client = daemon.connect().await?;
    let request = proto::CheckRequest { spec: Some(proto::HoldSpec::default()) };
    Ok(connect::within(daemon.patience, client.check(request)).await?.plan.unwrap_or_default())
}

fn answer(plan: &proto::Report, unasked: Option<&Failure>) -> Answer {
    let found = found(plan);
    let mut texts = Vec::new();
    let mut documents = Vec::new();
    for ((flavour, version), instances) in &found {
        let sql = roles::sql(*flavour, version.as_deref());
        documents.push(json!({
            "engine": flavour.name(), "version": version, "databases": instances, "sql": sql,
        }));
        let (title, rest) = sql.split_once('\n').unwrap_or((&sql, ""));
        texts.push(match instances.as_slice() {
            [] => sql,
            names => format!("{title}: {}\n{rest}", names.join(", ")),
        });
    }
    let why = unasked.map(|failure| format!("-- the daemon could not be asked what is here: {}\n", failure.message));
    Answer {
        document: json!({ "roles": documents }),
        table: (why.unwrap_or_default() + &texts.join("\n")).trim_end().to_owned(),
        sentence: String::new(),
        exit: Exit::Done,
    }
}

type Found = BTreeMap<(Flavour, Option<String>), Vec<String>>;

/// Databases by engine and version; all engines without one if there are none.
fn found(plan: &proto::Report) -> Found {
    let mut found = Found::new();
    for step in plan.steps.iter().filter(|step| step.kind() == proto::StepKind::Database) {
        let name = step.name.strip_prefix("db:").unwrap_or(&step.name).to_owned();
        match &step.detail {
            Some(proto::step::Detail::Database(database)) => {
                let Some(flavour) = Flavour::named(&database.engine) else { continue };
                let version = Some(database.version.clone()).filter(|version| !version.is_empty());
                found.entry((flavour, version)).or_default().push(name);
            }
            // not let in: a discovered one is named after its engine's protocol, a configured one after anything
            Some(proto::step::Detail::Filesystem(_) | proto::step::Detail::Hook(_)) | None => {
                let engine = name.split(':').next().unwrap_or_default().to_owned();
                let flavours: Vec<Flavour> = match Flavour::named(&engine) {
                    Some(Flavour::Postgresql) => vec![Flavour::Postgresql],
                    Some(Flavour::Mysql | Flavour::Mariadb) => vec![Flavour::Mysql, Flavour::Mariadb],
                    None => Flavour::ALL.to_vec(),
                };
                for flavour in flavours {
                    found.entry((flavour, None)).or_default().push(name.clone());
                }
            }
        }
    }
    for problem in plan.problems.iter().filter(|p| p.code == "DATABASE_NOT_HELD") {
        if let Some(flavour) = problem.subject.strip_prefix("db:").and_then(Flavour::named) {
            found.entry((flavour, None)).or_default();
        }
    }
    if found.is_empty() {
        found.extend(Flavour::ALL.map(|flavour| ((flavour, None), Vec::new())));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, database: Option<(&str, &str)>) -> proto::Step {
        let mut step = proto::Step { name: name.to_owned(), ..Default::default() };
        step.set_kind(proto::StepKind::Database);
        step.detail = database.map(|(engine, version)| {
            proto::step::Detail::Database(proto::Database {
                engine: engine.to_owned(),
                version: version.to_owned(),
                ..Default::default()
            })
        });
        step
    }

    #[test]
    fn what_was_found_gets_the_role_of_its_version() {
        let steps = vec![
            step("db:orders", Some(("postgresql", "14.9"))),
            step("db:billing", Some(("postgresql", "14.9"))),
            step("db:mysql:mysqld", None),
            proto::Step { name: "fs:/".to_owned(), ..Default::default() },
        ];
        let answer = answer(&proto::Report { steps, ..Default::default() }, None);
        assert!(answer.table.starts_with("-- PostgreSQL (14.9): orders, billing\n"), "{}", answer.table);
        assert!(answer.table.contains("-- MySQL (any version): mysql:mysqld"), "{}", answer.table);
        assert!(answer.table.contains("-- MariaDB (any version): mysql:mysqld"), "who let nobody in told no version");
        assert_eq!(answer.document["roles"].as_array().map(Vec::len), Some(3));
        assert_eq!(answer.document["roles"][0]["databases"][1], "billing");
    }

    #[test]
    fn where_nothing_is_found_all_engines_are_shown() {
        let answer = answer(&proto::Report::default(), None);
        let titles: Vec<&str> = answer.table.lines().filter(|line| line.ends_with("(any version)")).collect();
        assert_eq!(titles, ["-- PostgreSQL (any version)", "-- MySQL (any version)", "-- MariaDB (any version)"]);
        assert_eq!(answer.exit, Exit::Done);
    }
}
