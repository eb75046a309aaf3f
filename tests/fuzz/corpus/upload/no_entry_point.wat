(module (func (export "run") (param i32)) (global (export "g") i32 (i32.const 1)))
