//! For plugins that are initialised once: a module whose state can be read, and the module that begins with such a state.
//!
//! - [`record`] exports the module's memories and its mutable globals, so that the owner can read them when the
//!   initialisers have run. Where the state is more than those, it says so instead, also by an export's name: it stays
//!   with the code, wherever that is kept. No code changes, so the same module serves evaluations too.
//! - [`restore`] makes memories begin as large as they were and with the same bytes, and globals with their values. What data
//!   segments do at the start is done, so those that instructions name are left, the active ones empty.
//!
//! The state travels as one piece of bytes: the globals, 16 bytes each, then each memory with its size and what of it is
//! not zero, in whole pages of the system's but for zeros at both ends.
//!
//! What both begin with is [prepared](super) already: they know the kernel's memory, which is one like another, and tables'
//! instructions that were cut.
//!
//! Considered and not taken: the crate `wasmtime-wizer`. Its two halves do the same and refuse the same. But it takes
//! features of `wasm-encoder` with which all of wasmtime is built anew, wants each memory in one piece, panics on what it did
//! not expect, removes `_initialize`, which may be an entry point, and leaves ten thousand segments to be joined again; what
//! has to be done to its module afterwards is as long as this file.

use std::ops::Range;

use wasmparser::{BinaryReader, MemoryType, Operator, Parser, Payload, ValType};

use super::{
    binary::{self, New, Section, Written, id},
    leb,
    map::{self, Map},
    rewrite::{MEMORY, export},
    segments::{self, Memory},
};
use crate::{source::Digest, units::Size};

/// The kind of an export that is a global.
const GLOBAL: u8 = 3;

/// More mutable globals than this are not read: each needs an export with a name.
const MOST_GLOBALS: usize = 1_000;

/// What the names of the exports begin with, after the digest.
pub(super) const OF_GLOBAL: &str = "global:";
pub(super) const OF_MEMORY: &str = "memory:";
pub(super) const REFUSED: &str = "each:";

/// A page of the system's: zeros between two others stay out only if they fill one.
const PAGE: usize = 4096;

/// More than this in memories is not made a part of a module. In bytes, of whole pages.
const MOST_IMAGE: u64 = 32 << 20;

static ZEROS: [u8; PAGE] = [0; PAGE];

/// A state on its way to the module that begins with it.
pub(in super::super) struct State {
    bytes: Vec<u8>,
    /// Bytes of memories that are not zero, in whole pages.
    image: u64,
}

impl State {
    /// The bits of these mutable globals, in the order of the module. The memories follow, in the same order.
    pub(in super::super) fn new(globals: &[u128]) -> Self {
        let mut bytes = Vec::new();
        leb::unsigned(&mut bytes, globals.len() as u64);
        bytes.extend(globals.iter().flat_map(|bits| bits.to_le_bytes()));
        Self { bytes, image: 0 }
    }

    /// One more memory. Takes some milliseconds for tens of megabytes.
    ///
    /// # Errors
    ///
    /// They hold too much. Nothing is copied before that is known.
    pub(in super::super) fn add_memory(&mut self, data: &[u8]) -> Result<(), String> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (at, page) in (0..).step_by(PAGE).zip(data.chunks(PAGE)) {
            if ZEROS.get(..page.len()) == Some(page) {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == at => run.end += page.len(),
                _ => runs.push(at..at + page.len()),
            }
        }
        let holds: usize = runs.iter().map(ExactSizeIterator::len).sum();
        self.image = self.image.saturating_add(holds as u64);
        if self.image > MOST_IMAGE {
            let (holds, most) = (self.image, Size(MOST_IMAGE));
            return Err(format!("after its initialisers its memory holds {holds} bytes, and {most} is the most"));
        }
        // With their places, of which each takes ten bytes at most.
        self.bytes.reserve_exact(holds.saturating_add(runs.len().saturating_add(1).saturating_mul(20)));
        leb::unsigned(&mut self.bytes, data.len() as u64);
        leb::unsigned(&mut self.bytes, runs.len() as u64);
        for run in runs {
            let all = data.get(run.clone()).unwrap_or_default();
            let zeros = all.iter().take_while(|byte| **byte == 0).count();
            let len = all.len() - all.iter().rev().take_while(|byte| **byte == 0).count() - zeros;
            leb::unsigned(&mut self.bytes, (run.start + zeros) as u64);
            leb::unsigned(&mut self.bytes, len as u64);
            self.bytes.extend(all.get(zeros..zeros + len).unwrap_or_default());
        }
        Ok(())
    }

    pub(in super::super) fn image(&self) -> u64 {
        self.image
    }

    pub(in super::super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A state, as it was written.
struct Read<'a> {
    globals: Vec<u128>,
    memories: Vec<ReadMemory<'a>>,
}

