//! Calls of the kernel that no PDK makes, on both engines. The official suite has a few of them.

use evalpool::config::EngineKind;

use super::{super::pool, steps::Steps};

#[expect(clippy::too_many_lines, reason = "a table")]
#[tokio::test]
async fn odd_calls_come_to_the_same_on_both_engines() {
    let input = b"0123456789";
    let mut plugins = Vec::new();
    let mut add = |odd: &dyn Fn(&mut Steps)| {
        let mut steps = Steps::default();
        odd(&mut steps);
        plugins.push(steps);
    };
    add(&|steps| {
        let block = steps.alloc(60_000);
        for _ in 0..2 {
            steps.free(block);
        }
        // Freed twice, it is given once.
        steps.alloc(60_000);
        steps.alloc(60_000);
    });
    add(&|steps| {
        let block = steps.alloc(40);
        steps.store8(block, 9);
        for beside in [block.plus(1), block.minus(1), block.minus(12), 0.into(), 1.into(), u64::MAX.into()] {
            steps.free(beside);
        }
        steps.is_long(block, 40);
        steps.free(block);
        // What is freed is still there, and left alone; what is reset is not there.
        steps.byte("load8", block);
        steps.alloc(40);
        steps.reset();
        steps.byte("load8", block);
        steps.alloc(40);
        steps.byte("load8", block);
    });
    add(&|steps| {
        for at in [0, 1, 2, 3, 9, 10, 1 << 40] {
            steps.ask("input64", at);
            steps.byte("input8", at);
            steps.byte("input8", at.wrapping_neg());
        }
        let block = steps.tell("input_offset");
        steps.free(block);
        for name in ["input_length", "input_offset"] {
            steps.tell(name);
        }
        steps.byte("input8", 0);
    });
    for (name, offset, length) in
        [("input_set", "input_offset", "input_length"), ("output_set", "output_offset", "output_length")]
    {
        add(&|steps| {
            let block = steps.alloc(100);
            for (at, bytes) in [
                (block.into(), 1000),
                (block.into(), 10_000_000),
                (block.plus(3), 5),
                (block.into(), 0),
                (block.into(), u64::MAX),
                (65.into(), 0),
                (65.into(), 1),
                (64.into(), 1),
                (65_536.into(), 1),
                (65_537.into(), 1),
                (0.into(), 0),
                (u64::MAX.into(), 2),
            ] {
                steps.set(name, at, bytes);
                steps.tell(offset);
                steps.tell(length);
            }
            steps.reset();
            steps.tell(offset);
            steps.tell(length);
        });
    }
    add(&|steps| {
        for at in [64, 65, 65_536, 65_537, u64::MAX] {
            steps.error_set(at);
            steps.tell("error_get");
        }
    });
    add(&|steps| {
        steps.tell("memory_bytes");
        for length in [1 << 16, 1 << 20, 5 << 20] {
            steps.alloc(length);
            steps.tell("memory_bytes");
        }
        // What has grown does not shrink.
        steps.reset();
        steps.tell("memory_bytes");
    });
    // Early PDKs free what they have passed to the host, which has freed it. That takes nothing from what they were given.
    add(&|steps| {
        let (name, value) = (steps.tell("colour"), steps.tell("digits"));
        steps.set("var_set", name, value);
        let name = steps.tell("colour");
        let value = steps.ask("var_get", name);
        steps.free(name);
        steps.is_long(value, 10);
        steps.alloc(6);
        steps.ask("load64", value);
    });
    let (extism, direct) = (pool(EngineKind::Extism), pool(EngineKind::Direct));
    for steps in &plugins {
        let (theirs, ours) = (steps.run_in(&extism, input).await, steps.run_in(&direct, input).await);
        assert_eq!(theirs, ours, "{steps:?}");
    }
    extism.close().await;
    direct.close().await;
}
