//! Lines for billing, in paused time: each interval has its own, they add up, and there is none of who did nothing.

use std::time::Duration;

use evalpool::{EvaluatorPool, PoolBuilder, Settings};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::support::{
    log::Lines,
    process::alone,
    spy::{Act, Spy},
};

/// Who was billed for how many evaluations since the last look, in the order of names: tenant, evaluator, evaluations.
fn take(lines: &Lines) -> Vec<(String, String, u64)> {
    let text = lines.take();
    let usage = text.lines().filter_map(|line| line.split_once("evalpool::usage: ")?.1.parse::<Value>().ok());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let billed =
        |line: Value| (text(&line["tenant"]), text(&line["evaluator"]), line["usage"]["evaluations"].as_u64().unwrap());
    let mut billed: Vec<_> = usage.map(billed).collect();
    billed.sort();
    billed
}

fn billed(lines: &[(&str, &str, u64)]) -> Vec<(String, String, u64)> {
    lines.iter().map(|(tenant, evaluator, count)| ((*tenant).to_owned(), (*evaluator).to_owned(), *count)).collect()
}

/// In a process of its own: a subscriber changes the level at which other tests log.
#[test]
fn each_interval_has_lines_of_those_who_did_something_and_nothing_is_lost_or_billed_twice() {
    if alone("usage::reports::each_interval_has_lines_of_those_who_did_something_and_nothing_is_lost_or_billed_twice") {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(intervals(&lines));
        assert_eq!(take(&lines), billed(&[("acme", "acme/a", 1)]), "of the pool that was dropped");
    }
}

async fn intervals(lines: &Lines) {
    const INTERVAL: Duration = Duration::from_mins(1);
    // The sweep looks ten times a second.
    let next = async || sleep(INTERVAL + Duration::from_secs(1)).await;
    let mut settings = Settings::default();
    settings.usage.interval = Some(INTERVAL);
    let spy = Spy::default();
    let pool: EvaluatorPool = spy.pool(|_| PoolBuilder::from(settings).park_after(0));
    let spec = || Spy::spec().exec_timeout(Duration::from_hours(1));
    let [a, b] = ["acme/a", "globex/b"].map(|name| pool.register(name, spec()).unwrap());
    for _ in 0..3 {
        a.evaluate("x").await.unwrap();
    }
    sleep(INTERVAL / 2).await;
    assert_eq!(take(lines), [], "not before the interval is over");
    b.evaluate("trap").await.unwrap_err();
    next().await;
    assert_eq!(take(lines), billed(&[("acme", "acme/a", 3), ("globex", "globex/b", 1)]));
    next().await;
    assert_eq!(take(lines), [], "nobody did anything");

    // One that is under way counts in the interval in which it ends.
    spy.on_call([Act::Never]);
    let call = tokio::spawn(async move { timeout(INTERVAL * 2, a.evaluate("x")).await.map(drop) });
    next().await;
    assert_eq!(take(lines), [], "it has not ended");
    assert!(call.await.unwrap().is_err());
    pool.report_usage();
    assert_eq!(take(lines), billed(&[("acme", "acme/a", 1)]), "once, as cancelled");

    // Moved to another tenant, each pays for what it used.
    b.evaluate("x").await.unwrap();
    let moved = pool.register("globex/b", Spy::spec().tenant("initech")).unwrap();
    moved.evaluate("x").await.unwrap();
    moved.evaluate("x").await.unwrap();
    next().await;
    assert_eq!(take(lines), billed(&[("globex", "globex/b", 1), ("initech", "globex/b", 2)]));

    // Removed, and there is another of that name.
    moved.evaluate("x").await.unwrap();
    drop((b, moved));
    assert!(pool.remove("globex/b").await);
    pool.register("globex/b", Spy::spec()).unwrap().evaluate("x").await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(take(lines), billed(&[("initech", "globex/b", 1)]), "at once");
    next().await;
    assert_eq!(take(lines), billed(&[("globex", "globex/b", 1)]));
    pool.get("acme/a").unwrap().evaluate("x").await.unwrap();
    pool.close().await;
}

#[tokio::test]
async fn without_an_interval_nothing_is_written() {
    let pool = Spy::default().pool(|builder| builder);
    pool.register("acme/a", Spy::spec()).unwrap().evaluate("x").await.unwrap();
    pool.report_usage();
    assert_eq!(pool.tenant("acme").unwrap().usage.evaluations, 1);
}
