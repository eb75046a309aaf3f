//! A plugin for WASI that panics as a customer's would, with the official PDK.

use extism_pdk::*;

mod orders {
    /// The last character of an order, which must have one.
    #[inline(never)]
    pub(crate) fn last(order: &str) -> char {
        order.chars().last().expect("an empty order")
    }
}

/// Gives back the last character of its input.
#[plugin_fn]
pub fn last(order: String) -> FnResult<String> {
    println!("looking at {order:?}");
    Ok(orders::last(&order).to_string())
}
