//! What compiles and runs plugins, behind a trait. The only place that names an engine's types.
//!
//! Two rules carry the pool's promises, and every engine keeps them:
//!
//! - **Dropping a call's future stops the guest.** Promptly, and the guest only: no other instance is interrupted.
//! - **Dropping the last object of a compiled plugin gives everything back.** Code, memory, threads.
//!
//! An engine is handed a [`Permit`] with each object that it makes and lets go of it after that object, in the same
//! drop. So what the pool counts is what exists, also when the object outlives the future that asked for it (a compile
//! that nobody waits for any more, a guest that has not noticed yet that it was cancelled).
//!
//! How a guest gets a thread is the engine's own affair: whatever blocks runs on one of tokio's blocking threads.
//!
//! There are two, `extism` and `direct`: see [`choosing`].
//!
//! Why boxed futures and trait objects rather than generics: one pool type for every engine, and a spy in tests. The
//! price, an allocation a call, is less than a hundredth of the cheapest evaluation that was measured.

pub(crate) mod abi_names;
pub mod choosing;
#[cfg(feature = "direct")]
pub mod direct;
#[cfg(feature = "extism")]
pub mod extism;
mod host;
#[cfg(any(feature = "direct", feature = "extism"))]
mod text;

use std::{any::Any, collections::BTreeMap, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

pub(crate) use self::host::inside_host_function;
pub use self::host::{GuestMemory, HostFunction, HostFunctionError, Val, ValType};
use crate::{error::Error, source::Digest};

/// A boxed future that can be sent to another thread.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The right to have an engine object. Opaque: an engine keeps it beside the object and drops it right after.
#[derive(Clone)]
pub struct Permit {
    _held: Arc<dyn Any + Send + Sync>,
}

impl Permit {
    /// A permit that releases `held` when it, and every clone of it, is dropped.
    pub fn new(held: impl Any + Send + Sync) -> Self {
        Self { _held: Arc::new(held) }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}

/// What one instance may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceLimits {
    /// Linear memory, the engine's own allocations for input and output included. Bytes.
    pub memory: u64,
    /// Elements of each of its tables.
    pub table_elements: u64,
    /// Bytes of output that one call may give.
    pub output_size: u64,
    /// How long one call may run.
    pub exec_timeout: Duration,
    /// How long compiling and initialising may take.
    pub build_timeout: Duration,
    /// Instructions, roughly, of one call; `None` for no such limit.
    pub fuel: Option<u64>,
}

/// Everything an engine needs to know of a plugin.
#[derive(Debug, Clone)]
pub struct CompileRequest {
    /// A WebAssembly binary that has been inspected.
    pub wasm: Bytes,
    /// The digest of those bytes.
    pub digest: Digest,
    /// Modules that it, or a later one of them, imports from.
    pub linked: Arc<[LinkedModule]>,
    /// Whether to link WASI preview 1, with nothing preopened, no environment and no stdio.
    pub wasi: bool,
    /// Whether its author is trusted to let initialisers and calls end. What an engine can interrupt it interrupts all
    /// the same; where it cannot, it spends less on making sure.
    pub trusted: bool,
    /// What `config_get` gives.
    pub config: Arc<BTreeMap<String, String>>,
    /// Hosts that `http_request` may reach, as glob patterns.
    pub allowed_hosts: Arc<[String]>,
    /// What `extism:host/user` and other modules import.
    pub host_functions: Arc<[HostFunction]>,
    /// What each of its instances may use.
    pub limits: InstanceLimits,
    /// Held until the compiled plugin is gone.
    pub permit: Permit,
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

/// What an engine that reserves its instances' slots in advance has of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slots {
    /// Held by instances now.
    pub live: SlotCounts,
    /// Free, and kept ready for the next instance of the same plugin.
    pub warm: SlotCounts,
}

/// Slots by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlotCounts {
    /// Of modules, several to one instance of a plugin: the kernel's, its own, those it is linked with.
    pub instances: u64,
    /// Of linear memories.
    pub memories: u64,
    /// Of tables.
    pub tables: u64,
    /// Of stacks: guests that are being called or initialised.
    pub stacks: u64,
}

/// Compiles plugins.
pub trait Engine: Send + Sync + fmt::Debug + 'static {
    /// Refuses what this engine does not run, by what is known before anything is compiled or takes a place.
    ///
    /// # Errors
    ///
    /// `invalid_request`, saying what to set. By default nothing is refused.
    fn check(&self, trusted: bool, allowed_hosts: &[String]) -> Result<(), Error> {
        let _ = (trusted, allowed_hosts);
        Ok(())
    }

    /// Compiles a plugin. The work cannot be interrupted: when the future is dropped it runs to its end, in its own
    /// place and holding its permit, and what it made is dropped.
    ///
    /// # Errors
    ///
    /// `invalid_plugin` when the plugin is at fault, `internal` when the engine is.
    fn compile(&self, request: CompileRequest) -> BoxFuture<'_, Result<Box<dyn CompiledPlugin>, Error>>;

    /// Whether an initialiser that does not end holds up nothing but its own instance: no thread, and no longer than
    /// `build_timeout`.
    fn interrupts_initialisers(&self) -> bool {
        false
    }

    /// Whether making an instance costs little more than handing the work to another thread would. Then a spare is made
    /// only for a runtime that is at rest, and a busy caller makes its own.
    fn instances_are_cheap(&self) -> bool {
        false
    }

    /// The slots that it has, if it has any. Quick, and blocks nobody.
    fn slots(&self) -> Option<Slots> {
        None
    }
}

/// A compiled plugin: makes instances. Dropping it and its instances gives everything back; may take milliseconds.
pub trait CompiledPlugin: Send + Sync + 'static {
    /// Whether an export of this name can be called.
    fn has_entry_point(&self, name: &str) -> bool;

    /// Makes an instance, which may run the guest's initialisers.
    ///
    /// # Errors
    ///
    /// `invalid_plugin` when it cannot be linked or its initialisers fail.
    fn instantiate(&self, permit: Permit) -> BoxFuture<'_, Result<Box<dyn Instance>, Error>>;

    /// The engine's own object, for those who know its type.
    fn as_any(&self) -> &dyn Any;
}

/// One sandboxed guest. Serves one call at a time. Dropping it is quick: an engine that needs longer does it elsewhere,
/// where the permit goes with it.
pub trait Instance: Send + 'static {
    /// Calls an entry point. **Dropping the future stops the guest**, and the instance is not [sound](Self::is_sound)
    /// afterwards. `deadline` is for the engine to keep should the future not be polled; whoever polls it has a timer
    /// of its own.
    ///
    /// # Errors
    ///
    /// The guest's failure, classified here and nowhere else.
    fn call<'a>(
        &'a mut self,
        entry_point: &'a str,
        input: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Bytes, Error>>;

    /// Whether the instance can serve another call: false after a trap, an exit, a panic or an interrupted call.
    fn is_sound(&self) -> bool;
}
