//! Estimates the cost of one function.
//!
//! Most of a compiler's work is linear in the instructions. Locals are the exception. Where ways through a function
//! meet, at the end of a block that is branched to or at the head of a loop, a local that was set on one of the ways
//! needs a value of its own, a *merge*. The cost of merges grows with the square of their number for one local, and
//! with the square of the ways that meet in one. They are counted as cranelift makes them: only for locals that are
//! read later.

use wasmparser::{
    BinaryReaderError, FuncValidator, FunctionBody, HeapType, ModuleArity, Operator, OperatorsReader, ValType,
    WasmModuleResources,
};

use super::{
    FUNCTION, Nanos,
    prices::{
        BLOCKS_OF_IF, BLOCKS_OF_LOOP, EACH, EACH_ACCESS, EACH_CALL, EACH_CARRIED, EACH_CELL, EACH_KEPT_BY_CALL,
        EACH_KEPT_BY_LOOP, EACH_LOCAL, EACH_LOOK, EACH_MERGE, EACH_OF_PAIRS, EACH_PAIR_OF_MERGES, EACH_PAIR_OF_WAYS,
        EACH_SET, EACH_TARGET, EACH_VALUE, EACH_WAITING, MERGES_OF_LOOP, may_trap,
    },
};

/// Why a function is refused.
pub(super) enum Stop {
    Invalid(BinaryReaderError),
    TooMuch(String),
}

impl From<BinaryReaderError> for Stop {
    fn from(error: BinaryReaderError) -> Self {
        Stop::Invalid(error)
    }
}

/// Merges that come about only if the local is read.
#[derive(Debug, Default, Clone, Copy)]
struct Merges {
    count: u64,
    pairs_of_ways: u64,
    looks: u64,
}

impl Merges {
    fn add(&mut self, other: Merges) {
        self.count = self.count.saturating_add(other.count);
        self.pairs_of_ways = self.pairs_of_ways.saturating_add(other.pairs_of_ways);
        self.looks = self.looks.saturating_add(other.looks);
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Local {
    used: bool,
    /// Where it was last set or read: between two places where ways meet.
    stretch: u64,
    /// When it was last read in another stretch than that of its last setting.
    read: u64,
    pending: Merges,
    /// How many frames were open around the outermost of the pending merges.
    pending_depth: usize,
    merges: u64,
}

/// The locals of one function after another, for their memory to be used again.
#[derive(Debug, Default)]
pub(super) struct Locals(Vec<Local>);

/// A block, loop, if, or the function itself.
#[derive(Debug, Default)]
struct Frame {
    began: u64,
    is_loop: bool,
    /// Parameters of a loop, results of a block.
    carries: usize,
    ways: u64,
    /// Targets of the branch tables that lead to its label.
    looks: u64,
    /// The locals that are set inside, some more than once.
    sets: Vec<u32>,
}

pub(super) struct Function<'a> {
    locals: &'a mut Locals,
    frames: Vec<Frame>,
    /// Whether what follows cannot be reached.
    dead: bool,
    now: u64,
    stretch: u64,
    used: u64,
    blocks: u64,
    loops: u64,
    linear: Nanos,
    calls: Nanos,
    tables: Nanos,
    carried: Nanos,
    waiting: Nanos,
    /// Locals that hold references.
    references: u64,
    /// Whether there may be references on the stack.
    has_references: bool,
    kept: Nanos,
    merged: Merges,
    /// For each position among what blocks carry, how many carry it.
    carrying: Vec<u64>,
}

impl<'a> Function<'a> {
    pub(super) fn new(locals: &'a mut Locals, has_references: bool) -> Self {
        Self {
            locals,
            frames: vec![Frame::default()],
            dead: false,
            now: 0,
            stretch: 0,
            used: 0,
            blocks: 1,
            loops: 0,
            linear: 0,
            calls: 0,
            tables: 0,
            carried: 0,
            waiting: 0,
            references: 0,
            has_references,
            kept: 0,
            merged: Merges::default(),
            carrying: Vec::new(),
        }
    }

