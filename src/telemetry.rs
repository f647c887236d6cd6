//! Tracing, buffered in memory while anything is frozen: our own log line must never wait for our own freeze.
//!
//! The daemon calls [`init`] once; the driver calls [`frozen`] before the first freeze and after the last thaw.

use std::{
    collections::VecDeque,
    env,
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::sys::clock;

/// How much is kept while frozen, in bytes; of more, the oldest lines go first.
const KEPT_MAX: usize = 1 << 20;

static LOG: OnceLock<Log> = OnceLock::new();

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read HOLDSTILL_LOG")]
    Filter { source: tracing_subscriber::filter::ParseError },
    #[error("set up logging: it is set up already")]
    Twice,
}

/// Logs to stderr what `HOLDSTILL_LOG` lets through (default `info`), without times where journald adds its own.
///
/// # Errors
/// `HOLDSTILL_LOG` is not a filter, or this process logs already.
pub fn init() -> Result<(), Error> {
    let wanted = env::var("HOLDSTILL_LOG").unwrap_or_default();
    let wanted = if wanted.is_empty() { "info" } else { &wanted };
    let filter = EnvFilter::try_new(wanted).map_err(|source| Error::Filter { source })?;
    let times = if env::var_os("JOURNAL_STREAM").is_some() { Times::Journald } else { Times::Ours };
    let log = Log::to(times, io::stderr());
    LOG.set(log.clone()).map_err(|_| Error::Twice)?;
    let format = tracing_subscriber::fmt().compact().with_env_filter(filter).with_ansi(false).with_writer(log);
    match times {
        Times::Ours => format.try_init(),
        Times::Journald => format.without_time().try_init(),
    }
    .map_err(|_| Error::Twice)
}

/// From `true` on, lines are kept in memory; `false` writes them. Saying the same again changes nothing.
pub fn frozen(frozen: bool) {
    if let Some(log) = LOG.get() {
        if frozen { log.keep() } else { log.flush() }
    }
}

/// Who puts the time before a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Times {
    Ours,
    Journald,
}

/// Where lines go: to the sink, or into memory.
#[derive(Clone)]
struct Log(Arc<Mutex<State>>);

struct State {
    times: Times,
    sink: Box<dyn Write + Send>,
    /// while frozen
    kept: Option<Kept>,
}

#[derive(Default)]
struct Kept {
    lines: VecDeque<(Duration, Vec<u8>)>,
    bytes: usize,
    dropped: u64,
}

impl Log {
    fn to(times: Times, sink: impl Write + Send + 'static) -> Self {
        Log(Arc::new(Mutex::new(State { times, sink: Box::new(sink), kept: None })))
    }

    /// A line half written by a thread that panicked is no reason to lose the next.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self) {
        self.state().kept.get_or_insert_default();
    }

    /// There is nobody to tell that stderr is broken.
    fn flush(&self) {
        let mut state = self.state();
        let Some(kept) = state.kept.take() else { return };
        if kept.dropped > 0 {
            let _ = writeln!(state.sink, "{} log lines from while frozen were dropped, the oldest first", kept.dropped);
        }
        let now = clock::monotonic();
        for (at, line) in kept.lines {
            if state.times == Times::Journald {
                // journald stamps the line now, and it was said then
                let _ = write!(state.sink, "[{:.3} s ago] ", now.saturating_sub(at).as_secs_f64());
            }
            let _ = state.sink.write_all(&line);
        }
        let _ = state.sink.flush();
    }
}

impl Kept {
    fn push(&mut self, line: &[u8]) {
        self.bytes += line.len();
        self.lines.push_back((clock::monotonic(), line.to_vec()));
        while self.bytes > KEPT_MAX
            && let Some((_, oldest)) = self.lines.pop_front()
        {
            self.bytes -= oldest.len();
            self.dropped += 1;
        }
    }
}

/// One whole line at a time, as tracing-subscriber's formatter writes.
impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.state();
        match &mut state.kept {
            Some(kept) => kept.push(line),
            None => state.sink.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nothing_is_written_while_frozen_and_everything_in_order_after() {
        let sink = Sink::default();
        let log = Log::to(Times::Ours, sink.clone());
        let subscriber =
            tracing_subscriber::fmt().compact().without_time().with_ansi(false).with_writer(log.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("before");
            log.keep();
            log.keep();
            tracing::info!(step = "fs:/var", "first");
            tracing::warn!("second");
            assert!(sink.text().ends_with("before\n"), "{}", sink.text());
            log.flush();
            log.flush();
            tracing::info!("after");
        });
        let text = sink.text();
        let found: Vec<_> = ["before", "first", "second", "after"].map(|word| text.find(word).unwrap()).into();
        assert!(found.is_sorted(), "{text}");
        assert_eq!(text.lines().count(), 4, "{text}");
    }

    #[test]
    fn of_more_than_1_mib_the_oldest_go_and_their_number_is_said() {
        let sink = Sink::default();
        let mut log = Log::to(Times::Ours, sink.clone());
        log.keep();
        for n in 0..1100 {
            log.write_all(format!("{n:01023}\n").as_bytes()).unwrap();
        }
        log.flush();
        let text = sink.text();
        let mut lines = text.lines();
        assert_eq!(lines.next().unwrap(), "76 log lines from while frozen were dropped, the oldest first");
        assert_eq!(lines.next().unwrap().trim_start_matches('0'), "76");
        assert_eq!(lines.last().unwrap().trim_start_matches('0'), "1099");
    }

    #[test]
    fn under_journald_a_kept_line_says_how_long_ago_it_was_said() {
        let sink = Sink::default();
        let mut log = Log::to(Times::Journald, sink.clone());
        log.write_all(b"before\n").unwrap();
        log.keep();
        log.write_all(b"held\n").unwrap();
        log.flush();
        let text = sink.text();
        assert!(text.starts_with("before\n[0.") && text.ends_with(" s ago] held\n"), "{text}");
    }
}
