//! What a hit costs on an engine that does nothing, and how that depends on how many evaluators there are.
//!
//! | row | what is done each time |
//! |---|---|
//! | evaluate | a whole evaluation, from its data to its response. Without a pause its instance is parked by its thread |
//! | evaluate by the registry | the same where nothing is parked |
//! | lease and its return | what the registry adds to that: an instance is set aside, and comes back |
//! | mutex with an LRU | `lock`, `get` and a clone: the least that any LRU costs, which counts, meters and guards nothing |
//!
//! One evaluator is called again and again, or all are, in a stride that prefetches nothing. 100,000 that are called in
//! turn are cold: each call of one finds none of what it needs in the processor's caches, from its runtime to its meter. The
//! LRU has the same trouble with its one entry, so that is what it is held against.
//!
//! # 250 ns
//!
//! are wanted for an evaluation, and not reached. What was tried, with what it brought where an evaluation took 490 ns and a
//! lease 820:
//!
//! - What an evaluation is given goes down by reference, and its guest is polled where it is called: 16 %. An `async fn` moves
//!   all its arguments twice.
//! - Two looks at the clock instead of three, if nothing took time in between: 6 %.
//! - The guest's outcome stays where it is while it is completed: 2 %.
//! - No look at the queues where nobody waits, one step to the end of the list for a runtime that was used last, gauges that
//!   are only set if they changed: 31 % of a lease.
//! - `#[inline]` on the small functions of that way: nothing.
//!
//! What is left of an evaluation, as `perf` has it: a sixth for two looks at the clock, which time its guest; a seventh for four
//! locks that only its own thread takes (its parked instance out and in, its meter, what the recorder is told), each of them
//! two atomic operations; a quarter where data, usage and response are handed on. The crate as one codegen unit takes a tenth
//! off, and thrice as long to compile. By the registry, one instruction in fourteen is that of the pool of idle instances, whose
//! place a `Vec` could take; that was not tried.

