//! The soak: random evaluations, cancels, traps, timeouts, evictions, closes and replacements on the real engine, after
//! which the process holds what it held when it was warm.
//!
//! `EVALPOOL_SOAK_OPERATIONS` sets how many: 200,000 on `direct` and 2,000 on `extism` unless said otherwise, which
//! take a minute or two. `cargo test --release soak -- --ignored --nocapture` runs them.

use std::{sync::Arc, time::Duration};

use evalpool::{
    EvaluatorPool, HostFunction, Isolation, PoolBuilder, Settings, Source, Spec, config::EngineKind, engine::SlotCounts,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;
use tokio::{runtime::Handle, task::JoinSet, time::timeout};

use crate::support::{
    CALL_HOST, GREET, TEXT, TOTALS, eventually,
    process::{Held, alone, forgetful_threads},
    wasm,
};

/// As many as fit: most evaluations find their runtime, and what is uploaded, or never registered, evicts another. (A
/// compile costs as much as dozens of evaluations, and is not what a long soak should spend its time on.)
const NAMES: usize = 8;

/// One of many kinds of plugin, some of them bad.
fn some_spec(random: &mut StdRng, hostile: &[Vec<u8>]) -> Spec {
    let spec = kind(random.random_range(0..12), &hostile[random.random_range(0..hostile.len())]);
    spec.isolation(if random.random() { Isolation::Fresh } else { Isolation::Reuse })
}

fn kind(kind: usize, hostile: &[u8]) -> Spec {
    match kind {
        0..=3 => Spec::new(Source::bytes(GREET)),
        4 => Spec::new(Source::bytes(TEXT)).entry_point("upper"),
        5 => Spec::new(Source::bytes(TOTALS)).entry_point("echo"),
        6 => Spec::new(Source::bytes(CALL_HOST))
            .host_function(HostFunction::bytes("host_upper", |input| Ok(input.to_ascii_uppercase()))),
        7 => Spec::new(Source::bytes(GREET)).entry_point("no_such"),
        8..=10 => Spec::new(Source::bytes(TEXT)).entry_point("counter"),
        _ => Spec::new(Source::bytes(hostile.to_vec())),
    }
}

/// Every kind of plugin, many at once: whatever is compiled, cached or allocated once for good is so after this.
async fn everything_once(pool: &EvaluatorPool, hostile: &[Vec<u8>]) {
    for _ in 0..20 {
        let specs = (0..11).map(|each| kind(each, &[])).chain(hostile.iter().map(|each| kind(11, each)));
        let evaluators: Vec<_> = specs.map(|spec| pool.evaluator("each", spec).unwrap()).collect();
        let mut calls = JoinSet::new();
        for evaluator in evaluators.iter().flat_map(|evaluator| [evaluator, evaluator, evaluator]) {
            let evaluator = evaluator.clone();
            calls.spawn(async move { evaluator.evaluate(json!({"name": "Ada"})).await.map(drop) });
        }
        drop(calls.join_all().await);
    }
}

async fn operate(pool: &EvaluatorPool, random: &mut StdRng, hostile: &[Vec<u8>]) {
    let name = format!("e{}", random.random_range(0..NAMES));
    match random.random_range(0..1000) {
        0..=9 => {
            let spec = some_spec(random, hostile);
            if let Ok(prepared) = pool.prepare(&name, spec).await
                && random.random_range(0..4) > 0
            {
                prepared.publish();
            }
        }
        10..=14 => drop(pool.register(&name, some_spec(random, hostile)).unwrap()),
        15..=19 => drop(pool.remove(&name).await),
        20..=29 => {
            if let Some(evaluator) = pool.get(&name) {
                evaluator.unload().await;
            }
        }
        30..=34 => {
            // Never registered: its handle is all there is of it.
            let loose = pool.evaluator("loose", some_spec(random, hostile)).unwrap();
            let _ = timeout(Duration::from_millis(20), loose.evaluate("x")).await;
        }
        roll => {
            let Some(evaluator) = pool.get(&name) else {
                pool.register(&name, some_spec(random, hostile)).unwrap();
                return;
            };
            let call = evaluator.evaluate(json!({"name": "Ada"}));
            if roll < 300 {
                let _ = timeout(Duration::from_micros(random.random_range(0..3000)), call).await;
            } else {
                let _ = call.await;
            }
        }
    }
}

async fn run(pool: &EvaluatorPool, operations: usize, seed: u64, hostile: &Arc<Vec<Vec<u8>>>) {
    const TASKS: usize = 8;
    let mut running = JoinSet::new();
    for task in 0..TASKS {
        let (pool, hostile) = (pool.clone(), hostile.clone());
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(task as u64));
        running.spawn(async move {
            for _ in 0..operations / TASKS {
                operate(&pool, &mut random, &hostile).await;
            }
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
}

/// What the process holds once everything is closed and idle threads have gone.
async fn held(pool: &EvaluatorPool) -> Held {
    for name in (0..NAMES).map(|name| format!("e{name}")) {
        pool.remove(&name).await;
    }
    eventually("everything is closed", || pool.runtimes() == 0).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    Held::by_this_process()
}

#[test]
#[ignore = "slow lane: thousands of operations, and rounds before them until nothing more is taken"]
fn after_a_soak_on_extism_the_process_holds_what_it_held_when_it_was_warm() {
    if alone("soak::after_a_soak_on_extism_the_process_holds_what_it_held_when_it_was_warm") {
        soak(EngineKind::Extism);
    }
}

#[test]
#[ignore = "slow lane: 200,000 operations, and rounds before them until nothing more is taken"]
fn after_a_soak_on_direct_the_process_holds_what_it_held_when_it_was_warm() {
    if alone("soak::after_a_soak_on_direct_the_process_holds_what_it_held_when_it_was_warm") {
        soak(EngineKind::Direct);
    }
}

fn soak(engine: EngineKind) {
    let by_default = if engine == EngineKind::Direct { 200_000 } else { 2_000 };
    let operations: usize =
        std::env::var("EVALPOOL_SOAK_OPERATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(by_default);
    let seed: u64 =
        std::env::var("EVALPOOL_SOAK_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    // Of one round. A slot of the direct engine is warm once many instances were in it.
    let warm_up = if engine == EngineKind::Direct { 5_000 } else { 500 };
    println!("{operations} operations on {engine:?}, EVALPOOL_SOAK_SEED={seed}");
    let texts = [
        r#"(module (func (export "run") unreachable))"#,
        r#"(module (func (export "run") (loop br 0)))"#,
        r#"(module (func $r (export "run") (call $r)))"#,
        r#"(module (memory 1) (func (export "run") (drop (memory.grow (i32.const 60000)))))"#,
        r#"(module (func $start unreachable) (start $start) (func (export "run")))"#,
        r#"(module (memory 1) (data (i32.const 65536) "x") (func (export "run")))"#,
        r#"(module (import "env" "mystery" (func)) (func (export "run")))"#,
    ];
    let hostile: Arc<Vec<Vec<u8>>> = Arc::new(texts.iter().map(|text| wasm(text)).collect());
    let runtime = forgetful_threads();
    runtime.block_on(async {
        let mut settings = Settings::default();
        settings.engine.kind = engine;
        // extism takes no others.
        settings.engine.trusted = engine == EngineKind::Extism;
        settings.pool.capacity = 8;
        settings.pool.max_instances = 16;
        settings.pool.idle_ttl = Duration::from_secs(1);
        settings.pool.negative_ttl = Duration::from_millis(50);
        settings.pool.grace = Duration::from_millis(20);
        // extism forgets a deadline that falls into the moment in which a call begins.
        settings.limits.exec_timeout = Duration::from_millis(if engine == EngineKind::Extism { 200 } else { 10 });
        settings.limits.build_timeout = Duration::from_millis(500);
        settings.limits.wait_timeout = Duration::from_mins(1);
        settings.limits.memory = 8 << 20;
        let pool = PoolBuilder::from(settings).park_after(0).background(Handle::current()).build().unwrap();
        // Warm is when three more rounds take no more than any before: what the engine and the allocator take once and keep,
        // they have. Something that leaks a little each time never gets there, or shows in the long run that follows.
        everything_once(&pool, &hostile).await;
        let mut warm = held(&pool).await;
        let mut quiet = 0;
        for round in 0..16_u64 {
            run(&pool, warm_up, seed.wrapping_add(round << 32), &hostile).await;
            let now = held(&pool).await;
            quiet = if now.resident_mib <= warm.resident_mib { quiet + 1 } else { 0 };
            warm = Held { resident_mib: now.resident_mib.max(warm.resident_mib), ..now };
            if quiet == 3 {
                break;
            }
        }
        // An allocator may take more once, by which threads met; what leaks is taken by each long run.
        let is_more = |after: Held, warm: Held| after.resident_mib > warm.resident_mib + warm.resident_mib.div_ceil(10);
        let mut after = warm;
        for long in 1..=3_u64 {
            warm = after;
            run(&pool, operations, seed.wrapping_mul(31 * long), &hostile).await;
            after = held(&pool).await;
            println!("warm:  {warm:?}\nafter: {after:?}");
            if !is_more(after, warm) {
                break;
            }
        }
        assert_eq!(after.executable_mappings, warm.executable_mappings);
        assert_eq!(after.threads, warm.threads);
        assert_eq!(after.open_files, warm.open_files);
        assert_eq!(after.address_space_gib, warm.address_space_gib);
        assert!(!is_more(after, warm), "{} MiB resident, and {} before", after.resident_mib, warm.resident_mib);
        if let Some(slots) = pool.slots() {
            println!("slots: {slots:?}");
            assert_eq!(slots.live, SlotCounts::default());
        }
        pool.close().await;
    });
}
