//! From a module's bytes to its code: what is in use already, what is kept, or what is compiled now.

use std::{
    collections::HashMap,
    io,
    ops::Deref,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use lru::LruCache;
use tokio::{runtime::Handle, time::Instant};
use wasmtime::{Engine, Module};

use super::{
    cache::{Cache, Key, lock},
    classify, in_process,
    workers::{Failed, Stop, Terms, Workers},
};
use crate::{
    clock,
    engine::{Charge, InstanceLimits, MemoryAccount, text::shorten},
    error::{Error, TryLater},
    host_limits::sure_memory,
    last_words::LastWords,
    source::data_size,
    units::Size,
};

/// How many times `pool.negative_ttl` it is remembered that a module was over its budget.
const REMEMBERED: u32 = 12;

/// What a worker takes of its address space before it compiles. In bytes.
const WORKER: u64 = 512 << 20;

/// How many modules that were over their budget are remembered at most.
const MOST_REMEMBERED: usize = 4096;

/// A module whose code is loaded.
pub(super) struct Loaded {
    module: Module,
    /// Given back once the code is unmapped.
    charge: Arc<Charge>,
}

impl Deref for Loaded {
    type Target = Module;

    fn deref(&self) -> &Module {
        &self.module
    }
}

/// The code of all modules under all engines.
pub(super) struct Code {
    /// Code that runtimes have: evaluators with the same bytes share it.
    live: Mutex<HashMap<Key, Weak<Loaded>>>,
    kept: Cache,
    pub(super) workers: Option<Workers>,
    over_budget: Mutex<LruCache<Key, OverBudget>>,
    remember: Duration,
    /// `limits.compile_memory`.
    memory: u64,
}

/// That a module took too much, and until when nobody tries again.
#[derive(Debug, Clone, Copy)]
struct OverBudget {
    until: Instant,
    /// The time that was not enough; `None` if the memory was not.
    within: Option<Duration>,
}

impl Code {
    pub(super) fn new(kept: Cache, workers: Option<Workers>, negative_ttl: Duration, memory: u64) -> Self {
        Self {
            live: Mutex::default(),
            kept,
            workers,
            over_budget: Mutex::new(LruCache::unbounded()),
            remember: negative_ttl.saturating_mul(REMEMBERED),
            memory,
        }
    }

    /// The code of a module, charged to `room`, whose `stop` ends it. Blocks.
    pub(super) fn module(
        &self,
        engine: &Engine,
        terms: Terms,
        wasm: &[u8],
        limits: &InstanceLimits,
        room: &mut Room<'_>,
    ) -> Result<Arc<Loaded>, Error> {
        let key = key(terms);
        let live = lock(&self.live).get(&key).and_then(Weak::upgrade);
        if let Some(loaded) = live {
            // First, so that whoever weighs this code knows that another needs it.
            room.account.runs(loaded.charge.clone());
            room.image = 0;
            room.take(0, 0)?;
            return Ok(loaded);
        }
        // wasmtime keeps what memories begin with beside the code, to map it into each instance.
        room.image = data_size(wasm);
        let kept = self.kept.load(engine, key, |code, unloaded| room.take(code, unloaded))?;
        let (module, charge) = match kept {
            Some(loaded) => loaded,
            None => self.compile(engine, terms, wasm, limits, room)?,
        };
        let loaded = Arc::new(Loaded { module, charge: Arc::new(charge) });
        room.account.runs(loaded.charge.clone());
        let mut live = lock(&self.live);
        live.retain(|_, module| module.strong_count() > 0);
        live.insert(key, Arc::downgrade(&loaded));
        Ok(loaded)
    }

    fn compile(
        &self,
        engine: &Engine,
        terms: Terms,
        wasm: &[u8],
        limits: &InstanceLimits,
        room: &mut Room<'_>,
    ) -> Result<(Module, Charge), Error> {
        let Some(workers) = &self.workers else {
            let module = in_process::compile(engine, wasm, limits)?;
            let (charge, _) = room.take(size(&module), 0)?;
            self.kept.keep_module(key(terms), &module, room.account);
            return Ok((module, charge));
        };
        self.check(terms)?;
        let compiled = workers.compile(wasm, terms, room.stop, |size| room.take(size, size));
        let (code, (charge, unloaded)) = compiled.map_err(|failed| self.why(failed, terms))?;
        let code = code.charged(unloaded);
        let module = self.kept.take(engine, key(terms), code).map_err(|error| classify::invalid(&error, limits))?;
        Ok((module, charge))
    }

    fn why(&self, failed: Failed, terms: Terms) -> Error {
        match failed {
            Failed::Invalid { reason, chain } => classify::refused(&reason, &chain),
            Failed::Panicked(text) => in_process::panicked(text),
            Failed::Large(size) => Error::invalid_plugin(format!("its code would take {}", Size(size))),
            // It may have met the system's limit instead of its own.
            Failed::Memory if sure_memory() < self.memory.saturating_add(WORKER) => {
                let said = "a compile worker cannot have limits.compile_memory";
                Error::overloaded("a compile worker got no memory", said, &io::ErrorKind::OutOfMemory.into())
            }
            Failed::Memory => {
                self.remember(terms, None);
                self.needs_more_memory(None)
            }
            Failed::Time => {
                self.over_time(terms);
                Error::build_timeout(terms.within)
            }
            // Whoever stopped it has its own answer.
            Failed::Stopped => Error::build_timeout(terms.within),
            Failed::Gone { .. } => Error::internal("the compile workers died", "twice while they compiled the plugin"),
            Failed::NoRoom(error) => error,
            Failed::Host(error) => Error::overloaded("a compile worker cannot be started", &error, &error),
            Failed::Unfit(text) => Error::internal("the compile worker cannot be used", shorten(&text)),
        }
    }

    /// A module was being compiled when its time was over.
    pub(super) fn over_time(&self, terms: Terms) {
        self.remember(terms, Some(terms.within));
    }

    fn needs_more_memory(&self, later: Option<TryLater>) -> Error {
        let limit = Size(self.memory);
        Error::InvalidPlugin {
            reason: format!("it needs more than limits.compile_memory, {limit}, to compile"),
            cause: later.map(|later| Arc::new(later) as _),
            last_words: LastWords::none(),
        }
    }

    fn remember(&self, terms: Terms, within: Option<Duration>) {
        let mut remembered = lock(&self.over_budget);
        remembered.put(key(terms), OverBudget { until: clock::later(Instant::now(), self.remember), within });
        if remembered.len() > MOST_REMEMBERED {
            remembered.pop_lru();
        }
    }

    /// Refuses what has been over this budget a short time ago.
    fn check(&self, terms: Terms) -> Result<(), Error> {
        let (now, within) = (Instant::now(), terms.within);
        let Some(known) = lock(&self.over_budget).get(&key(terms)).copied().filter(|known| now < known.until) else {
            return Ok(());
        };
        let later = TryLater(known.until - now);
        match known.within {
            None => Err(self.needs_more_memory(Some(later))),
            Some(enough) if enough < within => Ok(()),
            Some(_) => {
                Err(Error::BuildTimeout { after: within, cause: Some(Arc::new(later)), last_words: LastWords::none() })
            }
        }
    }
}

/// Room for what a build makes.
pub(super) struct Room<'a> {
    pub(super) account: &'a MemoryAccount,
    /// Ends the wait for it.
    pub(super) stop: &'a Stop,
    /// Bytes that memories of the module begin with.
    pub(super) image: u64,
    /// Bytes of the first instance, once it is to be reckoned with.
    pub(super) instance: u64,
    /// The charge of the first instance, once there is room for it.
    pub(super) first: Option<Charge>,
}

impl Room<'_> {
    /// Waits until there is room for code, loaded and not, and for the first instance with it. Blocks.
    fn take(&mut self, code: u64, unloaded: u64) -> Result<(Charge, Charge), Error> {
        self.first = None;
        let reserve = self.account.reserve(code.saturating_add(self.image), unloaded, self.instance);
        let reserved = Handle::current().block_on(async {
            tokio::select! {
                reserved = reserve => reserved,
                () = self.stop.stopped() => Err(Error::Cancelled),
            }
        });
        let (code, unloaded, instance) = reserved?;
        self.first = Some(instance);
        Ok((code, unloaded))
    }
}

/// How much memory a module's code takes.
fn size(module: &Module) -> u64 {
    let image = module.image_range();
    (image.end.addr() - image.start.addr()) as u64
}

/// What the code of a module is kept under.
fn key(terms: Terms) -> Key {
    Key { plugin: terms.digest, engine: terms.engine }
}
