//! The registry against a naive model of it: plain lists, one thread, no clock. Random operations drive both; after
//! each, both must agree on what is live, in which order, leased how often, what runs, what waits and what failed. A
//! sequence that fails is shrunk, and printed with its seed.
//!
//! Instances are plenty here, so that only the bound on runtimes makes anybody wait: `lifecycle` stresses the other.

use std::{collections::BTreeMap, time::Duration};

use evalpool::{Error, Evaluator, EvaluatorPool, Isolation, PoolBuilder, RuntimeState, Settings};
use proptest::{collection::vec, prelude::*, test_runner::Config};
use tokio::{task::JoinHandle, time::sleep};

use crate::support::spy::{Act, Spy};

const EVALUATORS: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Build {
    Ok,
    Fail,
    Panic,
}

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

/// A call that has not ended. Its number is its age.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Call {
    number: usize,
    evaluator: usize,
    /// Ends as soon as it runs.
    quick: bool,
    trap: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Runtime {
    evaluator: usize,
    running: Vec<Call>,
    /// Calls that a claim holds back.
    waiting: Vec<Call>,
    claimed: bool,
    /// Whom the claim lets pass: those who waited when it first could have been taken out.
    last_round: Option<usize>,
}

/// What should happen, said as simply as possible.
#[derive(Debug, Default, Clone)]
struct Model {
    capacity: usize,
    /// Least recently used first.
    live: Vec<Runtime>,
    /// Taken out with calls still running: each has its place until they end.
    draining: Vec<Runtime>,
    /// Builds that wait for a place, eldest first, each with those who wait for it.
    queue: Vec<(usize, Vec<Call>)>,
    claims: Vec<usize>,
    closed: [bool; EVALUATORS],
    /// How calls ended, by number.
    outcomes: BTreeMap<usize, &'static str>,
    builds: usize,
}

impl Model {
    fn find(&mut self, evaluator: usize) -> Option<&mut Runtime> {
        self.live.iter_mut().find(|runtime| runtime.evaluator == evaluator)
    }

    fn touch(&mut self, evaluator: usize) {
        if let Some(at) = self.live.iter().position(|runtime| runtime.evaluator == evaluator) {
            let runtime = self.live.remove(at);
            self.live.push(runtime);
        }
    }

    fn call(&mut self, call: Call, build: Build) {
        if self.closed[call.evaluator] {
            self.outcomes.insert(call.number, "closed");
            return;
        }
        self.touch(call.evaluator);
        let eldest = self.eldest();
        if let Some(runtime) = self.find(call.evaluator) {
            let passes = runtime.last_round.is_some_and(|last| call.number <= last);
            let held_back = runtime.claimed && !passes && eldest.is_some_and(|eldest| eldest < call.number);
            if held_back || !runtime.waiting.is_empty() {
                runtime.waiting.push(call);
                runtime.waiting.sort_by_key(|call| call.number);
            } else {
                runtime.running.push(call);
            }
        } else if let Some((_, waiting)) = self.queue.iter_mut().find(|(evaluator, _)| *evaluator == call.evaluator) {
            waiting.push(call);
            waiting.sort_by_key(|call| call.number);
        } else {
            self.queue.push((call.evaluator, vec![call]));
            self.queue.sort_by_key(|(_, waiting)| waiting[0].number);
        }
        self.settle(build);
    }

    /// The age of the eldest build that waits.
    fn eldest(&self) -> Option<usize> {
        self.queue.first().map(|(_, waiting)| waiting[0].number)
    }

