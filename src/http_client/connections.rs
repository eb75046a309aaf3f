//! How many connections plugins may have at once: those of one runtime, and those of all.
//!
//! A connection is not kept for the next request: one that nobody uses would have to be counted against those that somebody
//! wants. So there are never more than requests. A lookup of a name is counted apart, until it has really ended: nothing
//! interrupts the system's resolver, and its answer may come from a server of the plugin's author.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// The bounds of one pool.
pub(crate) struct Connections {
    requests: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
    each: usize,
}

/// The part that one runtime has in them.
pub(crate) struct Share {
    pub(crate) requests: Bound,
    pub(crate) lookups: Bound,
}

/// Lookups of one runtime at once, at most.
const LOOKUPS: usize = 4;

/// How many there may be at once, for one runtime and for all.
#[derive(Clone)]
pub(crate) struct Bound {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// One of those.
pub(crate) struct Permit {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// Why there was none until the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// The runtime has all that it may have.
    Own,
    /// All runtimes together have.
    All,
}

impl Connections {
    /// So many requests at once for all, and for each runtime; and as many lookups.
    pub(crate) fn new(all: usize, each: usize) -> Self {
        let all = || Arc::new(Semaphore::new(all.min(Semaphore::MAX_PERMITS)));
        Self { requests: all(), lookups: all(), each }
    }

    /// For one more runtime.
    pub(crate) fn share(&self) -> Share {
        let bound = |all: &Arc<Semaphore>, each: usize| Bound {
            own: Arc::new(Semaphore::new(each.min(Semaphore::MAX_PERMITS))),
            all: all.clone(),
        };
        // A lookup outlives the request that it is for: the system's resolver cannot be stopped.
        Share { requests: bound(&self.requests, self.each), lookups: bound(&self.lookups, self.each.min(LOOKUPS)) }
    }
}

impl Bound {
    /// Waits until one is free, or until the deadline: in a task that is polled then.
    pub(crate) async fn acquire(&self, deadline: Instant) -> Result<Permit, Full> {
        // Its own first: a runtime that waits for its own keeps none from the others.
        let own = until(deadline, self.own.clone().acquire_owned()).await.ok_or(Full::Own)?;
        let all = until(deadline, self.all.clone().acquire_owned()).await.ok_or(Full::All)?;
        Ok(Permit { _own: own, _all: all })
    }
}

/// Has no timer. Whoever runs a guest has one, and polls the guest when it is over, before it gives the guest up: then this
/// says why, whichever of two timers would have come first.
async fn until<T, E>(deadline: Instant, acquired: impl Future<Output = Result<T, E>>) -> Option<T> {
    let mut acquired = pin!(acquired);
    let polled = poll_fn(|context| match acquired.as_mut().poll(context) {
        Poll::Pending if Instant::now() >= deadline => Poll::Ready(None),
        polled => polled.map(Result::ok),
    });
    polled.await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_runtime_has_its_part_and_all_have_no_more_than_there_are() {
        let connections = Connections::new(3, 2);
        let (a, b) = (connections.share(), connections.share());
        let deadline = Instant::now() + Duration::from_secs(1);
        let now = |share: &Share| share.requests.acquire(deadline).now_or_never();
        let (first, second) = (now(&a).unwrap().unwrap(), now(&a).unwrap().unwrap());
        assert!(now(&a).is_none(), "it waits");
        let third = now(&b).unwrap().unwrap();
        assert!(now(&b).is_none(), "there are no more, though it has not its part");
        tokio::time::sleep_until(deadline).await;
        assert_eq!(now(&a).unwrap().err(), Some(Full::Own));
        assert_eq!(now(&b).unwrap().err(), Some(Full::All));
        drop(first);
        assert!(now(&b).unwrap().is_ok());
        assert!(a.lookups.acquire(deadline).now_or_never().unwrap().is_ok(), "lookups are counted apart");
        drop((second, third));
    }
}
