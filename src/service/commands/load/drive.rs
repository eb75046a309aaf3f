//! The tasks, each of which evaluates without pause, and what they count.

use std::{
    collections::BTreeMap,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rand::{SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, Zipf};

use super::{
    chaos::{self, Act},
    subject::Subject,
};
use crate::{
    CloseReport, Data, Error, Evaluator, EvaluatorPool,
    service::{Exit, cli::LoadArguments},
};

/// What the tasks counted.
pub(super) struct Tally {
    /// Evaluations by outcome: `ok`, `cancelled` or an error's kind.
    pub(super) outcomes: BTreeMap<&'static str, u64>,
    /// Outcomes that the task did not expect.
    pub(super) unexpected: BTreeMap<&'static str, u64>,
    /// How often each act of chaos was done.
    pub(super) acts: BTreeMap<Act, u64>,
    /// Nanoseconds of each evaluation that succeeded.
    pub(super) latency: Histogram<u64>,
}

impl Tally {
    pub(super) fn evaluations(&self) -> u64 {
        self.outcomes.values().sum()
    }
}

/// What the tasks share.
pub(super) struct Workload {
    pub(super) pool: EvaluatorPool,
    pub(super) input: Data,
    subject: Subject,
    /// By rank: the first has the largest share. The locks are for chaos, which replaces them.
    evaluators: Vec<Mutex<Evaluator>>,
    tally: Mutex<Tally>,
    /// The most runtimes seen at once.
    live_max: Arc<AtomicUsize>,
    stop: AtomicBool,
}

fn register(pool: &EvaluatorPool, subject: &Subject, rank: usize) -> Result<Evaluator, Error> {
    let name = format!("evaluator-{rank}");
    pool.evaluator(&name, subject.spec(&name))
}

async fn work(workload: Arc<Workload>, mut random: StdRng, zipf: Zipf<f64>, until: Instant, chaos: bool) {
    while Instant::now() < until && !workload.stop.load(Ordering::Relaxed) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a whole number, at most a million"
        )]
        let rank = zipf.sample(&mut random) as usize - 1;
        if chaos {
            chaos::act(&workload, &mut random, rank).await;
        } else {
            workload.evaluate(&workload.evaluator(rank), &["ok"]).await;
        }
    }
}

impl Workload {
    pub(super) fn new(
        pool: &EvaluatorPool,
        subject: Subject,
        input: Data,
        evaluators: u32,
        live_max: Arc<AtomicUsize>,
    ) -> Result<Self, Exit> {
        // An hour in nanoseconds, to three digits.
        let latency = Histogram::new_with_bounds(1, 3_600_000_000_000, 3)
            .map_err(|error| Exit::failed(format!("latencies cannot be recorded: {error}")))?;
        let tally = Tally { outcomes: BTreeMap::new(), unexpected: BTreeMap::new(), acts: BTreeMap::new(), latency };
        let evaluators = (0..evaluators as usize)
            .map(|rank| register(pool, &subject, rank).map(Mutex::new))
            .collect::<Result<_, _>>()?;
        let (pool, tally, stop) = (pool.clone(), Mutex::new(tally), AtomicBool::new(false));
        Ok(Self { pool, input, subject, evaluators, tally, live_max, stop })
    }

    /// Runs the tasks for the duration, or until [`stop`](Self::stop).
    pub(super) async fn run(self: &Arc<Self>, arguments: &LoadArguments, seed: u64) -> Result<(), Exit> {
        let LoadArguments { concurrency, duration, skew, chaos, .. } = *arguments;
        let zipf = Zipf::new(self.evaluators.len() as f64, skew).map_err(|error| Exit::unusable(error.to_string()))?;
        let until = Instant::now() + duration;
        let tasks = (0..concurrency.get() as u64).map(|task| {
            // Multiplied, so that runs with neighbouring seeds share no task's choices.
            let random = StdRng::seed_from_u64(seed.wrapping_add(task.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
            tokio::spawn(work(self.clone(), random, zipf, until, chaos))
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.map_err(|error| Exit::failed(format!("a task broke down: {error}")))?;
        }
        Ok(())
    }

    /// Ends each task after its current evaluation.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Drops the evaluators and returns the counts.
    pub(super) fn into_tally(self: Arc<Self>) -> Result<Tally, Exit> {
        let workload = Arc::into_inner(self).ok_or_else(|| Exit::failed("a task is still at work"))?;
        Ok(workload.tally.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn slot(&self, rank: usize) -> MutexGuard<'_, Evaluator> {
        // The distribution gives no rank beyond the number of evaluators.
        self.evaluators[rank].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn evaluator(&self, rank: usize) -> Evaluator {
        self.slot(rank).clone()
    }

    /// Puts a new evaluator in the place of another, and returns the other.
    pub(super) fn replace(&self, rank: usize) -> Option<Evaluator> {
        let next = register(&self.pool, &self.subject, rank).ok()?;
        Some(mem::replace(&mut *self.slot(rank), next))
    }

    /// Evaluates once, and counts how it ended.
    pub(super) async fn evaluate(&self, evaluator: &Evaluator, expected: &[&str]) {
        let began = Instant::now();
        let result = evaluator.evaluate(self.input.clone()).await;
        self.ended(result.map(drop), began.elapsed(), expected);
    }

    /// Counts an evaluation that ended, and samples the pool while other evaluations run.
    pub(super) fn ended(&self, result: Result<(), Error>, took: Duration, expected: &[&str]) {
        let outcome = result.map_or_else(|error| error.kind().as_str(), |()| "ok");
        self.live_max.fetch_max(self.pool.runtimes(), Ordering::Relaxed);
        let mut tally = self.tally();
        *tally.outcomes.entry(outcome).or_default() += 1;
        if !expected.contains(&outcome) {
            *tally.unexpected.entry(outcome).or_default() += 1;
        }
        if outcome == "ok" {
            tally.latency.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// Counts an act of chaos.
    pub(super) fn acted(&self, act: Act) {
        *self.tally().acts.entry(act).or_default() += 1;
    }

    /// Counts a close that did not drain: evaluations here end long before any grace does.
    pub(super) fn closed(&self, report: CloseReport) {
        if report != CloseReport::Drained {
            *self.tally().unexpected.entry("close_not_drained").or_default() += 1;
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        // A panic could at worst leave one count too few.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
