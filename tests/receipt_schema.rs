//! docs/receipt.schema.json is what receipts of this version say, made from the contract and its comments, and receipts of
//! earlier versions (tests/fixtures/receipts) still are read and still are what it describes.
//!
//! After a change of the contract: `UPDATE=1 cargo test --test receipt_schema`, and commit the file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use prost_reflect::{DescriptorPool, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The comment above a thing of the contract, as one text.
fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let info = file.file_descriptor_proto().source_code_info.as_ref().expect("compiled with comments");
    let found = info.location.iter().find(|location| location.path == path);
    let lines = found.map(|location| location.leading_comments().lines().map(str::trim).collect::<Vec<_>>());
    lines.unwrap_or_default().join(" ").trim().to_owned()
}

/// Every message reachable from the report, by its short name.
struct Definitions(BTreeMap<String, Value>);

impl Definitions {
    fn reference(&mut self, message: &MessageDescriptor) -> Value {
        match message.full_name() {
            "google.protobuf.Duration" => {
                return json!({"type": "string", "pattern": "^-?[0-9]+(\\.[0-9]{3}|\\.[0-9]{6}|\\.[0-9]{9})?s$"});
            }
            "google.protobuf.Timestamp" => return json!({"type": "string", "format": "date-time"}),
            _ => {}
        }
        let name = message.name().to_owned();
        if !self.0.contains_key(&name) {
            // first a place, or a message in itself would never end
            self.0.insert(name.clone(), Value::Null);
            let definition = self.definition(message);
            self.0.insert(name.clone(), definition);
        }
        json!({"$ref": format!("#/$defs/{name}")})
    }

    fn definition(&mut self, message: &MessageDescriptor) -> Value {
        let mut properties = Map::new();
        for field in message.fields() {
            let one = self.of_kind(&field);
            let mut shape = if field.is_list() { json!({"type": "array", "items": one}) } else { one };
            let said = comment(&message.parent_file(), field.path());
            shape.as_object_mut().expect("an object").insert("description".into(), said.into());
            properties.insert(field.name().to_owned(), shape);
        }
        let said = comment(&message.parent_file(), message.path());
        json!({"description": said, "type": "object", "properties": properties})
    }

    fn of_kind(&mut self, field: &FieldDescriptor) -> Value {
        match field.kind() {
            Kind::Bool => json!({"type": "boolean"}),
            Kind::String => json!({"type": "string"}),
            Kind::Int32 => json!({"type": "integer"}),
            Kind::Uint32 | Kind::Uint64 => json!({"type": "integer", "minimum": 0}),
            Kind::Message(message) => self.reference(&message),
            Kind::Enum(list) => {
                let zero = list.default_value();
                let prefix = zero.name().strip_suffix("UNSPECIFIED").expect("pinned by the contract's tests").len();
                let words: Vec<String> = list.values().map(|v| v.name()[prefix..].to_ascii_lowercase()).collect();
                json!({"type": "string", "enum": words})
            }
            other => panic!("{}: the contract has no {other:?} so far", field.full_name()),
        }
    }
}

fn schema() -> Value {
    let pool = DescriptorPool::decode(holdstill::proto::DESCRIPTOR_SET).expect("the build wrote it");
    let mut definitions = Definitions(BTreeMap::new());
    let report = definitions.reference(&pool.get_message_by_name("holdstill.v1.Report").expect("it is there"));
    let identity = |what: &str| json!({"type": ["string", "null"], "description": what});
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "receipt.json, format 1",
        "description": "What holdstill keeps in .holdstill/receipt.json at the root of each file system it held. Made from \
            proto/holdstill/v1/holdstill.proto. Later versions add members; whoever reads ignores what it does not know. A \
            receipt that had to be short lacks members, and says so in report.truncated.",
        "type": "object",
        "required": ["format", "hold_id"],
        "properties": {
            "format": {"const": 1, "description": "Changes when a reader that does not know the change would misread it."},
            "hold_id": {"type": "string", "description": "The hold; the same as in the file `state`."},
            "filesystem": {
                "description": "The file system this receipt lies on, as it was when the hold was prepared.",
                "type": "object",
                "properties": {
                    "mount": {"type": "string", "description": "Where it was mounted."},
                    "type": {"type": "string", "description": "ext4, xfs, btrfs ..."},
                    "uuid": {"type": "string", "description": "Its UUID; empty if it has none."},
                    "disk": {"type": "string", "description": "What it was mounted from, as the kernel names it."},
                    "mount_count": {"type": ["integer", "null"], "description": "ext4: s_mnt_count of its superblock."},
                    "mount_time": {"type": ["integer", "null"], "description": "ext4: s_mtime, seconds since 1970."},
                },
            },
            "report": report,
            "boot_id": identity("/proc/sys/kernel/random/boot_id; the same as in `state`."),
            "machine_id": identity("/etc/machine-id: copied along with the disk."),
            "product_uuid": identity("The hypervisor's; lower case."),
            "holdstill": {"type": "string", "description": "The version that wrote this."},
        },
        "$defs": definitions.0,
    })
}

#[test]
fn the_published_schema_is_that_of_this_version() {
    let path = at("docs/receipt.schema.json");
    let made = format!("{}\n", serde_json::to_string_pretty(&schema()).expect("it serialises"));
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &made).expect("docs/ is writable");
    }
    let published = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        published == made,
        "docs/receipt.schema.json is not this version's: UPDATE=1 cargo test --test receipt_schema"
    );
}

#[test]
fn everything_in_it_is_explained() {
    let said = |value: &Value| value["description"].as_str().is_some_and(|text| text.len() > 4);
    for (name, definition) in schema()["$defs"].as_object().expect("definitions") {
        assert!(said(definition), "{name} is not explained");
        for (field, shape) in definition["properties"].as_object().expect("members") {
            assert!(said(shape), "{name}.{field} is not explained");
        }
    }
}

#[test]
fn receipts_of_every_version_are_what_it_describes_and_are_read() {
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    let mut versions = BTreeSet::new();
    for entry in fs::read_dir(at("tests/fixtures/receipts")).expect("fixtures") {
        let dir = entry.expect("readable").path();
        let found = holdstill::hold::receipt::read(&dir).expect("readable").expect("a receipt");
        let errors: Vec<String> =
            validator.iter_errors(&found.record).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert_eq!(errors, Vec::<String>::new(), "{}", dir.display());
        assert_eq!(found.record["hold_id"], found.sector.hold_id.as_str());
        let report: holdstill::proto::Report = holdstill::json::from_json(&found.record["report"]).expect("a report");
        assert!(!report.steps.is_empty() && report.held_time.is_none(), "cut while held, and with its steps");
        versions.insert(dir.file_name().expect("named").to_owned());
    }
    assert!(versions.len() >= 2, "the receipts of earlier versions are gone: {versions:?}");
}

#[test]
fn what_is_not_a_receipt_is_noticed() {
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    for wrong in [
        json!({"hold_id": "a"}),
        json!({"format": 2, "hold_id": "a"}),
        json!({"format": 1, "hold_id": "a", "report": {"verdict": "perhaps"}}),
        json!({"format": 1, "hold_id": "a", "report": {"held_took": 5}}),
        json!({"format": 1, "hold_id": "a", "report": {"coverage": [{"used_bytes": -1}]}}),
    ] {
        assert!(!validator.is_valid(&wrong), "{wrong}");
    }
}
