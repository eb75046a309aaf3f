//! Why the host ended a guest, and how a guest ended, as our errors. Nothing else reads wasmtime's errors.

use std::{io, sync::Arc};

use rustix::io::Errno;
use wasmtime::{GcHeapOutOfMemory, ThrownException, Trap};
use wasmtime_wasi::I32Exit;

use crate::{
    engine::{
        InstanceLimits,
        text::{first_line, message_from, message_of, shorten},
    },
    error::Error,
    host_limits::is_shortage,
    last_words::LastWords,
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
    /// An HTTP request failed, or is not allowed.
    #[error("{0}")]
    Request(String),
    /// The system gave an HTTP request no file or memory.
    #[error("the HTTP client")]
    Lacks(#[source] Errno),
    /// What there is for all guests is in use, and was so until the deadline.
    #[error("{0}")]
    Saturated(&'static str),
    /// The host is at fault, such as by a host function that broke its declaration.
    #[error("{0}")]
    Broken(String),
}

const UNCAUGHT: &str = "an exception that nothing caught";

/// What the system has said, among the causes of an error.
pub(super) fn by_system(error: &wasmtime::Error) -> impl Iterator<Item = Errno> {
    error.chain().filter_map(|cause| {
        let of_io = |error: &io::Error| {
            let no_memory = error.kind() == io::ErrorKind::OutOfMemory;
            Errno::from_io_error(error).or(no_memory.then_some(Errno::NOMEM))
        };
        cause.downcast_ref::<Errno>().copied().or_else(|| cause.downcast_ref().and_then(of_io))
    })
}

/// What the host lacks, if that is why: files, mappings, address space, memory or threads. No plugin can help it.
pub(super) fn shortage(error: &wasmtime::Error) -> Option<Error> {
    let lack = by_system(error).map(io::Error::from).find(is_shortage)?;
    Some(Error::overloaded("the engine got no memory or files from the system", format_args!("{error:#}"), &lack))
}

/// Whether an object did not fit into the collected heap, or would fit into none.
fn is_heap_full(error: &wasmtime::Error) -> bool {
    error.is::<GcHeapOutOfMemory<()>>() || matches!(error.downcast_ref(), Some(Trap::AllocationTooLarge))
}

/// A failure to compile, link or initialise, in words for the plugin's author.
pub(super) fn invalid(error: &wasmtime::Error, limits: &InstanceLimits) -> Error {
    if let Some(shortage) = shortage(error) {
        return shortage;
    }
    let root = error.root_cause().to_string();
    let reason = match (error.downcast_ref::<HostTrap>(), error.downcast_ref::<Trap>()) {
        _ if is_heap_full(error) => return Error::out_of_memory(limits.memory),
        (Some(HostTrap::OutOfMemory), _) => return Error::out_of_memory(limits.memory),
        (Some(HostTrap::Deadline), _) => return Error::build_timeout(limits.build_timeout),
        (Some(HostTrap::Broken(text)), _) => return Error::internal("initialising failed", text.clone()),
        (Some(HostTrap::Saturated(reason)), _) => return Error::Saturated { reason },
        (None, Some(Trap::OutOfFuel)) => return out_of_fuel(limits, true),
        (None, Some(trap)) => format!("its initialisation trapped: {trap}"),
        (None, None) if error.is::<wasmtime::PoolConcurrencyLimitError>() => {
            return Error::Saturated { reason: "every slot for instances is in use" };
        }
        (None, None) if error.is::<ThrownException>() => format!("its initialisation threw {UNCAUGHT}"),
        _ => root,
    };
    refused(&reason, &format!("{error:#}"))
}

/// A module that is not valid: why, of which the first line is for its author, and the errors below that.
pub(super) fn refused(reason: &str, chain: &str) -> Error {
    Error::InvalidPlugin {
        reason: shorten(&first_line(reason)),
        cause: Some(Arc::from(Box::from(chain))),
        last_words: LastWords::none(),
    }
}

/// How a call ended, and whether its instance can be called again. `said` is the error that the guest has set, if any.
///
/// What the host decided comes first, then what the guest said, then its trap: many PDKs set an error and trap.
pub(super) fn call(
    returned: wasmtime::Result<i32>,
    said: Option<(&[u8], usize)>,
    limits: &InstanceLimits,
) -> (Result<(), Error>, bool) {
    // An exit with 0 is a success, but has unwound the guest's frames.
    let is_sound = returned.is_ok();
    let ended = match (returned.map_err(|error| why(&error, limits)), said.map(message)) {
        (Err((error, true)), _) => Err(error),
        (_, Some(message)) => Err(Error::guest_error(message)),
        (Ok(0) | Err((Error::GuestExit { code: 0, .. }, _)), None) => Ok(()),
        (Ok(code), None) => Err(Error::guest_error(format!("it returned {code}"))),
        (Err((error, false)), None) => Err(error),
    };
    (ended, is_sound)
}

fn out_of_fuel(limits: &InstanceLimits, initialising: bool) -> Error {
    Error::out_of_fuel(limits.fuel.unwrap_or_default(), initialising)
}

fn message((beginning, length): (&[u8], usize)) -> String {
    match str::from_utf8(beginning) {
        Ok(text) => message_from(text, length),
        // It is cut within a character, of which nothing is shown.
        Err(error) if error.error_len().is_none() && length > beginning.len() => {
            message_from(&String::from_utf8_lossy(beginning), length)
        }
        Err(error) => format!("unable to load error message from memory: {error}"),
    }
}

/// Why a call failed, and whether the host decided that, whatever the guest has said.
fn why(error: &wasmtime::Error, limits: &InstanceLimits) -> (Error, bool) {
    if let Some(shortage) = shortage(error) {
        return (shortage, true);
    }
    let said = |text: &str| Error::guest_error(message_of(text));
    match (error.downcast_ref::<HostTrap>(), error.downcast_ref::<Trap>(), error.downcast_ref::<I32Exit>()) {
        (Some(HostTrap::Deadline), ..) | (_, Some(Trap::Interrupt), _) => {
            (Error::exec_timeout(limits.exec_timeout), true)
        }
        (Some(HostTrap::Broken(text)), ..) => {
            (Error::internal("a host function broke its declaration", text.clone()), true)
        }
        (Some(HostTrap::Saturated(reason)), ..) => (Error::Saturated { reason }, true),
        (_, Some(Trap::OutOfFuel), _) => (out_of_fuel(limits, false), true),
        (Some(HostTrap::OutOfMemory), ..) => (Error::out_of_memory(limits.memory), false),
        _ if is_heap_full(error) => (Error::out_of_memory(limits.memory), false),
        (Some(HostTrap::Failed(text)), ..) => (said(text), false),
        (_, Some(trap), _) => (Error::guest_trap(trap.to_string()), false),
        _ if error.is::<ThrownException>() => (Error::guest_trap(format!("it threw {UNCAUGHT}")), false),
        (.., Some(exit)) => (Error::guest_exit(exit.0), false),
        // An HTTP request failed, or WASI ends a guest that calls it with what no guest may.
        _ => (Error::guest_trap(shorten(&error.root_cause().to_string())), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: InstanceLimits = InstanceLimits {
        memory: 1,
        table_elements: 1,
        output_size: 1,
        exec_timeout: std::time::Duration::from_secs(1),
        build_timeout: std::time::Duration::from_secs(1),
        fuel: None,
    };

    #[test]
    fn what_ends_a_guest_has_its_kind_before_its_first_call_and_in_one_whatever_it_has_said() {
        let trap = |trap: HostTrap| move || wasmtime::Error::from(trap.clone());
        let own = |trap: Trap| move || wasmtime::Error::from(trap);
        let text = || "text".to_owned();
        // What the host decides counts for more than what the guest has said.
        for (error, before, in_call, decided) in [
            (&trap(HostTrap::Deadline) as &dyn Fn() -> wasmtime::Error, "build_timeout", "exec_timeout", true),
            (&trap(HostTrap::Saturated("full")), "saturated", "saturated", true),
            (&trap(HostTrap::Broken(text())), "internal", "internal", true),
            (&own(Trap::OutOfFuel), "out_of_fuel", "out_of_fuel", true),
            (&trap(HostTrap::OutOfMemory), "out_of_memory", "out_of_memory", false),
            (&own(Trap::AllocationTooLarge), "out_of_memory", "out_of_memory", false),
            (&trap(HostTrap::Failed(text())), "invalid_plugin", "guest_error", false),
            (&trap(HostTrap::Request(text())), "invalid_plugin", "guest_trap", false),
            (&own(Trap::UnreachableCodeReached), "invalid_plugin", "guest_trap", false),
            (&|| ThrownException.into(), "invalid_plugin", "guest_trap", false),
            (&|| I32Exit(3).into(), "invalid_plugin", "guest_exit", false),
            (&|| wasmtime::Error::msg("other"), "invalid_plugin", "guest_trap", false),
        ] {
            let shown = format!("{:#}", error());
            assert_eq!(invalid(&error(), &LIMITS).kind(), before, "{shown}");
            let ends = |said| call(Err(error()), said, &LIMITS).0.unwrap_err().kind();
            assert_eq!(ends(None), in_call, "{shown}");
            assert_eq!(ends(Some((b"said", 4))), if decided { in_call } else { "guest_error" }, "{shown}");
        }
        assert!(matches!(call(Err(I32Exit(0).into()), None, &LIMITS), (Ok(()), false)));
        assert!(matches!(call(Ok(0), None, &LIMITS), (Ok(()), true)));
        let text = call(Ok(7), None, &LIMITS).0.unwrap_err().to_string();
        assert!(text.contains("it returned 7"), "{text}");
    }

    #[test]
    fn what_the_host_lacks_is_nobodys_fault_but_the_hosts() {
        use wasmtime::error::Context;

        for errno in [Errno::NOMEM, Errno::MFILE, Errno::NFILE, Errno::AGAIN] {
            let of_io = io::Error::from_raw_os_error(errno.raw_os_error());
            let below: [wasmtime::Error; 3] = [errno.into(), of_io.into(), HostTrap::Lacks(errno).into()];
            for below in below {
                let error = Err::<(), _>(below).context("failed to map").unwrap_err();
                assert_eq!(invalid(&error, &LIMITS).kind(), "overloaded", "{error:#}");
                let (ended, is_sound) = call(Err(error), Some((b"no", 2)), &LIMITS);
                assert_eq!((ended.unwrap_err().kind().as_str(), is_sound), ("overloaded", false));
            }
        }
        let other: wasmtime::Error = Errno::INVAL.into();
        assert_eq!(invalid(&other, &LIMITS).kind(), "invalid_plugin");
    }

    #[test]
    fn a_plugin_that_finds_every_slot_taken_is_not_at_fault() {
        use wasmtime::{Config, Engine, Instance, Module, PoolingAllocationConfig, Store};

        let mut one = PoolingAllocationConfig::new();
        one.total_core_instances(1);
        let engine = Engine::new(Config::new().allocation_strategy(one)).unwrap();
        let module = Module::new(&engine, b"\0asm\x01\0\0\0").unwrap();
        let mut store = Store::new(&engine, ());
        Instance::new(&mut store, &module, &[]).unwrap();
        let full = Instance::new(&mut store, &module, &[]).unwrap_err();
        assert_eq!(invalid(&full, &LIMITS).kind(), "saturated");
    }

    #[test]
    fn a_message_that_is_read_in_part_is_shown_to_its_last_whole_character_and_one_that_is_no_text_is_not() {
        let long = "é".repeat(40_000);
        let (beginning, cut) = (&long.as_bytes()[..65_537], format!("{}… (cut; 80000 bytes in all)", &long[..65_536]));
        assert_eq!(message((beginning, long.len())), cut);
        assert_eq!(message(("é".as_bytes(), 2)), "é");
        let ends_early = message((&"é".as_bytes()[..1], 1));
        assert!(ends_early.starts_with("unable to load error message from memory: incomplete"), "{ends_early}");
        let no_text = message((b"\xff and more", 100));
        assert!(no_text.starts_with("unable to load error message from memory: invalid"), "{no_text}");
    }
}
