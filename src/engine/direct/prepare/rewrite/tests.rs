//! A module beside the kernel, and the same with the kernel in it: what they do, what their memories hold, where they trap.

use std::fmt::Write;

use proptest::prelude::*;
use wasmtime::{Extern, ExternType, Func, FuncType, Instance, Linker, Memory, Module, Store, Val, WasmBacktrace};

use super::{
    super::{
        KERNEL, Map, is_ours, kernel_memory, start,
        tests::{ENGINE, each_fixture},
    },
    *,
};

/// What became of a module.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// How it was instantiated, and each of its exports called: the results, or why not and where.
    said: Vec<Result<Vec<String>, String>>,
    /// Bytes of the memories that it exports, and of the kernel's.
    memories: Vec<Vec<u8>>,
    /// Which elements of the tables that it exports are there.
    tables: Vec<Vec<bool>>,
}

/// Why it failed, and where, as the plugin's author is told.
fn why(error: &wasmtime::Error) -> String {
    let mut text = error.root_cause().to_string();
    for frame in error.downcast_ref::<WasmBacktrace>().map_or(&[][..], WasmBacktrace::frames) {
        let map = Map::of(frame.module());
        // The kernel beside the module.
        let is_kernel = frame.module().get_export("memory_bytes").is_some_and(|_| map.is_none());
        if !is_kernel && map.as_ref().is_none_or(|map| map.is_own(frame.func_index())) {
            let offset = frame.module_offset().and_then(|at| map.map_or(Some(at), |map| map.before(at)));
            let _ = write!(text, " at {offset:?} {:?} {}", frame.func_name(), frame.func_index());
        }
    }
    text
}

fn run(wasm: &[u8], digest: Digest, calls: &[String]) -> Outcome {
    let (module, mut store) = (Module::new(&ENGINE, wasm).unwrap(), Store::new(&ENGINE, Vec::<String>::new()));
    let kernel = Module::new(&ENGINE, KERNEL).unwrap();
    let kernel = Instance::new(&mut store, &kernel, &[]).unwrap();
    let mut linker: Linker<Vec<String>> = Linker::new(&ENGINE);
    let exports: Vec<_> =
        kernel.exports(&mut store).map(|export| (export.name().to_owned(), export.into_extern())).collect();
    for (name, export) in exports {
        linker.define(&store, "extism:host/env", &name, export).unwrap();
    }
    for import in module.imports() {
        if let (ExternType::Func(ty), "host") = (import.ty(), import.module()) {
            let (name, results) = (import.name().to_owned(), ty.results().len());
            let called = move |mut caller: wasmtime::Caller<'_, Vec<String>>, args: &[Val], out: &mut [Val]| {
                caller.data_mut().push(format!("{name}{args:?}"));
                out[..results].fill(Val::I64(65));
                Ok(())
            };
            let ty: FuncType = ty;
            let function = Func::new(&mut store, ty, called);
            linker.define(&store, "host", import.name(), function).unwrap();
        }
    }
    let instance = linker.instantiate(&mut store, &module);
    let started = instance.and_then(|instance| {
        if let Some(start) = start(&module, digest) {
            let start = instance.get_module_export(&mut store, &start).and_then(Extern::into_func).unwrap();
            start.call(&mut store, &[], &mut [])?;
        }
        Ok(instance)
    });
    let mut said = vec![started.as_ref().map(|_| Vec::new()).map_err(why)];
    let Ok(instance) = started else { return Outcome { said, memories: Vec::new(), tables: Vec::new() } };
    for name in calls {
        let call = instance.get_func(&mut store, name).unwrap();
        let ty = call.ty(&store);
        let args: Vec<_> = ty.params().map(|ty| Val::default_for_ty(&ty).unwrap()).collect();
        let mut results = vec![Val::I32(0); ty.results().len()];
        let called = call.call(&mut store, &args, &mut results).map_err(|error| why(&error));
        said.push(called.map(|()| results.iter().map(|result| format!("{result:?}")).collect()));
    }
    said.push(Ok(store.data().clone()));
    let own: Vec<_> = module.exports().map(|export| export.name().to_owned()).collect();
    let (mut memories, mut tables): (Vec<Memory>, Vec<Vec<bool>>) = (Vec::new(), Vec::new());
    for name in own.iter().filter(|name| !name.starts_with("evalpool:")) {
        match instance.get_export(&mut store, name) {
            Some(Extern::Memory(memory)) => memories.push(memory),
            Some(Extern::Table(table)) => {
                let elements = 0..table.size(&store);
                tables.push(elements.map(|at| table.get(&mut store, at).is_some_and(|it| !it.is_null())).collect());
            }
            _ => {}
        }
    }
    let of_kernel = match kernel_memory(&module, digest) {
        Some(export) => instance.get_module_export(&mut store, &export),
        None => kernel.get_export(&mut store, "memory"),
    };
    memories.extend(of_kernel.and_then(Extern::into_memory));
    Outcome { said, memories: memories.iter().map(|memory| memory.data(&store).to_vec()).collect(), tables }
}

