//! The `extism` crate as an engine.
//!
//! What it takes to keep the two rules of [an engine](super) on it:
//!
//! - **An interrupt hits a whole wasmtime engine**, and with it every instance made from one `CompiledPlugin`. So an
//!   instance in use has a `CompiledPlugin` of its own, a `Seat`. Seats are compiled when a runtime first needs one
//!   more and used again by later instances; an in-memory cache of compiled functions makes all but the first
//!   cheap. Considered and not taken: one `CompiledPlugin` for all (a cancelled call kills its siblings), and
//!   extism's disk cache (starts a thread for each `CompiledPlugin`, fails without a home folder).
//! - **A call blocks its thread**, so it runs on one of tokio's blocking threads. Dropping the call's future sends a
//!   cancel, which extism would lose before the call has really begun: see `stop`.
//! - **Initialisers are not interrupted by extism**, and are here: see `interrupt`.
//! - **extism believes what its kernel says of memory, and its kernel what plugins may write**: see `fence`.
//! - **Should all of that fail, fuel ends a guest**: plugins that are not `trusted` get some. See `seat`.
//! - **Some functions of extism's block for as long as a guest likes, or reach where it may not.** Ours take their
//!   place: see `given`.
//! - **Tables are not bounded**: the slots that wasmtime has for a seat bound them. See `seat`.
//! - **Nothing that a customer uploads reaches extism's own manifest parser**: the bytes were read as WebAssembly
//!   before, and the manifest is made here.

mod cache;
mod errors;
mod fence;
mod functions;
mod given;
mod interrupt;
mod seat;
mod stop;

use std::{
    any::Any,
    fmt,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use extism::{Manifest, Plugin};
use lru::LruCache;
use tokio::time::{Instant, timeout_at};

use self::{
    cache::CodeCache,
    errors::Failure,
    interrupt::{Initialising, InterruptOnDrop},
    seat::{Recipe, Seat, Shared},
    stop::{Running, StopOnDrop},
};
use super::{
    BoxFuture, CompileRequest, CompiledPlugin, Engine, Instance, Permit,
    host::{GuestScope, panic_text},
};
use crate::{
    background, clock,
    error::Error,
    source::{Digest, effort},
};

/// Compiled functions that are kept for all plugins of one engine, in bytes.
const CODE_CACHE_BYTES: usize = 64 * 1024 * 1024;

/// Digests of plugins that are known to compile in bounded time.
const KNOWN: NonZeroUsize = NonZeroUsize::new(4096).expect("it is not 0");

/// A function that no plugin has.
const NOTHING: &str = "evalpool: nothing";

/// Runs plugins through the `extism` crate.
pub struct ExtismEngine {
    cache: Arc<CodeCache>,
    known: Arc<Mutex<LruCache<Digest, ()>>>,
}

impl ExtismEngine {
    /// An engine with an empty code cache. Starts no thread and compiles nothing.
    #[must_use]
    pub fn new() -> Self {
        Self { cache: Arc::new(CodeCache::new(CODE_CACHE_BYTES)), known: Arc::new(Mutex::new(LruCache::new(KNOWN))) }
    }
}

impl Default for ExtismEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ExtismEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExtismEngine")
    }
}

impl Engine for ExtismEngine {
    fn compile(&self, request: CompileRequest) -> BoxFuture<'_, Result<Box<dyn CompiledPlugin>, Error>> {
        let (cache, known) = (self.cache.clone(), self.known.clone());
        Box::pin(blocking("compiling did not finish", move || {
            check(&known, request.digest, &request.wasm)?;
            for linked in request.linked.iter() {
                check(&known, linked.digest, &linked.wasm)?;
            }
            let shared = Arc::new(Shared::new(Recipe::new(request, cache)?)?);
            Ok(Box::new(Compiled { shared }) as Box<dyn CompiledPlugin>)
        }))
    }
}

/// Refuses what would take too long to compile, and remembers what would not.
fn check(known: &Mutex<LruCache<Digest, ()>>, digest: Digest, wasm: &[u8]) -> Result<(), Error> {
    // Nothing panics under this lock.
    let known = || known.lock().unwrap_or_else(PoisonError::into_inner);
    let is_known = known().get(&digest).is_some();
    if !is_known {
        effort::check(wasm)?;
        known().put(digest, ());
    }
    Ok(())
}

/// The engine's compiled plugin; reach it through [`CompiledPlugin::as_any`].
pub struct Compiled {
    shared: Arc<Shared>,
}

impl Compiled {
    /// The manifest that the plugin was compiled with.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        self.shared.manifest()
    }

    /// Fuel that initialising it and each of its calls may use: what `limits.fuel` says, or for who is not trusted what
    /// the longer of both timeouts is worth.
    #[must_use]
    pub fn fuel(&self) -> Option<u64> {
        self.shared.fuel()
    }
}

impl CompiledPlugin for Compiled {
    fn has_entry_point(&self, name: &str) -> bool {
        // extism knows a plugin's exports only once it has an instance; the bytes were inspected before.
        !name.is_empty()
    }

