//! The rules of the gRPC contract: joins, retries, late and early thaws, restarts in between.

use std::{path::PathBuf, time::Duration};

use holdstill::proto::{self, Consistency, Phase, ReleaseReason, Verdict};
use tonic::Code;

use crate::lab::{
    Daemon, Fs, Lab, Type, Writer,
    grpc::{Grpc, for_seconds},
    now, until,
};

facts! {
    the_same_freeze_asked_again_while_held_joins_it,
    the_same_freeze_asked_twice_at_once_is_one_hold,
    one_of_two_joined_callers_may_go_away,
    another_spec_under_the_same_id_already_exists,
    an_id_that_has_been_held_is_used_up_and_its_verdict_is_told,
    an_id_that_never_reached_held_may_be_retried,
    a_thaw_while_preparing_aborts_the_freeze,
    a_thaw_while_quiescing_aborts_the_freeze,
    a_thaw_repeated_gets_the_same_answer,
    a_late_thaw_tells_of_the_deadline,
    a_thaw_without_id_means_the_hold_in_progress,
    a_call_dropped_before_its_answer_lets_go,
    a_call_beyond_its_deadline_lets_go,
    preparing_beyond_its_limit_ends_in_deadline_exceeded,
    a_restart_in_between_is_a_broken_hold,
    reports_survive_a_restart,
    extending_is_absolute_and_capped,
    malformed_requests_are_invalid_and_change_nothing,
    a_request_cannot_widen_the_configured_scope,
    watch_starts_with_a_snapshot_and_tells_the_story_in_order,
    status_answers_while_held,
}

/// A daemon with a hook that dawdles when asked to.
struct Asked<'lab> {
    grpc: Grpc,
    daemon: Daemon<'lab>,
    writer: Writer,
    _disk: Fs<'lab>,
    dawdle: PathBuf,
}

fn asked(lab: &Lab) -> Asked<'_> {
    let disk = lab.fs(Type::Ext4);
    let daemon = lab.daemon(&[&disk]).set("hold.max", "30s").set("hooks.timeout", "4s").start();
    Asked {
        grpc: daemon.grpc(),
        writer: lab.writer(&disk),
        daemon,
        _disk: disk,
        dawdle: lab.memory_dir("dawdle").join("phase"),
    }
}

impl Asked<'_> {
    /// From now on the hook's `phase` takes until [`Asked::hurry`], at most 15 s.
    fn dawdle_in(&self, phase: &str) {
        std::fs::write(&self.dawdle, phase).expect("memory");
        let script = format!(
            "n=0; while [ \"$(cat {0} 2>/dev/null)\" = $1 ] && [ $n -lt 150 ]; do sleep 0.1; n=$((n+1)); done",
            self.dawdle.display()
        );
        self.daemon.setup().hook("10-dawdle", &script);
        std::fs::write(self.daemon.setup().hooks_dir().join("10-dawdle.toml"), "prepare = true\n").expect("memory");
    }

    fn hurry(&self) {
        std::fs::write(&self.dawdle, "").expect("memory");
    }
}

fn freeze_request(id: &str, spec: proto::HoldSpec) -> proto::FreezeRequest {
    proto::FreezeRequest { id: id.to_owned(), spec: Some(spec) }
}

fn the_same_freeze_asked_again_while_held_joins_it(lab: &Lab) {
    let it = asked(lab);
    let first = it.grpc.freeze("same", for_seconds(20)).expect("held");
    let second = it.grpc.freeze("same", for_seconds(20)).expect("joined");
    assert_eq!((first.held_time, second.phase()), (second.held_time, Phase::Held));
    it.writer.assert_blocked();
    assert_eq!(it.grpc.thaw("same").expect("held").report.expect("one").verdict(), Verdict::Unbroken);
}

fn the_same_freeze_asked_twice_at_once_is_one_hold(lab: &Lab) {
    let it = asked(lab);
    let (mut a, mut b) = (it.grpc.client(), it.grpc.client());
    let (a, b) = it.grpc.wait(async {
        tokio::join!(
            a.freeze(freeze_request("twice", for_seconds(20))),
            b.freeze(freeze_request("twice", for_seconds(20)))
        )
    });
    let [a, b] = [a, b].map(|r| r.expect("held").into_inner().report.expect("one"));
    assert_eq!((a.id.as_str(), a.held_time), ("twice", b.held_time));
    assert_eq!(it.grpc.thaw("twice").expect("held").report.expect("one").verdict(), Verdict::Unbroken);
}