/// The module with the kernel in it, after a look at whether both come to the same.
fn linked(text: &str) -> Vec<u8> {
    let wasm = wat::parse_str(text).unwrap();
    let module = Module::new(&ENGINE, &wasm).unwrap();
    let functions = module.exports().filter(|export| export.ty().func().is_some());
    let calls: Vec<_> = functions.map(|export| export.name().to_owned()).collect();
    let digest = Digest::of(&wasm);
    let expected = run(&wasm, digest, &calls);
    for links in [false, true] {
        if let Some(new) = rewrite(&wasm, digest, links) {
            let got = run(&new, digest, &calls);
            assert!(expected.said == got.said, "{links} {text}\n{:?}\n{:?}", expected.said, got.said);
            assert!(expected == got, "{links} {text}");
        }
    }
    let new = rewrite(&wasm, digest, true).expect("it links");
    assert!(kernel_memory(&Module::new(&ENGINE, &new).unwrap(), digest).is_some(), "{text}");
    new
}

const ACCESSORS: [(&str, &str, &str); 15] = [
    ("load_u8", "i64", "i32"),
    ("load_u64", "i64", "i64"),
    ("store_u8", "i64 i32", ""),
    ("store_u64", "i64 i64", ""),
    ("input_load_u8", "i64", "i32"),
    ("input_load_u64", "i64", "i64"),
    ("input_set", "i64 i64", ""),
    ("output_set", "i64 i64", ""),
    ("error_set", "i64", ""),
    ("input_length", "", "i64"),
    ("input_offset", "", "i64"),
    ("output_length", "", "i64"),
    ("output_offset", "", "i64"),
    ("error_get", "", "i64"),
    ("memory_bytes", "", "i64"),
];

