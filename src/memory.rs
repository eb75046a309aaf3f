//! What runtimes hold, in bytes: the pool's account, and the guards that charge it.
//!
//! Whoever makes something that costs memory charges it here, and the charge goes back when it is dropped. A charge never
//! waits: a guest that grows, or a plugin that is fetched, is counted at once and may lead beyond the bound, and the
//! registry then makes room. Only the code of a new runtime and its first instance wait for [room](MemoryAccount::reserve)
//! before they are there.
//!
//! The counters are atomic, and adding to one is all that a running guest does. So the registry weighs by reading, never a
//! caller. Considered and not taken: accounts under the registry's lock (each `memory.grow` would take it), and asking the
//! system what this process holds (it does not say which runtime holds it, nor what closing one would free).

mod room;
mod tenants;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use serde::Serialize;

pub(crate) use self::tenants::{Given, Granted, MakeRoom, NoRoom};
use self::{
    room::Room,
    tenants::{OwnCharge, Tenants},
};
use crate::{
    error::{Bound, Error},
    turns::TenantId,
    units::Size,
};

/// What memory is held for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum MemoryKind {
    /// Compiled code that is loaded, and plugins from when they are fetched until they are built.
    Code,
    /// Linear memories and tables of instances, and what free slots keep.
    Instances,
    /// Compiled code that is not loaded.
    Cache,
    /// Compiled code that nobody runs and that is kept for the next build: it [gives way](GiveWay).
    Unused,
}

/// How many kinds there are.
const KINDS: usize = 4;

/// How much memory a pool holds, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryUse {
    /// Compiled code that is loaded, once however many evaluators share it, and plugins that are being built.
    pub code: u64,
    /// Linear memories and tables of instances as they are now, and what free slots keep.
    pub instances: u64,
    /// Compiled code that is kept in memory for the next build. Large code that runs is kept with it, and counts there.
    pub cache: u64,
    /// The bound: `pool.memory`.
    pub limit: u64,
}

/// The account of one pool.
pub(crate) struct MemoryBudget {
    limit: u64,
    held: [AtomicU64; KINDS],
    /// What free slots keep, as last weighed.
    slots: AtomicU64,
    /// Who keeps what is unused.
    keeper: OnceLock<Weak<dyn GiveWay>>,
    /// What each tenant's runtimes hold, for as long as there are any.
    tenants: Tenants,
}

/// Keeps what nobody uses, for as long as there is room for it: an engine's cache of code.
pub(crate) trait GiveWay: Send + Sync {
    /// Drops what this account was charged with as `Unused`, least recently used first, until that was so many bytes.
    /// Gives how many it was. May take long.
    fn give_way(&self, account: &Arc<MemoryBudget>, bytes: u64) -> u64;
}

impl MemoryBudget {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        let (keeper, tenants) = (OnceLock::new(), Tenants::default());
        Arc::new(Self { limit, held: Default::default(), slots: AtomicU64::new(0), keeper, tenants })
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn uses(&self) -> MemoryUse {
        let [code, instances, cache, unused] = &self.held;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MemoryUse {
            code: read(code),
            instances: read(instances) + read(&self.slots),
            cache: read(cache) + read(unused),
            limit: self.limit,
        }
    }

    /// What is kept although nobody uses it.
    pub(crate) fn unused(&self) -> u64 {
        self.held[MemoryKind::Unused as usize].load(Ordering::Relaxed)
    }

    /// Has so many bytes of that dropped. Gives how many it was. May take long.
    pub(crate) fn give_way(self: &Arc<Self>, bytes: u64) -> u64 {
        let keeper = self.keeper.get().and_then(Weak::upgrade);
        keeper.map_or(0, |keeper| keeper.give_way(self, bytes))
    }

    pub(crate) fn used(&self) -> u64 {
        let MemoryUse { code, instances, cache, .. } = self.uses();
        code + instances + cache
    }

