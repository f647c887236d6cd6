//! Is the database that came up the one the hold was about, and is everything in it that was acknowledged before the hold?
//! Compares coordinates: those of the receipt, those of now. Pure.
//!
//! A log position only rises, so one that is lower than at the hold proves a loss. One that is not lower proves that
//! nothing is missing only until the server writes anew: new work takes the numbers of what was lost. So this is asked soon
//! after the first start; for PostgreSQL the first checkpoint after a restart still tells.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::offline::Identity;
use crate::{
    hold::plan::problem,
    proto::{self, Severity},
};

/// The code of data that was lost.
pub const BEHIND: &str = "POSITION_BEHIND";

/// Coordinates by name.
pub type At = BTreeMap<String, String>;

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// exactly where it was
    Equal,
    /// everything of then is there, and more: by how much
    Further(String),
    /// something of then is missing: what
    Behind(String),
    /// another server
    Other(String),
    /// nothing that can be compared: why
    Unknown(String),
}

/// One database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// "db:orders"
    pub name: String,
    pub outcome: Outcome,
    /// by a server that runs here, not by files alone
    pub running: bool,
    /// where it is now, as far as it was read
    pub now: At,
}

impl Compared {
    pub fn to_json(&self) -> Value {
        let (outcome, detail) = match &self.outcome {
            Outcome::Equal => ("equal", ""),
            Outcome::Further(detail) => ("further", detail.as_str()),
            Outcome::Behind(detail) => ("behind", detail.as_str()),
            Outcome::Other(detail) => ("other_server", detail.as_str()),
            Outcome::Unknown(detail) => ("unknown", detail.as_str()),
        };
        json!({"name": self.name, "position": outcome, "detail": detail, "running": self.running, "now": self.now})
    }

    pub fn sentence(&self) -> String {
        let name = &self.name;
        let by = if self.running { "" } else { ", as far as its files tell" };
        match &self.outcome {
            Outcome::Equal => format!("{name}: stands exactly where it was held{by}"),
            Outcome::Further(detail) => format!("{name}: has everything of the hold{by}, and {detail}"),
            Outcome::Behind(detail) => format!("{name}: data was lost: {detail}"),
            Outcome::Other(detail) => format!("{name}: is not the server of the hold: {detail}"),
            Outcome::Unknown(detail) => format!("{name}: not compared: {detail}"),
        }
    }

    /// What is wrong, if anything is.
    pub(super) fn problem(&self) -> Option<proto::Problem> {
        let (severity, code, hint) = match &self.outcome {
            Outcome::Behind(_) => (
                Severity::Refusal,
                BEHIND,
                "do not let anybody write to it; restore it from another copy, or from its own backup",
            ),
            Outcome::Other(_) => (Severity::Warning, "OTHER_SERVER", "see which data directory it runs on"),
            Outcome::Unknown(_) if self.running => (Severity::Note, "POSITION_UNKNOWN", ""),
            Outcome::Equal | Outcome::Further(_) | Outcome::Unknown(_) => return None,
        };
        Some(problem(severity, code, &self.name, &self.sentence(), hint))
    }
}

/// The start coordinates of a receipt's step.
pub fn start(step: &Value) -> At {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let coordinates = step["database"]["start"].as_array().into_iter().flatten();
    coordinates.filter_map(|c| Some((text(&c["key"])?, text(&c["value"])?))).collect()
}

fn step_of<'a>(report: &'a Value, name: &str) -> &'a Value {
    static NONE: Value = Value::Null;
    report["steps"].as_array().into_iter().flatten().find(|step| step["name"] == name).unwrap_or(&NONE)
}

/// A running server against the receipt's `report`; `None`: the receipt knows no database of this name.
pub fn running(report: &Value, name: &str, now: At, held: i64) -> Option<Compared> {
    let step = step_of(report, name);
    let start = start(step);
    let outcome = match step["database"]["engine"].as_str()? {
        "postgresql" => postgresql(&start, &now, held),
        _ => mysql(&start, &now),
    };
    Some(Compared { name: name.to_owned(), outcome, running: true, now })
}

