//! Hands out what is free, and makes room where something is missing.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

use super::{
    super::{CloseReason, Refused, Resident, RevisionId},
    Age, Effect, PlaceId, RegistryState,
    entries::{Live, Phase},
};
use crate::turns::{TenantId, Turn};

impl<R: Resident> RegistryState<R> {
    /// Gives a runtime's idle instances to its own waiters, eldest first; or, where it is owed, to an elder elsewhere.
    pub(super) fn serve(&mut self, revision: RevisionId, build: Duration) {
        let eldest = self.eldest_build(revision.tenant);
        while let Some(live) = self.live.peek(&revision)
            && live.idle > 0
            && let Some(age) = live.waiters.front().map(|waiter| waiter.age)
            && !live.holds_back(age, eldest)
        {
            if self.is_owed(revision, age) {
                self.reap_one(revision);
            } else if let Some(live) = self.live.peek_mut(&revision)
                && let Some(waiter) = live.waiters.pop_front()
            {
                live.idle -= 1;
                self.idle -= 1;
                self.waiting_instance -= 1;
                self.effects.push(Effect::Answer { to: waiter.to, answer: Ok(live.grant(revision, true, build)) });
                self.wait(revision.tenant, 1, 0);
                self.permit_waiters.charge(revision.tenant);
            }
        }
        self.await_permit(revision);
    }

    /// Whether callers elsewhere whose turn comes first wait for permits that nothing on its way will give.
    fn is_owed(&self, revision: RevisionId, age: Age) -> bool {
        if self.is_owed_to_own(revision, age) {
            return true;
        }
        if self.instances < self.limits.max_instances {
            return false;
        }
        let own = self.permit_waiters.next(revision.tenant, age);
        let placeable = self.placeable().min(self.limits.capacity - self.places.len());
        let builds = self.build_queue.next_ones(placeable, |_| true);
        let builds = builds.iter().filter(|(turn, build)| self.contends(turn.age, **build) < own).count();
        builds + self.permit_waiters.before(revision.tenant, age, |waiting| *waiting == revision) > self.reaping
    }

    /// Queues a runtime for a permit if its oldest waiter can only be served with one more, and takes it out of the queue
    /// otherwise.
    pub(super) fn await_permit(&mut self, revision: RevisionId) {
        let (build, permits) = (self.eldest_build(revision.tenant), self.permit_room(revision.tenant));
        let Some(live) = self.live.peek_mut(&revision) else { return };
        let eldest = live.waiters.front().map(|waiter| waiter.age);
        let room = live.idle == 0 && live.instances < live.most;
        let wants = eldest.filter(|eldest| room && !live.holds_back(*eldest, build));
        if live.awaits_permit == wants {
            return;
        }
        if let Some(age) = live.awaits_permit.take() {
            self.permit_waiters.leave(revision.tenant, age);
        }
        if let Some(age) = wants {
            self.permit_waiters.enter(revision.tenant, permits, age, revision);
            live.awaits_permit = Some(age);
        }
    }

    /// Whether nobody waits for a permit, a place or room, nor is anything reserved.
    pub(super) fn is_quiet(&self) -> bool {
        let queued = self.permit_waiters.waiting_in_all() + self.build_queue.waiting_in_all();
        queued + self.reserved.len() + self.room_queue.len() == 0
    }

    /// Hands out what is free, whose turn comes first, then makes room for those that are left.
    pub(super) fn dispatch(&mut self, now: Instant) {
        if self.is_quiet() {
            return;
        }
        loop {
            // The end of the reclaim leads here again, and knows what came back.
            if self.reclaiming > 0 {
                return;
            }
            self.reclaim_held_up();
            if self.reclaiming > 0 {
                continue;
            }
            while self.instances < self.limits.max_instances {
                let place_free = self.places.len() < self.limits.capacity && self.placeable() > 0;
                let build = place_free.then(|| self.next_build(now)).flatten();
                let contender = self.permit_waiters.first().map(|(turn, _)| turn);
                match (build, contender) {
                    (Some((turn, build)), contender)
                        if contender.is_none_or(|contender| self.contends(turn.age, build) < contender) =>
                    {
                        self.admit(turn, build.tenant, now);
                    }
                    (_, Some(_)) => self.grant_permit(),
                    _ => break,
                }
            }
            if self.permits_short() > 0 || self.places_short() > 0 {
                // What is parked may be idle.
                self.reclaim_all();
                if self.reclaiming > 0 {
                    continue;
                }
            }
            self.reap();
            self.reap_own();
            // A caller that a reservation held back until now may want a permit that is free, or that of an idle instance.
            if !self.evict(now) {
                return self.give_room(now);
            }
        }
    }

    /// The build that gets the next free place.
    fn next_build(&self, now: Instant) -> Option<(Turn<Age>, RevisionId)> {
        let (turn, first) = self.build_queue.first()?;
        if self.build_queue.len() == 1 || self.places.held(first.tenant) == 0 {
            return Some((turn, *first));
        }
        let going = self.going(Some(now));
        let next = self.build_queue.first_of(|tenant| self.may_come(tenant, &going));
        next.map(|(turn, _, build)| (turn, *build))
    }

    /// The turn that a build has among those who wait for a permit.
    fn contends(&self, age: Age, build: RevisionId) -> Turn<Age> {
        self.permit_waiters.next(build.tenant, age)
    }

