//! One evaluation's time on a thread.

use std::time::Duration;

use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};

use super::FairShare;
use crate::turns::TenantId;

/// What an evaluation may take before its guest runs: with a fresh instance of its own, some hundred microseconds.
const MOMENT: Duration = Duration::from_millis(1);

/// From when an evaluation may run until its guest first waits for something, or has returned. A guest that goes on after
/// that is its engine's to look after.
pub(crate) struct Turn<'a> {
    /// `None` where nobody waits for turns.
    share: Option<&'a FairShare>,
    tenant: TenantId,
    /// `None` after it has ended.
    since: Option<Instant>,
}

impl<'a> Turn<'a> {
    pub(crate) fn new(share: Option<&'a FairShare>, tenant: TenantId, began: Instant) -> Self {
        Self { share, tenant, since: Some(began) }
    }

    /// Whether it has to [begin](Self::begin) first. Cheap: every evaluation asks.
    pub(crate) fn waits(&self) -> bool {
        self.share.is_some_and(|share| share.paces(self.tenant))
    }

    /// Waits until its tenant may go on. False when `deadline` has passed before. Cancel safe.
    pub(crate) async fn begin(&mut self, deadline: Instant) -> bool {
        // Without tokio nothing can wait; whoever must, says so.
        if let Some(share) = self.share
            && Handle::try_current().is_ok()
            && timeout_at(deadline, share.wait_for_others(self.tenant)).await.is_err()
        {
            return false;
        }
        self.since = Some(Instant::now());
        true
    }

    /// It goes on at `now`. Where it took longer than a moment to come so far, it has waited: that does not count.
    pub(crate) fn goes_on(&mut self, now: Instant) {
        if self.since.is_some_and(|since| now > since + MOMENT) {
            self.since = Some(now);
        }
    }

    /// Ends it, if it has not ended yet.
    pub(crate) fn end(&mut self, now: Instant) {
        if let (Some(since), Some(share)) = (self.since.take(), self.share) {
            share.note(self.tenant, now - since, now);
        }
    }
}
