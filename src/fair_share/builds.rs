//! When a tenant's next build may begin, where processors are busy with others' calls.
//!
//! A compile is no guest: it runs in a process of its own, or on threads of its own, takes a core or more until it is done,
//! and gives way to nobody but as the system sees to it. So what its tenant has of the processors is kept to its share by
//! when the next one begins: after a pause in which the others had as much. A tenant's first build never waits, nor does any
//! where processors are not busy; and no pause is longer than [`LONGEST_PAUSE`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Mutex as Turnstile,
    time::{Instant, sleep},
};

use super::seen::Seen;
use crate::turns::TenantId;

/// Less than a caller waits, by default.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// How often a build that pauses asks whether processors are still busy.
const ASKED: Duration = Duration::from_millis(20);

pub(super) struct Builds {
    cores: usize,
    paces: Mutex<HashMap<TenantId, Arc<Pace>>>,
    /// How long builds take.
    usual: Mutex<Duration>,
}

/// Of one tenant.
struct Pace {
    /// Builds that pause: the first in line is let through first.
    line: Turnstile<()>,
    /// When the next one may begin.
    due: Mutex<Instant>,
}

/// A build that has begun. Pass it to [`FairShare::built`](super::FairShare::built).
pub(crate) struct Building {
    /// `None` if processors were not busy.
    pace: Option<Arc<Pace>>,
    /// The pause that is counted already.
    pause: Duration,
    /// Among how many tenants.
    tenants: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics under it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Builds {
    pub(super) fn new(cores: usize) -> Self {
        Self { cores, paces: Mutex::default(), usual: Mutex::default() }
    }

    /// Among how many tenants processors are shared, if they are busy with others' calls.
    fn sharing(&self, tenant: TenantId, seen: &Seen) -> Option<u32> {
        let (threads, tenants) = seen.busy_for_others(tenant, Instant::now());
        (threads >= self.cores).then_some(tenants + 1)
    }

    pub(super) async fn begin(&self, tenant: TenantId, seen: &Seen) -> Building {
        let Some(tenants) = self.sharing(tenant, seen) else {
            return Building { pace: None, pause: Duration::ZERO, tenants: 0 };
        };
        let pace = self.pace(tenant);
        let _first = pace.line.lock().await;
        loop {
            let pause = lock(&pace.due).saturating_duration_since(Instant::now());
            if pause.is_zero() || self.sharing(tenant, seen).is_none() {
                break;
            }
            sleep(pause.min(ASKED)).await;
        }
        // What it is likely to take: the next one would else begin before this one has ended.
        let pause = self.pause(*lock(&self.usual), tenants);
        let now = Instant::now();
        *lock(&pace.due) = now + pause;
        Building { pace: Some(pace.clone()), pause, tenants }
    }

    fn pace(&self, tenant: TenantId) -> Arc<Pace> {
        let (mut paces, now) = (lock(&self.paces), Instant::now());
        if let Some(pace) = paces.get(&tenant) {
            return pace.clone();
        }
        paces.retain(|_, pace| Arc::strong_count(pace) > 1 || now < *lock(&pace.due));
        let pace = Arc::new(Pace { line: Turnstile::default(), due: Mutex::new(now) });
        paces.entry(tenant).or_insert(pace).clone()
    }

    /// For how long all cores are the others' after one has built for so long.
    fn pause(&self, took: Duration, tenants: u32) -> Duration {
        let cores = u32::try_from(self.cores).unwrap_or(u32::MAX).max(1);
        (took.saturating_mul(tenants) / cores).min(LONGEST_PAUSE)
    }

    pub(super) fn built(&self, building: &Building, took: Duration) {
        {
            let mut usual = lock(&self.usual);
            *usual = usual.saturating_mul(3).saturating_add(took) / 4;
        }
        let Some(pace) = &building.pace else { return };
        let more = self.pause(took, building.tenants).saturating_sub(building.pause);
        let (now, mut due) = (Instant::now(), lock(&pace.due));
        *due = ((*due).max(now) + more).min(now + LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// Has this thread be busy for these tenants, from now on for a while.
    fn busy(seen: &Seen, tenants: std::ops::Range<u64>) {
        let now = Instant::now();
        for tenant in tenants {
            seen.add(TenantId(tenant), Duration::from_millis(1), now);
        }
        seen.add(TenantId(1), Duration::from_secs(1), now + ASKED);
    }

    /// Whether a build waits for longer than this.
    async fn waits(builds: &Builds, seen: &Seen, tenant: u64, longer: Duration) -> bool {
        timeout(longer, builds.begin(TenantId(tenant), seen)).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenants_next_build_begins_when_the_others_had_as_much_of_the_processors() {
        let (builds, seen, took) = (Builds::new(1), Seen::of_busy_threads(), Duration::from_millis(100));
        let busy = || busy(&seen, 1..10);
        busy();
        let building = builds.begin(TenantId(50), &seen).await;
        builds.built(&building, took);
        busy();
        let began = Instant::now();
        assert!(!waits(&builds, &seen, 51, Duration::ZERO).await, "another's first");
        // Nine share with it.
        while waits(&builds, &seen, 50, ASKED / 2).await {
            busy();
        }
        let paused = began.elapsed();
        assert!(paused + ASKED >= took * 10 && paused <= took * 10 + ASKED, "{paused:?}");
        busy();
        assert!(
            waits(&builds, &seen, 50, ASKED / 2).await,
            "what the one before takes is not known yet, but reckoned with"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_pauses_where_processors_are_not_busy_or_busy_for_itself() {
        let (builds, seen) = (Builds::new(1), Seen::of_busy_threads());
        for tenants in [1..1, 1..2] {
            for _ in 0..3 {
                busy(&seen, tenants.clone());
                let building = builds.begin(TenantId(1), &seen).await;
                assert!(building.pace.is_none());
                builds.built(&building, Duration::MAX);
            }
        }
        busy(&seen, 1..3);
        let building = builds.begin(TenantId(1), &seen).await;
        builds.built(&building, Duration::MAX);
        let began = Instant::now();
        builds.begin(TenantId(1), &seen).await;
        assert!(began.elapsed() <= 10 * ASKED, "they are not busy any more");
    }
}
