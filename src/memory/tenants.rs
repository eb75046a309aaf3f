//! What each tenant holds: its instances, and all code that its runtimes run, whoever else runs the same.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{Charge, MemoryBudget, MemoryKind};
use crate::turns::TenantId;

/// By tenant, for as long as it has a runtime.
#[derive(Default)]
pub(super) struct Tenants(Mutex<HashMap<TenantId, Weak<AtomicU64>>>);

impl Tenants {
    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Weak<AtomicU64>>> {
        // Map operations.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryBudget {
    /// What this tenant's runtimes hold.
    pub(super) fn tenant(&self, tenant: TenantId) -> Arc<AtomicU64> {
        let mut tenants = self.tenants.lock();
        if let Some(held) = tenants.get(&tenant).and_then(Weak::upgrade) {
            return held;
        }
        // When the map would grow: so that is done seldom.
        if tenants.len() == tenants.capacity() {
            tenants.retain(|_, held| held.strong_count() > 0);
        }
        let held = Arc::new(AtomicU64::new(0));
        tenants.insert(tenant, Arc::downgrade(&held));
        held
    }

    /// How many bytes that is: their instances, and all code that they run, whoever else runs the same.
    pub(crate) fn held_by(&self, tenant: TenantId) -> u64 {
        self.tenants.lock().get(&tenant).and_then(Weak::upgrade).map_or(0, |held| held.load(Ordering::Relaxed))
    }

    /// The charge for room that a tenant gets, and its own.
    pub(crate) fn give_room(self: &Arc<Self>, tenant: TenantId, bytes: u64) -> Granted {
        Granted { room: self.charge(MemoryKind::Code, bytes), own: OwnCharge::new(self.tenant(tenant), bytes) }
    }
}

/// Makes room in the account: the registry.
pub(crate) trait MakeRoom: Send + Sync {
    fn make_room(self: Arc<Self>, tenant: TenantId, bytes: u64) -> Pin<Box<dyn Future<Output = Given> + Send>>;
}

/// The charge for room, or why there was none within its time.
pub(crate) type Given = Result<Granted, NoRoom>;

/// Room that was given.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(super) room: Charge,
    pub(super) own: OwnCharge,
}

/// Why there was no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// All tenants together hold too much.
    Pool,
    /// The tenant's own bound is this.
    Tenant(u64),
}

/// What a tenant holds in full, whoever shares it. Gives it back when dropped.
#[derive(Debug)]
pub(super) struct OwnCharge {
    held: Arc<AtomicU64>,
    bytes: u64,
}

impl OwnCharge {
    pub(super) fn new(held: Arc<AtomicU64>, bytes: u64) -> Self {
        held.fetch_add(bytes, Ordering::Relaxed);
        Self { held, bytes }
    }

    /// So many bytes are counted elsewhere from now on.
    pub(super) fn shrink(&mut self, bytes: u64) {
        self.bytes -= bytes;
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for OwnCharge {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_known_for_as_long_as_it_holds_something_and_then_forgotten() {
        let budget = MemoryBudget::new(100);
        let held = budget.give_room(TenantId(0), 30);
        for tenant in 1..1_000 {
            drop(budget.tenant(TenantId(tenant)));
        }
        assert_eq!(budget.held_by(TenantId(0)), 30);
        assert!(budget.tenants.lock().len() < 100);
        let more = budget.give_room(TenantId(0), 20);
        assert_eq!(budget.held_by(TenantId(0)), 50);
        drop((held, more));
        assert_eq!(budget.held_by(TenantId(0)), 0);
    }
}
