//! Calls of what plugins may import from `extism:host/env`, in any order and with any arguments.
//!
//! An input is text, a step a line (or up to a `;`): a function and its arguments, each a number, the result of an
//! earlier step (`r0`), or that and a number (`r0+8`, `r0-1`). What cannot be read is taken for something that can, so
//! that a changed byte is another step. Beside the host's functions there are
//!
//! - `word N`: a block with one of a few texts,
//! - `grow N`: `memory.grow` of the plugin's own memory,
//! - `return N`, `trap`: the end.
//!
//! The plugin is one, compiled once, that reads the steps from its input. It runs them in an instance of their own,
//! twice, which must come to the same; and in one that ran others before.

#![cfg_attr(fuzzing, no_main)]

use std::{fmt::Write, sync::LazyLock, time::Duration};

use evalpool::{
    ErrorKind::{self, GuestError, GuestTrap, OutOfMemory, OutputTooLarge},
    Evaluator, Isolation, Source, Spec,
};
use evalpool_fuzz::{Stage, assert_plugins_fault, fuzz, settings};

fuzz!(kernel);

/// Name, parameters and result, in WAT.
const FUNCTIONS: [(&str, &[&str], Option<&str>); 32] = [
    ("alloc", &["i64"], Some("i64")),
    ("free", &["i64"], None),
    ("length", &["i64"], Some("i64")),
    ("length_unsafe", &["i64"], Some("i64")),
    ("load_u8", &["i64"], Some("i32")),
    ("load_u64", &["i64"], Some("i64")),
    ("store_u8", &["i64", "i32"], None),
    ("store_u64", &["i64", "i64"], None),
    ("input_length", &[], Some("i64")),
    ("input_offset", &[], Some("i64")),
    ("input_load_u8", &["i64"], Some("i32")),
    ("input_load_u64", &["i64"], Some("i64")),
    ("input_set", &["i64", "i64"], None),
    ("output_set", &["i64", "i64"], None),
    ("output_offset", &[], Some("i64")),
    ("output_length", &[], Some("i64")),
    ("error_set", &["i64"], None),
    ("error_get", &[], Some("i64")),
    ("reset", &[], None),
    ("memory_bytes", &[], Some("i64")),
    ("config_get", &["i64"], Some("i64")),
    ("var_get", &["i64"], Some("i64")),
    ("var_set", &["i64", "i64"], None),
    ("log_trace", &["i64"], None),
    ("log_debug", &["i64"], None),
    ("log_info", &["i64"], None),
    ("log_warn", &["i64"], None),
    ("log_error", &["i64"], None),
    ("get_log_level", &[], Some("i32")),
    ("http_request", &["i64", "i64"], Some("i64")),
    ("http_status_code", &[], Some("i32")),
    ("http_headers", &[], Some("i64")),
];

/// Steps that are not the host's functions, in the plugin's own code.
const OWN: [(&str, &str); 4] = [
    ("word", "(local.set $r (call $word (i32.wrap_i64 (local.get $a))))"),
    ("grow", "(local.set $r (i64.extend_i32_s (memory.grow (i32.wrap_i64 (local.get $a)))))"),
    ("return", "(return (i32.wrap_i64 (local.get $a)))"),
    ("trap", "unreachable"),
];

/// What `word` makes blocks of.
const WORDS: [&str; 6] =
    ["colour", "shape", "m\\c3\\b6glich", "\\ff\\fe", "{\\22url\\22:\\22http://127.0.0.1/\\22}", "[1, 2"];

/// Where PDKs, allocators and hosts go wrong.
const NUMBERS: [i64; 16] =
    [0, 1, 7, 8, 63, 64, 65, 4095, 65_535, 65_536, 1 << 20, (1 << 32) - 1, 1 << 32, -1, -8, i64::MIN];

/// Steps of one script, and registers for their results.
const MOST_STEPS: usize = 256;

/// A step as the plugin reads it: a byte for what to do, then for each of two arguments a byte for the register that
/// counts (0 for none) and eight for the number that is added.
const STEP: usize = 19;

const OUTPUT: u64 = 4096;

struct Plugins {
    stage: Stage,
    fresh: Evaluator,
    reused: Evaluator,
}

