//! The host's part of `extism:host/env`: allocation, settings, variables, logs, HTTP.
//!
//! As in Extism, a function frees the blocks that it is passed, and its messages are Extism's: authors of plugins know
//! them. It frees them after it has read all of them, because two may be the same block.

use tracing::{Level, level_filters::LevelFilter};
use wasmtime::Linker;

use super::{
    classify::HostTrap,
    http::{MAX_REQUEST, Response},
    kernel::Kernel,
    log,
    state::{Caller, GuestState, Variables},
};
use crate::engine::VariableSet;
pub(super) use crate::engine::abi_names::MODULE;

/// The longest name of a variable or of a setting, in bytes.
const MAX_NAME: u64 = 64 << 10;

type Result<T> = wasmtime::Result<T>;

/// Adds all of them.
pub(super) fn link(linker: &mut Linker<GuestState>) -> Result<()> {
    linker.func_wrap(MODULE, "alloc", |mut caller: Caller<'_>, length: u64| {
        Kernel::of(&caller)?.alloc(&mut caller, length)
    })?;
    linker.func_wrap(MODULE, "free", |mut caller: Caller<'_>, offset: u64| free(&mut caller, [offset]))?;
    linker.func_wrap(MODULE, "reset", |mut caller: Caller<'_>| -> Result<()> {
        Kernel::of(&caller)?.reset(&mut caller);
        Ok(())
    })?;
    for name in ["length", "length_unsafe"] {
        linker.func_wrap(MODULE, name, |caller: Caller<'_>, offset: u64| Kernel::length(&caller, offset))?;
    }
    linker.func_wrap(MODULE, "config_get", |mut caller: Caller<'_>, key: u64| {
        let key = take_text(&mut caller, key, "config key")?;
        if caller.data().context.config.contains_key(&key) {
            caller.data_mut().reads_config();
        }
        Kernel::of(&caller)?.write_found(&mut caller, |state| state.context.config.get(&key).map(String::as_bytes))
    })?;
    linker.func_wrap(MODULE, "var_get", |mut caller: Caller<'_>, name: u64| {
        let name = take_text(&mut caller, name, "var key")?;
        Kernel::of(&caller)?.write_found(&mut caller, |state| state.variables.get(&name))
    })?;
    linker.func_wrap(MODULE, "var_set", |mut caller: Caller<'_>, name: u64, value: u64| -> Result<()> {
        let key = text(&caller, name, "var key")?;
        // Checked first: a value that does not fit is not copied.
        if Kernel::length(&caller, value) > VariableSet::MOST as u64 {
            return Err(Variables::full().into());
        }
        let bytes = if value == 0 { None } else { Some(block(&caller, value, "var value")?) };
        free(&mut caller, [name, value])?;
        let variables = &mut caller.data_mut().variables;
        match bytes {
            Some(bytes) => variables.set(key, bytes)?,
            None => variables.remove(&key),
        }
        Ok(())
    })?;
    for (name, level) in log::FUNCTIONS {
        linker.func_wrap(MODULE, name, move |mut caller: Caller<'_>, message: u64| log(&mut caller, level, message))?;
    }
    linker.func_wrap(MODULE, "get_log_level", |caller: Caller<'_>| match LevelFilter::current().into_level() {
        _ if caller.data().context.log.is_some() => 0,
        None => i32::MAX,
        Some(Level::TRACE) => 0,
        Some(Level::DEBUG) => 1,
        Some(Level::INFO) => 2,
        Some(Level::WARN) => 3,
        Some(Level::ERROR) => 4,
    })?;
    linker.func_wrap_async(MODULE, "http_request", |mut caller: Caller<'_>, (request, body): (u64, u64)| {
        Box::new(async move { http_request(&mut caller, request, body).await })
    })?;
    linker.func_wrap(MODULE, "http_status_code", |caller: Caller<'_>| i32::from(caller.data().http.status))?;
    linker.func_wrap(MODULE, "http_headers", |mut caller: Caller<'_>| {
        let headers = caller.data().http.headers();
        Kernel::of(&caller)?.write(&mut caller, headers.as_bytes())
    })?;
    Ok(())
}

/// Copies a block out of the guest.
fn block(caller: &Caller<'_>, offset: u64, what: &str) -> Result<Vec<u8>> {
    let bytes = Kernel::of(caller)?.read(caller, offset).map(<[u8]>::to_vec);
    Ok(bytes.ok_or_else(|| HostTrap::Failed(format!("invalid handle offset for {what}: {offset}")))?)
}

fn text(caller: &Caller<'_>, offset: u64, what: &str) -> Result<String> {
    if Kernel::length(caller, offset) > MAX_NAME {
        return Err(HostTrap::Failed(format!("the {what} is over {MAX_NAME} bytes")).into());
    }
    let bytes = block(caller, offset, what)?;
    Ok(String::from_utf8(bytes).map_err(|error| HostTrap::Failed(error.utf8_error().to_string()))?)
}

fn free<const N: usize>(caller: &mut Caller<'_>, blocks: [u64; N]) -> Result<()> {
    let kernel = Kernel::of(caller)?;
    for block in blocks {
        kernel.free(caller, block);
    }
    Ok(())
}

fn take_text(caller: &mut Caller<'_>, offset: u64, what: &str) -> Result<String> {
    let taken = text(caller, offset, what)?;
    free(caller, [offset])?;
    Ok(taken)
}

fn log(caller: &mut Caller<'_>, level: Level, message: u64) -> Result<()> {
    let kernel = Kernel::of(caller)?;
    if level <= LevelFilter::current() || caller.data().context.log.is_some() {
        let invalid = || HostTrap::Failed(format!("invalid handle offset for log message: {message}"));
        let bytes = kernel.read(&*caller, message).ok_or_else(invalid)?;
        let mut budget = caller.data().log;
        let context = &caller.data().context;
        let (evaluator, labels) = (&*context.evaluator, context.labels.as_deref());
        budget.write(level, evaluator, labels, context.digest, context.log.as_ref(), bytes);
        caller.data_mut().log = budget;
    }
    free(caller, [message])
}

async fn http_request(caller: &mut Caller<'_>, request: u64, body: u64) -> Result<u64> {
    caller.data_mut().http = Response::default();
    caller.data_mut().reaches_out(|| format!("{MODULE}::http_request"));
    if Kernel::length(&*caller, request) > MAX_REQUEST {
        return Err(HostTrap::Failed(format!("the HTTP request, less its body, is over {MAX_REQUEST} bytes")).into());
    }
    let context = caller.data().context.clone();
    let mut outgoing = context.http.read(&block(caller, request, "http request")?)?;
    if body != 0 {
        outgoing.body = block(caller, body, "http request body")?;
    }
    free(caller, [request, body])?;
    let deadline = caller.data().deadline;
    // Bodies are in this process's memory, beside the guest's.
    let mut held = context.memory.beside(outgoing.body.len() as u64);
    let called_with = caller.data().call_context.clone();
    let parent = called_with.as_ref().and_then(|context| context.downcast_ref());
    let counted = &mut caller.data_mut().requests;
    let (response, body) = context.http.send(outgoing, parent, deadline, &mut held, counted).await?;
    caller.data_mut().http = response;
    Kernel::of(caller)?.write(caller, &body)
}
