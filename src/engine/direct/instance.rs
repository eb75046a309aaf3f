//! One guest and its calls.

use std::{panic::AssertUnwindSafe, sync::Arc};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::Instant;
use wasmtime::{Extern, ExternType, Module, Store, TypedFunc, UpdateDeadline, ValType};

use super::{
    classify::{self, Failure, HostTrap},
    compiled::{Import, Shared},
    kernel::{Kernel, Output},
    state::GuestState,
};
use crate::{
    clock,
    engine::{
        BoxFuture, Instance, Permit,
        host::{in_guest, panic_text},
        http::Response,
        log::LogBudget,
    },
    error::Error,
};

/// Of what one call of WASI's may make the host hold for it, in bytes.
const HOSTCALL_BYTES: usize = 1 << 20;

/// In the order in which it is given back. Alone on its cache lines, as its neighbours are called by other threads.
#[repr(align(128))]
struct Guest {
    store: Store<GuestState>,
    instance: wasmtime::Instance,
    kernel: Kernel,
    entry: Option<(String, Entry)>,
    _permit: Permit,
}

/// An entry point's function, by its shape.
enum Entry {
    Silent(TypedFunc<(), ()>),
    Coded(TypedFunc<(), i32>),
}

pub(super) struct DirectInstance {
    /// `None` while a call has it, and for good after a call that left it unsound.
    guest: Option<Box<Guest>>,
}

impl DirectInstance {
    /// Instantiates the kernel and the plugin's modules, and runs their initialisers, all before `deadline`.
    pub(super) async fn new(shared: &Arc<Shared>, permit: Permit, deadline: Instant) -> Result<Self, Error> {
        let made = in_guest(AssertUnwindSafe(instantiate(shared, deadline)).catch_unwind());
        let (store, instance, kernel) = match clock::timeout_at(deadline, made).await {
            Ok(Ok(made)) => made.map_err(|error| classify::invalid(&error, &shared.limits))?,
            Ok(Err(panic)) => return Err(Error::internal("a host function panicked", panic_text(&*panic))),
            Err(_) => return Err(Error::BuildTimeout { after: shared.limits.build_timeout }),
        };
        Ok(Self { guest: Some(Box::new(Guest { store, instance, kernel, entry: None, _permit: permit })) })
    }
}

impl Instance for DirectInstance {
    fn call<'a>(
        &'a mut self,
        entry_point: &'a str,
        input: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(in_guest(async move {
            // Dropped with this future, should it be.
            let Some(mut guest) = self.guest.take() else {
                return Err(Error::Internal { reason: "an unsound instance was called", cause: None });
            };
            match AssertUnwindSafe(guest.call(entry_point, &input, deadline)).catch_unwind().await {
                Ok(Ok((output, is_sound))) => {
                    self.guest = is_sound.then_some(guest);
                    Ok(output)
                }
                Ok(Err(failure)) => {
                    self.guest = failure.is_sound.then_some(guest);
                    Err(failure.error)
                }
                Err(panic) => Err(Error::internal("a host function panicked", panic_text(&*panic))),
            }
        }))
    }

    fn is_sound(&self) -> bool {
        self.guest.is_some()
    }
}

impl Guest {
    async fn call(&mut self, entry_point: &str, input: &[u8], deadline: Instant) -> Result<(Bytes, bool), Failure> {
        let limits = self.store.data().shared.limits;
        let permit = self.store.data().run_permit.handle();
        let returned = permit.run(self.run(entry_point, input, deadline)).await;
        self.store.data_mut().run_permit.rest();
        let said = self.kernel.error(&self.store);
        let finished = classify::of_call(returned, said, &limits)?;
        match self.kernel.output(&self.store, limits.output_size) {
            Output::Bytes(output) => Ok((output, finished.is_sound)),
            Output::TooLarge => {
                Err(Failure { error: Error::OutputTooLarge { limit: limits.output_size }, is_sound: finished.is_sound })
            }
            Output::Nowhere => {
                let message = "its output is not within its memory".to_owned();
                Err(Failure { error: Error::GuestError { message }, is_sound: finished.is_sound })
            }
        }
    }

    async fn run(&mut self, entry_point: &str, input: &[u8], deadline: Instant) -> wasmtime::Result<i32> {
        let state = self.store.data_mut();
        state.deadline = deadline;
        state.log = LogBudget::default();
        state.http = Response::default();
        self.store.set_epoch_deadline(1);
        self.store.data().shared.variant.ticker.wake();
        if let Some(fuel) = self.store.data().shared.limits.fuel {
            self.store.set_fuel(fuel)?;
        }
        self.kernel.begin(&mut self.store, input)?;
        if self.entry.as_ref().is_none_or(|(known, _)| known != entry_point) {
            self.entry = Some((entry_point.to_owned(), self.find(entry_point)?));
        }
        // By reference: a clone would count references to a type, in a word that all guests share.
        match &self.entry {
            Some((_, Entry::Silent(entry))) => entry.call_async(&mut self.store, ()).await.map(|()| 0),
            Some((_, Entry::Coded(entry))) => entry.call_async(&mut self.store, ()).await,
            None => Err(HostTrap::Broken("an entry point that was found is gone".into()).into()),
        }
    }

