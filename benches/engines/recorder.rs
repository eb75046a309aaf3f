//! What a Prometheus recorder costs warm calls: pools that differ in nothing else, in one run.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use evalpool::{Evaluator, Isolation, metrics::BUCKETS, service::exporter};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;

use crate::{
    measure::{on_worker, per_second, runtime},
    plugins::TRIVIAL,
    pooled::{self, PoolCaller},
    report::{Report, figure, median, skipped},
    workers::{CALLERS, arithmetic},
};

/// As the exporter's own listener and the program do: otherwise samples pile up.
const UPKEEP: Duration = Duration::from_secs(5);

/// In this order.
const RECORDERS: [&str; 3] = ["no recorder", "the exporter's recorder", "the program's recorder"];

/// As long as it takes until all calls were told to the recorder.
const TOLD: Duration = Duration::from_millis(150);

/// Calls of one pool, by one worker or two.
#[derive(Clone, Copy)]
struct Measured {
    per_second: f64,
    /// Processor time of each, in nanoseconds: on one of the workers, and of the whole process with what is done in the
    /// background.
    on_worker: f64,
    in_all: f64,
}

/// One worker and two.
#[derive(Clone, Copy)]
struct Round {
    pools: [[Measured; 2]; RECORDERS.len()],
    /// Rounds a second by one thread and by two.
    arithmetic: [f64; 2],
}

/// By one worker and by two, in short rounds that take turns, as in [`workers`](crate::workers). What a call costs is its
/// processor time: a busy machine makes it no longer.
pub(crate) fn with_and_without(report: &mut Report, length: Duration) {
    let (rounds, each) = (if report.judges { 40 } else { 1 }, length / 75);
    // As somebody who embeds the crate would have it, with the catalogue's bounds.
    let embedder = PrometheusBuilder::new().set_buckets(BUCKETS).unwrap().build_recorder();
    let program = exporter::recorder().0;
    let pool = || pooled::direct(Isolation::Reuse, |_| {});
    let pools = [pool(), metrics::with_local_recorder(&embedder, pool), metrics::with_local_recorder(&program, pool)];
    let evaluators = pools.each_ref().map(|pool| pool.evaluator("trivial", TRIVIAL.spec()).unwrap());
    let runtimes = [runtime(1), runtime(2)];
    let rounds: Vec<Round> = kept_up(&embedder.handle(), || {
        let round = |_| {
            let before = arithmetic(2, each);
            let pools = evaluators.each_ref().map(|it| runtimes.each_ref().map(|runtime| measure(runtime, it, each)));
            Round { pools, arithmetic: [arithmetic(1, each), before.min(arithmetic(2, each))] }
        };
        (0..rounds).map(round).collect()
    });
    for pool in pools {
        runtimes[0].block_on(pool.close());
    }

    println!("warm, trivial, {CALLERS} tasks");
    for (at, name) in RECORDERS.into_iter().enumerate().skip(1) {
        for (workers, count) in ["1 worker", "2 workers"].into_iter().enumerate() {
            let spent = |of: fn(&Measured) -> f64| {
                let times = median(rounds.iter().map(|it| of(&it.pools[at][workers]) / of(&it.pools[0][workers])));
                let [with, without] = [at, 0].map(|at| median(rounds.iter().map(|it| of(&it.pools[at][workers]))));
                (times, format!("{times:.2} x, {with:.0} ns instead of {without:.0}"))
            };
            let ((own, own_given), (all, all_given)) = (spent(|it| it.on_worker), spent(|it| it.in_all));
            if workers == 0 {
                report.judged(&format!("  {name}, a call on its thread"), &own_given, "at most 1.1 x", own <= 1.1);
            }
            let what = format!("  {name}, a call in all, {count}");
            // What an exporter does with samples in the background is its own affair.
            if at == 1 {
                figure(&what, &all_given);
            } else {
                report.judged(&what, &all_given, "at most 1.1 x", all <= 1.1);
            }
        }
    }
    scale(report, &rounds);
}

fn scale(report: &mut Report, rounds: &[Round]) {
    let best = rounds.iter().map(|round| round.arithmetic[0]).fold(0.0, f64::max);
    let had_both = |round: &&Round| round.arithmetic[0] >= 0.9 * best && round.arithmetic[1] >= 1.8 * best;
    let whole: Vec<_> = rounds.iter().filter(had_both).copied().collect();
    let one_processor = whole.is_empty();
    let told = format!("{} of {} rounds had two processors", whole.len(), rounds.len());
    let rounds = if one_processor { rounds } else { &whole };
    for (at, name) in RECORDERS.into_iter().enumerate() {
        let times = median(rounds.iter().map(|round| round.pools[at][1].per_second / round.pools[at][0].per_second));
        let [one, two] = [0, 1].map(|workers| median(rounds.iter().map(|it| it.pools[at][workers].per_second)));
        let given = format!("{one:.0} and {two:.0} calls a second, {times:.2} x");
        let (what, wanted) = (format!("  {name}, 1 and 2 workers"), "at least 1.6 x");
        if one_processor && report.judges {
            skipped(&what, &given, wanted, "no round had two real processors");
        } else {
            report.judged(&what, &given, wanted, times >= 1.6);
        }
    }
    figure("  ", &told);
}

fn measure(runtime: &Runtime, evaluator: &Evaluator, length: Duration) -> Measured {
    let on_worker = |clock| on_worker(runtime, async move { processor_time(clock) });
    let caller = || PoolCaller { evaluator: evaluator.clone(), input: TRIVIAL.input };
    let callers = (0..CALLERS).map(|_| caller()).collect();
    let (own, all, began) =
        (on_worker(ClockId::ThreadCPUTime), processor_time(ClockId::ProcessCPUTime), Instant::now());
    let per_second = per_second(runtime, callers, length);
    let calls = per_second * began.elapsed().as_secs_f64();
    let own = on_worker(ClockId::ThreadCPUTime).saturating_sub(own);
    thread::sleep(TOLD);
    let all = processor_time(ClockId::ProcessCPUTime).saturating_sub(all);
    let [on_worker, in_all] = [own, all].map(|spent| spent.as_secs_f64() * 1e9 / calls);
    Measured { per_second, on_worker, in_all }
}

fn processor_time(clock: ClockId) -> Duration {
    clock_gettime(clock).try_into().unwrap()
}

/// While this measures, somebody keeps the exporter up, as it wants.
fn kept_up<T>(exporter: &PrometheusHandle, measure: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                thread::sleep(UPKEEP / 50);
                if last.elapsed() >= UPKEEP {
                    last = Instant::now();
                    exporter.run_upkeep();
                }
            }
        });
        let measured = measure();
        stop.store(true, Ordering::Relaxed);
        measured
    })
}
