//! Functions that extism has and that we give in its stead: extism defines an embedder's after its own, and the later
//! definition counts.
//!
//! - `http_request` and what belongs to it, with the bounds that hold on every engine.
//! - `poll_oneoff` of WASI: extism's blocks the thread for as long as the guest says, and nothing interrupts it.
//!   Ours waits a moment and says that it was interrupted (`EINTR`), which a guest may be. The schedulers of Go and
//!   `TinyGo` go on waiting, in a loop that can be ended; C's `nanosleep` reports it; Rust's `thread::sleep` panics.
//!   Plugins that are `trusted` keep extism's.
//! - The log, with the bounds that hold on every engine.
//! - All else that reaches into a guest's memory, for plugins that have initialisers. While those run extism follows a
//!   pointer to a guest's memory that is null, or no longer points to anything. There the log is silent, and all others
//!   fail, which refuses the plugin.

mod environment;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use extism::{CancelHandle, CurrentPlugin, EXTISM_ENV_MODULE, Function, UserData, Val, ValType};
use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};

pub(super) use self::environment::{environment, logs};
use super::{fence, functions::Broken, stop::Beginning};
use crate::{
    clock,
    engine::{
        http::{Http, HttpError, MAX_REQUEST, Response},
        log::{LogBudget, Logging},
    },
};

/// How long a guest that waits is left waiting before it is asked again.
const NAP: Duration = Duration::from_millis(1);

/// WASI's number for "interrupted".
const EINTR: i32 = 27;

/// What functions know of the call that runs in their seat.
#[derive(Clone)]
pub(super) struct Call(Arc<Mutex<State>>);

struct State {
    /// Whether initialisers may be running, and guests' memory is out of reach.
    initialising: bool,
    deadline: Instant,
    response: Response,
    log: LogBudget,
    /// Blocks that functions of the host have made since the fence last asked.
    written: Vec<u64>,
    /// Asked once, when the guest begins.
    beginning: Option<Beginning>,
    /// What a plugin that is to interrupt another one cancels: itself.
    interrupt: Option<CancelHandle>,
}

impl State {
    fn new(initialising: bool, lasts: Duration) -> Self {
        let deadline = clock::deadline(lasts);
        let (response, log) = (Response::default(), LogBudget::default());
        Self { initialising, deadline, response, log, written: Vec::new(), beginning: None, interrupt: None }
    }
}

impl Call {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State::new(false, Duration::ZERO))))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guest is about to run: nothing is left of an earlier one's.
    pub(super) fn begin(&self, lasts: Duration, beginning: Beginning) {
        *self.state() = State { beginning: Some(beginning), ..State::new(false, lasts) };
    }

    /// A guest is about to be linked and initialised.
    pub(super) fn begin_initialising(&self, lasts: Duration) {
        *self.state() = State::new(true, lasts);
    }

    /// The time of what initialises is over.
    pub(super) fn expire(&self) {
        self.state().deadline = Instant::now();
    }

    /// The next call in this seat is of the plugin that this cancels, which thereby interrupts all that run there.
    pub(super) fn let_interrupt(&self, handle: CancelHandle) {
        self.state().interrupt = Some(handle);
    }

    fn is_initialising(&self) -> bool {
        self.state().initialising
    }

    /// Takes one line of what the call may write to the log.
    fn take_line(&self) -> Logging {
        self.state().log.take()
    }

    /// Fails while there is no memory to reach into.
    pub(super) fn reaches_memory(&self) -> Result<(), extism::Error> {
        if self.is_initialising() {
            return Err(extism::Error::msg("an initialiser of its calls the host, which the extism engine cannot do"));
        }
        Ok(())
    }

    /// Fails when the guest's time is over.
    fn is_in_time(&self) -> Result<(), extism::Error> {
        if Instant::now() >= self.state().deadline {
            return Err(extism::Error::msg("timeout"));
        }
        Ok(())
    }

    /// A function of the host has made a block.
    pub(super) fn wrote(&self, block: u64) {
        // 0 is none, and the end of the list.
        if block != 0 {
            self.state().written.push(block);
        }
    }

    /// Waits on a thread that may block, until the guest's time is over.
    pub(super) fn wait<T>(&self, future: impl Future<Output = T>) -> Result<T, extism::Error> {
        let deadline = self.state().deadline;
        let waited = Handle::try_current()?.block_on(async { timeout_at(deadline, future).await });
        waited.map_err(|_| extism::Error::msg("timeout"))
    }
}

