//! The engines, which compile and run plugins, behind a trait. Nothing else names an engine's types.
//!
//! The pool's promises rest on two rules that every engine keeps:
//!
//! - **Dropping a call's future stops the guest**, promptly, and interrupts no other instance.
//! - **Dropping the last object of a compiled plugin gives everything back**: code, memory, threads.
//!
//! The pool hands an engine a [`Permit`] for each object that it makes. The engine releases the permit after that
//! object, in the same drop. So the pool counts what exists, even when an object outlives the future that asked for it:
//! a compile that nobody waits for, a guest that has not noticed its cancel yet.
//!
//! Each engine decides how a guest gets a thread; work that blocks runs on tokio's blocking threads. The pool polls
//! [`compile`](Engine::compile) on the runtime of its [background work](crate::PoolBuilder::background), and a call in the
//! task of its caller, which may stop at any time: what others may wait for does not belong there.
//!
//! There are two engines, `direct` and `extism`: see [`choosing`].
//!
//! Futures are boxed, and engines are trait objects, so that one pool type serves every engine and a spy in tests. The
//! price, an allocation for each call, is less than a hundredth of the cheapest evaluation measured.

pub(crate) mod abi_names;
pub mod choosing;
mod contained;
#[cfg(feature = "direct")]
pub mod direct;
#[cfg(feature = "extism")]
pub mod extism;
#[cfg_attr(not(all(feature = "direct", feature = "extism")), allow(unused, reason = "each engine uses a part of it"))]
mod guest;
#[cfg_attr(not(all(feature = "direct", feature = "extism")), allow(unused, reason = "each engine uses a part of it"))]
mod host;
mod log_sink;
#[cfg(any(feature = "direct", feature = "extism"))]
mod text;
mod variables;

use std::{any::Any, collections::BTreeMap, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

pub(crate) use self::contained::Contained;
pub(crate) use self::host::inside_host_function;
pub(crate) use self::variables::VariableBudget;
pub use self::{
    guest::{CallContext, Guest, HostFunctionError},
    host::{HostFunction, Val, ValType},
    log_sink::LogSink,
    variables::{Changes, KeptVariables, VariableSet},
};
use crate::{
    config::Init,
    error::Error,
    last_words::LastWords,
    source::Digest,
    usage::{Usage, seconds},
    words::words,
};
pub use crate::{
    fair_share::FairShare,
    memory::{Charge, MemoryAccount},
    turns::TenantId,
};

/// Modules that a plugin may be linked with: `direct` reserves slots for as many.
#[cfg(feature = "direct")]
pub(crate) const MAX_LINKED: usize = 8;

/// A boxed future that can be sent to another thread.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The right to have an engine object. Opaque: an engine keeps it beside the object and drops it right after it.
#[derive(Debug, Clone)]
pub struct Permit {
    _held: Arc<dyn Any + Send + Sync>,
}

impl Permit {
    /// A permit that releases `held` when it, and every clone of it, is dropped.
    pub fn new(held: impl Any + Send + Sync) -> Self {
        Self { _held: Arc::new(held) }
    }
}

/// What one instance may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceLimits {
    /// Bytes of linear memory, the engine's own allocations for input and output included.
    pub memory: u64,
    /// Elements of each table.
    pub table_elements: u64,
    /// Bytes of one call's output.
    pub output_size: u64,
    /// How long one call may run.
    pub exec_timeout: Duration,
    /// How long compiling and initialising may take.
    pub build_timeout: Duration,
    /// Instructions of the guest in one call, and once more in its initialisers; `None` for no limit.
    pub fuel: Option<u64>,
}

