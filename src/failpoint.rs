//! Named transitions at which a test can make the driver pause, so that it can kill or stop whom it likes right there.
//! Compiled in only with debug assertions or the feature `failpoints`; a release build has none of it.
//!
//! `HOLDSTILL_FAILPOINT=held:pause=2000` pauses 2 s at `held`; the name of every failpoint reached is appended to the
//! file `HOLDSTILL_FAILPOINT_FILE` (on tmpfs), one a line.

#[cfg(any(debug_assertions, feature = "failpoints"))]
pub async fn reached(name: &str) {
    use std::{env, io::Write as _, time::Duration};
    if let Some(file) = env::var_os("HOLDSTILL_FAILPOINT_FILE")
        && let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(file)
    {
        let _ = writeln!(file, "{name}");
    }
    let Ok(wanted) = env::var("HOLDSTILL_FAILPOINT") else { return };
    if let Some(pause) = wanted.strip_prefix(name).and_then(|rest| rest.strip_prefix(":pause="))
        && let Ok(pause) = pause.parse()
    {
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

#[cfg(not(any(debug_assertions, feature = "failpoints")))]
#[expect(clippy::unused_async, reason = "the same shape as the one that pauses")]
pub async fn reached(_name: &str) {}
