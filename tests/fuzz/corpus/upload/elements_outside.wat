(module (table 1 funcref) (func $f (export "run")) (elem (i32.const 7) $f))
