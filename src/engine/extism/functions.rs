//! Host functions in extism's terms.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

use extism::{CurrentPlugin, Function, UserData};
use futures_util::FutureExt;
use tokio::{runtime::Handle, time::timeout};

use crate::{
    engine::{
        CallContext, Guest, HostFunction, HostFunctionError, Val, ValType,
        host::{Kind, Portable, conversions},
    },
    error::Error,
    spans,
};

conversions!(extism);

impl From<Function> for HostFunction {
    /// Passes extism's own function to the extism engine as it is. Another engine refuses the plugin.
    fn from(function: Function) -> Self {
        HostFunction {
            module: function.namespace().unwrap_or(extism::EXTISM_USER_MODULE).to_owned(),
            name: function.name().to_owned(),
            kind: Kind::Native(Arc::new(function)),
        }
    }
}

pub(super) fn translate(function: &HostFunction) -> Result<Function, Error> {
    let foreign = || Error::invalid_request("a host function of another engine cannot run on the extism engine");
    let translated = match &function.kind {
        Kind::Portable(portable) => wrap(&function.name, portable.clone()),
        Kind::Native(native) => native.downcast_ref::<Function>().cloned().ok_or_else(foreign)?,
    };
    Ok(translated.with_namespace(&function.module))
}

fn wrap(name: &str, portable: Arc<Portable>) -> Function {
    let types = |types: &[ValType]| types.iter().map(to_type).collect::<Vec<_>>();
    let (params, results) = (types(&portable.params), types(&portable.results));
    Function::new(name, params, results, UserData::new(()), move |plugin, inputs, outputs, _| {
        HOST_CALLS.set(HOST_CALLS.get() + 1);
        let args: Vec<Val> = inputs.iter().filter_map(from_val).collect();
        let left = plugin.time_remaining().unwrap_or_default();
        let mut guest = CallingGuest(plugin);
        // A panic in it passes through the guest's frames, which wasmtime allows.
        let span = spans::if_wanted(|| spans::host_call(portable.name()));
        let failed = |error| {
            spans::record_failure(&span, "host_function");
            failed(error)
        };
        // On one thread to its end.
        let _entered = span.enter();
        let mut call = (portable.call)(&mut guest, &args);
        let returned = if let Some(returned) = (&mut call).now_or_never() {
            returned.map_err(failed)?
        } else {
            // On a thread that may block. What does not end by itself must not hold it for longer than a guest may run.
            let call = async { timeout(left, call).await };
            Handle::try_current()?.block_on(call).map_err(|_| extism::Error::msg("timeout"))?.map_err(failed)?
        };
        portable.check(&returned).map_err(Broken)?;
        outputs.iter_mut().zip(returned).for_each(|(slot, value)| *slot = to_val(value));
        Ok(())
    })
}

/// A host function did not do what it declares: this host's mistake, not the guest's.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Broken(String);

fn failed(error: HostFunctionError) -> extism::Error {
    extism::Error::msg(error)
}

thread_local! {
    /// What the call that this thread runs gives host functions: a guest and its host functions stay on one thread. extism's
    /// own host context is not used, because a call that has one does not say what its guest returned, and because it
    /// may stay with an instance whose call has failed.
    static CONTEXT: RefCell<Option<CallContext>> = const { RefCell::new(None) };
    /// Host functions that this thread's call has called.
    static HOST_CALLS: Cell<u64> = const { Cell::new(0) };
}

/// Gives the host functions of a call its context, until it is dropped, and with it the context.
pub(super) struct ContextScope(());

impl ContextScope {
    pub(super) fn enter(context: Option<CallContext>) -> Self {
        CONTEXT.set(context);
        HOST_CALLS.set(0);
        Self(())
    }

    /// How many host functions the call has called so far.
    pub(super) fn host_calls() -> u64 {
        HOST_CALLS.get()
    }
}

impl Drop for ContextScope {
    fn drop(&mut self) {
        CONTEXT.take();
    }
}

struct CallingGuest<'a>(&'a mut CurrentPlugin);

impl Guest for CallingGuest<'_> {
    fn read(&mut self, offset: u64) -> Result<Vec<u8>, HostFunctionError> {
        let missing = || HostFunctionError::new(format!("no block of guest memory begins at {offset}"));
        let handle = self.0.memory_handle(offset).ok_or_else(missing)?;
        Ok(self.0.memory_bytes(handle).map_err(|error| memory_error(&error))?.to_vec())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<u64, HostFunctionError> {
        Ok(self.0.memory_new(bytes).map_err(|error| memory_error(&error))?.offset())
    }

    fn set_error(&mut self, message: &str) -> Result<(), HostFunctionError> {
        self.0.set_error(message).map(drop).map_err(|error| memory_error(&error))
    }

    fn any_context(&self) -> Option<CallContext> {
        CONTEXT.with_borrow(Clone::clone)
    }
}

/// What the guest's memory could not do.
fn memory_error(error: &extism::Error) -> HostFunctionError {
    HostFunctionError::new(error.to_string())
}
