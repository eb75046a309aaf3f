//! What stands between a plugin that is not trusted and extism's own code: `fence.wat`, a module that each is linked
//! with, and functions that are put around what the plugin imports and exports before it is compiled. Its own functions
//! stay as they are.
//!
//! - **The kernel's headers are out of reach.** extism's kernel believes the headers of its blocks, which lie in the
//!   memory that its own `store_u8` and `store_u64` write to, and extism then makes slices of what the kernel says: a
//!   plugin that forges headers has the host read, and write, beyond the kernel's memory. So what allocates, stores, sets
//!   the output or resets is the fence's, which marks each header and lets no store reach one, nor anything behind the
//!   last block, where the kernel walks on, over zeros, when it looks for a block that is not there. All headers are
//!   marked before their guest can run: the first block's lies where nothing is stored, a guest's own are marked as they
//!   are allocated, and those of the host's when its function returns. With sound headers all that the kernel says is
//!   within its memory, but for two sums that wrap around, which the fence refuses.
//! - **Initialisers ask whether there is time for them**, and do nothing once there is none: so another plugin of the same
//!   seat can be made whose initialisers do not run, and through it the first one be interrupted. See `interrupt`.
//! - **A call says when it has really begun**: from then on it can be stopped. See `stop`.
//! - **One call of WASI handles sixteen buffers at most**, which it may: there is no interrupting it.
//!
//! With fuel, it costs 5 to 10 % of an evaluation in a fresh instance, and 2 to 5 % in one that is used again (`evalpool
//! load` on the built-in plugin, one caller).
//!
//! Considered and not taken: another kernel in the place of extism's (its name cannot be taken), its functions as
//! host functions (they would have to grow its memory, and there a call for each eight bytes is slow), and books in the
//! host (extism's kernel has its own).

use std::{collections::HashSet, convert::Infallible};

use wasm_encoder::{
    BlockType, CodeSection, DataCountSection, DataSection, ElementSection, EntityType, ExportKind, ExportSection,
    Function, FunctionSection, GlobalSection, ImportSection, Instruction, MemorySection, Module, NameSection,
    StartSection, TableSection, TypeSection, ValType,
    reencode::{self, Reencode},
};
use wasmparser::{CompositeInnerType, ExternalKind, FuncType, KnownCustom, Parser, Payload, TypeRef};

use crate::{error::Error, source::INITIALISERS};

/// The fence's name, and that of what it imports from the host.
pub(super) const FENCE: &str = "evalpool:fence";
pub(super) const HOST: &str = "evalpool:host";

const ENVIRONMENT: &str = extism::EXTISM_ENV_MODULE;

/// What of the kernel's is the fence's, with its type.
const FENCED: [(&str, &[wasmparser::ValType], &[wasmparser::ValType]); 5] = {
    use wasmparser::ValType::{I32, I64};
    [
        ("alloc", &[I64], &[I64]),
        ("store_u8", &[I64, I32], &[]),
        ("store_u64", &[I64, I64], &[]),
        ("output_set", &[I64, I64], &[]),
        ("reset", &[], &[]),
    ]
};

/// The rest of the kernel. It is WebAssembly, which fuel and interrupts reach.
const KERNEL: [&str; 15] = [
    "error_get",
    "error_set",
    "free",
    "input_length",
    "input_load_u64",
    "input_load_u8",
    "input_offset",
    "input_set",
    "length",
    "length_unsafe",
    "load_u64",
    "load_u8",
    "memory_bytes",
    "output_length",
    "output_offset",
];

/// Functions of WASI that take a number of buffers as their third parameter.
const OF_BUFFERS: [&str; 4] = ["fd_pread", "fd_pwrite", "fd_read", "fd_write"];
const MOST_BUFFERS: i32 = 16;

/// An export of the plugin's, which interrupts whatever else runs in its seat.
pub(super) const INTERRUPT: &str = "evalpool: interrupt";

/// The fence itself.
pub(super) fn module() -> Result<Vec<u8>, Error> {
    wat::parse_str(include_str!("fence.wat"))
        .map_err(|error| Error::internal("the fence of extism's kernel is broken", error.to_string()))
}

/// Where a plugin's imports come from, as far as it matters here.
pub(super) struct Surroundings<'a> {
    /// Names of modules that are WebAssembly themselves.
    pub(super) linked: HashSet<&'a str>,
    /// Modules and names of functions of the host that are not extism's.
    pub(super) host: HashSet<(&'a str, &'a str)>,
    /// Those of them that reach into a guest's memory without asking whether there is one yet.
    pub(super) native: HashSet<(&'a str, &'a str)>,
}

/// Which of a plugin's modules it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part<'a> {
    /// The one that is called, by this export.
    Plugin {
        entry_point: &'a str,
    },
    Linked,
}

