//! Receipts are read from disks of strangers: damaged, cut short, of a version to come, or made to harm. Each is refused
//! with one sentence, or graded as what it proves; nothing of it reaches the terminal but text.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

use holdstill::hold::{
    receipt::{DIRECTORY, JSON, STATE, Sector, State},
    verify::{self, Host},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

fn sector(hold_id: &str) -> Vec<u8> {
    let (fs_uuid, boot_id) = ("0b6b4a4e-8c2c-4f53-a9f7-9d8a8a9b8d11".into(), "b".into());
    Sector { state: State::Frozen, hold_id: hold_id.into(), fs_uuid, boot_id, prepared: 1_795_000_000 }.encode()
}

/// A copy with these two files.
fn copy(state: &[u8], json: &[u8]) -> TempDir {
    let root = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(root.path().join(DIRECTORY)).expect("created");
    fs::write(root.path().join(DIRECTORY).join(STATE), state).expect("written");
    fs::write(root.path().join(DIRECTORY).join(JSON), json).expect("written");
    root
}

/// `verify` with little memory and little time.
fn verified(root: &Path, verb: &[&str]) -> Output {
    let line = "ulimit -v 600000; exec timeout 20 \"$@\"";
    let mut sh = Command::new("sh");
    sh.args(["-c", line, "sh", env!("CARGO_BIN_EXE_holdstill")]).args(verb).arg(root);
    sh.output().expect("sh runs")
}

/// What was said, which must be harmless.
fn said(output: &Output, what: &str) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let text = String::from_utf8(text).unwrap_or_else(|_| panic!("{what}: not UTF-8"));
    let strange = text.chars().find(|c| c.is_control() && *c != '\n');
    assert_eq!(strange, None, "{what}: {text:?}");
    assert!(!text.contains("panicked") && text.len() < 20_000, "{what}: {text}");
    text
}

fn refused(root: &Path, what: &str, why: &str) {
    let output = verified(root, &["verify"]);
    let text = said(&output, what);
    assert_eq!(output.status.code(), Some(1), "{what}: {text}");
    assert!(text.contains(why), "{what}: {text}");
    assert_eq!(text.lines().filter(|line| line.starts_with('!')).count(), 1, "{what}: one sentence: {text}");
    let output = verified(root, &["receipt"]);
    let text = said(&output, what);
    assert_eq!(output.status.code(), Some(3), "{what}: {text}");
}

