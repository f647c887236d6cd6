//! One request on the stock agent's socket and its one reply, copied as it arrives: a reply may be 64 MB, and none of it is
//! kept here. Called by `relay`.
//!
//! ```text
//!   → {"execute": "guest-file-read", …}                  the host's, to the letter
//!   → {"execute": "guest-sync", "arguments": {"id": N}}   the fence, ours
//!   ← {"return": …}                                      to the host
//!   ← {"return": N}                                      swallowed
//! ```
//!
//! That agent works one request after another, so the fence's reply comes behind whatever the request brought: a reply; or
//! nothing, where success is silent (guest-shutdown); or more than one line, of which all but the first are dropped. After
//! it nothing can be left on the way.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, timeout},
};

/// How an exchange went wrong.
#[derive(Debug)]
pub(super) enum Broken {
    /// no more of the answer came within the time
    Silent,
    /// the other end closed
    Closed,
    /// whom the answer is for does not take it
    Sink(io::Error),
}

/// How an exchange ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// a reply was handed on
    Answered,
    /// the fence alone came back
    Silence,
}

/// How much of the answer was handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handed {
    Nothing,
    /// so many bytes, and the line has not ended
    Part(u64),
    Whole,
}

/// A number that no answer of a guest agent is by chance: far above any handle, count, or time of this century in
/// nanoseconds, and below the end of what is an integer to QEMU.
const FENCES: i64 = 0x6000_0000_0000_0000;

/// Which fence is next.
#[derive(Debug)]
pub(super) struct Fences(i64);

impl Fences {
    /// `seed` tells this daemon's fences from those of one before it.
    pub fn new(seed: u32) -> Fences {
        Fences(FENCES + (i64::from(seed) << 24))
    }

    pub fn next(&mut self) -> i64 {
        self.0 += 1;
        self.0
    }
}

/// Sends `line` and a fence, and copies to `sink` the first line that comes before the fence's reply. `handed` is true at any
/// moment, also when this is given up. The agent gets `patience` in all; the time `sink` takes is not counted.
pub(super) async fn exchange<S, W>(
    stream: &mut S,
    line: &[u8],
    fence: i64,
    sink: &mut W,
    handed: &mut Handed,
    patience: Duration,
) -> Result<Done, Broken>
where
    S: AsyncRead + AsyncWrite + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sending = async {
        let _: io::Result<()> = async {
            writer.write_all(line).await?;
            let end = if line.ends_with(b"\n") { "" } else { "\n" };
            let fence = format!("{end}{{\"execute\": \"guest-sync\", \"arguments\": {{\"id\": {fence}}}}}\n");
            writer.write_all(fence.as_bytes()).await
        }
        .await;
        // An agent that takes no more has closed, which the reader notices; it may have answered first.
        std::future::pending::<()>().await;
    };
    let mut copy = Copy { fence: format!("{{\"return\": {fence}}}\n"), place: Place::Start(0), sink, handed };
    tokio::select! {
        done = copy.until_fence(&mut reader, patience) => done,
        () = sending => unreachable!("it waits for ever"),
    }
}

/// Which line we are in.
#[derive(Clone, Copy)]
enum Place {
    /// as far as it goes, it is the fence's: so many bytes
    Start(usize),
    /// the reply
    Reply,
    /// one nobody asked for
    Surplus,
}

struct Copy<'a, W> {
    fence: String,
    place: Place,
    sink: &'a mut W,
    handed: &'a mut Handed,
}

