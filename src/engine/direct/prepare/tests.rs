//! A module and what it is prepared to, side by side on wasmtime: how they begin, what they do, what their memories hold.

use std::{fmt::Write, fs, path::Path, sync::LazyLock};

use proptest::prelude::*;
use wasmtime::{Config, Engine, ExternType, Instance, Linker, Memory, Module, Store, Val, WasmBacktrace};

use super::*;

/// With more than plugins may use.
pub(super) static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    let mut config = Config::new();
    config.wasm_multi_memory(true).wasm_memory64(true).wasm_gc(true).wasm_function_references(true);
    // A thousand of them fit into the address space.
    config.memory_reservation(1 << 20).memory_guard_size(1 << 16);
    Engine::new(&config).unwrap()
});

/// What the imported global is.
const SOMEWHERE: i32 = 70;

/// What became of a module.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// How it was instantiated, and each of its exports called: the results, or why not and where.
    said: Vec<Result<Vec<String>, String>>,
    /// Bytes of the memories that it exports, and of those that it imports.
    memories: Vec<Vec<u8>>,
}

fn why(error: &wasmtime::Error) -> String {
    let mut text = error.root_cause().to_string();
    for frame in error.downcast_ref::<WasmBacktrace>().map_or(&[][..], WasmBacktrace::frames) {
        let _ = write!(text, " at {:?} {:?} {}", frame.module_offset(), frame.func_name(), frame.func_index());
    }
    text
}

fn run(wasm: &[u8], calls: &[&str]) -> Outcome {
    let module = Module::new(&ENGINE, wasm).unwrap();
    let mut store = Store::new(&ENGINE, ());
    let mut linker = Linker::new(&ENGINE);
    let mut memories = Vec::new();
    for import in module.imports() {
        let (from, name) = (import.module(), import.name());
        match import.ty() {
            ExternType::Memory(ty) => {
                let memory = Memory::new(&mut store, ty).unwrap();
                memory.data_mut(&mut store).fill(b'.');
                memories.push(memory);
                linker.define(&store, from, name, memory).unwrap();
            }
            ExternType::Global(ty) => {
                let value = wasmtime::Global::new(&mut store, ty, Val::I32(SOMEWHERE)).unwrap();
                linker.define(&store, from, name, value).unwrap();
            }
            _ => {}
        }
    }
    linker.define_unknown_imports_as_traps(&module).unwrap();
    let instance: Result<Instance, _> = linker.instantiate(&mut store, &module);
    let mut said = vec![instance.as_ref().map(|_| Vec::new()).map_err(why)];
    if let Ok(instance) = instance {
        for name in calls {
            let call = instance.get_func(&mut store, name).unwrap();
            let mut results = vec![Val::I32(0); call.ty(&store).results().len()];
            let called = call.call(&mut store, &[], &mut results).map_err(|error| why(&error));
            said.push(called.map(|()| results.iter().map(|result| format!("{result:?}")).collect()));
        }
        let exported: Vec<_> = instance.exports(&mut store).filter_map(wasmtime::Export::into_memory).collect();
        memories.extend(exported);
    }
    Outcome { said, memories: memories.iter().map(|memory| memory.data(&store).to_vec()).collect() }
}

fn segments_of(wasm: &[u8]) -> usize {
    let data = wasmparser::Parser::new(0).parse_all(wasm).find_map(|payload| match payload.unwrap() {
        wasmparser::Payload::DataSection(data) => Some(data.count() as usize),
        _ => None,
    });
    data.unwrap_or(0)
}

/// As [`prepare`] joins them.
fn joined(wasm: &[u8]) -> Cow<'_, [u8]> {
    segments::join(wasm, WORTHWHILE).map_or(Cow::Borrowed(wasm), Cow::Owned)
}

/// Prepares it, however little that gains, and compares. Gives how many segments are left.
fn prepared(text: &str, calls: &[&str]) -> usize {
    let wasm = wat::parse_str(text).unwrap();
    let new = segments::join(&wasm, 0).unwrap_or_else(|| wasm.clone());
    let (before, after) = (run(&wasm, calls), run(&new, calls));
    assert!(before == after, "{text}\n{:?}\n{:?}", before.said, after.said);
    segments_of(&new)
}

