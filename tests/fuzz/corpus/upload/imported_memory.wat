(module (import "extism:host/env" "memory" (memory 1)) (func (export "run")))
