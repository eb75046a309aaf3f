//! Failures that are remembered: when it is worth to try again.

use std::time::Duration;

use super::Error;
use crate::units::Time;

/// A build failed in the same way a short time ago, and is not tried again before this time is over.
#[derive(Debug, thiserror::Error)]
#[error("as it was when it was last tried; not tried again for {}", Time(*.0))]
pub(crate) struct TryLater(pub(crate) Duration);

impl Error {
    /// Whether a build that failed with this would fail again: the plugin's own fault, whatever time it takes.
    pub(crate) fn comes_again(&self) -> bool {
        matches!(
            self,
            Error::InvalidPlugin { .. }
                | Error::EntryPointMissing { .. }
                | Error::OutOfFuel { .. }
                | Error::OutOfMemory { .. }
        )
    }

    /// When it is worth to try again: for a plugin that was over its budget when it was last compiled.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::InvalidPlugin { cause: Some(cause), .. } | Error::BuildTimeout { cause: Some(cause), .. } => {
                cause.downcast_ref().map(|TryLater(after)| *after)
            }
            _ => None,
        }
    }
}
