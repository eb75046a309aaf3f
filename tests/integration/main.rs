//! What the pool promises, a module per concern, in one binary: linking the engine takes longer than running the tests.

#[macro_use]
mod support;

mod cancellation;
mod collateral;
mod config;
mod conformance;
mod dashboards;
mod engine;
mod extism;
mod guard;
mod host_functions;
mod hostile;
mod isolation;
mod lifecycle;
mod model;
mod pool;
mod program;
mod registry;
mod release;
mod service;
mod soak;
mod structure;
mod thread_cache;
