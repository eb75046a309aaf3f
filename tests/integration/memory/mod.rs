//! `pool.memory`: what runtimes hold, in bytes, has a bound. What is dropped for it, in which order, and what is not.

mod heavy;
#[cfg(all(feature = "service", target_os = "linux"))]
mod once;
#[cfg(feature = "service")]
mod real;

use std::time::Duration;

use evalpool::{Error, Evaluator, EvaluatorPool, Isolation, PoolBuilder, RuntimeState, Settings, Source, Spec};
use tokio::{runtime::Handle, task::JoinHandle};

use self::heavy::Heavy;
use crate::support::{
    eventually,
    spy::{Act, Spy},
    wasm,
};

const MIB: u64 = 1 << 20;

/// A pool of 100 MiB.
fn pool(heavy: &Heavy, isolation: Isolation) -> EvaluatorPool {
    let mut settings = Settings::default();
    settings.pool.memory = 100 * MIB;
    settings.engine.isolation = isolation;
    settings.limits.wait_timeout = Duration::from_hours(1);
    PoolBuilder::from(settings).background(Handle::current()).engine(heavy.clone()).build().unwrap()
}

fn register(pool: &EvaluatorPool, name: &str) -> Evaluator {
    pool.register(name, Spy::spec()).unwrap()
}

/// The evaluators whose runtimes are live, the most recently used first.
fn live(pool: &EvaluatorPool, all: &[&Evaluator]) -> Vec<String> {
    let live = pool.snapshot().runtimes.into_iter().filter(|runtime| runtime.state == RuntimeState::Live);
    live.filter_map(|runtime| all.iter().find(|evaluator| evaluator.id() == runtime.evaluator))
        .map(|evaluator| evaluator.name().to_owned())
        .collect()
}

