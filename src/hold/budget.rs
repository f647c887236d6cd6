//! What holds may cost writers: how long they wait within any hour, and how long they go on between two holds. It protects
//! a guest from a caller that has lost its mind, whichever door it comes in by.
//!
//! Plain data. The driver asks before it begins a hold and notes what each one cost; `check` asks, too. Every time here is
//! CLOCK_BOOTTIME, which nobody can set and which goes on while the guest is suspended.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use super::{Refusal, RefusalKind, admit};
use crate::proto;

const HOUR: Duration = Duration::from_secs(60 * 60);

/// Waits remembered at most: a hold a second. Beyond that the two oldest count as one, which keeps the older of them a
/// little longer than it deserves and never forgets it.
const REMEMBERED: usize = 3600;

/// A time writers waited because of one hold: until then, and for how long. The length is measured on CLOCK_MONOTONIC: a
/// suspended guest has no writers that could wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    pub until: Duration,
    pub took: Duration,
}

/// A wait as it is remembered: `gone` is when the last of it is an hour ago. (Not `until`, which lies before this boot for
/// holds of an earlier one.)
#[derive(Debug, Clone, Copy)]
struct Remembered {
    took: Duration,
    gone: Duration,
}

impl Remembered {
    /// The part of it that lies within the hour before `now`.
    fn counted(self, now: Duration) -> Duration {
        self.took.min(self.gone.saturating_sub(now))
    }
}

/// What holds have cost within the last hour, oldest first.
#[derive(Debug)]
pub struct Budget {
    hourly: Duration,
    interval: Duration,
    waits: VecDeque<Remembered>,
}

impl Budget {
    /// `[hold] hourly` and `interval`.
    pub fn new(hourly: Duration, interval: Duration) -> Self {
        Budget { hourly, interval, waits: VecDeque::new() }
    }

    /// What an earlier daemon's holds cost, as far as their reports tell. They carry the wall clock: a hold that by it ends
    /// in the future ended just now, or, if that is absurd, before somebody set the clock, and nobody knows when. One whose
    /// daemon was lost counts until that was noticed, and as `max` at most.
    pub fn seed<'a>(
        &mut self,
        reports: impl IntoIterator<Item = &'a proto::Report>,
        wall: SystemTime,
        now: Duration,
        max: Duration,
    ) {
        for report in reports {
            let Some(released) = time(report.released_time.as_ref()) else { continue };
            let age = wall.duration_since(released).or_else(|ahead| match ahead.duration() {
                ahead if ahead < HOUR => Ok(Duration::ZERO),
                _ => Err(ahead),
            });
            let took = cost(report, released, max);
            if let Ok(age) = age
                && age < HOUR
                && !took.is_zero()
            {
                self.waits.push_back(Remembered { took, gone: now + HOUR - age });
            }
        }
        self.waits.make_contiguous().sort_by_key(|wait| wait.gone);
        self.trim(now);
    }

    /// A hold is over, and writers go on.
    pub fn spend(&mut self, wait: Wait) {
        self.waits.push_back(Remembered { took: wait.took, gone: wait.until + HOUR });
        self.trim(wait.until);
    }

    /// How long writers have waited within the last hour.
    pub fn spent(&self, now: Duration) -> Duration {
        self.waits.iter().map(|wait| wait.counted(now)).sum()
    }

    /// Why no hold may begin now. A hold that has begun is never cut short: one more than the budget allows is the most
    /// that can happen.
    pub fn refusal(&self, now: Duration) -> Option<Refusal> {
        let spent = self.spent(now);
        let left = self.until_possible(now)?;
        let message = format!(
            "hold: writers have waited {} for holds within the last hour, and `hourly` allows {}; a hold is possible \
             again in {}",
            text(spent),
            text(self.hourly),
            text(left)
        );
        let refusal = Refusal::new(RefusalKind::ResourceExhausted, "HOLD_BUDGET_SPENT", message).after(left);
        Some(refusal.hint(
            "`holdstill history` shows who held, and for how long; if that much is meant, raise `hourly` in [hold]",
        ))
    }

    /// How long a hold that is ready has to wait before anyone may be made to.
    pub fn pause(&self, now: Duration) -> Duration {
        let last = self.waits.back().map_or(Duration::ZERO, |wait| wait.gone + self.interval);
        last.saturating_sub(now + HOUR)
    }

    /// How long until less than the budget is spent; `None`: it is now.
    fn until_possible(&self, now: Duration) -> Option<Duration> {
        let mut excess = self.spent(now).checked_sub(self.hourly)?;
        for wait in &self.waits {
            let counted = wait.counted(now);
            if counted > excess {
                // the oldest part of it has to go
                return Some(wait.gone - (counted - excess) - now);
            }
            excess -= counted;
        }
        // everything has to go, which it has within an hour; not reached with a budget above zero
        Some(HOUR)
    }

    fn trim(&mut self, now: Duration) {
        while self.waits.front().is_some_and(|wait| wait.gone <= now) {
            // the last one is still needed for the interval
            if self.waits.len() == 1 {
                break;
            }
            self.waits.pop_front();
        }
        while self.waits.len() > REMEMBERED {
            if let Some(oldest) = self.waits.pop_front()
                && let Some(next) = self.waits.front_mut()
            {
                next.took += oldest.took;
            }
        }
    }
}

