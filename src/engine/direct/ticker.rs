//! Time, for guests: a thread that moves an engine's epoch, at which running guests return to their executor.
//!
//! One thread for as long as the engine lives, and it sleeps while no guest runs.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use wasmtime::EngineWeak;

/// How long a guest may run before it gives way to others. Shorter costs guests more (a millisecond costs them about
/// a thousandth), longer makes everybody else wait.
pub(super) const TICK: Duration = Duration::from_millis(1);

/// Ticks without a guest after which the thread sleeps until there is one: waking it costs more than a few ticks.
const IDLE_TICKS: u32 = 200;

struct Shared {
    engine: EngineWeak,
    running: AtomicUsize,
    asleep: AtomicBool,
}

/// Ticks until it is dropped.
pub(super) struct Ticker {
    shared: Arc<Shared>,
    thread: thread::Thread,
}

impl Ticker {
    pub(super) fn start(engine: EngineWeak) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { engine, running: AtomicUsize::new(0), asleep: AtomicBool::new(false) });
        let weak = Arc::downgrade(&shared);
        let thread = thread::Builder::new().name("evalpool-ticker".into()).spawn(move || tick(&weak))?;
        Ok(Self { shared, thread: thread.thread().clone() })
    }

    /// Says that a guest runs, until the answer is dropped.
    pub(super) fn running(&self) -> Running<'_> {
        // This is ordered before the look at `asleep`, and the thread looks at `running` after setting `asleep`: one
        // of the two sees the other.
        self.shared.running.fetch_add(1, SeqCst);
        if self.shared.asleep.load(SeqCst) {
            self.thread.unpark();
        }
        Running(self)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.thread.unpark();
    }
}

pub(super) struct Running<'a>(&'a Ticker);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.shared.running.fetch_sub(1, SeqCst);
    }
}

fn tick(ticker: &Weak<Shared>) {
    let mut idle = 0;
    loop {
        thread::sleep(TICK);
        let Some(shared) = ticker.upgrade() else { return };
        if let Some(engine) = shared.engine.upgrade() {
            engine.increment_epoch();
        }
        idle = if shared.running.load(SeqCst) == 0 { idle + 1 } else { 0 };
        if idle > IDLE_TICKS {
            shared.asleep.store(true, SeqCst);
            let sleeps = shared.running.load(SeqCst) == 0;
            // Not held while asleep, so that dropping the ticker ends the thread.
            drop(shared);
            if sleeps && ticker.strong_count() > 0 {
                // Woken for nothing now and then, it ticks for a while and sleeps again.
                thread::park();
            }
            if let Some(shared) = ticker.upgrade() {
                shared.asleep.store(false, SeqCst);
            }
            idle = 0;
        }
    }
}
