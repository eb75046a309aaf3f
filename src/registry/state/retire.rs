//! Taking runtimes and builds out of service.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    super::{CloseReason, Refused, Resident, RevisionId},
    Effect, RegistryState,
    entries::{Build, Coming, Draining, Live, Phase, refuse},
};
use crate::error::Error;

/// How long the engine's objects of a runtime may take to go: long for unmapping code, which takes milliseconds.
const CLOSES_WITHIN: Duration = Duration::from_secs(2);

impl<R: Resident> RegistryState<R> {
    /// Takes a revision out, whatever it is doing: a live runtime drains, a build's outcome is not wanted. Those who
    /// wait get `refused`.
    pub(in crate::registry) fn retire(
        &mut self,
        revision: RevisionId,
        reason: CloseReason,
        grace: Option<Duration>,
        refused: &Refused,
        now: Instant,
    ) {
        self.shorten_grace(|draining| draining == revision, grace);
        self.retire_all_of(revision, reason, grace, refused, now);
        self.dispatch(now);
    }

    fn retire_all_of(
        &mut self,
        revision: RevisionId,
        reason: CloseReason,
        grace: Option<Duration>,
        refused: &Refused,
        now: Instant,
    ) {
        self.retire_live(revision, reason, grace, refused, now);
        if let Some(build) = self.builds.remove(&revision) {
            self.drop_build(revision, build, refused);
        }
        self.failures.pop(&revision);
    }

    /// What drains already under such a revision drains with this grace, if that ends sooner.
    pub(super) fn shorten_grace(&mut self, which: impl Fn(RevisionId) -> bool, grace: Option<Duration>) {
        let Some(grace) = grace else { return };
        let draining = self.draining.values().filter(|draining| which(draining.revision));
        let leased = draining.filter_map(|draining| draining.resident.clone());
        self.effects.extend(leased.map(|resident| Effect::ShortenGrace { resident, grace }));
    }

    /// A build that will not be published: those who wait are refused, and its place, if it still has one, drains.
    pub(super) fn drop_build(&mut self, revision: RevisionId, build: Build<R>, refused: &Refused) {
        match build.phase {
            Phase::Fetching => {
                self.waiting_fetch -= build.waiters.len();
                self.wait(revision.tenant, build.waiters.len(), 0);
            }
            Phase::Queued { age, .. } => {
                self.build_queue.leave(revision.tenant, age);
                self.waiting_capacity -= build.waiters.len();
                self.wait(revision.tenant, build.waiters.len(), 0);
            }
            Phase::Placed { place, .. } => {
                self.waiting_build -= build.waiters.len();
                self.effects.push(Effect::Left);
                // It may still compile, or initialise, for nobody knows how long: its place is not counted on.
                if self.places.contains(place) {
                    let draining = Draining {
                        revision,
                        resident: None,
                        leases: 0,
                        instances: 1,
                        reaping: 0,
                        frees: 0,
                        frees_in_full: 0,
                        coming: Coming::Later,
                    };
                    self.draining.insert(place, draining);
                }
            }
        }
        self.effects.extend(refuse(build.waiters, refused));
    }

    pub(super) fn retire_live(
        &mut self,
        revision: RevisionId,
        reason: CloseReason,
        grace: Option<Duration>,
        refused: &Refused,
        now: Instant,
    ) {
        self.reclaim(revision);
        let Some(live) = self.live.pop(&revision) else { return };
        self.holdings.retired(revision);
        self.idle -= live.idle;
        // Its idle instances are dropped first, whether it drains or not.
        self.reaping += live.idle;
        let reaping = live.reaping + live.idle;
        self.waiting_instance -= live.waiters.len();
        self.wait(revision.tenant, live.waiters.len(), 0);
        if let Some(age) = live.awaits_permit {
            self.permit_waiters.leave(revision.tenant, age);
        }
        if live.reserved {
            self.reserved.retain(|(reserved, _)| *reserved != revision);
        }
        let leased = live.leases > 0;
        let resident = leased.then(|| live.resident.clone());
        let Live { leases, instances, .. } = live;
        let weight = live.resident.weight();
        let mut draining = Draining {
            revision,
            resident,
            leases,
            instances,
            reaping,
            frees: weight.total(),
            frees_in_full: weight.in_full(),
            coming: Coming::Later,
        };
        self.closing += usize::from(draining.ends_soon(now));
        self.draining.insert(live.place, draining);
        let unused = reason.is_eviction().then(|| now - live.last_used);
        if reason.is_eviction() {
            self.uses.evicted(revision, live.often);
            self.places.give_up(live.place);
        }
        self.effects.push(Effect::Retire { resident: live.resident, reason, unused, idle: live.idle, leased, grace });
        self.effects.extend(refuse(live.waiters, refused));
    }

    /// Stops counting on places whose close is overdue: an engine's drop hangs. Whoever waits for one of them gets another,
    /// if a runtime can be evicted, and whoever comes now is told in time.
    pub(in crate::registry) fn give_up_overdue(&mut self, now: Instant) {
        let overdue = self
            .draining
            .values_mut()
            .map(|draining| usize::from(draining.is_overdue(now, CLOSES_WITHIN)))
            .sum::<usize>();
        if overdue != 0 {
            self.closing -= overdue;
            self.dispatch(now);
        }
    }

    /// Evicts what has not been used for longer than `ttl(revision)`.
    pub(in crate::registry) fn sweep(&mut self, now: Instant, ttl: impl Fn(RevisionId) -> Duration) {
        let forgotten = self.failures.iter().filter(|(_, failure)| now >= failure.until);
        for revision in forgotten.map(|(revision, _)| *revision).collect::<Vec<_>>() {
            self.failures.pop(&revision);
        }
        let expired: Vec<RevisionId> = self
            .live
            .iter()
            .filter(|(revision, live)| live.evictable(None) && now - live.last_used >= ttl(**revision))
            .map(|(revision, _)| *revision)
            .collect();
        for revision in expired {
            self.retire_live(revision, CloseReason::Idle, None, &Refused::Retry, now);
        }
    }

    /// Refuses everything from now on and retires all there is.
    pub(in crate::registry) fn shut_down(&mut self, grace: Option<Duration>, now: Instant) {
        self.shut_down = true;
        // Whoever waits for room gets none.
        self.room_queue.clear();
        self.shorten_grace(|_| true, grace);
        let live = self.live.iter().map(|(revision, _)| *revision);
        let all: Vec<RevisionId> = live.chain(self.builds.keys().copied()).collect();
        for revision in all {
            let refused = Refused::Error(Error::ShuttingDown);
            self.retire_all_of(revision, CloseReason::Shutdown, grace, &refused, now);
        }
        self.failures.clear();
        self.dispatch(now);
    }
}