/// How long writers waited for a hold, by its report.
fn cost(report: &proto::Report, released: SystemTime, max: Duration) -> Duration {
    let quiesce = admit::duration(report.quiesce_took.as_ref(), Duration::ZERO);
    let held = match (&report.held_took, time(report.held_time.as_ref())) {
        (Some(held), _) => admit::duration(Some(held), Duration::ZERO),
        (None, Some(since)) => released.duration_since(since).unwrap_or_default().min(max),
        (None, None) => Duration::ZERO,
    };
    quiesce + held
}

fn time(stamp: Option<&prost_types::Timestamp>) -> Option<SystemTime> {
    SystemTime::try_from(*stamp?).ok()
}

/// Rounded up to what people want to know: "1m 30s", "850ms".
fn text(duration: Duration) -> String {
    let unit = if duration < Duration::from_secs(10) { 1 } else { 1000 };
    let units = duration.as_nanos().div_ceil(unit * 1_000_000) * unit;
    humantime::format_duration(Duration::from_millis(units.try_into().unwrap_or(u64::MAX))).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn budget(hourly: Duration) -> Budget {
        Budget::new(hourly, Duration::from_millis(200))
    }

    /// Holds one after another: milliseconds between them, and milliseconds writers wait.
    fn holds() -> impl Strategy<Value = Vec<(u64, u64)>> {
        proptest::collection::vec((0..600_000u64, 0..120_000u64), 0..60)
    }

    /// The truth, counted millisecond by millisecond's worth: what of `waits` lies in the hour before `now`.
    fn true_cost(waits: &[(Duration, Duration)], now: Duration) -> Duration {
        let from = now.saturating_sub(HOUR);
        waits.iter().map(|(begun, ended)| (*ended).min(now).saturating_sub((*begun).max(from))).sum()
    }

    proptest! {
        #[test]
        fn what_is_spent_is_what_writers_waited_within_the_hour_and_no_millisecond_else(
            holds in holds(), after in 0..5_000_000u64, minutes in 1..60u64,
        ) {
            let mut budget = budget(Duration::from_secs(60 * minutes));
            let mut now = HOUR;
            let mut waits = Vec::new();
            for (gap, took) in holds {
                let begun = now + Duration::from_millis(gap);
                now = begun + Duration::from_millis(took);
                budget.spend(Wait { until: now, took: now - begun });
                waits.push((begun, now));
                prop_assert_eq!(budget.spent(now), true_cost(&waits, now));
            }
            now += Duration::from_millis(after);
            prop_assert_eq!(budget.spent(now), true_cost(&waits, now));
            // refused exactly while the budget is spent, and until exactly when it says
            let refused = budget.until_possible(now);
            prop_assert_eq!(refused.is_some(), true_cost(&waits, now) >= budget.hourly);
            prop_assert_eq!(budget.refusal(now).is_some(), refused.is_some());
            if let Some(left) = refused {
                let nearly = now + left.saturating_sub(Duration::from_nanos(1));
                prop_assert!(true_cost(&waits, nearly) >= budget.hourly);
                prop_assert!(true_cost(&waits, now + left + Duration::from_nanos(1)) < budget.hourly);
            }
        }

        /// Whoever asks as soon as it is allowed to, for as long as it is allowed to: within any hour writers wait no
        /// longer than the budget and one hold more.
        #[test]
        fn a_caller_that_has_lost_its_mind_never_gets_more_than_the_budget_and_one_hold(
            took in proptest::collection::vec(1..60_000u64, 1..200), minutes in 1..60u64,
        ) {
            let mut budget = budget(Duration::from_secs(60 * minutes));
            let mut now = Duration::ZERO;
            for took in took {
                now += budget.pause(now);
                if let Some(left) = budget.until_possible(now) {
                    now += left + Duration::from_nanos(1);
                }
                prop_assert!(budget.refusal(now).is_none());
                let took = Duration::from_millis(took);
                now += took;
                budget.spend(Wait { until: now, took });
                prop_assert!(budget.spent(now) < budget.hourly + MINUTE);
            }
        }

        #[test]
        fn writers_always_get_the_interval(gap in 0..1_000u64, took in 0..1_000u64, interval in 0..1_000u64) {
            let [gap, took, interval] = [gap, took, interval].map(Duration::from_millis);
            let mut budget = Budget::new(HOUR, interval);
            prop_assert_eq!(budget.pause(took), Duration::ZERO, "nothing was held yet");
            budget.spend(Wait { until: MINUTE, took });
            let ready = MINUTE + gap;
            prop_assert_eq!(ready + budget.pause(ready), ready.max(MINUTE + interval));
        }
    }

    #[test]
    fn more_holds_than_are_remembered_are_counted_all_the_same() {
        let mut budget = budget(30 * MINUTE);
        let step = Duration::from_millis(300);
        let mut now = Duration::ZERO;
        for _ in 0..3 * REMEMBERED {
            now += step;
            budget.spend(Wait { until: now, took: step / 3 });
        }
        assert_eq!(budget.waits.len(), REMEMBERED);
        assert_eq!(budget.spent(now), now / 3, "all within the hour");
        assert_eq!(budget.spent(now + HOUR), Duration::ZERO);
    }

    #[test]
    fn the_refusal_says_how_much_of_which_budget_and_until_when() {
        let mut budget = budget(30 * MINUTE);
        budget.spend(Wait { until: 40 * MINUTE, took: 31 * MINUTE });
        assert!(budget.refusal(100 * MINUTE).is_none(), "an hour ago");
        let refusal = budget.refusal(41 * MINUTE).expect("spent");
        assert_eq!((refusal.kind, refusal.reason), (RefusalKind::ResourceExhausted, "HOLD_BUDGET_SPENT"));
        assert_eq!(
            refusal.message,
            "hold: writers have waited 31m for holds within the last hour, and `hourly` allows 30m; a hold is possible \
             again in 29m"
        );
        assert_eq!(refusal.retry_after, Some(29 * MINUTE));
        assert!(refusal.hint.contains("`hourly` in [hold]"));
    }

    fn report(released: i64, quiesce: i64, held: Option<i64>) -> proto::Report {
        let seconds = |seconds| prost_types::Duration { seconds, nanos: 0 };
        let at = |seconds| prost_types::Timestamp { seconds, nanos: 0 };
        proto::Report {
            held_time: Some(at(released - held.unwrap_or(500))),
            released_time: Some(at(released)),
            quiesce_took: Some(seconds(quiesce)),
            held_took: held.map(seconds),
            ..Default::default()
        }
    }

    #[test]
    fn a_restarted_daemon_knows_what_the_last_hour_cost_also_what_it_did_not_see_the_end_of() {
        let now_wall = 1_000_000;
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(now_wall);
        let ago = |seconds: i64| i64::try_from(now_wall).unwrap() - seconds;
        let refused = proto::Report { released_time: report(ago(5), 0, None).released_time, ..Default::default() };
        let reports = [
            report(ago(4000), 1, Some(60)), // more than an hour ago
            report(ago(3590), 1, Some(19)), // the last 10 s of it count
            report(ago(600), 2, Some(30)),
            refused,                           // never made anybody wait
            report(ago(60), 1, None),          // its daemon was lost: 1 s, and `max`
            report(ago(-7), 0, Some(5)),       // the clock was set back a little: just now
            report(ago(-7200), 0, Some(1000)), // it was set, nobody knows from when
        ];
        // one minute after boot: all of that lies before CLOCK_BOOTTIME's zero
        let mut budget = budget(30 * MINUTE);
        budget.seed(&reports, wall, MINUTE, Duration::from_secs(45));
        let spent = |now| budget.spent(now).as_secs();
        assert_eq!(spent(MINUTE), 10 + 32 + 46 + 5);
        assert_eq!(spent(MINUTE + Duration::from_secs(10)), 32 + 46 + 5);
        assert_eq!(spent(MINUTE + Duration::from_secs(3000)), 46 + 5);
        assert_eq!(budget.pause(MINUTE), Duration::from_millis(200), "the newest ended just now");
    }
}
