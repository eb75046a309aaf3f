//! Calls that follow each other without a pause are told to the recorder in sums.
//!
//! A recorder's counters and histograms are words that all threads write. A call of an instance that its thread has parked
//! touches nothing else that is shared: it would wait for them, and pay for a dozen of their atomic operations. So it is added
//! up in a slot of its thread's instead, before its caller has the response. All other calls are told at once.
//!
//! The sums are told every 100 ms, when the pool is closed or dropped, and by
//! [`EvaluatorPool::slots`](crate::EvaluatorPool::slots), which is called before metrics are shown. One teller at a time,
//! and whoever comes meanwhile waits for it: so whoever shows metrics after a response shows its call. See
//! [`telling`](super::telling).
//!
//! Counters and sums of times are exact. A histogram gets each time as the mean of the times near it: of those in the same
//! eighth of a bucket of [`BUCKETS`]. So one with these bounds is exact as well.
//!
//! `benches/engines` measures the price (`recorder`): a warm trivial call costs its thread nothing that shows, and 1.02 x in
//! all with the program's recorder. Told one by one it was 1.19 x. An exporter that keeps each time apart takes 1.13 x, since
//! it is told each of them all the same, though in the background.
//!
//! Considered and not taken: striped handles of a recorder of this crate's own (whoever embeds the crate brings another);
//! sums beside the parked instances, under the lock that parking takes anyway (a reclaim that is under way has them, and
//! whoever shows metrics would miss them); a buffer of single times (it needs a bound, and the caller that fills it up pays for
//! all in it).

use std::{sync::Mutex, time::Duration};

use super::{
    BUCKETS, Metrics, outcome_word,
    telling::{Telling, lock},
};
use crate::{
    error::Error,
    stripes::{own_slot, slots},
};

/// What the recorder is told of an evaluation beside its outcome.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Told {
    /// It took an instance that its thread had parked. Other lookups are counted by the registry.
    pub(crate) hit: bool,
    /// Once it has an instance.
    pub(crate) wait: Option<Duration>,
    /// Once its guest has ended.
    pub(crate) exec: Option<Duration>,
}

/// What calls add up to.
#[derive(Debug, Default)]
struct Calls {
    hits: u64,
    ok: u64,
    wait: Times,
    exec: Times,
}

/// Calls that the recorder was not told of yet.
#[derive(Debug)]
pub(super) struct Untold {
    telling: Telling<()>,
    slots: Box<[Slot]>,
}

/// Alone on its cache lines, and on those that the processor fetches with them.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Slot(Mutex<Option<Box<Calls>>>);

impl Default for Untold {
    fn default() -> Self {
        Self { telling: Telling::default(), slots: (0..slots()).map(|_| Slot::default()).collect() }
    }
}

impl Metrics {
    /// An evaluation has ended.
    pub(crate) fn evaluated(&self, outcome: Result<(), &Error>, told: Told) {
        if let Some(Slot(own)) = self.untold.slots.get(own_slot()).filter(|_| told.hit) {
            let mut calls = lock(own);
            calls.get_or_insert_default().add(told, outcome.is_ok());
        } else {
            told.wait.inspect(|wait| self.evaluation_phase("wait", *wait, 1));
            told.exec.inspect(|exec| self.evaluation_phase("exec", *exec, 1));
        }
        if !told.hit || outcome.is_err() {
            self.count_evaluations(outcome_word(outcome), 1);
        }
    }

    /// Tells the recorder of all calls that it was not told of yet.
    pub(crate) fn tell(&self) {
        self.untold.telling.tell(
            |()| (),
            |(), _| {
                for Slot(slot) in &self.untold.slots {
                    let Some(calls) = lock(slot).take() else { continue };
                    self.count_hits(calls.hits);
                    self.count_evaluations("ok", calls.ok);
                    calls.wait.each(|time, times| self.evaluation_phase("wait", time, times));
                    calls.exec.each(|time, times| self.evaluation_phase("exec", time, times));
                }
            },
        );
    }
}

impl Calls {
    fn add(&mut self, told: Told, ok: bool) {
        self.hits += 1;
        self.ok += u64::from(ok);
        for (times, time) in [(&mut self.wait, told.wait), (&mut self.exec, told.exec)] {
            if let Some(time) = time {
                times.add(time);
            }
        }
    }
}

/// Bins between two bounds.
const PARTS: usize = 8;

