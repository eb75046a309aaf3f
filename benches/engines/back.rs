//! How long a call waits for a plugin that was evicted.

use std::time::{Duration, Instant};

use evalpool::{EvaluatorPool, Isolation, Source, Spec, config::Settings};

use crate::{
    measure::{on_worker, runtime},
    plugins::{TRIVIAL, large},
    pooled,
    report::{Report, figure, micros, quantile},
};

pub(crate) fn from_eviction(report: &mut Report, length: Duration) {
    // 1.6 MB, or less where nothing is judged: compiling takes seconds.
    let wasm = large(if report.judges { 7300 } else { 100 });
    println!("return of an evicted plugin of {:.1} MB, fresh", wasm.len() as f64 / 1e6);
    let settings = |settings: &mut Settings| {
        settings.pool.capacity = 1;
        settings.limits.build_timeout = Duration::from_mins(2);
    };
    let (p50, given) = measure(&pooled::direct(Isolation::Fresh, settings), &wasm, length);
    report.judged("  direct", &given, "p50 at most 5000 µs", p50 <= Duration::from_millis(5));
    let (_, given) = measure(&pooled::adapter(Isolation::Fresh, settings), &wasm, length);
    figure("  extism engine, compiled again", &given);
}

fn measure(pool: &EvaluatorPool, wasm: &[u8], length: Duration) -> (Duration, String) {
    let runtime = runtime(2);
    let large = pool.evaluator("large", Spec::new(Source::bytes(wasm.to_vec()))).unwrap();
    let other = pool.evaluator("other", TRIVIAL.spec()).unwrap();
    let took = on_worker(&runtime, async move {
        large.evaluate("").await.unwrap();
        let (mut took, started) = (Vec::new(), Instant::now());
        while took.is_empty() || started.elapsed() < length {
            other.evaluate("").await.unwrap();
            let began = Instant::now();
            large.evaluate("").await.unwrap();
            took.push(began.elapsed());
        }
        took.sort();
        took
    });
    runtime.block_on(pool.close());
    let [p50, p99] = [500, 990].map(|thousandths| quantile(&took, thousandths));
    (p50, format!("p50 {:.0} µs, p99 {:.0} µs", micros(p50), micros(p99)))
}
