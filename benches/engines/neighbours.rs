//! How long a short evaluation takes beside guests that mean harm, on the same workers. On `direct`, which runs such
//! guests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use evalpool::{Evaluator, Isolation, Source, Spec};
use tokio::runtime::Runtime;

use crate::{
    TASKS, gallery,
    measure::{on_worker, runtime},
    plugins::{endless, short},
    pooled,
    report::{Report, micros, quantile},
};

pub(crate) fn beside_endless(report: &mut Report, length: Duration) {
    let runtime = runtime(2);
    let pool = pooled::direct(Isolation::Fresh, |settings| settings.limits.exec_timeout = Duration::from_secs(1));
    let neighbour = pool.evaluator("short", short()).unwrap();
    let alone = every_millisecond(&runtime, &neighbour, length);
    let stop = Arc::new(AtomicBool::new(false));
    let guests: Vec<_> = (0..TASKS)
        .map(|number| {
            let (evaluator, stop) = (pool.evaluator("endless", endless(number)).unwrap(), stop.clone());
            runtime.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let _ = evaluator.evaluate("").await;
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_secs(1));
    let beside = every_millisecond(&runtime, &neighbour, length);
    stop.store(true, Ordering::Relaxed);
    runtime.block_on(async {
        pool.close_with(Duration::ZERO).await;
        for guest in guests {
            guest.await.unwrap();
        }
    });
    let [alone, beside] = [alone, beside].map(|took| quantile(&took, 990));
    let given = format!("p99 {:.0} µs alone, {:.0} µs beside", micros(alone), micros(beside));
    let what = format!("10 µs beside {TASKS} endless guests, 2 workers");
    report.judged(&what, &given, "p99 at most 3000 µs", beside <= Duration::from_millis(3));
}

/// Callers go through the gallery of hostile plugins: each plugin is built, called and closed.
pub(crate) fn beside_gallery(report: &mut Report, length: Duration) {
    const CALLERS: usize = 3;
    let hostile = Arc::new(gallery::all());
    let runtime = runtime(2);
    // The sizes that the gallery is written for. Times are short, so that most of it is work.
    let pool = pooled::direct(Isolation::Fresh, |settings| {
        settings.pool.capacity = 8;
        settings.pool.max_instances = 16;
        settings.pool.negative_ttl = Duration::ZERO;
        settings.limits.exec_timeout = Duration::from_millis(100);
        settings.limits.build_timeout = Duration::from_millis(500);
        settings.limits.output_size = 1 << 20;
        settings.limits.memory = 8 << 20;
        settings.limits.table_elements = 10_000;
    });
    let neighbour = pool.evaluator("short", short().exec_timeout(Duration::from_mins(1))).unwrap();
    let alone = every_millisecond(&runtime, &neighbour, length);
    let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (pool, hostile, stop, next) = (pool.clone(), hostile.clone(), stop.clone(), next.clone());
            runtime.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let one = &hostile[next.fetch_add(1, Ordering::Relaxed) % hostile.len()];
                    let evaluator = pool.evaluator("hostile", Spec::new(Source::bytes(one.bytes.clone()))).unwrap();
                    for _ in 0..2 {
                        let _ = evaluator.evaluate("x").await;
                    }
                    evaluator.close().await;
                }
            })
        })
        .collect();
    // Long enough for all of it.
    let beside = every_millisecond(&runtime, &neighbour, length * 8);
    stop.store(true, Ordering::Relaxed);
    runtime.block_on(async {
        for caller in callers {
            caller.await.unwrap();
        }
        pool.close().await;
    });
    let [alone, beside] = [alone, beside].map(|took| micros(quantile(&took, 990)));
    let times = beside / alone;
    let given = format!("p99 {alone:.0} µs alone, {beside:.0} µs beside, {times:.1} x");
    let rounds = next.load(Ordering::Relaxed) as f64 / hostile.len() as f64;
    let what = format!("10 µs beside {rounds:.1} rounds of the gallery, 2 workers");
    report.judged(&what, &given, "at most 3 x", times <= 3.0);
}

/// How long calls take that are made every millisecond, sorted.
pub(crate) fn every_millisecond(runtime: &Runtime, evaluator: &Evaluator, length: Duration) -> Vec<Duration> {
    let evaluator = evaluator.clone();
    on_worker(runtime, async move {
        let (mut took, started) = (Vec::new(), Instant::now());
        while took.is_empty() || started.elapsed() < length {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let began = Instant::now();
            evaluator.evaluate("").await.unwrap();
            took.push(began.elapsed());
        }
        took.sort();
        took
    })
}
