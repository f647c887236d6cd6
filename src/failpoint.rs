//! Named transitions at which a test can make the driver, or a pacer, pause, so that it can kill or stop whom it likes right there.
//! Compiled in only with debug assertions or the feature `failpoints`; a release build has none of it.
//!
//! `HOLDSTILL_FAILPOINT=held:pause=2000` pauses 2 s at `held`; the name of every failpoint reached is appended to the
//! file `HOLDSTILL_FAILPOINT_FILE` (on tmpfs), one a line.

#[cfg(any(debug_assertions, feature = "failpoints"))]
pub async fn reached(name: &str) {
    if let Some(pause) = wanted(name) {
        tokio::time::sleep(pause).await;
    }
}

/// As [`reached`], in a process without a runtime: all of it pauses.
#[cfg(any(debug_assertions, feature = "failpoints"))]
pub fn pause(name: &str) {
    if let Some(pause) = wanted(name) {
        std::thread::sleep(pause);
    }
}

#[cfg(any(debug_assertions, feature = "failpoints"))]
fn wanted(name: &str) -> Option<std::time::Duration> {
    use std::{env, io::Write as _};
    if let Some(file) = env::var_os("HOLDSTILL_FAILPOINT_FILE")
        && let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(file)
    {
        let _ = writeln!(file, "{name}");
    }
    let wanted = env::var("HOLDSTILL_FAILPOINT").ok()?;
    let pause = wanted.strip_prefix(name)?.strip_prefix(":pause=")?;
    Some(std::time::Duration::from_millis(pause.parse().ok()?))
}

#[cfg(not(any(debug_assertions, feature = "failpoints")))]
#[expect(clippy::unused_async, reason = "the same shape as the one that pauses")]
pub async fn reached(_name: &str) {}

#[cfg(not(any(debug_assertions, feature = "failpoints")))]
pub fn pause(_name: &str) {}
