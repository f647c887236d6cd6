//! What of a hold stands in the copies: each database's claim, and the level of all of it.

use serde_json::{Value, json};

use super::Grade;
use crate::proto::{self, Claim, Consistency, Severity};

/// What one database is worth in these copies.
#[derive(Debug)]
pub struct Claimed {
    /// "db:orders"
    pub name: String,
    /// "postgresql 17.2"
    pub engine: String,
    pub claim: Claim,
    /// why it is not more, or what it rests on
    pub why: String,
    pub start: Value,
    /// settings that limit what a claim is worth: "fsync = off"
    pub limits: Vec<String>,
    /// its parts that the copies lack: "wal /fast/wal"
    pub uncovered: Vec<String>,
}

impl Claimed {
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "engine": self.engine,
            "claim": name(self.claim),
            "reason": self.why,
            "start": self.start,
            "limits": self.limits,
            "uncovered": self.uncovered,
        })
    }
}

/// As the API's documents have it.
pub fn name(claim: Claim) -> &'static str {
    match claim {
        Claim::Unspecified => "unspecified",
        Claim::Exact => "exact",
        Claim::Bounded => "bounded",
        Claim::Recoverable => "recoverable",
        Claim::Uncovered => "uncovered",
    }
}

fn parse(text: &Value) -> Claim {
    match text.as_str() {
        Some("exact") => Claim::Exact,
        Some("bounded") => Claim::Bounded,
        Some("recoverable") => Claim::Recoverable,
        Some("uncovered") => Claim::Uncovered,
        Some(_) | None => Claim::Unspecified,
    }
}

/// Higher is worth less.
fn rank(claim: Claim) -> u8 {
    match claim {
        Claim::Exact => 0,
        Claim::Bounded => 1,
        Claim::Recoverable => 2,
        Claim::Unspecified => 3,
        Claim::Uncovered => 4,
    }
}

/// Settings that let acknowledged work be lost, if they are so.
const LIMITS: [(&str, &[&str]); 6] = [
    ("fsync", &["off"]),
    ("full_page_writes", &["off"]),
    ("synchronous_commit", &["off"]),
    ("innodb_flush_log_at_trx_commit", &["0", "2"]),
    ("sync_binlog", &["0"]),
    ("innodb_doublewrite", &["off", "0"]),
];

/// The databases of a receipt's `report`; `record` is the caller's, of the same hold. `held`: the copies are, all of them,
/// graded as held.
pub(super) fn of(report: &Value, record: Option<&proto::Report>, held: bool) -> Vec<Claimed> {
    let steps = report["steps"].as_array().into_iter().flatten();
    steps
        .filter(|step| step["database"].is_object() || step["kind"] == "database")
        .map(|step| one(step, record, held))
        .collect()
}

