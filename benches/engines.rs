//! The two engines side by side, through the whole pool: a table of what was measured and what is wanted. Percentiles and ratios, which is why it is not one of criterion's.
//!
//! ```text
//! cargo bench --bench engines            # all
//! cargo bench --bench engines -- warm    # one of them
//! ```

use std::{
    future::Future,
    hint::black_box,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use evalpool::{
    Digest, Evaluator, EvaluatorPool, Isolation, Source, Spec,
    config::{EngineKind, LimitSettings, Settings},
    engine::{CompileRequest, Engine, InstanceLimits, Permit, direct::DirectEngine},
};
use tokio::{runtime::Runtime, task::JoinHandle};

// The hostile plugins of the tests.
#[allow(dead_code, reason = "what must come of each, the tests look at")]
#[path = "../tests/integration/hostile/gallery/mod.rs"]
mod gallery;

const TOTALS: (&str, &str, &[u8]) =
    ("tests/plugins/rust/totals.wasm", "transform", br#"{"items":[{"price":2.5,"qty":4},{"price":1.25,"qty":8}]}"#);

/// Callers at once, where there are many.
const TASKS: usize = 64;

fn runtime(workers: usize) -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap()
}

fn pool(engine: EngineKind, isolation: Isolation, change: impl FnOnce(&mut Settings)) -> EvaluatorPool {
    let mut settings = Settings::default();
    settings.engine.kind = engine;
    settings.engine.isolation = isolation;
    settings.pool.max_instances_per_evaluator = TASKS;
    change(&mut settings);
    EvaluatorPool::from_settings(&settings).unwrap()
}

fn totals() -> Spec {
    let (file, entry_point, _) = TOTALS;
    let wasm = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    Spec::new(Source::bytes(wasm)).with_entry_point(entry_point)
}

fn text(text: &str) -> Spec {
    Spec::new(Source::bytes(wat::parse_str(text).unwrap()))
}

/// Does as good as nothing.
fn trivial() -> Spec {
    text(r#"(module (func (export "run") (result i32) i32.const 0))"#)
}

/// Evaluations a second, by `tasks` callers.
fn per_second(runtime: &Runtime, evaluator: &Evaluator, input: &'static [u8], tasks: usize, length: Duration) -> f64 {
    runtime.block_on(async {
        evaluator.evaluate(Bytes::from_static(input)).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let running: Vec<_> = (0..tasks)
            .map(|_| {
                let (evaluator, stop) = (evaluator.clone(), stop.clone());
                tokio::spawn(async move {
                    let mut done = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        let _ = black_box(evaluator.evaluate(Bytes::from_static(input)).await.unwrap());
                        done += 1;
                        // Callers come from a network; none keeps its thread for ever.
                        tokio::task::consume_budget().await;
                    }
                    done
                })
            })
            .collect();
        counted(running, &stop, length).await
    })
}

/// What tasks that count what they do until told to stop did in a second, all together.
async fn counted(running: Vec<JoinHandle<u64>>, stop: &AtomicBool, length: Duration) -> f64 {
    let started = Instant::now();
    tokio::time::sleep(length).await;
    stop.store(true, Ordering::Relaxed);
    let mut done = 0;
    for task in running {
        done += task.await.unwrap();
    }
    done as f64 / started.elapsed().as_secs_f64()
}

/// How long each of many calls took, sorted.
async fn latencies<F: Future<Output = ()>>(length: Duration, mut call: impl FnMut() -> F) -> Vec<Duration> {
    for _ in 0..20 {
        call().await;
    }
    let mut took = Vec::new();
    let started = Instant::now();
    while started.elapsed() < length {
        let began = Instant::now();
        call().await;
        took.push(began.elapsed());
    }
    took.sort();
    took
}

/// In thousandths.
fn quantile(sorted: &[Duration], thousandths: usize) -> Duration {
    sorted[(sorted.len() - 1) * thousandths / 1000]
}

fn line(what: &str, given: &str, wanted: &str) {
    println!("{what:<64} {given:<44} {wanted}");
}

/// Turn and turn about, so that a machine that slows down slows both; the median of three.
fn compare(mut measure: impl FnMut(EngineKind) -> f64) -> (f64, f64) {
    let (mut extism, mut direct) = ([0.0; 3], [0.0; 3]);
    for round in 0..3 {
        extism[round] = measure(EngineKind::Extism);
        direct[round] = measure(EngineKind::Direct);
    }
    extism.sort_by(f64::total_cmp);
    direct.sort_by(f64::total_cmp);
    (extism[1], direct[1])
}

fn fresh_many(length: Duration) {
    let runtime = runtime(2);
    let (extism, direct) = compare(|engine| {
        let pool = pool(engine, Isolation::Fresh, |_| {});
        let evaluator = pool.evaluator("totals", totals()).unwrap();
        let rate = per_second(&runtime, &evaluator, TOTALS.2, TASKS, length);
        runtime.block_on(pool.close());
        rate
    });
    let given = format!("{extism:.0} and {direct:.0} a second, {:.1} x", direct / extism);
    line("fresh, Rust PDK, 64 tasks, 2 workers: extism and direct", &given, "at least 10 x");
}

fn fresh_one(length: Duration) {
    let runtime = runtime(2);
    let of = |engine| {
        let pool = pool(engine, Isolation::Fresh, |_| {});
        let evaluator = pool.evaluator("totals", totals()).unwrap();
        let took = on_worker(&runtime, async move {
            latencies(length, || async {
                let _ = black_box(evaluator.evaluate(Bytes::from_static(TOTALS.2)).await.unwrap());
            })
            .await
        });
        runtime.block_on(pool.close());
        took
    };
    let extism = of(EngineKind::Extism);
    let before = on_worker(&runtime, bare::latencies(length));
    let direct = of(EngineKind::Direct);
    let after = on_worker(&runtime, bare::latencies(length));
    let shown = |took: &[Duration]| format!("p50 {:.1?} p99 {:.1?}", quantile(took, 500), quantile(took, 990));
    line("fresh, Rust PDK, one task: extism", &shown(&extism), "");
    line("  bare wasmtime, before", &shown(&before), "");
    line("  direct", &shown(&direct), "p50 <= 25 us, p99 <= 3 x p50; or 1.3 x bare");
    line("  bare wasmtime, after", &shown(&after), "");
}

fn on_worker<T: Send + 'static>(runtime: &Runtime, future: impl Future<Output = T> + Send + 'static) -> T {
    runtime.block_on(async { tokio::spawn(future).await.unwrap() })
}

