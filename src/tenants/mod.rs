//! Tenants: whom an evaluator belongs to, and what was used for whom. Their names are known here and nowhere below.
//!
//! A tenant is not registered: it is there from its first evaluator on. Its name comes from the spec
//! ([`Spec::tenant`](crate::Spec::tenant)) or else from the evaluator's name, by [`of_name`].
//!
//! # Metering
//!
//! Each evaluator has a [`Meter`], which adds up what its evaluations use. A tenant's totals are those of its evaluators'
//! meters, and of those that are gone. So an evaluation is counted in one place, and every sum that is shown is exact.
//! Locks: that of all tenants is taken when an evaluator comes, goes or changes its tenant, and by readers; never by an
//! evaluation. Inside it, only the meters' own are taken, and that of the list of those that changed.

mod cpu;
mod meter;
mod reports;
mod seat;
mod series;
mod top;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;

pub use self::series::{UsageOf, UsageSeries};
pub(crate) use self::{cpu::CpuTime, seat::Seat};
use self::{meter::Counters, reports::Reports, series::Series, top::Recent};
use crate::{
    config::{MetricSettings, TenantBounds, TenantSettings},
    error::ErrorKind,
    usage::{Usage, UsageTotals},
};

/// How many tenants without an evaluator are remembered.
const MOST_EMPTY: usize = 10_000;

/// A tenant at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TenantInfo {
    /// Its name: see [`Spec::tenant`](crate::Spec::tenant).
    pub name: String,
    /// How many evaluators belong to it.
    pub evaluators: usize,
    /// What its evaluators have used since it was first seen, those that are gone included. An evaluation counts for the
    /// tenant to which its evaluator belongs when it ends. Of tenants that have no evaluator any more, the 10,000 that
    /// lost their last one most recently are remembered.
    pub usage: UsageTotals,
    /// What it may have at most.
    pub bounds: TenantBounds,
    /// Runtimes of its evaluators that exist.
    pub runtimes: usize,
    /// Instances of them that exist.
    pub instances: usize,
    /// Callers that wait for a runtime or an instance.
    pub waiting: usize,
    /// Bytes that its runtimes hold: their instances, and all code that they run, whoever else runs the same.
    pub memory_bytes: u64,
}

/// The tenants of one pool.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    state: Mutex<TenantsState>,
}

#[derive(Debug, Default)]
struct TenantsState {
    tenants: BTreeMap<Arc<str>, Tenant>,
    meters: BTreeMap<u64, Metered>,
    /// Tenants without a meter, in the order in which they lost their last; before them, those that never had one: they
    /// take nobody's place.
    empty: [BTreeMap<u64, Arc<str>>; 2],
    next: u64,
    /// `None` if nothing is reported.
    reports: Option<Reports>,
    bounds: TenantSettings,
    /// `None` if nobody has series of their own.
    series: Option<Series>,
}

#[derive(Debug, Default)]
struct Tenant {
    /// By evaluators that are gone, or are another's now.
    ended: UsageTotals,
    meters: BTreeSet<u64>,
    /// Evaluators that are about to be made.
    seats: usize,
    /// It has or had an evaluator.
    is_known: bool,
    /// Its number among the empty ones, while it is one.
    empty_as: Option<u64>,
    /// What its guests may use. Made when it is first asked for.
    cpu: Option<Arc<CpuTime>>,
    /// What its evaluators used of late. Stays nothing without series, as that of a meter.
    recent: Recent,
}

#[derive(Debug)]
struct Metered {
    tenant: Arc<str>,
    evaluator: Arc<str>,
    /// The evaluator's.
    id: u64,
    /// Since it belongs to this tenant.
    counters: Arc<Counters>,
    /// What it used before, for others.
    before: UsageTotals,
    /// What of it was reported. Stays empty if nothing is.
    reported: UsageTotals,
    /// Further ids under which its runtimes are registered. Empty without series, as what follows.
    other_ids: Vec<u64>,
    /// What of it is in series.
    in_series: UsageTotals,
    recent: Recent,
}

/// The meter of one evaluator. Dropped with it.
#[derive(Debug)]
pub(crate) struct Meter {
    tenants: Arc<Tenants>,
    number: u64,
    counters: Arc<Counters>,
}

