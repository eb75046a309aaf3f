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
//! [budget](super::refresh), whose turn goes from the instance that is read to the end of its compile; if anything goes
//! wrong, the old snapshot stays, and another is tried later. Each plugin pauses for twice as long as what it took is paid for, so
//! that one that is always due leaves others their turns.
//!
//! Considered and not taken: an instance of its own for the state (a permit more, and the initialisers once more); keeping
//! snapshots by plugin and config (what was drawn of randomness would outlive the runtime, and be shared by evaluators and
//! processes); giving back the plain code once the snapshot is there (the runtime's charge is for its life, and instances
//! that were made of it may be in use); a timer that makes snapshots anew (it would have to know who was called since).

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
use tokio::{sync::Notify, time::Instant};
use wasmtime::{InstancePre, Linker, ModuleExport};

use self::attempt::Attempt;
pub(super) use self::reading::Reading;
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
};

/// When nothing is to be read anew.
const NEVER: u64 = u64::MAX;

/// How long the pause is after an attempt to make one anew that others ended. Twice as long after each more of them, but no
/// longer than a snapshot may get old.
const AGAIN: Duration = Duration::from_mins(1);

/// How far a plugin that is to be initialised once has come.
pub(super) struct Once {
    /// What instances begin with.
    made: ArcSwapOption<Snapshot>,
    stage: Mutex<Stage>,
    /// Whether the first instance is to be read. Asked for each instance, without the lock.
    awaits: AtomicBool,
    /// How old a snapshot gets before it is made anew, if it is.
    every: Option<Duration>,
    /// From when on an instance is to be read anew, in nanoseconds since `began`; [`NEVER`] where none is, or while it is.
    due: AtomicU64,
    began: Instant,
    refreshes: Arc<Refreshes>,
    /// How many were made anew.
    refreshed: AtomicU64,
    /// How often others ended an attempt since one was.
    ended: AtomicU32,
    /// How often the first could not be compiled.
    failures: AtomicU32,
    /// Told when something was read anew, and at the end.
    read_anew: Arc<Notify>,
}

#[derive(Clone)]
enum Stage {
    /// The first instance is to be read.
    Awaited(Arc<Plain>),
    /// To be compiled.
    Read(Arc<Recorded>),
    /// With what it takes to make another, if there is to be one.
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
    /// Of the plugin with these bytes. If its initialisers draw of time or chance, a snapshot that is older than `every` is made
    /// anew.
    pub(super) fn new(
        recorder: Result<Recorder, String>,
        wasm: &Bytes,
        every: Option<Duration>,
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
            every,
            due: AtomicU64::new(NEVER),
            began: Instant::now(),
            refreshes,
            refreshed: AtomicU64::new(0),
            ended: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            read_anew: Arc::default(),
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
        if self.due.load(Ordering::Relaxed) == NEVER {
            return None;
        }
        let now = Instant::now();
        let is_due = || self.due.load(Ordering::Relaxed) <= nanos(now.saturating_duration_since(self.began));
        // Nobody reads what nobody would compile, nor what there is no room for: about as much as what there is.
        let may =
            || Arc::strong_count(&self.read_anew) > 1 && self.made().is_some_and(|made| made.has_room_for_another());
        // Again once it is this one's turn: another may have been faster.
        let turn = if is_due() && may() { self.refreshes.turn(now).filter(|_| is_due())? } else { return None };
        let Stage::Made(Some(plain)) = &*self.stage() else { return None };
        self.due.store(NEVER, Ordering::Relaxed);
        Some(Reading { once: self, plain: plain.clone(), anew: Some((turn, now)), pause: None })
    }

    /// Another may be read from then on.
    fn due_after(&self, from: Instant, pause: Duration) {
        let due = nanos(from.saturating_duration_since(self.began)).saturating_add(nanos(pause));
        self.due.store(due.min(NEVER - 1), Ordering::Relaxed);
    }

    /// Not before that, whatever was said. To be called before the turn is given up.
    fn not_before(&self, from: Instant, pause: Duration) {
        let due = nanos(from.saturating_duration_since(self.began)).saturating_add(nanos(pause));
        self.due.fetch_max(due.min(NEVER - 1), Ordering::Relaxed);
    }

    /// The pause after an attempt that others ended.
    fn again(&self) -> Duration {
        let times = self.ended.fetch_add(1, Ordering::Relaxed).min(16);
        AGAIN.saturating_mul(1 << times).min(self.every.unwrap_or(AGAIN))
    }

    /// What is to be compiled, if anything is, by a compiler that uses so many processors.
    pub(super) fn attempt(&self, width: u32) -> Option<Attempt<'_>> {
        let Stage::Read(recorded) = &*self.stage() else { return None };
        Some(Attempt { once: self, recorded: recorded.clone(), began: Instant::now(), width })
    }

    /// What was read anew is not compiled, unless it was already. Another is read after a while: that of an attempt that
    /// others ended, if none is given.
    fn give_up(&self, recorded: &Arc<Recorded>, pause: Option<Duration>) {
        let mut stage = self.stage();
        if matches!(&*stage, Stage::Read(current) if Arc::ptr_eq(current, recorded)) {
            *stage = Stage::Made(Some(recorded.plain.clone()));
            self.due_after(Instant::now(), pause.unwrap_or_else(|| self.again()));
        }
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
        let every = self.every.filter(|_| host.drew != Drawn::default());
        let mut stage = self.stage();
        // If another was faster, its one stays.
        if !matches!(&*stage, Stage::Read(current) if std::ptr::eq(&raw const **current, recorded)) {
            return Ok(());
        }
        // The state itself is in the code now.
        *stage = Stage::Made(every.map(|_| plain.clone()));
        let old = self.made.swap(Some(Arc::new(snapshot)));
        if let Some(every) = every {
            self.due_after(*read, every);
        }
        drop(stage);
        self.refreshed.fetch_add(u64::from(old.is_some()), Ordering::Relaxed);
        self.ended.store(0, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn told(&self) -> InitState {
        match &*self.stage() {
            Stage::Read(recorded) if recorded.turn.is_some() => InitState::Once,
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

    /// Ends when an instance was read anew, or there will be none; `None` if there will be none.
    pub(super) fn read_anew(&self) -> Option<BoxFuture<'static, ()>> {
        let goes_on = match &*self.stage() {
            Stage::Made(plain) => plain.is_some(),
            Stage::Read(recorded) => recorded.turn.is_some(),
            Stage::Awaited(_) | Stage::Refused(_) => false,
        };
        goes_on.then(|| Box::pin(self.read_anew.clone().notified_owned()) as _)
    }
}

impl Drop for Once {
    fn drop(&mut self) {
        self.read_anew.notify_one();
    }
}
