//! Compile workers: processes of our own program that compile, within limits of the system, and can be killed.
//!
//! Nothing interrupts a compiler, and no estimate of its cost is safe. So it runs where the system bounds its memory
//! (`limits.compile_memory`) and its processor time, and where it can be killed at any moment: at `limits.build_timeout`,
//! or when nobody waits for the build any more and another build wants its slot. The slot is free at once.
//!
//! A worker is started when a build finds none that is idle, and is kept. So there are never more than builds at once. It
//! reads one module at a time from its standard input, and answers with compiled code. It ends when its input closes, also
//! in the middle of a compile: whatever happens to this process, none is left.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod` | the workers of one engine: takes one for each module, and tries again when one has died |
//! | `worker` | one worker, as its owner sees it |
//! | `stop` | ends a compile from another thread |
//! | `inside` | the worker's own side: limits, reads, compiles, answers |
//! | `protocol` | what the two sides say to each other |
//!
//! Considered and not taken: a process for each build (it starts in a few milliseconds, which a small plugin would feel);
//! `fork` without `exec` (this process has threads, and its memory would be copied); tokio's processes (they belong to one
//! tokio runtime, and a pool is used from any).

pub(super) mod inside;
mod protocol;
mod stop;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use self::{
    protocol::{Order, Setup},
    worker::Worker,
};
pub(super) use self::{
    stop::{Stop, Why},
    worker::Failed,
};
use super::{
    cache::Wanted,
    classify::by_system,
    in_memory::Keeps,
    in_process::compile,
    prepare::Subject,
    sealed::{Destination, Sealed},
    tunables::{self, Kind, MemoryLayout},
};
use crate::{
    config::CompileWorkers,
    engine::{CompilePriority, CompileWorkerCounts, Ended},
    error::Error,
    source::Digest,
};

/// After so many modules a worker is replaced, so that nothing can pile up in it.
const MOST_BUILDS: u32 = 1_000;

/// A worker that holds more than this once it is idle is replaced. In bytes.
const MOST_RESIDENT: u64 = 128 << 20;

/// What the compile of one module may take and must match.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) digest: Digest,
    /// The engine that it is for.
    pub(super) kind: Kind,
    /// Whether the kernel becomes a part of the module.
    pub(super) links: bool,
    /// Whether its state can be read.
    pub(super) recorded: bool,
    /// The digest of all that it comes of, if it begins with a state.
    pub(super) restored: Option<Digest>,
    /// wasmtime's version and settings.
    pub(super) engine: u64,
    /// Whether large code can be mapped.
    pub(super) maps: bool,
    /// The time within which the caller stops it.
    pub(super) within: Duration,
    pub(super) priority: CompilePriority,
    /// Where its code is kept for the next build.
    pub(super) keeps: Keeps,
}

#[cfg(test)]
impl Terms {
    /// Of some module, which is compiled within this time.
    pub(super) fn within(within: Duration) -> Self {
        Self {
            digest: Digest::of(b"plugin"),
            kind: Kind { fueled: false, wide: false },
            links: true,
            recorded: false,
            restored: None,
            engine: 7,
            maps: false,
            within,
            priority: CompilePriority::Normal,
            keeps: Keeps::Anywhere,
        }
    }
}

/// The workers of one engine.
pub(super) struct Workers {
    program: PathBuf,
    setup: Setup,
    /// What one may allocate, in bytes.
    memory: u64,
    idle: Mutex<Vec<Worker>>,
    busy: AtomicUsize,
    ended: [AtomicU64; Ended::ALL.len()],
}

impl Workers {
    /// Workers of the program that the settings name; `None` to compile in this process. Starts none yet.
    pub(super) fn new(kind: &CompileWorkers, memory: u64, layout: MemoryLayout) -> Option<Self> {
        let program = match kind {
            CompileWorkers::Program(program) => program.clone(),
            CompileWorkers::Auto if inside::is_installed() => inside::running(),
            CompileWorkers::Auto | CompileWorkers::Off => return None,
        };
        let setup = Setup::new(layout);
        let ended = std::array::from_fn(|_| AtomicU64::new(0));
        Some(Self { program, setup, memory, idle: Mutex::default(), busy: AtomicUsize::new(0), ended })
    }

