//! What becomes of a module: where its imports come from, which of its exports are wrapped, and the module that this makes.

use std::convert::Infallible;

use wasm_encoder::{
    EntityType, ExportKind, ExportSection, ImportSection,
    reencode::{self, Reencode},
};
use wasmparser::{CompositeInnerType, ExternalKind, FuncType, KnownCustom, Parser, Payload, TypeRef};

use super::{
    FENCE, INTERRUPT, Part, Surroundings,
    parts::Parts,
    wrapper::{Added, Wrapper},
};
use crate::{
    engine::environment::{ENVIRONMENT, KERNEL},
    source::INITIALISERS,
};

const WASI: &str = "wasi_snapshot_preview1";

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

/// Functions of WASI that take a number of buffers as their third parameter.
const OF_BUFFERS: [&str; 4] = ["fd_pread", "fd_pwrite", "fd_read", "fd_write"];

/// What becomes of an imported function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It is imported from the fence.
    Fenced,
    /// WebAssembly: it is as it was.
    Wasm,
    /// The host's: whatever names it names a wrapper of it.
    Wrapped(Wrapper),
}

#[derive(Debug, Clone, Copy)]
struct Import {
    ty: u32,
    role: Role,
    /// The wrapper, if it has one.
    stand_in: Option<u32>,
}

/// A module on its way to a fenced one.
pub(super) struct Plan<'a> {
    part: Part<'a>,
    pub(super) is_command: bool,
    /// Whether it has code that runs before it is called.
    pub(super) initialises: bool,
    /// An export with a name that is ours.
    pub(super) taken: Option<String>,
    types: Vec<Option<FuncType>>,
    /// Imported functions.
    imports: Vec<Import>,
    /// The types of its own functions.
    functions: Vec<u32>,
    /// What follows its own functions: what each is, the function that it calls, and the type of both.
    wrappers: Vec<(Wrapper, u32, u32)>,
}

impl<'a> Plan<'a> {
    pub(super) fn read(wasm: &[u8], part: Part<'a>, surroundings: &Surroundings<'_>) -> wasmparser::Result<Self> {
        let mut plan = Self {
            part,
            is_command: false,
            initialises: false,
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
                        plan.initialises |= INITIALISERS.contains(&name);
                        if name.starts_with("evalpool:") {
                            plan.taken = Some(name.chars().take(100).collect());
                        }
                    }
                }
                Payload::StartSection { .. } => plan.initialises = true,
                Payload::CodeSectionStart { .. } => break,
                _ => {}
            }
        }
        for index in 0..plan.imports.len() {
            let import = plan.imports[index];
            if let Role::Wrapped(wrapper) = import.role {
                let stand_in = plan.wrap(wrapper, len(&plan.imports[..index]), import.ty);
                plan.imports[index].stand_in = Some(stand_in);
            }
        }
        Ok(plan)
    }

    fn role(&self, module: &str, name: &str, ty: u32, surroundings: &Surroundings<'_>) -> Role {
        let fenced = FENCED.into_iter().find(|(fenced, ..)| module == ENVIRONMENT && *fenced == name);
        if let Some((_, params, results)) = fenced {
            // Of another type it cannot be linked, which extism says better.
            let fits = self.ty(ty).is_some_and(|ty| ty.params() == params && ty.results() == results);
            return if fits { Role::Fenced } else { Role::Wasm };
        }
        // Of several, the last is linked.
        let function = surroundings.functions.iter().rfind(|function| function.is(module, name));
        let is_linked = surroundings.linked.iter().any(|linked| linked.name == module);
        Role::Wrapped(match (function, module) {
            (Some(function), _) if function.is_native() => Wrapper::Native,
            // Fuel and interrupts reach it.
            (None, ENVIRONMENT) if KERNEL.contains(&name) => return Role::Wasm,
            (None, _) if is_linked => return Role::Wasm,
            (None, WASI) => Wrapper::Wasi { takes_buffers: OF_BUFFERS.contains(&name) },
            _ => Wrapper::Host,
        })
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

    pub(super) fn encode(mut self, wasm: &[u8]) -> Result<Vec<u8>, reencode::Error> {
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
            let (params, results) = self.ty(ty).map_or((0, Vec::new()), |ty| (len(ty.params()), ty.results().to_vec()));
            let results = results.into_iter().map(|ty| self.val_type(ty)).collect::<Result<Vec<_>, _>>()?;
            parts.functions.function(ty);
            parts.code.function(&wrapper.body(len(&self.imports), target, params, &results));
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

/// What is counted in modules is bounded by their size.
pub(super) fn len<T>(all: &[T]) -> u32 {
    u32::try_from(all.len()).unwrap_or(u32::MAX)
}
