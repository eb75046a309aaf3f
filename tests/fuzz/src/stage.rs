//! Where plugins are run: a pool of the `direct` engine, small and impatient, and a look at what is left of them.

use std::{future::Future, time::Duration};

use evalpool::{
    Error, ErrorKind, EvaluatorPool, Settings,
    config::{CodeCache, CompileWorkers, EngineKind, Eviction, LimitSettings, PoolSettings},
    engine::SlotCounts,
};
use tokio::{
    runtime::{Builder, Runtime},
    time::{sleep, timeout},
};

/// What hangs is found after this many ticks. Not after a time: a process that was stopped for a while has not hung.
pub const TICKS: u32 = 600;

/// At least so long, if the process runs.
pub const TICK: Duration = Duration::from_millis(100);

/// In this variable of the environment: a program whose processes compile. The fuzzer needs one, since a sanitizer takes more
/// address space than a compile worker may have.
const WORKER: &str = "FUZZ_COMPILE_WORKER";

/// An hour: what is waited for in vain is a hang, and found as one.
const NEVER: Duration = Duration::from_hours(1);

/// The settings of a [`Stage`], for a target that has wishes of its own.
#[must_use]
pub fn settings() -> Settings {
    let mut settings = Settings {
        pool: PoolSettings {
            memory: 1 << 30,
            capacity: 2,
            eviction: Eviction::Lfu,
            max_instances: 4,
            max_instances_per_evaluator: 2,
            idle_ttl: NEVER,
            grace: Duration::from_millis(20),
            max_uses: 3,
            max_waiting: 16,
            negative_ttl: Duration::from_secs(5),
            build_concurrency: 2,
        },
        limits: LimitSettings {
            plugin_size: 1 << 20,
            input_size: 64 << 10,
            output_size: 64 << 10,
            memory: 4 << 20,
            table_elements: 1000,
            build_timeout: Duration::from_millis(300),
            // The least there is.
            compile_memory: 64 << 20,
            wait_timeout: NEVER,
            exec_timeout: Duration::from_millis(20),
            fuel: None,
        },
        ..Settings::default()
    };
    settings.engine.kind = EngineKind::Direct;
    if let Some(program) = std::env::var_os(WORKER) {
        settings.engine.compile_workers = CompileWorkers::Program(program.into());
    }
    // Little enough to be full most of the time.
    settings.engine.code_cache = CodeCache::Memory;
    settings.engine.code_cache_size = 1 << 20;
    settings
}

/// A pool, and the threads that it is used from.
pub struct Stage {
    runtime: Runtime,
    /// The pool.
    pub pool: EvaluatorPool,
}

impl Stage {
    /// A pool with these settings.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
        let pool = EvaluatorPool::from_settings(settings).expect("settings that are in their ranges");
        Self { runtime, pool }
    }

    /// Runs a future to its end, which must come.
    pub fn finish<T: Send + 'static>(&self, what: &str, future: impl Future<Output = T> + Send + 'static) -> T {
        self.finish_within(TICKS, what, future)
    }

    /// The same, within so many ticks.
    pub fn finish_within<T: Send + 'static>(
        &self,
        ticks: u32,
        what: &str,
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        self.runtime.block_on(async {
            // On another thread: a guest that does not give way must not keep this one from noticing.
            let mut task = tokio::spawn(future);
            for _ in 0..ticks {
                if let Ok(ended) = timeout(TICK, &mut task).await {
                    return ended.expect("a panic ends the process where it happens");
                }
            }
            panic!("{what} does not end");
        })
    }

    /// Waits until no runtime is left, no slot taken and no compile worker at work, which must come about by itself.
    pub fn assert_at_rest(&self) {
        let left = || {
            let slots = self.pool.slots().map(|slots| slots.live).filter(|live| *live != SlotCounts::default());
            let (runtimes, workers) = (self.pool.runtimes(), self.pool.compile_workers());
            let busy = workers.map_or(0, |workers| workers.busy);
            (runtimes > 0 || slots.is_some() || busy > 0).then_some((runtimes, slots, busy))
        };
        self.runtime.block_on(async {
            // Most is given back within microseconds, and a sleep takes a millisecond.
            for _ in 0..100 {
                if left().is_none() {
                    return;
                }
                tokio::task::yield_now().await;
            }
            for _ in 0..TICKS * 100 {
                if left().is_none() {
                    return;
                }
                sleep(TICK / 100).await;
            }
            panic!("left behind, runtimes, slots and compiles: {:?}", left());
        });
    }
}

/// Panics unless an error is one of these kinds, and its text one that its author may read.
pub fn assert_plugins_fault(error: &Error, kinds: &[ErrorKind]) {
    assert!(kinds.contains(&error.kind()), "{}: {}", error.kind(), error.chain());
    let text = error.to_string();
    assert!(!text.is_empty());
    for part in [env!("CARGO_MANIFEST_DIR"), ".cargo/registry", "stack backtrace", "panicked at"] {
        assert!(!text.contains(part), "it tells a client too much: {text}");
    }
}
