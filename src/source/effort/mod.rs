//! Refuses what would take an engine too long to compile.
//!
//! Nothing can interrupt a compiler, and a few kilobytes can keep cranelift busy for minutes or make it take gigabytes:
//! a thousand locals that a thousand loops change, a thousand parameters of a thousand types, thirty thousand empty
//! loops. So one pass over the function bodies estimates the cost of each, in time of one core, and a module over its
//! bound never reaches the compiler.
//!
//! The prices were measured on wasmtime 43 and 48 with bombs of each kind, and are on the high side. Where cranelift is
//! worse than linear, so is the estimate. The largest function found in a real module is Go's: a quarter of
//! [`FUNCTION`]. A whole JavaScript bundler in Go, of 14 MB, is a quarter of [`MODULE`].
//!
//! Considered and not taken: bounds on sizes alone, of bodies, locals, depth. Each may be harmless by itself and not so
//! when multiplied, and bounds that keep the product small refuse real interpreters.

mod function;
mod prices;

use wasmparser::{
    ConstExpr, DataKind, ElementItems, ElementKind, ExternalKind, FuncValidatorAllocations, Parser, Payload, RefType,
    TableInit, TypeRef, ValType, ValidPayload, Validator, WasmModuleResources,
};

use self::{
    function::{Function, Locals},
    prices::{
        EACH_ELEMENT, EACH_ENTRANCE, EACH_FUNCTION, EACH_OF_A_FUNCTION, EACH_OF_A_TYPE, EACH_OF_AN_EXPRESSION,
        FREE_OF_AN_EXPRESSION,
    },
};
use super::inspect::FEATURES;
use crate::error::Error;

/// Nanoseconds of one core.
type Nanos = u64;

/// The bound of one function. One core does all the work, and takes all its memory at once.
const FUNCTION: Nanos = 6_000_000_000;

/// The bound of a whole module.
const MODULE: Nanos = 100_000_000_000;

/// Refuses a module that would take too long to compile. Takes about a tenth of the time of compiling it.
///
/// # Errors
///
/// `invalid_plugin`, naming the function and what it has too much of; also for a body that is not valid.
pub(crate) fn check(wasm: &[u8]) -> Result<(), Error> {
    measure(wasm).map(drop)
}

fn invalid(error: &wasmparser::BinaryReaderError) -> Error {
    Error::invalid_plugin(error.to_string())
}

/// The cost of a module.
#[derive(Debug, Default)]
struct Effort {
    total: Nanos,
    /// That of the most expensive function.
    largest: Nanos,
    /// Whether a type, table or global holds references to the host's objects.
    has_references: bool,
}

impl Effort {
    fn pay(&mut self, price: Nanos, count: usize, what: &str) -> Result<(), Error> {
        self.total = self.total.saturating_add(price.saturating_mul(count as u64));
        if self.total > MODULE {
            return Err(Error::invalid_plugin(format!("it would take too long to compile, with its {what}")));
        }
        Ok(())
    }
}

fn measure(wasm: &[u8]) -> Result<Effort, Error> {
    let mut effort = Effort::default();
    let mut validator = Validator::new_with_features(FEATURES);
    let mut allocations = FuncValidatorAllocations::default();
    let mut locals = Locals::default();
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload.map_err(|error| invalid(&error))?;
        around(&payload, &mut effort).map_err(|error| match error {
            Stop::Invalid(error) => invalid(&error),
            Stop::TooMuch(error) => error,
        })?;
        let ValidPayload::Func(function, body) = validator.payload(&payload).map_err(|error| invalid(&error))? else {
            continue;
        };
        let index = function.index;
        let ty = function.resources.type_index_of_function(index).and_then(|at| function.resources.sub_type_at(at));
        let signature = ty.map_or(0, |ty| {
            let ty = ty.unwrap_func();
            ty.params().len() + ty.results().len()
        });
        effort.pay(EACH_FUNCTION, 1, "many functions")?;
        effort.pay(EACH_OF_A_FUNCTION, signature, "functions' parameters and results")?;
        let mut validator = function.into_validator(std::mem::take(&mut allocations));
        let cost =
            Function::new(&mut locals, effort.has_references).cost(&mut validator, &body).map_err(
                |stop| match stop {
                    function::Stop::Invalid(error) => invalid(&error),
                    function::Stop::TooMuch(what) => Error::invalid_plugin(format!(
                        "its function {index} would take too long to compile, with {what}"
                    )),
                },
            )?;
        allocations = validator.into_allocations();
        effort.largest = effort.largest.max(cost);
        effort.pay(cost, 1, "functions together")?;
    }
    Ok(effort)
}

