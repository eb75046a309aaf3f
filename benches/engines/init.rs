//! What a plugin's initialisers cost its fresh evaluations, in each instance and once.
//!
//! `benches/plugins/go/build.sh` builds a plugin in standard Go with Extism's PDK to pass with `--plugin`. Its snapshot is
//! possible, and its initialisers draw time and randomness. Wanted for such a one: a p50 of at most 80 µs, and a twelfth of
//! what it is with `each`. Not measured with this bench yet. `evalpool load` with one caller, of a build whose own code was
//! not optimised, on 2 cores that were busy with other work: p50 750 µs with `each`, 230 µs with `once`, 10 µs reused. What
//! is left after the initialisers is the memory that a call of Go's runtime changes, some 50 pages that the next instance in
//! that slot finds as they were, and the instance itself.

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
