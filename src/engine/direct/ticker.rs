//! A thread that advances an engine's epoch: at each tick, running guests return to their executor.
//!
//! The thread ticks slowly while no guest runs, and ends some ticks after the engine.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use wasmtime::EngineWeak;

/// How long a guest may run before it gives way to others. A shorter tick costs guests more (this one costs them about
/// a thousandth); a longer one makes others wait.
pub(super) const TICK: Duration = Duration::from_millis(1);

/// After this many ticks without a guest the thread ticks slowly. Many, because waking it costs more than a few ticks.
const IDLE_TICKS: u32 = 200;

/// A slow tick. The thread never stops ticking: a guest that it has overlooked runs for this long at the most.
const IDLE_TICK: Duration = Duration::from_millis(20);

struct TickerState {
    engine: EngineWeak,
    /// A guest has begun, or reached a tick, since this was cleared. Guests load before they store: they all share this
    /// cache line.
    seen: AtomicBool,
    asleep: AtomicBool,
}

/// Ticks until dropped.
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

    /// Call this when a guest begins, and at each of its ticks.
    pub(super) fn wake(&self) {
        if self.state.seen.load(SeqCst) {
            return;
        }
        // The thread stores `asleep` and then loads `seen`; this does the reverse. So at least one sees the other's
        // store.
        self.state.seen.store(true, SeqCst);
        if self.state.asleep.load(SeqCst) {
            self.thread.unpark();
        }
    }
}

fn tick(ticker: &Weak<TickerState>) {
    loop {
        for _ in 0..IDLE_TICKS {
            thread::sleep(TICK);
            if !advance(ticker) {
                return;
            }
        }
        while is_idle(ticker) {
            thread::park_timeout(IDLE_TICK);
            if !advance(ticker) {
                return;
            }
        }
    }
}

/// One tick; false once the ticker was dropped. The thread holds nothing while it sleeps, so that the engine can go.
fn advance(ticker: &Weak<TickerState>) -> bool {
    let Some(state) = ticker.upgrade() else { return false };
    if let Some(engine) = state.engine.upgrade() {
        engine.increment_epoch();
    }
    true
}

/// Whether no guest was seen since the last call of this. If so, the next guest wakes the thread.
fn is_idle(ticker: &Weak<TickerState>) -> bool {
    let Some(state) = ticker.upgrade() else { return false };
    state.asleep.store(true, SeqCst);
    let idle = !state.seen.swap(false, SeqCst);
    if !idle {
        state.asleep.store(false, SeqCst);
    }
    idle
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_thread_that_saw_no_guest_is_woken_by_the_next_one_and_ends_with_its_ticker() {
        let engine = wasmtime::Engine::default().weak();
        let state = Arc::new(TickerState { engine, seen: AtomicBool::new(true), asleep: AtomicBool::new(false) });
        let weak = Arc::downgrade(&state);
        // This thread is the one that is woken.
        let ticker = Ticker { state, thread: thread::current() };
        assert!(!is_idle(&weak) && is_idle(&weak), "a guest has begun, and no other since");
        ticker.wake();
        let began = Instant::now();
        thread::park_timeout(Duration::from_secs(30));
        assert!(began.elapsed() < Duration::from_secs(30));
        assert!(!is_idle(&weak) && !ticker.state.asleep.load(SeqCst));
        assert!(is_idle(&weak) && ticker.state.asleep.load(SeqCst));
        assert!(advance(&weak));
        drop(ticker);
        assert!(!is_idle(&weak) && !advance(&weak));
    }
}
