//! The embedder's host functions, in wasmtime's terms.

use std::sync::Arc;

use wasmtime::{Engine, FuncType, Linker};

use super::{
    classify::HostTrap,
    kernel::Kernel,
    state::{Caller, GuestState},
};
use crate::{
    engine::{
        GuestMemory, HostFunction, HostFunctionError, Val, ValType,
        host::{Closure, Kind, Portable},
    },
    error::Error,
};

/// Adds one to a linker.
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
    let function = Arc::new(function);
    let (module, name, ty) = (&*function.module, &*function.name, func_type(linker.engine(), &function));
    match &function.call {
        Closure::Blocking(call) => {
            let (call, function) = (call.clone(), function.clone());
            linker.func_new(module, name, ty, move |mut caller, args, slots| {
                let args = from_wasmtime(args)?;
                let returned = call(&mut Memory(&mut caller), &args).map_err(|error| failed(&error))?;
                give_back(&function, &returned, slots)
            })?;
        }
        Closure::Async(call) => {
            let (call, function) = (call.clone(), function.clone());
            linker.func_new_async(module, name, ty, move |mut caller, args, slots| {
                let (call, function) = (call.clone(), function.clone());
                Box::new(async move {
                    let args = from_wasmtime(args)?;
                    let returned = call(&mut Memory(&mut caller), &args).await.map_err(|error| failed(&error))?;
                    give_back(&function, &returned, slots)
                })
            })?;
        }
    }
    Ok(())
}

fn give_back(function: &Portable, returned: &[Val], slots: &mut [wasmtime::Val]) -> wasmtime::Result<()> {
    if !returned.iter().map(|value| value.ty()).eq(function.results.iter().copied()) {
        let text = format!("the host function {} gave results of other types than declared", function.name);
        return Err(HostTrap::Broken(text).into());
    }
    for (slot, value) in slots.iter_mut().zip(returned) {
        *slot = to_wasmtime(*value);
    }
    Ok(())
}

fn failed(error: &HostFunctionError) -> HostTrap {
    // The function hands on that the guest's memory is full: the guest's call ends as out of memory.
    if error.is_out_of_memory() { HostTrap::OutOfMemory } else { HostTrap::Failed(error.to_string()) }
}

struct Memory<'a, 'b>(&'a mut Caller<'b>);

impl GuestMemory for Memory<'_, '_> {
    fn read(&mut self, offset: u64) -> Result<Vec<u8>, HostFunctionError> {
        let kernel = Kernel::of(&*self.0).map_err(|error| HostFunctionError::new(error.to_string()))?;
        let bytes = kernel.read(&*self.0, offset).map(<[u8]>::to_vec);
        bytes.ok_or_else(|| HostFunctionError::new(format!("no block of guest memory begins at {offset}")))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<u64, HostFunctionError> {
        let kernel = Kernel::of(&*self.0);
        kernel.and_then(|kernel| kernel.write(self.0, bytes)).map_err(|error| match error.downcast_ref() {
            Some(HostTrap::OutOfMemory) => HostFunctionError::out_of_memory(),
            _ => HostFunctionError::new(error.root_cause().to_string()),
        })
    }
}

fn func_type(engine: &Engine, function: &Portable) -> FuncType {
    let types = |types: &[ValType]| types.iter().map(|ty| to_wasmtime_type(*ty)).collect::<Vec<_>>();
    FuncType::new(engine, types(&function.params), types(&function.results))
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
