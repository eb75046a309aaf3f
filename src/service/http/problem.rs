//! Errors as clients see them: RFC 9457 problem details. Only this file knows the status of an error.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{Error, ErrorKind, LastWords, units::cut};

/// A problem's type is this with the error's kind appended, which leads to the section about that kind.
const TYPES: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/ERRORS.md#");

/// After how many seconds a client may try again, where nothing else is known.
const RETRY_AFTER: u64 = 1;

/// A longer detail is cut: a plugin chooses some of it, such as the names of its exports.
const MAX_DETAIL: usize = 8 * 1024;

/// The same of a plugin's own message, which the engine has cut: it is often JSON.
const MAX_MESSAGE: usize = 128 * 1024;

/// An error on its way to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    status: StatusCode,
    kind: ErrorKind,
    detail: String,
    /// Seconds.
    retry_after: Option<u64>,
    /// Only if the evaluator's owner wants clients to see them.
    last_words: Option<LastWords>,
}

impl Problem {
    /// A problem with a status of its own; others are made [from an error](From).
    pub(super) fn new(status: StatusCode, kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self { status, kind, detail: detail.into(), retry_after: retry_after(status, kind), last_words: None }
    }

    /// A body, or a part of one, that is too large for what it is.
    pub(super) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::PayloadTooLarge, detail)
    }

    pub(super) fn is(&self, kind: ErrorKind) -> bool {
        self.kind == kind
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let kind = error.kind();
        // The client does not see the cause: log it.
        match kind {
            ErrorKind::Internal => tracing::error!(error = %error.chain(), "a request failed"),
            ErrorKind::Overloaded => tracing::warn!(error = %error.chain(), "the host is short of something"),
            ErrorKind::SourceUnavailable => tracing::warn!(error = %error.chain(), "a stored plugin cannot be read"),
            _ => {}
        }
        let last_words = error.last_words().and_then(LastWords::for_clients).cloned();
        let status = status_and_title(kind).0;
        let known =
            error.retry_after().map(|after| after.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX).max(1));
        let retry_after = known.or_else(|| retry_after(status, kind));
        Self { status, kind, detail: error.to_string(), retry_after, last_words }
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
            #[serde(skip_serializing_if = "Option::is_none")]
            last_words: Option<Words<'a>>,
        }

        #[derive(Serialize)]
        struct Words<'a> {
            stack: &'a [String],
            stderr: &'a str,
            stdout: &'a str,
        }

        let Self { status, kind, mut detail, retry_after, last_words } = self;
        let most = if kind == ErrorKind::GuestError { MAX_MESSAGE } else { MAX_DETAIL };
        cut(&mut detail, most);
        let body = Body {
            r#type: format!("{TYPES}{kind}"),
            title: status_and_title(kind).1,
            status: status.as_u16(),
            detail: &detail,
            kind: kind.as_str(),
            last_words: last_words.as_ref().map(|words| Words {
                stack: words.stack(),
                stderr: words.stderr(),
                stdout: words.stdout(),
            }),
        };
        let json = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], json).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        let extra = match status {
            StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, "Bearer")),
            // The rest of the request is not read, so no further request can follow.
            StatusCode::REQUEST_TIMEOUT => Some((header::CONNECTION, "close")),
            _ => None,
        };
        if let Some((name, value)) = extra {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

fn retry_after(status: StatusCode, kind: ErrorKind) -> Option<u64> {
    (status == StatusCode::TOO_MANY_REQUESTS || kind == ErrorKind::Overloaded).then_some(RETRY_AFTER)
}

/// The status and the title of each kind. `ERRORS.md` has the same, with what to do.
fn status_and_title(kind: ErrorKind) -> (StatusCode, &'static str) {
    let (status, title) = match kind {
        ErrorKind::NotFound => (404, "Not found"),
        ErrorKind::InvalidName => (400, "Not an evaluator name"),
        ErrorKind::InvalidRequest => (400, "The request cannot be understood"),
        ErrorKind::SourceUnavailable => (503, "The plugin cannot be read"),
        ErrorKind::Overloaded => (503, "The host is short of something"),
        ErrorKind::InvalidPlugin => (422, "Not a valid plugin"),
        ErrorKind::EntryPointMissing => (422, "No such entry point"),
        ErrorKind::DigestMismatch => (422, "Not the promised plugin"),
        ErrorKind::PayloadTooLarge => (413, "Too large"),
        ErrorKind::BuildTimeout => (422, "The plugin took too long to build"),
        ErrorKind::Saturated => (429, "Nothing is free and the queue is full"),
        ErrorKind::WaitTimeout => (429, "Nothing came free in time"),
        ErrorKind::QuotaExceeded => (429, "The tenant has all that it may have"),
        ErrorKind::ExecTimeout => (504, "The plugin ran too long"),
        ErrorKind::GuestTrap => (422, "The plugin trapped"),
        ErrorKind::GuestError => (422, "The plugin reported an error"),
        ErrorKind::GuestExit => (422, "The plugin exited"),
        ErrorKind::OutOfMemory => (422, "The plugin ran out of memory"),
        ErrorKind::OutOfFuel => (422, "The plugin ran out of fuel"),
        ErrorKind::OutputTooLarge => (422, "The plugin's output is too large"),
        ErrorKind::PreconditionFailed => (412, "Not as the request wants it"),
        ErrorKind::Closed => (409, "The evaluator is closed"),
        ErrorKind::ShuttingDown => (503, "The server is shutting down"),
        // The caller is gone: no client sees this status.
        ErrorKind::Cancelled => (500, "Cancelled"),
        ErrorKind::Unauthorized => (401, "A valid token is required"),
        ErrorKind::Internal => (500, "Internal error"),
    };
    (StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), title)
}

