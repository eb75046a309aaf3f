(module (func $trap unreachable) (start $trap) (func (export "run")))
