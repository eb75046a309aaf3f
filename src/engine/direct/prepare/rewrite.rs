//! One pass over a module: the kernel is [linked in](super::accessors), and what does much at once is [cut](super::pieces).
//!
//! All functions keep their indices. The kernel's take the place of the imports that they are, behind the imports that
//! remain; those that cut come last. So the code of a plugin stays byte for byte what it was, but for calls of imported
//! functions and the instructions that are cut, and those are overwritten in place. A module with so many functions that a
//! call takes more bytes than the instruction that it replaces has its code moved by some bytes: see [`Map`].

use std::ops::Range;

use wasmparser::{
    BinaryReader, CodeSectionReader, ConstExpr, ElementItems, FuncType, Operator, Parser, Payload, TableInit, TypeRef,
};

use super::{
    accessors::{self, Accessor},
    binary::{self, New, Section, id},
    leb,
    map::{self, Map},
    pieces::{Bulk, Spaces},
};
use crate::source::Digest;

const CALL: u8 = 0x10;
const NOP: u8 = 0x01;

/// Bytes that a number of 32 bits takes at most.
const MOST_OF_A_NUMBER: usize = 5;

/// The kind of an export.
const FUNCTION: u8 = 0;
pub(super) const MEMORY: u8 = 2;

/// Bytes that take the place of others.
struct Patch {
    at: Range<usize>,
    with: Vec<u8>,
}

/// What is read of a module.
#[derive(Default)]
struct Module {
    sections: Vec<Section>,
    types: Vec<Option<FuncType>>,
    /// Where each import is, and which of the kernel's functions it is if it is one.
    imports: Vec<(Range<usize>, Option<Accessor>)>,
    /// The new index of each imported function.
    indices: Vec<u32>,
    functions: u32,
    start: Option<u32>,
    spaces: Spaces,
    code: Option<Range<usize>>,
    /// Indices of imported functions, outside the code.
    patches: Vec<Patch>,
}

/// The module of the plugin with this digest, with the kernel in it if it `links`; `None` if it stays as it is, or cannot be
/// read.
pub(super) fn rewrite(wasm: &[u8], digest: Digest, links: bool) -> Option<Vec<u8>> {
    let module = Module::read(wasm, links)?;
    let (patches, bulk) = module.code(wasm)?;
    if !links && bulk.is_empty() {
        return None;
    }
    module.write(wasm, digest, links, &patches, &bulk)
}

impl Module {
    fn read(wasm: &[u8], links: bool) -> Option<Self> {
        let mut this = Self::default();
        for payload in Parser::new(0).parse_all(wasm) {
            let payload = payload.ok()?;
            // With the kernel in it, the host calls the start function.
            this.sections.extend(Section::of(&payload).filter(|section| !links || section.id != id::START));
            match payload {
                Payload::TypeSection(section) => {
                    for group in section {
                        for ty in group.ok()?.into_types() {
                            let is_plain = ty.is_final && ty.supertype_idx.is_none();
                            let function = match ty.composite_type.inner {
                                wasmparser::CompositeInnerType::Func(function) if is_plain => Some(function),
                                _ => None,
                            };
                            this.types.push(function);
                        }
                    }
                }
                Payload::ImportSection(section) => this.imports(section, links)?,
                Payload::FunctionSection(section) => this.functions = section.count(),
                Payload::TableSection(section) => {
                    for table in section {
                        let table = table.ok()?;
                        this.spaces.tables.push(table.ty);
                        if let TableInit::Expr(init) = table.init {
                            this.constant(wasm, &init)?;
                        }
                    }
                }
                Payload::MemorySection(section) => {
                    for memory in section {
                        this.spaces.memories.push(memory.ok()?);
                    }
                }
                Payload::GlobalSection(section) => {
                    for global in section {
                        this.constant(wasm, &global.ok()?.init_expr)?;
                    }
                }
                Payload::ExportSection(section) => {
                    for export in section.into_iter_with_offsets() {
                        let (at, export) = export.ok()?;
                        if export.kind == wasmparser::ExternalKind::Func {
                            // Behind its name and its kind.
                            let at = at + leb::length(wasm.get(at..)?)? + export.name.len() + 1;
                            this.index(wasm, at, export.index)?;
                        }
                    }
                }
                Payload::StartSection { func, range } => {
                    this.start = Some(this.new_index(func).unwrap_or(func));
                    this.index(wasm, range.start, func)?;
                }
                Payload::ElementSection(section) => this.elements(wasm, section)?,
                Payload::CodeSectionStart { range, .. } => this.code = Some(range),
                Payload::DataSection(section) => {
                    for data in section {
                        this.spaces.data.push(data.ok()?.data.len() as u64);
                    }
                }
                _ => {}
            }
        }
        Some(this)
    }

