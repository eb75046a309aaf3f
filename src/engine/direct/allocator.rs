//! Which parts of the kernel's memory are allocated. This is host data: no guest can change it by writing to its
//! memory.

use std::collections::{BTreeMap, BTreeSet};

/// Where Extism's kernel puts the header of its first block. The same here, so that offsets are the same.
const START: u64 = 65;

/// The gap between blocks: Extism's kernel keeps a header there.
const HEADER: u64 = 12;

/// What Extism's kernel keeps unused at the end of its memory.
const RESERVE: u64 = 128;

/// With more free blocks than this, they are used again first, so that notes of them do not take the guest's memory.
const MOST_FREE: usize = 4096;

/// A free block is split when it is larger than needed by this much.
const SPLIT: u64 = 128;

/// Bytes that one block costs the host.
const BOOKKEEPING: u64 = 112;

/// Blocks whose cost is not charged. Most plugins have fewer, and need as many whole pages as their memories have.
const UNCHARGED: u64 = 512;

#[derive(Debug, Clone, Copy)]
struct Block {
    size: u64,
    used: u64,
    active: bool,
}

/// The blocks of one guest.
#[derive(Debug, Default)]
pub(super) struct Allocator {
    /// By offset.
    all: BTreeMap<u64, Block>,
    /// The free ones, by size, then offset.
    free: BTreeSet<(u64, u64)>,
    /// Bytes after `START` that are taken.
    position: u64,
}

/// Where a new block would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placement {
    pub(super) offset: u64,
    /// The memory must reach up to here.
    pub(super) end: u64,
    /// Whether there will be one more block, rather than a reused one.
    pub(super) adds_block: bool,
    reused: Option<u64>,
}

impl Allocator {
    /// Where `length` bytes would go in a memory of `size` bytes; `None` beyond all offsets. `length` is not 0.
    ///
    /// As in Extism's kernel, a free block is used again only when the memory would have to grow otherwise. Plugins rely
    /// on it that free what they have set as their output.
    pub(super) fn place(&self, length: u64, size: u64) -> Option<Placement> {
        let end = (self.position + HEADER + RESERVE).checked_add(length)?;
        let reuses = end >= size || self.free.len() > MOST_FREE;
        if reuses && let Some((size, offset)) = self.free.range((length, 0)..).next().copied() {
            let splits = size - length >= SPLIT;
            // A split gives away the tail, as in Extism's kernel.
            let offset_within = if splits { offset + size - length } else { offset };
            return Some(Placement {
                offset: offset_within,
                end: offset + size,
                adds_block: splits,
                reused: Some(offset),
            });
        }
        let offset = START + self.position + HEADER;
        (end <= 1 << 32).then_some(Placement { offset, end, adds_block: true, reused: None })
    }

    /// Allocates it there.
    pub(super) fn allocate(&mut self, placement: Placement, length: u64) {
        let Placement { offset, reused, .. } = placement;
        let mut size = length;
        match reused.and_then(|from| Some((from, self.all.get_mut(&from)?))) {
            None => self.position += HEADER + length,
            Some((from, block)) => {
                self.free.remove(&(block.size, from));
                if from == offset {
                    size = block.size;
                } else {
                    block.size -= length + HEADER;
                    self.free.insert((block.size, from));
                }
            }
        }
        self.all.insert(offset, Block { size, used: length, active: true });
    }

    /// Frees the block that begins at `offset`, if one does.
    pub(super) fn free(&mut self, offset: u64) -> bool {
        match self.all.get_mut(&offset) {
            Some(block) if block.active => {
                block.active = false;
                self.free.insert((block.size, offset));
                true
            }
            _ => false,
        }
    }

    /// The length of the block that begins at `offset`; 0 when none does.
    pub(super) fn length(&self, offset: u64) -> u64 {
        self.all.get(&offset).filter(|block| block.active).map_or(0, |block| block.used)
    }

    /// What all blocks, free ones included, cost the host, and would with `more` of them. It counts against the guest's
    /// memory.
    pub(super) fn cost(&self, more: u64) -> u64 {
        (self.all.len() as u64 + more).saturating_sub(UNCHARGED) * BOOKKEEPING
    }

