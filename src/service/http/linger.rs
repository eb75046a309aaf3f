//! The rest of a request's body that its handler did not read.
//!
//! A client that is refused early (too large, no such evaluator, no token) is still sending. If the connection were
//! closed at once, the system would answer the rest with a reset, and many clients would report that instead of the
//! refusal. So the server reads the rest for a while and discards it.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::header,
};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tokio::{runtime::Handle, time::timeout};

/// For how long the rest of a body is read, and how many bytes of it.
const LINGER: Duration = Duration::from_secs(5);
const MOST: u64 = 256 * 1024 * 1024;

/// Has the rest of a request's body read when its handler drops it.
pub(super) fn wrap(request: Request) -> Request {
    // A client that asks before it sends (`expect: 100-continue`) takes the refusal for its answer.
    if request.headers().contains_key(header::EXPECT) {
        return request;
    }
    request.map(|body| Body::new(Lingering(body)))
}

struct Lingering(Body);

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.0).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if self.0.is_end_stream() {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            let mut rest = std::mem::take(&mut self.0);
            runtime.spawn(async move {
                let mut left = MOST;
                let reading = async {
                    // Ends with the body, with the connection, or after `MOST` bytes.
                    while let Some(Ok(frame)) = rest.frame().await {
                        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                        let Some(still) = left.checked_sub(length) else { return };
                        left = still;
                    }
                };
                let _ = timeout(LINGER, reading).await;
            });
        }
    }
}
