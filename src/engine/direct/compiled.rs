//! A compiled plugin: its modules, and where each of their imports comes from.

use std::{any::Any, collections::BTreeMap, sync::Arc};

use tokio::time::Instant;
use wasmtime::{Linker, Module, ModuleExport};

use super::{
    abi, functions, instance::DirectInstance, slots::MAX_LINKED, state::GuestState, variant::EngineVariant, wasi,
};
use crate::{
    clock,
    engine::{BoxFuture, CompileRequest, CompiledPlugin, HostFunction, Instance, InstanceLimits, Permit, http::Http},
    error::Error,
    source::Digest,
};

/// What a compiled plugin and its instances share. The permit goes last.
pub(super) struct Shared {
    /// In the order in which they are instantiated: whoever imports comes after whom it imports from, the plugin last.
    pub(super) modules: Vec<Linked>,
    /// Host functions, Extism's and the embedder's.
    pub(super) linker: Linker<GuestState>,
    pub(super) config: Arc<BTreeMap<String, String>>,
    pub(super) http: Http,
    pub(super) wasi: bool,
    pub(super) limits: InstanceLimits,
    pub(super) digest: Digest,
    pub(super) variant: Arc<EngineVariant>,
    _permit: Permit,
}

pub(super) struct Linked {
    pub(super) module: Module,
    pub(super) imports: Vec<Import>,
}

/// Where an import comes from.
pub(super) enum Import {
    /// The kernel instance of the same store.
    Accessor(ModuleExport),
    Host {
        module: String,
        name: String,
    },
    /// An earlier module of the same plugin.
    Module {
        index: usize,
        export: ModuleExport,
    },
}

/// The engine's compiled plugin; reach it through [`CompiledPlugin::as_any`].
pub struct Compiled {
    pub(super) shared: Arc<Shared>,
}

impl Compiled {
    /// The compiled module, of the wasmtime that this engine uses.
    #[must_use]
    pub fn module(&self) -> Option<&Module> {
        self.shared.modules.last().map(|linked| &linked.module)
    }

    /// Compiles, or loads what was compiled before. Blocks.
    pub(super) fn new(variant: Arc<EngineVariant>, request: CompileRequest) -> Result<Self, Error> {
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
        let mut modules: Vec<Linked> = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        for linked in request.linked.iter() {
            let module = variant.module(linked.digest, &linked.wasm, &request.limits)?;
            modules.push(link(&variant, &request.host_functions, &names, &modules, module)?);
            names.push(&linked.name);
        }
        let module = variant.module(request.digest, &request.wasm, &request.limits)?;
        modules.push(link(&variant, &request.host_functions, &names, &modules, module)?);
        let shared = Shared {
            modules,
            linker,
            http: Http::new(&request.allowed_hosts, request.limits.output_size),
            config: request.config,
            wasi: request.wasi,
            limits: request.limits,
            digest: request.digest,
            variant,
            _permit: request.permit,
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

/// Finds out once what each instance will need. What an embedder provides goes before what Extism has, and that before
/// other modules. Whether it is of the right type, the instantiation of the probe checks.
fn link(
    variant: &EngineVariant,
    functions: &[HostFunction],
    names: &[&str],
    modules: &[Linked],
    module: Module,
) -> Result<Linked, Error> {
    let mut imports = Vec::new();
    for import in module.imports() {
        let (from, name) = (import.module(), import.name());
        let by_embedder = functions.iter().any(|function| function.module() == from && function.name() == name);
        let accessor = || (from == abi::MODULE).then(|| variant.kernel.accessor(name)).flatten();
        let linked = names.iter().position(|linked| *linked == from);
        imports.push(if by_embedder {
            Import::Host { module: from.to_owned(), name: name.to_owned() }
        } else if let Some(export) = accessor() {
            Import::Accessor(export)
        } else if let Some(index) = linked {
            let export = modules[index].module.get_export_index(name);
            let missing = || Error::invalid_plugin(format!("it imports {from}::{name}, which {from} does not export"));
            Import::Module { index, export: export.ok_or_else(missing)? }
        } else {
            Import::Host { module: from.to_owned(), name: name.to_owned() }
        });
    }
    Ok(Linked { module, imports })
}

impl CompiledPlugin for Compiled {
    fn has_entry_point(&self, name: &str) -> bool {
        let ty = self.module().and_then(|module| module.get_export(name)?.func().cloned());
        ty.is_some_and(|ty| {
            let mut results = ty.results();
            ty.params().len() == 0 && results.next().is_none_or(|result| result.is_i32()) && results.next().is_none()
        })
    }

    fn instantiate(&self, permit: Permit) -> BoxFuture<'_, Result<Box<dyn Instance>, Error>> {
        Box::pin(async move {
            let deadline: Instant = clock::deadline(self.shared.limits.build_timeout);
            let instance = DirectInstance::new(&self.shared, permit, deadline).await?;
            Ok(Box::new(instance) as Box<dyn Instance>)
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
