//! Admission: what an ask means given where things stand. A plain function over plain data; the driver then acts.

use std::time::Duration;

use super::{Refusal, RefusalKind};
use crate::proto::{self, Phase, Verdict};

/// The hold in progress, as far as admission cares.
#[derive(Debug, Clone)]
pub struct Current<'a> {
    pub id: &'a str,
    pub spec: &'a proto::HoldSpec,
    pub phase: Phase,
    /// since HELD; zero before
    pub held_for: Duration,
}

/// What has been: the last 128 ids, and which hold ended last.
pub trait Past {
    fn find(&self, id: &str) -> Option<&proto::Report>;
    fn last_ended(&self) -> Option<&proto::Report>;
}

#[derive(Debug, Clone, PartialEq)]
pub enum FreezeAdmission {
    Begin,
    /// the same hold was asked for again: this caller gets its answer too
    Join,
    Refuse(Refusal),
}

/// What a Freeze or Hold means.
pub fn freeze(
    current: Option<&Current<'_>>,
    past: &impl Past,
    id: &str,
    spec: &proto::HoldSpec,
    caps: &Caps,
) -> FreezeAdmission {
    if let Some(current) = current {
        return FreezeAdmission::from_current(current, id, spec);
    }
    if let Some(report) = past.find(id).filter(|r| was_held(r)) {
        let verdict = match report.verdict() {
            Verdict::Unbroken => "unbroken",
            Verdict::Broken => "broken",
            Verdict::NeverHeld | Verdict::Unspecified => "unknown",
        };
        return FreezeAdmission::Refuse(
            Refusal::new(
                RefusalKind::FailedPrecondition,
                "ID_USED",
                format!("hold again under the id {id}: it has been held already; its verdict is {verdict}"),
            )
            .hint("choose a new id for a new hold")
            .about(id),
        );
    }
    if let Err(refusal) = caps.check(spec) {
        return FreezeAdmission::Refuse(refusal.about(id));
    }
    FreezeAdmission::Begin
}

