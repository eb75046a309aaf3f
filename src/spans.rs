//! The spans of what the pool does, through the facade `tracing`: their names and fields. Installs no subscriber.
//!
//! All have the target `evalpool::span` and the level `info`. Where OpenTelemetry has a name for something, that is the name
//! here (`faas.`, `http.`, `code.`, `error.`); the rest begins with `evalpool.`. Fields whose names begin with `otel.` are what
//! `tracing-opentelemetry` reads. The README lists all of them.
//!
//! Where nobody wants these spans, asking whether anybody does is one load of a word that nobody writes, and nothing else
//! is done: no span, no text, no clock.
//!
//! What identifies a trace to other processes, the subscriber alone knows. It is asked through [`set_trace_source`], so that
//! this crate depends on no version of OpenTelemetry.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tracing::{Level, Span, field::Empty};

use crate::{
    error::{Error, ErrorKind},
    usage::Usage,
};

/// The target of all spans.
#[cfg(feature = "service")]
pub(crate) const TARGET: &str = "evalpool::span";

macro_rules! span {
    ($($fields:tt)*) => { tracing::info_span!(target: "evalpool::span", $($fields)*) };
}

/// Whether anybody wants spans.
#[inline]
pub(crate) fn wanted() -> bool {
    tracing::span_enabled!(target: "evalpool::span", Level::INFO)
}

/// A span if anybody wants one; made of nothing if nobody does.
pub(crate) fn if_wanted(span: impl FnOnce() -> Span) -> Span {
    if wanted() { span() } else { Span::none() }
}

/// One evaluation, from its call to its outcome. Named as its evaluator, by the conventions for functions as a service.
pub(crate) fn evaluation(evaluator: &str, entry_point: Option<&str>) -> Span {
    span!(
        "evaluation",
        otel.name = evaluator,
        faas.name = evaluator,
        faas.version = Empty,
        faas.coldstart = Empty,
        code.function.name = entry_point,
        evalpool.tenant = Empty,
        evalpool.plugin.digest = Empty,
        evalpool.outcome = Empty,
        "error.type" = Empty,
        otel.status_code = Empty,
        evalpool.usage.guest_seconds = Empty,
        evalpool.usage.peak_memory_bytes = Empty,
        evalpool.usage.bytes_in = Empty,
        evalpool.usage.bytes_out = Empty,
        evalpool.usage.host_calls = Empty,
        evalpool.usage.http_requests = Empty,
        evalpool.usage.fuel = Empty,
    )
}

/// A build of a runtime, from the first caller that misses it until it can be used or has failed.
pub(crate) fn build(evaluator: &str, tenant: &str, revision: u64) -> Span {
    span!(
        "build",
        faas.name = evaluator,
        faas.version = revision,
        evalpool.tenant = tenant,
        evalpool.plugin.digest = Empty,
        evalpool.plugin.size_bytes = Empty,
        evalpool.outcome = Empty,
        "error.type" = Empty,
        otel.status_code = Empty,
    )
}

/// The close of a runtime, from the decision until its last object is dropped. Its cause is linked to it, and is not its
/// parent: it may be another tenant's evaluation, which does not wait for it. `unused` is the time since its last use, if it
/// was evicted.
pub(crate) fn close(
    evaluator: &str,
    tenant: &str,
    revision: u64,
    reason: &'static str,
    unused: Option<Duration>,
) -> Span {
    let span = span!(
        parent: None,
        "close",
        otel.name = if unused.is_some() { "evict" } else { "close" },
        faas.name = evaluator,
        faas.version = revision,
        evalpool.tenant = tenant,
        evalpool.close.reason = reason,
        evalpool.close.how = Empty,
        evalpool.close.unused_seconds = unused.map(|unused| unused.as_secs_f64()),
    );
    span.follows_from(Span::current());
    span
}

/// A phase of a build: `fetch`, `compile`, `probe`.
macro_rules! phase {
    ($name:literal) => {
        $crate::spans::if_wanted(|| tracing::info_span!(target: "evalpool::span", $name))
    };
}
pub(crate) use phase;

/// Awaits a future within a span that is made of the whole's, if there is one. In a box then: where there is none, nothing is
/// moved, and the future around it grows by little.
macro_rules! within {
    ($whole:expr, $span:expr, $future:expr) => {
        match $whole {
            None => $future.await,
            Some(whole) => Box::pin($future.instrument($span(whole))).await,
        }
    };
}
pub(crate) use within;

/// The same with a part of an evaluation, `wait` for a place, a build or an instance, `instantiate`, `run`, if the whole has a
/// span.
macro_rules! part {
    ($whole:expr, $name:literal, $future:expr) => {
        $crate::spans::within!($whole, |_: &Span| tracing::info_span!(target: "evalpool::span", $name), $future)
    };
}
pub(crate) use part;

/// A host function that a guest calls.
#[cfg(any(feature = "direct", feature = "extism"))]
pub(crate) fn host_call(name: &str) -> Span {
    span!("host_call", code.function.name = name, "error.type" = Empty, otel.status_code = Empty)
}

/// Records that what a span is of has failed, and with what kind of error.
pub(crate) fn record_failure(span: &Span, kind: &str) {
    span.record("error.type", kind).record("otel.status_code", "ERROR");
}

