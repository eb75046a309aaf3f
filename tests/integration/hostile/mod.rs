//! A gallery of hostile plugins, each of which comes to its documented end while a well-behaved neighbour is served; on
//! both engines, in both isolations, through the library and over HTTP.

mod gallery;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use evalpool::{EvaluatorPool, Isolation, Settings, Source, Spec, config::EngineKind, engine::extism::Compiled};
use serde_json::json;

use self::gallery::{Comes, Hostile, OnExtism};
use crate::{
    service::Server,
    support::{ENGINES, GREET, eventually, on_threads, process, wasm},
};

const EXEC: Duration = Duration::from_millis(250);
const BUILD: Duration = Duration::from_secs(2);

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

fn expected(hostile: &Hostile, engine: EngineKind) -> Option<Comes> {
    match (engine, hostile.on_extism) {
        (EngineKind::Extism, OnExtism::Other(comes)) => Some(comes),
        (EngineKind::Extism, OnExtism::NotRun) => None,
        _ => Some(hostile.comes),
    }
}

/// Evaluates twice: what one call leaves behind, the next one must not meet. (Once is enough for what is refused late.)
async fn comes_of(pool: &EvaluatorPool, hostile: &Hostile) -> Vec<Result<(), String>> {
    let evaluator = pool.evaluator("hostile", Spec::new(Source::bytes(hostile.bytes.clone()))).unwrap();
    let mut came = Vec::new();
    let times = if hostile.comes == Comes::Refused("build_timeout") { 1 } else { 2 };
    for _ in 0..times {
        came.push(evaluator.evaluate("x").await.map(drop).map_err(|error| {
            let text = error.to_string();
            assert!(!text.contains("/root") && !text.contains("wasm backtrace"), "{}: {text}", hostile.trick);
            error.kind().to_string()
        }));
    }
    evaluator.close().await;
    came
}

fn as_expected(comes: Comes, came: &Result<(), String>) -> bool {
    match (comes, came) {
        (Comes::Refused(kind) | Comes::Ends(kind), Err(came)) => came == kind,
        (Comes::Nothing, Ok(())) => true,
        _ => false,
    }
}

#[test]
fn each_hostile_plugin_comes_to_its_end_and_hurts_nobody() {
    let gallery = gallery::all();
    assert!(gallery.len() >= 60, "{}", gallery.len());
    for engine in ENGINES.into_iter().rev() {
        for isolation in [Isolation::Fresh, Isolation::Reuse] {
            on_threads(beside_a_neighbour(engine, isolation, &gallery));
        }
    }
}

async fn beside_a_neighbour(engine: EngineKind, isolation: Isolation, gallery: &[Hostile]) {
    let pool = EvaluatorPool::from_settings(&settings(engine, isolation)).unwrap();
    let neighbour =
        pool.evaluator("neighbour", Spec::new(Source::bytes(GREET)).with_exec_timeout(Duration::from_mins(1))).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let served = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut served = 0;
            while !stop.load(Ordering::SeqCst) {
                let name = format!("{served}");
                let response = neighbour.evaluate(json!({"name": name})).await.expect("the neighbour has no error");
                assert_eq!(response.json().unwrap()["greeting"], format!("Hello, {name}!"));
                served += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            served
        }
    });
    let mut wrong = Vec::new();
    for hostile in gallery {
        let Some(comes) = expected(hostile, engine) else { continue };
        let began = Instant::now();
        let came = comes_of(&pool, hostile).await;
        // Twice, each with a compile, on a machine that is busy; what hangs takes far longer.
        if began.elapsed() > 2 * (EXEC + BUILD) + Duration::from_secs(10) {
            wrong.push(format!("{}: took {:?}", hostile.trick, began.elapsed()));
        }
        if !came.iter().all(|came| as_expected(comes, came)) {
            wrong.push(format!("{}: {came:?}, not {comes:?}", hostile.trick));
        }
    }
    stop.store(true, Ordering::SeqCst);
    let served = served.await.expect("the neighbour");
    assert!(wrong.is_empty(), "{engine:?} {isolation:?}: {} are wrong\n{}", wrong.len(), wrong.join("\n"));
    assert!(served > 0);
    eventually("everything but the neighbour is closed", || pool.runtimes() <= 1).await;
    pool.close().await;
    assert_eq!(pool.runtimes(), 0);
    if let Some(slots) = pool.slots() {
        assert_eq!(slots.live, evalpool::engine::SlotCounts::default());
    }
}