struct ReadMemory<'a> {
    size: u64,
    runs: Vec<(u64, &'a [u8])>,
}

impl<'a> Read<'a> {
    fn new(state: &'a [u8]) -> Option<Self> {
        let mut reader = BinaryReader::new(state, 0);
        let (mut globals, mut memories) = (Vec::new(), Vec::new());
        for _ in 0..reader.read_var_u64().ok()? {
            globals.push(u128::from_le_bytes(reader.read_bytes(16).ok()?.try_into().ok()?));
        }
        while !reader.eof() {
            let mut memory = ReadMemory { size: reader.read_var_u64().ok()?, runs: Vec::new() };
            for _ in 0..reader.read_var_u64().ok()? {
                let at = reader.read_var_u64().ok()?;
                let len = usize::try_from(reader.read_var_u64().ok()?).ok()?;
                memory.runs.push((at, reader.read_bytes(len).ok()?));
            }
            memories.push(memory);
        }
        Some(Self { globals, memories })
    }
}

/// The prepared module whose state can be read, or which says why not. `None` if the kernel is not in it.
pub(super) fn record(wasm: &[u8], digest: Digest) -> Option<Vec<u8>> {
    let module = Module::read(wasm)?;
    let (last, _) = module.exports.last()?;
    let last = str::from_utf8(wasm.get(last.clone())?).ok()?;
    // The name is ours, and not one that the plugin has chosen.
    Map::read(last).filter(|_| last.starts_with(&map::name_of(digest, "")))?;
    let (names, kernel) =
        (|what: &str, index: u32| map::name_of(digest, format!("{what}{index:08x}")), module.memories.len());
    let mut new = Vec::new();
    if let Err(why) = module.check(wasm)? {
        new.push(export(
            &map::name_of(digest, format!("{REFUSED}{why}")),
            MEMORY,
            u32::try_from(kernel.checked_sub(1)?).ok()?,
        )?);
    } else {
        for (index, global) in (0..).zip(&module.globals) {
            if global.is_mutable {
                new.push(export(&names(OF_GLOBAL, index), GLOBAL, index)?);
            }
        }
        for (index, _) in (0..).zip(&module.memories) {
            new.push(export(&names(OF_MEMORY, index), MEMORY, index)?);
        }
    }
    let section = module.sections.iter().find(|section| section.id == id::EXPORT)?.contents.clone();
    let (mut contents, last) = (Vec::new(), module.exports.last()?.1);
    leb::unsigned(&mut contents, (module.exports.len() + new.len()) as u64);
    // The map stays where it is looked for.
    contents.extend(wasm.get(section.start + leb::length(wasm.get(section.clone())?)?..last)?);
    contents.extend(new.concat());
    contents.extend(wasm.get(last..section.end)?);
    let was = Landmarks::of(&module)?;
    settled(&was, digest, binary::write(wasm, &module.sections, &[New { id: id::EXPORT, contents }])?)
}