fn one_of_two_joined_callers_may_go_away(lab: &Lab) {
    let it = asked(lab);
    it.dawdle_in("prepare");
    let (mut leaving, mut staying) = (it.grpc.client(), it.grpc.client());
    let (left, stayed, ()) = it.grpc.wait(async {
        let leave = leaving.freeze(freeze_request("shared", for_seconds(20)));
        let leave = tokio::time::timeout(Duration::from_millis(1000), leave);
        let stay = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            staying.freeze(freeze_request("shared", for_seconds(20))).await
        };
        let hurry = async {
            tokio::time::sleep(Duration::from_millis(2000)).await;
            it.hurry();
        };
        tokio::join!(leave, stay, hurry)
    });
    assert!(left.is_err(), "the hook did not dawdle");
    assert_eq!(stayed.expect("one caller was left").into_inner().report.expect("one").phase(), Phase::Held);
    it.writer.assert_blocked();
    assert_eq!(it.grpc.thaw("shared").expect("held").report.expect("one").verdict(), Verdict::Unbroken);
}

fn another_spec_under_the_same_id_already_exists(lab: &Lab) {
    let it = asked(lab);
    it.grpc.freeze("same", for_seconds(20)).expect("held");
    let refused = it.grpc.freeze("same", for_seconds(19)).expect_err("another spec");
    assert_eq!((refused.code, refused.hold_id.as_str()), (Code::AlreadyExists, "same"), "{refused:?}");
    it.writer.assert_blocked();
    assert_eq!(it.grpc.thaw("same").expect("held").report.expect("one").verdict(), Verdict::Unbroken);
}

fn an_id_that_has_been_held_is_used_up_and_its_verdict_is_told(lab: &Lab) {
    let it = asked(lab);
    it.grpc.freeze("once", for_seconds(20)).expect("held");
    it.grpc.thaw("once").expect("held");
    let refused = it.grpc.freeze("once", for_seconds(20)).expect_err("used up");
    assert_eq!((refused.code, refused.reason.as_str()), (Code::FailedPrecondition, "ID_USED"), "{refused:?}");
    assert!(refused.message.to_lowercase().contains("unbroken"), "the verdict is not told: {}", refused.message);
    assert_eq!(it.grpc.status().phase(), Phase::Idle);
}

fn an_id_that_never_reached_held_may_be_retried(lab: &Lab) {
    let it = asked(lab);
    it.daemon.setup().hook("20-moody", "[ $1 = thaw ]");
    let refused = it.grpc.freeze("again", for_seconds(20)).expect_err("the hook fails");
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Aborted, "STEP_FAILED"), "{refused:?}");
    it.daemon.setup().hook("20-moody", "exit 0");
    it.grpc.freeze("again", for_seconds(20)).expect("it may be retried");
    assert_eq!(it.grpc.thaw("again").expect("held").report.expect("one").verdict(), Verdict::Unbroken);
}

fn thawed_during(lab: &Lab, hook_phase: &str, phase: Phase) {
    let it = asked(lab);
    it.dawdle_in(hook_phase);
    let mut freezing = it.grpc.client();
    let thawing = it.daemon.grpc();
    let freeze = it.grpc.wait(async {
        let freeze = freezing.freeze(freeze_request("early", for_seconds(20)));
        let thaw = async {
            let mut asking = it.grpc.client();
            for _ in 0..500 {
                let status = asking.get_status(proto::GetStatusRequest {}).await.expect("status always answers");
                if status.into_inner().phase() == phase {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let thaw = proto::ThawRequest { id: "early".to_owned(), ..Default::default() };
            asking.thaw(thaw).await.expect("a thaw while preparing is no error").into_inner()
        };
        let (freeze, thaw) = tokio::join!(freeze, thaw);
        assert_eq!(thaw.report.expect("one").verdict(), Verdict::NeverHeld);
        freeze
    });
    let refused = crate::lab::grpc::Refused::from(freeze.expect_err("it was thawed meanwhile"));
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Aborted, "THAWED_MEANWHILE"), "{refused:?}");
    thawing.wait_for_phase(Phase::Idle, Duration::from_secs(5));
    it.writer.assert_writable_within(Duration::from_secs(2));
    assert!(it.writer.longest() < Duration::from_secs(1), "it was frozen all the same");
}

