//! One typed error, each with a stable [`ErrorKind`].
//!
//! An error has two texts. Its [`Display`](fmt::Display) is for the client: it names the evaluator, entry point or
//! limit concerned, and never a host path or a backtrace. Its [`source`](std::error::Error::source) chain is for the
//! operator and holds whatever the layer below said.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use crate::words::words;

/// What an operator may know of an error and a client may not. Shared, because one failed build reaches all who waited.
pub type Cause = Arc<dyn StdError + Send + Sync + 'static>;

/// Why an evaluation, a build or a request did not succeed.
///
/// Cheap to clone. Match on [`kind`](Error::kind) for the stable word.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No evaluator is registered under this name.
    #[error("no evaluator is named {name:?}; register it first")]
    NotFound {
        /// The name asked for.
        name: String,
    },
    /// The name is not 1 to 128 of `A-Z a-z 0-9 . _ - /`, or holds `..`.
    #[error("{name:?} is not an evaluator name: {reason}")]
    InvalidName {
        /// The name given, shortened.
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
    /// The plugin's bytes could not be read from their source. Trying again may help.
    #[error("the plugin cannot be read from its source")]
    SourceUnavailable {
        /// The source's own error, which may name a host path.
        #[source]
        cause: Cause,
    },
    /// Not a WebAssembly binary, or one that does not compile, link or initialise.
    #[error("the plugin is not valid: {reason}")]
    InvalidPlugin {
        /// What is wrong with it, in words fit for its author.
        reason: String,
        /// The engine's own error.
        #[source]
        cause: Option<Cause>,
    },
    /// The plugin has no function of that name and shape.
    #[error("{}", describe_missing(.entry_point.as_deref(), .available))]
    EntryPointMissing {
        /// The entry point asked for; `None` when none was named and none could be chosen.
        entry_point: Option<String>,
        /// Functions that could be one: no parameters, and no result or one `i32`.
        available: Vec<String>,
    },
    /// The plugin's bytes are not the ones that were promised.
    #[error("the plugin's digest is {actual}, not {expected} as declared")]
    DigestMismatch {
        /// The digest declared.
        expected: String,
        /// The digest of the bytes that came.
        actual: String,
    },
    /// A plugin or an input is over its limit.
    #[error("the {what} is over its limit of {limit} bytes")]
    PayloadTooLarge {
        /// `plugin` or `input`.
        what: &'static str,
        /// The limit, in bytes.
        limit: u64,
    },
    /// Compiling or initialising took longer than `limits.build_timeout`.
    #[error("the plugin was not compiled and initialised within {after:?}")]
    BuildTimeout {
        /// The budget.
        after: Duration,
    },
    /// Nothing is free and nobody else may wait.
    #[error("saturated: {reason}")]
    Saturated {
        /// What is exhausted.
        reason: &'static str,
    },
    /// Waited longer than `limits.wait_timeout` for a runtime or an instance.
    #[error("nothing came free within {after:?}")]
    WaitTimeout {
        /// How long it waited.
        after: Duration,
    },
    /// The guest ran longer than `limits.exec_timeout` and was stopped.
    #[error("the evaluation was stopped after {after:?}")]
    ExecTimeout {
        /// The budget.
        after: Duration,
    },
    /// The guest trapped: `unreachable`, an access out of bounds, a stack overflow and the like.
    #[error("the plugin trapped: {reason}")]
    GuestTrap {
        /// The trap, in WebAssembly's words.
        reason: String,
    },
    /// The guest reported an error of its own, or returned a code other than 0.
    #[error("the plugin reported an error: {message}")]
    GuestError {
        /// The guest's message.
        message: String,
    },
    /// The guest called `exit` with a code other than 0.
    #[error("the plugin exited with code {code}")]
    GuestExit {
        /// The exit code.
        code: i32,
    },
    /// The guest wanted more memory than `limits.memory`.
    #[error("the plugin ran out of memory")]
    OutOfMemory,
    /// The guest used up `limits.fuel`.
    #[error("the plugin ran out of fuel")]
    OutOfFuel,
    /// The guest's output is over `limits.output_size`.
    #[error("the plugin's output is over its limit of {limit} bytes")]
    OutputTooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The evaluator was closed before the call, or a close of its runtime interrupted the call after its grace.
    #[error("{}", describe_closed(.name, *.interrupted))]
    Closed {
        /// The evaluator's name.
        name: String,
        /// Whether the guest had begun.
        interrupted: bool,
    },
    /// The pool is shutting down.
    #[error("the pool is shutting down")]
    ShuttingDown,
    /// The caller left. Seen in metrics and logs only.
    #[error("cancelled")]
    Cancelled,
    /// The request carries no valid credentials.
    #[error("a valid token is required")]
    Unauthorized,
    /// A bug in evalpool, its engine or a host function.
    #[error("internal error: {reason}")]
    Internal {
        /// What went wrong, without detail of the host.
        reason: &'static str,
        /// The detail.
        #[source]
        cause: Option<Cause>,
    },
}

fn describe_missing(entry_point: Option<&str>, available: &[String]) -> String {
    let exists = match available {
        [] => {
            "it exports no function that could be an entry point (no parameters, and no result or one i32)".to_owned()
        }
        names => format!("it has {}", names.join(", ")),
    };
    match entry_point {
        Some(name) => format!("the plugin has no entry point {name:?}: {exists}"),
        None => format!("the plugin's entry point must be named: {exists}"),
    }
}

fn describe_closed(name: &str, interrupted: bool) -> String {
    if interrupted {
        format!("the runtime of {name:?} was closed, which interrupted this call after its grace")
    } else {
        format!("the evaluator {name:?} is closed")
    }
}

