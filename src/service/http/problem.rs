//! Errors as clients see them: RFC 9457 problem details. The only place that knows which status an error has.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{Error, ErrorKind};

/// Before this, the `kind` is the type's address: each kind is a type of problem.
const TYPES: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "#");

/// How soon a client that met a full queue may try again, in seconds.
const RETRY_AFTER: &str = "1";

/// A longer detail is cut: some of it is a plugin's, such as the names of its exports.
const MAX_DETAIL: usize = 8 * 1024;

/// An error on its way to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    status: StatusCode,
    kind: ErrorKind,
    detail: String,
}

impl Problem {
    /// A problem that HTTP has a status of its own for; others come [from an error](From).
    pub(super) fn new(status: StatusCode, kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self { status, kind, detail: detail.into() }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let kind = error.kind();
        // What the client is not told must be found somewhere.
        match kind {
            ErrorKind::Internal => tracing::error!(error = %error.chain(), "a request failed"),
            ErrorKind::SourceUnavailable => tracing::warn!(error = %error.chain(), "a stored plugin cannot be read"),
            _ => {}
        }
        Self { status: status(kind), kind, detail: error.to_string() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body<'a> {
            r#type: String,
            title: &'a str,
            status: u16,
            detail: &'a str,
            kind: &'a str,
        }

        let Self { status, kind, mut detail } = self;
        if detail.len() > MAX_DETAIL {
            detail.truncate(detail.floor_char_boundary(MAX_DETAIL));
            detail.push('…');
        }
        let body = Body {
            r#type: format!("{TYPES}{kind}"),
            title: title(kind),
            status: status.as_u16(),
            detail: &detail,
            kind: kind.as_str(),
        };
        let json = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], json).into_response();
        let extra = match status {
            StatusCode::TOO_MANY_REQUESTS => Some((header::RETRY_AFTER, RETRY_AFTER)),
            StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, "Bearer")),
            // The rest of the request is not read, so nothing that follows it can be.
            StatusCode::REQUEST_TIMEOUT => Some((header::CONNECTION, "close")),
            _ => None,
        };
        if let Some((name, value)) = extra {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::InvalidName | ErrorKind::InvalidRequest => StatusCode::BAD_REQUEST,
        ErrorKind::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::InvalidPlugin
        | ErrorKind::EntryPointMissing
        | ErrorKind::DigestMismatch
        | ErrorKind::BuildTimeout
        | ErrorKind::GuestTrap
        | ErrorKind::GuestError
        | ErrorKind::GuestExit
        | ErrorKind::OutOfMemory
        | ErrorKind::OutOfFuel
        | ErrorKind::OutputTooLarge => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::Saturated | ErrorKind::WaitTimeout => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::ExecTimeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Closed => StatusCode::CONFLICT,
        ErrorKind::ShuttingDown | ErrorKind::SourceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        // Nobody is left to hear of `cancelled`.
        ErrorKind::Cancelled | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn title(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "Not found",
        ErrorKind::InvalidName => "Not an evaluator name",
        ErrorKind::InvalidRequest => "The request cannot be understood",
        ErrorKind::SourceUnavailable => "The plugin cannot be read",
        ErrorKind::InvalidPlugin => "Not a valid plugin",
        ErrorKind::EntryPointMissing => "No such entry point",
        ErrorKind::DigestMismatch => "Not the promised plugin",
        ErrorKind::PayloadTooLarge => "Too large",
        ErrorKind::BuildTimeout => "The plugin took too long to build",
        ErrorKind::Saturated => "Nothing is free and the queue is full",
        ErrorKind::WaitTimeout => "Nothing came free in time",
        ErrorKind::ExecTimeout => "The plugin ran too long",
        ErrorKind::GuestTrap => "The plugin trapped",
        ErrorKind::GuestError => "The plugin reported an error",
        ErrorKind::GuestExit => "The plugin exited",
        ErrorKind::OutOfMemory => "The plugin ran out of memory",
        ErrorKind::OutOfFuel => "The plugin ran out of fuel",
        ErrorKind::OutputTooLarge => "The plugin's output is too large",
        ErrorKind::Closed => "The evaluator is closed",
        ErrorKind::ShuttingDown => "The server is shutting down",
        ErrorKind::Cancelled => "Cancelled",
        ErrorKind::Unauthorized => "A valid token is required",
        ErrorKind::Internal => "Internal error",
    }
}

#[cfg(test)]
mod tests {
    use axum::body::HttpBody;

    use super::*;

    #[test]
    fn only_what_is_not_the_clients_or_the_plugins_fault_is_a_server_error() {
        for kind in ErrorKind::ALL {
            let ours = matches!(
                kind.as_str(),
                "exec_timeout" | "shutting_down" | "source_unavailable" | "cancelled" | "internal"
            );
            assert_eq!(status(*kind).is_server_error(), ours, "{kind}");
        }
    }

    #[test]
    fn a_detail_of_any_length_makes_a_small_answer() {
        let problem = Problem::new(StatusCode::BAD_REQUEST, ErrorKind::InvalidRequest, "é".repeat(MAX_DETAIL));
        let length = problem.into_response().body().size_hint().exact();
        assert!(length.unwrap() < MAX_DETAIL as u64 + 512, "{length:?}");
    }
}