/// One and two workers, in short rounds that take turns. Beside the pool: the engine without it, and arithmetic that
/// touches no memory, which is what two workers of this machine are worth at that moment. A machine whose second processor
/// comes and goes says nothing about the pool while it is away: so there is a rest after each round, and the figures are
/// medians of those rounds in which one thread did its best and two did at least 1.8 times as much, before and after; of
/// all rounds where there were none such.
fn warm(length: Duration) {
    const ROUNDS: usize = 40;
    let each = length / 75;
    let workers = [runtime(1), runtime(2)];
    let warm = |engine| {
        let pool = pool(engine, Isolation::Reuse, |_| {});
        let evaluator = pool.evaluator("trivial", trivial()).unwrap();
        (pool, evaluator)
    };
    let (extism, direct) = (warm(EngineKind::Extism), warm(EngineKind::Direct));
    let alone = engine_alone(&workers[0]);
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push([
            arithmetic(2, each),
            per_second(&workers[1], &direct.1, b"", 8, each),
            per_second(&workers[0], &direct.1, b"", 8, each),
            alone(&workers[1], each),
            alone(&workers[0], each),
            arithmetic(1, each),
            arithmetic(2, each),
            per_second(&workers[1], &extism.1, b"", 8, each),
        ]);
        std::thread::sleep(10 * each);
    }
    let best = rounds.iter().map(|round: &[f64; 8]| round[5]).fold(0.0, f64::max);
    let had_both = |round: &&[f64; 8]| round[5] >= 0.9 * best && round[0].min(round[6]) >= 1.8 * best;
    let whole: Vec<_> = rounds.iter().filter(had_both).copied().collect();
    let told = format!("{} of {ROUNDS} rounds had two processors", whole.len());
    let rounds = if whole.is_empty() { rounds } else { whole };
    for (pool, _) in [&extism, &direct] {
        workers[0].block_on(pool.close());
    }
    let median = |of: &dyn Fn(&[f64; 8]) -> f64| {
        let mut rates: Vec<f64> = rounds.iter().map(of).collect();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let [two, one, alone_two, alone_one, extism] = [1, 2, 3, 4, 7].map(|at| median(&|round| round[at]));
    let given = format!("{extism:.0} and {two:.0} a second, {:.1} x", two / extism);
    line("warm, trivial, 2 workers: extism and direct", &given, "at least 5 x");
    let scales = |one: f64, two: f64, times: f64| format!("{one:.0} and {two:.0} a second, {times:.2} x");
    let times = median(&|round| round[1] / round[2]);
    line("warm, trivial, direct: 1 and 2 workers", &scales(one, two, times), "at least 1.6 x");
    let times = median(&|round| round[3] / round[4]);
    line("  direct without the pool: 1 and 2 workers", &scales(alone_one, alone_two, times), "");
    let times = median(&|round| round[0].min(round[6]) / round[5]);
    line("  arithmetic: 1 and 2 threads", &format!("{times:.2} x; {told}"), "");
}

