//! Instances that the registry lends to the threads that use them, so that a busy runtime's calls need not come by its
//! lock.
//!
//! Every lease and its end take the registry's one lock, and each gives the gauges their values: some thirty words that
//! move from core to core, more than a short guest takes. So where nobody waits for anything, an instance of a runtime
//! that is called without pause goes back not to the registry but to the *shelf* of the thread that used it. The next
//! call on that thread finds it there, and touches nothing of the registry's that another thread writes. (A recorder's
//! counters and histograms it does.) So the instance that is used next is the one returned last on that thread.
//!
//! What is lent is still the registry's. It counts the instance as the runtime's, and has all of it back before any
//! decision that needs the truth: an eviction, a permit for somebody else, a close, a sweep, a caller whose own shelf is
//! empty. A recall closes every shelf, under the registry's lock and the shelf's; what is on a shelf is idle again, and
//! what is in use is an ordinary lease from there on, which its holder learns when it comes back: the shelf has another
//! epoch. So all the rules of [`state`](super::state) hold as they are, and nothing is lent while anybody waits.
//!
//! A loan lasts for one poll of a guest. A guest that does not return at once is made an ordinary lease first, so that
//! what runs for long is seen by all. What is in use meanwhile is sampled for the gauges, and what was seen so ends as an
//! ordinary lease, which sets them right: at rest they are exact.
//!
//! Order of locks: the registry's, then a shelf's. The way of a loan takes a shelf's alone.
//!
//! Considered and not taken: a registry in shards, each with a part of the bounds (the bound is then reached while other
//! shards have room, and the least recently used of all is nobody's to know); counters that each thread keeps and
//! somebody adds up (a lease that the registry cannot see can be evicted under its holder); and lock-free lists (they
//! move as many words).

use std::sync::OnceLock;

use tokio::time::Instant;

use super::{
    Generation, Resident,
    sync::{Mutex, MutexGuard, PoisonError, shelf, shelves},
};

/// The shelves of one evaluator, one for each thread or few. Made when first lent to.
pub(crate) struct Lending<R: Resident> {
    /// Whose instances are on the shelves: of one version at a time, so that what is recalled of it is all its own. While an
    /// evaluator's plugin is replaced, two of its versions are called. Touched under the registry's lock only.
    owner: Mutex<Option<Generation>>,
    shelves: OnceLock<Box<[Shelf<R>]>>,
}

/// Alone on its cache lines, and on those that the processor fetches with them.
#[repr(align(128))]
struct Shelf<R: Resident>(Mutex<Lent<R>>);

struct Lent<R: Resident> {
    /// Whose instances are on it; `None` while it is closed.
    open: Option<Generation>,
    /// Grows with each recall: a loan of another epoch is an ordinary lease by now.
    epoch: u64,
    idle: Vec<R::Lent>,
    in_use: usize,
    /// Uses since the last recall.
    uses: u64,
    /// Something was in use when the gauges were last set.
    observed: bool,
    last_used: Option<Instant>,
    /// Uses ever.
    total: u64,
}

/// What stands for one loan.
#[derive(Debug)]
pub(crate) struct Ticket {
    shelf: usize,
    epoch: u64,
}

/// What a recall found.
pub(super) struct Recalled<R: Resident> {
    pub(super) idle: Vec<R::Lent>,
    /// Loans that are ordinary leases from now on.
    pub(super) in_use: usize,
    pub(super) uses: u64,
    pub(super) last_used: Option<Instant>,
}

/// What is lent at one moment.
pub(super) struct Seen {
    pub(super) in_use: usize,
    pub(super) uses: u64,
    pub(super) last_used: Option<Instant>,
}

impl<R: Resident> Default for Lent<R> {
    fn default() -> Self {
        Self { open: None, epoch: 0, idle: Vec::new(), in_use: 0, uses: 0, observed: false, last_used: None, total: 0 }
    }
}

impl<R: Resident> Default for Lending<R> {
    fn default() -> Self {
        Self { owner: Mutex::default(), shelves: OnceLock::new() }
    }
}