use std::{
    hint::black_box,
    num::NonZeroUsize,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use evalpool::{Evaluator, EvaluatorPool, Isolation};
use lru::LruCache;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;

use crate::{
    measure::{on_worker, runtime},
    plugins::TRIVIAL,
    report::{Report, figure, median},
    support::nothing::Nothing,
};

/// Evaluators that are registered, and live.
const COUNTS: [usize; 3] = [10, 1_000, 100_000];

/// From one evaluator to the next. Each has its turn before one has its second.
const STRIDE: usize = 7_919;

/// What is done, and whether it is done to all evaluators in turn.
const ROWS: [(&str, Hit, bool); 8] = [
    ("evaluate, one", Hit::Evaluate, false),
    ("evaluate, in turn", Hit::Evaluate, true),
    ("evaluate by the registry, one", Hit::EvaluateByRegistry, false),
    ("evaluate by the registry, in turn", Hit::EvaluateByRegistry, true),
    ("lease and its return, one", Hit::Lease, false),
    ("lease and its return, in turn", Hit::Lease, true),
    ("mutex with an LRU, one", Hit::MutexLru, false),
    ("mutex with an LRU, in turn", Hit::MutexLru, true),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hit {
    Evaluate,
    EvaluateByRegistry,
    Lease,
    MutexLru,
}

/// So many evaluators in a pool that parks, as many in one that does not, and as many entries of an LRU.
#[derive(Clone)]
struct Population {
    pools: [EvaluatorPool; 2],
    evaluators: [Arc<[Evaluator]>; 2],
    cache: Arc<Mutex<LruCache<usize, Arc<usize>>>>,
}

/// By one task, in short rounds that take turns. What is taken is the processor time of the task's thread: a busy machine makes
/// it no longer.
pub(crate) fn of_few_and_of_many(report: &mut Report, length: Duration) {
    let (rounds, each) = (if report.judges { 15 } else { 1 }, length / 150);
    let runtime = runtime(1);
    let counts = if report.judges { &COUNTS[..] } else { &COUNTS[..2] };
    let populations: Vec<Population> = counts.iter().map(|count| Population::new(&runtime, *count)).collect();
    let round = |_| -> Vec<Vec<f64>> {
        let of_all = |(_, hit, in_turn)| {
            populations.iter().map(|population| population.measure(&runtime, hit, in_turn, each)).collect()
        };
        ROWS.into_iter().map(of_all).collect()
    };
    let rounds: Vec<_> = (0..rounds).map(round).collect();
    for population in populations {
        population.pools.iter().for_each(|pool| _ = runtime.block_on(pool.close()));
    }

    let times = |row: usize, count: usize| median(rounds.iter().map(|round| round[row][count]));
    println!("warm, an engine that does nothing, 1 task: of {counts:?} evaluators");
    for (row, (what, hit, in_turn)) in ROWS.into_iter().enumerate() {
        let each: Vec<String> = (0..counts.len()).map(|count| format!("{:.0}", times(row, count))).collect();
        let last = counts.len() - 1;
        let flat = median(rounds.iter().map(|round| round[row][last] / round[row][0]));
        let (what, given) = (format!("  {what}"), format!("{} ns, {flat:.2} x", each.join(", ")));
        match (hit, in_turn) {
            (Hit::Evaluate, false) => {
                report.judged(&what, &given, "at most 250 ns of 10", times(row, 0) <= 250.0);
                report.judged("  of most over of fewest", &format!("{flat:.2} x"), "at most 1.25 x", flat <= 1.25);
            }
            (Hit::EvaluateByRegistry | Hit::Lease, false) => {
                report.judged(&what, &given, "at most 1.25 x", flat <= 1.25);
            }
            // What is cold takes longer, here as there.
            (Hit::EvaluateByRegistry | Hit::Lease, true) => {
                let lru = median(rounds.iter().map(|round| round[ROWS.len() - 1][last] / round[ROWS.len() - 1][0]));
                let wanted = format!("at most 1.25 x the LRU's {lru:.2}");
                report.judged(&what, &given, &wanted, flat <= 1.25 * lru);
            }
            // Of many in turn none is called without a pause, so none is parked.
            (Hit::Evaluate, true) | (Hit::MutexLru, _) => figure(&what, &given),
        }
    }
}

impl Population {
    fn new(runtime: &Runtime, count: usize) -> Self {
        let builder = || EvaluatorPool::builder().capacity(count).isolation(Isolation::Reuse).engine(Nothing);
        let pools = [builder(), builder().park_after(u32::MAX)].map(|builder| builder.build().unwrap());
        let spec = TRIVIAL.spec();
        let evaluators = pools.each_ref().map(|pool| {
            let evaluator = |number| pool.register(&format!("tenant-{number}/e"), spec.clone()).unwrap();
            (0..count).map(evaluator).collect::<Arc<[Evaluator]>>()
        });
        for evaluators in evaluators.clone() {
            on_worker(runtime, async move {
                for evaluator in &*evaluators {
                    evaluator.warm().await.unwrap();
                }
            });
        }
        let mut cache = LruCache::new(NonZeroUsize::new(count).unwrap());
        for number in 0..count {
            cache.put(number, Arc::new(number));
        }
        Self { pools, evaluators, cache: Arc::new(Mutex::new(cache)) }
    }

    /// Nanoseconds for each.
    fn measure(&self, runtime: &Runtime, hit: Hit, in_turn: bool, length: Duration) -> f64 {
        let (this, length) = (self.clone(), length.as_secs_f64() * 1e9);
        on_worker(runtime, async move {
            let [parking, by_registry] = &this.evaluators;
            let (mut at, count) = (0, parking.len());
            // As many calls as it takes to be parked, if that can be; then those that are counted.
            let (mut begun, mut done, first) = (None, 0_u32, processor_time());
            loop {
                for _ in 0..1_000 {
                    at = if in_turn { (at + STRIDE) % count } else { 0 };
                    match hit {
                        Hit::Evaluate => evaluate(&parking[at]).await,
                        Hit::EvaluateByRegistry => evaluate(&by_registry[at]).await,
                        Hit::Lease => by_registry[at].warm().await.unwrap(),
                        Hit::MutexLru => drop(black_box(this.cache.lock().unwrap().get(&at).cloned())),
                    }
                }
                let now = processor_time();
                match begun {
                    None if hit != Hit::Evaluate || now - first >= 10.0 * length => begun = Some(now),
                    None => {}
                    Some(begun) => {
                        done += 1_000;
                        if now - begun >= length {
                            return (now - begun) / f64::from(done);
                        }
                    }
                }
            }
        })
    }
}

async fn evaluate(evaluator: &Evaluator) {
    let _ = black_box(evaluator.evaluate(Bytes::from_static(TRIVIAL.input)).await.unwrap());
}

/// In nanoseconds.
fn processor_time() -> f64 {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap().as_secs_f64() * 1e9
}
