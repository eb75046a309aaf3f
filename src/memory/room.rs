//! Room for what is built: who makes it, and whether there is some already.

use std::{fmt, sync::Arc};

use super::MakeRoom;
#[cfg(feature = "direct")]
use super::{Granted, MemoryAccount, MemoryUse, tenants::OwnCharge};
#[cfg(all(test, feature = "direct"))]
use super::{Held, MemoryBudget};
use crate::turns::TenantId;

#[derive(Clone)]
pub(super) struct Room {
    pub(super) of: Arc<dyn MakeRoom>,
    pub(super) tenant: TenantId,
}

#[cfg(feature = "direct")]
impl MemoryAccount {
    /// Charges what waits to be compiled, to the tenant as well.
    pub(crate) fn waiting(&self, bytes: u64) -> Granted {
        Granted { room: self.unloaded(bytes), own: OwnCharge::new(self.held.tenant.clone(), bytes) }
    }

    /// One that nobody makes room in.
    #[cfg(test)]
    pub(crate) fn of_tenant(budget: &Arc<MemoryBudget>, tenant: TenantId) -> Self {
        let held = Held { tenant: budget.tenant(tenant), ..Held::default() };
        Self { budget: budget.clone(), held: Arc::new(held), room: None }
    }

    /// Whether there is room for so many bytes, without anything that is used having to go.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        let MemoryUse { code, instances, cache, limit } = self.budget.uses();
        let used = code.saturating_add(instances).saturating_add(cache).saturating_sub(self.budget.unused());
        used.saturating_add(bytes) <= limit
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Room")
    }
}

#[cfg(all(test, feature = "direct"))]
mod tests {
    use super::{super::MemoryKind, *};

    #[test]
    fn there_is_room_up_to_the_bound_and_what_nobody_uses_is_not_in_the_way() {
        let budget = MemoryBudget::new(100);
        let account = MemoryAccount::of_tenant(&budget, TenantId(1));
        let _used = (budget.charge(MemoryKind::Code, 30), account.instance(20), account.unloaded(10));
        let _unused = budget.charge(MemoryKind::Unused, 35);
        assert!(account.has_room(40));
        assert!(!account.has_room(41));
    }
}
