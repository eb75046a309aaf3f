//! What a tenant at a bound lacks, it gets from its own: its idle instances are dropped for its callers, and its unused
//! runtimes closed for its builds, whatever is free elsewhere.

use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;

use super::{
    super::{CloseReason, Refused, Resident, RevisionId},
    Age, RegistryState,
    entries::{Build, Coming, Draining, Live, Phase},
};
use crate::turns::TenantId;

impl<R: Resident> RegistryState<R> {
    /// Reclaims what is parked of tenants that are held up: it may be idle.
    pub(super) fn reclaim_held_up(&mut self) {
        if self.parking.is_empty() {
            return;
        }
        for tenant in self.held_up() {
            self.reclaim_of(tenant);
        }
    }

    pub(super) fn reclaim_of(&mut self, tenant: TenantId) {
        let own: Vec<_> = self.parking.iter().filter(|revision| revision.tenant == tenant).copied().collect();
        for revision in own {
            self.reclaim(revision);
        }
    }

    /// Whether its tenant's bounds leave all its builds that have no place yet, that of a caller of this revision included,
    /// what they need, without a lease that has to end.
    pub(super) fn own_in_sight(&self, revision: RevisionId) -> bool {
        if !self.quotas.any() {
            return true;
        }
        let tenant = revision.tenant;
        let (quota, holds, eldest) = (self.quotas.of(tenant), self.holdings.of(tenant), self.eldest_build(tenant));
        let unplaced = |(id, build): &(&RevisionId, &Build<R>)| {
            id.tenant == tenant && !matches!(build.phase, Phase::Placed { .. })
        };
        let wanted = self.builds.iter().filter(unplaced).count() + usize::from(!self.builds.contains_key(&revision));
        let own = || self.own(tenant).map(|(_, live)| live);
        let evictable = own().filter(|live| live.evictable(eldest)).count() + self.own_closing(tenant);
        let places = quota.runtimes.saturating_sub(holds.runtimes).saturating_add(evictable);
        let permits = self.permit_room(tenant).saturating_add(own().map(|live| live.idle).sum());
        wanted <= places.min(permits).min(quota.compiling.saturating_sub(holds.compiling))
    }

    /// Drops idle instances of tenants that are held up for instances.
    pub(super) fn reap_own(&mut self) {
        if self.idle == 0 {
            return;
        }
        let held_up = self.held_up().into_iter();
        self.reap_of(held_up.map(|tenant| (tenant, self.own_permits_short(tenant))).collect());
    }

    /// Drops so many idle instances of each of these tenants, in one look at all runtimes.
    fn reap_of(&mut self, mut short: HashMap<TenantId, usize>) {
        short.retain(|_, short| *short != 0);
        if short.is_empty() {
            return;
        }
        let mut idle = Vec::new();
        for (revision, live) in self.live.iter().rev() {
            if let Some(short) = short.get_mut(&revision.tenant) {
                let reaped = live.idle.min(*short);
                *short -= reaped;
                idle.resize(idle.len() + reaped, *revision);
            }
        }
        for revision in idle {
            self.reap_one(revision);
        }
    }

    /// How many instances it has above a bound that was lowered, but for those that are being dropped.
    pub(super) fn own_instances_over(&self, tenant: TenantId) -> usize {
        if !self.quotas.any() {
            return 0;
        }
        let over = self.holdings.of(tenant).instances.saturating_sub(self.quotas.of(tenant).instances);
        if over == 0 { 0 } else { over.saturating_sub(self.own_reaping(tenant)) }
    }

    /// How many permits its callers and builds want that its own bounds keep from them, and nothing on its way will give.
    pub(super) fn own_permits_short(&self, tenant: TenantId) -> usize {
        let (quota, holds) = (self.quotas.of(tenant), self.holdings.of(tenant));
        let builds = self.build_queue.waiting_of(tenant).min(self.build_room_but_for_permits(tenant));
        let wanted = self.permit_waiters.waiting_of(tenant) + builds;
        let wanted = if self.is_over_memory(tenant, quota) {
            // How many bytes come back is seen when they are.
            wanted.min(1)
        } else {
            wanted.saturating_sub(quota.instances.saturating_sub(holds.instances))
        };
        if wanted == 0 { 0 } else { wanted.saturating_sub(self.own_reaping(tenant)) }
    }

    fn own_reaping(&self, tenant: TenantId) -> usize {
        if self.reaping == 0 {
            return 0;
        }
        let live = self.own(tenant).map(|(_, live)| live.reaping);
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
        let could = quota.compiling.saturating_sub(holds.compiling).min(slots);
        let could = could.min(self.build_queue.waiting_of(tenant));
        if holds.runtimes + could <= quota.runtimes {
            return 0;
        }
        let permits = || {
            let idle = self.own(tenant).map(|(_, live)| live.idle + live.reaping).sum();
            quota.instances.saturating_sub(holds.instances).saturating_add(idle)
        };
        let wanted = could.min(permits());
        (holds.runtimes + wanted).saturating_sub(quota.runtimes.saturating_add(self.own_closing(tenant)))
    }

