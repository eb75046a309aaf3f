//! What is done to a module before it is compiled, so that its instances cost less, and give way. Bytes in, bytes out;
//! whatever they are, the new module does what the old one did.
//!
//! **Data segments are joined.** wasmtime makes one image of a module's active segments that instances map, if all of them
//! have constant offsets and together are not too sparse. Otherwise each instance copies each of them: 30,000 took 8 ms.
//! Each passive segment costs each instance a pointer and a length, also if nothing reads it: 30,000 took 70 µs. Such are
//! what snapshots leave behind. See [`segments`].
//!
//! **The kernel is linked in.** Functions that a plugin imports of Extism's kernel, and calls for each byte of its input,
//! become functions of its own module, over a memory that only they see. So an evaluation makes one instance and not two,
//! resolves nothing, and calls within one module. The plugin's start function, which may call the host, becomes an export,
//! since the host needs to know the memory first. See [`rewrite`].
//!
//! **Bulk instructions are cut.** `memory.fill` and its kin are done in pieces, so that a guest gives way in the middle of
//! one. See [`pieces`].
//!
//! It runs where the compile runs: in the worker, within its memory and its time, since these are a stranger's bytes. So
//! the owner neither waits for it nor pays for it, and code that is kept was prepared already: the key of kept code, and
//! what an owner and its worker compare, contain [`VERSION`].
//!
//! The way back is short. Functions keep their indices, and their code stays byte for byte what it was, but for numbers that
//! are overwritten in place. All of it moves by the same number of bytes, which the name of an export says: see [`map`]. So a
//! trap's offset is one in the plugin's own binary, and names are those of its author.
//!
//! Considered and not taken: `wasm-encoder`'s `reencode`, which writes each instruction anew (every offset would need a note
//! of where it was, to be kept with the code), and a map beside the code (in the cache, in its files, and on the way from the
//! worker, for what is one number).
//!
//! | file | what it holds |
//! |---|---|
//! | `rewrite` | the kernel linked in, bulk instructions cut, in one pass |
//! | `once` | modules that are initialised once: what is read of their state, and what begins with it |
//! | `pieces` | functions that do in pieces what one instruction does at once |
//! | `accessors` | the kernel's functions, to be copied into a module |
//! | `map` | what is where in a prepared module |
//! | `segments` | which data segments a module has, which are needed, the module with fewer |
//! | `runs` | segments that lie close together, as one |
//! | `binary` | the sections of a module, read and written |
//! | `leb` | numbers as WebAssembly writes them |

mod accessors;
mod binary;
mod leb;
mod map;
mod once;
mod pieces;
mod rewrite;
mod runs;
mod segments;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use wasmtime::{Module, ModuleExport};

pub(super) use self::{
    accessors::BYTES as KERNEL,
    map::{Map, is_ours, kernel_memory, start},
    once::State,
};
use crate::source::{Digest, is_valid};

/// Grows with each change of what comes of a module: code that was kept before is not used any more.
pub(super) const VERSION: u32 = 3;

/// A module that loses fewer segments stays as it is. Sixteen passive ones cost an instance some 40 nanoseconds.
const WORTHWHILE: usize = 16;

/// What is compiled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) wasm: &'a [u8],
    /// The [state](State) that it begins with; empty if it begins by itself.
    pub(super) state: &'a [u8],
}

/// How a module's instances are initialised.
#[derive(Debug, Clone, Copy)]
pub(super) enum Begin<'a> {
    /// Each by itself.
    Plain,
    /// Each by itself, and what they are then can be read.
    Recorded,
    /// They are in this state.
    Restored(&'a [u8]),
}

/// The module to compile for this one, with the kernel in it if it `links`: these bytes if there is nothing to do, or if
/// they are not valid. The compiler says why; what is added must not be what a body named that had no such thing. `None` if a
/// state is not one of this module's.
pub(super) fn prepare<'a>(wasm: &'a [u8], digest: Digest, links: bool, begin: Begin<'_>) -> Option<Cow<'a, [u8]>> {
    if !is_valid(wasm) {
        return Some(Cow::Borrowed(wasm));
    }
    let joined = segments::join(wasm, WORTHWHILE).map_or(Cow::Borrowed(wasm), Cow::Owned);
    let linked = rewrite::rewrite(&joined, digest, links).map_or(joined, Cow::Owned);
    Some(match begin {
        Begin::Plain => linked,
        Begin::Recorded => once::record(&linked, digest).map_or(linked, Cow::Owned),
        Begin::Restored(state) => Cow::Owned(once::restore(&linked, digest, state)?),
    })
}

/// What is read of an instance that was initialised, by the exports of its module.
pub(super) struct Recorder {
    pub(super) globals: Vec<ModuleExport>,
    pub(super) memories: Vec<ModuleExport>,
}

impl Recorder {
    /// That of the module of the plugin with this digest; or why its state cannot be read.
    pub(super) fn of(module: &Module, digest: Digest) -> Result<Self, String> {
        let (mut this, ours) = (Self { globals: Vec::new(), memories: Vec::new() }, map::name_of(digest, ""));
        for export in module.exports() {
            let Some(what) = export.name().strip_prefix(&ours) else { continue };
            if let Some(why) = what.strip_prefix(once::REFUSED) {
                return Err(why.to_owned());
            }
            let index = || module.get_export_index(export.name());
            if what.starts_with(once::OF_GLOBAL) {
                this.globals.extend(index());
            } else if what.starts_with(once::OF_MEMORY) {
                this.memories.extend(index());
            }
        }
        if this.memories.is_empty() { Err("the kernel cannot be linked into it".into()) } else { Ok(this) }
    }
}
