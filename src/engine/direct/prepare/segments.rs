//! The data segments of a module, joined.
//!
//! - **Active segments** of the module's own memories that are known to fit are [joined](runs::join), and what they write
//!   is the same byte for byte. One of which that is not known (its offset is a global's value, its memory is imported, or
//!   it reaches beyond the memory's end, so that it traps) stays as it is, and nothing moves across it. After one of
//!   those, zeros are no longer put between two segments: it may have written there.
//! - **Passive segments** that no instruction names go.
//!
//! Instructions name segments by index (`memory.init`, `data.drop`). Their indices are overwritten in place, and so is
//! the count in front of the code, in as many bytes as they had. An active segment is dropped before any code runs, so to
//! an instruction one is like another.
//!
//! Zeros that a segment has stay in it. To cut them out would make an image sparse, which is what wasmtime copies instead
//! of mapping it.

use std::ops::Range;

use wasmparser::{
    BinaryReader, CodeSectionReader, ConstExpr, Data, DataKind, DataSectionReader, MemoryType, Operator, Parser,
    Payload, TypeRef,
};

use super::{
    leb,
    runs::{self, Placed, Run},
};

/// How many bytes a module may grow: by zeros between its segments. wasmtime itself makes images of that extent, however
/// few bytes there are in them.
const MOST_ZEROS: u64 = 16 << 20;

/// The id of the section that holds them.
const DATA_SECTION: u8 = 11;

/// How a passive segment begins.
const PASSIVE: u8 = 1;

/// The module with joined segments; `None` if it does not lose `worthwhile` of them, or cannot be read.
pub(super) fn join(wasm: &[u8], worthwhile: usize) -> Option<Vec<u8>> {
    let sections = Sections::read(wasm)?;
    let count = sections.data.count() as usize;
    // What most modules have: no more is read of them than the headers of their sections.
    if count < worthwhile {
        return None;
    }
    let segments: Vec<Data<'_>> = sections.data.clone().into_iter().collect::<Result<_, _>>().ok()?;
    let active = active(&segments, &sections.memories, wasm)?;
    // If none of the others is read, which takes a look at all code.
    if count < active.count + worthwhile {
        return None;
    }
    let uses = match (&sections.announced, &sections.code) {
        // Without the count, no code may name a segment.
        (Some(_), Some(code)) => uses(wasm, code, &segments)?,
        _ => Vec::new(),
    };
    let (named, indices) = named(&segments, &uses, wasm)?;
    if count < named.count + active.count + worthwhile {
        return None;
    }
    write(wasm, &sections, [named, active], &uses, &indices)
}

/// Where indices of segments are, and what they are now.
type Indices = Vec<(Range<usize>, u32)>;

/// What is left of a module's segments once they were copied to where they go: those that instructions name, of which the
/// active ones are empty, and their indices. `None` if the module cannot be read.
pub(super) fn remaining(wasm: &[u8]) -> Option<(Written, Indices)> {
    let Some(sections) = Sections::read(wasm) else { return Some(Default::default()) };
    let segments: Vec<Data<'_>> = sections.data.into_iter().collect::<Result<_, _>>().ok()?;
    let uses = match (&sections.announced, &sections.code) {
        (Some(_), Some(code)) => uses(wasm, code, &segments)?,
        _ => Vec::new(),
    };
    let (named, indices) = named(&segments, &uses, wasm)?;
    let new = uses.into_iter().map(|named| Some((named.at, *indices.get(named.segment as usize)?)));
    Some((named, new.collect::<Option<_>>()?))
}

/// What is needed of a module's sections.
struct Sections<'a> {
    memories: Vec<Memory>,
    /// The number of data segments, as the section in front of the code has it, and where.
    announced: Option<(u32, Range<usize>)>,
    code: Option<Range<usize>>,
    data: DataSectionReader<'a>,
    /// The data section, with its header.
    whole: Range<usize>,
}

pub(super) struct Memory {
    is_64: bool,
    /// The size that it begins with, in bytes, if the module makes it.
    size: Option<u64>,
}