    /// `None` if it imports one of the kernel's functions by another type: the linker says so in its own words.
    fn imports(&mut self, section: wasmparser::ImportSectionReader<'_>, links: bool) -> Option<()> {
        let end = section.range().end;
        let mut begins: Vec<usize> = Vec::new();
        let mut functions: Vec<bool> = Vec::new();
        for import in section.into_iter_with_offsets() {
            let (at, wasmparser::Imports::Single(_, import)) = import.ok()? else { return None };
            begins.push(at);
            let accessor = accessors::accessor(import.module, import.name).filter(|_| links);
            let accessor = match (accessor, import.ty) {
                (Some((name, ty)), TypeRef::Func(own)) => {
                    let is_same = self.types.get(own as usize)?.as_ref()? == ty;
                    Some(is_same.then_some(Accessor { name, ty: own })?)
                }
                (Some(_), _) => return None,
                (None, _) => None,
            };
            match import.ty {
                TypeRef::Func(_) | TypeRef::FuncExact(_) => functions.push(accessor.is_some()),
                TypeRef::Memory(ty) => self.spaces.memories.push(ty),
                TypeRef::Table(ty) => self.spaces.tables.push(ty),
                TypeRef::Global(_) | TypeRef::Tag(_) => {}
            }
            self.imports.push((at..end, accessor));
        }
        for (import, next) in self.imports.iter_mut().zip(begins.into_iter().skip(1)) {
            import.0.end = next;
        }
        let remaining = functions.iter().filter(|is_kernels| !**is_kernels).count();
        let (mut host, mut kernels) = (0.., u32::try_from(remaining).ok()?..);
        self.indices =
            functions.iter().filter_map(|is_kernels| if *is_kernels { kernels.next() } else { host.next() }).collect();
        Some(())
    }

    fn elements(&mut self, wasm: &[u8], section: wasmparser::ElementSectionReader<'_>) -> Option<()> {
        for element in section {
            match element.ok()?.items {
                ElementItems::Functions(functions) => {
                    self.spaces.elements.push(functions.count().into());
                    for function in functions.into_iter_with_offsets() {
                        let (at, function) = function.ok()?;
                        self.index(wasm, at, function)?;
                    }
                }
                ElementItems::Expressions(_, expressions) => {
                    self.spaces.elements.push(expressions.count().into());
                    for expression in expressions {
                        self.constant(wasm, &expression.ok()?)?;
                    }
                }
            }
        }
        Some(())
    }

    fn constant(&mut self, wasm: &[u8], expression: &ConstExpr<'_>) -> Option<()> {
        let mut operators = expression.get_operators_reader();
        while !operators.eof() {
            if let (Operator::RefFunc { function_index }, at) = operators.read_with_offset().ok()? {
                self.index(wasm, at + 1, function_index)?;
            }
        }
        Some(())
    }

    /// A function's index is there, which may be another now.
    fn index(&mut self, wasm: &[u8], at: usize, index: u32) -> Option<()> {
        if let Some(new) = self.new_index(index) {
            self.patches.push(number(wasm, at, new)?);
        }
        Some(())
    }

    /// `None` if it stays what it was.
    fn new_index(&self, index: u32) -> Option<u32> {
        self.indices.get(index as usize).copied().filter(|new| *new != index)
    }

    /// How many functions there are, imported ones included.
    fn all_functions(&self) -> Option<u32> {
        u32::try_from(self.indices.len()).ok()?.checked_add(self.functions)
    }

    /// What changes in the code, and the functions that are needed for it.
    fn code(&self, wasm: &[u8]) -> Option<(Vec<Patch>, Vec<Bulk>)> {
        let (mut patches, mut all) = (Vec::new(), Vec::new());
        let Some(code) = &self.code else { return Some((patches, all)) };
        let first = self.all_functions()?;
        for body in CodeSectionReader::new(BinaryReader::new(wasm.get(code.clone())?, code.start)).ok()? {
            let mut operators = body.ok()?.get_operators_reader().ok()?;
            let mut before = None;
            while !operators.eof() {
                let (operator, at) = operators.read_with_offset().ok()?;
                match operator {
                    Operator::Call { function_index: index }
                    | Operator::ReturnCall { function_index: index }
                    | Operator::RefFunc { function_index: index } => {
                        if let Some(new) = self.new_index(index) {
                            patches.push(number(wasm, at + 1, new)?);
                        }
                    }
                    _ => {
                        if let Some(bulk) = Bulk::of(&operator, before, &self.spaces) {
                            let known = all.iter().position(|known| *known == bulk);
                            let index = known.unwrap_or_else(|| {
                                all.push(bulk);
                                all.len() - 1
                            });
                            let index = first.checked_add(u32::try_from(index).ok()?)?;
                            patches.push(call(at..operators.original_position(), index));
                        }
                    }
                }
                before = match operator {
                    Operator::I32Const { value } => Some(value.cast_unsigned().into()),
                    Operator::I64Const { value } => Some(value.cast_unsigned()),
                    _ => None,
                };
            }
        }
        Some((patches, all))
    }

