//! The outcome of an evaluation: plain types, without I/O or locks.

use std::{fmt, str::FromStr, time::Duration};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{error::Error, last_words::LastWords, source::Digest, usage::Usage};

/// Identifies an evaluator. No two evaluators of a pool share one, even if they have the same name.
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
#[non_exhaustive]
pub struct Timings {
    /// The wait for a place or an instance, and for a new instance to be made if none was ready.
    pub wait: Duration,
    /// How long this call waited until the plugin was read, compiled and probed; zero if the runtime was live.
    pub build: Duration,
    /// How long the guest ran, from receiving its input to returning its output.
    pub exec: Duration,
}

/// The result of an evaluation that succeeded.
#[derive(Debug, Clone)]
pub struct Response {
    pub(crate) evaluator: EvaluatorId,
    pub(crate) digest: Digest,
    pub(crate) output: Bytes,
    pub(crate) written: LastWords,
    pub(crate) timings: Timings,
    pub(crate) usage: Usage,
}

impl Response {
    /// The evaluator that answered.
    #[must_use]
    pub fn evaluator(&self) -> EvaluatorId {
        self.evaluator
    }

    /// The digest of the plugin that answered. It changes when the evaluator's plugin is replaced.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The plugin's output.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.output
    }

    /// The plugin's output, without the rest of the response.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.output
    }

    /// The output as text.
    ///
    /// # Errors
    ///
    /// [`GuestError`](Error::GuestError) if it is not UTF-8: for a caller that expects text, the plugin has failed.
    pub fn text(&self) -> Result<&str, Error> {
        str::from_utf8(&self.output).map_err(|error| Error::guest_error(format!("its output is not text: {error}")))
    }

    /// The output as JSON, deserialised into `T`: a type of your own, or [`serde_json::Value`] for JSON of any shape.
    ///
    /// ```no_run
    /// # async fn example(evaluator: evalpool::Evaluator) -> Result<(), evalpool::Error> {
    /// #[derive(serde::Deserialize)]
    /// struct Price {
    ///     cents: u64,
    /// }
    ///
    /// let price: Price = evaluator.evaluate(r#"{"item":"tea"}"#).await?.json()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`GuestError`](Error::GuestError) if it is not JSON that fits `T`: for a caller that expects it, the plugin has
    /// failed.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.output)
            .map_err(|error| Error::guest_error(format!("its output is not the JSON expected: {error}")))
    }

    /// What the plugin wrote to its standard output and error besides, if anything.
    #[must_use]
    pub fn written(&self) -> Option<&LastWords> {
        Some(&self.written).filter(|written| !written.is_empty())
    }

    /// Where the time went.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// What the evaluation used.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage
    }
}
