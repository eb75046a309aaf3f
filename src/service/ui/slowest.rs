//! The slowest calls of each evaluator of late, with their traces: the way from a slow call to why it was slow.

use std::time::Duration;

use serde::Serialize;

use super::{
    kept::{Kept, Most},
    now,
    parts::{PARTS, Parts},
};
use crate::{EvaluatorId, Timings, service::telemetry::requests::Trace};

/// Five of each, and 4 MiB in all: some 1,300 evaluators with as many, those of each tenant that were called last.
const MOST: Most = Most { of_one: 5, bytes_of_one: BYTES / PARTS, bytes: BYTES / PARTS };
const BYTES: usize = 4 << 20;

/// Milliseconds for which a call is one of late.
const WINDOW: u64 = 10 * 60 * 1000;

/// A call. The server's wait for a thread, and what the registry does, count as wait.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::service) struct Slow {
    /// When it ended, in milliseconds since the Unix epoch.
    at: u64,
    /// From the whole request to its outcome.
    seconds: f64,
    /// Parts of that; `null` if nobody was there to take the outcome.
    wait_seconds: Option<f64>,
    build_seconds: Option<f64>,
    exec_seconds: Option<f64>,
    /// `ok` or an error's kind.
    outcome: &'static str,
    trace: Option<Trace>,
}

/// Those of all evaluators.
pub(in crate::service) struct Slowest(Parts<Kept<Slow>>);

impl Default for Slowest {
    fn default() -> Self {
        Self(Parts::new(|| Kept::new(MOST)))
    }
}

impl Slow {
    /// One that ends now.
    pub(in crate::service) fn new(
        took: Duration,
        timings: Option<Timings>,
        outcome: &'static str,
        trace: Option<Trace>,
    ) -> Self {
        let wait = timings.map(|it| took.saturating_sub(it.build).saturating_sub(it.exec));
        let seconds = |part: Option<Duration>| part.map(|part| part.as_secs_f64());
        Self {
            at: now(),
            seconds: took.as_secs_f64(),
            wait_seconds: seconds(wait),
            build_seconds: seconds(timings.map(|it| it.build)),
            exec_seconds: seconds(timings.map(|it| it.exec)),
            outcome,
            trace,
        }
    }

    fn is_of_late(&self, now: u64) -> bool {
        now.saturating_sub(self.at) < WINDOW
    }
}

impl Slowest {
    /// Whether a call that took so long, and ends now, is one of an evaluator's slowest.
    pub(in crate::service) fn wants(&self, evaluator: EvaluatorId, took: Duration) -> bool {
        let (now, seconds) = (now(), took.as_secs_f64());
        let slower = |kept: &Kept<Slow>| {
            kept.of(evaluator).filter(|slow| slow.seconds >= seconds && slow.is_of_late(now)).count()
        };
        self.0.of(evaluator).is_some_and(|kept| slower(&kept) < MOST.of_one)
    }

    /// Keeps a call of this tenant's evaluator if it is one of its slowest.
    pub(in crate::service) fn note(&self, evaluator: EvaluatorId, tenant: &str, slow: Slow) {
        let Some(mut kept) = self.0.of(evaluator) else { return };
        loop {
            let old = kept.of(evaluator).position(|old| !old.is_of_late(slow.at));
            let Some(at) = old else { break };
            kept.drop_at(evaluator, at);
        }
        if kept.of(evaluator).count() == MOST.of_one {
            let fastest = kept.of(evaluator).enumerate().min_by(|(_, a), (_, b)| a.seconds.total_cmp(&b.seconds));
            match fastest.map(|(at, fastest)| (at, fastest.seconds)) {
                Some((at, seconds)) if seconds < slow.seconds => kept.drop_at(evaluator, at),
                _ => return,
            }
        }
        kept.add(evaluator, tenant, slow, 0);
    }

    /// Those of an evaluator, the slowest first.
    pub(in crate::service) fn of(&self, evaluator: EvaluatorId) -> Vec<Slow> {
        let now = now();
        let found = |kept: &Kept<Slow>| kept.of(evaluator).filter(|slow| slow.is_of_late(now)).cloned().collect();
        let mut found: Vec<_> = self.0.of(evaluator).map_or_else(Vec::new, |kept| found(&kept));
        found.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        found
    }

    /// Forgets those of an evaluator that is removed.
    pub(in crate::service) fn forget(&self, evaluator: EvaluatorId) {
        if let Some(mut kept) = self.0.of(evaluator) {
            kept.forget(evaluator);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow(millis: u64) -> Slow {
        Slow::new(Duration::from_millis(millis), None, "ok", None)
    }

    fn millis(slowest: &Slowest, evaluator: EvaluatorId) -> Vec<u128> {
        slowest.of(evaluator).iter().map(|slow| Duration::from_secs_f64(slow.seconds).as_millis()).collect()
    }

    #[test]
    fn of_many_calls_the_slowest_few_are_kept_in_any_order_until_they_are_old() {
        let (slowest, one) = (Slowest::default(), EvaluatorId(1));
        for at in 0..100 {
            // Each number from 0 to 99 once.
            slowest.note(one, "a", slow(at * 37 % 100));
        }
        assert_eq!(millis(&slowest, one), [99, 98, 97, 96, 95]);
        let wants = |millis| slowest.wants(one, Duration::from_millis(millis));
        assert!(!wants(95) && wants(96) && slowest.wants(EvaluatorId(2), Duration::ZERO));
        slowest.note(one, "a", Slow { at: now() + WINDOW, ..slow(1) });
        assert_eq!(slowest.0.of(one).unwrap().of(one).count(), 1, "the others were too old");
        slowest.note(one, "a", Slow { at: now() - WINDOW, ..slow(1000) });
        assert_eq!(millis(&slowest, one), [1]);
        slowest.forget(one);
        assert_eq!(slowest.of(one), []);
    }

    #[test]
    fn a_call_is_split_into_what_it_waited_and_what_it_ran() {
        let millis = Duration::from_millis;
        let timings = Timings { wait: millis(1), build: millis(20), exec: millis(300) };
        let slow = Slow::new(millis(350), Some(timings), "ok", None);
        let parts = [slow.wait_seconds, slow.build_seconds, slow.exec_seconds].map(Option::unwrap);
        assert!((parts.iter().sum::<f64>() - slow.seconds).abs() < 1e-9 && parts[1] < parts[0], "{slow:?}");
    }

    #[test]
    fn a_tenant_with_few_evaluators_loses_none_by_one_with_many() {
        let slowest = Slowest::default();
        let quiet: Vec<_> = (0..100).map(EvaluatorId).collect();
        for evaluator in &quiet {
            slowest.note(*evaluator, "quiet", slow(5));
        }
        for evaluator in 0..20_000 {
            slowest.note(EvaluatorId(1000 + evaluator), "loud", slow(evaluator));
        }
        assert!(quiet.iter().all(|evaluator| millis(&slowest, *evaluator) == [5]));
        let loud = (0..20_000).filter(|at| !slowest.of(EvaluatorId(1000 + at)).is_empty()).count();
        assert!((3000..5000).contains(&loud), "{loud}");
        assert_eq!(millis(&slowest, EvaluatorId(20_999)), [19_999], "the last is there");
    }
}
