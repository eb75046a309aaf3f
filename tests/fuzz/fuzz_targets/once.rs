//! One plugin by two ways: its initialisers run in each instance, or once, and instances begin with what they did. Any
//! sequence of evaluations comes to the same: the output, or the error, its text and in which functions the guest was. What cannot be
//! initialised once says so, and takes no more time or memory than any plugin.
//!
//! | the input begins with | it is |
//! |---|---|
//! | `(` | WAT, and after a line `---` the evaluations, each a line: the entry point and its input |
//! | an even byte, as `\0asm` does | the plugin, of which `run` is called |
//! | `s` | steps: those of `_initialize`, then those of `run`, with what they are applied to |
//! | another odd byte | choices for `wasm-smith` |
//!
//! A plugin that can ask for time or chance is told something else each time: it only has to end as a plugin may.

#![cfg_attr(fuzzing, no_main)]

use std::{
    fmt::{Display, Write},
    sync::LazyLock,
    time::Duration,
};

use arbitrary::Unstructured;
use evalpool::{
    Error,
    ErrorKind::{
        self, BuildTimeout, EntryPointMissing, ExecTimeout, GuestError, GuestExit, GuestTrap, InvalidPlugin,
        OutOfMemory, OutputTooLarge, Overloaded, PayloadTooLarge, SourceUnavailable,
    },
    Evaluator, EvaluatorPool, Init, Isolation, Plugin, Source, Spec,
};
use evalpool_fuzz::{Peak, Shape, Stage, assert_plugins_fault, draws, fuzz, settings, split};

fuzz!(once);

static STAGE: LazyLock<Stage> = LazyLock::new(|| {
    let mut settings = settings();
    // Most are to be built, and built twice, which takes its time under a sanitizer.
    settings.limits.build_timeout = Duration::from_secs(1);
    Stage::new(&settings)
});

/// Evaluations of a sequence at most.
const MOST_CALLS: usize = 8;

/// Steps of one function at most.
const MOST_STEPS: usize = 64;

/// A snapshot is waited for so many milliseconds.
const PATIENCE: u32 = 5_000;

/// Both may take so much memory of this process. In bytes: what a worker may have for the code, a few times over.
const MOST_MEMORY: u64 = 256 << 20;

/// What an evaluation may come to.
const PLUGINS_FAULT: [ErrorKind; 8] =
    [EntryPointMissing, GuestError, GuestExit, GuestTrap, InvalidPlugin, OutOfMemory, OutputTooLarge, PayloadTooLarge];

/// An entry point and its input.
type Call = (String, Vec<u8>);

/// The output, or what is said of the failure and in which functions the guest was; `None` for what depends on how busy the machine is.
type Ended = Option<Result<Vec<u8>, (String, Vec<String>)>>;

fn once(input: &[u8]) {
    let Some((plugin, calls)) = (match input {
        [b'(', ..] => written(input),
        [b's', rest @ ..] => stepped(rest),
        [odd, rest @ ..] if odd % 2 == 1 => generated(rest),
        _ => Some((input.to_vec(), vec![("run".to_owned(), Vec::new())])),
    }) else {
        return;
    };
    let read = Plugin::new(plugin.clone().into(), None);
    let is_told = read.is_ok_and(|plugin| plugin.interface().imports().iter().any(|import| draws(&import.name)));
    let isolation = if plugin.len() % 2 == 0 { Isolation::Fresh } else { Isolation::Reuse };
    let peak = Peak::begin();
    let evaluate = |init| {
        let spec = Spec::new(Source::bytes(plugin.clone())).isolation(isolation).config("colour", "blue");
        let (pool, calls) = (STAGE.pool.clone(), calls.clone());
        STAGE.finish("a sequence", evaluate(pool, spec.init(init).init_refresh(None), calls))
    };
    let (each, once) = (evaluate(Init::Each), evaluate(Init::Once));
    let growth = peak.map_or(0, |peak| peak.growth());
    assert!(growth <= MOST_MEMORY, "it took {} MiB", growth >> 20);
    STAGE.assert_at_rest();
    if is_told || [&each, &once].iter().any(|ended| ended.contains(&None)) {
        return;
    }
    assert_eq!(each, once, "initialised in each instance, and once");
}

