//! A gallery of hostile plugins, each of which comes to its documented end within its documented time while a
//! well-behaved neighbour is served; on both engines, in both isolations, through the library and over HTTP.

mod bombs;
mod gallery;
mod headers;
mod host_functions;
mod over_http;
mod tricks;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use evalpool::{Error, EvaluatorPool, Isolation, Plugin, Settings, Source, Spec, config::EngineKind};
use serde_json::json;

use self::gallery::{Comes, Hostile, IMPORTS, OnExtism};
use crate::support::{ENGINES, GREET, eventually, on_threads, process, wasm};

const EXEC: Duration = Duration::from_millis(250);
const BUILD: Duration = Duration::from_secs(3);

/// What a machine of two processors that is busy with other tests may add to a time. What hangs takes far longer.
const SLACK: Duration = Duration::from_secs(5);

/// Hostile plugins at once: they must not help each other either.
const LANES: usize = 3;

/// Each of them, and what must come of it.
fn everything() -> Vec<Hostile> {
    [gallery::all(), headers::all(), bombs::all(), tricks::all()].into_iter().flatten().collect()
}

fn expected(hostile: &Hostile, engine: EngineKind) -> Comes {
    match (engine, hostile.on_extism) {
        (EngineKind::Extism, OnExtism::Other(comes)) => comes,
        _ => hostile.comes,
    }
}

/// How long it may take to learn that a plugin is refused, or that it is not: no time, for what is known from its bytes
/// alone; else what compiling and initialising may take.
fn build_time(hostile: &Hostile) -> Duration {
    let plugin = Plugin::new(hostile.bytes.clone().into(), None);
    match plugin.and_then(|plugin| plugin.interface().resolve(None)) {
        Err(_) => SLACK,
        Ok(_) => BUILD + SLACK,
    }
}

/// How long one evaluation of it may take, once it is built.
const CALL_TIME: Duration = EXEC.saturating_add(SLACK);

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

fn settings(engine: EngineKind, isolation: Isolation) -> Settings {
    let mut settings = Settings::default();
    settings.engine.kind = engine;
    settings.engine.isolation = isolation;
    settings.pool.capacity = 8;
    settings.pool.max_instances = 16;
    settings.pool.negative_ttl = Duration::ZERO;
    settings.limits.exec_timeout = EXEC;
    settings.limits.build_timeout = BUILD;
    settings.limits.output_size = 1 << 20;
    settings.limits.memory = 8 << 20;
    settings.limits.table_elements = 10_000;
    settings
}

#[test]
fn each_hostile_plugin_comes_to_its_end_and_hurts_nobody() {
    let gallery = Arc::new(everything());
    assert!(gallery.len() >= 160, "{}", gallery.len());
    for engine in ENGINES.into_iter().rev() {
        for isolation in [Isolation::Fresh, Isolation::Reuse] {
            on_threads(beside_a_neighbour(engine, isolation, &gallery));
        }
    }
}

