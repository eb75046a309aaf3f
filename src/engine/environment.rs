//! What plugins may import from `extism:host/env`.

pub(crate) const ENVIRONMENT: &str = "extism:host/env";

/// Extism's kernel: WebAssembly, beside the plugin.
pub(crate) const KERNEL: [&str; 20] = [
    "alloc",
    "error_get",
    "error_set",
    "free",
    "input_length",
    "input_load_u64",
    "input_load_u8",
    "input_offset",
    "input_set",
    "length",
    "length_unsafe",
    "load_u64",
    "load_u8",
    "memory_bytes",
    "output_length",
    "output_offset",
    "output_set",
    "reset",
    "store_u64",
    "store_u8",
];

/// Functions of the host.
pub(crate) const FUNCTIONS: [&str; 12] = [
    "config_get",
    "get_log_level",
    "http_headers",
    "http_request",
    "http_status_code",
    "log_debug",
    "log_error",
    "log_info",
    "log_trace",
    "log_warn",
    "var_get",
    "var_set",
];
