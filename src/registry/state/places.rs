//! Who holds places, and whose runtime goes for a newcomer.
//!
//! The least recently used runtime goes, but not for a tenant that has more than the others: where tenants want more than
//! there is, each is left its share. A tenant that would take more gives up its own least recently used runtime, or that of
//! another which has more than its share. What nobody has used for long protects nobody.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    super::{Resident, RevisionId},
    PlaceId, RegistryState,
    entries::Live,
};
use crate::turns::{TenantId, Weights};

/// After this long without a use, a runtime goes for anybody.
const STALE: Duration = Duration::from_mins(1);

/// The places that are taken.
#[derive(Debug, Default)]
pub(super) struct Places {
    all: HashMap<PlaceId, Option<TenantId>>,
    /// Without those that are being given up.
    held: HashMap<TenantId, usize>,
}

impl Places {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn contains(&self, place: PlaceId) -> bool {
        self.all.contains_key(&place)
    }

    pub(super) fn insert(&mut self, place: PlaceId, tenant: TenantId) {
        self.all.insert(place, Some(tenant));
        *self.held.entry(tenant).or_default() += 1;
    }

    pub(super) fn remove(&mut self, place: PlaceId) {
        self.give_up(place);
        self.all.remove(&place);
    }

    /// It is taken from its tenant, and free once it is released.
    pub(super) fn give_up(&mut self, place: PlaceId) {
        let Some(tenant) = self.all.get_mut(&place).and_then(Option::take) else { return };
        if let Some(held) = self.held.get_mut(&tenant) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&tenant);
            }
        }
    }

    pub(super) fn is_given_up(&self, place: PlaceId) -> bool {
        self.all.get(&place).is_some_and(Option::is_none)
    }

    /// Those that have any.
    pub(super) fn tenants(&self) -> Vec<TenantId> {
        self.held.keys().copied().collect()
    }

    pub(super) fn held(&self, tenant: TenantId) -> usize {
        self.held.get(&tenant).copied().unwrap_or(0)
    }

    /// What tenants are left, if this one wants a place as well.
    fn shares(&self, capacity: usize, weights: &Weights, newcomer: TenantId) -> Shares {
        let newcomer = (!self.held.contains_key(&newcomer)).then_some(newcomer);
        Shares { capacity, total: self.weight(weights) + weigh(weights, newcomer) }
    }

    /// Of those that have any.
    fn weight(&self, weights: &Weights) -> usize {
        if weights.are_equal() { self.held.len() } else { weigh(weights, self.held.keys().copied()) }
    }
}

/// How many of the places each tenant is left.
#[derive(Debug, Clone, Copy)]
struct Shares {
    capacity: usize,
    /// The weight of all that share them.
    total: usize,
}

impl Shares {
    fn of(self, weight: u32) -> usize {
        (self.capacity.saturating_mul(weight as usize) / self.total.max(1)).max(1)
    }
}

fn weigh(weights: &Weights, tenants: impl IntoIterator<Item = TenantId>) -> usize {
    tenants.into_iter().map(|tenant| weights.of(tenant) as usize).sum()
}

/// The runtimes that could go.
#[derive(Debug, Default)]
pub(super) struct Going {
    pub(super) all: usize,
    /// Of these, those that go for anybody.
    pub(super) stale: usize,
    tenants: HashSet<TenantId>,
    /// That of their tenants which has most for its weight: how many places, and the weight.
    most: (usize, u32),
    /// The weight of tenants that wait and have no place.
    without: usize,
}

impl Going {
    fn add(&mut self, held: usize, weight: u32) {
        let (most, of) = self.most;
        if of == 0 || held * of as usize > most * weight as usize {
            self.most = (held, weight);
        }
    }
}

impl<R: Resident> Live<R> {
    /// Without the time, nothing is.
    fn is_stale(&self, now: Option<Instant>) -> bool {
        now.is_some_and(|now| now.saturating_duration_since(self.last_used) >= STALE)
    }
}

impl<R: Resident> RegistryState<R> {
    /// The tenants of the builds for which a place is still to be found.
    /// Before them, those for which one is coming.
    pub(super) fn newcomers(&self, now: Option<Instant>) -> (Vec<TenantId>, Vec<TenantId>) {
        match (self.places_short(), self.placeable()) {
            (0, _) => (Vec::new(), Vec::new()),
            (short, placeable) => {
                let going = self.going(now);
                let next = self.build_queue.next_ones(placeable, |tenant| self.may_come(tenant, &going));
                let mut coming: Vec<TenantId> = next.iter().map(|(_, revision)| revision.tenant).collect();
                let newcomers = coming.split_off((placeable - short).min(coming.len()));
                (coming, newcomers)
            }
        }
    }