/// Everything an engine needs to know of a plugin.
#[derive(Debug, Clone)]
pub struct CompileRequest {
    /// The evaluator's name, for the log. Two may have the same plugin.
    pub evaluator: Arc<str>,
    /// Whom it belongs to: guests that run long take turns by tenant.
    pub tenant: TenantId,
    /// Its [labels](crate::Spec::label), as they stand in the log: `key=value` and a space between two.
    pub labels: Option<Arc<str>>,
    /// Who else takes what it logs; nobody by default.
    pub log: Option<LogSink>,
    /// A WebAssembly binary that has been inspected.
    pub wasm: Bytes,
    /// The digest of those bytes.
    pub digest: Digest,
    /// Modules that the plugin, or a later one of them, imports from.
    pub linked: Arc<[LinkedModule]>,
    /// Whether to link WASI preview 1, with nothing preopened, no environment and no input. What is written to its
    /// standard output and error is for [`Instance::last_words`].
    pub wasi: bool,
    /// Whether the plugin's author is trusted. An engine that cannot contain a hostile plugin refuses all others.
    pub trusted: bool,
    /// What `config_get` gives.
    pub config: Arc<BTreeMap<String, String>>,
    /// Where variables are kept from one evaluation to the next; `None` if they live as long as the instance. A call
    /// begins with the [current](KeptVariables::current) ones, and once its guest has returned
    /// [changes](KeptVariables::change) them. Only for an engine that [can](Engine::keeps_variables).
    pub variables: Option<Arc<KeptVariables>>,
    /// How often initialisers run. [`Once`](Init::Once) is only for an engine that [can](Engine::initialises_once): see
    /// [`CompiledPlugin::snapshot`].
    pub init: Init,
    /// How old a snapshot gets before another is made, if initialisers drew time or randomness; `None` for as old as its
    /// runtime. See [`CompiledPlugin::read_anew`].
    pub init_refresh: Option<Duration>,
    /// Hosts that `http_request` may reach: see [`Spec::allowed_hosts`](crate::Spec::allowed_hosts).
    pub allowed_hosts: Arc<[String]>,
    /// What `extism:host/user` and other modules import.
    pub host_functions: Arc<[HostFunction]>,
    /// What each instance may use.
    pub limits: InstanceLimits,
    /// Bytes of linear memory with which the modules begin.
    pub initial_memory: u64,
    /// Whether its instances may need more memories than one for each module: see [`Interface::is_wide`].
    ///
    /// [`Interface::is_wide`]: crate::Interface::is_wide
    pub wide: bool,
    /// How much of the processors to take for it.
    pub priority: CompilePriority,
    /// What the engine charges code and instances to.
    pub memory: MemoryAccount,
    /// Held until the compiled plugin is gone.
    pub permit: Permit,
}

/// What a compile may take of the processors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompilePriority {
    /// As much as it can use.
    #[default]
    Normal,
    /// What others leave, if the engine can: its tenant builds more than its share, while processors are busy with the calls
    /// of others.
    Low,
}

/// A module that a plugin is linked with.
#[derive(Debug, Clone)]
pub struct LinkedModule {
    /// The name that others import from.
    pub name: String,
    /// A WebAssembly binary that has been inspected.
    pub wasm: Bytes,
    /// The digest of those bytes.
    pub digest: Digest,
}

/// Why the initialisers of a plugin without any are not run once: nothing that anybody need know.
pub(crate) const NO_INITIALISERS: &str = "it has no initialisers";

/// So often a snapshot may fail by itself, and not since somebody else wanted the slot or the room. Then there is none.
pub(crate) const MOST_SNAPSHOT_FAILURES: u32 = 3;

/// How the instances of a compiled plugin are initialised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum InitState {
    /// Each by itself.
    #[default]
    Each,
    /// Each by itself, until what they begin with is compiled.
    Pending,
    /// Once: those that are made now begin initialised.
    Once,
    /// Each by itself, though they were to be initialised once. Why that cannot be, for the plugin's author.
    Refused(Arc<str>),
}

/// What initialisers drew that run once: all instances then share it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[expect(clippy::exhaustive_structs, reason = "there is nothing else to draw")]
pub struct Drawn {
    /// They looked at a clock.
    pub time: bool,
    /// They drew random numbers.
    pub randomness: bool,
}

/// What instances begin with, or will, whose plugin is initialised once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// How long ago its initialisers ran. In JSON, in seconds.
    #[serde(rename = "age_seconds", serialize_with = "seconds")]
    pub age: Duration,
    /// What they drew.
    pub drew: Drawn,
    /// How many times it was made anew since the plugin was built.
    pub refreshes: u64,
}

