//! What evaluations use. Plain data.

use std::{collections::BTreeMap, time::Duration};

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
    /// limits them, because then nobody counts. Of a guest that was stopped, by its deadline or because its caller left,
    /// those are missing that ran after its last call of a function; on `extism`, some hundreds of a guest that failed.
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

/// What evaluations used together, since an evaluator was registered or a tenant was first seen: all that have ended,
/// those that failed too, each with what it used until then. In JSON, times are in seconds.
///
/// Exact: each evaluation is in it once, as soon as it has ended. It is kept across evictions and replacements, and ends
/// with its evaluator or with the process. What an engine cannot tell adds nothing: see [`Usage`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UsageTotals {
    /// Evaluations that have ended.
    pub evaluations: u64,
    /// The same by outcome: `ok`, or the word of an [`ErrorKind`](crate::ErrorKind). Only those that there were.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// The time of guests.
    #[serde(rename = "guest_seconds", serialize_with = "seconds")]
    pub guest: Duration,
    /// The time of evaluations.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub total: Duration,
    /// Bytes of input.
    pub bytes_in: u64,
    /// Bytes of output.
    pub bytes_out: u64,
    /// Calls of the embedder's host functions.
    pub host_calls: u64,
    /// HTTP requests of guests.
    pub http: HttpUsage,
    /// Instructions that ran where `limits.fuel` counts them.
    pub fuel: u64,
}

impl UsageTotals {
    pub(crate) fn add(&mut self, other: &Self) {
        let Self { evaluations, outcomes, guest, total, bytes_in, bytes_out, host_calls, http, fuel } = other;
        self.evaluations += evaluations;
        for (outcome, count) in outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
        self.guest += *guest;
        self.total += *total;
        self.bytes_in += bytes_in;
        self.bytes_out += bytes_out;
        self.host_calls = self.host_calls.saturating_add(*host_calls);
        self.http.add(*http);
        self.fuel = self.fuel.saturating_add(*fuel);
    }

    /// What was used since these were the totals.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let outcome = |(outcome, count): (&&'static str, &u64)| {
            let before = earlier.outcomes.get(outcome).copied().unwrap_or_default();
            Some((*outcome, count.checked_sub(before)?)).filter(|(_, count)| *count > 0)
        };
        Self {
            evaluations: self.evaluations.saturating_sub(earlier.evaluations),
            outcomes: self.outcomes.iter().filter_map(outcome).collect(),
            guest: self.guest.saturating_sub(earlier.guest),
            total: self.total.saturating_sub(earlier.total),
            bytes_in: self.bytes_in.saturating_sub(earlier.bytes_in),
            bytes_out: self.bytes_out.saturating_sub(earlier.bytes_out),
            host_calls: self.host_calls.saturating_sub(earlier.host_calls),
            http: HttpUsage {
                requests: self.http.requests.saturating_sub(earlier.http.requests),
                bytes_in: self.http.bytes_in.saturating_sub(earlier.http.bytes_in),
                bytes_out: self.http.bytes_out.saturating_sub(earlier.http.bytes_out),
            },
            fuel: self.fuel.saturating_sub(earlier.fuel),
        }
    }
}

impl HttpUsage {
    pub(crate) fn add(&mut self, other: Self) {
        // As an engine tells them.
        self.requests = self.requests.saturating_add(other.requests);
        self.bytes_in = self.bytes_in.saturating_add(other.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
    }
}

pub(crate) fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}
