//! What a second worker brings.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use evalpool::{
    Isolation,
    engine::{CallRequest, CompiledPlugin, Instance, Permit},
};
use tokio::runtime::Runtime;

use crate::{
    measure::{Caller, per_second, runtime},
    plugins::TRIVIAL,
    pooled::{self, PoolCaller},
    report::{Report, figure, median, skipped},
    support::{direct_without_pool, limits},
};

pub(crate) const CALLERS: usize = 8;

/// One and two workers, in short rounds that take turns. Beside the pool: the engine without it, and arithmetic that
/// touches no memory, which is what two workers of this machine are worth at that moment. A machine whose second
/// processor comes and goes says nothing about the pool while it is away: so there is a rest after each round, and the
/// figures are medians of those rounds in which one thread did its best and two did at least 1.8 times as much, before
/// and after. Where there are none such, they are medians of all rounds, and nothing is judged.
pub(crate) fn one_and_two(report: &mut Report, length: Duration) {
    const ROUNDS: usize = 40;
    let each = length / 75;
    let [one, two] = [runtime(1), runtime(2)];
    let pool = pooled::direct(Isolation::Reuse, |_| {});
    let evaluator = pool.evaluator("trivial", TRIVIAL.spec()).unwrap();
    let through_pool = |runtime: &Runtime| {
        let callers = (0..CALLERS).map(|_| PoolCaller { evaluator: evaluator.clone(), input: TRIVIAL.input });
        per_second(runtime, callers.collect(), each)
    };
    let compiled = direct_without_pool(&one, (TRIVIAL.wasm)());
    let without_pool = |runtime: &Runtime| {
        let callers = (0..CALLERS).map(|_| EngineCaller { compiled: compiled.clone(), instance: None });
        per_second(runtime, callers.collect(), each)
    };
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push([
            arithmetic(2, each),
            through_pool(&two),
            through_pool(&one),
            without_pool(&two),
            without_pool(&one),
            arithmetic(1, each),
            arithmetic(2, each),
        ]);
        std::thread::sleep(10 * each);
    }
    one.block_on(pool.close());

    let best = rounds.iter().map(|round: &[f64; 7]| round[5]).fold(0.0, f64::max);
    let had_both = |round: &&[f64; 7]| round[5] >= 0.9 * best && round[0].min(round[6]) >= 1.8 * best;
    let whole: Vec<_> = rounds.iter().filter(had_both).copied().collect();
    let told = format!("{} of {ROUNDS} rounds had two processors", whole.len());
    let one_processor = whole.is_empty();
    let rounds = if one_processor { rounds } else { whole };
    let scale = |two: usize, one: usize| {
        let [per_one, per_two] = [one, two].map(|at| median(rounds.iter().map(|round| round[at])));
        let times = median(rounds.iter().map(|round| round[two] / round[one]));
        (times, format!("{per_one:.0} and {per_two:.0} calls a second, {times:.2} x"))
    };

    println!("warm, trivial, {CALLERS} tasks: 1 and 2 workers");
    let (what, wanted) = ("  direct through the pool", "at least 1.6 x");
    let (times, given) = scale(1, 2);
    if one_processor && report.judges {
        skipped(what, &given, wanted, "no round had two real processors");
    } else {
        report.judged(what, &given, wanted, times >= 1.6);
    }
    figure("  direct without the pool", &scale(3, 4).1);
    let times = median(rounds.iter().map(|round| round[0].min(round[6]) / round[5]));
    figure("  arithmetic, 1 and 2 threads", &format!("{times:.2} x; {told}"));
}

/// Calls an instance of its own, which nothing counts.
struct EngineCaller {
    compiled: Arc<dyn CompiledPlugin>,
    instance: Option<Box<dyn Instance>>,
}

impl Caller for EngineCaller {
    async fn call(&mut self) {
        let instance = match &mut self.instance {
            Some(instance) => instance,
            None => self.instance.insert(self.compiled.instantiate(Permit::new(())).await.unwrap()),
        };
        let deadline = tokio::time::Instant::now() + limits().exec_timeout;
        let input = Bytes::new();
        let request = CallRequest { entry_point: TRIVIAL.entry_point, input, context: None, deadline };
        let _ = black_box(instance.call(request).await.unwrap());
    }
}

/// Rounds of arithmetic a second, by so many threads.
pub(crate) fn arithmetic(threads: usize, length: Duration) -> f64 {
    let work = move || {
        let (mut sums, mut rounds, started) = ([1_u64; 8], 0_u64, Instant::now());
        while started.elapsed() < length {
            for step in 0..10_000 {
                sums = sums.map(|sum| sum.wrapping_add(step) ^ (sum << 1));
            }
            black_box(&mut sums);
            rounds += 1;
        }
        rounds as f64 / started.elapsed().as_secs_f64()
    };
    let running: Vec<_> = (0..threads).map(|_| std::thread::spawn(work)).collect();
    running.into_iter().map(|thread| thread.join().unwrap()).sum()
}