impl Memory {
    pub(super) fn new(ty: &MemoryType, is_own: bool) -> Self {
        let size = ty.initial.checked_mul(1_u64.checked_shl(ty.page_size_log2.unwrap_or(16)).unwrap_or(u64::MAX));
        Self { is_64: ty.memory64, size: size.filter(|_| is_own) }
    }

    /// Where a segment goes, if it is known to fit.
    fn place<'a>(&self, offset: &ConstExpr<'_>, data: &'a [u8]) -> Option<Placed<'a>> {
        let mut operators = offset.get_operators_reader();
        let at = match operators.read().ok()? {
            Operator::I32Const { value } => value.cast_unsigned().into(),
            Operator::I64Const { value } => value.cast_unsigned(),
            _ => return None,
        };
        let fits = self.size? >= at.checked_add(data.len() as u64)?;
        (fits && operators.is_end_then_eof()).then_some(Placed { at, data })
    }
}

impl<'a> Sections<'a> {
    fn read(wasm: &'a [u8]) -> Option<Self> {
        let (mut memories, mut announced, mut code, mut data) = (Vec::new(), None, None, None);
        // Where the section begins that is read next.
        let mut at = 0;
        for payload in Parser::new(0).parse_all(wasm) {
            let payload = payload.ok()?;
            match &payload {
                Payload::Version { range, .. } => at = range.end,
                Payload::ImportSection(section) => {
                    for import in section.clone().into_imports() {
                        if let TypeRef::Memory(ty) = import.ok()?.ty {
                            memories.push(Memory::new(&ty, false));
                        }
                    }
                }
                Payload::MemorySection(section) => {
                    for ty in section.clone() {
                        memories.push(Memory::new(&ty.ok()?, true));
                    }
                }
                Payload::DataCountSection { count, range } => announced = Some((*count, range.clone())),
                Payload::CodeSectionStart { range, .. } => code = Some(range.clone()),
                Payload::DataSection(section) => data = Some((section.clone(), at..section.range().end)),
                _ => {}
            }
            if let Some((_, range)) = payload.as_section() {
                at = range.end;
            }
        }
        let (data, whole) = data?;
        Some(Self { memories, announced, code, data, whole })
    }
}

/// An instruction that names a segment, and where its index is.
struct Use {
    segment: u32,
    at: Range<usize>,
}

/// `None` if the code cannot be read, or names a segment that does not exist.
fn uses(wasm: &[u8], code: &Range<usize>, segments: &[Data<'_>]) -> Option<Vec<Use>> {
    let mut uses = Vec::new();
    for body in CodeSectionReader::new(BinaryReader::new(wasm.get(code.clone())?, code.start)).ok()? {
        let mut operators = body.ok()?.get_operators_reader().ok()?;
        while !operators.eof() {
            let (operator, mut at) = operators.read_with_offset().ok()?;
            // How many numbers stand before the index. The first byte says that there is more, so that it is one with the
            // number behind it.
            let (segment, numbers) = match operator {
                Operator::MemoryInit { data_index, .. } | Operator::DataDrop { data_index } => (data_index, 1),
                Operator::ArrayNewData { array_data_index, .. } | Operator::ArrayInitData { array_data_index, .. } => {
                    (array_data_index, 2)
                }
                _ => continue,
            };
            for _ in 0..numbers {
                at += leb::length(wasm.get(at..)?)?;
            }
            let length = leb::length(wasm.get(at..)?)?;
            segments.get(segment as usize)?;
            uses.push(Use { segment, at: at..at + length });
        }
    }
    Some(uses)
}

/// Segments of the new module, as its data section has them.
#[derive(Default)]
pub(super) struct Written {
    pub(super) bytes: Vec<u8>,
    pub(super) count: usize,
}

impl Written {
    /// A segment, or how it begins.
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.count += 1;
    }

    /// An active segment of this memory for each run.
    pub(super) fn add_runs(
        &mut self,
        index: u32,
        memory: &Memory,
        runs: impl IntoIterator<Item = (u64, impl AsRef<[u8]>)>,
    ) -> Option<()> {
        for (at, data) in runs {
            let data = data.as_ref();
            // Of memory 0, or of the one that is named.
            let mut segment = vec![if index == 0 { 0 } else { 2 }];
            if index > 0 {
                leb::unsigned(&mut segment, index.into());
            }
            // `i64.const` or `i32.const`, then `end`.
            if memory.is_64 {
                segment.push(0x42);
                leb::signed(&mut segment, at.cast_signed());
            } else {
                segment.push(0x41);
                leb::signed(&mut segment, u32::try_from(at).ok()?.cast_signed().into());
            }
            segment.push(0x0b);
            leb::unsigned(&mut segment, u32::try_from(data.len()).ok()?.into());
            self.add(&segment);
            self.bytes.extend(data);
        }
        Some(())
    }
}

