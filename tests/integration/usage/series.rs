//! Series by evaluator and by tenant as an embedder gets them, on the spy: whose the runtimes are.

use evalpool::{EvaluatorPool, Isolation, PoolBuilder, Settings, UsageOf};
use tokio::task::JoinHandle;

use crate::support::{
    eventually,
    spy::{Act, Spy},
};

fn pool(spy: &Spy) -> EvaluatorPool {
    let mut settings = Settings::default();
    (settings.metrics.per_evaluator, settings.metrics.per_tenant) = (1, 1);
    spy.pool(|_| PoolBuilder::from(settings).capacity(8).isolation(Isolation::Reuse))
}

/// Starts an evaluation and returns once its guest runs.
async fn hold(spy: &Spy, pool: &EvaluatorPool, name: &str) -> JoinHandle<()> {
    let (before, evaluator) = (spy.calls_started(), pool.get(name).unwrap());
    spy.on_call([Act::Held]);
    let call = tokio::spawn(async move { drop(evaluator.evaluate("x").await.unwrap()) });
    eventually("the guest runs", || spy.calls_started() > before).await;
    call
}

fn runtimes(rows: &[UsageOf]) -> Vec<(Option<&str>, usize)> {
    rows.iter().map(|row| (row.name.as_deref(), row.runtimes)).collect()
}

#[tokio::test]
async fn runtimes_are_in_the_series_of_their_evaluator_and_tenant_from_their_build_to_their_end() {
    let spy = Spy::default();
    let pool = pool(&spy);
    for name in ["acme/a", "acme/b", "globex"] {
        pool.register(name, Spy::spec()).unwrap();
    }
    pool.get("acme/a").unwrap().evaluate("x").await.unwrap();
    let series = pool.usage_series();
    assert_eq!(runtimes(&series.evaluators), [(Some("acme/a"), 1), (None, 0)]);
    // One that drains, one that has replaced it, one that is another evaluator's, and one of nobody's yet.
    let draining = hold(&spy, &pool, "acme/a").await;
    pool.register("acme/a", Spy::spec()).unwrap().warm().await.unwrap();
    pool.get("acme/b").unwrap().warm().await.unwrap();
    let prepared = pool.prepare("acme/new", Spy::spec()).await.unwrap();
    let series = pool.usage_series();
    assert_eq!(runtimes(&series.evaluators), [(Some("acme/a"), 2), (None, 2)]);
    assert_eq!(runtimes(&series.tenants), [(Some("acme"), 3), (None, 1)]);
    assert_eq!(pool.runtimes(), 4);
    prepared.publish();
    assert_eq!(runtimes(&pool.usage_series().tenants), [(Some("acme"), 4), (None, 0)]);
    spy.release();
    draining.await.unwrap();
    pool.close().await;
    let series = pool.usage_series();
    assert_eq!(runtimes(&series.evaluators), [(Some("acme/a"), 0), (None, 0)]);
    spy.assert_nothing_left();
}

#[tokio::test]
async fn an_evaluator_that_is_deleted_and_uploaded_again_is_counted_once() {
    let spy = Spy::default();
    let pool = pool(&spy);
    let mut evaluations = 0;
    for _ in 0..3 {
        let evaluator = pool.register("acme/a", Spy::spec()).unwrap();
        for tenant in ["globex", "acme"] {
            evaluator.evaluate("x").await.unwrap();
            pool.register("acme/a", Spy::spec().tenant(tenant)).unwrap();
            evaluator.evaluate("x").await.unwrap();
            evaluations += 2;
            let series = pool.usage_series();
            for rows in [series.evaluators, series.tenants] {
                assert_eq!(rows.iter().map(|row| row.usage.evaluations).sum::<u64>(), evaluations);
            }
        }
        drop(evaluator);
        pool.remove("acme/a").await;
    }
}
