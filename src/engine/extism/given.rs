//! Functions that extism has and that we give in its stead: extism defines an embedder's after its own, and the later
//! definition counts.
//!
//! - `http_request` and what belongs to it, with the bounds that hold on every engine.
//! - `poll_oneoff` of WASI: extism's blocks the thread for as long as the guest says, and nothing interrupts it.
//!   Ours waits a moment and says that it was interrupted (`EINTR`), which a guest may be. Go and `TinyGo` go on
//!   waiting, in a loop that can be ended; C's `nanosleep` reports it; Rust's `thread::sleep` panics.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use extism::{CurrentPlugin, EXTISM_ENV_MODULE, Function, UserData, Val, ValType};
use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};

use super::functions::Broken;
use crate::{
    clock,
    engine::http::{Http, HttpError, MAX_REQUEST, Response},
};

/// How long a guest that waits is left waiting before it is asked again.
const NAP: Duration = Duration::from_millis(1);

/// WASI's number for "interrupted".
const EINTR: i32 = 27;

/// What functions know of the call that runs in their seat.
#[derive(Clone)]
pub(super) struct Call(Arc<Mutex<State>>);

struct State {
    deadline: Instant,
    response: Response,
}

impl Call {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State { deadline: Instant::now(), response: Response::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guest is about to run: nothing is left of an earlier one's.
    pub(super) fn begin(&self, lasts: Duration) {
        *self.state() = State { deadline: clock::deadline(lasts), response: Response::default() };
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
            give(results, Val::I64(offset.cast_signed()))
        },
    );
    let status = Function::new("http_status_code", [], [ValType::I32], UserData::new(()), move |_, _, results, _| {
        give(results, Val::I32(i32::from(status.state().response.status)))
    });
    let headers = Function::new("http_headers", [], [ValType::I64], UserData::new(()), move |plugin, _, results, _| {
        let text = headers.state().response.headers();
        let handle = plugin.memory_new(text)?;
        give(results, Val::I64(handle.offset().cast_signed()))
    });
    [request, status, headers].map(|function| function.with_namespace(EXTISM_ENV_MODULE))
}

/// `poll_oneoff`.
pub(super) fn wait() -> Function {
    let wait = |_: &mut CurrentPlugin, _: &[Val], results: &mut [Val], _: UserData<()>| {
        thread::sleep(NAP);
        give(results, Val::I32(EINTR))
    };
    let function = Function::new("poll_oneoff", [const { ValType::I32 }; 4], [ValType::I32], UserData::new(()), wait);
    function.with_namespace("wasi_snapshot_preview1")
}

fn give(results: &mut [Val], value: Val) -> Result<(), extism::Error> {
    if let Some(result) = results.first_mut() {
        *result = value;
    }
    Ok(())
}

fn http_request(
    plugin: &mut CurrentPlugin,
    http: &Http,
    call: &Call,
    request: u64,
    body: u64,
) -> Result<u64, extism::Error> {
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
