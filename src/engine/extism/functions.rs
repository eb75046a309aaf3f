//! Host functions in extism's terms.

use std::sync::Arc;

use extism::{CurrentPlugin, Function, UserData};
use tokio::{runtime::Handle, time::timeout};

use crate::{
    engine::{
        GuestMemory, HostFunction, HostFunctionError, Val, ValType,
        host::{Closure, Kind, Portable},
    },
    error::Error,
};

impl From<Function> for HostFunction {
    /// Passes extism's own function to the extism engine as it is. Another engine refuses the plugin.
    fn from(function: Function) -> Self {
        HostFunction {
            kind: Kind::Native {
                module: function.namespace().unwrap_or(extism::EXTISM_USER_MODULE).to_owned(),
                name: function.name().to_owned(),
                function: Arc::new(function),
            },
        }
    }
}

pub(super) fn translate(function: &HostFunction) -> Result<Function, Error> {
    match &function.kind {
        Kind::Portable(portable) => Ok(wrap(portable.clone())),
        Kind::Native { module, function, .. } => match function.downcast_ref::<Function>() {
            Some(function) => Ok(function.clone().with_namespace(module.clone())),
            None => Err(Error::invalid_request("a host function of another engine cannot run on the extism engine")),
        },
    }
}

fn wrap(function: Portable) -> Function {
    let Portable { module, name, params, results, call } = function;
    let expected = results.clone();
    let shown = name.clone();
    let types = |types: Vec<ValType>| types.into_iter().map(to_extism_type);
    Function::new(name, types(params), types(results), UserData::new(()), move |plugin, inputs, outputs, _| {
        let args: Vec<Val> = inputs.iter().filter_map(from_extism).collect();
        let left = plugin.time_remaining();
        let mut memory = Memory(plugin);
        // A panic in it passes through the guest's frames, which wasmtime allows, and is caught around the call.
        let returned = match &call {
            Closure::Blocking(call) => call(&mut memory, &args)?,
            // On a thread that may block. What does not end by itself must not hold it for longer than a guest may run.
            Closure::Async(call) => {
                let call = async { timeout(left.unwrap_or_default(), call(&mut memory, &args)).await };
                Handle::try_current()?.block_on(call).map_err(|_| extism::Error::msg("timeout"))??
            }
        };
        if returned.iter().map(|value| value.ty()).ne(expected.iter().copied()) {
            let text = format!("the host function {shown} gave results of other types than declared");
            return Err(Broken(text).into());
        }
        for (slot, value) in outputs.iter_mut().zip(returned) {
            *slot = to_extism(value);
        }
        Ok(())
    })
    .with_namespace(module)
}

/// A host function did not do what it declares: this host's mistake, not the guest's.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Broken(String);

struct Memory<'a>(&'a mut CurrentPlugin);

impl GuestMemory for Memory<'_> {
    fn read(&mut self, offset: u64) -> Result<Vec<u8>, HostFunctionError> {
        let handle = self
            .0
            .memory_handle(offset)
            .ok_or_else(|| HostFunctionError::new(format!("no block of guest memory begins at {offset}")))?;
        let bytes = self.0.memory_bytes(handle).map_err(|error| HostFunctionError::new(error.to_string()))?;
        Ok(bytes.to_vec())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<u64, HostFunctionError> {
        let handle = self.0.memory_new(bytes).map_err(|error| HostFunctionError::new(error.to_string()))?;
        Ok(handle.offset())
    }
}

fn to_extism_type(ty: ValType) -> extism::ValType {
    match ty {
        ValType::I32 => extism::ValType::I32,
        ValType::I64 => extism::ValType::I64,
        ValType::F32 => extism::ValType::F32,
        ValType::F64 => extism::ValType::F64,
    }
}

fn from_extism(value: &extism::Val) -> Option<Val> {
    match value {
        extism::Val::I32(value) => Some(Val::I32(*value)),
        extism::Val::I64(value) => Some(Val::I64(*value)),
        extism::Val::F32(bits) => Some(Val::F32(f32::from_bits(*bits))),
        extism::Val::F64(bits) => Some(Val::F64(f64::from_bits(*bits))),
        _ => None,
    }
}

fn to_extism(value: Val) -> extism::Val {
    match value {
        Val::I32(value) => extism::Val::I32(value),
        Val::I64(value) => extism::Val::I64(value),
        Val::F32(value) => extism::Val::F32(value.to_bits()),
        Val::F64(value) => extism::Val::F64(value.to_bits()),
    }
}
