//! How one evaluation is called, and counted.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

use bytes::Bytes;
use tokio::{runtime::Handle, time::Instant};
use tracing::Span;

use crate::{
    background,
    engine::{CallContext, inside_host_function},
    error::{Error, panic_text},
    metrics::{Metrics, Told},
    response::Timings,
    runtime::Invocation,
    spans,
    tenants::Meter,
    turns::TenantId,
    usage::Usage,
};

/// How an evaluation calls its plugin.
pub(crate) struct Call<'a> {
    pub(super) invocation: Invocation<'a>,
    /// Whether a host function makes it, which must not wait for what may be waiting for it.
    pub(super) inside: bool,
    /// Where its times are wanted, also if it fails.
    pub(super) timings: Option<&'a mut Timings>,
}

impl<'a> Call<'a> {
    /// From this thread, without a context.
    pub(crate) fn by(entry_point: Option<&'a str>) -> Self {
        let invocation = Invocation { entry_point, input: Bytes::new(), context: None };
        Self { invocation, inside: inside_host_function(), timings: None }
    }

    pub(crate) fn with(self, context: impl Send + Sync + 'static) -> Self {
        let context: Option<CallContext> = Some(Arc::new(context));
        Self { invocation: Invocation { context, ..self.invocation }, ..self }
    }

    #[cfg(feature = "service")]
    pub(crate) fn timed(self, timings: &'a mut Timings) -> Self {
        Self { timings: Some(timings), ..self }
    }
}

/// Counts an evaluation when it has ended, also one whose caller left before its outcome was known.
pub(super) struct Counted<'a> {
    metrics: &'a Metrics,
    meter: &'a Meter,
    /// `None` if nobody wants any.
    pub(super) span: Option<&'a Span>,
    pub(super) began: Option<Instant>,
    /// What it has used so far. How long it took in all is there once its guest has returned.
    pub(super) usage: Usage,
    pub(super) timings: Timings,
    pub(super) told: Told,
    /// Whose processor time it is, once that is known.
    pub(super) tenant: Option<TenantId>,
    /// It did not come to its guest without a wait.
    pub(super) has_waited: bool,
    is_known: bool,
}

impl<'a> Counted<'a> {
    pub(super) fn new(metrics: &'a Metrics, meter: &'a Meter, span: Option<&'a Span>) -> Self {
        let (usage, timings, told) = (Usage::default(), Timings::default(), Told::default());
        Self {
            metrics,
            meter,
            span,
            began: None,
            usage,
            timings,
            told,
            tenant: None,
            has_waited: false,
            is_known: false,
        }
    }

    /// By reference: it is large to move.
    pub(super) fn end(&mut self, outcome: Result<(), &Error>) {
        self.is_known = true;
        self.count(outcome);
    }

    fn count(&mut self, outcome: Result<(), &Error>) {
        if self.usage.total.is_zero() {
            self.usage.total = self.began.map(|began| began.elapsed()).unwrap_or_default();
        }
        let outcome_kind = outcome.map_err(Error::kind);
        if let Some(span) = self.span {
            spans::record_evaluation(span, outcome_kind, &self.usage, !self.timings.build.is_zero());
        }
        self.meter.add(outcome_kind, &self.usage);
        self.metrics.evaluated(outcome, self.told);
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if !self.is_known {
            self.count(Err(&Error::Cancelled));
        }
    }
}

/// Runs a future to its end on this thread, with the timers of this crate's own runtime: whatever it is held up by, it holds
/// up no thread of that. A thread that is a tokio runtime's, such as that of a host function, cannot drive another: then the
/// future has a thread to itself.
pub(super) fn block<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Result<T, Error> {
    let no_thread = |error: std::io::Error| Error::overloaded("no thread can be started", &error, &error);
    let own = background::own().map_err(no_thread)?;
    let ended = if Handle::try_current().is_ok() {
        let thread = thread::Builder::new().name("evalpool-nested".into());
        thread.spawn(move || own.block_on(future)).map_err(no_thread)?.join()
    } else {
        catch_unwind(AssertUnwindSafe(|| own.block_on(future)))
    };
    ended.map_err(|panic| Error::internal("a blocking evaluation panicked", panic_text(&*panic)))
}
