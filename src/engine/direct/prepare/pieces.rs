//! Instructions that do much at once, in pieces.
//!
//! `memory.fill` and its kin are one instruction to the engine, however much they do, and nothing ends one before it has
//! done all. A function takes the place of each: it does the same piece by piece, in a loop, and a guest in a loop returns
//! to its executor at each tick. What does not fit is done at once, so that it traps before it has changed anything.

use wasm_encoder::{Encode, Function, InstructionSink, RefType, ValType};
use wasmparser::{MemoryType, Operator, TableType};

/// Bytes that are filled or copied at once: some 20 µs, also where each page is touched for the first time.
const BYTES: u64 = 64 << 10;

/// Elements of a table that are.
const ELEMENTS: u64 = 4096;

/// The memories, tables and segments that instructions name.
#[derive(Default)]
pub(super) struct Spaces {
    pub(super) memories: Vec<MemoryType>,
    pub(super) tables: Vec<TableType>,
    /// Bytes of each data segment.
    pub(super) data: Vec<u64>,
    /// Elements of each element segment.
    pub(super) elements: Vec<u64>,
}

/// An instruction that can do more than a piece at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bulk {
    Fill { memory: u32 },
    Copy { to: u32, from: u32 },
    Init { segment: u32, memory: u32 },
    FillTable { table: u32 },
    CopyTable { to: u32, from: u32 },
    InitTable { segment: u32, table: u32 },
}

/// What an instruction writes to or reads from.
#[derive(Clone, Copy)]
enum Space {
    Memory { index: u32, is_64: bool, page_size: u32 },
    Table { index: u32, is_64: bool, element: RefType },
    Segment { length: u64 },
}

/// The parameters of the functions, which are those of the instructions.
const TO: u32 = 0;
const FROM: u32 = 1;
const LENGTH: u32 = 2;

impl Bulk {
    /// `None` for all others, and for one that has no more than a piece to work on. `before` is the constant that was pushed
    /// just before it, if one was: its last operand, which is the length.
    pub(super) fn of(operator: &Operator<'_>, before: Option<u64>, spaces: &Spaces) -> Option<Self> {
        let (this, piece) = match *operator {
            Operator::MemoryFill { mem: memory } => (Self::Fill { memory }, BYTES),
            Operator::MemoryCopy { dst_mem: to, src_mem: from } => (Self::Copy { to, from }, BYTES),
            Operator::MemoryInit { data_index: segment, mem: memory } => (Self::Init { segment, memory }, BYTES),
            Operator::TableFill { table } => (Self::FillTable { table }, ELEMENTS),
            Operator::TableCopy { dst_table: to, src_table: from } => (Self::CopyTable { to, from }, ELEMENTS),
            Operator::TableInit { elem_index: segment, table } => (Self::InitTable { segment, table }, ELEMENTS),
            _ => return None,
        };
        if before.is_some_and(|length| length <= piece) {
            return None;
        }
        let (to, from) = this.spaces(spaces)?;
        let is_large = |space: Space| space.most(spaces).is_none_or(|most| most > piece);
        (is_large(to) && from.is_none_or(is_large)).then_some(this)
    }

    /// What it writes to, and what it reads from if it does; `None` if that does not exist, or has a type that no compiler
    /// makes.
    fn spaces(self, all: &Spaces) -> Option<(Space, Option<Space>)> {
        let memory = |index: u32| {
            let ty = all.memories.get(index as usize)?;
            Some(Space::Memory { index, is_64: ty.memory64, page_size: ty.page_size_log2.unwrap_or(16) })
        };
        let table = |index: u32| {
            let ty = all.tables.get(index as usize)?;
            let element = match ty.element_type {
                wasmparser::RefType::FUNCREF => RefType::FUNCREF,
                wasmparser::RefType::EXTERNREF => RefType::EXTERNREF,
                _ => return None,
            };
            Some(Space::Table { index, is_64: ty.table64, element })
        };
        let segment = |lengths: &[u64], index: u32| Some(Space::Segment { length: *lengths.get(index as usize)? });
        Some(match self {
            Self::Fill { memory: to } => (memory(to)?, None),
            Self::Copy { to, from } => (memory(to)?, Some(memory(from)?)),
            Self::Init { segment: from, memory: to } => (memory(to)?, Some(segment(&all.data, from)?)),
            Self::FillTable { table: to } => (table(to)?, None),
            Self::CopyTable { to, from } => (table(to)?, Some(table(from)?)),
            Self::InitTable { segment: from, table: to } => (table(to)?, Some(segment(&all.elements, from)?)),
        })
    }

    /// The type of its function, as the type section has it. `None` as above.
    pub(super) fn ty(self, spaces: &Spaces) -> Option<Vec<u8>> {
        let mut ty = vec![0x60];
        self.params(spaces)?.encode(&mut ty);
        let results: &[ValType] = &[];
        results.encode(&mut ty);
        Some(ty)
    }

