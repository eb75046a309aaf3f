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
        (None, Some(Trap::OutOfFuel)) => return out_of_fuel(limits, true),
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
    let ended = match (returned.map_err(|error| why(&error, limits)), said.map(message)) {
        (Err((error, true)), _) => Err(error),
        (_, Some(message)) => Err(Error::GuestError { message }),
        (Ok(0) | Err((Error::GuestExit { code: 0 }, _)), None) => Ok(()),
        (Ok(code), None) => Err(Error::GuestError { message: format!("it returned {code}") }),
        (Err((error, false)), None) => Err(error),
    };
    (ended, is_sound)
}

fn out_of_fuel(limits: &InstanceLimits, initialising: bool) -> Error {
    Error::OutOfFuel { limit: limits.fuel.unwrap_or_default(), initialising }
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

/// Why a call failed, and whether the host decided that, whatever the guest has said.
fn why(error: &wasmtime::Error, limits: &InstanceLimits) -> (Error, bool) {
    let said = |text: &str| Error::GuestError { message: shorten(text) };
    match (error.downcast_ref::<HostTrap>(), error.downcast_ref::<Trap>(), error.downcast_ref::<I32Exit>()) {
        (Some(HostTrap::Deadline), ..) | (_, Some(Trap::Interrupt), _) => {
            (Error::ExecTimeout { after: limits.exec_timeout }, true)
        }
        (Some(HostTrap::Broken(text)), ..) => {
            (Error::internal("a host function broke its declaration", text.clone()), true)
        }
        (_, Some(Trap::OutOfFuel), _) => (out_of_fuel(limits, false), true),
        (Some(HostTrap::OutOfMemory), ..) => (Error::OutOfMemory, false),
        (Some(HostTrap::Failed(text)), ..) => (said(text), false),
        (_, Some(trap), _) => (Error::GuestTrap { reason: trap.to_string() }, false),
        (.., Some(exit)) => (Error::GuestExit { code: exit.0 }, false),
        _ => (said(&error.root_cause().to_string()), false),
    }
}
