//! How long the calls of each evaluator took of late: a histogram of those that were called last.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use lru::LruCache;

use super::parts::Parts;
use crate::EvaluatorId;

/// Evaluators of a part whose times are known, those that were called last: 4,096 in all, of each at most 2 KiB.
const OF_A_PART: usize = 256;

/// Times are forgotten once they are one to two windows old.
const WINDOW: Duration = Duration::from_mins(5);

/// Each power of two of microseconds has so many buckets, of equal width: a bound is at most an eighth too high.
const STEPS: usize = 1 << STEP_BITS;
const STEP_BITS: u32 = 3;

/// Up to 2^28 µs, which is 4.5 minutes; what took longer counts as that.
const BUCKETS: usize = (28 - STEP_BITS as usize + 1) * STEPS;

/// Those of all evaluators.
pub(in crate::service) struct Latencies {
    began: Instant,
    parts: Parts<LruCache<EvaluatorId, Recent>>,
}

/// Times of which half of the calls, and 99 of 100, took no more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::service) struct Quantiles {
    pub(in crate::service) p50: Duration,
    pub(in crate::service) p99: Duration,
}

/// One evaluator's, in this window and in the one before.
struct Recent {
    window: u64,
    now: Box<Counts>,
    /// `None` if there was nothing.
    before: Option<Box<Counts>>,
}

type Counts = [u32; BUCKETS];

impl Default for Latencies {
    fn default() -> Self {
        let most = NonZeroUsize::new(OF_A_PART).unwrap_or(NonZeroUsize::MIN);
        Self { began: Instant::now(), parts: Parts::new(|| LruCache::new(most)) }
    }
}

impl Latencies {
    fn window(&self) -> u64 {
        self.began.elapsed().as_secs() / WINDOW.as_secs()
    }

    /// Notes a call that has ended.
    pub(in crate::service) fn note(&self, evaluator: EvaluatorId, took: Duration) {
        self.note_in(self.window(), evaluator, took);
    }

    fn note_in(&self, window: u64, evaluator: EvaluatorId, took: Duration) {
        let Some(mut part) = self.parts.of(evaluator) else { return };
        let recent = part.get_or_insert_mut(evaluator, || Recent::new(window));
        recent.turn(window);
        if let Some(count) = recent.now.get_mut(bucket(took)) {
            *count = count.saturating_add(1);
        }
    }

    /// How long an evaluator's calls took of late; `None` if none has ended.
    pub(in crate::service) fn of(&self, evaluator: EvaluatorId) -> Option<Quantiles> {
        self.parts.of(evaluator)?.peek(&evaluator)?.quantiles(self.window())
    }

    /// How long those of all evaluators took that were called of late.
    pub(in crate::service) fn all(&self) -> HashMap<EvaluatorId, Quantiles> {
        let window = self.window();
        let mut all = HashMap::new();
        // Each for itself: calls wait for it.
        for part in self.parts.each() {
            all.extend(part.iter().filter_map(|(evaluator, it)| Some((*evaluator, it.quantiles(window)?))));
        }
        all
    }

    /// Forgets those of an evaluator that is removed.
    pub(in crate::service) fn forget(&self, evaluator: EvaluatorId) {
        if let Some(mut part) = self.parts.of(evaluator) {
            part.pop(&evaluator);
        }
    }
}

impl Recent {
    fn new(window: u64) -> Self {
        Self { window, now: Box::new([0; BUCKETS]), before: None }
    }

    /// Begins a new window, if it is time.
    fn turn(&mut self, window: u64) {
        if window > self.window {
            let last = std::mem::replace(&mut self.now, Box::new([0; BUCKETS]));
            self.before = (window == self.window + 1).then_some(last);
            self.window = window;
        }
    }

