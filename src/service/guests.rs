//! The threads that run guests, apart from those of HTTP.
//!
//! A guest returns to its executor at each tick, but one instruction of it may take much longer: `memory.fill` and
//! `memory.copy` run to their end. On the threads of HTTP, a few such guests would hold up every request. So each
//! evaluation runs on one of these:
//!
//! | threads | run |
//! |---|---|
//! | short | what has used less than [`SHORT`] of a processor. Here the system lets them run as promptly as HTTP |
//! | long | what has used more, and evaluators of which a guest was [`LATE`] a moment ago. By the system's priority these come last |
//!
//! There are more threads than cores: when a guest keeps one, the system takes its core away for another that has waited.
//!
//! Considered and not taken: one kind of thread (a short guest then waits for the system to end another's turn, some
//! milliseconds), and beginning on a thread of HTTP (the first instruction would already hold it up).

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    panic::resume_unwind,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
};

use super::Exit;
use crate::{Error, EvaluatorId, engine::BoxFuture, fair_share::processor_time};

/// What an evaluation may use of a processor before it moves to the long threads. Two ticks.
const SHORT: Duration = Duration::from_millis(2);

/// What a guest that keeps to its ticks does not use of a processor at a stretch.
const LATE: Duration = Duration::from_millis(5);

/// For how long evaluations of an evaluator begin on the long threads after one was late.
const REMEMBERED: Duration = Duration::from_secs(1);

/// Threads of each kind, for each core.
const THREADS_PER_CORE: usize = 2;

/// How much nicer the long threads are than the others.
const NICER: i32 = 10;

/// The threads of one server.
pub(super) struct Guests {
    short: Threads,
    long: Threads,
    late: Late,
}

impl Guests {
    /// Starts the threads. On `extism` each guest needs one more of up to `blocking`.
    pub(super) fn start(blocking: usize) -> Result<Self, Exit> {
        let start = |name, nicer| Threads::start(name, nicer, blocking);
        Ok(Self { short: start("evalpool-short", 0)?, long: start("evalpool-long", NICER)?, late: Late::default() })
    }

    /// Runs an evaluation of this evaluator. Dropping the future drops the evaluation, at its guest's next tick.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        evaluator: EvaluatorId,
        evaluation: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Error> {
        let mut evaluation: BoxFuture<'static, T> = Box::pin(evaluation);
        if !self.late.has(evaluator) {
            let guests = self.clone();
            let short = self.short.run(async move { guests.watch(evaluator, evaluation, SHORT).await });
            match short.await? {
                Ok(value) => return Ok(value),
                Err(rest) => evaluation = rest,
            }
        }
        let guests = self.clone();
        let long = self.long.run(async move { guests.watch(evaluator, evaluation, Duration::MAX).await });
        long.await?.map_err(|_| Error::Internal { reason: "an evaluation went on for ever", cause: None })
    }

    /// Polls the evaluation until it ends, or gives it back once it has used this much of a processor.
    async fn watch<T>(
        &self,
        evaluator: EvaluatorId,
        mut evaluation: BoxFuture<'static, T>,
        most: Duration,
    ) -> Result<T, BoxFuture<'static, T>> {
        let mut used = Duration::ZERO;
        let ended = poll_fn(|context| {
            let before = processor_time();
            let polled = evaluation.as_mut().poll(context);
            let stretch = processor_time().saturating_sub(before);
            used = used.saturating_add(stretch);
            if stretch >= LATE {
                self.late.add(evaluator);
            }
            match polled {
                Poll::Pending if used >= most => Poll::Ready(None),
                polled => polled.map(Some),
            }
        })
        .await;
        ended.ok_or(evaluation)
    }
}

/// Evaluators of which a guest was late, and until when that is remembered.
#[derive(Default)]
struct Late {
    until: Mutex<HashMap<EvaluatorId, Instant>>,
    /// Whether there may be any: mostly there is none, and nobody takes the lock.
    any: AtomicBool,
}

impl Late {
    fn lock(&self) -> MutexGuard<'_, HashMap<EvaluatorId, Instant>> {
        // Nothing panics under it.
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, evaluator: EvaluatorId) {
        self.lock().insert(evaluator, Instant::now() + REMEMBERED);
        self.any.store(true, Ordering::Relaxed);
    }

    fn has(&self, evaluator: EvaluatorId) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let (mut until, now) = (self.lock(), Instant::now());
        until.retain(|_, until| *until > now);
        self.any.store(!until.is_empty(), Ordering::Relaxed);
        until.contains_key(&evaluator)
    }
}

