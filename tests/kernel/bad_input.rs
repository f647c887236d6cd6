//! Promise: bad input is a clear sentence, the right exit code, and changes nothing.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use crate::lab::{
    Daemon, Fs, Lab, Type, Writer, command,
    daemon::{Answer, BINARY, Running},
};

facts! {
    an_unknown_key_stops_the_daemon_and_names_its_neighbour,
    a_run_directory_on_a_disk_is_refused,
    a_mount_point_that_does_not_exist_is_refused,
    a_directory_that_is_no_mount_point_is_refused,
    a_duration_above_the_cap_is_malformed,
    nonsense_for_an_id_or_a_duration_or_a_flag_is_malformed,
    a_hook_that_cannot_be_executed_is_refused,
    a_configured_database_that_does_not_answer_is_refused,
    thawing_an_unknown_hold_is_refused,
    thawing_when_nothing_was_ever_held_is_fine_and_says_so,
    a_second_hold_is_refused_while_one_is_held,
    without_root_nothing_is_permitted,
    a_receipt_directory_that_is_a_symlink_is_refused,
    a_disk_that_does_not_exist_is_refused,
    an_answer_that_would_land_on_a_held_disk_is_refused,
    without_a_daemon_a_client_says_so,
    run_says_with_125_126_and_127_why_it_did_not_run,
}

/// A daemon over one file system with a writer, for asking wrong things.
struct Asked<'lab> {
    daemon: Daemon<'lab>,
    writer: Writer,
    fs: Fs<'lab>,
}

fn asked(lab: &Lab) -> Asked<'_> {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).set("hold.max", "30s").start();
    Asked { daemon, writer: lab.writer(&fs), fs }
}

impl Asked<'_> {
    /// One sentence, this exit code, and nothing has changed.
    fn refused(&self, args: &[&str], code: i32) -> Answer {
        let answer = self.daemon.cli(args);
        answer.exits(code);
        one_sentence(&answer);
        assert_eq!(self.daemon.phase(), "idle");
        assert!(self.writer.longest() < Duration::from_millis(500), "a refusal made a writer wait");
        answer
    }
}

/// The error is one line for people (a hint may follow), not a debug print.
fn one_sentence(answer: &Answer) {
    let message = answer.json["error"]["message"].as_str().unwrap_or(answer.err.trim());
    assert!(!message.is_empty(), "it says nothing: {answer:?}");
    let machine = ["Error {", "Err(", "Some(", "panicked"];
    assert!(!machine.iter().any(|m| message.contains(m)), "not a sentence: {message}");
}

fn an_unknown_key_stops_the_daemon_and_names_its_neighbour(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let answer = lab.daemon(&[&fs]).set("hold.max_stal", "3s").serve();
    answer.exits(2).says("max_stal`").says("max_stall");
    one_sentence(&answer);
}

fn a_run_directory_on_a_disk_is_refused(lab: &Lab) {
    let (fs, other) = (lab.fs(Type::Ext4), lab.fs(Type::Ext4));
    let run = other.mount.join("run");
    fs::create_dir(&run).expect("a new file system");
    let answer = lab.daemon(&[&fs]).set("paths.run", run.display().to_string()).serve();
    answer.exits(2).says("tmpfs");
    one_sentence(&answer);
}

fn a_mount_point_that_does_not_exist_is_refused(lab: &Lab) {
    let it = asked(lab);
    it.refused(&["freeze", "--mount", "/mnt/nowhere"], 4).says("/mnt/nowhere");
}

fn a_directory_that_is_no_mount_point_is_refused(lab: &Lab) {
    let it = asked(lab);
    let inside = it.fs.mount.join("inside");
    fs::create_dir(&inside).expect("it is writable");
    let inside = inside.to_str().expect("ASCII");
    it.refused(&["freeze", "--mount", inside], 4).says(inside);
}

fn a_duration_above_the_cap_is_malformed(lab: &Lab) {
    let it = asked(lab);
    it.refused(&["freeze", "--for", "31s"], 2).says("30s");
}

fn nonsense_for_an_id_or_a_duration_or_a_flag_is_malformed(lab: &Lab) {
    let it = asked(lab);
    for args in [
        &["freeze", "--id", "../../etc"][..],
        &["freeze", "--id", ""],
        &["freeze", "--id", &"x".repeat(65)],
        &["freeze", "--for", "soon"],
        &["freeze", "--for", "-1s"],
        &["freeze", "--require", "perfection"],
        &["freeze", "--fro", "3s"],
        &["defrost"],
    ] {
        it.refused(args, 2);
    }
}

fn a_hook_that_cannot_be_executed_is_refused(lab: &Lab) {
    let it = asked(lab);
    fs::create_dir_all(it.daemon.setup().hooks_dir()).expect("memory");
    fs::write(it.daemon.setup().hooks_dir().join("10-forgotten"), "#!/bin/sh\n").expect("memory");
    let answer = it.refused(&["freeze"], 4);
    answer.says("10-forgotten");
    assert_eq!(answer.reason(), "HOOK_UNUSABLE");
}

