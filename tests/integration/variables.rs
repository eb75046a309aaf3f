//! Extism's variables: as long as an instance lives, or kept for the evaluator.

use std::{sync::Arc, time::Duration};

use evalpool::{
    Evaluator, EvaluatorPool, HostFunction, Isolation, Source, Spec, Vars,
    config::{EngineKind, LimitSettings},
};
use tokio::sync::Notify;

use crate::{
    conformance::IMPORTS,
    program::{Folder, printed, refusal, run},
    support::{ENGINES, GREET, WORDS, builder, patient, settings, wasm},
};

const BOTH: [Isolation; 2] = [Isolation::Fresh, Isolation::Reuse];

/// Does what the first byte of its input says to the variables `colour` and `shape`, which it sets to its whole input.
const ACTS: &str = r#"
    (func (export "run") (result i32) (local $what i32)
        (local.set $what (call $input8 (i64.const 0)))
        (if (i32.eq (local.get $what) (i32.const 0x63 (; c ;))) (then (call $set_colour)))
        (if (i32.eq (local.get $what) (i32.const 0x73 (; s ;))) (then (call $set_shape)))
        (if (i32.eq (local.get $what) (i32.const 0x72 (; r ;))) (then (call $var_set (call $colour) (i64.const 0))))
        (if (i32.eq (local.get $what) (i32.const 0x74 (; t ;))) (then (call $set_colour) unreachable))
        (if (i32.eq (local.get $what) (i32.const 0x6c (; l ;))) (then (call $set_colour) (loop (br 0))))
        (if (i32.eq (local.get $what) (i32.const 0x65 (; e ;))) (then (call $set_colour) (call $error_set (call $message))))
        (if (i32.eq (local.get $what) (i32.const 0x77 (; w ;))) (then (call $set_colour) (call $wait)))
        (if (i32.eq (local.get $what) (i32.const 0x76 (; v ;))) (then (call $set_shape) (call $wait)))
        (if (i32.eq (local.get $what) (i32.const 0x78 (; x ;))) (then (call $wait)))
        (call $block (call $var_get (if (result i64) (i32.eq (local.get $what) (i32.const 0x47 (; G ;)))
            (then (call $shape)) (else (call $colour)))))
        i32.const 0)
    (func $set_colour (call $var_set (call $colour) (call $copy)))
    (func $set_shape (call $var_set (call $shape) (call $copy)))
    (func $copy (result i64) (call $echo) (call $output_offset))
    (func $wait (drop (call $meet (call $digits))))"#;

