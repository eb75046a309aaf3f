//! Guests that do nothing but collect a full heap, with the default `limits.memory`: how far one exceeds its deadline (a
//! collection that is interrupted goes on to its end), and what a neighbour feels of many.

use std::time::{Duration, Instant};

use evalpool::{Isolation, Source, Spec};

use crate::{
    TASKS,
    measure::{on_worker, runtime},
    neighbours::every_millisecond,
    plugins::short,
    pooled,
    report::{Report, micros, quantile},
};

const DEADLINE: Duration = Duration::from_millis(200);

const TYPES: &str = "(type $node (struct (field (ref null $node)))) (type $bytes (array (mut i8)))
    (func $list (param $n i32) (result (ref null $node)) (local $list (ref null $node))
        (loop $each
            (local.set $list (struct.new $node (local.get $list)))
            (br_if $each (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
        (local.get $list))";

/// A list that takes nearly all of the half that is live.
const LIST: &str = "(local.set 0 (call $list (i32.const 900000)))";

/// A guest that keeps this.
fn collects(live: &str) -> Spec {
    let text = format!(
        r#"(module {TYPES} (func (export "run") (local (ref null $node)) (local (ref null $bytes)) {live}
            (loop $each (drop (call $list (i32.const 10000))) (br $each))))"#
    );
    Spec::new(Source::bytes(wat::parse_str(text).unwrap()))
}

pub(crate) fn full_heaps(report: &mut Report, length: Duration) {
    let runtime = runtime(2);
    let pool = pooled::direct(Isolation::Fresh, |_| {});
    for (name, live) in
        [("structures", LIST), ("one array", "(local.set 1 (array.new_default $bytes (i32.const 27000000)))")]
    {
        let evaluator = pool.evaluator("collects", collects(live).exec_timeout(DEADLINE)).unwrap();
        let worst = on_worker(&runtime, async move {
            evaluator.warm().await.unwrap();
            let (mut worst, started) = (Duration::ZERO, Instant::now());
            while worst.is_zero() || started.elapsed() < length {
                let began = Instant::now();
                let ended = evaluator.evaluate("").await.unwrap_err();
                assert_eq!(ended.kind(), "exec_timeout");
                worst = worst.max(began.elapsed().saturating_sub(DEADLINE));
            }
            worst
        });
        let given = format!("at most {:.0} µs late", micros(worst));
        let what = format!("the end of a guest that collects a full heap of {name}");
        report.judged(&what, &given, "at most 20000 µs", worst <= Duration::from_millis(20));
    }
    let neighbour = pool.evaluator("short", short()).unwrap();
    // Each has its list within a few seconds, and ends when the pool closes.
    let guests: Vec<_> = (0..TASKS)
        .map(|number| {
            let spec = collects(LIST).exec_timeout(Duration::from_mins(10));
            let evaluator = pool.evaluator(&format!("collects-{number}"), spec).unwrap();
            runtime.spawn(async move { evaluator.evaluate("").await.unwrap_err() })
        })
        .collect();
    std::thread::sleep(length);
    let beside = quantile(&every_millisecond(&runtime, &neighbour, length), 990);
    runtime.block_on(async {
        pool.close_with(Duration::ZERO).await;
        for guest in guests {
            guest.await.unwrap();
        }
    });
    let what = format!("10 µs beside {TASKS} guests that collect full heaps, 2 workers");
    let given = format!("p99 {:.0} µs", micros(beside));
    report.judged(&what, &given, "p99 at most 20000 µs", beside <= Duration::from_millis(20));
}
