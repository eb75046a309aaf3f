//! What the state keeps of each runtime, build and caller.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use super::{
    super::{Refused, Resident, RevisionId},
    AdmissionSender, Age, AnswerSender, BuildId, Effect, Grant, PlaceId,
    uses::Often,
};
use crate::error::Error;

pub(super) struct Waiter<R: Resident> {
    pub(super) age: Age,
    pub(super) since: Instant,
    pub(super) to: AnswerSender<R>,
}

/// A runtime that is called again within this time is called without a pause.
const PAUSE: Duration = Duration::from_millis(10);

/// A runtime that serves. `idle ≤ instances`; a lease stands for one instance that is not idle.
pub(super) struct Live<R: Resident> {
    pub(super) resident: R,
    pub(super) place: PlaceId,
    pub(super) leases: usize,
    /// Instances that it may have.
    pub(super) most: usize,
    /// Permits out for it, whatever their instance is doing.
    pub(super) instances: usize,
    /// Instances in its pool that are set aside for nobody.
    pub(super) idle: usize,
    /// Idle instances that are being dropped for somebody's permit.
    pub(super) reaping: usize,
    /// A spare instance is being made for it.
    pub(super) sparing: bool,
    pub(super) waiters: VecDeque<Waiter<R>>,
    /// Calls that came one after the other, without a pause.
    pub(super) streak: u32,
    /// A newcomer is to get its place. New leases queue until the runtime is evicted, or no longer needed.
    pub(super) reserved: bool,
    /// The youngest caller that the reservation lets pass: whoever waited when the runtime came free is served once more.
    pub(super) last_round: Option<Age>,
    /// Its key in `permit_waiters`.
    pub(super) awaits_permit: Option<Age>,
    pub(super) opened: Instant,
    pub(super) last_used: Instant,
    pub(super) uses: u64,
    /// What [`lfu`](crate::config::Eviction::Lfu) goes by.
    pub(super) often: Often,
}

pub(super) enum Phase<R: Resident> {
    /// Its bytes are being fetched; it holds nothing.
    Fetching,
    /// In `build_queue` under this age.
    Queued { age: Age, to: AdmissionSender<R> },
    /// It holds a place and the permit of its probe instance.
    Placed { place: PlaceId, since: Instant },
}

pub(super) struct Build<R: Resident> {
    pub(super) id: BuildId,
    /// How long it took to fetch the plugin.
    pub(super) fetched: Duration,
    pub(super) phase: Phase<R>,
    pub(super) waiters: VecDeque<Waiter<R>>,
    #[expect(dead_code, reason = "its drop tells the builder that nobody wants the outcome")]
    pub(super) wanted: oneshot::Sender<Infallible>,
}

/// A runtime on its way out, or a build whose outcome nobody wants any more.
pub(super) struct Draining<R> {
    pub(super) revision: RevisionId,
    pub(super) resident: Option<R>,
    pub(super) leases: usize,
    /// Permits out for it.
    pub(super) instances: usize,
    /// Of these, instances that nobody uses and that are being dropped.
    pub(super) reaping: usize,
    /// Bytes that come back with its place, and those that its tenant is charged for.
    pub(super) frees: u64,
    pub(super) frees_in_full: u64,
    pub(super) coming: Coming,
}

/// When a place that drains is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coming {
    /// Once leases have ended and guests have returned.
    Later,
    /// Any moment since then, so it counts as `closing`: only the engine's objects are left.
    Soon { since: Instant },
    /// It should have been long ago. Nobody counts on it any more.
    Overdue,
}

pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) until: Instant,
}

impl<R: Resident> Live<R> {
    /// Whether a caller of this age waits until the reservation is settled. A reservation holds back every caller that is
    /// younger than the oldest build that waits for a place, but for the last round.
    pub(super) fn holds_back(&self, age: Age, eldest_build: Option<Age>) -> bool {
        let last = self.last_round.is_some_and(|last| age <= last);
        self.reserved && !last && eldest_build.is_some_and(|build| build < age)
    }

    /// Lets those pass that it holds back, as many as it can serve at once, if it has not done so before: a hot runtime
    /// serves whom it can before it goes, and whoever waits for its place waits for one evaluation more.
    pub(super) fn begin_last_round(&mut self) -> bool {
        let first = self.last_round.is_none();
        if first {
            let last = self.most.clamp(1, self.waiters.len().max(1)) - 1;
            self.last_round = self.waiters.get(last).map(|waiter| waiter.age);
        }
        first && self.last_round.is_some()
    }

    /// Its place is not wanted any more.
    pub(super) fn give_up_reservation(&mut self) {
        self.reserved = false;
        self.last_round = None;
    }

    /// Unleased, and nobody waits for it but callers that a reservation holds back.
    pub(super) fn evictable(&self, eldest_build: Option<Age>) -> bool {
        let waits = |waiter: &Waiter<R>| !self.holds_back(waiter.age, eldest_build);
        self.leases == 0 && !self.waiters.front().is_some_and(waits)
    }

    /// Notes a call. True when the runtime was called without a pause for more than `park_after` calls.
    pub(super) fn called(&mut self, now: Instant, park_after: u32, period: u64) -> bool {
        let pause = now.saturating_duration_since(self.last_used);
        self.streak = if pause < PAUSE { self.streak.saturating_add(1) } else { 0 };
        self.last_used = now;
        self.often.used(1, period);
        self.streak > park_after
    }

    pub(super) fn grant(&mut self, revision: RevisionId, idle: bool, build: Duration) -> Grant<R> {
        self.leases += 1;
        self.uses += 1;
        Grant { resident: self.resident.clone(), revision, place: self.place, idle, build, hot: false }
    }
}

/// Callers come in order of age, except those whose runtime was evicted while they waited: they come again with their old
/// age.
pub(super) fn insert_by_age<R: Resident>(waiters: &mut VecDeque<Waiter<R>>, waiter: Waiter<R>) {
    let at = waiters.partition_point(|other| other.age < waiter.age);
    waiters.insert(at, waiter);
}

/// Gives each of them the same answer.
pub(super) fn refuse<R: Resident>(waiters: VecDeque<Waiter<R>>, refused: &Refused) -> impl Iterator<Item = Effect<R>> {
    waiters.into_iter().map(|waiter| Effect::Answer { to: waiter.to, answer: Err(refused.clone()) })
}

impl<R> Draining<R> {
    /// Call after each change. True the first time that no lease is out and no guest runs.
    pub(super) fn ends_soon(&mut self, now: Instant) -> bool {
        let first = self.coming == Coming::Later && self.leases == 0 && self.instances <= self.reaping;
        if first {
            self.coming = Coming::Soon { since: now };
        }
        first
    }

    /// True the first time that it should have ended `within` this time.
    pub(super) fn is_overdue(&mut self, now: Instant, within: Duration) -> bool {
        let overdue = matches!(self.coming, Coming::Soon { since } if now.saturating_duration_since(since) >= within);
        if overdue {
            self.coming = Coming::Overdue;
        }
        overdue
    }

    /// Whether it counts as `closing`.
    pub(super) fn is_closing(&self) -> bool {
        matches!(self.coming, Coming::Soon { .. })
    }
}
