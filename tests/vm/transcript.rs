//! The same requests to both agents, and every line they answer compared. They may differ where this file says so and why,
//! and nowhere else.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use crate::{
    lab::{
        Lab,
        guest_agent::{Host, RESET, request},
    },
    machine::{Boot, Machine, Place, agent::Setup},
    table::{BOTH, at_once},
};

facts! {
    the_same_requests_get_the_same_answers_but_for_what_is_listed within 180,
}

/// Where we answer otherwise, and why: the reason, and the names of the requests.
const DIFFERENCES: &[(&str, &[&str])] = &[
    (
        "a request is a line here, and a line one request: QEMU's parser reads on over the ends of lines, so that after a \
         request cut off half-way every later one is misunderstood until somebody sends a reset",
        &["a request over three lines", "a request over three lines, frozen"],
    ),
    (
        "one line, one answer: QEMU's parser finds several errors in one line, and says each",
        &[
            "a control character",
            "a word",
            "a word, frozen",
            "deep nesting",
            "deep nesting, frozen",
            "not a number",
            "not a number, frozen",
        ],
    ),
    ("a reset between requests is no error; a host that sends one has to put up with an answer or none", &["a reset"]),
    ("single quotes are QEMU's own, and no JSON", &["single quotes", "single quotes, frozen"]),
    (
        "the last of two equal keys counts, as in most readers of JSON",
        &["twice the same key", "twice the same key, frozen"],
    ),
    (
        "nothing to freeze is no success: a host that is told 0 would go on and cut",
        &["freeze-list: no place", "freeze-list: unknown place"],
    ),
];

/// The state in which requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum When {
    Thawed,
    Frozen,
}

