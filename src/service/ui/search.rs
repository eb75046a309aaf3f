//! Evaluators and tenants as the page lists them: looked through, sorted and cut here, so that a hundred thousand are as
//! quick to page through as ten.

use std::{cmp::Ordering, collections::HashMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::Latencies;
use crate::{EvaluatorId, EvaluatorInfo, EvaluatorPool, PoolSnapshot, RuntimeState, TenantInfo};

/// Tenants that are read at once.
const PART: usize = 256;

/// What is looked for.
#[derive(Debug, Default)]
pub(in crate::service) struct Search {
    /// A part of the name, in small letters.
    pub(in crate::service) text: String,
    pub(in crate::service) tenant: Option<String>,
    pub(in crate::service) state: Option<State>,
    pub(in crate::service) sort: Sort,
    pub(in crate::service) descending: bool,
    /// From 0.
    pub(in crate::service) page: usize,
    /// Rows of a page.
    pub(in crate::service) limit: usize,
}

/// By what is sorted. Equal ones are in the order of their names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::service) enum Sort {
    #[default]
    Name,
    Tenant,
    State,
    Instances,
    Evaluations,
    Errors,
    Mean,
    P99,
    Guest,
    Memory,
    LastUsed,
}

/// What a runtime does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::service) enum State {
    Cold,
    Building,
    Live,
    Draining,
}

/// A page of what was found.
#[derive(Debug, Serialize)]
pub(in crate::service) struct Found<T> {
    pub(in crate::service) rows: Vec<T>,
    /// How many were found in all.
    pub(in crate::service) found: usize,
}

/// An evaluator in the list. Times are in seconds.
#[derive(Debug, Serialize)]
pub(in crate::service) struct Row {
    name: String,
    tenant: String,
    state: RuntimeState,
    instances: usize,
    evaluations: u64,
    errors: u64,
    /// An evaluation's time, with its waits, on average; `null` if none has ended.
    mean_seconds: Option<f64>,
    /// Of 100 calls of late, 99 took no longer; `null` if there were none, or too many others were called since.
    p99_seconds: Option<f64>,
    guest_seconds: f64,
    memory_bytes: u64,
    last_used: Option<u64>,
}

impl Row {
    fn of(info: EvaluatorInfo, memory: &HashMap<EvaluatorId, u64>, p99: Option<Duration>) -> Self {
        let usage = info.usage;
        Self {
            p99_seconds: p99.map(|p99| p99.as_secs_f64()),
            memory_bytes: memory.get(&info.id).copied().unwrap_or_default(),
            name: info.name,
            tenant: info.tenant,
            state: info.state,
            instances: info.instances,
            evaluations: info.evaluations,
            errors: errors(usage.evaluations, usage.outcomes.get("ok")),
            mean_seconds: mean(usage.total.as_secs_f64(), usage.evaluations),
            guest_seconds: usage.guest.as_secs_f64(),
            last_used: info.last_used,
        }
    }
}

/// Looks through all evaluators. `last` is the pool as it was seen last: it knows what runtimes hold.
pub(in crate::service) fn evaluators(
    pool: &EvaluatorPool,
    search: &Search,
    last: Option<&PoolSnapshot>,
    latencies: &Latencies,
) -> Found<Row> {
    let mut memory = HashMap::<_, u64>::new();
    for runtime in last.iter().flat_map(|last| &last.runtimes) {
        *memory.entry(runtime.evaluator).or_default() += runtime.memory_bytes;
    }
    let mut named = pool.find(|name| has(name, &search.text));
    let is_by_name = search.sort == Sort::Name && search.tenant.is_none() && search.state.is_none();
    if is_by_name {
        // They come in this order, so only those of the page are looked at.
        if search.descending {
            named.reverse();
        }
        let found = named.len();
        let page: Vec<_> = search.cut(named.into_iter()).collect();
        let row = |info: EvaluatorInfo| {
            let p99 = latencies.of(info.id).map(|times| times.p99);
            Row::of(info, &memory, p99)
        };
        return Found { rows: pool.infos(&page).into_iter().map(row).collect(), found };
    }
    if let Some(tenant) = &search.tenant {
        named.retain(|evaluator| evaluator.belongs_to(tenant));
    }
    let is_wanted = |info: &EvaluatorInfo| search.state.is_none_or(|state| state.is(info.state));
    let wanted = pool.infos(&named).into_iter().filter(is_wanted);
    let times = latencies.all();
    let row = |info: EvaluatorInfo| {
        let p99 = times.get(&info.id).map(|times| times.p99);
        Row::of(info, &memory, p99)
    };
    let mut rows: Vec<_> = wanted.map(row).collect();
    rows.sort_by(|a, b| search.directed(a.compare(b, search.sort)).then_with(|| a.name.cmp(&b.name)));
    let found = rows.len();
    Found { rows: search.cut(rows.into_iter()).collect(), found }
}

