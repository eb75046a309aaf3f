//! What a Prometheus recorder costs warm calls: two pools that differ in nothing else, in one run.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use evalpool::{
    Evaluator, Isolation,
    metrics::{BUCKETS, CATALOGUE, MetricType},
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tokio::runtime::Runtime;

use crate::{
    measure::{per_second, runtime},
    plugins::TRIVIAL,
    pooled::{self, PoolCaller},
    report::{Report, figure, median, skipped},
    workers::{CALLERS, arithmetic},
};

/// As the exporter's own listener and the program do: otherwise samples pile up.
const UPKEEP: Duration = Duration::from_secs(5);

/// With and without, by one worker and by two, in short rounds that take turns, as in [`workers`](crate::workers).
pub(crate) fn with_and_without(report: &mut Report, length: Duration) {
    const ROUNDS: usize = 40;
    let each = length / 75;
    let recorder = recorder();
    let pools = [
        pooled::direct(Isolation::Reuse, |_| {}),
        metrics::with_local_recorder(&recorder, || pooled::direct(Isolation::Reuse, |_| {})),
    ];
    let [without, with] = pools.each_ref().map(|pool| pool.evaluator("trivial", TRIVIAL.spec()).unwrap());
    let [one, two] = [runtime(1), runtime(2)];
    let rate = |runtime: &Runtime, evaluator: &Evaluator| {
        let callers = (0..CALLERS).map(|_| PoolCaller { evaluator: evaluator.clone(), input: TRIVIAL.input });
        per_second(runtime, callers.collect(), each)
    };
    let mut rounds = Vec::new();
    kept_up(&recorder.handle(), || {
        for _ in 0..if report.judges { ROUNDS } else { 1 } {
            rounds.push([
                arithmetic(2, each),
                rate(&one, &without),
                rate(&one, &with),
                rate(&two, &without),
                rate(&two, &with),
                arithmetic(1, each),
                arithmetic(2, each),
            ]);
            thread::sleep(10 * each);
        }
    });
    for pool in pools {
        one.block_on(pool.close());
    }

    let best = rounds.iter().map(|round: &[f64; 7]| round[5]).fold(0.0, f64::max);
    let had_both = |round: &&[f64; 7]| round[5] >= 0.9 * best && round[0].min(round[6]) >= 1.8 * best;
    let whole: Vec<_> = rounds.iter().filter(had_both).copied().collect();
    let one_processor = whole.is_empty();
    println!("warm, trivial, {CALLERS} tasks, with a Prometheus recorder; {} whole rounds", whole.len());
    let rounds = if one_processor { rounds } else { whole };
    let times = |over: usize, under: usize| median(rounds.iter().map(|round| round[over] / round[under]));
    let given = |at: usize| median(rounds.iter().map(|round| round[at]));
    let mut judged = |what: &str, times: f64, given: &str, wanted: &str, met: bool| {
        let given = format!("{times:.2} x; {given}");
        if one_processor && report.judges {
            skipped(what, &given, wanted, "no round had two real processors");
        } else {
            report.judged(what, &given, wanted, met);
        }
    };
    let calls = |one: usize, two: usize| format!("{:.0} and {:.0} calls a second", given(one), given(two));
    let price = times(1, 2);
    judged("  a call with it, 1 worker", price, &calls(1, 2), "at most 1.1 x", price <= 1.1);
    let price = times(3, 4);
    judged("  a call with it, 2 workers", price, &calls(3, 4), "at most 1.1 x", price <= 1.1);
    let scale = times(4, 2);
    judged("  with it, 1 and 2 workers", scale, &calls(2, 4), "at least 1.6 x", scale >= 1.6);
    figure("  without it, 1 and 2 workers", &format!("{:.2} x; {}", times(3, 1), calls(1, 3)));
}

/// With the buckets that the catalogue has.
fn recorder() -> PrometheusRecorder {
    let histograms = CATALOGUE.iter().filter(|metric| metric.kind == MetricType::Histogram);
    let builder = histograms.fold(PrometheusBuilder::new(), |builder, metric| {
        builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), BUCKETS).unwrap()
    });
    builder.build_recorder()
}

fn kept_up(exporter: &PrometheusHandle, measure: impl FnOnce()) {
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
        measure();
        stop.store(true, Ordering::Relaxed);
    });
}