static PLUGINS: LazyLock<Plugins> = LazyLock::new(|| {
    let mut settings = settings();
    settings.limits.output_size = OUTPUT;
    settings.limits.memory = 1 << 20;
    // The plugin is ours and every script ends by itself, however busy the machine is.
    settings.limits.build_timeout = Duration::from_hours(1);
    settings.limits.exec_timeout = Duration::from_hours(1);
    settings.pool.max_uses = 50;
    let stage = Stage::new(&settings);
    let plugin = wat::parse_str(interpreter()).expect("the interpreter is well formed");
    let evaluator = |isolation| {
        let spec = Spec::new(Source::bytes(plugin.clone())).isolation(isolation).config("colour", "blue");
        stage.pool.evaluator("kernel", spec).expect("a name that is one")
    };
    let (fresh, reused) = (evaluator(Isolation::Fresh), evaluator(Isolation::Reuse));
    Plugins { stage, fresh, reused }
});

fn kernel(input: &[u8]) {
    let script = script(input);
    let Plugins { stage, fresh, reused } = &*PLUGINS;
    let first = answer(stage, fresh, script.clone());
    let _ = answer(stage, reused, script.clone());
    let second = answer(stage, fresh, script);
    assert_eq!(first, second, "an instance that nobody has used knows something of another");
    let (runtimes, slots) = (stage.pool.runtimes(), stage.pool.slots());
    // One of `fresh` and one of `reuse` at rest, one more while it is made or given back: each of kernel and plugin.
    assert!(runtimes <= 2, "{runtimes} runtimes");
    assert!(slots.is_none_or(|slots| slots.live.instances <= 8), "{slots:?}");
}

type Answer = Result<Vec<u8>, (ErrorKind, String)>;

fn answer(stage: &Stage, evaluator: &Evaluator, script: Vec<u8>) -> Answer {
    let evaluator = evaluator.clone();
    let answer = stage.finish("a script", async move { evaluator.evaluate(script).await });
    match answer {
        Ok(response) => {
            assert!(response.bytes().len() as u64 <= OUTPUT, "output over its limit");
            Ok(response.bytes().to_vec())
        }
        Err(error) => {
            assert_plugins_fault(&error, &[GuestError, GuestTrap, OutOfMemory, OutputTooLarge]);
            Err((error.kind(), error.to_string()))
        }
    }
}

fn script(input: &[u8]) -> Vec<u8> {
    let mut script = Vec::new();
    let lines = input.split(|byte| b"\n;".contains(byte)).filter(|line| !line.trim_ascii().is_empty());
    for (at, line) in lines.take(MOST_STEPS).enumerate() {
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        script.push(function(words.next().unwrap_or_default()));
        for _ in 0..2 {
            let (register, number) = words.next().map_or((at, 0), |word| argument(word, at));
            script.push(u8::try_from(register).unwrap_or(0));
            script.extend(number.to_le_bytes());
        }
    }
    script
}

fn function(word: &[u8]) -> u8 {
    let names = || FUNCTIONS.iter().map(|(name, ..)| *name).chain(OWN.iter().map(|(name, _)| *name));
    let known = names().position(|name| name.as_bytes() == word);
    u8::try_from(known.unwrap_or_else(|| mixed(word) % names().count())).expect("there are few functions")
}

/// A register counted from 1 and a number, at a step that has `steps` before it.
fn argument(word: &[u8], steps: usize) -> (usize, i64) {
    let text = str::from_utf8(word).unwrap_or_default();
    if let Some(result) = text.strip_prefix('r') {
        let digits = result.find(['+', '-']).unwrap_or(result.len());
        let step = result[..digits].parse::<usize>().unwrap_or_else(|_| mixed(word));
        let register = if steps == 0 { 0 } else { step % steps + 1 };
        return (register, result[digits..].parse().unwrap_or(0));
    }
    (0, text.parse().unwrap_or_else(|_| NUMBERS[mixed(word) % NUMBERS.len()]))
}

/// A number that is another for other bytes, mostly.
fn mixed(bytes: &[u8]) -> usize {
    bytes.iter().fold(7, |sum: usize, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)))
}

