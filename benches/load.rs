//! Many evaluators from many tasks, through a pool that has room for few of them, beside one that has room for all:
//! what eviction costs, and that a pool under constant eviction still answers everybody.
//!
//! ```text
//! cargo bench --bench load
//! ```

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, SamplingMode, Throughput, criterion_group};
use evalpool::{Evaluator, EvaluatorPool, Isolation, Source, Spec};
use tokio::runtime::Runtime;

/// Evaluators that are called.
const EVALUATORS: usize = 64;

/// Callers at once.
const TASKS: usize = 32;

/// Evaluations of each caller in one round.
const CALLS: usize = 8;

/// Real plugins from four toolchains, with an entry point and an input; evaluators take them in turn.
const PLUGINS: [(&str, &str, &[u8]); 4] = [
    ("src/service/greet/greet.wasm", "greet", br#"{"name":"Ada"}"#),
    ("tests/plugins/c/text.wasm", "count_vowels", b"a pool of plugins"),
    ("tests/plugins/assemblyscript/words.wasm", "word_count", b"a pool of plugins"),
    ("tests/plugins/rust/totals.wasm", "transform", br#"{"items":[{"price":2.5,"qty":4}]}"#),
];

/// A pool and its evaluators, each with its input.
struct Setup {
    pool: EvaluatorPool,
    evaluators: Arc<[(Evaluator, Bytes)]>,
}

impl Setup {
    fn new(capacity: usize, isolation: Isolation) -> Self {
        let pool = EvaluatorPool::builder().capacity(capacity).isolation(isolation).build().unwrap();
        let evaluators = (0..EVALUATORS).map(|number| {
            let (file, entry_point, input) = PLUGINS[number % PLUGINS.len()];
            let wasm = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
            let spec = Spec::new(Source::bytes(wasm)).entry_point(entry_point);
            (pool.evaluator(&format!("e{number}"), spec).unwrap(), Bytes::from_static(input))
        });
        let evaluators = evaluators.collect();
        Self { pool, evaluators }
    }

    /// One round: every task calls evaluators of its own order, one after another.
    async fn round(&self, round: usize) {
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let evaluators = self.evaluators.clone();
                tokio::spawn(async move {
                    for call in 0..CALLS {
                        let (evaluator, input) = &evaluators[order(round, task, call)];
                        let _ = evaluator.evaluate(input.clone()).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }
}

/// Which evaluator is called when. Scattered, the same in every run, and all are called about equally often.
fn order(round: usize, task: usize, call: usize) -> usize {
    (((round * TASKS + task) * CALLS + call) * 37 + task * 11) % EVALUATORS
}

fn rounds(runtime: &Runtime, setup: &Setup, times: u64) -> Duration {
    runtime.block_on(async {
        let started = Instant::now();
        for round in 0..usize::try_from(times).unwrap() {
            setup.round(round).await;
        }
        started.elapsed()
    })
}

fn load(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut group = c.benchmark_group("load");
    group.throughput(Throughput::Elements((TASKS * CALLS) as u64));
    group.sample_size(10).sampling_mode(SamplingMode::Flat).measurement_time(Duration::from_secs(10));
    for isolation in [Isolation::Fresh, Isolation::Reuse] {
        for (name, capacity) in [("always_evicts", 8), ("never_evicts", EVALUATORS)] {
            let setup = Setup::new(capacity, isolation);
            // Not for its time: so that every evaluator has been built once, and fails here if it fails at all.
            runtime.block_on(setup.round(0));
            let id = format!("{isolation:?}/{name}_{capacity}").to_lowercase();
            group.bench_function(id, |b| b.iter_custom(|times| rounds(&runtime, &setup, times)));
            runtime.block_on(setup.pool.close());
        }
    }
    group.finish();
}

criterion_group!(benches, load);

// Not `criterion_main!`: in the processes that compile, this must come first.
fn main() {
    evalpool::init_compile_workers();
    benches();
    Criterion::default().configure_from_args().final_summary();
}