    fn params(self, spaces: &Spaces) -> Option<[ValType; 3]> {
        let (to, from) = self.spaces(spaces)?;
        let second = match (to, from) {
            (_, Some(from)) => from.address(),
            (Space::Table { element, .. }, None) => ValType::Ref(element),
            (_, None) => ValType::I32,
        };
        let length = if from.is_none_or(|from| from.address() == ValType::I64) { to.address() } else { ValType::I32 };
        Some([to.address(), second, length])
    }

    /// Its function, as the code section has it. `None` as above.
    pub(super) fn function(self, spaces: &Spaces) -> Option<Vec<u8>> {
        let ((to, from), [_, _, length]) = (self.spaces(spaces)?, self.params(spaces)?);
        let piece = if matches!(to, Space::Memory { .. }) { BYTES } else { ELEMENTS };
        let mut function = Function::new([]);
        let mut code = Code { sink: function.instructions(), piece, length };
        code.sink.block(wasm_encoder::BlockType::Empty);
        // A piece or less.
        code.get(LENGTH, length).number(piece, length).is_over(length).sink.i32_eqz().br_if(0);
        for (space, at) in [(Some(to), TO), (from, FROM)] {
            if let Some(space) = space {
                code.leave_if_beyond(space, at);
            }
        }
        if from.is_some_and(|from| from.is(to)) {
            // From the end, so that nothing is overwritten before it was read.
            code.get(TO, to.address()).get(FROM, to.address()).is_over(to.address());
            code.sink.if_(wasm_encoder::BlockType::Empty).loop_(wasm_encoder::BlockType::Empty);
            code.move_by_a_piece(LENGTH, length, false);
            code.get(TO, to.address()).get(LENGTH, length).add(to.address());
            code.get(FROM, to.address()).get(LENGTH, length).add(to.address());
            self.instruction(code.number(piece, length));
            code.get(LENGTH, length).number(piece, length).is_over(length).sink.br_if(0).end().br(1).end();
        }
        code.sink.loop_(wasm_encoder::BlockType::Empty);
        code.get(TO, to.address()).sink.local_get(FROM);
        self.instruction(code.number(piece, length));
        code.move_by_a_piece(TO, to.address(), true);
        if let Some(from) = from {
            code.move_by_a_piece(FROM, from.address(), true);
        }
        code.move_by_a_piece(LENGTH, length, false);
        code.get(LENGTH, length).number(piece, length).is_over(length).sink.br_if(0).end().end();
        code.sink.local_get(TO).local_get(FROM).local_get(LENGTH);
        self.instruction(&mut code);
        code.sink.end();
        let mut written = Vec::new();
        function.encode(&mut written);
        Some(written)
    }

    fn instruction(self, code: &mut Code<'_>) {
        match self {
            Self::Fill { memory } => code.sink.memory_fill(memory),
            Self::Copy { to, from } => code.sink.memory_copy(to, from),
            Self::Init { segment, memory } => code.sink.memory_init(memory, segment),
            Self::FillTable { table } => code.sink.table_fill(table),
            Self::CopyTable { to, from } => code.sink.table_copy(to, from),
            Self::InitTable { segment, table } => code.sink.table_init(table, segment),
        };
    }
}

impl Space {
    /// The type of an offset or an index.
    fn address(self) -> ValType {
        match self {
            Self::Memory { is_64: true, .. } | Self::Table { is_64: true, .. } => ValType::I64,
            _ => ValType::I32,
        }
    }

    fn is(self, other: Self) -> bool {
        match (self, other) {
            (Self::Memory { index, .. }, Self::Memory { index: other, .. })
            | (Self::Table { index, .. }, Self::Table { index: other, .. }) => index == other,
            _ => false,
        }
    }

    /// The most that there can be of it, if that is known.
    fn most(self, spaces: &Spaces) -> Option<u64> {
        match self {
            Self::Memory { index, page_size, .. } => {
                spaces.memories.get(index as usize)?.maximum?.checked_mul(1_u64.checked_shl(page_size)?)
            }
            Self::Table { index, .. } => spaces.tables.get(index as usize)?.maximum,
            Self::Segment { length } => Some(length),
        }
    }
}

/// The code of one function.
struct Code<'a> {
    sink: InstructionSink<'a>,
    piece: u64,
    /// The type of the length.
    length: ValType,
}