impl Tenants {
    fn state(&self) -> MutexGuard<'_, TenantsState> {
        // Nothing panics under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of a pool that reports what is used each `interval`, or does not, and shows it in these series.
    pub(crate) fn new(interval: Option<Duration>, metrics: &MetricSettings) -> Arc<Self> {
        let (reports, series) = (interval.map(Reports::new), Series::new(metrics));
        let state = TenantsState { reports, series, ..TenantsState::default() };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// What tenants may have from now on.
    pub(crate) fn set_bounds(&self, bounds: TenantSettings) {
        let mut state = self.state();
        for (name, tenant) in &state.tenants {
            if let Some(cpu) = &tenant.cpu {
                cpu.set(bounds.of(name).cpu_per_second);
            }
        }
        state.bounds = bounds;
    }

    /// What this tenant may have.
    #[cfg(feature = "service")]
    pub(crate) fn bounds(&self, tenant: &str) -> TenantBounds {
        self.state().bounds.of(tenant)
    }

    /// The processor time of this tenant's guests.
    pub(crate) fn cpu(&self, tenant: &str) -> Arc<CpuTime> {
        let mut state = self.state();
        let rate = state.bounds.of(tenant).cpu_per_second;
        let cpu = state.tenant(tenant).cpu.get_or_insert_with(|| Arc::new(CpuTime::new(rate))).clone();
        state.forget_some();
        cpu
    }

    /// A meter for an evaluator of this tenant.
    pub(crate) fn meter(self: &Arc<Self>, tenant: &str, evaluator: &Arc<str>, id: u64) -> Meter {
        let mut state = self.state();
        let number = state.number();
        let counters = state.series.as_mut().map(|series| series.begin(number, evaluator, id));
        let counters = Arc::new(counters.unwrap_or_default());
        let metered = Metered {
            tenant: state.join(tenant, number),
            evaluator: evaluator.clone(),
            id,
            counters: counters.clone(),
            before: UsageTotals::default(),
            reported: UsageTotals::default(),
            other_ids: Vec::new(),
            in_series: UsageTotals::default(),
            recent: Recent::default(),
        };
        state.meters.insert(number, metered);
        Meter { tenants: self.clone(), number, counters }
    }

    pub(crate) fn info(&self, name: &str) -> Option<TenantInfo> {
        let state = self.state();
        let known = state.tenants.get_key_value(name).filter(|(_, tenant)| tenant.is_known);
        known.map(|(name, tenant)| state.info(name, tenant))
    }

    /// In the order of names, from the one after `after`, at most `limit`.
    pub(crate) fn list(&self, after: Option<&str>, limit: usize) -> Vec<TenantInfo> {
        let (state, from) = (self.state(), after.map_or(Bound::Unbounded, Bound::Excluded));
        let all = state.tenants.range::<str, _>((from, Bound::Unbounded));
        let tenants = all.filter(|(_, tenant)| tenant.is_known).take(limit);
        tenants.map(|(name, tenant)| state.info(name, tenant)).collect()
    }
}

impl TenantsState {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn info(&self, name: &str, tenant: &Tenant) -> TenantInfo {
        let mut usage = tenant.ended.clone();
        let meters = tenant.meters.iter().filter_map(|number| self.meters.get(number));
        meters.for_each(|metered| usage.add(&metered.counters.totals()));
        TenantInfo {
            name: name.to_owned(),
            evaluators: tenant.meters.len(),
            usage,
            bounds: self.bounds.of(name),
            runtimes: 0,
            instances: 0,
            waiting: 0,
            memory_bytes: 0,
        }
    }

    /// The tenant of this name, which is among the empty ones if it was not known.
    fn tenant(&mut self, name: &str) -> &mut Tenant {
        if !self.tenants.contains_key(name) {
            let (number, name) = (self.number(), Arc::<str>::from(name));
            self.empty[0].insert(number, name.clone());
            self.tenants.insert(name, Tenant { empty_as: Some(number), ..Tenant::default() });
        }
        // It is there.
        self.tenants.entry(name.into()).or_default()
    }

    /// Forgets tenants without an evaluator beyond those that are remembered: their names are their clients' to choose.
    fn forget_some(&mut self) {
        for empty in &mut self.empty {
            if empty.len() > MOST_EMPTY
                && let Some((_, forgotten)) = empty.pop_first()
            {
                self.tenants.remove(&forgotten);
                if let Some(series) = &mut self.series {
                    series.forget(&forgotten);
                }
            }
        }
    }

    /// Gives the tenant a meter.
    fn join(&mut self, name: &str, meter: u64) -> Arc<str> {
        let name = self.tenants.get_key_value(name).map_or_else(|| name.into(), |(known, _)| known.clone());
        let tenant = self.tenants.entry(name.clone()).or_default();
        tenant.is_known = true;
        tenant.meters.insert(meter);
        if let Some(number) = tenant.empty_as.take() {
            self.empty.iter_mut().for_each(|empty| drop(empty.remove(&number)));
        }
        name
    }

    /// Takes a meter away from its tenant, which keeps what was used.
    fn end(&mut self, number: u64, metered: &mut Metered) {
        let used = metered.counters.take();
        self.keep(metered, &used);
        self.add_last(metered, &used);
        if let Some(tenant) = self.tenants.get_mut(&metered.tenant) {
            tenant.ended.add(&used);
            tenant.meters.remove(&number);
            if tenant.meters.is_empty() {
                self.next += 1;
                tenant.empty_as = Some(self.next);
                self.empty[1].insert(self.next, metered.tenant.clone());
            }
        }
        self.forget_some();
        metered.before.add(&used);
    }
}

impl Meter {
    /// Adds an evaluation that has ended.
    pub(crate) fn add(&self, outcome: Result<(), ErrorKind>, usage: &Usage) {
        self.counters.add(outcome, usage);
    }