    /// The cost of a body. Stops reading once the cost is over its bound.
    pub(super) fn cost<R: WasmModuleResources>(
        mut self,
        validator: &mut FuncValidator<R>,
        body: &FunctionBody<'_>,
    ) -> Result<Nanos, Stop> {
        let mut reader = body.get_binary_reader();
        validator.read_locals(&mut reader)?;
        let locals = validator.len_locals();
        self.linear = EACH_LOCAL * u64::from(locals);
        let is_reference = |local: &u32| validator.get_local_type(*local) == Some(ValType::EXTERNREF);
        self.references = (0..locals).filter(is_reference).count() as u64;
        // At its entrance, as in a loop.
        self.kept = EACH_KEPT_BY_LOOP * self.references.min(1);
        self.locals.0.clear();
        self.locals.0.resize(locals as usize, Local::default());
        let mut operators = OperatorsReader::new(reader);
        while !operators.eof() {
            let (operator, offset) = operators.read_with_offset()?;
            self.now += 1;
            self.weigh(&operator, validator)?;
            // Validated after it was weighed: a branch table may name a thousand values sixty thousand times.
            if self.spent() > FUNCTION {
                return Err(self.too_much());
            }
            validator.op(offset, &operator)?;
        }
        if self.total() > FUNCTION { Err(self.too_much()) } else { Ok(self.total()) }
    }

    /// The cost without what needs a sum over all locals.
    fn spent(&self) -> Nanos {
        self.parts().iter().map(|(cost, _)| *cost).fold(0, Nanos::saturating_add)
    }

    fn total(&self) -> Nanos {
        self.spent().saturating_add(self.pairs_of_merges())
    }

