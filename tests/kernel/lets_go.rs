//! Promise: always lets go. At the deadline; at once when processes of ours are killed; soon when one only stops.
//!
//! The contract says 100 ms for kills; what is asserted has room for a busy machine, not for another mechanism: the next
//! slower one (the warden's count of missed beats, the deadline) is seconds away.

use std::{path::Path, time::Duration};

use holdstill::proto::{self, event};
use nix::sys::signal::Signal;

use crate::lab::{
    Daemon, Fs, Lab, Type, Writer,
    daemon::Answer,
    grpc::for_seconds,
    now,
    process::{alive, ours, signal},
    until,
};

facts! {
    at_the_deadline_writers_go_on_and_the_hold_is_broken,
    a_hold_that_was_extended_ends_at_its_new_deadline,
    a_killed_daemon_lets_go_at_once,
    a_killed_warden_lets_go_at_once,
    daemon_and_warden_killed_together_let_go_at_once,
    a_killed_guardian_lets_go_of_its_file_system_at_once,
    a_killed_sentinel_does_not_keep_anything_held,
    a_stopped_daemon_lets_go_within_seconds,
    a_stopped_warden_lets_go_within_seconds,
    a_stopped_guardian_lets_go_by_the_deadline,
    a_daemon_asked_to_stop_lets_go_first,
    with_every_process_of_ours_killed_rescue_lets_go,
    with_every_process_of_ours_killed_the_next_daemon_lets_go,
    a_warden_killed_while_idle_is_replaced,
    a_client_killed_before_its_answer_leaves_nothing_held,
    a_client_killed_while_hooks_prepare_leaves_nothing_held,
    a_client_gone_after_its_answer_means_nothing,
    a_hold_stream_that_ends_lets_go,
    a_hold_stream_ended_by_thaw_is_unbroken,
}

const AT_ONCE: Duration = Duration::from_millis(700);
/// Eight missed beats of 250 ms are two seconds.
const SOON: Duration = Duration::from_secs(6);
const LONG_HOLD: [&str; 2] = ["--for", "25s"];

/// Holds an ext4 and an XFS, with writers that wait.
struct Held<'lab> {
    daemon: Daemon<'lab>,
    writers: Vec<Writer>,
    _disks: Vec<Fs<'lab>>,
}

fn hold<'lab>(lab: &'lab Lab, args: &[&str]) -> Held<'lab> {
    let disks = vec![lab.fs(Type::Ext4), lab.fs(Type::Xfs)];
    let daemon = lab.daemon(&disks.iter().collect::<Vec<_>>()).start();
    let writers: Vec<Writer> = disks.iter().map(|fs| lab.writer(fs)).collect();
    let report = daemon.freeze(args);
    assert_eq!(report["phase"], "held");
    for writer in &writers {
        writer.assert_blocked();
    }
    Held { daemon, writers, _disks: disks }
}

impl Held<'_> {
    /// All writers went on within `limit` after `since`.
    fn let_go(&self, since: Duration, limit: Duration) {
        for writer in &self.writers {
            let took = writer.resumed_after(since, limit + Duration::from_secs(3));
            assert!(took <= limit, "writers waited {took:?} after the event");
            writer.assert_writable_within(Duration::from_secs(2));
        }
    }

    fn broken_by(&self, reason: &str) {
        let report = self.daemon.thaw();
        assert_eq!((&report["verdict"], &report["reason"]), (&"broken".into(), &reason.into()), "{report:#}");
    }
}

fn at_the_deadline_writers_go_on_and_the_hold_is_broken(lab: &Lab) {
    let asked = now();
    let held = hold(lab, &["--id", "short", "--for", "1500ms"]);
    // held at some time between `asked` and now: the writers went on 1.5 s after that, not earlier than that after `asked`
    held.let_go(asked, Duration::from_secs(5));
    let waited = held.writers[0].longest();
    assert!(waited >= Duration::from_millis(1200) && waited < Duration::from_millis(2500), "writers waited {waited:?}");
    let first = held.daemon.cli(&["thaw", "short"]);
    first.exits(3);
    assert_eq!((&first.report()["verdict"], &first.report()["reason"]), (&"broken".into(), &"deadline".into()));
    let again = held.daemon.cli(&["thaw", "short"]);
    again.exits(3);
    assert_eq!(again.report()["verdict"], "broken");
    lab.assert_tunable_restored();
}

