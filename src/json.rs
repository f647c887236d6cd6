//! Messages of the contract as `--json` documents, and back (a hold record given to `verify`).
//!
//! proto3 JSON with these choices, the same in every document: snake_case names; enum values lowercase without their
//! prefix; durations as `"1.234s"`, timestamps as RFC 3339 in UTC; 64-bit integers as numbers; scalar and repeated fields
//! always present, even when empty; unset messages, `optional` fields and oneof members left out.

use std::sync::OnceLock;

use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage, Value,
};
use serde_json::{Map, Value as Json};

use crate::proto;

/// A message of the contract that can be printed and read back.
pub trait Document: Message + Default {
    /// its name in package holdstill.v1
    const NAME: &'static str;
}

macro_rules! documents {
    ($($name:ident),* $(,)?) => { $(impl Document for proto::$name { const NAME: &'static str = stringify!($name); })* };
}

documents!(
    CheckResponse,
    Coverage,
    ExtendResponse,
    FreezeResponse,
    GetReportResponse,
    GetStatusResponse,
    HoldResponse,
    ListReportsResponse,
    Problem,
    Report,
    Restored,
    Step,
    ThawResponse,
    WatchResponse,
);

/// Why a document cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the document: {0}")]
    Syntax(#[from] serde_json::Error),
    #[error("read the document: {path} should be {expected}")]
    Type { path: String, expected: String },
    #[error("read the document: it holds neither a report nor an answer with one")]
    NoReport,
}

/// The message as a JSON object, members in the order of the contract.
pub fn to_json<M: Document>(message: &M) -> Json {
    let encoded = message.encode_to_vec();
    let message = DynamicMessage::decode(descriptor(M::NAME), encoded.as_slice()).expect("what prost wrote, it reads");
    object(&message)
}

/// Reads back what [`to_json`] printed. Members it does not know are ignored, missing ones are default.
///
/// # Errors
/// A member of the wrong type, with its path.
pub fn from_json<M: Document>(json: &Json) -> Result<M, Error> {
    let message = parse_message(descriptor(M::NAME), json, "document")?;
    Ok(M::decode(message.encode_to_vec().as_slice()).expect("what prost wrote, it reads"))
}

/// Reads a hold record: the document `freeze`, `thaw` or `run --report` wrote, or a bare report.
///
/// # Errors
/// Not JSON, not such a document, or a member of the wrong type.
pub fn record(text: &str) -> Result<proto::Report, Error> {
    let json: Json = serde_json::from_str(text)?;
    let report = match json.get("report") {
        Some(report) => report,
        None if json.get("id").is_some() => &json,
        None => return Err(Error::NoReport),
    };
    from_json(report)
}

fn descriptor(name: &str) -> MessageDescriptor {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(proto::DESCRIPTOR_SET).expect("the build compiled it"))
        .get_message_by_name(&format!("holdstill.v1.{name}"))
        .expect("documents! names messages of the contract")
}

fn object(message: &DynamicMessage) -> Json {
    match message.descriptor().full_name() {
        "google.protobuf.Duration" => return Json::String(duration_text(seconds(message), nanos(message))),
        "google.protobuf.Timestamp" => return Json::String(timestamp_text(seconds(message), nanos(message))),
        _ => {}
    }
    let mut members = Map::new();
    for field in message.descriptor().fields() {
        if field.supports_presence() && !message.has_field(&field) {
            continue;
        }
        members.insert(field.name().to_owned(), value(&field.kind(), &message.get_field(&field)));
    }
    Json::Object(members)
}

fn value(kind: &Kind, value: &Value) -> Json {
    match value {
        Value::Bool(v) => Json::from(*v),
        Value::I32(v) => Json::from(*v),
        Value::I64(v) => Json::from(*v),
        Value::U32(v) => Json::from(*v),
        Value::U64(v) => Json::from(*v),
        Value::F32(v) => Json::from(*v),
        Value::F64(v) => Json::from(*v),
        Value::String(v) => Json::from(v.as_str()),
        Value::EnumNumber(v) => {
            kind.as_enum().and_then(|list| enum_text(list, *v)).map_or_else(|| Json::from(*v), Json::from)
        }
        Value::Message(v) => object(v),
        Value::List(list) => list.iter().map(|item| self::value(kind, item)).collect(),
        Value::Bytes(_) | Value::Map(_) => unreachable!("the contract has neither bytes nor maps; a test pins that"),
    }
}

fn enum_text(list: &EnumDescriptor, number: i32) -> Option<String> {
    let value = list.get_value(number)?;
    Some(value.name()[enum_prefix(list).len()..].to_ascii_lowercase())
}

/// `RELEASE_REASON_` for `ReleaseReason`: what its zero value, always `…_UNSPECIFIED`, begins with.
fn enum_prefix(list: &EnumDescriptor) -> String {
    let zero = list.default_value();
    zero.name().strip_suffix("UNSPECIFIED").expect("a contract test pins the zero value's name").to_owned()
}

fn seconds(message: &DynamicMessage) -> i64 {
    message.get_field_by_name("seconds").and_then(|v| v.as_i64()).unwrap_or_default()
}

fn nanos(message: &DynamicMessage) -> i32 {
    message.get_field_by_name("nanos").and_then(|v| v.as_i32()).unwrap_or_default()
}

/// As proto3 JSON has it: 0, 3, 6 or 9 digits after the point.
fn duration_text(seconds: i64, nanos: i32) -> String {
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    format!("{sign}{}{}s", seconds.unsigned_abs(), fraction(nanos.unsigned_abs()))
}

fn fraction(nanos: u32) -> String {
    match nanos {
        0 => String::new(),
        n if n.is_multiple_of(1_000_000) => format!(".{:03}", n / 1_000_000),
        n if n.is_multiple_of(1_000) => format!(".{:06}", n / 1_000),
        n => format!(".{n:09}"),
    }
}

fn timestamp_text(seconds: i64, nanos: i32) -> String {
    let time = prost_types::Timestamp { seconds, nanos };
    // prost-types prints RFC 3339 with as many digits as are needed
    time.to_string()
}

fn parse_message(descriptor: MessageDescriptor, json: &Json, path: &str) -> Result<DynamicMessage, Error> {
    let wrong = |expected: &str| Error::Type { path: path.to_owned(), expected: expected.to_owned() };
    let mut message = DynamicMessage::new(descriptor.clone());
    match descriptor.full_name() {
        "google.protobuf.Duration" => {
            let text = json.as_str().ok_or_else(|| wrong("a duration such as \"1.234s\""))?;
            let time: prost_types::Duration = text.parse().map_err(|_| wrong("a duration such as \"1.234s\""))?;
            message.transcode_from(&time).expect("the same message");
            return Ok(message);
        }
        "google.protobuf.Timestamp" => {
            let text = json.as_str().ok_or_else(|| wrong("an RFC 3339 time"))?;
            let time: prost_types::Timestamp = text.parse().map_err(|_| wrong("an RFC 3339 time"))?;
            message.transcode_from(&time).expect("the same message");
            return Ok(message);
        }
        _ => {}
    }
    let members = json.as_object().ok_or_else(|| wrong("an object"))?;
    for field in descriptor.fields() {
        if let Some(json) = members.get(field.name()) {
            let path = format!("{path}.{}", field.name());
            message.set_field(&field, parse_field(&field, json, &path)?);
        }
    }
    Ok(message)
}

fn parse_field(field: &FieldDescriptor, json: &Json, path: &str) -> Result<Value, Error> {
    if !field.is_list() {
        return parse_value(&field.kind(), json, path);
    }
    let items = json.as_array().ok_or_else(|| Error::Type { path: path.to_owned(), expected: "a list".to_owned() })?;
    let items = items.iter().enumerate().map(|(i, item)| parse_value(&field.kind(), item, &format!("{path}[{i}]")));
    Ok(Value::List(items.collect::<Result<_, _>>()?))
}

fn parse_value(kind: &Kind, json: &Json, path: &str) -> Result<Value, Error> {
    let expected = |expected: &str| Error::Type { path: path.to_owned(), expected: expected.to_owned() };
    match kind {
        Kind::Bool => json.as_bool().map(Value::Bool).ok_or_else(|| expected("true or false")),
        Kind::String => json.as_str().map(|v| Value::String(v.to_owned())).ok_or_else(|| expected("a string")),
        Kind::Int32 => {
            json.as_i64().and_then(|v| i32::try_from(v).ok()).map(Value::I32).ok_or_else(|| expected("a 32-bit number"))
        }
        Kind::Uint32 => {
            json.as_u64().and_then(|v| u32::try_from(v).ok()).map(Value::U32).ok_or_else(|| expected("a 32-bit number"))
        }
        Kind::Uint64 => json.as_u64().map(Value::U64).ok_or_else(|| expected("a number")),
        Kind::Enum(list) => parse_enum(list, json).map(Value::EnumNumber).ok_or_else(|| expected(&choices(list))),
        Kind::Message(descriptor) => parse_message(descriptor.clone(), json, path).map(Value::Message),
        Kind::Int64
        | Kind::Sint32
        | Kind::Sint64
        | Kind::Fixed32
        | Kind::Fixed64
        | Kind::Sfixed32
        | Kind::Sfixed64
        | Kind::Float
        | Kind::Double
        | Kind::Bytes => unreachable!("the contract has no such field; a test pins that"),
    }
}

fn parse_enum(list: &EnumDescriptor, json: &Json) -> Option<i32> {
    if let Some(number) = json.as_i64() {
        return i32::try_from(number).ok();
    }
    let name = format!("{}{}", enum_prefix(list), json.as_str()?.to_ascii_uppercase());
    list.get_value_by_name(&name).map(|v| v.number())
}

fn choices(list: &EnumDescriptor) -> String {
    let names: Vec<_> = list.values().filter_map(|v| enum_text(list, v.number())).collect();
    format!("one of {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> proto::Report {
        proto::Report {
            id: "3f2a".into(),
            phase: proto::Phase::Held.into(),
            consistency: proto::Consistency::Application.into(),
            remaining: Some(prost_types::Duration { seconds: 59, nanos: 999_000_000 }),
            held_time: Some(prost_types::Timestamp { seconds: 1_760_000_000, nanos: 5_000_000 }),
            steps: vec![proto::Step {
                name: "hook:10-a".into(),
                kind: proto::StepKind::Hook.into(),
                took: Some(prost_types::Duration { seconds: 0, nanos: 1_500 }),
                detail: Some(proto::step::Detail::Hook(proto::HookRun { exit_code: Some(0), ..Default::default() })),
                ..Default::default()
            }],
            coverage: vec![proto::Coverage { used_bytes: u64::MAX, ..Default::default() }],
            ..Default::default()
        }
    }

    #[test]
    fn a_report_prints_as_the_contract_says() {
        let json = to_json(&report());
        assert_eq!(json["phase"], "held");
        assert_eq!(json["consistency"], "application");
        assert_eq!(json["verdict"], "unspecified");
        assert_eq!(json["remaining"], "59.999s");
        assert_eq!(json["held_time"], "2025-10-09T08:53:20.005Z");
        assert_eq!(json["coverage"][0]["used_bytes"], Json::from(u64::MAX));
        assert_eq!(json["steps"][0]["took"], "0.000001500s");
        assert_eq!(json["steps"][0]["hook"]["exit_code"], 0);
    }

    #[test]
    fn scalars_and_lists_are_always_there_and_what_is_unset_is_not() {
        let json = to_json(&report());
        assert_eq!(json["label"], "");
        assert_eq!(json["rehearsal"], false);
        assert_eq!(json["breaches"], Json::Array(vec![]));
        for absent in ["released_time", "prepare_took"] {
            assert!(json.get(absent).is_none(), "{absent}");
        }
        let step = &json["steps"][0];
        assert!(step.get("filesystem").is_none());
        assert!(step["hook"].get("signal").is_none());
        let event = proto::WatchResponse { event: Some(proto::Event::default()) };
        assert_eq!(to_json(&event)["event"].to_string(), r#"{"sequence":0,"hold_id":""}"#);
    }

    #[test]
    fn members_come_in_the_order_of_the_contract() {
        let json = to_json(&report());
        let names: Vec<_> = json.as_object().expect("an object").keys().map(String::as_str).take(5).collect();
        assert_eq!(names, ["id", "label", "phase", "consistency", "required"]);
    }

    #[test]
    fn what_is_printed_reads_back_the_same() {
        let before = report();
        assert_eq!(from_json::<proto::Report>(&to_json(&before)).expect("reads"), before);
        let event = proto::Event { what: Some(proto::event::What::Lagged(7)), sequence: 9, ..Default::default() };
        let watch = proto::WatchResponse { event: Some(event) };
        assert_eq!(from_json::<proto::WatchResponse>(&to_json(&watch)).expect("reads"), watch);
    }

    #[test]
    fn a_record_is_any_answer_with_a_report_or_a_bare_one() {
        let thaw = proto::ThawResponse { report: Some(report()), already_released: true };
        assert_eq!(record(&to_json(&thaw).to_string()).expect("reads"), report());
        assert_eq!(record(&to_json(&report()).to_string()).expect("reads"), report());
        assert!(matches!(record(r#"{"phase":"idle"}"#), Err(Error::NoReport)));
        assert!(matches!(record("{"), Err(Error::Syntax(_))));
    }

    #[test]
    fn a_member_of_the_wrong_type_is_named_with_its_path() {
        let json = serde_json::json!({"steps": [{"name": "fs:/"}, {"outcome": "brilliant"}]});
        let error = from_json::<proto::Report>(&json).expect_err("no such outcome");
        assert_eq!(
            error.to_string(),
            "read the document: document.steps[1].outcome should be one of unspecified, planned, done, skipped, failed, \
             undone, undo_failed"
        );
    }

    #[test]
    fn members_of_a_newer_version_are_ignored() {
        let json = serde_json::json!({"id": "a", "shiny": {"new": 1}});
        assert_eq!(from_json::<proto::Report>(&json).expect("reads").id, "a");
    }

    #[test]
    fn the_contract_has_only_kinds_this_file_knows() {
        let pool = DescriptorPool::decode(proto::DESCRIPTOR_SET).expect("the build compiled it");
        for message in pool.all_messages().filter(|m| m.package_name() == "holdstill.v1") {
            for field in message.fields() {
                let known = matches!(
                    field.kind(),
                    Kind::Bool
                        | Kind::String
                        | Kind::Int32
                        | Kind::Uint32
                        | Kind::Uint64
                        | Kind::Enum(_)
                        | Kind::Message(_)
                );
                assert!(known && !field.is_map(), "{}", field.full_name());
            }
        }
    }

    #[test]
    fn durations_have_0_3_6_or_9_digits() {
        let cases =
            [((1, 0), "1s"), ((1, 234_000_000), "1.234s"), ((0, 20_000), "0.000020s"), ((-1, -5), "-1.000000005s")];
        for ((seconds, nanos), text) in cases {
            assert_eq!(duration_text(seconds, nanos), text);
        }
    }
}