/// Rounds of arithmetic a second, by so many threads.
fn arithmetic(threads: usize, length: Duration) -> f64 {
    let work = move || {
        let (mut sums, mut rounds, started) = ([1_u64; 8], 0_u64, Instant::now());
        while started.elapsed() < length {
            for step in 0..10_000 {
                sums = sums.map(|sum| sum.wrapping_add(step) ^ (sum << 1));
            }
            black_box(&mut sums);
            rounds += 1;
        }
        rounds as f64 / started.elapsed().as_secs_f64()
    };
    let running: Vec<_> = (0..threads).map(|_| std::thread::spawn(work)).collect();
    running.into_iter().map(|thread| thread.join().unwrap()).sum()
}

/// What measures warm calls a second of eight instances that nothing counts.
fn engine_alone(runtime: &Runtime) -> impl Fn(&Runtime, Duration) -> f64 {
    let settings = Settings::default();
    let engine = DirectEngine::new(&settings.pool, &settings.limits, &settings.engine).unwrap();
    let wasm = wat::parse_str(r#"(module (func (export "run") (result i32) i32.const 0))"#).unwrap();
    let limits = InstanceLimits {
        memory: settings.limits.memory,
        table_elements: settings.limits.table_elements,
        output_size: settings.limits.output_size,
        exec_timeout: settings.limits.exec_timeout,
        build_timeout: settings.limits.build_timeout,
        fuel: None,
    };
    let request = CompileRequest {
        digest: Digest::of(&wasm),
        wasm: wasm.into(),
        linked: Arc::new([]),
        wasi: false,
        trusted: false,
        config: Arc::default(),
        allowed_hosts: Arc::new([]),
        host_functions: Arc::new([]),
        limits,
        permit: Permit::new(()),
    };
    let compiled = runtime.block_on(engine.compile(request)).unwrap();
    move |runtime, length| {
        runtime.block_on(async {
            let stop = Arc::new(AtomicBool::new(false));
            let mut running = Vec::new();
            for _ in 0..8 {
                let mut instance = compiled.instantiate(Permit::new(())).await.unwrap();
                let stop = stop.clone();
                running.push(tokio::spawn(async move {
                    let mut done = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        let deadline = tokio::time::Instant::now() + limits.exec_timeout;
                        let _ = black_box(instance.call("run", Bytes::new(), deadline).await.unwrap());
                        done += 1;
                        tokio::task::consume_budget().await;
                    }
                    done
                }));
            }
            counted(running, &stop, length).await
        })
    }
}

/// About 10 microseconds of arithmetic.
fn short() -> Spec {
    text(
        r#"(module (func (export "run") (result i32) (local $i i32)
            (loop $again (br_if $again (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 10000))))
            i32.const 0))"#,
    )
}

/// How long calls take that are made every millisecond, sorted.
fn every_millisecond(runtime: &Runtime, evaluator: &Evaluator, length: Duration) -> Vec<Duration> {
    let evaluator = evaluator.clone();
    on_worker(runtime, async move {
        let (mut took, started) = (Vec::new(), Instant::now());
        while started.elapsed() < length {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let began = Instant::now();
            evaluator.evaluate("").await.unwrap();
            took.push(began.elapsed());
        }
        took.sort();
        took
    })
}

