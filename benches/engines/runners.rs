//! All that can run the same plugins, side by side: bare wasmtime, `direct` through the pool, the `extism` crate, its
//! own pool, and the `extism` engine through ours. Fresh instances and kept ones, for one task and for many.
//!
//! Bare wasmtime instantiates the same code, with the kernel in it, on slots of the same kind.
//!
//! # What is not reached
//!
//! - 70,000 fresh evaluations a second of the Rust PDK's plugin by 64 tasks on two threads: 27,000 to 36,000, and bare wasmtime
//!   33,000 to 44,000 in the same runs, while *one* task makes 56,000. Such a plugin grows its memory in each evaluation, so
//!   wasmtime opens pages of its slot (`mprotect`), and closes them before the next instance; with two scans of page maps these
//!   are all system calls that there are. On two threads they wait for each other's lock on the address space, and each close
//!   interrupts the other core, which has to forget its translations: more than a third of all samples (`perf`). Pages that
//!   stayed open would be in reach of the next instance, unless its code compared each address with the size. wasmtime has such
//!   code, but only without traps by signals (`Config::signals_based_traps`), and then without guards against Spectre.
//!   So the kernel within each module does not show there: `evalpool load --same --evaluators 1 --concurrency 64` of the program
//!   before it and after, in turns, made 26,600 and 27,000 with that plugin (1.6 x was wanted), 105,000 and 113,600 with
//!   `c/text.wasm`, and 125,000 and 135,500 with the trivial one.
//! - 1.15 x bare for one task: 1.44 x with the Rust PDK's plugin, 2.0 x (2.4 µs more) with the trivial one. That is what a pool
//!   does beside: permits, clocks, the registry, metering, the next instance made by another task. No function has more than
//!   4 % of the samples.

use std::time::Duration;

use evalpool::{EvaluatorPool, Isolation};
use tokio::runtime::Runtime;

use crate::{
    TASKS,
    bare::{Bare, BareCaller},
    measure::{self, Caller, runtime},
    plugins::{Sample, TOTALS, TRIVIAL},
    pooled::{self, PoolCaller},
    raw_extism::{self, ExtismPoolCaller, PluginCaller},
    report::{Report, figure, median, micros, quantile},
};

/// What runs a plugin, ready to be measured.
trait Runner {
    fn latencies(&self, length: Duration) -> Vec<Duration>;
    fn per_second(&self, length: Duration) -> f64;
}

/// A runner by what each of its tasks does.
struct By<'a, F> {
    runtime: &'a Runtime,
    caller: F,
}

impl<C: Caller, F: Fn() -> C> Runner for By<'_, F> {
    fn latencies(&self, length: Duration) -> Vec<Duration> {
        measure::latencies(self.runtime, (self.caller)(), length)
    }

    fn per_second(&self, length: Duration) -> f64 {
        let callers = (0..TASKS).map(|_| (self.caller)()).collect();
        measure::per_second(self.runtime, callers, length)
    }
}

fn by<'a, C: Caller>(runtime: &'a Runtime, caller: impl Fn() -> C + 'a) -> Box<dyn Runner + 'a> {
    Box::new(By { runtime, caller })
}

/// The runners in the order in which they take turns. extism's own pool keeps its instances, so it has no fresh ones.
const NAMES: [&str; 6] = [
    "bare wasmtime",
    "direct through the pool",
    "extism",
    "extism, blocking the worker",
    "extism engine through the pool",
    "extism::Pool",
];
const BARE: usize = 0;
const DIRECT: usize = 1;
/// A `Plugin` for each task, called by `spawn_blocking`: the least with which a service's other tasks go on.
const EXTISM: usize = 2;

pub(crate) fn compare(report: &mut Report, length: Duration) {
    println!("2 x extism: twice as fast as the extism crate, whose calls a service makes by spawn_blocking");
    for isolation in [Isolation::Fresh, Isolation::Reuse] {
        for sample in [&TOTALS, &TRIVIAL] {
            compare_on(report, sample, isolation, length);
        }
    }
}

