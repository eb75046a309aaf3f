//! Bytes as they are uploaded: inspected, then built under the guard.
//!
//! | the input begins with | it is |
//! |---|---|
//! | `(` | WAT, and after a line `---` a few bytes that spoil the binary made of it |
//! | another odd byte | choices for `wasm-smith` |
//! | an even byte, as `\0asm` does | the plugin |

#![cfg_attr(fuzzing, no_main)]

use std::sync::LazyLock;

use evalpool::{
    ErrorKind::{BuildTimeout, EntryPointMissing, InvalidPlugin, OutOfMemory, PayloadTooLarge, SourceUnavailable},
    Plugin, Source, Spec,
};
use evalpool_fuzz::{Shape, Stage, assert_plugins_fault, fuzz, settings, split};

fuzz!(upload);

static STAGE: LazyLock<Stage> = LazyLock::new(|| Stage::new(&settings()));

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
    let preparing = STAGE.pool.clone();
    let prepared = STAGE.finish("a build", async move {
        let prepared = preparing.prepare("upload", Spec::new(Source::bytes(bytes))).await;
        prepared.map(drop)
    });
    match prepared {
        Ok(()) => assert!(plugin.is_ok(), "built although it cannot be read"),
        Err(error) => {
            // The last is what a process that was stopped meanwhile finds: its time to read the bytes is over.
            let kinds =
                [InvalidPlugin, EntryPointMissing, OutOfMemory, PayloadTooLarge, BuildTimeout, SourceUnavailable];
            assert_plugins_fault(&error, &kinds);
        }
    }
    STAGE.assert_at_rest();
}

/// The binary of a text, some of its bytes changed: each three bytes after the separator say where and how. A text that
/// is none is uploaded as it is.
fn written(input: &[u8]) -> Vec<u8> {
    let (text, changes) = split(input);
    let Some(mut bytes) = str::from_utf8(text).ok().and_then(|text| wat::parse_str(text).ok()) else {
        return input.to_vec();
    };
    for change in changes.as_chunks().0 {
        let [high, low, how]: [u8; 3] = *change;
        let at = usize::from(u16::from_be_bytes([high, low])) % bytes.len();
        bytes[at] ^= how;
    }
    bytes
}
