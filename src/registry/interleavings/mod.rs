//! The registry, its leases and its close protocol under a [`scheduler`] that picks, at random, who goes on: thousands of
//! schedules of a few callers, builders, closers and a sweeper, with cancels and deadlines at random. The invariants are
//! checked after every step.
//!
//! `RUSTFLAGS='--cfg evalpool_shuttle' cargo test --release --lib --no-default-features --target-dir target/shuttle
//! interleavings` picks at every lock, and without the flag, as in `cargo test`, at every await. `EVALPOOL_SCHEDULES` sets
//! how many schedules. The target directory is one of its own because other flags build every dependency anew.

mod scheduler;

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex as StdMutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::time::Instant;

use self::scheduler::{block_on, check, draw, once_in, patience, spawn, yield_now, yield_thread};
use super::{
    Admission, BuildTicket, Claim, CloseReason, Counts, Epoch, InstancePermit, Lease, Limits, Place, Quotas, Refused,
    Registry, Resident, RevisionId, ThreadCache,
};
use crate::{
    background::Background,
    config::{Eviction, TenantBounds},
    error::Error,
    memory::{MemoryBudget, Weight},
    metrics::Metrics,
    turns::{TenantId, Weights},
};

/// Leases that were parked, in all schedules: it must have been tried.
static PARKED: AtomicUsize = AtomicUsize::new(0);

/// Builds that gave way.
static RENOUNCED: AtomicUsize = AtomicUsize::new(0);

struct World {
    limits: Limits,
    /// What each tenant may have, unless that changes.
    bounds: Option<TenantBounds>,
    opens: AtomicUsize,
    closes: AtomicUsize,
    /// Runtimes, from admission until their last owner is gone.
    exist: AtomicUsize,
    instances: AtomicUsize,
}

/// Counts one thing for as long as it lives, and never more than `most`.
struct Counted(Arc<World>, fn(&World) -> &AtomicUsize);

impl Counted {
    fn runtime(world: &Arc<World>) -> Self {
        Self::new(world, |world| &world.exist, world.limits.capacity)
    }

    /// Made under a permit, and dropped before it: there are never more than permits.
    fn instance(world: &Arc<World>, permit: InstancePermit<Fake>) -> Instance {
        let Counts { idle, busy, .. } = permit.place.inner.registry.lock().counts();
        (Self::new(world, |world| &world.instances, idle + busy), permit)
    }

    fn new(world: &Arc<World>, which: fn(&World) -> &AtomicUsize, most: usize) -> Self {
        let now = which(world).fetch_add(1, Ordering::SeqCst) + 1;
        assert!(now <= most, "{now} exist where {most} may");
        Self(world.clone(), which)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.1)(&self.0).fetch_sub(1, Ordering::SeqCst);
    }
}

type Instance = (Counted, InstancePermit<Fake>);

/// What a thread parks.
type Parked = (Lease<Fake>, Instance);

type Cache = Arc<ThreadCache<Parked>>;

/// A runtime with nothing in it but its accounting.
#[derive(Clone)]
struct Fake(Arc<FakeInner>);

struct FakeInner {
    idle: StdMutex<Vec<Instance>>,
    leases: AtomicUsize,
    max_instances: usize,
    /// Where its leases are parked, once any is.
    parking: OnceLock<Cache>,
    world: Arc<World>,
    _exists: Counted,
    place: Place<Fake>,
}

impl Drop for FakeInner {
    fn drop(&mut self) {
        assert_eq!(self.leases.load(Ordering::SeqCst), 0, "closed under a lease");
        self.world.closes.fetch_add(1, Ordering::SeqCst);
    }
}

impl Resident for Fake {
    fn weight(&self) -> Weight {
        Weight::default()
    }

    fn place(&self) -> &Place<Self> {
        &self.0.place
    }

    fn max_instances(&self) -> usize {
        self.0.max_instances
    }

    fn retire(self, idle: usize, _leased: bool, _grace: Option<Duration>) {
        // Some time later, as the closing task would.
        drop(spawn(async move {
            yield_now().await;
            for _ in 0..idle {
                self.reap();
            }
            drop(self);
        }));
    }

    fn shorten_grace(&self, _grace: Duration) {}

    fn drained(&self) {}

    fn reap(&self) {
        let instance = self.0.idle.lock().unwrap().pop();
        drop(instance);
    }

    fn last_parked_use(&self) -> Option<Instant> {
        self.0.parking.get().and_then(|cache| cache.history().1)
    }

    fn reclaim(&self, only_unused: bool) -> Vec<Lease<Self>> {
        let Some(cache) = self.0.parking.get() else { return Vec::new() };
        let is_ours = |(lease, _): &Parked| lease.resident().is_some_and(|fake| Arc::ptr_eq(&fake.0, &self.0));
        let parked = if only_unused { cache.reclaim_unused() } else { cache.reclaim(is_ours) };
        parked.into_iter().map(unpark).collect()
    }
}

