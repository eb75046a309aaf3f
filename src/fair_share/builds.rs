//! When a tenant's next build may begin, where processors are busy with others' calls.
//!
//! A compile is no guest: it runs in a process of its own, or on threads of its own, takes a core or more until it is done,
//! and gives way to nobody but as the system sees to it. So what its tenant has of the processors is kept to its share by
//! when the next one begins: after a pause in which the others had as much. A tenant's first build never waits, nor does any
//! where processors are not busy; and no pause is longer than [`LONGEST_PAUSE`]. One that is one of
//! many [gives way](Builds::gives_way) while it compiles.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
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
    /// Builds that have begun and not ended.
    begun: AtomicUsize,
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
    tenant: TenantId,
    pace: Arc<Pace>,
    cores: usize,
    /// `None` if processors were not busy.
    paced: Option<Paced>,
}

struct Paced {
    /// Among how many tenants the processors are shared.
    tenants: u32,
    /// The pause that is counted already.
    pause: Duration,
    /// Whether its tenant had to wait.
    has_waited: bool,
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
        let pace = self.pace(tenant);
        let paced = self.wait(tenant, &pace, seen).await;
        pace.begun.fetch_add(1, Ordering::Relaxed);
        Building { tenant, pace, cores: self.cores, paced }
    }

    async fn wait(&self, tenant: TenantId, pace: &Pace, seen: &Seen) -> Option<Paced> {
        self.sharing(tenant, seen)?;
        let _first = pace.line.lock().await;
        let mut has_waited = false;
        loop {
            let (tenants, now) = (self.sharing(tenant, seen)?, Instant::now());
            let early = {
                let mut times = lock(&pace.times);
                let early = times.due.saturating_duration_since(now);
                if early.is_zero() {
                    // What it is likely to take: the next one would else begin before this one has ended.
                    let pause = pause(times.usual, tenants, self.cores);
                    times.due = now + pause;
                    return Some(Paced { tenants, pause, has_waited });
                }
                early
            };
            has_waited = true;
            sleep(early.min(ASKED)).await;
        }
    }

    /// Whether this is one of many: its tenant had to wait for it until the others had as much, or has others under way that
    /// began when processors were not busy.
    pub(super) fn gives_way(&self, building: &Building, seen: &Seen) -> bool {
        building.paced.as_ref().map_or_else(
            || building.pace.begun.load(Ordering::Relaxed) > 1 && self.sharing(building.tenant, seen).is_some(),
            |paced| paced.has_waited,
        )
    }

    fn pace(&self, tenant: TenantId) -> Arc<Pace> {
        let (mut paces, now) = (lock(&self.paces), Instant::now());
        if let Some(pace) = paces.get(&tenant) {
            return pace.clone();
        }
        // As often as there is no more room: all are looked at.
        if paces.len() == paces.capacity() {
            paces.retain(|_, pace| Arc::strong_count(pace) > 1 || now < lock(&pace.times).due);
        }
        let times = Mutex::new(Times { due: now, usual: USUAL });
        let pace = Pace { line: Turnstile::default(), times, begun: AtomicUsize::new(0) };
        paces.entry(tenant).or_insert(Arc::new(pace)).clone()
    }
}

impl Building {
    /// It has ended, after so long.
    pub(crate) fn built(mut self, took: Duration) {
        let Some(Paced { tenants, pause: counted, .. }) = self.paced.take() else { return };
        let (pause, now) = (pause(took, tenants, self.cores), Instant::now());
        let mut times = lock(&self.pace.times);
        times.usual = times.usual.saturating_mul(3).saturating_add(took) / 4;
        times.due = (times.due + pause).checked_sub(counted).unwrap_or(now).min(now + LONGEST_PAUSE);
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        self.pace.begun.fetch_sub(1, Ordering::Relaxed);
        if let Some(Paced { pause, .. }) = self.paced.take() {
            let mut times = lock(&self.pace.times);
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
    async fn a_build_that_is_one_of_many_of_its_tenant_gives_way_to_others() {
        let (builds, seen, tenant) = (Builds::new(1), Seen::of_busy_threads(), TenantId(50));
        let gives_way = |building: &Building| builds.gives_way(building, &seen);
        let before = [builds.begin(tenant, &seen).await, builds.begin(tenant, &seen).await];
        assert!(!before.iter().any(gives_way), "nobody else wants the processors");
        busy(&seen, 1..3);
        assert!(before.iter().all(gives_way));
        drop(before);
        let first = builds.begin(tenant, &seen).await;
        assert!(!gives_way(&first), "the only one");
        first.built(ASKED);
        busy(&seen, 1..3);
        assert!(gives_way(&builds.begin(tenant, &seen).await), "it had to wait");
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
