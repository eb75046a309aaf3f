(module (import "extism:host/env" "input_length" (global i32)) (func (export "run")))