/// [`BUCKETS`] in nanoseconds.
const BOUNDS: [u64; BUCKETS.len()] = {
    let mut bounds = [0; BUCKETS.len()];
    let mut at = 0;
    while at < bounds.len() {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and 10 s at most")]
        let nanos = (BUCKETS[at] * 1e9 + 0.5) as u64;
        bounds[at] = nanos;
        at += 1;
    }
    bounds
};

/// Times by bin: how many there are, and their sum in nanoseconds. The last bin has those above every bound.
#[derive(Debug)]
struct Times([(u64, u64); PARTS * BOUNDS.len() + 1]);

impl Default for Times {
    fn default() -> Self {
        Self([(0, 0); PARTS * BOUNDS.len() + 1])
    }
}

/// A bucket has what is at most its bound.
fn bin(nanos: u64) -> usize {
    let mut lower = 0;
    for (at, upper) in BOUNDS.into_iter().enumerate() {
        if nanos <= upper {
            let part = nanos.saturating_sub(lower + 1) * PARTS as u64 / (upper - lower);
            return PARTS * at + usize::try_from(part).unwrap_or(0);
        }
        lower = upper;
    }
    PARTS * BOUNDS.len()
}

impl Times {
    fn add(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some((count, sum)) = self.0.get_mut(bin(nanos)) {
            *count += 1;
            *sum = sum.saturating_add(nanos);
        }
    }

    /// Tells of times whose sum is exact: where the mean of a bin is not whole, some are a nanosecond longer than the others.
    fn each(&self, tell: impl Fn(Duration, u64)) {
        for (count, sum) in self.0.into_iter().filter(|(count, _)| *count > 0) {
            let (mean, longer) = (sum / count, sum % count);
            tell(Duration::from_nanos(mean), count - longer);
            if longer > 0 {
                tell(Duration::from_nanos(mean + 1), longer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        sync::atomic::{AtomicU64, Ordering},
        thread,
    };

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn whoever_tells_shows_each_call_that_had_ended_before_and_none_twice() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = metrics::with_local_recorder(&recorder, Metrics::new);
        let shown = || -> u64 {
            let rendered = recorder.handle().render();
            let series = "evalpool_evaluations_total{outcome=\"ok\"} ";
            rendered.lines().find_map(|line| line.strip_prefix(series)).unwrap().parse().unwrap()
        };
        let (begun, ended) = (AtomicU64::new(0), AtomicU64::new(0));
        let call = |hit| {
            begun.fetch_add(1, Ordering::SeqCst);
            metrics.evaluated(Ok(()), Told { hit, wait: Some(Duration::ZERO), exec: Some(Duration::ZERO) });
            ended.fetch_add(1, Ordering::SeqCst);
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..50 {
                        (0..20).for_each(|at| call(at != round));
                        let before = ended.load(Ordering::SeqCst);
                        metrics.tell();
                        let shown = shown();
                        assert!(before <= shown && shown <= begun.load(Ordering::SeqCst), "{before}, {shown}");
                    }
                });
            }
        });
        assert_eq!(shown(), 4 * 50 * 20);
    }

    #[test]
    fn times_keep_their_number_their_sum_and_their_bucket() {
        let mut times = Times::default();
        let mut given: Vec<u64> =
            BOUNDS.into_iter().flat_map(|bound| [bound - 1, bound, bound + 1, bound / 3]).collect();
        given.extend([0, 1, 2, 3, 1_999, 86_400_000_000_000]);
        for nanos in &given {
            times.add(Duration::from_nanos(*nanos));
        }
        let told = RefCell::new(Vec::new());
        times.each(|time, count| told.borrow_mut().extend((0..count).map(|_| time)));
        let told = told.into_inner();
        assert_eq!(told.iter().sum::<Duration>(), given.iter().copied().map(Duration::from_nanos).sum());
        for bound in BUCKETS {
            let within = |seconds: f64| usize::from(seconds <= *bound);
            let expected: usize = given.iter().map(|nanos| within(Duration::from_nanos(*nanos).as_secs_f64())).sum();
            assert_eq!(told.iter().map(|time| within(time.as_secs_f64())).sum::<usize>(), expected, "{bound}");
        }
    }

    #[test]
    fn a_time_is_told_to_an_eighth_of_its_bucket() {
        for (given, most) in [(9_999, 1_250), (10_001, 1_875), (60_000_000, 6_250_000)] {
            let mut times = Times::default();
            times.add(Duration::from_nanos(given));
            times.add(Duration::from_nanos(given - given / 20));
            times.each(|time, _| assert!(time.as_nanos().abs_diff(u128::from(given)) <= u128::from(given / 20 + most)));
        }
    }
}
