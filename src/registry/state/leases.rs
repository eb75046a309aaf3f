//! Callers: how a lease is asked for, how a caller leaves, and how leases end.

use std::{collections::VecDeque, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use super::{
    super::{Resident, RevisionId},
    Age, BuildId, Effect, Grant, RegistryState, Requested, Returned,
    entries::{Build, Phase, Waiter, insert_by_age},
};
use crate::{error::Error, metrics::REUSE_BOUNDS};

impl<R: Resident> RegistryState<R> {
    /// A caller has come that wants `revision`: its age. [`request`](Self::request) follows, more than once if it has to ask
    /// again.
    pub(in crate::registry) fn looked_up(&mut self, revision: RevisionId) -> Age {
        self.reuse.looked_up(revision.number);
        self.age()
    }

    /// Nobody will want `revision` again.
    pub(in crate::registry) fn is_not_wanted_again(&mut self, revision: RevisionId) {
        self.reuse.forget(revision.number);
    }

    /// How far apart lookups of the same revision were, since this was last called.
    pub(in crate::registry) fn take_reuse(&mut self) -> [u64; REUSE_BOUNDS + 1] {
        self.reuse.take()
    }

    /// A caller wants a lease on `revision`, and has since it `began`. One that may not wait is refused instead.
    pub(in crate::registry) fn request(
        &mut self,
        revision: RevisionId,
        age: Age,
        began: Instant,
        now: Instant,
        may_wait: bool,
    ) -> Requested<R> {
        if self.shut_down {
            return Requested::Refused(Error::ShuttingDown);
        }
        // The list is in the order of last use, and callers look at the clock before they have the lock.
        let now = self.live.peek_mru().map_or(now, |(_, live)| live.last_used.max(now));
        // Whoever waits for a fetch waits for a place next, unless one is in sight.
        let waiting = self.waiting_capacity + self.waiting_instance + self.waiting_fetch;
        let most = self.limits.max_waiting;
        let full = waiting >= most && (self.waiting_instance >= most || !self.places_in_sight(None, now));
        let refused = |reason| Requested::Refused(Error::Saturated { reason });
        let tenant = revision.tenant;
        let eldest = self.eldest_build(tenant);
        // The caller's own thread had nothing parked; another thread's instance may be unused.
        if self.parking.contains(&revision) && self.live.peek(&revision).is_some_and(|live| live.idle == 0) {
            self.reclaim(revision);
            return Requested::Again;
        }
        let may_have = self.permit_room(tenant) > 0 && !self.permit_waiters.held_up().contains(&tenant);
        let may_not_wait = self.may_not_wait(tenant);
        if let Some(live) = self.live.get_mut(&revision) {
            let hot = live.called(now, self.limits.park_after, self.uses.period());
            if !live.holds_back(age, eldest) && live.waiters.is_empty() {
                if live.idle > 0 {
                    live.idle -= 1;
                    self.idle -= 1;
                    return Requested::Granted(Grant { hot, ..live.grant(revision, true, Duration::ZERO) });
                }
                // While a reclaim is under way, an instance may be about to come back.
                let at_once = !may_wait || full || may_not_wait;
                let free = self.instances < self.limits.max_instances && (self.reclaiming == 0 || at_once);
                // Permits go by age: while anyone contends for one, this caller queues behind.
                if free && self.permit_waiters.is_empty() && live.instances < live.most && may_have {
                    live.instances += 1;
                    self.instances += 1;
                    let grant = Grant { hot, ..live.grant(revision, false, Duration::ZERO) };
                    self.hold(tenant, |holds| holds.instances += 1);
                    // What its builds will want may be idle elsewhere.
                    if self.is_held_up(tenant) {
                        self.dispatch(now);
                    }
                    return Requested::Granted(grant);
                }
            }
            if may_not_wait {
                return Requested::Refused(self.too_many_wait(tenant));
            }
            if !may_wait {
                let own = self.missing(tenant, false).map(Requested::Refused);
                let reason = "a call from inside a host function does not wait, and no instance is free";
                return own.unwrap_or_else(|| refused(reason));
            }
            if full {
                return refused("no instance is free and the queue is full (pool.max_waiting)");
            }
            let (to, answer) = oneshot::channel();
            insert_by_age(&mut live.waiters, Waiter { age, since: began, to });
            self.waiting_instance += 1;
            self.wait(tenant, 0, 1);
            self.await_permit(revision);
            self.dispatch(now);
            return Requested::Queued(answer);
        }
        if !may_wait {
            return refused("a call from inside a host function does not wait, and its evaluator is cold");
        }
        self.request_build(revision, age, began, now, full)
    }

    /// The same of a cold revision. `full`: as many callers wait in the pool as may.
    fn request_build(
        &mut self,
        revision: RevisionId,
        age: Age,
        began: Instant,
        now: Instant,
        full: bool,
    ) -> Requested<R> {
        let (tenant, refused) = (revision.tenant, |reason| Requested::Refused(Error::Saturated { reason }));
        let in_sight = !full || self.places_in_sight(Some(revision), now);
        if !in_sight && !self.parking.is_empty() && self.wants_place(revision, now) {
            // A runtime whose leases are all parked could be evicted.
            self.reclaim_all();
            return Requested::Again;
        }
        let is_placed = self.is_placed(revision);
        if !is_placed && self.may_not_wait(tenant) && self.remembered(revision, now).is_none() {
            if self.parking.iter().any(|parking| parking.tenant == tenant) {
                self.reclaim_of(tenant);
                return Requested::Again;
            }
            // One for whom a place is in sight does not count as waiting, here as in the pool.
            if !self.places_in_sight(Some(revision), now) {
                return Requested::Refused(self.too_many_wait(tenant));
            }
        }
        if let Some(build) = self.builds.get_mut(&revision) {
            let waiting = match build.phase {
                Phase::Queued { .. } => in_sight.then_some(&mut self.waiting_capacity),
                Phase::Fetching => in_sight.then_some(&mut self.waiting_fetch),
                Phase::Placed { .. } => Some(&mut self.waiting_build),
            };
            let Some(waiting) = waiting else {
                return refused("no runtime is free and the queue is full (pool.max_waiting)");
            };
            *waiting += 1;
            let (to, answer) = oneshot::channel();
            insert_by_age(&mut build.waiters, Waiter { age, since: began, to });
            // An elder that comes back makes the build as old as itself.
            if let Phase::Queued { age: queued, .. } = &mut build.phase
                && age < *queued
            {
                self.build_queue.hand_on(revision.tenant, *queued, age);
                *queued = age;
                self.dispatch(now);
            }
            self.wait(tenant, 0, usize::from(!is_placed));
            return Requested::Joined(answer);
        }
        if let Some(error) = self.remembered(revision, now) {
            return Requested::Refused(error);
        }
        if !in_sight {
            return refused("no runtime is free and the queue is full (pool.max_waiting)");
        }
        let id = BuildId(self.unique());
        let (to, answer) = oneshot::channel();
        let waiters = VecDeque::from([Waiter { age, since: began, to }]);
        let (wanted, unwanted) = oneshot::channel();
        self.builds.insert(revision, Build { id, fetched: Duration::ZERO, phase: Phase::Fetching, waiters, wanted });
        self.waiting_fetch += 1;
        self.wait(tenant, 0, 1);
        Requested::Start(id, unwanted, answer)
    }

    /// A caller that waited has left, or was answered just now.
    pub(in crate::registry) fn leave(&mut self, revision: RevisionId, age: Age, now: Instant) {
        if let Some(build) = self.builds.get_mut(&revision) {
            let before = build.waiters.len();
            build.waiters.retain(|waiter| waiter.age != age);
            let left = before - build.waiters.len();
            if !matches!(build.phase, Phase::Placed { .. }) {
                self.holdings.wait(revision.tenant, left, 0);
            }
            match &mut build.phase {
                Phase::Queued { age, .. } => {
                    self.waiting_capacity -= left;
                    if let Some(eldest) = build.waiters.front() {
                        // A build is as old as its eldest caller that is still there.
                        self.build_queue.hand_on(revision.tenant, *age, eldest.age);
                        *age = eldest.age;
                    } else {
                        self.build_queue.leave(revision.tenant, *age);
                        // Nobody wants it and it has cost nothing yet: its builder sees its channel close, and ends.
                        self.builds.remove(&revision);
                    }
                    self.dispatch(now);
                }
                Phase::Fetching => self.waiting_fetch -= left,
                Phase::Placed { .. } => {
                    self.waiting_build -= left;
                    self.effects.push(Effect::Left);
                }
            }
        } else if let Some(live) = self.live.peek_mut(&revision) {
            let before = live.waiters.len();
            live.waiters.retain(|waiter| waiter.age != age);
            let left = before - live.waiters.len();
            self.waiting_instance -= left;
            self.wait(revision.tenant, left, 0);
            self.await_permit(revision);
            self.dispatch(now);
        }
    }

    /// Leases ended.
    pub(in crate::registry) fn leases_returned(&mut self, leases: &[Returned], now: Instant) {
        for lease in leases {
            self.lease_returned(lease, now);
        }
        if self.waiting_instance == 0 && self.is_quiet() {
            return;
        }
        // First all of them: whoever gets an instance of its own runtime wants none that another runtime has.
        for lease in leases {
            self.await_permit(lease.revision);
        }
        for lease in leases {
            self.serve(lease.revision, Duration::ZERO);
        }
        self.dispatch(now);
    }

    fn lease_returned(&mut self, lease: &Returned, now: Instant) {
        let Returned { revision, place, back, used_again, last_used } = *lease;
        // Peeked at first: a lease on a runtime that drains must not freshen its successor.
        if let Some(live) = self.live.peek_mut(&revision).filter(|live| live.place == place) {
            live.leases -= 1;
            live.uses += used_again;
            live.often.used(used_again, self.uses.period());
            if used_again > 0 {
                self.reuse.used(revision.number);
            }
            if back {
                live.idle += 1;
                self.idle += 1;
            }
            self.used(revision, last_used.unwrap_or(now));
            if back && self.own_instances_over(revision.tenant) > 0 {
                self.reap_one(revision);
            }
        } else if let Some(draining) = self.draining.get_mut(&place) {
            draining.leases -= 1;
            // Nobody uses its instance any more, and others may wait for the permit.
            if back && let Some(resident) = draining.resident.clone() {
                draining.reaping += 1;
                self.reaping += 1;
                self.effects.push(Effect::Reap { resident });
            }
            if draining.leases == 0 {
                self.closing += usize::from(draining.ends_soon(now));
                self.effects.extend(draining.resident.take().map(|resident| Effect::Drained { resident }));
            }
        }
    }
}