    fn settle(&mut self, build: Build) {
        loop {
            // Elders are not held back for a younger build.
            let eldest = self.eldest().unwrap_or(usize::MAX);
            for runtime in &mut self.live {
                let (elders, held_back): (Vec<Call>, _) =
                    std::mem::take(&mut runtime.waiting).into_iter().partition(|call| call.number < eldest);
                runtime.waiting = held_back;
                runtime.running.extend(elders);
            }
            self.end_quick_calls();
            if !self.queue.is_empty() && self.live.len() + self.draining.len() < self.capacity {
                let (evaluator, waiting) = self.queue.remove(0);
                self.builds += 1;
                if build == Build::Ok {
                    self.live.push(Runtime { evaluator, running: waiting, waiting: vec![], claimed: false, last_round: None });
                } else {
                    let kind = if build == Build::Fail { "invalid_plugin" } else { "internal" };
                    self.outcomes.extend(waiting.iter().map(|call| (call.number, kind)));
                }
                continue;
            }
            if !self.queue.is_empty() {
                let victim = self
                    .live
                    .iter()
                    .position(|runtime| runtime.running.is_empty() && (runtime.waiting.is_empty() || runtime.claimed));
                if let Some(victim) = victim {
                    let runtime = &mut self.live[victim];
                    if runtime.last_round.is_none()
                        && let Some(last) = runtime.waiting.last()
                    {
                        runtime.last_round = Some(last.number);
                        runtime.running.append(&mut runtime.waiting);
                    } else {
                        self.take_out(victim);
                    }
                    continue;
                }
            }
            let short = self.queue.len().saturating_sub(self.capacity - self.live.len() - self.draining.len());
            if self.claims.len() > short {
                let evaluator = self.claims.pop().unwrap();
                if let Some(runtime) = self.find(evaluator) {
                    runtime.claimed = false;
                    runtime.last_round = None;
                    let waiting = std::mem::take(&mut runtime.waiting);
                    runtime.running.extend(waiting);
                }
                continue;
            }
            if self.claims.len() < short
                && let Some(runtime) =
                    self.live.iter_mut().find(|runtime| !runtime.claimed && !runtime.running.is_empty())
            {
                runtime.claimed = true;
                let evaluator = runtime.evaluator;
                self.claims.push(evaluator);
                continue;
            }
            return;
        }
    }

    fn end_quick_calls(&mut self) {
        let mut touched = vec![];
        for runtime in self.live.iter_mut().chain(&mut self.draining) {
            let (ended, running): (Vec<Call>, _) =
                std::mem::take(&mut runtime.running).into_iter().partition(|call| call.quick);
            runtime.running = running;
            for call in &ended {
                self.outcomes.insert(call.number, if call.trap { "guest_trap" } else { "ok" });
            }
            if !ended.is_empty() {
                touched.push(runtime.evaluator);
            }
        }
        for evaluator in touched {
            self.touch(evaluator);
        }
        self.draining.retain(|runtime| !runtime.running.is_empty());
    }

    /// Takes a live runtime out: what runs on it drains, what waits for it asks again.
    fn take_out(&mut self, at: usize) {
        let mut runtime = self.live.remove(at);
        self.claims.retain(|claimed| *claimed != runtime.evaluator);
        let again = std::mem::take(&mut runtime.waiting);
        if !runtime.running.is_empty() {
            self.draining.push(runtime);
        }
        for call in again {
            self.call(call, Build::Ok);
        }
    }

    fn unload(&mut self, evaluator: usize) {
        let mut again = vec![];
        if let Some(at) = self.queue.iter().position(|(queued, _)| *queued == evaluator) {
            again = self.queue.remove(at).1;
        }
        if let Some(at) = self.live.iter().position(|runtime| runtime.evaluator == evaluator) {
            self.take_out(at);
        }
        // Whoever is asked to ask again comes after those who were only held back.
        self.settle(Build::Ok);
        for call in again {
            self.call(call, Build::Ok);
        }
    }

    fn close(&mut self, evaluator: usize) {
        self.closed[evaluator] = true;
        self.unload(evaluator);
    }

    /// A call that ran or waited is gone.
    fn end(&mut self, number: usize, outcome: &'static str) {
        let runs = |runtime: &&Runtime| runtime.running.iter().any(|call| call.number == number);
        let touched = self.live.iter().find(runs).map(|runtime| runtime.evaluator);
        for runtime in self.live.iter_mut().chain(&mut self.draining) {
            runtime.running.retain(|call| call.number != number);
            runtime.waiting.retain(|call| call.number != number);
        }
        self.draining.retain(|runtime| !runtime.running.is_empty());
        for (_, waiting) in &mut self.queue {
            waiting.retain(|call| call.number != number);
        }
        self.queue.retain(|(_, waiting)| !waiting.is_empty());
        self.queue.sort_by_key(|(_, waiting)| waiting[0].number);
        self.outcomes.insert(number, outcome);
        if let Some(evaluator) = touched {
            self.touch(evaluator);
        }
        self.settle(Build::Ok);
    }

    fn rest(&mut self) {
        self.live.retain(|runtime| !runtime.running.is_empty() || !runtime.waiting.is_empty());
        self.settle(Build::Ok);
    }

