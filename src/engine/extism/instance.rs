//! One guest, and its calls.

use std::{
    panic::resume_unwind,
    time::{Duration, Instant},
};

use bytes::Bytes;
use extism::Plugin;
use tokio::task::spawn_blocking;
use tracing::Span;

use super::{
    cancel::Call,
    compiled::{Exclusive, KERNEL_FUEL},
    errors,
    functions::ContextScope,
};
use crate::{
    engine::{BoxFuture, CallContext, CallRequest, Instance, InstanceLimits, Permit, host::GuestScope},
    error::Error,
    usage::Usage,
};

/// A function that no plugin has.
const NOTHING: &str = "evalpool: nothing";

/// How a call ended and what it used, with its guest if that can be called again.
type Returned = (Option<Box<Guest>>, Result<Bytes, Error>, Used);

/// What can be told of a call.
#[derive(Clone, Copy)]
enum Used {
    /// It has not returned.
    Since(Instant),
    In {
        guest: Duration,
        host_calls: u64,
        fuel: Option<u64>,
    },
}

/// One guest with all that it holds, in the order in which it is given back.
pub(super) struct Guest {
    plugin: Plugin,
    exclusive: Exclusive,
    limits: InstanceLimits,
    _permit: Permit,
}

impl Guest {
    /// One whose initialisers have run. Blocks while they do.
    pub(super) fn new(exclusive: Exclusive, limits: InstanceLimits, permit: Permit) -> Result<Box<Self>, Error> {
        let _scope = GuestScope::enter();
        let mut plugin = exclusive.instantiate()?;
        // extism initialises a plugin at its first call, whatever is called: so what fails there fails here, and the
        // first evaluation does not pay for it.
        match plugin.call::<&[u8], &[u8]>(NOTHING, &[]) {
            Err(error) if !error.to_string().ends_with(NOTHING) => Err(errors::invalid(&error, &limits)),
            _ => Ok(Box::new(Self { plugin, exclusive, limits, _permit: permit })),
        }
    }

    /// Calls an entry point, on a thread that may block. Returns the guest as well, if it can be called again.
    fn call(
        mut self: Box<Self>,
        entry_point: &str,
        input: &[u8],
        context: Option<CallContext>,
        call: &Call,
    ) -> Returned {
        if !call.begin() {
            return (None, Err(Error::Cancelled), Used::Since(Instant::now()));
        }
        // The context goes first: while it is dropped, this is still the guest's thread.
        let scopes = (ContextScope::enter(context), GuestScope::enter());
        let limits = self.limits;
        let (result, is_sound) = match self.plugin.call::<&[u8], &[u8]>(entry_point, input) {
            // The length is the guest's word: checked before any byte is read.
            Ok(output) if output.len() as u64 > limits.output_size => {
                (Err(Error::output_too_large(limits.output_size)), true)
            }
            Ok(output) => (Ok(Bytes::copy_from_slice(output)), true),
            Err(error) => {
                let (error, is_sound) = errors::classify(&error, call.elapsed(), &limits);
                (Err(error), is_sound)
            }
        };
        let fuel = self.plugin.fuel_consumed().map(|all| all.saturating_sub(KERNEL_FUEL));
        let used = Used::In { guest: call.elapsed(), host_calls: ContextScope::host_calls(), fuel };
        // Before there is a value to return: if the drop of a context panics, that would be leaked, and the guest in it.
        drop(scopes);
        let is_sound = is_sound && call.is_clear();
        if !is_sound {
            self.exclusive.discard();
        }
        // The next call would run the initialisers again, where nothing expects them.
        let is_spent = entry_point == "_start";
        ((is_sound && !is_spent).then_some(self), result, used)
    }
}

pub(super) struct ExtismInstance {
    /// `None` while a call has it, and for good after a call that left it unsound.
    guest: Option<Box<Guest>>,
    /// By the last call.
    used: Option<Used>,
}

impl ExtismInstance {
    pub(super) fn new(guest: Box<Guest>) -> Self {
        Self { guest: Some(guest), used: None }
    }
}

impl Instance for ExtismInstance {
    fn call<'a>(&'a mut self, request: CallRequest<'a>) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            let Some(guest) = self.guest.take() else {
                return Err(Error::Internal { reason: "an unsound instance was called", cause: None });
            };
            let CallRequest { entry_point, input, context, .. } = request;
            let entry_point = entry_point.to_owned();
            let (call, _cancel) =
                Call::new(guest.plugin.cancel_handle(), guest.limits.exec_timeout, guest.exclusive.background());
            self.used = Some(Used::Since(Instant::now()));
            let span = Span::current();
            match spawn_blocking(move || span.in_scope(|| guest.call(&entry_point, &input, context, &call))).await {
                Ok((guest, result, used)) => {
                    (self.guest, self.used) = (guest, Some(used));
                    result
                }
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    Err(error) => Err(Error::internal("an evaluation did not finish", error)),
                },
            }
        })
    }

    fn add_usage(&mut self, usage: &mut Usage) {
        match self.used {
            // A guest whose caller has left goes on for a moment, which nobody waits for.
            Some(Used::Since(began)) => usage.guest = began.elapsed(),
            Some(Used::In { guest, host_calls, fuel }) => {
                *usage = Usage { guest, host_calls, fuel, ..*usage };
            }
            None => {}
        }
    }

    fn is_sound(&self) -> bool {
        self.guest.is_some()
    }
}

impl Drop for ExtismInstance {
    fn drop(&mut self) {
        // Unmapping a guest's memory takes a while: not on a thread that drives other tasks.
        if let Some(guest) = self.guest.take() {
            guest.exclusive.background().drop_elsewhere(guest);
        }
    }
}
