//! What initialisers drew of time and chance that ran once: shared until they run once more, and by whom they do.

use std::{
    future::{Future, pending},
    pin::pin,
    task::Context,
    time::Duration,
};

use evalpool::{
    Error, Evaluator, EvaluatorPool, Init, Source, Spec,
    config::EngineKind,
    engine::{CallRequest, CompileRequest, CompiledPlugin, Drawn, InitState, Instance, Permit, SnapshotInfo},
};
use tokio::{
    runtime::Runtime,
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::{
    conformance::IMPORTS,
    init::{DRAWS, call, changes, once, pool},
    release::{engine, request},
    support::wasm,
};

/// So soon that any that is made is old.
const SOON: Duration = Duration::from_millis(1);

fn draws(every: Option<Duration>) -> Spec {
    Spec::new(Source::bytes(wasm(DRAWS))).init_refresh(every)
}

fn snapshot(pool: &EvaluatorPool, name: &str) -> SnapshotInfo {
    pool.info(name).unwrap().init.snapshot.unwrap()
}

/// The random number that its initialiser drew.
async fn drawn(evaluator: &Evaluator) -> Vec<u8> {
    call(evaluator, "run", b"").await.unwrap()[..8].to_vec()
}

#[tokio::test]
async fn what_initialisers_drew_is_shared_until_it_is_drawn_anew() {
    let pool = pool();
    let (hourly, _) = once(&pool, "hourly", draws(Some(Duration::from_hours(1)))).await;
    let (never, _) = once(&pool, "never", draws(None)).await;
    let (zero, _) = once(&pool, "zero", draws(Some(Duration::ZERO))).await;
    let (soon, _) = once(&pool, "soon", draws(Some(SOON))).await;
    // Its initialisers draw nothing.
    let (fixed, _) = once(&pool, "fixed", changes().init_refresh(Some(SOON))).await;
    let all = [&hourly, &never, &zero];
    let mut first = Vec::new();
    for evaluator in all {
        first.push(drawn(evaluator).await);
    }
    let before = drawn(&soon).await;
    let began = Instant::now();
    while drawn(&soon).await == before {
        assert!(began.elapsed() < Duration::from_mins(1), "it is not drawn anew");
        for (evaluator, first) in all.iter().zip(&first) {
            assert_eq!(drawn(evaluator).await, *first, "{}", evaluator.name());
        }
        call(&fixed, "run", b"").await.unwrap();
    }
    assert!(snapshot(&pool, "soon").refreshes > 0);
    assert_eq!(snapshot(&pool, "soon").drew, Drawn { time: true, randomness: true });
    for evaluator in all.into_iter().chain([&fixed]) {
        let name = evaluator.name();
        let SnapshotInfo { refreshes, age, .. } = snapshot(&pool, name);
        assert_eq!(refreshes, 0, "{name}");
        assert!(age >= began.elapsed(), "{name}: {age:?}");
    }
    assert_eq!(snapshot(&pool, "fixed").drew, Drawn::default());
    pool.close().await;
    assert_eq!((pool.memory().code, pool.slots().unwrap().live.instances), (0, 0));
}

#[tokio::test]
async fn what_nobody_runs_any_more_is_given_back() {
    let pool = pool();
    let (evaluator, _) = once(&pool, "draws", draws(Some(SOON))).await;
    let (held, began) = (pool.memory().code, Instant::now());
    while snapshot(&pool, "draws").refreshes < 2 {
        assert!(began.elapsed() < Duration::from_mins(5), "it is not drawn anew");
        drawn(&evaluator).await;
    }
    // The plugin as it is and two snapshots would be half as much again. One is held by the next instance, which is made.
    while pool.memory().code > held * 5 / 4 {
        assert!(began.elapsed() < Duration::from_mins(5), "{} of {held} bytes", pool.memory().code);
        drawn(&evaluator).await;
    }
    pool.close().await;
}

async fn compiled(text: &str) -> Box<dyn CompiledPlugin> {
    let request = CompileRequest { wasi: true, init: Init::Once, init_refresh: Some(SOON), ..request(text) };
    engine(EngineKind::Direct).compile(request).await.unwrap()
}

async fn instance(plugin: &dyn CompiledPlugin) -> Result<Box<dyn Instance>, Error> {
    plugin.instantiate(Permit::new(())).await
}

async fn run(instance: &mut dyn Instance) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_mins(1);
    let request = CallRequest { entry_point: "run", input: (&b""[..]).into(), context: None, deadline };
    instance.call(request).await.unwrap()[..8].to_vec()
}