    /// The module with other sections: those that change, and those that say where everything was.
    fn write(&self, wasm: &[u8], digest: Digest, links: bool, code: &[Patch], bulk: &[Bulk]) -> Option<Vec<u8>> {
        let accessors: Vec<_> = self.imports.iter().filter_map(|(_, accessor)| *accessor).collect();
        let all_imports = u32::try_from(self.indices.len()).ok()?;
        let memory = u32::try_from(self.spaces.memories.len()).ok()?;
        let mut map = Map {
            shift: 0,
            moved: code.iter().any(|patch| patch.at.len() != patch.with.len()),
            kernel: all_imports.checked_sub(u32::try_from(accessors.len()).ok()?)?..all_imports,
            end: self.all_functions()?,
        };
        let of_kernel: Vec<_> =
            accessors.iter().map(|accessor| accessors::function(accessor.name, memory)).collect::<Option<_>>()?;
        let of_bulk: Vec<_> = bulk.iter().map(|bulk| bulk.function(&self.spaces)).collect::<Option<_>>()?;
        let [of_kernel, of_bulk] = [of_kernel.concat(), of_bulk.concat()];
        let own = self.code.as_ref().map_or(Some(Vec::new()), |range| bodies(wasm, range, code, map.moved))?;
        let mut new = Vec::new();
        for id in id::ORDER {
            let (front, back): (&[Vec<u8>], Vec<_>) = match id {
                id::TYPE => (&[], bulk.iter().map(|bulk| bulk.ty(&self.spaces)).collect::<Option<_>>()?),
                id::IMPORT if !accessors.is_empty() => {
                    new.push(self.remaining_imports(wasm)?);
                    continue;
                }
                id::FUNCTION => {
                    let types = (u32::try_from(self.types.len()).ok()?..).take(bulk.len());
                    let kernels: Vec<_> = accessors.iter().map(|accessor| encoded(accessor.ty)).collect();
                    new.extend(self.longer(wasm, id, &kernels, &types.map(encoded).collect::<Vec<_>>())?);
                    continue;
                }
                // Where one memory begins with data and another does not, wasmtime runs code for each instance.
                id::DATA_COUNT | id::DATA if links && !self.spaces.data.is_empty() => {
                    let count = self.spaces.data.len() + 1;
                    if id == id::DATA {
                        let segment = accessors::segment(memory);
                        new.extend(self.longer(wasm, id, &[], &[segment])?);
                    } else if self.sections.iter().any(|section| section.id == id) {
                        new.push(New { id, contents: encoded(u32::try_from(count).ok()?) });
                    }
                    continue;
                }
                id::MEMORY if links => (&[], vec![accessors::MEMORY.to_vec()]),
                id::EXPORT => (&[], self.exports(&map, digest, links.then_some(memory))?),
                id::CODE => {
                    let added = u32::try_from(accessors.len() + bulk.len()).ok()?;
                    let count = encoded(self.functions.checked_add(added)?);
                    new.push(New { id, contents: [&count[..], &of_kernel, &own, &of_bulk].concat() });
                    continue;
                }
                _ => (&[], Vec::new()),
            };
            new.extend(self.longer(wasm, id, front, &back)?);
        }
        let Some(old) = &self.code else { return Some(binary::write(wasm, &self.sections, &new)?.bytes) };
        // Where the code begins does not depend on the number that says so.
        let old = old.start + leb::length(wasm.get(old.clone())?)?;
        let begin = binary::write(wasm, &self.sections, &new)?.begin(id::CODE)?;
        let in_front = new.iter().find(|new| new.id == id::CODE)?.contents.len() - own.len() - of_bulk.len();
        map.shift = u32::try_from(begin + in_front).ok()?.wrapping_sub(u32::try_from(old).ok()?);
        let exports =
            self.longer(wasm, id::EXPORT, &[], &self.exports(&map, digest, links.then_some(memory))?)?.pop()?;
        *new.iter_mut().find(|new| new.id == id::EXPORT)? = exports;
        Some(binary::write(wasm, &self.sections, &new)?.bytes)
    }

