//! Builds: from the fetched plugin to its place, and how they end.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{
    super::{Refused, Resident, RevisionId},
    AdmissionSender, Age, BuildId, Effect, PlaceId, RegistryState,
    entries::{Failure, Live, Phase},
};
use crate::{clock, error::Error, turns::TenantId};

/// How many failed builds are remembered at most.
const MAX_FAILURES: usize = 1024;

impl<R: Resident> RegistryState<R> {
    /// Whether all builds that have no place yet would get one without waiting for a lease to end. For a caller of a
    /// revision: whether its build would, beside those that want a place of the pool.
    pub(super) fn places_in_sight(&self, of: Option<RevisionId>, now: Instant) -> bool {
        if of.is_some_and(|revision| !self.own_in_sight(revision)) {
            return false;
        }
        let unplaced = self.builds.iter().filter(|(_, build)| !matches!(build.phase, Phase::Placed { .. }));
        let newcomer = of.filter(|revision| !self.builds.contains_key(revision));
        let unplaced = unplaced.map(|(revision, _)| *revision).chain(newcomer);
        let mut unplaced: Vec<TenantId> = unplaced.map(|revision| revision.tenant).collect();
        if of.is_some() && self.quotas.any() {
            let mut rooms = HashMap::new();
            // The others wait for what their own tenant has.
            unplaced.retain(|tenant| {
                let room = rooms.entry(*tenant).or_insert_with(|| self.build_room(*tenant));
                let is_within = *room > 0;
                *room = room.saturating_sub(1);
                is_within
            });
        }
        let coming = self.limits.capacity - self.places.len() + self.closing;
        if coming >= unplaced.len() {
            return true;
        }
        let going = self.going(Some(now));
        let finds_none = unplaced.iter().filter(|tenant| !self.finds(**tenant, &going)).count();
        coming + going.all >= unplaced.len() && coming >= finds_none
    }

    /// Whether a caller of this cold revision would be one more for whom a place has to be found.
    pub(super) fn wants_place(&mut self, revision: RevisionId, now: Instant) -> bool {
        match self.builds.get(&revision) {
            Some(build) => matches!(build.phase, Phase::Fetching),
            None => self.remembered(revision, now).is_none(),
        }
    }

    /// How many builds could compile, or be the next to, if they had a place and a permit.
    pub(super) fn placeable(&self) -> usize {
        self.build_queue.len().min(self.limits.compiling.saturating_sub(self.compiling))
    }

    /// A build's compile has ended.
    pub(in crate::registry) fn compiled(&mut self, tenant: TenantId, now: Instant) {
        self.compiling -= 1;
        self.hold(tenant, |holds| holds.compiling -= 1);
        self.dispatch(now);
    }

    /// Of the build that is next to get what this tenant's runtimes have: who is younger does not keep it from its place.
    pub(super) fn eldest_build(&self, tenant: TenantId) -> Option<Age> {
        if self.build_queue.waiting_in_all() == 0 { None } else { self.eldest_builds()(tenant) }
    }

    /// The same for many tenants: whose build is next of all is looked up once.
    fn eldest_builds(&self) -> impl Fn(TenantId) -> Option<Age> {
        let first = self.build_queue.first().map(|(turn, _)| turn.age);
        move |tenant| first.into_iter().chain(self.eldest_own_build(tenant)).min()
    }

    /// Which runtimes could be closed for a build.
    pub(super) fn evictable(&self) -> impl Fn(&RevisionId, &Live<R>) -> bool {
        let eldest = self.eldest_builds();
        move |revision, live| live.evictable(eldest(revision.tenant))
    }

    pub(super) fn remembered(&mut self, revision: RevisionId, now: Instant) -> Option<Error> {
        let failure = self.failures.get(&revision)?;
        if now < failure.until {
            return Some(failure.error.clone());
        }
        self.failures.pop(&revision);
        None
    }

    /// Whether a caller's build has its place, so that it ends by itself within its own budget.
    pub(in crate::registry) fn is_placed(&self, revision: RevisionId) -> bool {
        self.builds.get(&revision).is_some_and(|build| matches!(build.phase, Phase::Placed { .. }))
    }

