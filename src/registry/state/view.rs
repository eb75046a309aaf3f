//! What can be seen of the state.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{
    super::{Counts, Resident, RevisionId, RuntimeState, Snapshot},
    PlaceId, RegistryState,
    entries::{Draining, Phase, Waiter},
};
use crate::memory::MemoryBudget;

impl<R: Resident> RegistryState<R> {
    pub(in crate::registry) fn counts(&self) -> Counts {
        let live = self.live.len();
        let draining = self.draining.len();
        // Of those in the queue for places, who waits for a compile slot would not have a place if there were one.
        let slots_short = self.placeable() == 0;
        Counts {
            building: self.places.len() - live - draining,
            live,
            draining,
            idle: self.idle,
            busy: self.instances - self.idle,
            waiting_capacity: if slots_short { 0 } else { self.waiting_capacity },
            waiting_instance: self.waiting_instance,
            waiting_build: self.waiting_fetch
                + self.waiting_build
                + if slots_short { self.waiting_capacity } else { 0 },
        }
    }

    /// How long the caller has waited that has waited longest, whatever for. Looks no further than to the last who waits: where
    /// nobody does, at nothing, and runtimes that many wait for are used much, and come first.
    pub(in crate::registry) fn oldest_wait(&self, now: Instant) -> Duration {
        let building = self.builds.values().map(|build| &build.waiters);
        let for_builds = oldest(building, self.waiting_capacity + self.waiting_fetch + self.waiting_build);
        let serving = self.live.iter().map(|(_, live)| &live.waiters);
        let since = [for_builds, oldest(serving, self.waiting_instance)].into_iter().flatten().min();
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    pub(in crate::registry) fn is_shut_down(&self) -> bool {
        self.shut_down
    }

    pub(in crate::registry) fn memory(&self) -> Arc<MemoryBudget> {
        self.memory.clone()
    }

    /// Nobody who asks from now on has to wait for this place.
    pub(in crate::registry) fn forget(&mut self, place: PlaceId) {
        self.gone.remove(&place);
    }

    /// What ends when the places of such revisions are released.
    pub(in crate::registry) fn gone(&self, which: impl Fn(RevisionId) -> bool) -> Vec<watch::Receiver<bool>> {
        self.gone.values().filter(|(held, _)| which(*held)).map(|(_, gone)| gone.clone()).collect()
    }

    pub(in crate::registry) fn snapshot(&self) -> Vec<Snapshot<R>> {
        let serving = self.live.iter().map(|(revision, live)| Snapshot {
            revision: *revision,
            state: RuntimeState::Live,
            instances: live.instances,
            leases: live.leases,
            uses: live.uses,
            opened: Some(live.opened),
            last_used: Some(live.last_used),
            resident: Some(live.resident.clone()),
            held: 0,
        });
        let bare = |revision, state, leases, resident: Option<&R>, held| Snapshot {
            revision,
            state,
            instances: leases,
            leases,
            uses: 0,
            opened: None,
            last_used: None,
            resident: resident.cloned(),
            held,
        };
        let builds = self.builds.keys().map(|revision| bare(*revision, RuntimeState::Building, 0, None, 0));
        let draining = self.draining.values().map(|draining| {
            let Draining { revision, leases, resident, frees_in_full, .. } = draining;
            bare(*revision, RuntimeState::Draining, *leases, resident.as_ref(), *frees_in_full)
        });
        let mut runtimes = Vec::with_capacity(self.live.len() + self.builds.len() + self.draining.len());
        runtimes.extend(serving.chain(builds).chain(draining));
        runtimes
    }

    /// One for each place that is taken.
    pub(in crate::registry) fn held(&self) -> Vec<(RevisionId, u64)> {
        let serving = self.live.iter().map(|(revision, live)| (*revision, live.resident.weight().in_full()));
        let placed = self.builds.iter().filter(|(_, build)| matches!(build.phase, Phase::Placed { .. }));
        let draining = self.draining.values().map(|draining| {
            let bytes =
                draining.resident.as_ref().map_or(draining.frees_in_full, |resident| resident.weight().in_full());
            (draining.revision, bytes)
        });
        serving.chain(placed.map(|(revision, _)| (*revision, 0))).chain(draining).collect()
    }
}

/// Since when the one waits, of `waiting` in all, that came first.
fn oldest<'a, R: Resident>(
    queues: impl Iterator<Item = &'a VecDeque<Waiter<R>>>,
    mut waiting: usize,
) -> Option<Instant> {
    let mut first = None;
    for queue in queues {
        if waiting == 0 {
            break;
        }
        waiting = waiting.saturating_sub(queue.len());
        first = queue.front().map(|waiter| waiter.since).into_iter().chain(first).min();
    }
    first
}
