//! A plugin as a customer would write it in Rust, with the official PDK.

use extism_pdk::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Order {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    price: f64,
    qty: u32,
}

#[derive(Serialize)]
struct Totals {
    total: f64,
    lines: usize,
}

/// Adds up an order. Input that is not an order fails with the JSON reader's own message.
#[plugin_fn]
pub fn transform(Json(order): Json<Order>) -> FnResult<Json<Totals>> {
    // Not `sum`: that of no numbers at all is -0.0, and JSON shows the sign.
    let total = order
        .items
        .iter()
        .fold(0.0, |total, item| total + item.price * f64::from(item.qty));
    Ok(Json(Totals {
        total,
        lines: order.items.len(),
    }))
}

/// Gives back any bytes.
#[plugin_fn]
pub fn echo(input: Vec<u8>) -> FnResult<Vec<u8>> {
    Ok(input)
}

/// Logs its input and has no output.
#[plugin_fn]
pub fn log_it(input: String) -> FnResult<()> {
    info!("{input}");
    Ok(())
}
