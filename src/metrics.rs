//! The catalogue: every metric's name, help, unit and closed label set. Installs no exporter.
//!
//! A pool takes its handles from the recorder that is installed (or local) when the pool is built, so install yours
//! first. Gauges are `set` from counted truth, never incremented. Two pools under one recorder share its series:
//! counters add up, gauges show whichever pool changed last, so give each pool a recorder with a label of its own.

use std::{collections::BTreeMap, time::Duration};

use metrics::{Counter, Gauge, Histogram, Unit};

use crate::error::{Error, ErrorKind};

/// Whether a metric goes up and down, only up, or is a distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricType {
    /// Goes up and down.
    Gauge,
    /// Only goes up.
    Counter,
    /// A distribution, in seconds.
    Histogram,
}

/// A metric of the catalogue.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name, base unit included.
    pub name: &'static str,
    /// Gauge, counter or histogram.
    pub kind: MetricType,
    /// Its one label and every value that the label can have; `None` when it has no label.
    pub label: Option<(&'static str, &'static [&'static str])>,
    /// What it counts, for a person.
    pub help: &'static str,
}

/// `ok`, then every error kind: the values of an `outcome` label.
pub const OUTCOMES: &[&str] = &{
    let mut words = ["ok"; ErrorKind::ALL.len() + 1];
    let mut at = 0;
    while at < ErrorKind::ALL.len() {
        words[at + 1] = ErrorKind::ALL[at].as_str();
        at += 1;
    }
    words
};

/// Upper bounds, in seconds, that suit every histogram of the catalogue: 10 µs to 10 s, for an exporter to be given.
pub const BUCKETS: &[f64] = &[
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Upper bounds, in seconds, for `evalpool_eviction_age_seconds`: 10 ms to a day.
pub const AGE_BUCKETS: &[f64] = &[0.01, 0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0];

macro_rules! catalogue {
    ($($constant:ident $kind:ident $name:literal $({ $label:literal = $values:expr })? $help:literal;)*) => {
        $(const $constant: Metric = Metric {
            name: $name,
            kind: MetricType::$kind,
            label: catalogue!(@label $($label, $values)?),
            help: $help,
        };)*

        /// Every metric, in the order of the documentation.
        pub const CATALOGUE: &[Metric] = &[$($constant,)*];
    };
    (@label) => { None };
    (@label $label:literal, $values:expr) => { Some(($label, $values)) };
}

catalogue! {
    RUNTIMES Gauge "evalpool_runtimes_live" { "state" = &["building", "live", "draining"] }
        "Runtimes that exist: those being built, those that serve, and those being closed.";
    CAPACITY Gauge "evalpool_runtimes_capacity"
        "The most runtimes that may exist.";
    INSTANCES Gauge "evalpool_instances_live" { "state" = &["idle", "busy"] }
        "Instances that exist: waiting for an evaluation, and in one (or being made or given back).";
    SLOTS_LIVE Gauge "evalpool_slots_live" { "kind" = &["instance", "memory", "table", "stack"] }
        "Slots of the direct engine that instances hold.";
    SLOTS_WARM Gauge "evalpool_slots_warm" { "kind" = &["memory", "table", "stack"] }
        "Slots of the direct engine that are free and kept ready for the next instance of the same plugin.";
    REGISTERED Gauge "evalpool_evaluators_registered"
        "Evaluators registered by name, live or cold.";
    WAITING Gauge "evalpool_waiting" { "for" = &["capacity", "instance", "build"] }
        "Callers that wait: for a runtime's place, for an instance of a live runtime, for a build in progress.";
    LOOKUPS Counter "evalpool_lookups_total" { "result" = &["hit", "miss", "coalesced", "refused"] }
        "Lookups of a runtime: found, to be built, joined to a build in progress, or refused at once.";
    BUILDS Counter "evalpool_builds_total" { "outcome" = OUTCOMES }
        "Builds that ended, by outcome.";
    BUILD_SECONDS Histogram "evalpool_build_seconds" { "phase" = &["fetch", "compile", "probe"] }
        "How long each phase of a build took.";
    EVICTIONS Counter "evalpool_evictions_total" { "reason" = &["capacity", "idle"] }
        "Runtimes evicted: for a newcomer, or after their idle time.";
    EVICTION_AGE Histogram "evalpool_eviction_age_seconds"
        "Time since last use of an evicted runtime; a few seconds here means thrashing.";
    CLOSES Counter "evalpool_closes_total" { "reason" = CLOSE_REASONS }
        "Runtimes closed, by reason and by how they ended.";
    CLOSE_SECONDS Histogram "evalpool_close_seconds"
        "From the decision to close a runtime until its last engine object was dropped.";
    EVALUATIONS Counter "evalpool_evaluations_total" { "outcome" = OUTCOMES }
        "Evaluations that ended, by outcome.";
    EVALUATION_SECONDS Histogram "evalpool_evaluation_seconds" { "phase" = &["wait", "exec"] }
        "How long evaluations waited for an instance, and how long their guests ran.";
    DISCARDED Counter "evalpool_instances_discarded_total"
        { "reason" = &["used", "max_uses", "timeout", "cancelled", "trap", "panic", "closed"] }
        "Instances dropped rather than given back, by reason.";
}

/// Values of the label `reason` of `evalpool_closes_total`; its second label, `how`, is `drained` or `forced`.
const CLOSE_REASONS: &[&str] = &["capacity", "idle", "replaced", "closed", "shutdown", "invalid"];

/// Why a runtime was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CloseReason {
    Capacity,
    Idle,
    Replaced,
    Closed,
    Shutdown,
    Invalid,
}

/// Why an instance was dropped rather than given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Discard {
    Used,
    MaxUses,
    Timeout,
    Cancelled,
    Trap,
    Panic,
    Closed,
}

