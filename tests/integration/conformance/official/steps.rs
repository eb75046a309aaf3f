//! Plugins of straight lines: calls of the kernel's functions one after the other, whose results are the output.

use std::{fmt, fmt::Write};

use evalpool::{EvaluatorPool, Source, Spec};

use super::super::{Answer, IMPORTS, answers};
use crate::support::wasm;

/// Where in the plugin's own memory its results are, so that nothing that it does to the kernel's changes them.
const RESULTS: usize = 64;

/// What a call gave.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Step(usize);

impl Step {
    pub(in super::super) fn plus(self, more: u64) -> Arg {
        Arg(format!("(i64.add {} (i64.const {}))", Arg::from(self).0, more.cast_signed()))
    }

    pub(in super::super) fn minus(self, less: u64) -> Arg {
        self.plus(less.wrapping_neg())
    }
}

/// What a function is called with: a number, or what an earlier call gave.
pub(in super::super) struct Arg(String);

impl From<Step> for Arg {
    fn from(step: Step) -> Self {
        Self(format!("(i64.load (i32.const {}))", RESULTS + 8 * step.0))
    }
}

impl From<u64> for Arg {
    fn from(number: u64) -> Self {
        Self(format!("(i64.const {})", number.cast_signed()))
    }
}

/// A plugin in the making.
#[derive(Debug, Default)]
pub(in super::super) struct Steps {
    body: String,
    count: usize,
    expected: Vec<(Step, u64, String)>,
}

/// What the calls of a plugin gave.
#[derive(Debug, PartialEq)]
pub(in super::super) struct Results(Vec<u64>);

impl Results {
    pub(in super::super) fn of(&self, step: Step) -> u64 {
        self.0[step.0]
    }
}

impl Steps {
    fn line(&mut self, call: impl fmt::Display) {
        writeln!(self.body, "{call}").unwrap();
    }

    fn gives(&mut self, call: impl fmt::Display) -> Step {
        let step = Step(self.count);
        self.count += 1;
        let at = RESULTS + 8 * step.0;
        self.line(format_args!("(i64.store (i32.const {at}) {call})"));
        step
    }

    pub(in super::super) fn alloc(&mut self, length: u64) -> Step {
        self.ask("alloc", length)
    }

    pub(in super::super) fn free(&mut self, block: impl Into<Arg>) {
        self.line(format_args!("(call $free {})", block.into().0));
    }

    /// A function of one number that gives one, by its name in `imports.wat`.
    pub(in super::super) fn ask(&mut self, name: &str, of: impl Into<Arg>) -> Step {
        self.gives(format_args!("(call ${name} {})", of.into().0))
    }

    /// One without parameters.
    pub(in super::super) fn tell(&mut self, name: &str) -> Step {
        self.gives(format_args!("(call ${name})"))
    }

    /// `load8` or `input8`.
    pub(in super::super) fn byte(&mut self, name: &str, at: impl Into<Arg>) -> Step {
        self.gives(format_args!("(i64.extend_i32_u (call ${name} {}))", at.into().0))
    }

    pub(in super::super) fn store8(&mut self, at: impl Into<Arg>, byte: u8) {
        self.line(format_args!("(call $store8 {} (i32.const {byte}))", at.into().0));
    }

    pub(in super::super) fn store64(&mut self, at: impl Into<Arg>, word: u64) {
        self.line(format_args!("(call $store64 {} {})", at.into().0, Arg::from(word).0));
    }

    /// `input_set`, `output_set` or `var_set`.
    pub(in super::super) fn set(&mut self, name: &str, at: impl Into<Arg>, second: impl Into<Arg>) {
        self.line(format_args!("(call ${name} {} {})", at.into().0, second.into().0));
    }

    pub(in super::super) fn error_set(&mut self, block: impl Into<Arg>) {
        self.line(format_args!("(call $error_set {})", block.into().0));
    }

    pub(in super::super) fn reset(&mut self) {
        self.line("(call $reset)");
    }

    /// What a call must have given, on every engine.
    pub(in super::super) fn is(&mut self, step: Step, expected: u64) {
        let last = self.body.lines().last().unwrap_or_default().to_owned();
        self.expected.push((step, expected, last));
    }

    /// That the block has this length, by both functions that tell it.
    pub(in super::super) fn is_long(&mut self, block: Step, length: u64) {
        for name in ["length", "length_unsafe"] {
            let told = self.ask(name, block);
            self.is(told, length);
        }
    }

    pub(in super::super) fn spec(&self) -> Spec {
        let (body, count) = (&self.body, self.count);
        assert!(RESULTS + 8 * count < 65_536, "the plugin has one page for its results");
        Spec::new(Source::bytes(wasm(&format!(
            "(module {IMPORTS}
                (func (export \"run\") (result i32) (local $p i64) (local $i i32)
                    {body}
                    (call $error_set (i64.const 0))
                    (local.set $p (call $alloc (i64.const {bytes})))
                    (if (i32.const {count}) (then (loop $each
                        (call $store64 (i64.add (local.get $p) (i64.extend_i32_u (local.get $i)))
                            (i64.load offset={RESULTS} (local.get $i)))
                        (br_if $each (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 8))) (i32.const {bytes}))))))
                    (call $output_set (local.get $p) (i64.const {bytes}))
                    i32.const 0))",
            bytes = 8 * count,
        ))))
    }

    /// What it comes to in this pool: an error by its kind.
    pub(in super::super) async fn try_in(&self, pool: &EvaluatorPool, input: &[u8]) -> Result<Results, String> {
        let answer: Answer = answers(pool, self.spec(), &[input]).await.remove(0);
        let output = answer.map_err(|(kind, _)| kind)?;
        let results = Results(output.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect());
        for (step, expected, after) in &self.expected {
            assert_eq!(results.of(*step), *expected, "step {} of\n{}\nsaid after {after}", step.0, self.body);
        }
        Ok(results)
    }

    pub(in super::super) async fn run_in(&self, pool: &EvaluatorPool, input: &[u8]) -> Results {
        self.try_in(pool, input).await.unwrap_or_else(|kind| panic!("{kind} from\n{}", self.body))
    }
}