/// Puts an instance back into its runtime's pool, and gives the lease to be ended.
fn unpark((mut lease, instance): Parked) -> Lease<Fake> {
    lease.resident().unwrap().0.idle.lock().unwrap().push(instance);
    lease.give_back();
    lease
}

/// One use of a runtime under a lease, wherever it ends.
struct InUse(Fake);

impl InUse {
    fn new(fake: Fake) -> Self {
        fake.0.leases.fetch_add(1, Ordering::SeqCst);
        Self(fake)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.0.leases.fetch_sub(1, Ordering::SeqCst);
    }
}

fn limits() -> Limits {
    Limits {
        capacity: draw(1..4),
        eviction: if once_in(2) { Eviction::Lru } else { Eviction::Lfu },
        max_instances: draw(1..5),
        compiling: draw(1..4),
        max_waiting: 64,
        negative_ttl: Duration::ZERO,
        park_after: 0,
    }
}

/// What each tenant may have.
fn bounds() -> TenantBounds {
    TenantBounds {
        runtimes: once_in(2).then(|| draw(1..3)),
        instances: once_in(2).then(|| draw(1..4)),
        build_concurrency: once_in(3).then(|| draw(1..3)),
        max_waiting: once_in(3).then(|| draw(0..3)),
        ..TenantBounds::default()
    }
}

impl World {
    fn assert_within(&self, registry: &Registry<Fake>, tenant: TenantId) {
        let Some(bounds) = self.bounds else { return };
        let holds = registry.held_by(tenant);
        let within = |held, bound: Option<usize>| bound.is_none_or(|bound| held <= bound);
        assert!(within(holds.runtimes, bounds.runtimes) && within(holds.instances, bounds.instances), "{holds:?}");
    }
}

async fn build(world: Arc<World>, ticket: BuildTicket<Fake>) {
    let Some(admission) = ticket.admit(Duration::ZERO).await else { return ticket.abandon() };
    let Admission { place, permit, compiling } = admission;
    let exists = Counted::runtime(&world);
    // Another build may want the slot of one that nobody waits for, now or a little later.
    for _ in 0..2 {
        yield_now().await;
        if once_in(3) && ticket.interest().renounce() {
            RENOUNCED.fetch_add(1, Ordering::SeqCst);
            drop((exists, permit, place));
            return ticket.fail(&Error::Cancelled);
        }
    }
    match draw(0..8) {
        0 => {
            drop((exists, permit, place));
            return ticket.fail(&Error::invalid_plugin("told to fail"));
        }
        // As a panic would.
        1 => return,
        _ => {}
    }
    // The next build is admitted now, or once this runtime serves.
    let _compiling = once_in(2).then_some(compiling);
    let probe = Counted::instance(&world, permit);
    world.opens.fetch_add(1, Ordering::SeqCst);
    place.opened();
    let fake = Fake(Arc::new(FakeInner {
        idle: StdMutex::new(vec![probe]),
        leases: AtomicUsize::new(0),
        max_instances: draw(1..3),
        parking: OnceLock::new(),
        world,
        _exists: exists,
        place,
    }));
    if let Err(unwanted) = ticket.publish(fake) {
        drop(unwanted);
    }
}

/// Whether the instance goes back, and where to. `epoch` is that of a lease that was parked before.
fn end(lease: Lease<Fake>, instance: Instance, cache: &Cache, epoch: Option<Epoch>) {
    if once_in(3) {
        let fake = lease.resident().unwrap().clone();
        drop(instance);
        drop(lease);
        return make_spare(fake);
    }
    let now = cache.epoch();
    let parking = &lease.resident().unwrap().0.parking;
    cache.open();
    let is_ours = || Arc::ptr_eq(parking.get_or_init(|| cache.clone()), cache);
    let may_park = || lease.is_hot() && is_ours() && lease.may_park();
    let parked = match epoch.or_else(|| may_park().then_some(now)) {
        Some(epoch) => match cache.park((lease, instance), epoch) {
            Ok(()) => {
                PARKED.fetch_add(1, Ordering::SeqCst);
                return;
            }
            Err(parked) => parked,
        },
        None => (lease, instance),
    };
    drop(unpark(parked));
}

fn make_spare(fake: Fake) {
    let Some(permit) = fake.0.place.reserve_spare() else { return };
    drop(spawn(async move {
        yield_now().await;
        let ready = !once_in(5);
        if ready {
            let spare = Counted::instance(&fake.0.world, permit);
            fake.0.idle.lock().unwrap().push(spare);
        } else {
            drop(permit);
        }
        fake.0.place.spare_ended(ready);
    }));
}