fn import(name: &str, params: &str, result: &str) -> String {
    let result = if result.is_empty() { String::new() } else { format!("(result {result})") };
    format!(r#"(import "extism:host/env" "{name}" (func ${name} (param {params}) {result}))"#)
}

/// Imports of the host before, between and behind those of the kernel.
fn imports() -> String {
    let host = |name: &str| format!(r#"(import "host" "{name}" (func ${name} (param i64) (result i64)))"#);
    let mut all = host("first") + r#"(import "host" "again" (func $again (param i64)))"#;
    for (at, (name, params, result)) in ACCESSORS.iter().enumerate() {
        all += &import(name, params, result);
        if at % 4 == 1 {
            all += &host(&format!("between{at}"));
        }
    }
    all + &host("last")
}

#[test]
fn functions_keep_their_names_and_their_places_however_they_are_named() {
    linked(&format!(
        r#"(module {} (memory (export "memory") 1) (table (export "table") 8 funcref)
            (elem (i32.const 0) func $first $load_u64 $own $last) (elem declare func $store_u64 $between5)
            (elem (i32.const 4) funcref (ref.func $memory_bytes) (ref.null func) (ref.func $own))
            (global $reference funcref (ref.func $input_length)) (export "reference" (global $reference))
            (export "again" (func $memory_bytes)) (export "host" (func $last)) (start $starts)
            (func $starts (drop (call $first (i64.const 1))))
            (func $own (param i64) (result i64) (call $between1 (local.get 0)))
            (func (export "by_table") (result i64) (call_indirect (param i64) (result i64) (i64.const 4096) (i32.const 1)))
            (func (export "by_host") (result i64) (call_indirect (param i64) (result i64) (i64.const 2) (i32.const 3)))
            (func (export "by_expression") (result i64) (call_indirect (result i64) (i32.const 4)))
            (func (export "by_expression_of_its_own") (result i64) (call_indirect (param i64) (result i64) (i64.const 5) (i32.const 6)))
            (func (export "by_global") (result i64) (table.set (i32.const 5) (global.get $reference))
                (call_indirect (result i64) (i32.const 5)))
            (func (export "own") (result i64) (return_call $own (i64.const 7)))
            (func (export "ends") (result i64) (return_call $memory_bytes))
            (func (export "stores") (call $store_u64 (i64.const 4096) (i64.const 77)) (call $store_u8 (i64.const 4104) (i32.const 8))
                (table.set (i32.const 7) (ref.func $store_u64)) (drop (call $between5 (i64.const 3))))
            (func (export "loads") (result i64) (call $load_u64 (i64.const 4097)))
            (func (export "traps") (result i64) (drop (call $last (i64.const 2))) (i64.load (i32.const 70000))))"#,
        imports()
    ));
}

#[test]
fn every_plugin_is_linked_whatever_it_has() {
    for text in [
        "(module)",
        r#"(module (func (export "run")))"#,
        r#"(module (memory 1) (data (i32.const 0) "x"))"#,
        r#"(module (import "host" "f" (func)) (start 0))"#,
        r#"(module (import "extism:host/env" "input_length" (func (result i64))) (export "length" (func 0)))"#,
        r#"(module (type (func)) (table 1 funcref) (global i32 (i32.const 0)) (@custom "after" (after global) "text"))"#,
        r#"(module (memory (export "a") 1) (memory (export "b") 1) (func (export "f") (i32.store8 1 (i32.const 3) (i32.const 4))))"#,
        r#"(module (table (export "t") 9000 externref)
            (func (export "f") (table.fill 0 (i32.const 1) (ref.null extern) (i32.const 8999)))
            (func (export "g") (table.fill 0 (i32.const 1) (ref.null extern) (i32.const 9000))))"#,
        r#"(module (memory (export "a") i64 3) (memory (export "b") 3)
            (func (export "f") (memory.fill 0 (i64.const 7) (i32.const 1) (i64.const 170000)) (memory.fill 1 (i32.const 9) (i32.const 2) (i32.const 180000)))
            (func (export "g") (memory.copy 0 1 (i64.const 5) (i32.const 9) (i32.const 150000)))
            (func (export "h") (memory.copy 1 0 (i32.const 90) (i64.const 5) (i32.const -1)))
            (func (export "j") (memory.fill 0 (i64.const -8) (i32.const 1) (i64.const 170000)))
            (func (export "k") (memory.fill 0 (i64.const 9) (i32.const 1) (i64.const -8)))
            (func (export "i") (memory.copy 0 0 (i64.const 5) (i64.const 9) (i64.const 150000)) (memory.copy 0 0 (i64.const 900) (i64.const 9) (i64.const 150000))))"#,
    ] {
        linked(text);
    }
}

#[test]
fn what_is_copied_within_a_memory_comes_through_whole_in_pieces_too() {
    let text: String = (0..9000).fold(String::new(), |all, n| all + &format!("{n:04} "));
    for (to, from) in [(900, 9), (9, 900), (70_000, 9), (9, 9)] {
        linked(&format!(
            r#"(module (memory (export "memory") 4) (data (i32.const 0) "{text}") (data (i32.const 80000) "{text}")
                (func (export "copy") (memory.copy (i32.const {to}) (i32.const {from}) (i32.const 150000))))"#
        ));
    }
}

