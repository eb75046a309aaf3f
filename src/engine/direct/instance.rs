//! One guest and its calls.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use wasmtime::{Store, TypedFunc, UpdateDeadline, Val};

use super::{
    classify::{self, HostTrap},
    http::Response,
    kernel::Kernel,
    log::LogBudget,
    modules::Modules,
    once::Snapshot,
    prepare::{Recorder, State},
    stack,
    state::{GuestState, Initialised, PluginContext},
    streams::Streams,
};
use crate::{
    background::Background,
    clock,
    engine::{BoxFuture, CallRequest, Instance, Permit, host::in_guest},
    error::{Error, panic_text},
    last_words::LastWords,
    usage::Usage,
};

/// Bytes that one call of a WASI function may make the host hold.
const HOSTCALL_BYTES: usize = 1 << 20;

/// Dropped in this order: the permits last, those of its slots, the instance's and, in `context`, the plugin's. Alone on its cache lines,
/// as other threads call its neighbours.
#[repr(align(128))]
struct Guest {
    store: Store<GuestState>,
    instance: wasmtime::Instance,
    kernel: Kernel,
    entry: Option<(String, Entry)>,
    /// What it began with. Its code stays for as long.
    _begun: Option<Begun>,
    context: Arc<PluginContext>,
    left: Left,
    _linked: Option<OwnedSemaphorePermit>,
    _permit: Permit,
}

/// A snapshot that a guest began with. The last that has an old one drops its code where that may take long, and the permits of
/// plugin and instance go after it.
struct Begun {
    snapshot: Option<Arc<Snapshot>>,
    context: Arc<PluginContext>,
    permit: Permit,
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(last) = self.snapshot.take().and_then(Arc::into_inner) {
            Background::default().drop_elsewhere((last, self.context.clone(), self.permit.clone()));
        }
    }
}

/// What a guest that is gone had used of its last call: a guest that is stopped is dropped, and cannot be asked.
#[derive(Clone, Default)]
struct Left(Arc<Mutex<Usage>>);

impl Left {
    fn lock(&self) -> MutexGuard<'_, Usage> {
        // Nothing panics under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An entry point, by its type.
enum Entry {
    Silent(TypedFunc<(), ()>),
    Coded(TypedFunc<(), i32>),
}

pub(super) struct DirectInstance {
    /// `None` during a call, and after a call that left it unsound.
    guest: Option<Box<Guest>>,
    /// What the guest writes. It outlives a guest that is stopped.
    streams: Option<Arc<Streams>>,
    /// Where the last call failed.
    stack: Vec<String>,
    left: Left,
}

impl DirectInstance {
    /// Instantiates the kernel and the plugin's modules, and runs their initialisers, all before `deadline`. Or it begins with a
    /// snapshot of what these did.
    pub(super) async fn new(
        modules: &Modules,
        context: &Arc<PluginContext>,
        begun: Option<Arc<Snapshot>>,
        permit: Permit,
        deadline: Instant,
    ) -> Result<Self, Error> {
        let limits = &context.limits;
        let mut this =
            Self { guest: None, streams: context.wasi.then(Arc::default), stack: Vec::new(), left: Left::default() };
        let (streams, left) = (this.streams.clone(), this.left.clone());
        let linked = modules.slots_of_linked()?;
        let guest = || Guest::new(modules, context.clone(), begun, (streams, left), (linked, permit), deadline);
        let made = in_guest(|| AssertUnwindSafe(guest()).catch_unwind());
        let error = match clock::timeout_at(deadline, made).await {
            Ok(Ok(Ok(guest))) => {
                this.guest = Some(Box::new(guest));
                return Ok(this);
            }
            Ok(Ok(Err(error))) => {
                this.stack = stack::of(&error);
                classify::invalid(&error, limits)
            }
            Ok(Err(panic)) => Error::internal("a host function panicked", panic_text(&*panic)),
            Err(_) => Error::build_timeout(limits.build_timeout),
        };
        Err(error.change_last_words(|words| *words = this.last_words()))
    }
}

impl DirectInstance {
    /// Reads an instance that was initialised and not called; or why others cannot begin with its state. Blocks for as long
    /// as it takes to look at its memory.
    pub(super) fn record(&mut self, recorder: &Recorder) -> Result<(State, Initialised), String> {
        let Some(Guest { store, instance, kernel, .. }) = self.guest.as_deref_mut() else {
            return Err("its first instance is gone".into());
        };
        // As the first call does.
        kernel.reset(store);
        let host = store.data_mut().initialised()?;
        let gone = || "its state cannot be found".to_owned();
        let mut globals = Vec::with_capacity(recorder.globals.len());
        for global in &recorder.globals {
            let global = instance.get_module_export(&mut *store, global).and_then(wasmtime::Extern::into_global);
            globals.push(match global.ok_or_else(gone)?.get(&mut *store) {
                Val::I32(value) => value.cast_unsigned().into(),
                Val::I64(value) => value.cast_unsigned().into(),
                Val::F32(bits) => bits.into(),
                Val::F64(bits) => bits.into(),
                Val::V128(bits) => bits.as_u128(),
                _ => return Err("it has a mutable global that is a reference".into()),
            });
        }
        let mut state = State::new(&globals);
        for memory in &recorder.memories {
            let memory = instance.get_module_export(&mut *store, memory).and_then(wasmtime::Extern::into_memory);
            state.add_memory(memory.ok_or_else(gone)?.data(&*store))?;
        }
        Ok((state, host))
    }
}

impl Instance for DirectInstance {
    fn call<'a>(&'a mut self, request: CallRequest<'a>) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(in_guest(|| async move {
            // In this future, so that the guest is dropped with it, and when a host function panics.
            let Some(mut guest) = self.guest.take() else {
                return Err(Error::Internal { reason: "an unsound instance was called", cause: None });
            };
            // What an earlier call or an initialiser wrote is not this call's.
            drop(self.last_words());
            let (ended, is_sound) = guest.call(request, &mut self.stack).await;
            self.guest = is_sound.then_some(guest);
            ended
        }))
    }

    fn last_words(&mut self) -> LastWords {
        let stack = std::mem::take(&mut self.stack);
        match &self.streams {
            Some(streams) => LastWords::new(stack, streams.stderr.take(), streams.stdout.take()),
            None => LastWords::new(stack, String::new(), String::new()),
        }
    }

    fn add_usage(&mut self, usage: &mut Usage) {
        if let Some(guest) = &self.guest {
            guest.add_usage(usage);
        } else {
            let Usage { peak_memory, host_calls, http, fuel, .. } = *self.left.lock();
            *usage = Usage { peak_memory, host_calls, http, fuel, ..*usage };
        }
    }

    fn is_sound(&self) -> bool {
        self.guest.is_some()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.add_usage(&mut self.left.lock());
    }
}