/// What files say of themselves, against the receipt's `report`.
pub(super) fn offline(report: &Value, name: &str, identity: &Identity) -> Compared {
    let start = start(step_of(report, name));
    let unknown =
        |why: &str| Outcome::Unknown(format!("{why}; start the server on the copy and ask it (`holdstill verify`)"));
    let (outcome, now) = match identity {
        Identity::Postgresql { system, checkpoint, timeline } => {
            let mut now = At::from([("system_identifier".to_owned(), system.to_string())]);
            now.extend(checkpoint.map(|at| ("checkpoint_lsn".to_owned(), text_of(at))));
            now.extend(timeline.map(|timeline| ("timeline".to_owned(), timeline.to_string())));
            let earlier = || lsn(start.get("checkpoint_lsn")?).zip(*checkpoint).filter(|(then, now)| now < then);
            let outcome = match other(&start, &now, "system_identifier") {
                Some(other) => other,
                None => match earlier() {
                    Some((then, now)) => Outcome::Behind(format!(
                        "its last checkpoint is at {}, before the one of the hold at {}",
                        text_of(now),
                        text_of(then)
                    )),
                    None if start.is_empty() => unknown("the receipt has no position of it"),
                    None => unknown("its control file is of the same server and not older"),
                },
            };
            (outcome, now)
        }
        Identity::Mysql { uuid } => {
            let now = At::from([("server_uuid".to_owned(), uuid.clone())]);
            (other(&start, &now, "server_uuid").unwrap_or_else(|| unknown("its auto.cnf names the same server")), now)
        }
        Identity::Unreadable(why) => (unknown(why), At::new()),
    };
    Compared { name: name.to_owned(), outcome, running: false, now }
}

fn other(start: &At, now: &At, key: &str) -> Option<Outcome> {
    let (then, now) = (start.get(key)?, now.get(key)?);
    (then != now).then(|| Outcome::Other(format!("its {key} is {now}, that of the hold was {then}")))
}

/// `held`: when the hold was prepared, seconds since 1970.
fn postgresql(start: &At, now: &At, held: i64) -> Outcome {
    if let Some(other) = other(start, now, "system_identifier") {
        return other;
    }
    let of = |at: &At, keys: &[&str]| keys.iter().find_map(|key| lsn(at.get(*key)?));
    // on a standby it is what it had replayed
    let then = of(start, &["flush_lsn", "replay_lsn"]);
    let reached = of(now, &["insert_lsn", "flush_lsn", "replay_lsn"]);
    let (Some(then), Some(reached)) = (then, reached) else {
        return Outcome::Unknown("one of the two positions is not known".to_owned());
    };
    if reached < then {
        return Outcome::Behind(format!("it ends at {}, the hold was at {}", text_of(reached), text_of(then)));
    }
    // recovery ends with a checkpoint at the end of what it found: that being earlier, it found less than there was
    let restarted = now.get("started").and_then(|at| at.parse::<i64>().ok()).is_some_and(|at| at > held);
    let recovered =
        of(now, &["redo_lsn"]).filter(|_| restarted && now.get("in_recovery").is_some_and(|r| r == "false"));
    if let Some(recovered) = recovered.filter(|recovered| *recovered < then) {
        let (recovered, then) = (text_of(recovered), text_of(then));
        return Outcome::Behind(format!("recovery found its log only until {recovered}, the hold was at {then}"));
    }
    let (from, to) = (start.get("timeline"), now.get("timeline"));
    let line = match (from, to) {
        (Some(from), Some(to)) if from != to => format!(" on timeline {to} (it was {from})"),
        _ => String::new(),
    };
    match reached - then {
        0 if line.is_empty() => Outcome::Equal,
        bytes => Outcome::Further(format!("is {bytes} bytes of log further{line}")),
    }
}

fn mysql(start: &At, now: &At) -> Outcome {
    for key in ["server_uuid", "server_uid"] {
        if let Some(other) = other(start, now, key) {
            return other;
        }
    }
    let pair = |key: &str| Some((start.get(key)?, now.get(key)?)).filter(|(then, _)| !then.is_empty());
    if let Some((then, now)) = pair("gtid_executed") {
        return intervals(then, now);
    }
    for key in ["gtid_binlog_pos", "gtid_current_pos"] {
        if let Some((then, now)) = pair(key) {
            return domains(then, now);
        }
    }
    if let (Some((then, now)), Some((then_at, now_at))) = (pair("binlog_file"), pair("binlog_position")) {
        return binary_log((then, then_at), (now, now_at));
    }
    for key in ["innodb_lsn_flushed", "innodb_lsn_current"] {
        let number = |at: &At| at.get(key).and_then(|n| n.parse::<u64>().ok());
        if let (Some(then), Some(now)) = (number(start), number(now)) {
            return match now.checked_sub(then) {
                None => Outcome::Behind(format!("InnoDB's log ends at {now}, the hold was at {then}")),
                Some(0) => Outcome::Equal,
                Some(bytes) => Outcome::Further(format!("is {bytes} bytes of InnoDB's log further")),
            };
        }
    }
    Outcome::Unknown("the receipt has no position that this server tells, too".to_owned())
}

