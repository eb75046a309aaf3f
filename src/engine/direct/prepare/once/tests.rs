//! A module that was initialised, and the one that begins so, side by side on wasmtime.

use std::{collections::BTreeMap, fmt::Write};

use proptest::prelude::*;
use wasmtime::{ExternType, Instance, Module, Store, Val};

use super::super::{tests::ENGINE, *};
use super::*;

fn compiled(wasm: &[u8], begin: Begin<'_>) -> Module {
    let prepared = prepare(wasm, Digest::of(wasm), true, begin).expect("the state is one of this module's");
    Module::new(&ENGINE, &prepared).unwrap_or_else(|error| panic!("{error:?}"))
}

/// What can be seen of an instance: its memories, the kernel's with them, and globals that it exports, by name.
fn seen(store: &mut Store<()>, instance: Instance) -> BTreeMap<String, String> {
    let exports: Vec<_> =
        instance.exports(&mut *store).map(|export| (export.name().to_owned(), export.into_extern())).collect();
    let shown = exports.into_iter().filter_map(|(name, it)| {
        // The map tells where the code is, which is another place; what is there to be read only, others do not have.
        let name = match name.rsplit_once(':') {
            Some((rest, _)) if rest.ends_with("global") || rest.ends_with("memory") => return None,
            Some(_) => "kernel".to_owned(),
            None => name,
        };
        let text = match it {
            wasmtime::Extern::Memory(memory) => {
                format!("{} {}", memory.data_size(&*store), Digest::of(memory.data(&*store)))
            }
            wasmtime::Extern::Global(global) => format!("{:?}", global.get(&mut *store)),
            _ => return None,
        };
        Some((name, text))
    });
    shown.collect()
}

fn call(store: &mut Store<()>, instance: Instance, name: &str) -> Result<(), String> {
    let function = instance.get_typed_func::<(), ()>(&mut *store, name).unwrap();
    function.call(&mut *store, ()).map_err(|error| error.root_cause().to_string())
}

fn read(store: &mut Store<()>, instance: Instance, recorder: &Recorder) -> State {
    let globals = recorder.globals.iter().map(|global| {
        let global = instance.get_module_export(&mut *store, global).unwrap().into_global().unwrap();
        match global.get(&mut *store) {
            Val::I32(value) => value.cast_unsigned().into(),
            Val::I64(value) => value.cast_unsigned().into(),
            Val::F32(bits) => bits.into(),
            Val::F64(bits) => bits.into(),
            Val::V128(bits) => bits.as_u128(),
            other => panic!("{other:?}"),
        }
    });
    let mut state = State::new(&globals.collect::<Vec<_>>());
    for memory in &recorder.memories {
        let memory = instance.get_module_export(&mut *store, memory).unwrap().into_memory().unwrap();
        state.add_memory(memory.data(&*store)).unwrap();
    }
    state
}

/// Initialises the module by `begin`, and calls `run` a few times: of one that initialised itself, of one whose state can be
/// read, and of one that begins in it.
fn compare(text: &str) {
    let wasm = wat::parse_str(text).unwrap();
    let (plain, recorded) = (compiled(&wasm, Begin::Plain), compiled(&wasm, Begin::Recorded));
    let how = Recorder::of(&recorded, Digest::of(&wasm)).unwrap();
    let (mut outcomes, mut states) = (Vec::new(), Vec::new());
    for module in [&plain, &recorded] {
        let mut store = Store::new(&ENGINE, ());
        let instance = Instance::new(&mut store, module, &[]).unwrap();
        call(&mut store, instance, "begin").unwrap();
        if Module::same(module, &recorded) {
            states.push(read(&mut store, instance, &how));
        }
        outcomes.push(run(&mut store, instance));
    }
    let state = &states[0];
    let restored = compiled(&wasm, Begin::Restored(state.bytes()));
    let mut store = Store::new(&ENGINE, ());
    let instance = Instance::new(&mut store, &restored, &[]).unwrap();
    outcomes.push(run(&mut store, instance));
    assert!(outcomes[0] == outcomes[1], "recorded: {text}\n{:?}\n{:?}", outcomes[0], outcomes[1]);
    assert!(outcomes[0] == outcomes[2], "restored: {text}\n{:?}\n{:?}", outcomes[0], outcomes[2]);
}

