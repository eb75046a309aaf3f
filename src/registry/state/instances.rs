//! Instances and places: their end, and spare instances.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    super::{Resident, RevisionId},
    PlaceId, RegistryState,
};

impl<R: Resident> RegistryState<R> {
    /// An instance, or the wish to make one, is gone for good.
    pub(in crate::registry) fn permit_released(&mut self, revision: RevisionId, place: PlaceId, now: Instant) {
        self.instances -= 1;
        self.hold(revision.tenant, |holds| holds.instances -= 1);
        if let Some(live) = self.live.peek_mut(&revision).filter(|live| live.place == place) {
            live.instances -= 1;
            let reaped = live.reaping.min(1);
            live.reaping -= reaped;
            self.reaping -= reaped;
            self.await_permit(revision);
        } else if let Some(draining) = self.draining.get_mut(&place) {
            let reaped = draining.reaping.min(1);
            draining.reaping -= reaped;
            self.reaping -= reaped;
            draining.instances -= 1;
            self.closing += usize::from(draining.ends_soon(now));
        }
        self.dispatch(now);
    }

    /// The last engine object of a runtime is gone.
    pub(in crate::registry) fn place_released(&mut self, revision: RevisionId, place: PlaceId, now: Instant) {
        self.places.remove(place);
        self.hold(revision.tenant, |holds| holds.runtimes -= 1);
        if let Some(draining) = self.draining.remove(&place) {
            self.closing -= usize::from(draining.is_closing());
            self.reaping -= draining.reaping;
        }
        self.dispatch(now);
    }

    /// Whether a live runtime has no lease out.
    pub(in crate::registry) fn is_at_rest(&self, revision: RevisionId, place: PlaceId) -> bool {
        self.live.peek(&revision).is_some_and(|live| live.place == place && live.leases == 0)
    }

    /// Takes a permit for a spare instance that nobody waits for, if one can be had without taking it from anybody.
    pub(in crate::registry) fn reserve_spare(&mut self, revision: RevisionId, place: PlaceId) -> bool {
        let free = self.instances < self.limits.max_instances
            && self.permit_waiters.is_empty()
            && self.placeable() == 0
            && !self.room_is_short(self.live.peek(&revision).map_or(0, |live| live.resident.weight().instance));
        // Nor from a build of its own tenant, which may have so many.
        let (tenant, builds) = (revision.tenant, self.build_queue.waiting_of(revision.tenant));
        let free = free && self.permit_room(tenant) > builds && !self.is_held_up(tenant);
        let live = self.live.peek_mut(&revision).filter(|live| live.place == place);
        match live {
            Some(live) if free && !live.reserved && !live.sparing && live.idle == 0 && live.instances < live.most => {
                live.sparing = true;
                live.instances += 1;
                self.instances += 1;
                self.hold(revision.tenant, |holds| holds.instances += 1);
                true
            }
            _ => false,
        }
    }

    /// The making of a spare instance ended. `ready`: it is in its runtime's pool.
    pub(in crate::registry) fn spare_ended(&mut self, revision: RevisionId, place: PlaceId, ready: bool, now: Instant) {
        let Some(live) = self.live.peek_mut(&revision).filter(|live| live.place == place) else { return };
        live.sparing = false;
        if ready {
            live.idle += 1;
            self.idle += 1;
            self.serve(revision, Duration::ZERO);
            self.dispatch(now);
        }
    }
}
