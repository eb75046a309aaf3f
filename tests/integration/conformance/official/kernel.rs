//! What the official suite asks of the kernel, asked through plugins on both engines; the numbers are ours. Where the
//! kernels are meant to differ, the test says so, and the list of differences names it.

use evalpool::config::{EngineKind, LimitSettings};
use proptest::{
    collection::vec,
    prelude::{Strategy, any, prop_oneof},
    test_runner::{Config, TestRunner},
};

use super::{
    super::{answers, pool, with_functions},
    steps::{Step, Steps},
};
use crate::support::{ENGINES, builder, patient};

/// Runs the plugin on each engine.
async fn on_both(steps: &Steps, input: &[u8]) {
    for engine in ENGINES {
        let pool = pool(engine);
        steps.run_in(&pool, input).await;
        pool.close().await;
    }
}

#[tokio::test]
async fn kernel_allocations_have_their_lengths_and_are_used_again() {
    let mut steps = Steps::default();
    let nothing = steps.alloc(0);
    steps.is(nothing, 0);
    let first = steps.alloc(60_001);
    steps.is_long(first, 60_001);
    for beside in [1, 2, 3, 8, 12, 60_000] {
        let length = steps.ask("length", first.plus(beside));
        steps.is(length, 0);
    }
    steps.free(first);
    // Within the page, neither kernel has room for it but where the first one was.
    let again = steps.alloc(60_001);
    steps.is_long(again, 60_001);
    steps.free(again);
    let shorter = steps.alloc(60_001 - 30);
    steps.is_long(shorter, 60_001 - 30);
    steps.free(shorter);
    for length in 1..70 {
        let block = steps.alloc(length);
        steps.is_long(block, length);
        steps.free(block);
    }
    let pages = steps.alloc(100 * 65_536);
    steps.is_long(pages, 100 * 65_536);
    steps.free(pages);
    let page = steps.alloc(65_536);
    steps.is_long(page, 65_536);
    let more = steps.alloc(65_536 + 700);
    steps.is_long(more, 65_536 + 700);
    steps.reset();
    for forgotten in [first, page, more] {
        // Where the first one was, there is none yet either.
        let length = steps.ask("length", forgotten);
        steps.is(length, 0);
    }
    let anew = steps.alloc(65_536 + 700);
    steps.is_long(anew, 65_536 + 700);
    for engine in ENGINES {
        let pool = pool(engine);
        let results = steps.run_in(&pool, b"").await;
        let [first, again, shorter, anew] = [first, again, shorter, anew].map(|step| results.of(step));
        assert_eq!((first, again, shorter, anew), (77, 77, 77, 77), "{engine:?}");
        pool.close().await;
    }
}

#[tokio::test]
async fn kernel_error_is_the_block_that_was_set() {
    let mut steps = Steps::default();
    let none = steps.tell("error_get");
    steps.is(none, 0);
    let block = steps.alloc(300);
    steps.error_set(block);
    let set = steps.tell("error_get");
    // Neither a wild offset nor a reset of another thing changes it.
    steps.error_set(u64::MAX);
    let kept = steps.tell("error_get");
    steps.error_set(0);
    let taken_back = steps.tell("error_get");
    steps.is(taken_back, 0);
    steps.error_set(block);
    steps.reset();
    let after_reset = steps.tell("error_get");
    steps.is(after_reset, 0);
    for engine in ENGINES {
        let pool = pool(engine);
        let results = steps.run_in(&pool, b"").await;
        assert_eq!([set, kept].map(|step| results.of(step)), [results.of(block); 2], "{engine:?}");
        pool.close().await;
    }
}

#[tokio::test]
async fn load_store_reads_back_what_was_written_and_nothing_out_of_bounds() {
    let mut steps = Steps::default();
    let block = steps.alloc(16);
    steps.store64(block, 0x1122_3344_5566_7788);
    let word = steps.ask("load64", block);
    steps.is(word, 0x1122_3344_5566_7788);
    for (at, byte) in [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11].into_iter().enumerate() {
        let loaded = steps.byte("load8", block.plus(at as u64));
        steps.is(loaded, byte);
    }
    for at in 0..8 {
        steps.store8(block.plus(8 + at), 0xf0 + u8::try_from(at).unwrap());
    }
    let word = steps.ask("load64", block.plus(8));
    steps.is(word, 0xf7f6_f5f4_f3f2_f1f0);
    let across = steps.ask("load64", block.plus(4));
    steps.is(across, 0xf3f2_f1f0_1122_3344);
    for wild in [0, 1, 56, 1 << 21, 1 << 32, 0x7fff_ffff_ffff, u64::MAX - 7, u64::MAX - 6, u64::MAX] {
        steps.store8(wild, 9);
        steps.store64(wild, 9);
        let (byte, word) = (steps.byte("load8", wild), steps.ask("load64", wild));
        steps.is(byte, 0);
        steps.is(word, 0);
    }
    on_both(&steps, b"").await;
}

