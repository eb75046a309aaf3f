//! What the host keeps for one guest, and for one plugin.

use std::{collections::BTreeMap, sync::Arc};

use tokio::time::Instant;
use wasmtime::{Memory, ResourceLimiter};
use wasmtime_wasi::p1::WasiP1Ctx;

use super::{
    allocator::Allocator,
    classify::HostTrap,
    fair_share::{FairShare, RunPermit},
    http::{Http, Response},
    log::LogBudget,
    streams::Streams,
    ticker::Ticker,
};
use crate::{
    engine::{CallContext, InstanceLimits, Permit},
    source::Digest,
};

/// What host functions need of a plugin. Its instances share it.
pub(super) struct PluginContext {
    pub(super) config: Arc<BTreeMap<String, String>>,
    pub(super) http: Http,
    pub(super) limits: InstanceLimits,
    pub(super) evaluator: Arc<str>,
    pub(super) labels: Option<Arc<str>>,
    pub(super) digest: Digest,
    /// Whether the plugin imports WASI.
    pub(super) wasi: bool,
    pub(super) ticker: Arc<Ticker>,
    pub(super) share: Arc<FairShare>,
    /// The compiled plugin's: released once the plugin and its last instance are gone.
    pub(super) _permit: Permit,
}

/// A guest that calls the host.
pub(super) type Caller<'a> = wasmtime::Caller<'a, GuestState>;

/// The data of one guest's store.
pub(super) struct GuestState {
    pub(super) context: Arc<PluginContext>,
    /// What the call gives host functions: `None` but during a call that has one.
    pub(super) call_context: Option<CallContext>,
    /// `None` until the kernel is instantiated, which is before any guest code runs.
    pub(super) kernel_memory: Option<Memory>,
    pub(super) allocator: Allocator,
    pub(super) budget: Budget,
    pub(super) variables: Variables,
    pub(super) http: Response,
    /// Made by the first call of a WASI function.
    pub(super) wasi: Option<WasiP1Ctx>,
    /// What the guest writes, if its plugin imports WASI.
    pub(super) streams: Option<Arc<Streams>>,
    pub(super) log: LogBudget,
    pub(super) run_permit: RunPermit,
    pub(super) deadline: Instant,
}

impl GuestState {
    pub(super) fn new(context: Arc<PluginContext>, streams: Option<Arc<Streams>>, deadline: Instant) -> Self {
        let InstanceLimits { memory, table_elements, .. } = context.limits;
        Self {
            call_context: None,
            kernel_memory: None,
            allocator: Allocator::default(),
            budget: Budget { memory_left: memory, table_elements },
            variables: Variables::default(),
            http: Response::default(),
            wasi: None,
            streams,
            log: LogBudget::default(),
            run_permit: context.share.begin(),
            deadline,
            context,
        }
    }
}

/// What a guest may still take: bytes of linear memory, the kernel's and its allocator's included, and table elements.
#[derive(Debug)]
pub(super) struct Budget {
    memory_left: u64,
    table_elements: u64,
}

impl Budget {
    pub(super) fn take(&mut self, bytes: u64) -> Result<(), HostTrap> {
        self.memory_left = self.memory_left.checked_sub(bytes).ok_or(HostTrap::OutOfMemory)?;
        Ok(())
    }

    pub(super) fn give_back(&mut self, bytes: u64) {
        self.memory_left = self.memory_left.saturating_add(bytes);
    }
}

impl ResourceLimiter for Budget {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        // Beyond the module's own maximum, `memory.grow` gives -1; beyond the limit, the call ends.
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.take(desired.saturating_sub(current) as u64)?;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(maximum.is_none_or(|maximum| desired <= maximum) && desired as u64 <= self.table_elements)
    }
}

/// What `var_get` and `var_set` see.
#[derive(Debug, Default)]
pub(super) struct Variables {
    values: BTreeMap<String, Vec<u8>>,
    /// The size of all. Kept up to date, because a guest may have thousands and set them again and again.
    bytes: usize,
}

impl Variables {
    /// Bytes of all variables of one instance: extism's default, counted as it counts.
    pub(super) const MOST: usize = 1024 * 1024;
    const EACH: usize = size_of::<String>() + size_of::<Vec<u8>>();

    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        self.values.get(name).map(Vec::as_slice)
    }

    pub(super) fn full() -> HostTrap {
        HostTrap::Failed("Variable store is full".into())
    }

    pub(super) fn remove(&mut self, name: &str) {
        if let Some(value) = self.values.remove(name) {
            self.bytes -= Self::size(name, &value);
        }
    }

    fn size(name: &str, value: &[u8]) -> usize {
        Self::EACH + name.len() + value.len()
    }

    pub(super) fn set(&mut self, name: String, value: Vec<u8>) -> Result<(), HostTrap> {
        let size = Self::size(&name, &value);
        if self.bytes + size > Self::MOST {
            return Err(Self::full());
        }
        self.remove(&name);
        self.bytes += size;
        self.values.insert(name, value);
        Ok(())
    }
}
