//! One evaluation's end is its own: siblings of the same evaluator in the middle of their calls, and those of an evaluator
//! of the same plugin, go on and finish.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use evalpool::{
    EvaluatorPool, HostFunction, Isolation, Source, Spec,
    config::EngineKind,
    engine::{Val, ValType},
};

use crate::{
    conformance::IMPORTS,
    support::{eventually, on_threads, settings, wasm},
};

/// Siblings that are to finish.
const SIBLINGS: usize = 8;

/// Says that it is there, then works until it is told to go, asking now and then: an interrupt that is not meant for it
/// meets it in its own code. `t` traps at that point, `x` exits, `s` never asks. Gives its input.
fn plugin() -> Vec<u8> {
    wasm(&format!(
        r#"(module
            (import "extism:host/user" "reached" (func $reached))
            (import "extism:host/user" "may_go" (func $may_go (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            {IMPORTS}
            (func $work (local $i i32)
                (loop $on (br_if $on (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 100000)))))
            (func (export "run") (result i32) (local $command i32)
                (local.set $command (call $input8 (i64.const 0)))
                (call $reached)
                (if (i32.eq (local.get $command) (i32.const 0x73)) (then (loop (br 0))))
                (loop $on (call $work) (br_if $on (i32.eqz (call $may_go))))
                (if (i32.eq (local.get $command) (i32.const 0x74)) (then unreachable))
                (if (i32.eq (local.get $command) (i32.const 0x78)) (then (call $exit (i32.const 1))))
                (call $echo)
                i32.const 0))"#
    ))
}

#[test]
fn the_end_of_one_evaluation_is_not_that_of_its_siblings() {
    for isolation in [Isolation::Fresh, Isolation::Reuse] {
        on_threads(beside_siblings(isolation));
    }
}

/// A call that is left in its first moments, at whatever it is then, does not go on: its deadline would not end it within
/// the grace.
#[test]
fn an_evaluation_that_is_left_as_it_begins_ends() {
    on_threads(async move {
        let mut settings = settings(EngineKind::Direct);
        settings.pool.max_instances_per_evaluator = 4;
        settings.limits.exec_timeout = Duration::from_mins(30);
        let pool = EvaluatorPool::from_settings(&settings).unwrap();
        let endless = r#"(module (memory 16) (func (export "run")
            (loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 1000000)) (br 0))))"#;
        let evaluator = pool.evaluator("endless", Spec::new(Source::bytes(wasm(endless)))).unwrap();
        evaluator.executable().await.unwrap();
        for round in 0..300 {
            let evaluator = evaluator.clone();
            let began = Instant::now();
            let call = tokio::spawn(async move { evaluator.evaluate("x").await });
            while began.elapsed() < Duration::from_micros(round * 5) {
                std::hint::spin_loop();
            }
            call.abort();
            let _ = call.await;
        }
        // A grace that no machine is too slow for. What still ran after it would be interrupted, and reported.
        assert_eq!(pool.close_with(Duration::from_mins(1)).await, evalpool::CloseReport::Drained);
    });
}

async fn beside_siblings(isolation: Isolation) {
    let mut settings = settings(EngineKind::Direct);
    settings.engine.isolation = isolation;
    settings.pool.capacity = 4;
    settings.pool.max_instances = 2 * SIBLINGS;
    settings.pool.max_instances_per_evaluator = 2 * SIBLINGS;
    settings.limits.exec_timeout = Duration::from_mins(10);
    let pool = EvaluatorPool::from_settings(&settings).unwrap();
    let (reached, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, may_go) = (reached.clone(), go.clone());
    let spec = Spec::new(Source::bytes(plugin()))
        .host_function(HostFunction::new("reached", [], [], move |_, _| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(vec![])
        }))
        .host_function(HostFunction::new("may_go", [], [ValType::I32], move |_, _| {
            Ok(vec![Val::I32(may_go.load(Ordering::SeqCst).into())])
        }));
    let evaluator = pool.evaluator("siblings", spec.clone()).unwrap();
    let hasty = pool.evaluator("hasty", spec.exec_timeout(Duration::from_millis(200))).unwrap();
    let call = |evaluator: &evalpool::Evaluator, input: String| {
        let evaluator = evaluator.clone();
        tokio::spawn(async move { evaluator.evaluate(input).await })
    };
    // Twice: in `reuse`, the second time meets the instances of the first.
    for round in 1..=2 {
        go.store(false, Ordering::SeqCst);
        reached.store(0, Ordering::SeqCst);
        let siblings: Vec<_> = (0..SIBLINGS).map(|number| call(&evaluator, number.to_string())).collect();
        let [leaves, traps, exits] = ["s", "t", "x"].map(|input| call(&evaluator, input.to_owned()));
        eventually("all of them are in the middle of their calls", || reached.load(Ordering::SeqCst) == SIBLINGS + 3)
            .await;
        leaves.abort();
        assert!(leaves.await.unwrap_err().is_cancelled());
        let late = call(&hasty, "s".to_owned()).await.unwrap();
        assert_eq!(late.unwrap_err().kind(), "exec_timeout");
        assert!(siblings.iter().all(|sibling| !sibling.is_finished()), "each was to wait until it may go");
        go.store(true, Ordering::SeqCst);
        assert_eq!(traps.await.unwrap().unwrap_err().kind(), "guest_trap");
        assert_eq!(exits.await.unwrap().unwrap_err().kind(), "guest_exit");
        for (number, sibling) in siblings.into_iter().enumerate() {
            let response = sibling.await.unwrap().unwrap_or_else(|error| panic!("{number} in {round}: {error}"));
            assert_eq!(response.bytes(), &number.to_string());
        }
    }
    pool.close().await;
    assert_eq!(pool.runtimes(), 0);
}