/// A plugin, which is valid and known to compile in bounded time, with what belongs to the fence in it.
///
/// # Errors
///
/// `invalid_plugin` for a linked module that is a command (each call of it would be a new instance, which nothing counts),
/// and for exports with names that are ours.
/// `internal` for a module that is not valid.
pub(super) fn fenced(wasm: &[u8], part: Part<'_>, surroundings: &Surroundings<'_>) -> Result<Vec<u8>, Error> {
    let broken = |error: reencode::Error| Error::internal("a plugin could not be fenced", error.to_string());
    let plan = Plan::read(wasm, part, surroundings).map_err(|error| broken(error.into()))?;
    if let Some(name) = &plan.taken {
        return Err(Error::invalid_plugin(format!("it exports {name:?}, a name of this host's")));
    }
    if plan.is_command && matches!(part, Part::Linked) {
        return Err(Error::invalid_plugin("a module that others import from exports _start: it must not be a command"));
    }
    plan.encode(wasm).map_err(broken)
}

/// Functions that each module imports beside its own, after those.
#[derive(Debug, Clone, Copy)]
enum Added {
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
type Signature = (&'static [ValType], &'static [ValType]);

impl Added {
    const ALL: [(Added, &'static str, &'static str, Signature); 8] = [
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

/// What becomes of an imported function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It is imported from the fence.
    Fenced,
    /// WebAssembly: it is as it was.
    Wasm,
    /// The host's: whatever names it names a wrapper of it.
    Host(Wrapped),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wrapped {
    may_make_blocks: bool,
    is_native: bool,
    takes_buffers: bool,
}

#[derive(Debug, Clone, Copy)]
struct Import {
    ty: u32,
    role: Role,
    /// The wrapper, if it has one.
    stand_in: Option<u32>,
}

/// A function of the module's own, or of the host's, with something before it.
#[derive(Debug, Clone, Copy)]
enum Wrapper {
    /// One of the host's functions.
    Import(Wrapped),
    EntryPoint,
    Initialiser,
}

/// A module on its way to a fenced one.
struct Plan<'a> {
    part: Part<'a>,
    is_command: bool,
    /// An export with a name that is ours.
    taken: Option<String>,
    types: Vec<Option<FuncType>>,
    /// Imported functions.
    imports: Vec<Import>,
    /// The types of its own functions.
    functions: Vec<u32>,
    /// What follows its own functions: what each is, the function that it calls, and the type of both.
    wrappers: Vec<(Wrapper, u32, u32)>,
}

impl<'a> Plan<'a> {
    fn read(wasm: &[u8], part: Part<'a>, surroundings: &Surroundings<'_>) -> wasmparser::Result<Self> {
        let mut plan = Self {
            part,
            is_command: false,
            taken: None,
            types: Vec::new(),
            imports: Vec::new(),
            functions: Vec::new(),
            wrappers: Vec::new(),
        };
        for payload in Parser::new(0).parse_all(wasm) {
            match payload? {
                Payload::TypeSection(section) => {
                    for group in section {
                        plan.types.extend(group?.into_types().map(|ty| match ty.composite_type.inner {
                            CompositeInnerType::Func(ty) => Some(ty),
                            _ => None,
                        }));
                    }
                }
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        let import = import?;
                        if let TypeRef::Func(ty) = import.ty {
                            let role = plan.role(import.module, import.name, ty, surroundings);
                            plan.imports.push(Import { ty, role, stand_in: None });
                        }
                    }
                }
                Payload::FunctionSection(section) => plan.functions = section.into_iter().collect::<Result<_, _>>()?,
                Payload::ExportSection(section) => {
                    for export in section {
                        let name = export?.name;
                        plan.is_command |= name == "_start";
                        if name.starts_with("evalpool:") {
                            plan.taken = Some(name.chars().take(100).collect());
                        }
                    }
                }
                Payload::CodeSectionStart { .. } => break,
                _ => {}
            }
        }
        for index in 0..plan.imports.len() {
            let import = plan.imports[index];
            if let Role::Host(wrapped) = import.role {
                let stand_in = plan.wrap(Wrapper::Import(wrapped), len(&plan.imports[..index]), import.ty);
                plan.imports[index].stand_in = Some(stand_in);
            }
        }
        Ok(plan)
    }

    fn role(&self, module: &str, name: &str, ty: u32, surroundings: &Surroundings<'_>) -> Role {
        let is_native = surroundings.native.contains(&(module, name));
        let is_host = surroundings.host.contains(&(module, name));
        let wasi = module == "wasi_snapshot_preview1" && !is_host;
        let fenced = FENCED.into_iter().find(|(fenced, ..)| module == ENVIRONMENT && *fenced == name);
        if let Some((_, params, results)) = fenced {
            // Of another type it cannot be linked, which extism says better.
            let fits = self.ty(ty).is_some_and(|ty| ty.params() == params && ty.results() == results);
            return if fits { Role::Fenced } else { Role::Wasm };
        }
        let is_wasm = surroundings.linked.contains(module) || module == ENVIRONMENT && KERNEL.contains(&name);
        if is_wasm && !is_host {
            return Role::Wasm;
        }
        Role::Host(Wrapped { may_make_blocks: !wasi, is_native, takes_buffers: wasi && OF_BUFFERS.contains(&name) })
    }