impl Guest {
    /// Makes a store and instantiates the plugin in it.
    async fn new(
        modules: &Modules,
        context: Arc<PluginContext>,
        begun: Option<Arc<Snapshot>>,
        (streams, left): (Option<Arc<Streams>>, Left),
        (linked, permit): (Option<OwnedSemaphorePermit>, Permit),
        deadline: Instant,
    ) -> wasmtime::Result<Self> {
        let mut store = Store::new(&modules.variant.engine, GuestState::new(context.clone(), streams, deadline));
        store.limiter(|state| &mut state.budget);
        store.set_epoch_deadline(1);
        store.set_hostcall_fuel(HOSTCALL_BYTES);
        context.ticker.wake();
        store.epoch_deadline_callback(|mut store| {
            let state = store.data_mut();
            if Instant::now() >= state.deadline {
                return Err(HostTrap::Deadline.into());
            }
            let (tick, context) = (state.run_permit.tick(), state.context.clone());
            Ok(UpdateDeadline::YieldCustom(
                1,
                Box::pin(async move {
                    tick.await;
                    // After the wait, which may have been long enough for the ticker to slow down.
                    context.ticker.wake();
                }),
            ))
        });
        if let Some(fuel) = context.limits.fuel {
            store.set_fuel(fuel)?;
        }
        let slot = store.data().run_permit.slot();
        let made = slot.run(|| modules.instantiate(&mut store, begun.as_deref())).await;
        let (instance, kernel) = made.map_err(|error| store.data().budget.why(error))?;
        store.data_mut().run_permit.rest();
        Ok(Self {
            store,
            instance,
            kernel,
            entry: None,
            _begun: begun.map(|begun| Begun {
                snapshot: Some(begun),
                context: context.clone(),
                permit: permit.clone(),
            }),
            context,
            left,
            _linked: linked,
            _permit: permit,
        })
    }

    /// Adds what the last call has used so far.
    fn add_usage(&self, usage: &mut Usage) {
        self.store.data().add_usage(usage);
        usage.fuel = self.context.limits.fuel.map(|all| all.saturating_sub(self.store.get_fuel().unwrap_or(all)));
    }

    /// Calls an entry point; also tells whether the guest can be called again, and where it failed.
    async fn call(&mut self, request: CallRequest<'_>, stack: &mut Vec<String>) -> (Result<Bytes, Error>, bool) {
        let entry_point = request.entry_point;
        let slot = self.store.data().run_permit.slot();
        let returned = slot.run(|| self.run(request)).await;
        let state = self.store.data_mut();
        let returned = returned.map_err(|error| state.budget.why(error));
        state.run_permit.rest();
        // Here, on every way that leaves a guest. A guest that is dropped drops its own.
        state.call_context = None;
        if let Err(error) = &returned {
            *stack = stack::of(error);
        }
        let (ended, is_sound) = classify::call(returned, self.kernel.error(&self.store), &self.context.limits);
        // A guest that did not return may have stopped in the middle of a change.
        let kept = if is_sound || ended.is_ok() { self.keep_variables() } else { Ok(()) };
        // A command that ran once expects its globals as they were before.
        let is_sound = is_sound && entry_point != "_start";
        let most = self.context.limits.output_size;
        (ended.and(kept).and_then(|()| self.kernel.output(&self.store, most)), is_sound)
    }

    /// Hands on what the evaluation wrote, if variables outlive it.
    fn keep_variables(&mut self) -> Result<(), Error> {
        match &self.context.kept {
            Some(kept) => kept.change(self.store.data_mut().variables.end()),
            None => Ok(()),
        }
    }

    async fn run(&mut self, request: CallRequest<'_>) -> wasmtime::Result<i32> {
        let CallRequest { entry_point, input, context, deadline } = request;
        let state = self.store.data_mut();
        state.call_context = context;
        state.deadline = deadline;
        state.log = LogBudget::default();
        state.http = Response::default();
        state.begin_usage();
        if let Some(kept) = &self.context.kept {
            state.variables.begin(kept.current());
        }
        self.store.set_epoch_deadline(1);
        self.context.ticker.wake();
        if let Some(fuel) = self.context.limits.fuel {
            self.store.set_fuel(fuel)?;
        }
        self.kernel.begin(&mut self.store, &input)?;
        if self.entry.as_ref().is_none_or(|(known, _)| known != entry_point) {
            self.entry = Some((entry_point.to_owned(), self.find(entry_point)?));
        }
        // By reference: a clone would bump a type's reference count, which all guests share.
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
