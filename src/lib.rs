//! A capacity-bounded pool that runs other people's [Extism](https://extism.org) plugins inside high-throughput
//! services.
//!
//! A service lets its customers bring code, as WebAssembly plugins. It holds thousands of them, needs a few hundred at
//! any moment, and must never grow without bound, never hang on one of them, and never let one hurt another. An
//! [`EvaluatorPool`] owns the compiled plugins, evicts and closes the least recently used, and answers calls.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use evalpool::{EvaluatorPool, Source, Spec};
//! use serde_json::{Value, json};
//!
//! let pool = EvaluatorPool::builder().capacity(64).build()?;
//! let greet = pool.evaluator("greet", Spec::new(Source::file("greet.wasm")))?;
//! let response = greet.evaluate(json!({"name": "Ada"})).await?;
//! assert_eq!(response.json::<Value>()?, json!({"greeting": "Hello, Ada!"}));
//! pool.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | [source](Source) | where plugin bytes come from: memory, base64, file, a closure, HTTP |
//! | plugin | the bytes, with their SHA-256 [digest](Digest), size-capped and known to be WebAssembly |
//! | [spec](Spec) | a plugin's source plus how to run it |
//! | revision | one version of an evaluator: a spec with the plugin it names. Replaced as a whole |
//! | [`engine`] | what compiles and runs plugins, behind a trait |
//! | runtime | one live compiled plugin with its instances: what costs memory, is counted, evicted and closed |
//! | instance | one sandboxed guest: memory, globals, variables. Serves one call at a time |
//! | registry | the capacity-bounded LRU that owns every runtime |
//! | lease | the right to use a runtime; while one is held, the runtime is not closed under it |
//! | [evaluator](Evaluator) | the handle that users hold: evaluate, close |
//! | [tenant](Spec::tenant) | whom an evaluator belongs to |
//! | [response](Response) | the outcome of one evaluation |
//!
//! # Rooms
//!
//! Imports point down this list only; a test keeps that true. `background` and `clock` are leaves beside it.
//! [`architecture`] draws the roads of a call, an upload and an eviction through them.
//!
//! | room | what it does, and what it must not |
//! |---|---|
//! | `service` | (feature `service`) HTTP, the stored plugins, the commands of the program |
//! | [`EvaluatorPool`] | registration, replacement, the close of all. Runs no guest |
//! | [`Evaluator`] | takes one call from its data to its response. Decides nothing about capacity |
//! | [`Executable`] | a handle on one compiled plugin. Holds no runtime |
//! | `revision` | one version of an evaluator, the settings it runs under, its build. What the three above share |
//! | `manifest` | (feature `manifest`) an Extism manifest → spec. No I/O |
//! | [`Spec`] | a plugin's source and how to run it. No I/O |
//! | [`data`] | static, per-call and composite input data → bytes |
//! | `info` | what is shown of evaluators and runtimes. Plain data |
//! | `response` | plain outcome types. No I/O, no locks |
//! | [`Close`] | one word for letting go, and how it ended |
//! | `compiler` | the guard and the validation. The only caller of an engine's `compile` |
//! | `runtime` | one compiled plugin and its pool of instances, its close. Knows no names, no LRU |
//! | [`engine`] | the trait and the engines. The only place that names their types |
//! | `source` | bytes, base64, file, closure, HTTP → plugin. The only place that fetches. No engine types |
//! | `http_client` | (feature `direct`) which addresses HTTP clients may reach, and TLS. Sends no request |
//! | `tenants` | whom evaluators belong to, what is used for whom, and how much time. Knows no plugins and no runtimes |
//! | `registry` | what lives: LRU order, hard bound, single-flight builds, negative cache. Knows no plugins |
//! | [`config`] | every setting. The only reader of the settings file and of its variables |
//! | `spans` | the names and fields of spans. Installs no subscriber |
//! | [`metrics`] | the catalogue. Installs no exporter, knows no room |
//! | `memory` | what runtimes hold, in bytes: the account and its charges. Evicts nothing |
//! | [`Error`] | one typed error, each with a stable [kind](ErrorKind). No HTTP codes |
//! | `usage` | what evaluations use. Plain data |
//! | `fair_share` | who runs where there are too few processors for all tenants. Runs nothing |
//! | `turns` | whose turn it is where there is too little for all tenants. Knows them by number |
//! | `stripes` | slots for threads, so that none waits for another's writes |
//! | `pages` | large buffers, which go back to the system |
//! | `last_words` | what a guest wrote, and where it was when it failed. Plain data |
//! | `host_limits` | what the system lets this process have, and which errors say that it gives no more |
//! | `host_memory` | how much memory this process may use. Reads the system's files |
//! | `units` | times, sizes and names as people read them |
//! | `words` | closed sets of words |

mod background;
mod clock;
mod close;
mod compiler;
pub mod config;
pub mod data;
pub mod engine;
mod error;
mod evaluator;
mod executable;
#[cfg_attr(not(feature = "direct"), allow(dead_code, reason = "it is for guests of `direct`"))]
mod fair_share;
mod host_limits;
#[cfg_attr(not(feature = "direct"), allow(dead_code, reason = "it is for what `direct` says of the host"))]
mod host_memory;
#[cfg(feature = "direct")]
mod http_client;
mod info;
mod last_words;
#[cfg(feature = "manifest")]
mod manifest;
mod memory;
pub mod metrics;
mod pages;
mod pool;
mod registry;
mod response;
mod revision;
mod runtime;
#[cfg(feature = "service")]
#[doc(hidden)]
pub mod service;
mod source;
mod spans;
mod spec;
mod stripes;
mod tenants;
mod turns;
mod units;
mod usage;
mod words;

#[cfg(feature = "direct")]
pub use crate::engine::direct::init_compile_workers;
#[cfg(feature = "direct")]
pub use crate::source::{HttpSource, Secret};
#[cfg(feature = "manifest")]
pub use extism_manifest;

pub use crate::{
    close::{Close, CloseReport},
    config::{Init, Input, Isolation, Settings, SettingsError, Vars, Wasi},
    data::Data,
    engine::{HostFunction, HostFunctionError},
    error::{Bound, Cause, Error, ErrorKind, Fault},
    evaluator::{EntryPoint, Evaluator},
    executable::Executable,
    info::{EvaluatorInfo, InitInfo, InstanceCounts, PoolSnapshot, RuntimeCounts, RuntimeInfo, WaitingCounts},
    last_words::LastWords,
    memory::MemoryUse,
    pool::{EvaluatorPool, PoolBuilder, Prepared},
    registry::RuntimeState,
    response::{EvaluatorId, Response, Timings},
    runtime::BuildTimes,
    source::{Digest, Import, Interface, Loader, ParseDigestError, Plugin, Source},
    spans::{ParseTraceParentError, TraceParent, set_trace_source},
    spec::Spec,
    tenants::{TenantInfo, UsageOf, UsageSeries},
    usage::{HttpUsage, Usage, UsageTotals},
};

#[cfg(doc)]
#[doc = include_str!("../ARCHITECTURE.md")]
pub mod architecture {}

/// The README's example, compiled and run with the documentation's tests.
#[cfg(all(doctest, feature = "direct"))]
#[doc = include_str!("../README.md")]
struct Readme;
