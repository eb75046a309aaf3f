//! What the host keeps for one guest, and for one plugin.

use std::{collections::BTreeMap, sync::Arc};

use rustix::io::Errno;
use tokio::time::Instant;
use wasmtime::{GcHeapOutOfMemory, Memory, ResourceLimiter};
use wasmtime_wasi::p1::WasiP1Ctx;

use super::{
    allocator::Allocator,
    classify::{HostTrap, by_system},
    clock::Clock,
    drawn::Draws,
    fair_share::RunPermit,
    http::{Http, Response},
    log::LogBudget,
    streams::Streams,
    ticker::Ticker,
};
use crate::{
    engine::{
        CallContext, Changes, Charge, Drawn, FairShare, InstanceLimits, KeptVariables, LogSink, MemoryAccount, Permit,
        TenantId, VariableSet,
    },
    source::Digest,
    usage::{HttpUsage, Usage},
};

/// What host functions need of a plugin. Its instances share it.
pub(super) struct PluginContext {
    pub(super) config: Arc<BTreeMap<String, String>>,
    /// Where variables outlive an evaluation, if they do.
    pub(super) kept: Option<Arc<KeptVariables>>,
    pub(super) http: Http,
    pub(super) limits: InstanceLimits,
    pub(super) memory: MemoryAccount,
    pub(super) evaluator: Arc<str>,
    pub(super) labels: Option<Arc<str>>,
    pub(super) log: Option<LogSink>,
    pub(super) digest: Digest,
    /// Whether its instances may have a collected heap.
    pub(super) wide: bool,
    /// Whether the plugin imports WASI.
    pub(super) wasi: bool,
    /// Whether it is to be initialised once.
    pub(super) once: bool,
    pub(super) ticker: Arc<Ticker>,
    /// Whose turn it is when it runs long.
    pub(super) tenant: TenantId,
    pub(super) share: FairShare,
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
    pub(super) clock: Clock,
    /// While its initialisers run, if others are to begin with what they do.
    pub(super) initial: Option<Initial>,
    pub(super) log: LogBudget,
    pub(super) run_permit: RunPermit,
    pub(super) deadline: Instant,
    pub(super) host_calls: u64,
    pub(super) requests: HttpUsage,
}

impl GuestState {
    pub(super) fn new(context: Arc<PluginContext>, streams: Option<Arc<Streams>>, deadline: Instant) -> Self {
        let InstanceLimits { memory, table_elements, .. } = context.limits;
        Self {
            call_context: None,
            kernel_memory: None,
            allocator: Allocator::default(),
            budget: Budget {
                memory_left: memory,
                table_elements,
                lacks: None,
                element: if context.wide { ELEMENT + ROOT } else { ELEMENT },
                used: 0,
                peak: 0,
                charge: context.memory.instance(0),
            },
            variables: Variables::default(),
            http: Response::default(),
            wasi: None,
            streams,
            clock: Clock::default(),
            initial: context.once.then(Initial::default),
            log: LogBudget::default(),
            run_permit: RunPermit::new(context.share.clone(), context.tenant),
            deadline,
            host_calls: 0,
            requests: HttpUsage::default(),
            context,
        }
    }

    /// The guest's initialisers do what reaches beyond its own state.
    pub(super) fn reaches_out(&mut self, what: impl FnOnce() -> String) {
        if let Some(initial) = &mut self.initial {
            initial.reached.get_or_insert_with(what);
        }
    }

    /// The guest is given a config value.
    pub(super) fn reads_config(&mut self) {
        if let Some(initial) = &mut self.initial {
            initial.reads_config = true;
        }
    }

    /// What is kept for a guest whose initialisers have just run; or why others cannot begin with it. What each evaluation
    /// begins anew is not in it (log, response, deadline), nor what its memories and tables say (what is left of its budget),
    /// nor blocks of the kernel, which each evaluation clears.
    pub(super) fn initialised(&mut self) -> Result<Initialised, String> {
        let Initial { reached, draws, reads_config } = self.initial.take().unwrap_or_default();
        if let Some(what) = reached {
            return Err(format!("its initialisers call {what}"));
        }
        if self.wasi.is_some() && self.streams.as_ref().is_some_and(|streams| streams.is_any_closed()) {
            return Err("its initialisers close a standard stream".into());
        }
        let variables =
            Variables { own: self.variables.own.clone(), bytes: self.variables.bytes, ..Variables::default() };
        let drew = draws.map(|draws| draws.drawn()).unwrap_or_default();
        Ok(Initialised { variables, clock: self.clock.after(), drew, reads_config })
    }

    /// Begins as one that was initialised.
    pub(super) fn begin_as(&mut self, initialised: &Initialised) {
        let Initialised { variables: Variables { own, bytes, .. }, clock, .. } = initialised;
        self.initial = None;
        self.clock = *clock;
        self.variables = Variables { own: own.clone(), bytes: *bytes, ..Variables::default() };
    }

