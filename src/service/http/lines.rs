//! A line of the log for each request, as long as there are few, and a count of all.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use axum::{
    extract::Request,
    http::{Method, StatusCode},
};
use metrics::{Counter, Unit};
use tracing::{Level, Span};

use crate::{TraceParent, service::telemetry::requests::parent};

/// How a request ended, as it is counted: by the class of its status, or its client left.
const ENDINGS: [&str; 5] = ["2xx", "3xx", "4xx", "5xx", "left"];

fn ending(status: Option<StatusCode>) -> &'static str {
    match status {
        None => "left",
        Some(status) if status.is_server_error() => "5xx",
        Some(status) if status.is_client_error() => "4xx",
        Some(status) if status.is_redirection() => "3xx",
        Some(_) => "2xx",
    }
}

/// Which requests of this second are logged, and how many there were.
pub(super) struct Lines {
    most: u64,
    began: Instant,
    /// The second, in the upper half, and how many requests there were in it.
    second: AtomicU64,
    /// Requests since the last line that have none.
    skipped: AtomicU64,
    ended: [Counter; ENDINGS.len()],
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
        const NAME: &str = "evalpool_http_requests_total";
        metrics::describe_counter!(
            NAME,
            Unit::Count,
            "Requests to /v1 that ended, by the class of their status, or since their client left before it was answered."
        );
        let ended = ENDINGS.map(|ending| metrics::counter!(NAME, "status" => ending));
        // A counter that is set exists before its first event.
        for ended in &ended {
            ended.absolute(0);
        }
        let (second, skipped) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { most: most.into(), began: Instant::now(), second, skipped, ended }
    }

    fn count(&self, status: Option<StatusCode>) {
        let ending = ending(status);
        for (_, ended) in ENDINGS.iter().zip(&self.ended).filter(|(word, _)| **word == ending) {
            ended.increment(1);
        }
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
        let is_counted = path.starts_with("/v1/");
        if is_counted {
            lines.count(*status);
        }
        let (said, status) = match status {
            Some(status) => ("answered", Some(status.as_u16())),
            None => ("its client left", None),
        };
        let seconds = began.elapsed().as_secs_f64();
        let trace = TraceParent::current().is_none().then_some(trace.as_ref()).flatten().map(TraceParent::trace_id);
        let is_logged = is_counted && tracing::enabled!(Level::INFO);
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
    use crate::service::log::tests::logged;

    #[test]
    fn requests_are_counted_by_the_class_of_their_status() {
        let endings = [200, 204, 302, 304, 400, 429, 500, 503].map(|code| ending(StatusCode::from_u16(code).ok()));
        assert_eq!(endings, ["2xx", "2xx", "3xx", "3xx", "4xx", "4xx", "5xx", "5xx"]);
        assert_eq!(ending(None), "left");
    }

    #[test]
    fn a_line_says_how_many_before_it_have_none_if_any_has() {
        let lines = Lines::new(9);
        let logs = |path: &str, status| {
            let request = Request::builder().uri(path).body(axum::body::Body::empty()).unwrap();
            logged(|| {
                let span = Span::none();
                let mut line = lines.begin(&request, &span);
                line.status = status;
            })
        };
        let line = logs("/v1/evaluators/a?token=x", Some(StatusCode::OK));
        assert!(line.contains("answered") && line.contains("path=\"/v1/evaluators/a\" status=200"), "{line}");
        assert!(!line.contains("skipped") && !line.contains("token"), "{line}");
        lines.skipped.store(3, Ordering::Relaxed);
        let line = logs("/v1/evaluators", None);
        assert!(line.contains("its client left") && line.contains("skipped=3"), "{line}");
        assert!(!logs("/healthz", Some(StatusCode::OK)).contains("INFO"), "no request of a client's");
    }

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