/// A runtime that may be dropped anywhere, also by one of its own tasks. `None` only while it is dropped.
struct Threads(Option<Runtime>);

impl Threads {
    fn start(name: &str, nicer: i32, blocking: usize) -> Result<Self, Exit> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(available_parallelism().map_or(1, usize::from).saturating_mul(THREADS_PER_CORE))
            .max_blocking_threads(blocking)
            .thread_name(name)
            .on_thread_start(move || give_way(nicer))
            .enable_all()
            .build()
            .map_err(|error| Exit::failed(format!("no threads can be started for guests: {error}")))?;
        Ok(Self(Some(runtime)))
    }

    async fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> Result<T, Error> {
        /// Ends the task with the future that waits for it.
        struct AbortOnDrop<T>(JoinHandle<T>);

        impl<T> Drop for AbortOnDrop<T> {
            fn drop(&mut self) {
                self.0.abort();
            }
        }

        let runtime = self.0.as_ref().ok_or(Error::ShuttingDown)?;
        let mut task = AbortOnDrop(runtime.spawn(task));
        (&mut task.0).await.map_err(|error| match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // Nobody else aborts it.
            Err(_) => Error::ShuttingDown,
        })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Lowers this thread's priority. Elsewhere it would be the process's.
#[cfg(target_os = "linux")]
fn give_way(nicer: i32) {
    // If the system does not let it, it runs like the others.
    let _ = rustix::process::nice(nicer);
}

#[cfg(not(target_os = "linux"))]
fn give_way(_nicer: i32) {}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::{sync::oneshot, task::yield_now};

    use super::*;

    fn guests() -> Arc<Guests> {
        Arc::new(Guests::start(1).unwrap())
    }

    fn here() -> String {
        thread::current().name().unwrap_or_default().to_owned()
    }

    /// Uses a processor for this long, at a stretch.
    fn work(length: Duration) {
        let began = processor_time();
        while processor_time().saturating_sub(began) < length {}
    }

    #[tokio::test]
    async fn what_runs_long_moves_to_the_threads_that_come_last() {
        let guests = guests();
        let evaluation = async || {
            let mut seen = vec![here()];
            for _ in 0..2 {
                work(SHORT);
                yield_now().await;
                seen.push(here());
            }
            #[cfg(target_os = "linux")]
            assert!(rustix::process::nice(0).unwrap() >= NICER);
            seen
        };
        for _ in 0..2 {
            // It kept to its ticks, so the next one begins among the short ones again.
            let seen = guests.run(EvaluatorId(1), evaluation()).await.unwrap();
            assert_eq!(seen, ["evalpool-short", "evalpool-long", "evalpool-long"]);
        }
    }

    #[tokio::test]
    async fn an_evaluator_whose_guest_was_late_begins_behind_the_others_for_a_while() {
        let guests = guests();
        let begins = async |evaluator| guests.run(evaluator, async { here() }).await.unwrap();
        guests.run(EvaluatorId(1), async { work(LATE) }).await.unwrap();
        assert_eq!(begins(EvaluatorId(1)).await, "evalpool-long");
        assert_eq!(begins(EvaluatorId(2)).await, "evalpool-short");
        guests.late.lock().values_mut().for_each(|until| *until = Instant::now());
        assert_eq!(begins(EvaluatorId(1)).await, "evalpool-short");
        assert!(guests.late.lock().is_empty() && !guests.late.any.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn an_evaluation_that_nobody_waits_for_is_dropped_on_either_threads() {
        let guests = guests();
        for evaluator in [1, 2].map(EvaluatorId) {
            let (held, dropped) = oneshot::channel::<()>();
            let (entered, inside) = oneshot::channel();
            let evaluation = async move {
                let _ = entered.send(here());
                std::future::pending::<()>().await;
                drop(held);
            };
            let waiting = tokio::spawn({
                let guests = guests.clone();
                async move { guests.run(evaluator, evaluation).await }
            });
            assert_eq!(inside.await.unwrap(), if evaluator.0 == 1 { "evalpool-short" } else { "evalpool-long" });
            waiting.abort();
            assert!(dropped.await.is_err(), "with what it held");
            guests.late.add(EvaluatorId(2));
        }
    }

    #[tokio::test]
    async fn a_panic_is_its_callers() {
        let guests = guests();
        let panics =
            tokio::spawn(async move { guests.run(EvaluatorId(1), async { panic!("of the evaluation") }).await });
        let ended: Result<Result<(), _>, _> = panics.await;
        assert!(ended.unwrap_err().is_panic());
    }
}