#[test]
fn what_is_known_to_be_no_more_than_a_piece_is_not_cut() {
    for references in ["funcref", "externref"] {
        let null = format!("(ref.null {})", references.trim_end_matches("ref"));
        let text =
            format!("(module (table 9000 {references}) (func (table.fill (i32.const 1) {null} (i32.const 8999))))");
        let wasm = wat::parse_str(text).unwrap();
        assert!(rewrite(&wasm, Digest::of(&wasm), false).is_some(), "{references}");
    }
    for (length, is_cut) in
        [("const 65536", false), ("const 65537", true), ("const -1", true), ("load (i32.const 9)", true)]
    {
        for (memory, ty) in [("", "i32"), ("i64", "i64")] {
            let length = length.replace("(i32", &format!("({ty}"));
            let text = format!(
                "(module (memory {memory} 3) (func (memory.fill ({ty}.const 1) (i32.const 0) ({ty}.{length}))))"
            );
            let wasm = wat::parse_str(text).unwrap();
            assert_eq!(rewrite(&wasm, Digest::of(&wasm), false).is_some(), is_cut, "{ty} {length}");
        }
    }
}

#[test]
fn a_module_that_begins_with_data_has_one_more_segment_and_no_other_has_any() {
    let data = |wasm: &[u8]| {
        let payloads = Parser::new(0).parse_all(wasm).map(Result::unwrap);
        let counts = payloads.filter_map(|payload| match payload {
            Payload::DataCountSection { count, .. } => Some(("announced", count)),
            Payload::DataSection(section) => Some(("there", section.count())),
            _ => None,
        });
        counts.collect::<Vec<_>>()
    };
    for (text, expected) in [
        ("(module (memory 1))", &[][..]),
        (r#"(module (memory 1) (data (i32.const 0) "x"))"#, &[("there", 2)]),
        (
            r#"(module (memory 1) (data $d "x") (func (memory.init $d (i32.const 0) (i32.const 0) (i32.const 1))))"#,
            &[("announced", 2), ("there", 2)],
        ),
        (
            r#"(module (memory 3) (data (i32.const 0) "x")
                (func (export "f") (memory.fill (i32.const 0) (i32.const 1) (i32.const 170000))))"#,
            &[("there", 2)],
        ),
    ] {
        assert_eq!(data(&linked(text)), expected, "{text}");
    }
}