fn has_ended(future: &mut (impl Future<Output = ()> + Unpin)) -> bool {
    pin!(future).poll(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
}

#[tokio::test]
async fn a_plugin_of_which_no_instance_is_made_is_not_read_again() {
    let plugin = compiled(DRAWS).await;
    let mut first = instance(&*plugin).await.unwrap();
    assert!(plugin.read_anew().is_none(), "there is none yet");
    plugin.snapshot().await.unwrap();
    assert_eq!(plugin.init_state(), InitState::Once);
    let drew = run(&mut *first).await;
    // It is old by then.
    sleep(2 * SOON).await;
    let mut read = plugin.read_anew().unwrap();
    assert!(!has_ended(&mut read));
    plugin.snapshot().await.unwrap();
    assert_eq!(plugin.snapshot_info().unwrap().refreshes, 0, "there is nothing to compile");
    let mut second = instance(&*plugin).await.unwrap();
    read.as_mut().await;
    let mut third = instance(&*plugin).await.unwrap();
    assert_eq!(run(&mut *third).await, drew, "until it is compiled, the old one serves");
    plugin.snapshot().await.unwrap();
    assert_eq!(plugin.snapshot_info().unwrap().refreshes, 1);
    let mut fourth = instance(&*plugin).await.unwrap();
    let anew = run(&mut *second).await;
    assert_ne!(anew, drew);
    // Perhaps it was read as well: it drew itself then.
    if plugin.snapshot_info().unwrap().age < SOON {
        assert_eq!(run(&mut *fourth).await, anew);
    }
    let mut read = plugin.read_anew().unwrap();
    drop(plugin);
    read.as_mut().await;
}

#[tokio::test]
async fn nothing_is_read_anew_that_nobody_would_compile_and_what_is_not_compiled_after_all_is_read_again_later() {
    let plugin = compiled(DRAWS).await;
    let mut first = instance(&*plugin).await.unwrap();
    plugin.snapshot().await.unwrap();
    let drew = run(&mut *first).await;
    sleep(2 * SOON).await;
    let mut unread = instance(&*plugin).await.unwrap();
    assert_eq!(run(&mut *unread).await, drew, "nobody waits for it");
    let mut waits = plugin.read_anew().unwrap();
    let mut read = instance(&*plugin).await.unwrap();
    assert_ne!(run(&mut *read).await, drew);
    waits.as_mut().await;
    // As one whose runtime retires before it is polled.
    drop(plugin.snapshot());
    plugin.snapshot().await.unwrap();
    assert_eq!(plugin.snapshot_info().unwrap().refreshes, 0, "it was given up");
    let mut later = instance(&*plugin).await.unwrap();
    assert_eq!(run(&mut *later).await, drew);
    assert_eq!(plugin.init_state(), InitState::Once);
}

#[tokio::test]
async fn whoever_would_compile_the_first_snapshot_before_an_instance_was_read_is_told_when_one_was() {
    let begins = format!("(module {IMPORTS} (func (export \"_initialize\") (i32.store (i32.const 8) (i32.const 1))))");
    let plugin = compiled(&begins).await;
    // As where the probe could not be read in time.
    let mut read = plugin.read_anew().unwrap();
    plugin.snapshot().await.unwrap();
    assert!(!has_ended(&mut read));
    assert_eq!(plugin.init_state(), InitState::Pending);
    let _late = instance(&*plugin).await.unwrap();
    read.as_mut().await;
    plugin.snapshot().await.unwrap();
    assert_eq!(plugin.init_state(), InitState::Once);
}

#[tokio::test]
async fn a_runtime_that_ends_between_reading_and_compiling_leaves_others_their_turn() {
    let engine = engine(EngineKind::Direct);
    let mut plugins = Vec::new();
    for _ in 0..2 {
        let request = CompileRequest { wasi: true, init: Init::Once, init_refresh: Some(SOON), ..request(DRAWS) };
        let plugin = engine.compile(request).await.unwrap();
        let _probe = instance(&*plugin).await.unwrap();
        plugin.snapshot().await.unwrap();
        plugins.push(plugin);
    }
    let [ends, goes_on] = plugins.try_into().unwrap_or_else(|_| unreachable!("there are two"));
    let runtime = Runtime::new().unwrap();
    let (tells, told) = oneshot::channel();
    let mut waits = ends.read_anew().unwrap();
    runtime.spawn(async move {
        waits.as_mut().await;
        tells.send(()).unwrap();
        // As one that waits for a compile slot.
        pending::<()>().await;
    });
    sleep(2 * SOON).await;
    let _read = instance(&*ends).await.unwrap();
    told.await.unwrap();
    let mut waits = goes_on.read_anew().unwrap();
    let _unread = instance(&*goes_on).await.unwrap();
    assert!(!has_ended(&mut waits), "another has the turn");
    runtime.shutdown_background();
    // Once what was read is paid for.
    let began = Instant::now();
    while !has_ended(&mut waits) {
        assert!(began.elapsed() < Duration::from_mins(1), "the turn is held");
        drop(instance(&*goes_on).await.unwrap());
    }
    goes_on.snapshot().await.unwrap();
    assert_eq!(goes_on.snapshot_info().unwrap().refreshes, 1);
    ends.snapshot().await.unwrap();
    assert_eq!(ends.snapshot_info().unwrap().refreshes, 0, "it was given up");
}

#[tokio::test]
async fn nothing_is_read_again_of_a_plugin_whose_initialisers_draw_nothing() {
    let begins = format!("(module {IMPORTS} (func (export \"_initialize\") (i32.store (i32.const 8) (i32.const 1))))");
    let plugin = compiled(&begins).await;
    let _probe = instance(&*plugin).await.unwrap();
    plugin.snapshot().await.unwrap();
    assert_eq!(plugin.init_state(), InitState::Once);
    assert!(plugin.read_anew().is_none());
}

#[tokio::test]
async fn when_initialisers_fail_that_ran_well_before_instances_begin_with_what_there_is() {
    // Seven of eight times.
    let traps = "(if (i32.and (i32.load (i32.const 0)) (i32.const 7)) (then unreachable))";
    let fails = DRAWS.replace("(drop (call $clock (i32.const 1) (i64.const 1) (i32.const 8))))", &format!("{traps})"));
    assert!(fails.contains(traps));
    let plugin = compiled(&fails).await;
    let mut probe = loop {
        if let Ok(probe) = instance(&*plugin).await {
            break probe;
        }
    };
    plugin.snapshot().await.unwrap();
    // Somebody would compile what is read.
    let _waits = plugin.read_anew().unwrap();
    let (drew, began) = (run(&mut *probe).await, Instant::now());
    loop {
        let mut made = instance(&*plugin).await.unwrap();
        if run(&mut *made).await != drew {
            break;
        }
        assert!(began.elapsed() < Duration::from_mins(1), "it is not drawn anew");
    }
    assert_eq!(plugin.init_state(), InitState::Once);
}