/// The active segments, joined.
fn active(segments: &[Data<'_>], memories: &[Memory], wasm: &[u8]) -> Option<Written> {
    let mut written = Written::default();
    let mut zeros = MOST_ZEROS;
    let mut pending: Vec<Vec<Placed<'_>>> = memories.iter().map(|_| Vec::new()).collect();
    let flush = |written: &mut Written, pending: &mut [Vec<Placed<'_>>], zeros: &mut u64| {
        for ((index, pending), memory) in (0..).zip(pending).zip(memories) {
            let runs = runs::join(pending, zeros)?.into_iter().map(|Run { at, data }| (at, data));
            written.add_runs(index, memory, runs)?;
            pending.clear();
        }
        Some(())
    };
    for segment in segments {
        let DataKind::Active { memory_index, offset_expr } = &segment.kind else { continue };
        let index = *memory_index as usize;
        if let Some(placed) = memories.get(index)?.place(offset_expr, segment.data) {
            pending.get_mut(index)?.push(placed);
        } else {
            flush(&mut written, &mut pending, &mut zeros)?;
            written.add(wasm.get(segment.range.clone())?);
            zeros = 0;
        }
    }
    flush(&mut written, &mut pending, &mut zeros)?;
    Some(written)
}

/// The segments that instructions name, which come first, and their new indices. None is larger than the old one.
fn named(segments: &[Data<'_>], uses: &[Use], wasm: &[u8]) -> Option<(Written, Vec<u32>)> {
    let mut indices = vec![None; segments.len()];
    for named in uses {
        *indices.get_mut(named.segment as usize)? = Some(0);
    }
    let mut written = Written::default();
    let mut dropped = None;
    for (segment, index) in segments.iter().zip(&mut indices) {
        let (Some(index), next) = (index, u32::try_from(written.count).ok()?) else { continue };
        *index = match segment.kind {
            DataKind::Passive => {
                written.add(wasm.get(segment.range.clone())?);
                next
            }
            // An empty one stands for all that are dropped already.
            DataKind::Active { .. } => *dropped.get_or_insert_with(|| {
                written.add(&[PASSIVE, 0]);
                next
            }),
        };
    }
    Some((written, indices.into_iter().map(Option::unwrap_or_default).collect()))
}

/// The module with other segments.
fn write(
    wasm: &[u8],
    sections: &Sections<'_>,
    segments: [Written; 2],
    uses: &[Use],
    indices: &[u32],
) -> Option<Vec<u8>> {
    let count = u32::try_from(segments.iter().map(|written| written.count).sum::<usize>()).ok()?;
    let mut written = Vec::new();
    leb::unsigned(&mut written, count.into());
    written.extend(segments.into_iter().flat_map(|segments| segments.bytes));
    let mut module = wasm.get(..sections.whole.start)?.to_vec();
    if let Some((_, at)) = &sections.announced {
        leb::overwrite(module.get_mut(at.clone())?, count);
    }
    for named in uses {
        leb::overwrite(module.get_mut(named.at.clone())?, *indices.get(named.segment as usize)?);
    }
    module.push(DATA_SECTION);
    leb::unsigned(&mut module, u32::try_from(written.len()).ok()?.into());
    module.extend(written);
    module.extend(wasm.get(sections.whole.end..)?);
    Some(module)
}
