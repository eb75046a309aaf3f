//! Bytes as they are uploaded: inspected, then built under the guard, compiled in a process that is held to little memory
//! and time. Whatever they are, the pool answers soon, this process takes little memory, and another plugin still builds.
//!
//! | the input begins with | it is |
//! |---|---|
//! | `(` | WAT, in which `[N part]` stands for N times the part, and after a line `---` a few bytes that spoil the binary |
//! | another odd byte | choices for `wasm-smith` |
//! | an even byte, as `\0asm` does | the plugin |

#![cfg_attr(fuzzing, no_main)]

use std::sync::LazyLock;

use evalpool::{
    ErrorKind::{BuildTimeout, EntryPointMissing, InvalidPlugin, OutOfMemory, PayloadTooLarge, SourceUnavailable},
    Plugin, Source, Spec,
    config::CodeCache,
};
use evalpool_fuzz::{Peak, Shape, Stage, assert_plugins_fault, fuzz, repeat, settings, split};

fuzz!(upload);

static STAGE: LazyLock<Stage> = LazyLock::new(|| {
    let mut settings = settings();
    // So that the other plugin is compiled each time.
    settings.engine.code_cache = CodeCache::Off;
    let stage = Stage::new(&settings);
    assert!(stage.pool.compile_workers().is_some(), "it compiles in this process: README.md says how to name a worker");
    stage
});

/// Within these ticks a build is answered: ten seconds, of which a build may take a third of one. The rest is for a machine
/// that is busy.
const SOON: u32 = 100;

/// A build may take so much memory of this process. In bytes: what a worker may have for the code, a few times over for its
/// copies, and what the other plugin takes.
const MOST_MEMORY: u64 = 256 << 20;

/// The text of a plugin is made no longer than this by what it repeats. In bytes.
const MOST_TEXT: usize = 4 << 20;

/// `(module (func (export "run")))`
const OTHER: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x07\x01\x03run\0\0\x0a\x04\x01\x02\0\x0b";

fn upload(input: &[u8]) {
    let bytes = match input.first() {
        Some(b'(') => written(input),
        Some(odd) if odd % 2 == 1 => Shape::Any.generate(&input[1..]).unwrap_or_default(),
        _ => input.to_vec(),
    };
    let plugin = Plugin::new(bytes.clone().into(), None);
    if let Err(error) = &plugin {
        assert_plugins_fault(error, &[InvalidPlugin]);
    }
    let peak = Peak::begin();
    let prepared = prepare("a build", bytes);
    match prepared {
        Ok(()) => assert!(plugin.is_ok(), "built although it cannot be read"),
        Err(error) => {
            // The last is what a process that was stopped meanwhile finds: its time to read the bytes is over.
            let kinds =
                [InvalidPlugin, EntryPointMissing, OutOfMemory, PayloadTooLarge, BuildTimeout, SourceUnavailable];
            assert_plugins_fault(&error, &kinds);
        }
    }
    prepare("the build of another plugin", OTHER.to_vec()).expect("there is nothing wrong with it");
    let growth = peak.map_or(0, |peak| peak.growth());
    assert!(growth <= MOST_MEMORY, "it took {} MiB", growth >> 20);
    STAGE.assert_at_rest();
}

fn prepare(what: &str, bytes: Vec<u8>) -> Result<(), evalpool::Error> {
    let pool = STAGE.pool.clone();
    STAGE.finish_within(SOON, what, async move {
        let prepared = pool.prepare("upload", Spec::new(Source::bytes(bytes))).await;
        prepared.map(drop)
    })
}

/// The binary of a text, some of its bytes changed: each three bytes after the separator say where and how. A text that
/// is none is uploaded as it is.
fn written(input: &[u8]) -> Vec<u8> {
    let (text, changes) = split(input);
    let text = str::from_utf8(text).ok().map(|text| repeat(text, MOST_TEXT));
    let Some(mut bytes) = text.and_then(|text| wat::parse_str(text).ok()) else {
        return input.to_vec();
    };
    for change in changes.as_chunks().0 {
        let [high, low, how]: [u8; 3] = *change;
        let at = usize::from(u16::from_be_bytes([high, low])) % bytes.len();
        bytes[at] ^= how;
    }
    bytes
}