/// How a lookup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lookup {
    Hit,
    Miss,
    Coalesced,
    Refused,
}

/// What the registry counts, as it is at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) building: usize,
    pub(crate) live: usize,
    pub(crate) draining: usize,
    pub(crate) idle: usize,
    pub(crate) busy: usize,
    pub(crate) waiting_capacity: usize,
    pub(crate) waiting_instance: usize,
    pub(crate) waiting_build: usize,
}

/// One pool's handles.
#[derive(Clone)]
pub(crate) struct Metrics {
    runtimes: Vec<Gauge>,
    capacity: Gauge,
    instances: Vec<Gauge>,
    slots_live: Vec<Gauge>,
    slots_warm: Vec<Gauge>,
    registered: Gauge,
    waiting: Vec<Gauge>,
    lookups: Vec<Counter>,
    builds: BTreeMap<&'static str, Counter>,
    build_seconds: Vec<Histogram>,
    evictions: Vec<Counter>,
    eviction_age: Histogram,
    closes: Vec<[Counter; 2]>,
    close_seconds: Histogram,
    evaluations: BTreeMap<&'static str, Counter>,
    evaluation_seconds: Vec<Histogram>,
    discarded: Vec<Counter>,
}

impl Metrics {
    /// Describes the catalogue and takes a handle for every series, so that each exists from the start, at 0.
    pub(crate) fn new() -> Self {
        for metric in CATALOGUE {
            let unit = if metric.name.ends_with("_seconds") { Unit::Seconds } else { Unit::Count };
            match metric.kind {
                MetricType::Gauge => metrics::describe_gauge!(metric.name, unit, metric.help),
                MetricType::Counter => metrics::describe_counter!(metric.name, unit, metric.help),
                MetricType::Histogram => metrics::describe_histogram!(metric.name, unit, metric.help),
            }
        }
        Self {
            runtimes: gauges(&RUNTIMES),
            capacity: metrics::gauge!(CAPACITY.name),
            instances: gauges(&INSTANCES),
            slots_live: gauges(&SLOTS_LIVE),
            slots_warm: gauges(&SLOTS_WARM),
            registered: metrics::gauge!(REGISTERED.name),
            waiting: gauges(&WAITING),
            lookups: counters(&LOOKUPS),
            builds: by_outcome(&BUILDS),
            build_seconds: histograms(&BUILD_SECONDS),
            evictions: counters(&EVICTIONS),
            eviction_age: metrics::histogram!(EVICTION_AGE.name),
            closes: CLOSE_REASONS
                .iter()
                .map(|reason| {
                    ["drained", "forced"].map(|how| {
                        let counter = metrics::counter!(CLOSES.name, "reason" => *reason, "how" => how);
                        counter.absolute(0);
                        counter
                    })
                })
                .collect(),
            close_seconds: metrics::histogram!(CLOSE_SECONDS.name),
            evaluations: by_outcome(&EVALUATIONS),
            evaluation_seconds: histograms(&EVALUATION_SECONDS),
            discarded: counters(&DISCARDED),
        }
    }

    pub(crate) fn set_capacity(&self, capacity: usize) {
        self.capacity.set(capacity as f64);
    }

    pub(crate) fn set_registered(&self, registered: usize) {
        self.registered.set(registered as f64);
    }

    pub(crate) fn set_counts(&self, counts: Counts) {
        set(&self.runtimes, [counts.building, counts.live, counts.draining]);
        set(&self.instances, [counts.idle, counts.busy]);
        set(&self.waiting, [counts.waiting_capacity, counts.waiting_instance, counts.waiting_build]);
    }