    /// Notes what free slots keep now.
    pub(crate) fn set_slots(&self, bytes: u64) {
        self.slots.store(bytes, Ordering::Relaxed);
    }

    /// Charges at once, whether or not there is room.
    pub(crate) fn charge(self: &Arc<Self>, kind: MemoryKind, bytes: u64) -> Charge {
        let mut charge =
            Charge { budget: self.clone(), kind: AtomicUsize::new(kind as usize), bytes: 0, account: None };
        charge.grow(bytes);
        charge
    }
}

/// The account of one compiled plugin, through which its engine charges what it makes. Clones are of the same account.
///
/// An engine that charges nothing is bounded by counts alone.
#[derive(Debug, Clone)]
pub struct MemoryAccount {
    budget: Arc<MemoryBudget>,
    held: Arc<Held>,
    room: Option<Room>,
}

/// What one compiled plugin holds.
#[derive(Debug, Default)]
struct Held {
    instances: AtomicU64,
    /// The instance that ended last.
    last: AtomicU64,
    code: Mutex<HeldCode>,
    /// All that its tenant holds.
    tenant: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct HeldCode {
    runs: Vec<(Arc<Charge>, OwnCharge)>,
    /// For what it will run.
    reserved: Vec<OwnCharge>,
}

/// What closing a runtime would give back, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Weight {
    /// All its instances.
    pub(crate) instances: u64,
    /// What one more is likely to hold. Not given back by anything.
    pub(crate) instance: u64,
    /// Code that nobody else has.
    pub(crate) code: u64,
    /// Its part of code that others have too. It is given back with the last of them.
    pub(crate) shared: u64,
    /// All its code, whoever has it too: what its tenant is charged.
    pub(crate) code_in_full: u64,
}

impl Weight {
    /// All that it holds, as if it shared none.
    pub(crate) fn in_full(self) -> u64 {
        self.instances + self.code_in_full
    }

    pub(crate) fn total(self) -> u64 {
        self.instances + self.code + self.shared
    }
}

impl MemoryAccount {
    pub(crate) fn new(budget: Arc<MemoryBudget>, tenant: TenantId, of: Arc<dyn MakeRoom>) -> Self {
        let held = Held { tenant: budget.tenant(tenant), ..Held::default() };
        Self { budget, held: Arc::new(held), room: Some(Room { of, tenant }) }
    }

    /// An account without a bound, of which nobody takes notice.
    #[must_use]
    pub fn unbounded() -> Self {
        Self { budget: MemoryBudget::new(u64::MAX), held: Arc::default(), room: None }
    }

    /// Waits for room for `code` bytes of code that is loaded, `unloaded` bytes of it that are not, and a first instance of
    /// `instance` bytes, all together, and charges them. The registry makes room by dropping idle instances and by closing
    /// runtimes that nobody uses. Gives the three charges.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidPlugin`] for more than `pool.memory`; [`Error::Overloaded`] when others held it all for too long;
    /// [`Error::QuotaExceeded`] when the tenant itself holds too much.
    pub async fn reserve(&self, code: u64, unloaded: u64, instance: u64) -> Result<(Charge, Charge, Charge), Error> {
        let (bytes, limit) = (code.saturating_add(unloaded).saturating_add(instance), self.budget.limit);
        if bytes > limit {
            return Err(Error::invalid_plugin(format!(
                "its code takes {} and an instance of it {}, and pool.memory is {}",
                Size(code + unloaded),
                Size(instance),
                Size(limit)
            )));
        }
        let Some(Room { of, tenant }) = &self.room else {
            let charge = |kind, bytes| self.budget.charge(kind, bytes);
            let (code, unloaded) = (charge(MemoryKind::Code, code), charge(MemoryKind::Cache, unloaded));
            return Ok((code, unloaded, charge(MemoryKind::Instances, instance)));
        };
        // What was reserved before is not used: a kept file could not be read, or a worker has died.
        self.code().reserved.clear();
        let given = of.clone().make_room(*tenant, bytes).await;
        let Granted { room: mut code, mut own } = given.map_err(|none| match none {
            NoRoom::Pool => self.is_full(bytes),
            NoRoom::Tenant(limit) => Bound::Memory.exceeded(limit),
        })?;
        let unloaded = code.split(unloaded, MemoryKind::Cache);
        // In full until the code runs, and then what runs.
        own.shrink(instance);
        self.code().reserved.push(own);
        let instance = code.split(instance, MemoryKind::Instances);
        Ok((code, unloaded, instance))
    }

