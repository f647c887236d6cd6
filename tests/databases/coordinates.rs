//! What a report says about where a server's logs stood, and where a recovered copy says it stands.

use serde_json::Value;

use crate::lab::database::{Engine, Server};

/// A coordinate of a report's database, `which` being "start" or "end".
pub fn coordinate(database: &Value, which: &str, key: &str) -> Option<String> {
    let list = database[which].as_array()?;
    list.iter().find(|c| c["key"] == key)?["value"].as_str().map(str::to_owned)
}

/// Where recovery of a copy ended lies between what the report says of start and end; where it claims `exact` it is the
/// same as both.
///
/// # Panics
/// It is not so.
pub fn recovered_as_claimed(server: &Server, database: &Value) {
    let claim = database["claim"].as_str().unwrap_or_default();
    let key = match server.engine() {
        Engine::Postgresql => "flush_lsn",
        Engine::Mysql => "gtid_executed",
        Engine::Mariadb => "gtid_binlog_pos",
    };
    let [start, end] = ["start", "end"].map(|which| {
        coordinate(database, which, key).unwrap_or_else(|| panic!("no {key} at the {which}: {database:#}"))
    });
    let recovered = match server.engine() {
        Engine::Postgresql => {
            recovered_to(&server.log()).unwrap_or_else(|| panic!("recovered to where?\n{}", server.log()))
        }
        Engine::Mysql => server.query("SELECT @@GLOBAL.gtid_executed").remove(0).replace('\n', ""),
        Engine::Mariadb => server.query("SELECT @@GLOBAL.gtid_binlog_pos").remove(0),
    };
    let told = format!("{claim}: start {start}, recovered {recovered}, end {end}");
    match claim {
        "exact" => assert!(start == end && start == recovered, "{told}"),
        "bounded" => assert!(is_within(server, &start, &recovered) && is_within(server, &recovered, &end), "{told}"),
        other => panic!("nothing is claimed that could be compared: {other} {database:#}"),
    }
}

/// `less` is not after `more`.
fn is_within(server: &Server, less: &str, more: &str) -> bool {
    match server.engine() {
        Engine::Postgresql => lsn(less) <= lsn(more),
        Engine::Mysql => server.query(&format!("SELECT GTID_SUBSET('{less}', '{more}')")) == ["1"],
        // one domain, one server
        Engine::Mariadb => sequence(less) <= sequence(more),
    }
}

fn sequence(gtid: &str) -> Option<u64> {
    gtid.rsplit('-').next()?.parse().ok()
}

fn lsn(text: &str) -> Option<u64> {
    let (high, low) = text.trim_matches(|c: char| !c.is_ascii_hexdigit()).split_once('/')?;
    Some(u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?)
}

/// The end of the log, which recovery tells in the line before it is done: "invalid record length at 0/1A2B3C8: …".
fn recovered_to(log: &str) -> Option<String> {
    let (before, _) = log.split_once("redo done at").or_else(|| log.split_once("redo is not required"))?;
    let position = |(at, _): (usize, &str)| {
        let text = before[at..].trim_start_matches(" at ");
        let end = text.find(|c: char| c != '/' && !c.is_ascii_hexdigit())?;
        lsn(&text[..end]).map(|_| text[..end].to_owned())
    };
    before.rmatch_indices(" at ").find_map(position)
}
