//! The part of Extism's kernel that is WebAssembly (`kernel.wat`), for other modules to have in them.

use std::sync::LazyLock;

use wasmparser::{ExternalKind, FuncType, FunctionBody, Operator, Parser, Payload};

use super::leb;
use crate::engine::abi_names::MODULE;

/// `kernel.wat`, assembled. A test compares the two.
pub(in super::super) const BYTES: &[u8] = include_bytes!("kernel.wasm");

/// Its memory, as the memory section has it: one page, and no maximum.
pub(super) const MEMORY: &[u8] = &[0, 1];

/// What its memory begins with, as the data section has it: a zero, where a zero is.
pub(super) fn segment(memory: u32) -> Vec<u8> {
    // An active segment of the memory that is named, at `i32.const 0`, of one byte.
    let mut segment = vec![2];
    leb::unsigned(&mut segment, memory.into());
    segment.extend([0x41, 0, 0x0b, 1, 0]);
    segment
}

/// One of the kernel's functions, and the index of its type in the module that imports it.
#[derive(Clone, Copy)]
pub(super) struct Accessor {
    pub(super) name: &'static str,
    pub(super) ty: u32,
}

struct Function {
    name: &'static str,
    ty: FuncType,
    body: FunctionBody<'static>,
}

static FUNCTIONS: LazyLock<Vec<Function>> = LazyLock::new(|| read().unwrap_or_default());

fn read() -> Option<Vec<Function>> {
    let (mut types, mut of_functions, mut names, mut bodies) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for payload in Parser::new(0).parse_all(BYTES) {
        match payload.ok()? {
            Payload::TypeSection(section) => {
                types = section.into_iter_err_on_gc_types().collect::<Result<Vec<_>, _>>().ok()?;
            }
            Payload::FunctionSection(section) => of_functions = section.into_iter().collect::<Result<_, _>>().ok()?,
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export.ok()?;
                    if export.kind == ExternalKind::Func {
                        names.push((export.name, export.index as usize));
                    }
                }
            }
            Payload::CodeSectionEntry(body) => bodies.push(body),
            _ => {}
        }
    }
    let function = |(name, index): (&'static str, usize)| {
        let ty: &u32 = of_functions.get(index)?;
        Some(Function { name, ty: types.get(*ty as usize)?.clone(), body: bodies.get(index)?.clone() })
    };
    names.into_iter().map(function).collect()
}

fn find(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

/// The kernel's function that is imported by this name, and its type.
pub(super) fn accessor(module: &str, name: &str) -> Option<(&'static str, &'static FuncType)> {
    let function = find(name).filter(|_| module == MODULE)?;
    Some((function.name, &function.ty))
}

/// The function, as the code section has it, on the memory of this index.
pub(super) fn function(name: &str, memory: u32) -> Option<Vec<u8>> {
    let body = &find(name)?.body;
    let (bytes, start) = (body.as_bytes(), body.range().start);
    let mut operators = body.get_operators_reader().ok()?;
    let (mut new, mut copied) = (Vec::new(), 0);
    while !operators.eof() {
        let (operator, at) = operators.read_with_offset().ok()?;
        let at = at - start;
        // All numbers in it take one byte.
        match operator {
            Operator::I32Load8U { .. }
            | Operator::I64Load { .. }
            | Operator::I32Store8 { .. }
            | Operator::I64Store { .. } => {
                let [code, align] = *bytes.get(at..)?.first_chunk()?;
                new.extend(bytes.get(copied..at)?);
                new.extend([code, align | NAMES_MEMORY]);
                copied = at + 2;
            }
            Operator::MemorySize { .. } => {
                new.extend(bytes.get(copied..=at)?);
                copied = at + 2;
            }
            _ => continue,
        }
        leb::unsigned(&mut new, memory.into());
    }
    new.extend(bytes.get(copied..)?);
    let mut function = Vec::new();
    leb::unsigned(&mut function, u32::try_from(new.len()).ok()?.into());
    function.extend(new);
    Some(function)
}

/// The bit of an access's alignment that says that the memory's index follows.
const NAMES_MEMORY: u8 = 0x40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_text() {
        let assembled = wat::parse_str(include_str!("kernel.wat")).unwrap();
        if std::env::var_os("WRITE_KERNEL").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/engine/direct/prepare/kernel.wasm");
            return std::fs::write(path, assembled).unwrap();
        }
        let anew = "WRITE_KERNEL=1 cargo test --release --lib the_bytes_are_those_of_the_text";
        assert!(assembled == super::BYTES, "kernel.wasm is not what kernel.wat says; write it anew: {anew}");
        assert_eq!(FUNCTIONS.len(), 15);
    }
}
