//! Request bodies, bounded in size, in time and in sum.

use std::sync::Arc;

use axum::{
    body::{Body, HttpBody},
    http::StatusCode,
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::problem::Problem;
use crate::{
    Error, ErrorKind,
    service::connections::{Charge, Connection, Kind, NoRoom},
};

/// Reads bodies of one connection's requests into memory, and charges them to the budget of all.
#[derive(Clone)]
pub(super) struct Bodies {
    connection: Arc<Connection>,
    kind: Kind,
}

impl Bodies {
    /// An upload is held until it is built. All uploads share half of the budget, and so do not keep out evaluations.
    pub(super) fn uploads(connection: Arc<Connection>) -> Self {
        Self { connection, kind: Kind::Upload }
    }

    pub(super) fn inputs(connection: Arc<Connection>) -> Self {
        Self { connection, kind: Kind::Evaluation }
    }

    /// Reads a body to its end; `what` names it in errors. The body is charged until the last clone of its bytes is
    /// dropped.
    ///
    /// Bytes are charged as they arrive, so that a client that announces much and sends little keeps out no other.
    ///
    /// # Errors
    ///
    /// `payload_too_large` as soon as the body is known to be over `limit`; `saturated` when the budget is used up, or when
    /// the body is behind its pace and others need its room; 408 when the client is too slow; `invalid_request` when the
    /// body breaks off.
    pub(super) async fn read(&self, body: Body, what: &'static str, limit: u64) -> Result<Bytes, Problem> {
        let (bytes, charge) = self.read_whole(body, limit, || Error::PayloadTooLarge { what, limit }).await?;
        Ok(Arc::new(charge).hold(bytes))
    }

    /// The same with an error of the caller's for a body that is too large, and with the charge apart.
    pub(super) async fn read_whole(
        &self,
        body: Body,
        limit: u64,
        too_large: impl Fn() -> Error,
    ) -> Result<(Bytes, Charge), Problem> {
        // The length that the client announces, if it does.
        if body.size_hint().lower() > limit {
            return Err(too_large().into());
        }
        let read = tokio::select! {
            read = self.read_frames(body, limit, too_large) => read,
            () = self.connection.yields() => Err(self.refused(NoRoom::Full)),
        };
        if self.connection.has_read() {
            return read;
        }
        drop(read);
        self.connection.has_yielded();
        Err(self.refused(NoRoom::Full))
    }

    async fn read_frames(
        &self,
        mut body: Body,
        limit: u64,
        too_large: impl Fn() -> Error,
    ) -> Result<(Bytes, Charge), Problem> {
        let mut pace = self.connection.pace();
        let mut charge = self.connection.charge(self.kind);
        let mut only = None;
        let mut whole = BytesMut::new();
        let mut length = 0;
        while !body.is_end_stream() {
            self.connection.reads(pace.due());
            let frame = timeout_at(pace.deadline(), body.frame()).await.map_err(|_| too_slow())?;
            let Some(frame) = frame else { break };
            let broke_off = |error| Error::invalid_request(format!("the request's body breaks off: {error}"));
            // Trailers have no meaning here.
            let Ok(data) = frame.map_err(broke_off)?.into_data() else { continue };
            pace.moved(data.len());
            length += data.len() as u64;
            if length > limit {
                return Err(too_large().into());
            }
            let arrived = Instant::now();
            charge.grow(data.len() as u64).await.map_err(|why| self.refused(why))?;
            pace.excuse(arrived.elapsed());
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
    pub(super) fn charge_more(&self, bytes: usize) -> Result<Charge, Problem> {
        let mut charge = self.connection.charge(self.kind);
        charge.try_grow(bytes as u64).map_err(|why| self.refused(why))?;
        Ok(charge)
    }

    fn refused(&self, why: NoRoom) -> Problem {
        if self.kind == Kind::Upload && why == NoRoom::Share {
            return Problem::too_large(
                "the upload takes more than half of service.body_memory, which all uploads share; a form is there twice \
                 while it is taken apart",
            );
        }
        full().into()
    }
}

/// Refused rather than queued: half-read bodies would wait for each other.
pub(super) fn full() -> Error {
    Error::Saturated { reason: "too many bytes of requests and answers are in memory" }
}

fn too_slow() -> Problem {
    let detail = "the request's body came more slowly than service.transfer_rate, or took longer than \
                  service.transfer_timeout";
    Problem::new(StatusCode::REQUEST_TIMEOUT, ErrorKind::InvalidRequest, detail)
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use futures_util::stream::{self, StreamExt};

    use super::*;
    use crate::service::connections::{Connections, Place};

    type Piece = Result<Bytes, Infallible>;

    const KIB: usize = 1024;

    static ZEROS: [u8; 32 * KIB] = [0; 32 * KIB];

    /// Of every body, a second.
    const RATE: u64 = 1024;

    const WHOLE: Duration = Duration::from_mins(1);

    /// With room for four times 16 KiB, beside the 16 KiB of each connection.
    fn connections() -> Arc<Connections> {
        Connections::bounded(32, 64 * 1024, RATE, WHOLE)
    }

    fn pieces(of: &'static [u8], length: usize) -> Body {
        Body::from_stream(stream::iter(of.chunks(length).map(|piece| Piece::Ok(Bytes::from_static(piece)))))
    }

    fn stalled(begun: usize) -> Body {
        let begun = stream::once(async move { Piece::Ok(vec![0; begun].into()) });
        Body::from_stream(begun.chain(stream::pending()))
    }

    async fn read(place: &Place, body: Body, limit: usize) -> Result<Bytes, Problem> {
        Bodies::inputs(place.connection().clone()).read(body, "input", limit as u64).await
    }

    async fn read_status(place: &Place, body: Body) -> u16 {
        use axum::response::IntoResponse;

        let read = read(place, body, 1 << 20).await;
        read.map_or_else(|problem| problem.into_response().status().as_u16(), |_| 200)
    }

    #[tokio::test]
    async fn a_body_is_whole_however_it_is_cut() {
        let place = connections().admit().await;
        for length in [1, 2, 7, 26] {
            let bytes = read(&place, pieces(b"abcdefghijklmnopqrstuvwxyz", length), 26).await;
            assert_eq!(bytes.ok().unwrap(), "abcdefghijklmnopqrstuvwxyz");
        }
        assert_eq!(read(&place, Body::empty(), 0).await.ok().unwrap(), "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stalls_or_dawdles_is_told_so() {
        const ALLOWANCE: Duration = Duration::from_secs(15);
        let place = connections().admit().await;
        // What came fast pays for no more than the allowance.
        for begun in [1, 30 * KIB] {
            let began = Instant::now();
            assert_eq!(read_status(&place, stalled(begun)).await, 408);
            assert_eq!(began.elapsed(), ALLOWANCE, "after {begun} bytes");
        }
        let each_second = |bytes: usize| {
            let drops = stream::repeat(bytes).then(async |bytes| {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Piece::Ok(vec![0; bytes].into())
            });
            Body::from_stream(drops)
        };
        let began = Instant::now();
        assert_eq!(read_status(&place, each_second(1)).await, 408);
        assert_eq!(began.elapsed().as_secs(), ALLOWANCE.as_secs());
        let began = Instant::now();
        assert_eq!(read_status(&place, each_second(KIB / 2)).await, 408);
        assert_eq!(began.elapsed().as_secs(), 2 * ALLOWANCE.as_secs() - 1, "at half the rate, for as long again");
        let large = Connections::bounded(1, 1 << 20, RATE, WHOLE).admit().await;
        let began = Instant::now();
        assert_eq!(read_status(&large, each_second(KIB)).await, 408);
        assert_eq!(began.elapsed(), WHOLE, "however steadily it comes");
    }

    #[tokio::test]
    async fn bodies_are_bounded_in_sum_for_as_long_as_they_are_held() {
        let connections = connections();
        let mut held = Vec::new();
        for _ in 0..4 {
            let place = connections.admit().await;
            let bytes = read(&place, Body::from(vec![0; 32 * KIB]), 32 * KIB).await.ok().unwrap();
            held.push((place, bytes));
        }
        let place = connections.admit().await;
        let more = || Body::from(vec![0; 16 * KIB + 1]);
        assert_eq!(read_status(&place, more()).await, 429);
        assert_eq!(read_status(&place, Body::from(vec![0; 16 * KIB])).await, 200, "what is its own finds room");
        let (gone, bytes) = held.pop().unwrap();
        let clone = bytes.slice(1..);
        drop((gone, bytes));
        assert_eq!(read_status(&place, more()).await, 429, "part of one is left");
        drop(clone);
        assert_eq!(read_status(&place, more()).await, 200);
        drop(held);
        assert_eq!(connections.figures(), (1, 0));
    }

    #[tokio::test]
    async fn a_connection_has_a_quarter_and_uploads_have_half() {
        let connections = connections();
        let place = connections.admit().await;
        assert_eq!(read_status(&place, Body::from(vec![0; 32 * KIB + 1])).await, 429);
        let uploads = Bodies::uploads(place.connection().clone());
        let too_large = uploads.read(Body::from(vec![0; 48 * KIB + 1]), "plugin", 1 << 20).await;
        assert!(too_large.unwrap_err().is(ErrorKind::PayloadTooLarge));
        let upload = uploads.read(Body::from(vec![0; 48 * KIB]), "plugin", 1 << 20).await.ok().unwrap();
        let other = connections.admit().await;
        let uploads = Bodies::uploads(other.connection().clone());
        let more = uploads.read(Body::from(vec![0; 17 * KIB]), "plugin", 1 << 20);
        assert!(more.await.unwrap_err().is(ErrorKind::Saturated));
        assert_eq!(read_status(&other, Body::from(vec![0; 32 * KIB])).await, 200, "an evaluation finds room");
        drop(upload);
        assert_eq!(connections.figures().1, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn uploads_that_have_used_up_their_half_give_way_to_uploads() {
        let connections = connections();
        let stall = |kind: fn(Arc<Connection>) -> Bodies, begun| {
            let connections = connections.clone();
            tokio::spawn(async move {
                let place = connections.admit().await;
                kind(place.connection().clone()).read(stalled(begun), "plugin", 1 << 20).await.unwrap_err()
            })
        };
        let evaluation = stall(Bodies::inputs, 32 * KIB);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let upload = stall(Bodies::uploads, 48 * KIB);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let place = connections.admit().await;
        let uploads = Bodies::uploads(place.connection().clone());
        assert!(uploads.read(pieces(&ZEROS, 8 * KIB), "plugin", 1 << 20).await.is_ok());
        assert!(upload.await.unwrap().is(ErrorKind::Saturated));
        // It has been behind for longer, and its room would have been of no use.
        assert!(evaluation.await.unwrap().is(ErrorKind::InvalidRequest));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_behind_gives_way_and_one_that_came_does_not() {
        let connections = connections();
        let came = connections.admit().await;
        let bytes = read(&came, Body::from(vec![0; 32 * KIB]), 32 * KIB).await.ok().unwrap();
        let stalls: Vec<_> = (0..3)
            .map(|_| {
                let connections = connections.clone();
                tokio::spawn(async move { read_status(&connections.admit().await, stalled(32 * KIB)).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(999)).await;
        let place = connections.admit().await;
        assert_eq!(read_status(&place, Body::from(vec![0; 32 * KIB])).await, 429, "they are in time");
        tokio::time::sleep(Duration::from_millis(1)).await;
        let began = Instant::now();
        for _ in 0..3 {
            assert_eq!(read_status(&place, pieces(&ZEROS, 8 * KIB)).await, 200);
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(bytes.len(), 32 * KIB);
        let mut ends = Vec::new();
        for stall in stalls {
            ends.push(stall.await.unwrap());
        }
        ends.sort_unstable();
        assert_eq!(ends, [408, 408, 429], "one has made room for all");
        drop(bytes);
        assert_eq!(connections.figures(), (2, 0));
    }
}