/// A call that runs until its gate is opened.
async fn hold(heavy: &Heavy, evaluator: &Evaluator, gate: &str) -> JoinHandle<Result<evalpool::Response, Error>> {
    let before = heavy.spy.calls_started();
    let (evaluator, input) = (evaluator.clone(), format!("hold {gate}"));
    let call = tokio::spawn(async move { evaluator.evaluate(input).await });
    eventually("the call runs", || heavy.spy.calls_started() > before).await;
    call
}

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_runtimes_go_until_there_is_room() {
    let heavy = Heavy::default();
    let pool = pool(&heavy, Isolation::Reuse);
    let [a, b, c, d] = ["a-20-10", "b-20-10", "c-20-10", "d-40-10"].map(|name| register(&pool, name));
    for evaluator in [&a, &b, &c] {
        evaluator.evaluate("x").await.unwrap();
    }
    a.evaluate("x").await.unwrap();
    assert_eq!(pool.memory().code + pool.memory().instances, 90 * MIB);
    // 50 are wanted and 10 are free. The idle instances give 30; one runtime's code gives the rest.
    d.evaluate("x").await.unwrap();
    assert_eq!(live(&pool, &[&a, &b, &c, &d]), ["d-40-10", "a-20-10", "c-20-10"]);
    assert!(pool.memory().code + pool.memory().instances <= 100 * MIB);
    pool.close().await;
    assert_eq!((pool.memory().code, pool.memory().instances), (0, 0));
    heavy.spy.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn idle_instances_go_before_any_runtime() {
    let heavy = Heavy::default();
    let pool = pool(&heavy, Isolation::Reuse);
    let [a, b] = ["a-10-15", "b-10-40"].map(|name| register(&pool, name));
    let calls = [hold(&heavy, &a, "a").await, hold(&heavy, &a, "b").await, hold(&heavy, &a, "c").await];
    for (gate, call) in ["a", "b", "c"].into_iter().zip(calls) {
        heavy.spy.open_gate(gate);
        call.await.unwrap().unwrap();
    }
    assert_eq!(pool.memory().instances, 45 * MIB);
    b.evaluate("x").await.unwrap();
    assert_eq!(live(&pool, &[&a, &b]), ["b-10-40", "a-10-15"], "both are live");
    assert_eq!(pool.memory().instances, 70 * MIB, "two of a, and one of b");
    pool.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_build_for_which_nothing_can_be_dropped_is_overloaded_and_nothing_is_lost() {
    let heavy = Heavy::default();
    let pool = pool(&heavy, Isolation::Fresh);
    let [a, b, c] = ["a-30-30", "b-60-10", "c-20-10"].map(|name| register(&pool, name));
    c.evaluate("x").await.unwrap();
    let call = hold(&heavy, &a, "a").await;
    let error = b.evaluate("x").await.unwrap_err();
    assert_eq!(error.kind(), "overloaded");
    let said = error.chain();
    assert!(said.contains("pool.memory") && said.contains("70 MiB more are wanted"), "{said}");
    assert_eq!(live(&pool, &[&a, &b, &c]), ["a-30-30", "c-20-10"], "closing c would not have been enough");
    heavy.spy.open_gate("a");
    call.await.unwrap().unwrap();
    b.evaluate("x").await.expect("it is not remembered, and what is unused gives way");
    pool.close().await;
    heavy.spy.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_build_gets_its_room_when_a_call_ends() {
    let heavy = Heavy::default();
    let pool = pool(&heavy, Isolation::Reuse);
    let [a, b] = ["a-30-30", "b-60-10"].map(|name| register(&pool, name));
    let call = hold(&heavy, &a, "a").await;
    let waits = tokio::spawn(async move { b.evaluate("x").await });
    eventually("it is compiled", || heavy.spy.opens() == 2).await;
    heavy.spy.open_gate("a");
    call.await.unwrap().unwrap();
    waits.await.unwrap().unwrap();
    pool.close().await;
    heavy.spy.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_plugin_for_which_there_can_never_be_room_is_refused_by_name_of_the_setting() {
    let heavy = Heavy::default();
    let pool = pool(&heavy, Isolation::Reuse);
    let [small, large] = ["a-30-30", "b-90-11"].map(|name| register(&pool, name));
    small.evaluate("x").await.unwrap();
    let error = large.evaluate("x").await.unwrap_err();
    assert_eq!(error.kind(), "invalid_plugin");
    assert!(
        error.to_string().contains("code takes 90 MiB and an instance of it 11 MiB, and pool.memory is 100 MiB"),
        "{error}"
    );
    assert_eq!(live(&pool, &[&small]).len(), 1);
    pool.close().await;
}

#[tokio::test(start_paused = true)]
async fn code_that_many_share_is_weighed_once_and_goes_last() {
    let heavy = Heavy::default();
    let pool = pool(&heavy, Isolation::Reuse);
    let shared = ["s-40-1", "s-40-2", "s-40-3"].map(|name| register(&pool, name));
    for evaluator in &shared {
        evaluator.evaluate("x").await.unwrap();
    }
    assert_eq!((pool.memory().code, pool.memory().instances), (40 * MIB, 6 * MIB));
    let [own, more] = ["a-40-1", "b-45-1"].map(|name| register(&pool, name));
    own.evaluate("x").await.unwrap();
    // `own` was used last, but closing one of those that share would give nothing back.
    more.evaluate("x").await.unwrap();
    let all: Vec<&Evaluator> = shared.iter().chain([&own, &more]).collect();
    assert_eq!(live(&pool, &all), ["b-45-1", "s-40-3", "s-40-2", "s-40-1"]);
    pool.close().await;
    assert_eq!(pool.memory().code, 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_guest_grew_to_is_given_back_when_its_call_has_ended() {
    let heavy = Heavy::default();
    let pool = pool(&heavy, Isolation::Reuse);
    let [a, b] = ["a-20-10", "b-20-10"].map(|name| register(&pool, name));
    b.evaluate("x").await.unwrap();
    a.evaluate("grow 30").await.unwrap();
    assert_eq!(pool.memory().instances, 50 * MIB, "it is within the bound, and may be used again");
    // The same instance grows once more, beyond the bound.
    a.evaluate("grow 30").await.unwrap();
    eventually("idle instances are dropped, b's first", || pool.memory().instances == 0).await;
    assert_eq!(live(&pool, &[&a, &b]), ["a-20-10", "b-20-10"]);
    pool.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_grows_while_it_runs_makes_unused_runtimes_go() {
    let heavy = Heavy::default();
    let pool = pool(&heavy, Isolation::Reuse);
    let [a, b] = ["a-20-10", "b-20-10"].map(|name| register(&pool, name));
    b.evaluate("x").await.unwrap();
    let call = hold(&heavy, &a, "70").await;
    // Nothing else happens here: the sweep sees it.
    eventually("b has given way", || live(&pool, &[&a, &b]) == ["a-20-10"]).await;
    eventually("b is gone", || pool.memory().code + pool.memory().instances == 100 * MIB).await;
    heavy.spy.open_gate("70");
    call.await.unwrap().unwrap();
    pool.close().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_made_that_nobody_asked_for_while_room_is_short() {
    let heavy = Heavy::default();
    let pool = pool(&heavy, Isolation::Fresh);
    let a = register(&pool, "a-20-45");
    let call = hold(&heavy, &a, "a").await;
    let call_2 = hold(&heavy, &a, "b").await;
    assert_eq!(pool.memory().instances, 90 * MIB, "a caller's instance is made, whatever there is");
    heavy.spy.open_gate("a");
    call.await.unwrap().unwrap();
    heavy.spy.open_gate("b");
    call_2.await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(pool.memory().instances <= 80 * MIB);
    pool.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_close_does_not_wait_for_who_waits_for_room() {
    let heavy = Heavy::default();
    let pool = pool(&heavy, Isolation::Reuse);
    let [a, b] = ["a-60-30", "b-60-10"].map(|name| register(&pool, name));
    let _call = hold(&heavy, &a, "a").await;
    let waits = tokio::spawn(async move { b.evaluate("x").await });
    eventually("it is compiled", || heavy.spy.opens() == 2).await;
    pool.close_with(Duration::ZERO).await;
    assert_eq!(waits.await.unwrap().unwrap_err().kind(), "shutting_down");
    heavy.spy.assert_nothing_left();
    assert_eq!(pool.memory().code + pool.memory().instances, 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_guest_grows_to_closes_nobody_in_vain() {
    let heavy = Heavy::default();
    let pool = pool(&heavy, Isolation::Reuse);
    let [a, b] = ["a-20-10", "b-20-10"].map(|name| register(&pool, name));
    b.evaluate("x").await.unwrap();
    let call = hold(&heavy, &a, "200").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(live(&pool, &[&a, &b]), ["a-20-10", "b-20-10"], "closing b would not have been enough");
    assert_eq!(b.evaluate("x").await.unwrap().text().unwrap(), "x#1", "its idle instance was dropped");
    heavy.spy.open_gate("200");
    call.await.unwrap().unwrap();
    pool.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_build_that_finds_no_room_does_not_hold_up_one_that_does() {
    let heavy = Heavy::default();
    let pool = pool(&heavy, Isolation::Reuse);
    let [a, large, small] = ["a-40-10", "b-60-10", "c-10-10"].map(|name| register(&pool, name));
    let call = hold(&heavy, &a, "0").await;
    let waits = tokio::spawn(async move { large.evaluate("x").await });
    eventually("it is compiled", || heavy.spy.opens() == 2).await;
    small.evaluate("x").await.unwrap();
    assert!(!waits.is_finished());
    assert_eq!(waits.await.unwrap().unwrap_err().kind(), "overloaded");
    heavy.spy.open_gate("0");
    call.await.unwrap().unwrap();
    pool.close().await;
    heavy.spy.assert_nothing_left();
}

#[tokio::test]
async fn a_plugin_that_is_read_is_held_until_it_is_built_and_one_that_was_in_memory_costs_nothing_more() {
    let module = wasm(r#"(module (func (export "run")))"#);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugin.wasm");
    std::fs::write(&path, &module).unwrap();
    for (source, held) in [(Source::file(path), module.len() as u64), (Source::bytes(module), 0)] {
        let spy = Spy::default();
        spy.on_compile([Act::Held]);
        let pool = spy.pool(|builder| builder);
        let evaluator = pool.register("one", Spec::new(source)).unwrap();
        let call = tokio::spawn(async move { evaluator.evaluate("").await });
        eventually("it compiles", || spy.working() == 1).await;
        assert_eq!(pool.memory().code, held);
        spy.release();
        call.await.unwrap().unwrap();
        assert_eq!(pool.memory().code, 0);
        pool.close().await;
    }
}
