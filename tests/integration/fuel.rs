//! `limits.fuel` means the same on both engines: instructions of the guest's own, for each evaluation, and once more for
//! the initialisers of each instance.

use evalpool::{Error, EvaluatorPool, Isolation, Source, Spec, config::EngineKind};

use crate::support::{builder, wasm};

fn pool(engine: EngineKind) -> EvaluatorPool {
    builder(engine).capacity(4).build().unwrap()
}

fn spec(text: &str, fuel: u64) -> Spec {
    Spec::new(Source::bytes(wasm(text))).fuel(Some(fuel))
}

/// A function that takes some `rounds` times ten instructions.
fn busy(rounds: u32) -> String {
    format!(
        "(func $busy (local $n i32)
            (loop $next
                (local.set $n (i32.add (local.get $n) (i32.const 1)))
                (br_if $next (i32.lt_u (local.get $n) (i32.const {rounds})))))"
    )
}

/// The limit that an error names, and whether an initialiser used it up.
fn used_up(error: &Error) -> (u64, bool) {
    let Error::OutOfFuel { limit, initialising, .. } = error else { panic!("{error}") };
    assert_eq!(error.kind(), "out_of_fuel");
    assert!(error.to_string().ends_with(&format!("; limits.fuel is {limit}")), "{error}");
    (*limit, *initialising)
}

async fn what_the_host_does_for_a_guest_costs_no_fuel(engine: EngineKind) {
    let pool = pool(engine);
    for isolation in [Isolation::Fresh, Isolation::Reuse] {
        let nothing = spec(r#"(module (func (export "run") (result i32) (i32.const 0)))"#, 2).isolation(isolation);
        let evaluator = pool.evaluator("nothing", nothing).unwrap();
        for input in ["", "x", "a few words"] {
            evaluator.evaluate(input).await.unwrap();
        }
    }
    pool.close().await;
}

async fn each_evaluation_has_all_of_its_fuel(engine: EngineKind) {
    let pool = pool(engine);
    let text = format!(r#"(module {} (func (export "run") (call $busy)))"#, busy(1000));
    for isolation in [Isolation::Fresh, Isolation::Reuse] {
        let evaluator = pool.evaluator("busy", spec(&text, 15_000).isolation(isolation)).unwrap();
        for _ in 0..3 {
            evaluator.evaluate("").await.unwrap();
        }
        let evaluator = pool.evaluator("short", spec(&text, 4_000).isolation(isolation)).unwrap();
        for _ in 0..3 {
            assert_eq!(used_up(&evaluator.evaluate("").await.unwrap_err()), (4_000, false));
        }
    }
    pool.close().await;
}

async fn initialisers_have_as_much_once_more(engine: EngineKind) {
    let pool = pool(engine);
    let text = format!(
        r#"(module {} (func (export "_initialize") (call $busy)) (func (export "run") (call $busy)))"#,
        busy(1000)
    );
    let evaluator = pool.evaluator("busy", spec(&text, 15_000)).unwrap();
    for _ in 0..3 {
        evaluator.evaluate("").await.unwrap();
    }
    pool.close().await;
}

async fn a_plugin_whose_initialisers_use_it_up_is_out_of_fuel(engine: EngineKind) {
    let pool = pool(engine);
    for text in [
        r#"(module (func (export "_initialize") (loop br 0)) (func (export "run")))"#,
        r#"(module (func $start (loop br 0)) (start $start) (func (export "run")))"#,
    ] {
        for fuel in [1, 100_000] {
            let evaluator = pool.evaluator("spins", spec(text, fuel)).unwrap();
            for _ in 0..2 {
                assert_eq!(used_up(&evaluator.evaluate("").await.unwrap_err()), (fuel, true), "{text}");
            }
            evaluator.close().await;
        }
    }
    pool.close().await;
}

on_each_engine!(
    what_the_host_does_for_a_guest_costs_no_fuel,
    each_evaluation_has_all_of_its_fuel,
    initialisers_have_as_much_once_more,
    a_plugin_whose_initialisers_use_it_up_is_out_of_fuel,
);
