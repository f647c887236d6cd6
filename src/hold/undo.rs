//! The undo stack: what was started, and how each is undone. The driver stacks an undo *before* its step acts, so a
//! step that failed half-way is undone too.
//!
//! Unwinding goes newest first, tries everything even when an undo fails, and returns every failure. An entry leaves
//! the stack only after its undo was tried, so a cancelled unwind goes on where it stopped.

/// Undos, oldest first. `A` says what to do; the driver knows how.
#[derive(Debug)]
pub struct UndoStack<A> {
    entries: Vec<A>,
}

impl<A> Default for UndoStack<A> {
    fn default() -> Self {
        UndoStack { entries: Vec::new() }
    }
}

impl<A> UndoStack<A> {
    pub fn push(&mut self, undo: A) {
        self.entries.push(undo);
    }

    /// The newest entry, still on the stack: undo it, then [`UndoStack::pop`].
    pub fn newest_mut(&mut self) -> Option<&mut A> {
        self.entries.last_mut()
    }

    pub fn pop(&mut self) -> Option<A> {
        self.entries.pop()
    }

    /// Oldest first.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut A> {
        self.entries.iter_mut()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Undoes everything, newest first, with `undo`; returns every failure in the order met.
    pub async fn unwind<E>(&mut self, mut undo: impl AsyncFnMut(&mut A) -> Result<(), E>) -> Vec<E> {
        let mut failures = Vec::new();
        while let Some(entry) = self.newest_mut() {
            if let Err(failure) = undo(entry).await {
                failures.push(failure);
            }
            self.pop();
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use proptest::prelude::*;

    use super::*;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(work)
    }

    proptest! {
        #[test]
        fn for_any_fault_schedule_undone_equals_started_reversed_once(
            fails in proptest::collection::vec(any::<bool>(), 0..40),
            // after how many undos an unwind is cut off, and has to be started again
            cuts in proptest::collection::vec(0usize..6, 0..5),
        ) {
            let mut stack = UndoStack::default();
            for index in 0..fails.len() {
                stack.push(index);
            }
            let mut undone = Vec::new();
            let mut failures = Vec::new();
            for cut in cuts {
                let mut left = cut;
                let part = block_on(async {
                    tokio::time::timeout(Duration::from_secs(1), stack.unwind(async |index: &mut usize| {
                        if left == 0 {
                            pending::<()>().await;
                        }
                        left -= 1;
                        undone.push(*index);
                        if fails[*index] { failures.push(*index); Err(()) } else { Ok(()) }
                    })).await
                });
                if part.is_ok() {
                    break;
                }
            }
            block_on(stack.unwind(async |index: &mut usize| {
                undone.push(*index);
                if fails[*index] { failures.push(*index); Err(()) } else { Ok(()) }
            }));
            prop_assert_eq!(undone, (0..fails.len()).rev().collect::<Vec<_>>());
            prop_assert_eq!(failures.len(), fails.iter().filter(|f| **f).count());
            prop_assert!(stack.is_empty());
        }
    }

    #[test]
    fn every_failure_is_returned_and_stops_nothing() {
        let mut stack = UndoStack::default();
        for name in ["hook:a", "hook:b", "db:c"] {
            stack.push(name);
        }
        let mut order = Vec::new();
        let failures = block_on(stack.unwind(async |name: &mut &str| {
            order.push(*name);
            if *name == "hook:b" { Ok(()) } else { Err(format!("{name} failed")) }
        }));
        assert_eq!(order, ["db:c", "hook:b", "hook:a"]);
        assert_eq!(failures, ["db:c failed", "hook:a failed"]);
    }
}
