//! Tenants that took more than their share of the processors, and wait until the others had as much.
//!
//! Such a tenant goes into debt by what its evaluations take, and may begin the next one when it has none. What the others
//! use pays it back: by what each of them has had, on average. Where processors are not busy with others, nobody waits. So
//! nothing is taken from those who ask for no more than their share, not even the time to ask; and what somebody who was let
//! go on does with its thread, and for how long, keeps nobody else.
//!
//! Considered and not taken: turns for all evaluations where processors are short (each costs some microseconds, which is
//! much of one that takes twenty, and a guest that gives its turn back late has the others wait), and priorities (the
//! executor has none).

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::seen::Seen;
use crate::turns::{TenantId, Weights};

/// For how long a tenant is paced after it was seen to take more than its share.
const REMEMBERED: Duration = Duration::from_secs(1);

/// How often to look who may go on.
pub(super) const LOOK: Duration = Duration::from_millis(1);

/// The most that others can have had in advance. In nanoseconds.
const ADVANCE: i64 = 1_000_000;

/// The most that is to be paid back: what was taken at once, before it was seen, puts nobody off for long.
const MOST: i64 = 5_000_000;

/// So many may wait who have left.
const FEW: usize = 64;

/// What an evaluation is taken to need before it is known.
const USUAL: i64 = 20_000;

pub(super) struct Pace {
    cores: usize,
    /// Whether anybody is paced.
    any: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tenants: HashMap<TenantId, Paced>,
    weights: Weights,
    /// A task looks who may go on.
    is_looked_after: bool,
}

/// Times in nanoseconds.
struct Paced {
    /// What the others must have had before the next one may go on.
    debt: i64,
    /// What this tenant has used, and what all have, when that was reckoned last.
    used: u64,
    total: u64,
    /// What one of its evaluations takes, and how many were let go on that have not said what they took.
    usual: i64,
    running: i64,
    until: Instant,
    waiting: VecDeque<oneshot::Sender<()>>,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn signed(nanos: u64) -> i64 {
    i64::try_from(nanos).unwrap_or(i64::MAX)
}

impl Paced {
    /// Pays back by what others have had since.
    fn reckon(&mut self, tenant: TenantId, weight: u32, cores: usize, seen: &Seen, now: Instant) {
        let total = nanos(seen.total());
        let others = total.saturating_sub(self.total).saturating_sub(self.used);
        (self.total, self.used) = (total, 0);
        let (threads, tenants) = seen.busy_for_others(tenant, now);
        if threads < cores {
            self.debt = self.debt.min(0);
            return;
        }
        let paid = signed(others.saturating_mul(weight.into())) / i64::from(tenants.max(1));
        self.debt = self.debt.saturating_sub(paid).max(-ADVANCE);
        if self.waiting.len() > cores {
            self.until = self.until.max(now + REMEMBERED);
        }
    }

    /// Whether one more may go on now: it counts for what they usually take.
    fn begins(&mut self) -> bool {
        let may = self.debt <= 0;
        if may {
            self.debt += self.usual;
            self.running += 1;
        }
        may
    }