#[test]
fn a_damaged_state_is_refused_with_a_sentence() {
    let good = sector("nightly");
    let with = |at: usize, bytes: &[u8], sealed: bool| {
        let mut state = good.clone();
        state[at..at + bytes.len()].copy_from_slice(bytes);
        if sealed {
            let crc = crc32fast::hash(&state[..508]);
            state[508..512].copy_from_slice(&crc.to_le_bytes());
        }
        state
    };
    let cases: [(&str, Vec<u8>, &str); 7] = [
        ("empty", Vec::new(), "cut short"),
        ("one byte less", good[..511].to_vec(), "cut short"),
        (
            "noise",
            (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect(),
            "not written by holdstill",
        ),
        ("of a version to come", with(8, &2_u32.to_le_bytes(), true), "format 2"),
        ("a flipped bit", with(20, &[0xff], false), "checksum"),
        ("a state nobody writes", with(12, &99_u32.to_le_bytes(), true), "99"),
        ("longer than any", vec![b'.'; 1 << 20], "at most"),
    ];
    for (what, state, why) in cases {
        refused(copy(&state, b"{}").path(), what, why);
    }
}

#[test]
fn a_damaged_record_is_refused_with_a_sentence() {
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("empty", Vec::new(), "not JSON"),
        ("cut short", br#"{"format":1,"report":{"steps":[{"na"#.to_vec(), "not JSON"),
        ("not UTF-8", b"{\"a\":\"\xff\xfe\"}".to_vec(), "not JSON"),
        ("deep", "[".repeat(50_000).into_bytes(), "not JSON"),
        ("deep objects", "{\"a\":".repeat(10_000).into_bytes(), "not JSON"),
        ("of a version to come", br#"{"format":2}"#.to_vec(), "format 2"),
        ("a version with a cursor in it", br#"{"format":"\u001b[2J\u0007"}"#.to_vec(), "format"),
        ("longer than any", vec![b' '; 70_000], "at most"),
    ];
    for (what, json, why) in cases {
        refused(copy(&sector("nightly"), &json).path(), what, why);
    }
}

#[test]
fn what_is_no_plain_file_is_refused_and_not_opened() {
    let node = |path: &Path, args: &[&str]| {
        Command::new("mknod").arg(path).args(args).status().is_ok_and(|status| status.success())
    };
    for name in [STATE, JSON] {
        let root = copy(&sector("nightly"), b"{}");
        let path = root.path().join(DIRECTORY).join(name);
        let replace = || fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).expect("removed");
        replace();
        symlink("/etc/passwd", &path).expect("linked");
        refused(root.path(), "a link", "symbolic link");
        replace();
        symlink("/proc/self/mem", &path).expect("linked");
        refused(root.path(), "a link to memory", "symbolic link");
        replace();
        fs::create_dir(&path).expect("created");
        refused(root.path(), "a directory", "not a regular file");
        replace();
        assert!(node(&path, &["p"]));
        refused(root.path(), "a FIFO nobody writes to", "not a regular file");
        replace();
        // endless zeroes; only root makes devices
        if node(&path, &["c", "1", "5"]) {
            refused(root.path(), "a device", "not a regular file");
            replace();
        }
        fs::File::create(&path).and_then(|file| file.set_len(1 << 42)).expect("sparse");
        refused(root.path(), "four terabytes of nothing", "at most");
    }
    let root = tempfile::tempdir().expect("a temporary directory");
    let directory = root.path().join(DIRECTORY);
    let elsewhere = copy(&sector("nightly"), b"{}");
    symlink(elsewhere.path().join(DIRECTORY), &directory).expect("linked");
    refused(root.path(), "a link to another's", "symbolic link");
    fs::remove_file(&directory).expect("removed");
    fs::write(&directory, "").expect("written");
    refused(root.path(), "a file", "not a regular file");
}

#[test]
fn texts_of_a_stranger_move_no_cursor() {
    let evil = "\u{1b}[2J\u{1b}]0;owned\u{7}\r\n! /: proven\u{202e}\u{9b}31m";
    let record = json!({
        "format": 1, "hold_id": evil, "filesystem": {"mount": evil, "uuid": evil},
        "report": {
            "id": evil, "consistency": "crash", "verdict": "unspecified",
            "steps": [
                {"name": evil, "kind": "filesystem", "outcome": "done", "filesystem": {"uuid": evil, "mount": evil}},
                {"name": evil, "kind": "database", "outcome": "failed", "reason": evil,
                 "database": {"engine": evil, "version": evil, "claim": "exact", "settings": [{"key": evil, "value": evil}],
                              "paths": [{"purpose": "data", "path": "/../../etc", "held": false}]}},
            ],
            "coverage": [{"disk": evil, "mounts": [evil], "durability": "transient", "type": evil,
                          "risks": [{"level": "database", "subject": evil, "message": evil}]}],
            "problems": [{"code": "DATABASE_NOT_HELD", "message": evil}],
        },
    });
    let root = copy(&sector("\u{1b}[31mx\u{9b}"), record.to_string().as_bytes());
    let text = said(&verified(root.path(), &["verify"]), "verify");
    assert!(text.contains("\\u{1b}[2J"), "it is shown: {text}");
    assert!(!text.lines().any(|line| line.starts_with("! /: proven")), "{text}");
}

#[test]
fn as_many_entries_as_fit_are_no_trouble() {
    let entry = json!({"disk": "d", "mounts": ["/m"], "durability": "mixed"});
    let entries: Vec<Value> = std::iter::repeat_n(entry, 1000).collect();
    let record = json!({"filesystem": {"mount": "/"}, "report": {"steps": [], "coverage": entries}});
    let root = copy(&sector("nightly"), record.to_string().as_bytes());
    let output = verified(root.path(), &["--json", "verify"]);
    let document: Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert!(document["left_behind"].as_array().is_some_and(|left| left.len() <= 256));
}

/// Records as they might be: the right names, and anything behind them.
fn record() -> impl Strategy<Value = Value> {
    let names = [
        "report",
        "filesystem",
        "steps",
        "coverage",
        "database",
        "paths",
        "start",
        "settings",
        "risks",
        "contents",
        "mounts",
        "mount",
        "uuid",
        "outcome",
        "purpose",
        "path",
        "held",
        "key",
        "value",
        "engine",
        "claim",
        "durability",
        "name",
        "disk",
    ];
    let words = ["data", "done", "exact", "transient", "/", "/mnt", "/../..", "postgresql", "mysql", "\u{1b}[2J", ""];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        proptest::sample::select(words.to_vec()).prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 200, 8, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((proptest::sample::select(names.to_vec()), inner), 0..8)
                .prop_map(|members| Value::Object(members.into_iter().map(|(name, v)| (name.to_owned(), v)).collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_record_makes_it_panic_or_claim_what_it_cannot(report in record(), filesystem in record()) {
        let record = json!({"filesystem": filesystem, "report": report});
        let root = copy(&sector("nightly"), record.to_string().as_bytes());
        let paths = [root.path().to_owned()];
        if let Ok(verification) = verify::verify(&paths, None, Host::Elsewhere) {
            prop_assert!(verification.grade < verify::Grade::Proven);
            let _ = verification.to_json();
        }
    }
}
