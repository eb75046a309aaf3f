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

use evalpool::{EvaluatorPool, Isolation, Settings, Source, Spec, config::EngineKind};
use serde_json::json;

use self::gallery::{Comes, Hostile, OnExtism};
use crate::{
    service::Server,
    support::{ENGINES, GREET, eventually, on_threads},
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