    fn is_running(&self, number: usize) -> bool {
        self.live.iter().chain(&self.draining).any(|runtime| runtime.running.iter().any(|call| call.number == number))
    }

    /// Live runtimes, most recently used first, with their leases.
    fn shown(&self) -> Vec<(usize, usize)> {
        self.live.iter().rev().map(|runtime| (runtime.evaluator, runtime.running.len())).collect()
    }
}

/// The real pool, with the calls that have not ended.
struct Real {
    spy: Spy,
    pool: EvaluatorPool,
    evaluators: Vec<Evaluator>,
    calls: BTreeMap<usize, JoinHandle<Result<evalpool::Response, Error>>>,
}

impl Real {
    fn new(capacity: usize) -> Self {
        let mut settings = Settings::default();
        settings.pool.capacity = capacity;
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
        let evaluators = (0..EVALUATORS).map(|e| pool.register(&e.to_string(), Spy::spec()).unwrap()).collect();
        Self { spy, pool, evaluators, calls: BTreeMap::new() }
    }

    fn call(&mut self, number: usize, evaluator: usize, input: String) {
        let evaluator = self.evaluators[evaluator].clone();
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

    /// Live runtimes, most recently used first, with their leases.
    fn shown(&self) -> Vec<(usize, usize)> {
        let index = |id| self.evaluators.iter().position(|evaluator| evaluator.id() == id).unwrap();
        let live = self.pool.snapshot().into_iter().filter(|runtime| runtime.state == RuntimeState::Live);
        live.map(|runtime| (index(runtime.evaluator), runtime.busy)).collect()
    }
}

async fn run(capacity: usize, ops: Vec<Op>) {
    let mut model = Model { capacity, ..Model::default() };
    let mut real = Real::new(capacity);
    let mut outcomes = BTreeMap::new();
    let mut open: Vec<usize> = vec![];
    for (number, op) in ops.into_iter().enumerate() {
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
                real.call(number, evaluator, "quick".into());
            }
            Op::Trap(evaluator) => {
                model.call(Call { number, evaluator, quick: true, trap: true }, Build::Ok);
                real.call(number, evaluator, "trap".into());
            }
            Op::Hold(evaluator) => {
                model.call(Call { number, evaluator, quick: false, trap: false }, Build::Ok);
                real.call(number, evaluator, format!("hold {number}"));
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
                let handle = real.evaluators[evaluator].clone();
                drop(tokio::spawn(async move { handle.unload().await }));
                model.unload(evaluator);
            }
            Op::Close(evaluator) => {
                drop(real.evaluators[evaluator].close());
                model.close(evaluator);
            }
            Op::Replace(evaluator) => {
                // A closed evaluator is not replaced but registered anew, under another id: not this model's affair.
                if !model.closed[evaluator] {
                    real.pool.register(&evaluator.to_string(), Spy::spec()).unwrap();
                    model.unload(evaluator);
                }
            }
            Op::Rest => {
                sleep(Duration::from_mins(2)).await;
                model.rest();
            }
        }
        real.come_to_rest().await;
        outcomes.extend(real.outcomes().await);
        open.retain(|call| !model.outcomes.contains_key(call));
        assert_eq!(outcomes, model.outcomes, "outcomes after {op:?}");
        assert_eq!(real.shown(), model.shown(), "live runtimes after {op:?}");
        assert_eq!(real.calls.len(), open.len(), "calls in flight after {op:?}");
        assert_eq!(real.spy.compiles(), model.builds, "builds after {op:?}");
        assert_eq!(real.pool.runtimes(), model.live.len() + model.draining.len(), "places after {op:?}");
        assert_eq!(real.spy.runtimes_live(), real.pool.runtimes(), "what exists is what is counted");
        assert!(real.spy.runtimes_live_max() <= capacity, "the bound");
        let permits: usize = real.pool.snapshot().iter().map(|runtime| runtime.instances).sum();
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

#[test]
fn the_registry_does_what_a_naive_model_of_it_does() {
    let cases = std::env::var("EVALPOOL_MODEL_CASES").map_or(256, |cases| cases.parse().unwrap());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    proptest!(config, |(capacity in 1..4_usize, ops in vec(op(), 1..40))| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(capacity, ops));
    });
}
