//! The contract with callers is additive only. `proto/holdstill/v1/holdstill.binpb` is the committed descriptor set
//! (without source info, so comments may change freely); these tests compare it with what this build compiled.
//!
//! After an intended addition: `UPDATE=1 cargo test --test contract`, and commit the file. Refreshing refuses to drop or
//! change anything that was there.

use std::{collections::BTreeMap, fs, path::Path};

use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};

fn committed() -> FileDescriptorSet {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/holdstill/v1/holdstill.binpb");
    FileDescriptorSet::decode(fs::read(path).expect("the descriptor set is committed").as_slice()).expect("it decodes")
}

fn compiled() -> FileDescriptorSet {
    let mut set = FileDescriptorSet::decode(holdstill::proto::DESCRIPTOR_SET).expect("the build wrote it");
    for file in &mut set.file {
        file.source_code_info = None;
    }
    set
}

/// Everything a caller's generated code depends on, as "where" → "what it is".
fn facts(set: &FileDescriptorSet) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    for file in set.file.iter().filter(|f| f.package() == "holdstill.v1") {
        file_facts(file, &mut facts);
    }
    facts
}

fn file_facts(file: &FileDescriptorProto, facts: &mut BTreeMap<String, String>) {
    facts.insert(format!("file {}", file.name()), format!("package {}, {}", file.package(), file.syntax()));
    for service in &file.service {
        for rpc in &service.method {
            let stream = if rpc.server_streaming() { "stream " } else { "" };
            let from = if rpc.client_streaming() { "stream " } else { "" };
            facts.insert(
                format!("rpc {}.{}", service.name(), rpc.name()),
                format!("({from}{}) returns ({stream}{})", rpc.input_type(), rpc.output_type()),
            );
        }
    }
    for message in &file.message_type {
        message_facts("", message, facts);
    }
    for list in &file.enum_type {
        enum_facts("", list, facts);
    }
}

fn message_facts(within: &str, message: &DescriptorProto, facts: &mut BTreeMap<String, String>) {
    let name = format!("{within}{}", message.name());
    facts.insert(format!("message {name}"), String::new());
    for field in &message.field {
        facts.insert(format!("field {name}.{}", field.name()), field_fact(message, field));
    }
    for nested in &message.nested_type {
        message_facts(&format!("{name}."), nested, facts);
    }
    for list in &message.enum_type {
        enum_facts(&format!("{name}."), list, facts);
    }
}

fn field_fact(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let oneof = field.oneof_index.map(|i| message.oneof_decl[usize::try_from(i).expect("an index")].name().to_owned());
    format!(
        "number {}, {:?} {:?} {}, oneof {oneof:?}, json {}",
        field.number(),
        field.label(),
        field.r#type(),
        field.type_name(),
        field.json_name()
    )
}

fn enum_facts(within: &str, list: &EnumDescriptorProto, facts: &mut BTreeMap<String, String>) {
    for value in &list.value {
        facts.insert(format!("value {within}{}.{}", list.name(), value.name()), value.number().to_string());
    }
}

/// What was promised and is no longer so.
fn broken(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    before
        .iter()
        .filter_map(|(what, was)| match after.get(what) {
            None => Some(format!("{what} is gone")),
            Some(is) if is != was => Some(format!("{what} was {was}, is {is}")),
            Some(_) => None,
        })
        .collect()
}

#[test]
fn nothing_a_caller_relies_on_has_gone_or_changed() {
    let broken = broken(&facts(&committed()), &facts(&compiled()));
    assert!(broken.is_empty(), "the contract is additive only:\n{}", broken.join("\n"));
}

#[test]
fn the_committed_descriptor_set_is_what_this_build_compiled() {
    let compiled = compiled();
    if std::env::var("UPDATE").is_ok_and(|v| v == "1") {
        let broken = broken(&facts(&committed()), &facts(&compiled));
        assert!(broken.is_empty(), "not refreshed, the contract is additive only:\n{}", broken.join("\n"));
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/holdstill/v1/holdstill.binpb");
        fs::write(path, compiled.encode_to_vec()).expect("it can be written");
    }
    assert!(committed() == compiled, "refresh it: UPDATE=1 cargo test --test contract");
}

#[test]
fn a_dropped_field_a_renumbered_value_and_a_changed_rpc_are_all_noticed() {
    let before = facts(&committed());
    let mut set = committed();
    let file = set.file.iter_mut().find(|f| f.package() == "holdstill.v1").expect("ours");
    file.message_type.iter_mut().find(|m| m.name() == "Report").expect("Report").field.remove(0);
    file.enum_type.iter_mut().find(|e| e.name() == "Verdict").expect("Verdict").value[1].number = Some(9);
    file.service[0].method[0].server_streaming = Some(true);
    let found = broken(&before, &facts(&set));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().any(|f| f == "field Report.id is gone"));
    assert!(found.iter().any(|f| f == "value Verdict.VERDICT_UNBROKEN was 1, is 9"));
    assert!(found.iter().any(|f| f.starts_with("rpc HoldstillService.Check was ")));
}

#[test]
fn every_enum_has_a_zero_named_unspecified_and_prefixed_values() {
    for list in compiled().file.iter().filter(|f| f.package() == "holdstill.v1").flat_map(|f| &f.enum_type) {
        let prefix = list.name().chars().fold(String::new(), |mut out, c| {
            if c.is_uppercase() && !out.is_empty() {
                out.push('_');
            }
            out.push(c.to_ascii_uppercase());
            out
        });
        assert_eq!(list.value[0].name(), format!("{prefix}_UNSPECIFIED"));
        assert_eq!(list.value[0].number(), 0);
        assert!(list.value.iter().all(|v| v.name().starts_with(&format!("{prefix}_"))), "{}", list.name());
    }
}
