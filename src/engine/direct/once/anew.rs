//! When a state is read anew, and that somebody compiles it then.
//!
//! Who will compile it [waits](Anew::wait) for it, from before it is read until it is compiled. If whoever waits is gone before
//! that, as when its runtime ends, what was read is given up, and its turn with it: another plugin's next instance may take it.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::Instant,
};

use super::{Recorded, Refreshes, Turn, nanos};
use crate::turns::TenantId;

/// When nothing is to be read anew.
const NEVER: u64 = u64::MAX;

/// How long the pause is after an attempt to make one anew that others ended. Twice as long after each more of them, but no
/// longer than a snapshot may get old.
const AGAIN: Duration = Duration::from_mins(1);

/// How long a plugin does not ask for a turn after it did in vain: each of its instances would ask.
pub(super) const ASKS_AGAIN: Duration = Duration::from_millis(100);

/// When the next is read anew, and what was.
pub(super) struct Anew {
    /// How old a snapshot gets before it is made anew, if it is.
    pub(super) every: Option<Duration>,
    tenant: TenantId,
    pub(super) refreshes: Arc<Refreshes>,
    pub(super) began: Instant,
    /// From when on an instance is to be read anew, in nanoseconds since `began`; [`NEVER`] where none is, or while it is.
    pub(super) due: AtomicU64,
    /// How often others ended an attempt since one was made.
    pub(super) ended: AtomicU32,
    /// Told when something was read anew, and at the end.
    told: Arc<Notify>,
    state: Mutex<Handed>,
}

#[derive(Default)]
struct Handed {
    /// Who would compile what is read. Without, there is nothing to compile.
    waiting: usize,
    /// To be compiled. Its turn goes with it.
    read: Option<Arc<Recorded>>,
}

impl Anew {
    pub(super) fn new(every: Option<Duration>, tenant: TenantId, refreshes: Arc<Refreshes>) -> Arc<Self> {
        Arc::new(Self {
            every,
            tenant,
            refreshes,
            began: Instant::now(),
            due: AtomicU64::new(NEVER),
            ended: AtomicU32::new(0),
            told: Arc::default(),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, Handed> {
        // Nothing panics under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn to read an instance anew, if that is due; `may` says whether there would be room for what comes of it.
    pub(super) fn turn(&self, may: impl FnOnce() -> bool) -> Option<(Turn, Instant)> {
        let due = self.due.load(Ordering::Relaxed);
        if due == NEVER {
            return None;
        }
        let now = Instant::now();
        // Nobody reads what nobody would compile.
        if due > self.nanos(now) || self.state().waiting == 0 || !may() {
            return None;
        }
        let turn = self.refreshes.turn(self.tenant, now);
        let then = if turn.is_some() { NEVER } else { self.nanos(now).saturating_add(nanos(ASKS_AGAIN)) };
        // Another may have been faster.
        self.due.compare_exchange(due, then, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        turn.map(|turn| (turn, now))
    }

    fn nanos(&self, at: Instant) -> u64 {
        nanos(at.saturating_duration_since(self.began))
    }

    /// Another may be read from then on.
    pub(super) fn due_after(&self, from: Instant, pause: Duration) {
        let due = self.nanos(from).saturating_add(nanos(pause));
        self.due.store(due, Ordering::Relaxed);
    }

    /// Not before that, whatever was said. To be called before the turn is given up.
    fn not_before(&self, from: Instant, pause: Duration) {
        let due = self.nanos(from).saturating_add(nanos(pause));
        self.due.fetch_max(due, Ordering::Relaxed);
    }

    /// The pause after an attempt that others ended.
    pub(super) fn again(&self) -> Duration {
        let times = self.ended.fetch_add(1, Ordering::Relaxed).min(16);
        AGAIN.saturating_mul(1 << times).min(self.every.unwrap_or(AGAIN))
    }

    /// What was read and is to be compiled.
    pub(super) fn read(&self) -> Option<Arc<Recorded>> {
        self.state().read.clone()
    }

    /// Hands on what was read to whoever waits; it is given up if nobody does any more.
    pub(super) fn hand_on(&self, recorded: &Arc<Recorded>) {
        let mut state = self.state();
        state.read = Some(recorded.clone());
        let is_waited_for = state.waiting > 0;
        drop(state);
        if is_waited_for {
            self.told.notify_one();
        } else {
            self.leave(recorded);
        }
    }

    /// The first instance was read, later than whoever compiles expected.
    pub(super) fn tell(&self) {
        if self.state().waiting > 0 {
            self.told.notify_one();
        }
    }

    /// Whether this is still to be compiled. From now on it is not.
    pub(super) fn take(&self, recorded: &Recorded) -> bool {
        let taken = self.state().read.take_if(|read| std::ptr::eq(&raw const **read, recorded));
        // Dropped without the lock.
        taken.is_some()
    }

    /// What was read is not compiled, unless it was already. Another is read after a while: that of an attempt that others
    /// ended, if none is given.
    pub(super) fn give_up(&self, recorded: &Recorded, pause: Option<Duration>) {
        if self.take(recorded) {
            self.due_after(Instant::now(), pause.unwrap_or_else(|| self.again()));
        }
    }

    /// For whoever compiles what is read next: ends when it was, or when there will be none.
    pub(super) fn wait(self: &Arc<Self>) -> Wait {
        self.state().waiting += 1;
        Wait { told: Box::pin(self.told.clone().notified_owned()), anew: self.clone() }
    }

    /// Whoever would compile it has left. It is given up unless it was compiled, and the next turns are left to other plugins.
    pub(super) fn leave(&self, recorded: &Recorded) {
        self.give_up(recorded, None);
        if let Some(turn) = &recorded.turn {
            self.not_before(Instant::now(), turn.pause());
        }
    }

    /// Nothing is compiled any more.
    pub(super) fn end(&self) {
        let read = self.state().read.take();
        drop(read);
        self.told.notify_one();
    }
}

/// Ends when something was read anew. If it is dropped, ended or not, that is given up unless it was compiled.
pub(super) struct Wait {
    told: Pin<Box<OwnedNotified>>,
    anew: Arc<Anew>,
}

impl Future for Wait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.told.as_mut().poll(context)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut state = self.anew.state();
        state.waiting -= 1;
        let left = state.read.clone().filter(|_| state.waiting == 0);
        drop(state);
        if let Some(recorded) = left {
            self.anew.leave(&recorded);
        }
    }
}
