//! The catalogue: every metric's name, help, unit and closed label set. Installs no exporter.
//!
//! A pool takes its handles from the recorder that is installed (or local) when the pool is built, so install yours
//! first. Calls that follow each other without a pause are told to it in sums, within a tenth of a second or when
//! [`EvaluatorPool::slots`](crate::EvaluatorPool::slots) is called. Gauges are set from counts, never incremented. Two
//! pools under one recorder share its series: counters add up, gauges show the pool that changed last. Give each pool a
//! recorder with a label of its own. A recorder is called under no lock of the pool's: from its own methods it may call the
//! pool.
//!
//! Series by evaluator and tenant are no part of it, since no recorder can be told that a series has ended:
//! [`EvaluatorPool::usage_series`](crate::EvaluatorPool::usage_series) shows them.

mod calls;
mod reuse;
mod telling;
mod totals;

use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram, Unit};

pub use self::totals::PoolTotals;
pub(crate) use self::{calls::Told, reuse::REUSE_BOUNDS};
use self::{calls::Untold, reuse::REUSE_WITHIN, telling::Telling, totals::Total};
use crate::{
    error::{Error, ErrorKind},
    memory::MemoryUse,
};

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
#[non_exhaustive]
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

/// In how many ways a compile worker ends.
const COMPILE_WORKERS_ENDINGS: usize = 5;

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
    KERNELS_BESIDE Counter "evalpool_kernels_beside_total"
        "Plugins compiled on the direct engine with Extism's kernel beside their module, not in it: each of their evaluations makes two instances. They are linked with other modules, or a host function stands in for one of the kernel's.";
    REGISTERED Gauge "evalpool_evaluators_registered"
        "Evaluators registered by name, live or cold.";
    WAITING Gauge "evalpool_waiting" { "for" = &["capacity", "instance", "build"] }
        "Callers that wait: for a runtime's place, for an instance of a live runtime, for a build in progress.";
    OLDEST_WAIT Gauge "evalpool_oldest_wait_seconds"
        "How long the caller has waited that has waited longest; 0 if nobody waits.";
    LOOKUPS Counter "evalpool_lookups_total" { "result" = &["hit", "miss", "coalesced", "refused"] }
        "Lookups of a runtime: found, to be built, joined to a build in progress, or refused at once.";
    REUSE Counter "evalpool_reuse_distance_total" { "within" = REUSE_WITHIN }
        "Lookups that a pool of this capacity would have served without a build, if it evicted by last use alone: those whose evaluator was among the last so many that were looked up. Those within a greater one include them. Estimated from a sample beyond 1,024 evaluators.";
    BUILDS Counter "evalpool_builds_total" { "outcome" = OUTCOMES }
        "Builds that ended, by outcome.";
    BUILD_SECONDS Histogram "evalpool_build_seconds" { "phase" = &["fetch", "compile", "probe"] }
        "How long each phase of a build took.";
    COMPILE_WORKERS Gauge "evalpool_compile_workers" { "state" = &["idle", "busy"] }
        "Processes that compile: those that wait for work, and those that are at work.";
    COMPILE_WORKERS_ENDED Counter "evalpool_compile_workers_ended_total"
        { "how" = &["done", "timeout", "memory", "killed", "crashed"] }
        "Processes that compile which have ended: replaced, over their time or memory, killed since nobody wanted the build, or died of something else.";
    MEMORY Gauge "evalpool_memory_bytes" { "kind" = &["code", "instances", "cache"] }
        "What runtimes hold: loaded code, instances, and code that is kept for the next build.";
    MEMORY_LIMIT Gauge "evalpool_memory_limit_bytes"
        "The most that runtimes may hold before others give way.";
    EVICTIONS Counter "evalpool_evictions_total" { "reason" = &["capacity", "memory", "idle"] }
        "Runtimes evicted: for a newcomer, for room in bytes, or after their idle time.";
    EVICTION_AGE Histogram "evalpool_eviction_age_seconds"
        "Time since last use of an evicted runtime; a few seconds here means thrashing.";
    CLOSES Counter "evalpool_closes_total"
        { "reason" = &["capacity", "memory", "idle", "replaced", "closed", "shutdown", "invalid"] }
        "Runtimes closed, by reason and by how they ended (the second label, `how`: drained, forced).";
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

