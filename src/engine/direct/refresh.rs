//! How much of the processors it may take to make snapshots anew: a token bucket for all plugins.
//!
//! One is made anew at a time. What it takes is paid for at a twentieth of a core, and until it is, none is begun. Nothing is
//! saved up while there is none: so in any time that begins after a pause, all together take a twentieth of it, and what the
//! last of them takes.
//!
//! **By tenant.** A plugin asks when an instance of it is made, and most come in vain. Whoever comes first would be whoever is
//! called most, so a tenant with hundreds of plugins would keep all others from theirs. So once the turn is free, it is for the
//! tenant whose last one is longest ago, of those that came in vain of late; a second later also for the one after it, and so on.
//! Who is called once in that time has its turn. One that does not come again costs the others that second.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::turns::TenantId;

/// What is taken is paid for in so many times as long.
const PAID_IN: u32 = 20;

/// One is being made anew.
const BUSY: u64 = u64::MAX;

/// A turn is left to a tenant alone for so long, beside those whose last one is longer ago.
const COMES: Duration = Duration::from_secs(1);

/// Who came in vain is reckoned with for so long: one that is called less often is mostly closed as idle.
const OF_LATE: Duration = Duration::from_mins(10);

/// So many tenants are remembered at most. One more has to come when the turn is free.
const MOST_TENANTS: usize = 4096;

/// What all may take.
#[derive(Debug)]
pub(super) struct Refreshes {
    began: Instant,
    /// The moment at which all that was taken is paid for, in nanoseconds; or [`BUSY`].
    free_at: AtomicU64,
    tenants: Mutex<Tenants>,
}

/// Who asked of late.
#[derive(Debug, Default)]
struct Tenants {
    /// How many turns there were.
    turns: u64,
    asked: HashMap<TenantId, Asked>,
}

#[derive(Debug)]
struct Asked {
    /// Which turn was its last; 0 if it had none.
    last: u64,
    /// When it came.
    at: Instant,
    in_vain: bool,
}

/// The right to make one anew. Dropping it lets the next one begin, once what was charged is paid for.
#[derive(Debug)]
pub(super) struct Turn {
    all: Arc<Refreshes>,
    free_at: AtomicU64,
    /// What was charged, in nanoseconds.
    took: AtomicU64,
}

impl Refreshes {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), free_at: AtomicU64::new(0), tenants: Mutex::default() })
    }

    /// A turn, unless another has it, what was taken is not paid for, or it is left to others.
    pub(super) fn turn(self: &Arc<Self>, tenant: TenantId, now: Instant) -> Option<Turn> {
        // Nothing panics under it.
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        // What is given back is so without the lock; it is taken under it.
        let free_at = self.free_at.load(Ordering::Relaxed);
        let now_at = self.at(now);
        // Mostly it is not, and then nobody has to be looked for.
        let is_free = free_at <= now_at && free_at.saturating_add(nanos(tenants.before(tenant, now))) <= now_at;
        tenants.came(tenant, now, !is_free);
        if !is_free {
            return None;
        }
        self.free_at.store(BUSY, Ordering::Relaxed);
        Some(Turn { all: self.clone(), free_at: AtomicU64::new(free_at), took: AtomicU64::new(0) })
    }

    fn at(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.began))
    }
}

impl Tenants {
    /// For how long a free turn is left to others.
    fn before(&self, tenant: TenantId, now: Instant) -> Duration {
        let last = self.asked.get(&tenant).map_or(0, |asked| asked.last);
        let others = self.asked.values().filter(|asked| asked.in_vain && asked.last < last && asked.is_of_late(now));
        COMES.saturating_mul(u32::try_from(others.count()).unwrap_or(u32::MAX))
    }

    /// It had a turn, or came in vain.
    fn came(&mut self, tenant: TenantId, now: Instant, in_vain: bool) {
        if !in_vain {
            self.turns += 1;
            self.asked.retain(|_, asked| asked.is_of_late(now));
        }
        if self.asked.len() >= MOST_TENANTS && !self.asked.contains_key(&tenant) {
            return;
        }
        let asked = self.asked.entry(tenant).or_insert(Asked { last: 0, at: now, in_vain });
        let last = if in_vain { asked.last } else { self.turns };
        *asked = Asked { last, at: now, in_vain };
    }
}

impl Asked {
    fn is_of_late(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < OF_LATE
    }
}

