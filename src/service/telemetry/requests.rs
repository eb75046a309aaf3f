//! The span of a request to the server, by the conventions for HTTP servers.

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderMap, StatusCode},
};
use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use serde::{Serialize, Serializer};
use tracing::{Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{TraceParent, spans};

/// What a client says its request belongs to. What cannot be read is as if it were not there.
pub(in crate::service) fn parent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut given = headers.get_all("traceparent").iter();
    let (first, None) = (given.next()?, given.next()) else { return None };
    first.to_str().ok()?.parse().ok()
}

/// The trace that a request belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(in crate::service) struct Trace {
    #[serde(serialize_with = "as_digits")]
    id: u128,
    /// It is sent to a collector, by this server or by its client.
    is_sampled: bool,
}

/// As the line of the log has it: that of the current span, or the one that its client names.
pub(in crate::service) fn trace(parent: Option<&TraceParent>) -> Option<Trace> {
    let current = TraceParent::current();
    let named = current.as_ref().or(parent)?;
    let id = u128::from_str_radix(named.trace_id(), 16).ok()?;
    Some(Trace { id, is_sampled: flags(named)? & 1 == 1 })
}

fn as_digits<S: Serializer>(id: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{id:032x}"))
}

fn flags(parent: &TraceParent) -> Option<u8> {
    u8::from_str_radix(parent.as_str().get(53..55)?, 16).ok()
}

/// A span for a request, if anybody wants one; it goes on with the client's trace.
pub(in crate::service) fn span(request: &Request) -> Span {
    spans::if_wanted(|| {
        let Some(route) = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str) else {
            return Span::none();
        };
        // Health, readiness and metrics are asked for each few seconds, and tell nothing.
        if !route.starts_with("/v1/") {
            return Span::none();
        }
        let method = request.method().as_str();
        let span = tracing::info_span!(
            target: "evalpool::span",
            "request",
            otel.name = format_args!("{method} {route}"),
            otel.kind = "server",
            http.request.method = method,
            http.route = route,
            url.path = request.uri().path(),
            url.scheme = "http",
            http.response.status_code = Empty,
            "error.type" = Empty,
            otel.status_code = Empty,
        );
        if let Some(context) = parent(request.headers()).and_then(|parent| remote(&parent, request.headers())) {
            // Fails only without the layer that reads it.
            let _ = span.set_parent(Context::new().with_remote_span_context(context));
        }
        span
    })
}

fn remote(parent: &TraceParent, headers: &HeaderMap) -> Option<SpanContext> {
    let flags = flags(parent)?;
    let (trace, span) = (TraceId::from_hex(parent.trace_id()).ok()?, SpanId::from_hex(parent.span_id()).ok()?);
    let state = headers.get("tracestate").and_then(|state| state.to_str().ok()?.parse::<TraceState>().ok());
    Some(SpanContext::new(trace, span, TraceFlags::new(flags), true, state.unwrap_or_default()))
}

/// Records how a request was answered. Errors of the client are none of the server's.
pub(in crate::service) fn record(span: &Span, status: StatusCode) {
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        spans::record_failure(span, status.as_str());
    }
}
