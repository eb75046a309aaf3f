//! Series by evaluator and by tenant, for a page of metrics: see [`top`](super::top) for who has one.
//!
//! A look reads the meters that something was added to since the last, under the lock of all tenants, and adds what is new to
//! the series. What a meter has that goes, or that gets another tenant, is added at once. So nothing is kept for clients that
//! come and go, and all that was counted is in one series when it is shown. Evaluators that nobody calls cost nothing.
//!
//! An evaluation that is the first of its evaluator and thread since a look notes that in [`Changed`]. It takes no other lock
//! for this, and the look holds that one only to take the list.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use serde::Serialize;
use tokio::time::Instant;

use super::{
    Metered, Tenant, Tenants, TenantsState,
    meter::{Changed, Counters},
    top::{Moment, OTHER, Top},
};
use crate::{config::MetricSettings, metrics::OUTCOMES, usage::UsageTotals};

/// The evaluators and tenants that used the most processor time of late, each with figures of its own, and all others
/// together. Its text (`to_string`) is in Prometheus's format.
///
/// The series are the pool's: every caller sees the same ones. Between two calls, the increases of all of them add up to what
/// was used, for every caller that comes at least each 90 s; one that a caller has not seen before counts from 0.
///
/// Who gets a series begins it at 0: what it used before is among the others'. Who loses it, to one that used half as much
/// again or because it is gone, is shown for another 90 s and grows no more; after that it has none for as long. Only then
/// another gets its place, so there are never more than [the settings](crate::config::MetricSettings) say. No figure but
/// `runtimes` and `memory_bytes` ever falls.
///
/// Processor time is that of guests, and counts half after five minutes. Evaluators that have one name share a series. What is
/// named `other` is always among the others. So is, until it is published, what an upload builds under a name that is new.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UsageSeries {
    /// By name, the others last. Empty if [`per_evaluator`](crate::config::MetricSettings::per_evaluator) is 0.
    pub evaluators: Vec<UsageOf>,
    /// By name, the others last. Empty if [`per_tenant`](crate::config::MetricSettings::per_tenant) is 0.
    pub tenants: Vec<UsageOf>,
}

/// What one evaluator or one tenant uses, or all others together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UsageOf {
    /// `None` for the others.
    pub name: Option<String>,
    /// What was used since the series began. Never less than a moment ago.
    pub usage: UsageTotals,
    /// Runtimes that exist.
    pub runtimes: usize,
    /// What these hold in bytes, as in [`MemoryUse`](crate::MemoryUse), but code that several share counts in full for each.
    pub memory_bytes: u64,
}

/// The series of one pool.
#[derive(Debug)]
pub(super) struct Series {
    evaluators: Top,
    tenants: Top,
    began: Instant,
    changed: Arc<Changed>,
    /// The tenants for which something was added since the last look.
    active: BTreeSet<Arc<str>>,
    /// How many evaluators of each name there are.
    names: BTreeMap<Arc<str>, usize>,
    /// The meters of evaluators, by the ids under which their runtimes are registered.
    ids: BTreeMap<u64, u64>,
}

impl Series {
    /// `None` if nobody is to have any.
    pub(super) fn new(settings: &MetricSettings) -> Option<Self> {
        let MetricSettings { per_evaluator, per_tenant } = *settings;
        (per_evaluator > 0 || per_tenant > 0).then(|| Self {
            evaluators: Top::new(per_evaluator),
            tenants: Top::new(per_tenant),
            began: Instant::now(),
            changed: Arc::default(),
            active: BTreeSet::new(),
            names: BTreeMap::new(),
            ids: BTreeMap::new(),
        })
    }

    /// The counters of a new meter.
    pub(super) fn begin(&mut self, number: u64, evaluator: &Arc<str>, id: u64) -> Counters {
        *self.names.entry(evaluator.clone()).or_default() += 1;
        self.ids.insert(id, number);
        Counters::new(Some((self.changed.clone(), number)))
    }

    /// Runtimes of this id are of this meter too.
    pub(super) fn runs_as(&mut self, id: u64, number: u64, metered: &mut Metered) {
        if self.ids.insert(id, number) != Some(number) {
            metered.other_ids.push(id);
        }
    }

    /// The meter is gone: nobody adds to it any more.
    pub(super) fn end(&mut self, number: u64, metered: &Metered) {
        self.changed.forget(number);
        if let Some(count) = self.names.get_mut(&metered.evaluator) {
            *count -= 1;
            if *count == 0 {
                self.names.remove(&metered.evaluator);
            }
        }
        for id in metered.other_ids.iter().chain([&metered.id]) {
            self.ids.remove(id);
        }
    }

    /// Adds what of a meter's totals is in no series yet.
    fn add(&mut self, metered: &mut Metered, tenants: &mut BTreeMap<Arc<str>, Tenant>, totals: UsageTotals) {
        let (used, now) = (totals.since(&metered.in_series), Moment::after(self.began.elapsed()));
        metered.in_series = totals;
        metered.recent.add(used.guest, now);
        self.evaluators.add(&metered.evaluator, &used, now);
        if self.tenants.is_on() {
            if let Some(tenant) = tenants.get_mut(&metered.tenant) {
                tenant.recent.add(used.guest, now);
                self.active.insert(metered.tenant.clone());
            }
            self.tenants.add(&metered.tenant, &used, now);
        }
    }

    /// The tenant is not remembered any more.
    pub(super) fn forget(&mut self, tenant: &str) {
        self.active.remove(tenant);
    }
}

