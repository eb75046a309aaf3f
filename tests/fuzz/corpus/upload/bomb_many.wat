(module (func (export "run")) [200000 (func)])
