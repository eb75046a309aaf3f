//! The context of a call: host functions that serve the call see it, nobody else does, and it goes with the evaluation.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use evalpool::{
    EntryPoint, Evaluator, EvaluatorPool, HostFunction, Isolation, Source, Spec,
    config::EngineKind,
    engine::{Guest, Val, ValType},
};
use tokio::{sync::Semaphore, task::JoinSet};

use super::{AliveCount, imports};
use crate::support::{ENGINES, builder, eventually, on_threads, wasm};

/// Whose call it is.
struct Customer {
    name: String,
    _alive: Option<AliveCount>,
}

fn customer(name: impl Into<String>) -> Customer {
    Customer { name: name.into(), _alive: None }
}

/// A customer of whom there was none before, and how many there are.
fn counted() -> (Customer, Arc<AtomicUsize>) {
    let alive = Arc::new(AtomicUsize::new(1));
    (Customer { name: "counted".into(), _alive: Some(AliveCount(alive.clone())) }, alive)
}

/// Answers with what `whose` gives, or comes to another end after it was called.
fn guest() -> Vec<u8> {
    let imports = imports(
        r#"(import "extism:host/user" "whose" (func $whose (result i64)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"#,
    );
    wasm(&format!(
        r#"(module {imports}
            (func (export "run") (call $block (call $whose)))
            (func (export "fail") (result i32) (drop (call $whose)) i32.const 1)
            (func (export "exit") (drop (call $whose)) (call $exit (i32.const 3)))
            (func (export "trap") (drop (call $whose)) unreachable)
            (func (export "spin") (drop (call $whose)) (loop br 0)))"#
    ))
}

/// The customer's name, or why there is none.
fn answer(guest: &mut dyn Guest) -> Result<Vec<Val>, evalpool::HostFunctionError> {
    let name = match guest.context::<Customer>() {
        Ok(customer) => customer.name.clone(),
        Err(error) => error.to_string(),
    };
    Ok(vec![Val::I64(guest.write(name.as_bytes())?.cast_signed())])
}

fn whose() -> HostFunction {
    HostFunction::new("whose", [], [ValType::I64], |guest, _| answer(guest))
}

/// The same, having waited.
fn whose_later() -> HostFunction {
    HostFunction::new_async("whose", [], [ValType::I64], |guest, _| {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            answer(guest)
        })
    })
}

fn spec(function: HostFunction) -> Spec {
    Spec::new(Source::bytes(guest())).host_function(function)
}

/// What the guest says whose call an evaluation without a context is.
async fn without(evaluator: &Evaluator) -> String {
    evaluator.evaluate("").await.unwrap().text().unwrap().to_owned()
}

async fn a_host_function_sees_the_context_of_the_call_that_it_serves(engine: EngineKind) {
    let pool = builder(engine).build().unwrap();
    for function in [whose(), whose_later()] {
        let evaluator = pool.evaluator("whose", spec(function)).unwrap();
        assert_eq!(evaluator.evaluate_with("", customer("Ada")).await.unwrap().bytes(), "Ada");
        let run = evaluator.entry_point("run");
        assert_eq!(run.evaluate_with("", customer("Grace")).await.unwrap().bytes(), "Grace");
    }
    pool.close().await;
}

async fn a_context_that_is_missing_or_of_another_type_is_told(engine: EngineKind) {
    let pool = builder(engine).build().unwrap();
    let evaluator = pool.evaluator("whose", spec(whose())).unwrap();
    let missing = without(&evaluator).await;
    assert!(missing.starts_with("the call has no context, and a ") && missing.contains("Customer"), "{missing}");
    let other = evaluator.evaluate_with("", "Ada".to_owned()).await.unwrap();
    let other = other.text().unwrap();
    assert!(other.starts_with("the call's context is not the ") && other.contains("Customer"), "{other}");
    // Passed on by `?`, it ends the guest's call.
    let strict = HostFunction::new("whose", [], [ValType::I64], |guest, _| {
        guest.context::<Customer>()?;
        Ok(vec![Val::I64(0)])
    });
    let error = pool.evaluator("strict", spec(strict)).unwrap().evaluate("").await.unwrap_err();
    assert_eq!(error.kind(), "guest_error");
    assert!(error.to_string().ends_with(&missing), "{error}");
    pool.close().await;
}

async fn what_calls_share_is_passed_as_an_arc(engine: EngineKind) {
    let pool = builder(engine).build().unwrap();
    let counts = HostFunction::new("whose", [], [ValType::I64], |guest, _| {
        guest.context::<Arc<AtomicUsize>>()?.fetch_add(1, Ordering::SeqCst);
        Ok(vec![Val::I64(0)])
    });
    let evaluator = pool.evaluator("counts", spec(counts)).unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    for _ in 0..3 {
        evaluator.evaluate_with("", calls.clone()).await.unwrap();
    }
    assert_eq!((calls.load(Ordering::SeqCst), Arc::strong_count(&calls)), (3, 1));
    pool.close().await;
}