    fn instantiate(&self, permit: Permit) -> BoxFuture<'_, Result<Box<dyn Instance>, Error>> {
        let shared = self.shared.clone();
        Box::pin(async move {
            let after = shared.limits().build_timeout;
            let watch = shared.initialises().then(InterruptOnDrop::default);
            let initialising = watch.as_ref().map(InterruptOnDrop::initialising);
            let work = blocking("initialising did not finish", move || {
                let mut seat = shared.take_seat()?;
                // First: from `begin` on it may be over.
                seat.occupied().compiled().1.begin_initialising(after);
                if initialising.as_ref().is_some_and(|initialising| !initialising.begin(seat.occupied().clone())) {
                    return Err(Error::BuildTimeout { after });
                }
                let plugin = initialise(&seat);
                if initialising.is_some_and(Initialising::end) {
                    seat.spoil();
                    return Err(Error::BuildTimeout { after });
                }
                let guest = Guest { plugin: plugin?, seat, _permit: permit };
                Ok(Box::new(ExtismInstance { guest: Some(Box::new(guest)) }) as Box<dyn Instance>)
            });
            let mut work = pin!(work);
            if let Ok(made) = timeout_at(clock::deadline(after), &mut work).await {
                return made;
            }
            if let Some(watch) = &watch {
                watch.interrupt();
            }
            work.await
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A plugin whose initialisers have run. Blocks while they do.
fn initialise(seat: &Seat) -> Result<Plugin, Error> {
    let (compiled, _) = seat.occupied().compiled();
    let limits = seat.limits();
    let _scope = GuestScope::enter();
    let mut plugin = Plugin::new_from_compiled(compiled).map_err(|error| errors::invalid(&error, limits))?;
    // extism initialises a plugin at its first call, whatever is called: so what fails there fails here, and the
    // first evaluation does not pay for it.
    match plugin.call::<&[u8], &[u8]>(NOTHING, &[]) {
        Err(error) if !error.to_string().ends_with(NOTHING) => Err(errors::invalid(&error, limits)),
        _ => Ok(plugin),
    }
}

/// What a call came to, and its guest if that can be called again.
type Returned = (Option<Box<Guest>>, Result<Bytes, Error>);

/// One guest with all that it holds, in the order in which it is given back.
struct Guest {
    plugin: Plugin,
    seat: Seat,
    _permit: Permit,
}

impl Guest {
    fn call(&mut self, entry_point: &str, input: &[u8], running: &Running) -> Result<Bytes, Failure> {
        let limits = self.seat.limits();
        let (_, call) = self.seat.occupied().compiled();
        call.begin(limits.exec_timeout, running.beginning());
        let _scope = GuestScope::enter();
        let output: &[u8] = self
            .plugin
            .call(entry_point, input)
            .map_err(|error| errors::classify(&error, running.elapsed(), limits))?;
        // The length is the guest's word: it is looked at before any byte is.
        if output.len() as u64 > limits.output_size {
            return Err(Failure::sound(Error::OutputTooLarge { limit: limits.output_size }));
        }
        Ok(Bytes::copy_from_slice(output))
    }

    /// The same on a thread that may block, and the guest, if it can be called again.
    fn run(mut self: Box<Self>, entry_point: &str, input: &[u8], mut running: Running) -> Result<Returned, Error> {
        if !running.begin() {
            return Err(Error::Cancelled);
        }
        let called = catch_unwind(AssertUnwindSafe(|| self.call(entry_point, input, &running)));
        let is_clear = running.is_clear(self.seat.limits().exec_timeout);
        let (result, is_sound, is_clear) = match called {
            Ok(Ok(output)) => (Ok(output), true, is_clear),
            Ok(Err(failure)) => (Err(failure.error), failure.is_sound, failure.is_interrupt || is_clear),
            // It passed extism by, which waits for the call's deadline still.
            Err(panic) => (Err(Error::internal("a host function panicked", panic_text(&*panic))), false, false),
        };
        if !is_clear {
            self.seat.spoil();
        }
        // The next call would run initialisers once more, where nothing reckons with them.
        let is_spent = entry_point == "_start";
        Ok(((is_sound && is_clear && !is_spent).then_some(self), result))
    }
}

struct ExtismInstance {
    /// `None` while a call has it, and for good after a call that left it unsound.
    guest: Option<Box<Guest>>,
}

impl Instance for ExtismInstance {
    fn call<'a>(
        &'a mut self,
        entry_point: &'a str,
        input: Bytes,
        _deadline: Instant,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            let Some(guest) = self.guest.take() else {
                return Err(Error::Internal { reason: "an unsound instance was called", cause: None });
            };
            let entry_point = entry_point.to_owned();
            let stop = StopOnDrop::new(guest.plugin.cancel_handle());
            let running = stop.running();
            let work = move || guest.run(&entry_point, &input, running);
            let (guest, result) = blocking("an evaluation did not finish", work).await?;
            stop.disarm();
            self.guest = guest;
            result
        })
    }

    fn is_sound(&self) -> bool {
        self.guest.is_some()
    }
}

impl Drop for ExtismInstance {
    fn drop(&mut self) {
        // Unmapping a guest's memory takes a while: not on a thread that drives other tasks.
        if let Some(guest) = self.guest.take() {
            background::drop_elsewhere(guest);
        }
    }
}

/// Runs blocking work where it may block. A panic in it is an `internal` error here; when this future is dropped, the
/// work runs to its end and its result is dropped on its own thread.
async fn blocking<T: Send + 'static>(
    unfinished: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal(unfinished, error)),
    }
}
