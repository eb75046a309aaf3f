//! What evaluations use. Plain data.

use std::time::Duration;

use serde::{Serialize, Serializer};

/// What one evaluation used. In JSON, times are in seconds.
///
/// An engine fills in what it can tell. `direct` tells all of it. `extism` knows neither the memory of its guests nor their
/// HTTP, and of host functions it counts those that are declared as a [`HostFunction`](crate::HostFunction). What
/// initialisers use, when an instance is made, is in none of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// How long the guest ran: wall time inside its polls, its host functions' own work with it. While it waits (for a host
    /// function, an HTTP response, its turn among guests that run long) it does not run. If the system takes the
    /// processor away in between (preemption), that time counts: on a busy machine it is more than the processor's time. On
    /// `extism` it is the time of the call on its thread, waits included.
    #[serde(rename = "guest_seconds", serialize_with = "seconds")]
    pub guest: Duration,
    /// How long the evaluation took in all: its waits, the build if it waited for one, and the guest.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub total: Duration,
    /// The most that the instance held during the call, in bytes: its linear memories, which never shrink, its tables, and
    /// what the host keeps about its allocations. A reused instance brings along what it grew to before. `None` if the
    /// engine cannot tell.
    #[serde(rename = "peak_memory_bytes")]
    pub peak_memory: Option<u64>,
    /// Bytes of input, data of the evaluator's own included; 0 if the guest was not called.
    pub bytes_in: u64,
    /// Bytes of output; 0 if the evaluation failed.
    pub bytes_out: u64,
    /// Calls of the embedder's host functions. Those of Extism's own interface and of WASI are not counted.
    pub host_calls: u64,
    /// HTTP requests of the guest; `None` if the engine cannot tell.
    pub http: Option<HttpUsage>,
    /// Instructions that ran, as [`limits.fuel`](crate::config::LimitSettings::fuel) counts them; `None` where nothing
    /// limits them, because then nobody counts.
    pub fuel: Option<u64>,
}

/// HTTP requests of guests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HttpUsage {
    /// Requests that were sent, those that failed included. A request and the redirects that it followed are one.
    pub requests: u64,
    /// Bytes of the bodies of responses, as they came over the network.
    pub bytes_in: u64,
    /// Bytes of the bodies of requests.
    pub bytes_out: u64,
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}
