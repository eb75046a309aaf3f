//! One guest, and its calls.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use extism::Plugin;
use tokio::time::Instant;

use super::{
    blocking,
    cancel::{self, Running},
    compiled::Exclusive,
    errors::{self, Failure},
};
use crate::{
    background,
    engine::{
        BoxFuture, Instance, InstanceLimits, Permit,
        host::{GuestScope, panic_text},
    },
    error::Error,
};

/// A function that no plugin has.
const NOTHING: &str = "evalpool: nothing";

/// What a call came to, and its guest if that can be called again.
type Returned = (Option<Box<Guest>>, Result<Bytes, Error>);

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
            Err(error) if !error.to_string().ends_with(NOTHING) => Err(errors::invalid(&error)),
            _ => Ok(Box::new(Self { plugin, exclusive, limits, _permit: permit })),
        }
    }

    fn call(&mut self, entry_point: &str, input: &[u8], running: &Running) -> Result<Bytes, Failure> {
        let _scope = GuestScope::enter();
        let output: &[u8] = self
            .plugin
            .call(entry_point, input)
            .map_err(|error| errors::classify(&error, running.elapsed(), &self.limits))?;
        // The length is the guest's word: it is looked at before any byte is.
        if output.len() as u64 > self.limits.output_size {
            return Err(Failure::sound(Error::OutputTooLarge { limit: self.limits.output_size }));
        }
        Ok(Bytes::copy_from_slice(output))
    }

    /// The same on a thread that may block, and the guest, if it can be called again.
    fn run(mut self: Box<Self>, entry_point: &str, input: &[u8], running: &Running) -> Result<Returned, Error> {
        if !running.begin() {
            return Err(Error::Cancelled);
        }
        let (result, is_sound) = match catch_unwind(AssertUnwindSafe(|| self.call(entry_point, input, running))) {
            Ok(Ok(output)) => (Ok(output), true),
            Ok(Err(failure)) => (Err(failure.error), failure.is_sound),
            // It passed extism by, which waits for the call's deadline still.
            Err(panic) => (Err(Error::internal("a host function panicked", panic_text(&*panic))), false),
        };
        let is_sound = is_sound && running.is_clear();
        if !is_sound {
            self.exclusive.discard();
        }
        // The next call would run initialisers once more, where nothing reckons with them.
        let is_spent = entry_point == "_start";
        Ok(((is_sound && !is_spent).then_some(self), result))
    }
}

pub(super) struct ExtismInstance {
    /// `None` while a call has it, and for good after a call that left it unsound.
    pub(super) guest: Option<Box<Guest>>,
}

impl Instance for ExtismInstance {
    fn call<'a>(
        &'a mut self,
        entry_point: &'a str,
        input: Bytes,
        _deadline: Instant,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            let Some(guest) = self.guest.take() else {
                return Err(Error::Internal { reason: "an unsound instance was called", cause: None });
            };
            let entry_point = entry_point.to_owned();
            let (_cancel, running) = cancel::sides(guest.plugin.cancel_handle(), guest.limits.exec_timeout);
            let work = move || guest.run(&entry_point, &input, &running);
            let (guest, result) = blocking("an evaluation did not finish", work).await?;
            self.guest = guest;
            result
        })
    }

    fn is_sound(&self) -> bool {
        self.guest.is_some()
    }
}

impl Drop for ExtismInstance {
    fn drop(&mut self) {
        // Unmapping a guest's memory takes a while: not on a thread that drives other tasks.
        if let Some(guest) = self.guest.take() {
            background::drop_elsewhere(guest);
        }
    }
}
