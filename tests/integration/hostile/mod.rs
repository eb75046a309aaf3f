//! A gallery of hostile plugins, each of which comes to its documented end within its documented time while a
//! well-behaved neighbour is served; in both isolations, through the library and over HTTP. On `direct`, the engine for
//! plugins of strangers.

mod gallery;
mod host_functions;
mod over_http;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use evalpool::{Error, EvaluatorPool, Isolation, Plugin, Settings, Source, Spec, config::EngineKind};
use serde_json::{Value, json};

use self::gallery::{Comes, Hostile};
use crate::support::{GREET, compile_workers, eventually, on_threads};

/// How long one evaluation and one build may take.
#[derive(Debug, Clone, Copy)]
struct Deadlines {
    exec: Duration,
    build: Duration,
}

/// For those that are to meet their deadlines, and no longer than it takes.
const SHORT: Deadlines = Deadlines { exec: Duration::from_secs(1), build: Duration::from_secs(3) };

/// For those that are not, on a machine that may be busy: what they do takes milliseconds.
const LONG: Deadlines = Deadlines { exec: Duration::from_secs(30), build: Duration::from_secs(30) };

/// What a busy machine may add to a time: an order of magnitude more than it does. What hangs takes far longer.
const SLACK: Duration = Duration::from_secs(10);

/// Hostile plugins at once: they must not help each other either.
const LANES: usize = 3;

/// All that meet a deadline, or all that do not, and the deadlines for them.
fn those_that_meet_a_deadline(meet: bool) -> (Deadlines, Vec<Hostile>) {
    let mut those = gallery::all();
    assert!(those.len() >= 180, "{}", those.len());
    those.retain(|hostile| hostile.meets_a_deadline() == meet);
    assert!(those.len() >= 40, "{}", those.len());
    (if meet { SHORT } else { LONG }, those)
}

impl Deadlines {
    /// How long it may take to learn that a plugin is refused, or that it is not: no time, for what is known from its
    /// bytes alone; else what compiling and initialising may take.
    fn of_build(self, hostile: &Hostile) -> Duration {
        let plugin = Plugin::new(hostile.bytes.clone().into(), None);
        match plugin.and_then(|plugin| plugin.interface().resolve(None)) {
            Err(_) => SLACK,
            Ok(_) => self.build + SLACK,
        }
    }

    /// How long one evaluation of a plugin that is built may take.
    fn of_call(self) -> Duration {
        self.exec + SLACK
    }
}

fn as_expected(comes: Comes, came: &Result<(), String>) -> bool {
    /// What a plugin can bring upon itself.
    const FAULTS: [&str; 9] = [
        "invalid_plugin",
        "build_timeout",
        "exec_timeout",
        "guest_trap",
        "guest_error",
        "guest_exit",
        "out_of_memory",
        "out_of_fuel",
        "output_too_large",
    ];
    match (comes, came) {
        (Comes::Refused(kind) | Comes::Ends(kind), Err(came)) => came == kind,
        (Comes::Nothing | Comes::Somehow, Ok(())) => true,
        (Comes::Somehow, Err(came)) => FAULTS.contains(&came.as_str()),
        _ => false,
    }
}

/// What no client may read: where this host keeps its files, how its code is called, who else is served.
fn tells_of_the_host(text: &str) -> bool {
    let signs = [
        env!("CARGO_MANIFEST_DIR"),
        "/root",
        "/home",
        "/.cargo/",
        "/rustc/",
        ".rs:",
        "backtrace:\n   0: ",
        "evalpool::",
        "wasmtime::",
        NEIGHBOUR,
    ];
    signs.iter().any(|sign| text.contains(sign))
}

/// The well-behaved one, whom nobody should hear of.
const NEIGHBOUR: &str = "a-customer-of-good-name";

fn settings(isolation: Isolation, deadlines: Deadlines) -> Settings {
    let mut settings = Settings::default();
    settings.engine.kind = EngineKind::Direct;
    settings.engine.compile_workers = compile_workers();
    settings.engine.isolation = isolation;
    settings.pool.capacity = 8;
    settings.pool.max_instances = 16;
    settings.pool.negative_ttl = Duration::ZERO;
    settings.limits.exec_timeout = deadlines.exec;
    settings.limits.build_timeout = deadlines.build;
    settings.limits.output_size = 1 << 20;
    settings.limits.memory = 8 << 20;
    settings.limits.table_elements = 10_000;
    settings
}