/// The same instance each time: one that the pool keeps, then one that a thread keeps.
async fn a_call_without_a_context_does_not_see_an_earlier_ones_on_the_same_instance(engine: EngineKind) {
    for park_after in [0, 1_000_000] {
        let pool = builder(engine)
            .isolation(Isolation::Reuse)
            .capacity(1)
            .max_instances(1)
            .park_after(park_after)
            .build()
            .unwrap();
        let evaluator = pool.register("whose", spec(whose())).unwrap();
        for round in 0..6 {
            let (customer, alive) = counted();
            assert_eq!(evaluator.evaluate_with("", customer).await.unwrap().bytes(), "counted", "{round}");
            assert_eq!(alive.load(Ordering::SeqCst), 0, "{round}");
            assert!(without(&evaluator).await.starts_with("the call has no context"), "{round}");
            evaluator.entry_point("fail").evaluate_with("", self::customer("Ada")).await.unwrap_err();
            assert!(without(&evaluator).await.starts_with("the call has no context"), "{round}");
        }
        assert_eq!(pool.info("whose").unwrap().instances, 1);
        pool.close().await;
    }
}

#[test]
fn calls_at_once_see_each_its_own() {
    for (engine, isolation) in
        ENGINES.into_iter().flat_map(|engine| [(engine, Isolation::Fresh), (engine, Isolation::Reuse)])
    {
        on_threads(async {
            let pool =
                builder(engine).isolation(isolation).max_instances_per_evaluator(4).park_after(2).build().unwrap();
            let evaluator = pool.evaluator("whose", spec(whose_later())).unwrap();
            let mut callers = JoinSet::new();
            for caller in 0..16 {
                let evaluator = evaluator.clone();
                callers.spawn(async move {
                    for call in 0..8 {
                        let name = format!("{caller}/{call}");
                        let response = evaluator.evaluate_with("", customer(&name)).await.unwrap();
                        assert_eq!(response.text().unwrap(), name);
                    }
                });
            }
            callers.join_all().await;
            pool.close().await;
        });
    }
}

/// On `direct`: on extism, an initialiser that calls the host ends the process.
#[tokio::test]
async fn an_initialiser_sees_no_context_even_of_the_call_that_it_is_run_for() {
    let text = r#"(module (import "extism:host/user" "look" (func $look))
        (func (export "_initialize") (call $look))
        (func (export "run") (call $look)))"#;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noting = seen.clone();
    let look = HostFunction::new("look", [], [], move |guest, _| {
        noting.lock().unwrap().push(guest.any_context().is_some());
        Ok(vec![])
    });
    // No spare: the call waits until its instance is made.
    let pool = builder(EngineKind::Direct).capacity(1).max_instances(1).build().unwrap();
    let evaluator = pool.evaluator("looks", Spec::new(Source::bytes(wasm(text))).host_function(look)).unwrap();
    for _ in 0..4 {
        evaluator.evaluate_with("", customer("Ada")).await.unwrap();
    }
    pool.close().await;
    let seen = seen.lock().unwrap();
    assert_eq!(seen.iter().filter(|seen| **seen).count(), 4, "each call saw its own");
    assert!(seen.len() >= 8 && !seen[0], "and no initialiser did: {seen:?}");
}

async fn a_context_is_dropped_before_the_evaluation_returns_however_it_ends(engine: EngineKind) {
    let pool = builder(engine).isolation(Isolation::Reuse).build().unwrap();
    let panics = HostFunction::new("whose", [], [ValType::I64], |_, _| panic!("told to"));
    let fails = HostFunction::new("whose", [], [ValType::I64], |_, _| Err(evalpool::HostFunctionError::new("told to")));
    let fails_late = HostFunction::new_async("whose", [], [ValType::I64], |guest, _| {
        Box::pin(async move {
            let _kept = guest.context::<Customer>()?;
            tokio::time::sleep(Duration::from_millis(1)).await;
            Err(evalpool::HostFunctionError::new("told to"))
        })
    });
    for (function, entry_point, kind) in [
        (whose(), "run", "ok"),
        (whose(), "fail", "guest_error"),
        (whose(), "trap", "guest_trap"),
        (whose(), "exit", "guest_exit"),
        (panics, "run", "internal"),
        (fails, "run", "guest_error"),
        (fails_late, "run", "guest_error"),
        // Before any guest runs.
        (whose(), "no_such", "entry_point_missing"),
    ] {
        let (customer, alive) = counted();
        let evaluator = pool.evaluator("ends", spec(function)).unwrap();
        let ended = evaluator.entry_point(entry_point).evaluate_with("", customer).await;
        let came = ended.err().map_or("ok", |error| error.kind().as_str());
        assert_eq!((came, alive.load(Ordering::SeqCst)), (kind, 0), "{entry_point}");
    }
    let (customer, alive) = counted();
    let closed = pool.evaluator("closed", spec(whose())).unwrap();
    closed.close().await;
    assert_eq!(closed.evaluate_with("", customer).await.unwrap_err().kind(), "closed");
    assert_eq!(alive.load(Ordering::SeqCst), 0);
    pool.close().await;
}