fn a_configured_database_that_does_not_answer_is_refused(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let socket = lab.memory_dir("nobody").join(".s.PGSQL.5432");
    let entry = [("name", "orders".to_owned()), ("engine", "postgresql".to_owned())];
    let mut entry: toml::Table = entry.into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect();
    entry.insert("socket".to_owned(), socket.display().to_string().into());
    let daemon = lab.daemon(&[&fs]).database(entry).start();
    let it = Asked { daemon, writer: lab.writer(&fs), fs };
    let answer = it.refused(&["freeze", "--prepare", "5s"], 4);
    answer.says("orders");
    assert_eq!(answer.reason(), "DATABASE_UNREACHABLE");
}

fn thawing_an_unknown_hold_is_refused(lab: &Lab) {
    let it = asked(lab);
    it.refused(&["thaw", "never-heard-of"], 4).says("never-heard-of");
}

fn thawing_when_nothing_was_ever_held_is_fine_and_says_so(lab: &Lab) {
    let it = asked(lab);
    let answer = it.daemon.cli(&["thaw"]);
    answer.exits(0);
    assert_eq!(answer.report()["verdict"], "never_held");
}

fn a_second_hold_is_refused_while_one_is_held(lab: &Lab) {
    let it = asked(lab);
    it.daemon.freeze(&["--id", "first", "--for", "20s"]);
    let answer = it.daemon.cli(&["freeze", "--id", "second"]);
    answer.exits(4).says("first");
    assert_eq!((answer.reason(), &answer.json["error"]["hold_id"]), ("HOLD_IN_PROGRESS", &"first".into()));
    it.writer.assert_blocked();
    let thaw = it.daemon.cli(&["thaw", "first"]);
    thaw.exits(0);
    assert_eq!(thaw.report()["verdict"], "unbroken");
}

fn without_root_nothing_is_permitted(lab: &Lab) {
    let it = asked(lab);
    let config = it.daemon.setup().config_path();
    let socket = it.daemon.socket();
    let as_nobody = |args: &[&str]| {
        let mut nobody = command("setpriv");
        nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", BINARY, "--json"]).args(args);
        Running::start(lab, &mut nobody).finish()
    };
    // cargo's directory may lie where only root looks; then the question cannot be put
    if as_nobody(&["--version"]).code != Some(0) {
        lab.skip("the program under test lies where only root can execute it");
    }
    for args in [
        &["freeze", "--socket", socket.to_str().expect("ASCII")][..],
        &["serve", "--config", config.to_str().expect("ASCII")],
        &["rescue", "--config", config.to_str().expect("ASCII")],
    ] {
        let answer = as_nobody(args);
        answer.exits(6);
        one_sentence(&answer);
    }
    assert_eq!(it.daemon.phase(), "idle");
}

fn a_receipt_directory_that_is_a_symlink_is_refused(lab: &Lab) {
    let it = asked(lab);
    let elsewhere = lab.memory_dir("elsewhere");
    symlink(&elsewhere, it.fs.mount.join(".holdstill")).expect("it is writable");
    it.refused(&["freeze"], 4).says(".holdstill");
    assert_eq!(fs::read_dir(elsewhere).expect("memory").count(), 0, "the receipt went where the symlink points");
}

fn a_disk_that_does_not_exist_is_refused(lab: &Lab) {
    let it = asked(lab);
    let answer = it.refused(&["freeze", "--disk", "serial=no-such-disk"], 4);
    answer.says("no-such-disk");
    assert_eq!(answer.reason(), "DISK_NOT_FOUND");
}

fn an_answer_that_would_land_on_a_held_disk_is_refused(lab: &Lab) {
    let it = asked(lab);
    let out = it.fs.mount.join("out");
    let mut freeze = command("sh");
    freeze.args(["-c", "exec \"$0\" --socket \"$1\" freeze > \"$2\"", BINARY]).arg(it.daemon.socket()).arg(&out);
    let answer = Running::start(lab, &mut freeze).finish_within(Duration::from_secs(10));
    answer.exits(2).says("run");
    assert_eq!(it.daemon.phase(), "idle");
    assert!(it.fs.writable_within(Duration::from_secs(1)));
}

fn without_a_daemon_a_client_says_so(lab: &Lab) {
    let answer = lab.holdstill(&["--json", "--socket", "/run/nobody-listens.sock", "status"]);
    answer.exits(5).says("/run/nobody-listens.sock");
    one_sentence(&answer);
}

fn run_says_with_125_126_and_127_why_it_did_not_run(lab: &Lab) {
    let it = asked(lab);
    let plain = lab.memory_dir("plain").join("file");
    fs::write(&plain, "no program").expect("memory");
    let plain = Path::to_str(&plain).expect("ASCII");
    for (args, code) in [
        (&["run", "--", "no-such-program-anywhere"][..], 127),
        (&["run", "--", plain], 126),
        (&["run", "--fro", "3s", "--", "true"], 125),
        (&["run", "--for", "31s", "--", "true"], 125),
        (&["run", "--require", "application", "--", "true"], 125),
    ] {
        let answer = it.daemon.cli(args);
        answer.exits(code);
        assert!(!answer.err.trim().is_empty(), "{args:?} says nothing");
        assert_eq!(it.daemon.phase(), "idle");
    }
    assert!(it.writer.longest() < Duration::from_millis(500), "something was held for a command that never ran");
}
