//! WASI preview 1 for plugins that import it: clocks, randomness, exit. No preopened files, no arguments, no
//! environment, no input, no sockets. Of what is written to standard output and error, [a part](super::streams) is kept.

use std::sync::Arc;

use wasmtime::Linker;
use wasmtime_wasi::{
    WasiCtx,
    p1::{self, WasiP1Ctx},
};

use super::{
    clock::Clock,
    drawn::{self, Draws, Noted},
    state::{GuestState, Initial},
    streams::Streams,
};

/// Adds WASI's functions to a linker.
pub(super) fn link(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    p1::add_to_linker_async(linker, move |state: &mut GuestState| {
        let GuestState { wasi, streams, clock, initial, .. } = state;
        wasi.get_or_insert_with(|| {
            let draws = initial.as_mut().map(Initial::draws);
            context(streams.get_or_insert_default(), clock, draws.as_ref())
        })
    })
}

/// What guests draw is noted in `draws`, if somebody wants to know.
fn context(streams: &Streams, clock: &mut Clock, draws: Option<&Arc<Draws>>) -> WasiP1Ctx {
    let mut context = WasiCtx::builder();
    context.stdin(streams.stdin()).stdout(streams.stdout.clone()).stderr(streams.stderr.clone());
    // WASI makes random bytes before it knows whether the guest has room for them: bound what one call asks for.
    context.max_random_size(1 << 20);
    match draws {
        None => context.monotonic_clock(clock.start()),
        Some(draws) => context
            .monotonic_clock(Noted::new(clock.start(), draws))
            .wall_clock(drawn::wall_clock(draws))
            .secure_random(drawn::random_numbers(draws)),
    };
    context.build_p1()
}
