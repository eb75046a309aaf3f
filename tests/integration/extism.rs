//! What is the `extism` engine's own: whom it takes, what its environment cannot turn on, and how its calls end.

use std::{
    fs,
    path::Path,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use evalpool::{CloseReport, EvaluatorPool, HostFunction, Isolation, PoolBuilder, Source, Spec, config::EngineKind};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::json;
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    service::program,
    support::{
        CALL_HOST, GREET, TEXT, builder, eventually, on_threads,
        process::{alone, forgetful_threads, settled},
        settings, wasm,
    },
};

const EXTISM: EngineKind = EngineKind::Extism;

fn greet() -> Spec {
    Spec::new(Source::bytes(GREET))
}

/// Spins for ever on empty input, and returns on any other.
fn spins() -> Spec {
    Spec::new(Source::bytes(wasm(
        r#"(module (import "extism:host/env" "input_length" (func $length (result i64)))
            (func (export "run") (if (i64.eqz (call $length)) (then (loop br 0)))))"#,
    )))
}

// ---- Whom it takes ---------------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_untrusted_plugin_is_refused_before_it_takes_a_place_or_is_compiled() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let pool = || EvaluatorPool::builder().engine_kind(EXTISM).capacity(1).build();
    let pool = metrics::with_local_recorder(&recorder, pool).unwrap();
    let trusted = pool.evaluator("trusted", greet().trusted(true)).unwrap();
    trusted.evaluate(json!({"name": "Ada"})).await.unwrap();
    for spec in [greet(), greet().trusted(false)] {
        let error = pool.evaluator("stranger", spec).unwrap().evaluate("x").await.unwrap_err();
        assert_eq!(error.kind(), "invalid_request");
        assert_eq!(
            error.to_string(),
            "the extism engine cannot contain a hostile plugin and takes trusted ones only: set engine.trusted = true \
             (--trusted on the command line) or Spec::trusted(true), or choose the direct engine"
        );
    }
    let rendered = metrics.render();
    for line in [
        r#"evalpool_build_seconds_count{phase="compile"} 1"#,
        r#"evalpool_evictions_total{reason="capacity"} 0"#,
        r#"evalpool_runtimes_live{state="live"} 1"#,
    ] {
        assert!(rendered.contains(line), "{line} is not in\n{rendered}");
    }
    pool.close().await;
}

#[tokio::test]
async fn a_spec_that_is_not_trusted_is_refused_where_all_others_are() {
    let pool = builder(EXTISM).build().unwrap();
    let stranger = pool.evaluator("stranger", greet().trusted(false)).unwrap();
    assert_eq!(stranger.evaluate("x").await.unwrap_err().kind(), "invalid_request");
    pool.close().await;
}

#[cfg(not(feature = "extism-http"))]
#[tokio::test]
async fn without_its_http_client_allowed_hosts_are_refused_and_the_feature_is_named() {
    let pool = builder(EXTISM).build().unwrap();
    let spec = greet().allowed_hosts(["example.org"]);
    let error = pool.evaluator("reaches-out", spec).unwrap().evaluate("x").await.unwrap_err();
    assert_eq!(error.kind(), "invalid_request");
    assert!(error.to_string().contains("extism-http"), "{error}");
    pool.close().await;
    let mut settings = settings(EXTISM);
    settings.engine.allowed_hosts = vec!["example.org".to_owned()];
    let error = EvaluatorPool::from_settings(&settings).unwrap_err().to_string();
    assert!(error.starts_with("engine.kind is extism: ") && error.contains("extism-http"), "{error}");
}

// ---- The program, and its environment --------------------------------------------------------------------------------

/// Runs the program in `folder`, with these variables.
fn run(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let variables = variables.iter().copied();
    program().args(arguments).args(["--engine", "extism"]).envs(variables).current_dir(folder).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_plugin_is_trusted_by_a_flag_of_each_command_that_runs_one() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("text.wasm"), TEXT).unwrap();
    let load = ["load", "--plugin", "text.wasm", "--duration", "4s", "--tenants", "2"];
    for command in [&["run", "text.wasm"][..], &["check", "text.wasm"], &load] {
        let arguments = [command, &["--entry", "upper"]].concat();
        let refused = run(folder.path(), &arguments, &[]);
        let stderr = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{command:?}: {stderr}");
        assert!(stderr.starts_with("error: invalid_request ") || stderr.contains("--trusted"), "{command:?}: {stderr}");
        let taken = run(folder.path(), &[&arguments[..], &["--trusted"]].concat(), &[]);
        assert_eq!(taken.status.code(), Some(0), "{command:?}: {}", text(&taken.stderr));
    }
}

#[test]
fn with_guests_output_turned_on_the_engine_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("text.wasm"), TEXT).unwrap();
    let arguments = ["run", "text.wasm", "--entry", "upper", "--input", "a", "--trusted"];
    let output = run(folder.path(), &arguments, &[("EXTISM_ENABLE_WASI_OUTPUT", "1")]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("EXTISM_ENABLE_WASI_OUTPUT") && stderr.lines().count() == 1, "{stderr}");
}