/// What each evaluation came to.
async fn evaluate(pool: EvaluatorPool, spec: Spec, calls: Vec<Call>) -> Vec<Ended> {
    let evaluator = pool.register("once", spec.entry_point(calls[0].0.clone())).expect("a name that is one");
    let mut all = vec![call(&evaluator, &calls[0]).await];
    // Otherwise its build failed.
    if pool.runtimes() > 0 {
        let init = || pool.info("once").expect("it is registered").init;
        let is_open = || init().mode == Init::Once && !init().in_use && init().refused.is_none();
        // Not for ever: on a busy machine an instance may be read later, if another is made.
        let mut patience = 0..PATIENCE;
        while is_open() && patience.next().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Instances that were made before are used first.
        for called in calls.iter().cycle().take(4 + calls.len()) {
            all.push(call(&evaluator, called).await);
        }
    }
    evaluator.close().await;
    all
}

async fn call(evaluator: &Evaluator, (entry_point, input): &Call) -> Ended {
    let error = match evaluator.entry_point(&**entry_point).evaluate(input.clone()).await {
        Ok(response) => return Some(Ok(response.bytes().to_vec())),
        Err(error) => error,
    };
    if is_busy(&error) {
        return None;
    }
    assert_plugins_fault(&error, &PLUGINS_FAULT);
    // Without the offset: a trap at the beginning of a function is there twice, once of them where the deadline is looked at,
    // and the moment decides which of them is met.
    let name = |frame: &String| frame.split_once(" - ").map_or(frame.as_str(), |(_, name)| name).to_owned();
    let at = error.last_words().map(|words| words.stack().iter().map(name).collect());
    Some(Err((format!("{} {error}", error.kind()), at.unwrap_or_default())))
}

fn is_busy(error: &Error) -> bool {
    // A build that takes too much memory to compile is `invalid_plugin`, whatever the other comes to.
    let kinds = [BuildTimeout, ExecTimeout, Overloaded, SourceUnavailable];
    kinds.contains(&error.kind()) || error.to_string().contains("limits.compile_memory")
}

/// What the input says in so many words.
fn written(input: &[u8]) -> Option<(Vec<u8>, Vec<Call>)> {
    let (text, calls) = split(input);
    let plugin = wat::parse_str(str::from_utf8(text).ok()?).ok()?;
    let calls = String::from_utf8_lossy(calls);
    let lines = calls.lines().filter(|line| !line.is_empty()).take(MOST_CALLS);
    let mut calls: Vec<Call> = lines
        .map(|line| line.split_once(' ').unwrap_or((line, "")))
        .map(|(entry_point, input)| (entry_point.to_owned(), input.into()))
        .collect();
    if calls.is_empty() {
        calls.push(("run".to_owned(), Vec::new()));
    }
    Some((plugin, calls))
}

fn generated(choices: &[u8]) -> Option<(Vec<u8>, Vec<Call>)> {
    let (calls, plugin) = choices.split_at_checked(16)?;
    Some((Shape::Initialised.generate(plugin)?, chosen(calls, &["run", "other", "_initialize", "_start"])))
}

/// A few calls of these entry points.
fn chosen(choices: &[u8], entry_points: &[&str]) -> Vec<Call> {
    let calls = choices.iter().take(MOST_CALLS).map(|choice| {
        let entry_point = entry_points[usize::from(choice % 8).min(entry_points.len() - 1)];
        (entry_point.to_owned(), vec![b'a'; usize::from(choice / 8)])
    });
    [("run".to_owned(), b"12345678".to_vec())].into_iter().chain(calls).collect()
}

/// A plugin whose initialiser and entry point do what the bytes say.
fn stepped(choices: &[u8]) -> Option<(Vec<u8>, Vec<Call>)> {
    let mut choices = Unstructured::new(choices);
    let mut next = || -> arbitrary::Result<String> {
        let count = choices.int_in_range(0..=MOST_STEPS)?;
        let mut code = String::new();
        for _ in 0..count {
            let (what, at, value): (u8, u32, i64) = choices.arbitrary()?;
            // There are no more.
            if (what, at, value) == (0, 0, 0) {
                break;
            }
            let _ = writeln!(code, "{}", step(what, at, value));
        }
        Ok(code)
    };
    let (begin, run) = (next().ok()?, next().ok()?);
    let calls = chosen(choices.take_rest(), &["run", "run", "show", "_initialize"]);
    Some((wat::parse_str(stepping(&begin, &run)).ok()?, calls))
}