fn a_hold_that_was_extended_ends_at_its_new_deadline(lab: &Lab) {
    let held = hold(lab, &["--id", "longer", "--for", "1s"]);
    held.daemon.cli(&["extend", "longer", "--for", "3s"]).exits(0);
    assert!(!until(Duration::from_millis(1200), || !held.writers[0].is_blocked()), "the old deadline still counts");
    held.let_go(Duration::ZERO, Duration::MAX / 4);
    let waited = held.writers[0].longest();
    assert!(waited >= Duration::from_millis(2500) && waited < Duration::from_secs(4), "writers waited {waited:?}");
    held.broken_by("deadline");
}

fn a_killed_daemon_lets_go_at_once(lab: &Lab) {
    let held = hold(lab, &[&["--id", "k"], &LONG_HOLD[..]].concat());
    let killed = now();
    held.daemon.kill();
    held.let_go(killed, AT_ONCE);
    lab.assert_tunable_restored();
    let Held { _disks, writers, daemon } = held;
    let daemon = daemon.again();
    let thaw = daemon.cli(&["thaw", "k"]);
    thaw.exits(3);
    assert_eq!((&thaw.report()["verdict"], &thaw.report()["reason"]), (&"broken".into(), &"daemon_lost".into()));
    holds_again(&daemon, &writers);
}

fn holds_again(daemon: &Daemon, writers: &[Writer]) {
    daemon.freeze(&["--id", "afterwards"]);
    let held = writers.iter().all(|writer| writer.is_blocked() || writer.is_blocked());
    let report = daemon.thaw();
    assert!(held && report["verdict"] == "unbroken", "writers waited: {held}; {report:#}");
    for writer in writers {
        writer.assert_writable_within(Duration::from_secs(2));
    }
}

fn a_killed_warden_lets_go_at_once(lab: &Lab) {
    let held = hold(lab, &LONG_HOLD);
    let warden = held.daemon.warden();
    let killed = now();
    signal(warden, Signal::SIGKILL);
    held.let_go(killed, AT_ONCE);
    held.broken_by("warden_lost");
    lab.assert_tunable_restored();
    holds_again(&held.daemon, &held.writers);
}

fn daemon_and_warden_killed_together_let_go_at_once(lab: &Lab) {
    let held = hold(lab, &LONG_HOLD);
    let warden = held.daemon.warden();
    let killed = now();
    held.daemon.kill();
    signal(warden, Signal::SIGKILL);
    held.let_go(killed, AT_ONCE);
    let Held { _disks, writers, daemon } = held;
    holds_again(&daemon.again(), &writers);
    lab.assert_tunable_restored();
}

fn a_killed_guardian_lets_go_of_its_file_system_at_once(lab: &Lab) {
    let held = hold(lab, &LONG_HOLD);
    let guardian = held.daemon.guardian().expect("each file system held has one");
    let killed = now();
    signal(guardian, Signal::SIGKILL);
    held.let_go(killed, AT_ONCE);
    let report = held.daemon.thaw();
    assert_eq!(report["verdict"], "broken", "{report:#}");
    holds_again(&held.daemon, &held.writers);
}

fn a_killed_sentinel_does_not_keep_anything_held(lab: &Lab) {
    let held = hold(lab, &LONG_HOLD);
    let sentinel = held.daemon.sentinel().expect("each file system held has one");
    signal(sentinel, Signal::SIGKILL);
    let thawed = now();
    held.daemon.thaw();
    held.let_go(thawed, AT_ONCE);
    assert!(until(SOON, || !alive(sentinel)), "the sentinel outlived its hold");
    holds_again(&held.daemon, &held.writers);
}

fn a_stopped_daemon_lets_go_within_seconds(lab: &Lab) {
    let held = hold(lab, &LONG_HOLD);
    let stopped = now();
    held.daemon.stop();
    held.let_go(stopped, SOON);
    let Held { _disks, writers, daemon } = held;
    let held = Held { _disks, writers, daemon: daemon.go_on() };
    held.broken_by("daemon_lost");
    holds_again(&held.daemon, &held.writers);
}

fn a_stopped_warden_lets_go_within_seconds(lab: &Lab) {
    let held = hold(lab, &LONG_HOLD);
    let warden = held.daemon.warden();
    let stopped = now();
    signal(warden, Signal::SIGSTOP);
    held.let_go(stopped, SOON);
    // the guardians may notice first; asked in that instant the answer is `broken` as well, because nothing is held any more
    held.daemon.wait_for_phase("idle", SOON);
    held.broken_by("warden_lost");
    assert!(until(SOON, || !alive(warden)), "the stopped warden is still there");
    holds_again(&held.daemon, &held.writers);
}

