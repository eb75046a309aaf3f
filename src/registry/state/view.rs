//! What can be seen of the state.

use tokio::sync::watch;

use super::{
    super::{Generation, Resident, Snapshot, SnapshotState},
    PlaceId, State,
    entries::Live,
};
use crate::metrics::Counts;

impl<R: Resident> State<R> {
    pub(in crate::registry) fn counts(&self) -> Counts {
        let live = self.live.len();
        let draining = self.draining.len();
        let idle = self.idle + self.lent_instances - self.lent_busy;
        Counts {
            building: self.places.len() - live - draining,
            live,
            draining,
            idle,
            busy: self.instances - idle,
            waiting_capacity: self.waiting_capacity,
            waiting_instance: self.waiting_instance,
            waiting_build: self.waiting_fetch + self.waiting_build,
        }
    }

    pub(in crate::registry) fn is_shut_down(&self) -> bool {
        self.shut_down
    }

    /// Nobody who asks from now on has to wait for this place.
    pub(in crate::registry) fn forget(&mut self, place: PlaceId) {
        self.gone.remove(&place);
    }

    /// What ends when the places of such generations are released.
    pub(in crate::registry) fn gone(&self, which: impl Fn(Generation) -> bool) -> Vec<watch::Receiver<bool>> {
        self.gone.values().filter(|(held, _)| which(*held)).map(|(_, gone)| gone.clone()).collect()
    }

    pub(in crate::registry) fn snapshot(&self) -> Vec<Snapshot> {
        let mut all: Vec<Snapshot> = self.live.iter().map(|(generation, live)| of_live(*generation, live)).collect();
        if self.lends() {
            // The order of last use, of which the list has not seen all.
            all.sort_by_key(|runtime| std::cmp::Reverse(runtime.last_used));
        }
        let bare = |generation, state, leases| Snapshot {
            generation,
            state,
            instances: leases,
            leases,
            uses: 0,
            opened: None,
            last_used: None,
        };
        let builds = self.builds.keys().map(|generation| bare(*generation, SnapshotState::Building, 0));
        let draining =
            self.draining.values().map(|draining| bare(draining.generation, SnapshotState::Draining, draining.leases));
        all.extend(builds.chain(draining));
        all
    }
}

fn of_live<R: Resident>(generation: Generation, live: &Live<R>) -> Snapshot {
    let lent = live.loan.as_ref().map(|loan| loan.lending.seen());
    Snapshot {
        generation,
        state: SnapshotState::Live,
        instances: live.instances,
        leases: live.leases + lent.as_ref().map_or(0, |lent| lent.in_use),
        uses: live.uses + lent.as_ref().map_or(0, |lent| lent.uses),
        opened: Some(live.opened),
        last_used: Some(live.last_used).max(lent.and_then(|lent| lent.last_used)),
    }
}
