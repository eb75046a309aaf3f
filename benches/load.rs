//! The same load through this crate, and through what one writes without it: a map of Extism's own pools, and a `moka`
//! cache of compiled plugins. 64 evaluators, each with bytes of its own, are called by Zipf's law from 32 tasks, after each
//! was called once.
//!
//! ```text
//! cargo bench --bench load                # half a minute or more
//! cargo bench --bench load -- --short     # half of that
//! cargo bench --bench load -- --check     # exits with 1 when an evaluation fails, or evalpool breaks its bound
//! cargo bench --bench load -- --test      # for a moment, and nothing is judged
//! ```
//!
//! | contender | what it is |
//! |---|---|
//! | `evalpool` | this crate, with room for 16 runtimes |
//! | `map of pools` | `Mutex<HashMap<_, extism::Pool>>`: nothing is ever closed |
//! | `moka` | `moka::sync::Cache<_, compiled plugin>`, with room for 16, which compiles each once however many ask |
//!
//! All have the same limits, use instances again as long as no call has failed on them, and keep compiled code in a folder.
//! The others' instances share the compiled plugin that they come from: that is fast, and one call's timeout ends the calls
//! beside it. Each contender is a process of its own. Its memory is what that process and its compile workers held at
//! most, and so counts what the allocator keeps of what was freed.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use evalpool::{
    Evaluator, EvaluatorPool, Isolation, PoolBuilder, Settings, Source, Spec,
    config::{CodeCache, LimitSettings},
};
use extism::{CompiledPlugin, Manifest, Plugin, PluginBuilder, Pool, Wasm};
use hdrhistogram::Histogram;
use moka::sync::Cache;
use rand::{SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, Zipf};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, task::spawn_blocking};

const CAPACITY: usize = 16;
const TASKS: u64 = 32;

const CONTENDERS: [&str; 3] = ["evalpool", "map of pools", "moka"];

