//! What large inputs and outputs cost, with Extism's kernel in the plugin's own module and beside it.
//!
//! # What is not reached
//!
//! Twice as fast: it is as fast. A PDK calls the kernel for each eight bytes, and a call within a module takes as long as one
//! between two, 4.3 ns: the function asks whether it is to give way, and whether the address is in reach. Only code without
//! the call would be faster. wasmtime can inline functions within a module, but then it inlines the plugin's own as well,
//! and those are missing where a trap says where the guest was.

use std::time::Duration;

use evalpool::{Evaluator, Isolation, Source};

use crate::{
    measure::{latencies, runtime},
    plugins::{TOTALS, wasm},
    pooled::{self, PoolCaller},
    report::{Report, figure, median, micros, quantile},
};

static INPUT: [u8; 1 << 20] = [b'x'; 1 << 20];

/// One MiB in and out, which the Rust PDK reads and writes by eight bytes. With a linked module, though nothing is imported
/// from it, a plugin has the kernel beside it, as every plugin had before.
pub(crate) fn of_a_mebibyte(report: &mut Report, length: Duration) {
    let runtime = runtime(2);
    println!("1 MiB through the Rust PDK's echo, 1 task");
    for (isolation, name) in [(Isolation::Fresh, "fresh"), (Isolation::Reuse, "warm")] {
        let pool = pooled::direct(isolation, |_| {});
        let spec = || TOTALS.spec().entry_point("echo");
        let nothing = Source::bytes(wasm("(module)"));
        let evaluators = [("beside", spec().link("nothing", nothing)), ("inside", spec())]
            .map(|(name, spec)| pool.evaluator(name, spec).unwrap());
        let p50 = |evaluator: &Evaluator| {
            let caller = PoolCaller { evaluator: evaluator.clone(), input: &INPUT };
            micros(quantile(&latencies(&runtime, caller, length / 10), 500))
        };
        let rounds: Vec<[f64; 2]> =
            (0..if report.judges { 5 } else { 1 }).map(|_| evaluators.each_ref().map(p50)).collect();
        runtime.block_on(pool.close());
        let [beside, inside] = [0, 1].map(|kernel| median(rounds.iter().map(|round| round[kernel])));
        figure(&format!("  {name}, the kernel beside it"), &format!("p50 {beside:.0} µs"));
        let faster = median(rounds.iter().map(|[beside, inside]| beside / inside));
        let given = format!("p50 {inside:.0} µs, {faster:.2} x as fast");
        report.judged(&format!("  {name}, the kernel in it"), &given, "at least 2 x as fast", faster >= 2.0);
    }
}
