//! Work that others may wait for, whoever caused it: builds, closes, spare instances, the sweep, heavy drops.
//!
//! It runs on the runtime that its pool was given ([`PoolBuilder::background`](crate::PoolBuilder::background)), or else on
//! this crate's own, never on that of the caller who caused it. Nobody can rely on a caller's runtime: a `current_thread`
//! one stands still whenever its owner does something else, and with it would stand all who wait for the same build. The
//! crate's own serves all pools of the process. It starts when it is first needed, with a thread for each core, named
//! `evalpool`, and never ends.
//!
//! A runtime that a pool was given may end before the pool. What had not begun on it begins on the crate's own; what was
//! under way is dropped, and guards undo it.
//!
//! Considered and not taken: the caller's runtime with a watchdog that moves work which stands still (work cannot move once
//! it has a timer or a socket, and nothing tells a runtime that is parked from one that is slow); and a runtime for each
//! pool (a thread for each core and pool, and dropping a runtime blocks, or panics, on a thread that drives tasks).

use std::{
    future::Future,
    io,
    panic::catch_unwind,
    pin::Pin,
    sync::{Mutex, OnceLock, PoisonError},
    task::{Context, Poll},
    thread,
};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::spawn_blocking,
};

/// Threads for work that blocks, beside those that drive tasks: more than closes and compiles at once.
const MOST_BLOCKING: usize = 2048;

const NAME: &str = "evalpool";

/// Where background work runs: on a runtime that was given, or on this crate's own. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Background(Option<Handle>);

impl Background {
    pub(crate) fn on(given: Option<Handle>) -> Self {
        Self(given)
    }

    /// The runtime of the task that asks: for what knows no pool, but was made by one's background work.
    #[cfg(feature = "extism")]
    pub(crate) fn current() -> Self {
        Self(Handle::try_current().ok())
    }

    fn handle(&self) -> io::Result<Handle> {
        self.0.clone().map_or_else(own, Ok)
    }

    /// Starts a task with `subject`. If its runtime ends before the task does, the future is dropped: what must happen all
    /// the same belongs into its drop.
    ///
    /// # Errors
    ///
    /// `subject` and why the system refuses a thread.
    pub(crate) fn spawn_with<S, F>(&self, subject: S, task: impl FnOnce(S) -> F) -> Result<(), (S, io::Error)>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        match self.handle() {
            Ok(handle) => {
                let task = Some(Box::pin(task(subject)));
                drop(handle.spawn(Movable { task, has_begun: false }));
            }
            Err(error) => return Err((subject, error)),
        }
        Ok(())
    }

    /// The same for a task whose drop undoes what it was to do, if there is no thread for it.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let _ = self.spawn_with(future, |future| future);
    }

    /// Drops a value that may take long to drop on a thread that may block, never on this one if another can be had.
    pub(crate) fn drop_elsewhere<T: Send + 'static>(&self, value: T) {
        self.spawn(async move { drop(spawn_blocking(move || drop(value))) });
    }
}

/// This crate's own runtime.
///
/// # Errors
///
/// Why the system refuses a thread. The next call asks again.
pub(crate) fn own() -> io::Result<Handle> {
    static OWN: OnceLock<Runtime> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    if let Some(own) = OWN.get() {
        return Ok(own.handle().clone());
    }
    let _alone = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(own) = OWN.get() {
        return Ok(own.handle().clone());
    }
    let started = start()?;
    Ok(OWN.get_or_init(|| started).handle().clone())
}

fn start() -> io::Result<Runtime> {
    // Where the system refuses a thread, tokio panics: asked first, so that the system says why.
    thread::Builder::new().name(NAME.into()).spawn(|| ())?;
    let start = || {
        Builder::new_multi_thread()
            .worker_threads(thread::available_parallelism().map_or(1, usize::from))
            .thread_name(NAME)
            .max_blocking_threads(MOST_BLOCKING)
            .enable_all()
            .build()
    };
    catch_unwind(start).unwrap_or_else(|_| Err(io::Error::other("the system refuses a thread")))
}

/// A task. If its runtime ends before it has begun, it begins on this crate's own. (Later it could not move: its timers and
/// sockets are that runtime's.)
struct Movable<F: Future<Output = ()> + Send + 'static> {
    /// `None` only inside `drop`.
    task: Option<Pin<Box<F>>>,
    has_begun: bool,
}

impl<F: Future<Output = ()> + Send + 'static> Future for Movable<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.has_begun = true;
        self.task.as_mut().map_or(Poll::Ready(()), |task| task.as_mut().poll(context))
    }
}

impl<F: Future<Output = ()> + Send + 'static> Drop for Movable<F> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take_if(|_| !self.has_begun)
            && let Ok(own) = own()
        {
            own.spawn(task);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    struct Tell(Sender<Option<String>>);

    impl Drop for Tell {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().name().map(str::to_owned));
        }
    }

    fn ended() -> Background {
        let runtime = Builder::new_current_thread().build().unwrap();
        Background::on(Some(runtime.handle().clone()))
    }

    #[test]
    fn a_heavy_value_is_dropped_on_a_thread_of_this_crate_although_a_given_runtime_has_ended() {
        for background in [Background::default(), ended()] {
            let (sender, receiver) = channel();
            background.drop_elsewhere(Tell(sender));
            assert_eq!(receiver.recv().unwrap().as_deref(), Some(NAME));
        }
    }

    #[test]
    fn a_task_that_has_not_begun_outlives_its_runtime_and_one_that_has_is_dropped_with_it() {
        let (sender, receiver) = channel();
        let begins = sender.clone();
        ended().spawn(async move { begins.send(thread::current().name().map(str::to_owned)).unwrap() });
        assert_eq!(receiver.recv().unwrap().as_deref(), Some(NAME));

        let runtime = Builder::new_current_thread().build().unwrap();
        let tell = Tell(sender);
        Background::on(Some(runtime.handle().clone())).spawn(async move {
            std::future::pending::<()>().await;
            drop(tell);
        });
        runtime.block_on(tokio::task::yield_now());
        assert!(receiver.try_recv().is_err());
        drop(runtime);
        assert_eq!(receiver.recv().unwrap(), thread::current().name().map(str::to_owned));
    }
}
