//! The program as a shell sees it: exit status, the one document on stdout, the sentences. The daemon is a fake; what is
//! tested is the asking and the telling.

mod fake;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::{Command, Output},
    time::Duration,
};

use fake::{Fake, Lease, filesystem, report};
use holdstill::{
    hold::{Refusal, RefusalKind},
    proto,
};
use serde_json::Value as Json;

fn code(output: &Output) -> i32 {
    output.status.code().expect("it exits by itself")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// Exactly one document.
fn document(output: &Output) -> Json {
    serde_json::from_str(&out(output)).unwrap_or_else(|e| panic!("{e}: {}", out(output)))
}

fn bare(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_holdstill"))
        .args(args)
        .env_remove("HOLDSTILL_SOCKET")
        .env_remove("HOLDSTILL_ENDPOINT")
        .output()
        .expect("it starts")
}

#[test]
fn freeze_says_what_is_held_and_what_to_do_next() {
    let output = Fake::default().start().run(&["freeze"]);
    assert_eq!(code(&output), 0);
    let last = out(&output).lines().last().map(str::to_owned);
    assert_eq!(
        last.as_deref(),
        Some(
            "held: 1 file system, application-consistent, for at most 60 s (hold h1): take the snapshot, then `holdstill thaw h1`"
        )
    );
}

#[test]
fn json_is_the_response_and_nothing_else_on_stdout() {
    let daemon = Fake::default().start();
    for args in [["--json", "freeze"], ["freeze", "--json"]] {
        let output = daemon.run(&args);
        assert_eq!(document(&output)["report"]["id"], "h1");
        assert_eq!(document(&output)["report"]["steps"][0]["filesystem"]["major"], 7);
        assert!(err(&output).starts_with("held: "), "people read stderr then");
    }
}

#[test]
fn a_refused_freeze_exits_as_the_contract_says_with_its_hint() {
    let cases = [
        (RefusalKind::FailedPrecondition, 4),
        (RefusalKind::Aborted, 1),
        (RefusalKind::OutOfRange, 2),
        (RefusalKind::PermissionDenied, 6),
        (RefusalKind::Unavailable, 5),
    ];
    for (kind, exit) in cases {
        let refusal = Refusal::new(kind, "WOULD_STALL", "it would stall").hint("wait").about("h0");
        let daemon = Fake { freeze: Err(refusal), ..Fake::default() }.start();
        let output = daemon.run(&["freeze"]);
        assert_eq!((code(&output), out(&output).as_str()), (exit, ""));
        assert_eq!(err(&output), "holdstill: it would stall\nhint: wait\n");
        let error = &document(&daemon.run(&["freeze", "--json"]))["error"];
        assert_eq!(
            (&error["reason"], &error["hint"], &error["hold_id"]),
            (&"WOULD_STALL".into(), &"wait".into(), &"h0".into())
        );
    }
}

#[test]
fn freeze_refuses_to_write_to_what_it_is_about_to_hold_and_suggests_run() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a temporary directory");
    let file = fs::File::create(dir.path().join("out")).expect("create");
    let dev = file.metadata().expect("stat").dev();
    let numbers = (nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    let numbers = (u32::try_from(numbers.0).expect("small"), u32::try_from(numbers.1).expect("small"));
    let plan = proto::Report {
        steps: vec![filesystem("/dev/shm", numbers, proto::StepOutcome::Planned)],
        ..Default::default()
    };
    let check = proto::CheckResponse { plan: Some(plan), ..Default::default() };
    let daemon = Fake { check, ..Fake::default() }.start();
    let output = daemon.holdstill(&["freeze"]).stdout(file).output().expect("it starts");
    assert_eq!(code(&output), 2);
    assert!(
        err(&output).contains("is a file on /dev/shm") && err(&output).contains("holdstill run -- CMD"),
        "{}",
        err(&output)
    );
    assert_eq!(daemon.asked(), ["check"], "nothing was held");
    assert_eq!(code(&daemon.run(&["freeze"])), 0, "a pipe is no disk");
}

#[test]
fn thaw_exits_3_only_when_the_hold_was_broken() {
    let cases = [
        (proto::Verdict::Unbroken, 0),
        (proto::Verdict::NeverHeld, 0),
        (proto::Verdict::Broken, 3),
        (proto::Verdict::Unspecified, 1),
    ];
    for (verdict, exit) in cases {
        let daemon = Fake { thaw: Ok(report(verdict)), ..Fake::default() }.start();
        assert_eq!(code(&daemon.run(&["thaw", "h1", "--snapshot-ref", "snap-1"])), exit, "{verdict:?}");
        assert_eq!(daemon.asked(), ["thaw h1"]);
    }
    let refusal = Refusal::new(RefusalKind::NotFound, "UNKNOWN_HOLD", "no such hold");
    assert_eq!(code(&Fake { thaw: Err(refusal), ..Fake::default() }.start().run(&["thaw", "x"])), 4);
}

#[test]
fn check_exits_4_if_refused_or_if_strict_and_reserved() {
    let problem = |severity: proto::Severity| proto::Problem {
        severity: severity.into(),
        message: "the disk is transient".into(),
        ..Default::default()
    };
    let check = |severity, would_refuse| Fake {
        check: proto::CheckResponse {
            plan: Some(proto::Report { problems: vec![problem(severity)], ..Default::default() }),
            would_refuse,
            reachable: proto::Consistency::Filesystem.into(),
        },
        ..Fake::default()
    };
    let reserved = check(proto::Severity::Warning, false).start();
    assert_eq!(code(&reserved.run(&["check"])), 0);
    assert_eq!(code(&reserved.run(&["check", "--strict"])), 4);
    assert_eq!(code(&check(proto::Severity::Note, false).start().run(&["check", "--strict"])), 0);
    let refused = check(proto::Severity::Refusal, true).start().run(&["check"]);
    assert_eq!(code(&refused), 4);
    assert!(out(&refused).ends_with("not ready: the disk is transient\n"), "{}", out(&refused));
}

#[test]
fn status_exits_0_only_if_holds_are_accepted() {
    assert_eq!(code(&Fake::default().start().run(&["status"])), 0);
    let output = Fake { serving: false, ..Fake::default() }.start().run(&["status", "--json"]);
    assert_eq!(code(&output), 4);
    assert_eq!(document(&output)["phase"], "idle");
}

#[test]
fn nobody_listening_is_exit_5_with_one_sentence_and_a_hint() {
    let output = bare(&["status", "--socket", "/nowhere/s", "--json"]);
    assert_eq!(code(&output), 5);
    assert_eq!(document(&output)["error"]["reason"], "DAEMON_UNREACHABLE");
    assert!(
        err(&output)
            .starts_with("holdstill: failed to connect to /nowhere/s: no daemon is listening there\nhint: start it")
    );
}

#[test]
fn a_daemon_that_goes_away_before_it_answers_is_exit_5() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a temporary directory");
    let socket = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
    // accepts, reads what HTTP/2 begins with and says nothing more
    let server = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().expect("somebody asks");
            std::io::Read::read_exact(&mut stream, &mut [0; 24]).expect("the preface");
        }
    });
    let socket = socket.to_str().expect("UTF-8");
    for verb in ["freeze", "thaw"] {
        let output = bare(&[verb, "--socket", socket]);
        assert_eq!(code(&output), 5, "{}", err(&output));
    }
    server.join().expect("it served both");
}