impl FreezeAdmission {
    fn from_current(current: &Current<'_>, id: &str, spec: &proto::HoldSpec) -> Self {
        let joinable = match current.phase {
            Phase::Preparing | Phase::Prepared | Phase::Quiescing | Phase::Held => true,
            Phase::Unspecified | Phase::Idle | Phase::Releasing => false,
        };
        if current.id != id || !joinable {
            return FreezeAdmission::Refuse(
                Refusal::new(
                    RefusalKind::FailedPrecondition,
                    "HOLD_IN_PROGRESS",
                    format!("begin the hold {id}: the hold {} is {}", current.id, phase_text(current.phase)),
                )
                .hint("one hold at a time: wait for it, or end it with `holdstill thaw`")
                .about(current.id),
            );
        }
        if current.spec == spec {
            FreezeAdmission::Join
        } else {
            FreezeAdmission::Refuse(
                Refusal::new(
                    RefusalKind::AlreadyExists,
                    "ID_IN_USE",
                    format!("begin the hold {id}: it is in progress with another specification"),
                )
                .hint("ask with the same specification to join it, or choose another id")
                .about(id),
            )
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum ThawAdmission {
    /// end the hold in progress for this reason; answer when it is over
    Release,
    /// it is over already: this is its answer
    Again(Box<proto::Report>),
    /// nothing has ever been held
    Never,
    Refuse(Refusal),
}

/// What a Thaw means. An empty id is the hold in progress, else the last one that ended.
pub fn thaw(current: Option<&Current<'_>>, past: &impl Past, id: &str) -> ThawAdmission {
    if let Some(current) = current
        && (id.is_empty() || current.id == id)
    {
        return ThawAdmission::Release;
    }
    if id.is_empty() {
        return past.last_ended().map_or(ThawAdmission::Never, |r| ThawAdmission::Again(Box::new(r.clone())));
    }
    match past.find(id) {
        Some(report) => ThawAdmission::Again(Box::new(report.clone())),
        None => ThawAdmission::Refuse(
            Refusal::new(RefusalKind::NotFound, "UNKNOWN_HOLD", format!("thaw {id}: no hold has that id"))
                .hint("`holdstill history` lists the holds this machine remembers")
                .about(id),
        ),
    }
}

/// What an Extend means: what remains, from now.
///
/// # Errors
/// Not the hold in progress, not held yet, above the cap, or already longer ago than that.
pub fn extend(current: Option<&Current<'_>>, id: &str, max_hold: Duration, caps: &Caps) -> Result<Duration, Refusal> {
    let Some(current) = current.filter(|c| id.is_empty() || c.id == id) else {
        return Err(Refusal::new(
            RefusalKind::NotFound,
            "UNKNOWN_HOLD",
            format!("extend {id}: it is not the hold in progress"),
        )
        .about(id));
    };
    if current.phase != Phase::Held {
        return Err(Refusal::new(
            RefusalKind::FailedPrecondition,
            "NOT_HELD",
            format!("extend {}: it is {}, not held", current.id, phase_text(current.phase)),
        )
        .about(current.id));
    }
    if max_hold > caps.max {
        return Err(caps.over("max_hold", max_hold, "max", caps.max).about(current.id));
    }
    max_hold.checked_sub(current.held_for).filter(|left| !left.is_zero()).ok_or_else(|| {
        Refusal::new(
            RefusalKind::OutOfRange,
            "DURATION_PASSED",
            format!("extend {} to {max_hold:?}: it has been held longer than that already", current.id),
        )
        .hint("the duration is the new total since the hold began, not an addition")
        .about(current.id)
    })
}

/// What nobody may exceed: `[hold]` of the configuration.
#[derive(Debug, Clone)]
pub struct Caps {
    pub max: Duration,
    pub quiesce: Duration,
    pub prepare: Duration,
}

impl Caps {
    /// # Errors
    /// `OUT_OF_RANGE` for a duration above its cap.
    pub fn check(&self, spec: &proto::HoldSpec) -> Result<(), Refusal> {
        for (name, asked, key, cap) in [
            ("max_hold", &spec.max_hold, "max", self.max),
            ("quiesce_timeout", &spec.quiesce_timeout, "quiesce", self.quiesce),
            ("prepare_timeout", &spec.prepare_timeout, "prepare", self.prepare),
        ] {
            let asked = duration(asked.as_ref(), cap);
            if asked > cap {
                return Err(self.over(name, asked, key, cap));
            }
            if asked.is_zero() {
                return Err(Refusal::new(
                    RefusalKind::InvalidArgument,
                    "DURATION_ZERO",
                    format!("hold with {name} of zero"),
                )
                .hint("leave it out for the configured value"));
            }
        }
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "reads as a sentence where it is used")]
    fn over(&self, name: &str, asked: Duration, key: &str, cap: Duration) -> Refusal {
        Refusal::new(
            RefusalKind::OutOfRange,
            "DURATION_ABOVE_CAP",
            format!("hold with {name} of {}: the cap is {}", text(asked), text(cap)),
        )
        .hint(format!("ask for at most {}, or raise `{key}` in [hold] of holdstill.toml", text(cap)))
    }
}

fn text(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// A validated protobuf duration, or the configured value.
pub fn duration(asked: Option<&prost_types::Duration>, default: Duration) -> Duration {
    asked.map_or(default, |d| Duration::try_from(*d).unwrap_or_default())
}

/// Has this hold ever been HELD?
pub fn was_held(report: &proto::Report) -> bool {
    report.held_time.is_some()
}

pub fn phase_text(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified | Phase::Idle => "idle",
        Phase::Preparing => "preparing",
        Phase::Prepared => "prepared",
        Phase::Quiescing => "quiescing",
        Phase::Held => "held",
        Phase::Releasing => "being released",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default, Debug, Clone)]
    struct Memory {
        reports: BTreeMap<String, proto::Report>,
        last: Option<String>,
    }

    impl Past for Memory {
        fn find(&self, id: &str) -> Option<&proto::Report> {
            self.reports.get(id)
        }
        fn last_ended(&self) -> Option<&proto::Report> {
            self.last.as_ref().and_then(|id| self.reports.get(id))
        }
    }

    fn caps() -> Caps {
        Caps { max: Duration::from_secs(60), quiesce: Duration::from_secs(10), prepare: Duration::from_secs(60) }
    }

    fn spec(label: u8) -> proto::HoldSpec {
        proto::HoldSpec { label: label.to_string(), ..Default::default() }
    }

    #[derive(Debug, Clone)]
    enum Move {
        Freeze { id: u8, label: u8 },
        Thaw { id: Option<u8> },
        BecomesHeld,
        Ends { broken: bool },
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let one = prop_oneof![
            (0u8..4, 0u8..2).prop_map(|(id, label)| Move::Freeze { id, label }),
            proptest::option::of(0u8..4).prop_map(|id| Move::Thaw { id }),
            Just(Move::BecomesHeld),
            any::<bool>().prop_map(|broken| Move::Ends { broken }),
        ];
        proptest::collection::vec(one, 0..60)
    }

    proptest! {
        /// A tiny model beside the real thing: one running hold, ids that were held are never held again, a thaw's
        /// answer never changes.
        #[test]
        fn one_hold_at_a_time_and_every_id_is_held_at_most_once(moves in moves()) {
            let mut memory = Memory::default();
            let mut running: Option<(String, proto::HoldSpec, Phase)> = None;
            let mut held = std::collections::BTreeSet::new();
            let mut answers: BTreeMap<String, i32> = BTreeMap::new();
            for step in moves {
                let current = running.as_ref().map(|(id, spec, phase)| Current {
                    id, spec, phase: *phase, held_for: Duration::ZERO,
                });
                match step {
                    Move::Freeze { id, label } => {
                        let (id, spec) = (id.to_string(), spec(label));
                        match freeze(current.as_ref(), &memory, &id, &spec, &caps()) {
                            FreezeAdmission::Begin => {
                                prop_assert!(running.is_none());
                                prop_assert!(!held.contains(&id));
                                running = Some((id, spec, Phase::Preparing));
                            }
                            FreezeAdmission::Join => {
                                let (now, with, _) = running.as_ref().expect("joined something");
                                prop_assert_eq!((now, with), (&id, &spec));
                            }
                            FreezeAdmission::Refuse(refusal) => {
                                prop_assert!(running.is_some() || held.contains(&id), "{:?}", refusal);
                            }
                        }
                    }
                    Move::Thaw { id } => {
                        let id = id.map_or(String::new(), |id| id.to_string());
                        match thaw(current.as_ref(), &memory, &id) {
                            ThawAdmission::Release => prop_assert!(running.is_some()),
                            ThawAdmission::Again(report) => {
                                let before = *answers.entry(report.id.clone()).or_insert(report.verdict);
                                prop_assert_eq!(before, report.verdict);
                                prop_assert!(id.is_empty() || report.id == id);
                            }
                            ThawAdmission::Never => prop_assert!(id.is_empty() && memory.last.is_none()),
                            ThawAdmission::Refuse(refusal) => {
                                prop_assert_eq!(refusal.kind, RefusalKind::NotFound);
                                prop_assert!(!memory.reports.contains_key(&id));
                            }
                        }
                    }
                    Move::BecomesHeld => {
                        if let Some((id, _, phase)) = running.as_mut() {
                            *phase = Phase::Held;
                            held.insert(id.clone());
                        }
                    }
                    Move::Ends { broken } => {
                        if let Some((id, _, phase)) = running.take() {
                            let was_held = phase == Phase::Held;
                            let verdict = match (was_held, broken) {
                                (false, _) => Verdict::NeverHeld,
                                (true, false) => Verdict::Unbroken,
                                (true, true) => Verdict::Broken,
                            };
                            answers.remove(&id);
                            memory.reports.insert(id.clone(), proto::Report {
                                id: id.clone(),
                                verdict: verdict.into(),
                                held_time: was_held.then(prost_types::Timestamp::default),
                                ..Default::default()
                            });
                            memory.last = Some(id);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_duration_above_the_cap_is_refused_and_named() {
        let asked =
            proto::HoldSpec { max_hold: Some(prost_types::Duration { seconds: 3600, nanos: 0 }), ..Default::default() };
        let FreezeAdmission::Refuse(refusal) = freeze(None, &Memory::default(), "a", &asked, &caps()) else {
            panic!("admitted");
        };
        assert_eq!((refusal.kind, refusal.reason), (RefusalKind::OutOfRange, "DURATION_ABOVE_CAP"));
        assert_eq!(refusal.message, "hold with max_hold of 1h: the cap is 1m");
    }

    #[test]
    fn extending_counts_from_held_and_answers_what_remains() {
        let spec = spec(0);
        let current = Current { id: "a", spec: &spec, phase: Phase::Held, held_for: Duration::from_secs(10) };
        assert_eq!(extend(Some(&current), "a", Duration::from_secs(30), &caps()), Ok(Duration::from_secs(20)));
        assert_eq!(extend(Some(&current), "a", Duration::from_secs(5), &caps()).unwrap_err().reason, "DURATION_PASSED");
        assert_eq!(
            extend(Some(&current), "a", Duration::from_secs(61), &caps()).unwrap_err().kind,
            RefusalKind::OutOfRange
        );
        assert_eq!(extend(None, "a", Duration::from_secs(5), &caps()).unwrap_err().kind, RefusalKind::NotFound);
    }
}
