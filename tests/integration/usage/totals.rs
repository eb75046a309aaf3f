//! Totals of evaluators and tenants, on the spy: every evaluation is in them once, whatever became of it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use evalpool::{Evaluator, EvaluatorPool, Isolation, Response, Usage, UsageTotals};
use tokio::{runtime::Builder, time::timeout};

use crate::support::spy::{Act, Spy};

fn pool() -> (Spy, EvaluatorPool) {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(4).isolation(Isolation::Reuse));
    (spy, pool)
}

fn of(pool: &EvaluatorPool, evaluator: &str) -> UsageTotals {
    pool.info(evaluator).unwrap().usage
}

fn of_tenant(pool: &EvaluatorPool, tenant: &str) -> UsageTotals {
    pool.tenant(tenant).unwrap().usage
}

/// By outcome.
fn counts<const N: usize>(outcomes: [(&'static str, u64); N]) -> std::collections::BTreeMap<&'static str, u64> {
    outcomes.into()
}

/// What one thread has seen of an evaluator.
#[derive(Default)]
struct Seen {
    ok: u64,
    trapped: u64,
    bytes_in: u64,
    bytes_out: u64,
    guest: Duration,
    total: Duration,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.ok += other.ok;
        self.trapped += other.trapped;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.guest += other.guest;
        self.total += other.total;
    }

    async fn call(&mut self, evaluator: &Evaluator, input: &str) {
        self.bytes_in += input.len() as u64;
        match evaluator.evaluate(input.to_owned()).await {
            Ok(response) => {
                let Usage { guest, total, .. } = response.usage();
                self.ok += 1;
                self.bytes_out += response.bytes().len() as u64;
                (self.guest, self.total) = (self.guest + guest, self.total + total);
            }
            Err(error) => {
                assert_eq!(error.kind(), "guest_trap");
                self.trapped += 1;
            }
        }
    }

    /// The times of those that failed are told nowhere else.
    fn assert_is(&self, totals: &UsageTotals) {
        let outcomes = [("ok", self.ok), ("guest_trap", self.trapped)];
        assert_eq!(totals.outcomes, outcomes.into_iter().filter(|(_, count)| *count > 0).collect());
        assert_eq!(totals.evaluations, self.ok + self.trapped);
        assert_eq!((totals.bytes_in, totals.bytes_out), (self.bytes_in, self.bytes_out));
        if self.trapped == 0 {
            assert_eq!((totals.guest, totals.total), (self.guest, self.total));
        } else {
            assert!(totals.guest > self.guest && totals.total > self.total);
        }
    }
}

/// From eight threads, on three evaluators of two tenants, one of which traps now and then. Meanwhile no total falls.
fn many_evaluations_add_up(evaluations: u64) {
    const THREADS: u64 = 8;
    const NAMES: [&str; 3] = ["acme/a", "acme/b", "globex/c"];
    let (spy, pool) = pool();
    let evaluators = NAMES.map(|name| pool.register(name, Spy::spec()).unwrap());
    let (is_over, mut sums) = (AtomicBool::new(false), NAMES.map(|_| Seen::default()));
    thread::scope(|scope| {
        let caller = |thread: u64| {
            let evaluators = &evaluators;
            move || {
                let mut seen = NAMES.map(|_| Seen::default());
                Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                    for number in 0..evaluations / THREADS {
                        let at = usize::try_from((number + thread) % 3).unwrap();
                        let traps = at == 1 && number % 64 == 0;
                        let input = if traps { "trap".to_owned() } else { number.to_string() };
                        seen[at].call(&evaluators[at], &input).await;
                    }
                });
                seen
            }
        };
        let callers: Vec<_> = (0..THREADS).map(|thread| scope.spawn(caller(thread))).collect();
        scope.spawn(|| {
            let mut before = UsageTotals::default();
            while !is_over.load(Ordering::SeqCst) {
                let now = of_tenant(&pool, "acme");
                assert!(now.evaluations >= before.evaluations && now.total >= before.total);
                before = now;
            }
        });
        for caller in callers {
            for (sum, seen) in sums.iter_mut().zip(caller.join().unwrap()) {
                sum.add(&seen);
            }
        }
        is_over.store(true, Ordering::SeqCst);
    });
    assert_eq!(sums.iter().map(|sum| sum.ok + sum.trapped).sum::<u64>(), evaluations / THREADS * THREADS);
    for (sum, name) in sums.iter().zip(NAMES) {
        sum.assert_is(&of(&pool, name));
    }
    let [mut acme, b, globex] = sums;
    acme.add(&b);
    acme.assert_is(&of_tenant(&pool, "acme"));
    globex.assert_is(&of_tenant(&pool, "globex"));
    Builder::new_current_thread().enable_all().build().unwrap().block_on(pool.close());
    spy.assert_nothing_left();
}

/// A caller moves it to where it awaits it.
#[test]
fn an_evaluation_is_small_to_move() {
    let evaluator = Spy::default().pool(|builder| builder).evaluator("one", Spy::spec()).unwrap();
    let (future, response) = (size_of_val(&evaluator.evaluate("")), size_of::<Response>());
    assert!(future <= 2304 && response <= 256, "{future}, {response}");
}