/// Gives the input's sum, loaded by eight bytes and by one, and what lies beyond its end.
const SUMS: &str = "
    (func $rest (param $at i64) (result i64) (i64.add (call $input64 (local.get $at)) (i64.extend_i32_u (call $input8 (local.get $at)))))
    (func $beyond (result i64) (local $n i64)
        (local.set $n (call $input_length))
        (i64.add (call $rest (local.get $n))
            (i64.add (call $rest (i64.add (local.get $n) (i64.const 1)))
                (i64.add (call $input64 (i64.sub (local.get $n) (i64.const 7))) (call $rest (i64.const 9999999999))))))
    (func $sum (result i64) (local $i i64) (local $sum i64)
        (loop $each
            (local.set $sum (i64.add (local.get $sum) (i64.extend_i32_u (call $input8 (local.get $i)))))
            (br_if $each (i64.lt_u (local.tee $i (i64.add (local.get $i) (i64.const 1))) (call $input_length))))
        (local.get $sum))
    (func $words (result i64) (local $i i64) (local $x i64)
        (loop $each
            (local.set $x (i64.xor (local.get $x) (call $input64 (local.get $i))))
            (br_if $each (i64.lt_u (local.tee $i (i64.add (local.get $i) (i64.const 8))) (call $input_length))))
        (local.get $x))";

#[tokio::test]
async fn load_input_gives_each_byte_and_0_beyond_the_end() {
    let input: Vec<u8> = (0..20_000_u64 * 8).map(|at| (at * 7 % 251) as u8).collect();
    let sum: u64 = input.iter().copied().map(u64::from).sum();
    let words = input.chunks(8).fold(0, |x, word| x ^ u64::from_le_bytes(word.try_into().unwrap()));
    for engine in ENGINES {
        let pool = pool(engine);
        for (body, expected) in [("$sum", sum), ("$words", words), ("$beyond", 0)] {
            // Once as it was given, and once as the plugin itself has set it.
            for set in ["", "(call $input_set (call $copy) (call $input_length))"] {
                let copy = "(func $copy (result i64) (call $echo) (call $output_offset))";
                let spec =
                    with_functions(&format!("{SUMS} {copy}"), &format!("{set} (call $out (call {body})) i32.const 0"));
                let given = answers(&pool, spec, &[&input]).await.remove(0);
                assert_eq!(given, Ok(expected.to_le_bytes().to_vec()), "{engine:?} {body} {set}");
            }
        }
        pool.close().await;
    }
}

/// Blocks of these lengths, one after the other.
fn blocks(lengths: impl IntoIterator<Item = u64>) -> Steps {
    let mut steps = Steps::default();
    for length in lengths {
        let block = steps.alloc(length);
        steps.is_long(block, length);
    }
    steps
}

#[tokio::test]
async fn failed_quickcheck1_blocks_across_the_ends_of_pages_have_their_lengths() {
    // What made the official kernel fail once: many blocks of less than a page, which end just beside the ends of pages.
    let beside_ends = (0..40).map(|at| [65_535 - 12 * at, 12 * at + 1, 32_768 - at]).collect::<Vec<_>>();
    on_both(&blocks(beside_ends.into_iter().flatten()), b"").await;
}

#[tokio::test]
async fn failed_quickcheck2_a_block_that_does_not_fit_ends_the_call_and_is_never_a_short_one() {
    for engine in ENGINES {
        let pool = pool(engine);
        for lengths in
            [&[300_000_000, 7][..], &[7, 1 << 31], &[5_000_000, 4_000_000_000, 1_000_000], &[u64::from(u32::MAX)]]
        {
            let ended = blocks(lengths.iter().copied()).try_in(&pool, b"").await;
            assert_eq!(ended.err().as_deref(), Some("out_of_memory"), "{engine:?} {lengths:?}");
        }
        pool.close().await;
    }
}

#[tokio::test]
async fn oom_comes_once_the_memory_is_full_and_no_sooner() {
    for engine in ENGINES {
        let limits = LimitSettings { memory: 24 << 20, ..patient() };
        let pool = builder(engine).capacity(1).max_instances(2).limits(limits).build().unwrap();
        let megabytes = |count| blocks(std::iter::repeat_n(1 << 20, count));
        megabytes(22).run_in(&pool, b"").await;
        // extism counts afresh once a plugin is initialised.
        let ended = megabytes(if engine == EngineKind::Extism { 48 } else { 24 }).try_in(&pool, b"").await;
        assert_eq!(ended.err().as_deref(), Some("out_of_memory"), "{engine:?}");
        pool.close().await;
    }
}

