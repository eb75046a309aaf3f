//! Hostile conditions for a pool: callers leave, plugins are bad, evaluators are closed under their callers.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::{RngExt, rngs::StdRng};
use tokio::time::timeout;

use super::{drive::Workload, tally::Caller};
use crate::{Error, Source, Spec, service::greet, words::words};

words! {
    /// What a task may do instead of an ordinary evaluation.
    pub(super) enum Act {
        /// Left in the middle of an evaluation.
        Left = "left",
        /// Evaluated with a plugin that cannot succeed.
        BadPlugin = "bad_plugins",
        /// Closed a runtime, but not its evaluator.
        Unloaded = "unloaded",
        /// Closed an evaluator after replacing it.
        Closed = "closed",
    }
}

/// Expected outcomes while others may close the evaluator.
const FINE: &[&str] = &["ok", "closed"];

/// Does an act of chaos, or evaluates.
pub(super) async fn act(workload: &Workload, random: &mut StdRng, rank: usize) {
    match random.random_range(0..100) {
        0..10 => leave(workload, Duration::from_micros(random.random_range(0..3000)), rank).await,
        10..15 => evaluate_bad(workload, random).await,
        15..18 => {
            workload.tally.acted(Act::Unloaded);
            workload.closed(workload.evaluator(rank).unload().await);
        }
        18..20 => close(workload, rank).await,
        _ => workload.evaluate(Caller::Ordinary, &workload.evaluator(rank), FINE).await,
    }
}

async fn leave(workload: &Workload, patience: Duration, rank: usize) {
    let began = Instant::now();
    let evaluator = workload.evaluator(rank);
    let result = timeout(patience, evaluator.evaluate(workload.input.clone())).await;
    let (result, expected) = result.map_or_else(
        |_| {
            workload.tally.acted(Act::Left);
            (Err(Error::Cancelled), &["cancelled"][..])
        },
        |result| (result.map(drop), FINE),
    );
    workload.ended(Caller::Ordinary, result, began.elapsed(), expected);
}

async fn close(workload: &Workload, rank: usize) {
    let Some(last) = workload.replace(rank) else { return };
    workload.tally.acted(Act::Closed);
    workload.closed(last.close().await);
}

async fn evaluate_bad(workload: &Workload, random: &mut StdRng) {
    let (spec, fails_as) = bad(random.random_range(0..BAD), random.random());
    let Ok(evaluator) = workload.pool.evaluator("bad", spec) else { return };
    workload.evaluate(Caller::Ordinary, &evaluator, fails_as).await;
    workload.tally.acted(Act::BadPlugin);
}

/// How many sorts of bad plugins [`bad`] makes.
const BAD: usize = 6;

/// The time limit of the guest that never ends.
const SPIN: Duration = Duration::from_millis(20);

/// A module up to its code: a function of no parameters and no result, exported as `run`.
const HEAD: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x07\x01\x03run\0\0";
/// `(start $run)`
const START: &[u8] = b"\x08\x01\0";
/// `unreachable`
const TRAPS: &[u8] = b"\x0a\x05\x01\x03\0\0\x0b";
/// `(loop (br 0))`
const SPINS: &[u8] = b"\x0a\x09\x01\x07\0\x03\x40\x0c\0\x0b\x0b";

/// A plugin that cannot succeed, and the kinds of error it may fail with.
fn bad(sort: usize, lot: u64) -> (Spec, &'static [&'static str]) {
    let of = |bytes: Vec<u8>| Spec::new(Source::bytes(bytes));
    let greet = || Spec::new(Source::Bytes(greet::WASM));
    match sort {
        0 => (of(b"not a plugin".to_vec()), &["invalid_plugin"]),
        1 => {
            // Cut in the first half: a later cut may leave a whole plugin. A cut between two sections leaves a valid
            // module.
            let whole: Bytes = greet::WASM;
            let cut = lot % (whole.len() as u64 / 2);
            let cut = whole.slice(..usize::try_from(cut).unwrap_or_default());
            (Spec::new(Source::Bytes(cut)), &["invalid_plugin", "entry_point_missing"])
        }
        2 => (greet().entry_point("nothing"), &["entry_point_missing"]),
        3 => (of([HEAD, START, TRAPS].concat()), &["invalid_plugin"]),
        4 => (of([HEAD, TRAPS].concat()), &["guest_trap"]),
        _ => (of([HEAD, SPINS].concat()).exec_timeout(SPIN), &["exec_timeout"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EvaluatorPool;

    #[tokio::test]
    async fn every_bad_plugin_fails_as_it_is_said_to() {
        let pool = EvaluatorPool::builder().build().unwrap();
        let half = greet::WASM.len() as u64 / 2;
        let sorts = (0..BAD).map(|sort| (sort, 100)).chain((0..half).step_by(7).map(|cut| (1, cut)));
        for (sort, lot) in sorts {
            let (spec, fails_as) = bad(sort, lot);
            let error = pool.evaluator("bad", spec).unwrap().evaluate(greet::INPUT).await.unwrap_err();
            assert!(fails_as.contains(&error.kind().as_str()), "sort {sort}, {lot}: {error}");
        }
        pool.close().await;
        assert_eq!(pool.runtimes(), 0);
    }
}
