//! Compiles in this process: what a [worker](super::workers) does in its own, and the engine itself where there are none.
//! Nothing then bounds what that takes, and nothing ends it: for plugins whose authors you trust not to keep a compiler busy.

use std::sync::Arc;

use wasmtime::Engine;

use super::prepare::{Begin, Subject, prepare};
use crate::{error::Error, last_words::LastWords, source::Digest};

/// The code of a module, prepared, with the kernel in it if it `links`, and with exports of its state if that is to be
/// `recorded`. Blocks until it is compiled, however long that takes.
pub(super) fn compile(
    engine: &Engine,
    subject: Subject<'_>,
    digest: Digest,
    links: bool,
    recorded: bool,
) -> wasmtime::Result<Vec<u8>> {
    let begin = match subject.state {
        [] if recorded => Begin::Recorded,
        [] => Begin::Plain,
        state => Begin::Restored(state),
    };
    let prepared = prepare(subject.wasm, digest, links, begin);
    engine.precompile_module(&prepared.ok_or_else(|| wasmtime::Error::msg("it has another state than was read"))?)
}

/// The compiler met something that it cannot compile, and would again.
pub(super) fn panicked(text: String) -> Error {
    Error::InvalidPlugin {
        reason: "the compiler cannot cope with it".into(),
        cause: Some(Arc::from(Box::from(text))),
        last_words: LastWords::none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_compiled_so_that_its_state_can_be_read_or_as_it_is_and_with_no_other_state_than_was_read() {
        let wasm = wat::parse_str(r#"(module (global (mut i32) (i32.const 0)) (func (export "run")))"#).unwrap();
        let (engine, digest) = (Engine::default(), Digest::of(&wasm));
        let code = |state: &[u8], recorded| compile(&engine, Subject { wasm: &wasm, state }, digest, true, recorded);
        assert_ne!(code(b"", true).unwrap(), code(b"", false).unwrap());
        let error = code(b"of another module", false).unwrap_err().to_string();
        assert!(error.contains("it has another state"), "{error}");
    }
}
