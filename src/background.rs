//! Work that outlives the call that caused it: builds, closes, spare instances, heavy drops.
//!
//! It runs on the caller's tokio runtime. Where there is none, it runs on a runtime of this crate's own, which starts when
//! first needed and serves all pools of the process.

use std::{
    future::Future,
    sync::{OnceLock, mpsc},
    thread,
};

use tokio::runtime::{Builder, Handle, Runtime};

/// The caller's runtime, or this crate's own. `None` only when the system refuses a thread.
pub(crate) fn handle() -> Option<Handle> {
    Handle::try_current().ok().or_else(|| own().map(|own| own.handle().clone()))
}

/// This crate's own runtime, for callers that block.
pub(crate) fn own() -> Option<&'static Runtime> {
    static OWN: OnceLock<Option<Runtime>> = OnceLock::new();
    OWN.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(thread::available_parallelism().map_or(1, usize::from))
            .thread_name("evalpool")
            .max_blocking_threads(2048)
            .enable_all()
            .build()
            .ok()
    })
    .as_ref()
}

/// Starts a task. If its runtime ends before the task does, the future is dropped: work that must happen all the same
/// belongs into its drop.
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    if let Some(handle) = handle() {
        handle.spawn(future);
    }
}

/// Drops a value that may take long to drop on a thread that may block, never on this one if another can be had.
pub(crate) fn drop_elsewhere<T: Send + 'static>(value: T) {
    let heavy = Heavy(Some(value));
    match Handle::try_current() {
        // A runtime that is shutting down drops the closure instead of running it; then `Heavy` hands the value on.
        Ok(handle) => drop(handle.spawn_blocking(move || heavy.done())),
        Err(_) => drop(heavy),
    }
}

struct Heavy<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Heavy<T> {
    fn done(mut self) {
        drop(self.0.take());
    }
}

impl<T: Send + 'static> Drop for Heavy<T> {
    fn drop(&mut self) {
        if let Some(value) = self.0.take() {
            closer(Box::new(value));
        }
    }
}

/// A thread that drops what it is sent.
fn closer(value: Box<dyn Send>) {
    static CLOSER: OnceLock<Option<mpsc::Sender<Box<dyn Send>>>> = OnceLock::new();
    let closer = CLOSER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Box<dyn Send>>();
        let thread = thread::Builder::new().name("evalpool-close".into()).spawn(move || {
            for value in receiver {
                // A drop that panics must not take the thread with it; what it was dropping is lost either way.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(value)));
            }
        });
        thread.is_ok().then_some(sender)
    });
    if let Some(closer) = closer {
        // Without the thread, `send` gives the value back and it is dropped here.
        let _ = closer.send(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tell(mpsc::Sender<Option<String>>);

    impl Drop for Tell {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().name().map(str::to_owned));
        }
    }

    #[test]
    fn without_tokio_a_heavy_value_is_dropped_on_the_closer_thread() {
        let (sender, receiver) = mpsc::channel();
        drop_elsewhere(Tell(sender));
        assert_eq!(receiver.recv().unwrap().as_deref(), Some("evalpool-close"));
    }

    #[test]
    fn a_runtime_that_is_gone_does_not_drop_a_heavy_value_on_the_caller() {
        let (sender, receiver) = mpsc::channel();
        let runtime = Builder::new_current_thread().build().unwrap();
        let handle = runtime.handle().clone();
        drop(runtime);
        let _entered = handle.enter();
        drop_elsewhere(Tell(sender));
        assert_eq!(receiver.recv().unwrap().as_deref(), Some("evalpool-close"));
    }
}