/// The series of one metric by the value of its label, in the order of the catalogue.
type Series<T> = Vec<(&'static str, T)>;

/// One pool's handles.
#[derive(Clone)]
pub(crate) struct Metrics {
    runtimes: Series<Gauge>,
    capacity: Gauge,
    instances: Series<Gauge>,
    slots_live: Series<Gauge>,
    slots_warm: Series<Gauge>,
    kernels_beside: Total,
    registered: Gauge,
    waiting: Series<Gauge>,
    oldest_wait: Gauge,
    lookups: Series<Total>,
    reuse: Series<Total>,
    /// The bound within which a call reuses an instance that its thread has parked, as an index.
    parked_within: Arc<AtomicUsize>,
    builds: Series<Total>,
    build_seconds: Series<Histogram>,
    compile_workers: Series<Gauge>,
    compile_workers_ended: Series<Total>,
    memory: Series<Gauge>,
    memory_limit: Gauge,
    evictions: Series<Total>,
    eviction_age: Histogram,
    closes_drained: Series<Total>,
    closes_forced: Series<Total>,
    close_seconds: Histogram,
    evaluations: Series<Total>,
    evaluation_seconds: Series<Histogram>,
    discarded: Series<Total>,
    untold: Arc<Untold>,
    counts: Arc<Telling<Noted>>,
}

/// What gauges are to show that is counted under locks.
#[derive(Debug, Default, Clone, Copy)]
struct Noted {
    registered: usize,
    registry: RegistryCounts,
    /// Of the registry's: what comes late is old.
    version: u64,
}

/// Runtimes: building, live, draining. Instances: idle, busy. Callers: for a place, for an instance, for a build.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(crate) struct RegistryCounts {
    pub(crate) runtimes: [usize; 3],
    pub(crate) instances: [usize; 2],
    pub(crate) waiting: [usize; 3],
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
        let closes =
            |how| series(&CLOSES, |label, value| started(metrics::counter!(CLOSES.name, label => value, "how" => how)));
        Self {
            runtimes: gauges(&RUNTIMES),
            capacity: metrics::gauge!(CAPACITY.name),
            instances: gauges(&INSTANCES),
            slots_live: gauges(&SLOTS_LIVE),
            slots_warm: gauges(&SLOTS_WARM),
            kernels_beside: started(metrics::counter!(KERNELS_BESIDE.name)),
            registered: metrics::gauge!(REGISTERED.name),
            waiting: gauges(&WAITING),
            oldest_wait: metrics::gauge!(OLDEST_WAIT.name),
            lookups: counters(&LOOKUPS),
            reuse: counters(&REUSE),
            parked_within: Arc::default(),
            builds: counters(&BUILDS),
            build_seconds: histograms(&BUILD_SECONDS),
            compile_workers: gauges(&COMPILE_WORKERS),
            compile_workers_ended: counters(&COMPILE_WORKERS_ENDED),
            memory: gauges(&MEMORY),
            memory_limit: metrics::gauge!(MEMORY_LIMIT.name),
            evictions: counters(&EVICTIONS),
            eviction_age: metrics::histogram!(EVICTION_AGE.name),
            closes_drained: closes("drained"),
            closes_forced: closes("forced"),
            close_seconds: metrics::histogram!(CLOSE_SECONDS.name),
            evaluations: counters(&EVALUATIONS),
            evaluation_seconds: histograms(&EVALUATION_SECONDS),
            discarded: counters(&DISCARDED),
            untold: Arc::default(),
            counts: Arc::default(),
        }
    }

    pub(crate) fn set_capacity(&self, capacity: usize) {
        self.capacity.set(capacity as f64);
    }

    /// Notes how many evaluators are registered. [`show`](Self::show) follows, under no lock.
    pub(crate) fn note_registered(&self, registered: usize) {
        self.counts.note(|noted| noted.registered = registered);
    }

    /// Shows what was noted. Returns once it is shown, unless the recorder itself has called this.
    pub(crate) fn show(&self) {
        self.show_also(|_| ());
    }

    /// The same with what the registry counts, unless something newer was noted.
    pub(crate) fn set_counts(&self, version: u64, registry: RegistryCounts) {
        self.show_also(|noted| {
            if noted.version < version {
                (noted.version, noted.registry) = (version, registry);
            }
        });
    }

    fn show_also(&self, note: impl FnOnce(&mut Noted)) {
        self.counts.tell(note, |Noted { registered, registry, .. }, told| {
            if told.is_none_or(|told| told.registered != registered) {
                self.registered.set(registered as f64);
            }
            let told = told.map(|told| told.registry);
            if told.is_none_or(|told| told.runtimes != registry.runtimes) {
                set(&self.runtimes, registry.runtimes.map(|count| count as f64));
            }
            if told.is_none_or(|told| told.instances != registry.instances) {
                set(&self.instances, registry.instances.map(|count| count as f64));
            }
            if told.is_none_or(|told| told.waiting != registry.waiting) {
                set(&self.waiting, registry.waiting.map(|count| count as f64));
            }
        });
    }

    pub(crate) fn set_oldest_wait(&self, wait: Duration) {
        self.oldest_wait.set(wait.as_secs_f64());
    }

    /// Instances, memories, tables and stacks that are in use; memories, tables and stacks that are kept warm; and how many
    /// plugins so far had the kernel beside them.
    pub(crate) fn set_slots(&self, live: [u64; 4], warm: [u64; 3], kernels_beside: u64) {
        self.kernels_beside.raise_to(kernels_beside);
        set(&self.slots_live, live.map(|count| count as f64));
        set(&self.slots_warm, warm.map(|count| count as f64));
    }

    pub(crate) fn set_memory(&self, uses: MemoryUse) {
        let MemoryUse { code, instances, cache, limit } = uses;
        set(&self.memory, [code, instances, cache].map(|bytes| bytes as f64));
        self.memory_limit.set(limit as f64);
    }

    /// Compile workers that wait and that work, and how many have ended in each way so far.
    pub(crate) fn set_compile_workers(&self, state: [usize; 2], ended: [u64; COMPILE_WORKERS_ENDINGS]) {
        set(&self.compile_workers, state.map(|count| count as f64));
        for ((_, counter), ended) in self.compile_workers_ended.iter().zip(ended) {
            counter.raise_to(ended);
        }
    }

    /// `result` is a value of the metric's label, as every word below.
    pub(crate) fn lookup(&self, result: &'static str) {
        count(&self.lookups, result);
    }

    pub(crate) fn build_ended(&self, outcome: Result<(), &Error>) {
        count(&self.builds, outcome_word(outcome));
    }

    pub(crate) fn build_phase(&self, phase: &'static str, took: Duration) {
        record(&self.build_seconds, phase, took);
    }

    /// `unused` is the time since the runtime was last in use.
    pub(crate) fn evicted(&self, reason: &'static str, unused: Duration) {
        count(&self.evictions, reason);
        self.eviction_age.record(unused);
    }

    pub(crate) fn closed(&self, reason: &'static str, forced: bool, took: Duration) {
        count(if forced { &self.closes_forced } else { &self.closes_drained }, reason);
        self.close_seconds.record(took);
    }

    fn count_hits(&self, hits: u64) {
        if let Some(counter) = of(&self.lookups, "hit") {
            counter.increment(hits);
        }
        self.reused_parked(hits);
    }

    fn count_evaluations(&self, outcome: &'static str, evaluations: u64) {
        if let Some(counter) = of(&self.evaluations, outcome) {
            counter.increment(evaluations);
        }
    }

    fn evaluation_phase(&self, phase: &'static str, took: Duration, times: u64) {
        if let Some(histogram) = of(&self.evaluation_seconds, phase) {
            histogram.record_many(took, usize::try_from(times).unwrap_or(usize::MAX));
        }
    }

    pub(crate) fn discarded(&self, reason: &'static str) {
        count(&self.discarded, reason);
    }
}