/// The prepared module that begins with this state; `None` if that is not one of this module's.
pub(super) fn restore(wasm: &[u8], digest: Digest, state: &[u8]) -> Option<Vec<u8>> {
    let (state, module) = (Read::new(state)?, Module::read(wasm)?);
    if state.memories.len() != module.memories.len() {
        return None;
    }
    let (mut data, indices) = segments::remaining(wasm)?;
    let has_image = state.memories.iter().any(|memory| !memory.runs.is_empty());
    for ((index, memory), ty) in (0..).zip(state.memories.iter()).zip(&module.memories) {
        // Where one memory begins with data and another does not, wasmtime runs code for each instance.
        let zero: (u64, &[u8]) = (0, &[0]);
        let zero = (has_image && memory.runs.is_empty() && memory.size > 0).then_some(zero);
        data.add_runs(index, &Memory::new(ty, true), memory.runs.iter().copied().chain(zero))?;
    }
    let mut new = vec![
        New { id: id::MEMORY, contents: module.memories(&state)? },
        New { id: id::GLOBAL, contents: module.globals(wasm, &state.globals)? },
    ];
    let mut count = Vec::new();
    leb::unsigned(&mut count, data.count as u64);
    if module.sections.iter().any(|section| section.id == id::DATA_COUNT) {
        new.push(New { id: id::DATA_COUNT, contents: count.clone() });
    }
    new.push(New { id: id::DATA, contents: [count, data.bytes].concat() });
    // A section of nothing need not be there.
    new.retain(|new| new.contents != [0]);
    let mut named = wasm.to_vec();
    for (at, index) in indices {
        leb::overwrite(named.get_mut(at)?, index);
    }
    let was = Landmarks::of(&module)?;
    let is_old = |section: &Section| [id::DATA_COUNT, id::DATA].contains(&section.id);
    let sections: Vec<_> = module.sections.into_iter().filter(|section| !is_old(section)).collect();
    settled(&was, digest, binary::write(&named, &sections, &new)?)
}

/// Where in a module is what its map speaks of, and its map.
struct Landmarks {
    code: usize,
    /// The name that is the map: the last export's. In bytes before the exports' end.
    name: Range<usize>,
}

impl Landmarks {
    fn of(module: &Module) -> Option<Self> {
        let exports = module.sections.iter().find(|section| section.id == id::EXPORT)?;
        let ((name, _), end) = (module.exports.last()?, exports.contents.end);
        Some(Self { code: module.code?, name: end.checked_sub(name.end)?..end.checked_sub(name.start)? })
    }
}

/// A module that was written anew, with the map of where its code is now.
fn settled(was: &Landmarks, digest: Digest, written: Written) -> Option<Vec<u8>> {
    let (code, end) = (written.begin(id::CODE)?, written.contents(id::EXPORT)?.end);
    let name = end.checked_sub(was.name.end)?..end.checked_sub(was.name.start)?;
    let mut after = written.bytes;
    let mut map = Map::read(str::from_utf8(after.get(name.clone())?).ok()?)?;
    let moved = u32::try_from(code).ok()?.wrapping_sub(u32::try_from(was.code).ok()?);
    map.shift = map.shift.wrapping_add(moved);
    let new = map.name(digest);
    let old = after.get_mut(name)?;
    if old.len() != new.len() {
        return None;
    }
    old.copy_from_slice(new.as_bytes());
    Some(after)
}

/// What is read of a module.
#[derive(Default)]
struct Module {
    sections: Vec<Section>,
    memories: Vec<MemoryType>,
    globals: Vec<Global>,
    /// Where the name of each is, and where it begins.
    exports: Vec<(Range<usize>, usize)>,
    /// Where it begins.
    code: Option<usize>,
    /// Whether memories, tables or globals are another's.
    imports: bool,
}

struct Global {
    at: Range<usize>,
    ty: ValType,
    is_mutable: bool,
}

