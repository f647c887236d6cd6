//! The guard between "the driver said held" and "the caller was told": it lives in the response body and knows
//! whether the transport took all of it. The entrance wraps every answer that carries a [`Lease`] into it.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use http_body::{Frame, SizeHint};
use tonic::{Status, body::Body, codegen::Bytes};

use crate::hold::Lease;

/// A lease on its way from the handler to the body, as a response extension. Lost on the way, the caller is gone.
#[derive(Clone)]
pub(super) struct Undelivered(Arc<Mutex<Option<Lease>>>);

impl Undelivered {
    pub(super) fn new(lease: Lease) -> Self {
        Undelivered(Arc::new(Mutex::new(Some(lease))))
    }
}

/// Moves a lease the handler left in `response` into its body.
pub(super) fn guard(mut response: http::Response<Body>) -> http::Response<Body> {
    let lease = response
        .extensions_mut()
        .remove::<Undelivered>()
        .and_then(|undelivered| undelivered.0.lock().expect("no holder panics").take());
    match lease {
        Some(lease) => response.map(|body| Body::new(Guarded { body, lease: Some(lease) })),
        None => response,
    }
}

/// A body that keeps its lease until the transport has taken the last frame.
struct Guarded {
    body: Body,
    lease: Option<Lease>,
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = Status;

    /// hyper asks no further once it has the trailers, so the last frame is as good as the end after it.
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let ended = match &frame {
            Some(Ok(frame)) => frame.is_trailers() || self.body.is_end_stream(),
            Some(Err(_)) => false,
            None => true,
        };
        if ended && let Some(lease) = self.lease.take() {
            lease.delivered();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// No service behind the entrance fails: it answers with a status.
pub(super) type Answer = Result<http::Response<Body>, Infallible>;

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use tonic::codegen::http::HeaderMap;

    use super::*;
    use crate::{
        door::tests::{Fake, fake},
        hold::Ask,
        proto::{HoldSpec, Report},
    };

    /// A body as tonic makes them: one data frame, then trailers.
    struct Unary(u8);

    impl http_body::Body for Unary {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0 += 1;
            Poll::Ready(match self.0 {
                1 => Some(Ok(Frame::data(Bytes::from_static(b"held")))),
                2 => Some(Ok(Frame::trailers(HeaderMap::new()))),
                _ => None,
            })
        }
    }

    async fn guarded(frames: usize) -> Fake {
        let (handle, mut driver) = fake();
        let freezing = tokio::spawn(async move { handle.freeze("a".into(), HoldSpec::default(), "me".into()).await });
        driver.freeze_asked().await.answer(Ok(Report::default()));
        let (_, lease) = freezing.await.unwrap().unwrap();
        let mut response = http::Response::new(Body::new(Unary(0)));
        response.extensions_mut().insert(Undelivered::new(lease));
        let mut body = guard(response).into_body();
        for _ in 0..frames {
            std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
        }
        driver
    }

    #[tokio::test]
    async fn an_answer_whose_body_was_not_taken_to_its_end_reached_nobody() {
        for frames in [0, 1] {
            assert!(matches!(guarded(frames).await.rest().await[..], [Ask::Gone { .. }]), "{frames}");
        }
    }

    #[tokio::test]
    async fn an_answer_whose_trailers_were_taken_was_delivered() {
        assert!(matches!(guarded(2).await.rest().await[..], [Ask::Delivered { .. }]));
    }

    #[tokio::test]
    async fn a_response_lost_before_it_got_a_body_reached_nobody() {
        let (handle, mut driver) = fake();
        let freezing = tokio::spawn(async move { handle.freeze("a".into(), HoldSpec::default(), "me".into()).await });
        driver.freeze_asked().await.answer(Ok(Report::default()));
        let (_, lease) = freezing.await.unwrap().unwrap();
        drop(Undelivered::new(lease));
        assert!(matches!(driver.rest().await[..], [Ask::Gone { .. }]));
    }
}