/// Real plugins from four toolchains, with an entry point and an input; evaluators take them in turn.
const PLUGINS: [(&str, &str, &[u8]); 4] = [
    ("src/service/greet/greet.wasm", "greet", br#"{"name":"Ada"}"#),
    ("tests/plugins/c/text.wasm", "count_vowels", b"a pool of plugins"),
    ("tests/plugins/assemblyscript/words.wasm", "word_count", b"a pool of plugins"),
    ("tests/plugins/rust/totals.wasm", "transform", br#"{"items":[{"price":2.5,"qty":4}]}"#),
];

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What an evaluator runs.
#[derive(Clone)]
struct Sample {
    wasm: Vec<u8>,
    entry_point: &'static str,
    input: &'static [u8],
}

impl Sample {
    /// One for each evaluator: a custom section behind the plugin makes its bytes others.
    fn all(evaluators: usize) -> Vec<Self> {
        let read = |number: usize| {
            let (file, entry_point, input) = PLUGINS[number % PLUGINS.len()];
            let mut wasm = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
            wasm.extend([0, 5, 4]);
            wasm.extend(format!("{number:04}").bytes());
            Self { wasm, entry_point, input }
        };
        (0..evaluators).map(read).collect()
    }
}

/// What runs the evaluators.
trait Contender: Send + Sync + 'static {
    fn evaluate(self: &Arc<Self>, number: usize) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Compiled plugins that exist now.
    fn live(&self) -> usize;
}

// ---- This crate ------------------------------------------------------------------------------------------------------

struct Evalpool {
    pool: EvaluatorPool,
    evaluators: Vec<(Evaluator, &'static [u8])>,
}

impl Evalpool {
    fn new(samples: Vec<Sample>, folder: &Path) -> Self {
        let mut settings = Settings::default();
        settings.pool.capacity = CAPACITY;
        settings.engine.isolation = Isolation::Reuse;
        settings.engine.code_cache = CodeCache::Folder(folder.join("code"));
        let pool = PoolBuilder::from(settings).build().unwrap();
        let evaluator = |(number, sample): (usize, Sample)| {
            let spec = Spec::new(Source::bytes(sample.wasm)).entry_point(sample.entry_point);
            (pool.evaluator(&format!("e{number}"), spec).unwrap(), sample.input)
        };
        let evaluators = samples.into_iter().enumerate().map(evaluator).collect();
        Self { pool, evaluators }
    }
}

impl Contender for Evalpool {
    async fn evaluate(self: &Arc<Self>, number: usize) -> Result<(), Failure> {
        let (evaluator, input) = &self.evaluators[number];
        evaluator.evaluate(*input).await?;
        Ok(())
    }

    fn live(&self) -> usize {
        self.pool.runtimes()
    }
}

// ---- Without it ------------------------------------------------------------------------------------------------------

/// With the limits that the pool sets, so that guests do the same work, and its code in a folder.
fn builder(wasm: Vec<u8>, cache: &Path) -> PluginBuilder<'static> {
    let limits = LimitSettings::default();
    let manifest = Manifest::new([Wasm::data(wasm)])
        .with_timeout(limits.exec_timeout)
        .with_memory_max(u32::try_from(limits.memory / 65_536).unwrap());
    PluginBuilder::new(manifest).with_cache_config(cache)
}

/// A compiled plugin, and how many of its kind there are.
struct Counted {
    plugin: CompiledPlugin,
    live: Arc<AtomicUsize>,
}

impl Counted {
    fn compile(sample: &Sample, cache: &Path, live: &Arc<AtomicUsize>) -> Result<Self, extism::Error> {
        let plugin = builder(sample.wasm.clone(), cache).compile()?;
        live.fetch_add(1, Ordering::Relaxed);
        Ok(Self { plugin, live: live.clone() })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What both of the others have.
struct Plugins {
    samples: Vec<Sample>,
    cache: PathBuf,
    live: Arc<AtomicUsize>,
}

impl Plugins {
    fn new(samples: Vec<Sample>, folder: &Path) -> Self {
        let cache = folder.join("cache.toml");
        fs::write(&cache, format!("[cache]\ndirectory = '{}'\n", folder.join("code").display())).unwrap();
        Self { samples, cache, live: Arc::default() }
    }

    fn compile(&self, number: usize) -> Result<Counted, extism::Error> {
        Counted::compile(&self.samples[number], &self.cache, &self.live)
    }
}

/// Each evaluator has a pool of Extism's once it was called.
struct MapOfPools {
    plugins: Plugins,
    pools: Mutex<HashMap<usize, Pool>>,
}

impl MapOfPools {
    fn call(&self, number: usize) -> Result<(), Failure> {
        let known = self.pools.lock().unwrap().get(&number).cloned();
        let pool = if let Some(pool) = known {
            pool
        } else {
            // Not under the lock; of two that compile the same, the second throws its own away.
            let compiled = self.plugins.compile(number)?;
            let pool = Pool::new(move || Plugin::new_from_compiled(&compiled.plugin));
            self.pools.lock().unwrap().entry(number).or_insert(pool).clone()
        };
        let sample = &self.plugins.samples[number];
        let mut plugin = pool.get(LimitSettings::default().wait_timeout)?.ok_or("no instance is free")?;
        plugin.call::<&[u8], Vec<u8>>(sample.entry_point, sample.input)?;
        Ok(())
    }
}

impl Contender for MapOfPools {
    async fn evaluate(self: &Arc<Self>, number: usize) -> Result<(), Failure> {
        let this = self.clone();
        spawn_blocking(move || this.call(number)).await?
    }

    fn live(&self) -> usize {
        self.plugins.live.load(Ordering::Relaxed)
    }
}

/// A compiled plugin in the cache, with instances that nobody uses now.
struct Cached {
    idle: Mutex<Vec<Plugin>>,
    compiled: Counted,
}

struct Moka {
    plugins: Plugins,
    cache: Cache<usize, Arc<Cached>>,
}

impl Moka {
    fn call(&self, number: usize) -> Result<(), Failure> {
        let compile =
            || self.plugins.compile(number).map(|compiled| Arc::new(Cached { idle: Mutex::default(), compiled }));
        let cached = self.cache.try_get_with(number, compile).map_err(|error| error.to_string())?;
        let idle = cached.idle.lock().unwrap().pop();
        let mut plugin = match idle {
            Some(plugin) => plugin,
            None => Plugin::new_from_compiled(&cached.compiled.plugin)?,
        };
        let sample = &self.plugins.samples[number];
        // One on which a call has failed is not used again.
        plugin.call::<&[u8], Vec<u8>>(sample.entry_point, sample.input)?;
        cached.idle.lock().unwrap().push(plugin);
        Ok(())
    }
}

impl Contender for Moka {
    async fn evaluate(self: &Arc<Self>, number: usize) -> Result<(), Failure> {
        let this = self.clone();
        spawn_blocking(move || this.call(number)).await?
    }

    fn live(&self) -> usize {
        self.plugins.live.load(Ordering::Relaxed)
    }
}

// ---- The load --------------------------------------------------------------------------------------------------------

/// Latencies, and the errors of what failed.
struct Came {
    latency: Histogram<u64>,
    errors: Vec<String>,
}

/// Has so many tasks evaluate what each of them chooses, and until it chooses nothing.
fn tasks<C: Contender, N: FnMut() -> Option<usize> + Send + 'static>(
    runtime: &Runtime,
    contender: &Arc<C>,
    live_max: &Arc<AtomicUsize>,
    choices: impl Iterator<Item = N>,
) -> Came {
    let running: Vec<_> = choices
        .map(|mut choose| {
            let (contender, live_max) = (contender.clone(), live_max.clone());
            runtime.spawn(async move {
                let mut came = Came { latency: histogram(), errors: Vec::new() };
                while let Some(number) = choose() {
                    let called = Instant::now();
                    match contender.evaluate(number).await {
                        Ok(()) => came.latency.saturating_record(u64::try_from(called.elapsed().as_nanos()).unwrap()),
                        Err(error) => came.errors.push(error.to_string()),
                    }
                    live_max.fetch_max(contender.live(), Ordering::Relaxed);
                    tokio::task::consume_budget().await;
                }
                came
            })
        })
        .collect();
    let mut all = Came { latency: histogram(), errors: Vec::new() };
    for task in running {
        let came = runtime.block_on(task).unwrap();
        all.latency.add(came.latency).unwrap();
        all.errors.extend(came.errors);
    }
    all
}

/// Calls each evaluator once, then many of them for so long, and says what came of it.
fn drive<C: Contender>(contender: C, evaluators: usize, length: Duration) -> Value {
    let (contender, live_max) = (Arc::new(contender), Arc::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();

    let (next, began) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let each = |_| {
        let next = next.clone();
        move || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|number| *number < evaluators)
    };
    let first = tasks(&runtime, &contender, &live_max, (0..TASKS).map(each));
    let first_took = began.elapsed();

    let (began, zipf) = (Instant::now(), Zipf::new(evaluators as f64, 1.0).unwrap());
    let chosen = |task| {
        let mut random = SmallRng::seed_from_u64(task);
        move || {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to their number")]
            let rank = zipf.sample(&mut random) as usize;
            (began.elapsed() < length).then_some(rank - 1)
        }
    };
    let then = tasks(&runtime, &contender, &live_max, (0..TASKS).map(chosen));
    let errors = [first.errors, then.errors].concat();
    json!({
        "first": first_took.as_secs_f64(),
        "per_second": then.latency.len() as f64 / began.elapsed().as_secs_f64(),
        "p50": then.latency.value_at_quantile(0.5) as f64 / 1e6,
        "p99": then.latency.value_at_quantile(0.99) as f64 / 1e6,
        "live_max": live_max.load(Ordering::Relaxed),
        "errors": errors.len(),
        "error": errors.first(),
    })
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000_000, 3).unwrap()
}

/// This process is one contender.
fn contend(name: &str, folder: &Path, evaluators: usize, length: Duration) -> Value {
    let samples = Sample::all(evaluators);
    let plugins = |samples| Plugins::new(samples, folder);
    match name {
        "evalpool" => drive(Evalpool::new(samples, folder), evaluators, length),
        "map of pools" => drive(MapOfPools { plugins: plugins(samples), pools: Mutex::default() }, evaluators, length),
        "moka" => drive(Moka { plugins: plugins(samples), cache: Cache::new(CAPACITY as u64) }, evaluators, length),
        other => panic!("no contender is called {other:?}"),
    }
}

// ---- The table -------------------------------------------------------------------------------------------------------

/// Resident bytes of a process and of those that it started.
fn resident(process: u32) -> u64 {
    let read = |file: &str| fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default();
    let own = read("statm").split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default() * 4096;
    // Whichever thread started them.
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let children = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    let children: Vec<u32> =
        children.flat_map(|line| line.split(' ').map_while(|id| id.parse().ok()).collect::<Vec<_>>()).collect();
    own + children.into_iter().map(resident).sum::<u64>()
}

/// Runs a contender in a process of its own, and adds the most that it held.
fn run(name: &str, evaluators: usize, length: Duration) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--contender", name])
        .arg(folder.path())
        .arg(evaluators.to_string())
        .arg(length.as_millis().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let most = watched(&mut child);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{name}: {}", output.status);
    let mut figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    figures["resident_mib"] = (most as f64 / f64::from(1 << 20)).into();
    figures
}

/// The most that it held until it ended.
fn watched(child: &mut Child) -> u64 {
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        most = most.max(resident(child.id()));
        thread::sleep(Duration::from_millis(20));
    }
    most
}