    /// Begins to count what a call uses.
    pub(super) fn begin_usage(&mut self) {
        self.initial = None;
        (self.host_calls, self.requests, self.budget.peak) = (0, HttpUsage::default(), self.budget.used);
    }

    /// What the call has used so far.
    pub(super) fn add_usage(&self, usage: &mut Usage) {
        usage.peak_memory = Some(self.budget.peak);
        usage.host_calls = self.host_calls;
        usage.http = Some(self.requests);
    }
}

/// What initialisers did beyond the guest's own state.
#[derive(Default)]
pub(super) struct Initial {
    /// The first thing of which another guest would have no part.
    reached: Option<String>,
    draws: Option<Arc<Draws>>,
    /// They were given a config value.
    reads_config: bool,
}

impl Initial {
    /// Where it is noted what they draw.
    pub(super) fn draws(&mut self) -> Arc<Draws> {
        self.draws.get_or_insert_default().clone()
    }
}

/// What the host keeps for a guest that was initialised.
#[derive(Default)]
pub(super) struct Initialised {
    variables: Variables,
    clock: Clock,
    pub(super) drew: Drawn,
    /// Its memory may hold config values, or what was made of them.
    pub(super) reads_config: bool,
}

/// What a guest may still take: bytes of linear memory, the kernel's, its allocator's and the collected heap included, and
/// table elements.
#[derive(Debug)]
pub(super) struct Budget {
    memory_left: u64,
    table_elements: u64,
    /// Bytes of an element.
    element: u64,
    /// What the system said when a memory could not grow. Of a collected heap the engine tells nobody.
    lacks: Option<Errno>,
    /// Bytes of memories and tables, and of blocks that the allocator keeps books of.
    used: u64,
    /// The most of those since the call began.
    peak: u64,
    /// For those, in steps: the account is shared by all guests.
    charge: Charge,
}

/// Bytes of a table's element.
const ELEMENT: u64 = 8;

/// Bytes that a collector takes for an element that it begins at.
const ROOT: u64 = 16;

/// The least by which a guest's charge grows.
const STEP: u64 = 64 << 10;

impl Budget {
    pub(super) fn take(&mut self, bytes: u64) -> Result<(), HostTrap> {
        self.memory_left = self.memory_left.checked_sub(bytes).ok_or(HostTrap::OutOfMemory)?;
        self.uses(bytes);
        Ok(())
    }

    fn uses(&mut self, bytes: u64) {
        self.used = self.used.saturating_add(bytes);
        self.peak = self.peak.max(self.used);
        if let Some(more) = self.used.checked_sub(self.charge.bytes()).filter(|more| *more > 0) {
            self.charge.grow(more.next_multiple_of(STEP));
        }
    }

    pub(super) fn give_back(&mut self, bytes: u64) {
        self.memory_left = self.memory_left.saturating_add(bytes);
        self.used = self.used.saturating_sub(bytes);
    }
}

impl Budget {
    /// The error with which a guest ended, or why the system gave its heap no memory.
    pub(super) fn why(&self, error: wasmtime::Error) -> wasmtime::Error {
        self.lacks.filter(|_| error.is::<GcHeapOutOfMemory<()>>()).map_or(error, Into::into)
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

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        // It is no answer for a guest that the host has no memory for it: the call ends.
        self.lacks = by_system(&error).next();
        if self.lacks.is_some() { Err(error) } else { Ok(()) }
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let may = maximum.is_none_or(|maximum| desired <= maximum) && desired as u64 <= self.table_elements;
        if may {
            self.uses(desired.saturating_sub(current) as u64 * self.element);
        }
        Ok(may)
    }
}

/// What `var_get` and `var_set` see.
#[derive(Default)]
pub(super) struct Variables {
    /// What the evaluation began with, if variables are kept.
    base: Option<Arc<VariableSet>>,
    /// What was changed since; without a base, all that there is.
    own: Changes,
    /// The size of all. Kept up to date, because a guest may have thousands and set them again and again.
    bytes: usize,
    /// What initialisers set: each evaluation sees it where nothing is kept under the name. `None` until the first begins.
    initial: Option<Changes>,
}

impl Variables {
    /// Begins an evaluation with what is kept.
    pub(super) fn begin(&mut self, mut kept: Arc<VariableSet>) {
        let own = std::mem::take(&mut self.own);
        for (name, value) in self.initial.get_or_insert(own) {
            if let (Some(value), None) = (value, kept.get(name)) {
                Arc::make_mut(&mut kept).set(name.clone(), value.clone());
            }
        }
        self.bytes = kept.bytes();
        self.base = Some(kept);
    }

