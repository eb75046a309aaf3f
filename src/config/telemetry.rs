//! Where the server's spans go.

use serde::{Deserialize, Serialize};

/// Where the server's spans go. Has no effect on a pool: there, whoever installs the subscriber decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetrySettings {
    /// The base URL of a collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`: spans go to `/v1/traces`
    /// below it, as protobuf. Without it no span is made. None by default.
    pub otlp_endpoint: Option<String>,
    /// Which part of traces is sent, from 0 to 1. A client that sends `traceparent` decides for its own request. Default 1:
    /// all.
    pub sample: f64,
    /// Where a trace is looked at, with `{trace_id}` in its place, such as `https://jaeger.example.com/trace/{trace_id}`: the
    /// status page links its traces there. None by default: it shows their ids.
    pub trace_url: Option<String>,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self { otlp_endpoint: None, sample: 1.0, trace_url: None }
    }
}

impl TelemetrySettings {
    /// Says what is out of its range.
    pub(super) fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.sample) {
            return Err(format!("telemetry.sample is {}; it must be from 0 to 1", self.sample));
        }
        let is_url = |url: &str| ["http://", "https://"].iter().any(|scheme| url.starts_with(scheme));
        match self.otlp_endpoint.as_deref() {
            // Not shown: it may hold credentials.
            Some(url) if !is_url(url) => {
                return Err("telemetry.otlp_endpoint must begin with http:// or https://".to_owned());
            }
            _ => {}
        }
        match self.trace_url.as_deref() {
            Some(url) if !is_url(url) || !url.contains("{trace_id}") => Err(format!(
                "telemetry.trace_url is {url:?}; it must begin with http:// or https:// and have {{trace_id}} where the \
                 trace's id comes"
            )),
            _ => Ok(()),
        }
    }
}