/// One step: of memory, globals, the kernel's blocks, variables, config or the log.
fn step(what: u8, at: u32, value: i64) -> String {
    let (near, block, byte) = (at % 65_000, at % 4, at % 300);
    let of = |shown: &dyn Display| format!("(global.set $sum (i64.add (global.get $sum) {shown}))");
    match what % 18 {
        0 => format!("(i64.store (i32.const {near}) (i64.add (i64.load (i32.const {near})) (i64.const {value})))"),
        1 => format!("(drop (memory.grow (i32.const {})))", at % 5),
        2 => format!("(global.set $a (i32.add (global.get $a) (i32.const {at})))"),
        3 => format!("(global.set $d (f64.reinterpret_i64 (i64.const {value})))"),
        4 => format!("(global.set $e (v128.const i64x2 {value} {at}))"),
        5 => format!("(memory.fill (i32.const {near}) (i32.const {byte}) (i32.const {}))", at % 500),
        6 => format!("(memory.init $passive (i32.const {near}) (i32.const {}) (i32.const {}))", at % 4, at % 5),
        7 => format!("(global.set $b{block} (call $alloc (i64.const {})))", at % 100_000),
        8 => format!("(call $free (global.get $b{block}))"),
        9 => format!("(call $store_u64 (i64.add (global.get $b{block}) (i64.const {byte})) (i64.const {value}))"),
        10 => of(&format!("(call $load_u64 (i64.add (global.get $b{block}) (i64.const {byte})))")),
        11 => of(&format!("(call $length (global.get $b{block}))")),
        12 => format!("(call $var_set (call $word (i64.const {})) (global.get $b{block}))", at % 3),
        13 => format!("(global.set $b{block} (call $var_get (call $word (i64.const {}))))", at % 3),
        14 => format!("(global.set $b{block} (call $config_get (call $word (i64.const {}))))", at % 3),
        15 => format!("(call $log_info (call $word (i64.const {})))", at % 3),
        16 => of(&"(call $memory_bytes)"),
        _ => of(&format!("(i64.shl (global.get $sum) (i64.const {byte}))")),
    }
}

/// The plugin: `run` takes its steps, and both tell all of its state in one number.
fn stepping(begin: &str, run: &str) -> String {
    let blocks: String = (0..4).fold(String::new(), |all, n| all + &format!("(global $b{n} (mut i64) (i64.const 0))"));
    format!(
        r#"(module
        (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
        (import "extism:host/env" "free" (func $free (param i64)))
        (import "extism:host/env" "length" (func $length (param i64) (result i64)))
        (import "extism:host/env" "load_u64" (func $load_u64 (param i64) (result i64)))
        (import "extism:host/env" "store_u64" (func $store_u64 (param i64 i64)))
        (import "extism:host/env" "memory_bytes" (func $memory_bytes (result i64)))
        (import "extism:host/env" "input_length" (func $input_length (result i64)))
        (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
        (import "extism:host/env" "var_set" (func $var_set (param i64 i64)))
        (import "extism:host/env" "var_get" (func $var_get (param i64) (result i64)))
        (import "extism:host/env" "config_get" (func $config_get (param i64) (result i64)))
        (import "extism:host/env" "log_info" (func $log_info (param i64)))
        (memory (export "memory") 1 20)
        (data $passive "passive") (data (i32.const 900) "active")
        (global $a (mut i32) (i32.const 1)) (global $d (mut f64) (f64.const 4))
        (global $e (mut v128) (v128.const i64x2 5 6)) (global $sum (mut i64) (i64.const 0)) {blocks}
        ;; `colour`, which is set, or another name.
        (func $word (param $n i64) (result i64) (local $p i64)
            (local.set $p (call $alloc (i64.const 6)))
            (call $store_u64 (local.get $p) (i64.add (local.get $n) (i64.const 0x72756f6c6f63)))
            (local.get $p))
        (func $show (local $i i32) (local $p i64)
            (loop $each
                (global.set $sum (i64.add (i64.mul (global.get $sum) (i64.const 31)) (i64.load (local.get $i))))
                (br_if $each (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 8)))
                    (i32.shl (memory.size) (i32.const 16)))))
            (local.set $p (call $alloc (i64.const 40)))
            (call $store_u64 (local.get $p) (global.get $sum))
            (call $store_u64 (i64.add (local.get $p) (i64.const 8)) (i64.reinterpret_f64 (global.get $d)))
            (call $store_u64 (i64.add (local.get $p) (i64.const 16)) (i64x2.extract_lane 0 (global.get $e)))
            (call $store_u64 (i64.add (local.get $p) (i64.const 24)) (i64.extend_i32_u (global.get $a)))
            (call $store_u64 (i64.add (local.get $p) (i64.const 32)) (i64.add (local.get $p) (call $input_length)))
            (call $output_set (local.get $p) (i64.const 40)))
        (func (export "_initialize") {begin})
        (func (export "run") {run} (call $show))
        (func (export "show") (call $show)))"#
    )
}