    fn has_used(&mut self, used: u64) {
        self.used = self.used.saturating_add(used);
        if self.running > 0 {
            self.running -= 1;
            self.debt -= self.usual;
        }
        self.debt = self.debt.saturating_add(signed(used)).min(MOST);
        self.usual = (self.usual * 7 + signed(used)) / 8;
    }
}

impl Pace {
    pub(super) fn new(cores: usize) -> Self {
        Self { cores, any: AtomicBool::new(false), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_weights(&self, weights: Weights) {
        self.state().weights = weights;
    }

    /// Whether this tenant has to wait. Quick where nobody has.
    pub(super) fn paces(&self, tenant: TenantId) -> bool {
        self.any.load(Ordering::Relaxed) && self.state().tenants.contains_key(&tenant)
    }

    /// A tenant was seen to take more than its share.
    pub(super) fn begin(&self, tenant: TenantId, seen: &Seen, now: Instant) {
        let (total, until) = (nanos(seen.total()), now + REMEMBERED);
        let mut state = self.state();
        let new = || Paced { debt: 0, used: 0, total, usual: USUAL, running: 0, until, waiting: VecDeque::new() };
        state.tenants.entry(tenant).or_insert_with(new).until = until;
        self.any.store(true, Ordering::Relaxed);
    }

    /// A tenant has used a thread for so long.
    pub(super) fn has_used(&self, tenant: TenantId, used: Duration) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        if let Some(paced) = self.state().tenants.get_mut(&tenant) {
            paced.has_used(nanos(used));
        }
    }

    /// Lets all go on that may. False when nobody waits any more.
    pub(super) fn look(&self, seen: &Seen, now: Instant) -> bool {
        let mut ready = Vec::new();
        let mut state = self.state();
        let State { tenants, weights, .. } = &mut *state;
        for (tenant, paced) in tenants.iter_mut() {
            paced.reckon(*tenant, weights.of(*tenant), self.cores, seen, now);
            while let Some(first) = paced.waiting.front() {
                // Who has left takes nobody's turn.
                if !first.is_closed() && !paced.begins() {
                    break;
                }
                ready.extend(paced.waiting.pop_front().filter(|caller| !caller.is_closed()));
            }
        }
        tenants.retain(|_, paced| now < paced.until || !paced.waiting.is_empty());
        let waits = tenants.values().any(|paced| !paced.waiting.is_empty());
        self.any.store(!tenants.is_empty(), Ordering::Relaxed);
        state.is_looked_after = waits;
        drop(state);
        // Outside the lock: this wakes others.
        for caller in ready {
            let _ = caller.send(());
        }
        waits
    }

    /// A place in the line of this tenant, and whether somebody has to [look](Self::look) from now on; `None` for who may go
    /// on at once.
    pub(super) fn enter(&self, tenant: TenantId, seen: &Seen, now: Instant) -> Option<(oneshot::Receiver<()>, bool)> {
        let mut state = self.state();
        let weight = state.weights.of(tenant);
        let paced = state.tenants.get_mut(&tenant)?;
        if now >= paced.until && paced.waiting.is_empty() {
            state.tenants.remove(&tenant);
            self.any.store(!state.tenants.is_empty(), Ordering::Relaxed);
            return None;
        }
        paced.reckon(tenant, weight, self.cores, seen, now);
        if paced.waiting.is_empty() && paced.begins() {
            return None;
        }
        // As often as it doubles: those who leave are not kept until their turn.
        if paced.waiting.len() >= FEW && paced.waiting.len().is_power_of_two() {
            paced.waiting.retain(|caller| !caller.is_closed());
        }
        let (to, go_on) = oneshot::channel();
        paced.waiting.push_back(to);
        Some((go_on, !std::mem::replace(&mut state.is_looked_after, true)))
    }

    /// Nobody looks any more, as the executor has ended that did: those who wait go on.
    pub(super) fn give_up(&self) {
        let mut state = self.state();
        if std::mem::take(&mut state.is_looked_after) {
            let gone: Vec<_> = state.tenants.values_mut().map(|paced| std::mem::take(&mut paced.waiting)).collect();
            drop(state);
            drop(gone);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use tokio::{task::JoinSet, time::advance};

    use super::{
        super::{FairShare, Shared},
        *,
    };

    /// On one processor that is always busy.
    fn share() -> FairShare {
        let FairShare(shared) = FairShare::new(1);
        let shared = Arc::into_inner(shared).unwrap();
        FairShare(Arc::new(Shared { seen: Seen::of_busy_threads(), ..shared }))
    }

    /// How long each tenant had the processor for in a second and a half, of which the first half does not count. Each has so
    /// many callers, of which each takes so many microseconds, again and again.
    async fn shares(share: FairShare, tenants: impl IntoIterator<Item = (u64, u64, u64)>) -> HashMap<u64, u64> {
        let (had, mut callers) = (Arc::<Mutex<HashMap<u64, u64>>>::default(), JoinSet::new());
        let began = Instant::now();
        for (tenant, count, takes) in tenants {
            for _ in 0..count {
                let (share, had) = (share.clone(), had.clone());
                callers.spawn(async move {
                    while began.elapsed() < Duration::from_millis(1500) {
                        tokio::task::yield_now().await;
                        if share.paces(TenantId(tenant)) {
                            share.wait_for_others(TenantId(tenant)).await;
                        }
                        advance(Duration::from_micros(takes)).await;
                        share.note(TenantId(tenant), Duration::from_micros(takes), Instant::now());
                        if began.elapsed() > Duration::from_millis(500) {
                            *had.lock().unwrap().entry(tenant).or_default() += takes;
                        }
                    }
                });
            }
        }
        callers.join_next().await;
        callers.shutdown().await;
        Arc::into_inner(had).unwrap().into_inner().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn who_took_more_than_its_share_has_no_more_than_it_and_the_others_wait_for_nothing() {
        for (callers, takes) in [(300, 20), (40, 1000)] {
            let others = (1..50).map(|tenant| (tenant, 1, 20));
            let had = shares(share(), others.chain([(50, callers, takes)])).await;
            let flood = had[&50];
            assert!((10_000..=40_000).contains(&flood), "{callers} of {takes} had {flood}");
            for (tenant, had) in had.iter().filter(|(tenant, _)| **tenant < 50) {
                assert!((16_000..=24_000).contains(had), "{tenant} had {had} beside {callers} of {takes}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_heavier_tenant_has_as_much_more() {
        let share = share();
        share.set_weights(Weights::new(1, [(TenantId(50), 5)]));
        let others = (1..50).map(|tenant| (tenant, 1, 20));
        let flood = shares(share, others.chain([(50, 300, 20)])).await[&50];
        assert!((60_000..=140_000).contains(&flood), "{flood}");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_where_processors_are_not_busy_with_others() {
        let pace = Pace::new(1);
        let (seen, now) = (Seen::of_busy_threads(), Instant::now());
        pace.begin(TenantId(1), &seen, now);
        pace.has_used(TenantId(1), Duration::from_secs(9));
        assert!(pace.enter(TenantId(1), &seen, now).is_none(), "no thread was busy");
        assert!(pace.enter(TenantId(2), &seen, now).is_none(), "it was never seen to take more");
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_go_on_when_the_executor_ends_whose_task_looks_after_them() {
        let share = share();
        let (Shared { seen, pace, .. }, now) = (&*share.0, Instant::now());
        for at in 0..3 {
            seen.add(TenantId(2), Duration::from_millis(20), now + Duration::from_millis(20) * at);
        }
        pace.begin(TenantId(1), seen, now);
        pace.has_used(TenantId(1), Duration::from_secs(9));
        let (go_on, must_look) = pace.enter(TenantId(1), seen, now + Duration::from_millis(40)).expect("it waits");
        assert!(must_look);
        pace.give_up();
        assert!(go_on.await.is_err());
        let again = pace.enter(TenantId(1), seen, now + Duration::from_millis(40));
        assert!(again.is_some_and(|(_, must_look)| must_look), "somebody looks again");
    }
}
