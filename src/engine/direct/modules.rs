//! A plugin's modules: where each import comes from, and how an instance is made of them.

use std::{
    io::ErrorKind,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OwnedSemaphorePermit;
use wasmtime::{ExternType, Instance, InstancePre, Linker, Module, ModuleExport, Store, ValType};

use super::{
    abi, classify,
    code::{InUse, Room},
    functions,
    kernel::Kernel,
    once::{Once, Recorded, Snapshot},
    prepare::{self, Recorder, Subject},
    state::{GuestState, PluginContext},
    tunables::FIRST_HEAP,
    variant::EngineVariant,
    wasi,
    workers::Stop,
};
use crate::{
    config::Init,
    engine::{Charge, CompileRequest, HostFunction, MAX_LINKED, NO_INITIALISERS},
    error::Error,
    source::Digest,
};

/// The modules of one plugin, linked.
pub(super) struct Modules {
    /// The plugin's own module with the kernel in it, ready to be instantiated. Without: the kernel is beside it. It goes before
    /// its code does.
    whole: Option<Whole>,
    /// Where it is to be initialised once.
    pub(super) once: Option<Once>,
    /// In the order of instantiation: a module comes after those that it imports from, the plugin itself last.
    linked: Vec<Linked>,
    /// Host functions, Extism's and the embedder's.
    linker: Linker<GuestState>,
    pub(super) variant: Arc<EngineVariant>,
    /// The charge of the first instance, until that is made and has its own.
    first: Mutex<Option<Charge>>,
}

struct Linked {
    module: InUse,
    imports: Vec<Import>,
    initialisers: Initialisers,
}

struct Whole {
    ready: InstancePre<GuestState>,
    memory: ModuleExport,
}

/// Where an import comes from.
enum Import {
    /// The kernel instance of the same store.
    Accessor(ModuleExport),
    /// A host function, by its module and name.
    Host(String, String),
    /// An earlier module of the same plugin, by its index.
    Module(usize, ModuleExport),
}

impl Modules {
    /// Compiles the modules, or takes what was compiled before, and links them. Blocks; `stop` ends a compile in a worker.
    pub(super) fn new(variant: Arc<EngineVariant>, request: &CompileRequest, stop: &Stop) -> Result<Self, Error> {
        if request.linked.len() > MAX_LINKED {
            let text = format!("the direct engine links at most {MAX_LINKED} modules with a plugin");
            return Err(Error::invalid_request(text));
        }
        let mut linker = variant.abi.clone();
        linker.allow_shadowing(true);
        if request.wasi {
            wasi::link(&mut linker).map_err(|error| Error::internal("WASI cannot be linked", error.to_string()))?;
        }
        for function in request.host_functions.iter() {
            functions::link(&mut linker, function)?;
        }
        let mut this = Self {
            linked: Vec::with_capacity(request.linked.len() + 1),
            linker,
            whole: None,
            variant,
            once: None,
            first: Mutex::default(),
        };
        let names: Vec<&str> = request.linked.iter().map(|linked| linked.name.as_str()).collect();
        let mut room = Room { account: &request.memory, stop, image: 0, names: 0, instance: 0, first: None };
        let all = request.linked.iter().map(|linked| (linked.digest, &linked.wasm));
        // Linked modules would have to import the kernel from the plugin, which imports from them.
        let once = request.init == Init::Once;
        let links = request.linked.is_empty() && !this.replaces_accessors(&request.host_functions);
        for (digest, wasm) in all.chain([(request.digest, &request.wasm)]) {
            let is_main = this.linked.len() == request.linked.len();
            if is_main {
                // With its code there is room for an instance.
                let heap = if request.wide { FIRST_HEAP } else { 0 };
                room.instance = request.initial_memory.saturating_add(Kernel::INITIAL + heap);
            }
            let mut terms = this.variant.terms(digest, links, &request.limits);
            terms.recorded = once && links && !request.wide;
            terms.priority = request.priority;
            let module = this.variant.module(terms, Subject { wasm, state: &[] }, &request.limits, &mut room)?;
            if let Some(memory) = prepare::kernel_memory(&module, digest).filter(|_| links) {
                let ready = this.linker.instantiate_pre(&module);
                let ready = ready.map_err(|error| classify::invalid(&error, &request.limits))?;
                this.whole = Some(Whole { ready, memory });
            }
            let imports = this.imports(&module, &names, &request.host_functions)?;
            let initialisers = Initialisers::of(&module, is_main, digest);
            if is_main && once {
                let recorder = this.recorder(&module, &initialisers, request);
                let (every, refreshes) = (request.init_refresh, this.variant.refreshes.clone());
                this.once = Some(Once::new(recorder, wasm, every, request.tenant, refreshes));
            }
            this.linked.push(Linked { module, imports, initialisers });
        }
        // There is one slot for each.
        let mut modules = this.linked.iter().zip(&names);
        if let Some((_, name)) = modules.find(|(linked, _)| linked.module.resources_required().num_memories > 1) {
            let text = format!("multi-memory: {name}, which it is linked with, has more than one memory");
            return Err(Error::invalid_plugin(text));
        }
        this.first = Mutex::new(room.first);
        Ok(this)
    }

    /// How the state of an instance is read when its initialisers have run; or why others cannot begin with it.
    fn recorder(&self, module: &Module, own: &Initialisers, request: &CompileRequest) -> Result<Recorder, String> {
        if !request.linked.is_empty() {
            return Err("it is linked with other modules".into());
        }
        if request.wide {
            return Err("it uses externref or collected references, exceptions or several memories".into());
        }
        if self.replaces_accessors(&request.host_functions) {
            return Err("host functions take the place of the kernel's".into());
        }
        if own.start.is_none() && own.first.is_none() && own.haskell.is_none() {
            return Err(NO_INITIALISERS.into());
        }
        Recorder::of(module, request.digest)
    }

    /// Compiles what later instances [begin with](Once). Blocks; `stop` ends a compile in a worker.
    pub(super) fn snapshot(&self, recorded: &Recorded, context: &PluginContext, stop: &Stop) -> Result<(), Error> {
        let (Some(once), Some(main)) = (&self.once, self.linked.last()) else { return Ok(()) };
        // Nothing has to go for what nobody waits for. The code is about as large as that of the plugin as it is.
        let bytes = main.module.charge().bytes().saturating_add(recorded.image());
        if !context.memory.has_room(bytes) {
            let why = "it would take what others use of pool.memory";
            return Err(Error::overloaded("no room for a snapshot", why, &ErrorKind::OutOfMemory.into()));
        }
        once.compile(recorded, &self.variant, &self.linker, context, stop)
    }

    /// Whether the embedder has functions in place of the kernel's own.
    fn replaces_accessors(&self, functions: &[HostFunction]) -> bool {
        functions
            .iter()
            .any(|function| function.module == abi::MODULE && self.variant.kernel.accessor(&function.name).is_some())
    }

    /// Resolves names once for all instances. The embedder's host functions come before Extism's, and those before
    /// linked modules. Types are checked when the probe is instantiated.
    fn imports(&self, module: &Module, names: &[&str], functions: &[HostFunction]) -> Result<Vec<Import>, Error> {
        let find = |import: wasmtime::ImportType<'_>| {
            let (from, name) = (import.module(), import.name());
            let by_host = || Ok(Import::Host(from.to_owned(), name.to_owned()));
            if functions.iter().any(|function| function.is(from, name)) {
                return by_host();
            }
            if from == abi::MODULE
                && let Some(export) = self.variant.kernel.accessor(name)
            {
                return Ok(Import::Accessor(export));
            }
            let earlier = names.iter().zip(&self.linked).enumerate().find(|(_, (linked, _))| **linked == from);
            let Some((index, (_, linked))) = earlier else { return by_host() };
            let missing = || Error::invalid_plugin(format!("it imports {from}::{name}, which {from} does not export"));
            let export =
                linked.module.get_export_index(name).filter(|_| !prepare::is_ours(name)).ok_or_else(missing)?;
            Ok(Import::Module(index, export))
        };
        module.imports().map(find).collect()
    }

    /// Whether the kernel is in the plugin's own module.
    pub(super) fn has_kernel(&self) -> bool {
        self.whole.is_some()
    }

    /// The plugin's own module.
    pub(super) fn main(&self) -> Option<&Module> {
        self.linked.last().map(|linked| &*linked.module)
    }

    /// Slots for the linked modules of one instance, for as long as it exists. All instances share what there is.
    pub(super) fn slots_of_linked(&self) -> Result<Option<OwnedSemaphorePermit>, Error> {
        let count = u32::try_from(self.linked.len().saturating_sub(1)).unwrap_or(u32::MAX);
        if count == 0 {
            return Ok(None);
        }
        let taken = self.variant.linked.clone().try_acquire_many_owned(count);
        taken.map(Some).map_err(|_| {
            let why = "those of other instances take all slots; there are half as many as pool.max_instances";
            Error::overloaded("no slots for linked modules", why, &ErrorKind::OutOfMemory.into())
        })
    }

    /// Instantiates the kernel, then each module with its initialisers; or what has `begun` already.
    pub(super) async fn instantiate(
        &self,
        store: &mut Store<GuestState>,
        begun: Option<&Snapshot>,
    ) -> wasmtime::Result<(Instance, Kernel)> {
        // The limiter charges the same in a moment.
        drop(self.first.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(begun) = begun {
            let instance = begun.ready.instantiate_async(&mut *store).await?;
            Kernel::is_in(store, instance, &begun.memory);
            store.data_mut().begin_as(&begun.host);
            return Ok((instance, Kernel::of(&*store)?));
        }
        if let (Some(whole), Some(main)) = (&self.whole, self.linked.last()) {
            let instance = whole.ready.instantiate_async(&mut *store).await?;
            Kernel::is_in(store, instance, &whole.memory);
            main.initialisers.run(instance, store).await?;
            return Ok((instance, Kernel::of(&*store)?));
        }
        let kernel = self.variant.kernel.instantiate(store).await?;
        let mut instances: Vec<Instance> = Vec::with_capacity(self.linked.len());
        for linked in &self.linked {
            let mut externs = Vec::with_capacity(linked.imports.len());
            for import in &linked.imports {
                let found = match import {
                    Import::Accessor(export) => kernel.get_module_export(&mut *store, export),
                    Import::Host(module, name) => Some(self.linker.get(&mut *store, module, name)?),
                    Import::Module(index, export) => {
                        instances.get(*index).and_then(|instance| instance.get_module_export(&mut *store, export))
                    }
                };
                externs.push(found.ok_or_else(|| wasmtime::Error::msg("an import is gone"))?);
            }
            let instance = Instance::new_async(&mut *store, &linked.module, &externs).await?;
            instances.push(instance);
            linked.initialisers.run(instance, store).await?;
        }
        let main = instances.pop().ok_or_else(|| wasmtime::Error::msg("a plugin without a module"))?;
        Ok((main, Kernel::of(&*store)?))
    }
}

/// What toolchains export to initialise their language.
#[derive(Default)]
struct Initialisers {
    /// The module's own, if the host is to call it.
    start: Option<ModuleExport>,
    /// C++'s constructors, or a WASI reactor's.
    first: Option<ModuleExport>,
    /// Haskell's, which may take arguments.
    haskell: Option<ModuleExport>,
    /// It is none: the plugin is not valid.
    wrong: bool,
}

impl Initialisers {
    /// Those that Extism runs: Haskell's, else C++'s constructors, else a WASI reactor's.
    fn of(module: &Module, is_main: bool, digest: Digest) -> Self {
        let has = |name: &str| matches!(module.get_export(name), Some(ExternType::Func(_)));
        let plain = |name: &str| {
            let ty = module.get_export(name).and_then(|export| export.func().cloned());
            ty.is_some_and(|ty| ty.params().len() == 0 && ty.results().len() == 0)
        };
        let constructors = is_main && has("__wasm_call_ctors") && !has("hs_init");
        let first = if constructors { "__wasm_call_ctors" } else { "_initialize" };
        let export = |name: &str| module.get_export_index(name);
        Self {
            start: prepare::start(module, digest),
            first: export(first).filter(|_| plain(first)),
            haskell: export("hs_init").filter(|_| is_main && has("hs_init")),
            wrong: has("_initialize") && !plain("_initialize") && !has("_start"),
        }
    }

    async fn run(&self, instance: Instance, store: &mut Store<GuestState>) -> wasmtime::Result<()> {
        let mut find = |export: &Option<ModuleExport>| {
            let found = instance.get_module_export(&mut *store, export.as_ref()?);
            found.and_then(wasmtime::Extern::into_func)
        };
        let (start, first, haskell) = (find(&self.start), find(&self.first), find(&self.haskell));
        if let Some(start) = start {
            start.typed::<(), ()>(&mut *store)?.call_async(&mut *store, ()).await?;
        }
        if self.wrong {
            return Err(wasmtime::Error::msg("its _initialize takes parameters or gives results"));
        }
        if let Some(first) = first {
            first.typed::<(), ()>(&mut *store)?.call_async(&mut *store, ()).await?;
        }
        if let Some(init) = haskell {
            let ty = init.ty(&*store);
            let zero = |ty: ValType| wasmtime::Val::default_for_ty(&ty).unwrap_or(wasmtime::Val::I32(0));
            let args: Vec<_> = ty.params().map(zero).collect();
            let mut results: Vec<_> = ty.results().map(zero).collect();
            init.call_async(&mut *store, &args, &mut results).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use wasmtime::Engine;

    use super::*;

    #[test]
    fn haskells_initialiser_goes_before_cs_and_those_two_run_in_the_plugin_itself_alone() {
        const HASKELL: &str = r#"(func (export "hs_init") (param i32 i32))"#;
        const C: &str = r#"(func (export "__wasm_call_ctors"))"#;
        const REACTOR: &str = r#"(func (export "_initialize"))"#;
        const WRONG: &str = r#"(func (export "_initialize") (param i32))"#;
        let no_function = r#"(global (export "hs_init") i32 (i32.const 0))"#;
        let gives = r#"(func (export "__wasm_call_ctors") (result i32) i32.const 0)"#;
        let command = format!(r#"{WRONG} (func (export "_start"))"#);
        // Haskell's, the first, and whether the plugin is wrong.
        for (exports, of_plugin, of_linked) in [
            (HASKELL, (true, false, false), (false, false, false)),
            (no_function, (false, false, false), (false, false, false)),
            (C, (false, true, false), (false, false, false)),
            (gives, (false, false, false), (false, false, false)),
            (REACTOR, (false, true, false), (false, true, false)),
            (WRONG, (false, false, true), (false, false, true)),
            (&command, (false, false, false), (false, false, false)),
            (&format!("{HASKELL} {C}"), (true, false, false), (false, false, false)),
            (&format!("{HASKELL} {C} {REACTOR}"), (true, true, false), (false, true, false)),
        ] {
            let module = wat::parse_str(format!("(module {exports})")).unwrap();
            let module = Module::new(&Engine::default(), module).unwrap();
            for (is_main, wanted) in [(true, of_plugin), (false, of_linked)] {
                let found = Initialisers::of(&module, is_main, Digest::of(b"plugin"));
                let found = (found.haskell.is_some(), found.first.is_some(), found.wrong);
                assert_eq!(found, wanted, "{exports} {is_main}");
            }
        }
    }
}