    /// Places of it that come free without anybody's doing.
    fn own_closing(&self, tenant: TenantId) -> usize {
        let own = self.draining.iter().filter(|(_, draining)| draining.revision.tenant == tenant);
        // What was evicted while a spare of it was being made comes a little later.
        let later = |place, draining: &Draining<R>| draining.coming == Coming::Later && self.places.is_given_up(place);
        own.filter(|(place, draining)| draining.is_closing() || later(**place, draining)).count()
    }

    /// The runtime that goes for a newcomer of a tenant that has all its own.
    pub(super) fn own_victim(&self, tenant: TenantId) -> Option<RevisionId> {
        let eldest = self.eldest_build(tenant);
        self.first_of_own(tenant, |live| live.evictable(eldest))
    }

    /// The leased one that is reserved for it.
    pub(super) fn own_leased_victim(&self, tenant: TenantId) -> Option<RevisionId> {
        self.first_of_own(tenant, |live| !live.reserved && live.leases > 0)
    }

    fn first_of_own(&self, tenant: TenantId, can_go: impl Fn(&Live<R>) -> bool) -> Option<RevisionId> {
        let own = self.least_recently_used(tenant).into_iter().filter(|(_, live)| can_go(live));
        self.uses.victim(own.map(|(revision, live)| (revision, live.often)))
    }

    /// Its live runtimes, the least recently used first.
    fn least_recently_used(&self, tenant: TenantId) -> Vec<(RevisionId, &Live<R>)> {
        let mut own: Vec<_> = self.own(tenant).collect();
        own.sort_by_key(|(_, live)| live.last_used);
        if own.windows(2).any(|two| two[0].1.last_used == two[1].1.last_used) {
            // Only the list tells them apart.
            let all = self.live.iter().rev().map(|(revision, live)| (*revision, live));
            own = all.filter(|(revision, _)| revision.tenant == tenant).collect();
        }
        own
    }

    /// Its live runtimes.
    fn own(&self, tenant: TenantId) -> impl Iterator<Item = (RevisionId, &Live<R>)> {
        let own = self.holdings.live_of(tenant);
        own.iter().filter_map(|revision| Some((*revision, self.live.peek(revision)?)))
    }

    /// Drops what this tenant does not use, and holds above its bounds with `bytes` more: idle instances first, then
    /// runtimes, and those for a build only if that is enough.
    pub(super) fn trim(&mut self, tenant: TenantId, bytes: u64, now: Instant) {
        let (quota, holds) = (self.quotas.of(tenant), self.holdings.of(tenant));
        let runtimes = holds.runtimes.saturating_sub(quota.runtimes);
        for _ in 0..runtimes.saturating_sub(self.own_closing(tenant)) {
            let Some(victim) = self.own_victim(tenant) else { break };
            self.retire_live(victim, CloseReason::Capacity, None, &Refused::Retry, now);
        }
        self.reap_of(HashMap::from([(tenant, self.own_instances_over(tenant))]));
        let held = self.memory.held_by(tenant).saturating_sub(self.own_room_coming(tenant));
        let mut short = held.saturating_add(bytes).saturating_sub(quota.memory);
        if short == 0 {
            return;
        }
        let own: Vec<_> = self.least_recently_used(tenant).into_iter().map(|(revision, _)| revision).collect();
        if own.iter().any(|revision| self.parking.contains(revision)) {
            // What is parked may be idle. The next look knows.
            return self.reclaim_of(tenant);
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
        // Of one that has no place any more, memory may have come back later than the place.
        for tenant in self.places.tenants().into_iter().chain(self.held_up()).collect::<BTreeSet<_>>() {
            self.set_rooms(tenant);
            let (quota, holds) = (self.quotas.of(tenant), self.holdings.of(tenant));
            let more = holds.runtimes > quota.runtimes || holds.instances > quota.instances;
            if more || self.is_over_memory(tenant, quota) {
                // One that has just as much as it may gets nothing more either.
                self.trim(tenant, self.is_held_up(tenant).into(), now);
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
        let reaping = self.own(tenant).filter(|(_, live)| live.reaping != 0);
        closing.chain(reaping.map(|(_, live)| live.each() * live.reaping as u64)).sum()
    }

    /// A tenant gets no more than it may, and waits for nothing that its own idle runtimes and instances could give.
    #[cfg(test)]
    pub(super) fn assert_within(&self, tenant: TenantId, is_settled: bool) {
        if !self.quotas.any() || !is_settled || !self.is_held_up(tenant) {
            return;
        }
        let own = || self.own(tenant).map(|(_, live)| live);
        assert!(!self.parking.iter().any(|revision| revision.tenant == tenant), "parked while its tenant is held up");
        let idle: usize = own().map(|live| live.idle).sum();
        assert!(self.own_permits_short(tenant) == 0 || idle == 0, "a tenant waits for a permit that it has");
        let short = self.build_queue.waiting_of(tenant) > 0 && self.own_places_short(tenant) > 0;
        assert!(!short || self.own_victim(tenant).is_none(), "a tenant waits for a place that it does not use");
    }
}