/// `http_request` and what belongs to it.
pub(super) fn http(call: &Call, http: &Arc<Http>) -> [Function; 3] {
    let (http, state, status, headers) = (http.clone(), call.clone(), call.clone(), call.clone());
    let request = Function::new(
        "http_request",
        [ValType::I64, ValType::I64],
        [ValType::I64],
        UserData::new(()),
        move |plugin, args, results, _| {
            let [Val::I64(request), Val::I64(body)] = args else { return Ok(()) };
            let offset = http_request(plugin, &http, &state, request.cast_unsigned(), body.cast_unsigned())?;
            give(results, Val::I64(offset.cast_signed()));
            Ok(())
        },
    );
    let status = Function::new("http_status_code", [], [ValType::I32], UserData::new(()), move |_, _, results, _| {
        give(results, Val::I32(i32::from(status.state().response.status)));
        Ok(())
    });
    let headers = Function::new("http_headers", [], [ValType::I64], UserData::new(()), move |plugin, _, results, _| {
        headers.reaches_memory()?;
        let text = headers.state().response.headers();
        let handle = plugin.memory_new(text)?;
        give(results, Val::I64(handle.offset().cast_signed()));
        Ok(())
    });
    [request, status, headers].map(|function| function.with_namespace(EXTISM_ENV_MODULE))
}

/// What the fence, and what it surrounds, ask.
pub(super) fn fence(call: &Call) -> [Function; 6] {
    [
        function(call, "outside", [], |_| Err(extism::Error::msg("its output is outside its memory"))),
        function(call, "written", [ValType::I64], |call| {
            let block = call.state().written.pop().unwrap_or(0);
            Ok(Some(Val::I64(block.cast_signed())))
        }),
        function(call, "reaches_memory", [], |call| call.reaches_memory().map(|()| None)),
        function(call, "begun", [], |call| {
            call.is_in_time()?;
            let beginning = call.state().beginning.take();
            if beginning.is_none_or(|beginning| beginning.begin()) {
                Ok(None)
            } else {
                Err(extism::Error::msg("cancelled"))
            }
        }),
        function(call, "in_time", [ValType::I32], |call| {
            let is_in_time = !call.is_initialising() || call.is_in_time().is_ok();
            Ok(Some(Val::I32(is_in_time.into())))
        }),
        function(call, "interrupt", [], |call| {
            let handle = call.state().interrupt.take();
            handle.map_or(Ok(None), |handle| handle.cancel().map(|()| None))
        }),
    ]
}

/// One of those, which take nothing.
fn function<const N: usize>(
    call: &Call,
    name: &str,
    results: [ValType; N],
    run: impl Fn(&Call) -> Result<Option<Val>, extism::Error> + Send + Sync + 'static,
) -> Function {
    let call = call.clone();
    Function::new(name, [], results, UserData::new(()), move |_, _, results, _| {
        if let Some(value) = run(&call)? {
            give(results, value);
        }
        Ok(())
    })
    .with_namespace(fence::HOST)
}

/// `poll_oneoff`.
pub(super) fn wait(call: &Call) -> Function {
    let (call, params) = (call.clone(), [const { ValType::I32 }; 4]);
    Function::new("poll_oneoff", params, [ValType::I32], UserData::new(()), move |_, _, results, _| {
        call.is_in_time()?;
        thread::sleep(NAP);
        give(results, Val::I32(EINTR));
        Ok(())
    })
    .with_namespace("wasi_snapshot_preview1")
}

fn give(results: &mut [Val], value: Val) {
    if let Some(result) = results.first_mut() {
        *result = value;
    }
}

fn http_request(
    plugin: &mut CurrentPlugin,
    http: &Http,
    call: &Call,
    request: u64,
    body: u64,
) -> Result<u64, extism::Error> {
    call.reaches_memory()?;
    call.state().response = Response::default();
    if plugin.memory_length(request).unwrap_or_default() > MAX_REQUEST {
        let text = format!("the HTTP request, less its body, is over {MAX_REQUEST} bytes");
        return Err(extism::Error::msg(text));
    }
    let request = http.read(&take(plugin, request, "http request")?).map_err(failed)?;
    let body = if body == 0 { None } else { Some(take(plugin, body, "http request body")?) };
    let (response, body) = call.wait(http.send(request, body))?.map_err(failed)?;
    call.state().response = response;
    Ok(plugin.memory_new(body)?.offset())
}

/// Copies a block out of the guest and frees it.
fn take(plugin: &mut CurrentPlugin, offset: u64, what: &str) -> Result<Vec<u8>, extism::Error> {
    let invalid = || extism::Error::msg(format!("invalid handle offset for {what}: {offset}"));
    let handle = plugin.memory_handle(offset).ok_or_else(invalid)?;
    let bytes = plugin.memory_bytes(handle)?.to_vec();
    plugin.memory_free(handle)?;
    Ok(bytes)
}

fn failed(error: HttpError) -> extism::Error {
    match error {
        HttpError::Failed(text) => extism::Error::msg(text),
        HttpError::Broken(text) => Broken(text).into(),
    }
}