impl<W: AsyncWrite + Unpin> Copy<'_, W> {
    async fn until_fence(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        mut patience: Duration,
    ) -> Result<Done, Broken> {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let asked = Instant::now();
            let got = match timeout(patience, reader.read(&mut buffer)).await {
                Ok(Ok(0) | Err(_)) => return Err(Broken::Closed),
                Ok(Ok(got)) => got,
                Err(_) => return Err(Broken::Silent),
            };
            patience = patience.saturating_sub(asked.elapsed());
            if self.take(&buffer[..got]).await.map_err(Broken::Sink)? {
                return Ok(if *self.handed == Handed::Nothing { Done::Silence } else { Done::Answered });
            }
        }
    }

    /// Whether the fence is there.
    async fn take(&mut self, mut bytes: &[u8]) -> io::Result<bool> {
        while let Some(first) = bytes.first() {
            match self.place {
                Place::Start(matched) if self.fence.as_bytes()[matched] == *first => {
                    bytes = &bytes[1..];
                    if matched + 1 == self.fence.len() {
                        return Ok(true);
                    }
                    self.place = Place::Start(matched + 1);
                }
                Place::Start(matched) => match self.handed {
                    Handed::Nothing | Handed::Part(_) => {
                        let held = self.fence.as_bytes()[..matched].to_vec();
                        self.place = Place::Reply;
                        self.hand_on(&held).await?;
                    }
                    Handed::Whole => self.place = Place::Surplus,
                },
                Place::Reply | Place::Surplus => {
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let (now, later) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
                    if matches!(self.place, Place::Reply) {
                        self.hand_on(now).await?;
                    }
                    if end.is_some() {
                        *self.handed = Handed::Whole;
                        self.place = Place::Start(0);
                        self.sink.flush().await?;
                    }
                    bytes = later;
                }
            }
        }
        Ok(false)
    }

    async fn hand_on(&mut self, bytes: &[u8]) -> io::Result<()> {
        let before = match *self.handed {
            Handed::Part(before) => before,
            Handed::Nothing | Handed::Whole => 0,
        };
        // counted first: of what a failing sink has taken some may have got through
        *self.handed = Handed::Part(before + bytes.len() as u64);
        self.sink.write_all(bytes).await
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// The agent's side: takes a request and its fence, and sends `pieces` with `FENCE` put in; then closes or waits.
    async fn against(pieces: Vec<Vec<u8>>, then: After) -> (Result<Done, Broken>, Vec<u8>, Handed) {
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        let fence = Fences::new(7).next();
        let agent = async move {
            let mut asked = Vec::new();
            while !asked.ends_with(format!("\"id\": {fence}}}}}\n").as_bytes()) {
                asked.push(theirs.read_u8().await.expect("a request"));
            }
            for piece in pieces {
                let piece = String::from_utf8_lossy(&piece).replace("FENCE", &fence.to_string());
                theirs.write_all(piece.as_bytes()).await.expect("we read");
            }
            match then {
                After::Close => drop(theirs),
                After::Wait => std::future::pending().await,
            }
        };
        let (mut sink, mut handed) = (Vec::new(), Handed::Nothing);
        let agent = tokio::spawn(agent);
        let done = exchange(&mut ours, b"{\"execute\": \"x\"}", fence, &mut sink, &mut handed, PATIENCE).await;
        agent.abort();
        (done, sink, handed)
    }

    #[derive(Clone, Copy)]
    enum After {
        Close,
        Wait,
    }

    fn pieces(list: &[&str]) -> Vec<Vec<u8>> {
        list.iter().map(|piece| piece.as_bytes().to_vec()).collect()
    }

    #[tokio::test]
    async fn the_reply_is_handed_on_and_the_fence_is_not() {
        let (done, sink, handed) = against(pieces(&["{\"return\": {}}\n{\"return\": FENCE}\n"]), After::Wait).await;
        assert_eq!((done.expect("whole"), sink.as_slice()), (Done::Answered, &b"{\"return\": {}}\n"[..]));
        assert_eq!(handed, Handed::Whole);
    }

    #[tokio::test]
    async fn silence_is_told_from_an_answer() {
        let (done, sink, _) = against(pieces(&["{\"return\": FENCE}\n"]), After::Wait).await;
        assert_eq!((done.expect("whole"), sink.len()), (Done::Silence, 0));
    }

    #[tokio::test]
    async fn lines_nobody_asked_for_are_dropped() {
        let text = "{\"return\": 1}\n\n{\"event\": 2}\n{\"return\": 3}\n{\"return\": FENCE}\n";
        let (done, sink, _) = against(pieces(&[text]), After::Wait).await;
        assert_eq!((done.expect("whole"), sink.as_slice()), (Done::Answered, &b"{\"return\": 1}\n"[..]));
    }

    #[tokio::test]
    async fn what_was_handed_on_before_the_end_is_counted() {
        let (done, sink, handed) = against(pieces(&["{\"return\": {\"buf"]), After::Close).await;
        assert!(matches!(done, Err(Broken::Closed)));
        assert_eq!((sink.as_slice(), handed), (&b"{\"return\": {\"buf"[..], Handed::Part(16)));
        let (done, _, handed) = against(pieces(&["{\"return\": {}}\n{\"ret"]), After::Close).await;
        assert!(matches!((done, handed), (Err(Broken::Closed), Handed::Whole)), "the host has its answer");
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_has_an_end() {
        let begun = Instant::now();
        let (done, _, handed) = against(pieces(&["{\"return\": 6"]), After::Wait).await;
        assert!(matches!(done, Err(Broken::Silent)));
        assert!((PATIENCE..PATIENCE + Duration::from_secs(1)).contains(&begun.elapsed()));
        assert_eq!(handed, Handed::Nothing, "it may still be the fence");
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_does_not_read_costs_the_agent_no_time() {
        let (host, mut sink) = tokio::io::duplex(8);
        let slow = tokio::spawn(async move {
            tokio::time::sleep(10 * PATIENCE).await;
            let mut host = host;
            let mut got = Vec::new();
            host.read_to_end(&mut got).await.map(|_| got)
        });
        let (mut ours, mut theirs) = tokio::io::duplex(1024);
        let fence = Fences::new(7).next();
        theirs
            .write_all(format!("{{\"return\": \"0123456789\"}}\n{{\"return\": {fence}}}\n").as_bytes())
            .await
            .expect("room");
        let mut handed = Handed::Nothing;
        let done = exchange(&mut ours, b"{}\n", fence, &mut sink, &mut handed, PATIENCE).await;
        assert!(matches!(done, Ok(Done::Answered)), "{done:?}");
        drop(sink);
        assert_eq!(slow.await.expect("no panic").expect("readable"), b"{\"return\": \"0123456789\"}\n");
    }

    #[tokio::test]
    async fn a_host_that_is_gone_is_its_own_failure() {
        let (host, mut sink) = tokio::io::duplex(8);
        drop(host);
        let (mut ours, mut theirs) = tokio::io::duplex(1024);
        theirs.write_all(b"{\"return\": {}}\n").await.expect("room");
        let (fence, mut handed) = (Fences::new(7).next(), Handed::Nothing);
        let done = exchange(&mut ours, b"{}\n", fence, &mut sink, &mut handed, PATIENCE).await;
        assert!(matches!(done, Err(Broken::Sink(_))), "{done:?}");
    }

    proptest! {
        #[test]
        fn wherever_the_stream_is_cut_the_same_line_is_handed_on(
            cuts in proptest::collection::vec(1usize..40, 0..30),
            reply in "(\\{\"return\": 69[0-9]{0,20}\\}|\\{\"return\": \"[a-z]{0,60}\"\\}|FENC|\\{|\\{\"return\": FENCE \\})",
        ) {
            let fence = Fences::new(7).next().to_string();
            let text = format!("{reply}\n{{\"return\": FENCE}}\n").replace("FENCE", &fence);
            let mut rest = text.as_bytes();
            let mut parts = Vec::new();
            for cut in cuts {
                let (part, later) = rest.split_at(cut.min(rest.len()));
                parts.push(part.to_vec());
                rest = later;
            }
            parts.push(rest.to_vec());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let (done, sink, _) = runtime.block_on(against(parts, After::Wait));
            prop_assert!(matches!(done, Ok(Done::Answered)));
            prop_assert_eq!(String::from_utf8(sink).expect("text"), format!("{}\n", reply.replace("FENCE", &fence)));
        }
    }
}