fn main() -> ExitCode {
    evalpool::init_compile_workers();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name, folder, evaluators, millis] = &arguments[..]
        && flag == "--contender"
    {
        let length = Duration::from_millis(millis.parse().unwrap());
        println!("{}", contend(name, Path::new(folder), evaluators.parse().unwrap(), length));
        return ExitCode::SUCCESS;
    }
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let (evaluators, length) = match (has("--test"), has("--short")) {
        (true, _) => (8, Duration::from_millis(200)),
        (_, true) => (64, Duration::from_secs(3)),
        _ => (64, Duration::from_secs(10)),
    };
    println!("{evaluators} evaluators, room for {CAPACITY}, {TASKS} tasks, {} s each", length.as_secs_f64());
    let columns = ["first calls s", "calls a second", "p50 ms", "p99 ms", "live at most", "resident MiB", "errors"];
    println!("{:<14}{}", "", columns.map(|column| format!("{column:>16}")).concat());
    let mut broken = Vec::new();
    for name in CONTENDERS {
        let figures = run(name, evaluators, length);
        let number = |figure: &str| figures[figure].as_f64().unwrap();
        let shown = [
            ("first", 1),
            ("per_second", 0),
            ("p50", 3),
            ("p99", 2),
            ("live_max", 0),
            ("resident_mib", 0),
            ("errors", 0),
        ];
        println!("{name:<14}{}", shown.map(|(figure, digits)| format!("{:>16.digits$}", number(figure))).concat());
        if number("errors") > 0.0 {
            broken.push(format!("{name}: {} evaluations failed, one with {}", figures["errors"], figures["error"]));
        }
        if name == "evalpool" && number("live_max") > CAPACITY as f64 {
            broken.push(format!("{name}: {} runtimes at once", figures["live_max"]));
        }
    }
    for broken in &broken {
        println!("BROKEN: {broken}");
    }
    if has("--check") && !broken.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
