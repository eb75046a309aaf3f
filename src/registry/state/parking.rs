//! Leases that threads have parked: when they may be, when they are reclaimed, and the order of last use afterwards. How
//! parking works is told in [`thread_cache`](super::super::thread_cache).

use tokio::time::Instant;

use super::{
    super::{Resident, RevisionId},
    Effect, PlaceId, RegistryState,
};

impl<R: Resident> RegistryState<R> {
    /// Whether a lease on this runtime may be parked: nobody waits for anything that its instance, or its runtime's place,
    /// could be given to.
    pub(in crate::registry) fn may_park(&mut self, revision: RevisionId, place: PlaceId) -> bool {
        let nobody_waits = !self.shut_down
            && self.permit_waiters.is_empty()
            && self.placeable() == 0
            && !self.has_no_room()
            && !self.is_held_up(revision.tenant)
            && !self.has_too_much(revision.tenant);
        let live = self.live.peek(&revision).filter(|live| live.place == place);
        let may = nobody_waits && live.is_some_and(|live| !live.reserved && live.waiters.is_empty());
        if may {
            self.parking.insert(revision);
        }
        may
    }

    /// Reclaims what is parked of one runtime.
    pub(super) fn reclaim(&mut self, revision: RevisionId) {
        if self.parking.remove(&revision) {
            self.reclaim_these([revision]);
        }
    }

    /// Reclaims all that is parked, before a decision that looks at all runtimes. The decision is made again when the
    /// leases are back.
    pub(in crate::registry) fn reclaim_all(&mut self) {
        if !self.parking.is_empty() {
            let parking = std::mem::take(&mut self.parking);
            self.reclaim_these(parking);
        }
    }

    fn reclaim_these(&mut self, revisions: impl IntoIterator<Item = RevisionId>) {
        let mut residents = Vec::new();
        for revision in revisions {
            if let Some(live) = self.live.peek_mut(&revision) {
                live.streak = 0;
                residents.push((revision, live.resident.clone()));
            }
        }
        self.reclaiming += 1;
        self.effects.push(Effect::Reclaim { residents });
    }

    /// A reclaim is over. `used` says when instances of its runtimes were last taken into use, those included that still
    /// are.
    pub(in crate::registry) fn reclaimed(&mut self, used: &[(RevisionId, Instant)]) {
        self.reclaiming -= 1;
        for (revision, at) in used {
            self.used(*revision, *at);
        }
    }

    /// The runtimes of which threads may have parked something.
    pub(in crate::registry) fn parking(&self) -> Vec<(RevisionId, R)> {
        let resident = |revision| Some((revision, self.live.peek(&revision)?.resident.clone()));
        self.parking.iter().filter_map(|revision| resident(*revision)).collect()
    }

    /// A runtime was last used `at` some time. Keeps the list in the order of last use, also when a parked lease tells of a
    /// use that is older than others that the list knows of.
    pub(super) fn used(&mut self, revision: RevisionId, at: Instant) {
        // Mostly nothing was used later.
        if self.live.peek_mru().is_none_or(|(_, live)| live.last_used <= at) {
            if let Some(live) = self.live.get_mut(&revision) {
                live.last_used = at;
            }
            return;
        }
        let Some(live) = self.live.peek_mut(&revision) else { return };
        live.last_used = live.last_used.max(at);
        let at = live.last_used;
        let mut later: Vec<_> =
            self.live.iter().map(|(other, live)| (live.last_used, *other)).take_while(|(last, _)| *last > at).collect();
        self.live.promote(&revision);
        later.sort_by_key(|(last, _)| *last);
        for (_, other) in later {
            self.live.promote(&other);
        }
    }
}
