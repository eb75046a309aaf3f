(module $n (func $a (export "run") (local $l i32)) (func (export "\00\1b[31m")) (func (export "m\c3\b6glich")) (@custom "producers" "x"))
