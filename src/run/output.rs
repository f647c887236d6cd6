//! What the command prints, kept in bounded memory until everything is released: our own output may lie on a held disk.

use std::{
    io::{self, PipeReader, Read, Write},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

/// How much is kept, in bytes: the first half of it, and the last.
const LIMIT: usize = 16 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Out,
    Err,
}

/// Both streams in the order they were read; the middle is dropped if it becomes too much.
#[derive(Debug, Default)]
struct Kept {
    head: Vec<(Stream, Vec<u8>)>,
    tail: std::collections::VecDeque<(Stream, Vec<u8>)>,
    head_bytes: usize,
    tail_bytes: usize,
    dropped: u64,
    open: usize,
}

impl Kept {
    fn push(&mut self, stream: Stream, chunk: &[u8], limit: usize) {
        if self.tail.is_empty() && self.head_bytes + chunk.len() <= limit / 2 {
            self.head_bytes += chunk.len();
            return self.head.push((stream, chunk.to_vec()));
        }
        self.tail_bytes += chunk.len();
        self.tail.push_back((stream, chunk.to_vec()));
        while self.tail_bytes > limit / 2
            && let Some((_, gone)) = self.tail.pop_front()
        {
            self.tail_bytes -= gone.len();
            self.dropped += gone.len() as u64;
        }
    }
}

/// Reads both pipes from now on, each in a thread of its own.
pub struct Output {
    kept: Arc<(Mutex<Kept>, Condvar)>,
}

impl Output {
    /// Starts reading.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn pump(out: PipeReader, err: PipeReader) -> io::Result<Output> {
        let kept = Arc::new((Mutex::new(Kept { open: 2, ..Kept::default() }), Condvar::new()));
        for (stream, mut pipe) in [(Stream::Out, out), (Stream::Err, err)] {
            let kept = Arc::clone(&kept);
            thread::Builder::new().name("output".to_owned()).spawn(move || {
                let mut chunk = [0; 8192];
                while let Ok(n @ 1..) = pipe.read(&mut chunk) {
                    kept.0.lock().expect("no holder panics").push(stream, &chunk[..n], LIMIT);
                }
                kept.0.lock().expect("no holder panics").open -= 1;
                kept.1.notify_all();
            })?;
        }
        Ok(Output { kept })
    }

    /// Writes what was read to our own stdout and stderr. Both pipes have ended when the command has, unless it left
    /// something running in the background: that is waited for no longer than `limit`.
    pub fn write(&self, limit: Duration) {
        let guard = self.kept.0.lock().expect("no holder panics");
        let (mut kept, _) =
            self.kept.1.wait_timeout_while(guard, limit, |kept| kept.open > 0).expect("no holder panics");
        let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
        let kept = std::mem::take(&mut *kept);
        for (stream, chunk) in kept.head {
            write(stream, &chunk, &mut out, &mut err);
        }
        if kept.dropped > 0 {
            let _ = out.flush();
            let _ = writeln!(err, "holdstill: {} bytes of output were dropped here", kept.dropped);
        }
        for (stream, chunk) in kept.tail {
            write(stream, &chunk, &mut out, &mut err);
        }
        let _ = out.flush();
    }
}

/// Nobody is left to tell if they are closed.
fn write(stream: Stream, chunk: &[u8], out: &mut impl Write, err: &mut impl Write) {
    let _ = match stream {
        Stream::Out => out.write_all(chunk),
        Stream::Err => out.flush().and_then(|()| err.write_all(chunk)),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_and_the_end_are_kept_and_what_is_dropped_is_counted() {
        let mut kept = Kept::default();
        for n in 0..10u8 {
            kept.push(Stream::Out, &[n; 10], 60);
        }
        let first: Vec<u8> = kept.head.iter().map(|(_, c)| c[0]).collect();
        let last: Vec<u8> = kept.tail.iter().map(|(_, c)| c[0]).collect();
        assert_eq!((first, last, kept.dropped), (vec![0, 1, 2], vec![7, 8, 9], 40));
    }

    #[test]
    fn both_streams_stay_in_order() {
        let mut kept = Kept::default();
        kept.push(Stream::Out, b"a", 60);
        kept.push(Stream::Err, b"b", 60);
        kept.push(Stream::Out, b"c", 60);
        let order: Vec<_> = kept.head.iter().map(|(s, c)| (*s, c[0])).collect();
        assert_eq!(order, [(Stream::Out, b'a'), (Stream::Err, b'b'), (Stream::Out, b'c')]);
    }
}
