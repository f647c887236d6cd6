//! A caller far away: over a wire that tells nobody when the other end is gone. Time is tokio's, and paused.

use std::task::Waker;

use tokio::{
    io::DuplexStream,
    time::{Instant, advance, sleep},
};
use tonic::Streaming;

use super::*;
use crate::proto::HoldResponse;

/// Holds one end of the wire. Stopped, it neither reads nor writes, and closes nothing: a SIGSTOP, or a host that is no
/// more.
#[derive(Clone, Default)]
struct Stop(Arc<Mutex<(bool, Vec<Waker>)>>);

impl Stop {
    fn set(&self, stopped: bool) {
        let mut state = self.0.lock().unwrap();
        state.0 = stopped;
        state.1.drain(..).for_each(Waker::wake);
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock().unwrap();
        if state.0 {
            state.1.push(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

/// One end, with what stops its reading and its writing.
struct Stoppable(DuplexStream, Stop, Stop);

impl AsyncRead for Stoppable {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        std::task::ready!(self.1.poll(cx));
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stoppable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        std::task::ready!(self.2.poll(cx));
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        std::task::ready!(self.2.poll(cx));
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A remote caller, and the driver it reaches.
struct Remote {
    driver: Fake,
    client: HoldstillServiceClient<Channel>,
    stop: Stop,
    /// what the machine has not read yet
    unread: Stop,
}

/// Held by the remote caller.
struct Held {
    remote: Remote,
    ticket: u64,
    events: Streaming<HoldResponse>,
}

impl Remote {
    async fn new() -> Remote {
        let (handle, driver) = fake();
        let entrance = Entrance::new(handle).await.unwrap();
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let unread = Stop::default();
        let theirs = Stoppable(theirs, unread.clone(), Stop::default());
        let incoming = tokio_stream::once(Ok(Pretended(theirs, Peer::host()))).chain(tokio_stream::pending());
        let serve = entrance.serve_remote(incoming, std::future::pending());
        tokio::spawn(async { serve.await.unwrap() });
        let stop = Stop::default();
        let mut ours = Some(hyper_util::rt::TokioIo::new(Stoppable(ours, stop.clone(), stop.clone())));
        let connector = tower::service_fn(move |_: http::Uri| {
            let once = ours.take().ok_or_else(|| std::io::Error::other("one connection"));
            std::future::ready(once)
        });
        let channel = Endpoint::from_static("http://duplex").connect_with_connector(connector).await.unwrap();
        Remote { driver, client: HoldstillServiceClient::new(channel), stop, unread }
    }

    async fn held() -> Held {
        let mut remote = Remote::new().await;
        let ask = remote.client.hold(HoldRequest { id: "a".into(), spec: None });
        let mut events = ask.await.unwrap().into_inner();
        let asked = remote.driver.freeze_asked().await;
        assert_eq!(asked.caller, "vsock cid 2");
        let ticket = asked.ticket;
        asked.answer(Ok(held("a")));
        assert_eq!(word(events.message().await.unwrap().unwrap().event.unwrap()), "held a");
        Held { remote, ticket, events }
    }
}

/// Within the five seconds after the last sign of life, which may be two seconds old.
fn within_seconds(begun: Instant) {
    let took = begun.elapsed();
    assert!((Duration::from_secs(3)..=Duration::from_secs(6)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_answers_is_there_for_as_long_as_it_likes() {
    let mut it = Remote::held().await;
    sleep(Duration::from_secs(3600)).await;
    it.remote.driver.publish("a", What::Released(report("a", Verdict::Unbroken)));
    assert_eq!(word(it.events.message().await.unwrap().unwrap().event.unwrap()), "released a");
    it.remote.driver.delivered(it.ticket).await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_stopped_while_it_holds_is_gone_within_seconds() {
    let mut it = Remote::held().await;
    sleep(Duration::from_secs(7)).await;
    it.remote.stop.set(true);
    let begun = Instant::now();
    it.remote.driver.gone(it.ticket).await;
    within_seconds(begun);
}

#[tokio::test(start_paused = true)]
async fn a_caller_stopped_before_anything_is_held_is_gone_within_seconds_too() {
    for streaming in [true, false] {
        let mut remote = Remote::new().await;
        let mut client = remote.client.clone();
        tokio::spawn(async move {
            match streaming {
                true => drop(
                    client.hold(HoldRequest { id: "a".into(), spec: None }).await.unwrap().into_inner().next().await,
                ),
                false => drop(client.freeze(freeze("a")).await),
            }
        });
        let asked = remote.driver.freeze_asked().await;
        remote.stop.set(true);
        let begun = Instant::now();
        remote.driver.gone(asked.ticket).await;
        within_seconds(begun);
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_stopped_for_a_moment_is_not_gone() {
    let mut it = Remote::held().await;
    for _ in 0..10 {
        it.remote.stop.set(true);
        sleep(Duration::from_millis(2500)).await;
        it.remote.stop.set(false);
        sleep(Duration::from_secs(3)).await;
    }
    it.remote.driver.publish("a", What::Released(report("a", Verdict::Unbroken)));
    assert_eq!(word(it.events.message().await.unwrap().unwrap().event.unwrap()), "released a");
}

/// The clock of some guests goes on while their hypervisor pauses them; the caller does not know of it.
#[tokio::test(start_paused = true)]
async fn a_machine_paused_for_an_hour_while_held_finds_its_caller_there() {
    for into_the_second in [0, 500, 1000, 1500, 1999, 2000, 2001] {
        let mut it = Remote::held().await;
        sleep(Duration::from_millis(into_the_second)).await;
        for _ in 0..3 {
            advance(Duration::from_secs(3600)).await;
            sleep(Duration::from_secs(1)).await;
        }
        it.remote.driver.publish("a", What::Released(report("a", Verdict::Unbroken)));
        assert_eq!(word(it.events.message().await.unwrap().unwrap().event.unwrap()), "released a");
        it.remote.driver.delivered(it.ticket).await;
    }
}

/// When the machine goes on, every timer of its is overdue before it has read the answer that waits.
#[tokio::test(start_paused = true)]
async fn an_answer_that_waited_out_a_pause_is_an_answer() {
    let mut it = Remote::held().await;
    sleep(Duration::from_millis(1900)).await;
    it.remote.unread.set(true);
    // in between the question went out, and the answer came
    sleep(Duration::from_millis(200)).await;
    advance(Duration::from_secs(3600)).await;
    sleep(Duration::from_millis(1)).await;
    it.remote.unread.set(false);
    sleep(Duration::from_secs(30)).await;
    it.remote.driver.publish("a", What::Released(report("a", Verdict::Unbroken)));
    assert_eq!(word(it.events.message().await.unwrap().unwrap().event.unwrap()), "released a");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_delivered_is_not_taken_back_when_its_caller_falls_silent() {
    let mut remote = Remote::new().await;
    let mut client = remote.client.clone();
    let asking = tokio::spawn(async move { client.freeze(freeze("a")).await });
    let asked = remote.driver.freeze_asked().await;
    let ticket = asked.ticket;
    asked.answer(Ok(held("a")));
    asking.await.unwrap().unwrap();
    remote.driver.delivered(ticket).await;
    remote.stop.set(true);
    sleep(Duration::from_secs(60)).await;
    assert!(remote.driver.asks.try_recv().is_err(), "nobody said it was gone");
}
