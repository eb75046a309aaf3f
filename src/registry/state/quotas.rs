//! What each tenant may have, and has. A tenant that is at a bound is held up in the queues, so that no other waits for it.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasherDefault, Hasher},
};

use tokio::time::Instant;

use super::{
    super::{Resident, RevisionId},
    RegistryState,
    entries::Phase,
};
use crate::{
    config::TenantBounds,
    error::{Bound, Error},
    turns::{TenantId, Weights},
};

/// What one tenant may have at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    pub(super) runtimes: usize,
    pub(super) instances: usize,
    pub(super) memory: u64,
    pub(super) compiling: usize,
    pub(super) waiting: usize,
}

/// What all tenants may have.
#[derive(Debug, Clone, Default)]
pub(crate) struct Quotas {
    default: Quota,
    named: HashMap<TenantId, Quota>,
    /// Whether anything is bounded: asked at each call.
    any: bool,
}

/// What one tenant has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TenantHolds {
    /// Runtimes that exist.
    pub(crate) runtimes: usize,
    /// Permits out.
    pub(crate) instances: usize,
    /// Builds that compile, or are the next to.
    pub(super) compiling: usize,
    /// Callers that wait, but for a build that has its place.
    pub(crate) waiting: usize,
}

/// By tenant: those that have anything.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    held: ByTenant<TenantHolds>,
    live: ByTenant<Vec<RevisionId>>,
}

type ByTenant<T> = HashMap<TenantId, T, BuildHasherDefault<AsItIs>>;

/// A tenant's number is a keyed hash already.
#[derive(Default)]
pub(super) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

impl Default for Quota {
    fn default() -> Self {
        Self::from(TenantBounds::default())
    }
}

impl From<TenantBounds> for Quota {
    fn from(bounds: TenantBounds) -> Self {
        let most = |bound: Option<usize>| bound.unwrap_or(usize::MAX);
        Self {
            runtimes: most(bounds.runtimes),
            instances: most(bounds.instances),
            memory: bounds.memory.unwrap_or(u64::MAX),
            compiling: most(bounds.build_concurrency),
            waiting: most(bounds.max_waiting),
        }
    }
}

impl Quotas {
    pub(crate) fn new(default: TenantBounds, named: impl IntoIterator<Item = (TenantId, TenantBounds)>) -> Self {
        let named: HashMap<_, _> = named.into_iter().map(|(tenant, bounds)| (tenant, bounds.into())).collect();
        let default = Quota::from(default);
        Self { any: default != Quota::default() || !named.is_empty(), default, named }
    }

    pub(super) fn of(&self, tenant: TenantId) -> Quota {
        if self.named.is_empty() { self.default } else { *self.named.get(&tenant).unwrap_or(&self.default) }
    }

    pub(super) fn any(&self) -> bool {
        self.any
    }
}

impl Holdings {
    pub(super) fn of(&self, tenant: TenantId) -> TenantHolds {
        self.held.get(&tenant).copied().unwrap_or_default()
    }

    /// Its live runtimes, in no order.
    pub(super) fn live_of(&self, tenant: TenantId) -> &[RevisionId] {
        self.live.get(&tenant).map_or(&[], Vec::as_slice)
    }

    /// A runtime is live.
    pub(super) fn published(&mut self, revision: RevisionId) {
        self.live.entry(revision.tenant).or_default().push(revision);
    }

    /// It is not any more.
    pub(super) fn retired(&mut self, revision: RevisionId) {
        let Some(live) = self.live.get_mut(&revision.tenant) else { return };
        live.retain(|other| *other != revision);
        if live.is_empty() {
            self.live.remove(&revision.tenant);
        }
    }

    /// Callers of it ceased to wait, and others began to.
    pub(super) fn wait(&mut self, tenant: TenantId, less: usize, more: usize) {
        if (less, more) != (0, 0) {
            self.change(tenant, |holds| holds.waiting = holds.waiting + more - less);
        }
    }

    fn change(&mut self, tenant: TenantId, change: impl FnOnce(&mut TenantHolds)) {
        let holds = self.held.entry(tenant).or_default();
        change(holds);
        if *holds == TenantHolds::default() {
            self.held.remove(&tenant);
        }
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = (TenantId, TenantHolds)> {
        self.held.iter().map(|(tenant, holds)| (*tenant, *holds))
    }
}

impl<R: Resident> RegistryState<R> {
    /// Notes what a tenant has more or less of. The queues learn how many of it may come now.
    pub(super) fn hold(&mut self, tenant: TenantId, change: impl FnOnce(&mut TenantHolds)) {
        self.holdings.change(tenant, change);
        self.set_rooms(tenant);
        // What it has just got may be what its builds will want: then what is parked of it may be idle.
        if !self.parking.is_empty() && self.is_held_up(tenant) {
            self.reclaim_of(tenant);
        }
    }

    /// Callers of it ceased to wait, and others began to.
    pub(super) fn wait(&mut self, tenant: TenantId, less: usize, more: usize) {
        self.holdings.wait(tenant, less, more);
    }

    pub(super) fn set_rooms(&mut self, tenant: TenantId) {
        if self.quotas.any() {
            let (builds, permits) = (self.build_room(tenant), self.permit_room(tenant));
            self.build_queue.set_room(tenant, builds);
            self.permit_waiters.set_room(tenant, permits);
        }
    }

