//! Does the other one still run? Each process of ours counts up a word of the marker while a hold lives; the others
//! look at it on their own ticks. Only *own* ticks count, late ones once, so a paused or starved guest, in which
//! nobody ran, never looks like a dead process.

use std::time::Duration;

/// How often everyone beats and looks.
pub(crate) const TICK: Duration = Duration::from_millis(250);

/// So many own ticks without a beat mean that the other one is lost.
const MISSED: u8 = 8;

/// Watches one other process' beats.
#[derive(Debug)]
pub(crate) struct Listener {
    heard: u64,
    missed: u8,
    next: Duration,
}

impl Listener {
    pub(crate) fn new(now: Duration, pulse: u64) -> Listener {
        Listener { heard: pulse, missed: 0, next: now + TICK }
    }

    /// When to look next.
    pub(crate) fn next(&self) -> Duration {
        self.next
    }

    /// Looks, at most once per tick: `true` if the other one is lost.
    pub(crate) fn lost(&mut self, now: Duration, pulse: u64) -> bool {
        if now >= self.next {
            self.missed = if pulse == self.heard { self.missed.saturating_add(1) } else { 0 };
            (self.heard, self.next) = (pulse, now + TICK);
        }
        self.missed >= MISSED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn eight_own_ticks_without_a_beat_mean_lost() {
        let mut listener = Listener::new(Duration::ZERO, 0);
        let lost = (1..).map(|tick| tick * TICK).find(|&now| listener.lost(now, 0));
        assert_eq!(lost, Some(8 * TICK));
    }

    #[test]
    fn a_guest_paused_for_an_hour_misses_one_beat() {
        let mut listener = Listener::new(Duration::ZERO, 0);
        for late in [3_600_000, 3_600_001, 3_600_002] {
            assert!(!listener.lost(late * MS, 0));
        }
        assert_eq!(listener.missed, 1);
    }

    #[test]
    fn one_beat_is_enough() {
        let mut listener = Listener::new(Duration::ZERO, 0);
        for tick in 1..=7 {
            assert!(!listener.lost(tick * TICK, 0));
        }
        for tick in 8..=15 {
            assert!(!listener.lost(tick * TICK, 1), "tick {tick}");
        }
        assert!(listener.lost(16 * TICK, 1));
    }
}
