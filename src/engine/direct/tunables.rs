//! The settings of an engine that change the code which it compiles. An engine and its compile workers have them in common.

use std::hash::{DefaultHasher, Hash, Hasher};

use wasmtime::{Collector, Config, Engine};

use super::prepare;

/// What a memory of an instance takes of the address space, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryLayout {
    pub(super) reservation: u64,
    pub(super) guard: u64,
}

/// Bytes that a collected heap begins with. It grows by doubling, or not at all: from here it comes to seven eighths of
/// any limit that is a power of two, and the rest is left for memories. From one page it would come to half.
pub(super) const FIRST_HEAP: u64 = 7 * 65_536;

/// What sets the engines apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    /// Whether its code counts fuel: nothing else changes the code.
    pub(super) fueled: bool,
    /// Whether its slots are wide.
    pub(super) wide: bool,
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
        .wasm_custom_page_sizes(false)
        .wasm_exceptions(true)
        .wasm_extended_const(true)
        .wasm_function_references(true)
        .wasm_gc(true)
        .wasm_memory64(true)
        .wasm_multi_memory(true)
        .wasm_relaxed_simd(true)
        .wasm_stack_switching(false)
        .wasm_tail_call(true)
        .wasm_wide_arithmetic(true)
        // A plugin comes to the same on each machine.
        .relaxed_simd_deterministic(true)
        // Reference counts would never free a cycle, and cost code that stores references more.
        .collector(Collector::Copying)
        .gc_heap_initial_size(FIRST_HEAP);
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
    use wasmtime::Module;

    use super::*;

    /// It costs them nothing then, but the engine's own reading of a module.
    #[test]
    fn a_plugin_that_uses_no_proposal_has_the_code_that_it_would_have_without_them() {
        let memory = MemoryLayout { reservation: 64 << 20, guard: 32 << 20 };
        let mut without = config(false, memory);
        without.wasm_exceptions(false).wasm_function_references(false).wasm_gc(false).wasm_memory64(false);
        without.wasm_multi_memory(false).wasm_relaxed_simd(false).wasm_wide_arithmetic(false);
        let engines = [config(false, memory), without].map(|config| Engine::new(&config).unwrap());
        for file in ["c/text.wasm", "assemblyscript/words.wasm"] {
            let path = format!("{}/tests/plugins/{file}", env!("CARGO_MANIFEST_DIR"));
            let [with, without] = engines.each_ref().map(|engine| Module::from_file(engine, &path).unwrap());
            assert!(with.text() == without.text(), "{file}");
        }
    }

    #[test]
    fn code_of_modules_that_were_prepared_otherwise_has_another_version() {
        let engine = Engine::default();
        assert_eq!(version(&engine), version_with(&engine, prepare::VERSION));
        assert_ne!(version(&engine), version_with(&engine, prepare::VERSION + 1));
    }
}
