//! What 49 tenants notice of a fiftieth that floods the pool: with uploads, with cold calls, with hot calls, with guests that
//! never end, each in turn.
//!
//! ```text
//! cargo bench --bench fairness                # four floods, 50 seconds
//! cargo bench --bench fairness -- hot         # those whose name has this
//! cargo bench --bench fairness -- --check     # exits with 1 when a wanted value is missed
//! cargo bench --bench fairness -- --test      # each flood for a moment, and nothing is judged
//! ```
//!
//! Each of the 49 has one evaluator with bytes of its own and one caller, which asks for the next evaluation when it has the
//! last. Each evaluation waits for its turn in the executor, as that of a request does: its time begins before that. So the
//! 49 keep all cores busy, before the flood and beside it, and whatever the fiftieth gets they lose.
//!
//! *Alone* is the same without the fiftieth. Its share of the machine is a fiftieth, so what is theirs beside it, whatever it
//! does, is 49/50 of what they have alone. Wanted: 0.8 times that at least, and a p99 of at most three times theirs alone.
//!
//! | flood | what it is |
//! |---|---|
//! | uploads | 32 callers who upload, and publish, plugins of 110 KB that nobody has seen |
//! | cold calls | 256 callers of 512 evaluators, eight times as many as there is room for |
//! | hot calls | 1,000 callers of one warm evaluator |
//! | endless guests | 200 callers of 15 evaluators, whose guests spin until their second is over |
//!
//! Both are measured in one run, for a second and a half each, in turns, and each flood is held against what came just before and
//! after
//! it. Figures are medians, so that what else the machine does meets both. All have the same executor, with a thread for each
//! core; builds compile in workers, as in the server.
//!
//! # What came of it
//!
//! On two quiet cores, of their share, and p99, in three runs: before tenants that take too much were paced (`fair_share`),
//! and now.
//!
//! | flood | before | now |
//! |---|---|---|
//! | uploads | 0.69, 2.7 x | 0.98 to 1.02, 0.9 to 1.1 x |
//! | cold calls | 0.66, 2.0 x | 1.01 to 1.10, 0.8 to 1.0 x |
//! | hot calls | 0.07, 15 x | 0.90 to 0.98, 1.0 to 1.1 x |
//! | endless guests (before: of 50 evaluators) | 0.15, 8.4 x | 0.97 to 1.04, 1.1 to 1.2 x |
//!
//! Where the 49 come to a flood that had the machine for itself until then, they have 0.7 of their share beside uploads in
//! the first two seconds, and 0.85 beside cold calls: builds that have begun are not taken back, but give way.