/// An HTTP request of a guest, by the conventions for HTTP clients. `url` has no query and no credentials.
#[cfg(feature = "direct")]
pub(crate) fn http_request(method: &str, url: &str, address: &str, port: Option<u16>) -> Span {
    span!(
        "http_request",
        otel.name = method,
        otel.kind = "client",
        http.request.method = method,
        url.full = url,
        server.address = address,
        server.port = port,
        http.response.status_code = Empty,
        "error.type" = Empty,
        otel.status_code = Empty,
    )
}

/// Records in an evaluation's span which revision it runs.
pub(crate) fn record_revision(span: &Span, tenant: &str, revision: u64) {
    span.record("evalpool.tenant", tenant).record("faas.version", revision);
}

/// Records how an evaluation has ended.
#[cold]
pub(crate) fn record_evaluation(span: &Span, outcome: Result<(), ErrorKind>, usage: &Usage, waited_for_build: bool) {
    record_outcome(span, outcome);
    span.record("faas.coldstart", waited_for_build)
        .record("evalpool.usage.guest_seconds", usage.guest.as_secs_f64())
        .record("evalpool.usage.peak_memory_bytes", usage.peak_memory)
        .record("evalpool.usage.bytes_in", usage.bytes_in)
        .record("evalpool.usage.bytes_out", usage.bytes_out)
        .record("evalpool.usage.host_calls", usage.host_calls)
        .record("evalpool.usage.http_requests", usage.http.map(|http| http.requests))
        .record("evalpool.usage.fuel", usage.fuel);
}

/// Records which plugin a span is about.
pub(crate) fn record_plugin(span: &Span, digest: &dyn fmt::Display, size: Option<u64>) {
    span.record("evalpool.plugin.digest", tracing::field::display(digest));
    span.record("evalpool.plugin.size_bytes", size);
}

/// Records in the current span how a build has ended.
pub(crate) fn record_build(outcome: Result<(), &Error>) {
    if wanted() {
        record_outcome(&Span::current(), outcome.map_err(Error::kind));
    }
}

fn record_outcome(span: &Span, outcome: Result<(), ErrorKind>) {
    match outcome {
        Ok(()) => drop(span.record("evalpool.outcome", "ok")),
        Err(kind) => {
            span.record("evalpool.outcome", kind.as_str());
            record_failure(span, kind.as_str());
        }
    }
}

type TraceSource = fn() -> Option<TraceParent>;

static TRACE_SOURCE: OnceLock<TraceSource> = OnceLock::new();

/// Names the function that tells the trace and span of the current [`tracing::Span`], as your subscriber knows them. Guests'
/// HTTP requests then carry it, and the servers that they reach continue the trace. Called on guests' threads, so it must
/// not block. The first call counts; false for later ones.
///
/// The program does this itself when `telemetry.otlp_endpoint` is set.
pub fn set_trace_source(source: fn() -> Option<TraceParent>) -> bool {
    TRACE_SOURCE.set(source).is_ok()
}

/// Which trace and span something belongs to: the header `traceparent` of W3C's Trace Context.
///
/// Passed as the context of a call ([`Evaluator::evaluate_with`](crate::Evaluator::evaluate_with)), it goes out with the HTTP
/// requests of the guest, unless the guest sets the header itself, and host functions can ask for it. The server passes that
/// of a client's request so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceParent(Arc<str>);

/// Text that is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 00-, 32 and 16 hexadecimal digits in small letters that are not all 0, and two digits of flags")]
pub struct ParseTraceParentError(());

impl TraceParent {
    /// As the header has it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trace and the span of the current [`tracing::Span`], if there is a [source](set_trace_source) and it knows them.
    #[must_use]
    pub fn current() -> Option<Self> {
        TRACE_SOURCE.get().and_then(|source| source())
    }

    /// The trace's id: 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> &str {
        self.0.get(3..35).unwrap_or_default()
    }

    /// The span's id: 16 hexadecimal digits.
    #[must_use]
    pub fn span_id(&self) -> &str {
        self.0.get(36..52).unwrap_or_default()
    }
}

impl FromStr for TraceParent {
    type Err = ParseTraceParentError;

    /// Reads version 00, and of later versions what they have in common with it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('-');
        let mut part = |length: usize| {
            let is_hex = |part: &&str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            parts.next().filter(|part| part.len() == length).filter(is_hex).ok_or(ParseTraceParentError(()))
        };
        let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let is_zero = |id: &str| id.bytes().all(|byte| byte == b'0');
        let has_more = parts.next().is_some();
        if version == "ff" || (version == "00" && has_more) || is_zero(trace) || is_zero(span) {
            return Err(ParseTraceParentError(()));
        }
        Ok(Self(format!("00-{trace}-{span}-{flags}").into()))
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_parent_is_read_as_the_recommendation_says() {
        let whole = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let read: TraceParent = whole.parse().unwrap();
        assert_eq!((read.as_str(), read.span_id()), (whole, "b7ad6b7169203331"));
        assert_eq!(read.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        let later: TraceParent = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what".parse().unwrap();
        assert_eq!(later, read);
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333é-01",
        ] {
            assert!(bad.parse::<TraceParent>().is_err(), "{bad}");
        }
    }
}
