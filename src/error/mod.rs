//! One typed error, each with a stable [`ErrorKind`].
//!
//! An error has two texts. Its [`Display`](fmt::Display) is for the client: it names the evaluator, entry point or
//! limit, and never a host path or a backtrace. Its [`source`](std::error::Error::source) chain is for the operator: it
//! has the errors of the layers below. [`Error::chain`] joins both for a log.

mod bound;
mod describe;
mod fault;
mod later;

use std::{any::Any, error::Error as StdError, fmt, io, sync::Arc, time::Duration};

use self::describe::{describe_closed, describe_missing, describe_out_of_memory, describe_quota};
#[cfg(feature = "direct")]
pub(crate) use self::later::TryLater;
pub use self::{bound::Bound, fault::Fault};
use crate::{
    host_limits,
    last_words::LastWords,
    units::{Size, Time},
    words::words,
};

/// The error below an [`Error`], for the operator. Shared, because a failed build reaches every caller that waited.
pub type Cause = Arc<dyn StdError + Send + Sync + 'static>;

/// Why an evaluation, a build or a request did not succeed.
///
/// Cheap to clone. Use [`kind`](Error::kind) for a word that does not change between versions.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No evaluator is registered under this name.
    #[error("no evaluator is named {name:?}; register it first")]
    NotFound {
        /// The name asked for.
        name: String,
    },
    /// The name is not 1 to 128 characters of `A-Z a-z 0-9 . _ - /`, or contains `..`.
    #[error("{name:?} is not an evaluator name: {reason}")]
    InvalidName {
        /// The name that was given, cut to a printable length.
        name: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// The request, its data or a setting of the spec cannot be understood.
    #[error("{reason}")]
    InvalidRequest {
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The source could not read the plugin's bytes. A retry may succeed.
    #[error("the plugin cannot be read from its source")]
    SourceUnavailable {
        /// The source's own error, which may name a host path.
        #[source]
        cause: Cause,
    },
    /// Not a WebAssembly binary, or one that does not compile, link or initialise.
    #[error("the plugin is not valid: {reason}")]
    InvalidPlugin {
        /// What is wrong with it, for the plugin's author.
        reason: String,
        /// The engine's own error.
        #[source]
        cause: Option<Cause>,
        /// What its initialisers left behind, if they failed.
        last_words: LastWords,
    },
    /// The plugin has no function of that name and shape.
    #[error("{}", describe_missing(.entry_point.as_deref(), .available))]
    EntryPointMissing {
        /// The entry point that was named; `None` when none was named and none could be chosen.
        entry_point: Option<String>,
        /// Functions that could be one: no parameters, and no result or one `i32`.
        available: Vec<String>,
    },
    /// The plugin's bytes do not have the declared digest.
    #[error("the plugin's digest is {actual}, not {expected} as declared")]
    DigestMismatch {
        /// The declared digest.
        expected: String,
        /// The digest of the bytes that the source gave.
        actual: String,
    },
    /// A plugin or an input is over its limit.
    #[error("the {what} is over limits.{what}_size, {}", Size(*.limit))]
    PayloadTooLarge {
        /// `plugin` or `input`.
        what: &'static str,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The plugin took longer than `limits.build_timeout` to compile and initialise.
    #[error("the plugin was not compiled and initialised within limits.build_timeout, {}", Time(*.after))]
    BuildTimeout {
        /// The budget.
        after: Duration,
        /// That it has been so before, if that is why.
        #[source]
        cause: Option<Cause>,
        /// What its initialisers left behind.
        last_words: LastWords,
    },
    /// The host lacks what it takes: files, memory, threads, processes or room on a disk. A retry may succeed.
    #[error("the host is short of something: {reason}")]
    Overloaded {
        /// What could not be done.
        reason: &'static str,
        /// The system's own error, the limit that it is about, and which settings to lower.
        #[source]
        cause: Cause,
    },
    /// Nothing is free, and no more callers may wait (`pool.max_waiting`). Or the guest waited until its deadline for one of
    /// `engine.max_http_connections`.
    #[error("saturated: {reason}")]
    Saturated {
        /// What is used up.
        reason: &'static str,
    },
    /// The call waited longer than `limits.wait_timeout` for a runtime or an instance.
    #[error("nothing came free within {} (limits.wait_timeout)", Time(*.after))]
    WaitTimeout {
        /// How long it waited.
        after: Duration,
    },
    /// The tenant has all that it may have of something, and no more callers of it may wait, or the call waited for
    /// `limits.wait_timeout`. See [`TenantBounds`](crate::config::TenantBounds).
    #[error("{}", describe_quota(.tenant, *.bound, *.limit))]
    QuotaExceeded {
        /// The tenant's name.
        tenant: Arc<str>,
        /// Which of its bounds.
        bound: Bound,
        /// The bound: a number, bytes, or nanoseconds.
        limit: u64,
        /// When it is worth to try again.
        retry_after: Duration,
    },
    /// The guest ran longer than `limits.exec_timeout` and was stopped.
    #[error("the plugin ran longer than limits.exec_timeout, {}, and was stopped", Time(*.after))]
    ExecTimeout {
        /// The budget.
        after: Duration,
        /// What the guest left behind.
        last_words: LastWords,
    },
    /// The guest trapped, for example on `unreachable`, an access out of bounds or a stack overflow, or called WASI in a
    /// way that ends a guest.
    #[error("the plugin trapped: {reason}")]
    GuestTrap {
        /// The trap, in WebAssembly's words, or why a function of the host ended the guest.
        reason: String,
        /// What the guest left behind.
        last_words: LastWords,
    },
    /// The guest reported an error of its own, or returned a code other than 0.
    #[error("the plugin reported an error: {message}")]
    GuestError {
        /// The guest's message, whole up to 64 KiB. A longer one is cut, and ends in a mark that says so.
        message: String,
        /// What the guest left behind.
        last_words: LastWords,
    },
    /// The guest called `exit` with a code other than 0.
    #[error("the plugin exited with code {code}")]
    GuestExit {
        /// The exit code.
        code: i32,
        /// What the guest left behind.
        last_words: LastWords,
    },
    /// The guest asked for more memory than `limits.memory`, or needs more to start.
    #[error("{}", describe_out_of_memory(*.limit, *.to_start))]
    OutOfMemory {
        /// The limit, in bytes.
        limit: u64,
        /// The bytes that its memories begin with, if those are too many already.
        to_start: Option<u64>,
        /// What the guest left behind.
        last_words: LastWords,
    },
    /// The guest, or its initialisers, used up `limits.fuel`.
    #[error("the plugin ran out of fuel{}; limits.fuel is {limit}", if *.initialising { " while it was initialised" } else { "" })]
    OutOfFuel {
        /// The limit.
        limit: u64,
        /// Whether the initialisers of an instance used it up, rather than a call.
        initialising: bool,
        /// What the guest left behind.
        last_words: LastWords,
    },
    /// The guest's output is over `limits.output_size`.
    #[error("the plugin's output is over limits.output_size, {}", Size(*.limit))]
    OutputTooLarge {
        /// The limit, in bytes.
        limit: u64,
        /// What the guest left behind.
        last_words: LastWords,
    },
    /// The evaluator is not as the request wants it to be: somebody else changed it.
    #[error("{reason}")]
    PreconditionFailed {
        /// What was asked for, and what there is.
        reason: &'static str,
    },
    /// The evaluator was closed before the call, or its runtime was closed during the call and the grace ran out.
    #[error("{}", describe_closed(.name, *.interrupted))]
    Closed {
        /// The evaluator's name.
        name: String,
        /// Whether the guest was running and was interrupted.
        interrupted: bool,
    },
    /// The pool was closed before the call, or during the call and the grace ran out.
    #[error("the pool is shutting down")]
    ShuttingDown,
    /// The caller dropped the call's future. Appears in metrics and logs only.
    #[error("cancelled")]
    Cancelled,
    /// The request carries no valid credentials.
    #[error("a valid token is required")]
    Unauthorized,
    /// A bug in evalpool, its engine, a host function or a [loader](crate::Source::from_fn).
    #[error("internal error: {reason}")]
    Internal {
        /// What went wrong, without detail of the host.
        reason: &'static str,
        /// The detail.
        #[source]
        cause: Option<Cause>,
    },
}

/// Declares the words, and [`Error::kind`], which needs one for every variant.
macro_rules! kinds {
    ($($variant:ident = $word:literal,)*) => {
        words! {
            /// The stable word for each [`Error`], which clients, dashboards and scripts may rely on.
            #[non_exhaustive]
            pub enum ErrorKind {
                $(#[doc = concat!("See [`Error::", stringify!($variant), "`].")] $variant = $word,)*
            }
        }

        impl Error {
            /// The stable word for this error.
            #[must_use]
            pub fn kind(&self) -> ErrorKind {
                match self {
                    $(Error::$variant { .. } => ErrorKind::$variant,)*
                }
            }
        }
    };
}

kinds! {
    NotFound = "not_found",
    InvalidName = "invalid_name",
    InvalidRequest = "invalid_request",
    SourceUnavailable = "source_unavailable",
    InvalidPlugin = "invalid_plugin",
    EntryPointMissing = "entry_point_missing",
    DigestMismatch = "digest_mismatch",
    PayloadTooLarge = "payload_too_large",
    BuildTimeout = "build_timeout",
    Overloaded = "overloaded",
    Saturated = "saturated",
    WaitTimeout = "wait_timeout",
    QuotaExceeded = "quota_exceeded",
    ExecTimeout = "exec_timeout",
    GuestTrap = "guest_trap",
    GuestError = "guest_error",
    GuestExit = "guest_exit",
    OutOfMemory = "out_of_memory",
    OutOfFuel = "out_of_fuel",
    OutputTooLarge = "output_too_large",
    PreconditionFailed = "precondition_failed",
    Closed = "closed",
    ShuttingDown = "shutting_down",
    Cancelled = "cancelled",
    Unauthorized = "unauthorized",
    Internal = "internal",
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq<&str> for ErrorKind {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

/// The last words of an error that is a guest's.
macro_rules! last_words_of {
    ($error:expr) => {
        match $error {
            Error::InvalidPlugin { last_words, .. }
            | Error::BuildTimeout { last_words, .. }
            | Error::ExecTimeout { last_words, .. }
            | Error::GuestTrap { last_words, .. }
            | Error::GuestError { last_words, .. }
            | Error::GuestExit { last_words, .. }
            | Error::OutOfMemory { last_words, .. }
            | Error::OutOfFuel { last_words, .. }
            | Error::OutputTooLarge { last_words, .. } => Some(last_words),
            _ => None,
        }
    };
}

impl Error {
    /// This error and the errors below it, as one line for a log. Do not send it to a client: it may name host paths.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = StdError::source(self);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }

    /// What the guest wrote and where it was, if the error is the guest's and it left anything.
    #[must_use]
    pub fn last_words(&self) -> Option<&LastWords> {
        last_words_of!(self).filter(|words| !words.is_empty())
    }

    /// The same error with what `change` makes of its last words, if it can have any.
    pub(crate) fn change_last_words(mut self, change: impl FnOnce(&mut LastWords)) -> Self {
        last_words_of!(&mut self).map(change);
        self
    }

    pub(crate) fn invalid_request(reason: impl Into<String>) -> Self {
        Error::InvalidRequest { reason: reason.into() }
    }

    /// `evaluate` was polled outside a tokio runtime.
    pub(crate) fn no_tokio() -> Self {
        Self::invalid_request("evaluate needs a tokio runtime; use evaluate_blocking without one")
    }

    pub(crate) fn invalid_plugin(reason: impl Into<String>) -> Self {
        Error::InvalidPlugin { reason: reason.into(), cause: None, last_words: LastWords::none() }
    }

    pub(crate) fn build_timeout(after: Duration) -> Self {
        Error::BuildTimeout { after, cause: None, last_words: LastWords::none() }
    }

    /// The host lacks something: what was said of it, and the system's own error, to which the operator's limits are told.
    pub(crate) fn overloaded(reason: &'static str, said: impl fmt::Display, lack: &io::Error) -> Self {
        Error::Overloaded { reason, cause: Arc::from(Box::from(host_limits::explained(said, lack))) }
    }

    /// An error of the system: a shortage, or else what `other` makes of it.
    pub(crate) fn by_system(reason: &'static str, error: io::Error, other: impl FnOnce(io::Error) -> Self) -> Self {
        if host_limits::is_shortage(&error) { Self::overloaded(reason, &error, &error) } else { other(error) }
    }

    pub(crate) fn exec_timeout(after: Duration) -> Self {
        Error::ExecTimeout { after, last_words: LastWords::none() }
    }

    pub(crate) fn guest_error(message: impl Into<String>) -> Self {
        Error::GuestError { message: message.into(), last_words: LastWords::none() }
    }

    /// A source could not give its bytes.
    pub(crate) fn unavailable(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Error::SourceUnavailable { cause: Arc::from(cause.into()) }
    }

    pub(crate) fn internal(reason: &'static str, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Error::Internal { reason, cause: Some(Arc::from(cause.into())) }
    }
}

/// How guests fail, in the words of engines.
#[cfg(any(feature = "direct", feature = "extism"))]
impl Error {
    pub(crate) fn guest_trap(reason: impl Into<String>) -> Self {
        Error::GuestTrap { reason: reason.into(), last_words: LastWords::none() }
    }

    pub(crate) fn guest_exit(code: i32) -> Self {
        Error::GuestExit { code, last_words: LastWords::none() }
    }

    pub(crate) fn out_of_memory(limit: u64) -> Self {
        Error::OutOfMemory { limit, to_start: None, last_words: LastWords::none() }
    }

    pub(crate) fn out_of_fuel(limit: u64, initialising: bool) -> Self {
        Error::OutOfFuel { limit, initialising, last_words: LastWords::none() }
    }

    pub(crate) fn output_too_large(limit: u64) -> Self {
        Error::OutputTooLarge { limit, last_words: LastWords::none() }
    }
}

/// The message of a panic, if it has one.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_text_leaves_out_what_the_chain_tells() {
        let cause = std::io::Error::other("/etc/secret: permission denied");
        let error = Error::SourceUnavailable { cause: Arc::new(cause) };
        assert!(!error.to_string().contains("/etc"));
        assert!(error.chain().contains("/etc/secret"));
    }
}