    fn find(&mut self, name: &str) -> wasmtime::Result<Entry> {
        let missing = || HostTrap::Failed(format!("Function not found: {name}"));
        let function = self.instance.get_func(&mut self.store, name).ok_or_else(missing)?;
        Ok(match function.typed::<(), i32>(&self.store) {
            Ok(coded) => Entry::Coded(coded),
            Err(_) => Entry::Silent(function.typed::<(), ()>(&self.store)?),
        })
    }
}

async fn instantiate(
    shared: &Arc<Shared>,
    deadline: Instant,
) -> wasmtime::Result<(Store<GuestState>, wasmtime::Instance, Kernel)> {
    let variant = &shared.variant;
    let mut store = Store::new(&variant.engine, GuestState::new(shared.clone(), deadline));
    store.limiter(|state| &mut state.budget);
    store.set_epoch_deadline(1);
    store.set_hostcall_fuel(HOSTCALL_BYTES);
    variant.ticker.wake();
    store.epoch_deadline_callback(|mut context| {
        let state = context.data_mut();
        if Instant::now() >= state.deadline {
            return Err(HostTrap::Deadline.into());
        }
        let (tick, variant) = (state.run_permit.tick(), state.shared.variant.clone());
        Ok(UpdateDeadline::YieldCustom(
            1,
            Box::pin(async move {
                tick.await;
                // Last: it may have waited for long.
                variant.ticker.wake();
            }),
        ))
    });
    if let Some(fuel) = shared.limits.fuel {
        store.set_fuel(fuel)?;
    }
    let permit = store.data().run_permit.handle();
    let (main, kernel) = permit.run(link(shared, &mut store)).await?;
    store.data_mut().run_permit.rest();
    Ok((store, main, kernel))
}

/// Instantiates the kernel and all modules, and initialises them.
async fn link(shared: &Arc<Shared>, store: &mut Store<GuestState>) -> wasmtime::Result<(wasmtime::Instance, Kernel)> {
    let kernel = shared.variant.kernel.instantiate(store).await?;
    store.data_mut().kernel = Some(kernel);
    let mut instances: Vec<wasmtime::Instance> = Vec::with_capacity(shared.modules.len());
    for linked in &shared.modules {
        let mut externs = Vec::with_capacity(linked.imports.len());
        for import in &linked.imports {
            externs.push(resolve(import, shared, kernel, store, &instances)?);
        }
        let instance = wasmtime::Instance::new_async(&mut *store, &linked.module, &externs).await?;
        instances.push(instance);
        initialise(&linked.module, instance, store, instances.len() == shared.modules.len()).await?;
    }
    let main = instances.pop().ok_or_else(|| wasmtime::Error::msg("a plugin without a module"))?;
    Ok((main, kernel))
}

fn resolve(
    import: &Import,
    shared: &Shared,
    kernel: Kernel,
    store: &mut Store<GuestState>,
    instances: &[wasmtime::Instance],
) -> wasmtime::Result<Extern> {
    let found = match import {
        Import::Accessor(export) => kernel.export(store, export),
        Import::Host { module, name } => return shared.linker.get(store, module, name),
        Import::Module { index, export } => {
            instances.get(*index).and_then(|instance| instance.get_module_export(store, export))
        }
    };
    found.ok_or_else(|| wasmtime::Error::msg("an import is gone"))
}

/// Runs what toolchains export to initialise their language, as Extism does: Haskell's, else constructors, else a
/// reactor's.
async fn initialise(
    module: &Module,
    instance: wasmtime::Instance,
    store: &mut Store<GuestState>,
    main: bool,
) -> wasmtime::Result<()> {
    let has = |name: &str| matches!(module.get_export(name), Some(ExternType::Func(_)));
    let plain = |name: &str| {
        let ty = module.get_export(name).and_then(|export| export.func().cloned());
        ty.is_some_and(|ty| ty.params().len() == 0 && ty.results().len() == 0)
    };
    if has("_initialize") && !plain("_initialize") && !has("_start") {
        return Err(wasmtime::Error::msg("its _initialize takes parameters or gives results"));
    }
    let first = match main {
        true if has("hs_init") => plain("_initialize").then_some("_initialize"),
        true if has("__wasm_call_ctors") => plain("__wasm_call_ctors").then_some("__wasm_call_ctors"),
        _ => plain("_initialize").then_some("_initialize"),
    };
    if let Some(name) = first {
        instance.get_typed_func::<(), ()>(&mut *store, name)?.call_async(&mut *store, ()).await?;
    }
    if main && let Some(init) = instance.get_func(&mut *store, "hs_init") {
        let ty = init.ty(&*store);
        let zero = |ty: ValType| wasmtime::Val::default_for_ty(&ty).unwrap_or(wasmtime::Val::I32(0));
        let args: Vec<_> = ty.params().map(zero).collect();
        let mut results: Vec<_> = ty.results().map(zero).collect();
        init.call_async(&mut *store, &args, &mut results).await?;
    }
    Ok(())
}
