//! The embedder's host functions, in wasmtime's terms.

use std::sync::Arc;

use tracing::Instrument;
use wasmtime::{FuncType, Linker};

use super::{
    classify::HostTrap,
    kernel::Kernel,
    state::{Caller, GuestState},
};
use crate::{
    engine::{
        CallContext, Guest, HostFunction, HostFunctionError, Val, ValType,
        host::{Kind, conversions},
    },
    error::Error,
    spans,
};

conversions!(wasmtime);

/// Adds one to a linker.
pub(super) fn link(linker: &mut Linker<GuestState>, function: &HostFunction) -> Result<(), Error> {
    let Kind::Portable(portable) = &function.kind else {
        return Err(Error::invalid_request("a host function of the extism crate cannot run on the direct engine"));
    };
    let types = |types: &[ValType]| types.iter().map(to_type).collect::<Vec<_>>();
    let ty = FuncType::new(linker.engine(), types(&portable.params), types(&portable.results));
    let (portable, module) = (portable.clone(), Arc::<str>::from(&*function.module));
    linker
        .func_new_async(&function.module, &function.name, ty, move |mut caller, args, slots| {
            let (portable, module) = (portable.clone(), module.clone());
            Box::new(async move {
                let unknown = || HostTrap::Broken("a host function was passed a value that it does not take".into());
                caller.data_mut().host_calls += 1;
                caller.data_mut().reaches_out(|| format!("{module}::{}", portable.name()));
                let args: Vec<_> = args.iter().map(from_val).collect::<Option<_>>().ok_or_else(unknown)?;
                let span = spans::if_wanted(|| spans::host_call(portable.name()));
                let mut guest = CallingGuest(&mut caller);
                // One that blocks does so before it gives its future.
                let call = span.in_scope(|| (portable.call)(&mut guest, &args));
                let returned = call.instrument(span.clone()).await.map_err(|error| {
                    spans::record_failure(&span, "host_function");
                    failed(&error)
                })?;
                portable.check(&returned).map_err(HostTrap::Broken)?;
                slots.iter_mut().zip(returned).for_each(|(slot, value)| *slot = to_val(value));
                Ok(())
            })
        })
        .map_err(|error| Error::internal("a host function cannot be linked", error.to_string()))?;
    Ok(())
}

fn failed(error: &HostFunctionError) -> HostTrap {
    // The function hands on that the guest's memory is full: the guest's call ends as out of memory.
    if error.is_out_of_memory { HostTrap::OutOfMemory } else { HostTrap::Failed(error.to_string()) }
}

struct CallingGuest<'a, 'b>(&'a mut Caller<'b>);

impl Guest for CallingGuest<'_, '_> {
    fn read(&mut self, offset: u64) -> Result<Vec<u8>, HostFunctionError> {
        let kernel = Kernel::of(&*self.0).map_err(|error| memory_error(&error))?;
        let bytes = kernel.read(&*self.0, offset).map(<[u8]>::to_vec);
        bytes.ok_or_else(|| HostFunctionError::new(format!("no block of guest memory begins at {offset}")))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<u64, HostFunctionError> {
        let kernel = Kernel::of(&*self.0);
        kernel.and_then(|kernel| kernel.write(self.0, bytes)).map_err(|error| memory_error(&error))
    }

    fn set_error(&mut self, message: &str) -> Result<(), HostFunctionError> {
        let kernel = Kernel::of(&*self.0);
        kernel.and_then(|kernel| kernel.set_error(self.0, message)).map_err(|error| memory_error(&error))
    }

    fn any_context(&self) -> Option<CallContext> {
        self.0.data().call_context.clone()
    }
}

/// What the guest's memory could not do.
fn memory_error(error: &wasmtime::Error) -> HostFunctionError {
    let mut failure = HostFunctionError::new(error.root_cause().to_string());
    failure.is_out_of_memory = matches!(error.downcast_ref(), Some(HostTrap::OutOfMemory));
    failure
}
