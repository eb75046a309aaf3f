//! Plain outcome types. No I/O, no locks.

use std::{fmt, str::FromStr, time::Duration};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{error::Error, source::Digest};

/// Tells one evaluator from every other that this process has had, also those of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct EvaluatorId(pub(crate) u64);

impl fmt::Display for EvaluatorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for EvaluatorId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Where the time of one evaluation went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Waiting for a place or an instance, and making the instance when none was ready.
    pub wait: Duration,
    /// Fetching, compiling and probing the plugin, as far as this call waited for it; zero when its runtime was live.
    pub build: Duration,
    /// The guest's call, from handing it over to having it back.
    pub exec: Duration,
}

/// The outcome of one evaluation that succeeded.
#[derive(Debug, Clone)]
pub struct Response {
    pub(crate) evaluator: EvaluatorId,
    pub(crate) digest: Digest,
    pub(crate) output: Bytes,
    pub(crate) timings: Timings,
}

impl Response {
    /// Which evaluator answered.
    #[must_use]
    pub fn evaluator(&self) -> EvaluatorId {
        self.evaluator
    }

    /// The digest of the plugin that answered. Differs between two responses of one evaluator that was replaced.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The plugin's output.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.output
    }

    /// The plugin's output, owned.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.output
    }

    /// The output as JSON of any shape.
    ///
    /// # Errors
    ///
    /// `guest_error` if it is not JSON: a plugin whose caller wants JSON has failed when it gives something else.
    pub fn json(&self) -> Result<serde_json::Value, Error> {
        self.typed()
    }

    /// The output as JSON of a given shape.
    ///
    /// # Errors
    ///
    /// `guest_error` if it is not JSON of that shape.
    pub fn typed<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.output)
            .map_err(|error| Error::GuestError { message: format!("its output is not the JSON expected: {error}") })
    }

    /// Where the time went.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.timings
    }
}
