//! What is put into a plugin leaves it valid, and as it was for those who look from outside.

use wasmparser::{Validator, WasmFeatures};

use super::*;
use crate::{engine::environment::ENVIRONMENT, source::Plugin};

const PLUGINS: [&[u8]; 6] = [
    include_bytes!("../../../service/greet/greet.wasm"),
    include_bytes!("../../../../tests/plugins/assemblyscript/no_abort.wasm"),
    include_bytes!("../../../../tests/plugins/assemblyscript/words.wasm"),
    include_bytes!("../../../../tests/plugins/c/text.wasm"),
    include_bytes!("../../../../tests/plugins/rust-host/call_host.wasm"),
    include_bytes!("../../../../tests/plugins/rust/totals.wasm"),
];

fn nothing<'a>() -> Surroundings<'a> {
    Surroundings { linked: &[], functions: &[] }
}

fn valid(wasm: &[u8]) {
    if let Err(error) = Validator::new_with_features(WasmFeatures::WASM2).validate_all(wasm) {
        panic!("{error}");
    }
}

fn from_text(text: &str) -> Vec<u8> {
    let fenced = fenced(&wat::parse_str(text).unwrap(), Part::Plugin { entry_point: "run" }, &nothing()).unwrap().wasm;
    valid(&fenced);
    fenced
}

fn imports(wasm: &[u8]) -> Vec<(String, String)> {
    let plugin = Plugin::new(wasm.to_vec().into(), None).unwrap();
    plugin.interface().imports().iter().map(|import| (import.module.clone(), import.name.clone())).collect()
}

#[test]
fn the_fence_itself_is_valid() {
    valid(&module().unwrap());
}

#[test]
fn plugins_that_toolchains_make_stay_valid_and_export_what_they_did() {
    for plugin in PLUGINS {
        let with = fenced(plugin, Part::Plugin { entry_point: "run" }, &nothing()).unwrap().wasm;
        valid(&with);
        let entry_points =
            |wasm: &[u8]| Plugin::new(wasm.to_vec().into(), None).unwrap().interface().entry_points().to_vec();
        let (mut expected, found) = (entry_points(plugin), entry_points(&with));
        expected.push(INTERRUPT.to_owned());
        assert_eq!(found, expected);
    }
}

#[test]
fn a_module_of_nothing_is_one_still() {
    from_text("(module)");
    from_text("(module (memory 1) (data \"x\"))");
}

#[test]
fn what_stores_and_allocates_comes_from_the_fence_and_the_rest_from_where_it_did() {
    let wasm = from_text(
        r#"(module
            (import "extism:host/env" "alloc" (func (param i64) (result i64)))
            (import "extism:host/env" "load_u8" (func (param i64) (result i32)))
            (import "a" "memory" (memory 1))
            (import "extism:host/env" "store_u64" (func (param i64 i64)))
            (import "extism:host/env" "store_u8" (func (param i32 i32))))"#,
    );
    let of = |module: &str, name: &str| (module.to_owned(), name.to_owned());
    assert_eq!(
        imports(&wasm)[..5],
        [
            of(FENCE, "alloc"),
            of(ENVIRONMENT, "load_u8"),
            of("a", "memory"),
            of(FENCE, "store_u64"),
            // Of a type that it does not have: the engine says so.
            of(ENVIRONMENT, "store_u8"),
        ]
    );
}

#[test]
fn every_way_to_name_a_function_is_followed() {
    from_text(
        r#"(module
            (type $t (func (param i32) (result i64 i32)))
            (import "a" "host" (func $host (type $t)))
            (import "a" "start" (func $start))
            (import "extism:host/env" "free" (func $free (param i64)))
            (table funcref (elem $host $own $free))
            (global funcref (ref.func $host))
            (elem declare func $own)
            (memory 1)
            (func $own (type $t) (call $host (local.get 0)))
            (func (local i64 f32) (drop (ref.func $own))
                (memory.fill (i32.const 0) (i32.const 0) (i32.const 5))
                (call_indirect (type $t) (i32.const 1) (i32.const 0)) drop drop
                (table.copy (i32.const 0) (i32.const 1) (i32.const 1)))
            (export "host" (func $host)) (export "run" (func 4)) (start $start))"#,
    );
}

#[test]
fn names_that_are_none_are_left_out() {
    let mut wasm = wat::parse_str("(module (func $f (export \"run\")))").unwrap();
    // A custom section: 8 bytes, of which 5 are its name, and a subsection that is longer than there is.
    wasm.extend(b"\0\x08\x04name\x01\xff\x7f");
    valid(&fenced(&wasm, Part::Plugin { entry_point: "run" }, &nothing()).unwrap().wasm);
}

#[test]
fn names_of_functions_that_do_not_exist_are_no_trouble() {
    let mut wasm = wat::parse_str("(module (func (export \"run\")))").unwrap();
    // A name, "x", for the function of the greatest index.
    wasm.extend(b"\0\x0f\x04name\x01\x08\x01\xff\xff\xff\xff\x0f\x01x");
    valid(&fenced(&wasm, Part::Plugin { entry_point: "run" }, &nothing()).unwrap().wasm);
}

#[test]
fn a_linked_module_that_is_a_command_is_refused() {
    let command = wat::parse_str("(module (func (export \"_start\")))").unwrap();
    assert_eq!(fenced(&command, Part::Linked, &nothing()).unwrap_err().kind(), "invalid_plugin");
}

#[test]
fn exports_with_names_of_ours_are_refused() {
    let plugin = wat::parse_str("(module (func (export \"run\")) (func (export \"evalpool: nothing\")))").unwrap();
    let error = fenced(&plugin, Part::Plugin { entry_point: "run" }, &nothing()).unwrap_err();
    assert_eq!(error.to_string(), "the plugin is not valid: it exports \"evalpool: nothing\", a name of this host's");
}
