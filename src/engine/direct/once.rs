//! Plugins that are initialised once: from the state of an instance to what later instances begin with.
//!
//! ```text
//!   Modules::new       compiles the plugin so that its state can be read        → Awaited, or Refused
//!   the first instance, the probe: its initialisers have run, it was not called → Read
//!   Once::compile      behind the first calls: a module that begins so          → Made
//!   an instance that is made when that is old, if its initialisers drew of time or chance:
//!                      it initialises itself, and is read as the first was      → Read, and so on
//! ```
//!
//! Until it is made, and where it is refused, each instance runs the initialisers; the two kinds of instances can be told
//! apart by nothing but the time that they took. The probe runs under a permit, a deadline and the limits of an instance, and
//! is used afterwards as any. Its state goes to a [compile worker](super::workers), which makes a module of it
//! ([`prepare`](super::prepare)): there, a stranger's bytes are read under limits.
//!
//! A snapshot is the module and what the host keeps for such a guest: variables, and how far its clock has come. All else
//! follows from the module (memory that is counted, table elements) or begins anew with each evaluation, also where
//! initialisers run in each instance (blocks of the kernel, the log's budget, fuel).
//!
//! Code is kept under the digest of all that went in: the plugin and the state. So evaluators of one plugin with one config
//! share it, and a plugin whose initialisers draw nothing has its snapshot again at once when it was evicted. One that draws
//! gets another for each runtime, which nobody would find again: it is not kept. One that was given config values is kept in
//! memory only, and is its tenant's alone: its code may hold them.
//!
//! **Made anew.** Instances are made for evaluations alone. So a plugin that nobody calls is not read again, and nothing has to
//! count calls. The evaluation whose instance is read pays for initialisers as with `each`. Those that run keep the snapshot
//! with which they began, which is gone with the last of them. There is one attempt at a time for all plugins, within a
//! [budget](super::refresh) and in turns by tenant. A turn goes from the instance that is read to the end of its compile; if anything goes
//! wrong, the old snapshot stays, and another is tried later. Each plugin pauses for twice as long as what it took is paid for, so
//! that one that is always due leaves others their turns.
//!
//! Considered and not taken: an instance of its own for the state (a permit more, and the initialisers once more); keeping
//! snapshots by plugin and config (what was drawn of randomness would outlive the runtime, and be shared by evaluators and
//! processes); giving back the plain code once the snapshot is there (the runtime's charge is for its life, and instances
//! that were made of it may be in use); a timer that makes snapshots anew (it would have to know who was called since).

mod anew;
mod attempt;
mod reading;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tokio::time::Instant;
use wasmtime::{InstancePre, Linker, ModuleExport};

pub(super) use self::reading::Reading;
use self::{anew::Anew, attempt::Attempt};
use super::{
    classify,
    code::{InUse, Room},
    in_memory::Keeps,
    prepare::{self, Recorder, State, Subject},
    refresh::{Refreshes, Turn, nanos},
    state::{GuestState, Initialised, PluginContext},
    variant::EngineVariant,
    workers::Stop,
};
use crate::{
    engine::{BoxFuture, CompilePriority, Drawn, InitState, MemoryAccount, SnapshotInfo},
    error::Error,
    memory::Granted,
    source::Digest,
    turns::TenantId,
};

/// How far a plugin that is to be initialised once has come.
pub(super) struct Once {
    /// What instances begin with.
    made: ArcSwapOption<Snapshot>,
    stage: Mutex<Stage>,
    /// Whether the first instance is to be read. Asked for each instance, without the lock.
    awaits: AtomicBool,
    anew: Arc<Anew>,
    /// How many were made anew.
    refreshed: AtomicU64,
    /// How often the first could not be compiled.
    failures: AtomicU32,
}

#[derive(Clone)]
enum Stage {
    /// The first instance is to be read.
    Awaited(Arc<Plain>),
    /// To be compiled.
    Read(Arc<Recorded>),
    /// Also while [another](Anew) is made. With what it takes to make another, if there is to be one.
    Made(Option<Arc<Plain>>),
    /// Initialisers run in each instance.
    Refused(Arc<str>),
}

/// A plugin as it is: what is read of its instances, and the module that such a state goes into.
pub(super) struct Plain {
    pub(super) recorder: Recorder,
    wasm: Bytes,
    /// Once its build has ended, this is why it is in memory.
    charge: OnceLock<Granted>,
}

/// What was read of an instance.
pub(super) struct Recorded {
    plain: Arc<Plain>,
    state: State,
    host: Arc<Initialised>,
    read: Instant,
    /// If it was read anew.
    turn: Option<Turn>,
    _charge: Granted,
}

/// What instances are made of, each of which holds it. The instances' template goes before the code.
pub(super) struct Snapshot {
    pub(super) ready: InstancePre<GuestState>,
    pub(super) memory: ModuleExport,
    pub(super) host: Arc<Initialised>,
    /// When its initialisers ran.
    read: Instant,
    code: InUse,
    account: MemoryAccount,
}

impl Snapshot {
    /// About as large as this one.
    fn has_room_for_another(&self) -> bool {
        self.account.has_room(self.code.charge().bytes())
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // While its plugin goes on without it.
        self.account.runs_not(self.code.charge());
    }
}

impl Recorded {
    /// What instances begin with, in bytes.
    pub(super) fn image(&self) -> u64 {
        self.state.image()
    }
}

