//! Host functions in wasmtime's terms.

use std::sync::Arc;

use wasmtime::{Caller, Engine, FuncType, Linker};

use super::{
    abi::{self, kernel},
    classify::HostTrap,
    state::GuestState,
};
use crate::{
    engine::{
        GuestMemory, HostFunction, HostFunctionError, Val, ValType,
        host::{Closure, Kind, Portable},
    },
    error::Error,
};

/// Adds a host function of an embedder's.
pub(super) fn link(linker: &mut Linker<GuestState>, function: &HostFunction) -> Result<(), Error> {
    match &function.kind {
        Kind::Portable(portable) => {
            let error = |error: wasmtime::Error| Error::internal("a host function cannot be linked", error.to_string());
            define(linker, portable.clone()).map_err(error)
        }
        Kind::Native { .. } => {
            Err(Error::invalid_request("a host function of the extism crate cannot run on the direct engine"))
        }
    }
}

fn define(linker: &mut Linker<GuestState>, function: Portable) -> wasmtime::Result<()> {
    let Portable { module, name, params, results, call } = function;
    let ty = func_type(linker.engine(), &params, &results);
    let declared: Arc<[ValType]> = results.into();
    let shown: Arc<str> = name.as_str().into();
    match call {
        Closure::Blocking(call) => {
            linker.func_new(&module, &name, ty, move |mut caller, args, slots| {
                let args = from_wasmtime(args)?;
                let returned = call(&mut Memory(&mut caller), &args).map_err(|error| failed(&error))?;
                give_back(&shown, &declared, &returned, slots)
            })?;
        }
        Closure::Async(call) => {
            linker.func_new_async(&module, &name, ty, move |mut caller, args, slots| {
                let (call, shown, declared) = (call.clone(), shown.clone(), declared.clone());
                Box::new(async move {
                    let args = from_wasmtime(args)?;
                    let returned = call(&mut Memory(&mut caller), &args).await.map_err(|error| failed(&error))?;
                    give_back(&shown, &declared, &returned, slots)
                })
            })?;
        }
    }
    Ok(())
}

fn give_back(name: &str, declared: &[ValType], returned: &[Val], slots: &mut [wasmtime::Val]) -> wasmtime::Result<()> {
    if returned.iter().map(|value| value.ty()).ne(declared.iter().copied()) {
        let text = format!("the host function {name} gave results of other types than declared");
        return Err(HostTrap::Broken(text).into());
    }
    for (slot, value) in slots.iter_mut().zip(returned) {
        *slot = to_wasmtime(*value);
    }
    Ok(())
}

fn failed(error: &HostFunctionError) -> HostTrap {
    // What the guest's memory has no room for is its memory's fault, by whichever way the function hands it on.
    if error.is_out_of_memory() { HostTrap::OutOfMemory } else { HostTrap::Failed(error.to_string()) }
}

struct Memory<'a, 'b>(&'a mut Caller<'b, GuestState>);

impl GuestMemory for Memory<'_, '_> {
    fn read(&mut self, offset: u64) -> Result<Vec<u8>, HostFunctionError> {
        let kernel = kernel(self.0).map_err(|error| HostFunctionError::new(error.to_string()))?;
        let bytes = kernel.read(&*self.0, offset).map(<[u8]>::to_vec);
        bytes.ok_or_else(|| HostFunctionError::new(format!("no block of guest memory begins at {offset}")))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<u64, HostFunctionError> {
        abi::give(self.0, bytes).map_err(|error| match error.downcast_ref() {
            Some(HostTrap::OutOfMemory) => HostFunctionError::out_of_memory(),
            _ => HostFunctionError::new(error.root_cause().to_string()),
        })
    }
}

fn func_type(engine: &Engine, params: &[ValType], results: &[ValType]) -> FuncType {
    let types = |types: &[ValType]| types.iter().map(|ty| to_wasmtime_type(*ty)).collect::<Vec<_>>();
    FuncType::new(engine, types(params), types(results))
}

fn to_wasmtime_type(ty: ValType) -> wasmtime::ValType {
    match ty {
        ValType::I32 => wasmtime::ValType::I32,
        ValType::I64 => wasmtime::ValType::I64,
        ValType::F32 => wasmtime::ValType::F32,
        ValType::F64 => wasmtime::ValType::F64,
    }
}

fn from_wasmtime(values: &[wasmtime::Val]) -> Result<Vec<Val>, HostTrap> {
    let value = |value: &wasmtime::Val| match value {
        wasmtime::Val::I32(value) => Ok(Val::I32(*value)),
        wasmtime::Val::I64(value) => Ok(Val::I64(*value)),
        wasmtime::Val::F32(bits) => Ok(Val::F32(f32::from_bits(*bits))),
        wasmtime::Val::F64(bits) => Ok(Val::F64(f64::from_bits(*bits))),
        _ => Err(HostTrap::Broken("a host function was passed a value that it does not take".into())),
    };
    values.iter().map(value).collect()
}

fn to_wasmtime(value: Val) -> wasmtime::Val {
    match value {
        Val::I32(value) => wasmtime::Val::I32(value),
        Val::I64(value) => wasmtime::Val::I64(value),
        Val::F32(value) => wasmtime::Val::F32(value.to_bits()),
        Val::F64(value) => wasmtime::Val::F64(value.to_bits()),
    }
}
