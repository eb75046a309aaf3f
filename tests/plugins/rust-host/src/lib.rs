//! A plugin that needs a host function. It stands apart from `../rust`, because a host without
//! that function refuses the whole module.

use extism_pdk::*;

#[host_fn("extism:host/user")]
extern "ExtismHost" {
    fn host_upper(text: String) -> String;
}

/// Gives what the host makes of its input.
#[plugin_fn]
pub fn call_host(input: String) -> FnResult<String> {
    // SAFETY: the PDK asks for `unsafe` because it trusts the host to answer with a memory block.
    Ok(unsafe { host_upper(input)? })
}
