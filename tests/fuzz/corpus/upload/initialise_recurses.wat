(module (func $f (export "_initialize") (call $f)) (func (export "run")))
