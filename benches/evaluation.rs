//! What the pool adds to what it is made of. In each group, the same work is done through the pool on its default
//! engine, `direct`, and without it, so that one run gives the ratio. `engine` is `direct` without the pool; `extism`
//! is the `extism` crate without it, for comparison.
//!
//! ```text
//! cargo bench --bench evaluation            # all groups
//! cargo bench --bench evaluation -- warm    # one of them
//! ```

mod support;

use std::{
    future::{Future, ready},
    hint::black_box,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, criterion_group};
use evalpool::{
    Close, Evaluator, EvaluatorPool, Isolation, Source, Spec,
    config::LimitSettings,
    engine::{CallRequest, CompiledPlugin, Permit},
};
use extism::{Manifest, Plugin, PluginBuilder, Wasm};
use lru::LruCache;
use tokio::{runtime::Runtime, task::spawn_blocking};

use self::support::{direct_without_pool, limits, nothing::Nothing};

/// A real plugin and a call of it.
struct Sample {
    name: &'static str,
    file: &'static str,
    entry_point: &'static str,
    input: &'static [u8],
}

/// The smallest and the commonest: C without a library, and Rust with the official PDK.
const SAMPLES: [Sample; 2] = [
    Sample { name: "greet", file: "src/service/greet/greet.wasm", entry_point: "greet", input: br#"{"name":"Ada"}"# },
    Sample {
        name: "totals",
        file: "tests/plugins/rust/totals.wasm",
        entry_point: "transform",
        input: br#"{"items":[{"price":2.5,"qty":4},{"price":1.25,"qty":8}]}"#,
    },
];

impl Sample {
    fn path(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(self.file)
    }

    fn wasm(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    /// From memory, so that no file is read on either side.
    fn spec(&self) -> Spec {
        Spec::new(Source::bytes(self.wasm())).entry_point(self.entry_point)
    }

    /// Under the limits that the pool sets.
    fn compile(&self) -> extism::CompiledPlugin {
        let limits = LimitSettings::default();
        let manifest = Manifest::new([Wasm::data(self.wasm())])
            .with_timeout(limits.exec_timeout)
            .with_memory_max(u32::try_from(limits.memory / 65_536).unwrap());
        PluginBuilder::new(manifest).with_cache_disabled().compile().unwrap()
    }

    fn call(&self, plugin: &mut Plugin) {
        black_box(plugin.call::<&[u8], &[u8]>(self.entry_point, self.input).unwrap());
    }

    async fn evaluate(&self, evaluator: &Evaluator) {
        let _ = black_box(evaluator.evaluate(Bytes::from_static(self.input)).await.unwrap());
    }
}

fn pool(isolation: Isolation) -> EvaluatorPool {
    EvaluatorPool::builder().isolation(isolation).build().unwrap()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

/// Runs a future on a worker, where a service would run it; `block_on` itself polls on this thread.
fn on_worker<T: Send + 'static>(runtime: &Runtime, future: impl Future<Output = T> + Send + 'static) -> T {
    runtime.block_on(async { tokio::spawn(future).await.unwrap() })
}

/// How long `times` evaluations take, one after another.
fn evaluations(runtime: &Runtime, sample: &'static Sample, evaluator: &Evaluator, times: u64) -> Duration {
    let evaluator = evaluator.clone();
    on_worker(runtime, async move {
        let started = Instant::now();
        for _ in 0..times {
            sample.evaluate(&evaluator).await;
        }
        started.elapsed()
    })
}

/// How long `times` calls of the engine take, one after another: each of an instance of its own, or all of one.
fn engine_calls(
    runtime: &Runtime,
    sample: &'static Sample,
    compiled: &Arc<dyn CompiledPlugin>,
    isolation: Isolation,
    times: u64,
) -> Duration {
    let compiled = compiled.clone();
    on_worker(runtime, async move {
        let mut kept = compiled.instantiate(Permit::new(())).await.unwrap();
        let started = Instant::now();
        for _ in 0..times {
            if isolation == Isolation::Fresh {
                kept = compiled.instantiate(Permit::new(())).await.unwrap();
            }
            let deadline = tokio::time::Instant::now() + limits().exec_timeout;
            let input = Bytes::from_static(sample.input);
            let request = CallRequest { entry_point: sample.entry_point, input, context: None, deadline };
            let _ = black_box(kept.call(request).await.unwrap());
        }
        started.elapsed()
    })
}

/// An instance that is there already: what a call costs. `extism` is the call on the caller's own thread, where nothing
/// could stop it; `extism_spawn_blocking` is the least that lets a caller go on.
fn warm(c: &mut Criterion) {
    let runtime = runtime();
    let mut group = c.benchmark_group("warm");
    for sample in &SAMPLES {
        let pool = pool(Isolation::Reuse);
        let evaluator = pool.evaluator(sample.name, sample.spec()).unwrap();
        on_worker(&runtime, {
            let evaluator = evaluator.clone();
            async move { sample.evaluate(&evaluator).await }
        });
        group.bench_function(format!("{}/evalpool", sample.name), |b| {
            b.iter_custom(|times| evaluations(&runtime, sample, &evaluator, times));
        });

        let direct = direct_without_pool(&runtime, sample.wasm());
        group.bench_function(format!("{}/engine", sample.name), |b| {
            b.iter_custom(|times| engine_calls(&runtime, sample, &direct, Isolation::Reuse, times));
        });

        let compiled = sample.compile();
        let mut plugin = Plugin::new_from_compiled(&compiled).unwrap();
        group.bench_function(format!("{}/extism", sample.name), |b| b.iter(|| sample.call(&mut plugin)));

        let lent = Arc::new(Mutex::new(Some(plugin)));
        group.bench_function(format!("{}/extism_spawn_blocking", sample.name), |b| {
            b.iter_custom(|times| {
                let lent = lent.clone();
                on_worker(&runtime, async move {
                    let mut plugin = lent.lock().unwrap().take().unwrap();
                    let started = Instant::now();
                    for _ in 0..times {
                        plugin = spawn_blocking(move || {
                            sample.call(&mut plugin);
                            plugin
                        })
                        .await
                        .unwrap();
                    }
                    let took = started.elapsed();
                    *lent.lock().unwrap() = Some(plugin);
                    took
                })
            });
        });
        runtime.block_on(pool.close());
    }
    group.finish();
}

/// An instance for every call. The caller asks again at once, so its own calls make the instances.
fn fresh(c: &mut Criterion) {
    let runtime = runtime();
    let mut group = c.benchmark_group("fresh");
    for sample in &SAMPLES {
        let pool = pool(Isolation::Fresh);
        let evaluator = pool.evaluator(sample.name, sample.spec()).unwrap();
        on_worker(&runtime, {
            let evaluator = evaluator.clone();
            async move { sample.evaluate(&evaluator).await }
        });
        group.bench_function(format!("{}/evalpool", sample.name), |b| {
            b.iter_custom(|times| evaluations(&runtime, sample, &evaluator, times));
        });

        let direct = direct_without_pool(&runtime, sample.wasm());
        group.bench_function(format!("{}/engine", sample.name), |b| {
            b.iter_custom(|times| engine_calls(&runtime, sample, &direct, Isolation::Fresh, times));
        });

        let compiled = Arc::new(sample.compile());
        group.bench_function(format!("{}/extism", sample.name), |b| {
            b.iter(|| sample.call(&mut Plugin::new_from_compiled(&compiled).unwrap()));
        });

        group.bench_function(format!("{}/extism_spawn_blocking", sample.name), |b| {
            b.iter_custom(|times| {
                let compiled = compiled.clone();
                on_worker(&runtime, async move {
                    let started = Instant::now();
                    for _ in 0..times {
                        let compiled = compiled.clone();
                        let call = move || sample.call(&mut Plugin::new_from_compiled(&compiled).unwrap());
                        spawn_blocking(call).await.unwrap();
                    }
                    started.elapsed()
                })
            });
        });
        runtime.block_on(pool.close());
    }
    group.finish();
}

/// Runtimes that are live while one of them is asked for.
const LIVE: usize = 256;

/// Lease, instance, timers, metrics and the way back, on an engine that takes no time; beside the least that any LRU
/// behind a lock costs. By one task, and by eight that fight for the lock.
fn registry_hit(c: &mut Criterion) {
    let runtime = runtime();
    let sample = &SAMPLES[0];
    let pool = EvaluatorPool::builder().capacity(LIVE).isolation(Isolation::Reuse).engine(Nothing).build().unwrap();
    let evaluators: Vec<_> =
        (0..LIVE).map(|number| pool.evaluator(&format!("e{number}"), sample.spec()).unwrap()).collect();
    let evaluators: Arc<[Evaluator]> = evaluators.into();
    on_worker(&runtime, {
        let evaluators = evaluators.clone();
        async move {
            for evaluator in &*evaluators {
                sample.evaluate(evaluator).await;
            }
        }
    });
    let mut cache = LruCache::new(NonZeroUsize::new(LIVE).unwrap());
    for number in 0..LIVE {
        cache.put(number, Arc::new(number));
    }
    let cache = Arc::new(Mutex::new(cache));

    let mut group = c.benchmark_group("registry_hit");
    for tasks in [1, 8] {
        group.bench_function(format!("{tasks}_tasks/evalpool"), |b| {
            b.iter_custom(|times| {
                let evaluators = evaluators.clone();
                shared_out(&runtime, tasks, times, move |task, step| {
                    let evaluator = evaluators[spread(task, step)].clone();
                    async move { sample.evaluate(&evaluator).await }
                })
            });
        });
        group.bench_function(format!("{tasks}_tasks/mutex_lru"), |b| {
            b.iter_custom(|times| {
                let cache = cache.clone();
                shared_out(&runtime, tasks, times, move |task, step| {
                    black_box(cache.lock().unwrap().get(&spread(task, step)).cloned());
                    ready(())
                })
            });
        });
    }
    group.finish();
    runtime.block_on(pool.close());
}

/// Which of the live runtimes a task asks for: all in turn, each task from another one on.
fn spread(task: usize, step: u64) -> usize {
    (task * 31 + usize::try_from(step % LIVE as u64).unwrap()) % LIVE
}

/// How long `tasks` tasks take to do something `times` times in all.
fn shared_out<F: Future<Output = ()> + Send>(
    runtime: &Runtime,
    tasks: usize,
    times: u64,
    operation: impl Fn(usize, u64) -> F + Clone + Send + 'static,
) -> Duration {
    let each = times.div_ceil(tasks as u64);
    runtime.block_on(async {
        let started = Instant::now();
        let running: Vec<_> = (0..tasks)
            .map(|task| {
                let operation = operation.clone();
                tokio::spawn(async move {
                    for step in 0..each {
                        operation(task, step).await;
                    }
                })
            })
            .collect();
        for task in running {
            task.await.unwrap();
        }
        started.elapsed()
    })
}

/// From bytes to the first instance. `evalpool_cold` has a new pool for every build, and with it an empty cache of compiled
/// code and a compile worker that has to start; `evalpool_again` is what a call after an eviction pays, with what the cache
/// still has.
fn build(c: &mut Criterion) {
    let runtime = runtime();
    let mut group = c.benchmark_group("build");
    group.sample_size(20);
    for sample in &SAMPLES {
        group.bench_function(format!("{}/evalpool_cold", sample.name), |b| {
            b.iter_custom(|times| {
                on_worker(&runtime, async move {
                    let mut took = Duration::ZERO;
                    for _ in 0..times {
                        let pool = pool(Isolation::Reuse);
                        let evaluator = pool.evaluator(sample.name, sample.spec()).unwrap();
                        took += time_build(&evaluator).await;
                        pool.close().await;
                    }
                    took
                })
            });
        });
        let pool = pool(Isolation::Reuse);
        let evaluator = pool.evaluator(sample.name, sample.spec()).unwrap();
        group.bench_function(format!("{}/evalpool_again", sample.name), |b| {
            b.iter_custom(|times| {
                let evaluator = evaluator.clone();
                on_worker(&runtime, async move {
                    let mut took = Duration::ZERO;
                    for _ in 0..times {
                        took += time_build(&evaluator).await;
                    }
                    took
                })
            });
        });
        runtime.block_on(pool.close());
        group.bench_function(format!("{}/extism", sample.name), |b| {
            b.iter(|| Plugin::new_from_compiled(&sample.compile()).unwrap());
        });
    }
    group.finish();
}

/// How long the build of a cold evaluator takes; leaves it cold.
async fn time_build(evaluator: &Evaluator) -> Duration {
    let started = Instant::now();
    let executable = evaluator.executable().await.unwrap();
    let took = started.elapsed();
    executable.close().await;
    took
}

criterion_group!(benches, warm, fresh, registry_hit, build);

// Not `criterion_main!`: in the processes that compile, this must come first.
fn main() {
    evalpool::init_compile_workers();
    benches();
    Criterion::default().configure_from_args().final_summary();
}