/// One handle for each value of the metric's label.
fn series<T>(metric: &'static Metric, handle: impl Fn(&'static str, &'static str) -> T) -> Series<T> {
    let (label, values) = metric.label.unwrap_or(("", &[]));
    values.iter().map(|value| (*value, handle(label, value))).collect()
}

fn gauges(metric: &'static Metric) -> Series<Gauge> {
    series(metric, |label, value| metrics::gauge!(metric.name, label => value))
}

fn counters(metric: &'static Metric) -> Series<Total> {
    series(metric, |label, value| started(metrics::counter!(metric.name, label => value)))
}

fn histograms(metric: &'static Metric) -> Series<Histogram> {
    series(metric, |label, value| metrics::histogram!(metric.name, label => value))
}

/// A counter that is set to 0 exists before its first event.
fn started(counter: Counter) -> Total {
    counter.absolute(0);
    Total::of(counter)
}

fn set<const N: usize>(series: &Series<Gauge>, values: [f64; N]) {
    for ((_, gauge), value) in series.iter().zip(values) {
        gauge.set(value);
    }
}

/// The sets are small: looking through one costs less than hashing the word.
fn of<'a, T>(series: &'a Series<T>, word: &str) -> Option<&'a T> {
    let found = series.iter().find(|(value, _)| *value == word);
    debug_assert!(found.is_some(), "no series has the value {word:?}");
    found.map(|(_, handle)| handle)
}

fn count(series: &Series<Total>, word: &'static str) {
    if let Some(counter) = of(series, word) {
        counter.increment(1);
    }
}

fn record(series: &Series<Histogram>, word: &'static str, took: Duration) {
    if let Some(histogram) = of(series, word) {
        histogram.record(took);
    }
}

fn outcome_word(outcome: Result<(), &Error>) -> &'static str {
    outcome.map_or_else(|error| error.kind().as_str(), |()| "ok")
}

/// Whether the metric's label has exactly these values: for the tests of the enums that they come from.
#[cfg(test)]
pub(crate) fn has_values(name: &str, words: &[&str]) -> bool {
    let metric = CATALOGUE.iter().find(|metric| metric.name == name);
    metric.and_then(|metric| metric.label).is_some_and(|(_, values)| values == words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions_of_prometheus() {
        for metric in CATALOGUE {
            assert_eq!(metric.kind == MetricType::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.kind != MetricType::Histogram || metric.name.ends_with("_seconds"), "{}", metric.name);
        }
    }
}