fn a_thaw_while_preparing_aborts_the_freeze(lab: &Lab) {
    thawed_during(lab, "prepare", Phase::Preparing);
}

fn a_thaw_while_quiescing_aborts_the_freeze(lab: &Lab) {
    thawed_during(lab, "freeze", Phase::Quiescing);
}

fn a_thaw_repeated_gets_the_same_answer(lab: &Lab) {
    let it = asked(lab);
    it.grpc.freeze("twice", for_seconds(20)).expect("held");
    let first = it.grpc.thaw("twice").expect("held");
    assert!(!first.already_released);
    for id in ["twice", ""] {
        let again = it.grpc.thaw(id).expect("the same answer");
        assert!(again.already_released);
        let (first, again) = (first.report.clone().expect("one"), again.report.expect("one"));
        assert_eq!((first.id, first.verdict, first.released_time), (again.id, again.verdict, again.released_time));
    }
    let unknown = it.grpc.thaw("other").expect_err("nobody knows it");
    assert_eq!(unknown.code, Code::NotFound);
}

fn a_late_thaw_tells_of_the_deadline(lab: &Lab) {
    let it = asked(lab);
    it.grpc.freeze("late", for_seconds(1)).expect("held");
    it.writer.assert_writable_within(Duration::from_secs(4));
    it.grpc.wait_for_phase(Phase::Idle, Duration::from_secs(4));
    let thaw = it.grpc.thaw("late").expect("OK, though it is broken").report.expect("one");
    assert_eq!((thaw.verdict(), thaw.reason()), (Verdict::Broken, ReleaseReason::Deadline));
    assert!(!thaw.breaches.is_empty(), "why? {thaw:?}");
}

fn a_thaw_without_id_means_the_hold_in_progress(lab: &Lab) {
    let it = asked(lab);
    let never = it.grpc.thaw("").expect("nothing was ever held").report.unwrap_or_default();
    assert_eq!(never.verdict(), Verdict::NeverHeld);
    let held = it.grpc.freeze("", for_seconds(20)).expect("the server chooses an id");
    assert!(!held.id.is_empty());
    let thaw = it.grpc.thaw("").expect("held").report.expect("one");
    assert_eq!((thaw.id, thaw.verdict), (held.id, Verdict::Unbroken.into()));
}

fn a_call_dropped_before_its_answer_lets_go(lab: &Lab) {
    let it = asked(lab);
    it.dawdle_in("freeze");
    let mut client = it.grpc.client();
    let unanswered = it.grpc.wait(async {
        let call = client.freeze(freeze_request("dropped", for_seconds(20)));
        let unanswered = tokio::time::timeout(Duration::from_secs(1), call).await.is_err();
        // the goodbye has to be said before this runtime stands still again
        tokio::time::sleep(Duration::from_millis(50)).await;
        unanswered
    });
    assert!(unanswered, "the hook did not dawdle");
    let other = it.daemon.grpc();
    // the cancelled hook counts as started: it is ended and undone
    other.wait_for_phase(Phase::Idle, Duration::from_secs(8));
    let report = other.report("dropped");
    assert_eq!((report.verdict(), report.reason()), (Verdict::NeverHeld, ReleaseReason::CallerGone), "{report:?}");
    it.writer.assert_writable_within(Duration::from_secs(2));
}

fn a_call_beyond_its_deadline_lets_go(lab: &Lab) {
    let it = asked(lab);
    it.dawdle_in("prepare");
    let mut client = it.grpc.client();
    let mut request = tonic::Request::new(freeze_request("slow", for_seconds(20)));
    request.set_timeout(Duration::from_secs(1));
    let begun = now();
    let answer = it.grpc.wait(client.freeze(request));
    assert!(answer.is_err() && now() - begun < Duration::from_secs(5), "{answer:?}");
    it.daemon.grpc().wait_for_phase(Phase::Idle, Duration::from_secs(8));
    assert!(it.writer.longest() < Duration::from_secs(1));
}

