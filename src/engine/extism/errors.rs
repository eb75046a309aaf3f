//! extism's errors are strings: they are read here, once, and nowhere else.

use std::{sync::Arc, time::Duration};

use wasmtime_of_extism::Trap;

use super::functions::Broken;
use crate::{
    engine::{
        InstanceLimits,
        text::{first_line, shorten},
    },
    error::Error,
};

const OUT_OF_FUEL: &str = "plugin ran out of fuel";

/// Why a call failed, and whether its instance can be called again.
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) is_sound: bool,
}

impl Failure {
    pub(super) fn sound(error: Error) -> Self {
        Self { error, is_sound: true }
    }

    fn unsound(error: Error) -> Self {
        Self { error, is_sound: false }
    }
}

/// A failure to compile, link or initialise. Its text is fit for the plugin's author.
pub(super) fn invalid(error: &extism::Error) -> Error {
    let root = error.root_cause().to_string();
    let reason = match (error.downcast_ref::<Trap>(), root.as_str()) {
        (Some(Trap::OutOfFuel), _) | (None, OUT_OF_FUEL) => "its initialisation ran out of fuel".to_owned(),
        (Some(trap), _) => format!("its initialisation trapped: {trap}"),
        (None, "oom") => "it needs more memory than its limit to start".to_owned(),
        (None, root) => first_line(root),
    };
    Error::InvalidPlugin { reason, cause: Some(Arc::from(Box::from(format!("{error:#}")))) }
}

/// A failure of a call that ended after `elapsed`.
///
/// A guest can claim any of these strings as its error message. So it is believed only about itself, and an instance
/// that is in doubt is not sound.
pub(super) fn classify(error: &extism::Error, elapsed: Duration, limits: &InstanceLimits) -> Failure {
    let root = error.root_cause().to_string();
    let timeout = || Failure::unsound(Error::ExecTimeout { after: limits.exec_timeout });
    if let Some(trap) = error.downcast_ref::<Trap>() {
        return match trap {
            Trap::Interrupt => timeout(),
            Trap::OutOfFuel => Failure::unsound(Error::OutOfFuel),
            // A guest that sets an error and then traps on purpose, as AssemblyScript's `abort` does, has reported it.
            _ if root != trap.to_string() => Failure::unsound(Error::GuestError { message: shorten(&root) }),
            trap => Failure::unsound(Error::GuestTrap { reason: trap.to_string() }),
        };
    }
    if let Some(broken) = error.downcast_ref::<Broken>() {
        return Failure::unsound(Error::internal("a host function broke its declaration", broken.to_string()));
    }
    if let Some(code) = root.strip_prefix("Exited with i32 exit status ").and_then(|code| code.parse().ok()) {
        return Failure::unsound(Error::GuestExit { code });
    }
    // extism hands on a returning guest's message bare; what ended the guest comes wrapped in its backtrace.
    let returned = error.chain().len() == 1;
    let is_late = elapsed >= limits.exec_timeout;
    match root.as_str() {
        // extism says so of a deadline and of a cancel; nobody is left to hear of a cancel.
        "timeout" if is_late => timeout(),
        // An interrupt in a call of the kernel's from within a host function: extism takes it for a wild pointer.
        _ if !returned && is_late => timeout(),
        "oom" => Failure::unsound(Error::OutOfMemory),
        OUT_OF_FUEL => Failure::unsound(Error::OutOfFuel),
        text if text.ends_with("out of memory") => Failure::unsound(Error::OutOfMemory),
        text => {
            let message = match text.strip_prefix("Returned non-zero exit code: ") {
                Some(code) => format!("it returned {code}"),
                None => shorten(text),
            };
            Failure { error: Error::GuestError { message }, is_sound: returned && text != "timeout" }
        }
    }
}
