//! A line of the log for each request, as long as there are few.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use axum::{
    extract::Request,
    http::{Method, StatusCode},
};
use tracing::{Level, Span};

use crate::{TraceParent, service::telemetry::requests::parent};

/// Which requests of this second are logged.
pub(super) struct Lines {
    most: u64,
    began: Instant,
    /// The second, in the upper half, and how many requests there were in it.
    second: AtomicU64,
    /// Requests since the last line that have none.
    skipped: AtomicU64,
}

/// A request, which is logged when this is dropped.
pub(super) struct Line<'a> {
    lines: &'a Lines,
    span: &'a Span,
    method: Method,
    path: String,
    began: Instant,
    /// What its client says, for where no spans are made.
    trace: Option<TraceParent>,
    /// `None` while it is not answered, and for ever if its client leaves.
    pub(super) status: Option<StatusCode>,
}

impl Lines {
    pub(super) fn new(most: u32) -> Self {
        Self { most: most.into(), began: Instant::now(), second: AtomicU64::new(0), skipped: AtomicU64::new(0) }
    }

    /// Whether this request gets a line; then, how many before it got none.
    fn next(&self) -> Option<u64> {
        let now = self.began.elapsed().as_secs() << 32;
        let count = |last: u64| Some(if last >> 32 << 32 == now { last + 1 } else { now + 1 });
        let (relaxed, first) = (Ordering::Relaxed, |last| count(last).unwrap_or_default() - now);
        let last = self.second.fetch_update(relaxed, relaxed, count).unwrap_or_else(|last| last);
        if first(last) > self.most {
            self.skipped.fetch_add(1, relaxed);
            return None;
        }
        Some(self.skipped.swap(0, relaxed))
    }

    /// Begins a line. `span` is the request's.
    pub(super) fn begin<'a>(&'a self, request: &Request, span: &'a Span) -> Line<'a> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let trace = parent(request.headers());
        Line { lines: self, span, method, path, began: Instant::now(), trace, status: None }
    }
}

impl Line<'_> {
    /// Its path has the evaluator's name; a query is not shown.
    fn write(&self) {
        let Line { lines, method, path, began, trace, status, .. } = self;
        let (said, status) = match status {
            Some(status) => ("answered", Some(status.as_u16())),
            None => ("its client left", None),
        };
        let seconds = began.elapsed().as_secs_f64();
        let trace = TraceParent::current().is_none().then_some(trace.as_ref()).flatten().map(TraceParent::trace_id);
        let is_logged = path.starts_with("/v1/") && tracing::enabled!(Level::INFO);
        if let Some(skipped) = if is_logged { lines.next() } else { None } {
            let skipped = (skipped > 0).then_some(skipped);
            tracing::info!(%method, path, status, seconds, skipped, trace_id = trace, "{said}");
        } else {
            tracing::debug!(%method, path, status, seconds, trace_id = trace, "{said}");
        }
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.span.in_scope(|| self.write());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_requests_in_a_second_some_get_a_line_and_the_next_tells_of_the_others() {
        let mut lines = Lines::new(2);
        let of_a_second = |lines: &Lines| (0..5).map(|_| lines.next()).collect::<Vec<_>>();
        let began = lines.began;
        while lines.began.elapsed().subsec_millis() > 500 {
            lines.began = Instant::now();
        }
        assert_eq!(of_a_second(&lines), [Some(0), Some(0), None, None, None]);
        lines.began = began.checked_sub(std::time::Duration::from_secs(7)).unwrap();
        assert_eq!(of_a_second(&lines)[..2], [Some(3), Some(0)]);
        assert_eq!(Lines::new(0).next(), None);
    }
}
