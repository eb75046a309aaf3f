//! How what is used is reported.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::formats::off_or_duration;

/// How what is used is reported.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UsageSettings {
    /// How often the log gets a line for each evaluator that ended an evaluation since the last, for billing: at least `1s`,
    /// or `"off"`. See [`EvaluatorPool::report_usage`](crate::EvaluatorPool::report_usage). Default `"off"`.
    #[serde(with = "off_or_duration")]
    pub interval: Option<Duration>,
}

impl UsageSettings {
    /// Says what is out of its range.
    pub(super) fn check(&self) -> Result<(), String> {
        match self.interval {
            Some(interval) if interval < Duration::from_secs(1) => {
                Err(format!("usage.interval is {interval:?}; it must be at least 1s, or \"off\""))
            }
            _ => Ok(()),
        }
    }
}
