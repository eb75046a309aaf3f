//! Evaluations that are due at times of their own, whether or not those before them have ended: `--rate` and `--trace`.
//!
//! Callers who wait for an answer before they call again call less often when the pool is slow, and so hide how slow it is
//! (coordinated omission). Here a latency counts from the moment at which an evaluation was due, so that a stall counts in
//! all that it delays.
//!
//! At most `--concurrency` evaluations are under way at once. One that is due while there are so many is late: it waits
//! until one of them has ended, and that counts in its latency. None is lost: those that have not begun when the time is
//! over do not begin any more, but are counted, and the wait of each up to then is a latency like the others.
//!
//! A thread, and not a task, waits for each due time: tokio's timers are a millisecond coarse. It begins an evaluation
//! some 0.1 ms after it is due, which counts as well.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, Exp};
use tokio::{runtime::Handle, sync::Semaphore, time::timeout_at};

use super::{customers::Choice, drive::Workload, tally::Caller};
use crate::{Data, service::Exit};

/// Evaluations under way, whatever `--concurrency` says.
const MOST: u32 = 1 << 20;

/// How long the thread sleeps at most before it sees that it must stop.
const NAP: Duration = Duration::from_millis(100);

/// An evaluation that is due.
pub(super) struct Due {
    /// After the beginning.
    pub(super) at: Duration,
    pub(super) rank: usize,
    pub(super) input: Data,
}

/// Evaluations in the order in which they are due.
pub(super) type Schedule = Box<dyn Iterator<Item = Due> + Send>;

/// So many evaluations a second. Their gaps are random, those of a Poisson process: this is how calls of many clients come
/// who know nothing of each other. At even gaps they would never bunch, and the tail would look better than it is.
pub(super) fn poisson(rate: u32, choice: Choice, input: Data, seed: u64) -> Result<Schedule, Exit> {
    let gaps = Exp::new(f64::from(rate)).map_err(|error| Exit::unusable(error.to_string()))?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut at = Duration::ZERO;
    Ok(Box::new(std::iter::repeat_with(move || {
        // None of the gaps is negative, and one without end would be the last.
        at = at.saturating_add(Duration::try_from_secs_f64(gaps.sample(&mut random)).unwrap_or(Duration::MAX));
        Due { at, rank: choice.rank(&mut random), input: input.clone() }
    })))
}

/// Evaluates each when it is due, for the duration if there is one, and returns when all have ended. Blocks; belongs on a
/// thread where that is allowed.
pub(super) fn drive(workload: &Arc<Workload>, schedule: Schedule, concurrency: usize, duration: Option<Duration>) {
    let most = u32::try_from(concurrency).unwrap_or(MOST).min(MOST);
    let (runtime, free) = (Handle::current(), Arc::new(Semaphore::new(most as usize)));
    // Both from here on, so that the same seed makes the same evaluations due, however late this thread began.
    let began = Instant::now();
    let until = duration.and_then(|duration| began.checked_add(duration));
    for Due { at, rank, input } in schedule {
        let Some(due) = began.checked_add(at).filter(|due| until.is_none_or(|until| *due < until)) else { break };
        if !sleep_until(workload, due) {
            break;
        }
        let mut permit = free.clone().try_acquire_owned().ok();
        let is_late = permit.is_none();
        if is_late {
            let acquire = free.clone().acquire_owned();
            permit = match until {
                Some(until) => runtime.block_on(timeout_at(until.into(), acquire)).ok().and_then(Result::ok),
                None => runtime.block_on(acquire).ok(),
            };
        }
        if let Some(until) = until.filter(|until| permit.is_none() || *until <= Instant::now()) {
            workload.tally.not_begun(until - due);
            continue;
        }
        workload.tally.begun(is_late);
        let workload = workload.clone();
        runtime.spawn(async move {
            let result = workload.evaluator(rank).evaluate(input).await;
            workload.ended(Caller::Ordinary, result.map(drop), due.elapsed(), &["ok"]);
            // First the workload, which must be nobody's when all permits are back.
            drop((workload, permit));
        });
    }
    // The last of them has ended when all permits are back.
    let _ = runtime.block_on(free.acquire_many(most));
}

/// Whether it is to go on then.
fn sleep_until(workload: &Workload, due: Instant) -> bool {
    loop {
        if workload.is_stopped() {
            return false;
        }
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        thread::sleep(left.min(NAP));
    }
}
