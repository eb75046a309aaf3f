//! What the callers count.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;

use super::chaos::Act;
use crate::service::Exit;

/// An hour in nanoseconds: whatever takes longer counts as one.
const LONGEST: u64 = 3_600_000_000_000;

/// A histogram of nanoseconds, to three digits.
pub(super) fn histogram() -> Result<Histogram<u64>, Exit> {
    Histogram::new_with_bounds(1, LONGEST, 3)
        .map_err(|error| Exit::failed(format!("latencies cannot be recorded: {error}")))
}

pub(super) fn record(latency: &mut Histogram<u64>, took: Duration) {
    latency.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
}

/// Whose evaluations are counted apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Caller {
    /// Callers of all customers but those who flood.
    Ordinary,
    /// Callers of a customer who floods.
    Flooding,
}

/// Evaluations of some callers.
#[derive(Debug, Clone)]
pub(super) struct Evaluations {
    /// By outcome: `ok`, `cancelled` or an error's kind.
    pub(super) outcomes: BTreeMap<&'static str, u64>,
    /// Nanoseconds of each evaluation that succeeded, and of the wait of each that was due and could not begin.
    pub(super) latency: Histogram<u64>,
}

impl Evaluations {
    fn none() -> Result<Self, Exit> {
        Ok(Self { outcomes: BTreeMap::new(), latency: histogram()? })
    }

    pub(super) fn count(&self) -> u64 {
        self.outcomes.values().sum()
    }

    pub(super) fn errors(&self) -> BTreeMap<&str, u64> {
        let errors = self.outcomes.iter().filter(|(outcome, _)| **outcome != "ok");
        errors.map(|(outcome, times)| (*outcome, *times)).collect()
    }

    /// These and others.
    fn with(&self, others: &Self) -> Self {
        let mut all = self.clone();
        for (outcome, times) in &others.outcomes {
            *all.outcomes.entry(outcome).or_default() += times;
        }
        // Both have the same bounds.
        let _ = all.latency.add(&others.latency);
        all
    }
}

/// What all callers counted.
pub(super) struct Counted {
    pub(super) ordinary: Evaluations,
    pub(super) flooding: Evaluations,
    /// Evaluations that were due, by `--rate` or `--trace`.
    pub(super) due: u64,
    /// Those of them that had to wait until others had ended.
    pub(super) late: u64,
    /// Those of the late for which the time was over before.
    pub(super) not_begun: u64,
    /// Outcomes that nobody expected.
    pub(super) unexpected: BTreeMap<&'static str, u64>,
    /// How often each act of chaos was done.
    pub(super) acts: BTreeMap<Act, u64>,
}

impl Counted {
    pub(super) fn all(&self) -> Evaluations {
        self.ordinary.with(&self.flooding)
    }
}

/// Where they count it.
pub(super) struct Tally(Mutex<Counted>);

impl Tally {
    pub(super) fn new() -> Result<Self, Exit> {
        let (unexpected, acts) = (BTreeMap::new(), BTreeMap::new());
        let (ordinary, flooding) = (Evaluations::none()?, Evaluations::none()?);
        Ok(Self(Mutex::new(Counted { ordinary, flooding, due: 0, late: 0, not_begun: 0, unexpected, acts })))
    }

    /// An evaluation that was due and begins, and whether it had to wait for others.
    pub(super) fn begun(&self, is_late: bool) {
        let mut counted = self.lock();
        counted.due += 1;
        counted.late += u64::from(is_late);
    }

    /// An evaluation that was due, and had not begun after so long a wait.
    pub(super) fn not_begun(&self, waited: Duration) {
        let mut counted = self.lock();
        counted.due += 1;
        counted.late += 1;
        counted.not_begun += 1;
        record(&mut counted.ordinary.latency, waited);
    }

    /// An evaluation that ended.
    pub(super) fn ended(&self, caller: Caller, outcome: &'static str, took: Duration, expected: &[&str]) {
        let mut counted = self.lock();
        if !expected.contains(&outcome) {
            *counted.unexpected.entry(outcome).or_default() += 1;
        }
        let evaluations = match caller {
            Caller::Ordinary => &mut counted.ordinary,
            Caller::Flooding => &mut counted.flooding,
        };
        *evaluations.outcomes.entry(outcome).or_default() += 1;
        if outcome == "ok" {
            record(&mut evaluations.latency, took);
        }
    }

    /// An act of chaos.
    pub(super) fn acted(&self, act: Act) {
        *self.lock().acts.entry(act).or_default() += 1;
    }

    /// Something else that should not have been.
    pub(super) fn unexpected(&self, what: &'static str) {
        *self.lock().unexpected.entry(what).or_default() += 1;
    }

    pub(super) fn into_counted(self) -> Counted {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        // A panic could at worst leave one count too few.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
