//! The settings of an engine that change the code which it compiles. An engine and its compile workers have them in common.

use std::hash::{DefaultHasher, Hash, Hasher};

use wasmtime::{Config, Engine};

use super::prepare;

/// What a memory of an instance takes of the address space, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryLayout {
    pub(super) reservation: u64,
    pub(super) guard: u64,
}

/// An engine that counts fuel, or one that does not.
pub(super) fn config(fueled: bool, memory: MemoryLayout) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .consume_fuel(fueled)
        .memory_reservation(memory.reservation)
        .memory_guard_size(memory.guard)
        // No more than `source::inspect` lets through.
        .wasm_exceptions(false)
        .wasm_function_references(false)
        .wasm_gc(false)
        .wasm_memory64(false)
        // The kernel's, beside that of the plugin.
        .wasm_multi_memory(true)
        .wasm_relaxed_simd(false)
        .wasm_tail_call(true)
        .wasm_extended_const(true);
    config
}

/// wasmtime's version, these settings and what is done to a module before, as one number: code of another is not used.
pub(super) fn version(engine: &Engine) -> u64 {
    version_with(engine, prepare::VERSION)
}

fn version_with(engine: &Engine, preparation: u32) -> u64 {
    let mut version = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut version);
    preparation.hash(&mut version);
    version.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_modules_that_were_prepared_otherwise_has_another_version() {
        let engine = Engine::default();
        assert_eq!(version(&engine), version_with(&engine, prepare::VERSION));
        assert_ne!(version(&engine), version_with(&engine, prepare::VERSION + 1));
    }
}