#[test]
fn a_module_with_nothing_to_gain_is_the_same_bytes() {
    let far =
        |count: usize| (0..count).fold(String::new(), |all, at| format!("{all}(data (i32.const {}) \"x\")", at * 8192));
    let named = "(data $d \"x\") (func (memory.init $d (i32.const 0) (i32.const 0) (i32.const 1)))";
    for (text, gains) in [
        ("(module)".to_owned(), false),
        ("(module (memory 1) (data (i32.const 0) \"x\"))".into(), false),
        (format!("(module (memory 9) {})", far(60)), false),
        (format!("(module (memory 9) {} {})", far(60), "(data \"x\")".repeat(WORTHWHILE - 1)), false),
        (format!("(module (memory 9) {} {})", far(60), "(data \"x\")".repeat(WORTHWHILE)), true),
        (format!("(module (memory 9) {} {} {named})", far(3), "(data \"x\")".repeat(WORTHWHILE - 1)), false),
        (format!("(module (memory 9) {} {} {named})", far(3), "(data \"x\")".repeat(WORTHWHILE)), true),
        (format!("(module {})", "(data \"x\")".repeat(WORTHWHILE)), true),
        (format!("(module (memory 1) {})", "(data (i32.const 9) \"x\")".repeat(WORTHWHILE)), false),
        (format!("(module (memory 1) {})", "(data (i32.const 9) \"x\")".repeat(WORTHWHILE + 1)), true),
    ] {
        let wasm = wat::parse_str(&text).unwrap();
        let new = joined(&wasm);
        assert_eq!(matches!(new, Cow::Owned(_)), gains, "{text}");
        Module::new(&ENGINE, &new).unwrap();
    }
    for bytes in [&b""[..], b"\0asm\x01\0\0", b"\0asm\x01\0\0\0\x0b\xff", &[0; 100]] {
        assert!(matches!(joined(bytes), Cow::Borrowed(_)));
    }
}

