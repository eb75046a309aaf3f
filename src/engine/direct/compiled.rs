//! A compiled plugin: its modules and what its instances share.

use std::{any::Any, sync::Arc};

use wasmtime::Module;

use super::{
    http::Clients, instance::DirectInstance, modules::Modules, state::PluginContext, variant::EngineVariant,
    workers::Stop,
};
use crate::{
    clock,
    engine::{BoxFuture, CompileRequest, CompiledPlugin, Instance, Permit},
    error::Error,
};

/// The engine's compiled plugin; reach it through [`CompiledPlugin::as_any`].
pub struct Compiled {
    modules: Modules,
    /// Dropped last: it holds the permit.
    context: Arc<PluginContext>,
}

impl Compiled {
    /// The compiled module, of the wasmtime that this engine uses.
    #[must_use]
    pub fn module(&self) -> Option<&Module> {
        self.modules.main()
    }

    /// Compiles the plugin, or takes what was compiled before. Blocks; `stop` ends a compile in a worker.
    pub(super) fn new(
        variant: Arc<EngineVariant>,
        clients: &Clients,
        request: CompileRequest,
        stop: &Stop,
    ) -> Result<Self, Error> {
        let http = clients.of_plugin(&request.allowed_hosts, request.limits.output_size);
        let http = http.map_err(|why| Error::invalid_request(format!("allowed_hosts has {why}")))?;
        let modules = Modules::new(variant, &request, stop)?;
        let context = PluginContext {
            http,
            config: request.config,
            kept: request.variables,
            limits: request.limits,
            memory: request.memory,
            evaluator: request.evaluator,
            labels: request.labels,
            digest: request.digest,
            wide: request.wide,
            wasi: request.wasi,
            ticker: modules.variant.ticker.clone(),
            tenant: request.tenant,
            share: modules.variant.share.clone(),
            _permit: request.permit,
        };
        Ok(Self { modules, context: Arc::new(context) })
    }
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
            let deadline = clock::deadline(self.context.limits.build_timeout);
            let instance = DirectInstance::new(&self.modules, &self.context, permit, deadline).await?;
            Ok(Box::new(instance) as Box<dyn Instance>)
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
