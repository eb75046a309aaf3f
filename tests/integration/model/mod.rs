//! The registry against a naive model of it: plain lists, one thread, no clock. Random operations drive both; after
//! each, both must agree on what is live, in which order, leased how often, what runs, what waits and what failed. A
//! sequence that fails is shrunk, and printed with its seed.
//!
//! Instances are plenty here, so that only the bound on runtimes makes anybody wait: `lifecycle` stresses the other.
//!
//! Tenants that are bounded share one pool, and each has a model of its own, which knows nothing of the others: within its
//! bound, a tenant has a pool for itself.

mod naive;

use std::{collections::BTreeMap, time::Duration};

use evalpool::{Error, Evaluator, EvaluatorPool, Isolation, PoolBuilder, RuntimeState, Settings, config::TenantBounds};
use proptest::{collection::vec, prelude::*, test_runner::Config};
use tokio::{task::JoinHandle, time::sleep};

use self::naive::{Build, Call, Model};
use crate::support::spy::{Act, Spy};

const EVALUATORS: usize = 5;

#[derive(Debug, Clone, Copy)]
enum Op {
    /// A call that ends at once; a build that it causes goes as said.
    Quick(usize, Build),
    /// A call whose guest traps.
    Trap(usize),
    /// A call that runs until it is finished or cancelled.
    Hold(usize),
    /// The n-th call that is still there, counted round, is let go on.
    Finish(usize),
    /// The n-th call that is still there is dropped.
    Cancel(usize),
    Unload(usize),
    Close(usize),
    Replace(usize),
    /// Long enough for the sweep to close what is unused.
    Rest,
}

fn op() -> impl Strategy<Value = Op> {
    let evaluator = 0..EVALUATORS;
    prop_oneof![
        6 => evaluator.clone().prop_map(|e| Op::Quick(e, Build::Ok)),
        1 => evaluator.clone().prop_map(|e| Op::Quick(e, Build::Fail)),
        1 => evaluator.clone().prop_map(|e| Op::Quick(e, Build::Panic)),
        1 => evaluator.clone().prop_map(Op::Trap),
        6 => evaluator.clone().prop_map(Op::Hold),
        5 => (0..8_usize).prop_map(Op::Finish),
        2 => (0..8_usize).prop_map(Op::Cancel),
        1 => evaluator.clone().prop_map(Op::Unload),
        1 => evaluator.clone().prop_map(Op::Close),
        1 => evaluator.prop_map(Op::Replace),
        1 => Just(Op::Rest),
    ]
}

/// Whom an operation is of, and what it does.
type Step = (usize, Op);

fn name(tenant: usize, evaluator: usize) -> String {
    format!("tenant-{tenant}/{evaluator}")
}

/// The real pool, with the calls that have not ended.
struct Real {
    spy: Spy,
    pool: EvaluatorPool,
    /// Of each tenant.
    evaluators: Vec<Vec<Evaluator>>,
    calls: BTreeMap<usize, JoinHandle<Result<evalpool::Response, Error>>>,
}

impl Real {
    /// With a tenant for each of these bounds. One has the whole pool: among several that are not bounded, it does not go by
    /// age alone.
    fn new(bounds: &[usize], max_waiting: Option<usize>) -> Self {
        let mut settings = Settings::default();
        let capacity = bounds.iter().sum();
        settings.pool.capacity = capacity;
        if bounds.len() > 1 {
            for (tenant, most) in bounds.iter().enumerate() {
                let mut bounds = TenantBounds::default();
                (bounds.runtimes, bounds.max_waiting) = (Some(*most), max_waiting);
                settings.tenants.named.insert(format!("tenant-{tenant}"), bounds);
            }
        }
        settings.pool.max_instances_per_evaluator = 64;
        settings.pool.negative_ttl = Duration::ZERO;
        settings.pool.idle_ttl = Duration::from_mins(1);
        settings.pool.grace = Duration::from_secs(100_000);
        settings.limits.wait_timeout = Duration::from_secs(100_000);
        settings.limits.exec_timeout = Duration::from_secs(100_000);
        settings.engine.isolation = Isolation::Reuse;
        let spy = if capacity.is_multiple_of(2) { Spy::with_workers() } else { Spy::default() };
        spy.keeps_permits(usize::MAX);
        let pool = spy.pool(|_| PoolBuilder::from(settings).park_after(0));
        let of = |tenant| (0..EVALUATORS).map(|e| pool.register(&name(tenant, e), Spy::spec()).unwrap()).collect();
        let evaluators = (0..bounds.len()).map(of).collect();
        Self { spy, pool, evaluators, calls: BTreeMap::new() }
    }

