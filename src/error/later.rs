//! Failures that are remembered: when it is worth to try again.

use std::time::Duration;

use super::Error;
use crate::{last_words::LastWords, units::Time};

/// Bytes of a text that is remembered.
const MOST_REASON: usize = 1024;

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

    /// The error as it is remembered: its kind and what it says to a client, in few bytes. Plugins choose what names are in
    /// it, and how long its cause is.
    pub(crate) fn briefly(&self) -> Self {
        let cut = |text: &str, most: usize| text[..text.floor_char_boundary(most)].to_owned();
        match self {
            Error::InvalidPlugin { reason, cause, .. } => Error::InvalidPlugin {
                reason: cut(reason, MOST_REASON),
                cause: cause.clone().filter(|cause| cause.is::<TryLater>()),
                last_words: LastWords::none(),
            },
            Error::EntryPointMissing { entry_point, available } => {
                let mut room = MOST_REASON;
                let names = available.iter().take_while(|name| {
                    room = room.saturating_sub(name.len());
                    room > 0
                });
                Error::EntryPointMissing {
                    available: names.cloned().collect(),
                    entry_point: entry_point.as_deref().map(|name| cut(name, MOST_REASON)),
                }
            }
            other => other.clone().change_last_words(|words| *words = LastWords::none()),
        }
    }

    /// When it is worth to try again: for a tenant at one of its bounds, and for a plugin that was over its budget when it was
    /// last compiled. A bound that only the tenant itself can get below, by removing what it has, says a minute.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::QuotaExceeded { retry_after, .. } => Some(*retry_after),
            Error::InvalidPlugin { cause: Some(cause), .. } | Error::BuildTimeout { cause: Some(cause), .. } => {
                cause.downcast_ref().map(|TryLater(after)| *after)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_remembered_of_a_failure_is_short() {
        let long = "ä".repeat(10_000);
        let cause: crate::Cause = Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(long.clone()));
        let invalid = Error::InvalidPlugin { reason: long.clone(), cause: Some(cause), last_words: LastWords::none() };
        assert_eq!(invalid.briefly().kind(), "invalid_plugin");
        assert!(invalid.briefly().chain().len() < 2 * MOST_REASON);
        let missing =
            Error::EntryPointMissing { entry_point: Some(long.clone()), available: vec!["a".repeat(100); 1000] };
        let Error::EntryPointMissing { entry_point, available } = missing.briefly() else { panic!("of another kind") };
        assert!(entry_point.unwrap().len() <= MOST_REASON && available.concat().len() <= MOST_REASON);
        let later: crate::Cause = Arc::new(TryLater(Duration::from_secs(3)));
        let later = Error::InvalidPlugin { reason: String::new(), cause: Some(later), last_words: LastWords::none() };
        assert_eq!(later.briefly().retry_after(), Some(Duration::from_secs(3)));
    }
}
