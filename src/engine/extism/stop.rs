//! Stopping a guest whose caller has left.
//!
//! extism looks a cancelled call up in a table that the call enters a moment before its guest is armed to be
//! interrupted, and takes it out of the table as it cancels. So a cancel that comes before the call is in the table does
//! nothing and may be repeated; one that comes between the two is lost, and so is every later one. Therefore:
//!
//! - cancels are repeated until the call has returned, by one thread for the whole process;
//! - the first waits until the call has been under way for [`SETTLED`], by when it is long past both;
//! - should a call have taken longer than that to get there, and lose its cancel, the engine's fuel ends its guest.
//!
//! Considered and not taken: a tokio task to repeat (none runs when its runtime is shutting down, which is when many
//! calls are dropped), and a thread for each call.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering, fence},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use extism::CancelHandle;

/// How long to wait before a cancel is repeated.
const REPEAT: Duration = Duration::from_millis(1);

/// How long after its beginning a call can be cancelled.
const SETTLED: Duration = Duration::from_millis(3);

#[derive(Default)]
struct State {
    cancelled: AtomicBool,
    returned: AtomicBool,
    began: OnceLock<Instant>,
}

/// Stops a call when dropped, unless disarmed before.
pub(super) struct StopOnDrop {
    handle: Option<CancelHandle>,
    state: Arc<State>,
}

/// Held by the thread of the call for as long as its guest may be running.
pub(super) struct Running(Arc<State>);

impl StopOnDrop {
    pub(super) fn new(handle: CancelHandle) -> Self {
        Self { handle: Some(handle), state: Arc::default() }
    }

    pub(super) fn running(&self) -> Running {
        Running(self.state.clone())
    }

    /// The call has returned: nothing is left to stop.
    pub(super) fn disarm(mut self) {
        self.handle = None;
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let Some(handle) = self.handle.take() else { return };
        // Before looking whether it began: a call that has not sees this and never does.
        self.state.cancelled.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if let Some(began) = self.state.began.get()
            && !self.state.returned.load(Ordering::SeqCst)
        {
            repeat(Stubborn { handle, from: *began + SETTLED, state: self.state.clone() });
        }
    }
}

impl Running {
    /// The guest is about to run; false when it must not any more.
    pub(super) fn begin(&self) -> bool {
        let _ = self.0.began.set(Instant::now());
        // One of the two sides sees what the other has said.
        fence(Ordering::SeqCst);
        !self.0.cancelled.load(Ordering::SeqCst)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.returned.store(true, Ordering::SeqCst);
    }
}

/// A call that has not returned yet.
struct Stubborn {
    handle: CancelHandle,
    from: Instant,
    state: Arc<State>,
}

impl Stubborn {
    /// Cancels the call, if its time has come, unless it has returned; true when it has.
    fn cancel(&self) -> bool {
        if self.state.returned.load(Ordering::SeqCst) {
            return true;
        }
        if Instant::now() < self.from {
            return false;
        }
        // Fails only when extism's timer thread is gone, and then so is the process.
        let _ = self.handle.cancel();
        false
    }
}

fn repeat(stubborn: Stubborn) {
    static REPEATER: OnceLock<Option<mpsc::Sender<Stubborn>>> = OnceLock::new();
    let repeater = REPEATER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel();
        let thread = thread::Builder::new().name("evalpool-stop".into()).spawn(move || run(&receiver));
        thread.is_ok().then_some(sender)
    });
    // Without a thread to spare, the guest runs until extism's own timer ends it.
    if let Some(repeater) = repeater {
        let _ = repeater.send(stubborn);
    }
}

fn run(receiver: &mpsc::Receiver<Stubborn>) {
    let mut calls: Vec<Stubborn> = Vec::new();
    loop {
        let next = if calls.is_empty() {
            receiver.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
        } else {
            receiver.recv_timeout(REPEAT)
        };
        match next {
            Ok(call) => calls.push(call),
            Err(mpsc::RecvTimeoutError::Timeout) => calls.retain(|call| !call.cancel()),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}