    fn call(&mut self, number: usize, tenant: usize, evaluator: usize, input: String) {
        let evaluator = self.evaluators[tenant][evaluator].clone();
        self.calls.insert(number, tokio::spawn(async move { evaluator.evaluate(input).await }));
    }

    /// Lets everything go as far as it can: with time paused, a sleep ends when nothing is left to do. Only then do
    /// places of closed runtimes come back, which would race whoever has to ask again.
    async fn come_to_rest(&self) {
        for _ in 0..8 {
            sleep(Duration::from_millis(1)).await;
            self.spy.let_go_of_permits();
        }
    }

    async fn outcomes(&mut self) -> BTreeMap<usize, &'static str> {
        let ended = self.calls.iter().filter(|(_, task)| task.is_finished());
        let ended: Vec<usize> = ended.map(|(number, _)| *number).collect();
        let mut outcomes = BTreeMap::new();
        for number in ended {
            let outcome = match self.calls.remove(&number).unwrap().await {
                Ok(Ok(_)) => "ok",
                Ok(Err(error)) => error.kind().as_str(),
                Err(_) => "cancelled",
            };
            outcomes.insert(number, outcome);
        }
        outcomes
    }

    /// A tenant's live runtimes, most recently used first, with their leases.
    fn shown(&self, tenant: usize) -> Vec<(usize, usize)> {
        let index = |id| self.evaluators[tenant].iter().position(|evaluator| evaluator.id() == id);
        let live = self.pool.snapshot().runtimes.into_iter().filter(|runtime| runtime.state == RuntimeState::Live);
        live.filter_map(|runtime| Some((index(runtime.evaluator)?, runtime.busy))).collect()
    }
}