fn neighbour(length: Duration) {
    for engine in [EngineKind::Extism, EngineKind::Direct] {
        let runtime = runtime(2);
        let pool = pool(engine, Isolation::Fresh, |settings| {
            settings.limits = LimitSettings { exec_timeout: Duration::from_secs(1), ..LimitSettings::default() };
        });
        let neighbour = pool.evaluator("short", short()).unwrap();
        let alone = every_millisecond(&runtime, &neighbour, length);
        let stop = Arc::new(AtomicBool::new(false));
        let endless: Vec<_> = (0..TASKS)
            .map(|number| {
                let endless =
                    text(&format!(r#"(module (global i32 (i32.const {number})) (func (export "run") (loop br 0)))"#));
                let (evaluator, stop) = (pool.evaluator("endless", endless).unwrap(), stop.clone());
                runtime.spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let _ = evaluator.evaluate("").await;
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(1));
        let beside = every_millisecond(&runtime, &neighbour, length);
        stop.store(true, Ordering::Relaxed);
        runtime.block_on(async {
            pool.close_with(Duration::ZERO).await;
            for task in endless {
                task.await.unwrap();
            }
        });
        let given = format!("p99 {:.2?} alone, {:.2?} beside", quantile(&alone, 990), quantile(&beside, 990));
        let wanted = if engine == EngineKind::Direct { "at most 3 ticks, 3 ms" } else { "" };
        line(&format!("10 us beside 64 endless guests, 2 workers: {}", engine.as_str()), &given, wanted);
    }
}

/// Callers that go through the gallery of hostile plugins, each of which is built, called and closed; and beside them,
/// on the same workers, a neighbour.
fn beside_the_gallery(length: Duration) {
    const CALLERS: usize = 3;
    let hostile = gallery::all();
    let hostile = Arc::new(hostile);
    for engine in [EngineKind::Extism, EngineKind::Direct] {
        let runtime = runtime(2);
        // The sizes that the gallery is written for. Times are short, so that most of it is work.
        let pool = pool(engine, Isolation::Fresh, |settings| {
            settings.pool.capacity = 8;
            settings.pool.max_instances = 16;
            settings.pool.negative_ttl = Duration::ZERO;
            settings.limits.exec_timeout = Duration::from_millis(100);
            settings.limits.build_timeout = Duration::from_millis(500);
            settings.limits.output_size = 1 << 20;
            settings.limits.memory = 8 << 20;
            settings.limits.table_elements = 10_000;
        });
        let neighbour = pool.evaluator("short", short().with_exec_timeout(Duration::from_mins(1))).unwrap();
        let alone = every_millisecond(&runtime, &neighbour, length);
        let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let (pool, hostile, stop, next) = (pool.clone(), hostile.clone(), stop.clone(), next.clone());
                runtime.spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let one = &hostile[next.fetch_add(1, Ordering::Relaxed) % hostile.len()];
                        let evaluator = pool.evaluator("hostile", Spec::new(Source::bytes(one.bytes.clone()))).unwrap();
                        for _ in 0..2 {
                            let _ = evaluator.evaluate("x").await;
                        }
                        evaluator.close().await;
                    }
                })
            })
            .collect();
        // Long enough for all of it.
        let beside = every_millisecond(&runtime, &neighbour, length * 8);
        stop.store(true, Ordering::Relaxed);
        runtime.block_on(async {
            for caller in callers {
                caller.await.unwrap();
            }
            pool.close().await;
        });
        let (alone, beside) = (quantile(&alone, 990), quantile(&beside, 990));
        let times = beside.as_secs_f64() / alone.as_secs_f64();
        let given = format!("p99 {alone:.2?} alone, {beside:.2?} beside, {times:.1} x");
        let wanted = if engine == EngineKind::Direct { "at most 3 x" } else { "" };
        let rounds = next.load(Ordering::Relaxed) as f64 / hostile.len() as f64;
        line(&format!("10 us beside {rounds:.1} rounds of the gallery: {}", engine.as_str()), &given, wanted);
    }
}

fn back(length: Duration) {
    // 1.8 MB of code that no toolchain made: thousands of functions.
    let functions: Vec<String> = (0..7300)
        .map(|number| {
            let step =
                format!("(local.set 0 (i32.add (i32.mul (local.get 0) (i32.const {number})) (i32.const 100003)))");
            format!("(func $f{number} (param i32) (result i32) {} (local.get 0))", step.repeat(16))
        })
        .collect();
    let wasm = wat::parse_str(format!(
        r#"(module {} (memory (export "memory") 2) (func (export "run") (result i32) (drop (call $f1 (i32.const 0))) i32.const 0))"#,
        functions.join("\n")
    ))
    .unwrap();
    let size = wasm.len() as f64 / 1e6;
    for engine in [EngineKind::Extism, EngineKind::Direct] {
        let runtime = runtime(2);
        let pool = pool(engine, Isolation::Fresh, |settings| settings.pool.capacity = 1);
        let large = pool.evaluator("large", Spec::new(Source::bytes(wasm.clone()))).unwrap();
        let other = pool.evaluator("other", trivial()).unwrap();
        let took = on_worker(&runtime, async move {
            large.evaluate("").await.unwrap();
            let (mut took, started) = (Vec::new(), Instant::now());
            while took.is_empty() || started.elapsed() < length {
                other.evaluate("").await.unwrap();
                let began = Instant::now();
                large.evaluate("").await.unwrap();
                took.push(began.elapsed());
            }
            took.sort();
            took
        });
        runtime.block_on(pool.close());
        let wanted = if engine == EngineKind::Direct { "at most 5 ms" } else { "" };
        let given = format!("p50 {:.2?} p99 {:.2?}", quantile(&took, 500), quantile(&took, 990));
        line(&format!("return of an evicted plugin of {size:.1} MB: {}", engine.as_str()), &given, wanted);
    }
}

