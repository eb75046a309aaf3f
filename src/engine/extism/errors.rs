//! extism's errors are strings: they are read here, once, and nowhere else.

use std::{io, sync::Arc, time::Duration};

use wasmtime_of_extism::Trap;

use super::functions::Broken;
use crate::{
    engine::{
        InstanceLimits,
        text::{first_line, message_of},
    },
    error::Error,
    host_limits::is_shortage,
    last_words::LastWords,
};

const OUT_OF_FUEL: &str = "plugin ran out of fuel";

/// A failure to compile, link or initialise. Its text is fit for the plugin's author.
pub(super) fn invalid(error: &extism::Error, limits: &InstanceLimits) -> Error {
    let root = error.root_cause().to_string();
    if let Some(lack) = shortage(&root) {
        return Error::overloaded(
            "the engine got no memory or files from the system",
            format_args!("{error:#}"),
            &lack,
        );
    }
    let reason = match (error.downcast_ref::<Trap>(), root.as_str(), limits.fuel) {
        (Some(Trap::OutOfFuel), _, Some(limit)) | (None, OUT_OF_FUEL, Some(limit)) => {
            return Error::out_of_fuel(limit, true);
        }
        (Some(trap), ..) => format!("its initialisation trapped: {trap}"),
        (None, "oom", _) => return Error::out_of_memory(limits.memory),
        (None, root, _) => first_line(root),
    };
    Error::InvalidPlugin {
        reason,
        cause: Some(Arc::from(Box::from(format!("{error:#}")))),
        last_words: LastWords::none(),
    }
}

/// What the system lacks, if that is what it has said.
fn shortage(text: &str) -> Option<io::Error> {
    let number = text.strip_suffix(')')?.rsplit_once("(os error ")?.1.parse().ok()?;
    Some(io::Error::from_raw_os_error(number)).filter(is_shortage)
}

/// Why a call failed that ended after `elapsed`, and whether its instance can be called again.
///
/// A guest can claim any of these strings as its error message. So it is believed only about itself, and an instance
/// that is in doubt is not sound.
pub(super) fn classify(error: &extism::Error, elapsed: Duration, limits: &InstanceLimits) -> (Error, bool) {
    let root = error.root_cause().to_string();
    let timeout = Error::exec_timeout(limits.exec_timeout);
    // extism hands on a returning guest's message bare; what ended the guest comes wrapped in its backtrace.
    let returned = error.chain().len() == 1;
    let is_late = elapsed >= limits.exec_timeout;
    let out_of_fuel = |limit| Error::out_of_fuel(limit, false);
    let exit = root.strip_prefix("Exited with i32 exit status ").and_then(|code| code.parse().ok());
    let error = match (error.downcast_ref::<Trap>(), error.downcast_ref::<Broken>(), exit, root.as_str()) {
        (Some(Trap::Interrupt), ..) => timeout,
        (Some(Trap::OutOfFuel), ..) => out_of_fuel(limits.fuel.unwrap_or_default()),
        // A guest that sets an error and then traps on purpose, as AssemblyScript's `abort` does, has reported it.
        (Some(trap), .., text) if text != trap.to_string() => Error::guest_error(message_of(text)),
        (Some(trap), ..) => Error::guest_trap(trap.to_string()),
        (_, Some(broken), ..) => Error::internal("a host function broke its declaration", broken.to_string()),
        (_, _, Some(code), _) => Error::guest_exit(code),
        // extism says so of a deadline and of a cancel; nobody is left to hear of a cancel.
        (.., "timeout") if is_late => timeout,
        // An interrupt in a call of the kernel's from within a host function: extism takes it for a wild pointer.
        _ if !returned && is_late => timeout,
        (.., "oom") => Error::out_of_memory(limits.memory),
        (.., OUT_OF_FUEL) if let Some(limit) = limits.fuel => out_of_fuel(limit),
        (.., text) if text.ends_with("out of memory") => Error::out_of_memory(limits.memory),
        (.., text) => {
            let message = match text.strip_prefix("Returned non-zero exit code: ") {
                Some(code) => format!("it returned {code}"),
                None => message_of(text),
            };
            return (Error::guest_error(message), returned && text != "timeout");
        }
    };
    (error, false)
}