    /// The unleased runtime that goes for a newcomer of this tenant. Without the time, nothing is stale.
    pub(super) fn victim(&self, newcomer: TenantId, coming: &[TenantId], now: Option<Instant>) -> Option<RevisionId> {
        self.first_of(newcomer, coming, self.evictable(), |live| live.is_stale(now))
    }

    /// The leased runtime that is reserved for one.
    pub(super) fn leased_victim(&self, newcomer: TenantId, coming: &[TenantId]) -> Option<RevisionId> {
        self.first_of(newcomer, coming, |_, live| !live.reserved && live.leases > 0, |_| false)
    }

    /// What could go now.
    pub(super) fn going(&self, now: Option<Instant>) -> Going {
        let weights = &self.weights;
        let without = weigh(weights, self.build_queue.waiting().filter(|tenant| self.places.held(*tenant) == 0));
        let mut going = Going { without, ..Going::default() };
        let can_go = self.evictable();
        for (revision, live) in self.live.iter().filter(|(id, live)| can_go(id, live)) {
            going.all += 1;
            going.stale += usize::from(live.is_stale(now));
            if going.tenants.insert(revision.tenant) {
                going.add(self.places.held(revision.tenant), weights.of(revision.tenant));
            }
        }
        going
    }

    /// Whether a build of this tenant may have a place: the tenant has less than its share, or gives one up, or takes what
    /// is too much or too old elsewhere. One that only waits for its own keeps nobody from a place.
    pub(super) fn may_come(&self, tenant: TenantId, going: &Going) -> bool {
        let total = self.places.weight(&self.weights) + going.without;
        let share = Shares { capacity: self.limits.capacity, total }.of(self.weights.of(tenant));
        self.places.held(tenant) < share || self.finds(tenant, going)
    }

    /// Whether there is a runtime that goes for a newcomer of this tenant.
    pub(super) fn finds(&self, tenant: TenantId, going: &Going) -> bool {
        if self.build_room(tenant) == 0 {
            return going.tenants.contains(&tenant);
        }
        let shares = self.shares(tenant);
        let has_less = self.places.held(tenant) < shares.of(self.weights.of(tenant)) && going.all > 0;
        let (most, weight) = going.most;
        has_less || going.tenants.contains(&tenant) || most > shares.of(weight) || going.stale > 0
    }

    /// How many places it has once its builds have theirs for which one is coming.
    fn held_soon(&self, tenant: TenantId, coming: &[TenantId]) -> usize {
        self.places.held(tenant) + coming.iter().filter(|other| **other == tenant).count()
    }

    /// Whether this tenant's newcomer may have this runtime's place, now or once it is idle.
    pub(super) fn may_go_for(&self, newcomer: TenantId, coming: &[TenantId], revision: RevisionId) -> bool {
        let shares = self.shares(newcomer);
        let own = shares.of(self.weights.of(newcomer));
        self.goes_first(newcomer, shares, revision) || self.held_soon(newcomer, coming) < own
    }

    fn shares(&self, newcomer: TenantId) -> Shares {
        self.places.shares(self.limits.capacity, &self.weights, newcomer)
    }

    /// Whether this is the newcomer's own runtime, or of a tenant that has more than its share.
    fn goes_first(&self, newcomer: TenantId, shares: Shares, revision: RevisionId) -> bool {
        let tenant = revision.tenant;
        tenant == newcomer || self.places.held(tenant) > shares.of(self.weights.of(tenant))
    }

    /// By the policy, one of the newcomer's own runtimes, of those whose tenant has more than its share, and of those
    /// that are `stale`; if there is none, of all, unless the newcomer's tenant has its share.
    fn first_of(
        &self,
        newcomer: TenantId,
        coming: &[TenantId],
        can_go: impl Fn(&RevisionId, &Live<R>) -> bool,
        stale: impl Fn(&Live<R>) -> bool,
    ) -> Option<RevisionId> {
        let shares = self.shares(newcomer);
        let all = || self.live.iter().rev().filter(|(id, live)| can_go(id, live));
        let may_go =
            |revision: &RevisionId, live: &Live<R>| self.goes_first(newcomer, shares, *revision) || stale(live);
        let often = |(revision, live): (&RevisionId, &Live<R>)| (*revision, live.often);
        let first = self.uses.victim(all().filter(|(revision, live)| may_go(revision, live)).map(often));
        let has_less = || self.held_soon(newcomer, coming) < shares.of(self.weights.of(newcomer));
        first.or_else(|| self.uses.victim(all().map(often)).filter(|_| has_less()))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{LIMITS, NOTHING, World, of_tenant},
        *,
    };

