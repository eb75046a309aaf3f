//! One evaluation's turn on a processor.

use std::{
    future::{Future, poll_fn},
    pin::pin,
};

use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};

use super::{FairShare, Permit};
use crate::turns::TenantId;

/// From when an evaluation may run until it first waits for something, or its guest has returned. A guest that goes on after
/// it has waited is its engine's to look after.
pub(crate) struct Turn<'a> {
    /// `None` where nobody waits for turns.
    share: Option<&'a FairShare>,
    tenant: TenantId,
    /// `None` before it begins and after it has ended.
    since: Option<Instant>,
    /// Boxed: most have none, and every evaluation would be larger.
    permit: Option<Box<Permit>>,
}

impl<'a> Turn<'a> {
    /// One that has begun at `began`, or that is still [to begin](Self::begin).
    pub(crate) fn new(share: Option<&'a FairShare>, tenant: TenantId, began: Instant) -> Self {
        let waits = share.is_some_and(FairShare::is_short);
        Self { share, tenant, since: (!waits).then_some(began), permit: None }
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.since.is_some()
    }

    /// Waits for the turn where processors are short. False when `deadline` has passed before. Cancel safe.
    pub(crate) async fn begin(&mut self, deadline: Instant) -> bool {
        // Without tokio nothing can wait; whoever must, says so.
        if let Some(share) = self.share
            && share.is_short()
            && share.ask_if_short(Instant::now())
            && Handle::try_current().is_ok()
        {
            let permit = timeout_at(deadline, share.acquire_after_others(self.tenant, false)).await;
            let Ok(permit) = permit else { return false };
            self.permit = Some(Box::new(permit));
        }
        self.since = Some(Instant::now());
        true
    }

    /// Ends it, if it has not ended yet.
    pub(crate) fn end(&mut self, now: Instant) {
        if let Some(since) = self.since.take()
            && let Some(share) = self.share
        {
            share.note(self.tenant, now - since, now);
            // Others may run now.
            self.permit = None;
        }
    }

    /// Waits for this, and ends the turn if that takes longer than a moment.
    pub(crate) async fn hold<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|context| {
            let polled = future.as_mut().poll(context);
            if polled.is_pending() && self.since.is_some() {
                self.end(Instant::now());
            }
            polled
        })
        .await
    }
}