impl Code<'_> {
    /// A parameter of this or a smaller type, as this type.
    fn get(&mut self, local: u32, ty: ValType) -> &mut Self {
        self.sink.local_get(local);
        if local == LENGTH && self.length == ValType::I32 && ty == ValType::I64 {
            self.sink.i64_extend_i32_u();
        }
        self
    }

    fn number(&mut self, number: u64, ty: ValType) -> &mut Self {
        match ty {
            ValType::I64 => self.sink.i64_const(number.cast_signed()),
            // Lengths of segments are not more, and pieces much less.
            _ => self.sink.i32_const(u32::try_from(number).unwrap_or(u32::MAX).cast_signed()),
        };
        self
    }

    fn is_over(&mut self, ty: ValType) -> &mut Self {
        if ty == ValType::I64 {
            self.sink.i64_gt_u()
        } else {
            self.sink.i32_gt_u()
        };
        self
    }

    fn add(&mut self, ty: ValType) -> &mut Self {
        if ty == ValType::I64 {
            self.sink.i64_add()
        } else {
            self.sink.i32_add()
        };
        self
    }

    fn move_by_a_piece(&mut self, local: u32, ty: ValType, forward: bool) {
        self.sink.local_get(local);
        let piece = self.piece;
        self.number(piece, ty);
        match (ty, forward) {
            (ValType::I64, true) => self.sink.i64_add(),
            (ValType::I64, false) => self.sink.i64_sub(),
            (_, true) => self.sink.i32_add(),
            (_, false) => self.sink.i32_sub(),
        };
        self.sink.local_set(local);
    }

    /// An offset or a length as 64 bits.
    fn wide(&mut self, local: u32, ty: ValType) {
        self.sink.local_get(local);
        if ty == ValType::I32 {
            self.sink.i64_extend_i32_u();
        }
    }

    /// Leaves the block around, if the range that begins there does not fit.
    fn leave_if_beyond(&mut self, space: Space, at: u32) {
        let (address, length) = (space.address(), self.length);
        self.wide(at, address);
        self.wide(LENGTH, length);
        self.sink.i64_add();
        match space {
            Space::Memory { index, .. } => self.sink.memory_size(index),
            Space::Table { index, .. } => self.sink.table_size(index),
            Space::Segment { length } => self.sink.i64_const(length.cast_signed()),
        };
        if !matches!(space, Space::Segment { .. }) && address == ValType::I32 {
            self.sink.i64_extend_i32_u();
        }
        if let Space::Memory { page_size, .. } = space {
            self.sink.i64_const(page_size.into()).i64_shl();
        }
        self.sink.i64_gt_u().br_if(0);
        if address == ValType::I64 {
            // The sum wrapped around.
            self.wide(at, address);
            self.wide(LENGTH, length);
            self.sink.i64_add();
            self.wide(at, address);
            self.sink.i64_lt_u().br_if(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use wasmparser::RefType;

    use super::*;

    /// Two memories, two tables and segments of which the first of each has one unit more than is done at once.
    fn spaces() -> Spaces {
        let memory = |pages| MemoryType {
            memory64: false,
            shared: false,
            initial: 1,
            maximum: Some(pages),
            page_size_log2: None,
        };
        let table = |most| TableType {
            element_type: RefType::FUNCREF,
            table64: false,
            initial: 1,
            maximum: Some(most),
            shared: false,
        };
        Spaces {
            memories: vec![memory(2), memory(1)],
            tables: vec![table(ELEMENTS + 1), table(ELEMENTS)],
            data: vec![BYTES + 1, BYTES],
            elements: vec![ELEMENTS + 1, ELEMENTS],
        }
    }

    #[test]
    fn every_instruction_that_can_do_more_than_a_piece_is_cut_and_no_other() {
        let spaces = spaces();
        let of = |index: u32| {
            [
                (Operator::MemoryFill { mem: index }, Bulk::Fill { memory: index }, BYTES),
                (Operator::MemoryCopy { dst_mem: index, src_mem: 0 }, Bulk::Copy { to: index, from: 0 }, BYTES),
                (Operator::MemoryCopy { dst_mem: 0, src_mem: index }, Bulk::Copy { to: 0, from: index }, BYTES),
                (Operator::MemoryInit { data_index: index, mem: 0 }, Bulk::Init { segment: index, memory: 0 }, BYTES),
                (Operator::MemoryInit { data_index: 0, mem: index }, Bulk::Init { segment: 0, memory: index }, BYTES),
                (Operator::TableFill { table: index }, Bulk::FillTable { table: index }, ELEMENTS),
                (
                    Operator::TableCopy { dst_table: index, src_table: 0 },
                    Bulk::CopyTable { to: index, from: 0 },
                    ELEMENTS,
                ),
                (
                    Operator::TableCopy { dst_table: 0, src_table: index },
                    Bulk::CopyTable { to: 0, from: index },
                    ELEMENTS,
                ),
                (
                    Operator::TableInit { elem_index: index, table: 0 },
                    Bulk::InitTable { segment: index, table: 0 },
                    ELEMENTS,
                ),
                (
                    Operator::TableInit { elem_index: 0, table: index },
                    Bulk::InitTable { segment: 0, table: index },
                    ELEMENTS,
                ),
            ]
        };
        for (operator, bulk, piece) in of(0) {
            assert_eq!(Bulk::of(&operator, None, &spaces), Some(bulk), "{operator:?}");
            assert_eq!(Bulk::of(&operator, Some(piece + 1), &spaces), Some(bulk), "{operator:?}");
            assert_eq!(Bulk::of(&operator, Some(piece), &spaces), None, "{operator:?}");
        }
        // What it works on has no more than a piece; or does not exist, which the engine refuses.
        for (operator, ..) in of(1).into_iter().chain(of(2)) {
            assert_eq!(Bulk::of(&operator, None, &spaces), None, "{operator:?}");
        }
        assert_eq!(Bulk::of(&Operator::MemoryGrow { mem: 0 }, None, &spaces), None);
    }
}
