//! A compiled plugin: its modules and what its instances share.

use std::{
    any::Any,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{runtime::Handle, task::spawn_blocking, time::timeout};
use wasmtime::Module;

use super::{
    code::Code,
    http::Clients,
    in_process,
    instance::DirectInstance,
    modules::Modules,
    once::{Once, Reading},
    state::PluginContext,
    variant::EngineVariant,
    workers::{Stop, Why},
};
use crate::{
    background, clock,
    engine::{BoxFuture, CompileRequest, CompiledPlugin, InitState, Instance, Permit, SnapshotInfo},
    error::{Error, panic_text},
};

/// Does `work` that compiles, on a thread that may block. In workers it ends after `within`, or when this future is dropped.
pub(super) async fn compiling<T: Send + 'static>(
    code: &Code,
    within: Duration,
    work: impl FnOnce(&Stop) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let stop = StopOnDrop(Arc::default());
    let stopped = stop.0.clone();
    let work = spawn_blocking(move || work(&stopped));
    let done = if code.workers.is_some() {
        let Ok(done) = timeout(within, work).await else {
            if let Some(terms) = stop.0.stop(Why::Timeout) {
                code.over_time(terms);
            }
            return Err(Error::build_timeout(within));
        };
        done
    } else {
        work.await
    };
    done.map_err(|error| match error.try_into_panic() {
        Ok(panic) => in_process::panicked(panic_text(&*panic)),
        Err(error) => Error::internal("compiling did not finish", error),
    })?
}

/// Ends a compile that nobody waits for any more.
struct StopOnDrop(Arc<Stop>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        // Does nothing once the compile has ended.
        self.0.stop(Why::Unwanted);
    }
}

/// The engine's compiled plugin; reach it through [`CompiledPlugin::as_any`].
pub struct Compiled(Arc<Inner>);

struct Inner {
    modules: Modules,
    /// Dropped last: it holds the permit.
    context: Arc<PluginContext>,
}

impl Compiled {
    /// The compiled module, of the wasmtime that this engine uses.
    #[must_use]
    pub fn module(&self) -> Option<&Module> {
        self.0.modules.main()
    }

    /// Whether Extism's kernel is in that module. It is beside it where the plugin is linked with other modules, or where a
    /// host function stands in for one of the kernel's.
    #[must_use]
    pub fn has_kernel(&self) -> bool {
        self.0.modules.has_kernel()
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
            log: request.log,
            digest: request.digest,
            wide: request.wide,
            wasi: request.wasi,
            once: modules.once.is_some(),
            ticker: modules.variant.ticker.clone(),
            tenant: request.tenant,
            share: modules.variant.share.clone(),
            _permit: request.permit,
        };
        Ok(Self(Arc::new(Inner { modules, context: Arc::new(context) })))
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
            let Inner { modules, context } = &*self.0;
            let within = context.limits.build_timeout;
            let read = match modules.once.as_ref().and_then(Once::next_is_read) {
                // If it fails, there is time left for one that need not be read.
                Some(reading) if reading.is_anew() => self.0.read(reading, permit.clone(), within / 2).await.ok(),
                Some(reading) => Some(self.0.read(reading, permit.clone(), within).await?),
                None => None,
            };
            let instance = if let Some(instance) = read {
                instance
            } else {
                let begun = modules.once.as_ref().and_then(Once::made);
                DirectInstance::new(modules, context, begun, permit, clock::deadline(within)).await?
            };
            Ok(Box::new(instance) as Box<dyn Instance>)
        })
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<(), Error>> {
        let Inner { modules, context } = &*self.0;
        let code = &modules.variant.code;
        // A worker uses one thread for what nobody waits for.
        let cores = || std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
        let width = if code.workers.is_some() { 1 } else { cores() };
        // Before the future is polled, so that it ends the attempt if it never is.
        let attempt = modules.once.as_ref().and_then(|once| once.attempt(width));
        Box::pin(async move {
            let Some(attempt) = attempt else { return Ok(()) };
            // What compiles has all that it works for, the permit included: a close waits until it has ended.
            let (inner, recorded) = (self.0.clone(), attempt.recorded());
            let compile = move |stop: &Stop| inner.modules.snapshot(&recorded, &inner.context, stop);
            let made = compiling(code, context.limits.build_timeout, compile).await;
            attempt.ended(made)
        })
    }

    fn init_state(&self) -> InitState {
        self.0.modules.once.as_ref().map_or(InitState::Each, Once::told)
    }

    fn snapshot_info(&self) -> Option<SnapshotInfo> {
        self.0.modules.once.as_ref()?.info()
    }

    fn read_anew(&self) -> Option<BoxFuture<'static, ()>> {
        self.0.modules.once.as_ref()?.read_anew()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Inner {
    /// Makes an instance that initialises itself, and reads it on a thread of the crate's own that may block. If none takes it
    /// before the time is over, it is used as it is, and another is read later.
    async fn read(
        self: &Arc<Self>,
        reading: Reading<'_>,
        permit: Permit,
        within: Duration,
    ) -> Result<DirectInstance, Error> {
        let deadline = clock::deadline(within);
        let made = match DirectInstance::new(&self.modules, &self.context, None, permit, deadline).await {
            Ok(instance) => instance,
            Err(error) => {
                reading.failed();
                return Err(error);
            }
        };
        // In this order: the instance goes before its code, wherever it goes. And here, if nobody waits for it any more.
        let made = Arc::new(Mutex::new(Some((made, self.clone()))));
        let (taken, of) = (Arc::downgrade(&made), reading.of());
        let threads = background::own().unwrap_or_else(|_| Handle::current());
        let mut read = threads.spawn_blocking(move || {
            let mut made = take(&*taken.upgrade()?)?;
            let read = made.0.record(&of.recorder);
            Some((made, read))
        });
        let ended = match clock::timeout_at(deadline, &mut read).await {
            Ok(ended) => ended,
            Err(_) => match take(&made) {
                Some((instance, _)) => return Ok(instance),
                // It takes milliseconds.
                None => read.await,
            },
        };
        let gone = |why: String| Error::internal("an instance could not be read", why);
        let ended = ended.map_err(|error| gone(error.to_string()))?;
        let ((instance, _), read) = ended.ok_or_else(|| gone("it is gone".into()))?;
        reading.done(read, &self.context.memory);
        Ok(instance)
    }
}

/// An instance and what it is made of.
type Made = (DirectInstance, Arc<Inner>);

fn take(made: &Mutex<Option<Made>>) -> Option<Made> {
    // Nothing panics under it.
    made.lock().unwrap_or_else(PoisonError::into_inner).take()
}
