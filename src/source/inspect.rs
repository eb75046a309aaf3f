//! Reads a binary's exports and imports before any engine sees it, and refuses what no plugin needs.
//!
//! Everything but function bodies is validated here, with the features below and no others. (extism would switch on
//! more than its caller asks for.) The engine validates bodies before it compiles them: what they can do beyond these
//! features, such as relaxed SIMD, takes no more of it than other code.

use wasmparser::{ExternalKind, FuncType, Parser, Payload, TypeRef, ValType, ValidPayload, Validator, WasmFeatures};

use super::weight::Weight;
use crate::error::Error;

/// What plugins may use: WebAssembly 3.0 and wide arithmetic. Not threads (shared memory), memories with other pages,
/// stack switching, exceptions as they were before 3.0, or components.
pub(super) const FEATURES: WasmFeatures =
    WasmFeatures::WASM3.difference(WasmFeatures::THREADS).union(WasmFeatures::WIDE_ARITHMETIC);

/// What needs no more of an instance than one memory for each of its modules. Not references that are collected
/// (`externref` among them), exceptions, which are collected too, or several memories.
const PLAIN: WasmFeatures = FEATURES
    .difference(WasmFeatures::GC_TYPES)
    .difference(WasmFeatures::GC)
    .difference(WasmFeatures::EXCEPTIONS)
    .difference(WasmFeatures::MULTI_MEMORY);

/// WebAssembly 2.0, and two features that most compilers emit: tail calls and constant expressions with arithmetic.
#[cfg(feature = "extism")]
const WASM2: WasmFeatures = WasmFeatures::WASM2.union(WasmFeatures::TAIL_CALL).union(WasmFeatures::EXTENDED_CONST);

/// Exports that toolchains make for initialisation. They have an entry point's type, and are none.
const INITIALISERS: [&str; 3] = ["_initialize", "__wasm_call_ctors", "hs_init"];

/// Exports that toolchains make for their own use. They can be called by their names, but are not what an author means who
/// names none. The same goes for all that begin with `__`, which C and its relatives reserve, or with `asyncify_`.
const TOOLCHAINS: [&str; 8] =
    ["_start", "hs_exit", "hs_perform_gc", "malloc", "free", "calloc", "realloc", "cabi_realloc"];

/// What a plugin imports and exports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    imports: Vec<Import>,
    exports: Vec<String>,
    entry_points: Vec<String>,
    memory: u64,
    wide: bool,
}

/// Something that a plugin needs from its host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Import {
    /// The module that it is imported from, such as `extism:host/env`.
    pub module: String,
    /// Its name there.
    pub name: String,
    /// Whether it is a function, rather than a memory, table, global or tag.
    pub is_function: bool,
}

impl Interface {
    /// All imports, in the binary's order.
    #[must_use]
    pub fn imports(&self) -> &[Import] {
        &self.imports
    }

    /// The names of all exports, in the binary's order.
    #[must_use]
    pub fn exports(&self) -> &[String] {
        &self.exports
    }

    /// The bytes that its own memories begin with. Those that it imports are not counted.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Whether its instances may need more than one memory: a heap for references that are collected, as those of garbage
    /// collection, of exceptions and `externref`, or several memories of its own.
    #[must_use]
    pub fn is_wide(&self) -> bool {
        self.wide
    }

    /// Exported functions that can be called: those without parameters and with no result or one `i32`. Initialisers
    /// are left out.
    #[must_use]
    pub fn entry_points(&self) -> &[String] {
        &self.entry_points
    }

    /// Whether anything is imported from WASI preview 1.
    #[must_use]
    pub fn wants_wasi(&self) -> bool {
        self.imports.iter().any(|import| import.module == "wasi_snapshot_preview1")
    }

    /// The entry points that an author may mean: without those that toolchains make for their own use, unless there are no
    /// others. A command, for example, may have nothing but its `_start`.
    #[must_use]
    pub fn candidates(&self) -> Vec<String> {
        let meant = |name: &&String| {
            !TOOLCHAINS.contains(&name.as_str()) && !name.starts_with("__") && !name.starts_with("asyncify_")
        };
        let meant: Vec<_> = self.entry_points.iter().filter(meant).cloned().collect();
        if meant.is_empty() { self.entry_points.clone() } else { meant }
    }

