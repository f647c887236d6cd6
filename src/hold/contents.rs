//! How much lies on the disks that a snapshot will not contain, counted in the background and remembered.
//!
//! Counted at start, and after a check or a hold if the last count is older than ten minutes; one file system at a time, in
//! a thread that gets a processor and a disk only when nobody else wants them, and that ends with the count. Never begun
//! unless all is idle; given up when a hold begins, and begun anew when it is over. Nothing here has a timer, so an
//! idle daemon sleeps.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot, watch},
    time::sleep,
};

use super::report::{Published, Standing, now};
use crate::{
    guest::{
        Dev,
        count::{Count, Limits, count},
    },
    proto::{self, Phase},
    sys::{clock, priority},
};

/// Counted again only after this.
const FRESH: Duration = Duration::from_secs(10 * 60);
/// 50,000 files take half a second on a fast disk; a slow one is not asked for longer than this.
const LIMITS: Limits = Limits { entries: 2_000_000, time: Duration::from_secs(120) };
/// Counts remembered.
const MOST: usize = 64;
/// Whoever asked gets the answer first.
const AFTER: Duration = Duration::from_secs(1);

/// A file system to count, by what proves that it is still that one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub dev: Dev,
    pub uuid: String,
    pub top: PathBuf,
}

/// What was counted. Shared by surveys, which ask, and the one task that counts.
#[derive(Debug, Default)]
pub struct Contents {
    known: Mutex<BTreeMap<Place, Known>>,
    wanted: Mutex<Vec<Place>>,
    asked: Notify,
}

#[derive(Debug, Clone)]
struct Known {
    contents: proto::Contents,
    /// CLOCK_BOOTTIME
    at: Duration,
}

impl Contents {
    /// The last count, however old: it says when it was.
    pub fn known(&self, place: &Place) -> Option<proto::Contents> {
        lock(&self.known).get(place).map(|known| known.contents.clone())
    }

    /// Asks for these to be counted soon, unless they were a moment ago.
    pub fn want(&self, places: Vec<Place>) {
        let known = lock(&self.known);
        let fresh =
            |place: &Place| known.get(place).is_some_and(|known| clock::boottime().saturating_sub(known.at) < FRESH);
        let wanted: Vec<Place> = places.into_iter().filter(|place| !fresh(place)).collect();
        drop(known);
        let any = !wanted.is_empty();
        *lock(&self.wanted) = wanted;
        if any {
            self.asked.notify_one();
        }
    }

    /// Counts what is wanted until the daemon ends.
    pub async fn keep(self: Arc<Self>, published: Published) {
        let mut changes = published.changes();
        loop {
            self.asked.notified().await;
            sleep(AFTER).await;
            while let Some(place) = self.next() {
                if !reached(&mut changes, is_idle).await {
                    return;
                }
                let counted = self.count(&place, &mut changes).await;
                match counted {
                    Counted::Stopped => continue,
                    Counted::Done(contents) => {
                        self.remember(place.clone(), contents);
                    }
                    Counted::Failed(error) => {
                        tracing::debug!(top = %place.top.display(), error, "could not be counted")
                    }
                }
                lock(&self.wanted).retain(|other| *other != place);
            }
            if is_idle(changes.borrow().phase) {
                crate::sys::memory::shed();
            }
        }
    }

    /// What was on a device before is forgotten with the first count of what is there now.
    fn remember(&self, place: Place, contents: proto::Contents) {
        let mut known = lock(&self.known);
        known.retain(|other, _| other.dev != place.dev);
        if known.len() == MOST {
            let oldest = known.iter().min_by_key(|(_, known)| known.at).map(|(place, _)| place.clone());
            oldest.and_then(|place| known.remove(&place));
        }
        known.insert(place, Known { contents, at: clock::boottime() });
    }

    fn next(&self) -> Option<Place> {
        lock(&self.wanted).first().cloned()
    }

