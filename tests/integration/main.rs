//! What the pool promises, a module per concern, in one binary: linking the engine takes longer than running the tests.

mod cancellation;
mod config;
mod dashboards;
mod engine;
mod guard;
mod lifecycle;
mod model;
mod pool;
mod program;
mod registry;
mod service;
mod soak;
mod structure;
mod support;