fn run(store: &mut Store<()>, instance: Instance) -> Vec<(Result<(), String>, BTreeMap<String, String>)> {
    let before = (Ok(()), seen(store, instance));
    let calls = (0..3).map(|_| (call(store, instance, "run"), seen(store, instance)));
    [before].into_iter().chain(calls.collect::<Vec<_>>()).collect()
}

/// What a made-up module does.
fn steps(steps: &[(u8, u32, i64)]) -> String {
    steps.iter().fold(String::new(), |mut code, (what, at, value)| {
        let near = at % 65_000;
        let _ = match what % 9 {
            0 => write!(
                code,
                "(i64.store (i32.const {near}) (i64.add (i64.load (i32.const {near})) (i64.const {value})))"
            ),
            1 => write!(code, "(drop (memory.grow (i32.const {})))", at % 3),
            2 => write!(code, "(global.set $a (i32.add (global.get $a) (i32.const {at})))"),
            3 => write!(code, "(global.set $b (i64.add (global.get $b) (i64.const {value})))"),
            4 => write!(code, "(global.set $c (f32.reinterpret_i32 (i32.const {at})))"),
            5 => write!(code, "(global.set $d (f64.reinterpret_i64 (i64.const {value})))"),
            6 => write!(code, "(global.set $e (v128.const i64x2 {value} {at}))"),
            7 => write!(code, "(call $store64 (i64.const {}) (i64.const {value}))", 64 + near),
            _ => write!(code, "(memory.init $p (i32.const {near}) (i32.const {}) (i32.const {}))", at % 4, at % 5),
        };
        code
    })
}

fn module(data: &str, begin: &str, run: &str) -> String {
    format!(
        r#"(module (import "extism:host/env" "store_u64" (func $store64 (param i64 i64)))
            (memory (export "memory") 1) (global $fixed (export "fixed") i32 (i32.const -9))
            (global $a (export "a") (mut i32) (i32.const 1)) (global $b (export "b") (mut i64) (i64.const 2))
            (global $c (export "c") (mut f32) (f32.const 3)) (global $d (export "d") (mut f64) (f64.const 4))
            (global $e (export "e") (mut v128) (v128.const i64x2 5 6)) {data}
            (func (export "begin") {begin}) (func (export "run") {run}))"#
    )
}

const PASSIVE: &str = r#"(data "unused") (data $p "passive") (data (i32.const 900) "active")"#;