    async fn count(&self, place: &Place, changes: &mut watch::Receiver<Arc<Standing>>) -> Counted {
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, mut told) = oneshot::channel();
        let (top, stopped) = (place.top.clone(), Arc::clone(&stop));
        let work = move || {
            priority::only_when_idle();
            let _ = tell.send(count(&top, LIMITS, &clock::monotonic, &|| stopped.load(Ordering::Relaxed)));
        };
        // of its own: the pool's threads are wanted by those who are in a hurry
        if let Err(error) = thread::Builder::new().name("count".into()).spawn(work) {
            return Counted::Failed(error.to_string());
        }
        let result = tokio::select! {
            result = &mut told => result,
            _ = reached(changes, |phase| !is_idle(phase)) => {
                stop.store(true, Ordering::Relaxed);
                // a thread that hangs in a dead disk leaves us here, and nothing is counted any more
                told.await
            }
        };
        match result {
            Ok(Ok(Some(count))) => Counted::Done(contents(count)),
            Ok(Ok(None)) => Counted::Stopped,
            Ok(Err(error)) => Counted::Failed(error.to_string()),
            Err(_) => Counted::Failed("its thread ended".into()),
        }
    }
}

enum Counted {
    Done(proto::Contents),
    Stopped,
    Failed(String),
}

fn contents(count: Count) -> proto::Contents {
    let directory = |directory: crate::guest::count::Directory| proto::Directory {
        path: directory.path.display().to_string(),
        bytes: directory.bytes,
        files: directory.files,
    };
    proto::Contents {
        time: Some(now()),
        files: count.files,
        bytes: count.bytes,
        complete: count.complete,
        largest: count.largest.into_iter().map(directory).collect(),
    }
}

/// Waits for such a phase; `false`: there will be none any more.
async fn reached(changes: &mut watch::Receiver<Arc<Standing>>, wanted: fn(Phase) -> bool) -> bool {
    changes.wait_for(|standing| wanted(standing.phase)).await.is_ok()
}

fn is_idle(phase: Phase) -> bool {
    match phase {
        Phase::Unspecified | Phase::Idle => true,
        Phase::Preparing | Phase::Prepared | Phase::Quiescing | Phase::Held | Phase::Releasing => false,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // whoever panicked left it whole: every change is one call
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(minor: u32) -> Place {
        Place { dev: Dev { major: 8, minor }, uuid: "u".into(), top: PathBuf::from("/mnt") }
    }

    #[test]
    fn what_was_counted_a_moment_ago_is_not_wanted_again_and_what_was_replaced_is_forgotten() {
        let contents = Contents::default();
        contents.want(vec![place(1), place(2)]);
        assert_eq!(*lock(&contents.wanted), [place(1), place(2)]);
        contents.remember(place(1), proto::Contents { files: 3, ..Default::default() });
        contents.want(vec![place(1), place(2)]);
        assert_eq!(*lock(&contents.wanted), [place(2)]);
        assert_eq!(contents.known(&place(1)).map(|c| c.files), Some(3));
        let other = Place { uuid: "another disk".into(), ..place(1) };
        assert_eq!(contents.known(&other), None);
        contents.remember(other, proto::Contents::default());
        assert_eq!(contents.known(&place(1)), None, "its device has another disk now");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_counted_while_a_hold_is_under_way_and_it_is_when_it_is_over() {
        let top = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(top.path().join("file1.txt"), "mine").expect("writable");
        let place = Place { top: top.path().to_owned(), ..place(1) };
        let dirs = tempfile::tempdir().expect("a temporary directory");
        let history = super::super::history::History::load(dirs.path(), dirs.path()).expect("empty");
        let (publisher, published) = super::super::report::Publisher::new(history);
        let contents = Arc::new(Contents::default());
        publisher.begin(proto::Report::default());
        publisher.phase(Phase::Held);
        let keeping = tokio::spawn(Arc::clone(&contents).keep(published));
        contents.want(vec![place.clone()]);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(contents.known(&place), None);
        publisher.finish(proto::Report::default());
        let counted = async {
            while contents.known(&place).is_none() {
                sleep(Duration::from_millis(1)).await;
                thread::yield_now();
            }
        };
        counted.await;
        assert_eq!(contents.known(&place).map(|c| (c.files, c.complete)), Some((1, true)));
        keeping.abort();
    }
}