/// One call of an instance.
#[derive(Debug, Clone)]
pub struct CallRequest<'a> {
    /// The export to call.
    pub entry_point: &'a str,
    /// What the guest gets.
    pub input: Bytes,
    /// What host functions get, in this call and no other. The engine drops it when the guest has returned or was stopped.
    pub context: Option<CallContext>,
    /// For the engine to keep while nobody polls the call's future. The caller has a timer of its own.
    pub deadline: Instant,
}

/// The slots of an engine that reserves them in advance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slots {
    /// Held by instances now.
    pub live: SlotCounts,
    /// Free, and ready for the next instance of the same plugin.
    pub warm: SlotCounts,
    /// Bytes that free slots keep.
    pub kept: u64,
    /// Plugins compiled so far that have Extism's kernel beside their own module, not in it: each of their instances takes a
    /// second slot. They are linked with other modules, or a host function stands in for one of the kernel's.
    pub kernels_beside: u64,
}

/// Slots by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlotCounts {
    /// Instances of modules. A plugin's instance has several: the kernel's, its own, those of linked modules.
    pub instances: u64,
    /// Linear memories.
    pub memories: u64,
    /// Tables.
    pub tables: u64,
    /// Stacks, one for each guest that is being called or initialised.
    pub stacks: u64,
}

words! {
    /// How a compile worker ended.
    #[non_exhaustive]
    pub enum Ended {
        /// It was replaced, after many builds or because it had grown.
        Done = "done",
        /// Its compile took longer than `limits.build_timeout`.
        Timeout = "timeout",
        /// Its compile took more than `limits.compile_memory`.
        Memory = "memory",
        /// Nobody waited for its compile, and another build wanted the slot.
        Killed = "killed",
        /// It died of something else.
        Crashed = "crashed",
    }
}

/// The processes in which an engine compiles.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompileWorkerCounts {
    /// Those that wait for work.
    pub idle: usize,
    /// Those that compile.
    pub busy: usize,
    /// Those that have ended, in the order of [`Ended::ALL`].
    pub ended: [u64; Ended::ALL.len()],
}

/// Compiles plugins.
pub trait Engine: Send + Sync + fmt::Debug + 'static {
    /// Refuses what this engine does not run, before anything is compiled or takes a place.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRequest`], saying what to set. The default refuses nothing.
    fn check(&self, trusted: bool, allowed_hosts: &[String]) -> Result<(), Error> {
        let _ = (trusted, allowed_hosts);
        Ok(())
    }

    /// Compiles a plugin. If the engine [interrupts compiles](Self::interrupts_compiles), dropping the future ends the
    /// work. Otherwise it goes on to its end on its own thread, holds its permit, and drops what it made.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidPlugin`] when the plugin is at fault, [`Error::Internal`] when the engine is.
    fn compile(&self, request: CompileRequest) -> BoxFuture<'_, Result<Box<dyn CompiledPlugin>, Error>>;

    /// Whether a compile ends when its future is dropped, and at `build_timeout`, by itself.
    fn interrupts_compiles(&self) -> bool {
        false
    }

    /// Whether plugins with the same bytes share their code. If so, one of them is compiled before the others begin.
    fn shares_code(&self) -> bool {
        false
    }

    /// The processes in which it compiles, if it does. Quick, and never blocks.
    fn compile_workers(&self) -> Option<CompileWorkerCounts> {
        None
    }

    /// Whether an endless initialiser holds up only its own instance: it blocks no thread, and ends at `build_timeout`.
    fn interrupts_initialisers(&self) -> bool {
        false
    }

    /// Whether making an instance costs little more than handing the work to another thread. If so, spares are made
    /// only for runtimes at rest, and a busy caller makes its own.
    fn instances_are_cheap(&self) -> bool {
        false
    }

    /// Whether variables can outlive their instance: see [`CompileRequest::variables`].
    fn keeps_variables(&self) -> bool {
        false
    }

    /// Whether it can initialise a plugin once: see [`CompileRequest::init`].
    fn initialises_once(&self) -> bool {
        false
    }

    /// How tenants share the processors, if its guests give way to others': the pool then has evaluations and builds wait for
    /// tenants that had less, and says what each weighs. Cheap to clone.
    fn fair_share(&self) -> Option<FairShare> {
        None
    }

    /// The engine's slots, if it has any. Quick, and never blocks.
    fn slots(&self) -> Option<Slots> {
        None
    }
}