async fn evaluate(world: Arc<World>, registry: Registry<Fake>, revision: RevisionId, cache: Cache) {
    let parked = cache.take(|(lease, _): &Parked| lease.revision() == revision, Instant::now());
    let (lease, instance, epoch) = if let Some(((mut lease, instance), epoch)) = parked {
        lease.use_again(Instant::now());
        (lease, instance, Some(epoch))
    } else {
        let start = |ticket| drop(spawn(build(world.clone(), ticket)));
        let deadline = Instant::now() + patience();
        let leased = registry.lease(revision, &mut None, deadline, Duration::ZERO, true, start).await;
        let Ok(mut lease) = leased else { return };
        world.assert_within(&registry, revision.tenant);
        let instance = match lease.claim().unwrap() {
            Claim::Idle => {
                let idle = lease.resident().unwrap().0.idle.lock().unwrap().pop();
                idle.expect("what is set aside is there")
            }
            Claim::Make(permit) => Counted::instance(&world, permit),
        };
        (lease, instance, None)
    };
    let in_use = InUse::new(lease.resident().unwrap().clone());
    // As a guest that is polled once, or that waits.
    if once_in(2) {
        yield_now().await;
    } else {
        yield_thread();
    }
    drop(in_use);
    end(lease, instance, &cache, epoch);
}

/// Polls a future to its end, or drops it at some await.
async fn perhaps_cancelled(future: impl Future<Output = ()>) {
    let mut future = pin!(future);
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Pending if once_in(10) => Poll::Ready(()),
        polled => polled,
    })
    .await;
}

fn gauges(metrics: &PrometheusHandle) -> HashMap<String, usize> {
    let rendered = metrics.render();
    let lines = rendered.lines().filter(|line| line.starts_with("evalpool_") && line.contains("_live{"));
    lines
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

/// One world, from empty to empty.
fn scenario() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let metrics = metrics::with_local_recorder(&recorder, Metrics::new);
    let limits = limits();
    let none = AtomicUsize::default;
    let (first, change) = (bounds(), once_in(2).then(bounds));
    let bounds = change.is_none().then_some(first);
    let world = Arc::new(World { limits, bounds, opens: none(), closes: none(), exist: none(), instances: none() });
    let registry: Registry<Fake> = Registry::new(limits, MemoryBudget::new(u64::MAX), metrics, Background::default());
    registry.set_quotas(Quotas::new(first, []), Weights::default());
    let tenants = draw(1..4) as u64;
    let revision = move |evaluator| RevisionId { evaluator, number: evaluator, tenant: TenantId(evaluator % tenants) };
    // The first two are revisions of one evaluator: they share its cache.
    let caches: [Cache; 3] = Default::default();
    block_on(async {
        let mut tasks = Vec::new();
        for caller in 0..5_u64 {
            let (world, registry, caches) = (world.clone(), registry.clone(), caches.clone());
            tasks.push(spawn(async move {
                for call in [0, 0, 1] {
                    let evaluator = (caller + call) % 4;
                    let cache = caches[evaluator.saturating_sub(1) as usize].clone();
                    let evaluation = evaluate(world.clone(), registry.clone(), revision(evaluator), cache);
                    perhaps_cancelled(evaluation).await;
                }
            }));
        }
        let closer = registry.clone();
        tasks.push(spawn(async move {
            yield_now().await;
            let mut gone = closer.unload(revision(0), Duration::ZERO);
            let refused = Refused::Error(Error::Closed { name: "one".into(), interrupted: false });
            closer.retire(revision(1), CloseReason::Closed, None, &refused);
            closer.look_after();
            closer.sweep(|_| Duration::ZERO);
            closer.look_after();
            closer.settle();
            // What is closing now takes too long.
            let later = Instant::now() + Duration::from_mins(1);
            closer.inner.apply(|state| state.give_up_overdue(later));
            yield_now().await;
            if let Some(bounds) = change {
                closer.set_quotas(Quotas::new(bounds, []), Weights::default());
            }
            gone.wait().await;
        }));
        for task in tasks {
            task.await.unwrap();
        }
        registry.shut_down(None);
        let mut gone = registry.gone(|_| true);
        gone.wait().await;
    });
    assert_eq!(world.exist.load(Ordering::SeqCst), 0, "runtimes are left");
    assert_eq!(world.instances.load(Ordering::SeqCst), 0, "instances are left");
    assert_eq!(world.opens.load(Ordering::SeqCst), world.closes.load(Ordering::SeqCst), "opened once, closed once");
    assert_eq!(registry.counts(), Counts::default());
    for (name, value) in gauges(&handle) {
        assert_eq!(value, 0, "{name}");
    }
}

fn schedules(default: usize) -> usize {
    std::env::var("EVALPOOL_SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn no_schedule_breaks_a_promise() {
    check(scenario, schedules(if cfg!(evalpool_shuttle) { 5_000 } else { 2_000 }));
    assert!(PARKED.load(Ordering::SeqCst) > 100, "nothing was parked");
    assert!(RENOUNCED.load(Ordering::SeqCst) > 100, "nothing gave way");
}
