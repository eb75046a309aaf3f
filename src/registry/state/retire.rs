//! Taking runtimes and builds out of service.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    super::{Generation, Refused, Resident},
    Effect, Effects, State,
    entries::{Build, Draining, Phase, refuse},
};
use crate::{error::Error, metrics::CloseReason};

impl<R: Resident> State<R> {
    /// Takes a generation out, whatever it is doing: a live runtime drains, a build's outcome is not wanted. Those who
    /// wait get `refused`.
    pub(in crate::registry) fn retire(
        &mut self,
        generation: Generation,
        reason: CloseReason,
        grace: Option<Duration>,
        refused: &Refused,
        now: Instant,
        effects: &mut Effects<R>,
    ) {
        self.hasten(|draining| draining == generation, grace, effects);
        self.retire_live(generation, reason, grace, refused, now, effects);
        if let Some(build) = self.builds.remove(&generation) {
            self.drop_build(generation, build, refused, effects);
        }
        self.pump(now, effects);
    }

    /// What drains already under such a generation drains with this grace, if that ends sooner.
    pub(super) fn hasten(&self, which: impl Fn(Generation) -> bool, grace: Option<Duration>, effects: &mut Effects<R>) {
        let Some(grace) = grace else { return };
        let draining = self.draining.values().filter(|draining| which(draining.generation));
        let leased = draining.filter_map(|draining| draining.resident.clone());
        effects.extend(leased.map(|resident| Effect::Hasten { resident, grace }));
    }

    /// A build that will not be published: those who wait are refused, and its place, if it still has one, drains.
    pub(super) fn drop_build(
        &mut self,
        generation: Generation,
        build: Build<R>,
        refused: &Refused,
        effects: &mut Effects<R>,
    ) {
        match build.phase {
            Phase::Fetching => self.waiting_fetch -= build.waiters.len(),
            Phase::Queued { age, .. } => {
                self.build_queue.remove(&age);
                self.waiting_capacity -= build.waiters.len();
            }
            Phase::Placed { place, .. } => {
                self.waiting_build -= build.waiters.len();
                // It may still compile, or initialise, for nobody knows how long: its place is not counted on.
                if self.places.contains(&place) {
                    let draining = Draining {
                        generation,
                        resident: None,
                        leases: 0,
                        instances: 1,
                        idle: 0,
                        reaping: 0,
                        soon: false,
                    };
                    self.draining.insert(place, draining);
                }
            }
        }
        refuse(build.waiters, refused, effects);
    }

    pub(super) fn retire_live(
        &mut self,
        generation: Generation,
        reason: CloseReason,
        grace: Option<Duration>,
        refused: &Refused,
        now: Instant,
        effects: &mut Effects<R>,
    ) {
        self.recall(generation);
        let Some(live) = self.live.pop(&generation) else { return };
        self.idle -= live.idle;
        self.waiting_instance -= live.waiters.len();
        if let Some(age) = live.contending {
            self.contenders.remove(&age);
        }
        if live.claimed {
            self.claimed.retain(|claimed| *claimed != generation);
        }
        let leased = live.leases > 0;
        let soon = !leased && live.instances <= live.idle;
        self.closing += usize::from(soon);
        let resident = leased.then(|| live.resident.clone());
        let draining = Draining {
            generation,
            resident,
            leases: live.leases,
            instances: live.instances,
            idle: live.idle,
            reaping: live.reaping,
            soon,
        };
        self.draining.insert(live.place, draining);
        let evicted = matches!(reason, CloseReason::Capacity | CloseReason::Idle);
        let unused = evicted.then(|| now - live.last_used);
        effects.push(Effect::Retire { resident: live.resident, reason, unused, idle: live.idle, leased, grace });
        refuse(live.waiters, refused, effects);
    }

    /// Evicts what has not been used for longer than `ttl(generation)`.
    pub(in crate::registry) fn sweep(
        &mut self,
        now: Instant,
        ttl: impl Fn(Generation) -> Duration,
        effects: &mut Effects<R>,
    ) {
        self.recall_all();
        let expired: Vec<Generation> = self
            .live
            .iter()
            .filter(|(generation, live)| live.evictable(None) && now - live.last_used >= ttl(**generation))
            .map(|(generation, _)| *generation)
            .collect();
        for generation in expired {
            self.retire_live(generation, CloseReason::Idle, None, &Refused::Retry, now, effects);
        }
    }

    /// Refuses everything from now on and retires all there is.
    pub(in crate::registry) fn shut_down(&mut self, grace: Option<Duration>, now: Instant, effects: &mut Effects<R>) {
        self.shut_down = true;
        self.hasten(|_| true, grace, effects);
        let live = self.live.iter().map(|(generation, _)| *generation);
        let all: Vec<Generation> = live.chain(self.builds.keys().copied()).collect();
        for generation in all {
            let refused = Refused::Error(Error::ShuttingDown);
            self.retire(generation, CloseReason::Shutdown, grace, &refused, now, effects);
        }
        self.failures.clear();
    }
}