async fn run(bounds: &[usize], max_waiting: Option<usize>, steps: Vec<Step>) {
    let model = |capacity: &usize| Model { capacity: *capacity, max_waiting, ..Model::default() };
    let mut models: Vec<_> = bounds.iter().map(model).collect();
    let mut real = Real::new(bounds, max_waiting);
    let mut outcomes = BTreeMap::new();
    let mut all_open: Vec<Vec<usize>> = vec![vec![]; bounds.len()];
    for (number, (tenant, op)) in steps.into_iter().enumerate() {
        let tenant = tenant % bounds.len();
        let (model, open, capacity) = (&mut models[tenant], &mut all_open[tenant], bounds[tenant]);
        match model.clone().without_racing(number, op) {
            Op::Quick(evaluator, build) => {
                // A build that does not go well is one that this call alone causes, at once.
                let causes = !model.closed[evaluator]
                    && model.find(evaluator).is_none()
                    && model.queue.is_empty()
                    && (model.live.len() + model.draining.len() < capacity
                        || model.live.iter().any(|runtime| runtime.running.is_empty()));
                let build = if causes { build } else { Build::Ok };
                match build {
                    Build::Ok => {}
                    Build::Fail => real.spy.on_compile([Act::Fail]),
                    Build::Panic => real.spy.on_compile([Act::Panic]),
                }
                model.call(Call { number, evaluator, quick: true, trap: false }, build);
                real.call(number, tenant, evaluator, "quick".into());
            }
            Op::Trap(evaluator) => {
                model.call(Call { number, evaluator, quick: true, trap: true }, Build::Ok);
                real.call(number, tenant, evaluator, "trap".into());
            }
            Op::Hold(evaluator) => {
                model.call(Call { number, evaluator, quick: false, trap: false }, Build::Ok);
                real.call(number, tenant, evaluator, format!("hold {number}"));
                open.push(number);
            }
            Op::Finish(nth) => {
                let running: Vec<usize> = open.iter().copied().filter(|call| model.is_running(*call)).collect();
                if let Some(call) = (!running.is_empty()).then(|| running[nth % running.len()]) {
                    real.spy.open_gate(&call.to_string());
                    model.end(call, "ok");
                }
            }
            Op::Cancel(nth) => {
                if let Some(call) = (!open.is_empty()).then(|| open[nth % open.len()]) {
                    real.calls[&call].abort();
                    model.end(call, "cancelled");
                }
            }
            Op::Unload(evaluator) => {
                let handle = real.evaluators[tenant][evaluator].clone();
                drop(tokio::spawn(async move { handle.unload().await }));
                model.unload(evaluator);
            }
            Op::Close(evaluator) => {
                drop(real.evaluators[tenant][evaluator].close());
                model.close(evaluator);
            }
            Op::Replace(evaluator) => {
                // A closed evaluator is not replaced but registered anew, under another id: not this model's affair.
                if !model.closed[evaluator] {
                    real.pool.register(&name(tenant, evaluator), Spy::spec()).unwrap();
                    model.unload(evaluator);
                }
            }
            Op::Rest => {
                sleep(Duration::from_mins(2)).await;
                models.iter_mut().for_each(Model::rest);
            }
        }
        real.come_to_rest().await;
        outcomes.extend(real.outcomes().await);
        let mut expected = BTreeMap::new();
        for (tenant, (model, open)) in models.iter().zip(&mut all_open).enumerate() {
            open.retain(|call| !model.outcomes.contains_key(call));
            expected.extend(model.outcomes.clone());
            assert_eq!(real.shown(tenant), model.shown(), "live runtimes of tenant {tenant} after {op:?}");
            let places = model.live.len() + model.draining.len();
            let info = real.pool.tenant(&format!("tenant-{tenant}")).unwrap();
            assert_eq!(info.runtimes, places, "places of tenant {tenant} after {op:?}");
            assert!(places <= bounds[tenant], "its bound");
        }
        let sum = |of: fn(&Model) -> usize| models.iter().map(of).sum::<usize>();
        assert_eq!(outcomes, expected, "outcomes after {op:?}");
        assert_eq!(real.calls.len(), all_open.iter().map(Vec::len).sum::<usize>(), "calls in flight after {op:?}");
        assert_eq!(real.spy.compiles(), sum(|model| model.builds), "builds after {op:?}");
        assert_eq!(real.pool.runtimes(), sum(|model| model.live.len() + model.draining.len()), "places after {op:?}");
        assert_eq!(real.spy.runtimes_live(), real.pool.runtimes(), "what exists is what is counted");
        assert!(real.spy.runtimes_live_max() <= bounds.iter().sum(), "the bound");
        let permits: usize = real.pool.snapshot().runtimes.iter().map(|runtime| runtime.instances).sum();
        assert_eq!(real.spy.instances_live(), permits, "each instance has its permit");
    }
    // Whatever is still there is interrupted, and nothing is left.
    let calls = std::mem::take(&mut real.calls);
    tokio::join!(real.pool.close_with(Duration::from_millis(1)), real.come_to_rest());
    for (_, call) in calls {
        let kind = call.await.unwrap().map_or_else(|error| error.kind().as_str(), |_| "ok");
        assert!(["shutting_down", "closed"].contains(&kind), "{kind}");
    }
    real.spy.assert_nothing_left();
}

impl Model {
    /// A quick call that would have to wait is held instead: when several that waited run at once, the order in which
    /// they end is anybody's.
    fn without_racing(mut self, number: usize, op: Op) -> Op {
        let (Op::Quick(evaluator, _) | Op::Trap(evaluator)) = op else { return op };
        self.call(Call { number, evaluator, quick: true, trap: false }, Build::Ok);
        if self.outcomes.contains_key(&number) { op } else { Op::Hold(evaluator) }
    }
}

fn agree(bounds: impl Strategy<Value = Vec<usize>>, max_waiting: impl Strategy<Value = Option<usize>>) {
    let cases = std::env::var("EVALPOOL_MODEL_CASES").map_or(256, |cases| cases.parse().unwrap());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    proptest!(config, |(bounds in bounds, max_waiting in max_waiting, steps in vec((0..2_usize, op()), 1..40))| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(&bounds, max_waiting, steps));
    });
}

#[test]
fn the_registry_does_what_a_naive_model_of_it_does() {
    agree(vec(1..4_usize, 1), Just(None));
}

#[test]
fn each_tenant_that_is_bounded_has_a_registry_of_its_own() {
    agree(vec(1..4_usize, 2), proptest::option::of(0..4_usize));
}
