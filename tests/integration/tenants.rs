//! Tenants: whom an evaluator belongs to.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::available_parallelism,
};

use evalpool::{ErrorKind, EvaluatorPool, Source, Spec};
use tokio::task::{JoinSet, yield_now};

use crate::support::spy::Spy;

fn pool() -> EvaluatorPool {
    Spy::default().pool(|builder| builder.capacity(4))
}

fn tenant(pool: &EvaluatorPool, evaluator: &str) -> String {
    pool.info(evaluator).unwrap().tenant
}

#[tokio::test]
async fn an_evaluator_belongs_to_the_first_part_of_its_name_unless_its_spec_says_otherwise() {
    let pool = pool();
    for name in ["acme/price", "alone", "/odd"] {
        pool.register(name, Spy::spec()).unwrap();
    }
    pool.register("price", Spy::spec().tenant("acme")).unwrap();
    pool.register("globex/price", Spy::spec().tenant("acme/eu")).unwrap();
    let tenants = ["acme/price", "alone", "/odd", "price", "globex/price"].map(|name| tenant(&pool, name));
    assert_eq!(tenants, ["acme", "alone", "/odd", "acme", "acme/eu"]);
    let listed: Vec<_> = pool.list(Some("alone"), 2).into_iter().map(|info| info.tenant).collect();
    assert_eq!(listed, ["acme/eu", "acme"]);
}

#[tokio::test]
async fn a_replacement_may_belong_to_another() {
    let pool = pool();
    pool.register("price", Spy::spec().tenant("acme")).unwrap();
    let prepared = pool.prepare("price", Spy::spec().tenant("globex")).await.unwrap();
    assert_eq!((prepared.info().unwrap().tenant.as_str(), tenant(&pool, "price").as_str()), ("globex", "acme"));
    let (evaluator, _) = prepared.publish();
    assert_eq!(tenant(&pool, "price"), "globex");
    evaluator.close().await;
    assert_eq!(tenant(&pool, "price"), "globex", "also when it is closed");
}

#[tokio::test]
async fn a_name_that_no_tenant_can_have_is_refused() {
    let pool = pool();
    for (name, part) in [("", "is empty"), ("a b", "are allowed"), ("a..b", "hold .."), (&"x".repeat(129), "longer")] {
        let error = pool.register("price", Spy::spec().tenant(name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().starts_with("the spec's tenant, ") && error.to_string().contains(part), "{error}");
    }
}

/// On one thread, where each call of the one waits behind one of each caller of the other until the pool sees to it.
#[tokio::test]
async fn many_callers_of_one_tenant_put_off_the_one_of_another_by_a_few_calls() {
    const CALLS: usize = 200;
    let flooding = 50 * (1 + available_parallelism().unwrap().get());
    let pool = EvaluatorPool::builder().capacity(4).build().unwrap();
    let some_time = r#"(module (func (export "run") (result i32) (local $i i32)
        (loop $again (br_if $again (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 200000))))
        i32.const 0))"#;
    let [flood, neighbour] = ["flood/price", "neighbour/price"]
        .map(|name| pool.evaluator(name, Spec::new(Source::bytes(wat::parse_str(some_time).unwrap()))).unwrap());
    let (calls, mut callers) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
    for _ in 0..flooding {
        let (flood, calls) = (flood.clone(), calls.clone());
        callers.spawn(async move {
            loop {
                yield_now().await;
                flood.evaluate("").await.unwrap();
                calls.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut noticed = 0;
    for call in 0..2 * CALLS {
        if call == CALLS {
            noticed = calls.load(Ordering::Relaxed);
        }
        yield_now().await;
        neighbour.evaluate("").await.unwrap();
    }
    let between = calls.load(Ordering::Relaxed) - noticed;
    assert!(between < CALLS * flooding / 4, "{between} calls of {flooding} callers beside {CALLS} of the other");
    callers.shutdown().await;
    pool.close().await;
}
