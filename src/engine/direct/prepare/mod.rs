//! What is done to a module before it is compiled, so that its instances cost less. Bytes in, bytes out; whatever they
//! are, the new module does what the old one did.
//!
//! **Data segments are joined.** wasmtime makes one image of a module's active segments that instances map, if all of them
//! have constant offsets and together are not too sparse. Otherwise each instance copies each of them: 30,000 took 8 ms.
//! Each passive segment costs each instance a pointer and a length, also if nothing reads it: 30,000 took 70 µs. Such are
//! what snapshots leave behind. See [`segments`].
//!
//! It runs where the compile runs: in the worker, within its memory and its time, since these are a stranger's bytes. So
//! the owner neither waits for it nor pays for it, and code that is kept was prepared already: the key of kept code, and
//! what an owner and its worker compare, contain [`VERSION`].
//!
//! Nothing is needed to find the way back. All that comes before the data stays where it was: a trap's offset is one in
//! the plugin's own binary, and names, custom sections and indices of functions are those of its author.
//!
//! It takes about 20 µs where there is nothing to gain, and 6 ms for 26,900 segments of a Go plugin, which takes seconds to
//! compile. Considered and not taken: `wasm-encoder`'s `reencode`, which writes each instruction anew, and so moves the code.
//!
//! | file | what it holds |
//! |---|---|
//! | `segments` | which data segments a module has, which are needed, the module with fewer |
//! | `runs` | segments that lie close together, as one |
//! | `leb` | numbers as WebAssembly writes them |

mod leb;
mod runs;
mod segments;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

/// Grows with each change of what comes of a module: code that was kept before is not used any more.
pub(super) const VERSION: u32 = 1;

/// A module that loses fewer segments stays as it is. Sixteen passive ones cost an instance some 40 nanoseconds.
const WORTHWHILE: usize = 16;

/// The module to compile for this one: these bytes if there is nothing to gain, or if they are none.
pub(super) fn prepare(wasm: &[u8]) -> Cow<'_, [u8]> {
    segments::join(wasm, WORTHWHILE).map_or(Cow::Borrowed(wasm), Cow::Owned)
}