use std::{
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use evalpool::{Evaluator, EvaluatorPool, Settings, Source, Spec};
use hdrhistogram::Histogram;
use tokio::{
    runtime::Runtime,
    task::{JoinSet, yield_now},
};

/// Those who do not flood.
const TENANTS: usize = 49;

/// Room for each of them and some more, but not for all that the flood has.
const CAPACITY: usize = 64;

const WANTED_CALLS: f64 = 0.8;
const WANTED_P99: f64 = 3.0;

const GREET: &[u8] = include_bytes!("../src/service/greet/greet.wasm");
const INPUT: &[u8] = br#"{"name":"Ada"}"#;
const TOTALS: &[u8] = include_bytes!("../tests/plugins/rust/totals.wasm");

/// What the fiftieth tenant does. Each of its callers begins anew as soon as it has an answer, whatever that is.
struct Flood {
    name: &'static str,
    callers: usize,
    /// Evaluators that it calls in turn; none if it uploads.
    evaluators: usize,
    spec: fn() -> Spec,
}

const FLOODS: [Flood; 4] = [
    Flood { name: "uploads", callers: 32, evaluators: 0, spec: totals },
    Flood { name: "cold calls", callers: 256, evaluators: 512, spec: greet },
    Flood { name: "hot calls", callers: 1000, evaluators: 1, spec: greet },
    Flood { name: "endless guests", callers: 200, evaluators: 15, spec: endless },
];

/// The module, and behind it a custom section that no other has.
fn own(module: &[u8]) -> Source {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    Source::bytes([module, &[0, 9, 0], &NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes()].concat())
}

fn greet() -> Spec {
    Spec::new(own(GREET)).entry_point("greet")
}

fn totals() -> Spec {
    Spec::new(own(TOTALS)).entry_point("transform")
}

fn endless() -> Spec {
    let wasm = wat::parse_str(r#"(module (func (export "greet") (loop br 0)))"#).unwrap();
    Spec::new(own(&wasm)).entry_point("greet").exec_timeout(Duration::from_secs(1))
}

impl Flood {
    /// Begins it. It ends when this is dropped.
    fn begin(
        &'static self,
        runtime: &Runtime,
        pool: &EvaluatorPool,
        evaluators: &Arc<[Evaluator]>,
        done: &Arc<AtomicU64>,
    ) -> JoinSet<()> {
        let mut callers = JoinSet::new();
        for caller in 0..self.callers {
            let (pool, evaluators, done) = (pool.clone(), evaluators.clone(), done.clone());
            let name = format!("flood/upload-{caller}");
            let mut next = caller;
            callers.spawn_on(
                async move {
                    loop {
                        yield_now().await;
                        if evaluators.is_empty() {
                            if let Ok(prepared) = pool.prepare(&name, (self.spec)()).await {
                                prepared.publish();
                            }
                        } else {
                            let _ = evaluators[next % evaluators.len()].evaluate(INPUT).await;
                            next += self.callers + 1;
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                },
                runtime.handle(),
            );
        }
        callers
    }
}

/// What the 49 had in one round, or in the middle of several.
#[derive(Clone, Copy)]
struct Had {
    /// A second.
    calls: f64,
    /// In milliseconds.
    p50: f64,
    p99: f64,
    failed: u64,
}

impl Had {
    fn median(rounds: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(rounds.iter().map(figure));
        let failed = rounds.iter().map(|round| round.failed).sum();
        Self { calls: of(|had| had.calls), p50: of(|had| had.p50), p99: of(|had| had.p99), failed }
    }
}

/// What one of the 49 has had since that was last taken.
struct Record {
    took: Histogram<u64>,
    failed: u64,
}

/// The 49, who call from when this is made until it is dropped.
struct Callers {
    records: Vec<Arc<Mutex<Record>>>,
    _tasks: JoinSet<()>,
}

impl Callers {
    fn begin(runtime: &Runtime, evaluators: &[Evaluator]) -> Self {
        let (mut tasks, mut records) = (JoinSet::new(), Vec::new());
        for evaluator in evaluators {
            let record = Arc::new(Mutex::new(Record { took: histogram(), failed: 0 }));
            records.push(record.clone());
            let evaluator = evaluator.clone();
            tasks.spawn_on(
                async move {
                    loop {
                        let began = Instant::now();
                        yield_now().await;
                        let answer = evaluator.evaluate(INPUT).await;
                        let mut record = record.lock().unwrap();
                        match answer {
                            Ok(_) => record.took.saturating_record(u64::try_from(began.elapsed().as_nanos()).unwrap()),
                            Err(_) => record.failed += 1,
                        }
                    }
                },
                runtime.handle(),
            );
        }
        Self { records, _tasks: tasks }
    }

    /// What they have had since this was last asked.
    fn take(&self) -> (Histogram<u64>, u64) {
        let (mut all, mut sum) = (histogram(), 0);
        for record in &self.records {
            let Record { took, failed } =
                std::mem::replace(&mut *record.lock().unwrap(), Record { took: histogram(), failed: 0 });
            all.add(took).unwrap();
            sum += failed;
        }
        (all, sum)
    }

    /// What they have in so long from now on.
    fn have(&self, length: Duration) -> Had {
        self.take();
        let began = Instant::now();
        thread::sleep(length);
        let length = began.elapsed();
        let (all, failed) = self.take();
        let millis = |quantile| all.value_at_quantile(quantile) as f64 / 1e6;
        Had { calls: all.len() as f64 / length.as_secs_f64(), p50: millis(0.5), p99: millis(0.99), failed }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000_000, 3).unwrap()
}

fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// What the 49 had alone, and beside the flood: one round more of the first, so that each flood has one on either side.
fn rounds(runtime: &Runtime, flood: &'static Flood, rounds: usize, length: Duration) -> (Vec<Had>, Vec<Had>, u64) {
    let mut settings = Settings::default();
    settings.pool.capacity = CAPACITY;
    let pool = EvaluatorPool::from_settings(&settings).unwrap();
    let evaluator = |name: String, spec| pool.evaluator(&name, spec).unwrap();
    let tenants: Vec<_> = (0..TENANTS).map(|tenant| evaluator(format!("tenant-{tenant}/greet"), greet())).collect();
    let its = (0..flood.evaluators).map(|number| evaluator(format!("flood/{number}"), (flood.spec)())).collect();
    let answers = Arc::new(AtomicU64::new(0));
    let callers = Callers::begin(runtime, &tenants);
    // The first builds.
    thread::sleep(length / 2);
    let (mut alone, mut beside) = (vec![callers.have(length)], Vec::new());
    for _ in 0..rounds {
        let mut flood = flood.begin(runtime, &pool, &its, &answers);
        thread::sleep(length / 2);
        beside.push(callers.have(length));
        runtime.block_on(flood.shutdown());
        thread::sleep(length / 10);
        alone.push(callers.have(length));
    }
    drop(callers);
    runtime.block_on(pool.close_with(Duration::ZERO));
    (alone, beside, answers.load(Ordering::Relaxed))
}

fn main() -> ExitCode {
    evalpool::init_compile_workers();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let names: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let wanted = |flood: &&Flood| names.is_empty() || names.iter().any(|name| flood.name.contains(name.as_str()));
    let (count, length) = if has("--test") { (1, Duration::from_millis(50)) } else { (3, Duration::from_millis(1500)) };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let columns =
        ["calls/s", "p50 ms", "p99 ms", "beside: calls/s", "p50 ms", "p99 ms", "of share", "p99 x", "its answers"];
    println!("{:<16}{}", "flood", columns.map(|column| format!("{column:>16}")).concat());
    let mut missed = Vec::new();
    for flood in FLOODS.iter().filter(wanted) {
        let (alone, beside, answers) = rounds(&runtime, flood, count, length);
        let pairs = || beside.iter().zip(alone.windows(2));
        let mean = |pair: &[Had], figure: fn(&Had) -> f64| figure(&pair[0]).midpoint(figure(&pair[1]));
        let all = TENANTS as f64 / (TENANTS + 1) as f64;
        let calls = median(pairs().map(|(beside, alone)| beside.calls / (mean(alone, |had| had.calls) * all)));
        let p99 = median(pairs().map(|(beside, alone)| beside.p99 / mean(alone, |had| had.p99)));
        let [alone, beside] = [alone, beside].map(|rounds| Had::median(&rounds));
        let had = |had: &Had| format!("{:>16.0}{:>16.2}{:>16.2}", had.calls, had.p50, had.p99);
        println!("{:<16}{}{}{calls:>16.2}{p99:>16.1}{answers:>16}", flood.name, had(&alone), had(&beside));
        if calls < WANTED_CALLS {
            missed.push(format!("{}: {calls:.2} of their share of calls, wanted {WANTED_CALLS} at least", flood.name));
        }
        if p99 > WANTED_P99 {
            missed.push(format!("{}: p99 {p99:.1} x that alone, wanted {WANTED_P99} x at most", flood.name));
        }
        if alone.failed + beside.failed > 0 {
            missed.push(format!("{}: {} calls of the 49 failed", flood.name, alone.failed + beside.failed));
        }
    }
    if has("--test") {
        return ExitCode::SUCCESS;
    }
    for missed in &missed {
        println!("MISSED: {missed}");
    }
    if has("--check") && !missed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
