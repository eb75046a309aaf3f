//! Who runs where there are too few processors for all: they are shared by tenant, and counted in time.
//!
//! | who | what for |
//! |---|---|
//! | guests that run long | wait for a permit from their second tick on: `engine::direct`. There are as many as cores, and they go round by tenant |
//! | a tenant that takes more than its share | [waits](pace) with its next evaluation until the others had as much |
//! | a build, where processors are busy with others' calls | [waits](builds) until the others had as much as its tenant's last build took |
//!
//! A caller that waits here is not in its executor's queue, where a thousand callers of one tenant would stand before the
//! one of another. Nobody asks until there is a reason: threads [note](seen) who took how much of their time.
//!
//! Whoever holds a permit may run; dropping it hands it on to the first in the queue, and puts its tenant's next turn as far
//! back as the time that it took. So of fifty tenants whose guests want a processor each gets a fiftieth, whether it has one
//! guest or a thousand.
//!
//! Considered and not taken: priorities in the executor (tokio has none), and a second executor for long guests (it needs
//! threads, and a guest that has begun cannot move).

mod builds;
mod pace;
mod queue;
mod seen;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::oneshot,
    task::yield_now,
    time::{Instant, sleep, timeout},
};

pub(crate) use self::builds::Building;
use self::{builds::Builds, pace::Pace, queue::Queue, seen::Seen};
use crate::turns::{TenantId, Weights};

/// The longest that no permit is handed on while somebody waits for one. A permit is held by a future, which its owner may
/// never poll again, or which may block: that costs others this much time, and then there is another permit in its stead.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// How much more than others a tenant may have had to run before they have asked again. In microseconds.
const BEHIND: u64 = 100;

/// After this time, whoever waits until the others had as much looks for itself.
const LATE: Duration = Duration::from_secs(1);

/// For how long those who have asked are expected to ask again.
const AGAIN: Duration = Duration::from_millis(2);

/// Who runs on the processors, of all that one engine serves. Cheap to clone.
#[derive(Clone)]
pub struct FairShare(Arc<Shared>);

struct Shared {
    seen: Seen,
    pace: Pace,
    builds: Builds,
    /// Of permits.
    state: Mutex<State>,
}

struct State {
    free: usize,
    /// Permits in whose stead others were made.
    lost: usize,
    waiting: Queue<oneshot::Sender<Permit>>,
    weights: Weights,
    /// When a permit was last handed on.
    handed_on: Instant,
    /// Who last asked of those who have had no more than others, and who did last but it, and when.
    modest: [Option<(TenantId, Instant)>; 2],
    /// When it was last seen to that somebody looks again whether who is held back may run.
    asked_again: Option<Instant>,
}

impl State {
    /// Whether a tenant must not run, though there is a permit: it has had more than others, who have just asked and will
    /// again. In the moment in which none of them waits it would have a tick, in which they could have had fifty turns.
    fn is_held_back(&self, tenant: TenantId, now: Instant) -> bool {
        let behind = self.waiting.behind(tenant);
        let mut less = self.modest.iter().flatten().filter(|(modest, _)| self.waiting.behind(*modest) < behind);
        behind > BEHIND && less.any(|(_, asked)| now < *asked + AGAIN)
    }

    /// A tenant asks for a permit.
    fn asks(&mut self, tenant: TenantId, now: Instant) {
        if self.waiting.behind(tenant) > BEHIND {
            return;
        }
        if self.modest[0].is_none_or(|(last, _)| last != tenant) {
            self.modest[1] = self.modest[0];
        }
        self.modest[0] = Some((tenant, now));
    }

    /// The last turn of a tenant took so long: the heavier it is, the less that counts.
    fn spend(&mut self, tenant: TenantId, took: u64) {
        self.waiting.spend(tenant, took / u64::from(self.weights.of(tenant)));
    }

    /// Who runs next, if anybody may.
    fn next(&mut self, now: Instant) -> Option<oneshot::Sender<Permit>> {
        let first = self.waiting.first()?;
        if self.is_held_back(first, now) { None } else { self.waiting.take() }
    }
}