fn a_stopped_guardian_lets_go_by_the_deadline(lab: &Lab) {
    let held = hold(lab, &["--for", "2s"]);
    let guardian = held.daemon.guardian().expect("each file system held has one");
    let stopped = now();
    signal(guardian, Signal::SIGSTOP);
    held.let_go(stopped, Duration::from_secs(2) + SOON);
    let report = held.daemon.thaw();
    assert_eq!(report["verdict"], "broken", "{report:#}");
    holds_again(&held.daemon, &held.writers);
}

fn a_daemon_asked_to_stop_lets_go_first(lab: &Lab) {
    let held = hold(lab, &LONG_HOLD);
    let asked = now();
    signal(held.daemon.pid(), Signal::SIGTERM);
    held.let_go(asked, AT_ONCE);
    assert_eq!(held.daemon.wait_end(SOON), Some(0));
    let Held { _disks, writers, daemon } = held;
    let daemon = daemon.again();
    let report = daemon.thaw();
    assert_eq!((&report["verdict"], &report["reason"]), (&"broken".into(), &"shutdown".into()), "{report:#}");
    holds_again(&daemon, &writers);
}

/// Stops all, then kills all: no one is left to notice the others' end.
fn kill_everything(held: &Held) {
    let all = ours();
    for process in &all {
        signal(process.pid, Signal::SIGSTOP);
    }
    held.daemon.kill();
    for process in &all {
        signal(process.pid, Signal::SIGKILL);
    }
    for writer in &held.writers {
        writer.assert_blocked();
    }
}

fn with_every_process_of_ours_killed_rescue_lets_go(lab: &Lab) {
    let held = hold(lab, &LONG_HOLD);
    kill_everything(&held);
    let config = held.daemon.setup().config_path();
    let asked = now();
    lab.holdstill(&["rescue", "--config", text(&config)]).exits(0);
    held.let_go(asked, Duration::from_secs(2));
    lab.assert_tunable_restored();
    let again: Answer = lab.holdstill(&["rescue", "--config", text(&config)]);
    again.exits(0);
    let Held { _disks, writers, daemon } = held;
    holds_again(&daemon.again(), &writers);
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the lab's names are ASCII")
}

fn with_every_process_of_ours_killed_the_next_daemon_lets_go(lab: &Lab) {
    let held = hold(lab, &[&["--id", "lost"], &LONG_HOLD[..]].concat());
    kill_everything(&held);
    let Held { _disks, writers, daemon } = held;
    // its sentinels cannot end before the thaw: to wait for them now would be in vain
    let setup = daemon.forsake();
    let restarted = now();
    let next = setup.start();
    for writer in &writers {
        writer.resumed_after(restarted, Duration::from_secs(5));
    }
    let thaw = next.cli(&["thaw", "lost"]);
    thaw.exits(3);
    assert_eq!((&thaw.report()["verdict"], &thaw.report()["reason"]), (&"broken".into(), &"daemon_lost".into()));
    holds_again(&next, &writers);
}

fn a_warden_killed_while_idle_is_replaced(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    let first = daemon.warden();
    signal(first, Signal::SIGKILL);
    let writer = lab.writer(&fs);
    assert!(until(Duration::from_secs(10), || !alive(first) && daemon.warden() != first), "no other warden came");
    // it may still be saying hello: a hold is refused until it has answered, and that may be retried
    let held = || daemon.cli(&["freeze", "--id", "again"]).code == Some(0);
    assert!(until(Duration::from_secs(10), held), "no hold with the new warden");
    writer.assert_blocked();
    assert_eq!(daemon.thaw()["verdict"], "unbroken");
}

/// Writes a line per phase, and takes its time in `phase`.
fn slow_hook(daemon: &Daemon, phase: &str, log: &Path) {
    let script = format!("echo $1 >> {}; [ $1 = {phase} ] && sleep 20; exit 0", log.display());
    daemon.setup().hook("10-slow", &script);
    if phase == "prepare" {
        let settings = daemon.setup().hooks_dir().join("10-slow.toml");
        std::fs::write(settings, "prepare = true\n").expect("memory");
    }
}