    /// The entry point to use: the named one, else `run`, else the only one that an author may mean.
    ///
    /// # Errors
    ///
    /// [`Error::EntryPointMissing`], with the names to choose from.
    pub fn resolve(&self, named: Option<&str>) -> Result<String, Error> {
        let find = |name: &str| self.entry_points.iter().find(|export| *export == name).cloned();
        let available = self.candidates();
        let chosen = match (named, &available[..]) {
            (Some(name), _) => find(name),
            (None, [only]) => Some(only.clone()),
            (None, _) => find("run"),
        };
        chosen.ok_or_else(|| Error::EntryPointMissing { entry_point: named.map(str::to_owned), available })
    }
}

pub(super) fn inspect(bytes: &[u8]) -> Result<Interface, Error> {
    if bytes.is_empty() {
        return Err(Error::invalid_plugin("it is empty"));
    }
    if !Parser::is_core_wasm(bytes) {
        let what = if Parser::is_component(bytes) {
            "it is a WebAssembly component; only core modules are supported"
        } else {
            "it is not a WebAssembly binary (those begin with \\0asm and version 1); a manifest, WAT text or archive is none"
        };
        return Err(Error::invalid_plugin(what));
    }
    let plain = read(bytes, PLAIN);
    let wide = plain.is_err();
    let read = plain.or_else(|_| read(bytes, FEATURES));
    let (mut interface, weight) = read.map_err(|error| Error::invalid_plugin(error.to_string()))?;
    weight.check().map_err(Error::invalid_plugin)?;
    interface.wide = wide;
    Ok(interface)
}

/// Whether all of it is valid, bodies included. It takes some 10 ms for a megabyte.
#[cfg(feature = "direct")]
pub(crate) fn is_valid(wasm: &[u8]) -> bool {
    Validator::new_with_features(FEATURES).validate_all(wasm).is_ok()
}

/// Refuses an inspected module that uses more than WebAssembly 2.0, for an engine that bounds no more.
#[cfg(feature = "extism")]
pub(crate) fn check_wasm2(wasm: &[u8], engine: &str) -> Result<(), Error> {
    let beyond = |error| Error::invalid_plugin(format!("the {engine} engine runs WebAssembly 2.0 alone: {error}"));
    read(wasm, WASM2).map(drop).map_err(beyond)
}

/// How many exports an inspected module has.
#[cfg(feature = "direct")]
pub(crate) fn export_count(wasm: &[u8]) -> u64 {
    let sections = Parser::new(0).parse_all(wasm).map_while(Result::ok);
    let count = |section| if let Payload::ExportSection(exports) = section { exports.count().into() } else { 0 };
    sections.map(count).sum()
}

/// Bytes from the first to the last that the memories of an inspected module begin with.
#[cfg(feature = "direct")]
pub(crate) fn data_size(wasm: &[u8]) -> u64 {
    let sections = Parser::new(0).parse_all(wasm).map_while(Result::ok);
    let data = sections.filter_map(|section| match section {
        Payload::DataSection(data) => Some(data),
        _ => None,
    });
    let (mut first, mut end) = (u64::MAX, 0);
    for data in data.flatten().map_while(Result::ok) {
        if let wasmparser::DataKind::Active { offset_expr, .. } = data.kind {
            let offset = match offset_expr.get_operators_reader().read() {
                Ok(wasmparser::Operator::I32Const { value }) => u64::from(value.cast_unsigned()),
                Ok(wasmparser::Operator::I64Const { value }) => value.cast_unsigned(),
                _ => continue,
            };
            first = first.min(offset);
            end = end.max(offset.saturating_add(data.data.len() as u64));
        }
    }
    end.saturating_sub(first)
}

fn read(bytes: &[u8], features: WasmFeatures) -> Result<(Interface, Weight), wasmparser::BinaryReaderError> {
    let mut interface = Interface::default();
    let mut weight = Weight::default();
    let mut exported = Vec::new();
    let mut validator = Validator::new_with_features(features);
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload?;
        // First: the validator bounds what is collected below.
        let valid = validator.payload(&payload)?;
        weight.add(&payload)?;
        match &payload {
            Payload::ImportSection(section) => {
                for import in section.clone().into_imports() {
                    let import = import?;
                    interface.imports.push(Import {
                        module: import.module.to_owned(),
                        name: import.name.to_owned(),
                        is_function: matches!(import.ty, TypeRef::Func(_)),
                    });
                }
            }
            Payload::ExportSection(section) => {
                for export in section.clone() {
                    let export = export?;
                    interface.exports.push(export.name.to_owned());
                    if export.kind == ExternalKind::Func {
                        exported.push((export.name.to_owned(), export.index));
                    }
                }
            }
            _ => {}
        }
        if let ValidPayload::End(types) = valid {
            // The module is valid, so these indices exist.
            interface.entry_points = exported
                .iter()
                .filter(|(name, index)| {
                    let function = &types[types.as_ref().core_function_at(*index)];
                    matches!(&function.composite_type.inner,
                        wasmparser::CompositeInnerType::Func(function) if callable(function))
                        && !INITIALISERS.contains(&name.as_str())
                })
                .map(|(name, _)| name.clone())
                .collect();
        }
    }
    interface.memory = weight.memory();
    Ok((interface, weight))
}