impl Turn {
    /// So much time of one processor was used until now.
    pub(super) fn charge(&self, took: Duration, now: Instant) {
        let (since, pays) = (self.all.at(now).saturating_sub(nanos(took)), nanos(took.saturating_mul(PAID_IN)));
        let paid = |paid: u64| Some(paid.max(since).saturating_add(pays));
        // Nobody else writes them.
        self.took.fetch_add(nanos(took), Ordering::Relaxed);
        let _ = self.free_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, paid);
    }

    /// How long the one that had it is to leave the next turns to others: twice as long as what it took is paid for.
    pub(super) fn pause(&self) -> Duration {
        Duration::from_nanos(self.took.load(Ordering::Relaxed)).saturating_mul(2 * PAID_IN)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.all.free_at.store(self.free_at.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Nanoseconds, or as many as fit.
pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const ONE: TenantId = TenantId(1);
    const OTHER: TenantId = TenantId(2);

    #[tokio::test(start_paused = true)]
    async fn one_is_made_at_a_time_and_the_next_once_it_is_paid_for_at_a_twentieth_of_a_core() {
        let all = Refreshes::new();
        let turn = all.turn(ONE, Instant::now()).unwrap();
        assert!(all.turn(ONE, Instant::now()).is_none(), "one at a time");
        advance(Duration::from_millis(10)).await;
        turn.charge(Duration::from_millis(10), Instant::now());
        // It waits for a compile slot, which costs nothing.
        advance(Duration::from_hours(1)).await;
        assert!(all.turn(ONE, Instant::now()).is_none());
        turn.charge(Duration::from_millis(100), Instant::now());
        drop(turn);
        advance(Duration::from_millis(1899)).await;
        assert!(all.turn(ONE, Instant::now()).is_none(), "twenty times 100 ms, 100 of which had passed");
        advance(Duration::from_millis(1)).await;
        assert!(all.turn(ONE, Instant::now()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_saved_up_and_all_together_take_a_twentieth_of_any_time() {
        let all = Refreshes::new();
        advance(Duration::from_hours(24)).await;
        let (began, mut took) = (Instant::now(), Duration::ZERO);
        let mut takes = (1..).map(Duration::from_millis);
        while began.elapsed() < Duration::from_hours(1) {
            if let Some(turn) = all.turn(ONE, Instant::now()) {
                assert!(took * PAID_IN <= began.elapsed(), "{took:?} of {:?}", began.elapsed());
                for takes in takes.by_ref().take(2) {
                    advance(takes).await;
                    turn.charge(takes, Instant::now());
                    took += takes;
                }
            }
            advance(Duration::from_millis(50)).await;
        }
        assert!(took * PAID_IN * 2 > began.elapsed(), "as often as it may: {took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_with_hundreds_of_plugins_leaves_one_with_one_its_turn() {
        let all = Refreshes::new();
        let (mut held, mut turns) = (None, [0, 0]);
        for step in 0..4000 {
            if let Some(turn) = held.take() {
                Turn::charge(&turn, Duration::from_millis(10), Instant::now());
            }
            // Those of one come all the time and before the other's, which comes twice a second.
            for (at, tenant) in [(0, ONE), (1, OTHER)] {
                for _ in 0..if tenant == ONE { 300 } else { u32::from(step % 50 == 0) } {
                    let turn = all.turn(tenant, Instant::now());
                    turns[at] += u32::from(turn.is_some());
                    held = turn.or(held);
                }
            }
            advance(Duration::from_millis(10)).await;
        }
        assert!(turns[1] >= 39, "it came 80 times, each second of them in vain: {turns:?}");
        assert!(turns[0] >= 79, "nobody else came: {turns:?}");
    }

    /// Its turn takes 10 ms, which are paid for by then.
    async fn takes(turn: Option<Turn>) {
        let turn = turn.expect("it is its turn");
        advance(Duration::from_millis(10)).await;
        turn.charge(Duration::from_millis(10), Instant::now());
        drop(turn);
        advance(Duration::from_millis(190)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_came_in_vain_and_does_not_come_again_costs_others_a_second_and_is_forgotten() {
        let all = Refreshes::new();
        let ask = |tenant| all.turn(tenant, Instant::now());
        let first = ask(ONE);
        for gone in 10..13 {
            assert!(ask(TenantId(gone)).is_none());
        }
        assert!(ask(OTHER).is_none());
        takes(first).await;
        assert!(ask(ONE).is_none());
        takes(ask(OTHER)).await;
        for (tenant, other) in [(ONE, OTHER), (OTHER, ONE), (ONE, OTHER)] {
            assert!(ask(other).is_none() && ask(tenant).is_none());
            advance(Duration::from_millis(2999)).await;
            assert!(ask(other).is_none() && ask(tenant).is_none());
            advance(Duration::from_millis(1)).await;
            assert!(ask(other).is_none(), "it had the last");
            takes(ask(tenant)).await;
        }
        advance(OF_LATE).await;
        takes(ask(OTHER)).await;
        assert_eq!(all.tenants.lock().unwrap().asked.len(), 1);
        assert!(ask(OTHER).is_some(), "nobody else came of late");
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_tenants_are_remembered_and_one_more_has_to_come_when_the_turn_is_free() {
        let all = Refreshes::new();
        let ask = |tenant| all.turn(TenantId(tenant), Instant::now());
        let turn = ask(0).unwrap();
        for tenant in 1..=MOST_TENANTS as u64 {
            assert!(ask(tenant).is_none());
        }
        let in_vain = |tenant| all.tenants.lock().unwrap().asked.get(&TenantId(tenant)).map(|asked| asked.in_vain);
        assert_eq!([0, 1, 4095, 4096].map(in_vain), [Some(false), Some(true), Some(true), None]);
        assert!(ask(0).is_none());
        assert_eq!(in_vain(0), Some(true), "who is known stays so");
        drop(turn);
        assert!(ask(4096).is_some() && in_vain(4096).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_came_in_vain_is_reckoned_with_for_ten_minutes() {
        let now = Instant::now();
        let asked = Asked { last: 0, at: now, in_vain: true };
        assert!(asked.is_of_late(now + OF_LATE.saturating_sub(Duration::from_nanos(1))));
        assert!(!asked.is_of_late(now + OF_LATE));
    }
}