#[test]
fn what_extism_reads_from_the_environment_changes_nothing_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let trap = r#"(module (memory (export "memory") 1) (func (export "run") unreachable))"#;
    fs::write(path("trap.wasm"), wasm(trap)).unwrap();
    fs::write(path("text.wasm"), TEXT).unwrap();
    fs::write(path("cache.toml"), format!("[cache]\ndirectory = {:?}\n", path("cache"))).unwrap();
    let files = || {
        let entries = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let before = files();
    for arguments in [&["run", "trap.wasm"][..], &["run", "text.wasm", "--entry", "upper", "--input", "a"]] {
        let arguments = [arguments, &["--trusted"]].concat();
        let plain = run(folder.path(), &arguments, &[]);
        for profile in ["perf", "jitdump", "vtune"] {
            let variables = [
                ("EXTISM_DEBUG", "1".to_owned()),
                ("EXTISM_COREDUMP", path("core")),
                ("EXTISM_MEMDUMP", path("memory")),
                ("EXTISM_PROFILE", profile.to_owned()),
                ("EXTISM_CACHE_CONFIG", path("cache.toml")),
                ("HOME", path("home")),
                ("TMPDIR", path("tmp")),
            ];
            let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!(run(folder.path(), &arguments, &variables), plain, "{arguments:?}");
            assert_eq!(files(), before, "{arguments:?}");
        }
    }
}

// ---- How calls end ---------------------------------------------------------------------------------------------------

#[test]
fn a_call_that_is_left_ends_however_early() {
    on_threads(async {
        let mut settings = settings(EXTISM);
        settings.limits.exec_timeout = Duration::from_hours(1);
        settings.pool.max_instances_per_evaluator = 4;
        let pool = EvaluatorPool::from_settings(&settings).unwrap();
        let evaluator = pool.evaluator("spins", spins()).unwrap();
        evaluator.evaluate("x").await.unwrap();
        for round in 0..40 {
            let left = evaluator.evaluate("");
            timeout(Duration::from_micros(round * 100), left).await.expect_err("it never ends by itself");
        }
        // Each place of an instance has come back: otherwise this would wait for one.
        evaluator.evaluate("x").await.unwrap();
        assert_eq!(pool.close().await, CloseReport::Drained);
        assert_eq!(pool.runtimes(), 0);
    });
}

#[test]
fn a_deadline_or_a_cancel_leaves_a_sibling_in_the_middle_of_its_call_alone() {
    on_threads(async {
        // Siblings have the same. The one that is to be late begins half of it before the one that is not.
        let lasts = Duration::from_secs(4);
        let pool = builder(EXTISM).max_instances_per_evaluator(4).build().unwrap();
        let (inside, leave) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let (entered, may_leave) = (inside.clone(), leave.clone());
        let stay = HostFunction::bytes_async("stay", move |input| {
            let (entered, may_leave) = (entered.clone(), may_leave.clone());
            async move {
                entered.fetch_add(1, Ordering::SeqCst);
                let _ = may_leave.acquire().await;
                Ok(input)
            }
        });
        let text = r#"(module
            (import "extism:host/env" "input_length" (func $length (result i64)))
            (import "extism:host/user" "stay" (func $stay (param i64) (result i64)))
            (func (export "run")
                (if (i64.eqz (call $length)) (then (loop br 0)))
                (drop (call $stay (i64.const 0)))))"#;
        let spec = Spec::new(Source::bytes(wasm(text))).host_function(stay).exec_timeout(lasts);
        let evaluator = pool.evaluator("siblings", spec).unwrap();
        let begin = |input: &'static str| {
            let evaluator = evaluator.clone();
            tokio::spawn(async move { evaluator.evaluate(input).await })
        };
        let late = begin("");
        sleep(lasts / 2).await;
        let sibling = begin("x");
        eventually("the sibling is inside", || inside.load(Ordering::SeqCst) == 1).await;
        timeout(Duration::from_millis(100), evaluator.evaluate("")).await.expect_err("it never ends by itself");
        assert_eq!(late.await.unwrap().unwrap_err().kind(), "exec_timeout");
        leave.add_permits(1);
        sibling.await.unwrap().expect("nobody interrupts it");
        assert_eq!(pool.close().await, CloseReport::Drained);
    });
}

#[test]
fn after_a_burst_and_a_close_everything_is_given_back() {
    if !alone("extism::after_a_burst_and_a_close_everything_is_given_back") {
        return;
    }
    forgetful_threads().block_on(async {
        let burst = async || {
            let mut settings = settings(EXTISM);
            settings.pool.max_instances_per_evaluator = 8;
            let pool = PoolBuilder::from(settings).background(Handle::current()).build().unwrap();
            let upper = HostFunction::bytes("host_upper", |input| Ok(input.to_ascii_uppercase()));
            let spec = Spec::new(Source::bytes(CALL_HOST)).entry_point("call_host").host_function(upper);
            let evaluator = pool.evaluator("burst", spec.isolation(Isolation::Reuse)).unwrap();
            let mut calls = JoinSet::new();
            for _ in 0..32 {
                let evaluator = evaluator.clone();
                calls.spawn(async move { evaluator.evaluate("x").await.map(drop) });
            }
            for ended in calls.join_all().await {
                ended.unwrap();
            }
            pool.close().await;
            assert_eq!(pool.runtimes(), 0);
            settled().await
        };
        burst().await;
        let warm = burst().await;
        assert_eq!(burst().await, warm);
    });
}