/// Looks who may go on, until nobody waits any more.
struct Looks {
    shared: Arc<Shared>,
    is_done: bool,
}

impl Drop for Looks {
    fn drop(&mut self) {
        if !self.is_done {
            self.shared.pace.give_up();
        }
    }
}

/// The right to run. Dropping it hands it on.
pub(crate) struct Permit {
    /// `None` once it is handed on.
    share: Option<FairShare>,
    tenant: TenantId,
    given: Instant,
    /// What its thread had used of a processor when its holder began. Who runs without a pause stays on one thread.
    since: Option<Duration>,
}

/// Leaves the queue when it is dropped.
struct Waiting<'a> {
    share: &'a FairShare,
    tenant: TenantId,
    age: u64,
}

impl FairShare {
    pub(crate) fn new(at_once: usize) -> Self {
        let now = Instant::now();
        let state = State {
            free: at_once,
            lost: 0,
            waiting: Queue::default(),
            weights: Weights::default(),
            handed_on: now,
            modest: [None; 2],
            asked_again: None,
        };
        let (seen, pace, builds) = (Seen::default(), Pace::new(at_once), Builds::new(at_once));
        Self(Arc::new(Shared { seen, pace, builds, state: Mutex::new(state) }))
    }

    /// How much of the time each tenant gets for one share of the others.
    pub(crate) fn set_weights(&self, weights: Weights) {
        self.0.pace.set_weights(weights.clone());
        self.state().weights = weights;
    }

    /// Notes that a tenant has used this thread for so long.
    pub(crate) fn note(&self, tenant: TenantId, used: Duration, now: Instant) {
        let Shared { seen, pace, .. } = &*self.0;
        pace.has_used(tenant, used);
        if let Some(tenant) = seen.add(tenant, used, now) {
            pace.begin(tenant, seen, now);
        }
    }

    /// Whether evaluations of this tenant [wait](Self::wait_for_others). Cheap where nobody does: every evaluation asks.
    pub(crate) fn paces(&self, tenant: TenantId) -> bool {
        self.0.pace.paces(tenant)
    }

    /// Waits until the others have had as much as this tenant. Cancel safe.
    pub(crate) async fn wait_for_others(&self, tenant: TenantId) {
        let Shared { seen, pace, .. } = &*self.0;
        let Some((mut go_on, must_look)) = pace.enter(tenant, seen, Instant::now()) else { return };
        if must_look {
            let mut looks = Looks { shared: self.0.clone(), is_done: false };
            tokio::spawn(async move {
                while !looks.is_done {
                    sleep(pace::LOOK).await;
                    looks.is_done = !looks.shared.pace.look(&looks.shared.seen, Instant::now());
                }
            });
        }
        // An error: nobody looks any more. Nor may somebody whose executor is not driven.
        while timeout(LATE, &mut go_on).await.is_err() {
            pace.look(seen, Instant::now());
        }
    }

    /// Waits until a build of this tenant may begin. Cancel safe.
    pub(crate) async fn begin_build(&self, tenant: TenantId) -> Building {
        self.0.builds.begin(tenant, &self.0.seen).await
    }