    /// Whom its evaluator belongs to, and what it has used, for whomever.
    pub(crate) fn read(&self) -> (Arc<str>, UsageTotals) {
        let state = self.tenants.state();
        let Some(metered) = state.meters.get(&self.number) else { return ("".into(), UsageTotals::default()) };
        let mut totals = metered.before.clone();
        totals.add(&metered.counters.totals());
        (metered.tenant.clone(), totals)
    }

    /// Whom its evaluator belongs to.
    #[cfg(feature = "service")]
    pub(crate) fn tenant(&self) -> Arc<str> {
        let state = self.tenants.state();
        state.meters.get(&self.number).map_or_else(|| "".into(), |metered| metered.tenant.clone())
    }

    pub(crate) fn belongs_to(&self, tenant: &str) -> bool {
        self.tenants.state().meters.get(&self.number).is_some_and(|metered| *metered.tenant == *tenant)
    }

    /// What is added from now on is used for this tenant, and by runtimes that are registered under this id too.
    pub(crate) fn move_to(&self, tenant: &str, runs_as: u64) {
        let mut state = self.tenants.state();
        let Some(mut metered) = state.meters.remove(&self.number) else { return };
        if *metered.tenant != *tenant {
            state.end(self.number, &mut metered);
            metered.tenant = state.join(tenant, self.number);
        }
        if let Some(series) = &mut state.series {
            series.runs_as(runs_as, self.number, &mut metered);
        }
        state.meters.insert(self.number, metered);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let mut state = self.tenants.state();
        let Some(mut metered) = state.meters.remove(&self.number) else { return };
        state.end(self.number, &mut metered);
        if let Some(series) = &mut state.series {
            series.end(self.number, &metered);
        }
        let keeps_many = state.reports.as_ref().is_some_and(Reports::keeps_many);
        drop(state);
        if keeps_many {
            self.tenants.report_kept();
        }
    }
}

impl Drop for Tenants {
    fn drop(&mut self) {
        self.report();
    }
}

/// The tenant of an evaluator whose spec names none: the part of its name before the first `/`. A name without such a part
/// is its own tenant.
pub(crate) fn of_name(evaluator: &str) -> &str {
    match evaluator.split_once('/') {
        Some((tenant, _)) if !tenant.is_empty() => tenant,
        _ => evaluator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::unfit_name;

    #[test]
    fn an_evaluator_belongs_to_the_first_part_of_its_name_or_to_itself() {
        for (evaluator, tenant) in [
            ("acme/price", "acme"),
            ("acme/eu/price", "acme"),
            ("acme", "acme"),
            ("acme/", "acme"),
            ("/x", "/x"),
            ("/", "/"),
        ] {
            assert_eq!(of_name(evaluator), tenant);
            assert_eq!(unfit_name(tenant), None, "a tenant can be named wherever an evaluator can");
        }
    }

    fn meter(tenants: &Arc<Tenants>, tenant: &str) -> Meter {
        tenants.meter(tenant, &"evaluator".into(), 1)
    }

    fn names(tenants: &Tenants) -> Vec<String> {
        tenants.list(None, usize::MAX).into_iter().map(|tenant| tenant.name).collect()
    }

    #[test]
    fn of_tenants_without_evaluators_so_many_are_remembered_and_others_are_never_forgotten() {
        let tenants = Arc::new(Tenants::default());
        let kept = meter(&tenants, "kept");
        kept.add(Ok(()), &Usage::default());
        drop(meter(&tenants, "first"));
        drop(meter(&tenants, "second"));
        // It is not the one that lost its evaluators before all others any more.
        drop(meter(&tenants, "first"));
        for number in 2..MOST_EMPTY {
            drop(meter(&tenants, &number.to_string()));
        }
        assert_eq!(tenants.list(None, usize::MAX).len(), MOST_EMPTY + 1);
        drop(meter(&tenants, "one more"));
        assert!(tenants.info("second").is_none() && tenants.info("first").is_some());
        let kept = tenants.info("kept").unwrap();
        assert_eq!((kept.evaluators, kept.usage.evaluations), (1, 1));
        let state = tenants.state();
        assert_eq!((state.empty[1].len(), state.meters.len()), (MOST_EMPTY, 1));
    }

    #[test]
    fn names_that_never_had_an_evaluator_push_no_tenant_out_and_are_bounded() {
        let tenants = Arc::new(Tenants::default());
        drop(meter(&tenants, "acme"));
        for number in 0..2 * MOST_EMPTY {
            drop(tenants.seat(&number.to_string()).unwrap());
        }
        assert!(tenants.info("acme").is_some());
        assert_eq!(tenants.state().tenants.len(), MOST_EMPTY + 1);
    }

    #[test]
    fn a_tenant_that_gets_an_evaluator_again_goes_on_where_it_was() {
        let tenants = Arc::new(Tenants::default());
        for evaluations in 1..=3 {
            meter(&tenants, "acme").add(Err(ErrorKind::GuestTrap), &Usage::default());
            assert_eq!(tenants.info("acme").unwrap().usage.evaluations, evaluations);
        }
        assert_eq!((names(&tenants), tenants.state().empty[1].len()), (vec!["acme".to_owned()], 1));
        let again = meter(&tenants, "acme");
        assert!(tenants.state().empty[1].is_empty());
        drop(again);
    }
}