fn preparing_beyond_its_limit_ends_in_deadline_exceeded(lab: &Lab) {
    let it = asked(lab);
    it.dawdle_in("prepare");
    let limit = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let spec = proto::HoldSpec { prepare_timeout: limit, ..for_seconds(20) };
    let refused = it.grpc.freeze("slow", spec).expect_err("the hook dawdles");
    let said = (refused.code, refused.reason.as_str());
    // the hook's own phase ended by the limit may be told as the step's failure
    assert!(
        said == (Code::DeadlineExceeded, "PREPARE_TIMEOUT") || said == (Code::Aborted, "STEP_FAILED"),
        "{refused:?}"
    );
    it.grpc.wait_for_phase(Phase::Idle, Duration::from_secs(5));
    assert!(it.writer.longest() < Duration::from_millis(500), "somebody waited while preparing");
}

fn a_restart_in_between_is_a_broken_hold(lab: &Lab) {
    let it = asked(lab);
    it.grpc.freeze("interrupted", for_seconds(20)).expect("held");
    it.daemon.kill();
    it.writer.assert_writable_within(Duration::from_secs(3));
    let Asked { _disk, writer, daemon, grpc, dawdle: _ } = it;
    drop(grpc);
    let daemon = daemon.again();
    let thaw = daemon.grpc().thaw("interrupted").expect("OK, though it is broken").report.expect("one");
    assert_eq!((thaw.verdict(), thaw.reason()), (Verdict::Broken, ReleaseReason::DaemonLost), "{thaw:?}");
    let refused = daemon.grpc().freeze("interrupted", for_seconds(20)).expect_err("it has been held");
    assert_eq!(refused.reason, "ID_USED", "{refused:?}");
    drop((daemon, writer));
}

fn reports_survive_a_restart(lab: &Lab) {
    let it = asked(lab);
    it.grpc.freeze("first", for_seconds(20)).expect("held");
    it.grpc.thaw("first").expect("held");
    let refused =
        it.grpc.freeze("refused", proto::HoldSpec { require: Consistency::Application.into(), ..for_seconds(5) });
    assert_eq!(refused.expect_err("no database, no hook").reason, "LEVEL_UNREACHABLE");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(it.daemon.pid()), nix::sys::signal::Signal::SIGTERM)
        .expect("alive");
    it.daemon.wait_end(Duration::from_secs(8));
    let Asked { _disk, writer, daemon, grpc, dawdle: _ } = it;
    drop(grpc);
    let daemon = daemon.again();
    let grpc = daemon.grpc();
    assert_eq!(grpc.report("first").verdict(), Verdict::Unbroken);
    assert_eq!(grpc.thaw("first").expect("the same answer").report.expect("one").verdict(), Verdict::Unbroken);
    let mut client = grpc.client();
    let listed = grpc.wait(client.list_reports(proto::ListReportsRequest::default())).expect("a list").into_inner();
    assert!(listed.reports.iter().any(|r| r.id == "first"), "{listed:?}");
    drop((grpc, daemon, writer));
}

fn extending_is_absolute_and_capped(lab: &Lab) {
    let it = asked(lab);
    it.grpc.freeze("longer", for_seconds(5)).expect("held");
    let extend = |seconds| {
        let mut client = it.grpc.client();
        let max_hold = Some(prost_types::Duration { seconds, nanos: 0 });
        let request = proto::ExtendRequest { id: "longer".to_owned(), max_hold };
        it.grpc.wait(client.extend(request)).map(|r| r.into_inner().remaining.expect("what remains").seconds)
    };
    for _ in 0..2 {
        let remaining = extend(20).expect("below the cap");
        assert!((15..20).contains(&remaining), "{remaining} s remain");
    }
    assert_eq!(extend(31).expect_err("above the cap").code(), Code::OutOfRange);
    it.writer.assert_blocked();
    it.grpc.thaw("longer").expect("held");
    assert_eq!(extend(20).expect_err("it has ended").code(), Code::NotFound);
}