/// The least that wasmtime takes for the same work: one engine with slots, and for each evaluation a store, a kernel of
/// its own, the plugin's instance, and a call. No limits, deadlines, permits or metrics.
mod bare {
    use std::time::Duration;

    use wasmtime::{
        Caller, Config, Enabled, Engine, Extern, Instance, InstanceAllocationStrategy, Linker, Memory, Module,
        PoolingAllocationConfig, Store,
    };

    use super::TOTALS;

    struct Guest {
        memory: Option<Memory>,
        next: u64,
    }

    pub(super) async fn latencies(length: Duration) -> Vec<Duration> {
        let mut slots = PoolingAllocationConfig::new();
        slots
            .max_memory_size(64 << 20)
            .table_elements(100_000)
            .linear_memory_keep_resident(64 << 10)
            .pagemap_scan(Enabled::Auto);
        let mut config = Config::new();
        config
            .allocation_strategy(InstanceAllocationStrategy::Pooling(slots))
            .memory_reservation(64 << 20)
            .epoch_interruption(true);
        let engine = Engine::new(&config).unwrap();
        let kernel = include_str!("../src/engine/direct/kernel/kernel.wat");
        let kernel = Module::new(&engine, wat::parse_str(kernel).unwrap()).unwrap();
        let plugin = Module::new(&engine, std::fs::read(TOTALS.0).unwrap()).unwrap();
        let mut linker: Linker<Guest> = Linker::new(&engine);
        let environment = "extism:host/env";
        let alloc = |mut caller: Caller<'_, Guest>, length: u64| {
            let at = caller.data().next;
            caller.data_mut().next += length;
            at
        };
        linker.func_wrap(environment, "alloc", alloc).unwrap();
        linker.func_wrap(environment, "free", |_: u64| {}).unwrap();
        linker.func_wrap(environment, "length", |_: u64| 0_u64).unwrap();
        linker.define_unknown_imports_as_traps(&plugin).unwrap();
        let imports: Vec<_> = plugin
            .imports()
            .map(|import| {
                (kernel.get_export_index(import.name()), import.name().to_owned(), import.module().to_owned())
            })
            .collect();
        let once = || async {
            let mut store = Store::new(&engine, Guest { memory: None, next: 1024 });
            store.epoch_deadline_async_yield_and_update(1);
            store.set_epoch_deadline(1);
            let kernel = Instance::new_async(&mut store, &kernel, &[]).await.unwrap();
            let memory = kernel.get_memory(&mut store, "memory").unwrap();
            store.data_mut().memory = Some(memory);
            memory.write(&mut store, 128, TOTALS.2).unwrap();
            for (word, value) in [(8, 128), (16, TOTALS.2.len() as u64)] {
                memory.write(&mut store, word, &value.to_le_bytes()).unwrap();
            }
            let mut externs: Vec<Extern> = Vec::with_capacity(imports.len());
            for (export, name, module) in &imports {
                externs.push(match export {
                    Some(export) => kernel.get_module_export(&mut store, export).unwrap(),
                    None => linker.get(&mut store, module, name).unwrap(),
                });
            }
            let instance = Instance::new_async(&mut store, &plugin, &externs).await.unwrap();
            let run = instance.get_typed_func::<(), i32>(&mut store, TOTALS.1).unwrap();
            assert_eq!(run.call_async(&mut store, ()).await.unwrap(), 0);
            let word = |at: usize| {
                usize::try_from(u64::from_le_bytes(*memory.data(&store)[at..].first_chunk().unwrap())).unwrap()
            };
            let range = word(24)..word(24) + word(32);
            let _ = std::hint::black_box(memory.data(&store)[range].to_vec());
        };
        super::latencies(length, once).await
    }
}

type Measure = fn(Duration);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let short = arguments.iter().any(|argument| argument == "--test");
    let length = Duration::from_millis(if short { 50 } else { 3000 });
    let wanted = |name: &str| {
        let mut names = arguments.iter().filter(|argument| !argument.starts_with("--")).peekable();
        names.peek().is_none() || names.any(|wanted| name.contains(wanted.as_str()))
    };
    let all: [(&str, Measure); 6] = [
        ("fresh_many", fresh_many),
        ("fresh_one", fresh_one),
        ("warm", warm),
        ("neighbour", neighbour),
        ("gallery", beside_the_gallery),
        ("back", back),
    ];
    for (name, measure) in all {
        if wanted(name) {
            measure(length);
        }
    }
}