    /// A section with more items in front of its own and behind them: none, if that is what it was.
    fn longer(&self, wasm: &[u8], id: u8, front: &[Vec<u8>], back: &[Vec<u8>]) -> Option<Vec<New>> {
        let section = self.sections.iter().find(|section| section.id == id);
        let is_patched = section.is_some_and(|section| !within(&self.patches, &section.contents).is_empty());
        if front.is_empty() && back.is_empty() && !is_patched {
            return Some(Vec::new());
        }
        let (count, own) = match section {
            // It has no count.
            Some(section) if id == id::START => (None, patched(wasm, &section.contents, &self.patches)?),
            Some(section) => {
                let mut contents = BinaryReader::new(wasm.get(section.contents.clone())?, 0);
                let count = contents.read_var_u32().ok()?;
                let behind = section.contents.start + contents.current_position()..section.contents.end;
                (Some(count), patched(wasm, &behind, &self.patches)?)
            }
            None => (Some(0), Vec::new()),
        };
        let more = u32::try_from(front.len() + back.len()).ok()?;
        let count = count.map_or(Some(Vec::new()), |count| Some(encoded(count.checked_add(more)?)))?;
        Some(vec![New { id, contents: [count, front.concat(), own, back.concat()].concat() }])
    }

    /// The exports that are added. The last says where everything was: the kernel's memory, or the first of the functions that
    /// cut.
    fn exports(&self, map: &Map, digest: Digest, memory: Option<u32>) -> Option<Vec<Vec<u8>>> {
        let mut exports = Vec::new();
        if let (Some(start), Some(_)) = (self.start, memory) {
            exports.push(export(&map::name_of_start(digest), FUNCTION, start)?);
        }
        let (kind, index) = memory.map_or((FUNCTION, map.end), |memory| (MEMORY, memory));
        exports.push(export(&map.name(digest), kind, index)?);
        Some(exports)
    }

    fn remaining_imports(&self, wasm: &[u8]) -> Option<New> {
        let remaining: Vec<_> = self.imports.iter().filter(|(_, accessor)| accessor.is_none()).collect();
        let mut contents = encoded(u32::try_from(remaining.len()).ok()?);
        for (at, _) in remaining {
            contents.extend(wasm.get(at.clone())?);
        }
        Some(New { id: id::IMPORT, contents })
    }
}

pub(super) fn export(name: &str, kind: u8, index: u32) -> Option<Vec<u8>> {
    let mut export = encoded(u32::try_from(name.len()).ok()?);
    export.extend(name.as_bytes());
    export.push(kind);
    leb::unsigned(&mut export, index.into());
    Some(export)
}

/// The function bodies of the code section, patched.
fn bodies(wasm: &[u8], section: &Range<usize>, patches: &[Patch], moved: bool) -> Option<Vec<u8>> {
    let first = section.start + leb::length(wasm.get(section.clone())?)?;
    if !moved {
        return patched(wasm, &(first..section.end), patches);
    }
    let mut all = Vec::with_capacity(section.len());
    for body in CodeSectionReader::new(BinaryReader::new(wasm.get(section.clone())?, section.start)).ok()? {
        let body = patched(wasm, &body.ok()?.range(), patches)?;
        leb::unsigned(&mut all, u32::try_from(body.len()).ok()?.into());
        all.extend(body);
    }
    Some(all)
}

/// The patches within a range. They are in order.
fn within<'a>(patches: &'a [Patch], range: &Range<usize>) -> &'a [Patch] {
    let begin = patches.partition_point(|patch| patch.at.end <= range.start);
    let end = patches.partition_point(|patch| patch.at.end <= range.end);
    patches.get(begin..end).unwrap_or_default()
}

/// A part of the binary, patched.
fn patched(wasm: &[u8], range: &Range<usize>, patches: &[Patch]) -> Option<Vec<u8>> {
    let (mut bytes, mut at) = (Vec::with_capacity(range.len()), range.start);
    for patch in within(patches, range) {
        bytes.extend(wasm.get(at..patch.at.start)?);
        bytes.extend(&patch.with);
        at = patch.at.end;
    }
    bytes.extend(wasm.get(at..range.end)?);
    Some(bytes)
}

fn encoded(number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    leb::unsigned(&mut bytes, number.into());
    bytes
}

/// Another number in place of the one that is there, in as many bytes if they suffice.
fn number(wasm: &[u8], at: usize, new: u32) -> Option<Patch> {
    let length = leb::length(wasm.get(at..)?)?;
    Some(Patch { at: at..at + length, with: padded(new, length) })
}

/// A call in place of an instruction, in as many bytes if they suffice.
fn call(at: Range<usize>, function: u32) -> Patch {
    let mut with = vec![CALL];
    with.extend(padded(function, at.len().saturating_sub(1).min(MOST_OF_A_NUMBER)));
    // Instructions that do nothing, if it was written in more bytes than it needs.
    with.resize(with.len().max(at.len()), NOP);
    Patch { at, with }
}

fn padded(number: u32, length: usize) -> Vec<u8> {
    let mut bytes = encoded(number);
    bytes.resize(bytes.len().max(length), 0);
    leb::overwrite(&mut bytes, number);
    bytes
}

#[cfg(test)]
mod tests;
