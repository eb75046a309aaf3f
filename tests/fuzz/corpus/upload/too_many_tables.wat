(module (table 1 funcref) (table 1 funcref) (table 1 externref) (table 1 funcref) (table 1 funcref) (func (export "run")))
