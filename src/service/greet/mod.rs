//! The built-in plugin. It is there to call before anything is stored, and small, so that `load` measures the pool.

use bytes::Bytes;

use crate::{Input, Source, Spec};

/// The name it is registered under, and its entry point.
pub(super) const NAME: &str = "greet";

/// A valid input.
pub(super) const INPUT: &str = r#"{"name":"Ada"}"#;

/// Made from `greet.c` beside it by `tests/plugins/build.sh`.
pub(super) const WASM: Bytes = Bytes::from_static(include_bytes!("greet.wasm"));

pub(super) fn spec() -> Spec {
    Spec::new(Source::Bytes(WASM)).entry_point(NAME).input(Input::Bytes)
}