async fn beside_a_neighbour(engine: EngineKind, isolation: Isolation, gallery: &Arc<Vec<Hostile>>) {
    let pool = EvaluatorPool::from_settings(&settings(engine, isolation)).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let neighbour = tokio::spawn(neighbour(pool.clone(), stop.clone()));
    let next = Arc::new(AtomicUsize::new(0));
    let lanes: Vec<_> = (0..LANES)
        .map(|lane| {
            let (pool, gallery, next) = (pool.clone(), gallery.clone(), next.clone());
            tokio::spawn(async move {
                let mut wrong = Vec::new();
                while let Some(hostile) = gallery.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let comes = expected(hostile, engine);
                    wrong.extend(wrong_with(&pool, &format!("hostile-{lane}"), hostile, comes).await);
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
    assert!(wrong.is_empty(), "{engine:?} {isolation:?}: {} are wrong\n{}", wrong.len(), wrong.join("\n"));
    assert!(served > 0);
    eventually("everything but the neighbour is closed", || pool.runtimes() <= 1).await;
    pool.close().await;
    assert_eq!(pool.runtimes(), 0);
    if let Some(slots) = pool.slots() {
        assert_eq!(slots.live, evalpool::engine::SlotCounts::default());
    }
}

/// Evaluates again and again until told to stop; how often.
async fn neighbour(pool: EvaluatorPool, stop: Arc<AtomicBool>) -> usize {
    let spec = Spec::new(Source::bytes(GREET)).with_exec_timeout(Duration::from_mins(1));
    let neighbour = pool.evaluator(NEIGHBOUR, spec).unwrap();
    let mut served = 0;
    while !stop.load(Ordering::SeqCst) {
        let name = format!("{served}");
        let response = neighbour.evaluate(json!({"name": name})).await.unwrap();
        assert_eq!(response.json().unwrap()["greeting"], format!("Hello, {name}!"));
        served += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    served
}

/// Builds it, and evaluates twice: what one call leaves behind, the next one must not meet. (Once is enough for what is
/// refused late.) Gives what was not as it must be.
async fn wrong_with(pool: &EvaluatorPool, name: &str, hostile: &Hostile, comes: Comes) -> Vec<String> {
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
    check("a build", built, began, build_time(hostile));
    if refused.is_none_or(|kind| kind != "build_timeout") {
        let within = if refused.is_some() { build_time(hostile) } else { CALL_TIME };
        for _ in 0..if refused.is_some() { 1 } else { 2 } {
            let began = Instant::now();
            let ended = evaluator.evaluate("x").await.map(drop);
            check("a call", ended, began, within);
        }
    }
    evaluator.close().await;
    wrong
}

/// Their fuel, and what they hold a thread for, would last for minutes: they are interrupted.
#[test]
fn initialisers_that_never_end_are_interrupted_on_extism() {
    if !process::alone("hostile::initialisers_that_never_end_are_interrupted_on_extism") {
        return;
    }
    let mut settings = settings(EngineKind::Extism, Isolation::Fresh);
    settings.limits.build_timeout = Duration::from_millis(200);
    settings.limits.exec_timeout = Duration::from_mins(10);
    process::forgetful_threads().block_on(async {
        let at_rest = threads_at_rest().await;
        let pool = EvaluatorPool::from_settings(&settings).unwrap();
        let all = gallery::initialisers().into_iter().chain(gallery::busy_initialisers());
        for hostile in all.filter(|hostile| expected(hostile, EngineKind::Extism) == Comes::Refused("build_timeout")) {
            let began = Instant::now();
            let evaluator = pool.evaluator("hostile", Spec::new(Source::bytes(hostile.bytes.clone()))).unwrap();
            assert_eq!(evaluator.evaluate("x").await.unwrap_err().kind(), "build_timeout", "{}", hostile.trick);
            evaluator.close().await;
            assert!(began.elapsed() < SLACK, "{}: {:?}", hostile.trick, began.elapsed());
            ended(hostile.trick, &pool, at_rest).await;
        }
    });
}

/// One that passes its validation and misbehaves later, by the clock.
#[test]
fn an_initialiser_that_stops_ending_later_is_interrupted_on_extism() {
    if !process::alone("hostile::an_initialiser_that_stops_ending_later_is_interrupted_on_extism") {
        return;
    }
    let mut settings = settings(EngineKind::Extism, Isolation::Fresh);
    settings.limits.build_timeout = Duration::from_secs(1);
    settings.limits.exec_timeout = Duration::from_mins(10);
    process::forgetful_threads().block_on(async {
        let at_rest = threads_at_rest().await;
        let pool = EvaluatorPool::from_settings(&settings).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let turns = (now + Duration::from_secs(5)).as_nanos();
        let plugin = wasm(&format!(
            r#"(module (import "wasi_snapshot_preview1" "clock_time_get" (func $f (param i32 i64 i32) (result i32)))
                (memory (export "memory") 1)
                (func $s
                    (drop (call $f (i32.const 0) (i64.const 1) (i32.const 64)))
                    (if (i64.gt_u (i64.load (i32.const 64)) (i64.const {turns})) (then (loop br 0))))
                (start $s) (func (export "run")))"#
        ));
        let evaluator = pool.evaluator("later", Spec::new(Source::bytes(plugin))).unwrap();
        evaluator.evaluate("x").await.unwrap();
        let mut came = Ok(());
        let began = Instant::now();
        while came.is_ok() && began.elapsed() < Duration::from_secs(30) {
            came = evaluator.evaluate("x").await.map(drop).map_err(|error| error.kind().to_string());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(came, Err("build_timeout".to_owned()));
        evaluator.close().await;
        ended("later", &pool, at_rest).await;
    });
}

/// extism makes its plugin anew after a call of `_start`, initialisers and all, in the middle of the next call. By then
/// they call the host, which they did not when they were tried.
#[tokio::test]
async fn an_initialiser_that_calls_the_host_later_is_refused_on_extism() {
    let mut settings = settings(EngineKind::Extism, Isolation::Reuse);
    settings.limits.build_timeout = Duration::from_secs(10);
    let pool = EvaluatorPool::from_settings(&settings).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let turns = (now + Duration::from_secs(4)).as_nanos();
    let plugin = wasm(&format!(
        r#"(module (import "wasi_snapshot_preview1" "clock_time_get" (func $f (param i32 i64 i32) (result i32)))
            {IMPORTS}
            (func $s
                (drop (call $f (i32.const 0) (i64.const 1) (i32.const 64)))
                (if (i64.gt_u (i64.load (i32.const 64)) (i64.const {turns}))
                    (then (call $var_set (call $colour) (call $digits)))))
            (start $s) (func (export "_start")))"#
    ));
    let evaluator = pool.evaluator("later", Spec::new(Source::bytes(plugin))).unwrap();
    let began = Instant::now();
    let mut refused = 0;
    while refused < 5 {
        match evaluator.evaluate("x").await {
            Ok(_) => assert!(began.elapsed() < Duration::from_secs(20)),
            Err(error) => {
                assert_eq!(error.kind(), "invalid_plugin", "{error}");
                refused += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    pool.close().await;
}

/// Threads of this process once everything that stays was started by a plugin that comes and goes.
async fn threads_at_rest() -> usize {
    let pool = EvaluatorPool::builder().engine_kind(EngineKind::Extism).build().unwrap();
    let evaluator = pool.evaluator("good", Spec::new(Source::bytes(GREET))).unwrap();
    evaluator.evaluate(json!({"name": "Ada"})).await.unwrap();
    pool.close().await;
    // And one that is interrupted.
    let mut settings = settings(EngineKind::Extism, Isolation::Fresh);
    settings.limits.build_timeout = Duration::from_millis(200);
    let pool = EvaluatorPool::from_settings(&settings).unwrap();
    let endless = Source::bytes(wasm("(module (func $s (loop br 0)) (start $s) (func (export \"run\")))"));
    let evaluator = pool.evaluator("endless", Spec::new(endless)).unwrap();
    assert_eq!(evaluator.evaluate("x").await.unwrap_err().kind(), "build_timeout");
    pool.close().await;
    // Longer than an idle thread is kept.
    let mut seen = usize::MAX;
    while process::threads() < seen {
        seen = process::threads();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    seen
}

/// Nothing is left of it: neither its place nor its thread.
async fn ended(trick: &str, pool: &EvaluatorPool, at_rest: usize) {
    let began = Instant::now();
    while pool.runtimes() > 0 || process::threads() > at_rest {
        let (runtimes, threads) = (pool.runtimes(), process::threads());
        assert!(began.elapsed() < SLACK, "{trick} is still there: {runtimes}, {threads} threads, {at_rest} at rest");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
