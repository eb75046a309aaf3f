//! How many compiles run at once, and which of them gives way.
//!
//! A compile that nobody waits for any more goes on, so that a caller of short patience finds it done when it asks again.
//! But when another build wants its slot, it is ended, if the engine can do that.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Says whether nobody wants a build any more. Once it has said so, nobody can join that build, and it ends.
pub(super) type Renounce = dyn Fn() -> bool + Send + Sync;

/// The slots of one pool.
pub(super) struct BuildSlots {
    free: Arc<Semaphore>,
    /// Builds that want one.
    wanting: AtomicUsize,
    running: Mutex<Vec<Running>>,
    next: AtomicU64,
}

/// A build that has a slot and can be ended.
struct Running {
    id: u64,
    renounce: Arc<Renounce>,
    ending: bool,
}

/// The right to compile. Dropping it lets the next build begin.
pub(super) struct BuildSlot {
    slots: Arc<BuildSlots>,
    id: u64,
    _permit: OwnedSemaphorePermit,
}

impl BuildSlots {
    pub(super) fn new(count: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(count)),
            wanting: AtomicUsize::new(0),
            running: Mutex::default(),
            next: AtomicU64::new(0),
        })
    }

    /// A slot, for a build that gives way once `renounce` says that nobody wants it; `None` for one that cannot be ended.
    /// `left` is notified whenever somebody leaves a build.
    pub(super) async fn acquire(self: &Arc<Self>, renounce: Option<Arc<Renounce>>, left: &Notify) -> BuildSlot {
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.wait(left).await,
        };
        self.begin(permit, renounce)
    }

    /// A slot that no build wants now, if there is one, for work that is ended by `renounce` once one does; without, for work
    /// that cannot be.
    pub(super) fn idle(self: &Arc<Self>, renounce: Option<Arc<Renounce>>) -> Option<BuildSlot> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        Some(self.begin(permit, renounce))
    }

    fn begin(self: &Arc<Self>, permit: OwnedSemaphorePermit, renounce: Option<Arc<Renounce>>) -> BuildSlot {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(renounce) = renounce {
            self.running().push(Running { id, renounce, ending: false });
        }
        // It may have been left while it waited for this.
        if self.wanting.load(Ordering::SeqCst) > 0 {
            self.make_way();
        }
        BuildSlot { slots: self.clone(), id, _permit: permit }
    }

    async fn wait(&self, left: &Notify) -> OwnedSemaphorePermit {
        let _wanting = Wanting::new(&self.wanting);
        let free = self.free.clone().acquire_owned();
        tokio::pin!(free);
        loop {
            let somebody_left = left.notified();
            tokio::pin!(somebody_left);
            // From here on, none is missed.
            somebody_left.as_mut().enable();
            self.make_way();
            tokio::select! {
                biased;
                permit = &mut free => match permit {
                    Ok(permit) => return permit,
                    Err(_) => unreachable!("the semaphore is never closed"),
                },
                () = somebody_left => {}
            }
        }
    }

    /// Ends the eldest build that nobody wants, unless as many are ending as builds want a slot.
    fn make_way(&self) {
        let candidates: Vec<(u64, Arc<Renounce>)> = {
            let running = self.running();
            let ending = running.iter().filter(|running| running.ending).count();
            if ending >= self.wanting.load(Ordering::SeqCst) {
                return;
            }
            running
                .iter()
                .filter(|running| !running.ending)
                .map(|running| (running.id, running.renounce.clone()))
                .collect()
        };
        // Asked without the lock.
        let Some((renounced, _)) = candidates.into_iter().find(|(_, renounce)| renounce()) else { return };
        if let Some(running) = self.running().iter_mut().find(|running| running.id == renounced) {
            running.ending = true;
        }
    }

    fn running(&self) -> MutexGuard<'_, Vec<Running>> {
        // Only list operations happen under this lock.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BuildSlot {
    fn drop(&mut self) {
        self.slots.running().retain(|running| running.id != self.id);
    }
}

/// Counts a build as one that wants a slot until it is dropped.
struct Wanting<'a>(&'a AtomicUsize);

impl<'a> Wanting<'a> {
    fn new(wanting: &'a AtomicUsize) -> Self {
        wanting.fetch_add(1, Ordering::SeqCst);
        Self(wanting)
    }
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::atomic::AtomicBool,
        task::{Context, Poll, Waker},
    };

    use super::*;

    /// A build that nobody wants, and whether it was asked.
    fn unwanted() -> (Arc<Renounce>, Arc<AtomicBool>) {
        let asked = Arc::new(AtomicBool::new(false));
        let told = asked.clone();
        (Arc::new(move || !told.swap(true, Ordering::SeqCst)), asked)
    }

    #[test]
    fn a_build_that_nobody_wants_any_more_when_it_gets_its_slot_gives_way_to_the_next() {
        let (slots, left) = (BuildSlots::new(1), Notify::new());
        let context = &mut Context::from_waker(Waker::noop());
        let running = slots.idle(None).unwrap();
        let (renounce, asked) = unwanted();
        let mut first = pin!(slots.acquire(Some(renounce), &left));
        let mut second = pin!(slots.acquire(None, &left));
        assert!(first.as_mut().poll(context).is_pending() && second.as_mut().poll(context).is_pending());
        drop(running);
        let Poll::Ready(given_up) = first.as_mut().poll(context) else { panic!("it is the first in line") };
        assert!(asked.load(Ordering::SeqCst));
        drop(given_up);
        assert!(second.as_mut().poll(context).is_ready());
    }

    #[test]
    fn only_builds_that_have_a_slot_are_asked_to_give_way() {
        let (slots, left) = (BuildSlots::new(2), Notify::new());
        let context = &mut Context::from_waker(Waker::noop());
        let [(first, first_asked), (second, second_asked)] = [unwanted(), unwanted()];
        let ended = slots.idle(Some(first)).unwrap();
        let _running = slots.idle(Some(second)).unwrap();
        drop(ended);
        let _third = slots.idle(None).unwrap();
        let mut waits = pin!(slots.acquire(None, &left));
        assert!(waits.as_mut().poll(context).is_pending());
        assert!(!first_asked.load(Ordering::SeqCst) && second_asked.load(Ordering::SeqCst));
    }

    #[test]
    fn who_no_longer_wants_a_slot_ends_nobodys_build() {
        let (slots, left) = (BuildSlots::new(1), Notify::new());
        let context = &mut Context::from_waker(Waker::noop());
        let running = slots.idle(None).unwrap();
        {
            let mut waits = pin!(slots.acquire(None, &left));
            assert!(waits.as_mut().poll(context).is_pending());
        }
        drop(running);
        let (renounce, asked) = unwanted();
        let _running = slots.idle(Some(renounce)).unwrap();
        assert!(!asked.load(Ordering::SeqCst));
    }
}