// ---- With random lengths ---------------------------------------------------------------------------------------------

/// Runs plugins made of random values on each engine. Each must do what it expects of itself, or, where `may_end`, be out
/// of memory.
fn check<T: std::fmt::Debug>(values: &impl Strategy<Value = T>, may_end: bool, plugin: impl Fn(&T) -> Steps) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (engine, cases) in [(EngineKind::Extism, 12), (EngineKind::Direct, 48)] {
        let pool = pool(engine);
        let config = Config { cases, failure_persistence: None, ..Config::default() };
        TestRunner::new(config)
            .run(values, |values| {
                match runtime.block_on(plugin(&values).try_in(&pool, b"")) {
                    Ok(_) => {}
                    Err(kind) => assert!(may_end && kind == "out_of_memory", "{engine:?}: {kind}"),
                }
                Ok(())
            })
            .unwrap();
        runtime.block_on(pool.close());
    }
}

/// Lengths of all magnitudes up to 4 GiB, most of which fit.
fn magnitudes() -> impl Strategy<Value = u64> {
    (0..33_u32, any::<u32>()).prop_map(|(shift, bits)| u64::from(bits.checked_shr(shift).unwrap_or(0)))
}

/// Which blocks are freed after one was allocated.
#[derive(Debug, Clone, Copy)]
enum Frees {
    None,
    Itself,
    Twice,
    Before,
    Beside,
}

fn frees() -> impl Strategy<Value = Frees> {
    prop_oneof![
        proptest::prelude::Just(Frees::None),
        proptest::prelude::Just(Frees::Itself),
        proptest::prelude::Just(Frees::Twice),
        proptest::prelude::Just(Frees::Before),
        proptest::prelude::Just(Frees::Beside),
    ]
}

fn blocks_with_frees(values: &[(u64, Frees)]) -> Steps {
    let mut steps = Steps::default();
    let mut before: Option<(Step, u64)> = None;
    for (length, frees) in values.iter().copied() {
        let block = steps.alloc(length);
        steps.is_long(block, length);
        let mut kept = Some((block, length));
        match (frees, before) {
            (Frees::None, _) | (Frees::Before, None) => {}
            (Frees::Itself | Frees::Twice, _) => {
                steps.free(block);
                if matches!(frees, Frees::Twice) {
                    steps.free(block);
                }
                let gone = steps.ask("length", block);
                steps.is(gone, 0);
                kept = None;
            }
            (Frees::Before, Some((other, _))) => {
                steps.free(other);
                before = None;
                steps.is_long(block, length);
            }
            (Frees::Beside, _) => {
                steps.free(block.plus(1));
                steps.free(block.minus(1));
                steps.is_long(block, length);
            }
        }
        if let Some((other, length)) = before {
            steps.is_long(other, length);
        }
        before = kept.or(before);
    }
    steps
}

#[test]
fn check_alloc_gives_each_block_its_length() {
    check(&vec(any::<u16>(), 0..150), false, |lengths| blocks(lengths.iter().copied().map(u64::from)));
}

#[test]
fn check_large_alloc_gives_each_block_its_length_or_ends() {
    check(&vec(magnitudes(), 0..40), true, |lengths| blocks(lengths.iter().copied()));
}

#[test]
fn check_alloc_with_frees_keeps_the_other_blocks() {
    check(&vec((1..65_536_u64, frees()), 0..120), false, |values| blocks_with_frees(values));
}

#[test]
fn check_large_alloc_with_frees_keeps_the_other_blocks_or_ends() {
    check(&vec((magnitudes().prop_map(|length| length.max(1)), frees()), 0..40), true, |values| {
        blocks_with_frees(values)
    });
}

#[test]
fn check_alloc_with_load_and_store_keeps_what_is_within_each_block() {
    let stores = vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8);
    check(&vec((1..20_000_usize, stores), 0..40), false, |blocks| {
        let mut steps = Steps::default();
        let mut written = Vec::new();
        for (length, stores) in blocks {
            let block = steps.alloc(*length as u64);
            let last = stores.last().map(|(at, byte)| (at.index(*length) as u64, *byte));
            for (at, byte) in stores {
                steps.store8(block.plus(at.index(*length) as u64), *byte);
                let loaded = steps.byte("load8", block.plus(at.index(*length) as u64));
                steps.is(loaded, u64::from(*byte));
            }
            written.push((block, last));
        }
        // Not only at once: no later block has overwritten an earlier one.
        for (block, last) in written {
            let Some((at, byte)) = last else { continue };
            let loaded = steps.byte("load8", block.plus(at));
            steps.is(loaded, u64::from(byte));
        }
        steps
    });
}