    const ONE: TenantId = TenantId(1);
    const OTHER: TenantId = TenantId(2);

    #[test]
    fn a_place_that_is_given_up_is_nobodys_and_stays_taken_until_it_is_released() {
        let mut places = Places::default();
        let [first, second] = [PlaceId(1), PlaceId(2)];
        places.insert(first, ONE);
        places.insert(second, ONE);
        assert!(!places.is_given_up(first));
        places.give_up(first);
        places.give_up(first);
        assert!(places.is_given_up(first) && places.contains(first) && !places.is_given_up(second));
        assert_eq!((places.len(), places.held(ONE), places.tenants()), (2, 1, vec![ONE]));
        places.remove(first);
        assert!(!places.is_given_up(first) && !places.contains(first));
        places.remove(second);
        assert_eq!((places.len(), places.held(ONE), places.tenants()), (0, 0, Vec::new()));
    }

    #[test]
    fn who_has_most_for_its_weight_is_told_by_places_and_weight() {
        for (tenants, most) in [
            (vec![(2, 1), (3, 2)], (2, 1)),
            (vec![(3, 2), (2, 1)], (2, 1)),
            (vec![(2, 2), (3, 2)], (3, 2)),
            (vec![(4, 2), (2, 1)], (4, 2)),
            (vec![(2, 1), (4, 2)], (2, 1)),
            (vec![(1, 3), (1, 2), (1, 4)], (1, 2)),
        ] {
            let mut going = Going::default();
            for (held, weight) in &tenants {
                going.add(*held, *weight);
            }
            assert_eq!(going.most, most, "{tenants:?}");
        }
    }

    /// Two tenants that have so many of four places.
    fn state(one: u64, other: u64) -> World {
        let mut world = World::new(LIMITS);
        for place in 0..one + other {
            world.state.places.insert(PlaceId(place), if place < one { ONE } else { OTHER });
        }
        world
    }

    #[test]
    fn what_could_go_is_counted_by_tenant_and_age() {
        let mut world = World::new(LIMITS);
        let (one, other) = ([of_tenant(1, 1), of_tenant(1, 2)], of_tenant(2, 3));
        for revision in one {
            world.live(revision, NOTHING, 1, 0);
        }
        world.live(other, NOTHING, 1, 1);
        let going = world.state.going(Some(world.now));
        assert_eq!((going.all, going.stale, going.most), (2, 0, (2, 1)));
        assert_eq!(going.tenants, HashSet::from([ONE]));
        world.returned(other, true);
        let going = world.state.going(Some(world.now + STALE - Duration::from_millis(1)));
        assert_eq!((going.all, going.stale), (3, 2));
        let going = world.state.going(Some(world.now + STALE));
        assert_eq!((going.all, going.stale, going.tenants.len()), (3, 3, 2));
        assert_eq!(world.state.going(None).stale, 0);
    }

    #[test]
    fn a_tenant_with_its_share_finds_its_own_runtime_or_what_is_too_much_or_too_old_elsewhere() {
        let world = state(2, 2);
        let going = |tenant, most, stale| Going {
            all: 1,
            stale,
            tenants: HashSet::from([tenant]),
            most: (most, 1),
            without: 0,
        };
        let finds = |going| world.state.finds(ONE, &going);
        assert!(finds(going(ONE, 2, 0)), "its own");
        assert!(finds(going(OTHER, 3, 0)), "one of who has more than its share");
        assert!(finds(going(OTHER, 2, 1)), "one that is stale");
        assert!(!finds(going(OTHER, 2, 0)));
        let world = state(1, 3);
        assert!(world.state.finds(ONE, &going(OTHER, 2, 0)), "any, as it has less than its share");
        assert!(!world.state.finds(ONE, &Going::default()), "there is none");
    }

    #[test]
    fn a_tenant_with_its_share_may_have_its_own_runtimes_place_or_that_of_who_has_more() {
        let may = |held: (u64, u64), coming: &[TenantId], of: TenantId| {
            state(held.0, held.1).state.may_go_for(ONE, coming, of_tenant(of.0, 9))
        };
        assert!(may((2, 2), &[], ONE));
        assert!(!may((2, 2), &[], OTHER), "both have their share");
        assert!(may((2, 3), &[], OTHER), "the other has more");
        assert!(may((1, 2), &[], OTHER), "it has less");
        assert!(!may((1, 2), &[ONE], OTHER), "and its share with the one that is coming");
    }
}
