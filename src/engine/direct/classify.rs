//! Why the host ended a guest, and how a guest ended, as our errors. Nothing else reads wasmtime's errors.

use std::sync::Arc;

use wasmtime::Trap;
use wasmtime_wasi::I32Exit;

use crate::{
    engine::{
        InstanceLimits,
        text::{MAX_MESSAGE, first_line, shorten},
    },
    error::Error,
};

/// Why the host ended a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum HostTrap {
    #[error("its deadline has passed")]
    Deadline,
    #[error("out of memory")]
    OutOfMemory,
    /// A host function failed, or cannot do what it was called with.
    #[error("{0}")]
    Failed(String),
    /// The host is at fault, such as by a host function that broke its declaration.
    #[error("{0}")]
    Broken(String),
}

/// A failure to compile, link or initialise, in words for the plugin's author.
pub(super) fn invalid(error: &wasmtime::Error, limits: &InstanceLimits) -> Error {
    let root = error.root_cause().to_string();
    let reason = match (error.downcast_ref::<HostTrap>(), error.downcast_ref::<Trap>()) {
        (Some(HostTrap::Deadline), _) => return Error::BuildTimeout { after: limits.build_timeout },
        (Some(HostTrap::OutOfMemory), _) => "it needs more memory than its limit to start".to_owned(),
        (Some(HostTrap::Broken(text)), _) => return Error::internal("initialising failed", text.clone()),
        (Some(HostTrap::Failed(text)), _) => text.clone(),
        (None, Some(Trap::OutOfFuel)) => "its initialisation ran out of fuel".to_owned(),
        (None, Some(trap)) => format!("its initialisation trapped: {trap}"),
        (None, None) if error.is::<wasmtime::PoolConcurrencyLimitError>() => {
            return Error::Saturated { reason: "every slot for instances is in use" };
        }
        (None, None) => first_line(&root),
    };
    Error::InvalidPlugin { reason: shorten(&reason), cause: Some(Arc::from(Box::from(format!("{error:#}")))) }
}

/// How a call ended, and whether its instance can be called again. `said` is the error that the guest has set, if any.
///
/// What the host decided comes first, then what the guest said, then its trap: many PDKs set an error and trap.
pub(super) fn call(
    returned: wasmtime::Result<i32>,
    said: Option<&[u8]>,
    limits: &InstanceLimits,
) -> (Result<(), Error>, bool) {
    // An exit with 0 is a success, but has unwound the guest's frames.
    let is_sound = returned.is_ok();
    let ended = match (returned, said.map(message)) {
        (Ok(0), None) => Ok(()),
        (Ok(code), None) => Err(Error::GuestError { message: format!("it returned {code}") }),
        (Ok(_), Some(message)) => Err(Error::GuestError { message }),
        (Err(error), said) => match (interrupted(&error, limits), said, error.downcast_ref::<I32Exit>()) {
            (Some(error), _, _) => Err(error),
            (None, Some(message), _) => Err(Error::GuestError { message }),
            (None, None, Some(I32Exit(0))) => Ok(()),
            (None, None, Some(I32Exit(code))) => Err(Error::GuestExit { code: *code }),
            (None, None, None) => Err(own_fault(&error)),
        },
    };
    (ended, is_sound)
}

fn message(said: &[u8]) -> String {
    match str::from_utf8(said) {
        Ok(text) => shorten(text),
        // The kernel has cut it within a character.
        Err(error) if error.error_len().is_none() && said.len() > MAX_MESSAGE => {
            shorten(&String::from_utf8_lossy(said))
        }
        Err(error) => format!("unable to load error message from memory: {error}"),
    }
}

/// What the host decided, if it ended the guest.
fn interrupted(error: &wasmtime::Error, limits: &InstanceLimits) -> Option<Error> {
    match (error.downcast_ref::<HostTrap>(), error.downcast_ref::<Trap>()) {
        (Some(HostTrap::Deadline), _) | (_, Some(Trap::Interrupt)) => {
            Some(Error::ExecTimeout { after: limits.exec_timeout })
        }
        (Some(HostTrap::Broken(text)), _) => {
            Some(Error::internal("a host function broke its declaration", text.clone()))
        }
        (_, Some(Trap::OutOfFuel)) => Some(Error::OutOfFuel),
        _ => None,
    }
}

fn own_fault(error: &wasmtime::Error) -> Error {
    match (error.downcast_ref::<HostTrap>(), error.downcast_ref::<Trap>()) {
        (Some(HostTrap::OutOfMemory), _) => Error::OutOfMemory,
        (Some(stop), _) => Error::GuestError { message: shorten(&stop.to_string()) },
        (None, Some(trap)) => Error::GuestTrap { reason: trap.to_string() },
        (None, None) => Error::GuestError { message: shorten(&error.root_cause().to_string()) },
    }
}