    /// The code of a module, taken once there is `room` for it, and that room. Blocks until it is compiled, or
    /// `stop` ends the compile.
    pub(super) fn compile<T>(
        &self,
        subject: Subject<'_>,
        terms: Terms,
        stop: &Stop,
        mut room: impl FnMut(Wanted) -> Result<T, Error>,
    ) -> Result<(Sealed, T), Failed> {
        let order = Order::new(terms, subject);
        let mut crashed = false;
        loop {
            let mut worker = self.take()?;
            let fresh = worker.builds == 0;
            if !stop.watch(&worker.process) {
                self.give_back(worker);
                return Err(Failed::Stopped);
            }
            let busy = Busy::new(&self.busy);
            let answer =
                worker.greet(&self.setup).and_then(|()| worker.compile(&order, subject, terms, stop, &mut room));
            stop.forget();
            drop(busy);
            let why = stop.why();
            let failed = match answer {
                // It was killed when it had just answered.
                Ok(_) | Err(Failed::Invalid { .. }) if why.is_some() => Failed::Stopped,
                Ok(code) => {
                    self.give_back(worker);
                    return Ok(code);
                }
                Err(Failed::Invalid { reason, chain }) => {
                    self.give_back(worker);
                    return Err(Failed::Invalid { reason, chain });
                }
                Err(failed) => failed,
            };
            let (how, failed) = worker.end(failed, why);
            self.count(how);
            match failed {
                // It died while it was idle: not by this module.
                Failed::Gone { begun: false } if !fresh => {}
                Failed::Gone { begun: false } if crashed => return Err(self.no_worker()),
                Failed::Gone { .. } if !crashed => crashed = true,
                failed => return Err(failed),
            }
        }
    }

    /// One that waits, or else a new one.
    fn take(&self) -> Result<Worker, Failed> {
        self.reap();
        let idle = self.idle().pop();
        idle.map_or_else(|| Worker::start(&self.program, self.memory), Ok)
    }

    /// Forgets workers that have died while they were idle.
    fn reap(&self) {
        let dead: Vec<Worker> = self.idle().extract_if(.., |worker| !worker.is_alive()).collect();
        for worker in dead {
            drop(worker);
            self.count(Ended::Crashed);
        }
    }

    fn no_worker(&self) -> Failed {
        Failed::Unfit(format!("{} does not answer as a compile worker", self.program.display()))
    }

    fn give_back(&self, worker: Worker) {
        if worker.builds < MOST_BUILDS && worker.resident < MOST_RESIDENT {
            self.idle().push(worker);
        } else {
            drop(worker);
            self.count(Ended::Done);
        }
    }

    fn count(&self, how: Ended) {
        self.ended[how as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Worker>> {
        // List operations, and a question to the system that does not wait.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self) -> CompileWorkerCounts {
        self.reap();
        let ended = std::array::from_fn(|how| self.ended[how].load(Ordering::Relaxed));
        CompileWorkerCounts { idle: self.idle().len(), busy: self.busy.load(Ordering::Relaxed), ended }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let idle = std::mem::take(&mut *self.idle());
        for worker in &idle {
            worker.kill();
        }
        // Each is waited for: here if no thread can be had.
        let _ = thread::Builder::new().name("evalpool-close".into()).spawn(move || drop(idle));
    }
}

/// Counts a worker as busy until it is dropped.
struct Busy<'a>(&'a AtomicUsize);

impl<'a> Busy<'a> {
    fn new(busy: &'a AtomicUsize) -> Self {
        busy.fetch_add(1, Ordering::Relaxed);
        Self(busy)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