    /// How many more instances it may have.
    pub(super) fn permit_room(&self, tenant: TenantId) -> usize {
        if !self.quotas.any() {
            return usize::MAX;
        }
        let quota = self.quotas.of(tenant);
        if self.is_over_memory(tenant, quota) {
            return 0;
        }
        quota.instances.saturating_sub(self.holdings.of(tenant).instances)
    }

    /// How many more builds of it may have a place.
    pub(super) fn build_room(&self, tenant: TenantId) -> usize {
        if !self.quotas.any() {
            return usize::MAX;
        }
        let (quota, holds) = (self.quotas.of(tenant), self.holdings.of(tenant));
        let places = quota.runtimes.saturating_sub(holds.runtimes);
        places.min(quota.compiling.saturating_sub(holds.compiling)).min(self.permit_room(tenant))
    }

    pub(super) fn is_over_memory(&self, tenant: TenantId, quota: Quota) -> bool {
        quota.memory < u64::MAX && self.memory.held_by(tenant) >= quota.memory
    }

    /// Whether its bounds were lowered, or its guests have grown, below and beyond what it has.
    pub(super) fn has_too_much(&self, tenant: TenantId) -> bool {
        self.quotas.any()
            && (self.holdings.of(tenant).instances > self.quotas.of(tenant).instances
                || self.own_room(tenant).is_some_and(|room| room == 0))
    }

    /// Whether so many callers of it wait as may.
    pub(super) fn may_not_wait(&self, tenant: TenantId) -> bool {
        self.quotas.any() && self.holdings.of(tenant).waiting >= self.quotas.of(tenant).waiting
    }

    /// The refusal of one caller too many.
    pub(super) fn too_many_wait(&self, tenant: TenantId) -> Error {
        Bound::MaxWaiting.exceeded(self.quotas.of(tenant).waiting as u64)
    }

    /// Whether callers of it wait that only what it has itself can help.
    pub(super) fn is_held_up(&self, tenant: TenantId) -> bool {
        self.permit_waiters.held_up().contains(&tenant) || self.build_queue.held_up().contains(&tenant)
    }

    /// Whether builds of it wait that only what it has itself can help.
    pub(in crate::registry) fn holds_up_builds(&self, tenant: TenantId) -> bool {
        self.build_queue.held_up().contains(&tenant)
    }

    /// Tenants of which that is true.
    pub(super) fn held_up(&self) -> Vec<TenantId> {
        let (permits, builds) = (self.permit_waiters.held_up(), self.build_queue.held_up());
        if permits.is_empty() && builds.is_empty() { Vec::new() } else { permits.union(builds).copied().collect() }
    }

    /// The bound that keeps callers of this revision waiting, if it is one of their tenant's.
    pub(in crate::registry) fn bound_of(&self, revision: RevisionId) -> Option<Error> {
        let queued = self.builds.get(&revision).is_some_and(|build| matches!(build.phase, Phase::Queued { .. }));
        let waits = queued || self.live.peek(&revision).is_some_and(|live| !live.waiters.is_empty());
        waits.then(|| self.missing(revision.tenant, queued)).flatten()
    }

    /// The bound that keeps an instance from this tenant, or a place too.
    pub(super) fn missing(&self, tenant: TenantId, place: bool) -> Option<Error> {
        let (quota, holds) = (self.quotas.of(tenant), self.holdings.of(tenant));
        if !self.quotas.any() {
            None
        } else if place && holds.compiling >= quota.compiling {
            Some(Bound::BuildConcurrency.exceeded(quota.compiling as u64))
        } else if place && holds.runtimes >= quota.runtimes {
            Some(Bound::Runtimes.exceeded(quota.runtimes as u64))
        } else if holds.instances >= quota.instances {
            Some(Bound::Instances.exceeded(quota.instances as u64))
        } else if self.is_over_memory(tenant, quota) {
            Some(Bound::Memory.exceeded(quota.memory))
        } else {
            None
        }
    }

    /// What a tenant has.
    pub(in crate::registry) fn held_by(&self, tenant: TenantId) -> TenantHolds {
        self.holdings.of(tenant)
    }

    /// The tenants may have this from now on. What is unused and too much is closed.
    pub(in crate::registry) fn set_quotas(&mut self, quotas: Quotas, weights: Weights, now: Instant) {
        self.quotas = quotas;
        self.build_queue.set_weights(weights.clone());
        self.permit_waiters.set_weights(weights.clone());
        self.weights = weights;
        let waiting = self.builds.keys().chain(self.live.iter().map(|(revision, _)| revision));
        for tenant in waiting.map(|revision| revision.tenant).collect::<BTreeSet<_>>() {
            let (builds, permits) = (self.build_room(tenant), self.permit_room(tenant));
            self.build_queue.set_room(tenant, builds);
            self.permit_waiters.set_room(tenant, permits);
            if self.own_instances_over(tenant) > 0 {
                self.reclaim_of(tenant);
            }
            self.trim(tenant, 0, now);
        }
        self.weigh(now);
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn a_tenants_number_is_its_hash_and_of_other_keys_each_byte_counts() {
        let hasher = BuildHasherDefault::<AsItIs>::default();
        assert_eq!(hasher.hash_one(TenantId(7)), 7);
        let written = |bytes: &[u8]| {
            let mut hasher = AsItIs::default();
            hasher.write(bytes);
            hasher.finish()
        };
        assert_eq!(written(&[1, 2]), 0x102);
        assert_eq!(written(&[1, 0, 0, 0, 0, 0, 0, 0, 3]), 2);
    }
}
