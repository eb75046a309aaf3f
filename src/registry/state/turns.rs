//! Whose turn it is where there is too little for all: start-time fair queueing by tenant.
//!
//! Each tenant's next turn comes one after its last; a tenant that comes anew begins where the others are now. So of one
//! tenant with a thousand callers and forty-nine with one each, every one gets a fiftieth while all of them want something,
//! and whatever the others leave. Among turns that are due at once, and within a tenant, the oldest caller is first.
//!
//! Nothing is remembered beyond the moment in which somebody waits: once the queue is empty, all begin anew. Considered and
//! not taken: deficit round robin (its ring of tenants has to be kept in step with callers that leave and come again with
//! their old age; here a tenant's place in the order is one number), and one clock for both queues (places are handed out a thousand
//! times less often than permits: who had taken many of one would wait long for the other).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
};

use super::{
    super::{RevisionId, TenantId},
    Age,
};

/// A position in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    due: u64,
    pub(super) age: Age,
}

/// Who waits for one thing, in the order in which they get it.
#[derive(Debug, Default)]
pub(super) struct Turns {
    tenants: HashMap<TenantId, Share>,
    /// The first turn of each tenant that waits.
    heads: BTreeSet<(Turn, TenantId)>,
    len: usize,
    /// When the last turn that was taken had been due.
    now: u64,
}

#[derive(Debug, Default)]
struct Share {
    /// When its next turn is due.
    due: u64,
    waiting: BTreeMap<Age, RevisionId>,
}

impl Share {
    fn turns(&self) -> impl Iterator<Item = (Turn, RevisionId)> {
        (self.due..).zip(&self.waiting).map(|(due, (age, revision))| (Turn { due, age: *age }, *revision))
    }

    fn head(&self) -> Option<Turn> {
        self.turns().next().map(|(turn, _)| turn)
    }
}

impl Turns {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn first(&self) -> Option<(Turn, RevisionId)> {
        let (turn, tenant) = self.heads.first()?;
        Some((*turn, *self.tenants.get(tenant)?.waiting.get(&turn.age)?))
    }

    /// The first so many, in order.
    pub(super) fn next_ones(&self, most: usize) -> Vec<(Turn, RevisionId)> {
        let shares = self.tenants.values();
        let mut heads: BinaryHeap<_> = shares
            .filter_map(|share| {
                let mut turns = share.turns();
                turns.next().map(|(turn, revision)| Reverse((turn, revision, Rest(turns))))
            })
            .collect();
        let mut ones = Vec::new();
        while ones.len() < most
            && let Some(Reverse((turn, revision, Rest(mut turns)))) = heads.pop()
        {
            ones.push((turn, revision));
            heads.extend(turns.next().map(|(turn, revision)| Reverse((turn, revision, Rest(turns)))));
        }
        ones
    }

    /// How many would come before this caller: by turn, and within its tenant by age alone. Those of its own revision do
    /// not count.
    pub(super) fn before(&self, revision: RevisionId, age: Age) -> usize {
        let own = self.next(revision.tenant, age);
        let elders = |(tenant, share): (&TenantId, &Share)| {
            let precedes = |(turn, waiting): &(Turn, RevisionId)| {
                *waiting != revision && if *tenant == revision.tenant { turn.age < age } else { *turn < own }
            };
            share.turns().filter(precedes).count()
        };
        self.tenants.iter().map(elders).sum()
    }

    /// Joins the queue.
    pub(super) fn enter(&mut self, revision: RevisionId, age: Age) {
        let now = self.now;
        self.change(revision.tenant, |share| {
            if share.waiting.is_empty() {
                share.due = share.due.max(now);
            }
            share.waiting.insert(age, revision);
        });
        self.len += 1;
    }

    /// Leaves the queue, or takes what it waited for: [`take`](Self::take) notes that.
    pub(super) fn leave(&mut self, tenant: TenantId, age: Age) -> Option<RevisionId> {
        let left = self.change(tenant, |share| share.waiting.remove(&age));
        self.len -= usize::from(left.is_some());
        if self.is_empty() {
            *self = Self::default();
        } else if self.tenants.len() > 2 * self.heads.len() + 64 {
            self.tenants.retain(|_, share| !share.waiting.is_empty() || share.due > self.now);
        }
        left
    }

    /// Takes its turn, which is the first.
    pub(super) fn take(&mut self, turn: Turn) -> Option<RevisionId> {
        let (_, revision) = self.first().filter(|(first, _)| *first == turn)?;
        self.now = turn.due;
        self.change(revision.tenant, |share| share.due += 1);
        self.leave(revision.tenant, turn.age)
    }

