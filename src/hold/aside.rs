//! Work that may block, done aside with a limit: never on the daemon's one thread.

use std::time::Duration;

/// Reading /proc and /sys takes milliseconds; beyond this something is badly stuck.
pub(super) const READ_LIMIT: Duration = Duration::from_secs(10);
/// statfs and superblock reads touch devices, which may be dead: what has not answered by then is left out.
pub(super) const TOUCH_LIMIT: Duration = Duration::from_secs(2);

/// Runs `work` where it may block, and waits for it at most `limit`.
pub(super) async fn in_a_thread<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await.ok()?.ok()
}
