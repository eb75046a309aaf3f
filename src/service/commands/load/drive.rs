//! The tasks that evaluate without pause, and what they and a schedule share.

use std::{
    iter::repeat_n,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};

use super::{
    chaos,
    customers::Choice,
    open,
    plan::Plan,
    seconds::Second,
    subject::Subject,
    tally::{Caller, Counted, Tally},
};
use crate::{CloseReport, Data, Error, Evaluator, EvaluatorPool, service::Exit};

/// What a flood may be answered: it is what the pool's bounds are for.
const FLOOD: &[&str] = &["ok", "saturated", "wait_timeout", "quota_exceeded"];

/// What the tasks share.
pub(super) struct Workload {
    pub(super) pool: EvaluatorPool,
    pub(super) input: Data,
    pub(super) tally: Tally,
    subject: Subject,
    names: Vec<String>,
    /// By rank. The locks are for chaos, which replaces them.
    evaluators: Vec<Mutex<Evaluator>>,
    /// The most runtimes seen at once.
    live_max: Arc<AtomicUsize>,
    /// For `--csv`.
    second: Option<Arc<Second>>,
    stop: AtomicBool,
}

/// What a task does until its time is over.
#[derive(Debug, Clone, Copy)]
struct Task {
    caller: Caller,
    choice: Choice,
    chaos: bool,
    until: Option<Instant>,
}

async fn work(workload: Arc<Workload>, mut random: StdRng, task: Task) {
    while task.until.is_none_or(|until| Instant::now() < until) && !workload.is_stopped() {
        let rank = task.choice.rank(&mut random);
        match task.caller {
            Caller::Ordinary if task.chaos => chaos::act(&workload, &mut random, rank).await,
            Caller::Ordinary => workload.evaluate(task.caller, &workload.evaluator(rank), &["ok"]).await,
            Caller::Flooding => workload.evaluate(task.caller, &workload.evaluator(rank), FLOOD).await,
        }
        // A refusal comes at once. Whoever calls again then must not keep its thread from the others.
        tokio::task::consume_budget().await;
    }
}

impl Workload {
    pub(super) fn new(
        pool: &EvaluatorPool,
        subject: Subject,
        input: Data,
        names: Vec<String>,
        live_max: Arc<AtomicUsize>,
        second: Option<Arc<Second>>,
    ) -> Result<Self, Exit> {
        let register = |name: &String| pool.evaluator(name, subject.spec(name)).map(Mutex::new);
        let evaluators = names.iter().map(register).collect::<Result<_, _>>()?;
        let (pool, tally, stop) = (pool.clone(), Tally::new()?, AtomicBool::new(false));
        Ok(Self { pool, input, tally, subject, names, evaluators, live_max, second, stop })
    }

    /// Runs the plan to its end, or until [`stop`](Self::stop).
    pub(super) async fn run(self: &Arc<Self>, plan: Plan) -> Result<(), Exit> {
        let Plan { callers, schedule, concurrency, chaos, duration, seed, .. } = plan;
        let until = duration.and_then(|duration| Instant::now().checked_add(duration));
        let mut running = Vec::new();
        // The schedule's choices are drawn from the seed itself.
        let first = u64::from(schedule.is_some());
        if let Some(schedule) = schedule {
            let workload = self.clone();
            running.push(tokio::task::spawn_blocking(move || open::drive(&workload, schedule, concurrency, duration)));
        }
        let tasks = callers.into_iter().flat_map(|callers| repeat_n(callers, concurrency));
        for (number, (caller, choice)) in (first..).zip(tasks) {
            // Multiplied, so that runs with neighbouring seeds share no task's choices.
            let random = StdRng::seed_from_u64(seed.wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
            running.push(tokio::spawn(work(self.clone(), random, Task { caller, choice, chaos, until })));
        }
        for task in running {
            task.await.map_err(|error| Exit::failed(format!("a task broke down: {error}")))?;
        }
        Ok(())
    }

    /// Ends each task after its current evaluation.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Drops the evaluators and returns the counts.
    pub(super) fn into_counted(self: Arc<Self>) -> Result<Counted, Exit> {
        let workload = Arc::into_inner(self).ok_or_else(|| Exit::failed("a task is still at work"))?;
        Ok(workload.tally.into_counted())
    }

    fn slot(&self, rank: usize) -> MutexGuard<'_, Evaluator> {
        // No rank is beyond the number of evaluators, by which they are chosen.
        self.evaluators[rank].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn evaluator(&self, rank: usize) -> Evaluator {
        self.slot(rank).clone()
    }

    /// Puts a new evaluator in the place of another, and returns the other.
    pub(super) fn replace(&self, rank: usize) -> Option<Evaluator> {
        let name = self.names.get(rank)?;
        let next = self.pool.evaluator(name, self.subject.spec(name)).ok()?;
        Some(mem::replace(&mut *self.slot(rank), next))
    }

    /// Evaluates once, and counts how it ended.
    pub(super) async fn evaluate(&self, caller: Caller, evaluator: &Evaluator, expected: &[&str]) {
        let began = Instant::now();
        let result = evaluator.evaluate(self.input.clone()).await;
        self.ended(caller, result.map(drop), began.elapsed(), expected);
    }

    /// Counts an evaluation that ended, and samples the pool while other evaluations run.
    pub(super) fn ended(&self, caller: Caller, result: Result<(), Error>, took: Duration, expected: &[&str]) {
        let outcome = result.map_or_else(|error| error.kind().as_str(), |()| "ok");
        self.live_max.fetch_max(self.pool.runtimes(), Ordering::Relaxed);
        self.tally.ended(caller, outcome, took, expected);
        if let Some(second) = &self.second {
            second.count(outcome == "ok", took);
        }
    }

    /// Counts a close that did not drain: evaluations here end long before any grace does.
    pub(super) fn closed(&self, report: CloseReport) {
        if report != CloseReport::Drained {
            self.tally.unexpected("close_not_drained");
        }
    }
}