/// Looks through all tenants.
pub(in crate::service) fn tenants(pool: &EvaluatorPool, search: &Search) -> Found<TenantInfo> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        // In parts: each is read under a lock that every upload takes too.
        let part = pool.tenants(after.as_deref(), PART);
        after = part.last().map(|tenant| tenant.name.clone());
        let is_last = part.len() < PART;
        found.extend(part.into_iter().filter(|tenant| has(&tenant.name, &search.text)));
        if is_last {
            break;
        }
    }
    let compare = |a: &TenantInfo, b: &TenantInfo| match search.sort {
        // Tenants have none of the others.
        Sort::Name | Sort::Tenant | Sort::State | Sort::Mean | Sort::P99 | Sort::LastUsed => a.name.cmp(&b.name),
        Sort::Instances => a.instances.cmp(&b.instances),
        Sort::Evaluations => a.usage.evaluations.cmp(&b.usage.evaluations),
        Sort::Errors => failed(a).cmp(&failed(b)),
        Sort::Guest => a.usage.guest.cmp(&b.usage.guest),
        Sort::Memory => a.memory_bytes.cmp(&b.memory_bytes),
    };
    found.sort_by(|a, b| search.directed(compare(a, b)).then_with(|| a.name.cmp(&b.name)));
    let all = found.len();
    Found { rows: search.cut(found.into_iter()).collect(), found: all }
}

impl Search {
    fn cut<T>(&self, all: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
        all.skip(self.page.saturating_mul(self.limit)).take(self.limit)
    }

    fn directed(&self, order: Ordering) -> Ordering {
        if self.descending { order.reverse() } else { order }
    }
}

impl State {
    fn is(self, state: RuntimeState) -> bool {
        match self {
            State::Cold => state == RuntimeState::Cold,
            State::Building => state == RuntimeState::Building,
            State::Live => state == RuntimeState::Live,
            State::Draining => state == RuntimeState::Draining,
        }
    }
}

impl Row {
    fn compare(&self, other: &Self, by: Sort) -> Ordering {
        let rank = |state| match state {
            RuntimeState::Building => 1,
            RuntimeState::Live => 2,
            RuntimeState::Draining => 3,
            _ => 0,
        };
        match by {
            Sort::Name => self.name.cmp(&other.name),
            Sort::Tenant => self.tenant.cmp(&other.tenant),
            Sort::State => rank(self.state).cmp(&rank(other.state)),
            Sort::Instances => self.instances.cmp(&other.instances),
            Sort::Evaluations => self.evaluations.cmp(&other.evaluations),
            Sort::Errors => self.errors.cmp(&other.errors),
            Sort::Mean => self.mean_seconds.unwrap_or(-1.0).total_cmp(&other.mean_seconds.unwrap_or(-1.0)),
            Sort::P99 => self.p99_seconds.unwrap_or(-1.0).total_cmp(&other.p99_seconds.unwrap_or(-1.0)),
            Sort::Guest => self.guest_seconds.total_cmp(&other.guest_seconds),
            Sort::Memory => self.memory_bytes.cmp(&other.memory_bytes),
            Sort::LastUsed => self.last_used.cmp(&other.last_used),
        }
    }
}

fn failed(tenant: &TenantInfo) -> u64 {
    errors(tenant.usage.evaluations, tenant.usage.outcomes.get("ok"))
}

fn errors(evaluations: u64, ok: Option<&u64>) -> u64 {
    evaluations.saturating_sub(ok.copied().unwrap_or_default())
}

fn mean(seconds: f64, evaluations: u64) -> Option<f64> {
    (evaluations > 0).then(|| seconds / evaluations as f64)
}

/// Whether a name has this part, whatever the size of its letters. Names are ASCII.
fn has(name: &str, part: &str) -> bool {
    part.is_empty() || name.as_bytes().windows(part.len()).any(|at| at.eq_ignore_ascii_case(part.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_name_is_found_in_letters_of_any_size() {
        assert!(has("Acme/Price", "e/p") && has("a", "") && has("a", "A"));
        assert!(!has("acme", "acmes") && !has("", "a"));
    }
}