#[test]
fn what_is_imported_by_another_type_stays_for_the_linker_to_refuse() {
    for (ty, is_linked) in
        [("(func (param i64) (result i32))", true), ("(func (param i64))", false), ("(global i32)", false)]
    {
        let wasm = wat::parse_str(format!(r#"(module (import "extism:host/env" "load_u8" {ty}))"#)).unwrap();
        assert_eq!(rewrite(&wasm, Digest::of(&wasm), true).is_some(), is_linked, "{ty}");
    }
    let text = r#"(module (type $open (sub (func (param i64) (result i32)))) (import "extism:host/env" "load_u8" (func (type $open))))"#;
    let wasm = wat::parse_str(text).unwrap();
    assert!(rewrite(&wasm, Digest::of(&wasm), true).is_none(), "a type that may have others below it is another");
}

#[test]
fn a_plugin_cannot_have_the_kernels_export() {
    let other = Digest::of(b"other");
    let name = Map::default().name(other);
    let wasm = wat::parse_str(format!(r#"(module (memory (export "{name}") 1))"#)).unwrap();
    let module = Module::new(&ENGINE, &wasm).unwrap();
    assert!(kernel_memory(&module, Digest::of(&wasm)).is_none());
    let new = rewrite(&wasm, Digest::of(&wasm), true).unwrap();
    assert!(kernel_memory(&Module::new(&ENGINE, new).unwrap(), Digest::of(&wasm)).is_some());
    let broken = format!("{}x", &name[..name.len() - 3]);
    let wasm = wat::parse_str(format!(r#"(module (memory (export "{broken}") 1))"#)).unwrap();
    assert_eq!(Map::of(&Module::new(&ENGINE, &wasm).unwrap()), None);
    assert!(is_ours(&name) && !is_ours("memory"));
}

#[test]
fn fixtures_are_linked() {
    each_fixture(|path, wasm| {
        let digest = Digest::of(wasm);
        let new = rewrite(wasm, digest, true).unwrap_or_else(|| panic!("{} is not linked", path.display()));
        let module = Module::new(&ENGINE, new).unwrap();
        assert!(kernel_memory(&module, digest).is_some(), "{}", path.display());
        assert!(!Map::of(&module).unwrap().moved, "{}", path.display());
    });
}

#[test]
fn many_functions_leave_no_room_for_a_longer_call_and_then_nobody_says_where() {
    for (functions, moved) in [(16_380, false), (16_390, true)] {
        let text = format!(
            r#"(module (memory (export "memory") 3) {} (func $fill (memory.fill (i32.const 9) (i32.const 1) (i32.const 170000)))
                (func (export "run") (call $fill) (call $fill)))"#,
            "(func)".repeat(functions)
        );
        let new = linked(&text);
        assert_eq!(Map::of(&Module::new(&ENGINE, new).unwrap()).unwrap().moved, moved);
    }
}

/// An offset or a length: near the edges of pieces and pages, or anything.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..300_u64,
        (0..5_u64, 0..40_u64).prop_map(|(page, near)| (page << 16).saturating_add(near).saturating_sub(20)),
        any::<u64>(),
        (0..100_u64).prop_map(|near| u64::MAX - near),
    ]
}

fn low(value: u64) -> i32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap().cast_signed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn the_kernel_does_the_same_in_a_module_and_beside_it(
        calls in prop::collection::vec((0..ACCESSORS.len(), number(), number()), 1..60),
        memories in 0..3_usize,
    ) {
        let body = calls.iter().enumerate().fold(String::new(), |all, (at, (which, first, second))| {
            let (name, params, result) = ACCESSORS[*which];
            let value = |ty: &str, value: &u64| match ty {
                "i32" => format!("(i32.const {})", low(*value)),
                _ => format!("(i64.const {})", value.cast_signed()),
            };
            let args: Vec<_> = params.split(' ').filter(|ty| !ty.is_empty()).zip([first, second]).map(|(ty, it)| value(ty, it)).collect();
            let result = if result.is_empty() { String::new() } else { format!("(result {result})") };
            format!(r#"{all}(func (export "f{at}") {result} (call ${name} {}))"#, args.concat())
        });
        let memories = (0..memories).fold(String::new(), |all, at| format!(r#"{all}(memory (export "m{at}") 1)"#));
        linked(&format!("(module {} {memories} {body})", imports()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn what_is_cut_does_what_it_did_at_once(
        steps in prop::collection::vec((0..9_usize, number(), number(), number(), any::<bool>()), 1..16),
    ) {
        let data: String = ('a'..='w').cycle().take(150_000).collect();
        let elements = "$f ".repeat(9000);
        let body = steps.iter().enumerate().fold(String::new(), |all, (at, (which, to, from, length, known))| {
            let (to, from, length) = (low(*to), low(*from), low(*length));
            // Of tables, indices and lengths that fit now and then.
            let [to_element, from_element, elements] = [to, from, length].map(|it| if it % 3 == 0 { it } else { it % 9500 });
            let number = |it: i32| if *known { format!("(i32.const {it})") } else { format!("(i32.add (i32.const {it}) (i32.const 0))") };
            let wide = |it: i32| format!("(i64.const {})", it.cast_unsigned());
            let code = match which {
                0 => format!("(memory.fill $a (i32.const {to}) (i32.const {}) {})", at + 1, number(length)),
                1 => format!("(memory.copy $a $a (i32.const {to}) (i32.const {from}) {})", number(length)),
                2 => format!("(memory.copy $a $b (i32.const {to}) {} {})", wide(from), number(length)),
                3 => format!("(memory.copy $b $b {} {} {})", wide(to), wide(from), wide(length)),
                4 => format!("(memory.init $a $data (i32.const {to}) (i32.const {from}) {})", number(length)),
                5 => format!("(table.fill $t (i32.const {to_element}) (ref.func $f) {})", number(elements)),
                6 => format!("(table.copy $t $t (i32.const {to_element}) (i32.const {from_element}) {})", number(elements)),
                7 => format!("(table.init $t $e (i32.const {to_element}) (i32.const {from_element}) {})", number(elements)),
                _ => "(data.drop $data) (elem.drop $e)".into(),
            };
            format!(r#"{all}(func (export "f{at}") {code})"#)
        });
        linked(&format!(
            r#"(module (memory $a (export "a") 4) (memory $b (export "b") i64 4) (table $t (export "t") 9400 funcref)
                (data (memory $b) (i64.const 100) "{data}") (data $data "{data}") (elem $e func {elements}) (elem declare func $f)
                (func $f) {body})"#
        ));
    }
}
