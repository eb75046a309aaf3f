//! WASI preview 1 for plugins that import it: clocks, randomness, exit. No preopened files, no arguments, no
//! environment, no input, no sockets. Of what is written to standard output and error, [a part](super::streams) is kept.

use wasmtime::Linker;
use wasmtime_wasi::{
    WasiCtx,
    p1::{self, WasiP1Ctx},
};

use super::{clock::Clock, state::GuestState, streams::Streams};

/// Adds WASI's functions to a linker.
pub(super) fn link(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    p1::add_to_linker_async(linker, move |state: &mut GuestState| {
        let GuestState { wasi, streams, clock, .. } = state;
        wasi.get_or_insert_with(|| context(streams.get_or_insert_default(), clock))
    })
}

fn context(streams: &Streams, clock: &mut Clock) -> WasiP1Ctx {
    let mut context = WasiCtx::builder();
    context.stdin(streams.stdin()).stdout(streams.stdout.clone()).stderr(streams.stderr.clone());
    // WASI makes random bytes before it knows whether the guest has room for them: bound what one call asks for.
    context.max_random_size(1 << 20).monotonic_clock(clock.start()).build_p1()
}
