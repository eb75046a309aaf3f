//! A thread-local cache with reclaim: instances of a busy runtime stay with the threads that use them.
//!
//! Every lease and its end take the registry's one lock and publish the gauges: some thirty words that move from core to
//! core, which takes longer than a short guest runs. So when a reused instance comes back to a thread, the runtime is
//! called without pause and nobody waits for anything, the thread *parks* it: the instance and its lease go into the
//! thread's slot of the evaluator's cache. The next call on that thread takes both out again. That call touches no word
//! that another thread writes (counters and histograms of an installed recorder excepted).
//!
//! # A parked lease is an ordinary lease
//!
//! To the registry, its holder has simply not ended it yet. So a runtime with a parked lease is not closed, its instance
//! counts as busy, and none of the registry's rules knows about parking. Three things bring parked leases back:
//!
//! - **Reclaim.** Before the registry makes a caller wait, refuses it, evicts for it or makes an instance for it, it
//!   reclaims what is parked and decides again. Closing a runtime reclaims as well.
//! - **Disuse.** A task looks every 100 ms, and ends the leases of instances that were not used since it last looked. So
//!   0.2 s after the last call the gauges are exact and the idle time runs. [`Registry::settle`](super::Registry::settle)
//!   does it at once, before metrics are shown.
//! - **An end by itself**: an instance that trapped, or served `max_uses`, is dropped with its lease.
//!
//! # The order that makes reclaim safe
//!
//! A reclaim first advances the cache's epoch, then empties the slots one by one. An instance that is in use meanwhile
//! carries the epoch of its first parking; when it comes back, [`park`](ThreadCache::park) compares epochs under the slot's
//! lock and refuses, and its lease ends the ordinary way. So a lease is either in a slot when the reclaim empties it, or it
//! is never parked again. Whether a lease may be parked at all is decided under the registry's lock
//! ([`Lease::may_park`](super::Lease::may_park)) *after* its holder read the epoch: whoever begins to wait later reclaims
//! later, and that reclaim either finds the lease or has changed the epoch.
//!
//! Locks: a slot's lock is taken alone, never inside the registry's or another's, and nothing foreign runs under it.
//!
//! Considered and not taken: a registry in shards with a part of the bounds each (a caller could be refused while another
//! shard has room, and nobody would know which runtime was used least recently); loans that the registry counts apart from
//! leases (tried before: every rule then needs its exception); lock-free lists (they move as many words).

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

use tokio::time::Instant;

use super::sync::{Mutex, MutexGuard, PoisonError, own_slot, slots};

/// The cache of one evaluator, with a slot for each thread or few. The slots are made when one is first needed.
pub(crate) struct ThreadCache<T> {
    epoch: AtomicU64,
    slots: OnceLock<Box<[Slot<T>]>>,
}

/// Alone on its cache lines, and on those that the processor fetches with them.
#[repr(align(128))]
pub(crate) struct Slot<T>(Mutex<Parked<T>>);

struct Parked<T> {
    /// With the epoch that each may be parked under again. The one returned last is taken first.
    items: Vec<(T, Epoch)>,
    /// How many items, from the first on, were not taken since the last look for disuse.
    unused: usize,
    /// Items ever taken, and when the last one was.
    taken: u64,
    last_taken: Option<Instant>,
}

/// When an item was first parked, in reclaims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

impl<T> Default for ThreadCache<T> {
    fn default() -> Self {
        Self { epoch: AtomicU64::new(0), slots: OnceLock::new() }
    }
}

impl<T> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, Parked<T>> {
        // Nothing panics under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> ThreadCache<T> {
    fn all(&self) -> impl Iterator<Item = MutexGuard<'_, Parked<T>>> {
        self.slots.get().into_iter().flatten().map(Slot::lock)
    }

    /// Whether anything was ever parked here. Cheap: an evaluator that is called seldom asks nothing else.
    pub(crate) fn is_used(&self) -> bool {
        self.slots.get().is_some()
    }

    /// Makes the slots, if there are none yet. Do so before asking whether parking is allowed, so that the registry's lock
    /// orders it before every later reclaim.
    pub(crate) fn open(&self) -> &[Slot<T>] {
        self.slots.get_or_init(|| (0..slots()).map(|_| Slot(Mutex::default())).collect())
    }

    /// The epoch to park under. Read it before asking whether parking is allowed.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::SeqCst))
    }

    /// Takes the item that this thread parked last and that is `wanted`.
    pub(crate) fn take(&self, wanted: impl Fn(&T) -> bool, now: Instant) -> Option<(T, Epoch)> {
        let slots = self.slots.get()?;
        let mut own = slots.get(own_slot())?.lock();
        let at = own.items.iter().rposition(|(item, _)| wanted(item))?;
        own.unused = own.unused.min(at);
        own.taken += 1;
        own.last_taken = Some(now);
        Some(own.items.swap_remove(at))
    }

    /// Parks an item on this thread.
    ///
    /// # Errors
    ///
    /// The item, if anything was reclaimed since `epoch`: end its lease.
    pub(crate) fn park(&self, item: T, epoch: Epoch) -> Result<(), T> {
        let slots = self.open();
        let Some(own) = slots.get(own_slot()) else { return Err(item) };
        let mut own = own.lock();
        // Under the lock: see the order above.
        if self.epoch() != epoch {
            return Err(item);
        }
        own.items.push((item, epoch));
        Ok(())
    }

    /// Takes out all that is `wanted`, and sees to it that nothing in use is parked again.
    pub(crate) fn reclaim(&self, wanted: impl Fn(&T) -> bool) -> Vec<T> {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        let mut reclaimed = Vec::new();
        for mut slot in self.all() {
            reclaimed.extend(slot.items.extract_if(.., |(item, _)| wanted(item)).map(|(item, _)| item));
            slot.unused = 0;
        }
        reclaimed
    }

    /// Takes out all that was not used since this was last called.
    pub(crate) fn reclaim_unused(&self) -> Vec<T> {
        let mut reclaimed = Vec::new();
        for mut slot in self.all() {
            let unused = slot.unused.min(slot.items.len());
            reclaimed.extend(slot.items.drain(..unused).map(|(item, _)| item));
            slot.unused = slot.items.len();
        }
        reclaimed
    }

    /// How many items were ever taken, and when the last one was.
    pub(crate) fn history(&self) -> (u64, Option<Instant>) {
        self.all().fold((0, None), |(taken, last), slot| (taken + slot.taken, last.max(slot.last_taken)))
    }
}

impl<T> Default for Parked<T> {
    fn default() -> Self {
        Self { items: Vec::new(), unused: 0, taken: 0, last_taken: None }
    }
}
