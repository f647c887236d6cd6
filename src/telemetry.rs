//! Tracing, buffered in memory while anything is frozen: our own log line must never wait for our own freeze.
//!
//! The daemon calls [`init`] once; the driver calls [`frozen`] before the first freeze and after the last thaw, or
//! [`let_out`] where the freeze is somebody else's, of which we don't know whether it has ended.

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

/// As `frozen(false)`, but whatever the log lies on may still be frozen by somebody else: a thread of its own writes what was
/// kept, so that nobody else waits. It ends with the last line, or when [`frozen`] is said again.
pub fn let_out() {
    if let Some(log) = LOG.get() {
        log.let_out();
    }
}

/// Gives what is let out a moment, before this process ends.
pub fn settle(limit: Duration) {
    let until = clock::monotonic() + limit;
    while LOG.get().is_some_and(|log| log.state().letting_out) && clock::monotonic() < until {
        std::thread::sleep(Duration::from_millis(2));
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
struct Log {
    times: Times,
    state: Arc<Mutex<State>>,
    /// locked after the state, or alone
    sink: Arc<Mutex<Box<dyn Write + Send>>>,
}

#[derive(Default)]
struct State {
    frozen: bool,
    /// while frozen, and while these are written by a thread of their own
    kept: Option<Kept>,
    letting_out: bool,
}

#[derive(Default)]
struct Kept {
    lines: VecDeque<(Duration, Vec<u8>)>,
    bytes: usize,
    dropped: u64,
}

impl Log {
    fn to(times: Times, sink: impl Write + Send + 'static) -> Self {
        Log { times, state: Arc::default(), sink: Arc::new(Mutex::new(Box::new(sink))) }
    }

    /// A line half written by a thread that panicked is no reason to lose the next.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sink(&self) -> MutexGuard<'_, Box<dyn Write + Send>> {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self) {
        let mut state = self.state();
        state.frozen = true;
        state.kept.get_or_insert_default();
    }

    /// What is being let out already stays with the thread that does it.
    fn flush(&self) {
        let mut state = self.state();
        state.frozen = false;
        if state.letting_out {
            return;
        }
        let Some(mut kept) = state.kept.take() else { return };
        while let Some(line) = kept.next(self.times) {
            self.say(&line);
        }
    }

    fn let_out(&self) {
        let mut state = self.state();
        state.frozen = false;
        if state.kept.is_none() || state.letting_out {
            return;
        }
        let log = self.clone();
        // without a thread they stay where they are, until the next hold is over
        state.letting_out = std::thread::Builder::new().name("log".into()).spawn(move || log.write_kept()).is_ok();
    }

    /// The state is never locked while a line is written.
    fn write_kept(&self) {
        loop {
            let mut state = self.state();
            let next = if state.frozen { None } else { state.kept.as_mut().and_then(|kept| kept.next(self.times)) };
            let Some(line) = next else {
                state.letting_out = false;
                if !state.frozen {
                    state.kept = None;
                }
                return;
            };
            drop(state);
            self.say(&line);
        }
    }

    /// There is nobody to tell that stderr is broken.
    fn say(&self, line: &[u8]) {
        let mut sink = self.sink();
        let _ = sink.write_all(line).and_then(|()| sink.flush());
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

    /// The next line to write, the oldest first.
    fn next(&mut self, times: Times) -> Option<Vec<u8>> {
        if self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            let lines = format!("{dropped} log lines from while frozen were dropped, the oldest first\n");
            return Some(lines.into_bytes());
        }
        let (at, line) = self.lines.pop_front()?;
        self.bytes -= line.len();
        if times == Times::Ours {
            return Some(line);
        }
        // journald stamps the line now, and it was said then
        let ago = format!("[{:.3} s ago] ", clock::monotonic().saturating_sub(at).as_secs_f64());
        Some([ago.as_bytes(), &line].concat())
    }
}

/// One whole line at a time, as tracing-subscriber's formatter writes.
impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.state();
        match &mut state.kept {
            Some(kept) => kept.push(line),
            None => self.sink().write_all(line)?,
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

    /// A disk that somebody else has frozen.
    struct Frozen(Arc<Mutex<()>>, Sink);

    impl Write for Frozen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _thawed = self.0.lock();
            self.1.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_let_out_onto_a_frozen_disk_keeps_nobody_waiting_and_comes_in_order() {
        let (disk, sink) = (Arc::new(Mutex::new(())), Sink::default());
        let mut log = Log::to(Times::Ours, Frozen(Arc::clone(&disk), sink.clone()));
        log.keep();
        log.write_all(b"held\n").unwrap();
        let freeze = disk.lock().unwrap();
        log.let_out();
        log.let_out();
        log.write_all(b"over\n").unwrap();
        // the next hold begins and ends meanwhile
        log.keep();
        log.write_all(b"again\n").unwrap();
        log.flush();
        assert_eq!(sink.text(), "");
        drop(freeze);
        let until = clock::monotonic() + Duration::from_secs(10);
        while log.state().letting_out && clock::monotonic() < until {
            std::thread::yield_now();
        }
        log.write_all(b"after\n").unwrap();
        assert_eq!(sink.text(), "held\nover\nagain\nafter\n");
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
