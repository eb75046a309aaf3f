//! `GET /openapi.json`: what clients can ask, as a document for programs (`OpenAPI` 3.1).
//!
//! It is written by hand, in the file beside this one, and the tests in `tests/integration/service/openapi` hold it against the
//! routes, the README, the error kinds, and every answer that any test gets from a server. Considered and not taken:
//!
//! - `utoipa`, which makes such a document of attributes. Handlers here read parameters, conditions and bodies themselves, so
//!   that what a client gets for a wrong one is theirs to say, and many fields are written by functions (times, digests,
//!   limits). Their attributes would be the same text again, in more places, and as much in need of those tests.
//! - To compose it at the start from the types: a program to write a text that changes with the source alone.

use axum::{
    http::header,
    response::{IntoResponse, Response},
};

/// It holds nothing of this server's state, so whoever reaches the server may read it.
pub(super) async fn document() -> Response {
    // Another version of the server has another one.
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-cache")];
    (headers, include_str!("openapi.json")).into_response()
}