    fn is_full(&self, wanted: u64) -> Error {
        let MemoryUse { code, instances, cache, .. } = self.budget.uses();
        let cause = std::io::Error::other(format!(
            "{} more are wanted; code takes {}, instances {}, and code that is kept {}",
            Size(wanted),
            Size(code),
            Size(instances),
            Size(cache)
        ));
        Error::overloaded("what runs now takes all of pool.memory", &cause, &cause)
    }

    /// Charges an instance of `bytes`, which may [grow](Charge::grow).
    #[must_use]
    pub fn instance(&self, bytes: u64) -> Charge {
        let mut charge = self.budget.charge(MemoryKind::Instances, 0);
        charge.account = Some(self.held.clone());
        charge.grow(bytes);
        charge
    }

    /// Charges what the host holds for a guest that runs, beside its instance: it goes with the call, not with the runtime.
    #[must_use]
    pub fn beside(&self, bytes: u64) -> Charge {
        self.budget.charge(MemoryKind::Instances, bytes)
    }

    /// Charges compiled code that is not loaded yet.
    #[must_use]
    pub fn unloaded(&self, bytes: u64) -> Charge {
        self.budget.charge(MemoryKind::Cache, bytes)
    }

    /// Names who keeps what is unused, and gives it up when there is no room. The first one stays.
    #[cfg(feature = "direct")]
    pub(crate) fn kept_by<K: GiveWay + 'static>(&self, keeper: &Arc<K>) {
        self.budget.keeper.get_or_init(|| {
            let weak: Weak<K> = Arc::downgrade(keeper);
            weak
        });
    }

    /// Notes that the plugin runs this code, which others may share.
    pub fn runs(&self, code: Arc<Charge>) {
        let own = OwnCharge::new(self.held.tenant.clone(), code.bytes);
        let mut held = self.code();
        held.runs.push((code, own));
        held.reserved.clear();
    }

    /// It does not run this code after all.
    #[cfg(feature = "direct")]
    pub(crate) fn runs_not(&self, code: &Arc<Charge>) {
        let mut held = self.code();
        if let Some(last) = held.runs.iter().rposition(|(known, _)| Arc::ptr_eq(known, code)) {
            drop(held.runs.swap_remove(last));
        }
    }

    pub(crate) fn weight(&self) -> Weight {
        let Held { instances, last, .. } = &*self.held;
        let (instances, instance) = (instances.load(Ordering::Relaxed), last.load(Ordering::Relaxed));
        let mut weight = Weight { instances, instance, ..Weight::default() };
        for (code, _) in &self.code().runs {
            weight.code_in_full += code.bytes;
            // One clone is the code's own.
            match Arc::strong_count(code).saturating_sub(1) as u64 {
                0 | 1 => weight.code += code.bytes,
                sharers => weight.shared += code.bytes / sharers,
            }
        }
        weight
    }

    fn code(&self) -> MutexGuard<'_, HeldCode> {
        // List operations.
        self.held.code.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoryBudget").field(&self.uses()).finish()
    }
}

/// Some bytes that are held. Gives them back when dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<MemoryBudget>,
    /// A `MemoryKind`.
    kind: AtomicUsize,
    bytes: u64,
    /// Of the plugin whose instance this is for.
    account: Option<Arc<Held>>,
}