    /// Whether a build should take no more than what the others leave of the processors.
    pub(crate) fn gives_way(&self, building: &Building) -> bool {
        self.0.builds.gives_way(building, &self.0.seen)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Queue operations only.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A permit, once it is this tenant's turn. Cancel safe.
    async fn acquire(&self, tenant: TenantId) -> Permit {
        let (_waiting, mut permit) = {
            let (now, mut state) = (Instant::now(), self.state());
            state.asks(tenant, now);
            if state.free > 0 && !state.is_held_back(tenant, now) {
                state.free -= 1;
                state.waiting.pass(tenant);
                return Permit::new(Some(self), tenant, now);
            }
            let (to, permit) = oneshot::channel();
            let age = state.waiting.enter(tenant, to);
            if state.free > 0 {
                self.look_again(&mut state, now);
            }
            (Waiting { share: self, tenant, age }, permit)
        };
        loop {
            match timeout(LONGEST_WAIT, &mut permit).await {
                Ok(Ok(mut permit)) => {
                    permit.tenant = tenant;
                    return permit;
                }
                // Not met: the sender is in the queue until it has sent.
                Ok(Err(_)) => return Permit::new(None, tenant, Instant::now()),
                Err(_) => self.replace_lost(),
            }
        }
    }

    /// A permit that nobody with an earlier turn wants. Others may be about to come: the executor looks for what has come,
    /// and for tasks that have yielded, only when nothing else is ready. So a guest lets them come before it goes on. Cancel
    /// safe.
    pub(crate) async fn acquire_after_others(&self, tenant: TenantId) -> Permit {
        loop {
            let mut permit = self.acquire(tenant).await;
            yield_now().await;
            if self.state().waiting.precedes(tenant) {
                permit.since = Some(processor_time());
                return permit;
            }
            // Handed on, and not counted.
        }
    }

    /// Sees to it that somebody looks soon whether who is held back may run.
    fn look_again(&self, state: &mut State, now: Instant) {
        if state.asked_again.is_some_and(|asked| now < asked + LONGEST_WAIT) {
            return;
        }
        let Ok(handle) = Handle::try_current() else { return };
        state.asked_again = Some(now);
        let share = self.clone();
        handle.spawn(async move {
            sleep(AGAIN / 2).await;
            share.state().asked_again = None;
            share.run_more();
        });
    }

    /// Hands out permits that are free, to those who may run.
    fn run_more(&self) {
        loop {
            let now = Instant::now();
            let next = {
                let mut state = self.state();
                if state.free == 0 || state.waiting.is_empty() {
                    return;
                }
                let Some(next) = state.next(now) else { return self.look_again(&mut state, now) };
                state.free -= 1;
                state.handed_on = now;
                next
            };
            drop(next.send(Permit::new(Some(self), TenantId::default(), now)));
        }
    }

    /// Makes another permit if none was handed on for long.
    fn replace_lost(&self) {
        let now = Instant::now();
        {
            let mut state = self.state();
            if now < state.handed_on + LONGEST_WAIT || state.free > 0 {
                drop(state);
                return self.run_more();
            }
            state.lost += 1;
        }
        drop(Permit::new(Some(self), TenantId::default(), now));
    }
}

/// What this thread has used of a processor. Not the time that went by: a busy machine takes threads from theirs.
#[cfg(feature = "direct")]
pub(crate) fn processor_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(used.tv_sec.try_into().unwrap_or(0), used.tv_nsec.try_into().unwrap_or(0))
}

/// There is nobody to ask.
#[cfg(not(feature = "direct"))]
fn processor_time() -> Duration {
    Duration::ZERO
}

/// What turns are counted in.
fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Permit {
    fn new(share: Option<&FairShare>, tenant: TenantId, given: Instant) -> Self {
        Self { share: share.cloned(), tenant, given, since: None }
    }

    /// Lets the next one run, after this one's tenant has `used` a processor for so long; `None` if it did not begin.
    fn hand_on(&mut self, used: Option<Duration>) {
        let (Some(share), now) = (self.share.take(), Instant::now()) else { return };
        {
            let mut state = share.state();
            match used {
                Some(used) => state.spend(self.tenant, micros(used.min(LONGEST_WAIT))),
                None => state.waiting.give_back(self.tenant),
            }
            if state.lost > 0 && now >= self.given + LONGEST_WAIT {
                state.lost -= 1;
                return;
            }
        }
        loop {
            let next = {
                let mut state = share.state();
                let next = state.next(now);
                state.handed_on = now;
                if next.is_none() {
                    state.free += 1;
                    if !state.waiting.is_empty() {
                        share.look_again(&mut state, now);
                    }
                }
                next
            };
            let Some(next) = next else { return };
            // Outside the lock: this wakes another, unless it is gone.
            match next.send(Permit::new(Some(&share), TenantId::default(), now)) {
                Ok(()) => return,
                Err(mut back) => back.share = None,
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.share.state().waiting.leave(self.tenant, self.age);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let used = self.since.map(|since| processor_time().saturating_sub(since));
        self.hand_on(used);
    }
}

impl fmt::Debug for FairShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FairShare").finish_non_exhaustive()
    }
}
