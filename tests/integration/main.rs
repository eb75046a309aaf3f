//! What the pool promises, a module per concern, in one binary: linking the engine takes longer than running the tests.
//!
//! Without the feature `service`, those that run on the spy alone are left, which are built in seconds: for
//! `cargo mutants`, which builds them for each fault.

#![cfg_attr(not(feature = "service"), allow(dead_code, unused_macros, reason = "the others use the rest"))]

#[macro_use]
mod support;

mod background;
mod before_compiling;
mod cancellation;
#[cfg(feature = "service")]
mod check;
#[cfg(feature = "service")]
mod collateral;
mod config;
#[cfg(feature = "service")]
mod conformance;
mod counted;
#[cfg(feature = "service")]
mod dashboards;
#[cfg(feature = "service")]
mod direct;
#[cfg(feature = "service")]
mod engine;
#[cfg(feature = "service")]
mod entry_points;
#[cfg(feature = "service")]
mod extism;
#[cfg(feature = "service")]
mod fuel;
mod guard;
#[cfg(feature = "service")]
mod host_functions;
#[cfg(feature = "service")]
mod hostile;
#[cfg(feature = "service")]
mod http;
#[cfg(feature = "service")]
mod init;
mod init_refresh;
#[cfg(feature = "service")]
mod instructions;
#[cfg(feature = "service")]
mod isolation;
#[cfg(feature = "service")]
mod last_words;
mod lifecycle;
#[cfg(feature = "service")]
mod linking;
#[cfg(feature = "service")]
mod loads;
#[cfg(feature = "service")]
mod manifests;
mod memory;
#[cfg(feature = "service")]
mod messages;
mod model;
#[cfg(feature = "service")]
mod options;
#[cfg(feature = "service")]
mod pool;
#[cfg(feature = "service")]
mod prepared;
#[cfg(feature = "service")]
mod program;
#[cfg(feature = "service")]
mod proposals;
mod quotas;
mod recorder;
mod registry;
#[cfg(feature = "service")]
mod release;
#[cfg(feature = "service")]
mod service;
#[cfg(feature = "service")]
mod slots;
mod snapshot;
#[cfg(feature = "service")]
mod soak;
mod sources;
#[cfg(feature = "service")]
mod spans;
#[cfg(feature = "service")]
mod structure;
mod tenants;
mod thread_cache;
mod usage;
#[cfg(feature = "service")]
mod variables;
#[cfg(feature = "service")]
mod words;
#[cfg(feature = "service")]
mod workers;