    pub(super) fn admit(&mut self, turn: Turn<Age>, tenant: TenantId, now: Instant) {
        let place = PlaceId(self.unique());
        let Some(revision) = self.build_queue.take_of(turn, tenant) else { return };
        self.permit_waiters.charge(revision.tenant);
        let Some(build) = self.builds.get_mut(&revision) else { return };
        let Phase::Queued { to, .. } = std::mem::replace(&mut build.phase, Phase::Placed { place, since: now }) else {
            return;
        };
        self.waiting_capacity -= build.waiters.len();
        self.waiting_build += build.waiters.len();
        let (gone, receiver) = watch::channel(false);
        self.places.insert(place, revision.tenant);
        self.gone.insert(place, (revision, receiver));
        self.instances += 1;
        self.compiling += 1;
        let waited = build.waiters.len();
        self.wait(revision.tenant, waited, 0);
        self.hold(revision.tenant, |holds| {
            holds.runtimes += 1;
            holds.instances += 1;
            holds.compiling += 1;
        });
        self.effects.push(Effect::Admit { to, revision, place, gone });
    }

    pub(super) fn grant_permit(&mut self) {
        let Some(revision) = self.permit_waiters.take() else { return };
        let Some(live) = self.live.peek_mut(&revision) else { return };
        live.awaits_permit = None;
        if let Some(waiter) = live.waiters.pop_front() {
            live.instances += 1;
            self.instances += 1;
            self.waiting_instance -= 1;
            self.effects
                .push(Effect::Answer { to: waiter.to, answer: Ok(live.grant(revision, false, Duration::ZERO)) });
            self.wait(revision.tenant, 1, 0);
            self.hold(revision.tenant, |holds| holds.instances += 1);
        }
        self.await_permit(revision);
    }

    /// How many permits are wanted that nothing on its way will give.
    pub(super) fn permits_short(&self) -> usize {
        if self.instances < self.limits.max_instances {
            return 0;
        }
        let placeable = self.placeable().min(self.limits.capacity - self.places.len());
        (self.permit_waiters.len() + placeable).saturating_sub(self.reaping)
    }

    /// How many places are wanted that nothing on its way will give.
    pub(super) fn places_short(&self) -> usize {
        let coming = self.limits.capacity - self.places.len() + self.closing;
        self.placeable().saturating_sub(coming)
    }

    /// Drops idle instances, least recently used runtimes first, for those who wait for a permit.
    pub(super) fn reap(&mut self) {
        for _ in 0..self.permits_short() {
            let eldest = self.live.iter().rev().find(|(_, live)| live.idle > 0).map(|(revision, _)| *revision);
            let Some(eldest) = eldest else { return };
            self.reap_one(eldest);
        }
    }

    pub(super) fn reap_one(&mut self, revision: RevisionId) {
        let Some(live) = self.live.peek_mut(&revision) else { return };
        live.idle -= 1;
        live.reaping += 1;
        self.idle -= 1;
        self.reaping += 1;
        self.effects.push(Effect::Reap { resident: live.resident.clone() });
    }

    /// Serves callers behind a reservation that are older than every build that is left. True when one of them now waits
    /// for a permit.
    pub(super) fn release_elders(&mut self) -> bool {
        let before = self.permit_waiters.waiting_in_all();
        for at in 0..self.reserved.len() {
            self.serve(self.reserved[at].0, Duration::ZERO);
        }
        self.permit_waiters.waiting_in_all() > before
    }

    /// Evicts unleased runtimes for builds that wait for a place. Where those are not enough, reserves leased ones. True
    /// when a reservation let somebody pass.
    pub(super) fn evict(&mut self, now: Instant) -> bool {
        let mut given_up = false;
        let mut unmet = Vec::new();
        let (mut coming, newcomers) = self.newcomers(Some(now));
        let newcomers = newcomers.into_iter().map(|newcomer| (newcomer, false));
        let own = self.own_newcomers().into_iter().map(|newcomer| (newcomer, true));
        for (newcomer, own) in own.chain(newcomers) {
            loop {
                let victim = if own { self.own_victim(newcomer) } else { self.victim(newcomer, &coming, Some(now)) };
                let Some(victim) = victim else {
                    unmet.push((newcomer, own));
                    break;
                };
                if !self.live.peek_mut(&victim).is_some_and(Live::begin_last_round) {
                    self.retire_live(victim, CloseReason::Capacity, None, &Refused::Retry, now);
                    if !own {
                        coming.push(newcomer);
                    }
                    break;
                }
                given_up = true;
                self.serve(victim, Duration::ZERO);
            }
        }
        given_up |= self.release_elders();
        // A reservation is for a newcomer of one tenant: another may not be allowed that runtime.
        for (revision, tenant) in std::mem::take(&mut self.reserved) {
            let may_go = |own: bool| {
                if own { revision.tenant == tenant } else { self.may_go_for(tenant, &coming, revision) }
            };
            let wanted = unmet.iter().position(|(newcomer, own)| *newcomer == tenant && may_go(*own));
            if let Some(wanted) = wanted {
                unmet.remove(wanted);
                self.reserved.push((revision, tenant));
                continue;
            }
            given_up = true;
            if let Some(live) = self.live.peek_mut(&revision) {
                live.give_up_reservation();
            }
            self.serve(revision, Duration::ZERO);
        }
        for (newcomer, own) in unmet {
            let victim = if own { self.own_leased_victim(newcomer) } else { self.leased_victim(newcomer, &coming) };
            let Some(revision) = victim else { continue };
            if let Some(live) = self.live.peek_mut(&revision) {
                live.reserved = true;
            }
            self.reserved.push((revision, newcomer));
            self.await_permit(revision);
        }
        given_up
    }
}
