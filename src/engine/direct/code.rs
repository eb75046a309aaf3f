//! From a module's bytes to its code: what is in use already, what is kept, or what is compiled now.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    io,
    num::NonZeroUsize,
    ops::Deref,
    sync::{Arc, Mutex},
    time::Duration,
};

use lru::LruCache;
use tokio::{runtime::Handle, time::Instant};
use wasmtime::{Engine, Module};

use super::{
    cache::{Cache, Wanted, lock},
    classify,
    in_memory::{Keeps, Key, Loaded},
    in_process,
    prepare::Subject,
    sealed::{Destination, Sealed},
    workers::{Failed, Stop, Terms, Workers},
};
use crate::{
    clock,
    engine::{Charge, CompilePriority, InstanceLimits, MemoryAccount, text::shorten},
    error::{Error, TryLater},
    host_limits::sure_memory,
    last_words::LastWords,
    memory::{GiveWay, MemoryBudget},
    source::{data_size, export_count},
    units::Size,
};

/// How many times `pool.negative_ttl` it is remembered that a module was over its budget.
const REMEMBERED: u32 = 12;

/// What a worker takes of its address space before it compiles. In bytes.
const WORKER: u64 = 512 << 20;

/// What wasmtime keeps for an export, beside the code. In bytes, as measured with 100,000.
const OF_EXPORT: u64 = 400;

/// How many modules that were over their budget are remembered at most.
const MOST_REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Code that a runtime runs. Others may run the same.
pub(super) struct InUse {
    loaded: Arc<Loaded>,
    key: Key,
    keeps: Keeps,
    code: Arc<Code>,
}

impl Deref for InUse {
    type Target = Module;

    fn deref(&self) -> &Module {
        &self.loaded
    }
}

impl InUse {
    /// What it takes.
    pub(super) fn charge(&self) -> &Arc<Charge> {
        &self.loaded.charge
    }
}

#[cfg(test)]
impl InUse {
    /// Of a module that nobody else runs.
    pub(super) fn alone(module: Module, charge: Charge) -> Self {
        let code =
            Arc::new(Code::new(Cache::open(&crate::config::CodeCache::Off, 0).unwrap(), None, Duration::ZERO, 0));
        let loaded = Arc::new(Loaded { module, is_mapped: false, charge: Arc::new(charge) });
        let key = Key { plugin: crate::source::Digest::of(b"plugin"), engine: 1 };
        code.in_use(key, Keeps::Nowhere, Some(&loaded)).unwrap()
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut live = lock(&self.code.live);
        let Some((_, users)) = live.get_mut(&self.key) else { return };
        *users -= 1;
        if *users > 0 {
            return;
        }
        let last = live.remove(&self.key);
        // Under the lock: there is no moment at which nobody has it.
        let gone = last.map(|(loaded, _)| self.code.kept.give_back(self.key, loaded, self.keeps));
        drop(live);
        drop(gone);
    }
}