/// What is sent, called by a name. Lines end by themselves.
fn requests() -> Vec<(When, &'static str, Vec<u8>)> {
    use When::{Frozen, Thawed};
    let mut all: Vec<(When, &'static str, Vec<u8>)> = Vec::new();
    let mut add = |when, name, line: &str| all.push((when, name, format!("{line}\n").into_bytes()));
    for when in [Thawed, Frozen] {
        add(when, "ping", r#"{"execute": "guest-ping"}"#);
        add(when, "id: integer", r#"{"execute": "guest-ping", "id": 7}"#);
        add(when, "id: text", r#"{"id": "a \"b\"", "execute": "guest-ping"}"#);
        add(when, "id: object", r#"{"execute": "guest-ping", "id": {"b": 1, "a": [null, true, 1.5]}}"#);
        add(when, "id: null", r#"{"execute": "guest-ping", "id": null}"#);
        add(when, "id with an error", r#"{"execute": "guest-fly", "id": 8}"#);
        add(when, "sync", r#"{"execute": "guest-sync", "arguments": {"id": 9007199254740993}}"#);
        add(when, "sync: the largest", r#"{"execute": "guest-sync", "arguments": {"id": 9223372036854775807}}"#);
        add(when, "sync: too large", r#"{"execute": "guest-sync", "arguments": {"id": 9223372036854775808}}"#);
        add(when, "sync: negative", r#"{"execute": "guest-sync", "arguments": {"id": -3}}"#);
        add(when, "sync: text", r#"{"execute": "guest-sync", "arguments": {"id": "3"}}"#);
        add(when, "sync: fraction", r#"{"execute": "guest-sync", "arguments": {"id": 1.5}}"#);
        add(when, "sync: whole fraction", r#"{"execute": "guest-sync", "arguments": {"id": 2.0}}"#);
        add(when, "sync without id", r#"{"execute": "guest-sync"}"#);
        add(when, "sync with more", r#"{"execute": "guest-sync", "arguments": {"id": 3, "ids": 4}}"#);
        add(when, "sync-delimited", r#"{"execute": "guest-sync-delimited", "arguments": {"id": 11}}"#);
        add(when, "sync-delimited without id", r#"{"execute": "guest-sync-delimited", "arguments": {}}"#);
        add(when, "status", r#"{"execute": "guest-fsfreeze-status"}"#);
        add(when, "ping with an argument", r#"{"execute": "guest-ping", "arguments": {"a": 1}}"#);
        add(when, "ping with empty arguments", r#"{"execute": "guest-ping", "arguments": {}}"#);
        add(when, "arguments: list", r#"{"execute": "guest-ping", "arguments": []}"#);
        add(when, "arguments: text", r#"{"execute": "guest-ping", "arguments": "a"}"#);
        add(when, "arguments: null", r#"{"execute": "guest-ping", "arguments": null}"#);
        add(when, "unknown command", r#"{"execute": "guest-fly"}"#);
        add(when, "unknown command with arguments", r#"{"execute": "guest-fly", "arguments": {"a": 1}}"#);
        add(when, "command in capitals", r#"{"execute": "GUEST-PING"}"#);
        add(when, "command: empty", r#"{"execute": ""}"#);
        add(when, "command: number", r#"{"execute": 1}"#);
        add(when, "no command", r#"{"id": 5}"#);
        add(when, "an empty request", "{}");
        add(when, "an unknown key", r#"{"execute": "guest-ping", "run": 1}"#);
        add(when, "out of band", r#"{"exec-oob": "guest-ping"}"#);
        add(when, "twice the same key", r#"{"execute": "guest-ping", "execute": "guest-fly"}"#);
        add(when, "a list", r#"[{"execute": "guest-ping"}]"#);
        add(when, "a number", "17");
        add(when, "a text", r#""guest-ping""#);
        add(when, "true", "true");
        add(when, "a word", "guest-ping");
        add(when, "an empty line", "");
        add(when, "spaces", " \t ");
        add(when, "space all around", "  {  \"execute\"\t:  \"guest-ping\"  }  \r");
        add(when, "two requests in a line", r#"{"execute": "guest-ping"}{"execute": "guest-ping", "id": 2}"#);
        add(when, "a request over three lines", "{\"execute\":\n\"guest-ping\"\n}");
        add(when, "single quotes", "{'execute': 'guest-ping'}");
        add(when, "escapes", r#"{"execute": "guest\u002dping"}"#);
        add(when, "a wrong escape", r#"{"execute": "guest\qping"}"#);
        add(when, "a comma too much", r#"{"execute": "guest-ping",}"#);
        add(when, "a bracket too much", r#"{"execute": "guest-ping"}}"#);
        add(when, "the wrong bracket", r#"{"execute": "guest-ping"]"#);
        add(when, "not a number", r#"{"execute": "guest-sync", "arguments": {"id": NaN}}"#);
        add(when, "deep nesting", &format!("{}1{}", "[".repeat(2000), "]".repeat(2000)));
    }
    all.push((Thawed, "bytes that are no text", b"{\"execute\": \"guest-\xc3\x28\"}\n".to_vec()));
    all.push((Thawed, "a control character", b"{\"execute\": \"guest-\x01ping\"}\n".to_vec()));
    all.push((Thawed, "a reset", vec![RESET]));
    all.push((Thawed, "a reset within a request", [&b"{\"execute\": \"gue"[..], &[RESET]].concat()));
    let mut add = |when, name, line: &str| all.push((when, name, format!("{line}\n").into_bytes()));
    add(Thawed, "thaw when thawed", r#"{"execute": "guest-fsfreeze-thaw"}"#);
    add(Thawed, "thaw with an argument", r#"{"execute": "guest-fsfreeze-thaw", "arguments": {"a": 1}}"#);
    add(Thawed, "freeze with an argument", r#"{"execute": "guest-fsfreeze-freeze", "arguments": {"mountpoints": []}}"#);
    let list = |places: &str| {
        format!(r#"{{"execute": "guest-fsfreeze-freeze-list", "arguments": {{"mountpoints": {places}}}}}"#)
    };
    add(Thawed, "freeze-list: text", &list("\"/\""));
    add(Thawed, "freeze-list: numbers", &list("[1]"));
    add(Thawed, "freeze-list: null", &list("null"));
    add(Thawed, "freeze-list: unknown place", &list("[\"/nowhere\"]"));
    add(Thawed, "freeze-list: no place", &list("[]"));
    add(Thawed, "thaw after lists", r#"{"execute": "guest-fsfreeze-thaw"}"#);
    for name in ["guest-get-host-name", "guest-get-osinfo", "guest-get-timezone", "guest-get-users", "guest-get-vcpus"]
    {
        add(Thawed, name, &format!(r#"{{"execute": "{name}"}}"#));
    }
    add(Thawed, "guest-network-get-interfaces", r#"{"execute": "guest-network-get-interfaces"}"#);
    add(Thawed, "guest-get-fsinfo", r#"{"execute": "guest-get-fsinfo"}"#);
    add(Thawed, "guest-info", r#"{"execute": "guest-info"}"#);
    add(Thawed, "a file that is not there", r#"{"execute": "guest-file-open", "arguments": {"path": "/nowhere"}}"#);
    add(Thawed, "a relayed command's missing argument", r#"{"execute": "guest-file-open"}"#);
    add(
        Thawed,
        "a relayed command with an id",
        r#"{"execute": "guest-file-close", "arguments": {"handle": 1}, "id": [1]}"#,
    );
    add(Frozen, "freeze when frozen", r#"{"execute": "guest-fsfreeze-freeze"}"#);
    add(Frozen, "freeze-list when frozen", &list("[\"/\"]"));
    add(Frozen, "guest-get-fsinfo when frozen", r#"{"execute": "guest-get-fsinfo"}"#);
    add(Frozen, "guest-get-osinfo when frozen", r#"{"execute": "guest-get-osinfo", "id": 1}"#);
    add(Frozen, "guest-exec when frozen", r#"{"execute": "guest-exec", "arguments": {"path": "/bin/true"}}"#);
    add(Frozen, "guest-info when frozen", r#"{"execute": "guest-info"}"#);
    all.sort_by_key(|(when, _, _)| *when);
    all
}

type Answers = BTreeMap<String, Vec<String>>;

/// Sends each request and then a sync, and takes all lines up to the sync's.
fn ask_all(host: &mut Host) -> Answers {
    let mut answers = Answers::new();
    let mut marks = 1_000_000_u64;
    let mut now = When::Thawed;
    for (when, name, bytes) in requests() {
        if when != now {
            assert_eq!(host.freeze(), json!(2));
            now = when;
        }
        host.send(&bytes);
        if name == "a request over three lines" || name.starts_with("a reset") {
            // whatever is left of it
            host.send(b"\n");
        }
        marks += 1;
        host.send(request("guest-sync", json!({"id": marks})).as_bytes());
        let mut lines = Vec::new();
        loop {
            let line = host.line_within(Duration::from_secs(20)).unwrap_or_else(|| panic!("no answer to `{name}`"));
            let answer: Option<Value> = serde_json::from_slice(&line).ok();
            if answer.as_ref().is_some_and(|a| a["return"] == json!(marks)) {
                break;
            }
            lines.push(steady(name, answer, &line));
        }
        let state = if when == When::Frozen { ", frozen" } else { "" };
        answers.insert(format!("{name}{state}"), lines);
    }
    assert_eq!(host.thaw(), json!(2));
    answers
}

/// An answer as hosts understand it: without the order of keys, and without what differs between any two guests or any two
/// releases of the stock agent.
fn steady(name: &str, answer: Option<Value>, line: &[u8]) -> String {
    let Some(mut answer) = answer else { return line.escape_ascii().to_string() };
    let mut forget = |keys: &[&str]| {
        for entry in answer["return"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            entry.retain(|key, _| !keys.contains(&key.as_str()));
        }
    };
    match name {
        "guest-network-get-interfaces" => forget(&["statistics"]),
        // the middle one came with QEMU 9
        "guest-get-fsinfo" => forget(&["used-bytes", "total-bytes-privileged"]),
        "guest-info" | "guest-info when frozen" => {
            answer["return"]["version"].take();
            if let Some(commands) = answer["return"]["supported_commands"].as_array_mut() {
                commands.sort_by_key(|command| command["name"].to_string());
            }
        }
        _ => {}
    }
    if let Some(desc) = answer["error"]["desc"].as_str() {
        // hosts look for these words; the rest is for people, and another in every release
        let known =
            ["JSON parse error", "has been disabled"].iter().find_map(|words| Some(desc.find(words)? + words.len()));
        answer["error"]["desc"] = known.map_or(desc, |end| &desc[..end]).into();
    }
    sorted(&answer)
}

/// With keys in the order of the alphabet: QEMU's are in that of a hash.
fn sorted(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let map: BTreeMap<&String, &Value> = map.iter().collect();
            let entries = map.iter().map(|(key, value)| format!("{key:?}: {}", sorted(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::Array(list) => format!("[{}]", list.iter().map(sorted).collect::<Vec<_>>().join(", ")),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
    }
}

/// The beginning of what was answered, for people.
fn shown(lines: &[String]) -> String {
    let first: Vec<String> = lines.iter().take(3).map(|l| l.chars().take(300).collect()).collect();
    let more = if lines.len() > 3 { format!(" and {} more", lines.len() - 3) } else { String::new() };
    if lines.is_empty() { "nothing".to_owned() } else { first.join("\n              ") + &more }
}

fn the_same_requests_get_the_same_answers_but_for_what_is_listed(lab: &Lab) {
    let places = BOTH.map(|agent| Place::new(lab, agent.name()));
    let setup = Setup { settings: vec![("listen.relay", "true"), ("hold.max", "\"60s\"")], ..Setup::default() };
    let answers = at_once(|agent| {
        let place = &places[usize::from(agent.name() != "holdstill")];
        let guest = Machine::boot(place, &Boot::small());
        agent.begin(&guest, &setup);
        let mut host = guest.host();
        agent.answers(&mut host);
        ask_all(&mut host)
    });
    let [ours, theirs] = &answers[..] else { unreachable!("two agents") };
    let differing: Vec<&String> = ours.keys().filter(|name| ours[*name] != theirs[*name]).collect();
    let listed = |name: &str| DIFFERENCES.iter().any(|(_, names)| names.contains(&name));
    let unlisted: Vec<&&String> = differing.iter().filter(|name| !listed(name)).collect();
    for name in &unlisted {
        println!("{name}\n   holdstill: {}\n   qemu-ga:   {}", shown(&ours[**name]), shown(&theirs[**name]));
    }
    assert!(unlisted.is_empty(), "these answers differ, and should not: {unlisted:?}");
    let all = DIFFERENCES.iter().flat_map(|(_, names)| *names);
    let same: Vec<&&str> = all.filter(|name| !differing.iter().any(|d| d == *name)).collect();
    assert!(same.is_empty(), "listed as different, but the same: {same:?}");
}