/// That plugin, with more functions if need be, whose waiting guests tell by the first and are let go by the second.
fn acts(more: &str) -> (Spec, Arc<Notify>, Arc<Notify>) {
    let import = r#"(import "extism:host/user" "meet" (func $meet (param i64) (result i64)))"#;
    let (met, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (meets, goes) = (met.clone(), go.clone());
    let waits = HostFunction::bytes_async("meet", move |_| {
        let (met, go) = (meets.clone(), goes.clone());
        async move {
            met.notify_one();
            go.notified().await;
            Ok(Vec::new())
        }
    });
    let spec = Spec::new(Source::bytes(wasm(&format!("(module {import} {IMPORTS} {ACTS} {more})"))));
    (spec.vars(Vars::Kept).host_function(waits), met, go)
}

fn pool() -> EvaluatorPool {
    builder(EngineKind::Direct).capacity(1).max_instances(4).build().unwrap()
}

/// The output, or the kind of the error.
async fn call(evaluator: &Evaluator, input: impl Into<Vec<u8>>) -> String {
    let answer = evaluator.evaluate(input.into()).await;
    answer.map_or_else(|error| error.kind().to_string(), |response| response.text().unwrap().to_owned())
}

#[tokio::test]
async fn kept_variables_are_seen_by_each_later_evaluation_in_both_isolations() {
    let pool = pool();
    for isolation in BOTH {
        let spec = Spec::bytes(WORDS).entry_point("remember").isolation(isolation);
        let kept = pool.evaluator("kept", spec.clone().vars(Vars::Kept)).unwrap();
        let other = pool.evaluator("other", spec.clone().vars(Vars::Kept)).unwrap();
        // One place: each call evicts the other's runtime, and finds its own variables in a new one.
        for (input, output) in [("one ", "one "), ("two ", "one two "), ("three", "one two three")] {
            assert_eq!(call(&kept, input).await, output);
            assert_eq!(call(&other, input).await, output, "each evaluator has its own");
        }
        kept.unload().await;
        assert_eq!(call(&kept, "").await, "one two three");
        let fresh = pool.evaluator("fresh", spec).unwrap();
        assert_eq!(call(&fresh, "one").await, "one");
        let again = if isolation == Isolation::Fresh { "two" } else { "onetwo" };
        assert_eq!(call(&fresh, "two").await, again);
    }
    pool.close().await;
}

#[tokio::test]
async fn a_new_revision_begins_without_variables() {
    let pool = pool();
    let spec = || acts("").0;
    let evaluator = pool.register("replaced", spec()).unwrap();
    assert_eq!(call(&evaluator, "c1").await, "c1");
    assert_eq!(call(&evaluator, "g").await, "c1");
    let _ = pool.register("replaced", spec().config("colour", "blue")).unwrap();
    assert_eq!(call(&evaluator, "g").await, "");
    pool.close().await;
}

#[tokio::test]
async fn an_evaluation_whose_guest_does_not_return_writes_nothing() {
    let limits = LimitSettings { exec_timeout: Duration::from_millis(60), ..patient() };
    let pool = builder(EngineKind::Direct).capacity(1).max_instances(4).limits(limits).build().unwrap();
    for isolation in BOTH {
        let (spec, met, _) = acts("");
        let evaluator = pool.evaluator("fails", spec.isolation(isolation)).unwrap();
        // On a busy machine a short call may take longer than what is to end by its deadline may.
        let call = async |input: &str| loop {
            let said = call(&evaluator, input).await;
            if said != "exec_timeout" || input.starts_with('l') {
                return said;
            }
        };
        assert_eq!(call("c1").await, "c1");
        assert_eq!(call("t2").await, "guest_trap");
        assert_eq!(call("l3").await, "exec_timeout");
        tokio::select! {
            biased;
            _ = evaluator.evaluate("w4") => panic!("it waits"),
            () = met.notified() => {}
        }
        assert_eq!(call("g").await, "c1", "{isolation:?}");
        // One that returns has ended, whatever it reports.
        assert_eq!(call("e5").await, "guest_error");
        assert_eq!(call("g").await, "e5", "{isolation:?}");
        assert_eq!(call("r").await, "");
        assert_eq!(call("g").await, "", "{isolation:?}");
    }
    pool.close().await;
}

#[tokio::test]
async fn of_writers_at_once_the_last_to_end_wins_each_variable() {
    let pool = pool();
    for isolation in BOTH {
        let (spec, met, go) = acts("");
        let evaluator = pool.evaluator("writers", spec.isolation(isolation)).unwrap();
        let begin = |input: &'static str| {
            let evaluator = evaluator.clone();
            tokio::spawn(async move { call(&evaluator, input).await })
        };
        // It began first and ends last.
        let slow = begin("w-slow");
        met.notified().await;
        assert_eq!(call(&evaluator, "c-quick").await, "c-quick");
        assert_eq!(call(&evaluator, "g").await, "c-quick");
        go.notify_one();
        assert_eq!(slow.await.unwrap(), "w-slow", "it reads what it wrote");
        assert_eq!(call(&evaluator, "g").await, "w-slow", "{isolation:?}");

        // It writes another variable, and takes nothing back that was written meanwhile.
        let slow = begin("v-shape");
        met.notified().await;
        assert_eq!(call(&evaluator, "c-colour").await, "c-colour");
        go.notify_one();
        assert_eq!(slow.await.unwrap(), "w-slow", "it reads what there was when it began");
        assert_eq!(call(&evaluator, "g").await, "c-colour", "{isolation:?}");
        assert_eq!(call(&evaluator, "G").await, "v-shape", "{isolation:?}");

        // It writes nothing, and neither does it change anything.
        let slow = begin("x");
        met.notified().await;
        assert_eq!(call(&evaluator, "r").await, "");
        go.notify_one();
        slow.await.unwrap();
        assert_eq!(call(&evaluator, "g").await, "", "{isolation:?}");
    }
    pool.close().await;
}

#[test]
fn many_writers_on_threads_leave_what_one_of_them_wrote() {
    crate::support::on_threads(async {
        let pool = builder(EngineKind::Direct).capacity(2).max_instances(8).build().unwrap();
        for isolation in BOTH {
            let (spec, ..) = acts("");
            let evaluator = pool.evaluator("many", spec.isolation(isolation)).unwrap();
            let writers = (0..8).map(|writer| {
                let evaluator = evaluator.clone();
                tokio::spawn(async move {
                    for at in 0..50 {
                        let input = format!("c{writer}-{at}");
                        assert_eq!(call(&evaluator, &*input).await, input);
                    }
                })
            });
            for writer in writers.collect::<Vec<_>>() {
                writer.await.unwrap();
            }
            let left = call(&evaluator, "g").await;
            assert!(left.starts_with('c') && left.ends_with("-49"), "{left}");
        }
        pool.close().await;
    });
}

