//! What a tenant may have too much of.

use std::time::Duration;

use super::Error;
use crate::{
    units::{Size, Time},
    words::words,
};

words! {
    /// A bound of a tenant, by the key that sets it in [`TenantBounds`](crate::config::TenantBounds).
    #[non_exhaustive]
    pub enum Bound {
        /// Runtimes that exist.
        Runtimes = "runtimes",
        /// Instances that exist.
        Instances = "instances",
        /// Bytes of code and instances.
        Memory = "memory",
        /// Builds that compile, or are the next to.
        BuildConcurrency = "build_concurrency",
        /// The time of guests.
        CpuPerSecond = "cpu_per_second",
        /// Callers that wait.
        MaxWaiting = "max_waiting",
        /// Evaluators.
        Evaluators = "evaluators",
        /// Bytes of stored plugins.
        StoredBytes = "stored_bytes",
    }
}

/// What comes free when calls end.
const SOON: Duration = Duration::from_secs(1);

/// What comes free when somebody gives it up.
const BY_HAND: Duration = Duration::from_mins(1);

impl Bound {
    pub(super) fn show(self, limit: u64) -> String {
        match self {
            Self::Memory | Self::StoredBytes => Size(limit).to_string(),
            Self::CpuPerSecond => Time(Duration::from_nanos(limit)).to_string(),
            _ => limit.to_string(),
        }
    }

    /// The error of a tenant that is at this bound, once its name is [known](Error::of_tenant).
    pub(crate) fn exceeded(self, limit: u64) -> Error {
        let retry_after = match self {
            Self::Evaluators | Self::StoredBytes => BY_HAND,
            _ => SOON,
        };
        Error::QuotaExceeded { tenant: "".into(), bound: self, limit, retry_after }
    }
}

impl Error {
    /// The same, of this tenant.
    pub(crate) fn of_tenant(self, name: &str) -> Self {
        match self {
            Error::QuotaExceeded { bound, limit, retry_after, .. } => {
                Error::QuotaExceeded { tenant: name.into(), bound, limit, retry_after }
            }
            other => other,
        }
    }
}
