//! The built-in plugin: small, so that `load` measures the pool, and ready to call when nothing is stored yet.

use bytes::Bytes;

use crate::{Source, Spec};

/// What it is registered as, and its entry point.
pub(super) const NAME: &str = "greet";

/// An input that it answers.
pub(super) const INPUT: &str = r#"{"name":"Ada"}"#;

/// Made from `greet.c` beside it by `tests/plugins/build.sh`.
pub(super) const WASM: Bytes = Bytes::from_static(include_bytes!("greet.wasm"));

pub(super) fn spec() -> Spec {
    Spec::new(Source::Bytes(WASM)).with_entry_point(NAME)
}