impl TenantsState {
    /// Adds what of a meter's last totals is in no series yet. The meter then begins anew.
    pub(super) fn add_last(&mut self, metered: &mut Metered, totals: &UsageTotals) {
        let Some(series) = &mut self.series else { return };
        series.add(metered, &mut self.tenants, totals.clone());
        metered.in_series = UsageTotals::default();
    }
}

impl Tenants {
    /// The series as they are now. `held` tells the evaluators whose runtimes exist, by their ids, and the bytes that each
    /// runtime holds.
    pub(crate) fn series(&self, held: impl FnOnce() -> Vec<(u64, u64)>) -> UsageSeries {
        if self.state().series.is_none() {
            return UsageSeries::default();
        }
        let held = held();
        let mut state = self.state();
        let TenantsState { series: Some(series), meters, tenants, .. } = &mut *state else {
            return UsageSeries::default();
        };
        // In the order in which they lie.
        let mut changed: Vec<_> = series.changed.take().into_iter().collect();
        changed.sort_unstable();
        let mut evaluators = Vec::new();
        for number in changed {
            let Some(metered) = meters.get_mut(&number) else { continue };
            let totals = metered.counters.look();
            series.add(metered, tenants, totals);
            evaluators.push((metered.recent, number));
        }
        let active = std::mem::take(&mut series.active);
        let Series { evaluators: own, began, names, ids, .. } = series;
        let (at, now) = (Instant::now(), Moment::after(began.elapsed()));
        let name = |(recent, number)| Some((recent, meters.get(&number)?.evaluator.clone()));
        own.choose(at, now, |name| names.contains_key(name), own.best(evaluators).filter_map(name));
        let active = active.into_iter().filter_map(|name| Some((tenants.get(&name)?.recent, name))).collect();
        series.tenants.choose(at, now, |name| tenants.contains_key(name), series.tenants.best(active));
        let of = |(id, bytes): (u64, u64)| (ids.get(&id).and_then(|number| meters.get(number)), bytes);
        let held: Vec<_> = held.into_iter().map(of).collect();
        let by_evaluator = held.iter().map(|(metered, bytes)| (metered.map(|metered| &metered.evaluator), *bytes));
        let by_tenant = held.iter().map(|(metered, bytes)| (metered.map(|metered| &metered.tenant), *bytes));
        UsageSeries { evaluators: rows(&series.evaluators, by_evaluator), tenants: rows(&series.tenants, by_tenant) }
    }
}

/// What is shown of these, with the runtimes that there are: whose, and how many bytes each holds.
fn rows<'a>(top: &Top, runtimes: impl Iterator<Item = (Option<&'a Arc<str>>, u64)>) -> Vec<UsageOf> {
    let row = |(name, usage): (Option<&Arc<str>>, &UsageTotals)| {
        let (name, usage) = (name.map(ToString::to_string), usage.clone());
        UsageOf { name, usage, ..UsageOf::default() }
    };
    let mut rows: Vec<_> = top.shown().map(row).collect();
    if let Some((others, own)) = rows.split_last_mut() {
        for (name, bytes) in runtimes {
            let at = own.binary_search_by(|row| row.name.as_deref().cmp(&name.map(|name| &**name)));
            let row = at.ok().and_then(|at| own.get_mut(at)).unwrap_or(others);
            (row.runtimes, row.memory_bytes) = (row.runtimes + 1, row.memory_bytes + bytes);
        }
    }
    rows
}

impl fmt::Display for UsageSeries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_rows(f, "evaluator", &self.evaluators)?;
        write_rows(f, "tenant", &self.tenants)
    }
}

/// A figure of a row: its name, type and help, and what it is.
type Figure = (&'static str, &'static str, &'static str, fn(&UsageOf) -> f64);

const FIGURES: [Figure; 4] = [
    ("seconds_total", "counter", "How long evaluations took in all", |row| row.usage.total.as_secs_f64()),
    ("exec_seconds_total", "counter", "How long guests ran, without their waits", |row| row.usage.guest.as_secs_f64()),
    ("runtimes", "gauge", "Runtimes that exist", |row| row.runtimes as f64),
    ("memory_bytes", "gauge", "What runtimes hold, shared code in full for each that shares it", |row| {
        row.memory_bytes as f64
    }),
];

fn write_rows(f: &mut fmt::Formatter<'_>, of: &str, rows: &[UsageOf]) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    let head = |f: &mut fmt::Formatter<'_>, name: &str, kind: &str, help: &str| {
        let whose = format!("of the {of}s with the most processor time, and of all others together");
        writeln!(f, "# HELP evalpool_{of}_{name} {help}, {whose}.\n# TYPE evalpool_{of}_{name} {kind}")
    };
    head(f, "evaluations_total", "counter", "Evaluations that ended, by outcome")?;
    // Each outcome is there from the beginning, at 0. Names hold nothing to be quoted; if they did, it would be quoted so.
    for row in rows {
        for outcome in OUTCOMES {
            let count = row.usage.outcomes.get(outcome).copied().unwrap_or_default();
            writeln!(f, "evalpool_{of}_evaluations_total{{{of}={:?},outcome=\"{outcome}\"}} {count}", row.label())?;
        }
    }
    for (name, kind, help, figure) in FIGURES {
        head(f, name, kind, help)?;
        for row in rows {
            writeln!(f, "evalpool_{of}_{name}{{{of}={:?}}} {}", row.label(), figure(row))?;
        }
    }
    writeln!(f)
}

impl UsageOf {
    fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(OTHER)
    }
}

#[cfg(test)]
mod tests;
