//! What it costs that a guest writes to many pages, which are as they were before the next evaluation.
//!
//! # What came of it
//!
//! By how many bytes stay resident while a slot is free, and are made what they were by hand, instead of given back to the system and
//! faulted in again: p50 of one task, with 50 µs of what is around guests, in one run.
//!
//! | pages | 64 KiB | 1 MiB | 4 MiB |
//! |---|---|---|---|
//! | 16 | 57 µs | 57 µs | 56 µs |
//! | 50 | 112 to 116 µs | 66 to 81 µs | 64 µs |
//! | 250 | 471 µs | 228 to 236 µs | 235 µs |
//! | 1,000 | 1,660 to 1,680 µs | 1,320 to 1,470 µs | 594 µs |
//!
//! So it is 1 MiB, as far as all free slots together keep no more than an eighth of `pool.memory`. With 4 MiB, a server
//! held an eighth to a sixth more after a second round of hostile guests; with 1 MiB, a twentieth.

use std::time::Duration;

use evalpool::{Isolation, Source, Spec};

use crate::{
    TASKS,
    measure::{self, latencies, runtime},
    plugins::wasm,
    pooled::{self, PoolCaller},
    report::{Report, figure, median, micros, quantile},
};

/// Pages of 4 KiB that an evaluation writes to, of a memory that begins with other bytes on each.
const PAGES: [usize; 5] = [1, 16, 50, 250, 1000];

pub(crate) fn many_pages(report: &mut Report, length: Duration) {
    let runtime = runtime(2);
    println!("fresh, a guest that writes to so many pages of 4 KiB");
    for pages in PAGES {
        let module = wasm(&format!(
            r#"(module (memory 64) (data (i32.const 0) "{}") (func (export "run") (result i32) (local $i i32)
                (loop $next
                    (i64.store (i32.mul (local.get $i) (i32.const 4096)) (i64.const 1))
                    (br_if $next (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const {pages}))))
                i32.const 0))"#,
            "0123456789abcdef".repeat(64 * 4096 - 256)
        ));
        let pool = pooled::direct(Isolation::Fresh, |_| {});
        let evaluator = pool.evaluator("dirty", Spec::new(Source::bytes(module))).unwrap();
        let caller = || PoolCaller { evaluator: evaluator.clone(), input: b"" };
        let rounds = if report.judges { 5 } else { 1 };
        let one = median((0..rounds).map(|_| micros(quantile(&latencies(&runtime, caller(), length / 20), 500))));
        let many = median((0..rounds).map(|_| {
            let callers = (0..TASKS).map(|_| caller()).collect();
            measure::per_second(&runtime, callers, length / 20)
        }));
        let kept = pool.slots().map_or(0, |slots| slots.kept) >> 10;
        let given = format!("p50 {one:.1} µs, {many:.0} a second by {TASKS} tasks, {kept} KiB kept");
        figure(&format!("  {pages} pages"), &given);
        runtime.block_on(pool.close());
    }
}
