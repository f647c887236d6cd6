//! Pre-flush: when to write dirty pages back in portions first, and when to stop writing back before a freeze (the idea of
//! live-migration pre-copy). Pure; the driver runs the rounds and asks after each.

use std::time::Duration;

/// A round this short leaves nothing to gain: the last `syncfs` before the freeze will be as short.
pub const SETTLED: Duration = Duration::from_millis(20);

/// As much as this, in the whole guest, one `syncfs` writes back before a writer that syncs notices.
pub const LITTLE: u64 = 16 << 20;

/// How long dirty files may be written back in portions before the first round, of so much time for preparing; `None`: not
/// at all. What is left after half of the time is written faster all at once than by going on politely.
pub fn portions(dirty: u64, left: Duration) -> Option<Duration> {
    (dirty >= LITTLE && left >= Duration::from_millis(100)).then(|| left / 2)
}

/// What to do after a round of `syncfs` on every file system at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preflush {
    /// another round gains something
    Continue,
    /// every file system's last round was at most [`SETTLED`]
    Converged,
    /// more rounds will not help, or may not: writers dirty pages as fast as the disk takes them. Writers would wait
    /// about as long as the slowest last round.
    NotConverged { predicted_stall: Duration },
}

/// Judges the rounds so far. `rounds` holds, per file system, how long each of its rounds took, oldest first; `spent`
/// is the time since the first began. Without a round there is nothing to judge: `Continue`, whatever the budget.
///
/// A file system is settled when its last round was short enough; it has stalled when neither of its last two rounds
/// was at least 30 % shorter than the one before. Rounds go on while some file system is neither and `budget` is left.
pub fn preflush(rounds: &[Vec<Duration>], spent: Duration, budget: Duration) -> Preflush {
    let Some(predicted_stall) = rounds.iter().filter_map(|own| own.last().copied()).max() else {
        return if rounds.is_empty() { Preflush::Converged } else { Preflush::Continue };
    };
    if rounds.iter().any(Vec::is_empty) {
        return Preflush::Continue;
    }
    if predicted_stall <= SETTLED {
        return Preflush::Converged;
    }
    let hopeful = rounds.iter().any(|own| own.last().is_some_and(|last| *last > SETTLED) && !stalled(own));
    if hopeful && spent < budget { Preflush::Continue } else { Preflush::NotConverged { predicted_stall } }
}

fn stalled(rounds: &[Duration]) -> bool {
    match rounds {
        [.., a, b, c] => !gains(*a, *b) && !gains(*b, *c),
        _ => false,
    }
}

/// At least 30 % shorter than the round before.
fn gains(before: Duration, after: Duration) -> bool {
    after <= before * 7 / 10
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn judge(rounds: &[&[u64]], spent: u64) -> Preflush {
        let rounds: Vec<Vec<Duration>> = rounds.iter().map(|own| own.iter().copied().map(ms).collect()).collect();
        preflush(&rounds, ms(spent), ms(10_000))
    }

    const fn stall(ms: u64) -> Preflush {
        Preflush::NotConverged { predicted_stall: Duration::from_millis(ms) }
    }

    #[test]
    fn portions_are_written_first_only_if_there_is_much_to_write_and_time_for_it() {
        assert_eq!(portions(LITTLE - 1, ms(60_000)), None);
        assert_eq!(portions(LITTLE, ms(60_000)), Some(ms(30_000)));
        assert_eq!(portions(1 << 40, ms(1_000)), Some(ms(500)));
        assert_eq!(portions(1 << 40, ms(20)), None);
    }

    #[test]
    fn rounds_go_on_while_they_gain_and_the_budget_lasts() {
        use Preflush::{Continue, Converged};
        #[rustfmt::skip]
        let table: &[(&str, &[&[u64]], u64, Preflush)] = &[
            ("nothing to flush",                      &[],                               0, Converged),
            ("no round yet",                          &[&[]],                            0, Continue),
            ("no round yet, no budget either",        &[&[]],                       10_000, Continue),
            ("clean from the start",                  &[&[3]],                           3, Converged),
            ("exactly settled",                       &[&[20]],                         20, Converged),
            ("one slow round",                        &[&[2000]],                     2000, Continue),
            ("gaining",                               &[&[2000, 900, 400]],           3300, Continue),
            ("gained, then settled",                  &[&[2000, 300, 12]],            2312, Converged),
            ("one round without a gain",              &[&[900, 800]],                 1700, Continue),
            ("two rounds without a gain",             &[&[900, 800, 750]],            2450, stall(750)),
            ("exactly 30 % is a gain",                &[&[1000, 700, 490]],           2190, Continue),
            ("a gain between resets",                 &[&[900, 800, 300, 290]],       2290, Continue),
            ("and two more without end it",           &[&[900, 300, 290, 280]],       1770, stall(280)),
            ("growing",                               &[&[100, 200, 400]],             700, stall(400)),
            ("the budget ends it",                    &[&[6000, 3000, 1500]],       10_500, stall(1500)),
            ("settled even as the budget ends",       &[&[9990, 10]],               10_000, Converged),
            ("one settled, one gaining",              &[&[5, 4], &[900, 400]],        1300, Continue),
            ("one settled, one stalled",              &[&[5, 4, 4], &[90, 80, 80]],    250, stall(80)),
            ("one stalled, one gaining",              &[&[90, 80, 80], &[900, 400, 90]], 1390, Continue),
            ("both stalled: the slower counts",       &[&[90, 80, 80], &[60, 60, 60]], 230, stall(80)),
            ("settled once, then dirty again",        &[&[10, 500]],                   510, Continue),
            ("one of them has no round yet",          &[&[5], &[]],                      5, Continue),
        ];
        for (story, rounds, spent, expected) in table {
            assert_eq!(judge(rounds, *spent), *expected, "{story}");
        }
    }

    proptest! {
        #[test]
        fn it_always_ends_and_never_calls_a_long_round_converged(durations in prop::collection::vec(0u64..5000, 1..60)) {
            let mut own = Vec::new();
            for duration in durations {
                own.push(ms(duration));
                let spent = own.iter().sum();
                match preflush(std::slice::from_ref(&own), spent, ms(10_000)) {
                    Preflush::Continue => prop_assert!(spent < ms(10_000) && ms(duration) > SETTLED),
                    Preflush::Converged => prop_assert!(ms(duration) <= SETTLED),
                    Preflush::NotConverged { predicted_stall } => prop_assert_eq!(predicted_stall, ms(duration)),
                }
            }
        }
    }
}
