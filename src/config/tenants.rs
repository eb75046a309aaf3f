//! What tenants may have.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::formats::size_if_any;
use crate::units::{Quoted, unfit_name};

/// What tenants may have at most. Nothing is bounded by default: where tenants want more than there is, each gets its share.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantSettings {
    /// What each tenant may have.
    pub default: TenantBounds,
    /// What the tenant of this name may have. A bound that is not set here is the default one.
    pub named: BTreeMap<String, TenantBounds>,
}

/// What one tenant may have at most; `None`: as much as there is. Over a bound, a call or an upload fails with
/// [`QuotaExceeded`](crate::Error::QuotaExceeded).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TenantBounds {
    /// Runtimes that exist. A build of a tenant that has them all waits until one of its own is unused, which is closed for
    /// it. At least 1.
    pub runtimes: Option<usize>,
    /// Instances that exist, over all its runtimes. A call that finds none free waits. At least 1.
    pub instances: Option<usize>,
    /// Bytes that its runtimes hold: their instances, and all code that they run, whoever else runs the same, so that
    /// nobody's bill depends on a neighbour. A build that finds too little room has unused runtimes of the tenant closed, and
    /// fails if that is not enough within a second. What busy instances grow to may exceed the bound until their calls end;
    /// until then the tenant gets no more instances. Weighed on the `direct` engine alone. At least 1.
    #[serde(deserialize_with = "size_if_any")]
    pub memory: Option<u64>,
    /// Builds that compile, or are the next to. At least 1.
    pub build_concurrency: Option<usize>,
    /// How long its guests may run in each second, on average, all together: `500ms` is half a core. What was left unused for
    /// five seconds can be used at once. Counted is the [time of guests](crate::Usage::guest); calls are refused while more
    /// was used. At least `1ms`.
    #[serde(with = "humantime_serde")]
    pub cpu_per_second: Option<Duration>,
    /// How large its share is where tenants want more than there is: so many times that of a tenant with 1. From 1 to 1000.
    /// Default 1.
    pub weight: Option<u32>,
    /// Callers that wait, for a build, a runtime or an instance.
    pub max_waiting: Option<usize>,
    /// Evaluators. Lowered below what there is, it closes none.
    pub evaluators: Option<usize>,
    /// Bytes of plugins that the server stores, each evaluator's in full. Has no effect on a pool.
    #[serde(deserialize_with = "size_if_any")]
    pub stored_bytes: Option<u64>,
}

impl TenantSettings {
    /// What this tenant may have.
    #[must_use]
    pub fn of(&self, tenant: &str) -> TenantBounds {
        self.named.get(tenant).map_or(self.default, |own| own.or(self.default))
    }

    /// Says what is out of its range.
    pub(super) fn check(&self) -> Result<(), String> {
        self.default.check("tenants.default")?;
        for (name, bounds) in &self.named {
            let section = format!("tenants.named.{}", Quoted(name));
            if let Some(why) = unfit_name(name) {
                return Err(format!("{section} names no tenant: {why}"));
            }
            bounds.check(&section)?;
        }
        Ok(())
    }
}

impl TenantBounds {
    fn or(self, other: Self) -> Self {
        Self {
            runtimes: self.runtimes.or(other.runtimes),
            instances: self.instances.or(other.instances),
            memory: self.memory.or(other.memory),
            build_concurrency: self.build_concurrency.or(other.build_concurrency),
            cpu_per_second: self.cpu_per_second.or(other.cpu_per_second),
            weight: self.weight.or(other.weight),
            max_waiting: self.max_waiting.or(other.max_waiting),
            evaluators: self.evaluators.or(other.evaluators),
            stored_bytes: self.stored_bytes.or(other.stored_bytes),
        }
    }

    fn check(&self, section: &str) -> Result<(), String> {
        let at_least_one = [
            ("runtimes", self.runtimes.map(|bound| bound as u64)),
            ("instances", self.instances.map(|bound| bound as u64)),
            ("memory", self.memory),
            ("build_concurrency", self.build_concurrency.map(|bound| bound as u64)),
        ];
        if let Some((key, _)) = at_least_one.iter().find(|(_, bound)| *bound == Some(0)) {
            return Err(format!("{section}.{key} is 0; it must be at least 1"));
        }
        if let Some(weight) = self.weight.filter(|weight| !(1..=1000).contains(weight)) {
            return Err(format!("{section}.weight is {weight}; it must be from 1 to 1000"));
        }
        match self.cpu_per_second {
            Some(time) if time < Duration::from_millis(1) => {
                Err(format!("{section}.cpu_per_second is {time:?}; it must be at least 1ms"))
            }
            _ => Ok(()),
        }
    }
}
