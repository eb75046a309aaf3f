//! What spans cost where nobody wants them: in instructions, which do not depend on how fast the machine is.

use std::{
    env,
    hint::black_box,
    process::{Command, Stdio},
};

use evalpool::Isolation;
use tracing::{Level, level_filters::LevelFilter};

use super::support::spy::Spy;

/// What this process is to do, and how often, when it is one of those that are counted.
const WORK: &str = "EVALPOOL_TEST_WORK";
const NAME: &str = "instructions::spans_that_nobody_wants_cost_a_warm_evaluation_next_to_nothing";

#[test]
#[ignore = "counts instructions under valgrind, where all takes fifty times as long"]
fn spans_that_nobody_wants_cost_a_warm_evaluation_next_to_nothing() {
    if let Ok(work) = env::var(WORK) {
        let (what, times) = work.split_once(' ').unwrap();
        return work_on(what, times.parse().unwrap());
    }
    let [bare, logged, checks] = ["bare", "logged", "checks"].map(instructions_of_one);
    println!("an evaluation: {bare}, beside a log: {logged}; what of it is done for spans: {checks}");
    assert!(checks * 100 <= bare * 3, "{checks} instructions of {bare} are done for spans");
    assert!(logged * 100 <= bare * 103, "{logged} instructions where a log is installed, and {bare} where none is");
}

/// How many instructions one of them takes, without what begins and ends the process.
fn instructions_of_one(what: &str) -> u64 {
    let [few, many] = [1_000, 3_000].map(|times| instructions_of(&format!("{what} {times}")));
    (many - few) / 2_000
}

fn instructions_of(work: &str) -> u64 {
    let counted = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe().unwrap())
        .args(["--ignored", "--exact", NAME])
        .env(WORK, work)
        .stdin(Stdio::null())
        .output()
        .expect("valgrind is installed, as .ci/run does");
    let said = String::from_utf8_lossy(&counted.stderr);
    assert!(counted.status.success(), "{said}");
    let count = said.lines().find_map(|line| line.split_once("Collected : "));
    count.unwrap_or_else(|| panic!("{said}")).1.trim().parse().unwrap()
}

fn work_on(what: &str, times: u32) {
    if what == "logged" {
        // As the program has one: it wants warnings and no spans.
        tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).init();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        if what == "checks" {
            for _ in 0..times {
                checks();
            }
            return;
        }
        let pool = Spy::default().pool(|builder| builder.capacity(1).isolation(Isolation::Reuse));
        let evaluator = pool.evaluator("warm", Spy::spec()).unwrap();
        for _ in 0..times {
            black_box(evaluator.evaluate("").await.unwrap());
        }
    });
}

/// What a warm evaluation does for spans where nobody wants any, and nothing else: it asks once, and then looks at what it
/// was told: as it begins, as its guest does, as that has ended, and as it ends itself.
fn checks() {
    let wanted = tracing::span_enabled!(target: "evalpool::span", Level::INFO);
    assert!(!black_box(wanted));
    assert!(!black_box(wanted));
    assert!(!black_box(wanted));
    assert!(!black_box(wanted));
}