    /// A build's plugin is fetched, which took `fetched`, and now needs a place and a permit. False when nobody wants it any more.
    pub(in crate::registry) fn enqueue(
        &mut self,
        revision: RevisionId,
        id: BuildId,
        fetched: Duration,
        to: AdmissionSender<R>,
        now: Instant,
    ) -> bool {
        let Some(build) = self.builds.get_mut(&revision).filter(|build| build.id == id) else { return false };
        let Some(eldest) = build.waiters.front().map(|waiter| waiter.age) else {
            self.builds.remove(&revision);
            return false;
        };
        build.fetched = fetched;
        build.phase = Phase::Queued { age: eldest, to };
        self.waiting_fetch -= build.waiters.len();
        self.waiting_capacity += build.waiters.len();
        self.build_queue.enter(revision.tenant, self.build_room(revision.tenant), eldest, revision);
        self.dispatch(now);
        if self.holds_up_builds(revision.tenant) {
            // One that nobody waits for may give way.
            self.effects.push(Effect::Left);
        }
        true
    }

    /// A build succeeded: its runtime, with one idle instance, joins the registry and serves those who wait for it.
    ///
    /// # Errors
    ///
    /// Gives the runtime back when it was retired meanwhile.
    pub(in crate::registry) fn publish(
        &mut self,
        revision: RevisionId,
        place: PlaceId,
        resident: R,
        now: Instant,
    ) -> Result<(), R> {
        let build = match self.builds.remove(&revision) {
            Some(build) if matches!(build.phase, Phase::Placed { place: held, .. } if held == place) => build,
            other => {
                if let Some(build) = other {
                    self.builds.insert(revision, build);
                }
                return Err(resident);
            }
        };
        let Phase::Placed { since, .. } = build.phase else { return Err(resident) };
        self.waiting_build -= build.waiters.len();
        self.waiting_instance += build.waiters.len();
        self.wait(revision.tenant, 0, build.waiters.len());
        self.idle += 1;
        let live = Live {
            most: resident.max_instances(),
            resident,
            place,
            leases: 0,
            instances: 1,
            idle: 1,
            reaping: 0,
            sparing: false,
            waiters: build.waiters,
            streak: 0,
            reserved: false,
            last_round: None,
            awaits_permit: None,
            opened: now,
            last_used: now,
            uses: 0,
            often: self.uses.back(revision),
        };
        self.live.push(revision, live);
        self.holdings.published(revision);
        self.effects.push(Effect::Built);
        self.serve(revision, build.fetched + (now - since));
        self.dispatch(now);
        Ok(())
    }

    /// Takes out a build that nobody waits for. True: nobody can join it any more.
    pub(in crate::registry) fn renounce(&mut self, revision: RevisionId, id: BuildId, now: Instant) -> bool {
        match self.builds.get(&revision) {
            Some(build) if build.id == id && !build.waiters.is_empty() => return false,
            Some(build) if build.id == id => {}
            // It was taken out before, by a close.
            _ => return true,
        }
        if let Some(build) = self.builds.remove(&revision) {
            self.drop_build(revision, build, &Refused::Retry);
            self.dispatch(now);
        }
        true
    }

    /// A build failed. All who waited learn why; a failure that would come again is remembered.
    pub(in crate::registry) fn build_failed(&mut self, revision: RevisionId, id: BuildId, error: &Error, now: Instant) {
        if self.builds.get(&revision).is_none_or(|build| build.id != id) {
            return;
        }
        let Some(build) = self.builds.remove(&revision) else { return };
        self.drop_build(revision, build, &Refused::Error(error.clone()));
        if error.comes_again() && !self.limits.negative_ttl.is_zero() {
            let until = clock::later(now, self.limits.negative_ttl);
            self.failures.push(revision, Failure { error: error.briefly(), until });
            if self.failures.len() > MAX_FAILURES {
                self.failures.pop_lru();
            }
        }
        self.dispatch(now);
    }
}