#[test]
#[ignore = "slow lane: some two hundred plugins, one after another"]
fn each_hostile_plugin_comes_to_its_end_and_hurts_nobody() {
    for meet in [false, true] {
        let (deadlines, gallery) = those_that_meet_a_deadline(meet);
        let gallery = Arc::new(gallery);
        for isolation in [Isolation::Fresh, Isolation::Reuse] {
            on_threads(beside_a_neighbour(isolation, deadlines, &gallery));
        }
    }
}

async fn beside_a_neighbour(isolation: Isolation, deadlines: Deadlines, gallery: &Arc<Vec<Hostile>>) {
    let pool = EvaluatorPool::from_settings(&settings(isolation, deadlines)).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let neighbour = tokio::spawn(neighbour(pool.clone(), stop.clone()));
    let next = Arc::new(AtomicUsize::new(0));
    let lanes: Vec<_> = (0..LANES)
        .map(|lane| {
            let (pool, gallery, next) = (pool.clone(), gallery.clone(), next.clone());
            tokio::spawn(async move {
                let mut wrong = Vec::new();
                while let Some(hostile) = gallery.get(next.fetch_add(1, Ordering::SeqCst)) {
                    wrong.extend(wrong_with(&pool, &format!("hostile-{lane}"), hostile, deadlines).await);
                }
                wrong
            })
        })
        .collect();
    let mut wrong = Vec::new();
    for lane in lanes {
        wrong.extend(lane.await.unwrap());
    }
    stop.store(true, Ordering::SeqCst);
    let served = neighbour.await.expect("the neighbour has no error");
    assert!(wrong.is_empty(), "{isolation:?}: {} are wrong\n{}", wrong.len(), wrong.join("\n"));
    assert!(served > 0);
    eventually("everything but the neighbour is closed", || pool.runtimes() <= 1).await;
    pool.close().await;
    assert_eq!(pool.runtimes(), 0);
    let slots = pool.slots().expect("the engine has slots");
    assert_eq!(slots.live, evalpool::engine::SlotCounts::default());
    assert_eq!(slots.kernels_beside, 0, "each has the kernel in its own module, whatever it is made of");
}

/// Evaluates again and again until told to stop; how often.
async fn neighbour(pool: EvaluatorPool, stop: Arc<AtomicBool>) -> usize {
    let spec = Spec::new(Source::bytes(GREET)).exec_timeout(Duration::from_mins(1));
    let neighbour = pool.evaluator(NEIGHBOUR, spec).unwrap();
    let mut served = 0;
    while !stop.load(Ordering::SeqCst) {
        let name = format!("{served}");
        let response = neighbour.evaluate(json!({"name": name})).await.unwrap();
        assert_eq!(response.json::<Value>().unwrap()["greeting"], format!("Hello, {name}!"));
        served += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    served
}

/// Builds it, and evaluates twice: what one call leaves behind, the next one must not meet. (Once is enough for what is
/// refused late.) Gives what was not as it must be.
async fn wrong_with(pool: &EvaluatorPool, name: &str, hostile: &Hostile, deadlines: Deadlines) -> Vec<String> {
    let comes = hostile.comes;
    let evaluator = pool.evaluator(name, Spec::new(Source::bytes(hostile.bytes.clone()))).unwrap();
    let mut wrong = Vec::new();
    let mut check = |step: &str, ended: Result<(), Error>, began: Instant, within: Duration| {
        let took = began.elapsed();
        if took > within {
            wrong.push(format!("{}: {step} took {took:?}, more than {within:?}", hostile.trick));
        }
        let text = ended.as_ref().err().map(ToString::to_string).unwrap_or_default();
        if tells_of_the_host(&text) {
            wrong.push(format!("{}: {step} tells of the host: {text}", hostile.trick));
        }
        let came = ended.map_err(|error| error.kind().to_string());
        // That it is built says nothing yet of what is to come of it.
        let says_nothing = step == "a build" && came.is_ok();
        if !says_nothing && !as_expected(comes, &came) {
            wrong.push(format!("{}: {step} came to {came:?} {text:.200}, not {comes:?}", hostile.trick));
        }
    };
    let began = Instant::now();
    let built = evaluator.executable().await.map(drop);
    let refused = built.as_ref().err().map(Error::kind);
    let of_build = deadlines.of_build(hostile);
    check("a build", built, began, of_build);
    if refused.is_none_or(|kind| kind != "build_timeout") {
        let within = if refused.is_some() { of_build } else { deadlines.of_call() };
        for _ in 0..if refused.is_some() { 1 } else { 2 } {
            let began = Instant::now();
            let ended = evaluator.evaluate("x").await.map(drop);
            check("a call", ended, began, within);
        }
    }
    evaluator.close().await;
    wrong
}
