//! Host functions of JSON.

use std::{collections::BTreeMap, num::ParseIntError};

use evalpool::{HostFunction, HostFunctionError, Source, Spec, config::EngineKind};
use serde::{Deserialize, Serialize};

use super::imports;
use crate::support::{builder, wasm};

#[derive(Deserialize)]
struct Item {
    cents: String,
    count: u64,
}

#[derive(Serialize)]
struct Total {
    cents: u64,
}

struct Customer {
    discount: u64,
}

fn total(item: &Item) -> Result<Total, ParseIntError> {
    Ok(Total { cents: item.cents.parse::<u64>()? * item.count })
}

/// Gives what `price` makes of its input.
fn spec(function: HostFunction) -> Spec {
    let imports = imports(r#"(import "extism:host/user" "price" (func $price (param i64) (result i64)))"#);
    let guest = format!(
        r#"(module {imports}
            (func (export "run")
                (call $echo)
                (call $block (call $price (call $output_offset)))))"#
    );
    Spec::new(Source::bytes(wasm(&guest))).host_function(function)
}

/// What a plugin's call of this function comes to: its output, or its error's kind and text.
async fn calls(engine: EngineKind, function: HostFunction, input: &'static str) -> (String, String) {
    let pool = builder(engine).build().unwrap();
    let evaluator = pool.evaluator("price", spec(function)).unwrap();
    let ended = evaluator.evaluate_with(input, Customer { discount: 5 }).await;
    let came = match ended {
        Ok(response) => ("ok".to_owned(), response.text().unwrap().to_owned()),
        Err(error) => (error.kind().to_string(), error.to_string()),
    };
    pool.close().await;
    came
}

fn ok(output: &str) -> (String, String) {
    ("ok".to_owned(), output.to_owned())
}

async fn what_goes_in_and_out_is_typed(engine: EngineKind) {
    let price = HostFunction::json("price", |item: Item| Ok(total(&item)?));
    assert_eq!(calls(engine, price, r#"{"cents": "250", "count": 3}"#).await, ok(r#"{"cents":750}"#));
    let none = HostFunction::json("price", |(): ()| Ok(None::<Total>));
    assert_eq!(calls(engine, none, "null").await, ok("null"));
}

async fn one_may_have_the_calls_context(engine: EngineKind) {
    let price = HostFunction::json_with("price", |customer: &Customer, cents: u64| Ok(cents - customer.discount));
    assert_eq!(calls(engine, price, "250").await, ok("245"));
    let other = HostFunction::json_with("price", |_: &String, cents: u64| Ok(cents));
    let (kind, text) = calls(engine, other, "250").await;
    assert_eq!(kind, "guest_error");
    assert!(text.contains("context is not the alloc::string::String"), "{text}");
}

async fn any_error_ends_the_guests_call_with_its_text(engine: EngineKind) {
    let price = HostFunction::json("price", |item: Item| Ok(total(&item)?));
    let (kind, text) = calls(engine, price, r#"{"cents": "much", "count": 3}"#).await;
    assert_eq!(
        (kind.as_str(), text.as_str()),
        ("guest_error", "the plugin reported an error: invalid digit found in string")
    );
    let own = HostFunction::json("price", |_: Item| Err::<Total, _>(HostFunctionError::new("sold out")));
    let (kind, text) = calls(engine, own, r#"{"cents": "1", "count": 3}"#).await;
    assert_eq!((kind.as_str(), text.as_str()), ("guest_error", "the plugin reported an error: sold out"));
}

async fn an_input_that_is_not_the_json_expected_is_told_with_the_functions_name(engine: EngineKind) {
    for (input, why) in [
        (r#"{"cents": "250"}"#, "missing field `count`"),
        ("{", "EOF while parsing"),
        ("", "EOF while parsing"),
        (r#"{"cents": 250, "count": 3}"#, "invalid type: integer `250`, expected a string"),
    ] {
        let price = HostFunction::json("price", |_: Item| -> Result<(), _> { panic!("it is not called") });
        let (kind, text) = calls(engine, price, input).await;
        assert_eq!(kind, "guest_error", "{input}");
        let expected = "the host function price was not given the JSON that it expects: ";
        assert!(text.contains(expected) && text.contains(why), "{input}: {text}");
    }
}

async fn an_output_that_is_not_json_is_told_with_the_functions_name(engine: EngineKind) {
    let price = HostFunction::json("price", |(): ()| Ok(BTreeMap::from([(vec![1_u8], 2)])));
    let (kind, text) = calls(engine, price, "null").await;
    assert_eq!(kind, "guest_error");
    assert!(text.contains("the host function price gave what is not JSON: key must be a string"), "{text}");
}

on_each_engine!(
    what_goes_in_and_out_is_typed,
    one_may_have_the_calls_context,
    any_error_ends_the_guests_call_with_its_text,
    an_input_that_is_not_the_json_expected_is_told_with_the_functions_name,
    an_output_that_is_not_json_is_told_with_the_functions_name,
);