fn callable(function: &FuncType) -> bool {
    function.params().is_empty() && matches!(function.results(), [] | [ValType::I32])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(text: &str) -> Interface {
        inspect(&wat::parse_str(text).unwrap()).unwrap()
    }

    #[test]
    fn only_functions_of_an_entry_points_shape_are_entry_points() {
        let interface = interface(
            r#"(module
                (import "extism:host/env" "alloc" (func (param i64) (result i64)))
                (memory (export "memory") 1)
                (func (export "_initialize"))
                (func (export "silent"))
                (func (export "coded") (result i32) i32.const 0)
                (func (export "asks") (param i32))
                (func (export "long") (result i64) i64.const 0))"#,
        );
        assert_eq!(interface.entry_points(), ["silent", "coded"]);
        assert_eq!(interface.exports(), ["memory", "_initialize", "silent", "coded", "asks", "long"]);
        assert_eq!(interface.memory(), 65_536);
        assert_eq!(interface.imports()[0].name, "alloc");
        assert!(!interface.wants_wasi());
    }

    #[test]
    fn the_entry_point_is_the_one_named_else_run_else_the_only_one() {
        let two = interface(r#"(module (func (export "a")) (func (export "run")))"#);
        assert_eq!(two.resolve(None).unwrap(), "run");
        assert_eq!(two.resolve(Some("a")).unwrap(), "a");
        assert_eq!(two.resolve(Some("b")).unwrap_err().kind(), "entry_point_missing");
        assert_eq!(interface(r#"(module (func (export "a")))"#).resolve(None).unwrap(), "a");
        let ambiguous = interface(r#"(module (func (export "a")) (func (export "b")))"#);
        assert_eq!(
            ambiguous.resolve(None).unwrap_err().to_string(),
            "the plugin's entry point must be named: it has a, b"
        );
    }

    #[test]
    fn what_a_toolchain_adds_is_not_what_an_author_means() {
        // As TinyGo makes it, with one export of the author's.
        let tinygo = r#"(func (export "_start")) (func (export "asyncify_stop_unwind")) (func (export "free"))
            (func (export "asyncify_get_state") (result i32) i32.const 0) (func (export "__wasm_call_dtors"))
            (func (export "malloc") (param i32) (result i32) i32.const 0) (func (export "__arg_len") (result i32) i32.const 0)"#;
        let plugin = interface(&format!(r#"(module {tinygo} (func (export "greet") (result i32) i32.const 0))"#));
        assert_eq!(plugin.resolve(None).unwrap(), "greet");
        // They can be called, if somebody wants to.
        assert_eq!(plugin.resolve(Some("_start")).unwrap(), "_start");
        let two = interface(&format!(r#"(module {tinygo} (func (export "a")) (func (export "b")))"#));
        let choose = "the plugin's entry point must be named: it has a, b";
        assert_eq!(two.resolve(None).unwrap_err().to_string(), choose);
        let wrong = two.resolve(Some("c")).unwrap_err().to_string();
        assert_eq!(wrong, "the plugin has no entry point \"c\": it has a, b");
        // A command has nothing else.
        assert_eq!(interface(r#"(module (func (export "_start")))"#).resolve(None).unwrap(), "_start");
        let nothing = interface(r#"(module (func (export "_initialize")))"#).resolve(None).unwrap_err();
        assert!(nothing.to_string().contains("no function that could be an entry point"), "{nothing}");
    }

    #[test]
    fn features_that_no_plugin_needs_are_refused() {
        for (text, proposal) in [
            ("(module (memory 1 2 shared))", "threads"),
            ("(module (memory i64 1 2 shared))", "threads"),
            ("(module (memory 1 (pagesize 1)))", "custom page sizes"),
            ("(module (type $f (func)) (type (cont $f)))", "stack switching"),
            ("(module (type (shared (struct))))", "shared-everything-threads"),
            (&format!("(module {})", "(memory 0)".repeat(5)), "multi-memory: it has 5 memories; at most 4 are allowed"),
        ] {
            let error = inspect(&wat::parse_str(text).unwrap()).unwrap_err();
            assert_eq!(error.kind(), "invalid_plugin", "{text}");
            assert!(error.to_string().contains(proposal), "{text}: {error}");
        }
    }
}
