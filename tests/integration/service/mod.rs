//! The server as its clients meet it: the real program, a real HTTP client, real plugins.

mod answer;
mod connections;
mod document;
mod evaluate;
mod exchange;
mod folder;
mod last_words;
mod openapi;
mod operate;
mod origin;
mod patch;
mod readme;
mod request;
mod series;
mod server;
mod shortage;
mod telemetry;
mod tenants;
mod threads;
mod top;
mod ui;
mod upload;
mod usage;

use crate::support::wasm;

pub(crate) use self::server::{Outcome, Server, eventually, program};

/// Logs `!`, and never ends by itself.
const SPIN: &str = r#"(module
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
    (import "extism:host/env" "log_info" (func $log (param i64)))
    (func (export "run") (local $at i64)
        (local.set $at (call $alloc (i64.const 1)))
        (call $store (local.get $at) (i32.const 33))
        (call $log (local.get $at))
        (loop (br 0))))"#;

/// A plugin that answers with one letter.
fn letter(letter: char) -> Vec<u8> {
    wasm(&format!(
        r#"(module
            (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
            (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
            (import "extism:host/env" "output_set" (func $output (param i64 i64)))
            (func (export "run") (local $at i64)
                (local.set $at (call $alloc (i64.const 1)))
                (call $store (local.get $at) (i32.const {}))
                (call $output (local.get $at) (i64.const 1))))"#,
        u32::from(letter)
    ))
}
