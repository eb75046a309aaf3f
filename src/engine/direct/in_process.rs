//! Compiles in this process: what a [worker](super::workers) does in its own, and the engine itself where there are none.
//! Nothing then bounds what that takes, and nothing ends it: for plugins whose authors you trust not to keep a compiler busy.

use std::sync::Arc;

use wasmtime::Engine;

use super::prepare::prepare;
use crate::{error::Error, last_words::LastWords, source::Digest};

/// The code of a module, prepared, with the kernel in it if it `links`. Blocks until it is compiled, however long that takes.
pub(super) fn compile(engine: &Engine, wasm: &[u8], digest: Digest, links: bool) -> wasmtime::Result<Vec<u8>> {
    engine.precompile_module(&prepare(wasm, digest, links))
}

/// The compiler met something that it cannot compile, and would again.
pub(super) fn panicked(text: String) -> Error {
    Error::InvalidPlugin {
        reason: "the compiler cannot cope with it".into(),
        cause: Some(Arc::from(Box::from(text))),
        last_words: LastWords::none(),
    }
}