    fn parts(&self) -> [(Nanos, &'static str); 9] {
        let pairs = self.now.saturating_mul(self.now) / EACH_OF_PAIRS;
        let loops = (2 * self.loops).saturating_mul(2 * self.loops).saturating_mul(EACH_PAIR_OF_MERGES);
        let merged = (self.merged.count.saturating_mul(EACH_MERGE))
            .saturating_add(self.merged.pairs_of_ways.saturating_mul(EACH_PAIR_OF_WAYS))
            .saturating_add(self.merged.looks.saturating_mul(EACH_LOOK));
        [
            (self.linear.saturating_add(pairs), "as many instructions and locals"),
            (self.calls, "the parameters and results of its calls"),
            (self.tables, "its branch tables"),
            (self.carried, "the parameters and results of its blocks"),
            (self.waiting, "the values that wait on its stack at its branches"),
            (self.kept, "the references that it keeps in its loops and calls"),
            (self.used.saturating_mul(self.blocks).saturating_mul(EACH_CELL), "as many locals times branches"),
            (loops, "as many loops"),
            (merged, "the locals that are set where its branches meet"),
        ]
    }

    fn pairs_of_merges(&self) -> Nanos {
        let all = self.locals.0.iter().map(|local| local.merges).chain(self.carrying.iter().copied());
        let pairs = all.map(|merges| merges.saturating_mul(merges)).fold(0, u64::saturating_add);
        pairs.saturating_mul(EACH_PAIR_OF_MERGES)
    }

    fn too_much(&self) -> Stop {
        let merges = (self.pairs_of_merges(), "the locals that are set where its branches meet");
        let most = self.parts().into_iter().chain([merges]).max_by_key(|(cost, _)| *cost);
        Stop::TooMuch(most.map_or("all that is in it", |(_, what)| what).to_owned())
    }

    fn weigh<R: WasmModuleResources>(
        &mut self,
        operator: &Operator<'_>,
        validator: &FuncValidator<R>,
    ) -> Result<(), Stop> {
        let arity = || operator.operator_arity(validator).unwrap_or_default();
        let values = |(params, results): (u32, u32)| u64::from(params) + u64::from(results);
        self.linear += EACH;
        match operator {
            Operator::LocalGet { local_index } => self.get(*local_index),
            Operator::LocalSet { local_index } | Operator::LocalTee { local_index } => self.set(*local_index),
            Operator::Call { .. }
            | Operator::CallIndirect { .. }
            | Operator::ReturnCall { .. }
            | Operator::ReturnCallIndirect { .. } => {
                self.calls += EACH_CALL + EACH_VALUE * values(arity());
                self.keep_in_call(validator);
                self.blocks += u64::from(matches!(operator, Operator::CallIndirect { .. })) * 2;
                self.dead |= matches!(operator, Operator::ReturnCall { .. } | Operator::ReturnCallIndirect { .. });
            }
            Operator::Block { blockty } => self.open(false, carries(validator, *blockty, false)),
            Operator::Loop { blockty } => {
                self.loops += 1;
                self.kept = self.kept.saturating_add(EACH_KEPT_BY_LOOP.saturating_mul(self.kept_now(validator)));
                self.branch(BLOCKS_OF_LOOP, validator);
                self.stretch = self.now;
                self.open(true, carries(validator, *blockty, true));
            }
            Operator::If { blockty } => {
                self.branch(BLOCKS_OF_IF, validator);
                self.open(false, carries(validator, *blockty, false));
                // Past it, should it have no `else`.
                self.way(0, u64::from(!self.dead), 0);
            }
            Operator::Else => {
                if let Some(frame) = self.frames.last_mut()
                    && self.dead
                {
                    frame.ways = frame.ways.saturating_sub(1);
                }
                self.stretch = self.now;
                self.dead = false;
            }
            Operator::Br { relative_depth } | Operator::BrIf { relative_depth } => {
                self.branch(1, validator);
                self.carried += EACH_CARRIED * values(arity());
                self.way(*relative_depth, 1, 0);
                self.dead |= matches!(operator, Operator::Br { .. });
            }
            Operator::BrTable { targets } => {
                self.branch(1, validator);
                let count = u64::from(targets.len()) + 1;
                self.tables = self.tables.saturating_add(EACH_TARGET * count);
                self.carried = self.carried.saturating_add((EACH_CARRIED * values(arity())).saturating_mul(count));
                let mut labels = targets.targets().collect::<Result<Vec<_>, _>>()?;
                labels.push(targets.default());
                labels.sort_unstable();
                labels.dedup();
                for label in labels {
                    self.way(label, 1, count);
                }
                self.dead = true;
            }
            Operator::Return | Operator::Unreachable => self.dead = true,
            Operator::End => self.close(),
            Operator::MemoryGrow { .. }
            | Operator::MemoryCopy { .. }
            | Operator::MemoryFill { .. }
            | Operator::MemoryInit { .. }
            | Operator::TableGet { .. }
            | Operator::TableSet { .. }
            | Operator::TableGrow { .. }
            | Operator::TableCopy { .. }
            | Operator::TableFill { .. }
            | Operator::TableInit { .. }
            | Operator::DataDrop { .. }
            | Operator::ElemDrop { .. }
            | Operator::RefFunc { .. } => {
                self.calls += EACH_CALL;
                self.keep_in_call(validator);
            }
            Operator::RefNull { hty } if *hty == HeapType::EXTERN => self.has_references = true,
            _ if may_trap(operator) => self.linear += EACH_ACCESS,
            _ => {}
        }
        Ok(())
    }

    /// References in locals and on the stack.
    fn kept_now<R: WasmModuleResources>(&self, validator: &FuncValidator<R>) -> u64 {
        let height = if self.has_references { validator.operand_stack_height() } else { 0 };
        let is_reference = |at: &u32| {
            let operand = validator.get_operand_type(*at as usize);
            operand.is_some_and(|ty| ty.is_none_or(|ty| ty == ValType::EXTERNREF))
        };
        self.references + (0..height).filter(is_reference).count() as u64
    }

    /// As many as there may be: what is on the stack is not looked through at each call.
    fn keep_in_call<R: WasmModuleResources>(&mut self, validator: &FuncValidator<R>) {
        let height = if self.has_references { validator.operand_stack_height() } else { 0 };
        self.kept += EACH_KEPT_BY_CALL * (self.references + u64::from(height));
    }

    fn get(&mut self, index: u32) {
        let Some(local) = self.locals.0.get_mut(index as usize) else { return };
        self.used += u64::from(!std::mem::replace(&mut local.used, true));
        if local.stretch != self.stretch {
            local.read = self.now;
            local.stretch = self.stretch;
            local.merges += local.pending.count;
            self.merged.add(std::mem::take(&mut local.pending));
        }
    }

    fn set(&mut self, index: u32) {
        let depth = self.frames.len();
        let Some(local) = self.locals.0.get_mut(index as usize) else { return };
        self.used += u64::from(!std::mem::replace(&mut local.used, true));
        local.stretch = self.stretch;
        // Nothing will read the value of an earlier merge.
        if depth <= local.pending_depth {
            local.pending = Merges::default();
        }
        if let Some(frame) = self.frames.last_mut()
            && frame.sets.last() != Some(&index)
        {
            frame.sets.push(index);
        }
    }

    /// A branch ends a basic block, or more.
    fn branch<R: WasmModuleResources>(&mut self, blocks: u64, validator: &FuncValidator<R>) {
        self.blocks += blocks;
        self.waiting += EACH_WAITING * u64::from(validator.operand_stack_height());
    }

    fn open(&mut self, is_loop: bool, carries: usize) {
        self.blocks += 1;
        let ways = u64::from(is_loop && !self.dead);
        self.frames.push(Frame { began: self.now, is_loop, carries, ways, ..Frame::default() });
    }

    /// One more way leads to a label.
    fn way(&mut self, label: u32, ways: u64, looks: u64) {
        let at = self.frames.len().checked_sub(1 + label as usize);
        if let Some(frame) = at.and_then(|at| self.frames.get_mut(at)) {
            frame.ways += ways;
            frame.looks = frame.looks.saturating_add(looks);
        }
    }

    fn close(&mut self) {
        let Some(mut frame) = self.frames.pop() else { return };
        frame.ways += u64::from(!frame.is_loop && !self.dead);
        self.dead = frame.ways == 0 && !frame.is_loop || self.dead && frame.is_loop;
        let depth = self.frames.len();
        let Some(outer) = self.frames.last_mut() else { return };
        frame.sets.sort_unstable();
        frame.sets.dedup();
        self.linear += EACH_SET * frame.sets.len() as u64;
        if frame.ways > 1 {
            let weight = if frame.is_loop { MERGES_OF_LOOP } else { 1 };
            let pairs_of_ways = frame.ways.saturating_mul(frame.ways);
            let merge = Merges { count: weight, pairs_of_ways, looks: frame.looks };
            for index in &frame.sets {
                let Some(local) = self.locals.0.get_mut(*index as usize) else { continue };
                if frame.is_loop && local.read > frame.began {
                    local.merges += weight;
                    self.merged.add(merge);
                } else {
                    let is_first = local.pending.count == 0;
                    local.pending_depth = if is_first { depth } else { depth.min(local.pending_depth) };
                    local.pending.add(merge);
                }
            }
            if self.carrying.len() < frame.carries {
                self.carrying.resize(frame.carries, 0);
            }
            for carried in self.carrying.iter_mut().take(frame.carries) {
                *carried += weight;
            }
            self.carried = self.carried.saturating_add(EACH_MERGE.saturating_mul(frame.carries as u64));
            let pairs = pairs_of_ways.saturating_mul(EACH_PAIR_OF_WAYS);
            self.carried = self.carried.saturating_add(pairs.saturating_mul(frame.carries as u64));
        }
        if !frame.is_loop && frame.ways > 1 {
            self.stretch = self.now;
        }
        if outer.sets.len() < frame.sets.len() {
            std::mem::swap(&mut outer.sets, &mut frame.sets);
        }
        outer.sets.append(&mut frame.sets);
    }
}

/// How many values a branch to its label carries.
fn carries<R: WasmModuleResources>(validator: &FuncValidator<R>, ty: wasmparser::BlockType, is_loop: bool) -> usize {
    let (params, results) = validator.block_type_arity(ty).unwrap_or_default();
    (if is_loop { params } else { results }) as usize
}
