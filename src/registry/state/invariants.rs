//! What holds whenever a method has returned. Tests check it after every step.

use std::collections::HashMap;

use super::{
    super::Resident,
    RegistryState, TenantHolds,
    entries::{Coming, Phase},
};
use crate::turns::TenantId;

impl<R: Resident> RegistryState<R> {
    pub(in crate::registry) fn assert_invariants(&self) {
        let (live, draining) = (|| self.live.iter().map(|(_, live)| live), || self.draining.values());
        let placed = self.builds.values().filter(|build| matches!(build.phase, Phase::Placed { .. })).count();
        let (serving, closing) = (self.live.len(), self.draining.len());
        let permits: usize = live().map(|live| live.instances).sum();
        let reaping = live().map(|live| live.reaping).chain(draining().map(|draining| draining.reaping));
        // Of a build that failed, permit and place may be gone before it says so.
        let most = permits + draining().map(|draining| draining.instances).sum::<usize>() + placed;
        assert!((permits..=most).contains(&self.instances), "permits");
        assert!((serving + closing..=serving + closing + placed).contains(&self.places.len()), "places");
        assert!(self.places.len() <= self.limits.capacity && self.instances <= self.limits.max_instances, "the bounds");
        assert_eq!(self.reaping, reaping.sum::<usize>(), "permits on their way");
        assert_eq!(self.idle, live().map(|live| live.idle).sum::<usize>(), "idle instances");
        assert_eq!(self.closing, draining().filter(|draining| draining.is_closing()).count(), "places on their way");
        assert_eq!(self.waiting_instance, live().map(|live| live.waiters.len()).sum::<usize>(), "callers that wait");
        let for_builds = self.waiting_capacity + self.waiting_fetch + self.waiting_build;
        assert_eq!(for_builds, self.builds.values().map(|build| build.waiters.len()).sum::<usize>(), "for builds");
        for (revision, live) in &self.live {
            assert!(live.idle + live.reaping <= live.instances, "an instance that is idle twice");
            let held_back = |age| live.holds_back(age, self.eldest_build(revision.tenant));
            let first = live.waiters.front().filter(|_| live.idle > 0);
            assert!(first.is_none_or(|waiter| held_back(waiter.age)), "a caller waits beside an idle instance");
        }
        // What a reclaim brings back is not known yet, and the decision is made again when it is.
        if self.reclaiming == 0 {
            // A victim whose spare is still being made gives its place back, if not soon.
            let later = draining().filter(|draining| draining.coming == Coming::Later && draining.leases == 0).count();
            let (no_permit, no_place) = (self.permits_short() > 0, self.places_short() > later);
            assert!(!no_permit && !no_place || self.parking.is_empty(), "parked while somebody waits");
            assert!(!no_permit || self.idle == 0, "a caller waits for a permit that an idle instance has");
            let (coming, newcomers) = self.newcomers(None);
            let victim = newcomers.first().and_then(|newcomer| self.victim(*newcomer, &coming, None));
            assert!(!no_place || victim.is_none(), "a build waits for a place that an unused runtime has");
        }
        self.assert_holdings();
        for (_, failure) in &self.failures {
            assert!(failure.error.comes_again(), "a passing failure is remembered");
        }
    }

    fn assert_holdings(&self) {
        let mut waiting: HashMap<TenantId, usize> = HashMap::new();
        let unplaced = self.builds.iter().filter(|(_, build)| !matches!(build.phase, Phase::Placed { .. }));
        let callers = unplaced.map(|(revision, build)| (revision, build.waiters.len()));
        for (revision, callers) in
            callers.chain(self.live.iter().map(|(revision, live)| (revision, live.waiters.len())))
        {
            *waiting.entry(revision.tenant).or_default() += callers;
        }
        let live = self.holdings.all().map(|(tenant, _)| self.holdings.live_of(tenant).len()).sum::<usize>();
        assert_eq!(live, self.live.len(), "tenants' live runtimes");
        let sum = |of: fn(&TenantHolds) -> usize| self.holdings.all().map(|(_, holds)| of(&holds)).sum::<usize>();
        assert_eq!(sum(|holds| holds.runtimes), self.places.len(), "tenants' runtimes");
        assert_eq!(sum(|holds| holds.instances), self.instances, "tenants' instances");
        assert_eq!(sum(|holds| holds.compiling), self.compiling, "tenants' compiles");
        assert_eq!(sum(|holds| holds.waiting), waiting.values().sum::<usize>(), "callers that wait");
        for (tenant, holds) in self.holdings.all() {
            assert_eq!(holds.waiting, waiting.get(&tenant).copied().unwrap_or(0), "a tenant's callers that wait");
            self.assert_within(tenant, self.reclaiming == 0);
            let rooms = (self.build_queue.room_of(tenant), self.permit_waiters.room_of(tenant));
            let (builds, permits) = (self.build_room(tenant), self.permit_room(tenant));
            assert!(rooms.0.is_none_or(|room| room == builds), "builds that may come");
            assert!(rooms.1.is_none_or(|room| room == permits), "callers that may come");
        }
    }
}
