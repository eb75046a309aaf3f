//! How one evaluation is called, and counted.

use std::{future::Future, sync::Arc};

use crate::{
    background,
    engine::{CallContext, inside_host_function},
    error::Error,
    metrics::Metrics,
};

/// How an evaluation calls its plugin.
pub(crate) struct Call<'a> {
    /// `None` for the default one.
    pub(super) entry_point: Option<&'a str>,
    pub(super) context: Option<CallContext>,
    /// Whether a host function makes it, which must not wait for what may be waiting for it.
    pub(super) inside: bool,
}

impl<'a> Call<'a> {
    /// From this thread, without a context.
    pub(crate) fn by(entry_point: Option<&'a str>) -> Self {
        Self { entry_point, context: None, inside: inside_host_function() }
    }

    pub(super) fn with(self, context: impl Send + Sync + 'static) -> Self {
        Self { context: Some(Arc::new(context)), ..self }
    }
}

/// Counts an evaluation whose caller left before its outcome was known.
pub(super) struct Outcome<'a> {
    pub(super) metrics: &'a Metrics,
    pub(super) is_known: bool,
}

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        if !self.is_known {
            self.metrics.evaluated(Err(&Error::Cancelled));
        }
    }
}

/// Runs a future on this crate's own runtime and waits for it here. `inside` a host function this may be a thread of
/// that runtime, which cannot wait for itself: then it is run on one of its own.
pub(super) fn block<T: Send + 'static>(
    inside: bool,
    future: impl Future<Output = T> + Send + 'static,
) -> Result<T, Error> {
    let failed = |reason| Error::Internal { reason, cause: None };
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let run = async move {
        // Fails only when the thread that waits is gone.
        let _ = sender.send(future.await);
    };
    if inside {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Error::overloaded("no runtime could be made", &error, &error))?;
        let thread = std::thread::Builder::new().name("evalpool-nested".into());
        thread
            .spawn(move || runtime.block_on(run))
            .map_err(|error| Error::overloaded("no thread could be started", &error, &error))?;
    } else {
        drop(background::own().map_err(|error| Error::overloaded("no thread can be started", error))?.spawn(run));
    }
    receiver.recv().map_err(|_| failed("a blocking evaluation panicked"))
}
