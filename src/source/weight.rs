//! Bounds what costs a compiler more than its size tells. Nothing interrupts a compiler, and others wait for its slot.
//!
//! The most expensive are values that are computed before a module runs: globals, the contents of tables and memories.
//! An engine may compile code for them, which takes up to a fifth of a millisecond for each value: a hundred kilobytes
//! would take ten seconds. What toolchains emit is nearly all plain, and laid out in advance: numbers for globals,
//! functions for a table at an offset within it, data for a memory at an offset within it.

use wasmparser::{
    BinaryReaderError, CompositeInnerType, ConstExpr, DataKind, ElementItems, ElementKind, Operator, Payload, TypeRef,
};

/// Computed values: a second's work at most. Plugins have a few dozen.
const MOST_WORK: u64 = 5_000;

/// Elements of tables that are laid out in advance: a tenth of a second's work. Plugins have a few thousand.
const MOST_PLAIN: u64 = 1_000_000;

/// Globals. Compiling a function that sets many takes time that grows with both. Plugins have a few dozen, and fewer tags,
/// of which as many are allowed.
const MOST_GLOBALS: u64 = 10_000;

/// Imports. Each is looked up for each instance, between two ticks. Plugins have a few dozen.
const MOST_IMPORTS: u64 = 1_000;

/// Exports. Each is looked up by name, and kept in some 400 bytes beside the code. Plugins have a few dozen.
const MOST_EXPORTS: u64 = 10_000;

/// Parameters and results of all function types, each of which needs code that passes it on: a third of a second's
/// work. Plugins have a few hundred.
const MOST_PASSED: u64 = 50_000;

/// Parameters and results of all imported functions, each of which needs code that passes it on: a tenth of a second's
/// work. Plugins have a few hundred.
const MOST_IMPORTED: u64 = 10_000;

/// Memories of its own. Each takes a slot, and the heap of what is collected one more.
pub(crate) const MOST_MEMORIES: u64 = 4;

/// Types, and fields of structures: a tenth of a second's work to read. Plugins with a runtime that is collected have
/// thousands.
const MOST_TYPES: u64 = 100_000;

/// What a module has of each.
#[derive(Debug, Default)]
pub(super) struct Weight {
    /// The initial sizes of tables, in elements, and of memories, in bytes. Imported ones count as 0.
    tables: Vec<u64>,
    memories: Vec<u64>,
    /// How many of those it makes.
    own_memories: u64,
    types: u64,
    imports: u64,
    exports: u64,
    globals: u64,
    tags: u64,
    passed: u64,
    /// The same for each type.
    passed_by: Vec<u64>,
    imported: u64,
    /// Computed values, without those of active segments.
    work: u64,
    elements: Segments,
    data: Segments,
}

/// The active segments. Either all are laid out in advance, or none.
#[derive(Debug, Default)]
struct Segments {
    items: u64,
    all_plain: Option<bool>,
}

impl Segments {
    fn add(&mut self, items: u64, is_plain: bool) {
        self.items = self.items.saturating_add(items);
        self.all_plain = Some(self.all_plain.unwrap_or(true) && is_plain);
    }

    fn work(&self) -> u64 {
        if self.all_plain == Some(false) { self.items } else { 0 }
    }
}