/// The code of all modules under all engines.
pub(super) struct Code {
    /// Code that runtimes have, and how many: evaluators with the same bytes share it. Taken before the cache's own lock.
    live: Mutex<HashMap<Key, (Arc<Loaded>, usize)>>,
    kept: Cache,
    pub(super) workers: Option<Workers>,
    /// What snapshots are being made of.
    restoring: Mutex<HashSet<Key>>,
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
            restoring: Mutex::default(),
            over_budget: Mutex::new(LruCache::sparse(MOST_REMEMBERED)),
            remember: negative_ttl.saturating_mul(REMEMBERED),
            memory,
        }
    }

    /// The code of a module, charged to `room`, whose `stop` ends it. Blocks.
    pub(super) fn module(
        self: &Arc<Self>,
        engine: &Engine,
        terms: Terms,
        subject: Subject<'_>,
        limits: &InstanceLimits,
        room: &mut Room<'_>,
    ) -> Result<InUse, Error> {
        let (key, keeps) = (key(terms), terms.keeps);
        room.account.kept_by(self);
        room.names = 0;
        // Who waits for one holds a slot, and could not be ended: it asks again later, and finds the code.
        let _alone = terms.restored.map(|_| self.alone(key)).transpose()?;
        if let Some(code) = self.in_use(key, keeps, None) {
            // First, so that whoever weighs this code knows that another needs it.
            room.account.runs(code.loaded.charge.clone());
            room.take(Wanted::to_load(0, true)).inspect_err(|_| room.account.runs_not(&code.loaded.charge))?;
            return Ok(code);
        }
        if subject.state.is_empty() {
            room.image = data_size(subject.wasm);
        }
        room.names = export_count(subject.wasm) * OF_EXPORT;
        let kept = self.kept.load(engine, key, terms.maps, |wanted| room.take(wanted))?;
        let loaded = kept.map_or_else(|| self.compile(engine, terms, subject, limits, room), Ok)?;
        let loaded = Arc::new(loaded);
        // Another may have been faster: then this one goes, without the lock.
        let code = self.in_use(key, keeps, Some(&loaded));
        let code = code.ok_or_else(|| Error::internal("compiled code is gone", "it was just loaded"))?;
        room.account.runs(code.loaded.charge.clone());
        Ok(code)
    }

    /// The right to make a snapshot of one state, or to find that it is made.
    ///
    /// # Errors
    ///
    /// `overloaded`: another has it.
    fn alone(&self, key: Key) -> Result<Alone<'_>, Error> {
        if lock(&self.restoring).insert(key) {
            return Ok(Alone { code: self, key });
        }
        let why = "a snapshot of the same state is being made for another evaluator";
        Err(Error::overloaded("a snapshot has to wait", why, &io::ErrorKind::ResourceBusy.into()))
    }

    /// Code that somebody runs, or that is kept as it was run; else `new`.
    fn in_use(self: &Arc<Self>, key: Key, keeps: Keeps, new: Option<&Arc<Loaded>>) -> Option<InUse> {
        let mut live = lock(&self.live);
        let (loaded, users) = match live.entry(key) {
            Entry::Occupied(live) => live.into_mut(),
            Entry::Vacant(free) => free.insert((new.cloned().or_else(|| self.kept.mapped(key))?, 0)),
        };
        *users += 1;
        Some(InUse { loaded: loaded.clone(), key, keeps, code: self.clone() })
    }

    fn compile(
        &self,
        engine: &Engine,
        terms: Terms,
        subject: Subject<'_>,
        limits: &InstanceLimits,
        room: &mut Room<'_>,
    ) -> Result<Loaded, Error> {
        let (code, charges) = if let Some(workers) = &self.workers {
            self.check(terms)?;
            let compiled = workers.compile(subject, terms, room.stop, |wanted| room.take(wanted));
            compiled.map_err(|failed| self.why(failed, terms))?
        } else {
            let code = in_process::compile(engine, subject, terms.digest, terms.links, terms.recorded);
            let code = code.map_err(|error| classify::invalid(&error, limits))?;
            let to = Destination::new(code.len() as u64, terms.maps);
            let charges = room.take(Wanted::to_load(Sealed::DIGEST + code.len() as u64, to.is_mapped()))?;
            let sealed = Sealed::new(&code, to);
            (sealed.map_err(|error| Error::overloaded("no memory for compiled code", &error, &error))?, charges)
        };
        self.kept
            .take(engine, key(terms), code, charges, terms.keeps)
            .map_err(|error| classify::invalid(&error, limits))
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
        // It had what others left of the processors: that says nothing of the module.
        if within.is_some() && terms.priority == CompilePriority::Low {
            return;
        }
        let over = OverBudget { until: clock::later(Instant::now(), self.remember), within };
        lock(&self.over_budget).put(key(terms), over);
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

/// The right to make the snapshot of one state, until it is dropped.
struct Alone<'a> {
    code: &'a Code,
    key: Key,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        lock(&self.code.restoring).remove(&self.key);
    }
}

/// Room for what a build makes.
pub(super) struct Room<'a> {
    pub(super) account: &'a MemoryAccount,
    /// Ends the wait for it.
    pub(super) stop: &'a Stop,
    /// Bytes that memories of the module begin with: wasmtime keeps them once more where code is not mapped.
    pub(super) image: u64,
    /// Bytes of the names of its exports.
    pub(super) names: u64,
    /// Bytes of the first instance, once it is to be reckoned with.
    pub(super) instance: u64,
    /// The charge of the first instance, once there is room for it.
    pub(super) first: Option<Charge>,
}