impl Charge {
    /// How much it stands for.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Charges more, at once.
    pub fn grow(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.counter().fetch_add(bytes, Ordering::Relaxed);
        if let Some(account) = &self.account {
            account.instances.fetch_add(bytes, Ordering::Relaxed);
            account.tenant.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Takes a part out, which is held for something else.
    fn split(&mut self, bytes: u64, kind: MemoryKind) -> Self {
        // First taken out: whoever looks in between sees too little rather than too much, and evicts nobody for it.
        self.bytes -= bytes;
        self.counter().fetch_sub(bytes, Ordering::Relaxed);
        self.budget.charge(kind, bytes)
    }

    /// The same bytes are held for something else from now on. Not by two at once.
    #[cfg(feature = "direct")]
    pub(crate) fn turn(&self, kind: MemoryKind) {
        // In this order for the same reason.
        self.counter().fetch_sub(self.bytes, Ordering::Relaxed);
        self.kind.store(kind as usize, Ordering::Relaxed);
        self.counter().fetch_add(self.bytes, Ordering::Relaxed);
    }

    /// Whether it is in this account.
    #[cfg(feature = "direct")]
    pub(crate) fn is_in(&self, account: &Arc<MemoryBudget>) -> bool {
        Arc::ptr_eq(&self.budget, account)
    }

    fn counter(&self) -> &AtomicU64 {
        // Only ever a kind's number.
        &self.budget.held[self.kind.load(Ordering::Relaxed)]
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.counter().fetch_sub(self.bytes, Ordering::Relaxed);
        if let Some(account) = &self.account {
            account.instances.fetch_sub(self.bytes, Ordering::Relaxed);
            account.tenant.fetch_sub(self.bytes, Ordering::Relaxed);
            account.last.store(self.bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::Pin};

    use super::*;

    #[test]
    fn code_that_is_shared_is_weighed_once_and_given_back_by_the_last() {
        let budget = MemoryBudget::new(100);
        let account = || MemoryAccount { budget: budget.clone(), held: Arc::default(), room: None };
        let (a, b) = (account(), account());
        let code = Arc::new(budget.charge(MemoryKind::Code, 30));
        a.runs(code.clone());
        assert_eq!(a.weight(), Weight { code: 30, code_in_full: 30, ..Weight::default() });
        b.runs(code.clone());
        assert_eq!(a.weight(), Weight { shared: 15, code_in_full: 30, ..Weight::default() });
        let mut instance = b.instance(5);
        instance.grow(2);
        assert_eq!(b.weight(), Weight { instances: 7, shared: 15, code_in_full: 30, ..Weight::default() });
        assert_eq!(budget.uses(), MemoryUse { code: 30, instances: 7, cache: 0, limit: 100 });
        drop((a, instance));
        assert_eq!(b.weight(), Weight { code: 30, code_in_full: 30, instance: 7, ..Weight::default() });
        drop((b, code));
        assert_eq!(budget.used(), 0);
        budget.set_slots(3);
        assert_eq!((budget.uses().instances, budget.used()), (3, 3));
    }

    struct Gives(Arc<MemoryBudget>);

    impl MakeRoom for Gives {
        fn make_room(self: Arc<Self>, tenant: TenantId, bytes: u64) -> Pin<Box<dyn Future<Output = Given> + Send>> {
            Box::pin(async move { Ok(self.0.give_room(tenant, bytes)) })
        }
    }

    #[tokio::test]
    async fn a_tenant_is_charged_once_for_code_that_a_build_reserves_again_and_for_what_it_runs() {
        let (budget, tenant) = (MemoryBudget::new(100), TenantId(1));
        let account = MemoryAccount::new(budget.clone(), tenant, Arc::new(Gives(budget.clone())));
        drop(account.reserve(30, 10, 5).await.unwrap());
        let (code, _unloaded, _instance) = account.reserve(20, 10, 5).await.unwrap();
        assert_eq!(budget.held_by(tenant), 30);
        account.runs(Arc::new(code));
        assert_eq!(budget.held_by(tenant), 20);
        drop(account);
        assert_eq!(budget.held_by(tenant), 0);
    }
}
