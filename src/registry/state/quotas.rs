//! What each tenant may have, and has.
//!
//! A tenant that is at a bound is held up in the queues, so that no other waits for it. What it lacks, it gets from its own: its
//! idle instances are dropped for its callers, and its unused runtimes closed for its builds, whatever is free elsewhere.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasherDefault, Hasher},
};

use tokio::time::Instant;

use super::{
    super::{CloseReason, Refused, Resident, RevisionId},
    Age, RegistryState,
    entries::Phase,
};
use crate::{
    config::TenantBounds,
    error::{Bound, Error},
    turns::TenantId,
};

/// What one tenant may have at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    runtimes: usize,
    instances: usize,
    memory: u64,
    compiling: usize,
    waiting: usize,
}

/// What all tenants may have.
#[derive(Debug, Clone, Default)]
pub(crate) struct Quotas {
    default: Quota,
    named: HashMap<TenantId, Quota>,
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
pub(super) struct Holdings(HashMap<TenantId, TenantHolds, BuildHasherDefault<AsItIs>>);

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
        let named = named.into_iter().map(|(tenant, bounds)| (tenant, bounds.into())).collect();
        Self { default: default.into(), named }
    }

    fn of(&self, tenant: TenantId) -> Quota {
        if self.named.is_empty() { self.default } else { *self.named.get(&tenant).unwrap_or(&self.default) }
    }

    /// Whether anything is bounded.
    fn any(&self) -> bool {
        self.default != Quota::default() || !self.named.is_empty()
    }
}

impl Holdings {
    pub(super) fn of(&self, tenant: TenantId) -> TenantHolds {
        self.0.get(&tenant).copied().unwrap_or_default()
    }

    /// Callers of it ceased to wait, and others began to.
    pub(super) fn wait(&mut self, tenant: TenantId, less: usize, more: usize) {
        if (less, more) != (0, 0) {
            self.change(tenant, |holds| holds.waiting = holds.waiting + more - less);
        }
    }

    fn change(&mut self, tenant: TenantId, change: impl FnOnce(&mut TenantHolds)) {
        let holds = self.0.entry(tenant).or_default();
        change(holds);
        if *holds == TenantHolds::default() {
            self.0.remove(&tenant);
        }
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = (TenantId, TenantHolds)> {
        self.0.iter().map(|(tenant, holds)| (*tenant, *holds))
    }
}

impl<R: Resident> RegistryState<R> {
    /// Notes what a tenant has more or less of. The queues learn how many of it may come now.
    pub(super) fn hold(&mut self, tenant: TenantId, change: impl FnOnce(&mut TenantHolds)) {
        self.holdings.change(tenant, change);
        self.set_rooms(tenant);
    }

    /// Callers of it ceased to wait, and others began to.
    pub(super) fn wait(&mut self, tenant: TenantId, less: usize, more: usize) {
        self.holdings.wait(tenant, less, more);
    }