#[test]
fn each_hostile_plugin_comes_to_its_end_over_http() {
    for engine in ENGINES {
        let server = Server::start(&[
            ("ENGINE_KIND", engine.as_str()),
            ("LIMITS_EXEC_TIMEOUT", "250ms"),
            ("LIMITS_BUILD_TIMEOUT", "2s"),
            ("LIMITS_OUTPUT_SIZE", "1MiB"),
            ("LIMITS_MEMORY", "8MiB"),
            ("LIMITS_TABLE_ELEMENTS", "10000"),
            ("POOL_NEGATIVE_TTL", "0s"),
        ]);
        let mut wrong = Vec::new();
        for hostile in gallery::all() {
            let Some(comes) = expected(&hostile, engine) else { continue };
            let came = server.outcomes_of(&hostile.bytes);
            if !came.iter().all(|came| as_expected(comes, came)) {
                wrong.push(format!("{}: {came:?}, not {comes:?}", hostile.trick));
            }
        }
        assert!(wrong.is_empty(), "{engine:?}: {} are wrong\n{}", wrong.len(), wrong.join("\n"));
    }
}

/// On `extism` nothing interrupts them: who waits is answered in time, and their fuel ends them later.
#[test]
fn initialisers_that_never_end_are_ended_by_their_fuel_on_extism() {
    if !process::alone("hostile::initialisers_that_never_end_are_ended_by_their_fuel_on_extism") {
        return;
    }
    let mut settings = settings(EngineKind::Extism, Isolation::Fresh);
    settings.limits.build_timeout = Duration::from_millis(200);
    settings.limits.exec_timeout = Duration::from_millis(100);
    process::forgetful_threads().block_on(async {
        let at_rest = threads_at_rest().await;
        let pool = EvaluatorPool::from_settings(&settings).unwrap();
        for hostile in gallery::initialisers().iter().filter(|hostile| hostile.on_extism == OnExtism::NotRun) {
            let began = Instant::now();
            let came = comes_of(&pool, hostile).await;
            assert_eq!(came[0], Err("build_timeout".to_owned()), "{}", hostile.trick);
            assert!(began.elapsed() < Duration::from_secs(10), "{}: {:?}", hostile.trick, began.elapsed());
            ended(hostile.trick, &pool, at_rest).await;
        }
    });
}

/// One that passes its validation and misbehaves later, by the clock.
#[test]
fn an_initialiser_that_stops_ending_later_is_ended_by_its_fuel_on_extism() {
    if !process::alone("hostile::an_initialiser_that_stops_ending_later_is_ended_by_its_fuel_on_extism") {
        return;
    }
    let mut settings = settings(EngineKind::Extism, Isolation::Fresh);
    settings.limits.build_timeout = Duration::from_secs(1);
    settings.limits.exec_timeout = Duration::from_millis(500);
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

#[tokio::test]
async fn who_is_trusted_by_pool_or_spec_has_no_fuel_on_extism() {
    for (by_pool, by_spec, has_fuel) in
        [(false, None, true), (true, None, false), (false, Some(true), false), (true, Some(false), true)]
    {
        let mut settings = settings(EngineKind::Extism, Isolation::Fresh);
        settings.limits.build_timeout = Duration::from_secs(20);
        settings.engine.trusted = by_pool;
        let pool = EvaluatorPool::from_settings(&settings).unwrap();
        let spec = Spec::new(Source::bytes(GREET));
        let spec = by_spec.map_or(spec.clone(), |trusted| spec.with_trusted(trusted));
        let evaluator = pool.evaluator("greet", spec).unwrap();
        let executable = evaluator.executable().await.unwrap();
        let fuel = executable.look(|compiled| compiled.as_any().downcast_ref::<Compiled>().unwrap().fuel());
        // The longer of both timeouts, at ten units a nanosecond.
        assert_eq!(fuel.await.unwrap(), has_fuel.then_some(200_000_000_000), "{by_pool} {by_spec:?}");
        pool.close().await;
    }
}

/// Threads of this process once everything that stays was started by a plugin that comes and goes.
async fn threads_at_rest() -> usize {
    let pool = EvaluatorPool::builder().engine_kind(EngineKind::Extism).build().unwrap();
    let evaluator = pool.evaluator("good", Spec::new(Source::bytes(GREET))).unwrap();
    evaluator.evaluate(json!({"name": "Ada"})).await.unwrap();
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
        assert!(began.elapsed() < Duration::from_mins(2), "{trick} is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
