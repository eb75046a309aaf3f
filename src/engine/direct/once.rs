//! Plugins that are initialised once: from the state of an instance to what later instances begin with.
//!
//! ```text
//!   Modules::new       compiles the plugin so that its state can be read        → Awaited, or Refused
//!   the first instance, the probe: its initialisers have run, it was not called → Read
//!   Once::compile      behind the first calls: a module that begins so          → Made
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
//! randomness gets another for each runtime.
//!
//! Considered and not taken: an instance of its own for the state (a permit more, and the initialisers once more); keeping
//! snapshots by plugin and config (what was drawn of randomness would outlive the runtime, and be shared by evaluators and
//! processes); giving back the plain code once the snapshot is there (the runtime's charge is for its life, and instances
//! that were made of it may be in use).

use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use wasmtime::{InstancePre, Linker, ModuleExport};

use super::{
    classify,
    code::{InUse, Room},
    prepare::{self, Recorder, State, Subject},
    state::{GuestState, Initialised, PluginContext},
    variant::EngineVariant,
    workers::Stop,
};
use crate::{
    engine::{Charge, CompilePriority, InitState},
    error::Error,
    source::Digest,
};

/// How far a plugin that is to be initialised once has come.
pub(super) struct Once {
    /// What instances begin with.
    made: OnceLock<Snapshot>,
    /// Whether the next instance is to be read. Asked for each instance, without the lock.
    awaits: AtomicBool,
    stage: Mutex<Stage>,
}

#[derive(Clone)]
enum Stage {
    /// The first instance is to be read.
    Awaited(Arc<Recorder>, Bytes),
    /// To be compiled.
    Read(Arc<Recorded>),
    Made,
    /// Initialisers run in each instance.
    Refused(Arc<str>),
}

/// What was read of an instance.
pub(super) struct Recorded {
    state: State,
    host: Arc<Initialised>,
    wasm: Bytes,
    _charge: Charge,
}

/// What instances are made of. The instances' template goes before the code.
pub(super) struct Snapshot {
    pub(super) ready: InstancePre<GuestState>,
    pub(super) memory: ModuleExport,
    pub(super) host: Arc<Initialised>,
    _code: InUse,
}

impl Recorded {
    /// What instances begin with, in bytes.
    pub(super) fn image(&self) -> u64 {
        self.state.image()
    }
}

impl Once {
    /// Of the plugin with these bytes.
    pub(super) fn new(recorder: Result<Recorder, String>, wasm: &Bytes) -> Self {
        let stage = match recorder {
            Ok(recorder) => Stage::Awaited(Arc::new(recorder), wasm.clone()),
            Err(why) => Stage::Refused(why.into()),
        };
        let awaits = AtomicBool::new(matches!(stage, Stage::Awaited(..)));
        Self { made: OnceLock::new(), awaits, stage: Mutex::new(stage) }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        // Nothing panics under it.
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What instances begin with, if it was made.
    pub(super) fn made(&self) -> Option<&Snapshot> {
        self.made.get()
    }

    /// How to read the next instance, if one is to be read.
    pub(super) fn awaited(&self) -> Option<Arc<Recorder>> {
        if !self.awaits.load(Ordering::Relaxed) {
            return None;
        }
        match &*self.stage() {
            Stage::Awaited(recorder, _) => Some(recorder.clone()),
            Stage::Read(_) | Stage::Made | Stage::Refused(_) => None,
        }
    }

    /// An instance of this plugin was read.
    pub(super) fn read(&self, read: Result<(State, Initialised), String>, context: &PluginContext) {
        self.awaits.store(false, Ordering::Relaxed);
        let mut current = self.stage();
        let Stage::Awaited(_, wasm) = &*current else { return };
        *current = match read {
            Ok((state, host)) => {
                let wasm = wasm.clone();
                let charge = context.memory.unloaded((wasm.len() + state.bytes().len()) as u64);
                Stage::Read(Arc::new(Recorded { state, host: Arc::new(host), wasm, _charge: charge }))
            }
            Err(why) => Stage::Refused(why.into()),
        };
    }

    /// What is to be compiled, if anything is.
    pub(super) fn recorded(&self) -> Option<Arc<Recorded>> {
        match &*self.stage() {
            Stage::Read(recorded) => Some(recorded.clone()),
            Stage::Awaited(..) | Stage::Made | Stage::Refused(_) => None,
        }
    }

    /// Why it stays as it is, from now on.
    pub(super) fn refuse(&self, why: &str) {
        *self.stage() = Stage::Refused(why.into());
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
        let Recorded { state, host, wasm, .. } = recorded;
        let mut terms = variant.terms(context.digest, true, &context.limits);
        // Nobody waits for it.
        terms.priority = CompilePriority::Low;
        terms.restored = Some(Digest::of_all(&[context.digest.to_string().as_bytes(), state.bytes()]));
        let mut room =
            Room { account: &context.memory, stop, image: state.image(), names: 0, instance: 0, first: None };
        let subject = Subject { wasm, state: state.bytes() };
        let code = variant.module(terms, subject, &context.limits, &mut room)?;
        let missing = || Error::internal("a snapshot is not what it was made of", "the kernel's memory is gone");
        let memory = prepare::kernel_memory(&code, context.digest).ok_or_else(missing)?;
        let ready = linker.instantiate_pre(&code).map_err(|error| classify::invalid(&error, &context.limits))?;
        // If another was faster, its one stays.
        let _ = self.made.set(Snapshot { ready, memory, host: host.clone(), _code: code });
        // The state itself is in the code now.
        *self.stage() = Stage::Made;
        Ok(())
    }

    pub(super) fn told(&self) -> InitState {
        match &*self.stage() {
            Stage::Awaited(..) | Stage::Read(_) => InitState::Pending,
            Stage::Made => InitState::Once,
            Stage::Refused(why) => InitState::Refused(why.clone()),
        }
    }
}
