//! Hands out what is free, and makes room where something is missing.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

use super::{
    super::{CloseReason, Refused, Resident, RevisionId},
    Age, Effect, Effects, PlaceId, RegistryState,
    entries::Phase,
};

impl<R: Resident> RegistryState<R> {
    /// Gives a runtime's idle instances to its own waiters, eldest first.
    pub(super) fn serve(&mut self, revision: RevisionId, build: Option<Duration>, effects: &mut Effects<R>) {
        let elder = self.permit_waiters.first_key_value().map(|(age, _)| *age);
        let owed = self.instances >= self.limits.max_instances && self.reaping < self.permit_waiters.len();
        let eldest = self.eldest_build();
        let Some(live) = self.live.peek_mut(&revision) else { return };
        while live.idle > 0 {
            let Some(waiter) = live.waiters.front() else { break };
            if live.holds_back(waiter.age, eldest) {
                break;
            }
            if owed && elder.is_some_and(|elder| elder < waiter.age && live.awaits_permit != Some(elder)) {
                break;
            }
            let Some(waiter) = live.waiters.pop_front() else { break };
            live.idle -= 1;
            self.idle -= 1;
            self.waiting_instance -= 1;
            effects.push(Effect::Answer { to: waiter.to, answer: Ok(live.grant(revision, true, build)) });
        }
        self.await_permit(revision);
    }

    /// Queues a runtime for a permit if its oldest waiter can only be served with one more, and takes it out of the queue
    /// otherwise.
    pub(super) fn await_permit(&mut self, revision: RevisionId) {
        let build = self.eldest_build();
        let Some(live) = self.live.peek_mut(&revision) else { return };
        let eldest = live.waiters.front().map(|waiter| waiter.age);
        let room = live.idle == 0 && live.instances < self.limits.max_instances_per_runtime;
        let wants = eldest.filter(|eldest| room && !live.holds_back(*eldest, build));
        if live.awaits_permit == wants {
            return;
        }
        if let Some(age) = live.awaits_permit.take() {
            self.permit_waiters.remove(&age);
        }
        if let Some(age) = wants {
            self.permit_waiters.insert(age, revision);
            live.awaits_permit = Some(age);
        }
    }

    /// Hands out what is free, oldest caller first, then makes room for those that are left.
    pub(super) fn dispatch(&mut self, now: Instant, effects: &mut Effects<R>) {
        loop {
            // The end of the reclaim leads here again, and knows what came back.
            if self.reclaiming > 0 {
                return;
            }
            while self.instances < self.limits.max_instances {
                let place_free = self.places.len() < self.limits.capacity;
                let build = self.build_queue.first_key_value().filter(|_| place_free).map(|(age, _)| *age);
                let contender = self.permit_waiters.first_key_value().map(|(age, _)| *age);
                match (build, contender) {
                    (Some(build), contender) if contender.is_none_or(|contender| build < contender) => {
                        self.admit(build, now, effects);
                    }
                    (_, Some(contender)) => self.grant_permit(contender, effects),
                    _ => break,
                }
            }
            if self.permits_short() > 0 || self.places_short() > 0 {
                // What is parked may be idle.
                self.reclaim_all(effects);
                if self.reclaiming > 0 {
                    continue;
                }
            }
            self.reap(effects);
            // A caller that a reservation held back until now may want a permit that is still free.
            if !self.evict(now, effects) {
                return;
            }
        }
    }

    pub(super) fn admit(&mut self, age: Age, now: Instant, effects: &mut Effects<R>) {
        let place = PlaceId(self.unique());
        let Some(revision) = self.build_queue.remove(&age) else { return };
        let Some(build) = self.builds.get_mut(&revision) else { return };
        let Phase::Queued { to, .. } = std::mem::replace(&mut build.phase, Phase::Placed { place, since: now }) else {
            return;
        };
        self.waiting_capacity -= build.waiters.len();
        self.waiting_build += build.waiters.len();
        let (gone, receiver) = watch::channel(false);
        self.places.insert(place);
        self.gone.insert(place, (revision, receiver));
        self.instances += 1;
        effects.push(Effect::Admit { to, revision, place, gone });
    }

    pub(super) fn grant_permit(&mut self, age: Age, effects: &mut Effects<R>) {
        let Some(revision) = self.permit_waiters.remove(&age) else { return };
        let Some(live) = self.live.peek_mut(&revision) else { return };
        live.awaits_permit = None;
        if let Some(waiter) = live.waiters.pop_front() {
            live.instances += 1;
            self.instances += 1;
            self.waiting_instance -= 1;
            effects.push(Effect::Answer { to: waiter.to, answer: Ok(live.grant(revision, false, None)) });
        }
        self.await_permit(revision);
    }

    /// How many permits are wanted that nothing on its way will give.
    fn permits_short(&self) -> usize {
        if self.instances < self.limits.max_instances {
            return 0;
        }
        let placeable = self.build_queue.len().min(self.limits.capacity - self.places.len());
        (self.permit_waiters.len() + placeable).saturating_sub(self.reaping)
    }

    /// How many places are wanted that nothing on its way will give.
    fn places_short(&self) -> usize {
        let coming = self.limits.capacity - self.places.len() + self.closing;
        self.build_queue.len().saturating_sub(coming)
    }

    /// Drops idle instances, least recently used runtimes first, for those who wait for a permit.
    pub(super) fn reap(&mut self, effects: &mut Effects<R>) {
        for _ in 0..self.permits_short() {
            let Some((_, live)) = self.live.iter_mut().rev().find(|(_, live)| live.idle > 0) else { return };
            live.idle -= 1;
            live.reaping += 1;
            self.idle -= 1;
            self.reaping += 1;
            effects.push(Effect::Reap { resident: live.resident.clone() });
        }
    }

    /// Serves callers behind a reservation that are older than every build that is left. True when one of them now waits
    /// for a permit that is free.
    pub(super) fn release_elders(&mut self, effects: &mut Effects<R>) -> bool {
        let before = self.permit_waiters.len();
        for at in 0..self.reserved.len() {
            self.serve(self.reserved[at], None, effects);
        }
        self.permit_waiters.len() > before && self.instances < self.limits.max_instances
    }

    /// Evicts unleased runtimes, least recently used first, for builds that wait for a place. Where those are not enough,
    /// reserves leased ones. True when a reservation was given up.
    pub(super) fn evict(&mut self, now: Instant, effects: &mut Effects<R>) -> bool {
        let mut short = self.places_short();
        while short > 0 {
            let eldest = self.eldest_build();
            let victim = self.live.iter().rev().find(|(_, live)| live.evictable(eldest));
            let victim = victim.map(|(revision, _)| *revision);
            let Some(victim) = victim else { break };
            self.retire_live(victim, CloseReason::Capacity, None, &Refused::Retry, now, effects);
            short -= 1;
        }
        let mut given_up = self.release_elders(effects);
        while self.reserved.len() > short {
            let Some(revision) = self.reserved.pop() else { break };
            given_up = true;
            if let Some(live) = self.live.peek_mut(&revision) {
                live.reserved = false;
            }
            self.serve(revision, None, effects);
        }
        while self.reserved.len() < short {
            let leased = self.live.iter_mut().rev().find(|(_, live)| !live.reserved && live.leases > 0);
            let Some((revision, live)) = leased else { break };
            let revision = *revision;
            live.reserved = true;
            self.reserved.push(revision);
            self.await_permit(revision);
        }
        given_up
    }
}