    /// Forgets all blocks and returns the range of memory that they took.
    pub(super) fn clear(&mut self) -> std::ops::Range<u64> {
        let used = START..START + self.position;
        *self = Self::default();
        used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 65_536;

    /// In a memory that is full: free blocks are used again.
    fn alloc(blocks: &mut Allocator, length: u64) -> u64 {
        alloc_within(blocks, length, 0)
    }

    fn alloc_within(blocks: &mut Allocator, length: u64, size: u64) -> u64 {
        let placement = blocks.place(length, size).unwrap();
        blocks.allocate(placement, length);
        placement.offset
    }

    #[test]
    fn offsets_are_those_of_extisms_own_kernel() {
        let mut blocks = Allocator::default();
        assert_eq!(alloc(&mut blocks, 1065), 77);
        assert_eq!(alloc(&mut blocks, 288), 1154);
        assert_eq!(alloc(&mut blocks, 128), 1454);
        assert_eq!(blocks.length(1154), 288);
        assert!(blocks.free(1454));
        assert_eq!(alloc(&mut blocks, 213), 1594);
        assert_eq!(alloc(&mut blocks, 511), 1819);
        assert_eq!(alloc(&mut blocks, 4), 1454);
        assert_eq!(blocks.length(1454), 4);
    }

    #[test]
    fn a_free_block_is_used_again_when_the_memory_would_have_to_grow() {
        let mut blocks = Allocator::default();
        let first = alloc_within(&mut blocks, 10, PAGE);
        assert!(blocks.free(first));
        assert_eq!(alloc_within(&mut blocks, 10, PAGE), first + 10 + HEADER);
        // What is left, less one byte, as Extism's kernel counts.
        let rest = PAGE - RESERVE - 3 * HEADER - 20 - 1;
        assert_eq!(alloc_within(&mut blocks, rest, PAGE), first + 2 * (10 + HEADER));
        assert_eq!(alloc_within(&mut blocks, 1, PAGE), first);
        assert_eq!(blocks.place(11, PAGE).unwrap().end, PAGE + HEADER + 10);
    }

    #[test]
    fn a_memory_grows_where_extisms_kernel_grows_it() {
        let blocks = Allocator::default();
        let most = PAGE - RESERVE - HEADER;
        assert!(blocks.place(most, PAGE).unwrap().end <= PAGE);
        assert!(blocks.place(most + 1, PAGE).unwrap().end > PAGE);
    }

    #[test]
    fn many_free_blocks_are_used_again_at_once() {
        let mut blocks = Allocator::default();
        for _ in 0..100_000 {
            let block = alloc_within(&mut blocks, 1, 1 << 32);
            assert!(blocks.free(block));
        }
        assert_eq!(blocks.all.len(), MOST_FREE + 1);
    }

    #[test]
    fn a_large_free_block_is_split_and_both_parts_serve() {
        let mut blocks = Allocator::default();
        let large = alloc(&mut blocks, 1000);
        let after = alloc(&mut blocks, 10);
        assert!(blocks.free(large));
        let tail = alloc(&mut blocks, 100);
        assert_eq!(tail, large + 900);
        assert_eq!(alloc(&mut blocks, 888), large, "what was split off, less a header");
        assert_eq!(blocks.length(after), 10);
    }

    #[test]
    fn nothing_is_placed_beyond_all_offsets() {
        assert_eq!(Allocator::default().place(u64::MAX, PAGE), None);
        assert_eq!(Allocator::default().place(1 << 32, PAGE), None);
    }

    proptest::proptest! {
        #[test]
        fn active_blocks_never_overlap(
            steps in proptest::collection::vec((0_u64..3000, proptest::bool::ANY), 1..200),
            size in 0..3 * PAGE,
        ) {
            let mut blocks = Allocator::default();
            let mut active: Vec<(u64, u64)> = Vec::new();
            for (length, frees) in steps {
                if frees && !active.is_empty() {
                    let (offset, _) = active.swap_remove(usize::try_from(length).unwrap() % active.len());
                    assert!(!blocks.free(offset + 1));
                    assert!(blocks.free(offset));
                    assert!(!blocks.free(offset), "twice");
                    assert_eq!(blocks.length(offset), 0);
                } else if length > 0 {
                    let offset = alloc_within(&mut blocks, length, size);
                    for (other, size) in &active {
                        assert!(offset + length <= *other || other + size <= offset, "{offset} + {length}, {other} + {size}");
                    }
                    active.push((offset, length));
                }
            }
            for (offset, length) in active {
                assert_eq!(blocks.length(offset), length);
            }
        }
    }

    #[test]
    fn a_block_costs_what_the_host_keeps_for_it_from_the_first_on_that_is_charged() {
        let mut blocks = Allocator::default();
        for _ in 0..UNCHARGED {
            alloc(&mut blocks, 1);
        }
        assert_eq!([0, 1, 3].map(|more| blocks.cost(more)), [0, BOOKKEEPING, 3 * BOOKKEEPING]);
        alloc(&mut blocks, 1);
        assert_eq!([0, 1, 3].map(|more| blocks.cost(more)), [BOOKKEEPING, 2 * BOOKKEEPING, 4 * BOOKKEEPING]);
    }
}