    fn set_rooms(&mut self, tenant: TenantId) {
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

    fn is_over_memory(&self, tenant: TenantId, quota: Quota) -> bool {
        quota.memory < u64::MAX && self.memory.held_by(tenant) >= quota.memory
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

    /// Tenants of which that is true.
    fn held_up(&self) -> Vec<TenantId> {
        let (permits, builds) = (self.permit_waiters.held_up(), self.build_queue.held_up());
        if permits.is_empty() && builds.is_empty() { Vec::new() } else { permits.union(builds).copied().collect() }
    }

    /// The bound that keeps callers of this revision waiting, if it is one of their tenant's.
    pub(in crate::registry) fn bound_of(&self, revision: RevisionId) -> Option<Error> {
        let (quota, holds) = (self.quotas.of(revision.tenant), self.holdings.of(revision.tenant));
        let queued = self.builds.get(&revision).is_some_and(|build| matches!(build.phase, Phase::Queued { .. }));
        let waits = queued || self.live.peek(&revision).is_some_and(|live| !live.waiters.is_empty());
        if !waits || !self.quotas.any() {
            None
        } else if queued && holds.compiling >= quota.compiling {
            Some(Bound::BuildConcurrency.exceeded(quota.compiling as u64))
        } else if queued && holds.runtimes >= quota.runtimes {
            Some(Bound::Runtimes.exceeded(quota.runtimes as u64))
        } else if holds.instances >= quota.instances {
            Some(Bound::Instances.exceeded(quota.instances as u64))
        } else if self.is_over_memory(revision.tenant, quota) {
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
    pub(in crate::registry) fn set_quotas(&mut self, quotas: Quotas, now: Instant) {
        self.quotas = quotas;
        let waiting = self.builds.keys().chain(self.live.iter().map(|(revision, _)| revision));
        for tenant in waiting.map(|revision| revision.tenant).collect::<BTreeSet<_>>() {
            let (builds, permits) = (self.build_room(tenant), self.permit_room(tenant));
            self.build_queue.set_room(tenant, builds);
            self.permit_waiters.set_room(tenant, permits);
            self.trim(tenant, 0, now);
        }
        self.weigh(now);
    }

    /// Reclaims what is parked of tenants that are held up: it may be idle.
    pub(super) fn reclaim_held_up(&mut self) {
        if self.parking.is_empty() {
            return;
        }
        for tenant in self.held_up() {
            let own: Vec<_> = self.parking.iter().filter(|revision| revision.tenant == tenant).copied().collect();
            for revision in own {
                self.reclaim(revision);
            }
        }
    }

    /// Drops idle instances of tenants that are held up for instances.
    pub(super) fn reap_own(&mut self) {
        for tenant in self.held_up() {
            for _ in 0..self.own_permits_short(tenant) {
                let own = self.live.iter().rev().find(|(id, live)| id.tenant == tenant && live.idle > 0);
                let Some(own) = own.map(|(revision, _)| *revision) else { break };
                self.reap_one(own);
            }
        }
    }

    /// How many permits its callers and builds want that its own bounds keep from them, and nothing on its way will give.
    pub(super) fn own_permits_short(&self, tenant: TenantId) -> usize {
        let (quota, holds) = (self.quotas.of(tenant), self.holdings.of(tenant));
        let builds = self.build_queue.waiting_of(tenant).min(self.build_room_but_for_permits(tenant));
        let wanted = self.permit_waiters.waiting_of(tenant) + builds;
        let coming = self.own_reaping(tenant);
        if self.is_over_memory(tenant, quota) {
            // How many bytes come back is seen when they are.
            return wanted.min(1).saturating_sub(coming);
        }
        wanted.saturating_sub(quota.instances.saturating_sub(holds.instances) + coming)
    }

    fn own_reaping(&self, tenant: TenantId) -> usize {
        let live = self.live.iter().filter(|(revision, _)| revision.tenant == tenant).map(|(_, live)| live.reaping);
        let draining = self.draining.values().filter(|draining| draining.revision.tenant == tenant);
        live.chain(draining.map(|draining| draining.reaping)).sum()
    }

    fn build_room_but_for_permits(&self, tenant: TenantId) -> usize {
        let (quota, holds) = (self.quotas.of(tenant), self.holdings.of(tenant));
        let slots = self.limits.compiling.saturating_sub(self.compiling);
        let places = quota.runtimes.saturating_sub(holds.runtimes);
        places.min(quota.compiling.saturating_sub(holds.compiling)).min(slots)
    }

    /// Whether an idle instance is owed to elders of the same tenant, which is at its bound.
    pub(super) fn is_owed_to_own(&self, revision: RevisionId, age: Age) -> bool {
        let tenant = revision.tenant;
        if !self.is_held_up(tenant) || self.permit_room(tenant) > 0 {
            return false;
        }
        let callers = self.permit_waiters.elders_of(tenant, age).filter(|other| **other != revision).count();
        let builds = self.build_queue.elders_of(tenant, age).count().min(self.build_room_but_for_permits(tenant));
        callers + builds > self.own_reaping(tenant)
    }

    /// The oldest build of a tenant that has all its runtimes, and needs one of them.
    pub(super) fn eldest_own_build(&self, tenant: TenantId) -> Option<Age> {
        let is_full = || self.holdings.of(tenant).runtimes >= self.quotas.of(tenant).runtimes;
        let waits = self.build_queue.held_up().contains(&tenant) && is_full();
        waits.then(|| self.build_queue.eldest_of(tenant)).flatten()
    }

    /// Tenants that must give up runtimes of their own, each as often as it must.
    pub(super) fn own_newcomers(&self) -> Vec<TenantId> {
        let mut newcomers = Vec::new();
        for tenant in self.build_queue.held_up() {
            newcomers.resize(newcomers.len() + self.own_places_short(*tenant), *tenant);
        }
        newcomers
    }

    fn own_places_short(&self, tenant: TenantId) -> usize {
        let (quota, holds) = (self.quotas.of(tenant), self.holdings.of(tenant));
        if quota.runtimes == usize::MAX {
            return 0;
        }
        let slots = self.limits.compiling.saturating_sub(self.compiling);
        let own_idle =
            || self.live.iter().filter(|(id, _)| id.tenant == tenant).map(|(_, live)| live.idle + live.reaping);
        let permits = quota.instances.saturating_sub(holds.instances).saturating_add(own_idle().sum());
        let could = quota.compiling.saturating_sub(holds.compiling).min(slots).min(permits);
        let wanted = self.build_queue.waiting_of(tenant).min(could);
        (self.places.held(tenant) + wanted).saturating_sub(quota.runtimes)
    }

    /// The runtime that goes for a newcomer of a tenant that has all its own.
    pub(super) fn own_victim(&self, tenant: TenantId) -> Option<RevisionId> {
        let own = self.live.iter().rev().filter(|(revision, _)| revision.tenant == tenant);
        let eldest = self.eldest_build(tenant);
        self.uses.victim(own.filter(|(_, live)| live.evictable(eldest)).map(|(revision, live)| (*revision, live.often)))
    }

    /// The leased one that is reserved for it.
    pub(super) fn own_leased_victim(&self, tenant: TenantId) -> Option<RevisionId> {
        let own = self.live.iter().rev().filter(|(revision, _)| revision.tenant == tenant);
        let leased = own.filter(|(_, live)| !live.reserved && live.leases > 0);
        self.uses.victim(leased.map(|(revision, live)| (*revision, live.often)))
    }

    /// Drops what this tenant does not use, and holds above its bounds with `bytes` more: idle instances first, then
    /// runtimes, and those for a build only if that is enough.
    pub(super) fn trim(&mut self, tenant: TenantId, bytes: u64, now: Instant) {
        let quota = self.quotas.of(tenant);
        for _ in 0..self.places.held(tenant).saturating_sub(quota.runtimes) {
            let Some(victim) = self.own_victim(tenant) else { break };
            self.retire_live(victim, CloseReason::Capacity, None, &Refused::Retry, now);
        }
        let held = self.memory.held_by(tenant).saturating_sub(self.own_room_coming(tenant));
        let mut short = held.saturating_add(bytes).saturating_sub(quota.memory);
        if short == 0 {
            return;
        }
        let own: Vec<_> = self.live.iter().rev().filter(|(id, _)| id.tenant == tenant).map(|(id, _)| *id).collect();
        if own.iter().any(|revision| self.parking.contains(revision)) {
            // What is parked may be idle. The end of the reclaim leads to the next look.
            for revision in own {
                self.reclaim(revision);
            }
            return;
        }
        let eldest = self.eldest_build(tenant);
        for revision in &own {
            let Some((idle, each)) = self.live.peek(revision).map(|live| (live.idle, live.each())) else { continue };
            for _ in 0..if each > 0 { idle } else { 0 } {
                if short > 0 {
                    self.reap_one(*revision);
                    short = short.saturating_sub(each);
                }
            }
        }
        let evictable = own.iter().filter_map(|revision| {
            let live = self.live.peek(revision).filter(|live| live.evictable(eldest))?;
            Some((*revision, live.resident.weight().code_in_full))
        });
        let evictable: Vec<_> = evictable.filter(|(_, bytes)| *bytes > 0).collect();
        if evictable.iter().map(|(_, bytes)| bytes).sum::<u64>() < short {
            return;
        }
        for (revision, bytes) in evictable {
            if short > 0 {
                self.retire_live(revision, CloseReason::Memory, None, &Refused::Retry, now);
                short = short.saturating_sub(bytes);
            }
        }
    }

    /// Makes room for tenants that have grown beyond their bound, and lets those wait no longer that have shrunk.
    pub(super) fn trim_all(&mut self, now: Instant) {
        if !self.quotas.any() {
            return;
        }
        for tenant in self.places.tenants() {
            self.set_rooms(tenant);
            if self.memory.held_by(tenant) > self.quotas.of(tenant).memory {
                self.trim(tenant, 0, now);
            }
        }
    }

    /// How many bytes more this tenant may hold.
    pub(super) fn own_room(&self, tenant: TenantId) -> Option<u64> {
        let bound = self.quotas.any().then(|| self.quotas.of(tenant).memory).filter(|bound| *bound < u64::MAX)?;
        Some(bound.saturating_sub(self.memory.held_by(tenant)))
    }

    /// Its bound in bytes.
    pub(super) fn own_memory(&self, tenant: TenantId) -> u64 {
        self.quotas.of(tenant).memory
    }

    fn own_room_coming(&self, tenant: TenantId) -> u64 {
        let closing = self.draining.values().filter(|draining| draining.revision.tenant == tenant);
        let closing = closing.filter(|draining| draining.is_closing()).map(|draining| draining.frees_in_full);
        let reaping = self.live.iter().filter(|(id, live)| id.tenant == tenant && live.reaping > 0);
        closing.chain(reaping.map(|(_, live)| live.each() * live.reaping as u64)).sum()
    }

    /// A tenant gets no more than it may, and waits for nothing that its own idle runtimes and instances could give.
    #[cfg(test)]
    pub(super) fn assert_within(&self, tenant: TenantId, is_settled: bool) {
        if !self.quotas.any() || !is_settled || !self.is_held_up(tenant) {
            return;
        }
        let own = || self.live.iter().filter(|(revision, _)| revision.tenant == tenant).map(|(_, live)| live);
        assert!(!self.parking.iter().any(|revision| revision.tenant == tenant), "parked while its tenant is held up");
        let idle: usize = own().map(|live| live.idle).sum();
        assert!(self.own_permits_short(tenant) == 0 || idle == 0, "a tenant waits for a permit that it has");
        let short = self.own_places_short(tenant) > 0;
        assert!(!short || self.own_victim(tenant).is_none(), "a tenant waits for a place that it does not use");
    }
}