fn malformed_requests_are_invalid_and_change_nothing(lab: &Lab) {
    let it = asked(lab);
    let long = "x".repeat(4097);
    let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let fine = for_seconds(5);
    for (id, spec) in [
        ("../etc", fine.clone()),
        ("-dash", fine.clone()),
        ("ok", proto::HoldSpec { max_hold: negative, ..Default::default() }),
        ("ok", proto::HoldSpec { include_mounts: vec![long.clone()], ..fine.clone() }),
        ("ok", proto::HoldSpec { include_mounts: vec!["/x".to_owned(); 4097], ..fine.clone() }),
        ("ok", proto::HoldSpec { label: "x".repeat(257), ..fine.clone() }),
        ("ok", proto::HoldSpec { require: 33, ..fine.clone() }),
    ] {
        let refused = it.grpc.freeze(id, spec).expect_err("malformed");
        assert_eq!(refused.code, Code::InvalidArgument, "{refused:?}");
    }
    let refused = it.grpc.freeze("ok", for_seconds(31)).expect_err("above the cap");
    assert_eq!(refused.code, Code::OutOfRange, "{refused:?}");
    assert_eq!(it.grpc.status().phase(), Phase::Idle);
    assert!(it.writer.longest() < Duration::from_millis(500));
}

fn a_request_cannot_widen_the_configured_scope(lab: &Lab) {
    let it = asked(lab);
    let outside = lab.fs(Type::Ext4);
    let spec = proto::HoldSpec { include_mounts: vec![outside.at().to_owned()], ..for_seconds(5) };
    let refused = it.grpc.freeze("wider", spec).expect_err("outside [filesystems]");
    assert!(matches!(refused.code, Code::FailedPrecondition | Code::NotFound), "{refused:?}");
    assert!(outside.writable_within(Duration::from_secs(1)));
}

fn watch_starts_with_a_snapshot_and_tells_the_story_in_order(lab: &Lab) {
    use proto::event::What;
    let it = asked(lab);
    let mut watching = it.grpc.client();
    let events = it.grpc.wait(async {
        let mut stream = watching.watch(proto::WatchRequest::default()).await.expect("a stream").into_inner();
        let mut events = Vec::new();
        let mut next = async |events: &mut Vec<proto::Event>| {
            let message = stream.message().await.expect("it goes on").expect("it does not end");
            events.push(message.event.expect("an event"));
        };
        next(&mut events).await;
        it.grpc.client().freeze(freeze_request("told", for_seconds(20))).await.expect("held");
        it.grpc.client().thaw(proto::ThawRequest::default()).await.expect("held");
        while !matches!(events.last().and_then(|e| e.what.as_ref()), Some(What::Released(_))) {
            next(&mut events).await;
        }
        events
    });
    assert!(matches!(events[0].what, Some(What::Snapshot(_))), "{:?}", events[0]);
    let sequences: Vec<u64> = events.iter().map(|e| e.sequence).collect();
    assert!(sequences.is_sorted(), "{sequences:?}");
    let phases: Vec<Phase> = events
        .iter()
        .filter_map(|e| match e.what {
            Some(What::Phase(phase)) => Phase::try_from(phase).ok(),
            _ => None,
        })
        .collect();
    let story = [Phase::Preparing, Phase::Quiescing, Phase::Held, Phase::Releasing];
    let mut rest = phases.iter();
    assert!(story.iter().all(|p| rest.any(|q| q == p)), "{phases:?}");
}

fn status_answers_while_held(lab: &Lab) {
    let it = asked(lab);
    it.grpc.freeze("held", for_seconds(20)).expect("held");
    let begun = now();
    let status = it.grpc.status();
    assert!(now() - begun < Duration::from_secs(1));
    let current = status.current.expect("there is one");
    assert_eq!((current.id.as_str(), current.phase()), ("held", Phase::Held));
    let remaining = current.remaining.expect("it has a deadline").seconds;
    assert!((10..=20).contains(&remaining), "{remaining} s remain");
    it.grpc.thaw("held").expect("held");
    assert!(until(Duration::from_secs(3), || it.grpc.status().last.is_some_and(|l| l.id == "held")));
}