/// A compiled plugin: makes instances. Dropping it and its instances gives everything back, which may take
/// milliseconds. The pool logs a panic of either drop, and goes on: what held a permit must have released it all the same.
pub trait CompiledPlugin: Send + Sync + 'static {
    /// Whether an export of this name can be called.
    fn has_entry_point(&self, name: &str) -> bool;

    /// Makes an instance, which may run the guest's initialisers.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidPlugin`] when it cannot be linked or its initialisers fail. The error has the
    /// [last words](Error::last_words) of the initialisers.
    fn instantiate(&self, permit: Permit) -> BoxFuture<'_, Result<Box<dyn Instance>, Error>>;

    /// Compiles the state in which an instance was when that was made, the first one or one that was [read
    /// anew](Self::read_anew), for later instances to begin with. Does nothing
    /// for a plugin that is not to be initialised once, nor when it is done already or [cannot](InitState::Refused) be done.
    /// The default does nothing.
    ///
    /// To be called beside calls of instances, in a compile slot. Where the engine [interrupts
    /// compiles](Engine::interrupts_compiles), dropping the future ends the work, which can be begun again.
    ///
    /// # Errors
    ///
    /// What may not happen another time, such as [`Error::Overloaded`].
    fn snapshot(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    /// How its instances are initialised now. The default: each by itself.
    fn init_state(&self) -> InitState {
        InitState::Each
    }

    /// What there is to tell of the snapshot that instances begin with, or that is being compiled. The default: none.
    fn snapshot_info(&self) -> Option<SnapshotInfo> {
        None
    }

    /// For a plugin whose [snapshot](Self::snapshot) is made anew from time to time: ends once an instance was made that runs the
    /// initialisers again and whose state is now to be compiled, by another call of `snapshot`; or once the plugin is gone. It
    /// holds nothing of the plugin. Keep it until that is made and another was asked for: dropping the last one gives up what
    /// was read. `None`, as by default, if no other snapshot will be made. The same where no instance was read for the first yet.
    ///
    /// An engine makes one anew only for instances that are asked for, only if initialisers drew time or randomness, and only
    /// within a bound on what all of that takes of the processors.
    fn read_anew(&self) -> Option<BoxFuture<'static, ()>> {
        None
    }

    /// The engine's own object, for those who know its type.
    fn as_any(&self) -> &dyn Any;
}

/// One sandboxed guest, which serves one call at a time. Dropping it is quick: an engine that needs longer moves it to
/// another thread, together with its permit.
pub trait Instance: Send + 'static {
    /// Calls an entry point. **Dropping the future stops the guest**, and the instance is not [sound](Self::is_sound)
    /// afterwards. A panic of a host function passes through, and leaves the instance unsound.
    ///
    /// # Errors
    ///
    /// The guest's failure, classified here and nowhere else.
    fn call<'a>(&'a mut self, request: CallRequest<'a>) -> BoxFuture<'a, Result<Bytes, Error>>;

    /// What the guest of the last call wrote and, if it failed, where it was. Asked once after each call, also after one
    /// whose future was dropped. The default leaves nothing.
    fn last_words(&mut self) -> LastWords {
        LastWords::default()
    }

    /// Adds what the last call used, as far as the engine can tell: to the fields of [`Usage`] that say so. Asked once after
    /// each call, also after one whose future was dropped, while what waited for it is dropped: it must not panic. The
    /// default tells nothing.
    fn add_usage(&mut self, usage: &mut Usage) {
        let _ = usage;
    }

    /// Whether the instance can serve another call: false after a trap, an exit, a panic or an interrupted call.
    fn is_sound(&self) -> bool;
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_end_of_a_compile_worker_has_its_series() {
        let words: Vec<_> = super::Ended::ALL.iter().map(|how| how.as_str()).collect();
        assert!(crate::metrics::has_values("evalpool_compile_workers_ended_total", &words));
    }
}