impl<R: Resident> Shelf<R> {
    fn lock(&self) -> MutexGuard<'_, Lent<R>> {
        // Nothing panics under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Resident> Lending<R> {
    fn all(&self) -> impl Iterator<Item = MutexGuard<'_, Lent<R>>> {
        self.shelves.get().into_iter().flatten().map(Shelf::lock)
    }

    fn of(&self, ticket: &Ticket) -> Option<MutexGuard<'_, Lent<R>>> {
        Some(self.shelves.get()?.get(ticket.shelf)?.lock())
    }

    /// Whether anything has ever been lent: whoever is called seldom need not look.
    pub(crate) fn is_open(&self) -> bool {
        self.shelves.get().is_some()
    }

    /// An instance of this generation's runtime, if this thread's shelf has one.
    pub(crate) fn borrow(&self, generation: Generation, now: Instant) -> Option<(R::Lent, Ticket)> {
        let shelves = self.shelves.get()?;
        let at = shelf(shelves.len());
        let mut own = shelves.get(at)?.lock();
        if own.open != Some(generation) {
            return None;
        }
        let lent = own.idle.pop()?;
        own.in_use += 1;
        own.uses += 1;
        own.total += 1;
        own.last_used = Some(now);
        Some((lent, Ticket { shelf: at, epoch: own.epoch }))
    }

    /// Ends a loan.
    ///
    /// # Errors
    ///
    /// The instance, when it was recalled meanwhile or shown as in use: [surface](super::Place::surface) it, and end
    /// that lease.
    pub(crate) fn give_back(&self, ticket: &Ticket, lent: R::Lent) -> Result<(), R::Lent> {
        match self.of(ticket) {
            Some(mut own) if own.epoch == ticket.epoch && !own.observed => {
                own.idle.push(lent);
                own.in_use -= 1;
                Ok(())
            }
            _ => Err(lent),
        }
    }

    fn owner(&self) -> MutexGuard<'_, Option<Generation>> {
        // Nothing panics under it.
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the shelves for this generation until they are recalled. False when they are another's. Under the registry's
    /// lock.
    pub(super) fn reserve(&self, generation: Generation) -> bool {
        *self.owner().get_or_insert(generation) == generation
    }

    /// Makes a loan of an ordinary lease on this thread, on shelves that are reserved. Under the registry's lock.
    pub(super) fn lend(&self, generation: Generation) -> Ticket {
        let shelves = self.shelves.get_or_init(|| (0..shelves()).map(|_| Shelf(Mutex::default())).collect());
        let at = shelf(shelves.len());
        let mut own = shelves[at].lock();
        own.open = Some(generation);
        own.in_use += 1;
        Ticket { shelf: at, epoch: own.epoch }
    }

    /// Makes an ordinary lease of a loan. False when a recall has done so already. Under the registry's lock.
    pub(super) fn surface(&self, ticket: &Ticket) -> bool {
        match self.of(ticket) {
            Some(mut own) if own.epoch == ticket.epoch => {
                own.in_use -= 1;
                true
            }
            _ => false,
        }
    }

    /// Takes everything back. Under the registry's lock.
    pub(super) fn recall(&self) -> Recalled<R> {
        *self.owner() = None;
        let mut recalled = Recalled { idle: Vec::new(), in_use: 0, uses: 0, last_used: None };
        for mut shelf in self.all() {
            shelf.open = None;
            shelf.epoch += 1;
            shelf.observed = false;
            recalled.idle.append(&mut shelf.idle);
            recalled.in_use += std::mem::take(&mut shelf.in_use);
            recalled.uses += std::mem::take(&mut shelf.uses);
            recalled.last_used = recalled.last_used.max(shelf.last_used);
        }
        recalled
    }

    /// How much of what is lent is in use now; it will not come back as a loan. Under the registry's lock.
    pub(super) fn sample(&self) -> usize {
        let mut in_use = 0;
        for mut shelf in self.all() {
            shelf.observed = shelf.in_use > 0;
            in_use += shelf.in_use;
        }
        in_use
    }

    /// What is to be seen of it, and nothing comes of that.
    pub(super) fn seen(&self) -> Seen {
        let mut seen = Seen { in_use: 0, uses: 0, last_used: None };
        for shelf in self.all() {
            seen.in_use += shelf.in_use;
            seen.uses += shelf.uses;
            seen.last_used = seen.last_used.max(shelf.last_used);
        }
        seen
    }

    /// How many loans there were, ever, and when the last one was.
    pub(crate) fn history(&self) -> (u64, Option<Instant>) {
        self.all().fold((0, None), |(total, last), shelf| (total + shelf.total, last.max(shelf.last_used)))
    }
}