#[test]
fn segments_that_overlap_or_adjoin_become_one() {
    let memory = r#"(memory (export "memory") 1)"#;
    for (data, left) in [
        (r#"(data (i32.const 8) "abcd") (data (i32.const 10) "xy") (data (i32.const 6) "123")"#, 1),
        (r#"(data (i32.const 0) "a") (data (i32.const 4000) "b") (data (i32.const 8191) "c")"#, 1),
        (r#"(data (i32.const 0) "a") (data (i32.const 8192) "b")"#, 2),
        (r#"(data (i32.const 65535) "a") (data (i32.const 65536) "") (data (i32.const 0) "")"#, 1),
        (r#"(data (i32.const 65536) "")"#, 0),
    ] {
        assert_eq!(prepared(&format!("(module {memory} {data})"), &[]), left, "{data}");
    }
}

#[test]
fn nothing_moves_across_a_segment_of_which_it_is_not_known_what_it_does() {
    let memory = r#"(memory (export "memory") 1)"#;
    let somewhere = r#"(import "host" "somewhere" (global $somewhere i32))"#;
    let near = r#"(data (i32.const 69) "aaaa") (data (i32.const 75) "a")"#;
    for (imports, data, left) in [
        // It writes between two, and over one of them; what comes later writes over it.
        (somewhere, format!(r#"{near} (data (global.get $somewhere) "b..b") {near}"#), 4),
        (somewhere, format!(r#"{near} (data (i32.add (i32.const 70) (i32.const 1)) "bbb") {near}"#), 4),
        // It traps, and an imported memory shows what was written before.
        ("", format!(r#"{near} (data (i32.const 65535) "bb") {near}"#), 4),
        ("", format!(r#"{near} (data (i32.const -1) "b") {near}"#), 4),
        ("", format!(r#"{near} (data (i32.const 65537) "") {near}"#), 4),
    ] {
        assert_eq!(prepared(&format!("(module {imports} {memory} {data})"), &[]), left, "{data}");
    }
    // The same memory, imported twice: what goes to it stays in order.
    let imported = r#"(import "host" "memory" (memory 1)) (memory (export "own") 1)"#;
    let data = r#"(data (i32.const 0) "aa") (data (memory 1) (i32.const 0) "bb") (data (i32.const 1) "cc") (data (i32.const 65535) "dd")"#;
    assert_eq!(prepared(&format!("(module {imported} {data})"), &[]), 4);
}

#[test]
fn each_memory_has_its_own_segments() {
    let text = r#"(module (memory (export "a") 1) (memory (export "b") i64 2) (memory (export "c") 0)
        (data (memory 1) (i64.const 65530) "01234567890") (data (i32.const 10) "aa") (data (memory 1) (i64.const 65520) "xx")
        (data (i32.const 9) "b") (data (memory 1) (i64.const 131071) "z") (data (memory 2) (i32.const 0) ""))"#;
    assert_eq!(prepared(text, &[]), 3);
    // Offsets whose sign bit is set.
    let text = r#"(module (memory (export "memory") 1) (memory i64 1) (data (memory 1) (i64.const -1) "x") (data (i32.const 0) "y"))"#;
    assert_eq!(prepared(text, &[]), 2);
}

#[test]
fn what_nothing_names_goes_and_what_is_named_is_found() {
    // More than 128, so that indices take one byte and two.
    let many = r#"(data "no") (data (i32.const 9) "active")"#.repeat(100);
    let call = |name: &str, code: &str| format!(r#"(func (export "{name}") {code} (drop (i32.const 0)))"#);
    let calls = [
        call(
            "reads",
            "(memory.init $b (i32.const 100) (i32.const 1) (i32.const 2)) (memory.init $a (i32.const 200) (i32.const 0) (i32.const 3))",
        ),
        call("active", "(memory.init $now (i32.const 0) (i32.const 0) (i32.const 0))"),
        call("too_much", "(memory.init $now (i32.const 0) (i32.const 0) (i32.const 1))"),
        call("drops", "(data.drop $now) (data.drop $b)"),
        call("dropped", "(memory.init $b (i32.const 100) (i32.const 1) (i32.const 2))"),
        call("reads_one", "(memory.init $a (i32.const 300) (i32.const 2) (i32.const 1))"),
        call("beyond", "(memory.init $a (i32.const 300) (i32.const 2) (i32.const 2))"),
    ];
    let names = ["reads", "active", "too_much", "drops", "dropped", "reads_one", "beyond"];
    for [first, second, third] in [["$a", "$now", "$b"], ["$now", "$b", "$a"], ["$b", "$a", "$now"]] {
        let data = |name: &str| match name {
            "$a" => r#"(data $a "abc")"#,
            "$b" => r#"(data $b "bcde")"#,
            _ => r#"(data $now (i32.const 65535) "x")"#,
        };
        let text = format!(
            r#"(module (memory (export "memory") 1) {} {} {many} {} {} {many})"#,
            calls.concat(),
            data(first),
            data(second),
            data(third)
        );
        assert_eq!(prepared(&text, &names), 5);
    }
    // Without a count no code can name one.
    assert_eq!(prepared(&format!(r#"(module (memory (export "memory") 1) {many})"#), &[]), 1);
}

#[test]
fn arrays_are_made_of_the_same_segment() {
    let text = format!(
        r#"(module (type $bytes (array (mut i8))) {} (data $text "hello") (data "no") (data $other "world")
            (func (export "new") (result i32)
                (array.get_u $bytes (array.new_data $bytes $text (i32.const 1) (i32.const 3)) (i32.const 0)))
            (func (export "init") (result i32) (local (ref null $bytes))
                (local.set 0 (array.new_default $bytes (i32.const 3)))
                (array.init_data $bytes $other (local.get 0) (i32.const 0) (i32.const 2) (i32.const 3))
                (array.get_u $bytes (local.get 0) (i32.const 0))))"#,
        r#"(data "no")"#.repeat(200)
    );
    assert_eq!(prepared(&text, &["new", "init"]), 2);
}

#[test]
fn code_and_what_comes_before_it_stay_where_they_are() {
    let text = format!(
        r#"(module (memory 1) {} (data $used "used") (func $read (memory.init $used (i32.const 0) (i32.const 0) (i32.const 5)))
            (func $outer (export "run") (call $read)) (@custom "before" (before code) "text") (@custom "after" (after data) "text"))"#,
        r#"(data "no")"#.repeat(1000)
    );
    assert_eq!(prepared(&text, &["run"]), 1);
    let wasm = wat::parse_str(&text).unwrap();
    let new = joined(&wasm);
    let sections = |wasm: &[u8]| {
        let all = wasmparser::Parser::new(0).parse_all(wasm).map(Result::unwrap);
        let sections: Vec<_> = all.filter_map(|payload| payload.as_section()).collect();
        sections.into_iter().map(|(id, range)| (id, range.start, wasm[range].to_vec())).collect::<Vec<_>>()
    };
    let (before, after) = (sections(&wasm), sections(&new));
    assert_eq!(before.len(), after.len());
    let (mut is_behind, mut changed) = (false, Vec::new());
    for ((id, at, bytes), (new_id, new_at, new_bytes)) in before.into_iter().zip(after) {
        is_behind |= id == 11;
        assert!(id == new_id && (is_behind || (at, bytes.len()) == (new_at, new_bytes.len())), "section {id} moved");
        if bytes != new_bytes {
            changed.push(id);
        }
    }
    assert_eq!(changed, [12, 10, 11], "the count, the code and the data");
}

#[test]
fn a_module_grows_by_a_bounded_number_of_zeros() {
    let data = (0..9000).fold(String::new(), |all, at| format!("{all}(data (i32.const {}) \"x\")", at * 4000));
    let wasm = wat::parse_str(format!(r#"(module (memory (export "memory") 600) {data})"#)).unwrap();
    let new = joined(&wasm);
    assert!(new.len() < wasm.len() + (16 << 20), "{}", new.len());
    assert!(segments_of(&new) < 5000, "{}", segments_of(&new));
    assert_eq!(run(&wasm, &[]).memories, run(&new, &[]).memories);
}

#[test]
fn a_body_that_names_what_the_module_does_not_have_is_left_to_the_compiler_to_refuse() {
    for body in [
        "(i64.store 1 (i32.const 24) (i64.const 7))",
        "(drop (memory.grow 1 (i32.const 1)))",
        "(drop (memory.size 1))",
        "(memory.init 1 (i32.const 0) (i32.const 0) (i32.const 1))",
        "(data.drop 1)",
        "(memory.fill (i32.const 0) (i32.const 0) (i32.const 70000)) (call 2)",
        "(drop (ref.func $starts))",
    ] {
        let text =
            format!(r#"(module (memory 1) (data "x") (func $starts) (start $starts) (func (export "run") {body}))"#);
        let wasm = wat::parse_str(&text).unwrap();
        assert!(Module::new(&ENGINE, &wasm).is_err(), "{body}");
        assert!(matches!(prepare(&wasm, Digest::of(&wasm), true, Begin::Plain), Some(Cow::Borrowed(_))), "{body}");
    }
}

/// Each plugin of the tests.
pub(super) fn each_fixture(mut with: impl FnMut(&Path, &[u8])) {
    let (mut folders, mut seen) = (vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plugins")], 0);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "wasm") {
                with(&path, &fs::read(&path).unwrap());
                seen += 1;
            }
        }
    }
    assert!(seen >= 8, "{seen}");
}

#[test]
fn fixtures_come_to_the_same() {
    each_fixture(|path, wasm| {
        let new = segments::join(wasm, 0).unwrap_or_else(|| wasm.to_vec());
        let module = Module::new(&ENGINE, wasm).unwrap();
        let calls = module.exports().filter(|export| export.ty().func().is_some_and(|ty| ty.params().len() == 0));
        let calls: Vec<_> = calls.map(|export| export.name().to_owned()).collect();
        let calls: Vec<_> = calls.iter().map(String::as_str).collect();
        assert!(run(wasm, &calls) == run(&new, &calls), "{}", path.display());
    });
}

/// A segment of a made-up module, in WAT.
fn segment(memories: usize) -> impl Strategy<Value = String> {
    let near = prop_oneof![0_u32..120, 65_500_u32..65_540, 4080_u32..4110, 8180_u32..8200, 131_060_u32..131_074];
    let data = "[a-z]{0,24}";
    let memory = 0..memories;
    prop_oneof![
        8 => (memory.clone(), near, data).prop_map(|(memory, at, data)| {
            format!(r#"(data (memory {memory}) ({}.const {at}) "{data}")"#, if memory == 2 { "i64" } else { "i32" })
        }),
        1 => (0..memories.min(2), data).prop_map(|(memory, data)| {
            format!(r#"(data (memory {memory}) (global.get 0) "{data}")"#)
        }),
        3 => data.prop_map(|data| format!(r#"(data "{data}")"#)),
    ]
}

/// What code does with one: which, whether it drops it, where to and from, and how much.
type Step = (prop::sample::Index, bool, u32, u32, u32);

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]
    #[test]
    fn a_made_up_module_comes_to_the_same(
        imports in any::<bool>(),
        segments in (1..4_usize).prop_flat_map(|memories| prop::collection::vec(segment(memories), 0..160)),
        steps in prop::collection::vec(any::<Step>(), 0..12),
    ) {
        let imported = if imports { r#"(import "host" "memory" (memory 1))"# } else { "" };
        let own = if imports { "" } else { r#"(memory (export "a") 1)"# };
        let steps = if segments.is_empty() { &[][..] } else { &steps[..] };
        let calls = steps.iter().enumerate().fold(String::new(), |all, (at, (segment, drops, to, from, length))| {
            let segment = segment.index(segments.len());
            let (to, from, length) = (to % 70_000, from % 8, length % 24);
            let code = if *drops {
                format!("(data.drop {segment})")
            } else {
                format!("(memory.init {segment} (i32.const {to}) (i32.const {from}) (i32.const {length}))")
            };
            format!(r#"{all}(func $f{at} (export "f{at}") {code})"#)
        });
        let text = format!(
            r#"(module (import "host" "somewhere" (global i32)) {imported} {own}
                (memory (export "b") 2) (memory (export "c") i64 1) {calls} {})"#,
            segments.concat()
        );
        let names: Vec<_> = (0..steps.len()).map(|at| format!("f{at}")).collect();
        prepared(&text, &names.iter().map(String::as_str).collect::<Vec<_>>());
    }
}
