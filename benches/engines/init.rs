//! What a plugin's initialisers cost its fresh evaluations, in each instance and once.
//!
//! `benches/plugins/go/build.sh` builds a plugin in standard Go with Extism's PDK to pass with `--plugin`. Its snapshot is
//! possible, and its initialisers draw time and randomness.
//!
//! # What came of it
//!
//! p50 of one task, on 2 cores where nothing else ran, and the guest's own instructions in one evaluation, as fuel counts them,
//! without the initialisers:
//!
//! | | each | once | reused | instructions, fresh | reused |
//! |---|---|---|---|---|---|
//! | no initialisers | 5.2 to 5.5 µs | 5.2 to 5.5 µs | 0.6 µs | | |
//! | fills a megabyte | 758 to 799 µs | 5.5 to 5.9 µs | 0.6 µs | | |
//! | Go, `count_vowels` | 538 µs | 88 µs | 4.0 µs | 329,000 | 25,800 |
//! | Haskell, a function that prints | 97 µs | 60 µs | 6.3 µs | 42,500 | 21,100 |
//! | Haskell, `mallocBytes` | 56 µs | 17.5 µs | 1.2 µs | 2,460 | 2,220 |
//!
//! Wanted for Go: at most 80 µs, and a twelfth of `each`. Wanted for Haskell: at most 3 x reused. All are missed.
//!
//! What is in the way of Go's: the first call of an instance runs 13 times as many instructions as a later one, since its
//! runtime does then what it does lazily; with `each` it does so too. In `perf` of `evalpool load` with one caller that is 56 %
//! of the time, some 50 µs: more than a twelfth of `each` by itself. 27 % are wasmtime and this crate, `load` included; 8 % the
//! system, most of it the call that asks which pages were changed; 7 % copying those back. There is no page fault: all that
//! it changes stays resident, so more of that gives nothing.
//!
//! A fresh instance of the empty plugin takes 5 µs, so for a Haskell function that takes 1.2 µs, 3 x cannot be; one that prints
//! makes its handles and encodings in each first call. The Haskell module was a reactor of GHC's wasm backend (3.4 MB, found in
//! a public repository and given an entry point without parameters), not one of Extism's PDK.
//!
//! Considered and not taken: to call the plugin once before its state is read, so that it has done what is lazy. That is an
//! evaluation that nobody asked for, whose effects all others would begin with.

use std::{fs, time::Duration};

use evalpool::{Evaluator, EvaluatorPool, Init, Isolation, Source, Spec};

use crate::{
    measure::{latencies, runtime},
    plugins::wasm,
    pooled::{self, PoolCaller},
    report::{Report, figure, median, micros, quantile},
};

/// The trivial plugin, and one with an initialiser that fills a megabyte in about a millisecond. With `--plugin FILE` one of
/// your own as well, which is called without an input (`--entry NAME`: by this entry point).
pub(crate) fn each_and_once(report: &mut Report, length: Duration) {
    let run = r#"(func (export "run") (result i32) i32.const 0)"#;
    let fills = r#"(func (export "_initialize") (local $i i32) (local $x i64) (local $rounds i32)
        (loop $all
            (local.set $i (i32.const 0))
            (loop $each
                (local.set $x (i64.add (i64.mul (local.get $x) (i64.const 6364136223846793005)) (i64.const 1442695040888963407)))
                (i64.store (local.get $i) (local.get $x))
                (br_if $each (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 8))) (i32.const 1048576))))
            (br_if $all (i32.lt_u (local.tee $rounds (i32.add (local.get $rounds) (i32.const 1))) (i32.const 4)))))"#;
    let spec = |init: &str| Spec::new(Source::bytes(wasm(&format!("(module (memory 17) {init} {run})"))));
    let mut specs = vec![("none", spec("")), ("fills-a-megabyte", spec(fills))];
    let said = |flag: &str| std::env::args().skip_while(|argument| argument != flag).nth(1);
    if let Some(path) = said("--plugin") {
        let spec = Spec::new(Source::bytes(fs::read(path).unwrap()));
        specs.push(("--plugin", said("--entry").map_or(spec.clone(), |entry| spec.entry_point(entry))));
    }
    let runtime = runtime(2);
    let pools = [Isolation::Fresh, Isolation::Reuse].map(|isolation| pooled::direct(isolation, |_| {}));
    let [fresh, reuse] = &pools;
    println!("initialisers, 1 task");
    let mut first = 0.0;
    for (name, spec) in specs {
        let evaluator = |pool: &EvaluatorPool, init: Init| {
            let evaluator = pool.register(&format!("{name}/{init:?}"), spec.clone().init(init)).unwrap();
            runtime.block_on(begun(pool, &evaluator));
            evaluator
        };
        let evaluators =
            [(fresh, Init::Each), (fresh, Init::Once), (reuse, Init::Each)].map(|(pool, init)| evaluator(pool, init));
        let rounds: Vec<[f64; 3]> = (0..if report.judges { 15 } else { 1 })
            .map(|_| {
                evaluators.each_ref().map(|evaluator| {
                    let caller = PoolCaller { evaluator: evaluator.clone(), input: b"" };
                    micros(quantile(&latencies(&runtime, caller, length / 30), 500))
                })
            })
            .collect();
        let p50 = |index: usize| median(rounds.iter().map(|round| round[index]));
        let [each, once, again] = [p50(0), p50(1), p50(2)];
        let refused = fresh.info(&format!("{name}/{:?}", Init::Once)).and_then(|info| info.init.refused);
        let given = format!("each {each:.1} µs, once {once:.1} µs, reused {again:.1} µs");
        let what = format!("  {name}{}", refused.map(|why| format!(" ({why})")).unwrap_or_default());
        match name {
            "none" => {
                first = once;
                let times = once / each;
                report.judged(&what, &given, "once within 2 % of each", (0.98..=1.02).contains(&times));
            }
            "fills-a-megabyte" => {
                let given = format!("{given}, {:.2} x none", once / first);
                report.judged(&what, &given, "once at most 1.5 x none", once <= 1.5 * first);
            }
            _ => figure(&what, &format!("{given}, {:.1} x", each / once)),
        }
    }
    runtime.block_on(async {
        for pool in &pools {
            pool.close().await;
        }
    });
}

/// Waits until it is initialised as it will be.
async fn begun(pool: &EvaluatorPool, evaluator: &Evaluator) {
    for _ in 0..3 {
        let _ = evaluator.evaluate("").await;
        let init = || pool.info(evaluator.name()).unwrap().init;
        while init().mode == Init::Once && !init().in_use && init().refused.is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
