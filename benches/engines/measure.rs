//! How rates and latencies are measured.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;

/// What one task does again and again.
pub(crate) trait Caller: Send + 'static {
    /// One call, from its input to its output.
    fn call(&mut self) -> impl Future<Output = ()> + Send;
}

pub(crate) fn runtime(workers: usize) -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap()
}

/// Runs a future on a worker, where a service would run it; `block_on` itself polls on this thread.
pub(crate) fn on_worker<T: Send + 'static>(runtime: &Runtime, future: impl Future<Output = T> + Send + 'static) -> T {
    runtime.block_on(async { tokio::spawn(future).await.unwrap() })
}

/// Calls a second of all callers together, each in a task of its own.
pub(crate) fn per_second<C: Caller>(runtime: &Runtime, callers: Vec<C>, length: Duration) -> f64 {
    // All at once, so that whatever each of them needs is there before the clock starts.
    let warmed: Vec<_> = callers
        .into_iter()
        .map(|mut caller| {
            runtime.spawn(async move {
                caller.call().await;
                caller
            })
        })
        .collect();
    let callers: Vec<C> = warmed.into_iter().map(|task| runtime.block_on(task).unwrap()).collect();

    let stop = Arc::new(AtomicBool::new(false));
    let started = Instant::now();
    let running: Vec<_> = callers
        .into_iter()
        .map(|mut caller| {
            let stop = stop.clone();
            runtime.spawn(async move {
                let mut done = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    caller.call().await;
                    done += 1;
                    // Callers come from a network; none keeps its thread for ever.
                    tokio::task::consume_budget().await;
                }
                done
            })
        })
        .collect();
    // Not tokio's sleep: callers that block the workers would make it late.
    std::thread::sleep(length);
    stop.store(true, Ordering::Relaxed);
    let done: u64 = running.into_iter().map(|task| runtime.block_on(task).unwrap()).sum();
    done as f64 / started.elapsed().as_secs_f64()
}

/// How long each of one caller's calls took, sorted.
pub(crate) fn latencies<C: Caller>(runtime: &Runtime, mut caller: C, length: Duration) -> Vec<Duration> {
    on_worker(runtime, async move {
        for _ in 0..20 {
            caller.call().await;
        }
        let (mut took, started) = (Vec::new(), Instant::now());
        while took.is_empty() || started.elapsed() < length {
            let began = Instant::now();
            caller.call().await;
            took.push(began.elapsed());
        }
        took.sort();
        took
    })
}
