//! Plugins that are run: by any entry point, with any input, in both isolations, left in the middle, two at once.
//!
//! An input is the plugin as WAT and a line `---`, or neither; then a byte of [flags], the entry point and the end of its
//! line (empty for the plugin's own), then the guest's input. Without WAT the rest is `wasm-smith`'s choices as well.

#![cfg_attr(fuzzing, no_main)]

use std::{sync::LazyLock, time::Duration};

use evalpool::{
    Error,
    ErrorKind::{
        BuildTimeout, EntryPointMissing, ExecTimeout, GuestError, GuestExit, GuestTrap, InvalidPlugin, OutOfFuel,
        OutOfMemory, OutputTooLarge, SourceUnavailable,
    },
    Evaluator, Isolation, Source, Spec,
};
use evalpool_fuzz::{Shape, Stage, assert_plugins_fault, fuzz, settings, split};
use tokio::time::timeout;

fuzz!(evaluate);

/// What the first byte says. `0` to `?` are all of them as text.
mod flags {
    pub(super) const REUSE: u8 = 1;
    pub(super) const LEAVE: u8 = 2;
    pub(super) const TWO_AT_ONCE: u8 = 4;
    pub(super) const FUEL: u8 = 8;
}

/// Evaluations of each plugin.
const EVALUATIONS: usize = 3;

static STAGE: LazyLock<Stage> = LazyLock::new(|| {
    let mut settings = settings();
    // Most are to be built, which takes its time under a sanitizer.
    settings.limits.build_timeout = Duration::from_secs(1);
    Stage::new(&settings)
});

fn evaluate(input: &[u8]) {
    let (text, order) = if input.first() == Some(&b'(') { split(input) } else { (&b""[..], input) };
    let (flags, order) = order.split_first().unwrap_or((&0, b""));
    let end = order.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let entry_point = String::from_utf8_lossy(&order[..end]).into_owned();
    let rest = order.get(end + 1..).unwrap_or_default();
    let plugin = match str::from_utf8(text) {
        Ok("") => Shape::Plugin.generate(rest),
        Ok(text) => wat::parse_str(text).ok(),
        Err(_) => None,
    };
    let Some(plugin) = plugin else { return };
    let has = |flag: u8| flags & flag != 0;
    let mut spec = Spec::new(Source::bytes(plugin))
        .isolation(if has(flags::REUSE) { Isolation::Reuse } else { Isolation::Fresh })
        .config("colour", "blue")
        .fuel(has(flags::FUEL).then_some(20_000));
    if !entry_point.is_empty() {
        spec = spec.entry_point(entry_point);
    }
    let evaluator = STAGE.pool.evaluator("evaluate", spec).expect("a name that is one");
    // The end of it: what comes first has chosen the plugin.
    let given = rest[rest.len().saturating_sub(64)..].to_vec();
    let (leave, two) = (has(flags::LEAVE), has(flags::TWO_AT_ONCE));
    STAGE.finish("an evaluation", async move {
        for _ in 0..EVALUATIONS {
            if leave {
                // Long enough to begin, too short for most to end.
                let _ = timeout(Duration::from_millis(2), once(&evaluator, given.clone())).await;
            } else if two {
                let (other, input) = (evaluator.clone(), given.clone());
                let first = tokio::spawn(async move { once(&other, input).await });
                once(&evaluator, given.clone()).await;
                first.await.expect("a panic ends the process where it happens");
            } else {
                once(&evaluator, given.clone()).await;
            }
        }
        evaluator.close().await
    });
    STAGE.assert_at_rest();
}

async fn once(evaluator: &Evaluator, input: Vec<u8>) {
    match evaluator.evaluate(input).await {
        Ok(response) => assert!(response.bytes().len() <= 64 << 10, "output over its limit"),
        Err(error) => assert_documented(&error),
    }
}

fn assert_documented(error: &Error) {
    assert_plugins_fault(
        error,
        &[
            InvalidPlugin,
            EntryPointMissing,
            BuildTimeout,
            ExecTimeout,
            GuestTrap,
            GuestError,
            GuestExit,
            OutOfMemory,
            OutOfFuel,
            OutputTooLarge,
            // A process that was stopped while it should have read the bytes.
            SourceUnavailable,
        ],
    );
}
