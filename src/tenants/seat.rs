//! The right to make one more evaluator.

use std::sync::Arc;

use super::Tenants;
use crate::error::{Bound, Error};

/// One more evaluator of a tenant, from before it is made until it is there or will not be.
#[derive(Debug)]
pub(crate) struct Seat {
    tenants: Arc<Tenants>,
    tenant: Arc<str>,
}

impl Tenants {
    /// The right to one more evaluator of this tenant. To be dropped when the evaluator has its meter.
    ///
    /// # Errors
    ///
    /// [`Error::QuotaExceeded`]: it has as many as it may.
    pub(crate) fn seat(self: &Arc<Self>, tenant: &str) -> Result<Seat, Error> {
        let mut state = self.state();
        let bound = state.bounds.of(tenant).evaluators;
        let own = state.tenant(tenant);
        let has = own.meters.len() + own.seats;
        if let Some(bound) = bound.filter(|bound| has >= *bound) {
            state.forget_some();
            return Err(Bound::Evaluators.exceeded(bound as u64).of_tenant(tenant));
        }
        own.seats += 1;
        state.forget_some();
        Ok(Seat { tenants: self.clone(), tenant: tenant.into() })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.tenants.state();
        if let Some(tenant) = state.tenants.get_mut(&*self.tenant) {
            // It may have been forgotten, and be there anew.
            tenant.seats = tenant.seats.saturating_sub(1);
        }
    }
}
