//! Settings: a TOML text, and after a line `---` variables of the environment, `NAME=value` each line.
//!
//! What is accepted must be within its range, and make a pool that answers.

#![cfg_attr(fuzzing, no_main)]

use std::{sync::LazyLock, time::Duration};

use evalpool::{
    Error, ErrorKind, LastWords, PoolBuilder, Settings, Source, Spec,
    engine::{BoxFuture, CompileRequest, CompiledPlugin, Engine},
};
use evalpool_fuzz::{fuzz, split};
use tokio::runtime::{Builder, Runtime};

fuzz!(settings);

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads"));

fn settings(input: &[u8]) {
    let (text, environment) = split(input);
    let (text, environment) = (String::from_utf8_lossy(text), String::from_utf8_lossy(environment));
    let environment = environment.lines().filter_map(|line| line.split_once('='));
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    match Settings::parse("fuzz.toml", &text, environment) {
        Ok(settings) => {
            assert_in_range(&settings);
            RUNTIME.block_on(assert_usable(&settings));
        }
        Err(error) => {
            let said = error.to_string();
            assert!(!said.trim().is_empty() && said.lines().count() == 1, "not one line: {said:?}");
        }
    }
}

/// As documented, and not by [`Settings::validate`], which is what is tried.
fn assert_in_range(settings: &Settings) {
    let Settings { pool, limits, service, .. } = settings;
    let bounded = 1..=1_000_000;
    assert!(pool.capacity >= 1 && pool.capacity <= pool.max_instances, "{pool:?}");
    for count in [pool.max_instances, pool.max_instances_per_evaluator, pool.build_concurrency, service.max_connections]
    {
        assert!(bounded.contains(&count), "{settings:?}");
    }
    assert!(pool.max_uses >= 1, "{pool:?}");
    assert!(limits.plugin_size >= 1, "{limits:?}");
    assert!((64 << 10..=4 << 30).contains(&limits.memory), "{limits:?}");
    assert!(limits.fuel != Some(0), "{limits:?}");
    for time in [limits.build_timeout, limits.exec_timeout] {
        assert!(time > Duration::ZERO, "{limits:?}");
    }
}

/// A pool whose every build fails at once: that its times and numbers can be reckoned with is what is asked here.
async fn assert_usable(settings: &Settings) {
    let pool = PoolBuilder::from(settings.clone()).engine(Refuses).build();
    let pool = pool.expect("settings that were accepted");
    // In base64, since what must be fetched has a cost.
    let spec = Spec::new(Source::base64("AGFzbQEAAAABBAFgAAADAgEABwcBA3J1bgAACgQBAgAL"));
    let evaluator = pool.evaluator("settings", spec).expect("a name that is one");
    let error = evaluator.evaluate(Vec::new()).await.expect_err("nothing can be built");
    assert!(error.kind() != ErrorKind::Internal, "{}", error.chain());
    evaluator.close().await;
    pool.close().await;
    assert_eq!(pool.runtimes(), 0);
}

#[derive(Debug)]
struct Refuses;

impl Engine for Refuses {
    fn compile(&self, _: CompileRequest) -> BoxFuture<'_, Result<Box<dyn CompiledPlugin>, Error>> {
        Box::pin(async {
            Err(Error::InvalidPlugin { reason: "it is refused".into(), cause: None, last_words: LastWords::default() })
        })
    }
}