/// MariaDB: "0-1-100,1-2-5": domain, server, number.
fn domains(then: &str, now: &str) -> Outcome {
    let parse = |text: &str| -> BTreeMap<String, u64> {
        let one = |gtid: &str| {
            let mut parts = gtid.trim().split('-');
            let (domain, _server, number) = (parts.next()?, parts.next()?, parts.next()?);
            Some((domain.to_owned(), number.parse().ok()?))
        };
        text.split(',').filter_map(one).collect()
    };
    let (then, now) = (parse(then), parse(now));
    let mut further: u64 = 0;
    for (domain, then) in &then {
        let now = now.get(domain).copied().unwrap_or(0);
        match now.checked_sub(*then) {
            None => {
                return Outcome::Behind(format!("domain {domain} ends at transaction {now}, the hold was at {then}"));
            }
            Some(more) => further = further.saturating_add(more),
        }
    }
    moved(further)
}

/// MySQL: "uuid:1-5:7,uuid2:1-2". Everything of then must be among what is now.
fn intervals(then: &str, now: &str) -> Outcome {
    let (then, now) = (sets(then), sets(now));
    let (mut missing, mut further) = (0_u64, 0_u64);
    let length =
        |ranges: &[(u64, u64)]| ranges.iter().map(|(a, b)| (b - a).saturating_add(1)).fold(0, u64::saturating_add);
    let none = Vec::new();
    for (source, ranges) in &then {
        let have = now.get(source).unwrap_or(&none);
        let common: u64 = ranges
            .iter()
            .flat_map(|(a, b)| have.iter().map(move |(c, d)| (*a.max(c), *b.min(d))))
            .filter(|(a, b)| a <= b)
            .map(|(a, b)| b - a + 1)
            .fold(0, u64::saturating_add);
        missing = missing.saturating_add(length(ranges).saturating_sub(common));
        further = further.saturating_add(length(have).saturating_sub(common));
    }
    if missing > 0 {
        return Outcome::Behind(format!("{missing} transactions of the hold's GTIDs are missing"));
    }
    moved(further)
}

/// Tags of MySQL 8.3 and newer stand between the colons and are part of the name.
fn sets(text: &str) -> BTreeMap<String, Vec<(u64, u64)>> {
    let mut sets: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
    for source in text.split(',') {
        let mut parts = source.trim().split(':');
        let uuid = parts.next().unwrap_or_default().to_ascii_lowercase();
        let mut name = uuid.clone();
        for part in parts {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            match (from.trim().parse(), to.trim().parse()) {
                (Ok(from), Ok(to)) if from <= to => sets.entry(name.clone()).or_default().push((from, to)),
                _ => name = format!("{uuid}:{part}"),
            }
        }
    }
    sets
}

fn moved(further: u64) -> Outcome {
    match further {
        0 => Outcome::Equal,
        1 => Outcome::Further("is 1 transaction further".to_owned()),
        n => Outcome::Further(format!("is {n} transactions further")),
    }
}

/// A server begins a new file at every start.
fn binary_log(then: (&str, &str), now: (&str, &str)) -> Outcome {
    let number = |file: &str| file.rsplit_once('.').and_then(|(_, n)| n.parse::<u64>().ok());
    let offset = |at: &str| at.parse::<u64>().ok();
    let places = number(then.0).zip(offset(then.1)).zip(number(now.0).zip(offset(now.1)));
    let Some(((file, at), (now_file, now_at))) = places else {
        return Outcome::Unknown("the position in the binary log is not one".to_owned());
    };
    match (now_file.cmp(&file), now_at.cmp(&at)) {
        (std::cmp::Ordering::Less, _) | (std::cmp::Ordering::Equal, std::cmp::Ordering::Less) => Outcome::Behind(
            format!("its binary log ends at {}:{}, the hold was at {}:{}", now.0, now.1, then.0, then.1),
        ),
        (std::cmp::Ordering::Equal, std::cmp::Ordering::Equal) => Outcome::Equal,
        (std::cmp::Ordering::Equal, std::cmp::Ordering::Greater) => {
            Outcome::Further(format!("is {} bytes of binary log further", now_at - at))
        }
        (std::cmp::Ordering::Greater, _) => Outcome::Unknown(format!(
            "it writes {} since it was started; that {} was whole when it began its recovery, only its own log tells",
            now.0, then.0
        )),
    }
}