#[test]
fn extend_history_and_watch_ask_and_tell() {
    let daemon = Fake { reports: vec![report(proto::Verdict::Unbroken)], ..Fake::default() }.start();
    assert_eq!(out(&daemon.run(&["extend", "--for", "50s"])), "extended: held for at most 42 s from now\n");
    assert!(out(&daemon.run(&["history"])).contains("h1"));
    assert_eq!(document(&daemon.run(&["history", "h1", "--json"]))["report"]["verdict"], "unbroken");
    assert_eq!(code(&daemon.run(&["history", "h2"])), 4);
    let watched = daemon.run(&["watch", "--json"]);
    assert_eq!(code(&watched), 5, "the daemon stopped");
    let lines: Vec<Json> = out(&watched).lines().map(|l| serde_json::from_str(l).expect("a document a line")).collect();
    assert_eq!(lines[1]["event"]["phase"], "held");
    assert_eq!(lines[3]["error"]["reason"], "DAEMON_UNREACHABLE");
}

#[test]
fn rehearse_holds_under_a_lease_and_lets_go_at_once() {
    let daemon = Fake::default().start();
    let output = daemon.run(&["rehearse"]);
    assert_eq!(code(&output), 0);
    assert_eq!(daemon.asked(), ["hold ", "thaw h1"]);
    assert!(out(&output).contains("rehearsed: "));
}