enum Stop {
    Invalid(wasmparser::BinaryReaderError),
    TooMuch(Error),
}

impl From<wasmparser::BinaryReaderError> for Stop {
    fn from(error: wasmparser::BinaryReaderError) -> Self {
        Stop::Invalid(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::TooMuch(error)
    }
}

/// Adds what is not in function bodies.
fn around(payload: &Payload<'_>, effort: &mut Effort) -> Result<(), Stop> {
    match payload {
        Payload::TypeSection(section) => {
            for group in section.clone() {
                for ty in group?.into_types() {
                    if let wasmparser::CompositeInnerType::Func(ty) = &ty.composite_type.inner {
                        let values = ty.params().len() + ty.results().len();
                        effort.pay(EACH_OF_A_TYPE, values, "types' parameters and results")?;
                        effort.has_references |=
                            ty.params().iter().chain(ty.results()).any(|ty| *ty == ValType::EXTERNREF);
                    }
                }
            }
        }
        Payload::ImportSection(section) => {
            for import in section.clone().into_imports() {
                effort.has_references |= match import?.ty {
                    TypeRef::Table(table) => table.element_type == RefType::EXTERNREF,
                    TypeRef::Global(global) => global.content_type == ValType::EXTERNREF,
                    _ => false,
                };
            }
        }
        Payload::ExportSection(section) => {
            for export in section.clone() {
                if export?.kind == ExternalKind::Func {
                    effort.pay(EACH_ENTRANCE, 1, "many exports")?;
                }
            }
        }
        Payload::GlobalSection(section) => {
            for global in section.clone() {
                let global = global?;
                effort.has_references |= global.ty.content_type == ValType::EXTERNREF;
                expression(&global.init_expr, effort)?;
            }
        }
        Payload::TableSection(section) => {
            for table in section.clone() {
                let table = table?;
                effort.has_references |= table.ty.element_type == RefType::EXTERNREF;
                if let TableInit::Expr(init) = table.init {
                    expression(&init, effort)?;
                }
            }
        }
        Payload::DataSection(section) => {
            for data in section.clone() {
                if let DataKind::Active { offset_expr, .. } = data?.kind {
                    expression(&offset_expr, effort)?;
                }
            }
        }
        Payload::ElementSection(section) => {
            for element in section.clone() {
                let element = element?;
                if let ElementKind::Active { offset_expr, .. } = element.kind {
                    expression(&offset_expr, effort)?;
                }
                match element.items {
                    ElementItems::Functions(functions) => {
                        effort.pay(EACH_ELEMENT, functions.count() as usize, "many elements")?;
                    }
                    ElementItems::Expressions(_, expressions) => {
                        effort.pay(EACH_ELEMENT, expressions.count() as usize, "many elements")?;
                        for each in expressions {
                            expression(&each?, effort)?;
                        }
                    }
                }
            }
        }
        // Each function may be in a table.
        Payload::FunctionSection(section) => {
            effort.pay(EACH_ENTRANCE, section.count() as usize, "many functions")?;
        }
        _ => {}
    }
    Ok(())
}

fn expression(expression: &ConstExpr<'_>, effort: &mut Effort) -> Result<(), Stop> {
    let mut operators = expression.get_operators_reader();
    let mut count = 0;
    while !operators.eof() {
        operators.read()?;
        count += 1;
        if count > FREE_OF_AN_EXPRESSION {
            effort.pay(EACH_OF_AN_EXPRESSION, 1, "constant expressions")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
