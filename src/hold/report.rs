//! What is known about holds, published: one watch channel for where things stand, one broadcast for what changes.

use std::sync::{Arc, Mutex};

use tokio::sync::{broadcast, watch};

use crate::proto;

/// Where things stand right now.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    pub phase: proto::Phase,
    pub current: Option<proto::Report>,
    pub last: Option<proto::Report>,
    /// sequence number of the newest event that is part of this
    pub sequence: u64,
}

/// Readers' side. Cheap to clone.
#[derive(Clone)]
pub struct Published {
    pub(crate) standing: watch::Receiver<Arc<Standing>>,
    pub(crate) events: broadcast::Sender<proto::Event>,
    pub(crate) finished: Arc<Mutex<Vec<proto::Report>>>,
}

impl Published {
    /// The latest standing; never waits.
    pub fn standing(&self) -> Arc<Standing> {
        self.standing.borrow().clone()
    }

    /// Changes from now on. A reader slower than 256 events gets `Lagged`.
    pub fn events(&self) -> broadcast::Receiver<proto::Event> {
        self.events.subscribe()
    }

    /// The report of one hold: running, finished or refused.
    pub fn report(&self, id: &str) -> Option<proto::Report> {
        let standing = self.standing();
        if let Some(current) = standing.current.as_ref().filter(|r| r.id == id) {
            return Some(current.clone());
        }
        self.finished.lock().expect("no holder panics").iter().rev().find(|r| r.id == id).cloned()
    }

    /// Finished and refused holds, newest first.
    pub fn reports(&self) -> Vec<proto::Report> {
        self.finished.lock().expect("no holder panics").iter().rev().cloned().collect()
    }
}