    fn quantiles(&self, window: u64) -> Option<Quantiles> {
        let zero = [0; BUCKETS];
        let (now, before) = match window.saturating_sub(self.window) {
            0 => (&*self.now, self.before.as_deref().unwrap_or(&zero)),
            1 => (&zero, &*self.now),
            _ => return None,
        };
        let counts = || now.iter().zip(before).map(|(now, before)| u64::from(*now) + u64::from(*before));
        let all: u64 = counts().sum();
        let quantile = |of_100: u64| {
            let wanted = (all * of_100).div_ceil(100);
            let mut so_far = 0;
            let at = counts().position(|count| {
                so_far += count;
                so_far >= wanted
            });
            bound(at.unwrap_or_default())
        };
        (all > 0).then(|| Quantiles { p50: quantile(50), p99: quantile(99) })
    }
}

/// The bucket of a time: below [`STEPS`] µs each microsecond has its own, then each power of two has [`STEPS`].
fn bucket(took: Duration) -> usize {
    let micros = usize::try_from(took.as_micros()).unwrap_or(usize::MAX);
    if micros < STEPS {
        return micros;
    }
    let shift = micros.ilog2() - STEP_BITS;
    ((shift as usize) * STEPS + (micros >> shift)).min(BUCKETS - 1)
}

/// What is above all times of a bucket.
fn bound(bucket: usize) -> Duration {
    let (shift, step) = match bucket {
        0..STEPS => (0, bucket),
        _ => (bucket / STEPS - 1, bucket % STEPS + STEPS),
    };
    Duration::from_micros((step as u64 + 1) << shift)
}

#[cfg(test)]
mod tests {
    use super::{super::parts::PARTS, *};

    #[test]
    fn a_time_is_told_at_most_an_eighth_too_long() {
        for micros in (0..5000).chain((12..28).flat_map(|power| [(1 << power) - 1, 1 << power, (1 << power) + 777])) {
            let told = bound(bucket(Duration::from_micros(micros))).as_micros();
            let micros = u128::from(micros);
            assert!(told > micros && told <= micros + micros / 8 + 1, "{micros}: {told}");
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert_eq!(bound(BUCKETS - 1), Duration::from_micros(1 << 28));
    }

    #[test]
    fn what_was_slow_is_known_for_a_while_and_then_forgotten() {
        let (latencies, one, other) = (Latencies::default(), EvaluatorId(1), EvaluatorId(1 + PARTS as u64));
        assert_eq!(latencies.of(one), None);
        for at in 0..100 {
            latencies.note_in(0, one, Duration::from_millis(if at < 98 { 1 } else { 500 }));
        }
        latencies.note_in(0, other, Duration::from_micros(3));
        let found = latencies.of(one).unwrap();
        assert!(found.p50 < Duration::from_micros(1200) && found.p99 > Duration::from_millis(500), "{found:?}");
        assert_eq!(latencies.all(), HashMap::from([(one, found), (other, latencies.of(other).unwrap())]));
        latencies.note_in(1, one, Duration::from_millis(1));
        let quantiles = |evaluator, window| latencies.parts.of(evaluator).unwrap().peek(&evaluator)?.quantiles(window);
        assert!(quantiles(one, 1).unwrap().p99 > Duration::from_millis(500), "it is in the window before");
        assert!(quantiles(one, 2).unwrap().p99 < Duration::from_micros(1200));
        assert_eq!((quantiles(one, 3), quantiles(other, 2)), (None, None));
        latencies.forget(one);
        assert_eq!((latencies.of(one), latencies.all().len()), (None, 1));
    }

    #[test]
    fn of_many_evaluators_those_that_were_called_last_are_known() {
        let latencies = Latencies::default();
        for evaluator in 0..20_000 {
            latencies.note(EvaluatorId(evaluator), Duration::from_millis(1));
        }
        assert_eq!(latencies.all().len(), PARTS * OF_A_PART);
        assert!(latencies.of(EvaluatorId(19_999)).is_some() && latencies.of(EvaluatorId(0)).is_none());
    }
}