/// 1 MiB, as for one instance.
#[tokio::test]
async fn kept_variables_are_bounded_together() {
    let pool = pool();
    let large = |first: &str| format!("{first}{}", "-".repeat(600_000));
    for isolation in BOTH {
        let (spec, met, go) = acts("");
        let evaluator = pool.evaluator("bounded", spec.isolation(isolation)).unwrap();
        assert_eq!(call(&evaluator, large("c")).await.len(), 600_001);
        assert_eq!(call(&evaluator, large("s")).await, "guest_error");
        assert_eq!(call(&evaluator, "r").await, "");
        // Each fits by itself.
        let slow = tokio::spawn({
            let evaluator = evaluator.clone();
            async move { evaluator.evaluate(large("v")).await }
        });
        met.notified().await;
        assert_eq!(call(&evaluator, large("c")).await.len(), 600_001);
        go.notify_one();
        let error = slow.await.unwrap().unwrap_err();
        assert!(error.kind() == "guest_error" && error.to_string().contains("Variable store is full"), "{error}");
        assert_eq!(call(&evaluator, "G").await, "", "{isolation:?}");
        assert_eq!(call(&evaluator, "g").await.len(), 600_001, "{isolation:?}");
    }
    pool.close().await;
}

/// What one evaluator lets go, another may take.
#[tokio::test]
async fn kept_variables_of_all_evaluators_are_bounded_by_a_setting() {
    let mut settings = settings(EngineKind::Direct);
    settings.engine.vars_size = 1_000_000;
    let pool = EvaluatorPool::from_settings(&settings).unwrap();
    let large = format!("c{}", "-".repeat(600_000));
    for isolation in BOTH {
        let [first, second, third] =
            ["first", "second", "third"].map(|name| pool.evaluator(name, acts("").0.isolation(isolation)).unwrap());
        assert_eq!(call(&first, &*large).await.len(), 600_001);
        assert_eq!(call(&second, &*large).await, "saturated");
        assert_eq!(call(&second, "g").await, "", "it wrote nothing");
        assert_eq!(call(&second, "c").await, "c", "what fits is kept");
        assert_eq!(call(&first, "r").await, "");
        assert_eq!(call(&second, &*large).await.len(), 600_001);
        assert_eq!(call(&third, &*large).await, "saturated");
        second.close().await;
        drop(second);
        assert_eq!(call(&third, &*large).await.len(), 600_001);
        third.close().await;
    }
    pool.close().await;
}

#[tokio::test]
async fn what_initialisers_set_is_seen_where_nothing_is_kept() {
    let pool = pool();
    for isolation in BOTH {
        let start = "(func $begin (call $var_set (call $colour) (call $digits))) (start $begin)";
        let evaluator = pool.evaluator("begins", acts(start).0.isolation(isolation)).unwrap();
        for (input, output) in
            [("g", "0123456789"), ("s1", "0123456789"), ("c1", "c1"), ("g", "c1"), ("r", ""), ("g", "0123456789")]
        {
            assert_eq!(call(&evaluator, input).await, output, "{isolation:?} {input}");
        }
        evaluator.unload().await;
        assert_eq!(call(&evaluator, "G").await, "s1", "{isolation:?}");
    }
    pool.close().await;
}

#[tokio::test]
async fn an_engine_that_cannot_keep_variables_says_so() {
    for engine in ENGINES {
        let pool = builder(engine).capacity(1).build().unwrap();
        let spec = Spec::bytes(GREET).vars(Vars::Kept);
        let error = pool.prepare("kept", spec).await.err().map(|error| (error.kind().to_string(), error.to_string()));
        let mut settings = settings(engine);
        settings.engine.vars = Vars::Kept;
        let built = EvaluatorPool::from_settings(&settings).map_err(|error| error.to_string());
        if engine == EngineKind::Extism {
            let (kind, said) = error.unwrap();
            assert!(kind == "invalid_request" && said.contains("choose the direct engine"), "{said}");
            assert!(built.unwrap_err().contains("choose the direct engine"));
            continue;
        }
        assert_eq!(error, None);
        // What a spec says wins.
        let built = built.unwrap();
        let spec = Spec::bytes(WORDS).entry_point("remember");
        let fresh = built.evaluator("fresh", spec.clone().vars(Vars::Fresh)).unwrap();
        let kept = built.evaluator("kept", spec).unwrap();
        for (input, fresh_says, kept_says) in [("1", "1", "1"), ("2", "2", "12")] {
            assert_eq!(call(&fresh, input).await, fresh_says);
            assert_eq!(call(&kept, input).await, kept_says);
        }
        pool.close().await;
    }
}

#[test]
fn the_command_line_says_whether_variables_are_kept() {
    let folder = Folder::new();
    let words = folder.file("words.wasm", WORDS);
    let call = ["run", &words, "--entry", "remember", "--input", "one", "--vars"];
    assert_eq!(printed(&run(&[&call[..], &["kept"]].concat())), "one");
    assert!(refusal(&run(&[&call[..], &["shared"]].concat()), 2).contains("'--vars <fresh|kept>'"));
    let line = refusal(&run(&[&call[..], &["kept", "--engine", "extism", "--trusted"]].concat()), 1);
    assert!(line.starts_with("invalid_request: "), "{line}");
}
