//! Start-time fair queueing by tenant, in time: each tenant's next turn comes as much later as its last one took.
//!
//! Unlike [turns](crate::turns), which are counted and all begin anew once nobody waits, what tenants had is remembered: those
//! who are called again and again wait for moments only, and between them nobody may wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::turns::TenantId;

/// Who waits. Times in microseconds.
#[derive(Debug)]
pub(super) struct Queue<W> {
    tenants: HashMap<TenantId, Share<W>>,
    /// Of each tenant that waits: when it is due, and the age of its eldest.
    heads: BTreeSet<(u64, u64, TenantId)>,
    /// When the last turn was due that was taken: who comes anew is due then.
    now: u64,
    /// How many have come: the age of the next one.
    came: u64,
    /// With more tenants than this, it is time to forget those who are gone.
    most: usize,
}

#[derive(Debug)]
struct Share<W> {
    due: u64,
    waiting: BTreeMap<u64, W>,
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self { tenants: HashMap::new(), heads: BTreeSet::new(), now: 0, came: 0, most: 64 }
    }
}

impl<W> Queue<W> {
    pub(super) fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    pub(super) fn first(&self) -> Option<TenantId> {
        self.heads.first().map(|(_, _, tenant)| *tenant)
    }

    #[cfg(test)]
    pub(super) fn waiting_of(&self, tenant: TenantId) -> usize {
        self.tenants.get(&tenant).map_or(0, |share| share.waiting.len())
    }

    /// How much more than others a tenant has had.
    pub(super) fn behind(&self, tenant: TenantId) -> u64 {
        self.tenants.get(&tenant).map_or(0, |share| share.due.saturating_sub(self.now))
    }

    /// Whether nobody else who waits has an earlier turn than the one that this tenant took last.
    pub(super) fn precedes(&self, tenant: TenantId) -> bool {
        let taken = self.tenants.get(&tenant).map_or(0, |share| share.due.saturating_sub(1));
        self.heads.first().is_none_or(|(due, _, first)| *first == tenant || taken <= *due)
    }

    /// Joins the queue. The age to [leave](Self::leave) with.
    pub(super) fn enter(&mut self, tenant: TenantId, waiting: W) -> u64 {
        self.came += 1;
        let (age, now) = (self.came, self.now);
        self.change(tenant, |share| {
            share.due = share.due.max(now);
            share.waiting.insert(age, waiting);
        });
        age
    }

    /// Leaves the queue, if it has not had its turn.
    pub(super) fn leave(&mut self, tenant: TenantId, age: u64) {
        if self.tenants.get(&tenant).is_some_and(|share| share.waiting.contains_key(&age)) {
            self.change(tenant, |share| drop(share.waiting.remove(&age)));
        }
    }

    /// Takes the first turn. It counts for little until it is known what it [took](Self::spend).
    pub(super) fn take(&mut self) -> Option<W> {
        let (due, age, tenant) = *self.heads.first()?;
        self.now = self.now.max(due);
        self.change(tenant, |share| {
            share.due += 1;
            share.waiting.remove(&age)
        })
    }

    /// Takes a turn that is free.
    pub(super) fn pass(&mut self, tenant: TenantId) {
        self.now += self.behind(tenant);
        self.spend(tenant, 2);
    }

    /// The tenant's last turn took so long.
    pub(super) fn spend(&mut self, tenant: TenantId, took: u64) {
        let now = self.now;
        self.change(tenant, |share| share.due = share.due.max(now).saturating_add(took.saturating_sub(1)));
    }

    /// The tenant did not use the turn that it took last.
    pub(super) fn give_back(&mut self, tenant: TenantId) {
        if self.tenants.contains_key(&tenant) {
            self.change(tenant, |share| share.due = share.due.saturating_sub(1));
        }
    }

    fn change<T>(&mut self, tenant: TenantId, change: impl FnOnce(&mut Share<W>) -> T) -> T {
        let share = self.tenants.entry(tenant).or_insert_with(|| Share { due: 0, waiting: BTreeMap::new() });
        if let Some((age, _)) = share.waiting.first_key_value() {
            self.heads.remove(&(share.due, *age, tenant));
        }
        let changed = change(share);
        if let Some((age, _)) = share.waiting.first_key_value() {
            self.heads.insert((share.due, *age, tenant));
        }
        if self.tenants.len() > self.most {
            self.tenants.retain(|_, share| !share.waiting.is_empty() || share.due > self.now + 1);
            // Not to go through those again at each turn.
            self.most = 2 * self.tenants.len() + 64;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_next_turn_comes_as_much_later_as_its_last_one_took() {
        let mut queue = Queue::default();
        for tenant in [1, 1, 1, 2, 2, 2, 2] {
            queue.enter(TenantId(tenant), tenant);
        }
        let mut order = Vec::new();
        while let Some(tenant) = queue.take() {
            order.push(tenant);
            queue.spend(TenantId(tenant), if tenant == 1 { 30 } else { 10 });
        }
        assert_eq!(order, [1, 2, 2, 2, 1, 2, 1]);
    }

    #[test]
    fn what_was_had_counts_also_when_nobody_waited_for_a_moment() {
        let mut queue = Queue::default();
        for tenant in [1, 2] {
            queue.pass(TenantId(tenant));
        }
        queue.spend(TenantId(1), 10);
        assert_eq!([1, 2, 3].map(|tenant| queue.behind(TenantId(tenant))), [10, 1, 0]);
        for tenant in [1, 2, 2] {
            queue.enter(TenantId(tenant), tenant);
        }
        assert_eq!([1, 2].map(|tenant| queue.waiting_of(TenantId(tenant))), [1, 2]);
        assert_eq!((queue.first(), queue.take()), (Some(TenantId(2)), Some(2)));
        assert!(queue.precedes(TenantId(2)));
        queue.give_back(TenantId(2));
        assert_eq!([(); 3].map(|()| queue.take()), [Some(2), Some(1), None]);
        assert!(queue.is_empty());
        assert_eq!(queue.behind(TenantId(1)), 1, "that was its turn, and nobody has had less");
    }

    #[test]
    fn who_leaves_has_no_turn_and_who_is_gone_is_forgotten() {
        let mut queue = Queue::default();
        let age = queue.enter(TenantId(1), 1);
        queue.enter(TenantId(1), 2);
        for _ in 0..2 {
            queue.leave(TenantId(1), age);
        }
        assert_eq!((queue.take(), queue.take()), (Some(2), None));
        for tenant in 0..10_000 {
            queue.pass(TenantId(tenant));
        }
        assert!(queue.tenants.len() < 200, "{}", queue.tenants.len());
    }
}
