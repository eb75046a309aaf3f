//! Compiles in this process, where there are no [workers](super::workers). Nothing bounds what that takes, and nothing
//! ends it: for plugins whose authors you trust not to keep a compiler busy.

use std::sync::Arc;

use wasmtime::Engine;

use super::{classify, prepare::prepare};
use crate::{engine::InstanceLimits, error::Error, last_words::LastWords};

/// The code of a module. Blocks until it is compiled, however long that takes.
pub(super) fn compile(engine: &Engine, wasm: &[u8], limits: &InstanceLimits) -> Result<Vec<u8>, Error> {
    engine.precompile_module(&prepare(wasm)).map_err(|error| classify::invalid(&error, limits))
}

/// The compiler met something that it cannot compile, and would again.
pub(super) fn panicked(text: String) -> Error {
    Error::InvalidPlugin {
        reason: "the compiler cannot cope with it".into(),
        cause: Some(Arc::from(Box::from(text))),
        last_words: LastWords::none(),
    }
}
