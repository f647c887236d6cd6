//! How much a pacer writes back at a time. Pure.

use std::time::Duration;

/// How much is written back at a time: as much as takes a few milliseconds, because that is how long somebody who syncs
/// meanwhile waits. Disks differ a thousandfold, and in the course of a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Portion(u64);

const KIB: u64 = 1024;
/// Below this a disk's latency counts for more than the bytes.
const LEAST: u64 = 256 * KIB;
/// Larger ones gain nothing. Clean parts of a file are passed in portions, too: a terabyte is 262 144 of these, 0.2 s.
const MOST: u64 = 4096 * KIB;
const QUICK: Duration = Duration::from_millis(2);
const SLOW: Duration = Duration::from_millis(6);

impl Default for Portion {
    fn default() -> Portion {
        Portion(1024 * KIB)
    }
}

impl Portion {
    pub(super) fn bytes(self) -> u64 {
        self.0
    }

    /// The last one took so long.
    pub(super) fn took(&mut self, took: Duration) {
        if took < QUICK {
            self.0 = (self.0 * 2).min(MOST);
        } else if took > SLOW {
            self.0 = (self.0 / 2).max(LEAST);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What portions a disk of so many bytes in a millisecond, after a latency, is given; and how long each took.
    fn portions(bytes_per_ms: u64, latency: Duration, count: usize) -> Vec<(u64, Duration)> {
        let mut portion = Portion::default();
        let next = || {
            let bytes = portion.bytes();
            let took = latency + Duration::from_micros(bytes * 1000 / bytes_per_ms);
            portion.took(took);
            (bytes, took)
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    #[test]
    fn a_portion_becomes_as_much_as_a_disk_writes_in_a_few_milliseconds() {
        let sizes = |speed, latency| {
            let all = portions(speed, Duration::from_micros(latency), 6);
            all.iter().map(|(bytes, _)| bytes / KIB).collect::<Vec<_>>()
        };
        assert_eq!(sizes(3_000_000, 50), [1024, 2048, 4096, 4096, 4096, 4096], "memory");
        assert_eq!(sizes(125_000, 1_000), [1024, 512, 512, 512, 512, 512], "a cloud's usual disk");
        assert_eq!(sizes(10_000, 4_000), [1024, 512, 256, 256, 256, 256], "hopeless");
    }

    proptest! {
        #[test]
        fn whatever_the_disk_a_portion_soon_takes_milliseconds_or_is_as_small_or_large_as_it_gets(
            bytes_per_ms in 1_000u64..100_000_000,
            latency in 0u64..20_000,
        ) {
            let last = portions(bytes_per_ms, Duration::from_micros(latency), 20).pop();
            let (bytes, took) = last.expect("twenty");
            prop_assert!((LEAST..=MOST).contains(&bytes));
            prop_assert!(took <= SLOW || bytes == LEAST, "{bytes} took {took:?}");
            // a doubled one would be too long, or nearly
            prop_assert!(took >= QUICK || bytes == MOST, "{bytes} took {took:?}");
        }
    }
}