fn one(step: &Value, record: Option<&proto::Report>, held: bool) -> Claimed {
    let database = &step["database"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = text(&step["name"]);
    let uncovered: Vec<String> = database["paths"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|path| path["held"] == false && !(path["purpose"] == "wal" && database["strategy"] == "backup-mode"))
        .map(|path| format!("{} {}", text(&path["purpose"]), text(&path["path"])))
        .collect();
    let recorded = parse(&database["claim"]);
    let worst = |a: Claim, b: Claim| if rank(b) > rank(a) { b } else { a };
    let proven = record.and_then(|record| {
        let step = record.steps.iter().find(|step| step.name == name)?;
        match &step.detail {
            Some(proto::step::Detail::Database(database)) => Some(database.claim()),
            Some(proto::step::Detail::Filesystem(_) | proto::step::Detail::Hook(_)) | None => None,
        }
    });
    let (claim, why) = if recorded == Claim::Uncovered || !uncovered.is_empty() {
        (Claim::Uncovered, "some of its files are not in what was held: do not restore it from this copy".to_owned())
    } else if !matches!(step["outcome"].as_str(), Some("done" | "undone")) {
        let why = text(&step["reason"]);
        (
            Claim::Recoverable,
            if why.is_empty() { "it was not held".to_owned() } else { format!("it was not held: {why}") },
        )
    } else if !held {
        (worst(recorded, Claim::Recoverable), "the copies are not proven to be cut while it was held".to_owned())
    } else if let Some(proven) = proven {
        (worst(recorded, proven), "as the hold record says".to_owned())
    } else {
        (
            recorded,
            "as when the copy was cut; whether its session held until the thaw only the hold record can say".to_owned(),
        )
    };
    let setting = |setting: &Value| {
        let (key, value) = (text(&setting["key"]), text(&setting["value"]));
        let (_, bad) = LIMITS.iter().find(|(name, _)| *name == key)?;
        bad.iter().any(|bad| bad.eq_ignore_ascii_case(&value)).then(|| format!("{key} = {value}"))
    };
    Claimed {
        engine: format!("{} {}", text(&database["engine"]), text(&database["version"])).trim().to_owned(),
        claim,
        why,
        start: database["start"].as_array().map_or_else(|| json!([]), |start| json!(start)),
        limits: database["settings"].as_array().into_iter().flatten().filter_map(setting).collect(),
        uncovered,
        name,
    }
}

/// The level of the copies, and the reason. Without the caller's record only what databases claim can make it `application`.
pub(super) fn level(report: &Value, claims: &[Claimed], held: bool, grade: Grade) -> (&'static str, String) {
    if grade == Grade::None {
        return ("none", "nothing is known of how it was cut".to_owned());
    }
    if !held {
        return ("crash", format!("graded {grade}, or not all of one hold is here: as after a power cut at best"));
    }
    if report["truncated"] == true {
        return ("filesystem", "its receipt had no room for all that was held".to_owned());
    }
    let problems = || report["problems"].as_array().into_iter().flatten();
    let of = |codes: &[&str]| problems().find(|p| p["code"].as_str().is_some_and(|code| codes.contains(&code)));
    if let Some(capped) =
        of(&["DATABASE_NOT_HELD", "DATABASE_UNREACHABLE", "DATABASE_UNCOVERED", "DISCOVERY_INCOMPLETE", "HOOK_FAILED"])
    {
        return ("filesystem", capped["message"].as_str().unwrap_or("a database was not held").to_owned());
    }
    if let Some(low) = claims.iter().find(|claimed| !matches!(claimed.claim, Claim::Exact | Claim::Bounded)) {
        return ("filesystem", format!("{} is {}: {}", low.name, name(low.claim), low.why));
    }
    if claims.is_empty() && of(&["HELD_BY_HOOK"]).is_none() {
        return ("filesystem", "no database was held by the hold itself".to_owned());
    }
    ("application", "every database found was held".to_owned())
}

/// Not more than the caller's record says.
pub(super) fn at_most(level: (&'static str, String), record: Option<&proto::Report>) -> (&'static str, String) {
    match record.map(proto::Report::consistency) {
        Some(Consistency::Filesystem) if level.0 == "application" => {
            ("filesystem", "the hold record says no more".into())
        }
        Some(Consistency::Crash | Consistency::None) if level.0 != "none" => {
            ("crash", "the hold record says no more".into())
        }
        Some(Consistency::Application)
            if level.0 == "filesystem"
                && (level.1.starts_with("no database") || level.1.starts_with("its receipt")) =>
        {
            ("application", "as the hold record says".into())
        }
        Some(
            Consistency::Unspecified
            | Consistency::None
            | Consistency::Crash
            | Consistency::Filesystem
            | Consistency::Application,
        )
        | None => level,
    }
}

/// What people are to be told although it changes no grade.
pub(super) fn problems(claims: &[Claimed]) -> impl Iterator<Item = proto::Problem> {
    claims.iter().filter(|claimed| claimed.claim == Claim::Uncovered).map(|claimed| {
        let message = format!("{}: {}: {}", claimed.name, claimed.why, claimed.uncovered.join(", "));
        let hint = "restore it from its own backup";
        super::super::plan::problem(Severity::Warning, "DATABASE_UNCOVERED", &claimed.name, &message, hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcome: &str, claim: &str, held: bool) -> Value {
        json!({"steps": [
            {"name": "fs:/", "outcome": "planned", "filesystem": {}},
            {"name": "db:orders", "kind": "database", "outcome": outcome, "reason": "refused", "database": {
                "engine": "mariadb", "version": "10.11", "claim": claim,
                "settings": [{"key": "sync_binlog", "value": "0"}, {"key": "log_bin", "value": "ON"}],
                "start": [{"key": "gtid_binlog_pos", "value": "0-1-5"}],
                "paths": [{"purpose": "data", "path": "/srv/db", "held": held}]}},
        ]})
    }

    #[test]
    fn a_claim_is_as_good_as_the_copies_it_is_in() {
        for (outcome, claim, path_held, held, expected) in [
            ("done", "exact", true, true, Claim::Exact),
            ("done", "bounded", true, true, Claim::Bounded),
            ("done", "exact", true, false, Claim::Recoverable),
            ("failed", "exact", true, true, Claim::Recoverable),
            ("done", "exact", false, true, Claim::Uncovered),
            ("done", "uncovered", true, false, Claim::Uncovered),
            ("done", "flawless", true, true, Claim::Unspecified),
        ] {
            let report = report(outcome, claim, path_held);
            let claims = of(&report, None, held);
            assert_eq!(claims[0].claim, expected, "{outcome} {claim} {path_held} {held}");
            let application = matches!(expected, Claim::Exact | Claim::Bounded);
            let grade = if held { Grade::CutInside } else { Grade::Released };
            assert_eq!(level(&report, &claims, held, grade).0 == "application", application);
        }
        assert_eq!(of(&report("done", "exact", true), None, true)[0].limits, ["sync_binlog = 0"]);
    }

    #[test]
    fn the_hold_record_can_take_a_claim_away_and_never_gives_more() {
        let record = |claim| {
            let mut database = proto::Database::default();
            database.set_claim(claim);
            let detail = Some(proto::step::Detail::Database(database));
            proto::Report {
                steps: vec![proto::Step { name: "db:orders".into(), detail, ..Default::default() }],
                ..Default::default()
            }
        };
        let claim = |recorded, proven| of(&report("done", recorded, true), Some(&record(proven)), true)[0].claim;
        assert_eq!(claim("exact", Claim::Recoverable), Claim::Recoverable);
        assert_eq!(claim("bounded", Claim::Exact), Claim::Bounded);
        assert_eq!(claim("exact", Claim::Exact), Claim::Exact);
    }

    #[test]
    fn a_receipt_of_anything_at_all_says_nothing_rather_than_panic() {
        for nonsense in [
            json!(null),
            json!([]),
            json!("x"),
            json!({"steps": {"a": 1}}),
            json!({"steps": [1, null, {"database": {}}]}),
        ] {
            let claims = of(&nonsense, None, true);
            assert!(claims.iter().all(|c| !matches!(c.claim, Claim::Exact | Claim::Bounded)));
            level(&nonsense, &claims, true, Grade::CutInside);
        }
    }
}