/// The plugin: copies its input, since steps may change that, and then does one step after another.
fn interpreter() -> String {
    let (mut imports, mut steps, mut words) = (String::new(), String::new(), String::new());
    for (at, (name, params, result)) in FUNCTIONS.iter().enumerate() {
        let (of, gives) = (params.join(" "), result.map(|ty| format!("(result {ty})")).unwrap_or_default());
        let _ = writeln!(imports, r#"(import "extism:host/env" "{name}" (func ${name} (param {of}) {gives}))"#);
        let arguments = params.iter().zip(["$a", "$b"]).map(|(ty, local)| match *ty {
            "i32" => format!("(i32.wrap_i64 (local.get {local}))"),
            _ => format!("(local.get {local})"),
        });
        let call = format!("(call ${name} {})", arguments.collect::<Vec<_>>().join(" "));
        let call = match result {
            None => call,
            Some("i32") => format!("(local.set $r (i64.extend_i32_u {call}))"),
            Some(_) => format!("(local.set $r {call})"),
        };
        let _ = writeln!(steps, "(if (i32.eq (local.get $do) (i32.const {at})) (then {call}))");
    }
    for (at, (_, code)) in OWN.iter().enumerate() {
        let number = FUNCTIONS.len() + at;
        let _ = writeln!(steps, "(if (i32.eq (local.get $do) (i32.const {number})) (then {code}))");
    }
    for (at, word) in WORDS.iter().enumerate() {
        // Each in a row of 32 bytes, with its length in front.
        let length = wat_length(word);
        let _ = writeln!(words, r#"(data (i32.const {}) "\{length:02x}{word}")"#, 4096 + at * 32);
    }
    let (most, count) = (MOST_STEPS * STEP, WORDS.len());
    format!(
        r#"(module {imports}
            (memory (export "memory") 2 20)
            {words}
            (func $word (param $n i32) (result i64) (local $from i32) (local $length i64) (local $i i64) (local $p i64)
                (local.set $from (i32.add (i32.const 4096)
                    (i32.shl (i32.rem_u (local.get $n) (i32.const {count})) (i32.const 5))))
                (local.set $length (i64.extend_i32_u (i32.load8_u (local.get $from))))
                (local.set $p (call $alloc (local.get $length)))
                (loop $each
                    (local.set $i (i64.add (local.get $i) (i64.const 1)))
                    (call $store_u8 (i64.add (local.get $p) (i64.sub (local.get $i) (i64.const 1)))
                        (i32.load8_u (i32.add (local.get $from) (i32.wrap_i64 (local.get $i)))))
                    (br_if $each (i64.lt_u (local.get $i) (local.get $length))))
                (local.get $p))
            (func $argument (param $at i32) (result i64)
                (i64.add (i64.load offset=1 (local.get $at))
                    (i64.load (i32.shl (i32.load8_u (local.get $at)) (i32.const 3)))))
            (func (export "run") (result i32)
                (local $at i32) (local $end i32) (local $step i32) (local $do i32)
                (local $a i64) (local $b i64) (local $r i64)
                (local.set $end (i32.wrap_i64 (call $input_length)))
                (if (i32.gt_u (local.get $end) (i32.const {most})) (then unreachable))
                (block $copied (loop $each
                    (br_if $copied (i32.ge_u (local.get $at) (local.get $end)))
                    (i32.store8 offset=65536 (local.get $at) (call $input_load_u8 (i64.extend_i32_u (local.get $at))))
                    (local.set $at (i32.add (local.get $at) (i32.const 1)))
                    (br $each)))
                (local.set $at (i32.const 65536))
                (local.set $end (i32.add (local.get $end) (i32.const 65536)))
                (block $done (loop $each
                    (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
                    (local.set $do (i32.load8_u (local.get $at)))
                    (local.set $a (call $argument (i32.add (local.get $at) (i32.const 1))))
                    (local.set $b (call $argument (i32.add (local.get $at) (i32.const 10))))
                    (local.set $r (i64.const 0))
                    {steps}
                    (local.set $step (i32.add (local.get $step) (i32.const 1)))
                    ;; Register 0 stays 0.
                    (i64.store (i32.shl (local.get $step) (i32.const 3)) (local.get $r))
                    (local.set $at (i32.add (local.get $at) (i32.const {STEP})))
                    (br $each)))
                i32.const 0))"#
    )
}

/// Bytes of a text in which `\xx` is one.
fn wat_length(text: &str) -> usize {
    text.len() - 2 * text.matches('\\').count()
}