fn lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let half = |text| u32::from_str_radix(text, 16).ok();
    Some(u64::from(half(high)?) << 32 | u64::from(half(low)?))
}

fn text_of(lsn: u64) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(pairs: &[(&str, &str)]) -> At {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn postgresql_is_compared_by_its_log() {
        let start = at(&[("system_identifier", "7"), ("timeline", "1"), ("flush_lsn", "0/2000100")]);
        let now = |insert: &str, redo: &str| {
            let pairs = [("insert_lsn", insert), ("redo_lsn", redo), ("started", "200"), ("in_recovery", "false")];
            let mut now = at(&pairs);
            now.extend(at(&[("system_identifier", "7"), ("timeline", "1")]));
            now
        };
        assert_eq!(postgresql(&start, &now("0/2000100", "0/2000100"), 100), Outcome::Equal);
        let further = postgresql(&start, &now("0/2000178", "0/2000100"), 100);
        assert_eq!(further, Outcome::Further("is 120 bytes of log further".into()));
        assert!(matches!(postgresql(&start, &now("0/20000FF", "0/2000000"), 100), Outcome::Behind(_)));
        // written to since, so that the number alone would say that nothing is missing
        let lost = now("0/9000000", "0/2000050");
        assert!(matches!(postgresql(&start, &lost, 100), Outcome::Behind(_)));
        assert!(matches!(postgresql(&start, &lost, 300), Outcome::Further(_)), "it never stopped");
        let mut other = now("0/9000000", "0/9000000");
        other.insert("system_identifier".into(), "8".into());
        assert!(matches!(postgresql(&start, &other, 100), Outcome::Other(_)));
        assert!(matches!(postgresql(&At::new(), &lost, 100), Outcome::Unknown(_)));
    }

    #[test]
    fn mariadb_is_compared_by_domain() {
        assert_eq!(domains("0-1-100,1-1-5", "1-1-5,0-1-100"), Outcome::Equal);
        assert_eq!(domains("0-1-100", "0-2-103"), Outcome::Further("is 3 transactions further".into()));
        assert!(matches!(domains("0-1-100", "0-1-99"), Outcome::Behind(_)));
        assert!(matches!(domains("0-1-100", ""), Outcome::Behind(_)));
    }

    #[test]
    fn mysql_is_compared_by_sets() {
        assert_eq!(intervals("A:1-5:7", "a:1-5:7"), Outcome::Equal);
        assert_eq!(intervals("a:1-5", "a:1-6,b:1-9"), Outcome::Further("is 1 transaction further".into()));
        assert!(matches!(intervals("a:1-5,b:1", "a:1-9"), Outcome::Behind(_)));
        assert!(matches!(intervals("a:1-5", "a:1-3:5-9"), Outcome::Behind(_)), "a hole is a loss");
        assert_eq!(intervals("a:1-5:tag:1-2", "a:1-5:tag:1-2"), Outcome::Equal);
    }

    #[test]
    fn without_gtids_the_binary_log_or_innodb_tells() {
        let log = |file: &str, at: &str| {
            super::At::from([("binlog_file".into(), file.into()), ("binlog_position".into(), at.into())])
        };
        assert_eq!(mysql(&log("b.000003", "100"), &log("b.000003", "100")), Outcome::Equal);
        assert!(matches!(mysql(&log("b.000003", "100"), &log("b.000003", "99")), Outcome::Behind(_)));
        assert!(matches!(mysql(&log("b.000003", "100"), &log("b.000002", "999")), Outcome::Behind(_)));
        assert!(matches!(mysql(&log("b.000003", "100"), &log("b.000004", "4")), Outcome::Unknown(_)));
        let lsn = |n: &str| at(&[("innodb_lsn_flushed", n)]);
        assert!(matches!(mysql(&lsn("100"), &lsn("99")), Outcome::Behind(_)));
        assert!(matches!(mysql(&lsn("100"), &lsn("150")), Outcome::Further(_)));
    }

    #[test]
    fn nonsense_is_compared_with_nothing() {
        for text in ["", ":", "a:", "a:x-", "-", "18446744073709551615", "a:1-18446744073709551615", "0-0"] {
            domains(text, text);
            intervals(text, text);
            binary_log((text, text), (text, text));
            lsn(text);
        }
    }
}
