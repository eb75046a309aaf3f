//! Both engines give the same answers: output, or kind and message, case by case on the same bytes. Where they are meant
//! to differ, the case says how, and the `direct` engine's documentation why.

mod cases;
mod differences;
pub(crate) mod http;
mod official;
mod random;

use evalpool::{
    EvaluatorPool, Source, Spec,
    config::{EngineKind, LimitSettings},
};

use crate::support::{builder, patient, wasm};

/// What an evaluation came to: its output, or its error's kind and text.
type Answer = Result<Vec<u8>, (String, String)>;

fn pool(engine: EngineKind) -> EvaluatorPool {
    let limits = LimitSettings { memory: 48 << 20, ..patient() };
    builder(engine).capacity(2).max_instances(4).limits(limits).build().unwrap()
}

/// The answers to each input in turn, by one evaluator.
async fn answers(pool: &EvaluatorPool, spec: Spec, inputs: &[&[u8]]) -> Vec<Answer> {
    let evaluator = pool.evaluator("case", spec).unwrap();
    let mut answers = Vec::new();
    for input in inputs {
        let answer = evaluator.evaluate(input.to_vec()).await;
        answers.push(match answer {
            Ok(response) => Ok(response.bytes().to_vec()),
            Err(error) => Err((error.kind().to_string(), error.to_string())),
        });
    }
    evaluator.close().await;
    answers
}

/// What a case must come to on both engines.
enum Expected {
    Output(&'static [u8]),
    /// A kind, and a part of the message.
    Error(&'static str, &'static str),
    /// Whatever it is, the same.
    Same,
}

use Expected::{Error, Output, Same};

struct Case {
    name: &'static str,
    spec: Spec,
    /// One evaluator answers them in turn; what is expected is the last answer.
    inputs: Vec<Vec<u8>>,
    expected: Expected,
}

fn case(name: &'static str, spec: Spec, input: impl Into<Vec<u8>>, expected: Expected) -> Case {
    Case { name, spec, inputs: vec![input.into()], expected }
}

fn fixture(bytes: &'static [u8], entry_point: &str) -> Spec {
    Spec::new(Source::bytes(bytes)).entry_point(entry_point)
}

/// A plugin of a few lines, with everything that Extism provides at hand. `out` gives the 8 bytes of a number as
/// output; `text` makes a block of a data segment.
fn env(body: &str) -> Spec {
    with_functions("", body)
}

fn with_functions(functions: &str, body: &str) -> Spec {
    Spec::new(Source::bytes(wasm(&format!(
        "(module {IMPORTS} {functions} (func (export \"run\") (result i32) {body}))"
    ))))
}

/// Everything that `extism:host/env` has, and a few functions over it.
pub(crate) const IMPORTS: &str = include_str!("../support/imports.wat");

#[tokio::test]
async fn both_engines_give_the_same_answers() {
    let cases = cases::all();
    assert!(cases.len() >= 60, "{}", cases.len());
    let (extism, direct) = (pool(EngineKind::Extism), pool(EngineKind::Direct));
    let mut wrong = Vec::new();
    for Case { name, spec, inputs, expected } in cases {
        let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
        let theirs = answers(&extism, spec.clone(), &inputs).await;
        let ours = answers(&direct, spec, &inputs).await;
        let is_expected = match (expected, ours.last().unwrap()) {
            (Same, _) => true,
            (Output(output), Ok(given)) => given == output,
            (Error(kind, part), Err((given, text))) => given == kind && text.contains(part),
            _ => false,
        };
        // The words of a refusal are each engine's own; its kind is not.
        let bare = |answers: &[Answer]| -> Vec<Answer> {
            let bare = |answer: &Answer| match answer {
                Err((kind, _)) if kind == "invalid_plugin" => Err((kind.clone(), String::new())),
                answer => answer.clone(),
            };
            answers.iter().map(bare).collect()
        };
        if !is_expected || bare(&ours) != bare(&theirs) {
            wrong.push(format!(
                "{name}:\n    extism {:.300}\n    direct {:.300}",
                format!("{theirs:?}"),
                format!("{ours:?}")
            ));
        }
    }
    extism.close().await;
    direct.close().await;
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}