    /// A caller of another age now stands for the one that waits.
    pub(super) fn hand_on(&mut self, tenant: TenantId, from: Age, to: Age) {
        self.change(tenant, |share| {
            if let Some(revision) = share.waiting.remove(&from) {
                share.waiting.insert(to, revision);
            }
        });
    }

    /// The turn that a caller would have if none of its tenant's waited.
    pub(super) fn next(&self, tenant: TenantId, age: Age) -> Turn {
        Turn { due: self.tenants.get(&tenant).map_or(self.now, |share| share.due.max(self.now)), age }
    }

    /// A tenant got what others wait for, without having waited in this queue.
    pub(super) fn charge(&mut self, tenant: TenantId) {
        if !self.is_empty() {
            let now = self.now;
            self.change(tenant, |share| share.due = share.due.max(now) + 1);
        }
    }

    fn change<T>(&mut self, tenant: TenantId, change: impl FnOnce(&mut Share) -> T) -> T {
        let share = self.tenants.entry(tenant).or_default();
        if let Some(head) = share.head() {
            self.heads.remove(&(head, tenant));
        }
        let changed = change(share);
        if let Some(head) = share.head() {
            self.heads.insert((head, tenant));
        }
        changed
    }
}

/// The turns of one tenant that follow: no part of the order, which no two turns share.
struct Rest<T>(T);

impl<T> PartialEq for Rest<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> Eq for Rest<T> {}

impl<T> PartialOrd for Rest<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Rest<T> {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(tenant: u64, number: u64) -> RevisionId {
        RevisionId { evaluator: number, number, tenant: TenantId(tenant) }
    }

    fn order(turns: &mut Turns) -> Vec<u64> {
        std::iter::from_fn(|| turns.first().and_then(|(turn, _)| turns.take(turn)).map(|taken| taken.tenant.0))
            .collect()
    }

    #[test]
    fn one_tenants_many_turns_come_between_the_others_and_not_before_them() {
        let mut turns = Turns::default();
        for number in 0..4 {
            turns.enter(revision(1, number), Age(number));
        }
        turns.enter(revision(2, 4), Age(4));
        turns.enter(revision(3, 5), Age(5));
        turns.enter(revision(2, 6), Age(6));
        assert_eq!(order(&mut turns), [1, 2, 3, 1, 2, 1, 1]);
        assert!(turns.tenants.is_empty(), "nothing is remembered of those who are gone");
    }

    #[test]
    fn who_comes_anew_begins_where_the_others_are() {
        let mut turns = Turns::default();
        for number in 0..6 {
            turns.enter(revision(1, number), Age(number));
        }
        for _ in 0..3 {
            let (first, _) = turns.first().unwrap();
            turns.take(first);
        }
        for number in 6..9 {
            turns.enter(revision(2, number), Age(number));
        }
        // It gets no more for having taken nothing before.
        assert_eq!(order(&mut turns), [2, 1, 2, 1, 2, 1]);
    }

    #[test]
    fn among_turns_that_are_due_at_once_the_oldest_caller_is_first() {
        let mut turns = Turns::default();
        turns.enter(revision(2, 1), Age(1));
        turns.enter(revision(1, 0), Age(0));
        assert_eq!(order(&mut turns), [1, 2]);
    }

    #[test]
    fn what_was_had_without_queueing_counts_while_others_wait() {
        let mut turns = Turns::default();
        turns.charge(TenantId(1));
        turns.enter(revision(1, 1), Age(1));
        turns.charge(TenantId(2));
        turns.enter(revision(2, 0), Age(0));
        assert_eq!(order(&mut turns), [1, 2], "the first charge was for nothing: nobody waited");
    }

    #[test]
    fn within_a_tenant_the_oldest_caller_is_first_whenever_it_came() {
        let mut turns = Turns::default();
        for number in [3, 1, 2] {
            turns.enter(revision(1, number), Age(number));
        }
        turns.hand_on(TenantId(1), Age(3), Age(0));
        let numbers = |taken: Vec<(Turn, RevisionId)>| taken.iter().map(|(_, one)| one.number).collect::<Vec<_>>();
        assert_eq!(numbers(turns.next_ones(2)), [3, 1]);
        assert_eq!(turns.before(revision(1, 4), Age(2)), 2);
        turns.leave(TenantId(1), Age(1));
        assert_eq!(numbers(turns.next_ones(9)), [3, 2]);
        assert_eq!(turns.len(), 2);
    }

    #[test]
    fn the_next_ones_are_those_who_are_taken() {
        let mut turns = Turns::default();
        for number in 0..20 {
            turns.enter(revision(number * number % 4, number), Age(number));
        }
        let next: Vec<u64> = turns.next_ones(20).iter().map(|(_, one)| one.tenant.0).collect();
        assert_eq!(order(&mut turns), next);
    }
}