    fn ty(&self, ty: u32) -> Option<&FuncType> {
        self.types.get(usize::try_from(ty).ok()?)?.as_ref()
    }

    /// The type of a function, by the index that the module knows it by.
    fn type_of(&self, function: u32) -> Option<u32> {
        let function = usize::try_from(function).ok()?;
        match self.imports.get(function) {
            Some(import) => Some(import.ty),
            None => self.functions.get(function - self.imports.len()).copied(),
        }
    }

    /// Adds a function that calls this one; its index.
    fn wrap(&mut self, wrapper: Wrapper, target: u32, ty: u32) -> u32 {
        let index = len(&self.imports) + len(&Added::ALL) + len(&self.functions) + len(&self.wrappers);
        self.wrappers.push((wrapper, target, ty));
        index
    }

    /// The same for one of the module's, by the index that the module knows it by.
    fn wrap_own(&mut self, wrapper: Wrapper, function: u32) -> Result<u32, reencode::Error> {
        let target = self.function_index(function)?;
        Ok(self.type_of(function).map_or(target, |ty| self.wrap(wrapper, target, ty)))
    }

    fn added(&self, added: Added) -> u32 {
        len(&self.imports) + added as u32
    }

    fn encode(mut self, wasm: &[u8]) -> Result<Vec<u8>, reencode::Error> {
        let mut parts = Parts::default();
        for payload in Parser::new(0).parse_all(wasm) {
            match payload? {
                Payload::TypeSection(section) => self.parse_type_section(&mut parts.types, section)?,
                Payload::ImportSection(section) => self.encode_imports(&mut parts.imports, section)?,
                Payload::FunctionSection(section) => self.parse_function_section(&mut parts.functions, section)?,
                Payload::TableSection(section) => self.parse_table_section(&mut parts.tables, section)?,
                Payload::MemorySection(section) => self.parse_memory_section(&mut parts.memories, section)?,
                Payload::GlobalSection(section) => self.parse_global_section(&mut parts.globals, section)?,
                Payload::ExportSection(section) => self.parse_export_section(&mut parts.exports, section)?,
                Payload::StartSection { func, .. } => {
                    parts.start = Some(self.wrap_own(Wrapper::Initialiser, func)?);
                }
                Payload::ElementSection(section) => self.parse_element_section(&mut parts.elements, section)?,
                Payload::DataCountSection { count, .. } => parts.data_count = Some(count),
                Payload::DataSection(section) => self.parse_data_section(&mut parts.data, section)?,
                Payload::CodeSectionEntry(body) => self.parse_function_body(&mut parts.code, body)?,
                // For who reads of a trap. Nobody has checked it.
                Payload::CustomSection(section) => {
                    if let KnownCustom::Name(names) = section.as_known() {
                        parts.names = self.custom_name_section(names).ok();
                    }
                }
                _ => {}
            }
        }
        for (added, module, name, (params, results)) in Added::ALL {
            parts.types.ty().function(params.iter().copied(), results.iter().copied());
            parts.imports.import(module, name, EntityType::Function(len(&self.types) + added as u32));
        }
        if let Part::Plugin { .. } = self.part {
            parts.exports.export(INTERRUPT, ExportKind::Func, self.added(Added::Interrupt));
        }
        for (wrapper, target, ty) in std::mem::take(&mut self.wrappers) {
            parts.functions.function(ty);
            parts.code.function(&self.body(wrapper, target, ty)?);
        }
        Ok(parts.finish())
    }

    fn encode_imports(
        &mut self,
        imports: &mut ImportSection,
        section: wasmparser::ImportSectionReader<'_>,
    ) -> Result<(), reencode::Error> {
        let mut functions = self.imports.clone().into_iter();
        for import in section.into_imports() {
            let import = import?;
            let is_function = matches!(import.ty, TypeRef::Func(_));
            let is_fenced = is_function && functions.next().is_some_and(|import| import.role == Role::Fenced);
            let module = if is_fenced { FENCE } else { import.module };
            imports.import(module, import.name, self.entity_type(import.ty)?);
        }
        Ok(())
    }

