//! What stands between a plugin and extism's own code: `fence.wat`, a module that each is linked with, and functions that are put around what the plugin imports and exports before it is compiled. Its own functions
//! stay as they are.
//!
//! - **The kernel's headers are out of reach.** extism's kernel believes the headers of its blocks, which lie in the
//!   memory that its own `store_u8` and `store_u64` write to, and extism then makes slices of what the kernel says: a
//!   plugin that forges headers has the host read, and write, beyond the kernel's memory. So what allocates, stores, sets
//!   the output or resets is the fence's, which marks each header and lets no store reach one, nor anything behind the
//!   last block, where the kernel walks on, over zeros, when it looks for a block that is not there. All headers are
//!   marked before their guest can run: the first block's lies where nothing is stored, a guest's own are marked as they
//!   are allocated, and those of the host's when its function returns. With sound headers all that the kernel says is
//!   within its memory, but for two sums that wrap around, which the fence refuses.
//! - **Initialisers ask whether there is time for them**, and do nothing once there is none: so another plugin of the same
//!   seat can be made whose initialisers do not run, and through it the first one be interrupted. See `interrupt`.
//! - **A call says when it has really begun**: from then on it can be stopped. See `stop`.
//! - **One call of WASI handles sixteen buffers at most**, which it may: there is no interrupting it.
//!
//! With fuel, it costs 5 to 10 % of an evaluation in a fresh instance, and 2 to 5 % in one that is used again (`evalpool
//! load` on the built-in plugin, one caller).
//!
//! Considered and not taken: another kernel in the place of extism's (its name cannot be taken), its functions as
//! host functions (they would have to grow its memory, and there a call for each eight bytes is slow), and books in the
//! host (extism's kernel has its own).

mod parts;
mod plan;
mod wrapper;

use self::plan::Plan;
use crate::{
    engine::{HostFunction, LinkedModule},
    error::Error,
};

/// The fence's name, and that of what it imports from the host.
pub(super) const FENCE: &str = "evalpool:fence";
pub(super) const HOST: &str = "evalpool:host";

/// An export of the plugin's, which interrupts whatever else runs in its seat.
pub(super) const INTERRUPT: &str = "evalpool: interrupt";

/// The fence itself.
pub(super) fn module() -> Result<Vec<u8>, Error> {
    wat::parse_str(include_str!("fence.wat"))
        .map_err(|error| Error::internal("the fence of extism's kernel is broken", error.to_string()))
}

/// Where a plugin's imports come from, as far as it matters here.
pub(super) struct Surroundings<'a> {
    /// Modules that are WebAssembly themselves.
    pub(super) linked: &'a [LinkedModule],
    /// Functions of the host that are not extism's.
    pub(super) functions: &'a [HostFunction],
}

/// Which of a plugin's modules it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part<'a> {
    /// The one that is called, by this export.
    Plugin {
        entry_point: &'a str,
    },
    Linked,
}

/// A module with its fence.
#[derive(Debug)]
pub(super) struct Fenced {
    pub(super) wasm: Vec<u8>,
    /// Whether it has code that runs before it is called.
    pub(super) initialises: bool,
}

/// A plugin, which is valid and known to compile in bounded time, with what belongs to the fence in it.
///
/// # Errors
///
/// `invalid_plugin` for a linked module that is a command (each call of it would be a new instance, which nothing counts),
/// and for exports with names that are ours.
/// `internal` for a module that is not valid.
pub(super) fn fenced(wasm: &[u8], part: Part<'_>, surroundings: &Surroundings<'_>) -> Result<Fenced, Error> {
    let broken =
        |error: wasm_encoder::reencode::Error| Error::internal("a plugin could not be fenced", error.to_string());
    let plan = Plan::read(wasm, part, surroundings).map_err(|error| broken(error.into()))?;
    if let Some(name) = &plan.taken {
        return Err(Error::invalid_plugin(format!("it exports {name:?}, a name of this host's")));
    }
    if plan.is_command && matches!(part, Part::Linked) {
        return Err(Error::invalid_plugin("a module that others import from exports _start: it must not be a command"));
    }
    let initialises = plan.initialises;
    Ok(Fenced { wasm: plan.encode(wasm).map_err(broken)?, initialises })
}

#[cfg(test)]
mod tests;
