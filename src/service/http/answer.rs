//! Answers in memory: those that wait for a slow reader are charged to the same budget as bodies.

use std::sync::Arc;

use axum::{
    Extension,
    body::Body,
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt;

use super::problem::Problem;
use crate::{
    Error,
    service::connections::{Charge, Connection, Kind},
};

/// Marks an answer whose body is charged already.
#[derive(Clone)]
pub(super) struct Charged;

/// Charges `bytes` of an answer, before more is made of it.
///
/// Not before the guest has run: what it will answer is not known, and to reserve `limits.output_size` for each would be
/// a bound on evaluations that run, far below `pool.max_instances`.
///
/// # Errors
///
/// `overloaded`, if others hold too much and none of them gives way.
pub(super) async fn charge(connection: &Arc<Connection>, bytes: usize) -> Result<Charge, Error> {
    let mut charge = connection.charge(Kind::Evaluation);
    let no_room = |_| {
        let used_up = std::io::Error::other("service.body_memory is used up by bodies and answers");
        Error::overloaded("the answer finds no room in memory", &used_up, &used_up)
    };
    charge.grow(bytes as u64).await.map_err(no_room)?;
    Ok(charge)
}

/// Charges every answer, until its last byte is written or the connection ends.
pub(super) async fn bound(Extension(connection): Extension<Arc<Connection>>, request: Request, next: Next) -> Response {
    let answer = next.run(request).await;
    if answer.extensions().get::<Charged>().is_some() {
        return answer;
    }
    let (head, body) = answer.into_parts();
    // It is in memory, in one piece.
    let bytes = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Problem::from(Error::internal("an answer cannot be written", error)).into_response(),
    };
    match charge(&connection, bytes.len()).await {
        Ok(charge) => Response::from_parts(head, Body::from(Arc::new(charge).hold(bytes))),
        Err(error) => Problem::from(error).into_response(),
    }
}