#[test]
fn evaluations_from_eight_threads_add_up() {
    many_evaluations_add_up(20_000);
}

#[test]
#[ignore = "the slow lane"]
fn a_million_evaluations_from_eight_threads_add_up() {
    many_evaluations_add_up(1_000_000);
}

#[tokio::test(start_paused = true)]
async fn an_evaluation_that_failed_counts_with_what_it_used() {
    let (spy, pool) = pool();
    let evaluator = pool.register("acme/one", Spy::spec().exec_timeout(Duration::from_secs(3))).unwrap();
    assert_eq!(evaluator.evaluate("trap").await.unwrap_err().kind(), "guest_trap");
    spy.on_call([Act::Never, Act::Never]);
    assert_eq!(evaluator.evaluate("late").await.unwrap_err().kind(), "exec_timeout");
    assert!(timeout(Duration::from_secs(1), evaluator.evaluate("left")).await.is_err());
    let outcomes = counts([("cancelled", 1), ("exec_timeout", 1), ("guest_trap", 1)]);
    let totals = of(&pool, "acme/one");
    assert_eq!((&totals.outcomes, totals.evaluations), (&outcomes, 3));
    assert_eq!((totals.bytes_in, totals.bytes_out), (12, 0));
    assert_eq!((totals.total, totals.guest), (Duration::from_secs(4), Duration::ZERO), "it waited, and did not run");

    // Those that never got to a guest have used time alone.
    spy.on_compile([Act::Fail]);
    let bad = pool.register("acme/bad", Spy::spec()).unwrap();
    assert_eq!(bad.evaluate("x").await.unwrap_err().kind(), "invalid_plugin");
    bad.close().await;
    assert_eq!(bad.evaluate("x").await.unwrap_err().kind(), "closed");
    let totals = of(&pool, "acme/bad");
    assert_eq!((totals.outcomes, totals.bytes_in), (counts([("closed", 1), ("invalid_plugin", 1)]), 0));
    assert_eq!(of_tenant(&pool, "acme").evaluations, 5);
    assert_eq!(pool.tenant("acme").unwrap().evaluators, 2);
}

#[tokio::test]
async fn totals_are_kept_across_evictions_and_replacements_and_for_a_tenant_also_when_its_evaluator_goes() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1).isolation(Isolation::Reuse));
    for name in ["acme/a", "acme/b"] {
        pool.register(name, Spy::spec()).unwrap();
    }
    for _ in 0..5 {
        for name in ["acme/a", "acme/b"] {
            pool.get(name).unwrap().evaluate("x").await.unwrap();
        }
    }
    assert!(spy.opens() >= 9, "each evicted the other");
    pool.register("acme/a", Spy::spec()).unwrap().evaluate("x").await.unwrap();
    assert_eq!((of(&pool, "acme/a").evaluations, of(&pool, "acme/b").evaluations), (6, 5));
    assert!(pool.remove("acme/a").await);
    let acme = pool.tenant("acme").unwrap();
    assert_eq!((acme.evaluators, acme.usage.evaluations, acme.usage.bytes_in), (1, 11, 11));
    pool.register("acme/a", Spy::spec()).unwrap();
    assert_eq!((of(&pool, "acme/a").evaluations, of_tenant(&pool, "acme").evaluations), (0, 11), "another evaluator");
}

#[tokio::test]
async fn what_an_evaluator_used_stays_with_the_tenant_whose_it_was() {
    let (_spy, pool) = pool();
    for (tenant, evaluations) in [("acme", 3), ("globex", 4), ("acme", 5)] {
        let evaluator = pool.register("price", Spy::spec().tenant(tenant)).unwrap();
        for _ in 0..evaluations {
            evaluator.evaluate("x").await.unwrap();
        }
    }
    assert_eq!(["acme", "globex"].map(|tenant| of_tenant(&pool, tenant).evaluations), [8, 4]);
    assert_eq!(["acme", "globex"].map(|tenant| pool.tenant(tenant).unwrap().evaluators), [1, 0]);
    assert_eq!(of(&pool, "price").evaluations, 12);
}

#[tokio::test]
async fn tenants_are_listed_by_name_and_those_of_unregistered_evaluators_too() {
    let (_spy, pool) = pool();
    for name in ["d/1", "b", "a/1", "a/2", "c"] {
        pool.register(name, Spy::spec()).unwrap();
    }
    let unregistered = pool.evaluator("e/1", Spy::spec()).unwrap();
    let names = |after, limit| pool.tenants(after, limit).into_iter().map(|it| it.name).collect::<Vec<_>>();
    assert_eq!(names(None, 10), ["a", "b", "c", "d", "e"]);
    assert_eq!(names(Some("b"), 2), ["c", "d"]);
    assert_eq!((pool.tenant("a").unwrap().evaluators, pool.tenant("f")), (2, None));
    unregistered.evaluate("x").await.unwrap();
    drop(unregistered);
    let e = pool.tenant("e").unwrap();
    assert_eq!((e.evaluators, e.usage.evaluations), (0, 1));
}
