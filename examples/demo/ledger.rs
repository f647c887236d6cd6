//! What was acknowledged, and when: written by a writer after its commit returned, read by the stage.
//!
//! A ledger lies on tmpfs, so no freeze and no cut touches it. One record is 16 bytes: the transaction's id and the
//! moment its acknowledgement arrived, in nanoseconds of CLOCK_MONOTONIC, both little-endian.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::Path,
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

/// Now, on the clock every ledger uses.
pub fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC exists since Linux 2.6").into()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    pub id: u64,
    pub at: Duration,
}

/// The writer's side.
#[derive(Debug)]
pub struct Ledger(File);

impl Ledger {
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Ledger> {
        OpenOptions::new().create(true).append(true).open(path).map(Ledger)
    }

    /// Notes that transaction `id` was acknowledged just now. One write(2): a reader never sees half a record.
    ///
    /// # Errors
    /// As write(2).
    pub fn acknowledged(&mut self, id: u64) -> io::Result<()> {
        let at = u64::try_from(now().as_nanos()).expect("584 years of uptime");
        let mut record = [0; 16];
        record[..8].copy_from_slice(&id.to_le_bytes());
        record[8..].copy_from_slice(&at.to_le_bytes());
        self.0.write_all(&record)
    }
}

/// The reader's side: everything acknowledged so far, in order.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<Ack>> {
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let ack = |r: &[u8]| Ack { id: word(&r[..8]), at: Duration::from_nanos(word(&r[8..])) };
    Ok(fs::read(path)?.chunks_exact(16).map(ack).collect())
}

/// How a copy answers for one writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// acknowledged before the instant in question
    pub acknowledged: usize,
    /// of these, not in the copy
    pub lost: usize,
}

/// Which of the transactions acknowledged before `instant` are not `present`.
pub fn answer(acks: &[Ack], instant: Duration, present: &BTreeSet<u64>) -> Answer {
    let before: Vec<_> = acks.iter().filter(|a| a.at < instant).collect();
    Answer { acknowledged: before.len(), lost: before.iter().filter(|a| !present.contains(&a.id)).count() }
}

/// The longest time between two acknowledgements that overlaps `from..until`. `None`: no acknowledgement before it or
/// none after it, so nothing was measured.
pub fn longest_pause(acks: &[Ack], from: Duration, until: Duration) -> Option<Duration> {
    if acks.first()?.at > from || acks.last()?.at < until {
        return None;
    }
    acks.windows(2).filter(|w| w[1].at > from && w[0].at < until).map(|w| w[1].at - w[0].at).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acks(at_ms: &[u64]) -> Vec<Ack> {
        (1..).zip(at_ms).map(|(id, ms)| Ack { id, at: Duration::from_millis(*ms) }).collect()
    }

    #[test]
    fn what_was_noted_is_read_back_in_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger");
        let mut ledger = Ledger::open(&path).expect("created");
        let before = now();
        for id in [1, 2, 7] {
            ledger.acknowledged(id).expect("written");
        }
        let read = read(&path).expect("readable");
        assert_eq!(read.iter().map(|a| a.id).collect::<Vec<_>>(), [1, 2, 7]);
        assert!(read.windows(2).all(|w| w[0].at <= w[1].at) && read[0].at >= before && read[2].at <= now());
    }

    #[test]
    fn only_what_was_acknowledged_before_the_instant_can_be_lost() {
        let acks = acks(&[10, 20, 30, 40]);
        let present = BTreeSet::from([1, 3]);
        let answer = answer(&acks, Duration::from_millis(35), &present);
        assert_eq!(answer, Answer { acknowledged: 3, lost: 1 });
    }

    #[test]
    fn the_pause_is_the_gap_around_the_event_not_one_elsewhere() {
        let acks = acks(&[0, 500, 510, 590, 600]);
        let ms = Duration::from_millis;
        assert_eq!(longest_pause(&acks, ms(515), ms(560)), Some(ms(80)));
    }

    #[test]
    fn a_writer_that_never_went_on_has_no_measured_pause() {
        let ms = Duration::from_millis;
        assert_eq!(longest_pause(&acks(&[0, 10]), ms(5), ms(100)), None);
        assert_eq!(longest_pause(&[], ms(5), ms(100)), None);
    }
}
