//! The price of each thing in a module and its functions.

use wasmparser::Operator;

use super::Nanos;

/// A function, whatever is in it.
pub(super) const EACH_FUNCTION: Nanos = 300_000;

/// The entrance of a function that a table or the host may call.
pub(super) const EACH_ENTRANCE: Nanos = 60_000;

/// A parameter or result of a type: entrances and exits are compiled for each type.
pub(super) const EACH_OF_A_TYPE: Nanos = 20_000;

/// A parameter or result of a function.
pub(super) const EACH_OF_A_FUNCTION: Nanos = 10_000;

/// An element of a segment.
pub(super) const EACH_ELEMENT: Nanos = 200_000;

/// An instruction of a constant expression. A few are free: toolchains make no more.
pub(super) const EACH_OF_AN_EXPRESSION: Nanos = 100_000;
pub(super) const FREE_OF_AN_EXPRESSION: usize = 8;

/// An instruction.
pub(super) const EACH: Nanos = 1_500;

/// Pairs of instructions for the price of one: the compiler chooses late where a value is computed, and registers are
/// few.
pub(super) const EACH_OF_PAIRS: u64 = 10;

/// An instruction that may trap, such as a load or a division, on top of [`EACH`].
pub(super) const EACH_ACCESS: Nanos = 3_000;

/// A call, of a function or into the engine, and each of its parameters and results.
pub(super) const EACH_CALL: Nanos = 10_000;
pub(super) const EACH_VALUE: Nanos = 5_000;

pub(super) const EACH_LOCAL: Nanos = 100;
pub(super) const EACH_TARGET: Nanos = 1_500;

/// A parameter or result of a block, at each branch.
pub(super) const EACH_CARRIED: Nanos = 2_000;

/// A local at a branch or loop: a compiler keeps a table of both.
pub(super) const EACH_CELL: Nanos = 100;

/// A reference that is kept while a loop runs, and while a function or the engine is called: the code says where it is.
pub(super) const EACH_KEPT_BY_LOOP: Nanos = 200_000;
pub(super) const EACH_KEPT_BY_CALL: Nanos = 500;

/// A value that waits on the stack, at a branch or loop.
pub(super) const EACH_WAITING: Nanos = 20;

/// A local that is set inside a block.
pub(super) const EACH_SET: Nanos = 200;

pub(super) const EACH_MERGE: Nanos = 10_000;
/// Two merges of the same local.
pub(super) const EACH_PAIR_OF_MERGES: Nanos = 25;
/// Two ways into one merge.
pub(super) const EACH_PAIR_OF_WAYS: Nanos = 3;
/// A merge with each target of each branch table that leads there.
pub(super) const EACH_LOOK: Nanos = 1;

/// Basic blocks of a loop and of an `if`, with the checks for a deadline and for fuel.
pub(super) const BLOCKS_OF_LOOP: u64 = 6;
pub(super) const BLOCKS_OF_IF: u64 = 3;

/// A merge in a loop's head weighs more than one after a block.
pub(super) const MERGES_OF_LOOP: u64 = 4;

/// Loads, divisions and conversions that may trap.
pub(super) fn may_trap(operator: &Operator<'_>) -> bool {
    matches!(
        operator,
        Operator::I32Load { .. }
            | Operator::I64Load { .. }
            | Operator::F32Load { .. }
            | Operator::F64Load { .. }
            | Operator::I32Load8S { .. }
            | Operator::I32Load8U { .. }
            | Operator::I32Load16S { .. }
            | Operator::I32Load16U { .. }
            | Operator::I64Load8S { .. }
            | Operator::I64Load8U { .. }
            | Operator::I64Load16S { .. }
            | Operator::I64Load16U { .. }
            | Operator::I64Load32S { .. }
            | Operator::I64Load32U { .. }
            | Operator::I32DivS
            | Operator::I32DivU
            | Operator::I32RemS
            | Operator::I32RemU
            | Operator::I64DivS
            | Operator::I64DivU
            | Operator::I64RemS
            | Operator::I64RemU
            | Operator::I32TruncF32S
            | Operator::I32TruncF32U
            | Operator::I32TruncF64S
            | Operator::I32TruncF64U
            | Operator::I64TruncF32S
            | Operator::I64TruncF32U
            | Operator::I64TruncF64S
            | Operator::I64TruncF64U
    )
}
