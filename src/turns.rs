//! Whose turn it is where there is too little for all: start-time fair queueing by tenant.
//!
//! Each tenant's next turn comes one after its last, or part of one, by its weight; a tenant that comes anew begins where the others are now. So of one
//! tenant with a thousand callers and forty-nine with one each, every one gets a fiftieth while all of them want something,
//! and whatever the others leave. Among turns that are due at once, and within a tenant, the oldest caller is first.
//!
//! A tenant may have room for so many turns only, by a bound of its own. Its others are held up: they are in nobody's way, and
//! as if they were not there, until it has room.
//!
//! Nothing is remembered beyond the moment in which somebody waits: once the queue is empty, all begin anew. Considered and
//! not taken: deficit round robin (its ring of tenants has to be kept in step with callers that leave and come again with
//! their old age; here a tenant's place in the order is one number), and one clock for both queues (places are handed out a
//! thousand times less often than permits: who had taken many of one would wait long for the other).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// How far the next turn of a tenant of weight 1 is from its last.
const STEP: u64 = 1 << 20;

/// Stands for a tenant where its name is not known. Two are equal or not; there is nothing else to them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(pub(crate) u64);

/// How many turns tenants get for one that others get. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Weights(Option<Arc<(u32, HashMap<TenantId, u32>)>>);

impl Weights {
    /// Of those who are named, and of all others.
    pub(crate) fn new(default: u32, named: impl IntoIterator<Item = (TenantId, u32)>) -> Self {
        let named: HashMap<_, _> = named.into_iter().filter(|(_, weight)| *weight != default).collect();
        Self((!named.is_empty()).then(|| Arc::new((default, named))))
    }

    /// Whether all have the same.
    pub(crate) fn are_equal(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn of(&self, tenant: TenantId) -> u32 {
        self.0.as_ref().map_or(1, |weights| *weights.1.get(&tenant).unwrap_or(&weights.0)).max(1)
    }

    fn step(&self, tenant: TenantId) -> u64 {
        STEP / u64::from(self.of(tenant))
    }
}

/// A position in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn<A> {
    due: u64,
    pub(crate) age: A,
}

/// Who waits for one thing, in the order in which they get it. Ages are unique.
#[derive(Debug)]
pub(crate) struct Turns<A, W> {
    tenants: HashMap<TenantId, Share<A, W>>,
    /// The first turn of each tenant that waits and has room.
    heads: BTreeSet<(Turn<A>, TenantId)>,
    /// Tenants of which more wait than they have room for.
    held_up: BTreeSet<TenantId>,
    /// How many wait, and how many of them could be next.
    waiting: usize,
    len: usize,
    /// When who comes anew is due: with the last turn that was taken, but for those who would put off the next for ever.
    now: u64,
    /// Turns that were taken since that changed.
    taken: usize,
    weights: Weights,
}

#[derive(Debug)]
struct Share<A, W> {
    /// When its next turn is due, and how much later each after it is.
    due: u64,
    step: u64,
    /// How many may come.
    room: usize,
    waiting: BTreeMap<A, W>,
}

impl<A, W> Default for Turns<A, W> {
    fn default() -> Self {
        let (heads, held_up) = (BTreeSet::new(), BTreeSet::new());
        let weights = Weights::default();
        Self { tenants: HashMap::new(), heads, held_up, waiting: 0, len: 0, now: 0, taken: 0, weights }
    }
}

impl<A: Copy + Ord, W> Share<A, W> {
    fn new(step: u64) -> Self {
        Self { due: 0, step, room: usize::MAX, waiting: BTreeMap::new() }
    }

    fn turns(&self) -> impl Iterator<Item = (Turn<A>, &W)> {
        let waiting = self.waiting.iter().take(self.room);
        let due = std::iter::successors(Some(self.due), |due| due.checked_add(self.step));
        due.zip(waiting).map(|(due, (age, waiting))| (Turn { due, age: *age }, waiting))
    }

    /// How many could be next.
    fn len(&self) -> usize {
        self.waiting.len().min(self.room)
    }

    fn set_room(&mut self, room: usize, now: u64) {
        // Nobody of it could come: it comes anew, and has saved up no turns.
        if self.len() == 0 {
            self.due = self.due.max(now);
        }
        self.room = room;
    }

    fn head(&self) -> Option<Turn<A>> {
        self.turns().next().map(|(turn, _)| turn)
    }
}

impl<A: Copy + Ord, W> Turns<A, W> {
    /// How many wait that are not held up.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many of this tenant wait, held up or not.
    pub(crate) fn waiting_of(&self, tenant: TenantId) -> usize {
        self.tenants.get(&tenant).map_or(0, |share| share.waiting.len())
    }