    /// The body of a wrapper of `target`.
    fn body(&mut self, wrapper: Wrapper, target: u32, ty: u32) -> Result<Function, reencode::Error> {
        let (params, results) = self.ty(ty).map_or((0, Vec::new()), |ty| (len(ty.params()), ty.results().to_vec()));
        let results = results.into_iter().map(|ty| self.val_type(ty)).collect::<Result<Vec<_>, _>>()?;
        let mut body = match wrapper {
            Wrapper::Import(_) => Function::new_with_locals_types(results.iter().copied()),
            _ => Function::new([]),
        };
        let call = |body: &mut Function, function| {
            body.instruction(&Instruction::Call(function));
        };
        match wrapper {
            Wrapper::EntryPoint => {
                call(&mut body, self.added(Added::Begun));
                call(&mut body, self.added(Added::Begin));
            }
            Wrapper::Initialiser => {
                call(&mut body, self.added(Added::InTime));
                body.instruction(&Instruction::I32Eqz);
                body.instruction(&Instruction::If(BlockType::Empty));
                for ty in &results {
                    body.instruction(&zero(*ty));
                }
                body.instruction(&Instruction::Return);
                body.instruction(&Instruction::End);
            }
            Wrapper::Import(Wrapped { is_native: true, .. }) => call(&mut body, self.added(Added::ReachesMemory)),
            Wrapper::Import(_) => {}
        }
        for param in 0..params {
            body.instruction(&Instruction::LocalGet(param));
            if param == 2 && matches!(wrapper, Wrapper::Import(Wrapped { takes_buffers: true, .. })) {
                body.instruction(&Instruction::I32Const(MOST_BUFFERS));
                body.instruction(&Instruction::LocalGet(param));
                body.instruction(&Instruction::I32Const(MOST_BUFFERS));
                body.instruction(&Instruction::I32LtU);
                body.instruction(&Instruction::Select);
            }
        }
        call(&mut body, target);
        if let Wrapper::Import(Wrapped { may_make_blocks: true, is_native, .. }) = wrapper {
            let locals: Vec<_> = (params..).zip(results).collect();
            for (local, _) in locals.iter().rev() {
                body.instruction(&Instruction::LocalSet(*local));
            }
            call(&mut body, self.added(if is_native { Added::ReturnedNative } else { Added::Returned }));
            for (local, ty) in &locals {
                if *ty == ValType::I64 && !is_native {
                    body.instruction(&Instruction::LocalGet(*local));
                    call(&mut body, self.added(Added::ReturnedValue));
                }
            }
            for (local, _) in &locals {
                body.instruction(&Instruction::LocalGet(*local));
            }
        }
        body.instruction(&Instruction::End);
        Ok(body)
    }
}

impl Reencode for Plan<'_> {
    type Error = Infallible;

    fn function_index(&mut self, function: u32) -> Result<u32, reencode::Error> {
        let import = usize::try_from(function).ok().and_then(|function| self.imports.get(function));
        Ok(match import {
            Some(import) => import.stand_in.unwrap_or(function),
            // What is called and what is not: names may be of functions that do not exist.
            None => function.saturating_add(len(&Added::ALL)),
        })
    }

    fn parse_export(
        &mut self,
        exports: &mut ExportSection,
        export: wasmparser::Export<'_>,
    ) -> Result<(), reencode::Error> {
        let is_entry_point = matches!(self.part, Part::Plugin { entry_point } if entry_point == export.name);
        let wrapper = match export.kind {
            ExternalKind::Func if INITIALISERS.contains(&export.name) => Wrapper::Initialiser,
            ExternalKind::Func if is_entry_point => Wrapper::EntryPoint,
            _ => return reencode::utils::parse_export(self, exports, export),
        };
        let index = self.wrap_own(wrapper, export.index)?;
        exports.export(export.name, ExportKind::Func, index);
        Ok(())
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

/// What is counted in modules is bounded by their size.
fn len<T>(all: &[T]) -> u32 {
    u32::try_from(all.len()).unwrap_or(u32::MAX)
}

/// The sections of a module, to be put together in their order.
#[derive(Default)]
struct Parts {
    types: TypeSection,
    imports: ImportSection,
    functions: FunctionSection,
    tables: TableSection,
    memories: MemorySection,
    globals: GlobalSection,
    exports: ExportSection,
    start: Option<u32>,
    elements: ElementSection,
    data_count: Option<u32>,
    code: CodeSection,
    data: DataSection,
    names: Option<NameSection>,
}

impl Parts {
    fn finish(self) -> Vec<u8> {
        let mut module = Module::new();
        module.section(&self.types).section(&self.imports).section(&self.functions);
        module.section(&self.tables).section(&self.memories).section(&self.globals).section(&self.exports);
        if let Some(function_index) = self.start {
            module.section(&StartSection { function_index });
        }
        module.section(&self.elements);
        if let Some(count) = self.data_count {
            module.section(&DataCountSection { count });
        }
        module.section(&self.code).section(&self.data);
        if let Some(names) = &self.names {
            module.section(names);
        }
        module.finish()
    }
}

#[cfg(test)]
mod tests;