fn compare_on(report: &mut Report, sample: &'static Sample, isolation: Isolation, length: Duration) {
    let runtime = &runtime(2);
    let bare = Bare::new(runtime, sample);
    let compiled = raw_extism::compile(sample);
    let pools = [pooled::direct(isolation, |_| {}), pooled::adapter(isolation, |_| {})];
    let through = |pool: &EvaluatorPool| {
        let evaluator = pool.evaluator("sample", sample.spec()).unwrap();
        by(runtime, move || PoolCaller { evaluator: evaluator.clone(), input: sample.input })
    };
    let extism = |spawns| {
        let compiled = compiled.clone();
        by(runtime, move || PluginCaller { compiled: compiled.clone(), sample, isolation, spawns, kept: None })
    };
    let mut runners = vec![
        by(runtime, move || BareCaller::new(bare.clone(), isolation)),
        through(&pools[0]),
        extism(true),
        extism(false),
        through(&pools[1]),
    ];
    if isolation == Isolation::Reuse {
        let pool = raw_extism::pool(sample);
        runners.push(by(runtime, move || ExtismPoolCaller { pool: pool.clone(), sample }));
    }

    let kind = if isolation == Isolation::Fresh { "fresh" } else { "warm" };
    let (rounds, each) = (if report.judges { 3 } else { 1 }, length / 4);
    println!("{kind}, {}, 1 task", sample.name);
    one_task(report, sample, isolation, &in_turns(rounds, &runners, |runner| runner.latencies(each)));
    println!("{kind}, {}, {TASKS} tasks, 2 workers", sample.name);
    many_tasks(report, sample, isolation, &in_turns(rounds, &runners, |runner| runner.per_second(each)));
    for pool in pools {
        runtime.block_on(pool.close());
    }
}

/// What each runner showed in each round. They take turns, so that a machine that slows down slows all of them.
fn in_turns<T>(rounds: usize, runners: &[Box<dyn Runner + '_>], measure: impl Fn(&dyn Runner) -> T) -> Vec<Vec<T>> {
    (0..rounds).map(|_| runners.iter().map(|runner| measure(&**runner)).collect()).collect()
}

/// Medians of the rounds. Ratios are taken within a round first.
fn one_task(report: &mut Report, sample: &Sample, isolation: Isolation, rounds: &[Vec<Vec<Duration>>]) {
    let of =
        |runner: usize, thousandths| median(rounds.iter().map(|round| micros(quantile(&round[runner], thousandths))));
    let p50s = |runner: usize, other: usize| {
        median(rounds.iter().map(|round| micros(quantile(&round[runner], 500)) / micros(quantile(&round[other], 500))))
    };
    for (runner, name) in NAMES.iter().enumerate() {
        let what = format!("  {name}");
        if runner >= rounds[0].len() {
            figure(&what, "has no fresh instances");
            continue;
        }
        let (p50, p99) = (of(runner, 500), of(runner, 990));
        let (faster, bare) = (p50s(EXTISM, runner), p50s(runner, BARE));
        let given = format!("p50 {p50:.1} µs, p99 {p99:.1} µs, {faster:.2} x extism, p50 {bare:.2} x bare");
        if runner == DIRECT && isolation == Isolation::Fresh && sample.name == TOTALS.name {
            report.judged(&what, &given, "p50 at most 1.15 x bare", bare <= 1.15);
            let times = p99 / p50;
            report.judged("    its p99", &format!("{times:.1} x its p50"), "at most 3 x", times <= 3.0);
        } else {
            figure(&what, &given);
        }
    }
}

fn many_tasks(report: &mut Report, sample: &Sample, isolation: Isolation, rounds: &[Vec<f64>]) {
    let (is_fresh, is_trivial) = (isolation == Isolation::Fresh, sample.name == TRIVIAL.name);
    for (runner, name) in NAMES.iter().enumerate() {
        let what = format!("  {name}");
        if runner >= rounds[0].len() {
            figure(&what, "has no fresh instances");
            continue;
        }
        let rate = median(rounds.iter().map(|round| round[runner]));
        let times = median(rounds.iter().map(|round| round[runner] / round[EXTISM]));
        let given = format!("{rate:.0} calls a second, {times:.2} x extism");
        let mut at_least = |least: f64| {
            report.judged(&what, &given, &format!("at least {least:.0} a second"), rate >= least);
        };
        match (runner, is_fresh, is_trivial) {
            (DIRECT, true, true) => at_least(160_000.0),
            (DIRECT, true, false) => at_least(70_000.0),
            (DIRECT, false, true) => report.judged(&what, &given, "at least 5 x extism", times >= 5.0),
            _ => figure(&what, &given),
        }
    }
}