#[test]
fn run_passes_on_the_commands_status_and_prints_its_output_after_the_release() {
    let daemon = Fake::default().start();
    let output =
        daemon.run(&["run", "--no-overlay", "--", "sh", "-c", "echo out $HOLDSTILL_ID; echo err >&2; read x; exit 7"]);
    assert_eq!((code(&output), out(&output).as_str()), (7, "out h1\n"));
    assert!(err(&output).starts_with("err\nholdstill: unbroken: "), "{}", err(&output));
    assert_eq!(daemon.asked(), ["check", "hold ", "thaw h1"]);
}

#[test]
fn run_starts_the_command_only_when_everything_is_held() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a temporary directory");
    let started = dir.path().join("started");
    let seen = started.clone();
    let freezes = Box::new(move || assert!(!seen.exists(), "the command was let through too early"));
    let daemon = Fake { freezes, ..Fake::default() }.start();
    let output = daemon.run(&["run", "--no-overlay", "--", "touch", started.to_str().expect("UTF-8")]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(started.exists());
}

#[test]
fn run_ends_the_command_when_the_hold_breaks_and_exits_124() {
    let thaw = Ok(report(proto::Verdict::Broken));
    let daemon = Fake { lease: Lease::Breaks(Duration::from_millis(50)), thaw, ..Fake::default() }.start();
    let output = daemon.run(&["run", "--no-overlay", "--", "sleep", "60"]);
    assert_eq!(code(&output), 124);
    assert!(err(&output).contains("BROKEN"), "{}", err(&output));
}

#[test]
fn run_kills_a_command_that_ignores_term_after_five_seconds() {
    let thaw = Ok(report(proto::Verdict::Broken));
    let daemon = Fake { lease: Lease::Breaks(Duration::from_millis(50)), thaw, ..Fake::default() }.start();
    let output = daemon.run(&["run", "--no-overlay", "--", "sh", "-c", "trap '' TERM; while :; do sleep 0.2; done"]);
    assert_eq!(code(&output), 124);
}

#[test]
fn run_exits_124_when_the_verdict_is_broken_though_the_command_succeeded() {
    let daemon = Fake { thaw: Ok(report(proto::Verdict::Broken)), ..Fake::default() }.start();
    assert_eq!(code(&daemon.run(&["run", "--no-overlay", "--", "true"])), 124);
}

#[test]
fn run_exits_125_126_127_before_anything_is_held() {
    let daemon = Fake::default().start();
    assert_eq!(code(&daemon.run(&["run", "--no-overlay", "--", "/etc/passwd"])), 126);
    assert_eq!(code(&daemon.run(&["run", "--no-overlay", "--", "no-such-command"])), 127);
    assert_eq!(code(&daemon.run(&["run", "--for", "9", "--", "true"])), 125);
    assert_eq!(daemon.asked(), [""; 0], "nobody was asked anything");
    let refusal = Refusal::new(RefusalKind::FailedPrecondition, "HOLD_IN_PROGRESS", "another hold");
    let busy = Fake { lease: Lease::Refused(refusal), ..Fake::default() }.start();
    let output = busy.run(&["run", "--no-overlay", "--", "touch", "/nonexistent/x"]);
    assert_eq!((code(&output), err(&output).as_str()), (125, "holdstill: another hold\n"));
    assert_eq!(code(&bare(&["run", "--socket", "/nowhere/s", "--", "true"])), 125);
}

#[test]
fn run_writes_the_record_after_the_release_also_of_a_failure() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a temporary directory");
    let path = dir.path().join("record.json");
    let file = path.to_str().expect("UTF-8");
    let read = || serde_json::from_str::<Json>(&fs::read_to_string(&path).expect("written")).expect("JSON");
    Fake::default().start().run(&["run", "--no-overlay", "--report", file, "--", "true"]);
    assert_eq!(read()["report"]["verdict"], "unbroken");
    let refusal = Refusal::new(RefusalKind::FailedPrecondition, "HOLD_IN_PROGRESS", "another hold");
    Fake { lease: Lease::Refused(refusal), ..Fake::default() }.start().run(&[
        "run",
        "--no-overlay",
        "--report",
        file,
        "--",
        "true",
    ]);
    assert_eq!(read()["error"]["reason"], "HOLD_IN_PROGRESS");
}

