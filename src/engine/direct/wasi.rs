//! WASI preview 1 for plugins that import it: clocks, randomness, exit. No preopened files, no arguments, no
//! environment, no stdio (input is empty, output goes nowhere), no sockets.

use wasmtime::Linker;
use wasmtime_wasi::{WasiCtx, p1};

use super::state::GuestState;

/// Adds WASI's functions to a linker.
pub(super) fn link(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    // WASI makes random bytes before it knows whether the guest has room for them: bound what one call asks for.
    let context = || WasiCtx::builder().max_random_size(1 << 20).build_p1();
    p1::add_to_linker_async(linker, move |state: &mut GuestState| state.wasi.get_or_insert_with(context))
}
