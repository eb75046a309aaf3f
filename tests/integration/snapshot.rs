//! The pool at one moment, as a status page shows it.

use std::{collections::BTreeMap, time::Duration};

use evalpool::{Evaluator, EvaluatorPool, RuntimeInfo, RuntimeState, Spec};
use serde_json::json;
use tokio::{task::JoinHandle, time::sleep};

use super::support::{
    eventually, on_threads,
    spy::{Act, Spy},
};

fn call(evaluator: &Evaluator, input: &'static str) -> JoinHandle<()> {
    let evaluator = evaluator.clone();
    tokio::spawn(async move { drop(evaluator.evaluate(input).await.unwrap()) })
}

fn of_tenant(pool: &EvaluatorPool, tenant: &str, name: &str) -> Evaluator {
    pool.register(name, Spy::spec().tenant(tenant)).unwrap()
}

/// Name, tenant, state, instances, busy.
fn lines(runtimes: &[RuntimeInfo]) -> Vec<(&str, &str, RuntimeState, usize, usize)> {
    runtimes.iter().map(|it| (&*it.name, &*it.tenant, it.state, it.instances, it.busy)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_shows_every_runtime_who_waits_and_for_how_long() {
    let spy = Spy::default();
    spy.weighs(1 << 20, 1 << 16);
    let pool = spy.pool(|builder| builder.capacity(3).max_instances(10).max_instances_per_evaluator(1));
    let [idle, busy, built, queued] =
        [("a", "idle"), ("b", "busy"), ("b", "built"), ("c", "queued")].map(|(of, name)| of_tenant(&pool, of, name));
    idle.evaluate("").await.unwrap();
    sleep(Duration::from_secs(5)).await;
    let running = call(&busy, "hold gate");
    eventually("it runs", || spy.calls_started() == 2).await;
    spy.on_compile([Act::Held]);
    let building = call(&built, "");
    eventually("it is built", || spy.compiles() == 3).await;
    let second = call(&busy, "");
    eventually("it waits for the instance", || pool.snapshot().waiting.instance == 1).await;
    sleep(Duration::from_secs(3)).await;

    let shown = pool.snapshot();
    assert_eq!((shown.capacity, shown.registered), (3, 4));
    let counts = shown.counts;
    assert_eq!((counts.building, counts.idle, counts.busy, counts.draining), (1, 1, 1, 0));
    let instances = shown.instances;
    assert_eq!((instances.idle, instances.busy, instances.most), (1, 2, 10), "the probe of the build is one");
    let waiting = shown.waiting;
    assert_eq!((waiting.capacity, waiting.instance, waiting.build), (0, 1, 1));
    assert!(waiting.oldest >= Duration::from_secs(3), "{:?}", waiting.oldest);
    let (live, is_built) = (RuntimeState::Live, RuntimeState::Building);
    let expected = [("busy", "b", live, 1, 1), ("idle", "a", live, 1, 0), ("built", "b", is_built, 0, 0)];
    assert_eq!(lines(&shown.runtimes), expected, "the one used last comes first, builds come after all that are live");
    let [of_busy, of_idle, of_built] = &*shown.runtimes else { unreachable!() };
    assert_eq!((of_idle.evaluator, of_idle.uses), (idle.id(), 1));
    assert!(of_idle.revision < of_busy.revision && of_busy.revision < of_built.revision);
    assert!(of_idle.age.unwrap() >= Duration::from_secs(8) && of_idle.unused.unwrap() >= Duration::from_secs(8));
    assert_eq!((of_idle.memory_bytes, of_idle.digest), ((1 << 20) + (1 << 16), pool.info("idle").unwrap().digest));
    assert_eq!((of_built.memory_bytes, of_built.digest, of_built.age, of_built.unused), (0, None, None, None));
    assert_eq!(shown.memory, pool.memory());

    // A fourth has no place, and takes that of the one that is idle; it is known while it waits.
    spy.keeps_permits(1);
    let fourth = call(&queued, "");
    eventually("it is listed", || lines(&pool.snapshot().runtimes).iter().any(|line| line.0 == "queued")).await;
    spy.release();
    spy.open_gate("gate");
    for task in [running, second, building] {
        task.await.unwrap();
    }
    spy.let_go_of_permits();
    fourth.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn totals_count_each_event_once_also_what_threads_keep_to_themselves() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1));
    let [first, second] = ["first", "second"].map(|name| pool.register(name, Spy::spec()).unwrap());
    let sums = |pairs: &[(&'static str, u64)]| pairs.iter().copied().collect::<BTreeMap<_, _>>();
    assert_eq!(pool.snapshot().totals, evalpool::metrics::PoolTotals::default());
    for _ in 0..10 {
        first.evaluate("").await.unwrap();
    }
    spy.on_call([Act::Fail]);
    second.evaluate("").await.unwrap_err();
    let totals = pool.snapshot().totals;
    assert_eq!(totals.evaluations, sums(&[("ok", 10), ("guest_trap", 1)]));
    assert_eq!(totals.lookups, sums(&[("hit", 9), ("miss", 2)]));
    assert_eq!(totals.builds, sums(&[("ok", 2)]));
    assert_eq!(totals.evictions, sums(&[("capacity", 1)]));
    assert_eq!((totals.closes, totals.closes_forced), (sums(&[("capacity", 1)]), 0));
    spy.on_compile([Act::Fail]);
    first.evaluate("").await.unwrap_err();
    spy.on_call([Act::Never]);
    let running = tokio::spawn(async move { second.evaluate("").await });
    eventually("it runs", || spy.calls_started() == 12).await;
    pool.close_with(Duration::ZERO).await;
    running.await.unwrap().unwrap_err();
    let totals = pool.snapshot().totals;
    assert_eq!(totals.builds, sums(&[("ok", 3), ("invalid_plugin", 1)]));
    assert_eq!((totals.closes, totals.closes_forced), (sums(&[("capacity", 2), ("shutdown", 1)]), 1));
    assert_eq!(pool.snapshot().runtimes, []);
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_drains_keeps_its_name_after_its_evaluator_is_gone() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1));
    let evaluator = pool.register("leaving", Spy::spec().tenant("acme")).unwrap();
    let running = call(&evaluator, "hold gate");
    eventually("it runs", || spy.calls_started() == 1).await;
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.remove("leaving").await }
    });
    drop(evaluator);
    eventually("it drains", || pool.snapshot().counts.draining == 1).await;
    assert_eq!(lines(&pool.snapshot().runtimes), [("leaving", "acme", RuntimeState::Draining, 1, 1)]);
    spy.open_gate("gate");
    running.await.unwrap();
    assert!(closing.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn in_json_times_are_in_seconds() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1));
    pool.register("one", Spy::spec()).unwrap().evaluate("").await.unwrap();
    sleep(Duration::from_millis(1500)).await;
    let shown = serde_json::to_value(pool.snapshot()).unwrap();
    assert_eq!(shown["counts"], json!({"building": 0, "idle": 1, "busy": 0, "draining": 0}));
    assert_eq!(shown["waiting"], json!({"capacity": 0, "instance": 0, "build": 0, "oldest_seconds": 0.0}));
    assert_eq!(shown["totals"]["evaluations"], json!({"ok": 1}));
    let runtime = &shown["runtimes"][0];
    assert_eq!((&runtime["name"], &runtime["state"]), (&json!("one"), &json!("live")));
    assert_eq!((&runtime["age_seconds"], &runtime["unused_seconds"]), (&json!(1.5), &json!(1.5)));
}

#[test]
#[ignore = "prints how long the snapshot of a large pool takes, and how long a call waits meanwhile"]
fn a_snapshot_of_thousands_holds_up_nobody() {
    const RUNTIMES: usize = 5_000;
    on_threads(async {
        let spy = Spy::default();
        let pool = spy.pool(|builder| builder.capacity(RUNTIMES).max_instances(2 * RUNTIMES));
        let spec: Spec = Spy::spec();
        for number in 0..RUNTIMES {
            pool.register(&format!("t{}/{number}", number % 100), spec.clone()).unwrap().warm().await.unwrap();
        }
        let began = std::time::Instant::now();
        let rounds: u32 = 20;
        for _ in 0..rounds {
            assert_eq!(pool.snapshot().runtimes.len(), RUNTIMES);
        }
        println!("{RUNTIMES} runtimes: {:?} a snapshot", began.elapsed() / rounds);
    });
}