#[test]
fn config_tells_every_value_and_where_it_came_from() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("h.toml");
    fs::write(&file, "[hold]\nmax = \"30s\"\n").expect("write");
    let file = file.to_str().expect("UTF-8");
    let output = bare(&["config", "--config", file, "--json"]);
    assert_eq!(code(&output), 0);
    let values = document(&output)["values"].as_array().expect("a list").clone();
    let max = values.iter().find(|v| v["key"] == "hold.max").expect("listed");
    assert_eq!((&max["value"], &max["source"]), (&"\"30s\"".into(), &format!("{file}:2").into()));
    let quiesce = values.iter().find(|v| v["key"] == "hold.quiesce").expect("listed");
    assert_eq!(quiesce["source"], "default");
}

#[test]
fn a_broken_configuration_is_exit_2_with_its_neighbour() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("h.toml");
    fs::write(&file, "[hold]\nquisce = \"30s\"\n").expect("write");
    let output = bare(&["config", "--config", file.to_str().expect("UTF-8")]);
    assert_eq!(code(&output), 2);
    assert!(err(&output).trim_end().ends_with("did you mean `quiesce`?"), "{}", err(&output));
}

#[test]
fn hooks_are_added_and_removed_without_a_daemon() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let hooks = dir.path().join("hooks.d");
    let file = dir.path().join("h.toml");
    fs::write(&file, format!("[hooks]\ndir = {hooks:?}\n")).expect("write");
    fs::write(dir.path().join("10-a"), "#!/bin/sh\n").expect("write");
    let file = file.to_str().expect("UTF-8");
    let script = dir.path().join("10-a");
    let script = script.to_str().expect("UTF-8");
    let output = bare(&["hooks", "--config", file, "--json", "add", script]);
    assert_eq!((code(&output), document(&output)["name"].as_str()), (0, Some("10-a")));
    assert_eq!(fs::metadata(hooks.join("10-a")).expect("there").permissions().mode() & 0o777, 0o755);
    assert_eq!(code(&bare(&["hooks", "--config", file, "add", script])), 4);
    assert_eq!(code(&bare(&["hooks", "--config", file, "remove", "10-a"])), 0);
    assert_eq!(code(&bare(&["hooks", "--config", file, "remove", "10-a"])), 4);
}

#[test]
fn a_saved_report_is_drawn_into_a_file_or_to_stdout_and_told_without() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut saved = report(proto::Verdict::Unbroken);
    saved.id = "nightly".into();
    saved.prepare_took = Some(prost_types::Duration { seconds: 20, nanos: 0 });
    saved.steps.push(filesystem("/srv\u{1b}[2J<script>", (7, 9), proto::StepOutcome::Undone));
    let text = serde_json::json!({"report": holdstill::json::to_json(&saved)}).to_string();
    fs::write(path("report.json"), text).expect("write");
    let told = bare(&["receipt", "--report", &path("report.json")]);
    assert_eq!(code(&told), 0, "{}", err(&told));
    let drawn = bare(&["receipt", "--report", &path("report.json"), "--svg"]);
    assert!(out(&drawn).starts_with("<svg ") && !out(&drawn).contains("<script") && !out(&drawn).contains('\u{1b}'));
    let file = bare(&["receipt", "--report", &path("report.json"), "--svg", &path("hold.svg")]);
    assert_eq!((code(&file), out(&file).contains("drew the hold nightly")), (0, true), "{}", err(&file));
    assert_eq!(fs::read_to_string(path("hold.svg")).expect("there").trim(), out(&drawn).trim());
    let one = bare(&["--json", "receipt", "--report", &path("report.json"), "--svg"]);
    assert!(document(&one)["svg"].as_str().is_some_and(|svg| svg.starts_with("<svg ")));
    let wrong = bare(&["receipt", "--report", &path("report.json"), "--svg", dir.path().to_str().expect("UTF-8")]);
    assert_eq!((code(&wrong), err(&wrong).contains("it is a directory")), (2, true), "{}", err(&wrong));
    assert_eq!(code(&bare(&["history", "--svg"])), 2, "of which hold?");
}