impl Weight {
    /// Adds one part of a module that has been validated.
    pub(super) fn add(&mut self, payload: &Payload<'_>) -> Result<(), BinaryReaderError> {
        match payload {
            Payload::TypeSection(section) => {
                for group in section.clone() {
                    for ty in group?.types() {
                        let passed = match &ty.composite_type.inner {
                            CompositeInnerType::Func(function) => function.params().len() + function.results().len(),
                            CompositeInnerType::Struct(structure) => {
                                self.types += structure.fields.len() as u64;
                                0
                            }
                            _ => 0,
                        };
                        self.types += 1;
                        self.passed += passed as u64;
                        self.passed_by.push(passed as u64);
                    }
                }
            }
            Payload::ImportSection(section) => {
                for import in section.clone().into_imports() {
                    self.imports += 1;
                    match import?.ty {
                        TypeRef::Table(_) => self.tables.push(0),
                        TypeRef::Memory(_) => self.memories.push(0),
                        TypeRef::Func(ty) => self.imported += size_of(&self.passed_by, ty),
                        _ => {}
                    }
                }
            }
            Payload::TableSection(section) => {
                for table in section.clone() {
                    self.tables.push(table?.ty.initial);
                }
            }
            Payload::MemorySection(section) => {
                for memory in section.clone() {
                    self.own_memories += 1;
                    self.memories.push(memory?.initial.saturating_mul(65_536));
                }
            }
            Payload::GlobalSection(section) => {
                for global in section.clone() {
                    self.globals += 1;
                    self.work_out(&global?.init_expr)?;
                }
            }
            Payload::ExportSection(section) => self.exports = section.count().into(),
            Payload::TagSection(section) => self.tags = section.count().into(),
            Payload::ElementSection(section) => {
                for element in section.clone() {
                    let element = element?;
                    let (items, are_functions) = match &element.items {
                        ElementItems::Functions(functions) => (functions.count(), true),
                        ElementItems::Expressions(_, values) => (values.count(), false),
                    };
                    let items = u64::from(items);
                    match element.kind {
                        // It only permits code to name these functions.
                        ElementKind::Declared => {}
                        ElementKind::Passive => self.work = self.work.saturating_add(1 + items),
                        ElementKind::Active { table_index, offset_expr } => {
                            let offset = self.work_out(&offset_expr)?;
                            let size = size_of(&self.tables, table_index.unwrap_or(0));
                            self.elements.add(1 + items, are_functions && is_within(offset, items, size));
                        }
                    }
                }
            }
            Payload::DataSection(section) => {
                for data in section.clone() {
                    let data = data?;
                    if let DataKind::Active { memory_index, offset_expr } = data.kind {
                        let offset = self.work_out(&offset_expr)?;
                        let size = size_of(&self.memories, memory_index);
                        let length = data.data.len() as u64;
                        // It may be copied, between two ticks and into untouched pages.
                        self.data.add(1 + length / 1024, is_within(offset, length, size));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The number, if an expression is just a number; otherwise counts its instructions.
    fn work_out(&mut self, expression: &ConstExpr<'_>) -> Result<Option<u64>, BinaryReaderError> {
        let (mut instructions, mut number, mut plain) = (0, None, true);
        for operator in expression.get_operators_reader() {
            match operator? {
                Operator::End => continue,
                Operator::I32Const { value } => number = Some(value.cast_unsigned().into()),
                Operator::I64Const { value } => number = Some(value.cast_unsigned()),
                Operator::F32Const { .. } | Operator::F64Const { .. } | Operator::V128Const { .. } => {}
                _ => plain = false,
            }
            instructions += 1;
        }
        if plain && instructions == 1 {
            return Ok(number);
        }
        self.work = self.work.saturating_add(instructions);
        Ok(None)
    }

    fn work(&self) -> u64 {
        self.work.saturating_add(self.elements.work()).saturating_add(self.data.work())
    }

    /// The bytes that its own memories begin with.
    pub(super) fn memory(&self) -> u64 {
        self.memories.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// What is over its bound, if anything, in words for the plugin's author.
    pub(super) fn check(&self) -> Result<(), String> {
        let bounds = [
            ("values to work out before it runs", self.work(), MOST_WORK),
            ("elements of tables", self.elements.items, MOST_PLAIN),
            ("imports", self.imports, MOST_IMPORTS),
            ("exports", self.exports, MOST_EXPORTS),
            ("globals", self.globals, MOST_GLOBALS),
            ("tags", self.tags, MOST_GLOBALS),
            ("types and fields of types", self.types, MOST_TYPES),
            ("parameters and results of types", self.passed, MOST_PASSED),
            ("parameters and results of imports", self.imported, MOST_IMPORTED),
        ];
        if self.own_memories > MOST_MEMORIES {
            let count = self.own_memories;
            return Err(format!("multi-memory: it has {count} memories; at most {MOST_MEMORIES} are allowed"));
        }
        match bounds.into_iter().find(|(_, count, most)| count > most) {
            Some((what, count, most)) => Err(format!("it has {count} {what}; at most {most} are allowed")),
            None => Ok(()),
        }
    }
}

fn size_of(sizes: &[u64], index: u32) -> u64 {
    usize::try_from(index).ok().and_then(|index| sizes.get(index)).copied().unwrap_or(0)
}

fn is_within(offset: Option<u64>, items: u64, size: u64) -> bool {
    offset.is_some_and(|offset| offset.saturating_add(items) <= size)
}

#[cfg(test)]
mod tests {
    use wasmparser::Parser;

    use super::*;

    fn weight(text: &str) -> Weight {
        let bytes = wat::parse_str(format!("(module {text})")).unwrap();
        let mut weight = Weight::default();
        for payload in Parser::new(0).parse_all(&bytes) {
            weight.add(&payload.unwrap()).unwrap();
        }
        weight
    }

    #[test]
    fn what_compilers_emit_is_no_work() {
        let weight = weight(
            r#"(func $f) (memory 1) (table 10 funcref) (global (mut i32) (i32.const 5)) (global f64 (f64.const 1))
               (global v128 (v128.const i64x2 1 2)) (elem (i32.const 1) $f $f) (elem (i32.const 8) $f $f)
               (elem declare func $f) (data (i32.const 65535) "x") (data "passive")"#,
        );
        assert_eq!((weight.work(), weight.elements.items), (0, 6));
    }

    #[test]
    fn who_has_too_much_of_anything_is_told_of_what() {
        let globals = |count: usize| format!("(func $f) {}", "(global funcref (ref.func $f))".repeat(count));
        assert_eq!(weight(&globals(5_000)).check(), Ok(()));
        let refused = weight(&globals(5_001)).check().unwrap_err();
        assert_eq!(refused, "it has 5001 values to work out before it runs; at most 5000 are allowed");
        let types = |count: usize| format!("(type (func (param {}) (result i32)))", "i64 ".repeat(999)).repeat(count);
        assert_eq!(weight(&types(50)).check(), Ok(()));
        assert!(weight(&types(51)).check().unwrap_err().contains("51000 parameters"));
        let structures = |count: usize| "(type (struct (field i32)))".repeat(count);
        assert_eq!(weight(&structures(50_000)).check(), Ok(()));
        assert!(weight(&structures(50_001)).check().unwrap_err().contains("100002 types and fields of types"));
        assert!(weight(&"(tag)".repeat(10_001)).check().unwrap_err().contains("10001 tags"));
        let exports =
            |count| (0..count).map(|name| format!("(export \"{name}\" (func 0))")).collect::<Vec<_>>().concat();
        assert_eq!(weight(&format!("(func) {}", exports(10_000))).check(), Ok(()));
        assert!(weight(&format!("(func) {}", exports(10_001))).check().unwrap_err().contains("10001 exports"));
        let import = "(import \"a\" \"b\" (func (type 0)))";
        let imports = |count: usize| format!("{} {}", types(1), import.repeat(count));
        assert_eq!(weight(&imports(10)).check(), Ok(()));
        assert!(weight(&imports(11)).check().unwrap_err().contains("11000 parameters and results of imports"));
    }

    #[test]
    fn what_has_to_be_worked_out_is_counted() {
        for (text, work) in [
            ("(global i32 (i32.add (i32.const 1) (i32.const 2)))", 3),
            ("(func $f) (global funcref (ref.func $f))", 1),
            ("(global funcref (ref.null func))", 1),
            ("(func $f) (elem func $f $f)", 3),
            ("(func $f) (table 2 funcref) (elem (i32.const 1) $f $f)", 3),
            ("(func $f) (table 2 funcref) (elem (i32.const 0) $f) (elem (i32.const 2) $f)", 4),
            ("(func $f) (table 2 funcref) (elem (i32.const 0) funcref (ref.func $f))", 2),
            (r#"(memory 1) (data (i32.const 0) "x") (data (i32.const 65535) "xy")"#, 2),
            (r#"(memory i64 1) (data (i64.const 65535) "x")"#, 0),
            (r#"(memory i64 1) (data (i64.const -1) "x")"#, 1),
            (r#"(memory 1) (data (i32.add (i32.const 0) (i32.const 0)) "x")"#, 4),
            (r#"(import "a" "b" (memory 1)) (data (i32.const 0) "x")"#, 1),
        ] {
            assert_eq!(weight(text).work(), work, "{text}");
        }
    }
}