fn killed_during(lab: &Lab, phase: &str) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).set("hooks.timeout", "4s").start();
    let log = lab.memory_dir("hook").join("log");
    slow_hook(&daemon, phase, &log);
    let writer = lab.writer(&fs);
    let client = daemon.start_cli(&["freeze", "--id", "abandoned"]);
    let lines = || std::fs::read_to_string(&log).unwrap_or_default();
    assert!(until(Duration::from_secs(10), || lines().lines().any(|l| l == phase)), "the hook never got to {phase}");
    client.kill();
    daemon.wait_for_phase("idle", Duration::from_secs(8));
    assert!(until(Duration::from_secs(2), || lines().lines().last() == Some("thaw")), "not undone: {:?}", lines());
    assert_eq!(lines().lines().filter(|l| *l == "thaw").count(), 1, "{:?}", lines());
    writer.assert_writable_within(Duration::from_secs(1));
    assert!(writer.longest() < Duration::from_secs(1), "file systems were frozen for nobody");
    let history = daemon.cli(&["history", "abandoned"]);
    history.exits(0);
    let report = history.report();
    assert_eq!((&report["verdict"], &report["reason"]), (&"never_held".into(), &"caller_gone".into()), "{report:#}");
}

fn a_client_killed_before_its_answer_leaves_nothing_held(lab: &Lab) {
    killed_during(lab, "freeze");
}

fn a_client_killed_while_hooks_prepare_leaves_nothing_held(lab: &Lab) {
    killed_during(lab, "prepare");
}

fn a_client_gone_after_its_answer_means_nothing(lab: &Lab) {
    // every `freeze` is such a client: it has its answer and ends
    let held = hold(lab, &LONG_HOLD);
    for writer in &held.writers {
        writer.assert_blocked();
    }
    assert_eq!(held.daemon.phase(), "held");
    assert_eq!(held.daemon.thaw()["verdict"], "unbroken");
}

/// Opens a Hold stream and reads it until all is held.
async fn held_stream(
    mut client: proto::holdstill_service_client::HoldstillServiceClient<tonic::transport::Channel>,
    id: &str,
) -> tonic::Streaming<proto::HoldResponse> {
    let request = proto::HoldRequest { id: id.to_owned(), spec: Some(for_seconds(20)) };
    let mut stream = client.hold(request).await.expect("a hold begins").into_inner();
    loop {
        let message = stream.message().await.expect("the stream goes on").expect("until the hold ended");
        if matches!(message.event.and_then(|e| e.what), Some(event::What::Held(_))) {
            return stream;
        }
    }
}

fn a_hold_stream_that_ends_lets_go(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    let writer = lab.writer(&fs);
    let grpc = daemon.grpc();
    let stream = grpc.wait(held_stream(grpc.client(), "leased"));
    writer.assert_blocked();
    let dropped = now();
    drop(stream);
    // the runtime only moves while it is asked to: let it say goodbye
    grpc.wait(async { tokio::time::sleep(Duration::from_millis(50)).await });
    assert!(writer.resumed_after(dropped, Duration::from_secs(5)) < Duration::from_secs(1));
    let ended = || grpc.report("leased").verdict() == proto::Verdict::Broken;
    assert!(until(Duration::from_secs(3), ended), "{:?}", grpc.report("leased"));
    assert_eq!(grpc.report("leased").reason(), proto::ReleaseReason::CallerGone);
}

fn a_hold_stream_ended_by_thaw_is_unbroken(lab: &Lab) {
    let fs = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&fs]).start();
    let writer = lab.writer(&fs);
    let grpc = daemon.grpc();
    let released = grpc.wait(async {
        let mut stream = held_stream(grpc.client(), "leased").await;
        let thaw = proto::ThawRequest { id: "leased".to_owned(), ..Default::default() };
        let thawed = grpc.client().thaw(thaw).await.expect("it is held").into_inner();
        assert_eq!(thawed.report.expect("the answer").verdict(), proto::Verdict::Unbroken);
        let mut last = None;
        while let Some(message) = stream.message().await.expect("it ends well") {
            last = message.event.and_then(|e| e.what);
        }
        last
    });
    let Some(event::What::Released(report)) = released else { panic!("the last message was {released:?}") };
    assert_eq!(report.verdict(), proto::Verdict::Unbroken);
    writer.assert_writable_within(Duration::from_secs(2));
}