impl Once {
    /// Of the plugin with these bytes, and whose it is. If its initialisers draw of time or chance, a snapshot that is older than `every` is made
    /// anew.
    pub(super) fn new(
        recorder: Result<Recorder, String>,
        wasm: &Bytes,
        every: Option<Duration>,
        tenant: TenantId,
        refreshes: Arc<Refreshes>,
    ) -> Self {
        let stage = match recorder {
            Ok(recorder) => Stage::Awaited(Arc::new(Plain { recorder, wasm: wasm.clone(), charge: OnceLock::new() })),
            Err(why) => Stage::Refused(why.into()),
        };
        Self {
            made: ArcSwapOption::empty(),
            awaits: AtomicBool::new(matches!(stage, Stage::Awaited(_))),
            stage: Mutex::new(stage),
            anew: Anew::new(every, tenant, refreshes),
            refreshed: AtomicU64::new(0),
            failures: AtomicU32::new(0),
        }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        // Nothing panics under it.
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What instances begin with, if it was made.
    pub(super) fn made(&self) -> Option<Arc<Snapshot>> {
        self.made.load_full()
    }

    /// Whether the next instance is to be read.
    pub(super) fn next_is_read(&self) -> Option<Reading<'_>> {
        if self.awaits.load(Ordering::Relaxed) {
            let Stage::Awaited(plain) = &*self.stage() else { return None };
            return Some(Reading { once: self, plain: plain.clone(), anew: None, pause: None });
        }
        // Nobody reads what there is no room for: about as much as what there is.
        let may = || self.made().is_some_and(|made| made.has_room_for_another());
        let anew = self.anew.turn(may)?;
        let Stage::Made(Some(plain)) = &*self.stage() else { return None };
        Some(Reading { once: self, plain: plain.clone(), anew: Some(anew), pause: None })
    }

    /// What is to be compiled, if anything is, by a compiler that uses so many processors.
    pub(super) fn attempt(&self, width: u32) -> Option<Attempt<'_>> {
        let first = if let Stage::Read(recorded) = &*self.stage() { Some(recorded.clone()) } else { None };
        let recorded = first.or_else(|| self.anew.read())?;
        Some(Attempt { once: self, recorded, began: Instant::now(), width })
    }

    /// Compiles what was read, or takes what was compiled before. From then on instances begin with it. Blocks; `stop` ends a
    /// compile in a worker.
    pub(super) fn compile(
        &self,
        recorded: &Recorded,
        variant: &EngineVariant,
        linker: &Linker<GuestState>,
        context: &PluginContext,
        stop: &Stop,
    ) -> Result<(), Error> {
        let Recorded { plain, state, host, read, .. } = recorded;
        let mut terms = variant.terms(context.digest, true, &context.limits);
        // Nobody waits for it.
        terms.priority = CompilePriority::Low;
        // Nobody is to learn of another tenant's config by what is there already.
        let tenant = context.tenant.0.to_le_bytes();
        let whose: &[u8] = if host.reads_config { &tenant } else { &[] };
        terms.restored = Some(Digest::of_all(&[context.digest.to_string().as_bytes(), whose, state.bytes()]));
        terms.keeps = match host.drew {
            Drawn { time: false, randomness: false } if host.reads_config => Keeps::InMemory,
            Drawn { time: false, randomness: false } => Keeps::Anywhere,
            _ => Keeps::Nowhere,
        };
        let mut room =
            Room { account: &context.memory, stop, image: state.image(), names: 0, instance: 0, first: None };
        let subject = Subject { wasm: &plain.wasm, state: state.bytes() };
        let code = variant.module(terms, subject, &context.limits, &mut room)?;
        let missing = || Error::internal("a snapshot is not what it was made of", "the kernel's memory is gone");
        let memory = prepare::kernel_memory(&code, context.digest).ok_or_else(missing)?;
        let ready = linker.instantiate_pre(&code).map_err(|error| classify::invalid(&error, &context.limits))?;
        let account = context.memory.clone();
        let snapshot = Snapshot { ready, memory, host: host.clone(), read: *read, code, account };
        let every = self.anew.every.filter(|_| host.drew != Drawn::default());
        let mut stage = self.stage();
        // If another was faster, its one stays.
        let is_current = match &*stage {
            Stage::Read(current) => std::ptr::eq(&raw const **current, recorded),
            _ => self.anew.take(recorded),
        };
        if !is_current {
            return Ok(());
        }
        // The state itself is in the code now.
        *stage = Stage::Made(every.map(|_| plain.clone()));
        let old = self.made.swap(Some(Arc::new(snapshot)));
        if let Some(every) = every {
            self.anew.due_after(*read, every);
        }
        drop(stage);
        self.refreshed.fetch_add(u64::from(old.is_some()), Ordering::Relaxed);
        self.anew.ended.store(0, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn told(&self) -> InitState {
        match &*self.stage() {
            Stage::Made(_) => InitState::Once,
            Stage::Awaited(_) | Stage::Read(_) => InitState::Pending,
            Stage::Refused(why) => InitState::Refused(why.clone()),
        }
    }

    /// What there is to be told of the snapshot, or of what will be one.
    pub(super) fn info(&self) -> Option<SnapshotInfo> {
        let made = self.made().map(|made| (made.read, made.host.drew));
        let (read, drew) = made.or_else(|| match &*self.stage() {
            Stage::Read(recorded) => Some((recorded.read, recorded.host.drew)),
            _ => None,
        })?;
        let refreshes = self.refreshed.load(Ordering::Relaxed);
        Some(SnapshotInfo { age: read.elapsed(), drew, refreshes })
    }

    /// For whoever compiles what is read next: see [`Anew::wait`]. `None` if nothing will be, or if it was read already.
    pub(super) fn read_anew(&self) -> Option<BoxFuture<'static, ()>> {
        let goes_on = matches!(&*self.stage(), Stage::Awaited(_) | Stage::Made(Some(_)));
        goes_on.then(|| Box::pin(self.anew.wait()) as _)
    }
}

impl Drop for Once {
    fn drop(&mut self) {
        self.anew.end();
    }
}