words! {
    /// The stable word for each [`Error`], as clients, dashboards and scripts know it.
    #[non_exhaustive]
    pub enum ErrorKind {
        /// See [`Error::NotFound`].
        NotFound = "not_found",
        /// See [`Error::InvalidName`].
        InvalidName = "invalid_name",
        /// See [`Error::InvalidRequest`].
        InvalidRequest = "invalid_request",
        /// See [`Error::SourceUnavailable`].
        SourceUnavailable = "source_unavailable",
        /// See [`Error::InvalidPlugin`].
        InvalidPlugin = "invalid_plugin",
        /// See [`Error::EntryPointMissing`].
        EntryPointMissing = "entry_point_missing",
        /// See [`Error::DigestMismatch`].
        DigestMismatch = "digest_mismatch",
        /// See [`Error::PayloadTooLarge`].
        PayloadTooLarge = "payload_too_large",
        /// See [`Error::BuildTimeout`].
        BuildTimeout = "build_timeout",
        /// See [`Error::Saturated`].
        Saturated = "saturated",
        /// See [`Error::WaitTimeout`].
        WaitTimeout = "wait_timeout",
        /// See [`Error::ExecTimeout`].
        ExecTimeout = "exec_timeout",
        /// See [`Error::GuestTrap`].
        GuestTrap = "guest_trap",
        /// See [`Error::GuestError`].
        GuestError = "guest_error",
        /// See [`Error::GuestExit`].
        GuestExit = "guest_exit",
        /// See [`Error::OutOfMemory`].
        OutOfMemory = "out_of_memory",
        /// See [`Error::OutOfFuel`].
        OutOfFuel = "out_of_fuel",
        /// See [`Error::OutputTooLarge`].
        OutputTooLarge = "output_too_large",
        /// See [`Error::Closed`].
        Closed = "closed",
        /// See [`Error::ShuttingDown`].
        ShuttingDown = "shutting_down",
        /// See [`Error::Cancelled`].
        Cancelled = "cancelled",
        /// See [`Error::Unauthorized`].
        Unauthorized = "unauthorized",
        /// See [`Error::Internal`].
        Internal = "internal",
    }
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

impl Error {
    /// The stable word for this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::NotFound { .. } => ErrorKind::NotFound,
            Error::InvalidName { .. } => ErrorKind::InvalidName,
            Error::InvalidRequest { .. } => ErrorKind::InvalidRequest,
            Error::SourceUnavailable { .. } => ErrorKind::SourceUnavailable,
            Error::InvalidPlugin { .. } => ErrorKind::InvalidPlugin,
            Error::EntryPointMissing { .. } => ErrorKind::EntryPointMissing,
            Error::DigestMismatch { .. } => ErrorKind::DigestMismatch,
            Error::PayloadTooLarge { .. } => ErrorKind::PayloadTooLarge,
            Error::BuildTimeout { .. } => ErrorKind::BuildTimeout,
            Error::Saturated { .. } => ErrorKind::Saturated,
            Error::WaitTimeout { .. } => ErrorKind::WaitTimeout,
            Error::ExecTimeout { .. } => ErrorKind::ExecTimeout,
            Error::GuestTrap { .. } => ErrorKind::GuestTrap,
            Error::GuestError { .. } => ErrorKind::GuestError,
            Error::GuestExit { .. } => ErrorKind::GuestExit,
            Error::OutOfMemory => ErrorKind::OutOfMemory,
            Error::OutOfFuel => ErrorKind::OutOfFuel,
            Error::OutputTooLarge { .. } => ErrorKind::OutputTooLarge,
            Error::Closed { .. } => ErrorKind::Closed,
            Error::ShuttingDown => ErrorKind::ShuttingDown,
            Error::Cancelled => ErrorKind::Cancelled,
            Error::Unauthorized => ErrorKind::Unauthorized,
            Error::Internal { .. } => ErrorKind::Internal,
        }
    }

    /// The error and everything below it, for a log line. Never for a client: it may name host paths.
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

    pub(crate) fn invalid_request(reason: impl Into<String>) -> Self {
        Error::InvalidRequest { reason: reason.into() }
    }

    /// `evaluate` was polled where no tokio runtime is.
    pub(crate) fn no_tokio() -> Self {
        Self::invalid_request("evaluate needs a tokio runtime; use evaluate_blocking without one")
    }

    pub(crate) fn invalid_plugin(reason: impl Into<String>) -> Self {
        Error::InvalidPlugin { reason: reason.into(), cause: None }
    }

    pub(crate) fn internal(reason: &'static str, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Error::Internal { reason, cause: Some(Arc::from(cause.into())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_entry_point_names_those_that_exist() {
        let error =
            Error::EntryPointMissing { entry_point: Some("ran".into()), available: vec!["run".into(), "walk".into()] };
        assert_eq!(error.kind(), "entry_point_missing");
        assert_eq!(error.to_string(), r#"the plugin has no entry point "ran": it has run, walk"#);
    }

    #[test]
    fn the_client_text_leaves_out_what_the_chain_tells() {
        let cause = std::io::Error::other("/etc/secret: permission denied");
        let error = Error::SourceUnavailable { cause: Arc::new(cause) };
        assert!(!error.to_string().contains("/etc"));
        assert!(error.chain().contains("/etc/secret"));
    }

    #[test]
    fn words_are_distinct() {
        let words: std::collections::BTreeSet<_> = ErrorKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(words.len(), ErrorKind::ALL.len());
    }
}