    /// Those of this tenant that came before this age, held up or not.
    pub(crate) fn elders_of(&self, tenant: TenantId, age: A) -> impl Iterator<Item = &W> {
        let elders = self.tenants.get(&tenant).map(|share| share.waiting.range(..age));
        elders.into_iter().flatten().map(|(_, waiting)| waiting)
    }

    /// The age of this tenant's oldest caller, held up or not.
    pub(crate) fn eldest_of(&self, tenant: TenantId) -> Option<A> {
        self.tenants.get(&tenant)?.waiting.first_key_value().map(|(age, _)| *age)
    }

    /// How many of this tenant may come, if any waits.
    #[cfg(test)]
    pub(crate) fn room_of(&self, tenant: TenantId) -> Option<usize> {
        self.tenants.get(&tenant).filter(|share| !share.waiting.is_empty()).map(|share| share.room)
    }

    /// How many wait, held up or not.
    pub(crate) fn waiting_in_all(&self) -> usize {
        self.waiting
    }

    /// The tenants of which more wait than they have room for.
    pub(crate) fn held_up(&self) -> &BTreeSet<TenantId> {
        &self.held_up
    }

    /// How many turns each tenant gets from now on for one of the others.
    pub(crate) fn set_weights(&mut self, weights: Weights) {
        for (tenant, share) in &mut self.tenants {
            share.step = weights.step(*tenant);
        }
        self.weights = weights;
    }

    /// So many of this tenant may come from now on.
    pub(crate) fn set_room(&mut self, tenant: TenantId, room: usize) {
        let now = self.now;
        if self.tenants.get(&tenant).is_some_and(|share| share.room != room) {
            self.change(tenant, |share| share.set_room(room, now));
        }
    }

    pub(crate) fn first(&self) -> Option<(Turn<A>, &W)> {
        let (turn, tenant) = self.heads.first()?;
        Some((*turn, self.tenants.get(tenant)?.waiting.get(&turn.age)?))
    }

