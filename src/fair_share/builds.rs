//! When a tenant's next build may begin, where processors are busy with others' calls.
//!
//! A compile is no guest: it runs in a process of its own, or on threads of its own, takes a core or more until it is done,
//! and gives way to nobody but as the system sees to it. So what its tenant has of the processors is kept to its share by
//! when the next one begins: after a pause in which the others had as much. A tenant's first build never waits, nor does any
//! where processors are not busy; and no pause is longer than [`LONGEST_PAUSE`]. One that had to wait [gives
//! way](Building::gives_way): it is one of many, and nobody is in a hurry for all of them.

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

/// What a build is taken to need before any of its tenant has ended.
const USUAL: Duration = Duration::from_millis(100);

/// How often a build that pauses asks whether processors are still busy.
const ASKED: Duration = Duration::from_millis(20);

pub(super) struct Builds {
    cores: usize,
    paces: Mutex<HashMap<TenantId, Arc<Pace>>>,
}

/// Of one tenant.
struct Pace {
    /// Builds that pause: the first in line is let through first.
    line: Turnstile<()>,
    times: Mutex<Times>,
}

#[derive(Clone, Copy)]
struct Times {
    /// When the next one may begin.
    due: Instant,
    /// How long its builds take.
    usual: Duration,
}

/// A build that has begun: call [`built`](Self::built) when it has ended. One that is dropped instead came to nothing, and
/// its tenant pauses for nothing.
#[must_use]
pub(crate) struct Building {
    /// `None` if processors were not busy.
    paced: Option<Paced>,
}

struct Paced {
    pace: Arc<Pace>,
    cores: usize,
    /// Among how many tenants the processors are shared.
    tenants: u32,
    /// The pause that is counted already.
    pause: Duration,
    /// Whether its tenant had to wait.
    gives_way: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics under it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For how long all cores are the others' after one has built for so long.
fn pause(took: Duration, tenants: u32, cores: usize) -> Duration {
    let cores = u32::try_from(cores).unwrap_or(u32::MAX).max(1);
    (took.saturating_mul(tenants) / cores).min(LONGEST_PAUSE)
}

impl Builds {
    pub(super) fn new(cores: usize) -> Self {
        Self { cores, paces: Mutex::default() }
    }

    /// Among how many tenants processors are shared, if they are busy with others' calls.
    fn sharing(&self, tenant: TenantId, seen: &Seen) -> Option<u32> {
        let (threads, tenants) = seen.busy_for_others(tenant, Instant::now());
        (threads >= self.cores).then_some(tenants + 1)
    }

    pub(super) async fn begin(&self, tenant: TenantId, seen: &Seen) -> Building {
        if self.sharing(tenant, seen).is_none() {
            return Building { paced: None };
        }
        let pace = self.pace(tenant);
        let _first = pace.line.lock().await;
        let mut gives_way = false;
        loop {
            let Some(tenants) = self.sharing(tenant, seen) else { return Building { paced: None } };
            let now = Instant::now();
            let early = {
                let mut times = lock(&pace.times);
                let early = times.due.saturating_duration_since(now);
                if early.is_zero() {
                    // What it is likely to take: the next one would else begin before this one has ended.
                    let pause = pause(times.usual, tenants, self.cores);
                    times.due = now + pause;
                    let paced = Paced { pace: pace.clone(), cores: self.cores, tenants, pause, gives_way };
                    return Building { paced: Some(paced) };
                }
                early
            };
            gives_way = true;
            sleep(early.min(ASKED)).await;
        }
    }

    fn pace(&self, tenant: TenantId) -> Arc<Pace> {
        let (mut paces, now) = (lock(&self.paces), Instant::now());
        if let Some(pace) = paces.get(&tenant) {
            return pace.clone();
        }
        paces.retain(|_, pace| Arc::strong_count(pace) > 1 || now < lock(&pace.times).due);
        let times = Mutex::new(Times { due: now, usual: USUAL });
        paces.entry(tenant).or_insert(Arc::new(Pace { line: Turnstile::default(), times })).clone()
    }
}

impl Building {
    /// Whether it is one of many: its tenant had to wait for it until the others had as much.
    pub(crate) fn gives_way(&self) -> bool {
        self.paced.as_ref().is_some_and(|paced| paced.gives_way)
    }

    /// It has ended, after so long.
    pub(crate) fn built(mut self, took: Duration) {
        let Some(Paced { pace, cores, tenants, pause: counted, .. }) = self.paced.take() else { return };
        let (pause, now) = (pause(took, tenants, cores), Instant::now());
        let mut times = lock(&pace.times);
        times.usual = times.usual.saturating_mul(3).saturating_add(took) / 4;
        times.due = (times.due + pause).checked_sub(counted).unwrap_or(now).min(now + LONGEST_PAUSE);
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if let Some(Paced { pace, pause, .. }) = self.paced.take() {
            let mut times = lock(&pace.times);
            times.due = times.due.checked_sub(pause).unwrap_or(times.due);
        }
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
        building.built(took);
        busy();
        let began = Instant::now();
        assert!(!waits(&builds, &seen, 51, Duration::ZERO).await, "another's first");
        // Nine share with it.
        let next = loop {
            match timeout(ASKED / 2, builds.begin(TenantId(50), &seen)).await {
                Ok(next) => break next,
                Err(_) => busy(),
            }
        };
        let paused = began.elapsed();
        assert!(paused + ASKED >= took * 10 && paused <= took * 10 + ASKED, "{paused:?}");
        busy();
        assert!(
            waits(&builds, &seen, 50, ASKED / 2).await,
            "what the one before takes is not known yet, but reckoned with"
        );
        drop(next);
        busy();
        assert!(!waits(&builds, &seen, 50, ASKED / 2).await, "it came to nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_build_gives_way_if_its_tenant_had_to_wait_for_it() {
        let (builds, seen) = (Builds::new(1), Seen::of_busy_threads());
        busy(&seen, 1..3);
        let first = builds.begin(TenantId(50), &seen).await;
        assert!(!first.gives_way(), "it may be the only one");
        first.built(ASKED);
        busy(&seen, 1..3);
        assert!(builds.begin(TenantId(50), &seen).await.gives_way());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_pauses_where_processors_are_not_busy_or_busy_for_itself() {
        let (builds, seen) = (Builds::new(1), Seen::of_busy_threads());
        for tenants in [1..1, 1..2] {
            for _ in 0..3 {
                busy(&seen, tenants.clone());
                let building = builds.begin(TenantId(1), &seen).await;
                assert!(building.paced.is_none());
                building.built(Duration::MAX);
            }
        }
        busy(&seen, 1..3);
        let building = builds.begin(TenantId(1), &seen).await;
        building.built(Duration::MAX);
        let began = Instant::now();
        drop(builds.begin(TenantId(1), &seen).await);
        assert!(began.elapsed() <= 10 * ASKED, "they are not busy any more");
    }
}
