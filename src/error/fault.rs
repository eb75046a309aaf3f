//! Whose fault an error is: what to do about it follows from that.

use super::{Error, ErrorKind};
use crate::words::words;

words! {
    /// Whose fault an [`Error`] is. [ERRORS.md](https://github.com/evalpool/evalpool/blob/main/ERRORS.md) says what to do
    /// about each kind.
    ///
    /// | fault | kinds |
    /// |---|---|
    /// | `Caller` | `not_found`, `invalid_name`, `invalid_request`, `payload_too_large`, `unauthorized`, `precondition_failed`, `closed`, `cancelled`, `quota_exceeded` |
    /// | `Plugin` | `invalid_plugin`, `entry_point_missing`, `digest_mismatch`, `build_timeout`, `guest_trap`, `guest_error`, `guest_exit`, `out_of_memory`, `out_of_fuel`, `output_too_large`, `exec_timeout` |
    /// | `Capacity` | `saturated`, `wait_timeout` |
    /// | `Host` | `source_unavailable`, `overloaded`, `shutting_down`, `internal` |
    #[non_exhaustive]
    pub enum Fault {
        /// The request or the registration is wrong, its tenant has all that it may have, or the caller ended it. The same
        /// call fails again until that changes.
        Caller = "caller",
        /// The plugin's author has to mend it, or its limits are too low for it.
        Plugin = "plugin",
        /// Everything is in use. A retry later may succeed.
        Capacity = "capacity",
        /// The service, or what it depends on. No plugin or caller can help it.
        Host = "host",
    }
}

impl Error {
    /// Whose fault it is.
    ///
    /// ```
    /// use evalpool::{Error, Fault};
    ///
    /// fn is_worth_a_retry(error: &Error) -> bool {
    ///     error.fault() == Fault::Capacity
    /// }
    /// assert!(is_worth_a_retry(&Error::Saturated { reason: "no instance is free" }));
    /// ```
    #[must_use]
    pub fn fault(&self) -> Fault {
        self.kind().fault()
    }
}

impl ErrorKind {
    /// Whose fault an error of this kind is.
    #[must_use]
    pub const fn fault(self) -> Fault {
        use ErrorKind as Kind;

        match self {
            Kind::NotFound
            | Kind::InvalidName
            | Kind::InvalidRequest
            | Kind::PayloadTooLarge
            | Kind::Unauthorized
            | Kind::PreconditionFailed
            | Kind::Closed
            | Kind::Cancelled
            | Kind::QuotaExceeded => Fault::Caller,
            Kind::InvalidPlugin
            | Kind::EntryPointMissing
            | Kind::DigestMismatch
            | Kind::BuildTimeout
            | Kind::GuestTrap
            | Kind::GuestError
            | Kind::GuestExit
            | Kind::OutOfMemory
            | Kind::OutOfFuel
            | Kind::OutputTooLarge
            | Kind::ExecTimeout => Fault::Plugin,
            Kind::Saturated | Kind::WaitTimeout => Fault::Capacity,
            Kind::SourceUnavailable | Kind::Overloaded | Kind::ShuttingDown | Kind::Internal => Fault::Host,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_docs_say_the_fault_of_every_kind() {
        for &fault in Fault::ALL {
            let row = format!("/// | `{fault:?}` | ");
            let row = include_str!("fault.rs").lines().find_map(|line| line.trim().strip_prefix(&row)).unwrap();
            for kind in ErrorKind::ALL {
                assert_eq!(row.contains(&format!("`{kind}`")), kind.fault() == fault, "{kind} and {fault:?}");
            }
        }
    }
}
