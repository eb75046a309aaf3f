//! Small random plugins on both engines.

use evalpool::{Source, Spec, config::EngineKind};
use proptest::{
    prelude::{Just, Strategy, any},
    prop_assert_eq, prop_oneof,
    test_runner::{Config, TestRunner},
};

use super::{IMPORTS, answers, pool};
use crate::support::wasm;

/// A step of a small random plugin. Offsets are never shown, since where a freed block is used again is each
/// allocator's own affair; nor is memory read that nothing was written to, or that was freed.
#[derive(Debug, Clone)]
enum Step {
    Alloc(usize, u32),
    Free(usize),
    Length(usize),
    Load(usize, i64),
    Input(i64),
    Byte(i64),
    Output(u32),
    Say,
    Remember(usize),
    Recall(usize),
    Configured(usize),
    Code(i8),
    Trap,
    Divide,
    Grow(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let slot = 0..4_usize;
    prop_oneof![
        5 => (slot.clone(), 8..5000_u32).prop_map(|(slot, size)| Step::Alloc(slot, size)),
        2 => slot.clone().prop_map(Step::Free),
        2 => slot.clone().prop_map(Step::Length),
        3 => (slot.clone(), 0..8_i64).prop_map(|(slot, at)| Step::Load(slot, at)),
        3 => (0..40_i64).prop_map(Step::Input),
        3 => (-20..40_i64).prop_map(Step::Byte),
        3 => (0..9_u32).prop_map(Step::Output),
        1 => Just(Step::Say),
        1 => slot.clone().prop_map(Step::Remember),
        1 => slot.clone().prop_map(Step::Recall),
        1 => slot.prop_map(Step::Configured),
        1 => any::<i8>().prop_map(Step::Code),
        1 => Just(Step::Trap),
        1 => Just(Step::Divide),
        // Not to within a few pages of the limit: `direct` counts its notes about blocks, and extism does not.
        1 => prop_oneof![0..750_u32, 768..3000_u32].prop_map(Step::Grow),
    ]
}

fn plugin(steps: &[Step]) -> String {
    let line = |step: &Step| {
        let add = |what: String| format!("(local.set $sum (i64.add (i64.mul (local.get $sum) (i64.const 31)) {what}))");
        match step {
            Step::Alloc(slot, size) => format!(
                "(local.set $b{slot} (call $alloc (i64.const {size})))
                 (call $store64 (local.get $b{slot}) (i64.or (local.get $sum) (i64.const 0x6161616161616161)))"
            ),
            Step::Free(slot) => format!("(call $free (local.get $b{slot})) (local.set $b{slot} (i64.const 0))"),
            Step::Length(slot) => add(format!("(call $length (local.get $b{slot}))")),
            Step::Load(slot, at) => {
                add(format!("(i64.extend_i32_u (call $load8 (i64.add (local.get $b{slot}) (i64.const {at}))))"))
            }
            Step::Input(at) => add(format!("(call $input64 (i64.const {at}))")),
            Step::Byte(at) => add(format!("(i64.extend_i32_u (call $input8 (i64.const {at})))")),
            Step::Output(size) => format!("(call $output_set (call $digits) (i64.const {size}))"),
            Step::Say => "(call $error_set (call $message))".to_owned(),
            Step::Remember(slot) => {
                format!("(call $var_set (call $colour) (local.get $b{slot})) (local.set $b{slot} (i64.const 0))")
            }
            Step::Recall(slot) => format!("(local.set $b{slot} (call $var_get (call $colour)))"),
            Step::Configured(slot) => format!("(local.set $b{slot} (call $config_get (call $shape)))"),
            Step::Code(code) => format!(
                "(if (i64.eq (i64.rem_u (local.get $sum) (i64.const 3)) (i64.const 1)) (then (return (i32.const {code}))))"
            ),
            Step::Trap => {
                "(if (i64.eq (i64.rem_u (local.get $sum) (i64.const 5)) (i64.const 1)) (then unreachable))".to_owned()
            }
            Step::Divide => {
                "(local.set $sum (i64.div_u (i64.const 1000000) (i64.rem_u (local.get $sum) (i64.const 7))))".to_owned()
            }
            Step::Grow(pages) => format!("(drop (memory.grow (i32.const {pages})))"),
        }
    };
    let body = steps.iter().map(line).collect::<Vec<_>>().join("\n");
    format!(
        "(module {IMPORTS} (func (export \"run\") (result i32)
            (local $sum i64) (local $b0 i64) (local $b1 i64) (local $b2 i64) (local $b3 i64)
            {body}
            (if (i64.eqz (i64.and (local.get $sum) (i64.const 1))) (then (call $out (local.get $sum))))
            i32.const 0))"
    )
}

/// `EVALPOOL_CONFORMANCE_CASES` plugins of random steps, 24 unless said otherwise. A failing one is shrunk and printed.
#[test]
fn both_engines_give_the_same_answers_to_random_plugins() {
    let cases = std::env::var("EVALPOOL_CONFORMANCE_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(24);
    let (extism, direct) = (pool(EngineKind::Extism), pool(EngineKind::Direct));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let inputs = proptest::collection::vec(any::<u8>(), 0..40);
    TestRunner::new(config)
        .run(&(proptest::collection::vec(step(), 1..30), inputs), |(steps, input)| {
            let spec = Spec::new(Source::bytes(wasm(&plugin(&steps)))).config("shape", "eight by");
            let inputs = [&input[..], b"other"];
            let theirs = runtime.block_on(answers(&extism, spec.clone(), &inputs));
            let ours = runtime.block_on(answers(&direct, spec, &inputs));
            prop_assert_eq!(ours, theirs);
            Ok(())
        })
        .unwrap();
    runtime.block_on(async { tokio::join!(extism.close(), direct.close()) });
}
