//! Settings that choose one of a few.

use serde::{Deserialize, Serialize};

#[allow(unused_imports, reason = "links in the docs")]
use super::EngineSettings;

/// Which runtime is closed for a newcomer, of those that nobody uses and that its tenant may have
/// (`cargo bench --bench eviction` compares them with what the literature has).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Eviction {
    /// The one that was not used for the longest time.
    #[default]
    Lru,
    /// The one that was used least, among the quarter that was not used for the longest time (at least 12). Uses count up
    /// to 7, are halved now and then, and are remembered for a while after a close. What is called once does not displace
    /// what is called often.
    Lfu,
}

/// What compiles and runs plugins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum EngineKind {
    /// wasmtime itself, for plugins of any origin.
    #[cfg_attr(any(feature = "direct", not(feature = "extism")), default)]
    Direct,
    /// The `extism` crate, for plugins that you trust.
    #[cfg_attr(all(feature = "extism", not(feature = "direct")), default)]
    Extism,
}

/// Whether an instance serves one evaluation or many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Isolation {
    /// Every evaluation gets an instance that has served none before.
    #[default]
    Fresh,
    /// An instance serves many evaluations of one evaluator. The guest's state survives between them.
    Reuse,
}

/// How long Extism's variables (`var_get`, `var_set`) live. Their bound is 1 MiB either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Vars {
    /// As long as their instance: for one evaluation in [`Isolation::Fresh`], for those that the instance serves in
    /// [`Isolation::Reuse`].
    #[default]
    Fresh,
    /// For the evaluator, across its instances. Each evaluation begins with the variables as evaluations that have ended
    /// left them; of two that write one variable, the one that ends later wins. An evaluation whose guest traps, exits
    /// with an error, runs out of time or is stopped writes nothing; one whose guest returns an error does. If together
    /// with what others wrote meanwhile they would be over their bound, the evaluation fails with
    /// [`GuestError`](crate::Error::GuestError) and writes nothing; so it is with
    /// [`vars_size`](EngineSettings::vars_size), the bound of all evaluators. What initialisers set is seen where nothing is kept
    /// under that name.
    ///
    /// They outlive an eviction, and end with the evaluator, with the process, and with a new revision: another plugin,
    /// or another spec, begins without variables.
    Kept,
}

/// How often a plugin's initialisers run: `_initialize`, C++'s constructors, Haskell's `hs_init`, a start function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Init {
    /// In each instance.
    #[default]
    Each,
    /// Once for a runtime: the state after them is compiled behind the first calls, and instances made from then on begin
    /// with it. What initialisers drew of time and randomness is then shared by all evaluations until the next snapshot
    /// ([`init_refresh`](EngineSettings::init_refresh)): do not use it for a plugin that draws keys or tokens there, or whose
    /// language seeds its random numbers or hash maps there and relies on nobody knowing the seed (Go does). What they log is
    /// logged once. Only on the `direct` engine; where it cannot be done, initialisers run in each instance, and the log says
    /// why.
    Once,
}

/// Whether a plugin gets WASI: clocks, randomness and exit, with nothing preopened, no environment and no
/// input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Wasi {
    /// Plugins that import it get it.
    #[default]
    Auto,
    /// No plugin gets it. A plugin that imports it is refused with [`InvalidPlugin`](crate::Error::InvalidPlugin).
    Off,
}

/// What a plugin gets as input from a client of the server, and what its output is taken for.
///
/// The library passes its callers' data as it is, whatever this says: to call such a plugin from Rust, or by
/// `evalpool run`, pass a document of that shape, and read one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Input {
    /// The body of the request; the output is the body of the response.
    #[default]
    Bytes,
    /// The request as one JSON document: `method`, `path` as it was requested, `query` (an object of lists, since a name
    /// may come several times; without `entry_point`, which is the server's), `headers` (an object, with names in small
    /// letters), and `body`, or `body_base64` for one that is not UTF-8. The output is a document of the response:
    /// `status` (200 to 599, by default 200), `headers`, and `body` or `body_base64`; each may be left out.
    ///
    /// `service.request_headers` and `service.response_headers` say which headers pass. `limits.input_size` and
    /// `limits.output_size` bound the documents.
    Request,
}
