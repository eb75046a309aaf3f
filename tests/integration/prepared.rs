//! Modules that are prepared before they are compiled: what they do is what they did, in a worker and in this process.

use std::fmt::Write;

use evalpool::{
    PoolBuilder, Source, Spec,
    config::{CompileWorkers, EngineKind},
};

use crate::support::{ENGINES, compile_workers, settings, wasm};

/// The bytes of one page and some passive segments, many of which overlap; `run` fails unless the memory begins with them
/// and what it reads of a passive one is right. `trap` reads beyond a segment's end.
fn with_segments() -> Vec<u8> {
    let (mut memory, mut data) = (vec![0_u8; 65_536], String::new());
    for at in 0..2000_usize {
        let (offset, text) = (at * 7919 % 65_500, format!("{at:04}segment"));
        memory[offset..offset + text.len()].copy_from_slice(text.as_bytes());
        let _ = write!(data, r#"(data (i32.const {offset}) "{text}") (data "nobody reads this")"#);
    }
    let sum = memory.iter().fold(7_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into())).cast_signed();
    wasm(&format!(
        r#"(module (memory (export "memory") 1) {data} (data $read "it reads this")
            (func $read (param $length i32) (memory.init $read (i32.const 0) (i32.const 3) (local.get $length)))
            (func (export "run") (result i32) (local $at i32) (local $sum i32)
                (local.set $sum (i32.const 7))
                (loop $each
                    (local.set $sum (i32.add (i32.mul (local.get $sum) (i32.const 31)) (i32.load8_u (local.get $at))))
                    (br_if $each (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 1))) (i32.const 65536))))
                (call $read (i32.const 5))
                (i32.or (i32.ne (local.get $sum) (i32.const {sum})) (i32.ne (i32.load (i32.const 0)) (i32.const 0x64616572))))
            (func (export "trap") (call $read (i32.const 11))))"#
    ))
}

#[tokio::test]
async fn a_module_with_joined_segments_does_what_it_did() {
    for engine in ENGINES {
        for workers in [compile_workers(), CompileWorkers::Off] {
            let mut settings = settings(engine);
            settings.engine.compile_workers = workers;
            let pool = PoolBuilder::from(settings).build().unwrap();
            let plugin = pool.evaluator("plugin", Spec::new(Source::bytes(with_segments()))).unwrap();
            plugin.evaluate("").await.unwrap();
            let error = plugin.entry_point("trap").evaluate("").await.unwrap_err();
            assert_eq!(error.kind(), "guest_trap");
            if engine == EngineKind::Direct {
                let words = error.last_words().unwrap();
                let names: Vec<_> = words.stack().iter().filter_map(|line| line.split(" - ").nth(1)).collect();
                assert_eq!(names, ["read", "function 2"], "{words}");
            }
            pool.close().await;
        }
    }
}
