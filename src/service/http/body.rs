//! Request bodies, bounded in size, in time and in sum.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody},
    http::StatusCode,
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use super::problem::Problem;
use crate::{Error, ErrorKind, units::Time};

/// How long a client may pause within a body.
const SILENCE: Duration = Duration::from_secs(15);

/// How long a whole body may take, even if it never pauses.
const WHOLE: Duration = Duration::from_mins(2);

/// How many bodies of the largest size may be in memory at once; of smaller ones there may be more.
const AT_ONCE: u64 = 8;

/// The budget for bytes of request bodies in memory. Without it there could be `service.max_connections` bodies of the
/// largest size, more than a machine has memory for.
pub(super) struct Bodies {
    free: Arc<Semaphore>,
}

/// What bytes in memory take of the budget, until it is dropped.
#[derive(Default)]
pub(super) struct Charge(Option<OwnedSemaphorePermit>);

impl Charge {
    /// The bytes, charged until the last clone of them is dropped. Others may share the charge.
    pub(super) fn hold(self: Arc<Self>, bytes: Bytes) -> Bytes {
        Bytes::from_owner(BufferedBody { bytes, _charge: self })
    }
}

/// Owns the bytes of a body and their charge, which ends when the last clone of the bytes is dropped.
struct BufferedBody {
    bytes: Bytes,
    _charge: Arc<Charge>,
}

impl AsRef<[u8]> for BufferedBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Bodies {
    pub(super) fn new(largest: u64) -> Self {
        let total = usize::try_from(largest.saturating_mul(AT_ONCE)).unwrap_or(usize::MAX);
        Self { free: Arc::new(Semaphore::new(total.min(Semaphore::MAX_PERMITS))) }
    }

    /// Reads a body to its end; `what` names it in errors. The body is charged until the last clone of its bytes is
    /// dropped.
    ///
    /// Bytes are charged as they arrive, so that a client that announces much and sends little keeps out no other.
    ///
    /// # Errors
    ///
    /// `payload_too_large` as soon as the body is known to be over `limit`; `saturated` when the budget is used up; 408
    /// when the client is too slow; `invalid_request` when the body breaks off.
    pub(super) async fn read(&self, body: Body, what: &'static str, limit: u64) -> Result<Bytes, Problem> {
        let (bytes, charge) = self.read_whole(body, limit, || Error::PayloadTooLarge { what, limit }).await?;
        Ok(Arc::new(charge).hold(bytes))
    }

    /// The same with an error of the caller's for a body that is too large, and with the charge apart.
    pub(super) async fn read_whole(
        &self,
        mut body: Body,
        limit: u64,
        too_large: impl Fn() -> Error,
    ) -> Result<(Bytes, Charge), Problem> {
        // The length that the client announces, if it does.
        if body.size_hint().lower() > limit {
            return Err(too_large().into());
        }
        let end = Instant::now() + WHOLE;
        let mut charge = Charge::default();
        let mut only = None;
        let mut whole = BytesMut::new();
        let mut length = 0;
        while !body.is_end_stream() {
            let frame = timeout_at(end.min(Instant::now() + SILENCE), body.frame()).await.map_err(|_| too_slow())?;
            let Some(frame) = frame else { break };
            let broke_off = |error| Error::invalid_request(format!("the request's body breaks off: {error}"));
            // Trailers have no meaning here.
            let Ok(data) = frame.map_err(broke_off)?.into_data() else { continue };
            length += data.len() as u64;
            if length > limit {
                return Err(too_large().into());
            }
            self.charge(&mut charge, data.len())?;
            // Most bodies arrive in one piece, which is not copied. Several pieces are, since each keeps a whole buffer
            // of hyper's.
            match only.take() {
                None if whole.is_empty() => only = Some(data),
                before => {
                    whole.extend_from_slice(&before.unwrap_or_default());
                    whole.extend_from_slice(&data);
                }
            }
        }
        Ok((only.unwrap_or_else(|| whole.freeze()), charge))
    }

    /// Charges bytes that are made of a body.
    pub(super) fn charge_more(&self, bytes: usize) -> Result<Charge, Error> {
        let mut charge = Charge::default();
        self.charge(&mut charge, bytes).map(|()| charge)
    }

    fn charge(&self, Charge(so_far): &mut Charge, bytes: usize) -> Result<(), Error> {
        // Refused rather than queued: half-read bodies would wait for each other.
        let full = Error::Saturated { reason: "too many bytes of requests are in memory" };
        let bytes = u32::try_from(bytes).map_err(|_| full.clone())?;
        let more = self.free.clone().try_acquire_many_owned(bytes).map_err(|_| full)?;
        match so_far {
            Some(charge) => charge.merge(more),
            None => *so_far = Some(more),
        }
        Ok(())
    }
}

fn too_slow() -> Problem {
    let detail = format!("the request's body did not come within {}, or paused for {}", Time(WHOLE), Time(SILENCE));
    Problem::new(StatusCode::REQUEST_TIMEOUT, ErrorKind::InvalidRequest, detail)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream::{self, StreamExt};

    use super::*;

    type Piece = Result<Bytes, Infallible>;

    fn pieces(of: &'static [u8], length: usize) -> Body {
        Body::from_stream(stream::iter(of.chunks(length).map(|piece| Piece::Ok(Bytes::from_static(piece)))))
    }

    fn status(read: Result<Bytes, Problem>) -> u16 {
        use axum::response::IntoResponse;

        read.map_or_else(|problem| problem.into_response().status().as_u16(), |_| 200)
    }

    #[tokio::test]
    async fn a_body_is_whole_however_it_is_cut() {
        let bodies = Bodies::new(64);
        for length in [1, 2, 7, 26] {
            let bytes = bodies.read(pieces(b"abcdefghijklmnopqrstuvwxyz", length), "input", 26).await;
            assert_eq!(bytes.ok().unwrap(), "abcdefghijklmnopqrstuvwxyz");
        }
        assert_eq!(bodies.read(Body::empty(), "input", 0).await.ok().unwrap(), "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stalls_or_dawdles_is_told_so() {
        let bodies = Bodies::new(1024);
        let stalled = Body::from_stream(stream::once(async { Piece::Ok("1".into()) }).chain(stream::pending()));
        let began = Instant::now();
        assert_eq!(status(bodies.read(stalled, "input", 1024).await), 408);
        assert_eq!(began.elapsed(), SILENCE);

        let drop_by_drop = stream::repeat(()).then(async |()| {
            tokio::time::sleep(SILENCE / 2).await;
            Piece::Ok("1".into())
        });
        let began = Instant::now();
        assert_eq!(status(bodies.read(Body::from_stream(drop_by_drop), "input", 1024).await), 408);
        assert_eq!(began.elapsed(), WHOLE);
    }

    #[tokio::test]
    async fn bodies_are_bounded_in_sum_for_as_long_as_they_are_held() {
        let bodies = Bodies::new(4);
        let mut held = Vec::new();
        for _ in 0..AT_ONCE {
            held.push(bodies.read(Body::from("1234"), "input", 4).await.ok().unwrap());
        }
        assert_eq!(status(bodies.read(Body::from("1"), "input", 4).await), 429);
        let clone = held.pop().unwrap().slice(1..);
        assert_eq!(status(bodies.read(Body::from("1"), "input", 4).await), 429, "part of one is left");
        drop(clone);
        assert_eq!(status(bodies.read(Body::from("1234"), "input", 4).await), 200);
    }
}
