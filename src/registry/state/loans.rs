//! What is lent to threads (see [`lending`](super::super::lending)): when it may be, and when all of it is had back.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    super::{
        Generation, Resident,
        lending::{Lending, Ticket},
    },
    PlaceId, State,
    entries::Live,
};

/// A runtime that is called again within this time is called without pause.
const PAUSE: Duration = Duration::from_millis(10);

/// What is lent of one runtime.
pub(super) struct Loan<R: Resident> {
    pub(super) lending: Arc<Lending<R>>,
    /// Instances on shelves or in use; they are in `Live::instances` and not in `idle`, their uses not in `leases`.
    pub(super) instances: usize,
    /// How many of them were in use when that was sampled.
    sampled: usize,
}

impl<R: Resident> Live<R> {
    /// A caller has come. Whether it found the runtime called without pause for `lend_after` calls.
    pub(super) fn called(&mut self, now: Instant, lend_after: u32) -> bool {
        let pause = now.saturating_duration_since(self.last_used);
        self.streak = if pause < PAUSE { self.streak.saturating_add(1) } else { 0 };
        self.last_used = now;
        self.streak > lend_after
    }
}

impl<R: Resident> State<R> {
    /// Makes a loan of a lease that ends on this thread, unless anybody waits for anything that it could be given.
    pub(in crate::registry) fn lend(
        &mut self,
        generation: Generation,
        place: PlaceId,
        lending: &Arc<Lending<R>>,
        now: Instant,
    ) -> Option<Ticket> {
        if self.shut_down || !self.contenders.is_empty() || !self.build_queue.is_empty() {
            return None;
        }
        // Looked at first: a lease on a runtime that drains must not freshen its successor.
        let live = self.live.peek(&generation).filter(|live| live.place == place)?;
        if live.claimed || !live.waiters.is_empty() || !lending.reserve(generation) {
            return None;
        }
        let live = self.live.get_mut(&generation)?;
        let loan = live.loan.get_or_insert_with(|| {
            self.lent.push(generation);
            Loan { lending: lending.clone(), instances: 0, sampled: 0 }
        });
        loan.instances += 1;
        live.leases -= 1;
        live.last_used = now;
        self.lent_instances += 1;
        Some(loan.lending.lend(generation))
    }

    /// Makes an ordinary lease of a loan, if it is still one.
    pub(in crate::registry) fn surface(&mut self, generation: Generation, lending: &Lending<R>, ticket: &Ticket) {
        if !lending.surface(ticket) {
            return;
        }
        // A loan that was not recalled is one of a live runtime.
        let Some(live) = self.live.peek_mut(&generation) else { return };
        live.leases += 1;
        if let Some(loan) = &mut live.loan {
            loan.instances -= 1;
            self.lent_instances -= 1;
        }
        self.sample(generation);
    }

    /// Looks how much of what is lent of this runtime is in use, for the gauges.
    pub(in crate::registry) fn sample(&mut self, generation: Generation) {
        let loan = self.live.peek_mut(&generation).and_then(|live| live.loan.as_mut());
        if let Some(loan) = loan {
            self.lent_busy -= loan.sampled;
            loan.sampled = loan.lending.sample();
            self.lent_busy += loan.sampled;
        }
    }

    /// The same for all.
    pub(in crate::registry) fn sample_all(&mut self) {
        for at in 0..self.lent.len() {
            self.sample(self.lent[at]);
        }
    }

    pub(in crate::registry) fn lends(&self) -> bool {
        !self.lent.is_empty()
    }

    /// Has back what is lent of one runtime: what is on shelves is idle, what is in use is leased.
    pub(super) fn recall(&mut self, generation: Generation) {
        let Some(live) = self.live.peek_mut(&generation) else { return };
        let Some(loan) = live.loan.take() else { return };
        let recalled = loan.lending.recall();
        debug_assert_eq!(loan.instances, recalled.idle.len() + recalled.in_use);
        self.lent.retain(|lent| *lent != generation);
        self.lent_instances -= loan.instances;
        self.lent_busy -= loan.sampled;
        self.idle += recalled.idle.len();
        live.idle += recalled.idle.len();
        live.leases += recalled.in_use;
        live.uses += recalled.uses;
        live.last_used = recalled.last_used.map_or(live.last_used, |last_used| last_used.max(live.last_used));
        live.streak = 0;
        for lent in recalled.idle {
            live.resident.take_back(lent);
        }
    }

    /// Has everything back, before a decision that looks at all runtimes, and puts them into the order of their last
    /// use, of which the registry had not seen all.
    pub(super) fn recall_all(&mut self) {
        if self.lent.is_empty() {
            return;
        }
        for generation in std::mem::take(&mut self.lent) {
            self.recall(generation);
        }
        let mut order: Vec<_> =
            self.live.iter().rev().map(|(generation, live)| (live.last_used, *generation)).collect();
        order.sort_by_key(|(last_used, _)| *last_used);
        for (_, generation) in order {
            self.live.promote(&generation);
        }
    }
}
