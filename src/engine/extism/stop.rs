//! Stopping a guest whose caller has left.
//!
//! extism looks a cancelled call up in a table that the call enters a moment before its guest is armed to be
//! interrupted, and takes it out of the table as it cancels. So a cancel that comes before the call is in the table does
//! nothing; one that comes between the two is lost, and so is every later one, as is the call's own deadline if it
//! comes there. Therefore:
//!
//! - a call is cancelled once its guest has begun, which the [fence](super::fence) tells; and a guest that is to begin
//!   when it is cancelled or late already does not;
//! - without a fence, a call is taken to have begun [`SETTLED`] after it was made. Should it have taken longer to get
//!   there, the cancel is lost: who is trusted to let calls end is believed;
//! - cancels are repeated until the call has returned, by one thread for the whole process;
//! - a cancel that comes as a call returns by itself may be on its way still, and hit whatever is then called: see
//!   [`Running::is_clear`].
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

/// How long before its deadline a call may have returned and still be taken, by extism's timer, to be late.
const LATE: Duration = Duration::from_millis(20);

#[derive(Default)]
struct State {
    cancelled: AtomicBool,
    returned: AtomicBool,
    /// From when on a cancel arrives.
    armed: OnceLock<Instant>,
}

/// Stops a call when dropped, unless disarmed before.
pub(super) struct StopOnDrop {
    handle: Option<CancelHandle>,
    state: Arc<State>,
}

/// Held by the thread of the call for as long as its guest may be running.
pub(super) struct Running {
    state: Arc<State>,
    since: Instant,
}

/// What is asked when a guest begins.
pub(super) struct Beginning(Arc<State>);

impl StopOnDrop {
    pub(super) fn new(handle: CancelHandle) -> Self {
        Self { handle: Some(handle), state: Arc::default() }
    }

    /// To be taken to the thread of the call.
    pub(super) fn running(&self) -> Running {
        Running { state: self.state.clone(), since: Instant::now() }
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
        if let Some(armed) = self.state.armed.get()
            && !self.state.returned.load(Ordering::SeqCst)
        {
            repeat(Stubborn { handle, from: *armed, state: self.state.clone() });
        }
    }
}

impl Running {
    /// The call is about to be made; false when it must not any more. `is_fenced` when its guest will tell that it begins.
    pub(super) fn begin(&mut self, is_fenced: bool) -> bool {
        self.since = Instant::now();
        if is_fenced {
            return !self.state.cancelled.load(Ordering::SeqCst);
        }
        self.state.arm(self.since + SETTLED)
    }

    pub(super) fn beginning(&self) -> Beginning {
        Beginning(self.state.clone())
    }

    /// Whether no interrupt can be on its way to a call that has returned by itself, neither a cancel's nor a deadline's.
    pub(super) fn is_clear(&self, timeout: Duration) -> bool {
        let early = timeout.saturating_sub(LATE.min(timeout / 4));
        !self.state.cancelled.load(Ordering::SeqCst) && self.since.elapsed() < early
    }
}

impl Beginning {
    /// The guest begins; false when it must not.
    pub(super) fn begin(&self) -> bool {
        self.0.arm(Instant::now())
    }
}

impl State {
    fn arm(&self, from: Instant) -> bool {
        let _ = self.armed.set(from);
        // One of the two sides sees what the other has said.
        fence(Ordering::SeqCst);
        !self.cancelled.load(Ordering::SeqCst)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.state.returned.store(true, Ordering::SeqCst);
    }
}

/// Something that is to end and may have to be told so more than once.
pub(super) trait Pending: Send {
    /// Ends it if its time has come; true when it has ended.
    fn end(&mut self) -> bool;
}

/// A call that has not returned yet.
struct Stubborn {
    handle: CancelHandle,
    from: Instant,
    state: Arc<State>,
}

impl Pending for Stubborn {
    fn end(&mut self) -> bool {
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

/// Ends it again and again until it has ended.
pub(super) fn repeat(pending: impl Pending + 'static) {
    static REPEATER: OnceLock<Option<mpsc::Sender<Box<dyn Pending>>>> = OnceLock::new();
    let repeater = REPEATER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel();
        let thread = thread::Builder::new().name("evalpool-stop".into()).spawn(move || run(&receiver));
        thread.is_ok().then_some(sender)
    });
    // Without a thread to spare, the guest runs until extism's own timer ends it, or its fuel.
    if let Some(repeater) = repeater {
        let _ = repeater.send(Box::new(pending));
    }
}

fn run(receiver: &mpsc::Receiver<Box<dyn Pending>>) {
    let mut all: Vec<Box<dyn Pending>> = Vec::new();
    loop {
        let next = if all.is_empty() {
            receiver.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
        } else {
            receiver.recv_timeout(REPEAT)
        };
        match next {
            Ok(mut pending) => {
                if !pending.end() {
                    all.push(pending);
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => all.retain_mut(|pending| !pending.end()),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}