#[test]
fn nothing_and_everything_is_read_and_begun_with() {
    let all: Vec<_> = (0..9).map(|what| (what, 5_000 + u32::from(what) * 4_096, i64::from(what) - 4)).collect();
    compare(&module(r#"(data $p "passive")"#, "", ""));
    compare(&module(PASSIVE, "", &steps(&all)));
    compare(&module(PASSIVE, &steps(&all), &steps(&all)));
    // No data section before, and a memory that is all zeros beside one that is not.
    let kernels = "(call $store64 (i64.const 100) (i64.const -1))";
    let plain = module("", kernels, "(i32.store (i32.const 9) (i32.add (i32.load (i32.const 9)) (i32.const 1)))");
    compare(&plain);
    compare(&plain.replace(kernels, "(i32.store8 (i32.const 65535) (i32.const 1))"));
}

#[test]
fn memories_of_every_type_are_begun_with() {
    let all: Vec<_> = (0..9).map(|what| (what, 5_000 + u32::from(what) * 4_096, i64::from(what) - 4)).collect();
    let text = module(PASSIVE, &steps(&all), "");
    let more = r#"(memory $large (export "large") i64 1 9) (data (memory $large) (i64.const 70) "large")
        (memory $bounded (export "bounded") 2 300) (data (memory $bounded) (i32.const 90000) "bounded")"#;
    let begin = "(func (export \"begin\") (drop (memory.grow $large (i64.const 2))) (i32.store $bounded (i32.const 8) (i32.const 7))";
    compare(&text.replace("(func (export \"begin\")", &format!("{more} {begin}")));
}

#[test]
fn pages_side_by_side_are_one_segment_and_zeros_at_its_ends_none_of_it() {
    let mut state = State::new(&[]);
    let mut memory = vec![0; 16 * PAGE];
    memory[2 * PAGE + 5..5 * PAGE + 9].fill(1);
    memory[8 * PAGE..9 * PAGE].fill(2);
    state.add_memory(&memory).unwrap();
    assert_eq!(state.image(), 5 * PAGE as u64, "four pages and one");
    let read = Read::new(state.bytes()).unwrap();
    let runs: Vec<_> =
        read.memories[0].runs.iter().map(|(at, data)| (usize::try_from(*at).unwrap(), data.len())).collect();
    assert_eq!(runs, [(2 * PAGE + 5, 3 * PAGE + 4), (8 * PAGE, PAGE)]);
}

#[test]
fn every_memory_has_a_segment_if_one_has_unless_there_is_none_of_it() {
    let text = module("", "(i32.store (i32.const 9) (i32.const 1))", "").replace(
        "(memory (export \"memory\") 1)",
        "(memory (export \"memory\") 1) (memory (export \"zeros\") 1) (memory (export \"empty\") 0 1)",
    );
    compare(&text);
    let wasm = wat::parse_str(text).unwrap();
    let digest = Digest::of(&wasm);
    let recorded = compiled(&wasm, Begin::Recorded);
    let mut store = Store::new(&ENGINE, ());
    let instance = Instance::new(&mut store, &recorded, &[]).unwrap();
    let with_segments = |state: &State| {
        let restored = prepare(&wasm, digest, true, Begin::Restored(state.bytes())).unwrap();
        let data = Parser::new(0).parse_all(&restored).find_map(|payload| match payload.unwrap() {
            Payload::DataSection(data) => Some(data.into_iter().map(Result::unwrap).collect::<Vec<_>>()),
            _ => None,
        });
        let announces = |payload| matches!(payload, Payload::DataCountSection { .. });
        assert!(!Parser::new(0).parse_all(&restored).any(|payload| announces(payload.unwrap())), "nor did the plugin");
        let places = data.unwrap_or_default().into_iter().filter_map(|segment| match segment.kind {
            wasmparser::DataKind::Active { memory_index, .. } => Some(memory_index),
            wasmparser::DataKind::Passive => None,
        });
        places.collect::<Vec<_>>()
    };
    let how = Recorder::of(&recorded, digest).unwrap();
    call(&mut store, instance, "begin").unwrap();
    assert_eq!(with_segments(&read(&mut store, instance, &how)), [0, 1, 3], "the last is the kernel's");
}

#[test]
fn a_state_has_a_bound_of_bytes_and_of_globals() {
    let mut state = State::new(&[]);
    state.add_memory(&vec![1; 32 << 20]).unwrap();
    let said = state.add_memory(&[1]).unwrap_err();
    assert_eq!(said, "after its initialisers its memory holds 33554433 bytes, and 32 MiB is the most");
    for (globals, refused) in [(MOST_GLOBALS, None), (MOST_GLOBALS + 1, Some("it has more than 1000 mutable globals"))]
    {
        let text = format!("(module (memory 1) {})", "(global (mut i32) (i32.const 1))".repeat(globals));
        let wasm = wat::parse_str(text).unwrap();
        let why = Recorder::of(&compiled(&wasm, Begin::Recorded), Digest::of(&wasm)).err();
        assert_eq!(why.as_deref(), refused, "{globals}");
    }
}

#[test]
fn a_module_that_has_what_is_anothers_says_why_its_state_is_not_read() {
    for import in ["(memory 1)", "(table 1 funcref)", "(global i32)"] {
        let text = module("", "", "")
            .replace("(import \"extism", &format!("(import \"host\" \"it\" {import}) (import \"extism"));
        let text = if import == "(memory 1)" { text.replace("(memory (export \"memory\") 1)", "") } else { text };
        let wasm = wat::parse_str(text).unwrap();
        let why = Recorder::of(&compiled(&wasm, Begin::Recorded), Digest::of(&wasm)).err();
        assert_eq!(why.as_deref(), Some("it imports a memory, a table or a global"), "{import}");
    }
}

/// Where the code begins.
fn code(wasm: &[u8]) -> usize {
    let mut payloads = Parser::new(0).parse_all(wasm).map(Result::unwrap);
    payloads
        .find_map(|it| if let Payload::CodeSectionStart { range, .. } = it { Some(range.start) } else { None })
        .unwrap()
}

#[test]
fn wherever_code_is_it_is_known_where_it_was() {
    // One number of exports takes a byte, with those that are added, and the other two.
    for exports in [0, 108, 113, 118, 200] {
        let more: String = (0..exports).fold(String::new(), |all, n| all + &format!("(export \"m{n}\" (memory 0))"));
        let text = module(PASSIVE, "(drop (memory.grow (i32.const 200)))", "")
            .replace("(func (export \"begin\")", &format!("{more} (func (export \"begin\")"));
        let wasm = wat::parse_str(text).unwrap();
        let digest = Digest::of(&wasm);
        let recorded = compiled(&wasm, Begin::Recorded);
        let mut store = Store::new(&ENGINE, ());
        let instance = Instance::new(&mut store, &recorded, &[]).unwrap();
        call(&mut store, instance, "begin").unwrap();
        let state = read(&mut store, instance, &Recorder::of(&recorded, digest).unwrap());
        let was = |begin| {
            let prepared = prepare(&wasm, digest, true, begin).unwrap();
            Map::of(&Module::new(&ENGINE, &prepared).unwrap()).unwrap().before(code(&prepared))
        };
        for begin in [Begin::Recorded, Begin::Restored(state.bytes())] {
            assert_eq!(was(begin), was(Begin::Plain), "{exports} exports, {begin:?}");
        }
    }
}

#[test]
fn a_state_of_another_module_is_refused() {
    let (one, other) = (module(PASSIVE, "", ""), "(module (memory 1) (func (export \"begin\")))");
    let [one, other] = [one.as_str(), other].map(|text| wat::parse_str(text).unwrap());
    let recorded = compiled(&one, Begin::Recorded);
    let mut store = Store::new(&ENGINE, ());
    let instance = Instance::new(&mut store, &recorded, &[]).unwrap();
    let state = read(&mut store, instance, &Recorder::of(&recorded, Digest::of(&one)).unwrap());
    let begins = |wasm: &[u8], state: &[u8]| prepare(wasm, Digest::of(wasm), true, Begin::Restored(state)).is_some();
    assert!(begins(&one, state.bytes()));
    assert!(!begins(&other, state.bytes()));
    let cut = &state.bytes()[..state.bytes().len() - 3];
    assert!(!begins(&one, cut));
}

#[test]
fn each_export_of_its_own_has_a_name_that_no_plugin_can_have() {
    let wasm = wat::parse_str(module(PASSIVE, "", "")).unwrap();
    let digest = Digest::of(&wasm).to_string();
    let recorded = compiled(&wasm, Begin::Recorded);
    let own = ["memory", "fixed", "a", "b", "c", "d", "e", "begin", "run"];
    for export in recorded.exports().filter(|export| !own.contains(&export.name())) {
        assert!(export.name().contains(&digest), "{}", export.name());
        assert!(matches!(export.ty(), ExternType::Memory(_) | ExternType::Global(_)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn a_made_up_module_goes_on_where_its_initialisers_left_it(
        begin in prop::collection::vec(any::<(u8, u32, i64)>(), 0..24),
        run in prop::collection::vec(any::<(u8, u32, i64)>(), 0..12),
    ) {
        compare(&module(PASSIVE, &steps(&begin), &steps(&run)));
    }
}