    /// Whoever waits, each once.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = TenantId> {
        self.heads.iter().map(|(_, tenant)| *tenant)
    }

    /// The first of a tenant that `may` come now; if there is none, the first.
    pub(crate) fn first_of(&self, may: impl Fn(TenantId) -> bool) -> Option<(Turn<A>, TenantId, &W)> {
        let (turn, tenant) = self.heads.iter().find(|(_, tenant)| may(*tenant)).or(self.heads.first())?;
        Some((*turn, *tenant, self.tenants.get(tenant)?.waiting.get(&turn.age)?))
    }

    /// The first so many, in order; those of tenants that `may` come now before the others.
    pub(crate) fn next_ones(&self, most: usize, may: impl Fn(TenantId) -> bool) -> Vec<(Turn<A>, &W)> {
        if most == 0 {
            return Vec::new();
        }
        let mut heads: BTreeMap<_, _> = self
            .tenants
            .iter()
            .filter_map(|(tenant, share)| {
                let mut turns = share.turns();
                turns.next().map(|(turn, waiting)| ((!may(*tenant), turn), (waiting, turns)))
            })
            .collect();
        let mut ones = Vec::new();
        while ones.len() < most
            && let Some(((later, turn), (waiting, mut turns))) = heads.pop_first()
        {
            ones.push((turn, waiting));
            heads.extend(turns.next().map(|(turn, waiting)| ((later, turn), (waiting, turns))));
        }
        ones
    }

    /// How many would come before a caller of this tenant and age: by turn, and within the tenant by age alone. Those that
    /// are its `own` do not count.
    pub(crate) fn before(&self, tenant: TenantId, age: A, own: impl Fn(&W) -> bool) -> usize {
        let next = self.next(tenant, age);
        let elders = |(other, share): (&TenantId, &Share<A, W>)| {
            let precedes = |(turn, waiting): &(Turn<A>, &W)| {
                !own(waiting) && if *other == tenant { turn.age < age } else { *turn < next }
            };
            share.turns().filter(precedes).count()
        };
        self.tenants.iter().map(elders).sum()
    }

    /// Joins the queue, in which so many of this tenant may come.
    pub(crate) fn enter(&mut self, tenant: TenantId, room: usize, age: A, waiting: W) {
        let now = self.now;
        self.change(tenant, |share| {
            share.set_room(room, now);
            share.waiting.insert(age, waiting);
        });
    }

    /// Leaves the queue, or takes what it waited for: [`take`](Self::take) notes that.
    pub(crate) fn leave(&mut self, tenant: TenantId, age: A) -> Option<W> {
        self.tenants.get(&tenant)?.waiting.get(&age)?;
        let left = self.change(tenant, |share| share.waiting.remove(&age));
        if self.waiting == 0 {
            *self = Self { weights: std::mem::take(&mut self.weights), ..Self::default() };
        } else if self.tenants.len() > 4 * (self.heads.len() + self.held_up.len()) + 64 {
            self.tenants.retain(|_, share| !share.waiting.is_empty() || share.due > self.now);
        }
        left
    }

    /// Takes the first turn.
    pub(crate) fn take(&mut self) -> Option<W> {
        let (turn, tenant) = *self.heads.first()?;
        self.take_of(turn, tenant)
    }

    /// Takes a tenant's first turn.
    pub(crate) fn take_of(&mut self, turn: Turn<A>, tenant: TenantId) -> Option<W> {
        self.taken += 1;
        if turn.due > self.now {
            (self.now, self.taken) = (turn.due, 0);
        } else if self.taken > 2 * self.heads.len() + 1 {
            // A round is over, though tenants keep coming that had no turn yet: from now on they come after those who had.
            (self.now, self.taken) = (self.now + STEP, 0);
        }
        self.change(tenant, |share| share.due += share.step);
        self.leave(tenant, turn.age)
    }

    /// A caller of another age now stands for the one that waits.
    pub(crate) fn hand_on(&mut self, tenant: TenantId, from: A, to: A) {
        self.change(tenant, |share| {
            if let Some(waiting) = share.waiting.remove(&from) {
                share.waiting.insert(to, waiting);
            }
        });
    }

    /// The turn that a caller would have if none of its tenant's waited.
    pub(crate) fn next(&self, tenant: TenantId, age: A) -> Turn<A> {
        Turn { due: self.tenants.get(&tenant).map_or(self.now, |share| share.due.max(self.now)), age }
    }

    /// A tenant got what others wait for, without having waited in this queue.
    pub(crate) fn charge(&mut self, tenant: TenantId) {
        if !self.is_empty() {
            let now = self.now;
            self.change(tenant, |share| share.due = share.due.max(now) + share.step);
        }
    }

    fn change<T>(&mut self, tenant: TenantId, change: impl FnOnce(&mut Share<A, W>) -> T) -> T {
        let share = self.tenants.entry(tenant).or_insert_with(|| Share::new(self.weights.step(tenant)));
        if let Some(head) = share.head() {
            self.heads.remove(&(head, tenant));
        }
        let before = (share.waiting.len(), share.len());
        let changed = change(share);
        if let Some(head) = share.head() {
            self.heads.insert((head, tenant));
        }
        let after = (share.waiting.len(), share.len());
        self.waiting = self.waiting + after.0 - before.0;
        self.len = self.len + after.1 - before.1;
        if after.0 > after.1 {
            self.held_up.insert(tenant);
        } else if before.0 > before.1 {
            self.held_up.remove(&tenant);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waiting callers of tenants, in the order of their ages.
    fn turns(tenants: impl IntoIterator<Item = u64>) -> Turns<usize, u64> {
        let mut turns = Turns::default();
        for (age, tenant) in tenants.into_iter().enumerate() {
            turns.enter(TenantId(tenant), usize::MAX, age, tenant);
        }
        turns
    }

    fn order(turns: &mut Turns<usize, u64>) -> Vec<u64> {
        std::iter::from_fn(|| turns.take()).collect()
    }

    #[test]
    fn one_tenants_many_turns_come_between_the_others_and_not_before_them() {
        let mut turns = turns([1, 1, 1, 1, 2, 3, 2]);
        assert_eq!(order(&mut turns), [1, 2, 3, 1, 2, 1, 1]);
        assert!(turns.tenants.is_empty(), "nothing is remembered of those who are gone");
    }

    #[test]
    fn who_comes_anew_begins_where_the_others_are() {
        let mut turns = turns([1; 6]);
        for _ in 0..3 {
            turns.take();
        }
        for age in 6..9 {
            turns.enter(TenantId(2), usize::MAX, age, 2);
        }
        // It gets no more for having taken nothing before.
        assert_eq!(order(&mut turns), [2, 1, 2, 1, 2, 1]);
    }

    #[test]
    fn who_is_held_up_is_in_nobodys_way_and_comes_where_it_was_once_it_has_room() {
        let mut turns = turns([1, 2, 1, 2, 1]);
        turns.set_room(TenantId(1), 1);
        assert_eq!((turns.len(), turns.waiting_of(TenantId(1)), turns.held_up().len()), (3, 3, 1));
        assert_eq!(turns.take(), Some(1));
        turns.set_room(TenantId(1), 0);
        assert_eq!(order(&mut turns), [2, 2]);
        assert!(turns.is_empty() && turns.held_up().contains(&TenantId(1)));
        assert_eq!((turns.eldest_of(TenantId(1)), turns.elders_of(TenantId(1), 4).count()), (Some(2), 1));
        turns.set_room(TenantId(1), usize::MAX);
        assert_eq!(order(&mut turns), [1, 1]);
        assert!(turns.tenants.is_empty() && turns.held_up().is_empty());
    }

    #[test]
    fn a_tenant_gets_as_many_turns_for_one_of_others_as_it_weighs() {
        let mut turns = turns([1, 1, 2, 2, 2, 2, 2, 2, 3, 3]);
        turns.set_weights(Weights::new(1, [(TenantId(2), 3), (TenantId(3), 1)]));
        assert_eq!(turns.next_ones(10, |_| true).iter().map(|(_, one)| **one).collect::<Vec<_>>(), order(&mut turns));
        let mut turns = super::tests::turns((0..40).map(|at| at % 2));
        turns.set_weights(Weights::new(1, [(TenantId(1), 4)]));
        turns.take();
        let first: Vec<_> = (0..15).filter_map(|_| turns.take()).collect();
        assert_eq!(first.iter().filter(|tenant| **tenant == 1).count(), 12, "{first:?}");
    }

    #[test]
    fn who_was_held_up_has_saved_up_no_turns() {
        let mut turns = turns([1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2]);
        turns.set_room(TenantId(1), 0);
        for _ in 0..3 {
            assert_eq!(turns.take(), Some(2));
        }
        turns.set_room(TenantId(1), usize::MAX);
        // It begins where the other is, as the older of the two.
        assert_eq!(order(&mut turns), [1, 1, 2, 1, 2, 1, 2, 2]);
    }

    #[test]
    fn what_was_had_without_queueing_counts_while_others_wait() {
        let mut turns = turns([]);
        turns.charge(TenantId(1));
        turns.enter(TenantId(1), usize::MAX, 1, 1);
        turns.charge(TenantId(2));
        turns.enter(TenantId(2), usize::MAX, 0, 2);
        assert_eq!(order(&mut turns), [1, 2], "the first charge was for nothing: nobody waited");
    }

    #[test]
    fn within_a_tenant_and_among_turns_that_are_due_at_once_the_oldest_caller_is_first() {
        let mut turns = Turns::default();
        for age in [3, 1, 2] {
            turns.enter(TenantId(1), usize::MAX, age, age);
        }
        turns.hand_on(TenantId(1), 3, 0);
        let next = |turns: &Turns<_, _>, most| {
            turns.next_ones(most, |_| true).iter().map(|(_, one)| **one).collect::<Vec<i32>>()
        };
        assert_eq!(next(&turns, 2), [3, 1]);
        assert_eq!(turns.before(TenantId(1), 2, |_| false), 2);
        assert_eq!(turns.before(TenantId(1), 2, |one| *one == 1), 1);
        turns.leave(TenantId(1), 1);
        turns.enter(TenantId(2), usize::MAX, -1, 4);
        assert_eq!(next(&turns, 9), [4, 3, 2]);
        assert_eq!(turns.len(), 3);
    }

    #[test]
    fn the_next_ones_are_those_who_are_taken() {
        let mut turns = turns((0..20).map(|age| age * age % 4));
        let next: Vec<u64> = turns.next_ones(20, |_| true).iter().map(|(_, one)| **one).collect();
        assert_eq!(order(&mut turns), next);
    }

    #[test]
    fn tenants_that_each_come_once_are_not_remembered_while_others_wait() {
        let mut turns = turns([0]);
        for tenant in 1..10_000 {
            turns.enter(TenantId(tenant), usize::MAX, usize::try_from(tenant).unwrap(), tenant);
            turns.take();
        }
        assert!(turns.tenants.len() < 200, "{}", turns.tenants.len());
    }

    #[test]
    fn a_tenants_second_turn_comes_though_others_come_for_the_first_time() {
        let mut turns = turns([0, 0]);
        let mut order = vec![];
        for tenant in 1..1000 {
            turns.enter(TenantId(tenant), usize::MAX, 1 + usize::try_from(tenant).unwrap(), tenant);
            order.extend(turns.take());
        }
        assert_eq!(order.iter().filter(|tenant| **tenant == 0).count(), 2);
    }
}
