//! One plugin by two ways: with the kernel in its own module, and with an instance of the kernel beside it, as a plugin has
//! that is linked with another module. Both must come to the same: the output, or the error, its text and the function that was
//! called first.
//!
//! An input is the plugin as WAT and a line `---`, or neither; then the guest's input. Without WAT all of it is
//! `wasm-smith`'s choices as well.

#![cfg_attr(fuzzing, no_main)]

use std::{sync::LazyLock, time::Duration};

use evalpool::{Error, ErrorKind, Plugin, Source, Spec};
use evalpool_fuzz::{Shape, Stage, fuzz, settings, split};

fuzz!(alike);

static STAGE: LazyLock<Stage> = LazyLock::new(|| {
    let mut settings = settings();
    // Most are to be built, which takes its time under a sanitizer.
    settings.limits.build_timeout = Duration::from_secs(1);
    Stage::new(&settings)
});

/// `(module)`
const NOTHING: &[u8] = b"\0asm\x01\0\0\0";

fn alike(input: &[u8]) {
    let (text, given) = if input.first() == Some(&b'(') { split(input) } else { (&b""[..], input) };
    let plugin = match str::from_utf8(text) {
        Ok("") => Shape::Plugin.generate(given),
        Ok(text) => wat::parse_str(text).ok(),
        Err(_) => None,
    };
    let Some(plugin) = plugin else { return };
    // What it is told of time and chance differs from one evaluation to the next.
    let read = Plugin::new(plugin.clone().into(), None);
    if read.is_ok_and(|plugin| plugin.interface().wants_wasi()) {
        return;
    }
    let given = given[given.len().saturating_sub(64)..].to_vec();
    let spec = || Spec::new(Source::bytes(plugin.clone())).config("colour", "blue");
    let whole = evaluate("whole", spec(), given.clone());
    let beside = evaluate("beside", spec().link("nothing", Source::bytes(NOTHING.to_vec())), given);
    if let (Some(whole), Some(beside)) = (whole, beside) {
        assert_eq!(whole, beside, "with the kernel in the module, and beside it");
    }
    STAGE.assert_at_rest();
}

/// The output, or what is said of the failure and the function that was called first.
type Ended = Result<Vec<u8>, (String, Option<String>)>;

/// What it came to; `None` for what depends on how busy the machine is.
fn evaluate(name: &str, spec: Spec, input: Vec<u8>) -> Option<Ended> {
    let evaluator = STAGE.pool.evaluator(name, spec).expect("a name that is one");
    STAGE.finish("an evaluation", async move {
        let ended = evaluator.evaluate(input).await;
        evaluator.close().await;
        match ended {
            Ok(response) => Some(Ok(response.bytes().to_vec())),
            Err(error) if is_busy(&error) => None,
            Err(error) => {
                // The innermost may be the kernel's, where that is beside the plugin.
                let outermost = error.last_words().and_then(|words| words.stack().last().cloned());
                Some(Err((error.to_string(), outermost)))
            }
        }
    })
}

fn is_busy(error: &Error) -> bool {
    use ErrorKind::{BuildTimeout, ExecTimeout, OutOfMemory, Overloaded, SourceUnavailable};
    // A build that takes too much memory to compile is `invalid_plugin`, whatever the other comes to.
    let kinds = [BuildTimeout, ExecTimeout, OutOfMemory, Overloaded, SourceUnavailable];
    kinds.contains(&error.kind()) || error.to_string().contains("limits.compile_memory")
}
