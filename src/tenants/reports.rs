//! Lines for billing: what each evaluator used in an interval.
//!
//! Lines are collected under the lock of all tenants and written after it, since whoever takes them is foreign code. What
//! an evaluator used that goes, or that gets another tenant, is kept until the next look, and written then: no client can
//! have more kept than it can delete evaluators in between.

use std::{
    fs,
    sync::Arc,
    time::{Duration, SystemTime},
};

use humantime_serde::re::humantime::format_rfc3339_millis;
use serde::Serialize;
use tokio::time::Instant;

use super::{Metered, Tenants, TenantsState};
use crate::{clock, usage::UsageTotals};

/// The target under which lines are logged.
const TARGET: &str = "evalpool::usage";

/// How many evaluators that are gone may wait for their last line.
const MOST_KEPT: usize = 1000;

/// What was reported, and when.
#[derive(Debug)]
pub(super) struct Reports {
    interval: Duration,
    /// This machine's name.
    node: Arc<str>,
    /// The interval's beginning.
    since: SystemTime,
    /// When it is over.
    due: Instant,
    /// What evaluators used in it that are gone, or are another tenant's now.
    kept: Vec<Used>,
}

#[derive(Debug)]
struct Used {
    tenant: Arc<str>,
    evaluator: Arc<str>,
    id: u64,
    usage: UsageTotals,
}

/// What a line says.
#[derive(Serialize)]
struct Line<'a> {
    target: &'static str,
    node: &'a str,
    tenant: &'a str,
    evaluator: &'a str,
    id: u64,
    from: &'a str,
    to: &'a str,
    usage: &'a UsageTotals,
}

impl Reports {
    pub(super) fn new(interval: Duration) -> Self {
        let file = fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| fs::read_to_string("/etc/hostname"));
        let name = file.ok().filter(|name| !name.trim().is_empty());
        Self {
            interval,
            node: name.as_deref().map_or("unknown", str::trim).into(),
            since: SystemTime::now(),
            due: clock::deadline(interval),
            kept: Vec::new(),
        }
    }

    pub(super) fn keeps_many(&self) -> bool {
        self.kept.len() > MOST_KEPT
    }
}

impl Metered {
    /// What of `totals` was not reported yet, which is then as if reported.
    fn used(&mut self, totals: UsageTotals) -> Option<Used> {
        let usage = totals.since(&self.reported);
        self.reported = totals;
        let (tenant, evaluator, id) = (self.tenant.clone(), self.evaluator.clone(), self.id);
        (usage.evaluations > 0).then_some(Used { tenant, evaluator, id, usage })
    }
}

impl TenantsState {
    /// Keeps what of a meter's last totals was not reported, for a line that is written later. The meter then begins anew.
    pub(super) fn keep(&mut self, metered: &mut Metered, totals: &UsageTotals) {
        if let Some(reports) = &mut self.reports {
            reports.kept.extend(metered.used(totals.clone()));
            metered.reported = UsageTotals::default();
        }
    }
}

impl Tenants {
    /// Writes the lines of the interval if it is over, and what was kept in any case.
    pub(crate) fn report_due(&self) {
        self.report_if(|reports| Instant::now() >= reports.due);
    }

    /// Writes the lines of what was used since the last ones.
    pub(crate) fn report(&self) {
        self.report_if(|_| true);
    }

    /// Writes what was kept.
    pub(super) fn report_kept(&self) {
        self.report_if(|_| false);
    }

    fn report_if(&self, is_over: impl FnOnce(&Reports) -> bool) {
        let (node, from, to, used) = {
            let mut state = self.state();
            let TenantsState { reports, meters, .. } = &mut *state;
            let Some(reports) = reports else { return };
            let (from, to, mut used) = (reports.since, SystemTime::now(), std::mem::take(&mut reports.kept));
            if is_over(reports) {
                used.extend(meters.values_mut().filter_map(|metered| metered.used(metered.counters.totals())));
                (reports.since, reports.due) = (to, clock::deadline(reports.interval));
            }
            (reports.node.clone(), from, to, used)
        };
        let [from, to] = [from, to].map(|time| format_rfc3339_millis(time).to_string());
        for Used { tenant, evaluator, id, usage } in &used {
            let line = Line { target: TARGET, node: &node, tenant, evaluator, id: *id, from: &from, to: &to, usage };
            if let Ok(json) = serde_json::to_string(&line) {
                tracing::info!(target: TARGET, "{json}");
            }
        }
    }
}
