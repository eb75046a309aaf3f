//! What a guest wrote and where it was when it failed: to the caller, in bounds, and to nobody else.

use std::time::Duration;

use evalpool::{
    Error, Evaluator, EvaluatorPool, Isolation, LastWords, Source, Spec,
    config::{EngineKind, Settings},
};
use serde_json::json;

use crate::support::{CRASH, GREET, PANICS, START_TRAPS, TEXT, builder, on_threads, settings, wasm};

fn pool() -> EvaluatorPool {
    builder(EngineKind::Direct).build().unwrap()
}

fn spec(bytes: &'static [u8], entry_point: &str) -> Spec {
    Spec::new(Source::bytes(bytes)).entry_point(entry_point)
}

/// How an evaluation failed, and what the guest left behind.
async fn failure(spec: Spec, input: &'static str) -> (String, LastWords) {
    let error = pool().evaluator("failing", spec).unwrap().evaluate(input).await.unwrap_err();
    (error.kind().to_string(), error.last_words().cloned().unwrap_or_default())
}

/// The names in a stack, without their offsets.
fn names(words: &LastWords) -> Vec<&str> {
    words.stack().iter().map(|line| line.split_once(" - ").unwrap_or_else(|| panic!("{words}")).1).collect()
}

#[tokio::test]
async fn a_panic_in_rust_shows_its_message_and_its_place() {
    let (kind, words) = failure(spec(PANICS, "last"), "").await;
    assert_eq!(kind, "guest_trap");
    assert!(words.stderr().contains("panicked at") && words.stderr().contains("an empty order"), "{words}");
    assert_eq!(words.stdout(), "looking at \"\"\n");
    let names = names(&words);
    assert!(names.contains(&"panics::orders::last") && names.last() == Some(&"last.command_export"), "{words}");
    for path in ["/root", "/home", "/usr", "/tmp", "/work"] {
        assert!(!words.to_string().contains(path), "{path} in {words}");
    }
}

#[tokio::test]
async fn a_trap_in_c_shows_what_it_wrote_and_its_place() {
    let (kind, words) = failure(spec(CRASH, "crash"), "17").await;
    assert_eq!((kind.as_str(), words.stderr(), words.stdout()), ("guest_trap", "no such order: 17\n", ""));
    assert_eq!(names(&words), ["give_up", "check_order", "crash"]);
    let (kind, words) = failure(spec(CRASH, "leave"), "").await;
    assert_eq!((kind.as_str(), words.stderr()), ("guest_exit", "leaving\n"));
    assert_eq!(names(&words), ["leave"]);
}

#[tokio::test]
async fn a_trap_shows_names_or_numbers_and_the_way_there() {
    let text = "(func $inner unreachable) (func $outer (call $inner)) (func (export \"run\") (call $outer))";
    let (kind, words) = failure(Spec::new(Source::bytes(wasm(&format!("(module {text})")))), "").await;
    assert_eq!((kind.as_str(), words.stderr(), words.stdout()), ("guest_trap", "", ""));
    assert_eq!(names(&words), ["inner", "outer", "function 2"]);
    assert!(words.stack().iter().all(|line| line.starts_with("0x")), "{words}");
    // One that recurses without end shows the innermost functions, and only those.
    let recurses = r#"(module (func $again (export "run") (call $again)))"#;
    let (kind, words) = failure(Spec::new(Source::bytes(wasm(recurses))), "").await;
    assert_eq!((kind.as_str(), words.stack().len()), ("guest_trap", 32));
}

#[tokio::test]
async fn a_guest_that_runs_too_long_shows_what_it_wrote_before() {
    let spec = spec(CRASH, "hang").exec_timeout(Duration::from_millis(200));
    let (kind, words) = failure(spec, "").await;
    assert_eq!((kind.as_str(), words.stderr()), ("exec_timeout", "waiting\n"));
}

#[tokio::test]
async fn an_initialiser_that_fails_shows_what_it_wrote_and_its_place() {
    let (kind, words) = failure(Spec::new(Source::bytes(wasm(START_TRAPS))), "").await;
    assert_eq!((kind.as_str(), words.stderr()), ("invalid_plugin", "starting\n"));
    assert_eq!(names(&words), ["begin"]);
}

#[tokio::test]
async fn of_much_the_beginning_and_the_end_are_kept() {
    let (_, words) = failure(spec(CRASH, "chatter"), "over").await;
    let written = "first\n".len() + 64 * 1024 + "last: over\n".len();
    assert!(words.stderr().starts_with("first\n..") && words.stderr().ends_with("..last: over\n"));
    let left_out = written - 16 * 1024;
    assert!(words.stderr().contains(&format!("\n… {left_out} bytes are left out …\n")), "{}", words.stderr());
    assert!(words.stderr().len() < 16 * 1024 + 64, "{}", words.stderr().len());
}

async fn written(evaluator: &Evaluator, input: &'static str) -> Option<(String, String)> {
    let response = evaluator.evaluate(input).await.unwrap();
    response.written().map(|words| (words.stdout().to_owned(), words.stderr().to_owned()))
}

#[tokio::test]
async fn what_one_evaluation_writes_is_not_the_next_ones() {
    let pool = pool();
    for isolation in [Isolation::Fresh, Isolation::Reuse] {
        let say = pool.evaluator("say", spec(CRASH, "say").isolation(isolation)).unwrap();
        for name in ["Ada", "Bo", ""] {
            let said = Some((format!("out: {name}\n"), format!("err: {name}\n")));
            assert_eq!(written(&say, name).await, said, "{isolation:?}");
        }
    }
    // A guest that writes nothing leaves nothing, whether it fails or not.
    let upper = pool.evaluator("upper", spec(TEXT, "upper").isolation(Isolation::Reuse)).unwrap();
    assert_eq!(written(&upper, "a").await, None);
    let fail = pool.evaluator("fail", spec(TEXT, "fail")).unwrap();
    assert!(fail.evaluate("a").await.unwrap_err().last_words().is_none());
    let greet = pool.evaluator("greet", spec(GREET, "greet")).unwrap();
    assert!(greet.evaluate(json!({"name": "Ada"})).await.unwrap().written().is_none());
}

#[test]
fn nobody_sees_what_another_writes() {
    on_threads(async {
        let mut settings: Settings = settings(EngineKind::Direct);
        settings.pool.max_instances_per_evaluator = 4;
        let pool = EvaluatorPool::from_settings(&settings).unwrap();
        let tasks = ["one", "two", "three", "four"].map(|name| {
            let spec = |entry_point| spec(CRASH, entry_point).isolation(Isolation::Reuse);
            let (say, crash) =
                (pool.evaluator(name, spec("say")).unwrap(), pool.evaluator(name, spec("crash")).unwrap());
            tokio::spawn(async move {
                for _ in 0..200 {
                    let expected = (format!("out: {name}\n"), format!("err: {name}\n"));
                    assert_eq!(written(&say, name).await, Some(expected));
                    let error: Error = crash.evaluate(name).await.unwrap_err();
                    assert_eq!(error.last_words().unwrap().stderr(), format!("no such order: {name}\n"));
                }
            })
        });
        for task in tasks {
            task.await.unwrap();
        }
    });
}