#[cfg(test)]
mod tests {
    use axum::body::HttpBody;

    use super::*;

    #[test]
    fn every_kind_is_described_where_its_type_leads_to() {
        let described = include_str!("../../../ERRORS.md");
        for kind in ErrorKind::ALL {
            let (status, title) = status_and_title(*kind);
            let status = if *kind == ErrorKind::Cancelled { String::new() } else { format!("{} ", status.as_u16()) };
            let section = format!("\n### `{kind}`\n\n**{status}{title}.** ");
            assert_eq!(described.matches(&section).count(), 1, "{section}");
        }
        assert_eq!(described.matches("\n### ").count(), ErrorKind::ALL.len());
        assert!(described.contains(&format!("\"{TYPES}not_found\"")));
    }

    #[test]
    fn a_client_is_told_how_to_go_on() {
        let headers = |status, kind| {
            let response = Problem::new(status, kind, "why").into_response();
            let get = |name| response.headers().get(name).map(|value: &HeaderValue| value.to_str().unwrap().to_owned());
            [header::WWW_AUTHENTICATE, header::CONNECTION, header::RETRY_AFTER].map(get)
        };
        let some = |value: &str| Some(value.to_owned());
        let unauthorized = headers(StatusCode::UNAUTHORIZED, ErrorKind::Unauthorized);
        assert_eq!(unauthorized, [some("Bearer"), None, None]);
        let slow = headers(StatusCode::REQUEST_TIMEOUT, ErrorKind::InvalidRequest);
        assert_eq!(slow, [None, some("close"), None], "what is left of the request is not read");
        for (status, kind) in [
            (StatusCode::TOO_MANY_REQUESTS, ErrorKind::Saturated),
            (StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Overloaded),
        ] {
            assert_eq!(headers(status, kind), [None, None, some("1")]);
        }
        assert_eq!(headers(StatusCode::NOT_FOUND, ErrorKind::NotFound), [None, None, None]);
    }

    #[test]
    fn a_detail_of_any_length_makes_a_small_answer() {
        let problem = Problem::new(StatusCode::BAD_REQUEST, ErrorKind::InvalidRequest, "é".repeat(MAX_DETAIL));
        let length = problem.into_response().body().size_hint().exact();
        assert!(length.unwrap() < MAX_DETAIL as u64 + 512, "{length:?}");
    }
}