    /// In the order of their label's values.
    pub(crate) fn set_slots(&self, live: [u64; 4], warm: [u64; 3]) {
        set(&self.slots_live, live.map(|count| usize::try_from(count).unwrap_or(usize::MAX)));
        set(&self.slots_warm, warm.map(|count| usize::try_from(count).unwrap_or(usize::MAX)));
    }

    pub(crate) fn lookup(&self, result: Lookup) {
        self.lookups[result as usize].increment(1);
    }

    pub(crate) fn build_ended(&self, outcome: Result<(), &Error>) {
        count_outcome(&self.builds, outcome);
    }

    pub(crate) fn fetched(&self, took: Duration) {
        self.build_seconds[0].record(took);
    }

    pub(crate) fn compiled(&self, took: Duration) {
        self.build_seconds[1].record(took);
    }

    pub(crate) fn probed(&self, took: Duration) {
        self.build_seconds[2].record(took);
    }

    /// `unused` is the time since the runtime was last in use.
    pub(crate) fn evicted(&self, reason: CloseReason, unused: Duration) {
        if let Some(counter) = self.evictions.get(reason as usize) {
            counter.increment(1);
            self.eviction_age.record(unused);
        }
    }

    pub(crate) fn closed(&self, reason: CloseReason, forced: bool, took: Duration) {
        self.closes[reason as usize][usize::from(forced)].increment(1);
        self.close_seconds.record(took);
    }

    pub(crate) fn evaluated(&self, outcome: Result<(), &Error>) {
        count_outcome(&self.evaluations, outcome);
    }

    pub(crate) fn waited(&self, took: Duration) {
        self.evaluation_seconds[0].record(took);
    }

    pub(crate) fn executed(&self, took: Duration) {
        self.evaluation_seconds[1].record(took);
    }

    pub(crate) fn discarded(&self, reason: Discard) {
        self.discarded[reason as usize].increment(1);
    }
}

fn labelled(metric: &'static Metric) -> impl Iterator<Item = (&'static str, &'static str)> {
    let (label, values) = metric.label.unwrap_or(("", &[]));
    values.iter().map(move |value| (label, *value))
}

fn set<const N: usize>(gauges: &[Gauge], values: [usize; N]) {
    for (gauge, value) in gauges.iter().zip(values) {
        gauge.set(value as f64);
    }
}

/// Gauges in the order of their label's values.
fn gauges(metric: &'static Metric) -> Vec<Gauge> {
    labelled(metric).map(|(label, value)| metrics::gauge!(metric.name, label => value)).collect()
}

/// Counters in the order of their label's values. A counter that is set to 0 exists before its first event.
fn counters(metric: &'static Metric) -> Vec<Counter> {
    labelled(metric)
        .map(|(label, value)| {
            let counter = metrics::counter!(metric.name, label => value);
            counter.absolute(0);
            counter
        })
        .collect()
}

fn histograms(metric: &'static Metric) -> Vec<Histogram> {
    labelled(metric).map(|(label, value)| metrics::histogram!(metric.name, label => value)).collect()
}

fn by_outcome(metric: &'static Metric) -> BTreeMap<&'static str, Counter> {
    OUTCOMES.iter().copied().zip(counters(metric)).collect()
}

fn count_outcome(counters: &BTreeMap<&'static str, Counter>, outcome: Result<(), &Error>) {
    let word = match outcome {
        Ok(()) => "ok",
        Err(error) => error.kind().as_str(),
    };
    if let Some(counter) = counters.get(word) {
        counter.increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_label_are_in_the_order_of_their_enum() {
        let lower = |name: &dyn std::fmt::Debug| format!("{name:?}").to_lowercase();
        let reasons = [
            CloseReason::Capacity,
            CloseReason::Idle,
            CloseReason::Replaced,
            CloseReason::Closed,
            CloseReason::Shutdown,
            CloseReason::Invalid,
        ];
        for reason in reasons {
            assert_eq!(CLOSE_REASONS[reason as usize], lower(&reason));
        }
        for lookup in [Lookup::Hit, Lookup::Miss, Lookup::Coalesced, Lookup::Refused] {
            assert_eq!(LOOKUPS.label.unwrap().1[lookup as usize], lower(&lookup));
        }
        let discards = [
            Discard::Used,
            Discard::MaxUses,
            Discard::Timeout,
            Discard::Cancelled,
            Discard::Trap,
            Discard::Panic,
            Discard::Closed,
        ];
        for discard in discards {
            assert_eq!(DISCARDED.label.unwrap().1[discard as usize].replace('_', ""), lower(&discard));
        }
    }

    #[test]
    fn names_follow_the_conventions_of_prometheus() {
        for metric in CATALOGUE {
            assert_eq!(metric.kind == MetricType::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert_eq!(metric.kind == MetricType::Histogram, metric.name.ends_with("_seconds"), "{}", metric.name);
        }
    }
}
