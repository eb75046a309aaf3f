//! Time, for guests: a thread that moves an engine's epoch, at which running guests return to their executor.
//!
//! One thread for as long as the engine lives, and it ticks slowly while no guest runs.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use wasmtime::EngineWeak;

/// How long a guest may run before it gives way to others. Shorter costs guests more (a millisecond costs them about
/// a thousandth), longer makes everybody else wait.
pub(super) const TICK: Duration = Duration::from_millis(1);

/// Ticks without a sign of a guest after which the thread ticks slowly until there is one: waking it costs more than a
/// few ticks.
const IDLE_TICKS: u32 = 200;

/// A slow tick. It never stops: a guest that was overlooked runs for this long, and no longer.
const IDLE_TICK: Duration = Duration::from_millis(20);

struct TickerState {
    engine: EngineWeak,
    /// A guest has begun, or reached a tick, since this was cleared. Guests look before they write: it is one word for
    /// all of them.
    seen: AtomicBool,
    asleep: AtomicBool,
}

/// Ticks until it is dropped.
pub(super) struct Ticker {
    state: Arc<TickerState>,
    thread: thread::Thread,
}

impl Ticker {
    pub(super) fn start(engine: EngineWeak) -> std::io::Result<Self> {
        let state = Arc::new(TickerState { engine, seen: AtomicBool::new(true), asleep: AtomicBool::new(false) });
        let weak = Arc::downgrade(&state);
        let thread = thread::Builder::new().name("evalpool-ticker".into()).spawn(move || tick(&weak))?;
        Ok(Self { state, thread: thread.thread().clone() })
    }

    /// Says that a guest begins, or goes on. While one runs, it says so at each of its ticks.
    pub(super) fn wake(&self) {
        if self.state.seen.load(SeqCst) {
            return;
        }
        // The thread looks at `seen` after setting `asleep`, and this the other way round: one sees the other.
        self.state.seen.store(true, SeqCst);
        if self.state.asleep.load(SeqCst) {
            self.thread.unpark();
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.thread.unpark();
    }
}

fn tick(ticker: &Weak<TickerState>) {
    let mut since_seen = 0;
    loop {
        thread::sleep(TICK);
        if !advance(ticker) {
            return;
        }
        since_seen += 1;
        if since_seen < IDLE_TICKS {
            continue;
        }
        since_seen = 0;
        while is_idle(ticker) {
            thread::park_timeout(IDLE_TICK);
            if !advance(ticker) {
                return;
            }
        }
    }
}

/// One tick. False once nobody needs any more. Nothing is held while the thread sleeps, so that the engine can go.
fn advance(ticker: &Weak<TickerState>) -> bool {
    let Some(state) = ticker.upgrade() else { return false };
    if let Some(engine) = state.engine.upgrade() {
        engine.increment_epoch();
    }
    true
}

/// Whether no guest has been seen since this was asked last. From then on, one that comes wakes the thread.
fn is_idle(ticker: &Weak<TickerState>) -> bool {
    let Some(state) = ticker.upgrade() else { return false };
    state.asleep.store(true, SeqCst);
    let idle = !state.seen.swap(false, SeqCst);
    if !idle {
        state.asleep.store(false, SeqCst);
    }
    idle
}
