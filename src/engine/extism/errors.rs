//! extism's errors are strings: they are read here, once, and nowhere else.

use std::time::Duration;

use wasmtime_of_extism::Trap;

use super::functions::Broken;
use crate::{engine::InstanceLimits, error::Error};

const OUT_OF_FUEL: &str = "plugin ran out of fuel";

/// The most of a guest's own message that is kept, in bytes.
const MAX_MESSAGE: usize = 4096;

/// Why a call failed, and whether its instance can be called again.
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) is_sound: bool,
    /// Whether an interrupt ended it. (Or its guest says so: that harms its own evaluator's next call at most.)
    pub(super) is_interrupt: bool,
}

impl Failure {
    pub(super) fn sound(error: Error) -> Self {
        Self { error, is_sound: true, is_interrupt: false }
    }

    fn unsound(error: Error) -> Self {
        Self { error, is_sound: false, is_interrupt: false }
    }
}

/// A failure to compile, link or initialise. Its text is fit for the plugin's author.
pub(super) fn invalid(error: &extism::Error, limits: &InstanceLimits) -> Error {
    let root = root(error);
    if root == OUT_OF_FUEL && limits.fuel.is_none() {
        // Fuel of ours, which stands for the time that init may take.
        return Error::BuildTimeout { after: limits.build_timeout };
    }
    let reason = match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => return Error::BuildTimeout { after: limits.build_timeout },
        // extism says so itself only of what it calls, not of what its linker does.
        Some(Trap::OutOfFuel) if limits.fuel.is_none() => {
            return Error::BuildTimeout { after: limits.build_timeout };
        }
        Some(Trap::OutOfFuel) => "its initialisation ran out of fuel".to_owned(),
        Some(trap) => format!("its initialisation trapped: {trap}"),
        None => match root.as_str() {
            // A function of ours that waited for as long as it may.
            "timeout" => return Error::BuildTimeout { after: limits.build_timeout },
            "oom" => "it needs more memory than its limit to start".to_owned(),
            OUT_OF_FUEL => "its initialisation ran out of fuel".to_owned(),
            root => first_line(root),
        },
    };
    Error::InvalidPlugin { reason, cause: Some(std::sync::Arc::from(Box::from(format!("{error:#}")))) }
}

/// A failure of a call that ended after `elapsed`.
///
/// A guest can claim any of these strings as its error message. So it is believed only about itself, and whatever is
/// in doubt is not sound.
pub(super) fn classify(error: &extism::Error, elapsed: Duration, limits: &InstanceLimits) -> Failure {
    let root = root(error);
    // extism says "timeout" of each interrupt, and nothing else; a function of ours, too, says so in a longer chain.
    let is_interrupt =
        root == "timeout" && error.chain().len() == 1 || matches!(error.downcast_ref(), Some(Trap::Interrupt));
    Failure { is_interrupt, ..kind(error, &root, elapsed, limits) }
}

fn kind(error: &extism::Error, root: &str, elapsed: Duration, limits: &InstanceLimits) -> Failure {
    if let Some(trap) = error.downcast_ref::<Trap>() {
        return Failure::unsound(match trap {
            Trap::Interrupt => Error::ExecTimeout { after: limits.exec_timeout },
            Trap::OutOfFuel => out_of_fuel(limits),
            // A guest that sets an error and then traps on purpose, as AssemblyScript's `abort` does, has reported it.
            _ if root != trap.to_string() => Error::GuestError { message: shorten(root) },
            trap => Error::GuestTrap { reason: trap.to_string() },
        });
    }
    if let Some(broken) = error.downcast_ref::<Broken>() {
        return Failure::unsound(Error::internal("a host function broke its declaration", broken.to_string()));
    }
    if let Some(code) = root.strip_prefix("Exited with i32 exit status ").and_then(|code| code.parse().ok()) {
        return Failure::unsound(Error::GuestExit { code });
    }
    // extism hands on a returning guest's message bare; what ended the guest comes wrapped in its backtrace.
    let returned = error.chain().len() == 1;
    match root {
        // extism says so of a deadline and of a cancel; nobody is left to hear of a cancel.
        "timeout" if elapsed >= limits.exec_timeout => {
            Failure::unsound(Error::ExecTimeout { after: limits.exec_timeout })
        }
        // An interrupt in a call of the kernel's from within a host function: extism takes it for a wild pointer.
        _ if !returned && elapsed >= limits.exec_timeout => {
            Failure::unsound(Error::ExecTimeout { after: limits.exec_timeout })
        }
        "oom" => Failure::unsound(Error::OutOfMemory),
        OUT_OF_FUEL => Failure::unsound(out_of_fuel(limits)),
        text if text.ends_with("out of memory") => Failure::unsound(Error::OutOfMemory),
        text => {
            let message = match text.strip_prefix("Returned non-zero exit code: ") {
                Some(code) => format!("it returned {code}"),
                None => shorten(text),
            };
            let error = Error::GuestError { message };
            if returned && text != "timeout" { Failure::sound(error) } else { Failure::unsound(error) }
        }
    }
}

/// Fuel that nobody asked for stands for the time that a call may take.
fn out_of_fuel(limits: &InstanceLimits) -> Error {
    match limits.fuel {
        Some(_) => Error::OutOfFuel,
        None => Error::ExecTimeout { after: limits.exec_timeout },
    }
}

fn root(error: &extism::Error) -> String {
    error.root_cause().to_string()
}

fn first_line(text: &str) -> String {
    shorten(text.lines().next().unwrap_or(text))
}

fn shorten(text: &str) -> String {
    let mut end = text.len().min(MAX_MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters() {
        assert_eq!(shorten(&"é".repeat(4000)).len(), 4096);
        assert_eq!(shorten(&format!("x{}", "é".repeat(4000))).len(), 4095);
    }
}