/// Panics when it is dropped, as a context should not.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("told to");
    }
}

async fn a_context_whose_drop_panics_fails_its_call_and_leaves_nothing(engine: EngineKind) {
    let pool = builder(engine).isolation(Isolation::Reuse).build().unwrap();
    let evaluator = pool.evaluator("bomb", spec(whose())).unwrap();
    for entry_point in ["run", "trap"] {
        let error = evaluator.entry_point(entry_point).evaluate_with("", Bomb).await.unwrap_err();
        assert_eq!(error.kind(), "internal", "{entry_point}");
    }
    assert_eq!(evaluator.evaluate_with("", customer("Ada")).await.unwrap().bytes(), "Ada");
    pool.close().await;
    let runtimes = pool.snapshot().runtimes;
    assert!(runtimes.is_empty(), "{runtimes:?}");
}

/// On `direct` at once. On extism when the guest has noticed, which is a moment later.
async fn gone(engine: EngineKind, alive: &AtomicUsize) {
    match engine {
        EngineKind::Direct => assert_eq!(alive.load(Ordering::SeqCst), 0),
        _ => eventually("the context is dropped", || alive.load(Ordering::SeqCst) == 0).await,
    }
}

async fn a_context_is_dropped_when_the_guest_is_stopped_at_its_deadline(engine: EngineKind) {
    let pool = builder(engine).build().unwrap();
    let evaluator = pool.evaluator("spins", spec(whose()).exec_timeout(Duration::from_millis(100))).unwrap();
    let (customer, alive) = counted();
    let error = evaluator.entry_point("spin").evaluate_with("", customer).await.unwrap_err();
    assert_eq!(error.kind(), "exec_timeout");
    gone(engine, &alive).await;
    pool.close().await;
}

/// An evaluator whose guests have their call's context and never end, and what says that one has it: they spin, or on
/// `direct`, where a host function that waits can be interrupted, wait.
fn endless(engine: EngineKind, waits: bool) -> (EvaluatorPool, EntryPoint, Arc<Semaphore>) {
    let inside = Arc::new(Semaphore::new(0));
    let entered = inside.clone();
    let function = HostFunction::new_async("whose", [], [ValType::I64], move |guest, _| {
        let entered = entered.clone();
        Box::pin(async move {
            let _kept = guest.context::<Customer>()?;
            entered.add_permits(1);
            if waits {
                pending::<()>().await;
            }
            Ok(vec![Val::I64(0)])
        })
    });
    let pool = builder(engine).build().unwrap();
    let evaluator = pool.register("endless", spec(function)).unwrap();
    (pool, evaluator.entry_point("spin"), inside)
}

/// The ways not to end that can be interrupted.
fn ways(engine: EngineKind) -> &'static [bool] {
    if engine == EngineKind::Direct { &[false, true] } else { &[false] }
}

async fn a_context_is_dropped_with_the_future_of_its_evaluation(engine: EngineKind) {
    for waits in ways(engine) {
        let (pool, endless, inside) = endless(engine, *waits);
        let (customer, alive) = counted();
        drop(endless.evaluate_with("", customer));
        assert_eq!(alive.load(Ordering::SeqCst), 0, "never polled");
        let (customer, alive) = counted();
        let call = tokio::spawn(async move { endless.evaluate_with("", customer).await });
        inside.acquire().await.unwrap().forget();
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        gone(engine, &alive).await;
        pool.close().await;
    }
}

async fn a_context_is_dropped_when_a_close_interrupts_its_evaluation(engine: EngineKind) {
    for waits in ways(engine) {
        let (pool, endless, inside) = endless(engine, *waits);
        let (customer, alive) = counted();
        let evaluator = endless.evaluator().clone();
        let call = tokio::spawn(async move { endless.evaluate_with("", customer).await });
        inside.acquire().await.unwrap().forget();
        evaluator.close_with(Duration::ZERO).await;
        assert_eq!(call.await.unwrap().unwrap_err().kind(), "closed");
        gone(engine, &alive).await;
        pool.close().await;
    }
}

on_each_engine!(
    a_host_function_sees_the_context_of_the_call_that_it_serves,
    a_context_that_is_missing_or_of_another_type_is_told,
    what_calls_share_is_passed_as_an_arc,
    a_call_without_a_context_does_not_see_an_earlier_ones_on_the_same_instance,
    a_context_is_dropped_before_the_evaluation_returns_however_it_ends,
    a_context_whose_drop_panics_fails_its_call_and_leaves_nothing,
    a_context_is_dropped_when_the_guest_is_stopped_at_its_deadline,
    a_context_is_dropped_with_the_future_of_its_evaluation,
    a_context_is_dropped_when_a_close_interrupts_its_evaluation,
);