    /// Ends an evaluation, and gives what it has changed. What it began with is let go: whoever takes the changes over then
    /// need not copy the rest, and an instance that waits for its next evaluation holds no old set.
    pub(super) fn end(&mut self) -> Changes {
        self.base = None;
        std::mem::take(&mut self.own)
    }

    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        let value = match self.own.get(name) {
            Some(own) => own.as_ref(),
            None => self.base.as_ref().and_then(|base| base.get(name)),
        };
        value.map(|value| &value[..])
    }

    pub(super) fn full() -> HostTrap {
        HostTrap::Failed("Variable store is full".into())
    }

    pub(super) fn remove(&mut self, name: &str) {
        if let Some(value) = self.get(name) {
            self.bytes -= VariableSet::size(name, value);
        }
        if self.base.as_ref().is_some_and(|base| base.get(name).is_some()) {
            self.own.insert(name.to_owned(), None);
        } else {
            self.own.remove(name);
        }
    }

    pub(super) fn set(&mut self, name: String, value: Vec<u8>) -> Result<(), HostTrap> {
        let size = VariableSet::size(&name, &value);
        if self.bytes + size > VariableSet::MOST {
            return Err(Self::full());
        }
        self.remove(&name);
        self.bytes += size;
        self.own.insert(name, Some(value.into()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets this variable to as many bytes as there is room for, and says how many that were.
    fn fill(variables: &mut Variables, name: &str) -> usize {
        let most = (0..=VariableSet::MOST).rev().step_by(8);
        most.into_iter().find(|bytes| variables.set(name.into(), vec![0; *bytes]).is_ok()).unwrap()
    }

    #[test]
    fn what_a_variable_took_is_free_again_once_it_is_removed_and_no_more_than_that() {
        let mut kept = VariableSet::default();
        kept.set("kept".into(), vec![0; 4000].into());
        let mut variables = Variables::default();
        variables.begin(Arc::new(kept));
        for name in ["own", "other"] {
            variables.set(name.into(), vec![0; 2000]).unwrap();
        }
        let with_all = fill(&mut variables, "rest");
        for (name, value) in [("own", 2000), ("kept", 4000)] {
            variables.remove("rest");
            let before = variables.bytes;
            variables.remove(name);
            assert_eq!(before - variables.bytes, VariableSet::size(name, &vec![0; value]));
            // Of what is not there, nothing comes back.
            variables.remove(name);
            assert_eq!(before - variables.bytes, VariableSet::size(name, &vec![0; value]));
            assert!(variables.get(name).is_none());
        }
        assert!(fill(&mut variables, "rest") >= with_all + 6000 - 8);
        assert!(variables.set("more".into(), vec![0; 8]).is_err());
    }

    fn budget(memory_left: u64) -> Budget {
        let charge = MemoryAccount::unbounded().instance(0);
        Budget { memory_left, table_elements: 10, lacks: None, element: ELEMENT, used: 0, peak: 0, charge }
    }

    #[test]
    fn a_guest_can_take_again_what_it_gave_back_and_is_charged_in_steps_for_the_most_that_it_had() {
        let mut budget = budget(100_000);
        budget.take(60_000).unwrap();
        assert_eq!(budget.charge.bytes(), STEP);
        assert_eq!(budget.take(40_001), Err(HostTrap::OutOfMemory));
        budget.take(40_000).unwrap();
        budget.give_back(50_000);
        assert_eq!((budget.used, budget.peak, budget.charge.bytes()), (50_000, 100_000, 2 * STEP));
        budget.take(50_000).unwrap();
        assert_eq!((budget.used, budget.peak, budget.charge.bytes()), (100_000, 100_000, 2 * STEP));
        assert!(budget.take(1).is_err());
        budget.uses(2 * STEP - 100_000);
        assert_eq!(budget.charge.bytes(), 2 * STEP);
        budget.uses(1);
        assert_eq!(budget.charge.bytes(), 3 * STEP);
    }

    #[test]
    fn what_a_module_does_not_allow_is_no_and_more_memory_than_the_limit_ends_the_call() {
        let mut budget = budget(100);
        assert!(budget.memory_growing(0, 60, Some(60)).unwrap());
        assert!(!budget.memory_growing(60, 61, Some(60)).unwrap());
        assert!(budget.memory_growing(60, 100, None).unwrap(), "what was not allowed took nothing");
        let error = budget.memory_growing(100, 101, None).unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&HostTrap::OutOfMemory));
        for (current, desired, maximum, may) in
            [(0, 10, Some(10), true), (0, 5, Some(4), false), (0, 11, None, false), (9, 10, None, true)]
        {
            let before = budget.used;
            assert_eq!(budget.table_growing(current, desired, maximum).unwrap(), may);
            let took = if may { (desired - current) as u64 * ELEMENT } else { 0 };
            assert_eq!(budget.used - before, took);
        }
        assert!(budget.memory_grow_failed(wasmtime::Error::msg("too large")).is_ok());
        assert!(budget.memory_grow_failed(Errno::NOMEM.into()).is_err(), "that is no answer for a guest");
    }

    #[test]
    fn variables_may_take_all_that_there_is_for_them() {
        let mut variables = Variables::default();
        let most = VariableSet::MOST - VariableSet::size("name", &[]);
        assert!(variables.set("name".into(), vec![0; most + 1]).is_err());
        assert!(variables.set("name".into(), vec![0; most]).is_ok());
    }
}
