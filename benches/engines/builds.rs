//! What it takes to compile in workers: cold builds beside those in this process, the start of a worker, and a cold call
//! beside compiles that do not end.

use std::{
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use evalpool::{
    Close, Evaluator, EvaluatorPool, Isolation, Source, Spec,
    config::{CodeCache, CompileWorkers, Settings},
};
use tokio::runtime::Runtime;

use crate::{
    bombs,
    measure::{on_worker, runtime},
    plugins::{TOTALS, TRIVIAL, large},
    pooled,
    report::{Report, median, micros, quantile},
};

/// Each build is cold: nothing is kept of the one before.
fn pool(workers: CompileWorkers) -> EvaluatorPool {
    pooled::direct(Isolation::Fresh, |settings: &mut Settings| {
        settings.engine.code_cache = CodeCache::Off;
        settings.engine.compile_workers = workers;
        settings.limits.build_timeout = Duration::from_mins(2);
    })
}

/// How long the build of a cold evaluator takes; leaves it cold.
fn build(runtime: &Runtime, evaluator: &Evaluator) -> Duration {
    let evaluator = evaluator.clone();
    on_worker(runtime, async move {
        let began = Instant::now();
        let executable = evaluator.executable().await.unwrap();
        let took = began.elapsed();
        executable.close().await;
        took
    })
}

/// In turns, so that a change of the machine meets both. The worker is warm: it has compiled before.
pub(crate) fn in_workers_and_in_process(report: &mut Report, length: Duration) {
    println!("cold builds, in a warm worker and in this process");
    let read = |file: &str| std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    // A megabyte takes seconds to compile.
    let functions = if report.judges { 9_000 } else { 100 };
    for (name, wasm, most) in [
        ("  trivial", (TRIVIAL.wasm)(), 1.3),
        ("  small, C", read("src/service/greet/greet.wasm"), 1.3),
        ("  Rust PDK", (TOTALS.wasm)(), 1.3),
        ("  the largest fixture", read("tests/plugins/rust-panic/panics.wasm"), 1.05),
        ("  generated", large(functions), 1.05),
    ] {
        let runtime = runtime(2);
        let pools = [CompileWorkers::Auto, CompileWorkers::Off].map(pool);
        assert!(pools[0].compile_workers().is_some() && pools[1].compile_workers().is_none());
        let size = wasm.len() as f64 / 1e3;
        let evaluators =
            pools.each_ref().map(|pool| pool.evaluator("cold", Spec::new(Source::bytes(wasm.clone()))).unwrap());
        let (mut took, began) = ([Vec::new(), Vec::new()], Instant::now());
        for evaluator in &evaluators {
            build(&runtime, evaluator);
        }
        while took[1].len() < if report.judges { 5 } else { 1 } || began.elapsed() < length {
            for (evaluator, took) in evaluators.iter().zip(&mut took) {
                took.push(build(&runtime, evaluator));
            }
        }
        for pool in &pools {
            runtime.block_on(pool.close());
        }
        // Of pairs, and not of medians: what slows one slows its neighbour.
        let times =
            median(took[0].iter().zip(&took[1]).map(|(worker, here)| worker.as_secs_f64() / here.as_secs_f64()));
        let [worker, here] = took.map(|took| median(took.into_iter().map(micros)));
        let given = format!("p50 {worker:.0} µs, {here:.0} µs in process, {times:.2} x");
        report.judged(&format!("{name}, {size:.0} KB"), &given, &format!("at most {most:.2} x"), times <= most);
    }
}

/// The start of a worker, up to its first answer. By `posix_spawn`: a `fork` would copy the tables of all pages, which
/// takes tens of milliseconds for 2 GiB.
pub(crate) fn of_a_worker(report: &mut Report, _length: Duration) {
    let (rounds, pairs) = if report.judges { (9, 5) } else { (1, 1) };
    let gibibytes = if report.judges { 2 } else { 0 };
    let runtime = runtime(2);
    let starts = || {
        median((0..rounds).map(|_| {
            let pool = pool(CompileWorkers::Auto);
            let took = build(&runtime, &pool.evaluator("first", TRIVIAL.spec()).unwrap());
            runtime.block_on(pool.close());
            micros(took)
        }))
    };
    starts();
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..pairs {
        took[0].push(starts());
        // Written, so that it is resident.
        let resident = black_box(vec![1_u8; gibibytes << 30]);
        took[1].push(starts());
        drop(black_box(resident));
    }
    let [small, large] = took.map(median);
    let times = large / small;
    let given = format!("p50 {small:.0} µs, {large:.0} µs with {gibibytes} GiB resident, {times:.2} x");
    report.judged("the start of a worker and its first build", &given, "at most 1.10 x", times <= 1.1);
}

/// Two slots, and four plugins that would take minutes to compile.
pub(crate) fn beside_bombs(report: &mut Report, _length: Duration) {
    let build_timeout = Duration::from_millis(if report.judges { 3000 } else { 300 });
    let runtime = runtime(2);
    let pool = pooled::direct(Isolation::Fresh, |settings| {
        settings.pool.build_concurrency = 2;
        settings.limits.build_timeout = build_timeout;
    });
    let mut took = Vec::new();
    for round in 0..if report.judges { 3 } else { 1 } {
        let falling: Vec<_> = bombs::all()
            .into_iter()
            .map(|(name, mut bomb)| {
                // Bytes of its own, since what was too much is remembered.
                bomb.extend([0, 2, 1, b'0' + round]);
                let evaluator = pool.evaluator(name, Spec::new(Source::bytes(bomb))).unwrap();
                // A machine that is fast enough compiles one or the other.
                runtime.spawn(async move { evaluator.evaluate("").await.is_ok() })
            })
            .collect();
        let both_busy = || pool.compile_workers().is_some_and(|workers| workers.busy == 2);
        while !both_busy() && falling.iter().any(|bomb| !bomb.is_finished()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let cold = pool.evaluator("cold", TRIVIAL.spec()).unwrap();
        took.push(on_worker(&runtime, async move {
            let began = Instant::now();
            let _ = cold.evaluate("").await.unwrap();
            let took = began.elapsed();
            cold.close().await;
            took
        }));
        for bomb in falling {
            runtime.block_on(bomb).unwrap();
        }
    }
    runtime.block_on(pool.close());
    took.sort();
    let most = quantile(&took, 1000);
    let given = format!("{:.0} ms at most, build_timeout is {} ms", micros(most) / 1e3, build_timeout.as_millis());
    let what = "a cold call beside 4 compile bombs, 2 slots";
    report.judged(what, &given, "build_timeout + 2 s", most <= build_timeout + Duration::from_secs(2));
}
