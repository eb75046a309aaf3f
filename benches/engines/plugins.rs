//! The plugins that are measured.

use std::path::Path;

use evalpool::{Source, Spec};

/// A plugin and a call of it.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) entry_point: &'static str,
    pub(crate) input: &'static [u8],
    pub(crate) wasm: fn() -> Vec<u8>,
}

impl Sample {
    pub(crate) fn spec(&self) -> Spec {
        Spec::new(Source::bytes((self.wasm)())).entry_point(self.entry_point)
    }
}

/// What customers write: Rust with the official PDK.
pub(crate) static TOTALS: Sample = Sample {
    name: "Rust PDK",
    entry_point: "transform",
    input: br#"{"items":[{"price":2.5,"qty":4},{"price":1.25,"qty":8}]}"#,
    wasm: || std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plugins/rust/totals.wasm")).unwrap(),
};

/// Returns at once, so that a call costs what is around it.
pub(crate) static TRIVIAL: Sample = Sample {
    name: "trivial",
    entry_point: "run",
    input: b"",
    wasm: || wasm(r#"(module (func (export "run") (result i32) i32.const 0))"#),
};

/// About 10 microseconds of arithmetic.
pub(crate) fn short() -> Spec {
    spec(
        r#"(module (func (export "run") (result i32) (local $i i32)
            (loop $again (br_if $again (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 10000))))
            i32.const 0))"#,
    )
}

/// One of many that never return, each with bytes of its own.
pub(crate) fn endless(number: usize) -> Spec {
    spec(&format!(r#"(module (global i32 (i32.const {number})) (func (export "run") (loop br 0)))"#))
}

/// Code that no toolchain made, of about 230 bytes for each function.
pub(crate) fn large(functions: usize) -> Vec<u8> {
    let functions: Vec<String> = (0..functions)
        .map(|number| {
            let step =
                format!("(local.set 0 (i32.add (i32.mul (local.get 0) (i32.const {number})) (i32.const 100003)))");
            format!("(func $f{number} (param i32) (result i32) {} (local.get 0))", step.repeat(16))
        })
        .collect();
    wasm(&format!(
        r#"(module {} (memory (export "memory") 2) (func (export "run") (result i32) (drop (call $f1 (i32.const 0))) i32.const 0))"#,
        functions.join("\n")
    ))
}

pub(crate) fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

fn spec(text: &str) -> Spec {
    Spec::new(Source::bytes(wasm(text)))
}
