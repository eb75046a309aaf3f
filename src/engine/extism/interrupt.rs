//! Interrupting initialisers.
//!
//! extism can interrupt a call, but not what runs before one: what a plugin has as `start`, `_initialize` and the like.
//! But an interrupt hits all that runs in a wasmtime engine, and a store is armed for it from its beginning. So a
//! second plugin is made in the same seat, whose own initialisers do not run, as the [fence](super::fence) makes them ask
//! for the time, and which has itself cancelled while it is called: that ends the first one too.
//!
//! A seat that saw this is not used again, for the interrupt may come late. Each seat whose plugin has initialisers
//! has slots for two. All are made on one thread, one after another: so there is one instance at most that no permit
//! counts.
//!
//! Considered and not taken: to let fuel alone end them (it counts instructions: one that fills its memory with each held
//! a thread for days), to look at the clock in each loop (all calls would pay for it), and a tokio task for the attempts
//! (none runs when its runtime is shutting down).

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use extism::Plugin;

use super::{fence, seat::Occupied};
use crate::background;

/// How often to look whether one has ended.
const TICK: Duration = Duration::from_millis(5);

/// How long to wait before another attempt. An interrupt is lost only if it comes before the store is armed.
const AGAIN: Duration = Duration::from_millis(20);

#[derive(Default)]
enum State {
    /// No thread has it yet.
    #[default]
    Waiting,
    Running(Occupied),
    /// It has been, or is about to be, interrupted.
    Interrupted(Occupied),
    /// It has ended, or must not begin.
    Over,
}

type Shared = Arc<Mutex<State>>;

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    // Nothing panics under this lock.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Interrupts an initialiser when told to, and when dropped, unless that has ended by then.
#[derive(Default)]
pub(super) struct InterruptOnDrop(Shared);

/// Held by the thread of the initialiser for as long as that may be running.
pub(super) struct Initialising(Shared);

impl InterruptOnDrop {
    /// To be taken to the initialiser's thread.
    pub(super) fn initialising(&self) -> Initialising {
        Initialising(self.0.clone())
    }

    pub(super) fn interrupt(&self) {
        let mut state = lock(&self.0);
        match std::mem::replace(&mut *state, State::Over) {
            State::Running(seat) => {
                // Before anything can arrive: who ends from here on knows of it.
                *state = State::Interrupted(seat);
                drop(state);
                until_it_ends(Interrupt { shared: self.0.clone(), next: Instant::now() });
            }
            State::Interrupted(seat) => *state = State::Interrupted(seat),
            State::Waiting | State::Over => {}
        }
    }
}

impl Drop for InterruptOnDrop {
    fn drop(&mut self) {
        self.interrupt();
    }
}

impl Initialising {
    /// The initialiser is about to run in this seat; false when it must not any more.
    pub(super) fn begin(&self, seat: Occupied) -> bool {
        let mut state = lock(&self.0);
        let begins = matches!(*state, State::Waiting);
        if begins {
            *state = State::Running(seat);
        }
        begins
    }

    /// The initialiser has returned; whether it was interrupted, or an interrupt may still be on its way.
    pub(super) fn end(self) -> bool {
        let ended = std::mem::replace(&mut *lock(&self.0), State::Over);
        matches!(ended, State::Interrupted(_))
    }
}

impl Drop for Initialising {
    fn drop(&mut self) {
        // What it held, which may be much, is dropped after the lock.
        let _held = std::mem::replace(&mut *lock(&self.0), State::Over);
    }
}

/// An initialiser that has not returned yet.
struct Interrupt {
    shared: Shared,
    next: Instant,
}

impl Interrupt {
    /// Ends it, if it is time for an attempt; true when it has ended.
    fn attempt(&mut self) -> bool {
        let seat = match &*lock(&self.shared) {
            State::Interrupted(_) if Instant::now() < self.next => return false,
            State::Interrupted(seat) => seat.clone(),
            _ => return true,
        };
        // Whatever comes of it: if it was in vain there is another attempt.
        let _ = catch_unwind(AssertUnwindSafe(|| interrupt(&seat)));
        self.next = Instant::now() + AGAIN;
        // It may be the last to hold all that the plugin does, an embedder's functions among it.
        background::drop_elsewhere(seat);
        false
    }
}

fn interrupt(seat: &Occupied) -> Result<(), extism::Error> {
    let (compiled, call) = seat.compiled();
    // From here on no initialiser begins.
    call.expire();
    let mut second = Plugin::new_from_compiled(compiled)?;
    call.let_interrupt(second.cancel_handle());
    second.call::<&[u8], &[u8]>(fence::INTERRUPT, &[]).map(drop)
}

/// Hands it to the one thread of the process that attempts it again and again.
fn until_it_ends(interrupt: Interrupt) {
    static THREAD: OnceLock<Option<mpsc::Sender<Interrupt>>> = OnceLock::new();
    let thread = THREAD.get_or_init(|| {
        let (sender, receiver) = mpsc::channel();
        let thread = thread::Builder::new().name("evalpool-stop".into()).spawn(move || run(&receiver));
        thread.is_ok().then_some(sender)
    });
    // Without a thread to spare, it runs until its fuel is used up.
    if let Some(thread) = thread {
        let _ = thread.send(interrupt);
    }
}

fn run(receiver: &mpsc::Receiver<Interrupt>) {
    let mut all: Vec<Interrupt> = Vec::new();
    loop {
        let next = if all.is_empty() {
            receiver.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
        } else {
            receiver.recv_timeout(TICK)
        };
        match next {
            Ok(interrupt) => all.push(interrupt),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        all.retain_mut(|interrupt| !interrupt.attempt());
    }
}
