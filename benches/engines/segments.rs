//! What a module's data segments cost its fresh evaluations.

use std::{fmt::Write, time::Duration};

use evalpool::{Isolation, Source, Spec};

use crate::{
    measure::{latencies, runtime},
    plugins::wasm,
    pooled::{self, PoolCaller},
    report::{Report, figure, median, micros, quantile},
};

/// The trivial plugin with 30,000 segments of 16 bytes: as toolchains lay them out, as snapshots leave them behind, and
/// so sparse that wasmtime would copy each for each instance.
pub(crate) fn many_and_one(report: &mut Report, length: Duration) {
    const MANY: usize = 30_000;
    let module = |pages: usize, segments: &str| {
        wasm(&format!(r#"(module (memory {pages}) (func (export "run") (result i32) i32.const 0) {segments})"#))
    };
    let text = "0123456789abcdef";
    let active = |step: usize| {
        (0..MANY).fold(String::new(), |mut all, at| {
            let _ = write!(all, "(data (i32.const {}) {text:?})", at * step);
            all
        })
    };
    let samples = [
        ("one", module(320, &format!("(data (i32.const 0) {:?})", text.repeat(MANY)))),
        ("adjoining", module(320, &active(16))),
        ("near-each-other", module(320, &active(48))),
        ("far-apart", module(330, &active(700))),
        ("never-read", module(320, &format!("(data {text:?})").repeat(MANY))),
    ];
    let runtime = runtime(2);
    let pool = pooled::direct(Isolation::Fresh, |_| {});
    let evaluators: Vec<_> = samples
        .into_iter()
        .map(|(name, wasm)| (name, pool.evaluator(name, Spec::new(Source::bytes(wasm))).unwrap()))
        .collect();
    let rounds: Vec<Vec<f64>> = (0..if report.judges { 15 } else { 1 })
        .map(|_| {
            let p50 = |(_, evaluator): &(_, evalpool::Evaluator)| {
                let caller = PoolCaller { evaluator: evaluator.clone(), input: b"" };
                micros(quantile(&latencies(&runtime, caller, length / 30), 500))
            };
            evaluators.iter().map(p50).collect()
        })
        .collect();
    runtime.block_on(pool.close());
    println!("fresh, trivial, {MANY} data segments, 1 task");
    for (index, (name, _)) in evaluators.iter().enumerate() {
        let p50 = median(rounds.iter().map(|round| round[index]));
        let times = median(rounds.iter().map(|round| round[index] / round[0]));
        let given = format!("p50 {p50:.1} µs, {times:.2} x one segment");
        let what = format!("  {name}");
        if index == 0 {
            figure(&what, &given);
        } else {
            report.judged(&what, &given, "at most 1.10 x one segment", times <= 1.1);
        }
    }
}
