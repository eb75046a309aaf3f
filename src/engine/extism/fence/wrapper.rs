//! Functions that are put around a plugin's and the host's.

use wasm_encoder::{BlockType, Function, Instruction, ValType};

use super::{FENCE, HOST, plan::len};

/// As many buffers as one call of WASI handles.
const MOST_BUFFERS: i32 = 16;

/// Functions that each module imports beside its own, after those.
#[derive(Debug, Clone, Copy)]
pub(super) enum Added {
    Returned,
    ReturnedValue,
    ReturnedNative,
    ReachesMemory,
    Begin,
    Begun,
    InTime,
    Interrupt,
}

/// Parameters and results.
pub(super) type Signature = (&'static [ValType], &'static [ValType]);

impl Added {
    pub(super) const ALL: [(Added, &'static str, &'static str, Signature); 8] = [
        (Added::Returned, FENCE, "returned", (&[], &[])),
        (Added::ReturnedValue, FENCE, "returned_value", (&[ValType::I64], &[])),
        (Added::ReturnedNative, FENCE, "returned_native", (&[], &[])),
        (Added::ReachesMemory, HOST, "reaches_memory", (&[], &[])),
        (Added::Begin, FENCE, "begin", (&[], &[])),
        (Added::Begun, HOST, "begun", (&[], &[])),
        (Added::InTime, HOST, "in_time", (&[], &[ValType::I32])),
        (Added::Interrupt, HOST, "interrupt", (&[], &[])),
    ];
}

/// A function that calls another, with something before or after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrapper {
    /// One of the host's functions, which tells of the blocks that it has made.
    Host,
    /// One that reaches into a guest's memory without asking whether there is one yet, and tells nothing.
    Native,
    /// One of WASI's. The third parameter of some is a number of buffers.
    Wasi {
        takes_buffers: bool,
    },
    EntryPoint,
    Initialiser,
}

impl Wrapper {
    /// Its body in a module of so many imported functions. `target` is what it calls, which has its type.
    pub(super) fn body(self, imported: u32, target: u32, params: u32, results: &[ValType]) -> Function {
        let makes_blocks = matches!(self, Wrapper::Host | Wrapper::Native);
        let mut body = Function::new_with_locals_types(results.iter().copied().filter(|_| makes_blocks));
        let ours = |added: Added| Instruction::Call(imported + added as u32);
        match self {
            Wrapper::EntryPoint => {
                body.instruction(&ours(Added::Begun)).instruction(&ours(Added::Begin));
            }
            Wrapper::Initialiser => {
                body.instruction(&ours(Added::InTime)).instruction(&Instruction::I32Eqz);
                body.instruction(&Instruction::If(BlockType::Empty));
                for ty in results {
                    body.instruction(&zero(*ty));
                }
                body.instruction(&Instruction::Return).instruction(&Instruction::End);
            }
            Wrapper::Native => {
                body.instruction(&ours(Added::ReachesMemory));
            }
            Wrapper::Host | Wrapper::Wasi { .. } => {}
        }
        for param in 0..params {
            body.instruction(&Instruction::LocalGet(param));
            if param == 2 && self == (Wrapper::Wasi { takes_buffers: true }) {
                body.instruction(&Instruction::I32Const(MOST_BUFFERS));
                body.instruction(&Instruction::LocalGet(param));
                body.instruction(&Instruction::I32Const(MOST_BUFFERS));
                body.instruction(&Instruction::I32LtU).instruction(&Instruction::Select);
            }
        }
        body.instruction(&Instruction::Call(target));
        if makes_blocks {
            let locals = params..params + len(results);
            for local in locals.clone().rev() {
                body.instruction(&Instruction::LocalSet(local));
            }
            if self == Wrapper::Native {
                body.instruction(&ours(Added::ReturnedNative));
            } else {
                body.instruction(&ours(Added::Returned));
                for (local, _) in locals.clone().zip(results).filter(|(_, ty)| **ty == ValType::I64) {
                    body.instruction(&Instruction::LocalGet(local)).instruction(&ours(Added::ReturnedValue));
                }
            }
            for local in locals {
                body.instruction(&Instruction::LocalGet(local));
            }
        }
        body.instruction(&Instruction::End);
        body
    }
}

/// A value of a type that is not used for anything.
fn zero(ty: ValType) -> Instruction<'static> {
    match ty {
        ValType::I32 => Instruction::I32Const(0),
        ValType::I64 => Instruction::I64Const(0),
        ValType::F32 => Instruction::F32Const(0.0.into()),
        ValType::F64 => Instruction::F64Const(0.0.into()),
        ValType::V128 => Instruction::V128Const(0),
        ValType::Ref(ty) => Instruction::RefNull(ty.heap_type),
    }
}
