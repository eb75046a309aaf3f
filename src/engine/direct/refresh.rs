//! How much of the processors it may take to make snapshots anew: a token bucket for all plugins.
//!
//! One is made anew at a time. What it takes is paid for at a twentieth of a core, and until it is, none is begun. Nothing is
//! saved up while there is none: so in any time that begins after a pause, all together take a twentieth of it, and what the
//! last of them takes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// What is taken is paid for in so many times as long.
const PAID_IN: u32 = 20;

/// One is being made anew.
const BUSY: u64 = u64::MAX;

/// What all may take.
#[derive(Debug)]
pub(super) struct Refreshes {
    began: Instant,
    /// The moment at which all that was taken is paid for, in nanoseconds; or [`BUSY`].
    free_at: AtomicU64,
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
        Arc::new(Self { began: Instant::now(), free_at: AtomicU64::new(0) })
    }

    /// A turn, unless another has it, or what was taken is not paid for.
    pub(super) fn turn(self: &Arc<Self>, now: Instant) -> Option<Turn> {
        let free_at = self.free_at.load(Ordering::Relaxed);
        // Asked for each instance that is due: one that comes in vain only reads.
        if free_at > self.at(now) {
            return None;
        }
        self.free_at.compare_exchange(free_at, BUSY, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        Some(Turn { all: self.clone(), free_at: AtomicU64::new(free_at), took: AtomicU64::new(0) })
    }

    fn at(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.began))
    }
}

impl Turn {
    /// So much time of one processor was used until now.
    pub(super) fn charge(&self, took: Duration, now: Instant) {
        let (since, pays) = (self.all.at(now).saturating_sub(nanos(took)), nanos(took.saturating_mul(PAID_IN)));
        let paid = |paid: u64| Some(paid.max(since).saturating_add(pays).min(BUSY - 1));
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

    #[tokio::test(start_paused = true)]
    async fn one_is_made_at_a_time_and_the_next_once_it_is_paid_for_at_a_twentieth_of_a_core() {
        let all = Refreshes::new();
        let turn = all.turn(Instant::now()).unwrap();
        assert!(all.turn(Instant::now()).is_none(), "one at a time");
        advance(Duration::from_millis(10)).await;
        turn.charge(Duration::from_millis(10), Instant::now());
        // It waits for a compile slot, which costs nothing.
        advance(Duration::from_hours(1)).await;
        assert!(all.turn(Instant::now()).is_none());
        turn.charge(Duration::from_millis(100), Instant::now());
        drop(turn);
        advance(Duration::from_millis(1899)).await;
        assert!(all.turn(Instant::now()).is_none(), "twenty times 100 ms, 100 of which had passed");
        advance(Duration::from_millis(1)).await;
        assert!(all.turn(Instant::now()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_saved_up_and_all_together_take_a_twentieth_of_any_time() {
        let all = Refreshes::new();
        advance(Duration::from_hours(24)).await;
        let (began, mut took) = (Instant::now(), Duration::ZERO);
        let mut takes = (1..).map(Duration::from_millis);
        while began.elapsed() < Duration::from_hours(1) {
            if let Some(turn) = all.turn(Instant::now()) {
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
}