impl Room<'_> {
    /// Waits until there is room for code, loaded and not, and for the first instance with it. Blocks.
    fn take(&mut self, wanted: Wanted) -> Result<(Charge, Charge), Error> {
        self.first = None;
        let image = if wanted.is_mapped { 0 } else { self.image };
        let loaded = wanted.loaded.saturating_add(image).saturating_add(self.names);
        let reserve = self.account.reserve(loaded, wanted.unloaded, self.instance);
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

impl GiveWay for Code {
    fn give_way(&self, account: &Arc<MemoryBudget>, bytes: u64) -> u64 {
        self.kept.give_way(account, bytes)
    }
}

/// What the code of a module is kept under: with the kernel in it, it is another, and so it is where its state can be read.
/// Code that is loaded belongs to one engine. What begins with a state is known by all that it comes of.
fn key(terms: Terms) -> Key {
    let flags = [terms.kind.wide, terms.links, terms.recorded, terms.restored.is_some()];
    let other: u64 = (0..).zip(flags).map(|(bit, is_set)| u64::from(is_set) << bit).sum();
    Key { plugin: terms.restored.unwrap_or(terms.digest), engine: terms.engine.wrapping_add(other) }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::{config::CodeCache, error::ErrorKind, memory::MemoryKind, source::Digest};

    #[test]
    fn of_those_that_want_a_snapshot_of_one_state_one_makes_it() {
        let code = Code::new(Cache::open(&CodeCache::Off, 0).unwrap(), None, Duration::ZERO, 0);
        let [one, other] = [b"one", b"two"].map(|bytes| Key { plugin: Digest::of(bytes), engine: 1 });
        let first = code.alone(one).unwrap();
        assert_eq!(code.alone(one).err().unwrap().kind(), ErrorKind::Overloaded);
        assert!(code.alone(other).is_ok());
        drop(first);
        assert!(code.alone(one).is_ok());
    }

    #[test]
    fn code_of_each_kind_is_kept_apart() {
        let terms = Terms::within(Duration::ZERO);
        let keys: HashSet<_> = (0..16)
            .map(|bits| {
                let [wide, links, recorded, restored] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
                let restored = restored.then_some(terms.digest);
                let mut terms = Terms { links, recorded, restored, ..terms };
                terms.kind.wide = wide;
                key(terms)
            })
            .collect();
        assert_eq!(keys.len(), 16);
        let state = Digest::of(b"a state");
        assert_eq!(key(Terms { restored: Some(state), ..terms }).plugin, state);
    }

    #[tokio::test(start_paused = true)]
    async fn what_took_too_much_is_refused_for_twelve_times_the_negative_ttl_unless_it_has_more_time() {
        let code = Code::new(Cache::open(&CodeCache::Off, 0).unwrap(), None, Duration::from_secs(1), 1 << 30);
        let terms = Terms::within(Duration::from_secs(10));
        let longer = Terms { within: Duration::from_millis(10_001), ..terms };
        let others_first = Terms { priority: CompilePriority::Low, ..terms };
        let refused = |terms| code.check(terms).err().map(|error| error.kind());
        code.over_time(others_first);
        assert_eq!(refused(terms), None, "it had what others left");
        for (within, answers) in [
            (Some(terms.within), [Some(ErrorKind::BuildTimeout), None]),
            (None, [Some(ErrorKind::InvalidPlugin), Some(ErrorKind::InvalidPlugin)]),
        ] {
            code.remember(if within.is_some() { terms } else { others_first }, within);
            assert_eq!([terms, longer].map(refused), answers);
            advance(Duration::from_millis(11_999)).await;
            assert_eq!([terms, longer].map(refused), answers);
            advance(Duration::from_millis(1)).await;
            assert_eq!([terms, longer].map(refused), [None, None]);
        }
    }

    #[test]
    fn code_that_somebody_runs_is_there_for_others_until_the_last_lets_it_go() {
        let module = Module::new(&Engine::default(), b"\0asm\x01\0\0\0").unwrap();
        let first = InUse::alone(module, MemoryBudget::new(u64::MAX).charge(MemoryKind::Code, 1));
        let (code, key) = (first.code.clone(), first.key);
        let running = || code.in_use(key, Keeps::Nowhere, None);
        let second = running().unwrap();
        drop(first);
        assert!(running().is_some());
        drop(second);
        assert!(running().is_none());
    }
}