impl Module {
    fn read(wasm: &[u8]) -> Option<Self> {
        let mut this = Self::default();
        for payload in Parser::new(0).parse_all(wasm) {
            let payload = payload.ok()?;
            this.sections.extend(Section::of(&payload));
            match payload {
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        use wasmparser::TypeRef::{Global, Memory, Table};
                        this.imports |= matches!(import.ok()?.ty, Memory(_) | Table(_) | Global(_));
                    }
                }
                Payload::MemorySection(section) => {
                    for memory in section {
                        this.memories.push(memory.ok()?);
                    }
                }
                Payload::GlobalSection(section) => {
                    let end = section.range().end;
                    for global in section.into_iter_with_offsets() {
                        let (at, global) = global.ok()?;
                        if let Some(last) = this.globals.last_mut() {
                            last.at.end = at;
                        }
                        let (ty, is_mutable) = (global.ty.content_type, global.ty.mutable);
                        this.globals.push(Global { at: at..end, ty, is_mutable });
                    }
                }
                Payload::ExportSection(section) => {
                    for export in section.into_iter_with_offsets() {
                        let (at, export) = export.ok()?;
                        let name = at + leb::length(wasm.get(at..)?)?;
                        this.exports.push((name..name + export.name.len(), at));
                    }
                }
                Payload::CodeSectionStart { range, .. } => this.code = Some(range.start),
                _ => {}
            }
        }
        Some(this)
    }

    /// Whether the state is memories and globals alone; or why not. `None` if the code cannot be read.
    fn check(&self, wasm: &[u8]) -> Option<Result<(), String>> {
        if self.imports {
            return Some(Err("it imports a memory, a table or a global".into()));
        }
        let mutable = || self.globals.iter().filter(|global| global.is_mutable);
        if mutable().any(|global| matches!(global.ty, ValType::Ref(_))) {
            return Some(Err("it has a mutable global that is a reference".into()));
        }
        if mutable().count() > MOST_GLOBALS {
            return Some(Err(format!("it has more than {MOST_GLOBALS} mutable globals")));
        }
        for payload in Parser::new(0).parse_all(wasm) {
            let Payload::CodeSectionEntry(body) = payload.ok()? else { continue };
            let mut operators = body.get_operators_reader().ok()?;
            while !operators.eof() {
                let name = match operators.read().ok()? {
                    Operator::TableSet { .. } => "table.set",
                    Operator::TableGrow { .. } => "table.grow",
                    Operator::TableFill { .. } => "table.fill",
                    Operator::TableCopy { .. } => "table.copy",
                    Operator::TableInit { .. } => "table.init",
                    Operator::ElemDrop { .. } => "elem.drop",
                    Operator::DataDrop { .. } => "data.drop",
                    _ => continue,
                };
                return Some(Err(format!("it has the instruction {name}, and what that does is not in its memory")));
            }
        }
        Some(Ok(()))
    }

    /// The memory section, with memories as large as they were.
    fn memories(&self, state: &Read<'_>) -> Option<Vec<u8>> {
        let mut contents = Vec::new();
        leb::unsigned(&mut contents, self.memories.len() as u64);
        for (ty, memory) in self.memories.iter().zip(&state.memories) {
            let MemoryType { memory64, shared, maximum, page_size_log2, .. } = *ty;
            let flags = [maximum.is_some(), shared, memory64, page_size_log2.is_some()];
            contents.push((0..).zip(flags).map(|(bit, is_set)| u8::from(is_set) << bit).sum());
            leb::unsigned(&mut contents, memory.size.checked_shr(page_size_log2.unwrap_or(16))?);
            let more = [maximum, page_size_log2.map(u64::from)];
            more.into_iter().flatten().for_each(|number| leb::unsigned(&mut contents, number));
        }
        Some(contents)
    }

    /// The global section, with what they were.
    fn globals(&self, wasm: &[u8], values: &[u128]) -> Option<Vec<u8>> {
        let (mut contents, mut values) = (Vec::new(), values.iter());
        leb::unsigned(&mut contents, self.globals.len() as u64);
        for Global { at, ty, is_mutable } in &self.globals {
            if !is_mutable {
                contents.extend(wasm.get(at.clone())?);
                continue;
            }
            // The type and that it is mutable take a byte each.
            contents.extend(wasm.get(at.start..at.start + 2)?);
            let bits = values.next()?.to_le_bytes();
            let (four, eight) = (*bits.first_chunk()?, *bits.first_chunk()?);
            match ty {
                ValType::I32 => {
                    contents.push(0x41);
                    leb::signed(&mut contents, i32::from_le_bytes(four).into());
                }
                ValType::I64 => {
                    contents.push(0x42);
                    leb::signed(&mut contents, i64::from_le_bytes(eight));
                }
                ValType::F32 => {
                    contents.push(0x43);
                    contents.extend(four);
                }
                ValType::F64 => {
                    contents.push(0x44);
                    contents.extend(eight);
                }
                ValType::V128 => {
                    contents.extend([0xfd, 0x0c]);
                    contents.extend(bits);
                }
                ValType::Ref(_) => return None,
            }
            contents.push(0x0b);
        }
        values.next().is_none().then_some(contents)
    }
}

#[cfg(test)]
mod tests;
